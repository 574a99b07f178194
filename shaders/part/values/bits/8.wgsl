// values, 8 bits: a word holds four tokens of one channel.
fn values_word(v: vec4<u32>, w: u32, at: u32, n: u32, sums: ptr<function, Sums>) {
    values_quad(v, n + w, sums);
}
