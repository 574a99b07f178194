//! How scores are made of keys and queries, and which tokens a query sees.

use super::Plan;
use crate::error::{Error, Result};
use crate::format::Shape;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Which of its sequence's tokens a query sees, apart from those after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Span {
    /// All of them.
    #[default]
    All,
    /// The last N, its own among them ([`PlanBuilder::sliding_window`](crate::PlanBuilder::sliding_window)).
    Sliding(u32),
    /// Those of its own chunk of N tokens; chunks begin at multiples of N
    /// ([`PlanBuilder::chunked_attention`](crate::PlanBuilder::chunked_attention)).
    Chunked(u32),
}

impl Span {
    /// Returns the first token that a query at a position sees.
    pub fn first(self, position: u32) -> u32 {
        match self {
            Self::All => 0,
            Self::Sliding(tokens) => position.saturating_add(1).saturating_sub(tokens),
            Self::Chunked(tokens) => position - position.checked_rem(tokens).unwrap_or(0),
        }
    }

    /// Returns the first position from which on queries see no token before `first`; none if they
    /// always do.
    pub(crate) fn seen_from(self, first: u32) -> Option<u32> {
        match self {
            _ if first == 0 => Some(0),
            Self::All => None,
            Self::Sliding(tokens) => Some(first.saturating_add(tokens).saturating_sub(1)),
            Self::Chunked(tokens) => first.checked_next_multiple_of(tokens),
        }
    }

    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Sliding(0) => Err(Error::argument("sliding window", "1 token or more", 0)),
            Self::Chunked(0) => Err(Error::argument("attention chunk", "1 token or more", 0)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all tokens"),
            Self::Sliding(tokens) => write!(f, "the last {tokens} tokens"),
            Self::Chunked(tokens) => write!(f, "its chunk of {tokens} tokens"),
        }
    }
}

/// Scales and caps that are served: what the kernels make of them stays a normal number in f32.
const SCORES: RangeInclusive<f32> = 1e-30..=1e30;

/// What a plan's scores are, beyond the product of key and query.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scoring {
    /// The factor on a product, if not `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// What scores are capped to.
    pub soft_cap: Option<f32>,
    /// `[layers, query_heads]`.
    pub sink_logits: Option<Arc<[f32]>>,
    /// Whether keys and queries come turned by RoPE.
    pub turned: bool,
}

impl Scoring {
    pub fn check(&self, shape: &Shape) -> Result<()> {
        for (name, number) in [("score scale", self.scale), ("soft cap", self.soft_cap)] {
            if let Some(had) = number.filter(|x| !SCORES.contains(x)) {
                return Err(Error::argument(name, format!("{:e} to {:e}", SCORES.start(), SCORES.end()), had));
            }
        }
        if let Some(logits) = &self.sink_logits {
            let wanted = shape.layers as usize * shape.query_heads as usize;
            if logits.len() != wanted {
                return Err(Error::argument("sink logits", format!("{wanted}: one a layer and query head"), logits.len()));
            }
            if let Some(had) = logits.iter().find(|x| x.is_nan() || x.abs() > *SCORES.end()) {
                return Err(Error::argument("sink logit", format!("{:e} at most, either way", SCORES.end()), had));
            }
        }
        Ok(())
    }
}

impl Plan {
    /// Returns the factor on the product of key and query: `1 / sqrt(head_dim)` unless
    /// [`PlanBuilder::score_scale`](crate::PlanBuilder::score_scale) set another.
    pub fn score_scale(&self) -> f64 {
        self.scoring.scale.map_or_else(|| 1.0 / f64::from(self.shape.head_dim).sqrt(), f64::from)
    }

    /// Returns the factor that makes scores in log2 units of products, so that `exp2` serves the
    /// softmax.
    pub(crate) fn log2_scale(&self) -> f64 {
        std::f64::consts::LOG2_E * self.score_scale()
    }

    /// Returns what scores are capped to, if they are.
    pub fn soft_cap(&self) -> Option<f32> {
        self.scoring.soft_cap
    }

    /// Returns the sink logits of a layer's query heads, if there are any.
    pub fn sink_logits(&self, layer: u32) -> Option<&[f32]> {
        let heads = self.shape.query_heads as usize;
        self.scoring.sink_logits.as_ref()?.get(layer as usize * heads..(layer as usize + 1) * heads)
    }

    /// Returns whether keys and queries come turned by RoPE.
    pub fn turned_rows(&self) -> bool {
        self.scoring.turned
    }

    /// Returns which tokens a query sees.
    pub fn span(&self) -> Span {
        self.span
    }
}

#[cfg(test)]
mod tests {
    use super::Span;

    #[test]
    fn queries_see_nothing_before_a_token_from_where_they_say() {
        for span in [Span::All, Span::Sliding(1), Span::Sliding(3), Span::Sliding(128), Span::Chunked(1), Span::Chunked(7), Span::Chunked(100)] {
            for first in 0..300 {
                let from = span.seen_from(first);
                for position in 0..600 {
                    let sees = span.first(position) < first;
                    assert_eq!(from.is_none_or(|from| position < from), sees, "{span:?}, token {first}, position {position}");
                }
            }
        }
    }
}
