// finite: whether a number is neither infinite nor NaN: by its bits, since compilers may assume that no NaN
// exists.
fn finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}
