//! Sizes that plans and kernels agree on.

/// Partial results of `attend_split` that one row can have.
pub const MERGE_ITEMS: u32 = 256;

/// Items that the f16 rows of a decode pass are split into, at most, but for one more a row.
pub const DECODE_PARTIALS: u32 = 1024;

/// Terms of a page for `position`: those of the even powers, then of the odd.
pub const POSITION_TERMS: u32 = 12;

/// Words of one row's and one reading's plan for `align_scores` and `align_values`.
pub const PLAN_WORDS: u32 = 112;

/// Entries of an item's sums among the scores of `align_scores`: largest score, sum of weights, sum
/// of weights times scales, largest error of a score in nats, and loads of each plane.
pub const SUM_ENTRIES: u32 = 7;

/// Units of 16 bytes of a reading's ledger in `align_values`: errors by head, tokens by level,
/// loads by plane.
pub const LEDGER_VECS: u32 = 3;
