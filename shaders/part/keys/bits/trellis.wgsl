// keys, 2 bits by a trellis: a word holds 16 symbols of one token, whose levels come of it and of the
// word before; that of a group's first word is the group's last. Needs trellis_words.

override KEY_GROUP_STEPS: u32; // steps that share a key scale

fn keys_word(w: u32, page: u32, lane: u32, dots: ptr<function, Dots>) {
    let k = pages[page + w * 32u + lane];
    if (w % KEY_GROUP_STEPS == 0u) {
        (*dots).before = pages[page + (w + KEY_GROUP_STEPS - 1u) * 32u + lane];
    }
    let levels = trellis_words_keys(k, (*dots).before);
    (*dots).before = k;
    keys_quad(levels.even & vec4<u32>(0x0f0f0f0fu), w * 4u, dots);
    keys_quad(levels.odd & vec4<u32>(0x0f0f0f0fu), w * 4u + 1u, dots);
    keys_quad((levels.even >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu), w * 4u + 2u, dots);
    keys_quad((levels.odd >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu), w * 4u + 3u, dots);
}
