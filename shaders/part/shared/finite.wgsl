// finite: whether a number is neither infinite nor NaN: by its bits, since compilers may assume that no NaN
// exists.
fn finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

// Whether it can be part of a row that is stored: finite, and below 2^110, so that sums and weights
// leave it so.
fn finite_storable(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) < 0x76800000u;
}
