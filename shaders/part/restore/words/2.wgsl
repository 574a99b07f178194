// words, 2 bits: lane e's half of two words, four tokens each.
struct Words { a: vec4<u32>, b: vec4<u32> }

fn words_take(page: u32, lane: u32, e: u32) -> Words {
    let at = page + e / 2u * 32u + lane;
    return Words(pages[at], pages[at + 128u]);
}

fn words_codes(words: Words, second: bool, e: u32) -> Sixteen {
    let shift = 4u * (e & 1u);
    return Sixteen(lane_quad(words.a, second, shift, 0x00030003u, 1.0h), lane_quad(words.a, second, shift, 0x000c000cu, 0.25h),
        lane_quad(words.b, second, shift, 0x00030003u, 1.0h), lane_quad(words.b, second, shift, 0x000c000cu, 0.25h));
}
