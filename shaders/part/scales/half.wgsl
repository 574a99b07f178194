// scales, two halves a group and token: where a page keeps the pairs (scale, zero), and how to read
// them. A group's plane holds the four tokens of lane l in vec4 l. Twin:
// src/kernel/reference/scales.rs.
const SCALE_VECS = 32u; // vec4s of a group's plane in a page

// Which vec4 of a group's plane holds the lane's four tokens.
fn scales_vec(lane: u32) -> u32 {
    return lane;
}

// The four tokens' pairs, one a component.
fn scales_of(v: vec4<u32>, lane: u32) -> vec4<u32> {
    return v;
}

fn scales_pair(raw: u32) -> vec2<f32> {
    return unpack2x16float(raw);
}

// Keys and values are stored alike; scales/symmetric tells them apart.
fn scales_key(raw: u32) -> vec2<f32> {
    return scales_pair(raw);
}

fn scales_value(raw: u32) -> vec2<f32> {
    return scales_pair(raw);
}
