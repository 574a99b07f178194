// scales/super: scales of scales: Q4_K, Q5_K.
//
// Five words for 256 weights: a scale and a minimum as halves, then for every 32 weights a byte by
// which the scale is multiplied and one for the minimum.

// The weight is scale.x * code + scale.y.
fn scale_at(eight: u32) -> vec2<f32> {
    let at = params.scales_at + 5u * (eight / 32u);
    let both = unpack2x16float(weights[at]);
    let bytes = weights[at + 1u + eight % 32u / 8u] >> (16u * (eight / 4u % 2u));
    return vec2<f32>(both.x * f32(bytes & 255u), -both.y * f32((bytes >> 8u) & 255u));
}
