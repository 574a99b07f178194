//! `align_plan` chooses the planes that decoding reads of the packed keys and values.
//!
//! - It agrees with its twin on the same queries, scores and pages: levels of channels, thresholds,
//!   exponents. A weight that is within f32's rounding of a quarter of a binade may be counted
//!   beside it, and move a threshold by one: that is rare, and counted.
//! - Under a budget the levels' errors, summed in f64 for every query head of a reading, stay
//!   within it, and a budget a little larger than what the next threshold costs is not needed: the
//!   threshold is the largest.
//! - Numbers that are not finite in a query read everything.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::aligned::Criterion;
use wgkv::low_level::kernel::align_plan::*;
use wgkv::low_level::reference::{self, aligned::Planes};
use wgkv::{Bits, Format};
use wgkv_testing::*;

/// Relative error of a sum of weights, or of one over it: `exp2`'s of each weight, and a
/// division's.
const SUM_ERROR: f32 = 2e-5;

/// Share of the plans whose threshold or exponent may be the next.
const NEXT: f64 = 0.1;

/// What the kernel's f32 sums and its factor of 1.00001 leave of a budget.
const BUDGET_ERROR: f64 = 1e-4;

/// Returns the plans of a taken step as the twin makes them.
fn twin(walk: &Walk, taken: &Taken) -> Vec<u32> {
    let words = taken.step.words();
    let [scores, plans] = &taken.aligned;
    let mut twin = vec![POISON; plans.len()];
    let numbers = floats(scores);
    for keys in [true, false] {
        for (((params, rows), c), pages) in words.align_plan.iter().zip(&walk.slab_constants).zip(&taken.after.pages) {
            let params = params[usize::from(!keys)];
            reference::align_plan(&params, c, *rows, keys, &words.tables, &taken.scratch[1], numbers, floats(&taken.scratch[3]), pages, &mut twin);
        }
    }
    twin
}

#[test]
fn align_plan_agrees_with_its_reference() {
    let gpu = gpu();
    let (mut plans, mut next) = (0, 0);
    for case in aligned_cases(&gpu) {
        let (walk, taken) = decoded(&gpu, case);
        let twin = twin(&walk, &taken);
        let got = &taken.aligned[1];
        for (n, (got, want)) in got.chunks_exact(PLAN_WORDS as usize).zip(twin.chunks_exact(PLAN_WORDS as usize)).enumerate() {
            let name = format!("{}: plan {n}. WGKV_SEED={}", walk.case.why, walk.seed);
            if want[0] == POISON {
                assert!(got.iter().all(|word| *word == POISON), "{name} was written, but is of no row");
                continue;
            }
            plans += 1;
            let head = n as u32 / walk.constants.blocks % walk.case.shape.kv_heads;
            let c = walk.plan().slabs(0).iter().zip(&walk.slab_constants).find(|(slab, _)| slab.heads().contains(&head)).unwrap().1;
            let block = n as u32 % c.blocks;
            let heads = c.heads.min(walk.case.shape.share() - block * c.heads) as usize;
            let close_heads = |at: u32, what: &str, error: f32| {
                let [got, want] = [got, want].map(|plan| floats(&plan[at as usize..][..heads]).to_vec());
                close(&format!("{name}: {what}"), &got, &want, 0.0, error, walk.seed);
            };
            let at = |plan: &[u32], e: u32| plan[e as usize];
            let alike = (c.code_planes || at(got, PLAN_KEYS + 3) == at(want, PLAN_KEYS + 3)) && got[..16] == want[..16];
            let off_keys = if c.code_planes { 0 } else { at(got, PLAN_KEYS + 3).abs_diff(at(want, PLAN_KEYS + 3)) };
            if walk.case.alignment.keys == Criterion::Published || alike {
                assert_eq!(got[..16], want[..16], "{name}: levels");
                assert_eq!(got[PLAN_KEYS as usize..][..3], want[PLAN_KEYS as usize..][..3], "{name}: counts");
            }
            if c.code_planes && alike {
                assert_eq!(got[PLAN_KEYS as usize + 3], want[PLAN_KEYS as usize + 3], "{name}: count of what is not read at all");
                for g in 0..c.head_dim / c.key_group {
                    close_heads(PLAN_FILLS + 4 * g, "fills", 0.0);
                    close_heads(PLAN_ERRORS + 4 * g, "errors", SUM_ERROR);
                }
            } else if !c.code_planes {
                assert_eq!(
                    got[PLAN_MAXIMA as usize..][..c.head_dim as usize / 4],
                    want[PLAN_MAXIMA as usize..][..c.head_dim as usize / 4],
                    "{name}: exponents"
                );
                if alike {
                    close_heads(PLAN_BOUND, "bounds", SUM_ERROR);
                }
            }
            close_heads(PLAN_PEAK, "peaks", 0.0);
            close_heads(PLAN_NORM, "norms", SUM_ERROR);
            close_heads(PLAN_FACTOR, "factors", SUM_ERROR);
            let steps = at(got, PLAN_VALUES + 3).abs_diff(at(want, PLAN_VALUES + 3)).max(off_keys);
            let bases = (0..heads as u32).map(|h| at(got, PLAN_BASE + h).abs_diff(at(want, PLAN_BASE + h))).max().unwrap();
            let off = steps.max(bases);
            assert!(off <= 1, "{name}: a threshold or an exponent is off by {off}");
            next += usize::from(off > 0 || !alike);
        }
    }
    println!("{next} of {plans} plans with the next threshold or exponent");
    assert!((next as f64) <= (NEXT * plans as f64).max(1.0), "{next} of {plans}");
}

#[test]
fn budgets_of_keys_are_kept_by_every_query_head() {
    // 7, 13, 20
    let gpu = gpu();
    let mut last = 0;
    for phi in [0.0_f32, 4.0, 32.0, 256.0] {
        let alignment = wgkv::aligned::Alignment::budget(phi, 0.0);
        let (walk, taken) =
            decoded(&gpu, case("budgets of keys", 64, 4, 1, Format::aligned_f16()).alignment(alignment).steps(vec![vec![(0, 300)], vec![(0, 1)]]));
        let plan = &taken.aligned[1][..PLAN_WORDS as usize];
        let d = 64;
        let page_maxima: Vec<Vec<u32>> = (0..walk.plan().pages()).map(|p| maxima(page(walk.plan(), &taken.after.pages, p, 0))).collect();
        let largest: Vec<u32> = (0..d).map(|i| page_maxima.iter().map(|m| m[i]).max().unwrap()).collect();
        let levels: Vec<u32> = (0..d).map(|i| plan[i / 16] >> (2 * (i % 16)) & 3).collect();
        for h in 0..4 {
            let products: Vec<f64> =
                (0..d).map(|i| f64::from(f32::from_bits(taken.scratch[1][4 * i + h]).abs()) * reference::aligned::ulp(largest[i])).collect();
            let cost: f64 = products.iter().zip(&levels).map(|(a, l)| a * Planes::HALF.error(Planes::HALF.dropped(*l))).sum();
            let budget = f64::from(phi) / 2.0 * products.iter().sum::<f64>();
            assert!(cost <= budget * (1.0 + BUDGET_ERROR), "head {h}, phi {phi}: {cost} of {budget}. WGKV_SEED={}", walk.seed);
            let bound = f64::from(f32::from_bits(plan[PLAN_BOUND as usize + h]));
            assert!((bound - cost * std::f64::consts::LN_2).abs() <= 1e-5 * bound, "head {h}: the certificate {bound} of {cost}. WGKV_SEED={}", walk.seed);
        }
        let dropped = levels.iter().sum::<u32>();
        assert!((dropped == 0) == (phi == 0.0), "phi {phi} leaves {dropped} planes unread. WGKV_SEED={}", walk.seed);
        println!("phi {phi}: {dropped} of 128 planes unread");
        last = last.max(dropped);
    }
    assert!(last > 64, "the largest budget leaves most planes unread");
}

#[test]
fn budgets_of_coded_keys_are_kept_by_every_query_head_and_token() {
    // 7, 13, 20
    let gpu = gpu();
    let formats = [rtn(Bits::Eight, Bits::Four, 32), centred(Bits::Eight, Bits::Four, 32)];
    for (format, phi) in formats.into_iter().flat_map(|format| [0.0_f32, 0.25, 1.0, 4.0, 64.0].map(|phi| (format, phi))) {
        let steps = vec![vec![(0, 300)], vec![(0, 1)]];
        let case = case("budgets of coded keys", 64, 4, 1, format).alignment(wgkv::aligned::Alignment::budget(phi, 0.0)).steps(steps);
        let (walk, taken) = decoded(&gpu, case);
        let plan = &taken.aligned[1][..PLAN_WORDS as usize];
        let level = |quad: usize| plan[quad / 16] >> (2 * (quad % 16)) & 3;
        for h in 0..4 {
            // The query's scale is a factor on both sides.
            let code = |i: usize| f64::from(taken.scratch[1][i / 4 * 4 + h].to_le_bytes()[i % 4] as i8);
            for t in 0..301 {
                let scales = key(page(walk.plan(), &taken.after.pages, records(&taken)[0].pages[t as usize / 128], 0), t % 128).scales;
                let sum = |of: &dyn Fn(usize) -> f64| (0..64).map(|i| f64::from(scales[i / 32]) * code(i).abs() * of(i)).sum::<f64>();
                let cost = sum(&|i| Planes::BYTE.error(Planes::BYTE.dropped(level(i / 4))));
                let budget = f64::from(phi) / 2.0 * sum(&|_| 1.0);
                assert!(cost <= budget * (1.0 + BUDGET_ERROR), "head {h}, token {t}, phi {phi}: {cost} of {budget}. WGKV_SEED={}", walk.seed);
            }
        }
        let dropped = (0..16).map(level).sum::<u32>();
        println!("{format}, phi {phi}: {dropped} of 48 planes of quads unread");
        assert!(phi < 64.0 || dropped > 16, "{format}: the largest budget leaves many planes unread");
    }
}

#[test]
fn a_query_that_is_not_finite_reads_everything() {
    // 10
    let gpu = gpu();
    let half = Format::aligned_f16();
    let budget = wgkv::aligned::Alignment::budget(64.0, 64.0);
    let [code, centred] = [hadamard(Bits::Four, Bits::Eight, 64), centred(Bits::Four, Bits::Eight, 64)];
    for (format, alignment) in [(half, wgkv::aligned::Alignment::PUBLISHED), (half, budget), (code, budget), (centred, budget)] {
        for broken in [f32::NAN, f32::INFINITY] {
            let mut walk = Walk::new(&gpu, case("a broken query", 64, 1, 1, format).alignment(alignment));
            walk.take(&[(0, 200), (1, 1)], false);
            let mut rows = spread(&mut walk, &[(0, 1)]);
            rows[2][5] = broken;
            let taken = walk.take_rows(&[(0, 1)], rows, true);
            // Rotary pairs take their partner with them; channels of zero weigh nothing, and none
            // of these is zero.
            assert_eq!(taken.aligned[1][..4], [0; 4], "{alignment} with {broken}");
            assert!(floats(&taken.output).iter().all(|x| x.is_nan()), "{alignment} with {broken}");
        }
    }
}
