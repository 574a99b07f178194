// codes/halves: weights that are halves, as they are.
//
// Eight weights are one vector of four words.

@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>; // [outputs, columns] halves

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn codes_at(eight: u32) -> Eight {
    let words = weights[eight];
    return Eight(vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)), vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)));
}
