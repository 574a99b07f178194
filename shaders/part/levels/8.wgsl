// levels, codes of 8 bits in planes of 4, 2 and 2: of level 3 nothing is read, and bits that are
// not read count as their middle.
const LEVEL_NOTHING = 3u;

// What cutting 2, 4 and 8 low bits adds to the error.
const LEVEL_COSTS = vec3<f32>(1.5, 6.0, 120.0);

// Of a weight's key: 8 low bits are cut 24 quarters below the threshold, 4 of them 8 below, 2 from
// it on.
fn level_at(key: u32, threshold: u32) -> u32 {
    return select(0u, 1u, key <= threshold) + select(0u, 1u, key + 8u <= threshold) + select(0u, 1u, key + 24u <= threshold);
}

// The largest error, in steps; and the middle of the bits that are not read.
fn level_error(level: u32) -> f32 {
    return select(select(0.0, 1.5, level == 1u), select(7.5, 127.5, level == 3u), level >= 2u);
}
