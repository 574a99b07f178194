//! Rotations folded into weights leave the model as it was. The numbers are those of
//! docs/testing.md's table of RotateKV (2501.16383): 9 fused keys, 10 a whole attention block, 11
//! positions, 12 what must break it, 13 values and biases.
//!
//! The quantizer is the identity here. Weights are multiples of 1/32 and rotations are over 64, 256
//! or 1024 channels, whose scales are powers of two, so that fused weights are exact in f32 and the
//! algebra can be checked to f64's precision; other sizes are checked to f32's.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use rand::rngs::StdRng;
use wgkv::learned::{Reach, fuse};
use wgkv::low_level::reference::{attention_exact, rotate_exact, rotate_group_exact, turn_exact};
use wgkv::{ChannelOrder, Error, Rope, Shape};
use wgkv_testing::*;

/// Relative to the length of a row. A key passes sums of 48, 64 and 4 terms twice, of 2^-53 each by
/// rounding, on terms that add up to a few lengths of the row.
const KEY_ERROR: f64 = 1e-13;

/// The same through scores, softmax and three more products. A mistake of the algebra is 1e-2 or
/// more.
const BLOCK_ERROR: f64 = 1e-12;

/// What item 12 must break, relative to the length of the block's output.
const BROKEN: f64 = 1e-2;

/// Weights and rows in f32: one rounding of 2^-24 to store each number, which adds up over a row
/// like its length.
const FLOAT_ERROR: f64 = 2.0 / 16_777_216.0;

const HIDDEN: usize = 48;
const TOKENS: usize = 9;

#[derive(Clone)]
struct Block {
    shape: Shape,
    wq: Vec<f32>,
    wk: Vec<f32>,
    wv: Vec<f32>,
    wo: Vec<f32>,
    key_bias: Vec<f32>,
    value_bias: Vec<f32>,
}

fn shape(query_heads: u32, kv_heads: u32, head_dim: u32) -> Shape {
    Shape { layers: 2, query_heads, kv_heads, head_dim, rope: Rope::new(100.0, head_dim) }
}

/// Draws multiples of 1/32 up to 1/4.
fn weights(random: &mut StdRng, n: usize) -> Vec<f32> {
    (0..n).map(|_| f32::from(random.random_range(-8_i8..=8)) / 32.0).collect()
}

fn doubles(row: &[f32]) -> Vec<f64> {
    row.iter().map(|x| f64::from(*x)).collect()
}

fn block(random: &mut StdRng, shape: Shape) -> Block {
    let (q, kv) = ((shape.query_heads * shape.head_dim) as usize, (shape.kv_heads * shape.head_dim) as usize);
    Block {
        wq: weights(random, q * HIDDEN),
        wk: weights(random, kv * HIDDEN),
        wv: weights(random, kv * HIDDEN),
        wo: weights(random, HIDDEN * q),
        key_bias: weights(random, kv),
        value_bias: weights(random, kv),
        shape,
    }
}

/// Makes an order that is far from the natural one in both layers.
fn channel_order(random: &mut StdRng, shape: &Shape, heads_per_group: u32, reach: Reach) -> ChannelOrder {
    let sums = (0..shape.layers).map(|_| doubles(&normals(random, (shape.kv_heads * shape.head_dim) as usize))).collect();
    ChannelOrder::from_sums(shape, heads_per_group, reach, "", 1, sums).unwrap()
}

/// Returns `W x + b` for every row of `x`.
fn project(weights: &[f32], bias: Option<&[f32]>, x: &[f64]) -> Vec<f64> {
    let columns = x.len() / TOKENS;
    let rows = weights.len() / columns;
    let number = |x: &[f64], r: usize| weights[r * columns..][..columns].iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
    x.chunks_exact(columns).flat_map(|x| (0..rows).map(move |r| number(x, r) + bias.map_or(0.0, |b| f64::from(b[r])))).collect()
}

fn by_head(rows: &[f64], head_dim: u32, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    rows.chunks_exact(head_dim as usize).flat_map(f).collect()
}

fn by_token(rows: &[f64], f: impl Fn(&[f64], u32) -> Vec<f64>) -> Vec<f64> {
    rows.chunks_exact(rows.len() / TOKENS).zip(0..).flat_map(|(row, t)| f(row, t)).collect()
}

/// Returns `B` applied to every row.
fn rotated(rows: &[f64], head_dim: u32, heads_per_group: u32) -> Vec<f64> {
    rows.chunks_exact((heads_per_group * head_dim) as usize).flat_map(|block| rotate_group_exact(block, head_dim)).collect()
}

fn gathered(rows: &[f64], by: &[u16]) -> Vec<f64> {
    rows.chunks_exact(by.len()).flat_map(|row| by.iter().map(|c| row[usize::from(*c)])).collect()
}

fn turned(shape: &Shape, rows: &[f64], first: u32) -> Vec<f64> {
    by_token(rows, |row, t| by_head(row, shape.head_dim, |head| turn_exact(&shape.rope, head, t + first)))
}

/// Returns the scores of every query and key that are already turned: `[query head][token][key]`.
fn scores(shape: &Shape, queries: &[f64], keys: &[f64]) -> Vec<Vec<Vec<f64>>> {
    let d = shape.head_dim as usize;
    let at = |rows: &[f64], heads: u32, t: usize, head: u32| rows[(t * heads as usize + head as usize) * d..][..d].to_vec();
    let dot = |q: &[f64], k: &[f64]| q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt();
    (0..shape.query_heads)
        .map(|h| {
            let keys: Vec<Vec<f64>> = (0..TOKENS).map(|t| at(keys, shape.kv_heads, t, h / shape.share())).collect();
            (0..TOKENS).map(|t| keys[..=t].iter().map(|k| dot(&at(queries, shape.query_heads, t, h), k)).collect()).collect()
        })
        .collect()
}

/// Returns causal attention over queries and keys that are already turned.
fn attend(shape: &Shape, queries: &[f64], keys: &[f64], values: &[f64]) -> Vec<f64> {
    let d = shape.head_dim as usize;
    let mut output = vec![0.0; queries.len()];
    for (h, rows) in scores(shape, queries, keys).iter().enumerate() {
        for (t, row) in rows.iter().enumerate() {
            let peak = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = row.iter().map(|s| (s - peak).exp()).sum();
            for (j, s) in row.iter().enumerate() {
                let value = &values[(j * shape.kv_heads as usize + h / shape.share() as usize) * d..][..d];
                let out = &mut output[(t * shape.query_heads as usize + h) * d..][..d];
                out.iter_mut().zip(value).for_each(|(o, v)| *o += (s - peak).exp() / total * v);
            }
        }
    }
    output
}

fn length(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Returns the distance of two rows, relative to the length of the second.
fn apart(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    length(&got.iter().zip(want).map(|(a, b)| a - b).collect::<Vec<_>>()) / length(want)
}

/// What an engine with fused weights does with a key or a query, and mistakes that it might make.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Right,
    RopeBeforeRotation,
    QueriesRotated,
    NoOrder,
    OrderAfterRotation,
    OrderTwice,
    ValuesOrdered,
    OutputPlain,
}

impl Block {
    /// Runs the block as the model has it.
    fn plain(&self, x: &[f64], first: u32) -> Vec<f64> {
        let queries = turned(&self.shape, &project(&self.wq, None, x), first);
        let keys = turned(&self.shape, &project(&self.wk, Some(&self.key_bias), x), first);
        project(&self.wo, None, &attend(&self.shape, &queries, &keys, &project(&self.wv, Some(&self.value_bias), x)))
    }

    /// Returns the block with its weights fused.
    fn fused(&self, channel_order: &ChannelOrder, layer: u32) -> Self {
        let mut fused = self.clone();
        fuse::keys(&mut fused.wk, channel_order, layer).unwrap();
        fuse::keys(&mut fused.key_bias, channel_order, layer).unwrap();
        fuse::values(&mut fused.wv, &self.shape).unwrap();
        fuse::values(&mut fused.value_bias, &self.shape).unwrap();
        fuse::output(&mut fused.wo, &self.shape).unwrap();
        fused
    }

    /// Runs the fused block as an engine does. `plain` is the block before.
    fn run(&self, plain: &Self, channel_order: &ChannelOrder, layer: u32, x: &[f64], first: u32, way: Way) -> Vec<f64> {
        let (shape, d) = (&self.shape, self.shape.head_dim);
        let b = |rows: &[f64]| rotated(rows, d, channel_order.heads_per_group());
        let places = channel_order.places(layer);
        let cached = project(&self.wk, Some(&self.key_bias), x);
        let keys = match way {
            Way::RopeBeforeRotation => b(&turned(shape, &gathered(&cached, &places), first)),
            Way::NoOrder => turned(shape, &b(&cached), first),
            Way::OrderAfterRotation => turned(shape, &gathered(&b(&cached), &places), first),
            Way::OrderTwice => turned(shape, &b(&gathered(&cached, channel_order.order(layer))), first),
            _ => turned(shape, &b(&gathered(&cached, &places)), first),
        };
        let mut queries = turned(shape, &project(&self.wq, None, x), first);
        if way == Way::QueriesRotated {
            queries = b(&queries);
        }
        let mut values = project(&self.wv, Some(&self.value_bias), x);
        if way == Way::ValuesOrdered {
            values = gathered(&values, channel_order.order(layer));
        }
        let wo = if way == Way::OutputPlain { &plain.wo } else { &self.wo };
        project(wo, None, &attend(shape, &queries, &keys, &values))
    }
}

#[test]
fn the_attention_of_these_tests_is_the_librarys() {
    let (mut random, seed) = seeded();
    let block = block(&mut random, shape(8, 2, 64));
    let x = doubles(&normals(&mut random, TOKENS * HIDDEN));
    let [q, k, v] =
        [(&block.wq, None), (&block.wk, Some(&block.key_bias)), (&block.wv, Some(&block.value_bias))].map(|(w, b)| project(w, b.map(Vec::as_slice), &x));
    let floats = [&q, &k, &v].map(|rows| rows.iter().map(|x| *x as f32).collect::<Vec<f32>>());
    let want = attention_exact(&block.shape, &floats[1], &floats[2], &floats[0], TOKENS);
    let got = attend(&block.shape, &turned(&block.shape, &q, 0), &turned(&block.shape, &k, 0), &v);
    // Its rows are f32: 2^-24 of a number each, through scores of some 10.
    assert!(apart(&got, &want) < 40.0 * FLOAT_ERROR, "{}. WGKV_SEED={seed}", apart(&got, &want));
}

#[test]
fn item_9_fused_weights_project_rotated_and_ordered_keys() {
    let (mut random, seed) = seeded();
    for (kv_heads, head_dim, heads_per_group) in [(4, 64, 1), (8, 64, 4), (4, 256, 1), (4, 256, 4), (8, 128, 8), (4, 128, 2)] {
        for reach in [Reach::Global, Reach::Local] {
            let plain = block(&mut random, shape(kv_heads, kv_heads, head_dim));
            let channel_order = channel_order(&mut random, &plain.shape, heads_per_group, reach);
            let x = doubles(&normals(&mut random, TOKENS * HIDDEN));
            let keys = project(&plain.wk, Some(&plain.key_bias), &x);
            for layer in 0..2 {
                let fused = plain.fused(&channel_order, layer);
                let got = project(&fused.wk, Some(&fused.key_bias), &x);
                let want = gathered(&rotated(&keys, head_dim, heads_per_group), channel_order.order(layer));
                let name = format!("{kv_heads} heads of {head_dim}, {heads_per_group} together, layer {layer}. WGKV_SEED={seed}");
                assert!(apart(&got, &want) < KEY_ERROR, "Wk' x against P B Wk x: {:e}, {name}", apart(&got, &want));
                let back = rotated(&gathered(&got, &channel_order.places(layer)), head_dim, heads_per_group);
                assert!(apart(&back, &keys) < KEY_ERROR, "B P^-1 Wk' x against Wk x: {:e}, {name}", apart(&back, &keys));
                // The same by the library, in rows of f32.
                let mut rows: Vec<f32> = got.iter().map(|x| *x as f32).collect();
                fuse::unfuse_keys(&mut rows, &channel_order, layer).unwrap();
                assert!(apart(&doubles(&rows), &keys) < FLOAT_ERROR, "unfuse_keys: {:e}, {name}", apart(&doubles(&rows), &keys));
                let mut rows: Vec<f32> = project(&fused.wv, Some(&fused.value_bias), &x).iter().map(|x| *x as f32).collect();
                fuse::unfuse_values(&mut rows, &plain.shape).unwrap();
                let values = project(&plain.wv, Some(&plain.value_bias), &x);
                assert!(apart(&doubles(&rows), &values) < FLOAT_ERROR, "unfuse_values: {:e}, {name}", apart(&doubles(&rows), &values));
            }
        }
    }
}

#[test]
fn weights_of_any_head_dim_are_rounded_once() {
    let (mut random, seed) = seeded();
    for (kv_heads, head_dim) in [(8, 64), (8, 80), (8, 96), (8, 128), (4, 256)] {
        let shape = shape(2 * kv_heads, kv_heads, head_dim);
        let width = (kv_heads * head_dim) as usize;
        let close = |name: &str, got: &[f32], want: &[f64]| {
            for (line, (got, want)) in got.chunks_exact(3).zip(want.chunks_exact(3)).enumerate() {
                for (got, want) in got.iter().zip(want) {
                    // Half a unit of the last place, and where numbers cancel what f64 lost of 1024
                    // of about 1.
                    let off = (f64::from(*got) - want).abs();
                    assert!(off <= 0.5 * f64::from(f32::EPSILON) * want.abs() + 1e-12, "{name}, line {line}: {got}, wanted {want}. WGKV_SEED={seed}");
                }
            }
        };
        let columns = |weights: &[f32], lines: usize, f: &dyn Fn(Vec<f64>) -> Vec<f64>| -> Vec<f64> {
            let mut all = vec![0.0; weights.len()];
            for c in 0..weights.len() / lines {
                let column = (0..lines).map(|r| f64::from(weights[r * (weights.len() / lines) + c])).collect();
                f(column).into_iter().enumerate().for_each(|(r, x)| all[r * (weights.len() / lines) + c] = x);
            }
            all
        };
        let weights = normals(&mut random, width * 3);
        for heads_per_group in [1, 2, 4, 8].into_iter().filter(|n| kv_heads % n == 0) {
            let channel_order = channel_order(&mut random, &shape, heads_per_group, Reach::Global);
            let mut got = weights.clone();
            fuse::keys(&mut got, &channel_order, 1).unwrap();
            let want = columns(&weights, width, &|column| gathered(&rotated(&column, head_dim, heads_per_group), channel_order.order(1)));
            close(&format!("keys of {head_dim}, {heads_per_group} heads"), &got, &want);
        }
        let mut got = weights.clone();
        fuse::values(&mut got, &shape).unwrap();
        close(&format!("values of {head_dim}"), &got, &columns(&weights, width, &|column| by_head(&column, head_dim, rotate_exact)));
        let weights = normals(&mut random, 3 * 2 * width);
        let mut got = weights.clone();
        fuse::output(&mut got, &shape).unwrap();
        close(&format!("output of {head_dim}"), &got, &by_head(&doubles(&weights), head_dim, rotate_exact));
    }
}

#[test]
fn item_10_the_fused_block_is_the_block() {
    let (mut random, seed) = seeded();
    for share in [1, 2, 4, 8] {
        for (kv_heads, heads_per_group, reach) in [(4, 4, Reach::Global), (8, 4, Reach::Global), (8, 4, Reach::Local), (2, 1, Reach::Global)] {
            let plain = block(&mut random, shape(share * kv_heads, kv_heads, 64));
            let channel_order = channel_order(&mut random, &plain.shape, heads_per_group, reach);
            let x = doubles(&normals(&mut random, TOKENS * HIDDEN));
            let want = plain.plain(&x, 0);
            for layer in 0..2 {
                let got = plain.fused(&channel_order, layer).run(&plain, &channel_order, layer, &x, 0, Way::Right);
                assert!(apart(&got, &want) < BLOCK_ERROR, "{kv_heads} KV heads, share {share}: {:e}. WGKV_SEED={seed}", apart(&got, &want));
            }
        }
    }
}

#[test]
fn item_11_scores_see_only_the_distance_of_positions() {
    let (mut random, seed) = seeded();
    let plain = block(&mut random, shape(8, 4, 64));
    let channel_order = channel_order(&mut random, &plain.shape, 4, Reach::Global);
    let fused = plain.fused(&channel_order, 0);
    let x = doubles(&normals(&mut random, TOKENS * HIDDEN));
    let queries = project(&plain.wq, None, &x);
    let restored = rotated(&gathered(&project(&fused.wk, Some(&fused.key_bias), &x), &channel_order.places(0)), 64, 4);
    let keys = project(&plain.wk, Some(&plain.key_bias), &x);
    let flat = |scores: Vec<Vec<Vec<f64>>>| scores.concat().concat();
    let at = |first| flat(scores(&plain.shape, &turned(&plain.shape, &queries, first), &turned(&plain.shape, &restored, first)));
    // q_i R_{i-j} k_j: the query alone turned by the distance.
    let distance = |t: usize, j: usize| {
        let rows: Vec<f64> = by_token(&queries, |row, _| by_head(row, 64, |head| turn_exact(&plain.shape.rope, head, (t - j) as u32)));
        scores(&plain.shape, &rows, &keys).iter().map(|head| head[t][j]).collect::<Vec<f64>>()
    };
    let shown = scores(&plain.shape, &turned(&plain.shape, &queries, 0), &turned(&plain.shape, &restored, 0));
    for (t, j) in [(0, 0), (5, 2), (8, 0), (8, 7)] {
        let got: Vec<f64> = shown.iter().map(|head| head[t][j]).collect();
        assert!(apart(&got, &distance(t, j)) < BLOCK_ERROR, "token {t} and key {j}. WGKV_SEED={seed}");
    }
    for first in [1, 100, 4096] {
        // Angles of thousands of radians lose three more digits.
        assert!(apart(&at(first), &at(0)) < 1e3 * BLOCK_ERROR, "shifted by {first}: {:e}. WGKV_SEED={seed}", apart(&at(first), &at(0)));
        let output = fused.run(&plain, &channel_order, 0, &x, first, Way::Right);
        assert!(apart(&output, &plain.plain(&x, 0)) < 1e3 * BLOCK_ERROR, "shifted by {first}. WGKV_SEED={seed}");
    }
}

#[test]
fn item_12_and_13_mistakes_break_the_block() {
    let (mut random, seed) = seeded();
    for (query_heads, kv_heads) in [(8, 8), (8, 4)] {
        let plain = block(&mut random, shape(query_heads, kv_heads, 64));
        let channel_order = channel_order(&mut random, &plain.shape, 4, Reach::Global);
        let x = doubles(&normals(&mut random, TOKENS * HIDDEN));
        let want = plain.plain(&x, 3);
        let fused = plain.fused(&channel_order, 1);
        assert!(apart(&fused.run(&plain, &channel_order, 1, &x, 3, Way::Right), &want) < BLOCK_ERROR);
        use Way::*;
        for way in [RopeBeforeRotation, QueriesRotated, NoOrder, OrderAfterRotation, OrderTwice, ValuesOrdered, OutputPlain] {
            let off = apart(&fused.run(&plain, &channel_order, 1, &x, 3, way), &want);
            assert!(off > BROKEN, "{way:?} changes the output by {off:e} only. WGKV_SEED={seed}");
        }
        // The other layer's order, a bias that stayed as it was, and one that was rotated but not
        // ordered.
        let off = apart(&fused.run(&plain, &channel_order, 0, &x, 3, Right), &want);
        assert!(off > BROKEN, "the order of another layer: {off:e}. WGKV_SEED={seed}");
        let only_rotated: Vec<f32> = rotated(&doubles(&plain.key_bias), 64, 4).iter().map(|x| *x as f32).collect();
        for (name, key_bias, value_bias) in [
            ("a plain bias of keys", &plain.key_bias, &fused.value_bias),
            ("a bias of keys without the order", &only_rotated, &fused.value_bias),
            ("a plain bias of values", &fused.key_bias, &plain.value_bias),
        ] {
            // Biases are small beside the rows here; in models that have them they are large.
            let large = |bias: &[f32]| bias.iter().map(|x| 8.0 * x).collect::<Vec<f32>>();
            let before = Block { key_bias: large(&plain.key_bias), value_bias: large(&plain.value_bias), ..plain.clone() };
            let right = Block { key_bias: large(&fused.key_bias), value_bias: large(&fused.value_bias), ..fused.clone() };
            let wrong = Block { key_bias: large(key_bias), value_bias: large(value_bias), ..fused.clone() };
            let want = before.plain(&x, 3);
            assert!(apart(&right.run(&before, &channel_order, 1, &x, 3, Right), &want) < BLOCK_ERROR);
            let off = apart(&wrong.run(&before, &channel_order, 1, &x, 3, Right), &want);
            assert!(off > BROKEN, "{name}: {off:e}. WGKV_SEED={seed}");
        }
    }
}

#[test]
fn item_13_rotating_attentions_output_is_the_same_as_fusing_it() {
    let (mut random, seed) = seeded();
    let plain = block(&mut random, shape(8, 2, 64));
    let channel_order = channel_order(&mut random, &plain.shape, 2, Reach::Global);
    let fused = plain.fused(&channel_order, 0);
    let rows = doubles(&normals(&mut random, TOKENS * 8 * 64));
    let online = project(&plain.wo, None, &by_head(&rows, 64, rotate_exact));
    let got = project(&fused.wo, None, &rows);
    assert!(apart(&got, &online) < KEY_ERROR, "{:e}. WGKV_SEED={seed}", apart(&got, &online));
}

#[test]
fn wrong_lengths_and_layers_are_refused() {
    let (mut random, _) = seeded();
    let shape = shape(8, 4, 64);
    let channel_order = channel_order(&mut random, &shape, 4, Reach::Global);
    for n in [0, 1, 255, 257, 256 * 3 - 1] {
        let mut numbers = vec![1.0; n];
        for error in [
            fuse::keys(&mut numbers, &channel_order, 0).unwrap_err(),
            fuse::values(&mut numbers, &shape).unwrap_err(),
            fuse::output(&mut numbers, &shape).unwrap_err(),
            fuse::unfuse_keys(&mut numbers, &channel_order, 0).unwrap_err(),
            fuse::unfuse_values(&mut numbers, &shape).unwrap_err(),
        ] {
            assert!(matches!(&error, Error::Mismatch { of: Thing::Argument, had, .. } if *had == n.to_string()), "{error:?}");
        }
        assert!(numbers.iter().all(|x| *x == 1.0), "what is refused stays");
    }
    let mut numbers = vec![1.0; 256];
    assert!(fuse::output(&mut numbers, &shape).is_err(), "half a row of the output's weights");
    assert_eq!(fuse::keys(&mut numbers, &channel_order, 2), Err(Error::Layer { had: 2, layers: 2 }));
    assert_eq!(fuse::unfuse_keys(&mut numbers, &channel_order, 2), Err(Error::Layer { had: 2, layers: 2 }));
    let broken = Shape { head_dim: 0, ..shape };
    assert!(
        fuse::values(&mut numbers, &broken).is_err() && fuse::output(&mut numbers, &broken).is_err() && fuse::unfuse_values(&mut numbers, &broken).is_err()
    );
}
