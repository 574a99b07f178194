//! Precision alignment, AlignedKV (2409.16546): which bits of a stored number can matter for this
//! query, the planes they lie in, and what leaving the others unread may cost.
//!
//! The published rule ([`key_levels`], [`value_levels`]) aligns every addend of a sum with the
//! uncertainty of its largest addend, or of its result. It bounds an addend and says nothing of the
//! sum. The budgeted rule ([`Planes::threshold`]) takes the error that the whole sum may have and
//! cuts all addends at the same absolute weight, which is the cheapest way to stay within it.
//!
//! A *level* counts the planes that stay unread: 0 reads everything. The functions here are in f64
//! wherever a kernel's arithmetic is not at stake.

/// Returns the planes of a half: eight bits (sign, exponent, two of the fraction), then four, then
/// four.
pub fn split(half: u16) -> [u8; 3] {
    [(half >> 8) as u8, (half >> 4 & 15) as u8, (half & 15) as u8]
}

/// Returns the half of its planes.
pub fn join(planes: [u8; 3]) -> u16 {
    u16::from(planes[0]) << 8 | u16::from(planes[1]) << 4 | u16::from(planes[2])
}

/// Returns what a half reads as at a level: the bits of unread planes are 100..0, about the middle
/// of what they may be.
pub fn filled(half: u16, level: u32) -> u16 {
    match level {
        0 => half,
        1 => half & !15 | 8,
        _ => half & !255 | 128,
    }
}

/// Returns the exponent that a number has as a half: 5 bits, biased by 15; 0 for zero and subnormal
/// numbers. Numbers beyond the largest half go on counting. Neither rounds: the nearest half may be
/// the next power of two.
pub fn exponent(x: f32) -> u32 {
    (x.to_bits() >> 23 & 255).saturating_sub(112)
}

/// Returns the unit in the last place of halves with this biased exponent.
pub fn ulp(exponent: u32) -> f64 {
    f64::from(exponent.max(1)).exp2() * 2_f64.powi(-25)
}

/// Returns the level for the number of low bits that an addend does not need (AlignedKV
/// (2409.16546) section 3, with the storage's steps of four bits).
pub fn level(spare: i32) -> u32 {
    u32::from(spare >= 4) + u32::from(spare >= 8)
}

/// Returns the levels of the published rule for keys, one a channel: by the exponents of the query
/// and of the channel's largest magnitude, against the channel whose product is largest.
pub fn key_levels(query: &[f32], maxima: &[u32]) -> Vec<u32> {
    let sums: Vec<i32> = query.iter().zip(maxima).map(|(q, e)| (exponent(*q) + e) as i32).collect();
    let largest = sums.iter().copied().max().unwrap_or(0);
    sums.iter().map(|sum| level(largest - sum)).collect()
}

/// Returns the exponent that the published rule aligns values with: the least over channels of the
/// output's exponent over the channel's.
pub fn value_base(estimate: &[f32], maxima: &[u32]) -> i32 {
    estimate.iter().zip(maxima).map(|(o, e)| exponent(*o) as i32 + 15 - *e as i32).min().unwrap_or(0)
}

/// Returns the levels of the published rule for values, one a token: by the exponent of its softmax
/// weight.
pub fn value_levels(weights: &[f32], estimate: &[f32], maxima: &[u32]) -> Vec<u32> {
    let base = value_base(estimate, maxima);
    weights.iter().map(|w| level(base - exponent(*w) as i32)).collect()
}

/// Returns the tokens that the published rule estimates the output from: of each residue modulo 32
/// the one of the largest weight, the first of equals.
pub fn sample(weights: &[f32]) -> Vec<usize> {
    (0..32.min(weights.len()))
        .map(|residue| (residue..weights.len()).step_by(32).fold(residue, |best, t| if weights[t] > weights[best] { t } else { best }))
        .collect()
}

/// How a stored number is cut into planes, and what an unread one may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// Low bits that stay unread, by level from 1 on.
    pub drops: &'static [u32],
    /// Whether the number is a half, filled with 100..0. Otherwise it is an integer code, read as
    /// the middle of its cell.
    pub half: bool,
}

impl Planes {
    /// A half in planes of 8, 4 and 4 bits; the first is always read.
    pub const HALF: Self = Self { drops: &[4, 8], half: true };
    /// A code of 4 bits in two planes of 2.
    pub const NIBBLE: Self = Self { drops: &[2, 4], half: false };
    /// A code of 8 bits in planes of 4, 2 and 2.
    pub const BYTE: Self = Self { drops: &[2, 4, 8], half: false };

    /// Returns the planes of numbers of `bits` bits: 4, 8, or 16 for a half.
    pub fn of(bits: u32) -> Self {
        match bits {
            4 => Self::NIBBLE,
            8 => Self::BYTE,
            _ => Self::HALF,
        }
    }

    /// Returns the number of planes. The first of a half is always read, all of a code may stay
    /// unread.
    pub fn count(&self) -> u32 {
        self.drops.len() as u32 + u32::from(self.half)
    }

    /// Returns the largest error of a number, in units of its last place (or steps of its scale),
    /// with `bits` low bits unread.
    pub fn error(&self, bits: u32) -> f64 {
        match (self.half, bits) {
            (_, 0) => 0.0,
            (true, _) => f64::from(bits - 1).exp2(),
            (false, _) => (f64::from(bits).exp2() - 1.0) / 2.0,
        }
    }

    /// Returns the low bits that stay unread at a level.
    pub fn dropped(&self, level: u32) -> u32 {
        if level == 0 { 0 } else { self.drops[level as usize - 1] }
    }

    /// Returns the most planes that hold no more than `bits` low bits.
    pub fn level(&self, bits: u32) -> u32 {
        self.drops.iter().filter(|drop| **drop <= bits).count() as u32
    }

    /// Returns the level of a weight at a threshold of [`Planes::threshold`]: what is cut off
    /// weighs as much as the threshold, whatever the weight.
    pub fn level_at(&self, threshold: i32, weight: f32) -> u32 {
        self.level(unread(threshold, quarter(weight), self.drops.last().copied().unwrap_or(0)))
    }

    /// Returns the largest threshold at which the sum of all errors stays within the budget, each
    /// weight taken as the upper edge of its key. It takes integers and a histogram only, so that
    /// the order of the weights does not matter.
    ///
    /// A weight that is not finite allows nothing.
    pub fn threshold(&self, weights: &[f32], budget: f64) -> i32 {
        let mut counts = std::collections::BTreeMap::<i32, u64>::new();
        for weight in weights {
            if !weight.is_finite() {
                return NOTHING;
            }
            if *weight > 0.0 {
                *counts.entry(quarter(*weight)).or_default() += 1;
            }
        }
        let cost = |threshold: i32| -> f64 {
            let error = |key: i32| self.error(self.dropped(self.level(unread(threshold, key, *self.drops.last().unwrap_or(&0)))));
            counts.iter().map(|(key, count)| *count as f64 * edge(*key) * error(*key)).sum()
        };
        let (Some((first, _)), Some((last, _))) = (counts.first_key_value(), counts.last_key_value()) else {
            return i32::MAX / 8;
        };
        // It grows with the threshold: from where nothing is cut to where everything is.
        let (mut low, mut high) = (first - 9, last + 64);
        if cost(high) <= budget {
            return high;
        }
        while high - low > 1 {
            let middle = i32::midpoint(low, high);
            if cost(middle) <= budget { low = middle } else { high = middle }
        }
        low
    }

    /// Returns the levels of weights under a budget, and what they may cost together: the sum of
    /// weight times error.
    pub fn levels(&self, weights: &[f32], budget: f64) -> (Vec<u32>, f64) {
        let threshold = self.threshold(weights, budget);
        let levels: Vec<u32> = weights.iter().map(|weight| self.level_at(threshold, *weight)).collect();
        let cost = self.cost(weights, &levels);
        (levels, cost)
    }

    /// Returns the sum of weight times error.
    pub fn cost(&self, weights: &[f32], levels: &[u32]) -> f64 {
        weights.iter().zip(levels).map(|(w, l)| if *w == 0.0 { 0.0 } else { f64::from(*w) * self.error(self.dropped(*l)) }).sum()
    }
}

/// A threshold below every key: everything is read.
pub const NOTHING: i32 = -4096;

/// Returns the quarter of a binade that a positive number lies in: its exponent and two bits of its
/// fraction. It grows with the number.
pub fn quarter(weight: f32) -> i32 {
    (weight.to_bits() >> 21) as i32
}

/// Returns the upper edge of a key, which no number of the key reaches.
pub fn edge(key: i32) -> f64 {
    f64::from(f32::from_bits((key as u32 + 1) << 21))
}

/// Returns the low bits that a weight of this key does not need at a threshold: one more for every
/// binade below it.
pub fn unread(threshold: i32, key: i32, bits: u32) -> u32 {
    (2 + ((threshold - key) >> 2)).clamp(0, bits as i32) as u32
}

/// Returns what an integer code with its low `bits` unread is read as: the middle of what it may
/// be.
pub fn middle(code: u32, bits: u32) -> f64 {
    f64::from(code >> bits << bits) + (f64::from(bits).exp2() - 1.0) / 2.0
}

/// Returns the largest total variation between two softmaxes whose scores (in nats) differ by
/// `error` at most. It is attained.
pub fn variation(error: f64) -> f64 {
    (error / 2.0).tanh()
}

/// Returns the same where the scores' errors differ, from the weights that were computed with them.
pub fn variation_by_token(weights: &[f64], errors: &[f64]) -> f64 {
    let sum = |of: &dyn Fn(f64) -> f64| weights.iter().zip(errors).map(|(p, d)| p * of(*d)).sum::<f64>();
    sum(&|d| d * d.exp()) / sum(&|d| (-d).exp())
}

/// Returns the same between the exact softmax and that of coarse scores in which the tokens that
/// are not `left` coarse have been completed since, from the coarse scores only. AlignedKV's notes
/// call it the refinement of keys.
pub fn variation_refined(scores: &[f64], errors: &[f64], left: &[bool]) -> f64 {
    let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = |of: &dyn Fn(usize) -> f64| (0..scores.len()).map(of).sum::<f64>();
    let coarse = sum(&|t| if left[t] { errors[t] * (scores[t] - peak + errors[t]).exp() } else { 0.0 });
    coarse / sum(&|t| (scores[t] - peak - errors[t]).exp())
}

/// What one pass over the tokens carries where the softmax's sum is not known yet: sums of weights,
/// and the error so far, which stays within a share of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ledger {
    /// Largest score, in nats.
    pub peak: f64,
    /// Sum of e^(score - peak).
    pub sum: f64,
    /// Sum of e^(score - peak) times scale times error.
    pub error: f64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { peak: f64::NEG_INFINITY, sum: 0.0, error: 0.0 }
    }
}

impl Ledger {
    /// Returns both together, in any order.
    pub fn merged(self, other: Self) -> Self {
        let peak = self.peak.max(other.peak);
        let (a, b) = if peak == f64::NEG_INFINITY { (0.0, 0.0) } else { ((self.peak - peak).exp(), (other.peak - peak).exp()) };
        Self { peak, sum: a * self.sum + b * other.sum, error: a * self.error + b * other.error }
    }

    /// Takes a block of tokens (scores, scales of their values) and returns its levels, chosen so
    /// that the error stays within `allowed` times the sum.
    pub fn take(&mut self, planes: Planes, allowed: f64, scores: &[f64], scales: &[f64]) -> Vec<u32> {
        let peak = scores.iter().copied().fold(self.peak, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - peak).exp()).collect();
        let block = Self { peak, sum: weights.iter().sum(), error: 0.0 };
        let mut next = self.merged(block);
        let weighted: Vec<f32> = weights.iter().zip(scales).map(|(w, s)| (w * s) as f32).collect();
        let (levels, cost) = planes.levels(&weighted, (allowed * next.sum - next.error).max(0.0));
        next.error += cost;
        *self = next;
        levels
    }
}
