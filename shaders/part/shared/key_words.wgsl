// key_words: the words of one token's key codes, from the workgroup array `codes`: one code a
// channel, from channel `first`. Twin: src/kernel/reference/append.rs.

override HEAD_DIM: u32; // channels of a head

// The word w of the low key plane (or of the f16 keys): four consecutive channels a byte lane, by
// shifts of `bits`.
fn key_word(first: u32, w: u32, bits: u32) -> u32 {
    let shifts = 8u / bits;
    var word = 0u;
    for (var j = 0u; j < shifts; j++) {
        let c = first + 4u * (w * shifts + j);
        let mask = (1u << bits) - 1u;
        word |= ((codes[c] & mask) | ((codes[c + 1u] & mask) << 8u) | ((codes[c + 2u] & mask) << 16u) | ((codes[c + 3u] & mask) << 24u)) << (j * bits);
    }
    return word;
}

// The word w of the plane of third bits.
fn key_word_high(first: u32, w: u32) -> u32 {
    var word = 0u;
    for (var j = 0u; j < min(8u, HEAD_DIM / 4u - 8u * w); j++) {
        let c = first + 4u * (w * 8u + j);
        word |= ((codes[c] >> 2u) | ((codes[c + 1u] >> 2u) << 8u) | ((codes[c + 2u] >> 2u) << 16u) | ((codes[c + 3u] >> 2u) << 24u)) << j;
    }
    return word;
}
