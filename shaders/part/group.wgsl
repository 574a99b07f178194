// group: asymmetric quantization of numbers that share a scale: x is stored as code, and read back as
// scale * (code - zero). The zero is an integer that may lie outside the codes. papers: RotateKV (2501.16383) section 3.
// Twin: src/reference/group.rs.

// The step between codes, as the half that will be stored. The two lower bounds keep it a normal half and keep the zero
// within the integers that a half holds exactly, where all numbers of a group are (nearly) the same.
fn group_scale(low: f32, high: f32, clip: f32, levels: f32) -> f32 {
    let top = clip * high;
    let bottom = clip * low;
    let step = max((top - bottom) / levels, max(max(abs(top), abs(bottom)) * 0.0009765625, 0.00006103515625));
    return half_round(step);
}

fn group_zero(low: f32, clip: f32, scale: f32) -> f32 {
    return round(-(clip * low) / scale);
}

fn group_code(x: f32, scale: f32, zero: f32, levels: f32) -> u32 {
    return u32(clamp(round(x / scale) + zero, 0.0, levels));
}
