// codes, 3 bits: 16 channels of two tokens, a word of low bits and half a word of third bits a
// token.

override HEAD_DIM: u32; // channels of a head

fn codes_sixteen(page: u32, sixteenth: u32, lane: u32, second: bool) -> Sixteen {
    let v = pages[page + sixteenth * 32u + lane];
    let third = pages[page + (HEAD_DIM / 16u + sixteenth / 2u) * 32u + lane];
    let shift = 4u * (sixteenth % 2u);
    return Sixteen(
        quad_sum(lane_quad(v, second, 0u, 0x00030003u, 1.0h), lane_quad(third, second, shift, 0x00010001u, 4.0h)),
        quad_sum(lane_quad(v, second, 0u, 0x000c000cu, 0.25h), lane_quad(third, second, shift, 0x00020002u, 2.0h)),
        quad_sum(lane_quad(v, second, 0u, 0x00300030u, 0.0625h), lane_quad(third, second, shift, 0x00040004u, 1.0h)),
        quad_sum(lane_quad(v, second, 0u, 0x00c000c0u, 0.015625h), lane_quad(third, second, shift, 0x00080008u, 0.5h)));
}
