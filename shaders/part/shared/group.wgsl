// group: asymmetric quantization of numbers that share a scale: x is stored as code, and read back
// as scale * (code - zero). The zero is an integer that may lie outside the codes. papers: RotateKV
// (2501.16383) section 3. group/half or group/byte says how scale and zero are stored, and rounds
// the scale accordingly. Twin: src/kernel/reference/group.rs.

fn group_zero(low: f32, clip: f32, scale: f32) -> f32 {
    return round(-(clip * low) / scale);
}

// Whether the step is beyond what a scale can hold, so that the ends of the group saturate.
fn group_beyond(low: f32, high: f32, clip: f32, levels: f32) -> bool {
    return (clip * high - clip * low) / levels > GROUP_LARGEST;
}

// round(x / scale) + zero within 0..levels. The quotient is mended once, so that ties are ties;
// rounding is left to a sum with 1.5 * 2^23, whose low bits are then the integer: conversions take
// longer.
fn group_code(x: f32, scale: f32, inverse: f32, zero: f32, levels: f32) -> u32 {
    let first = x * inverse;
    let steps = fma(fma(-first, scale, x), inverse, first);
    let rounded = clamp(steps, -zero, levels - zero) + 12582912.0;
    return u32(bitcast<i32>(rounded) + (i32(zero) - 0x4b400000));
}
