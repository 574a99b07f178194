// levels: how many planes of a number stay unread, by what it weighs: 0 reads everything. Weights
// are counted by quarters of binades. levels/<numbers> says what planes there are. Twin:
// src/format/codes/aligned.rs.

override SHARE: u32; // query heads per KV head
override HEADS: u32; // query heads that share one reading

// The key of the lightest weight that is told apart, 2^-48.
const FIRST_KEY = 316u;

// The largest over the heads that there are: the last block may have places without one, which hold
// anything.
fn level_largest(x: HeadsF, block: u32) -> f32 {
    let first = block * HEADS;
    var most = heads_at(x, 0u);
    if (HEADS > 1u && first + 1u < SHARE) {
        most = max(most, heads_at(x, 1u));
    }
    if (HEADS > 2u && first + 2u < SHARE) {
        most = max(most, heads_at(x, 2u));
    }
    if (HEADS > 2u && first + 3u < SHARE) {
        most = max(most, heads_at(x, 3u));
    }
    return most;
}

// The level of a weight at a threshold.
fn level_of(w: f32, threshold: u32) -> u32 {
    return level_at(max(bitcast<u32>(w) >> 21u, select(FIRST_KEY, 0u, w == 0.0)), threshold);
}
