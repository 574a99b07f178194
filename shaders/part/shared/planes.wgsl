// planes: halves cut into planes of 8, 4 and 4 bits, AlignedKV (2409.16546). Four consecutive
// numbers are a word of the first plane and half a word of each other, in an order in which two
// numbers come out by one mask. Twin: src/format/codes/planes.rs.

// Where number n lies in its word of the first plane: bytes 0, 2, 1, 3.
fn planes_byte(n: u32) -> u32 {
    return 16u * (n & 1u) + 8u * ((n >> 1u) & 1u);
}

// Where it lies in its word of eight nibbles: 0, 2, 4, 6, 1, 3, 5, 7.
fn planes_nibble(n: u32) -> u32 {
    return 16u * (n & 1u) + 4u * ((n >> 1u) & 3u);
}

// The word of the first plane of four halves.
fn planes_bytes(a: u32, b: u32, c: u32, d: u32) -> u32 {
    return ((a >> 8u) & 255u) | (c & 0xff00u) | ((b & 0xff00u) << 8u) | ((d & 0xff00u) << 16u);
}

// Their half words of the other planes, in the low and in the third byte; the next four numbers' go
// 8 bits higher.
fn planes_nibbles(a: u32, b: u32, c: u32, d: u32) -> vec2<u32> {
    let middle = ((a >> 4u) & 15u) | (c & 0xf0u) | (((b >> 4u) & 15u) << 16u) | ((d & 0xf0u) << 16u);
    let last = (a & 15u) | ((c & 15u) << 4u) | ((b & 15u) << 16u) | ((d & 15u) << 20u);
    return vec2<u32>(middle, last);
}

// Two pairs of halves of the planes' words: numbers 0 and 1, then 2 and 3. The words of nibbles are
// shifted so that these numbers' are in the low and in the third byte.
fn planes_halves(first: u32, middle: u32, last: u32) -> vec2<u32> {
    return vec2<u32>(((first & 0x00ff00ffu) << 8u) | ((middle & 0x000f000fu) << 4u) | (last & 0x000f000fu),
        (first & 0xff00ff00u) | (middle & 0x00f000f0u) | ((last & 0x00f000f0u) >> 4u));
}
