// codes, 4 bits: 16 channels of two tokens, two words a token.
fn codes_sixteen(page: u32, sixteenth: u32, lane: u32, second: bool) -> Sixteen {
    let v = pages[page + 2u * sixteenth * 32u + lane];
    let w = pages[page + (2u * sixteenth + 1u) * 32u + lane];
    return Sixteen(
        lane_quad(v, second, 0u, 0x000f000fu, 1.0h),
        lane_quad(v, second, 0u, 0x00f000f0u, 0.0625h),
        lane_quad(w, second, 0u, 0x000f000fu, 1.0h),
        lane_quad(w, second, 0u, 0x00f000f0u, 0.0625h));
}
