// keys, 8 bits: a word holds four channels of one token as signed bytes (the code less 128, and so
// is the zero).
fn keys_word(w: u32, page: u32, lane: u32, dots: ptr<function, Dots>) {
    keys_quad(pages[page + w * 32u + lane], w, dots);
}
