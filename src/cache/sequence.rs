//! How sequences are named and how they grow: handles, chunks, where a sequence stands, and the
//! record of it that kernels read.

use crate::error::{Error, Result};
use crate::format::PAGE_TOKENS;

/// A handle on one sequence of one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sequence {
    pub(super) cache: u64,
    pub(super) generation: u64,
    pub(super) slot: u32,
}

impl Sequence {
    /// Returns the sequence's place in its cache, below the plan's number of sequences.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// The sequence.
    pub sequence: Sequence,
    /// How many tokens it grows by; they are also the tokens that attend.
    pub tokens: u32,
}

/// What a step does in one cache of several that hold a sequence together, each some of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// The sequence.
    pub sequence: Sequence,
    /// Position of the first query: the sequence's length, or more.
    pub first: u32,
    /// How many queries there are.
    pub queries: u32,
    /// How many tokens the sequence grows by: those of the first queries. 0 where `first` is more
    /// than its length.
    pub tokens: u32,
}

/// One chunk and where its sequence stands: the record of 8 words that the kernels read.
#[derive(Clone, Debug)]
pub(crate) struct Growth {
    pub slot: u32,
    /// Position of its first query. Where other caches hold tokens, it may lie beyond the new
    /// tokens.
    pub old_tokens: u32,
    pub new_tokens: u32,
    /// Its queries.
    pub rows: u32,
    pub old_packed: u32,
    pub new_packed: u32,
    /// Its first pages, which are gone.
    pub dropped: u32,
    /// Whether it lacks the first tokens, and so the sinks, because another cache has them.
    pub headless: bool,
    /// Sinks elected before from this token on are void.
    pub limit: u32,
    /// Its pages, without those that are gone.
    pub pages: Vec<u32>,
}

/// What a step would take of a cache's pages, and how many are free; made by
/// [`Cache::can_append`](crate::Cache::can_append).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Admission {
    /// Pages that the step would take from the pool.
    pub pages_needed: u32,
    /// Pages that no sequence holds.
    pub pages_free: u32,
}

impl Admission {
    /// Returns whether the step would find its pages.
    pub fn fits(&self) -> bool {
        self.pages_needed <= self.pages_free
    }

    /// Returns the number of pages that are missing; 0 if the step fits.
    pub fn pages_missing(&self) -> u32 {
        self.pages_needed.saturating_sub(self.pages_free)
    }

    /// Refuses a step that would not find its pages.
    pub(crate) fn expect_fits(&self) -> Result<()> {
        if self.fits() { Ok(()) } else { Err(Error::Pages { need: self.pages_needed, have: self.pages_free }) }
    }
}

/// Where a sequence stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Standing {
    pub tokens: u32,
    /// Tokens before this one lie in pages (apart from sinks).
    pub packed: u32,
    /// The first pages, which it slid beyond and no longer holds.
    pub dropped: u32,
    /// Whether it never held its first tokens, among them the sinks.
    pub headless: bool,
    /// Sinks elected before from this token on are void.
    pub limit: u32,
    /// Its tokens before the last step, and `limit` then: where it returns to when that step is
    /// taken back.
    pub before: (u32, u32),
}

impl Standing {
    /// Returns how many pages it lies in.
    pub fn pages(&self) -> u32 {
        self.packed.div_ceil(PAGE_TOKENS) - self.dropped
    }

    /// Returns the first token that it did not slide beyond.
    pub fn first(&self) -> u32 {
        self.dropped * PAGE_TOKENS
    }
}

/// Words of a chunk's record.
pub(crate) const CHUNK_WORDS: u32 = 8;

impl Growth {
    /// Returns how many pages its sequence lacks if it has `pages`.
    pub fn pages_lacking(&self, pages: u32) -> u32 {
        self.new_packed.div_ceil(PAGE_TOKENS) - self.dropped - pages
    }

    /// Returns how many pages it has beyond those it had before.
    #[cfg(feature = "tracing")]
    pub fn pages_taken(&self) -> u32 {
        self.new_packed.div_ceil(PAGE_TOKENS) - self.old_packed.div_ceil(PAGE_TOKENS)
    }

    /// Returns whether it prefills. Then its layers' sinks are elected anew.
    pub fn prefills(&self) -> bool {
        self.new_tokens > self.old_tokens + 1
    }

    /// Returns the token from which on elected sinks are void once this step's election has been
    /// held.
    pub fn limit_now(&self) -> u32 {
        if self.prefills() { u32::MAX } else { self.limit }
    }

    /// Returns the first token that is not gone, apart from sinks.
    pub fn first(&self) -> u32 {
        self.dropped * PAGE_TOKENS
    }

    /// Returns where page 0 would be in the list of pages after this record. The list begins with
    /// the first page that is not gone, so places wrap around.
    pub fn list(&self, record: u32) -> u32 {
        (record + CHUNK_WORDS).wrapping_sub(self.dropped)
    }

    /// Writes the record, and returns where it lies.
    pub fn record(&self, tables: &mut Vec<u32>, row_first: u32) -> u32 {
        let at = tables.len() as u32;
        let pages_at = self.list(at);
        tables.extend([self.slot, self.old_tokens, self.new_tokens, self.old_packed, self.new_packed, pages_at, row_first, self.limit_now()]);
        tables.extend(&self.pages);
        at
    }
}
