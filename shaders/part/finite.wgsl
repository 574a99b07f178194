// finite: is a number neither infinite nor NaN? By its bits, since compilers may assume that no NaN exists.
fn finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}
