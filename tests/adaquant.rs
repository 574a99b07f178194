//! What KV-AdaQuant (2502.15075) says of quantizers and norms, for the quantizer that the cache
//! has. Nothing here needs a GPU.
//!
//! That a number is off by half a step at most, which the paper's bounds (its appendix B) follow
//! from, is in `tests/rotatekv.rs`.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::reference::attention_exact;
use wgkv::low_level::reference::group::{group_code, group_scale, group_zero};
use wgkv::{Rope, Scales, Shape};
use wgkv_testing::*;

/// Groups as the cache stores them, without a clip, and back.
fn stored(row: &[f32], bits: u32, group: usize) -> Vec<f32> {
    let levels = ((1_u32 << bits) - 1) as f32;
    row.chunks(group)
        .flat_map(|group| {
            let (low, high) = group.iter().fold((f32::MAX, f32::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
            let scale = group_scale(Scales::Half, low, high, 1.0, levels);
            let zero = group_zero(low, 1.0, scale);
            group.iter().map(move |x| scale * (group_code(*x, scale, zero, levels) as f32 - zero)).collect::<Vec<f32>>()
        })
        .collect()
}

fn squared(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// Squared error over squared numbers.
fn distortion(row: &[f32], bits: u32, group: usize) -> f64 {
    squared(&stored(row, bits, group), row) / row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
}

#[test]
fn normal_numbers_lose_what_the_quantizers_distortion_says() {
    // Mean squared errors of a min-max quantizer whose range begins at the least number exactly,
    // computed independently for the notes on the paper. Ours has integer zeros, so its range is
    // off by up to half a step and cuts one end by as much: less than a tenth more.
    const INTEGER_ZERO: f64 = 0.1;
    // A million numbers leave half a per cent of noise.
    const NOISE: f64 = 0.005;
    let (mut random, seed) = seeded();
    let row = normals(&mut random, 1 << 20);
    for (group, wanted) in [(32, [0.1543, 0.02815, 0.00612]), (64, [0.2029, 0.03710, 0.00805]), (128, [0.2511, 0.04590, 0.00998])] {
        let got = [2, 3, 4].map(|bits| distortion(&row, bits, group));
        println!("group {group}: {got:?}");
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((1.0 - NOISE..1.0 + INTEGER_ZERO).contains(&(got / wanted)), "group {group}: {got}, should be {wanted} or a little more. WGKV_SEED={seed}");
        }
        let eight = distortion(&row, 8, group);
        assert!(eight < got[2] / 200.0, "eight bits lose {eight}");
        // What a bit is worth.
        assert!((5.0..6.0).contains(&(got[0] / got[1])) && (4.4..4.8).contains(&(got[1] / got[2])), "{got:?}");
    }
}

#[test]
fn four_and_two_bits_beat_three_and_three_only_where_norms_differ_enough() {
    // The paper's law, for raw squared errors: keys of r times the norm of values. K4V2 beats K2V4
    // as soon as r is above 1, and K3V3 only where r² is above (D2 - D3) / (D3 - D4), 5.7 in groups
    // of 64.
    let (mut random, seed) = seeded();
    let (keys, values) = (normals(&mut random, 1 << 18), normals(&mut random, 1 << 18));
    for (r, beats) in [(1.1, false), (2.2, false), (2.6, true), (4.0, true)] {
        let keys: Vec<f32> = keys.iter().map(|x| r * x).collect();
        let error = |k: u32, v: u32| squared(&stored(&keys, k, 64), &keys) + squared(&stored(&values, v, 64), &values);
        assert!(error(4, 2) < error(2, 4), "r {r}. WGKV_SEED={seed}");
        assert_eq!(error(4, 2) < error(3, 3), beats, "r {r}: K4V2 {}, K3V3 {}. WGKV_SEED={seed}", error(4, 2), error(3, 3));
    }
}

#[test]
fn what_all_keys_have_in_common_does_nothing_to_attention_but_costs_codes() {
    // Softmax takes no notice of a term that all scores share; a group of a token's channels does.
    const OUTPUT_ERROR: f64 = 1e-5;
    let (mut random, seed) = seeded();
    let (tokens, d) = (96, 64);
    let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: d as u32, rope: Rope::none() };
    let [keys, values, queries] = [0; 3].map(|_| normals(&mut random, tokens * d));
    let offset = normals(&mut random, d);
    let moved: Vec<f32> = keys.iter().enumerate().map(|(i, x)| x + 4.0 * offset[i % d]).collect();
    let attend = |keys: &[f32]| attention_exact(&shape, keys, &values, &queries, tokens);
    let (plain, shifted) = (attend(&keys), attend(&moved));
    let largest = plain.iter().zip(&shifted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(largest < OUTPUT_ERROR, "the output moved by {largest}. WGKV_SEED={seed}");
    let (own, with) = (squared(&stored(&keys, 2, 64), &keys), squared(&stored(&moved, 2, 64), &moved));
    assert!(with > 4.0 * own, "an offset of 4 costs {with} against {own}. WGKV_SEED={seed}");
    // Across tokens, channel by channel, it costs nothing but roundings of scale and zero. An
    // integer zero costs more or less by where in a step it falls, which the offset moves. Of 769
    // draws three were beyond 0.05, so that the deviation is about 0.017; this is seven of them.
    const ZERO_MOVED: f64 = 0.12;
    let turned = |rows: &[f32]| -> Vec<f32> { (0..d * tokens).map(|i| rows[i % tokens * d + i / tokens]).collect() };
    let (own, with) = [&keys, &moved].map(|rows| squared(&stored(&turned(rows), 2, tokens), &turned(rows))).into();
    assert!((with / own - 1.0_f64).abs() < ZERO_MOVED, "{with} against {own}. WGKV_SEED={seed}");
}
