// levels, halves in planes of 8, 4 and 4 bits: the first is always read, and bits that are not read
// count as 100..0.

// What cutting 2, 4 and 8 low bits adds to the error.
const LEVEL_COSTS = vec3<f32>(0.0, 8.0, 120.0);

// Of a weight's key: 8 low bits are cut 24 quarters below the threshold, 4 of them 8 below.
fn level_at(key: u32, threshold: u32) -> u32 {
    return select(0u, 1u, key + 8u <= threshold) + select(0u, 1u, key + 24u <= threshold);
}

// The largest error, in units of the last place.
fn level_error(level: u32) -> f32 {
    return select(select(0.0, 8.0, level == 1u), 128.0, level == 2u);
}
