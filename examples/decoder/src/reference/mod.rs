//! The kernels, and a whole model, on the processor in f64: what their results are compared with.

mod model;

use std::f64::consts::FRAC_2_PI;

use crate::config::Activation;

pub use model::logits;

/// Returns `rows` times a matrix `[outputs, columns]`, and beside each number the sum of the
/// magnitudes of its terms, which bounds its error.
pub fn project(rows: &[f64], weights: &[f32], columns: usize) -> Vec<[f64; 2]> {
    let product = |row: &[f64], weight: &[f32]| {
        let terms = row.iter().zip(weight).map(|(x, w)| x * f64::from(*w));
        terms.fold([0.0, 0.0], |[sum, size], term| [sum + term, size + term.abs()])
    };
    rows.chunks_exact(columns).flat_map(|row| weights.chunks_exact(columns).map(move |weight| product(row, weight))).collect()
}

/// Returns a row divided by its root mean square and multiplied by weights.
pub fn normalize(row: &[f64], weights: &[f32], epsilon: f64) -> Vec<f64> {
    let root = (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + epsilon).sqrt();
    row.iter().zip(weights).map(|(x, w)| x / root * f64::from(*w)).collect()
}

/// Returns the activation of a gate.
pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => 0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
    }
}

/// Returns a score that stays below a cap.
pub fn capped(score: f64, cap: f64) -> f64 {
    cap * (score / cap).tanh()
}

/// Turns a head's pairs of channels, each in one half of those that turn, by these angles.
pub fn turn(head: &mut [f64], angles: impl Iterator<Item = f64>, pairs: usize) {
    for (pair, angle) in angles.enumerate() {
        let (sin, cos) = angle.sin_cos();
        let (a, b) = (head[pair], head[pair + pairs]);
        head[pair] = a * cos - b * sin;
        head[pair + pairs] = b * cos + a * sin;
    }
}

/// Returns the hash that `sample` draws noise from.
pub fn hash(numbers: [u32; 3]) -> u32 {
    let round = |state: u32| {
        let state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
        (word >> 22) ^ word
    };
    numbers.into_iter().fold(0, |state, number| round(state.wrapping_add(number)))
}

/// Returns the noise of Gumbel's distribution that `sample` adds to a token's score.
pub fn noise(seed: u32, draw: u32, token: u32) -> f64 {
    let uniform = (f64::from(hash([seed, draw, token]) >> 8) + 0.5) / f64::from(1 << 24);
    -(-uniform.ln()).ln()
}
