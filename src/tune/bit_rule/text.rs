//! Rules as texts.

use super::{BitRule, Grain};
use crate::error::{Error, Result};
use crate::format::Precision;
use crate::tune::solve::Fill;
use std::fmt;
use std::str::FromStr;

const FIXED: &str = "fixed";
const REPO_NORM: &str = "repo-norm";
const CACHE_NORM: &str = "cache-norm";
const MEASURED: &str = "measured";
const LAYER: &str = "layer";
const FILL: &str = "fill";

impl fmt::Display for BitRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { key, value } => write!(f, "{FIXED}:K{key},V{value}"),
            Self::RepoNorm { average_group: None } => f.write_str(REPO_NORM),
            Self::RepoNorm { average_group: Some(group) } => write!(f, "{REPO_NORM}:{group}"),
            Self::CacheNorm => f.write_str(CACHE_NORM),
            Self::Measured { grain, fill } => {
                f.write_str(MEASURED)?;
                if *grain == Grain::Layer {
                    write!(f, ":{LAYER}")?;
                }
                if *fill == Fill::Skip { write!(f, ":{FILL}") } else { Ok(()) }
            }
        }
    }
}

impl FromStr for BitRule {
    type Err = Error;

    /// Reads `measured`, with `:layer` for one precision a layer and `:fill` for what is as good as
    /// can be instead of nested; `cache-norm`; `repo-norm`, with `:64` for groups of 64 on average;
    /// `fixed:K4/128,V2/128`, or `K4V2` for the same (`K2tV2t` by a trellis code).
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::argument("allocator", "measured, cache-norm, repo-norm or K4V2", text);
        let (word, options) = match text.split_once(':') {
            None => (text, None),
            Some(_) if text.ends_with(':') => return Err(wrong()),
            Some((word, options)) => (word, Some(options)),
        };
        match (word, options) {
            (MEASURED, options) => measured(options).ok_or_else(wrong),
            (CACHE_NORM, None) => Ok(Self::CacheNorm),
            (REPO_NORM, None) => Ok(Self::RepoNorm { average_group: None }),
            (REPO_NORM, Some(group)) => {
                let group = group.parse().ok().filter(|group: &f64| group.is_finite()).ok_or_else(wrong)?;
                Ok(Self::RepoNorm { average_group: Some(group) })
            }
            (FIXED, Some(pair)) => {
                let (key, value) = pair.split_once(',').ok_or_else(wrong)?;
                let of = |text: &str, letter| text.strip_prefix(letter).ok_or_else(wrong)?.parse();
                Ok(Self::Fixed { key: of(key, 'K')?, value: of(value, 'V')? })
            }
            (pair, None) => {
                let (key, value) = pair.strip_prefix('K').and_then(|rest| rest.split_once('V')).ok_or_else(wrong)?;
                let of = |width: &str| Precision::of_width(width, 128).ok_or_else(wrong)?;
                Ok(Self::Fixed { key: of(key)?, value: of(value)? })
            }
            _ => Err(wrong()),
        }
    }
}

/// Returns the rule that decides by what was measured, with these options, if they are known.
fn measured(options: Option<&str>) -> Option<BitRule> {
    let (mut grain, mut fill) = (Grain::Head, Fill::Nested);
    for option in options.into_iter().flat_map(|options| options.split(':')) {
        match option {
            LAYER => grain = Grain::Layer,
            FILL => fill = Fill::Skip,
            _ => return None,
        }
    }
    Some(BitRule::Measured { grain, fill })
}
