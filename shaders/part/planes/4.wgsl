// planes, codes of 4 bits in planes of 2 and 2 (see shared/code_planes): the words of one row that
// a level asks for, by branches that all lanes take alike. Reads the kernel's binding `pages`.
// Twin: src/format/codes/code_planes.rs.

override HEAD_DIM: u32; // channels of a head
override COUNT: bool;   // whether loads of planes are counted

// Word n of a row of `length` words, of planes from `at` on; what is not read is zero.
fn planes_take(at: u32, row: u32, n: u32, length: u32, level: u32) -> vec4<u32> {
    var words = vec4<u32>(0u);
    let first = at + row * length + n;
    if (level < 2u) {
        words.z = pages[first];
        if (COUNT) { loads.x += 1u; }
    }
    if (level < 1u) {
        words.w = pages[first + 8u * HEAD_DIM];
        if (COUNT) { loads.y += 1u; }
    }
    return words;
}

// The codes of slots 0 to 3, a byte each.
fn planes_codes(words: vec4<u32>) -> vec4<u32> {
    let even = ((words.z & 0x33333333u) << 2u) | (words.w & 0x33333333u);
    let odd = (words.z & 0xccccccccu) | ((words.w >> 2u) & 0x33333333u);
    return vec4<u32>(even, odd, even >> 4u, odd >> 4u) & vec4<u32>(0x0f0f0f0fu);
}
