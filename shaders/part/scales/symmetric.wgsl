// scales, one float of 16 bits a group and token, without a zero: a vec4 of a group's plane serves
// eight tokens, two lanes. The float has six bits of exponent, biased by 31, and ten of fraction, no
// sign and nothing subnormal: a half would end where the codes of a quiet row begin. The zero lies
// between the two middle codes; key codes of eight bits are signed bytes. Needs KEY_BITS and VALUE_BITS. Twin: src/kernel/reference/scales.rs. A raw scale is the
// bits of its f32.

override KEY_BITS: u32;   // 2, 3, 4, 8, or 16 for f16
override VALUE_BITS: u32;
override KEY_TRELLIS: bool; // whether key codes are those of a trellis, whose levels are 0 to 9
override VALUE_TRELLIS: bool;

const SCALE_VECS = 16u;
const SCALE_UNIT = 79228162514264337593543950336.0; // 2^96

fn scales_vec(lane: u32) -> u32 {
    return lane / 2u;
}

fn scales_of(v: vec4<u32>, lane: u32) -> vec4<u32> {
    let two = select(v.xy, v.zw, (lane & 1u) == 1u);
    // As the upper bits of a small f32, brought to its size by a product: 0 stays 0.
    let small = vec4<u32>(two.x << 13u, two.x >> 3u, two.y << 13u, two.y >> 3u) & vec4<u32>(0x1fffe000u);
    return bitcast<vec4<u32>>(bitcast<vec4<f32>>(small) * SCALE_UNIT);
}

// Of a scale that has a zero beside it: there is none.
fn scales_pair(raw: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(raw), 0.0);
}

fn scales_key(raw: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(raw), select(select(f32(1u << (KEY_BITS - 1u)) - 0.5, -0.5, KEY_BITS == 8u), 4.5, KEY_TRELLIS));
}

fn scales_value(raw: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(raw), select(f32(1u << (VALUE_BITS - 1u)) - 0.5, 4.5, VALUE_TRELLIS));
}
