//! How much a cache may hold.

/// How much a cache may hold: a number of sequences, and the pages they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capacity {
    /// Pages for `sequences` sequences of `tokens` tokens each. One sequence may be longer if
    /// others are shorter.
    Tokens {
        /// Sequences that can be live at once.
        sequences: u32,
        /// Tokens of each.
        tokens: u32,
    },
    /// As many pages as `bytes` bytes hold, over all layers, after the sequences' f16 rows are paid
    /// for.
    Bytes {
        /// Sequences that can be live at once.
        sequences: u32,
        /// Bytes for pages and f16 rows together.
        bytes: u64,
    },
}

impl Capacity {
    /// Makes a capacity of the pages for `sequences` sequences of `tokens` tokens each.
    pub fn tokens(sequences: u32, tokens: u32) -> Self {
        Self::Tokens { sequences, tokens }
    }

    /// Makes a capacity of as many pages as `bytes` bytes hold, for `sequences` sequences.
    pub fn bytes(sequences: u32, bytes: u64) -> Self {
        Self::Bytes { sequences, bytes }
    }

    /// Returns the number of sequences that can be live at once.
    pub fn sequences(&self) -> u32 {
        match *self {
            Self::Tokens { sequences, .. } | Self::Bytes { sequences, .. } => sequences,
        }
    }
}
