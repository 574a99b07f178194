// codes, 3 bits: 16 channels of two tokens, a word of low bits and half a word of third bits a token.
fn codes_sixteen(page: u32, sixteenth: u32, lane: u32, second: bool) -> Sixteen {
    let v = pages[page + sixteenth * 32u + lane];
    let two = select(v.xy, v.zw, second);
    let low = lane_low(two);
    let high = lane_high(two);
    let low_odd = low >> 8u;
    let high_odd = high >> 8u;
    let w = pages[page + (HEAD_DIM / 16u + sixteenth / 2u) * 32u + lane] >> vec4<u32>(4u * (sixteenth % 2u));
    let third = select(w.xy, w.zw, second);
    let top_low = lane_low(third);
    let top_high = lane_high(third);
    let top_low_odd = top_low >> 8u;
    let top_high_odd = top_high >> 8u;
    return Sixteen(
        quad_sum(codes_quad(low, low_odd, high, high_odd, 0x00030003u, 1.0h), codes_quad(top_low, top_low_odd, top_high, top_high_odd, 0x00010001u, 4.0h)),
        quad_sum(codes_quad(low, low_odd, high, high_odd, 0x000c000cu, 0.25h), codes_quad(top_low, top_low_odd, top_high, top_high_odd, 0x00020002u, 2.0h)),
        quad_sum(codes_quad(low, low_odd, high, high_odd, 0x00300030u, 0.0625h), codes_quad(top_low, top_low_odd, top_high, top_high_odd, 0x00040004u, 1.0h)),
        quad_sum(codes_quad(low, low_odd, high, high_odd, 0x00c000c0u, 0.015625h), codes_quad(top_low, top_low_odd, top_high, top_high_odd, 0x00080008u, 0.5h)));
}
