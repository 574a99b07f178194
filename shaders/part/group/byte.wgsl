// group, scale and zero stored as a byte each: an E4M3 float and a signed integer. Twin:
// src/kernel/reference/group.rs.

// The bits of the nearest E4M3 float, ties to even, 448 at most.
fn group_float8(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let normal = (bits - 0x3c000000u + 0x7ffffu + ((bits >> 20u) & 1u)) >> 20u;
    // Below 2^-6 the unit is 2^-9: adding 2^14 lets the float adder round there.
    let subnormal = bitcast<u32>(x + 16384.0) - 0x46800000u;
    return min(select(normal, subnormal, bits < 0x3c800000u), 0x7eu);
}

// Steps up to here round to the largest float, 448, or below.
const GROUP_LARGEST = 464.0;

// The step between codes, as the float that will be stored. The lower bounds keep it above zero and
// the zero within a byte, also where rounding makes the step a third smaller (between the two
// smallest floats).
fn group_scale(low: f32, high: f32, clip: f32, levels: f32) -> f32 {
    let top = clip * high;
    let bottom = clip * low;
    let step = max((top - bottom) / levels, max(max(abs(top), abs(bottom)) * 0.012, 0.001953125));
    return scales_pair(group_float8(step)).x;
}

fn group_pack(scale: f32, zero: f32) -> u32 {
    // Numbers beyond 448 times the codes saturate.
    return group_float8(scale) | ((u32(i32(clamp(zero, -128.0, 127.0))) & 0xffu) << 8u);
}
