//! The choice of tokens: the largest score, and draws from candidates.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::{GPU, buffer, read, run, seed};
use wgkv_decoder::kernel::sample;
use wgkv_decoder::kernel::sample::{SampleParams, SampleRow};
use wgkv_decoder::{Sampling, reference};

/// What score and noise may be off by together: WGSL allows 3 units in the last place for a
/// logarithm outside of [0.5, 2] and 2^-21 absolute within, twice one after another, and what they
/// are of is at most 32.
const NOISE_ERROR: f64 = 64.0 / 2_097_152.0;

/// What the mass of candidates may be off by, as a share: exp is allowed 3 + 2 |x| units, of an x
/// that is at most 100 below 0 where it matters, and f32 sums of 200 terms a lane.
const MASS_ERROR: f64 = 1e-4;

fn chosen(scores: &[f32], vocabulary: usize, rows: &[SampleRow]) -> Vec<u32> {
    let params = SampleParams { vocabulary: vocabulary as u32, first: 0, pad: [0; 2] };
    let out = buffer(&GPU, bytemuck::cast_slice(&vec![u32::MAX; rows.len()]));
    let buffers = [buffer(&GPU, bytemuck::bytes_of(&params)), buffer(&GPU, bytemuck::cast_slice(scores)), buffer(&GPU, bytemuck::cast_slice(rows))];
    run(&GPU, &sample::variant(), &[&buffers[0], &buffers[1], &buffers[2], &out], [rows.len() as u32, 1, 1]);
    read(&GPU, &out)[..rows.len()].to_vec()
}

#[test]
fn without_a_temperature_the_first_of_the_largest_scores_is_chosen() {
    let random = &mut StdRng::seed_from_u64(seed());
    for vocabulary in [2, 300, 8192, 20_001] {
        let rows = 5;
        let mut scores: Vec<f32> = (0..rows * vocabulary).map(|_| (40.0 * random.random::<f32>() - 30.0).round()).collect();
        // A row of scores that are all alike, and one of infinities.
        scores[..vocabulary].fill(-7.5);
        scores[vocabulary..2 * vocabulary].fill(f32::NEG_INFINITY);
        let want: Vec<u32> = scores.chunks(vocabulary).map(|row| (0..vocabulary).fold(0, |best, n| if row[n] > row[best] { n } else { best }) as u32).collect();
        assert_eq!(chosen(&scores, vocabulary, &vec![Sampling::GREEDY.row(3); rows]), want, "{vocabulary}");
    }
}

#[test]
fn a_draw_is_the_largest_of_score_and_noise_among_the_candidates() {
    let random = &mut StdRng::seed_from_u64(seed());
    for round in 0..60 {
        let vocabulary = [64, 1000, 8192][round % 3];
        let scores: Vec<f32> = (0..vocabulary).map(|_| 12.0 * random.random::<f32>() - 6.0).collect();
        let temperature = [0.3, 1.0, 2.5][round % 3];
        let (top_p, top_k) = [(1.0, 0), (0.8, 0), (1.0, 7), (0.5, 20)][round % 4];
        let sampling = Sampling { temperature, top_p, top_k, seed: random.random() };
        let draw = random.random_range(0..1000);
        let row = sampling.row(draw);
        let got = chosen(&scores, vocabulary, &[row])[0] as usize;

        let mut order: Vec<usize> = (0..vocabulary).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        // Scores that are equal count as one: all of them are candidates, or none.
        let with_equals = |order: &[usize], count: usize| order.iter().take_while(|n| scores[**n] >= scores[order[count.max(1) - 1]]).count();
        if top_k > 0 {
            order.truncate(with_equals(&order, top_k as usize));
        }
        let rate = f64::from(row.inverse_temperature);
        let mass = |n: usize| ((f64::from(scores[n]) - f64::from(scores[order[0]])) * rate).exp();
        let total: f64 = order.iter().map(|n| mass(*n)).sum();
        // The share is reached by a token within the error of the sums; either side may count.
        let (mut kept, mut sure, mut possible) = (0.0, 0, 0);
        for n in &order {
            if kept < f64::from(top_p) * total * (1.0 - MASS_ERROR) || top_p >= 1.0 {
                sure += 1;
            }
            if kept < f64::from(top_p) * total * (1.0 + MASS_ERROR) {
                possible += 1;
            }
            kept += mass(*n);
        }
        let possible = with_equals(&order, possible);
        assert!(order[..possible].contains(&got), "round {round}: token {got} is no candidate");
        let value = |n: usize| f64::from(scores[n]) * rate + reference::noise(row.seed, row.draw, n as u32);
        let best = order[..sure].iter().map(|n| value(*n)).fold(f64::NEG_INFINITY, f64::max);
        assert!(value(got) >= best - NOISE_ERROR, "round {round}: {got} has {}, the largest is {best}", value(got));
    }
}

#[test]
fn draws_follow_the_probabilities_and_depend_on_seed_and_number() {
    let seed = seed();
    let (vocabulary, rows) = (16, 4096);
    let random = &mut StdRng::seed_from_u64(seed);
    let one: Vec<f32> = (0..vocabulary).map(|_| 3.0 * random.random::<f32>()).collect();
    let scores: Vec<f32> = one.iter().copied().cycle().take(rows * vocabulary).collect();
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed };
    let draws: Vec<SampleRow> = (0..rows as u32).map(|n| sampling.row(n)).collect();
    let tokens = chosen(&scores, vocabulary, &draws);
    assert_eq!(tokens, chosen(&scores, vocabulary, &draws), "the same seed draws the same");
    let other = Sampling { seed: seed ^ 1, ..sampling };
    assert_ne!(tokens, chosen(&scores, vocabulary, &(0..rows as u32).map(|n| other.row(n)).collect::<Vec<_>>()));
    let total: f64 = one.iter().map(|x| f64::from(*x).exp()).sum();
    // Pearson's statistic of 15 degrees of freedom exceeds 60 once in four million.
    let statistic: f64 = (0..vocabulary)
        .map(|n| {
            let want = rows as f64 * f64::from(one[n]).exp() / total;
            (tokens.iter().filter(|token| **token == n as u32).count() as f64 - want).powi(2) / want
        })
        .sum();
    assert!(statistic < 60.0, "{statistic}");
}
