// codes/bytes: codes that are signed bytes, two words for eight.

@group(0) @binding(1) var<storage, read> weights: array<u32>; // codes, then scales from params.scales_at on

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn codes_at(eight: u32) -> Eight {
    return Eight(vec4<f32>(unpack4xI8(weights[2u * eight])), vec4<f32>(unpack4xI8(weights[2u * eight + 1u])));
}
