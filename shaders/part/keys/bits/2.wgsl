// keys, 2 bits: a word holds 16 channels of one token; shift j gives four consecutive channels, one
// a byte.
fn keys_word(w: u32, page: u32, lane: u32, dots: ptr<function, Dots>) {
    let k = pages[page + w * 32u + lane];
    keys_quad(k & vec4<u32>(0x03030303u), w * 4u, dots);
    keys_quad((k >> vec4<u32>(2u)) & vec4<u32>(0x03030303u), w * 4u + 1u, dots);
    keys_quad((k >> vec4<u32>(4u)) & vec4<u32>(0x03030303u), w * 4u + 2u, dots);
    keys_quad((k >> vec4<u32>(6u)) & vec4<u32>(0x03030303u), w * 4u + 3u, dots);
}
