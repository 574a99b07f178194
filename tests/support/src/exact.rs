//! What f64 makes of the same numbers.

use crate::{Taken, Walk, f16_row, norm, records};
use wgkv::low_level::reference;
use wgkv::{Codec, Rope, Shape};

/// Relative RMS of a decode step's output against f64 attention over the stored rows: the int8
/// query moves a score by 1/254 of the largest channel's share, the u8 weights move a weight by
/// 1/510 of the largest.
pub const DECODE_RMS: f64 = 0.03;

/// The same of Centred: the tests' weights, e to a normal number between 0.3 and 3, are not those
/// of the data, so that query and key as they are stored are longer, together by the root of the
/// mean of w^2 and of 1 / w^2: 2.7.
pub const CENTRED_RMS: f64 = 2.7 * DECODE_RMS;

/// Returns the distance of the first numbers from those wanted, over the length of these. A NaN
/// makes it one.
pub fn relative_rms(got: &[f32], want: &[f64]) -> f64 {
    assert!(got.len() >= want.len());
    let (error, length) = got.iter().zip(want).fold((0.0, 0.0), |(e, l), (a, b)| (e + (f64::from(*a) - b).powi(2), l + b * b));
    (error / length).sqrt()
}

/// Returns a token's key or value as the codec stores it, before it is rounded, in f64.
pub fn basis(walk: &Walk, row: &[f32], head: u32, token: u32, key: bool) -> Vec<f64> {
    basis_of(walk, row, head, token, key, false)
}

/// Returns the same of a row that is perhaps an elected sink's: its key keeps the mean of the
/// channels that turn.
pub fn basis_of(walk: &Walk, row: &[f32], head: u32, token: u32, key: bool, elected: bool) -> Vec<f64> {
    use reference::{rotate_exact, turn_exact};
    let (shape, codec) = (&walk.case.shape, walk.case.format.codec());
    let d = shape.head_dim as usize;
    let part = |numbers: &[f32], i: usize| f64::from(numbers[head as usize * d + i]);
    let mut row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
    if let Some(learned) = &walk.case.means {
        let means = if key { learned.key_means(0) } else { learned.value_means(0) };
        let mut means: Vec<f64> = (0..d).map(|i| part(means, i)).collect();
        if key && walk.case.turned {
            means = turn_exact(&shape.rope, &means, token);
        }
        if key && elected {
            // Full RoPE or a part of it, in either layout: the first channels turn.
            means[..2 * shape.rope.frequencies().len()].fill(0.0);
        }
        row = row.iter().zip(means).map(|(x, mean)| x - mean).collect();
    }
    if key {
        if !walk.case.turned {
            row = turn_exact(&shape.rope, &row, token);
        }
        if let Some(learned) = &walk.case.means {
            row = row.iter().enumerate().map(|(i, x)| x * part(learned.weights(0), i)).collect();
        }
    }
    if codec == Codec::Centred {
        // The sign of Golay, Rudin and Shapiro: by neighbouring ones in the channel's number.
        let pairs = |i: usize| (0..31).filter(|bit| i >> bit & 3 == 3).count();
        row = row.iter().enumerate().map(|(i, x)| if pairs(i) % 2 == 1 { -x } else { *x }).collect();
    }
    let rotates = if key { codec.rotates_keys() } else { codec.rotates_values() };
    if rotates { rotate_exact(&row) } else { row }
}

/// Returns the length that f32's errors in the same are relative to: that of the row and of its
/// mean, times the largest weight.
pub fn basis_length(walk: &Walk, row: &[f32], head: u32, key: bool) -> f64 {
    let length = f64::from(norm(row));
    let Some(learned) = &walk.case.means else {
        return length;
    };
    let part = |numbers: &[f32]| numbers[(head * walk.case.shape.head_dim) as usize..][..row.len()].to_vec();
    let means = part(if key { learned.key_means(0) } else { learned.value_means(0) });
    let weight = if key { part(learned.weights(0)).into_iter().fold(0.0, f32::max) } else { 1.0 };
    (length + f64::from(norm(&means))) * f64::from(weight)
}

/// Returns attention in f64 of `rows` rows of a step, from row `first`, over what their sequence
/// has stored: `[rows, query_heads, head_dim]`. The rows must be the sequence's last tokens. Stored
/// keys are turned already, so the queries are, too.
pub fn exact_over_stored(walk: &Walk, taken: &Taken, sequence: usize, first: u32, rows: u32) -> Vec<f64> {
    let shape = &walk.case.shape;
    let [keys, values] = walk.dequantize(sequence);
    let tokens = walk.cache.tokens(walk.sequences[sequence]).expect("a live sequence");
    let width = (shape.query_heads * shape.head_dim) as usize;
    let queries = &taken.queries.numbers[first as usize * width..];
    let held = walk.first(sequence);
    let span = walk.case.span;
    let scores = reference::Scores::of(walk.plan(), 0);
    let queries = turned(walk, queries, tokens - rows, rows);
    let still = Shape { rope: Rope::none(), ..shape.clone() };
    let attention =
        |[keys, values]: [&[f32]; 2], queries: &[f32], rows: u32| reference::attention_exact_with(&still, &scores, keys, values, queries, rows as usize);
    if held == 0 && span.first(tokens - 1) == 0 {
        return attention([&keys, &values], &queries, rows);
    }
    let slot = walk.sequences[sequence].slot();
    let record = records(taken).into_iter().find(|record| record.slot == slot).expect("a chunk of the step");
    let held: Vec<bool> = (0..tokens).map(|t| t >= held || f16_row(walk, &taken.after, &record, 0, t).is_some()).collect();
    let row = |n: u32| {
        let position = tokens - rows + n;
        let seen: Vec<usize> = (0..=position).filter(|t| held[*t as usize] && *t >= span.first(position)).map(|t| t as usize).collect();
        let kept = |numbers: &[f32]| -> Vec<f32> {
            let width = (shape.kv_heads * shape.head_dim) as usize;
            seen.iter().flat_map(|t| &numbers[t * width..][..width]).copied().collect()
        };
        attention([&kept(&keys), &kept(&values)], &queries[n as usize * width..(n as usize + 1) * width], 1)
    };
    (0..rows).flat_map(row).collect()
}

/// Returns attention in f64 of `rows` queries (before RoPE) from position `first` on, over rows as
/// they are stored, keys after RoPE: `[rows, query_heads, head_dim]`.
pub fn attention_over(shape: &Shape, [keys, values]: [&[f32]; 2], queries: &[f32], first: u32, rows: u32) -> Vec<f64> {
    attention_over_with(shape, &reference::Scores::plain(shape.head_dim), [keys, values], queries, first, rows)
}

/// Returns the same of other scores.
pub fn attention_over_with(shape: &Shape, scores: &reference::Scores<'_>, [keys, values]: [&[f32]; 2], queries: &[f32], first: u32, rows: u32) -> Vec<f64> {
    let seen = ((first + rows) * shape.kv_heads * shape.head_dim) as usize;
    let still = Shape { rope: Rope::none(), ..shape.clone() };
    reference::attention_exact_with(&still, scores, &keys[..seen], &values[..seen], &turned_to(shape, queries, first, rows), rows as usize)
}

/// Returns the same of one query, over all of these rows, whatever their positions were.
pub fn attention_seen(shape: &Shape, [keys, values]: [&[f32]; 2], query: &[f32], position: u32) -> Vec<f64> {
    reference::attention_exact(&Shape { rope: Rope::none(), ..shape.clone() }, keys, values, &turned_to(shape, query, position, 1), 1)
}

/// Returns the logarithms of the sums of `exp(score)` of `rows` rows of a step, from row `first`,
/// over what their sequence, which did not slide, has stored: `[rows, query_heads]`. The rows must
/// be the sequence's last tokens.
pub fn log_sums_over_stored(walk: &Walk, taken: &Taken, sequence: usize, first: u32, rows: u32) -> Vec<f64> {
    let shape = &walk.case.shape;
    let [keys, _] = walk.dequantize(sequence);
    let tokens = walk.cache.tokens(walk.sequences[sequence]).expect("a live sequence");
    let queries = &taken.queries.numbers[(first * shape.query_heads * shape.head_dim) as usize..];
    let still = Shape { rope: Rope::none(), ..shape.clone() };
    let scores = reference::Scores::of(walk.plan(), 0);
    reference::log_sums_exact_with(&still, &scores, &keys, &turned(walk, queries, tokens - rows, rows), rows as usize)
}

/// Returns a walk's queries as they are at their positions.
fn turned(walk: &Walk, queries: &[f32], first: u32, rows: u32) -> Vec<f32> {
    let shape = &walk.case.shape;
    if walk.case.turned { queries[..(rows * shape.query_heads * shape.head_dim) as usize].to_vec() } else { turned_to(shape, queries, first, rows) }
}

/// Returns rows of a shape's query heads, `[rows, query_heads, head_dim]`, turned to their positions
/// from `first` on.
pub fn turned_to(shape: &Shape, queries: &[f32], first: u32, rows: u32) -> Vec<f32> {
    let (d, heads) = (shape.head_dim as usize, shape.query_heads as usize);
    queries[..rows as usize * heads * d]
        .chunks_exact(d)
        .zip(0..)
        .flat_map(|(row, i): (&[f32], usize)| {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            reference::turn_exact(&shape.rope, &row, first + (i / heads) as u32)
        })
        .map(|x| x as f32)
        .collect()
}
