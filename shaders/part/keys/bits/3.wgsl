// keys, 3 bits: a plane of the low two bits (16 channels a word) and a plane of the top bit (32
// channels a word).

override HEAD_DIM: u32; // channels of a head

fn keys_word(w: u32, page: u32, lane: u32, dots: ptr<function, Dots>) {
    let low = pages[page + w * 32u + lane];
    let high = pages[page + (HEAD_DIM / 16u + w / 2u) * 32u + lane] >> vec4<u32>((w & 1u) * 4u);
    keys_quad((low & vec4<u32>(0x03030303u)) | (((high) & vec4<u32>(0x01010101u)) << vec4<u32>(2u)), w * 4u, dots);
    keys_quad(((low >> vec4<u32>(2u)) & vec4<u32>(0x03030303u)) | ((((high >> vec4<u32>(1u))) & vec4<u32>(0x01010101u)) << vec4<u32>(2u)), w * 4u + 1u, dots);
    keys_quad(((low >> vec4<u32>(4u)) & vec4<u32>(0x03030303u)) | ((((high >> vec4<u32>(2u))) & vec4<u32>(0x01010101u)) << vec4<u32>(2u)), w * 4u + 2u, dots);
    keys_quad(((low >> vec4<u32>(6u)) & vec4<u32>(0x03030303u)) | ((((high >> vec4<u32>(3u))) & vec4<u32>(0x01010101u)) << vec4<u32>(2u)), w * 4u + 3u, dots);
}
