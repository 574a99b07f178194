//! Asymmetric quantization of numbers that share a scale. Shader: `shaders/part/group.wgsl`.

use super::half::half_round;

/// The step between codes, as the half that is stored.
pub fn group_scale(low: f32, high: f32, clip: f32, levels: f32) -> f32 {
    let top = clip * high;
    let bottom = clip * low;
    // 2^-10 of the larger end keeps the zero within the integers a half holds exactly; 2^-14 is the smallest normal half.
    let step = ((top - bottom) / levels).max((top.abs().max(bottom.abs()) * (1.0 / 1024.0)).max(1.0 / 16_384.0));
    half_round(step)
}

/// The code that stands for zero; an integer that may lie outside the codes.
pub fn group_zero(low: f32, clip: f32, scale: f32) -> f32 {
    (-(clip * low) / scale).round_ties_even()
}

/// The code of a number.
pub fn group_code(x: f32, scale: f32, zero: f32, levels: f32) -> u32 {
    ((x / scale).round_ties_even() + zero).clamp(0.0, levels) as u32
}

#[cfg(test)]
mod tests {
    use super::{group_code, group_scale, group_zero};

    #[test]
    fn a_group_of_one_number_over_and_over_returns_it() {
        for x in [0.0_f32, 1e-6, -0.37, 12.5, -900.0, 20_000.0] {
            for levels in [3.0, 7.0, 15.0, 255.0] {
                let scale = group_scale(x, x, 1.0, levels);
                let zero = group_zero(x, 1.0, scale);
                assert_eq!(zero, super::half_round(zero), "the zero of {x} is exact as a half");
                let back = scale * (group_code(x, scale, zero, levels) as f32 - zero);
                assert!((back - x).abs() <= 0.51 * scale, "{x} came back as {back} at scale {scale}");
            }
        }
    }

    #[test]
    fn the_ends_of_a_range_get_the_first_and_last_code() {
        for (low, high) in [(-1.0, 2.0), (0.5, 1.25), (-7.0, -3.0)] {
            for levels in [3.0_f32, 7.0, 15.0, 255.0] {
                let scale = group_scale(low, high, 1.0, levels);
                let zero = group_zero(low, 1.0, scale);
                assert_eq!(group_code(low, scale, zero, levels), 0);
                // The half nearest the step may be smaller or larger than it, which moves the last code by one at most.
                assert!(levels as u32 - group_code(high, scale, zero, levels) <= 1);
            }
        }
    }
}
