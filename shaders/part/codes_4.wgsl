// codes, 4 bits: 16 channels of two tokens, two words a token.
fn codes_eight(v: vec4<u32>, second: bool, mask: u32, unit: f16) -> Quad {
    let two = select(v.xy, v.zw, second);
    let low = lane_low(two);
    let high = lane_high(two);
    return codes_quad(low, low >> 8u, high, high >> 8u, mask, unit);
}

fn codes_sixteen(page: u32, sixteenth: u32, lane: u32, second: bool) -> Sixteen {
    let v = pages[page + 2u * sixteenth * 32u + lane];
    let w = pages[page + (2u * sixteenth + 1u) * 32u + lane];
    return Sixteen(
        codes_eight(v, second, 0x000f000fu, 1.0h),
        codes_eight(v, second, 0x00f000f0u, 0.0625h),
        codes_eight(w, second, 0x000f000fu, 1.0h),
        codes_eight(w, second, 0x00f000f0u, 0.0625h));
}
