// half: f32 to IEEE half in integer arithmetic, so that every vendor stores the same bits
// (WGSL leaves the rounding of pack2x16float to the driver). Twin: src/format/codes/half.rs.

// Round to nearest, ties to even; beyond the largest half it saturates at 65504. The caller has
// removed NaN.
fn half_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    // Normal halves: move the exponent's bias from 127 to 15, then round the 13 bits that fall off.
    let normal = (magnitude + 0xc8000fffu + ((magnitude >> 13u) & 1u)) >> 13u;
    // Subnormal halves: adding one half lets the float adder round at 2^-24, their unit.
    let subnormal = bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u;
    return sign | min(select(normal, subnormal, magnitude < 0x38800000u), 0x7bffu);
}

// Whether half_bits would clamp it: beyond the largest half, or not finite.
fn half_saturates(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x477fe000u;
}

fn half_pair(low: f32, high: f32) -> u32 {
    return half_bits(low) | (half_bits(high) << 16u);
}

// The value that half_bits stores, as f32.
fn half_round(x: f32) -> f32 {
    return unpack2x16float(half_bits(x)).x;
}
