// scales, one half a group and token, without a zero: a vec4 of a group's plane serves eight
// tokens, two lanes. The zero lies between the two middle codes; key codes of eight bits are signed
// bytes. Needs KEY_BITS and VALUE_BITS. Twin: src/kernel/reference/scales.rs. A raw scale is the
// bits of its f32.

override KEY_BITS: u32;   // 2, 3, 4, 8, or 16 for f16
override VALUE_BITS: u32;

const SCALE_VECS = 16u;

fn scales_vec(lane: u32) -> u32 {
    return lane / 2u;
}

fn scales_of(v: vec4<u32>, lane: u32) -> vec4<u32> {
    let two = select(v.xy, v.zw, (lane & 1u) == 1u);
    return bitcast<vec4<u32>>(vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y)));
}

// Of a scale that has a zero beside it: there is none.
fn scales_pair(raw: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(raw), 0.0);
}

fn scales_key(raw: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(raw), select(f32(1u << (KEY_BITS - 1u)) - 0.5, -0.5, KEY_BITS == 8u));
}

fn scales_value(raw: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(raw), f32(1u << (VALUE_BITS - 1u)) - 0.5);
}
