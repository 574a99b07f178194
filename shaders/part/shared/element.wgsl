// element: numbers of the caller's rows, as they lie in words.

override ELEMENT: u32; // type of the caller's rows: 0 f32, 1 f16, 2 bf16

// The word that holds number i.
fn element_word(i: u32) -> u32 {
    if (ELEMENT == 0u) {
        return i;
    }
    return i / 2u;
}

// Number i, from its word.
fn element_of(word: u32, i: u32) -> f32 {
    if (ELEMENT == 0u) {
        return bitcast<f32>(word);
    }
    let odd = (i & 1u) == 1u;
    if (ELEMENT == 2u) {
        return bitcast<f32>(select(word << 16u, word & 0xffff0000u, odd));
    }
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, odd);
}

// Four numbers of 16 bits.
fn element_four(two: vec2<u32>) -> vec4<f32> {
    if (ELEMENT == 2u) {
        return bitcast<vec4<f32>>(vec4<u32>(two.x << 16u, two.x & 0xffff0000u, two.y << 16u, two.y & 0xffff0000u));
    }
    return vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y));
}
