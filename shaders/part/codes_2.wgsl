// codes, 2 bits: 16 channels of two tokens, one word a token.
fn codes_sixteen(page: u32, sixteenth: u32, lane: u32, second: bool) -> Sixteen {
    let v = pages[page + sixteenth * 32u + lane];
    let two = select(v.xy, v.zw, second);
    let low = lane_low(two);
    let high = lane_high(two);
    let low_odd = low >> 8u;
    let high_odd = high >> 8u;
    return Sixteen(
        codes_quad(low, low_odd, high, high_odd, 0x00030003u, 1.0h),
        codes_quad(low, low_odd, high, high_odd, 0x000c000cu, 0.25h),
        codes_quad(low, low_odd, high, high_odd, 0x00300030u, 0.0625h),
        codes_quad(low, low_odd, high, high_odd, 0x00c000c0u, 0.015625h));
}
