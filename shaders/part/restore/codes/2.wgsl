// codes, 2 bits: 16 channels of two tokens, one word a token.
fn codes_sixteen(page: u32, sixteenth: u32, lane: u32, second: bool) -> Sixteen {
    let v = pages[page + sixteenth * 32u + lane];
    return Sixteen(lane_quad(v, second, 0u, 0x00030003u, 1.0h), lane_quad(v, second, 0u, 0x000c000cu, 0.25h),
        lane_quad(v, second, 0u, 0x00300030u, 0.0625h), lane_quad(v, second, 0u, 0x00c000c0u, 0.015625h));
}
