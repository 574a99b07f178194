// words, 4 bits: two words of lane e's own, four tokens each.
struct Words { a: vec4<u32>, b: vec4<u32> }

fn words_take(page: u32, lane: u32, e: u32) -> Words {
    let at = page + e * 32u + lane;
    return Words(pages[at], pages[at + 256u]);
}

fn words_eight(v: vec4<u32>, second: bool, mask: u32, unit: f16) -> Quad {
    let two = select(v.xy, v.zw, second);
    let low = lane_low(two);
    let high = lane_high(two);
    return codes_quad(low, low >> 8u, high, high >> 8u, mask, unit);
}

fn words_codes(words: Words, second: bool, e: u32) -> Sixteen {
    return Sixteen(words_eight(words.a, second, 0x000f000fu, 1.0h), words_eight(words.a, second, 0x00f000f0u, 0.0625h),
        words_eight(words.b, second, 0x000f000fu, 1.0h), words_eight(words.b, second, 0x00f000f0u, 0.0625h));
}
