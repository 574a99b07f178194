// scales/signed: signed scales of scales: Q6_K.
//
// Five words for 256 weights: a scale as a half, then for every 16 weights a signed byte by which it
// is multiplied. Code 32 stands for 0.

// The weight is scale.x * code + scale.y.
fn scale_at(eight: u32) -> vec2<f32> {
    let at = params.scales_at + 5u * (eight / 32u);
    let byte = extractBits(i32(weights[at + 1u + eight % 32u / 8u]), 8u * (eight / 2u % 4u), 8u);
    let scale = unpack2x16float(weights[at]).x * f32(byte);
    return vec2<f32>(scale, -32.0 * scale);
}
