// codes, 8 bits: 16 channels of two tokens, four words a token. They lie in memory as signed bytes, and so do their zeros:
// both are taken 128 higher.
fn codes_four(v: vec4<u32>, second: bool) -> Quad {
    let two = select(v.xy, v.zw, second) ^ vec2<u32>(0x80808080u);
    let low = lane_low(two);
    let high = lane_high(two);
    return codes_quad(low, low >> 8u, high, high >> 8u, 0x00ff00ffu, 1.0h);
}

fn codes_sixteen(page: u32, sixteenth: u32, lane: u32, second: bool) -> Sixteen {
    let at = page + 4u * sixteenth * 32u + lane;
    return Sixteen(codes_four(pages[at], second), codes_four(pages[at + 32u], second), codes_four(pages[at + 64u], second), codes_four(pages[at + 96u], second));
}
