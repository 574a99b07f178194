// words, 3 bits: lane e's half of two words of low bits, and its eighth of two words of third bits,
// four tokens each.
struct Words { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32> }

fn words_take(page: u32, lane: u32, e: u32) -> Words {
    let at = page + e / 2u * 32u + lane;
    let third = page + (8u + e / 4u) * 32u + lane;
    return Words(pages[at], pages[at + 128u], pages[third], pages[third + 64u]);
}

fn words_codes(words: Words, second: bool, e: u32) -> Sixteen {
    let shift = 4u * (e & 1u);
    let third = 2u * (e & 3u);
    return Sixteen(
        quad_sum(lane_quad(words.a, second, shift, 0x00030003u, 1.0h), lane_quad(words.c, second, third, 0x00010001u, 4.0h)),
        quad_sum(lane_quad(words.a, second, shift, 0x000c000cu, 0.25h), lane_quad(words.c, second, third, 0x00020002u, 2.0h)),
        quad_sum(lane_quad(words.b, second, shift, 0x00030003u, 1.0h), lane_quad(words.d, second, third, 0x00010001u, 4.0h)),
        quad_sum(lane_quad(words.b, second, shift, 0x000c000cu, 0.25h), lane_quad(words.d, second, third, 0x00020002u, 2.0h)));
}
