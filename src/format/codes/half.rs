//! f32 to IEEE half in integer arithmetic. Shader: `shaders/part/shared/half.wgsl`.

/// Rounds to nearest, ties to even; beyond the largest half it saturates at 65504. NaN must have
/// been removed.
pub fn half_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Normal halves: move the exponent's bias from 127 to 15, then round the 13 bits that fall off.
    let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add((magnitude >> 13) & 1) >> 13;
    // Subnormal halves: adding one half lets the float adder round at 2^-24, their unit.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    sign | (if magnitude < 0x3880_0000 { subnormal } else { normal }).min(0x7bff)
}

/// Returns whether [`half_bits`] would clamp a number: it is beyond the largest half, or not finite.
pub fn half_saturates(x: f32) -> bool {
    x.to_bits() & 0x7fff_ffff > 0x477f_e000
}

/// Returns two halves in a word, the first in the low bits.
pub fn half_pair(low: f32, high: f32) -> u32 {
    half_bits(low) | (half_bits(high) << 16)
}

/// Returns the value that [`half_bits`] stores.
pub fn half_round(x: f32) -> f32 {
    unpack(half_bits(x))[0]
}

/// Returns the two halves of a word as f32: WGSL's `unpack2x16float`.
pub fn unpack(word: u32) -> [f32; 2] {
    [word as u16, (word >> 16) as u16].map(|bits| ::half::f16::from_bits(bits).to_f32())
}

#[cfg(test)]
mod tests {
    use super::{half_bits, half_pair, unpack};
    use half::f16;

    /// Returns what another library rounds to, with our saturation. NaN is left out.
    fn wanted(x: f32) -> u32 {
        let bits = u32::from(f16::from_f32(x).to_bits());
        if bits & 0x7fff > 0x7bff { bits & 0x8000 | 0x7bff } else { bits }
    }

    #[test]
    fn every_half_returns_and_every_tie_goes_to_even() {
        for bits in 0..0x7c00_u16 {
            let (x, next) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
            for sign in [1.0, -1.0] {
                let at = |x: f32| half_bits(sign * x) & 0x7fff;
                assert_eq!(half_bits(sign * x), wanted(sign * x), "{x}");
                assert_eq!(at(x), u32::from(bits), "{x} is a half");
                if bits < 0x7bff {
                    let tie = f32::midpoint(x, next);
                    assert_eq!(at(tie), u32::from(bits + bits % 2), "the tie {tie}");
                    assert_eq!(at(tie.next_down()), u32::from(bits), "just below the tie {tie}");
                    assert_eq!(at(tie.next_up()), u32::from(bits) + 1, "just above the tie {tie}");
                }
            }
        }
    }

    #[test]
    fn large_numbers_saturate() {
        for x in [65504.0, 65519.0, 65520.0, 1e5, f32::MAX, f32::INFINITY] {
            assert_eq!(half_bits(x), 0x7bff, "{x}");
            assert_eq!(half_bits(-x), 0xfbff, "{x}");
        }
    }

    #[test]
    fn random_bits_agree_with_another_library() {
        use rand::Rng;
        let mut random = rand::rng();
        for _ in 0..1_000_000 {
            let x = f32::from_bits(random.next_u32());
            if !x.is_nan() {
                assert_eq!(half_bits(x), wanted(x), "{x:e} = {:#x}", x.to_bits());
            }
        }
    }

    #[test]
    fn f32_subnormals_are_zeros() {
        for x in [0.0, f32::from_bits(1), f32::MIN_POSITIVE] {
            assert_eq!(half_bits(x), 0);
            assert_eq!(half_bits(-x), 0x8000);
        }
    }

    #[test]
    fn a_pair_unpacks_to_its_halves() {
        assert_eq!(unpack(half_pair(1.5, -0.25)), [1.5, -0.25]);
    }
}
