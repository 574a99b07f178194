// words, 8 bits: four words of lane e's own, four tokens each. Signed bytes, as their zeros are: both are taken 128 higher.
struct Words { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32> }

fn words_take(page: u32, lane: u32, e: u32) -> Words {
    let at = page + 2u * e * 32u + lane;
    return Words(pages[at], pages[at + 32u], pages[at + 512u], pages[at + 544u]);
}

fn words_four(v: vec4<u32>, second: bool) -> Quad {
    let two = select(v.xy, v.zw, second) ^ vec2<u32>(0x80808080u);
    let low = lane_low(two);
    let high = lane_high(two);
    return codes_quad(low, low >> 8u, high, high >> 8u, 0x00ff00ffu, 1.0h);
}

fn words_codes(words: Words, second: bool, e: u32) -> Sixteen {
    return Sixteen(words_four(words.a, second), words_four(words.b, second), words_four(words.c, second), words_four(words.d, second));
}
