//! `position` makes, for every page of a decoding row, the terms of what the mean of the keys adds
//! to its scores as far as it turns slowly.
//!
//! - The terms agree with the twin's up to f32's rounding, and no others are written.
//! - Rows of any pass have those of their own query and position.
//! - With the waves that attend_split adds (part positions), they are the score of the query with
//!   the turned mean, as f64 has it: also far from the beginning, where it must hold to a
//!   thousandth of a logit.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::kernel::position::TERMS;
use wgkv::low_level::reference::{self, positions::positions, turn_exact};
use wgkv_testing::*;

/// Relative to the length of a term's addends: 3 roundings of the turn to the query's position, 3
/// of each of four products of a pair by another (that turn, the mean, the turn to the middle, that
/// to the page), one of the scale, and two of each product and sum, for up to 64 pairs, of 2^-24
/// each, twice since both sides make them.
const TERM_ERROR: f32 = 2.0 * (3.0 + 4.0 * 3.0 + 1.0 + 2.0 * 8.0) / 16_777_216.0;

/// Thousandths of a logit that the closed form may be off, by the length of query times mean over
/// sqrt(head_dim) that the tests draw: what a logit of a real model is at most, tens.
const LOGIT_ERROR: f64 = 1e-3;

fn cases() -> Vec<Case> {
    use Bits::*;
    let steps = vec![vec![(0, 300), (1, 9), (2, 140)], vec![(2, 1), (0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(steps.clone());
    vec![
        of("a share of 4", 128, 8, 2, centred(Two, Two, 128)),
        of("a share of 7, interleaved pairs, f16 rows", 64, 14, 2, centred(Two, Two, 64)).element(Element::F16).rope(Rope::new(10_000.0, 64).interleaved()),
        of("queries as codes and as f32", 128, 8, 4, centred(Two, Two, 128)).three_ways(),
        of("13 pairs, none fast, a share of 1", 80, 2, 2, centred(Four, Two, 128))
            .protection(protect(4, 16))
            .rope(Rope::none().with_frequencies((0..13).map(|p| 0.05 / f64::from(1 << p)).collect())),
        of("a head of 192", 192, 4, 1, centred(Four, Four, 64)),
        of("the largest head, a share of 4", 512, 4, 1, centred(Four, Four, 128)),
        of("a head of 256; bf16 rows", 256, 2, 1, centred(Four, Four, 128)).element(Element::Bf16),
        of("queries that come turned", 64, 8, 2, centred(Two, Four, 64)).turned().score_scale(0.7),
        of("sequences that slid", 64, 2, 1, centred(Two, Four, 64)).keep(20),
    ]
}

#[test]
fn position_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases() {
        let mut walk = Walk::new(&gpu, case);
        walk.take(&walk.case.steps[0].clone(), false);
        let taken = walk.take(&walk.case.steps[1].clone(), true);
        let words = taken.step.words();
        let (params, items) = &words.position[0];
        assert!(*items > 0, "a decoding row has pages");
        let mut twin = vec![f32::from_bits(POISON); taken.positions.len()];
        reference::position(params, &walk.constants, *items, &words.tables, &walk.turns, &taken.queries.words, &taken.after.marks, &mut twin);
        let got = floats(&taken.positions);
        // A query of length 3 sqrt(head_dim) or less, its means of 2 sqrt(head_dim): a pair's
        // addends are of their product over sqrt(head_dim).
        let size = 6.0 * (walk.case.shape.head_dim as f32).sqrt() * 3.0;
        for (i, (got, want)) in got.iter().zip(&twin).enumerate() {
            assert_eq!(got.to_bits() == POISON, want.to_bits() == POISON, "{}: the kernel and its twin write different places; number {i}", walk.case.why);
            if want.to_bits() != POISON {
                close(&format!("{}: number {i}", walk.case.why), &[*got], &[*want], TERM_ERROR * size, TERM_ERROR, walk.seed);
            }
        }
    }
}

#[test]
fn rows_of_any_pass_have_terms_of_their_own() {
    let gpu = gpu();
    let mut whole = Walk::new(&gpu, cases().remove(1));
    let mut parts = Walk::new(&gpu, whole.case.clone());
    parts.cache = Cache::new(&gpu, whole.plan().to_builder().query_rows(2).build(gpu.capability()).unwrap()).unwrap();
    parts.sequences = whole.sequences.iter().map(|_| parts.cache.begin().unwrap()).collect();
    // In the second step a prefilling row shares the first decoding one's pass; the last decoding
    // row has a pass of its own.
    for (chunks, passes) in [(&whole.case.steps[0].clone(), 225), (&vec![(1, 3), (2, 1), (0, 1)], 3)] {
        let rows = whole.draw(chunks.iter().map(|(_, tokens)| tokens).sum());
        let want = whole.take_rows(chunks, rows.clone(), true);
        let got = parts.take_rows(chunks, rows, true);
        assert_eq!((want.step.words().position.len(), got.step.words().position.len()), (1, passes));
        assert!(got.output == want.output, "{passes} passes give another output. WGKV_SEED={}", whole.seed);
    }
}

#[test]
fn the_closed_form_holds_to_a_thousandth_of_a_logit_far_out() {
    let gpu = gpu();
    let random = &mut generator();
    let d = 128_usize;
    let ropes = [
        Rope::new(10_000.0, 128),
        Rope::new(500_000.0, 128),
        Rope::new(10_000.0, 128).interleaved(),
        Rope::llama3(500_000.0, 128, 8.0, 1.0, 4.0, 8192),
        Rope::new(500_000.0, 64),
    ];
    for rope in ropes {
        let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 128, rope: rope.clone() };
        // Logits of about 30 at the most: query and mean are alike where they point.
        let means: Vec<f32> = normals(random, d).iter().map(|x| 1.5 * x).collect();
        let query: Vec<f32> = means.iter().map(|x| x + 0.5 * normal(random)).collect();
        let learned = Means::new(&shape, "test", vec![[means.clone(), vec![1.0; d], vec![0.0; d]]]).unwrap();
        let format = centred(Bits::Two, Bits::Two, 128);
        let plan = Plan::builder(shape.clone(), format)
            .protection(Protection::NONE)
            .capacity(Capacity::tokens(1, 131_072))
            .learned(learned)
            .build(gpu.capability())
            .unwrap();
        let turns = reference::turns(&plan);
        let constants = reference::Constants::of(&plan, &plan.slabs(0)[0]);
        for position in [130_u32, 8191, 65_535, 131_071] {
            // What kernel `query` makes of the query, by its twin; then the terms of the pages to
            // be looked at.
            let exact: Vec<f64> = query.iter().map(|x| f64::from(*x)).collect();
            let turned = turn_exact(&rope, &exact, position);
            let params = kernel::query::QueryParams { positions_at: 0, row_first: 0, query_heads: 1, kv_heads: 1, groups_at: 1, pad: [0; 3] };
            let stride = (constants.head_dim + 4 * constants.position_quads) as usize;
            let mut codes = vec![0; constants.query_stride as usize];
            let words: Vec<u32> = query.iter().map(|x| x.to_bits()).collect();
            let marks: Vec<u32> = [means.clone(), vec![1.0; d], vec![0.0; d]].concat().iter().map(|x| x.to_bits()).collect();
            reference::query(&params, &constants, 1, &[position, 128], &turns, &words, &marks, &mut vec![0.0; stride], &mut codes);
            let last = position / 128;
            for n in [0, last / 2, last] {
                let params = kernel::position::PositionParams { items_at: 1, positions_at: 0, row_first: 0, query_heads: 1, kv_heads: 1, pad: [0; 3] };
                let mut terms = vec![0.0; (TERMS * constants.position_places) as usize];
                reference::position(&params, &constants, 1, &[position, 0, n, n + 1, 0], &turns, &words, &marks, &mut terms);
                let term = |k: usize| terms[k * constants.position_places as usize + n as usize];
                let got = positions(&constants, &turns, n, |entry| f32::from_bits(codes[entry as usize]), term);
                let plain: Vec<f64> = means.iter().map(|x| f64::from(*x)).collect();
                // Channels that do not turn add the same everywhere, and are left out.
                let still = 2 * rope.frequencies().len();
                for (t, got) in got.iter().enumerate() {
                    let key = turn_exact(&rope, &plain, 128 * n + t as u32);
                    let want = turned[..still].iter().zip(&key[..still]).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt();
                    let logit = f64::from(*got) * std::f64::consts::LN_2;
                    assert!((logit - want).abs() < LOGIT_ERROR, "{rope:?}: token {t} of page {n}, seen from {position}: {logit}, should be {want}");
                }
            }
        }
    }
}
