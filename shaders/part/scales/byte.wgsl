// scales, one byte each: an E4M3 float and an integer, so that a vec4 of a group's plane serves
// eight tokens: two lanes. Twin: src/kernel/reference/scales.rs.
const SCALE_VECS = 16u;

fn scales_vec(lane: u32) -> u32 {
    return lane / 2u;
}

fn scales_of(v: vec4<u32>, lane: u32) -> vec4<u32> {
    let two = select(v.xy, v.zw, (lane & 1u) == 1u);
    return vec4<u32>(two.x & 0xffffu, two.x >> 16u, two.y & 0xffffu, two.y >> 16u);
}

fn scales_pair(raw: u32) -> vec2<f32> {
    // Below the exponent 1 the steps stay those of exponent 1, 2^-9.
    let normal = bitcast<f32>(((((raw >> 3u) & 15u) + 120u) << 23u) | ((raw & 7u) << 20u));
    let scale = select(normal, f32(raw & 7u) * 0.001953125, (raw & 0x78u) == 0u);
    return vec2<f32>(scale, f32(extractBits(bitcast<i32>(raw), 8u, 8u)));
}

// Keys and values are stored alike; scales/symmetric tells them apart.
fn scales_key(raw: u32) -> vec2<f32> {
    return scales_pair(raw);
}

fn scales_value(raw: u32) -> vec2<f32> {
    return scales_pair(raw);
}
