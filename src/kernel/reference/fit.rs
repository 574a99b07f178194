//! The scale of numbers that share one, and their codes, as `append` fits them to a group. Shaders:
//! `shaders/part/fit/extent.wgsl` and `shaders/part/fit/symmetric.wgsl`.

use super::group::{group_code, group_pack, group_scale, group_zero};
use super::half::half_bits;
use crate::format::Scales;

/// A group as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The code of every number, from 0 on.
    pub codes: Vec<u32>,
    /// Its scale, and its zero where it has one, as they lie in a page.
    pub pair: u32,
}

/// The order in which a packing kernel adds up the terms of a group's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By eights, then over the eights: `append`.
    Eights,
    /// By sixteens, four numbers side by side, then over pairs of those: `append_block`.
    Sixteens,
}

impl Order {
    fn sum(self, numbers: &[f32], of: &dyn Fn(f32) -> f32) -> f32 {
        match (self, numbers) {
            (Self::Eights, _) => numbers.chunks(8).map(|eight| eight[1..].iter().fold(of(eight[0]), |sum, x| sum + of(*x))).reduce(|a, b| a + b).unwrap_or(0.0),
            (Self::Sixteens, _) if numbers.len() <= 16 => {
                let side = |i: usize| numbers[i + 4..].iter().step_by(4).fold(of(numbers[i]), |sum, x| sum + of(*x));
                (side(0) + side(1)) + (side(2) + side(3))
            }
            (Self::Sixteens, _) => {
                let (low, high) = numbers.split_at(numbers.len() / 2);
                self.sum(low, of) + self.sum(high, of)
            }
        }
    }
}

/// Fits numbers that share a scale with codes of `bits` bits. `clip` is for asymmetric codes; so is
/// `less`, which is taken from their zero: 128 where codes will be stored as signed bytes.
pub fn fit(form: Scales, order: Order, numbers: &[f32], bits: u32, clip: f32, less: f32) -> Fit {
    if form == Scales::Symmetric {
        return symmetric(order, numbers, bits);
    }
    let levels = ((1_u32 << bits) - 1) as f32;
    let low = -numbers.iter().map(|x| -x).fold(f32::NEG_INFINITY, f32::max);
    let high = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = group_scale(form, low, high, clip, levels);
    let zero = group_zero(low, clip, scale);
    Fit { codes: numbers.iter().map(|x| group_code(*x, scale, zero, levels)).collect(), pair: group_pack(form, scale, zero - less) }
}

/// Returns the number's code: `inverse` brings the whole range of the levels to -1/2..1/2.
fn code(x: f32, inverse: f32, bits: u32) -> f32 {
    ((x * inverse + 0.5).clamp(0.0, 1.0) * largest(bits)).round_ties_even()
}

fn largest(bits: u32) -> f32 {
    ((1_u32 << bits) - 1) as f32
}

fn symmetric(order: Order, numbers: &[f32], bits: u32) -> Fit {
    let sum = |of: &dyn Fn(f32) -> f32| order.sum(numbers, of);
    const SMALLEST: f32 = 1.0 / 8_388_608.0;
    let start = match bits {
        2 => 0.9957,
        3 => 0.5860,
        4 => 0.3352,
        _ => 0.0308,
    };
    let inverse = |step: f32| 1.0 / (step.max(SMALLEST) * largest(bits));
    let at = |x, inverse| code(x, inverse, bits) - 0.5 * largest(bits);
    let (squares, sizes) = (sum(&|x| x * x), sum(&f32::abs));
    // For two bits, only what outer codes have beyond middle ones is added up; but the scale is
    // that of the codes as they are stored.
    let outer = |x: f32, inverse: f32| (x.abs() * (inverse * 16_777_216.0) - 5_592_405.5).clamp(0.0, 1.0);
    let products = |inverse| if bits == 2 { 0.5 * sizes + sum(&|x| outer(x, inverse) * x.abs()) } else { sum(&|x| x * at(x, inverse)) };
    let levels = |inverse| {
        if bits == 2 { 0.25 * numbers.len() as f32 + 2.0 * sum(&|x| outer(x, inverse)) } else { sum(&|x| at(x, inverse) * at(x, inverse)) }
    };
    let mut fitted = inverse(start * (squares / numbers.len() as f32).sqrt());
    for _ in 0..2 {
        fitted = inverse(products(fitted) / levels(fitted));
    }
    let scale = squares / sum(&|x| x * at(x, fitted)).max(1e-30);
    Fit { codes: numbers.iter().map(|x| code(*x, fitted, bits) as u32).collect(), pair: symmetric_pack(scale) }
}

/// Rounds to a half, but to no subnormal one, since drivers may take those for 0.
fn symmetric_pack(scale: f32) -> u32 {
    half_bits(if scale < 1.0 / 32_768.0 { 0.0 } else { scale.max(1.0 / 16_384.0) })
}
