// codes/nibbles: codes of 4 bits.
//
// Eight codes are one word: the low nibbles of its bytes are codes 0 to 3, the high ones 4 to 7.

@group(0) @binding(1) var<storage, read> weights: array<u32>; // codes, then scales from params.scales_at on

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn codes_at(eight: u32) -> Eight {
    let word = weights[eight];
    return Eight(vec4<f32>(unpack4xU8(word & 0x0f0f0f0fu)), vec4<f32>(unpack4xU8((word >> 4u) & 0x0f0f0f0fu)));
}
