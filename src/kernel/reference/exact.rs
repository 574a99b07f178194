//! In f64, what the kernels approximate.

use crate::format::{Rope, RopeLayout, Shape};
use crate::plan::Plan;

/// Returns a row turned to its position by RoPE.
pub fn turn_exact(rope: &Rope, row: &[f64], position: u32) -> Vec<f64> {
    let frequencies = rope.frequencies();
    let mut turned = row.to_vec();
    for (pair, frequency) in frequencies.iter().enumerate() {
        let (sin, cos) = (f64::from(position) * frequency).sin_cos();
        let (a, b) = match rope.layout() {
            RopeLayout::SplitHalves => (pair, pair + frequencies.len()),
            RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
        };
        turned[a] = row[a] * cos - row[b] * sin;
        turned[b] = row[b] * cos + row[a] * sin;
    }
    turned
}

/// What scores are, beyond the product of key and query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores<'a> {
    /// The factor on a product.
    pub scale: f64,
    /// What scores are capped to, softly.
    pub soft_cap: Option<f64>,
    /// A logit without a value for each query head.
    pub sink_logits: Option<&'a [f32]>,
}

impl<'a> Scores<'a> {
    /// Returns those of a layer of a plan.
    pub fn of(plan: &'a Plan, layer: u32) -> Self {
        Self { scale: plan.score_scale(), soft_cap: plan.soft_cap().map(f64::from), sink_logits: plan.sink_logits(layer) }
    }

    /// Returns products divided by the root of the head dimension.
    pub fn plain(head_dim: u32) -> Self {
        Self { scale: 1.0 / f64::from(head_dim).sqrt(), soft_cap: None, sink_logits: None }
    }

    fn score(&self, key: &[f64], query: &[f64]) -> f64 {
        let score = key.iter().zip(query).map(|(k, q)| k * q).sum::<f64>() * self.scale;
        self.soft_cap.map_or(score, |cap| cap * (score / cap).tanh())
    }
}

/// Returns the causal softmax attention of the last `rows` tokens of one sequence over all its
/// tokens, before any quantization.
///
/// `keys` and `values` are `[tokens, kv_heads, head_dim]`, `queries` and the result
/// `[rows, query_heads, head_dim]`; keys and queries are before RoPE, which `shape` holds.
pub fn attention_exact(shape: &Shape, keys: &[f32], values: &[f32], queries: &[f32], rows: usize) -> Vec<f64> {
    attention_exact_with(shape, &Scores::plain(shape.head_dim), keys, values, queries, rows)
}

/// Returns the same of other scores.
pub fn attention_exact_with(shape: &Shape, scores: &Scores<'_>, keys: &[f32], values: &[f32], queries: &[f32], rows: usize) -> Vec<f64> {
    let head_dim = shape.head_dim as usize;
    let (query_heads, kv_heads) = (shape.query_heads as usize, shape.kv_heads as usize);
    let mut output = vec![0.0; rows * query_heads * head_dim];
    each_query(shape, scores, keys, queries, rows, |at, scores, log_sum| {
        let head = at % query_heads / (query_heads / kv_heads);
        for (t, score) in scores.iter().enumerate() {
            let weight = (score - log_sum).exp();
            for (x, v) in output[at * head_dim..][..head_dim].iter_mut().zip(&values[(t * kv_heads + head) * head_dim..]) {
                *x += weight * f64::from(*v);
            }
        }
    });
    output
}

/// Returns the logarithms of the sums of `exp(score)` over what
/// [`attention_exact`] attends to: `[rows, query_heads]`.
pub fn log_sums_exact(shape: &Shape, keys: &[f32], queries: &[f32], rows: usize) -> Vec<f64> {
    log_sums_exact_with(shape, &Scores::plain(shape.head_dim), keys, queries, rows)
}

/// Returns the same of other scores.
pub fn log_sums_exact_with(shape: &Shape, scores: &Scores<'_>, keys: &[f32], queries: &[f32], rows: usize) -> Vec<f64> {
    let mut log_sums = vec![0.0; rows * shape.query_heads as usize];
    each_query(shape, scores, keys, queries, rows, |at, _, log_sum| log_sums[at] = log_sum);
    log_sums
}

fn log_sum(scores: impl Iterator<Item = f64> + Clone) -> f64 {
    let peak = scores.clone().fold(f64::NEG_INFINITY, f64::max);
    peak + scores.map(|s| (s - peak).exp()).sum::<f64>().ln()
}

/// Calls `take` with the number of every row's query head, its scores, and the logarithm of the sum
/// of their exponentials and that of the head's sink logit.
fn each_query(shape: &Shape, scoring: &Scores<'_>, keys: &[f32], queries: &[f32], rows: usize, mut take: impl FnMut(usize, &[f64], f64)) {
    let head_dim = shape.head_dim as usize;
    let (query_heads, kv_heads) = (shape.query_heads as usize, shape.kv_heads as usize);
    let tokens = keys.len() / (kv_heads * head_dim);
    let row = |rows: &[f32], at: usize| -> Vec<f64> { rows[at * head_dim..][..head_dim].iter().map(|x| f64::from(*x)).collect() };
    for head in 0..kv_heads {
        let turned: Vec<Vec<f64>> = (0..tokens).map(|t| turn_exact(&shape.rope, &row(keys, t * kv_heads + head), t as u32)).collect();
        for query_head in (0..query_heads).filter(|q| q / (query_heads / kv_heads) == head) {
            for r in 0..rows {
                let position = tokens - rows + r;
                let query = turn_exact(&shape.rope, &row(queries, r * query_heads + query_head), position as u32);
                let scores: Vec<f64> = turned[..=position].iter().map(|key| scoring.score(key, &query)).collect();
                let sink = scoring.sink_logits.map(|logits| f64::from(logits[query_head]));
                take(r * query_heads + query_head, &scores, log_sum(scores.iter().copied().chain(sink)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{attention_exact, log_sums_exact, turn_exact};
    use crate::format::{Rope, Shape};

    #[test]
    fn turned_rows_see_only_their_distance() {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let (q, k): (Vec<f64>, Vec<f64>) = ((0..64).map(|i| f64::from(i).sin()).collect(), (0..64).map(|i| f64::from(i).cos()).collect());
        for rope in [Rope::new(10_000.0, 64), Rope::new(10_000.0, 32), Rope::new(500.0, 64).interleaved()] {
            let at = |m, n| dot(&turn_exact(&rope, &q, m), &turn_exact(&rope, &k, n));
            assert!((at(9, 4) - at(1005, 1000)).abs() < 1e-9);
            assert!((at(9, 4) - at(4, 9)).abs() > 1e-6);
        }
    }

    #[test]
    fn attention_to_equal_keys_is_the_mean_of_the_values() {
        let shape = Shape { layers: 1, query_heads: 2, kv_heads: 1, head_dim: 64, rope: Rope::none() };
        let values: Vec<f32> = (0..3 * 64).map(|i| i as f32).collect();
        let output = attention_exact(&shape, &[0.5; 3 * 64], &values, &[1.0; 2 * 64], 1);
        assert!(output.iter().enumerate().all(|(i, x)| (x - (64 + i % 64) as f64).abs() < 1e-12));
        // Three scores of 64 * 0.5 / sqrt(64).
        let log_sums = log_sums_exact(&shape, &[0.5; 3 * 64], &[1.0; 2 * 64], 1);
        assert!(log_sums.iter().all(|x| (x - 4.0 - 3_f64.ln()).abs() < 1e-12));
    }
}
