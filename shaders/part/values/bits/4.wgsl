// values, 4 bits: a word holds 8 tokens of one channel; shift j gives four consecutive tokens, one
// a byte.
fn values_word(v: vec4<u32>, w: u32, at: u32, n: u32, sums: ptr<function, Sums>) {
    values_quad(v & vec4<u32>(0x0f0f0f0fu), n + w * 2u, sums);
    values_quad((v >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu), n + w * 2u + 1u, sums);
}
