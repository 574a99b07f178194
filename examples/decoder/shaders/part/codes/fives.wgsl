// codes/fives: codes of 5 bits.
//
// The low four lie as in codes/nibbles. The fifth bits of eight codes are one byte of the second
// plane, from params.high_at on, that of code n at bit n.

@group(0) @binding(1) var<storage, read> weights: array<u32>; // nibbles, fifth bits, scales

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn codes_at(eight: u32) -> Eight {
    let word = weights[eight];
    let bits = weights[params.high_at + eight / 4u] >> (8u * (eight % 4u));
    let low = vec4<u32>(bits << 4u, bits << 3u, bits << 2u, bits << 1u) & vec4<u32>(16u);
    let high = vec4<u32>(bits, bits >> 1u, bits >> 2u, bits >> 3u) & vec4<u32>(16u);
    return Eight(vec4<f32>(unpack4xU8(word & 0x0f0f0f0fu) | low), vec4<f32>(unpack4xU8((word >> 4u) & 0x0f0f0f0fu) | high));
}
