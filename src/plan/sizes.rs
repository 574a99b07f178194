//! Sizes that plans and kernels agree on.

/// Partial results of `attend_split` that one row can have.
pub const MERGE_ITEMS: u32 = 256;

/// Items that the f16 rows of a decode pass are split into, at most, but for one more a row.
pub const DECODE_PARTIALS: u32 = 1024;

/// Bytes of the tiles that a round of a prefill unpacks, or an eighth of all that a cache holds if
/// that is more.
pub const UNPACKED_BYTES: u64 = 64 << 20;

/// Partial results of query rows, by query head, that prefills may have, if not those of a pass of
/// decoding rows: of 512 workgroups of 128 rows, which fill a large GPU.
pub const PREFILL_PARTIALS: u32 = 1 << 16;

/// Parts that the tokens of a query row are split into, at most, in a pass of as many rows as one
/// holds.
pub const MOST_SPLITS: u32 = 16;

/// Workgroups that prefilling rows are split into, as far as there are keys and partial results.
pub const PREFILL_WORKGROUPS: u32 = 512;

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
