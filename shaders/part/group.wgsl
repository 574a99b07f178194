// group: asymmetric quantization of numbers that share a scale: x is stored as code, and read back as
// scale * (code - zero). The zero is an integer that may lie outside the codes. papers: RotateKV (2501.16383) section 3.
// group_half or group_byte says how scale and zero are stored, and rounds the scale accordingly. Twin: src/reference/group.rs.

fn group_zero(low: f32, clip: f32, scale: f32) -> f32 {
    return round(-(clip * low) / scale);
}

fn group_code(x: f32, scale: f32, zero: f32, levels: f32) -> u32 {
    return u32(clamp(round(x / scale) + zero, 0.0, levels));
}
