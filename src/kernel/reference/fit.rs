//! The scale of numbers that share one, and their codes, as `append` fits them to a group. Shaders:
//! `shaders/part/fit/extent.wgsl` and `shaders/part/fit/symmetric.wgsl`.

use super::group::{group_beyond, group_code, group_pack, group_scale, group_zero};
use crate::format::Scales;
use crate::format::codes::scales::symmetric_bits;

/// A group as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The code of every number, from 0 on.
    pub codes: Vec<u32>,
    /// Its scale, and its zero where it has one, as they lie in a page.
    pub pair: u32,
    /// Whether it is beyond what a scale can hold, so that numbers saturate.
    pub beyond: bool,
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
    /// Returns the sum of a term of every number.
    pub(super) fn sum(self, numbers: &[f32], of: &dyn Fn(f32) -> f32) -> f32 {
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

/// Ends of a group that asymmetric codes are fitted to.
const EXTENT: f32 = 1e9;

/// Fits numbers that share a scale with codes of `bits` bits. `clip` is for asymmetric codes; so is
/// `less`, which is taken from their zero: 128 where codes will be stored as signed bytes.
pub fn fit(form: Scales, order: Order, numbers: &[f32], bits: u32, clip: f32, less: f32) -> Fit {
    if form == Scales::Symmetric {
        return symmetric(order, numbers, bits);
    }
    let levels = ((1_u32 << bits) - 1) as f32;
    // Beyond, no scale holds the group, and the zero would be no integer of f32.
    let held = |x: f32| x.clamp(-EXTENT, EXTENT);
    let low = held(-numbers.iter().map(|x| -x).fold(f32::NEG_INFINITY, f32::max));
    let high = held(numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let scale = group_scale(form, low, high, clip, levels);
    let zero = group_zero(low, clip, scale);
    let codes = numbers.iter().map(|x| group_code(*x, scale, zero, levels)).collect();
    Fit { codes, pair: group_pack(form, scale, zero - less), beyond: group_beyond(form, low, high, clip, levels) }
}

/// Returns the number's code: `inverse` brings the whole range of the levels to -1/2..1/2.
fn code(x: f32, inverse: f32, bits: u32) -> f32 {
    ((x * inverse + 0.5).clamp(0.0, 1.0) * largest(bits)).round_ties_even()
}

fn largest(bits: u32) -> f32 {
    ((1_u32 << bits) - 1) as f32
}

/// Steps below have scales that are stored as 0.
const SMALLEST: f32 = 1.0 / (1_u64 << 40) as f32;

/// Sums of squares beyond would make steps that are no numbers.
const LARGEST: f32 = 1e38;

/// The shares of a group's extent that the codes of the trials span.
fn shares(bits: u32) -> &'static [f32] {
    match bits {
        3 => &[0.95, 0.8, 0.67],
        4 => &[0.97, 0.87, 0.77],
        _ => &[1.0],
    }
}

/// Returns the inverse of a step.
fn inverse(step: f32, bits: u32) -> f32 {
    1.0 / (step.clamp(SMALLEST, LARGEST) * largest(bits))
}

/// Returns the scale for the codes of a trial, given the sum of numbers times their levels.
fn scale_of(squares: f32, products: f32, trial: f32, bits: u32) -> f32 {
    let step = 1.0 / (trial * largest(bits));
    (squares / products.max(1e-30)).max(0.9 * step).min(1.25 * step)
}

fn symmetric(order: Order, numbers: &[f32], bits: u32) -> Fit {
    let sum = |of: &dyn Fn(f32) -> f32| order.sum(numbers, of);
    let at = |x, trial| code(x, trial, bits) - 0.5 * largest(bits);
    let products = |trial| sum(&|x| x * at(x, trial));
    let squares = sum(&|x| x * x).min(LARGEST);
    let (fitted, scale) = if bits == 2 {
        let sizes = sum(&f32::abs);
        // Only what outer codes have beyond middle ones is added up; but the scale is that of the
        // codes as they are stored.
        let outer = |x: f32, trial: f32| (x.abs() * (trial * 16_777_216.0) - 5_592_405.5).clamp(0.0, 1.0);
        let mut trial = inverse(0.9957 * (squares / numbers.len() as f32).sqrt(), bits);
        for _ in 0..2 {
            let levels = 0.25 * numbers.len() as f32 + 2.0 * sum(&|x| outer(x, trial));
            trial = inverse((0.5 * sizes + sum(&|x| outer(x, trial) * x.abs())) / levels, bits);
        }
        (trial, scale_of(squares, products(trial), trial, bits))
    } else {
        let extent = numbers.iter().map(|x| x.abs()).fold(0.0, f32::max);
        let step = |share: f32| extent * (2.0 * share / largest(bits));
        let mut best = (inverse(step(shares(bits)[0]), bits), step(shares(bits)[0]), f32::INFINITY);
        if bits < 8 {
            for share in shares(bits) {
                let trial = inverse(step(*share), bits);
                let products = products(trial);
                let scale = scale_of(squares, products, trial, bits);
                let error = scale * (scale * sum(&|x| at(x, trial) * at(x, trial)) - 2.0 * products);
                if error < best.2 {
                    best = (trial, scale, error);
                }
            }
        }
        (best.0, best.1)
    };
    Fit { codes: numbers.iter().map(|x| code(*x, fitted, bits) as u32).collect(), pair: symmetric_bits(scale), beyond: scale > 8_585_740_288.0 }
}
