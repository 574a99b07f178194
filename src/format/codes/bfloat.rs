//! bf16, the upper 16 bits of f32, bit for bit as the shaders have it.
//!
//! Shader: `shaders/part/shared/bfloat.wgsl`.

/// Rounds to the nearest bf16, ties to even. What is beyond the largest becomes infinite, and NaN
/// stays NaN.
pub fn bfloat_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { (bits >> 16) | 0x40 } else { (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 }
}

/// Returns the two numbers of a word, the lower first.
pub fn unpack(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

#[cfg(test)]
mod tests {
    use super::{bfloat_bits, unpack};

    #[test]
    fn rounding_is_that_of_the_crate_half_for_every_upper_half() {
        for upper in 0..=u32::from(u16::MAX) {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(upper << 16 | lower);
                let want = half::bf16::from_f32(x);
                let got = bfloat_bits(x);
                assert!(got == u32::from(want.to_bits()) || (x.is_nan() && unpack(got)[0].is_nan()), "{x:e}: {got:#x}, should be {want:?}");
            }
            let [low, high] = unpack(upper | upper << 16);
            assert_eq!((low.to_bits(), high.to_bits()), (upper << 16, upper << 16));
        }
    }
}
