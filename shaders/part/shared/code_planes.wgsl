// code_planes: integer codes cut into planes, AlignedKV (2409.16546): 4 bits in two planes of 2, 8
// bits in planes of 4, 2 and 2, the high bits first. A row of a plane is what is read or left
// unread together: four channels' keys of a page's tokens, or four tokens' values of all channels.
// A word of it holds those four, one a byte, of four tokens (channels) in a run, called slots, from
// the low bits of a byte on; where a slot has four bits a word holds slots 0 and 2, and the word
// for slots 1 and 3 lies a row's length behind it. Twin: src/format/codes/code_planes.rs.

// Of four codes, one a byte, the bits of a plane.
fn code_planes_cut(codes: u32, low: u32, width: u32) -> u32 {
    return (codes >> low) & (((1u << width) - 1u) * 0x01010101u);
}

// Four numbers of 2 bits, one a byte, as the slots of one byte; and back.
fn code_planes_fold(four: u32) -> u32 {
    return (four | (four >> 6u) | (four >> 12u) | (four >> 18u)) & 255u;
}

fn code_planes_unfold(byte: u32) -> u32 {
    return (byte | (byte << 6u) | (byte << 12u) | (byte << 18u)) & 0x03030303u;
}

// Four numbers of 4 bits, one a byte, as the slots 0 and 2, and 1 and 3, of a byte each; and back.
fn code_planes_pair(four: u32) -> vec2<u32> {
    let even = four | (four >> 12u);
    return vec2<u32>(even & 255u, (even >> 8u) & 255u);
}

fn code_planes_unpair(bytes: vec2<u32>) -> u32 {
    let both = bytes.x | (bytes.y << 8u);
    return (both | (both << 12u)) & 0x0f0f0f0fu;
}
