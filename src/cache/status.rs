//! Tokens that could not be stored as they came.

/// Entries that the list on the GPU has room for; further ones are only counted.
pub(crate) const STATUS_ENTRIES: u64 = 256;

/// Words of the list: the count, three of padding, four an entry.
pub(crate) const STATUS_WORDS: u64 = 4 + 4 * STATUS_ENTRIES;

/// A key or a value with a number that was not finite. It was stored as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flag {
    /// The layer.
    pub layer: u32,
    /// The sequence's place ([`Sequence::slot`](crate::Sequence::slot)).
    pub slot: u32,
    /// The token's position in its sequence.
    pub token: u32,
    /// The KV head.
    pub head: u32,
    /// Whether it was the key.
    pub key: bool,
    /// Whether it was the value.
    pub value: bool,
}

/// What the kernels found in the rows they were given since the last
/// [`Cache::status`](crate::Cache::status).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// How many rows (of one token and KV head) had a number that was not finite. A row that is
    /// given to several kernels (a key and a value of RotateKV to two, a sink that is also recent
    /// to two) counts once for each.
    pub rows: u32,
    /// The first of them, in order, 256 at most.
    pub flags: Vec<Flag>,
}

impl Status {
    /// Returns whether every number was finite.
    pub fn is_clean(&self) -> bool {
        self.rows == 0
    }

    pub(crate) fn from_words(words: &[u32]) -> Self {
        let rows = words.first().copied().unwrap_or(0);
        let listed = u64::from(rows).min(STATUS_ENTRIES) as usize;
        let mut flags: Vec<Flag> = words
            .get(4..)
            .unwrap_or(&[])
            .chunks_exact(4)
            .take(listed)
            .map(|e| Flag { layer: e[0], slot: e[1], token: e[2], head: e[3] / 4, key: e[3] & 1 != 0, value: e[3] & 2 != 0 })
            .collect();
        flags.sort_unstable();
        Self { rows, flags }
    }
}
