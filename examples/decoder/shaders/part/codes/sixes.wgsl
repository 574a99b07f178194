// codes/sixes: codes of 6 bits.
//
// The low four lie as in codes/nibbles. The upper two of eight codes are 16 bits of the second
// plane, from params.high_at on, those of code n at bit 2n.

@group(0) @binding(1) var<storage, read> weights: array<u32>; // nibbles, upper bits, scales

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn codes_at(eight: u32) -> Eight {
    let word = weights[eight];
    let bits = weights[params.high_at + eight / 2u] >> (16u * (eight % 2u));
    let low = vec4<u32>(bits << 4u, bits << 2u, bits, bits >> 2u) & vec4<u32>(48u);
    let high = vec4<u32>(bits >> 4u, bits >> 6u, bits >> 8u, bits >> 10u) & vec4<u32>(48u);
    return Eight(vec4<f32>(unpack4xU8(word & 0x0f0f0f0fu) | low), vec4<f32>(unpack4xU8((word >> 4u) & 0x0f0f0f0fu) | high));
}
