// query_factors: a query's factors of the mean of the keys (part factors) in workgroup memory, of the
// heads that share a reading, for rows/centred and positions/made: A and B of each pair in turn, zeros
// beyond the last.

override POSITION_QUADS: u32; // pairs of RoPE's pairs that the mean of the keys adds by

const QUERY_FACTORS = max(4u * POSITION_QUADS, 1u);
var<workgroup> query_factors: array<HeadsF, QUERY_FACTORS>;
