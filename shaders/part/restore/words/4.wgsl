// words, 4 bits: two words of lane e's own, four tokens each.
struct Words { a: vec4<u32>, b: vec4<u32> }

fn words_take(page: u32, lane: u32, e: u32) -> Words {
    let at = page + e * 32u + lane;
    return Words(pages[at], pages[at + 256u]);
}

fn words_codes(words: Words, second: bool, e: u32) -> Sixteen {
    return Sixteen(lane_quad(words.a, second, 0u, 0x000f000fu, 1.0h), lane_quad(words.a, second, 0u, 0x00f000f0u, 0.0625h),
        lane_quad(words.b, second, 0u, 0x000f000fu, 1.0h), lane_quad(words.b, second, 0u, 0x00f000f0u, 0.0625h));
}
