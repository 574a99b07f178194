// keys, 4 bits: a word holds 8 channels of one token; shift j gives four consecutive channels, one
// a byte.
fn keys_word(w: u32, page: u32, lane: u32, dots: ptr<function, Dots>) {
    let k = pages[page + w * 32u + lane];
    keys_quad(k & vec4<u32>(0x0f0f0f0fu), w * 2u, dots);
    keys_quad((k >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu), w * 2u + 1u, dots);
}
