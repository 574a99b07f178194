// bfloat: f32 to bf16, its upper 16 bits. Twin: src/format/codes/bfloat.rs.

// Round to nearest, ties to even; what is beyond the largest becomes infinite, and NaN stays NaN.
fn bfloat_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(rounded, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}
