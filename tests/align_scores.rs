//! `align_scores` computes the scores of decoding rows from the planes of the keys that
//! `align_plan` chose.
//!
//! - It agrees with its twin on the same query codes, plans and pages up to the rounding of f32
//!   sums, and so do what tokens' values weigh, four together, and what scores may be off by;
//!   tokens that are not visible are hidden; scores of no page are not written.
//! - Loads that it counts are those of the levels it was given.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::kernel::align_plan::SUM_ENTRIES;
use wgkv::low_level::reference;
use wgkv_testing::*;

/// Error of a score, in log2 units: 2^-24 for each of up to 256 additions, of partial sums of less
/// than 40 in these tests, as a random walk with six standard deviations: 6 sqrt(256) 0.29 of the
/// last place of 40.
const SCORE_ERROR: f32 = 1e-4;

/// Of a sum of weights: each is off by the error of its score times ln 2, and `exp2`'s.
const SUM_ERROR: f32 = 2e-4;

#[test]
fn align_scores_agrees_with_its_reference() {
    let gpu = gpu();
    for case in aligned_cases(&gpu) {
        let (walk, taken) = decoded(&gpu, case);
        let words = taken.step.words();
        let [scores, plans] = &taken.aligned;
        let mut twin = vec![f32::from_bits(POISON); scores.len()];
        let mut items = 0;
        for (((params, n), c), pages) in words.align_scores.iter().zip(&walk.slab_constants).zip(&taken.after.pages) {
            let positions = floats(&taken.positions);
            reference::align_scores(params, c, *n, &words.tables, &walk.turns, &taken.scratch[1], plans, pages, positions, &mut twin);
            items += n;
        }
        assert!(items > 0, "the case has packed pages");
        let c = &walk.constants;
        let (shape, heads) = (&walk.case.shape, c.heads as usize);
        let used = |i: usize| {
            // Places of a block that have no head hold anything.
            let block = match i / heads {
                entry if entry < c.score_sums as usize => entry / 128,
                entry if entry < c.score_quads as usize => (entry - c.score_sums as usize) / SUM_ENTRIES as usize,
                entry => (entry - c.score_quads as usize) / 32,
            } % c.blocks as usize;
            block * heads + i % heads < shape.share() as usize
        };
        let numbers = floats(scores);
        // Places without a head are made of poisoned queries: what is made of those may look like
        // poison, or not.
        for (i, (got, want)) in numbers.iter().zip(&twin).enumerate().filter(|(i, _)| used(*i)) {
            let name = format!("{}: entry {i}", walk.case.why);
            if want.to_bits() == POISON {
                assert_eq!(got.to_bits(), POISON, "{name} was written");
            } else {
                let sum = (c.score_sums as usize..c.score_quads as usize).contains(&(i / heads));
                match (i / heads).wrapping_sub(c.score_sums as usize) % SUM_ENTRIES as usize {
                    1..=3 if sum => close(&name, &[*got], &[*want], 0.0, SUM_ERROR, walk.seed),
                    4.. if sum => assert_eq!(got, want, "{name}: loads"),
                    _ => close(&name, &[*got], &[*want], SCORE_ERROR, f32::EPSILON, walk.seed),
                }
            }
        }
    }
}
