// group, scale and zero stored as two halves. Needs half. Twin: src/kernel/reference/group.rs.

// Steps up to here round to the largest half or below.
const GROUP_LARGEST = 65519.0;

// The step between codes, as the half that will be stored. The two lower bounds keep it a normal
// half and keep the zero within the integers that a half holds exactly, where all numbers of a
// group are (nearly) the same.
fn group_scale(low: f32, high: f32, clip: f32, levels: f32) -> f32 {
    let top = clip * high;
    let bottom = clip * low;
    let step = max((top - bottom) / levels, max(max(abs(top), abs(bottom)) * 0.0009765625, 0.00006103515625));
    return half_round(step);
}

fn group_pack(scale: f32, zero: f32) -> u32 {
    // A zero of -0 is stored as 0, so that equal rows are stored alike. By its bits: compilers may
    // take a sum or a conversion away.
    let bits = half_bits(zero);
    return half_bits(scale) | (select(bits, 0u, bits == 0x8000u) << 16u);
}
