// scales/pair: a scale and a minimum for 32 weights, halves of one word: Q4_1, Q5_1.

// The weight is scale.x * code + scale.y.
fn scale_at(eight: u32) -> vec2<f32> {
    return unpack2x16float(weights[params.scales_at + eight / 4u]);
}
