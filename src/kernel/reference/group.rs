//! Asymmetric quantization of numbers that share a scale. Shaders:
//! `shaders/part/shared/group.wgsl`, and how scale and zero are rounded and stored in
//! `shaders/part/group/half.wgsl` and `shaders/part/group/byte.wgsl`.

use super::half::{half_pair, half_round};
use super::scales;
use crate::format::Scales;

/// Returns the bits of the nearest E4M3 float, ties to even, 448 at most. The number must not be
/// negative.
pub fn group_float8(x: f32) -> u32 {
    let bits = x.to_bits();
    let normal = bits.wrapping_sub(0x3c00_0000).wrapping_add(0x7_ffff).wrapping_add((bits >> 20) & 1) >> 20;
    // Below 2^-6 the unit is 2^-9: adding 2^14 lets the float adder round there.
    let subnormal = (x + 16_384.0).to_bits().wrapping_sub(0x4680_0000);
    (if bits < 0x3c80_0000 { subnormal } else { normal }).min(0x7e)
}

/// Returns the step between codes, as the float that is stored.
pub fn group_scale(form: Scales, low: f32, high: f32, clip: f32, levels: f32) -> f32 {
    let top = clip * high;
    let bottom = clip * low;
    let (share, smallest) = match form {
        // 2^-10 of the larger end keeps the zero within the integers a half holds exactly; 2^-14 is
        // the smallest normal half.
        Scales::Half | Scales::Symmetric => (1.0 / 1024.0, 1.0 / 16_384.0),
        // This share keeps the zero within a byte, also where rounding makes the step a third
        // smaller; 2^-9 is the smallest step.
        Scales::Byte => (0.012, 1.0 / 512.0),
    };
    let step = ((top - bottom) / levels).max((top.abs().max(bottom.abs()) * share).max(smallest));
    match form {
        Scales::Half | Scales::Symmetric => half_round(step),
        Scales::Byte => scales::pair(form, group_float8(step))[0],
    }
}

/// Returns whether the step is beyond what a scale can hold, so that the ends of the group saturate.
pub fn group_beyond(form: Scales, low: f32, high: f32, clip: f32, levels: f32) -> bool {
    // Steps up to these round to the largest half, 65504, or to the largest float of 8 bits, 448.
    (clip * high - clip * low) / levels > if form == Scales::Byte { 464.0 } else { 65_519.0 }
}

/// Returns the code that stands for zero; an integer that may lie outside the codes.
pub fn group_zero(low: f32, clip: f32, scale: f32) -> f32 {
    (-(clip * low) / scale).round_ties_even()
}

/// Returns the code of a number.
pub fn group_code(x: f32, scale: f32, zero: f32, levels: f32) -> u32 {
    ((x / scale).round_ties_even() + zero).clamp(0.0, levels) as u32
}

/// Returns scale and zero as they are stored.
pub fn group_pack(form: Scales, scale: f32, zero: f32) -> u32 {
    match form {
        Scales::Half | Scales::Symmetric => half_pair(scale, zero + 0.0),
        Scales::Byte => group_float8(scale) | ((zero.clamp(-128.0, 127.0) as i32 as u32 & 0xff) << 8),
    }
}

#[cfg(test)]
mod tests {
    use super::{group_code, group_float8, group_pack, group_scale, group_zero, scales};
    use crate::format::Scales;

    #[test]
    fn a_group_of_one_number_over_and_over_returns_it() {
        for form in [Scales::Half, Scales::Byte] {
            for x in [0.0_f32, 1e-6, -0.37, 12.5, -900.0, 20_000.0] {
                for levels in [3.0, 7.0, 15.0, 255.0] {
                    let scale = group_scale(form, x, x, 1.0, levels);
                    let zero = group_zero(x, 1.0, scale);
                    assert_eq!(scales::pair(form, group_pack(form, scale, zero)), [scale, zero], "scale and zero of {x} are stored exactly");
                    let back = scale * (group_code(x, scale, zero, levels) as f32 - zero);
                    assert!((back - x).abs() <= 0.51 * scale, "{x} came back as {back} at scale {scale}");
                }
            }
        }
    }

    #[test]
    fn zeros_of_every_size_fit_a_byte() {
        // From numbers whose step is the smallest to those whose step is the largest float.
        for n in 0..1_000_000_u32 {
            let x = 1e-3 * 1.000_017_3_f32.powi(n as i32);
            let scale = group_scale(Scales::Byte, -x, -x, 1.0, 15.0);
            let zero = group_zero(-x, 1.0, scale);
            assert!(zero <= 127.0 || x > 37_000.0, "{x} at scale {scale} has zero {zero}");
        }
    }

    #[test]
    fn the_ends_of_a_range_get_the_first_and_last_code() {
        for (low, high) in [(-1.0, 2.0), (0.5, 1.25), (-7.0, -3.0)] {
            for levels in [3.0_f32, 7.0, 15.0, 255.0] {
                let scale = group_scale(Scales::Half, low, high, 1.0, levels);
                let zero = group_zero(low, 1.0, scale);
                assert_eq!(group_code(low, scale, zero, levels), 0);
                // The half nearest the step may be smaller or larger than it, which moves the last
                // code by one at most.
                assert!(levels as u32 - group_code(high, scale, zero, levels) <= 1);
            }
        }
    }

    #[test]
    fn every_small_float_returns_and_every_tie_goes_to_even() {
        let float = |bits: u32| scales::pair(Scales::Byte, bits)[0];
        for bits in 0..0x7e {
            let (x, next) = (float(bits), float(bits + 1));
            assert_eq!(group_float8(x), bits);
            let tie = f32::midpoint(x, next);
            assert_eq!(group_float8(tie), bits + bits % 2, "the tie {tie}");
            assert_eq!(group_float8(tie.next_down()), bits, "just below the tie {tie}");
            assert_eq!(group_float8(tie.next_up()), bits + 1, "just above the tie {tie}");
        }
        for x in [448.0, 464.0, 480.0, 1e9, f32::MAX] {
            assert_eq!(group_float8(x), 0x7e, "{x}");
        }
    }
}
