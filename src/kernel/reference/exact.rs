//! In f64, what the kernels approximate.

use crate::format::{Rope, RopeLayout, Shape};

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

/// Returns the causal softmax attention of the last `rows` tokens of one sequence over all its
/// tokens, before any quantization.
///
/// `keys` and `values` are `[tokens, kv_heads, head_dim]`, `queries` and the result
/// `[rows, query_heads, head_dim]`; keys and queries are before RoPE, which `shape` holds.
pub fn attention_exact(shape: &Shape, keys: &[f32], values: &[f32], queries: &[f32], rows: usize) -> Vec<f64> {
    let head_dim = shape.head_dim as usize;
    let (query_heads, kv_heads) = (shape.query_heads as usize, shape.kv_heads as usize);
    let mut output = vec![0.0; rows * query_heads * head_dim];
    each_query(shape, keys, queries, rows, |at, scores| {
        let log_sum = log_sum(scores);
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
    let mut log_sums = vec![0.0; rows * shape.query_heads as usize];
    each_query(shape, keys, queries, rows, |at, scores| log_sums[at] = log_sum(scores));
    log_sums
}

fn log_sum(scores: &[f64]) -> f64 {
    let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    peak + scores.iter().map(|s| (s - peak).exp()).sum::<f64>().ln()
}

/// Calls `take` with the number of every row's query head and its scores.
fn each_query(shape: &Shape, keys: &[f32], queries: &[f32], rows: usize, mut take: impl FnMut(usize, &[f64])) {
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
                let score = |key: &Vec<f64>| key.iter().zip(&query).map(|(k, q)| k * q).sum::<f64>() / (head_dim as f64).sqrt();
                let scores: Vec<f64> = turned[..=position].iter().map(score).collect();
                take(r * query_heads + query_head, &scores);
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
