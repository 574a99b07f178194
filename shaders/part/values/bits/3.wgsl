// values, 3 bits: a plane of the low two bits (16 tokens a word) and a plane of the top bit (32
// tokens a word).

override HEAD_DIM: u32; // channels of a head

fn values_word(v: vec4<u32>, w: u32, at: u32, n: u32, sums: ptr<function, Sums>) {
    let high = pages[at + (8u + w / 2u) * (HEAD_DIM / 4u)] >> vec4<u32>((w & 1u) * 4u);
    values_quad((v & vec4<u32>(0x03030303u)) | (((high) & vec4<u32>(0x01010101u)) << vec4<u32>(2u)), n + w * 4u, sums);
    values_quad(((v >> vec4<u32>(2u)) & vec4<u32>(0x03030303u)) | ((((high >> vec4<u32>(1u))) & vec4<u32>(0x01010101u)) << vec4<u32>(2u)), n + w * 4u + 1u, sums);
    values_quad(((v >> vec4<u32>(4u)) & vec4<u32>(0x03030303u)) | ((((high >> vec4<u32>(2u))) & vec4<u32>(0x01010101u)) << vec4<u32>(2u)), n + w * 4u + 2u, sums);
    values_quad(((v >> vec4<u32>(6u)) & vec4<u32>(0x03030303u)) | ((((high >> vec4<u32>(3u))) & vec4<u32>(0x01010101u)) << vec4<u32>(2u)), n + w * 4u + 3u, sums);
}
