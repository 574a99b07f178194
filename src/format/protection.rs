//! Tokens that stay in f16.

use crate::error::{Error, Result};
use crate::format::{Codec, Format, PAGE_TOKENS};
use std::fmt;
use std::str::FromStr;

/// Which tokens stay f16 for good, because attention leans on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Sinks {
    /// None.
    #[default]
    None,
    /// The first N tokens of a sequence (StreamingLLM, 2309.17453), 127 at most.
    First(u32),
    /// In every layer, the prompt's tokens that hold the N largest magnitudes of the residual
    /// stream which enters it (RotateKV, 2501.16383, section 4.3; it takes 20), 64 at most.
    /// [`Cache::elect`](crate::Cache::elect) finds them.
    Massive(u32),
}

impl Sinks {
    /// Returns the word that texts call the rule by.
    fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::First(_) => "first",
            Self::Massive(_) => "massive",
        }
    }

    /// Returns how many f16 rows a sequence keeps for them.
    pub fn rows(self) -> u32 {
        match self {
            Self::None => 0,
            Self::First(n) | Self::Massive(n) => n,
        }
    }
}

impl fmt::Display for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str(self.word()),
            Self::First(n) | Self::Massive(n) => write!(f, "{}:{n}", self.word()),
        }
    }
}

impl FromStr for Sinks {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::argument("sinks", "none, first:N or massive:N", text);
        if text == Self::None.word() {
            return Ok(Self::None);
        }
        let (word, n) = text.split_once(':').ok_or_else(wrong)?;
        let n = n.parse().map_err(|_| wrong())?;
        [Self::First(n), Self::Massive(n)].into_iter().find(|sinks| sinks.word() == word).ok_or_else(wrong)
    }
}

/// Tokens that stay in f16: sinks for good, the most recent ones until a whole page of them can be
/// packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protection {
    /// Tokens that stay f16 for good.
    pub sinks: Sinks,
    /// Tokens that are f16 because they are recent, at least. They leave a page (128) at a time, so
    /// up to 127 more are. With 0 every token is packed before it is attended to.
    pub window: u32,
}

impl Default for Protection {
    /// Returns four sinks and a window of 128.
    fn default() -> Self {
        Self { sinks: Sinks::First(4), window: 128 }
    }
}

impl Protection {
    /// Nothing stays f16: every token is packed before it is attended to.
    pub const NONE: Self = Self { sinks: Sinks::None, window: 0 };

    /// Returns how many of a sequence's first tokens lie in pages, when it holds `tokens`. (Sinks
    /// have a place there too, unused.)
    pub fn packed(&self, tokens: u32) -> u32 {
        if self.window == 0 { tokens } else { tokens.saturating_sub(self.window) / PAGE_TOKENS * PAGE_TOKENS }
    }

    /// Returns how many of `tokens` tokens of a sequence are kept in f16: those that no page holds
    /// yet, and the sinks. (Elected sinks may be fewer.)
    pub fn f16_tokens(&self, tokens: u32) -> u32 {
        let packed = self.packed(tokens);
        tokens - packed + self.sinks.rows().min(packed)
    }

    /// Refuses what does not fit the format, and numbers that are not served.
    pub(crate) fn check(&self, format: &Format) -> Result<()> {
        if let Sinks::Massive(rows) = self.sinks {
            let wrong = |name: &'static str, wanted: &str, had: String| Err(Error::argument(name, wanted, had));
            if !(1..=64).contains(&rows) {
                return wrong("massive sinks", "1 to 64", rows.to_string());
            }
            if format.codec() == Codec::AlignedF16 {
                return wrong("the codec of massive sinks", "one without planes", format.codec().to_string());
            }
        }
        if self.sinks.rows() > 127 {
            return Err(Error::argument("sinks", "127 at most", self.sinks.rows()));
        }
        if self.window > 1 << 16 {
            return Err(Error::argument("window", "65536 at most", self.window));
        }
        Ok(())
    }
}
