// trellis_words: the levels that words of a trellis code say, 0 to 9, by shifts, exclusive ors and
// sums of whole words. A level comes of a symbol and the two before it:
//
//   level = f + 2 g,  f = s[i - 1],  g = s[i] ^ s[i - 2] ^ (2 (f & 1) + (s[i - 2] >> 1))
//
// Twin: src/format/codes/trellis.rs.

// Levels in bits 0 to 3 of every byte, and in bits 4 to 7: of shifts 0 and 4 of a word, and of shifts
// 2 and 6.
struct TrellisWords { even: vec4<u32>, odd: vec4<u32> }

// `after` is f, two bits down.
fn trellis_words_of(f: vec4<u32>, after: vec4<u32>, g: vec4<u32>) -> TrellisWords {
    return TrellisWords(
        (f & vec4<u32>(0x33333333u)) + ((g & vec4<u32>(0x33333333u)) << vec4<u32>(1u)),
        (after & vec4<u32>(0x33333333u)) + ((g >> vec4<u32>(1u)) & vec4<u32>(0x66666666u)));
}

// Of keys: four words, and the words before them, of which the last two symbols count. The symbols
// are a stream of bits, low ones first.
fn trellis_words_keys(k: vec4<u32>, before: vec4<u32>) -> TrellisWords {
    let f = (k << vec4<u32>(2u)) | (before >> vec4<u32>(30u));
    let g = k ^ ((k << vec4<u32>(3u)) | (before >> vec4<u32>(29u))) ^ ((k << vec4<u32>(4u)) | (before >> vec4<u32>(28u)));
    return trellis_words_of(f, k, g);
}

// Of values: words of four channels, and of the last two of the four channels before. The symbols of
// a token lie in the same bits of all.
fn trellis_words_values(v: vec4<u32>, before: vec2<u32>) -> TrellisWords {
    let f = vec4<u32>(before.y, v.x, v.y, v.z);
    let q = vec4<u32>(before.x, before.y, v.x, v.y);
    let g = v ^ q ^ (((f << vec4<u32>(1u)) & vec4<u32>(0xaaaaaaaau)) | ((q >> vec4<u32>(1u)) & vec4<u32>(0x55555555u)));
    return trellis_words_of(f, f >> vec4<u32>(2u), g);
}
