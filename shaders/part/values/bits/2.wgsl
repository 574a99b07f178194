// values, 2 bits: a word holds 16 tokens of one channel; shift j gives four consecutive tokens, one
// a byte.
fn values_word(v: vec4<u32>, w: u32, at: u32, n: u32, sums: ptr<function, Sums>) {
    values_quad(v & vec4<u32>(0x03030303u), n + w * 4u, sums);
    values_quad((v >> vec4<u32>(2u)) & vec4<u32>(0x03030303u), n + w * 4u + 1u, sums);
    values_quad((v >> vec4<u32>(4u)) & vec4<u32>(0x03030303u), n + w * 4u + 2u, sums);
    values_quad((v >> vec4<u32>(6u)) & vec4<u32>(0x03030303u), n + w * 4u + 3u, sums);
}
