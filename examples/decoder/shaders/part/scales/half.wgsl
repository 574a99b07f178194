// scales/half: a half for 32 weights, two in a word: Q4_0, Q5_0, Q8_0.

override CENTRE: f32; // the code that stands for 0

// The weight is scale.x * code + scale.y.
fn scale_at(eight: u32) -> vec2<f32> {
    let pair = unpack2x16float(weights[params.scales_at + eight / 8u]);
    let scale = select(pair.x, pair.y, (eight & 4u) != 0u);
    return vec2<f32>(scale, -CENTRE * scale);
}
