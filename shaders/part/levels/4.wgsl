// levels, codes of 4 bits in planes of 2 and 2: of level 2 nothing is read, and bits that are not
// read count as their middle.
const LEVEL_NOTHING = 2u;

// What cutting 2, 4 and 8 low bits adds to the error.
const LEVEL_COSTS = vec3<f32>(1.5, 6.0, 0.0);

// Of a weight's key: 4 low bits are cut 8 quarters below the threshold, 2 of them from it on.
fn level_at(key: u32, threshold: u32) -> u32 {
    return select(0u, 1u, key <= threshold) + select(0u, 1u, key + 8u <= threshold);
}

// The largest error, in steps; and the middle of the bits that are not read.
fn level_error(level: u32) -> f32 {
    return select(select(0.0, 1.5, level == 1u), 7.5, level == 2u);
}
