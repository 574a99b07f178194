// values, 8 bits: a word holds four tokens of one channel.
fn values_word(w: u32, at: u32, n: u32, sums: ptr<function, Sums>) {
    values_quad(pages[at + w * (HEAD_DIM / 4u)], n + w, sums);
}
