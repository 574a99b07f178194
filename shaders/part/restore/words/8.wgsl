// words, 8 bits: four words of lane e's own, four tokens each. Signed bytes, as their zeros are:
// both are taken 128 higher.
struct Words { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32> }

fn words_take(page: u32, lane: u32, e: u32) -> Words {
    let at = page + 2u * e * 32u + lane;
    return Words(pages[at], pages[at + 32u], pages[at + 512u], pages[at + 544u]);
}

fn words_codes(words: Words, second: bool, e: u32) -> Sixteen {
    return Sixteen(lane_bytes(words.a, second), lane_bytes(words.b, second), lane_bytes(words.c, second), lane_bytes(words.d, second));
}
