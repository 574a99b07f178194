//! Tokens that could not be stored as they came.

/// Entries that the list on the GPU has room for; further ones are only counted.
pub(crate) const STATUS_ENTRIES: u64 = 256;

/// Words of the list: the count, three of padding, four an entry.
pub(crate) const STATUS_WORDS: u64 = 4 + 4 * STATUS_ENTRIES;

/// Why a key or a value was not stored as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Defect {
    /// A number was not finite, or its magnitude was 2^110 or more, so that sums of such numbers
    /// would not be. The row reads back as zeros; with
    /// [`Codec::Centred`](crate::Codec::Centred), which stores what is left of a row without the
    /// mean, as the mean: attention gives such a token the weight and the value of an average one.
    NotFinite,
    /// A number, or a scale, was beyond what the format stores (65504 in halves), after rotation
    /// where the codec rotates. It was clamped.
    Saturated,
}

/// A key or a value that was not stored as it came.
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
    /// What was wrong with the key.
    pub key: Option<Defect>,
    /// What was wrong with the value.
    pub value: Option<Defect>,
}

impl Flag {
    fn from_entry(entry: &[u32]) -> Self {
        // A row that is not finite is zeros when it is stored, so that it is not beyond anything.
        let defect = |what: u32| {
            if what & 1 != 0 {
                Some(Defect::NotFinite)
            } else if what & 4 != 0 {
                Some(Defect::Saturated)
            } else {
                None
            }
        };
        let what = entry[3] % 16;
        Self { layer: entry[0], slot: entry[1], token: entry[2], head: entry[3] / 16, key: defect(what), value: defect(what >> 1) }
    }
}

/// What the kernels found in the rows they were given since the last
/// [`Cache::status`](crate::Cache::status).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// How many rows (of one token and KV head) were not stored as they came. A row that is given
    /// to several kernels (a key and a value of RotateKV to two, a sink that is also recent to two)
    /// counts once for each.
    pub rows: u32,
    /// The first of them, in order, 256 at most.
    pub flags: Vec<Flag>,
}

impl Status {
    /// Returns whether every row was stored as it came: all numbers finite, none clamped.
    pub fn is_clean(&self) -> bool {
        self.rows == 0
    }

    pub(crate) fn from_words(words: &[u32]) -> Self {
        let rows = words.first().copied().unwrap_or(0);
        let listed = u64::from(rows).min(STATUS_ENTRIES) as usize;
        let mut flags: Vec<Flag> = words.get(4..).unwrap_or(&[]).chunks_exact(4).take(listed).map(Flag::from_entry).collect();
        flags.sort_unstable();
        Self { rows, flags }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_say_what_was_wrong_with_which() {
        let mut words = vec![3, 0, 0, 0];
        words.extend([[1, 2, 300, 5 * 16 + 1], [0, 0, 7, 2 + 4], [0, 0, 7, 16 + 8]].as_flattened());
        let flag = |layer, slot, token, head, key, value| Flag { layer, slot, token, head, key, value };
        let flags = vec![
            flag(0, 0, 7, 0, Some(Defect::Saturated), Some(Defect::NotFinite)),
            flag(0, 0, 7, 1, None, Some(Defect::Saturated)),
            flag(1, 2, 300, 5, Some(Defect::NotFinite), None),
        ];
        assert_eq!(Status::from_words(&words), Status { rows: 3, flags });
    }
}
