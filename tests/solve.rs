//! Choosing a candidate for every unit within a budget: what each costs, what errs least, and the
//! published rule. The numbers in brackets are those of docs/testing.md's table of KV-AdaQuant
//! (2502.15075).
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use wgkv::Error;
use wgkv::bits::solve::{Candidate, Choice, Fill, Ties, exact, favours_values, norm_bits, norm_groups, relax};
use wgkv_testing::{normal, seeded};

/// Sums of the same errors in another order differ by rounding: a few units in the last place for
/// 64 of them.
const ROUNDING: f64 = 1e-12;

const FILLS: [Fill; 2] = [Fill::Nested, Fill::Skip];

/// Distortion of asymmetric quantization in groups of 64, by bits, on normal numbers of variance 1.
/// 0 bits keep nothing.
const DISTORTION: [(u64, f64); 7] = [(0, 1.0), (1, 2.741), (2, 0.2029), (3, 0.0371), (4, 0.00805), (6, 0.00046), (8, 0.00003)];

/// Norms and what the published rule makes of them, with widths 1, 1.58, 2, 4, 6, 8, and with
/// groups of 16 to 256 that are 64 on average (the authors' notebook).
struct Golden {
    name: &'static str,
    keys: &'static str,
    values: &'static str,
    bits: [Bits; 3],
    /// Of keys, of values.
    groups: [&'static str; 2],
}

struct Bits {
    average: f64,
    used: &'static str,
    keys: &'static str,
    values: &'static str,
}

const WIDTHS: [f64; 6] = [1.0, 1.58, 2.0, 4.0, 6.0, 8.0];

const GOLDEN: &[Golden] = &[
    Golden {
        name: "Llama3.1-8B-it, spectral",
        keys: "18.715 9.468 7.193 7.505 7.610 7.514 8.170 8.451 7.408 7.036 6.825 6.796 7.927 7.272 7.224 7.691 \
               8.174 7.509 7.836 7.182 7.245 7.060 6.683 6.762 6.469 6.428 6.982 7.080 7.189 7.708 7.200 8.187",
        values: "1.949 1.303 1.040 1.014 1.163 1.019 1.105 1.180 1.121 1.358 1.274 1.288 1.278 1.160 1.107 1.270 \
                 1.152 1.290 1.195 1.276 1.304 1.328 1.374 1.631 1.555 1.735 1.646 1.921 1.947 2.028 2.579 2.753",
        bits: [
            Bits {
                average: 2.0,
                used: "1.9959",
                keys: "4 4 2 4 4 4 4 4 4 2 2 2 4 2 2 4 4 4 4 2 2 2 2 2 2 2 2 2 2 4 2 4",
                values: "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1.58 1.58 1.58",
            },
            Bits {
                average: 3.0,
                used: "2.9953",
                keys: "6 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
                values: "2 2 1.58 1.58 1.58 1.58 1.58 1.58 1.58 2 1.58 2 1.58 1.58 1.58 1.58 1.58 2 1.58 1.58 2 2 2 2 2 2 2 2 2 2 4 4",
            },
            Bits {
                average: 4.0,
                used: "4.0000",
                keys: "6 6 6 6 6 6 6 6 6 6 4 4 6 6 6 6 6 6 6 6 6 6 4 4 4 4 6 6 6 6 6 6",
                values: "4 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 4 4 4 4 4",
            },
        ],
        groups: [
            "32 32 64 64 32 32 32 32 64 64 64 64 32 64 64 32 32 32 32 64 64 64 64 64 64 64 64 64 64 32 64 32",
            "64 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 128 64 64 64 64 64",
        ],
    },
    Golden {
        name: "Llama3.1-8B-it, frobenius",
        keys: "55.171 56.173 57.375 57.226 56.432 56.597 56.607 57.089 56.189 55.899 56.589 55.998 54.623 56.168 55.652 54.658 \
               55.243 55.228 56.553 54.184 53.377 53.768 52.451 52.208 49.714 49.570 50.970 50.320 47.913 50.234 43.792 48.432",
        values: "14.796 18.306 15.143 17.819 19.114 15.979 17.298 17.078 18.007 20.852 18.026 17.709 20.772 19.344 19.161 20.871 \
                 19.703 21.599 19.730 20.795 21.912 22.540 23.773 25.026 27.292 27.422 28.622 30.602 31.650 32.794 38.970 34.410",
        bits: [
            Bits {
                average: 2.0,
                used: "1.9994",
                keys: "2 2 4 4 4 4 4 4 4 2 4 2 2 2 2 2 2 2 4 2 2 2 2 2 2 2 2 2 2 2 2 2",
                values: "1 1 1 1 1 1 1 1 1 1.58 1 1 1.58 1 1 1.58 1.58 1.58 1.58 1.58 1.58 1.58 1.58 1.58 1.58 2 2 2 2 2 2 2",
            },
            Bits {
                average: 3.0,
                used: "2.9984",
                keys: "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
                values: "1.58 2 1.58 2 2 1.58 1.58 1.58 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 4 2",
            },
            Bits {
                average: 4.0,
                used: "4.0000",
                keys: "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
                values: "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
            },
        ],
        groups: [
            "64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64",
            "64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64",
        ],
    },
    Golden {
        name: "Llama3.2-1B-it, spectral",
        keys: "16.354 8.511 6.969 8.200 8.147 8.157 8.569 7.631 8.127 8.346 7.291 8.874 8.106 7.387 6.877 7.901",
        values: "1.005 0.897 0.985 1.029 1.017 1.011 1.063 1.187 1.006 1.003 1.169 1.036 1.093 1.228 2.687 2.091",
        bits: [
            Bits { average: 2.0, used: "2.0000", keys: "4 4 2 4 4 4 4 2 2 4 2 4 2 2 2 2", values: "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1" },
            Bits {
                average: 3.0,
                used: "2.9937",
                keys: "6 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
                values: "1.58 1.58 1.58 1.58 1.58 1.58 1.58 2 1.58 1.58 2 1.58 2 2 4 2",
            },
            Bits { average: 4.0, used: "4.0000", keys: "6 6 4 6 6 6 6 6 6 6 6 6 6 6 4 6", values: "2 2 2 2 2 2 2 2 2 2 2 2 2 2 4 4" },
        ],
        groups: ["32 32 64 32 64 32 32 64 64 32 64 32 64 64 64 64", "128 128 128 128 128 128 128 128 128 128 128 128 128 128 64 64"],
    },
    Golden {
        name: "Llama3.2-1B-it, frobenius",
        keys: "47.847 40.665 38.305 37.334 36.779 37.134 38.393 38.053 38.470 36.961 34.641 37.607 36.166 33.400 30.630 30.340",
        values: "9.397 9.963 11.747 13.874 13.348 11.255 13.116 13.670 12.932 14.190 12.647 13.643 14.551 17.188 22.670 21.714",
        bits: [
            Bits { average: 2.0, used: "1.9969", keys: "4 4 4 2 2 2 4 2 4 2 2 2 2 2 2 2", values: "1 1 1 1.58 1 1 1 1.58 1 1.58 1 1.58 1.58 2 2 2" },
            Bits { average: 3.0, used: "3.0000", keys: "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4", values: "2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2" },
            Bits { average: 4.0, used: "4.0000", keys: "6 6 4 4 4 4 4 4 4 4 4 4 4 4 4 4", values: "2 2 4 4 4 4 4 4 4 4 4 4 4 4 4 4" },
        ],
        groups: ["32 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64", "128 128 64 64 64 64 64 64 64 64 64 64 64 64 64 64"],
    },
    Golden {
        name: "Qwen3-0.6B, spectral",
        keys: "8.109 4.145 4.626 3.283 4.010 3.503 3.206 3.574 6.540 3.065 3.889 3.594 6.132 5.111 \
               5.142 2.957 2.894 2.783 2.391 2.561 2.903 2.682 2.707 2.731 3.299 3.141 3.200 5.157",
        values: "1.923 2.439 2.439 2.421 2.128 2.644 2.162 2.130 3.756 2.189 2.257 2.310 4.108 3.943 \
                 3.421 2.166 2.120 2.017 2.181 2.303 2.220 2.637 2.374 2.312 2.318 3.008 2.883 2.545",
        bits: [
            Bits {
                average: 2.0,
                used: "1.9929",
                keys: "4 2 2 2 2 2 2 2 4 2 2 2 4 2 2 2 2 2 1.58 2 2 2 2 2 2 2 2 4",
                values: "1.58 1.58 1.58 1.58 1.58 2 1.58 1.58 2 1.58 1.58 1.58 2 2 2 1.58 1.58 1.58 1.58 1.58 1.58 2 1.58 1.58 1.58 2 2 2",
            },
            Bits {
                average: 3.0,
                used: "3.0000",
                keys: "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 2 2 2 4 2 2 2 4 4 4 4",
                values: "2 2 2 2 2 2 2 2 4 2 2 2 4 4 4 2 2 2 2 2 2 2 2 2 2 4 4 2",
            },
            Bits {
                average: 4.0,
                used: "4.0000",
                keys: "6 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
                values: "2 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
            },
        ],
        groups: [
            "32 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64",
            "128 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 128 64 64 64 64 64 64 64 64 64 64",
        ],
    },
    Golden {
        name: "Qwen3-0.6B, frobenius",
        keys: "31.368 29.649 28.729 29.472 28.883 28.552 28.246 26.903 27.599 27.270 27.603 27.256 26.295 24.856 \
               24.759 23.372 24.352 23.806 23.269 23.471 25.374 25.947 26.573 25.825 25.924 24.290 23.885 29.219",
        values: "27.268 29.107 28.570 30.812 30.287 28.781 28.851 28.355 28.297 27.667 27.634 26.298 26.979 26.920 \
                 25.434 26.475 26.306 27.240 26.020 26.449 27.688 29.503 29.529 28.779 28.548 31.488 30.266 33.087",
        bits: [
            Bits {
                average: 2.0,
                used: "2.0000",
                keys: "2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2",
                values: "2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2",
            },
            Bits {
                average: 3.0,
                used: "3.0000",
                keys: "4 4 4 4 4 4 4 2 4 2 4 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 4",
                values: "2 4 4 4 4 4 4 4 4 4 4 2 2 2 2 2 2 2 2 2 4 4 4 4 4 4 4 4",
            },
            Bits {
                average: 4.0,
                used: "4.0000",
                keys: "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
                values: "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
            },
        ],
        groups: [
            "64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64",
            "64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64 64",
        ],
    },
];

fn numbers(text: &str) -> Vec<f64> {
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

/// Returns K0, V0, K1, V1, and so on.
fn interleave(keys: &[f64], values: &[f64]) -> Vec<f64> {
    assert_eq!(keys.len(), values.len());
    keys.iter().zip(values).flat_map(|(k, v)| [*k, *v]).collect()
}

impl Golden {
    fn norms(&self) -> Vec<f64> {
        interleave(&numbers(self.keys), &numbers(self.values))
    }
}

/// Returns units whose error is `norm² 4^-bits`, and whose cost is the bits.
fn powers(norms: &[f64], bits: &[u64]) -> Vec<Vec<Candidate>> {
    norms.iter().map(|norm| bits.iter().map(|&b| Candidate { cost: b, error: norm * norm * 0.25_f64.powi(b as i32) }).collect()).collect()
}

/// Draws units of one quantizer, whose sensitivities are log-normal; `noise` is how far a unit
/// strays from the table.
fn distorted(random: &mut StdRng, units: usize, bits: &[u64], noise: f64) -> Vec<Vec<Candidate>> {
    let table: Vec<_> = DISTORTION.into_iter().filter(|(b, _)| bits.contains(b)).collect();
    let mut factor = |spread: f64| (spread * f64::from(normal(random))).exp();
    let mut unit = || {
        let scale = factor(1.5);
        table.iter().map(|&(cost, error)| Candidate { cost, error: scale * error * factor(noise) }).collect()
    };
    (0..units).map(|_| unit()).collect()
}

/// Draws anything that is allowed: equal costs and errors, costs of 0, candidates without any
/// advantage, in any order.
fn anything(random: &mut StdRng, units: usize, candidates: usize) -> Vec<Vec<Candidate>> {
    let scale = 10_f64.powi(random.random_range(-12..=12));
    let (costs, few) = ([3, 20, 1000][random.random_range(0..3)], random.random::<bool>());
    let error = |random: &mut StdRng| if few { f64::from(random.random_range(0_u8..5)) } else { f64::from(normal(random)).exp() };
    let candidate = |random: &mut StdRng| Candidate { cost: random.random_range(0..=costs), error: scale * error(random) };
    let unit = |random: &mut StdRng| (0..random.random_range(1..=candidates)).map(|_| candidate(random)).collect();
    (0..units).map(|_| unit(random)).collect()
}

fn cheapest(units: &[Vec<Candidate>]) -> u64 {
    units.iter().map(|unit| unit.iter().map(|c| c.cost).min().unwrap()).sum()
}

fn dearest(units: &[Vec<Candidate>]) -> u64 {
    units.iter().map(|unit| unit.iter().map(|c| c.cost).max().unwrap()).sum()
}

/// Asserts that a choice has the cost and error that it reports, within the budget.
#[track_caller]
fn consistent(choice: &Choice, units: &[Vec<Candidate>], budget: u64, seed: u64) {
    let picked = || units.iter().zip(&choice.picks).map(|(unit, pick)| unit[*pick]);
    assert_eq!(choice.picks.len(), units.len(), "WGKV_SEED={seed}");
    assert_eq!(choice.cost, picked().map(|c| c.cost).sum::<u64>(), "WGKV_SEED={seed}");
    assert_eq!(choice.error, picked().map(|c| c.error).sum::<f64>(), "WGKV_SEED={seed}");
    assert!(choice.cost <= budget, "{} of {budget}, WGKV_SEED={seed}", choice.cost);
    assert!(0.0 <= choice.bound && choice.bound <= choice.error, "{choice:?}, WGKV_SEED={seed}");
    assert!((0.0..=1.0).contains(&choice.gap()), "{choice:?}, WGKV_SEED={seed}");
    assert!(choice.multiplier >= 0.0, "{choice:?}, WGKV_SEED={seed}");
}

/// Returns the least error of all combinations.
fn all_combinations(units: &[Vec<Candidate>], budget: u64) -> Option<f64> {
    let Some((unit, rest)) = units.split_first() else { return Some(0.0) };
    let least = |c: &Candidate| Some(c.error + all_combinations(rest, budget.checked_sub(c.cost)?)?);
    unit.iter().filter_map(least).reduce(f64::min)
}

/// (1) Costs are whole numbers, and no solver exceeds the budget by one; a budget below the least
/// is refused, not raised.
#[test]
fn no_budget_is_exceeded() {
    let (mut random, seed) = seeded();
    for _ in 0..10_000 {
        let (units, candidates) = (random.random_range(1..=12), random.random_range(1..=8));
        let units = anything(&mut random, units, candidates);
        let least = cheapest(&units);
        let budget = random.random_range(least..=dearest(&units) + 1);
        for choice in [relax(&units, budget, Fill::Nested), relax(&units, budget, Fill::Skip), exact(&units, budget)] {
            consistent(&choice.unwrap(), &units, budget, seed);
        }
        if least > 0 {
            let refused = Err(Error::Capacity { reason: "the cheapest candidates of all units", need: least, have: least - 1 });
            assert_eq!(relax(&units, least - 1, Fill::Nested), refused, "WGKV_SEED={seed}");
            assert_eq!(relax(&units, least - 1, Fill::Skip), refused, "WGKV_SEED={seed}");
            assert_eq!(exact(&units, least - 1), refused, "WGKV_SEED={seed}");
        }

        let norms: Vec<f64> = (0..2 * random.random_range(1..=6)).map(|_| f64::from(normal(&mut random)).exp()).collect();
        let average = random.random_range(1.0..9.0);
        for ties in [Ties::Relative, Ties::Published] {
            let bits = norm_bits(&norms, &WIDTHS, average, ties).unwrap();
            let used: f64 = bits.iter().sum();
            assert!(used <= norms.len() as f64 * average * (1.0 + 1e-9), "{used} bits at {average}, WGKV_SEED={seed}");
        }
        let average = random.random_range(8.0..=128.0);
        let groups = norm_groups(&norms, &[16, 32, 64, 128], average).unwrap();
        let used: f64 = groups.iter().map(|g| 1.0 / f64::from(*g)).sum();
        assert!(used <= norms.len() as f64 / average * (1.0 + 1e-9), "{groups:?} at {average}, WGKV_SEED={seed}");
    }
}

/// (2) No unit has a candidate with a smaller error that fits into what is left, on its hull or
/// not.
#[test]
fn nothing_better_fits_into_what_is_left() {
    let (mut random, seed) = seeded();
    for _ in 0..5000 {
        let units = anything(&mut random, 10, 8);
        let budget = random.random_range(cheapest(&units)..=dearest(&units));
        for choice in [relax(&units, budget, Fill::Skip).unwrap(), exact(&units, budget).unwrap()] {
            for (u, (unit, &pick)) in units.iter().zip(&choice.picks).enumerate() {
                let others = choice.cost - unit[pick].cost;
                let better = unit.iter().find(|c| c.error < unit[pick].error * (1.0 - ROUNDING) && others + c.cost <= budget);
                assert_eq!(better, None, "unit {u} of {units:?} with {choice:?}, WGKV_SEED={seed}");
            }
        }
    }
}

/// (3) With growing budgets, nested choices give no unit less, and errors do not grow; nor do the
/// best ones', nor, by more than what a choice may miss of the best, those that fill the budget.
#[test]
fn more_budget_is_never_worse() {
    let (mut random, seed) = seeded();
    for round in 0..60 {
        let units = if round % 2 == 0 { anything(&mut random, 12, 6) } else { distorted(&mut random, 32, &[0, 2, 3, 4, 6, 8], 0.2) };
        let (least, most) = (cheapest(&units), dearest(&units));
        let mut before: Option<[Choice; 3]> = None;
        for budget in (least..=most).step_by(((most - least) / 200 + 1) as usize).chain([most]) {
            let [nested, skip] = FILLS.map(|fill| relax(&units, budget, fill).unwrap());
            let now = [nested, skip, exact(&units, budget).unwrap()];
            if let Some(before) = &before {
                for (u, unit) in units.iter().enumerate() {
                    let (was, is) = (unit[before[0].picks[u]], unit[now[0].picks[u]]);
                    assert!(was == is || (was.cost < is.cost && was.error > is.error), "unit {u} at {budget}, WGKV_SEED={seed}");
                }
                assert!(now[0].error <= before[0].error, "nested at {budget}, WGKV_SEED={seed}");
                assert!(now[0].multiplier <= before[0].multiplier, "multiplier at {budget}, WGKV_SEED={seed}");
                assert!(now[1].error <= before[1].error * 1.01, "skip at {budget}, WGKV_SEED={seed}");
                assert!(now[2].error <= before[2].error * (1.0 + ROUNDING), "exact at {budget}, WGKV_SEED={seed}");
            }
            assert!(now[1].error <= now[0].error, "skip against nested at {budget}, WGKV_SEED={seed}");
            before = Some(now);
        }
        // In the end, everything is taken.
        let [nested, ..] = before.unwrap();
        let best: f64 = units.iter().map(|unit| unit.iter().map(|c| c.error).reduce(f64::min).unwrap()).sum();
        assert_eq!((nested.error, nested.multiplier, nested.gap()), (best, 0.0, 0.0), "WGKV_SEED={seed}");
    }
}

/// The reference is right where all combinations can be tried.
#[test]
fn exact_is_the_best_of_all_combinations() {
    let (mut random, seed) = seeded();
    for _ in 0..3000 {
        let count = random.random_range(1..=5);
        let units = anything(&mut random, count, 5);
        let budget = random.random_range(cheapest(&units)..=dearest(&units));
        let (choice, best) = (exact(&units, budget).unwrap(), all_combinations(&units, budget).unwrap());
        assert!((choice.error - best).abs() <= ROUNDING * best, "{} for {best}, {units:?}, WGKV_SEED={seed}", choice.error);
        assert_eq!(choice.bound, choice.error);
    }
}

/// (4) The bound is below the best and the best below the choice, which is the best where what is
/// left is filled: costs of a few bits have fewer different sums than the search keeps.
#[test]
fn choices_are_near_the_best_and_the_bound_holds() {
    let (mut random, seed) = seeded();
    let (mut worst, mut rounds) = (0.0_f64, 0);
    for bits in [&[0, 1, 2, 3, 4, 6, 8][..], &[2, 3, 4, 8]] {
        for count in [32, 64] {
            for round in 0..500 {
                let units = distorted(&mut random, count, bits, if round % 2 == 0 { 0.0 } else { 0.3 });
                let budget = (count as f64 * random.random_range(2.0..8.0)) as u64;
                let best = exact(&units, budget).unwrap();
                for fill in FILLS {
                    let choice = relax(&units, budget, fill).unwrap();
                    assert!(choice.bound <= best.error * (1.0 + ROUNDING), "{} for {}, WGKV_SEED={seed}", choice.bound, best.error);
                    assert!(best.error <= choice.error * (1.0 + ROUNDING), "{} for {}, WGKV_SEED={seed}", choice.error, best.error);
                    assert_eq!(choice.multiplier, best.multiplier);
                    if fill == Fill::Skip {
                        (worst, rounds) = (worst.max(choice.error / best.error - 1.0), rounds + 1);
                    }
                }
            }
        }
    }
    println!("above the best: {worst:e} at most, of {rounds} rounds");
    assert!(worst <= ROUNDING, "{worst} above the best, WGKV_SEED={seed}");
}

/// (5) The authors' widths for all models and norms of the table above, by their rule of ties.
#[test]
fn published_widths_are_reproduced() {
    for golden in GOLDEN {
        for Bits { average, used, keys, values } in &golden.bits {
            let bits = norm_bits(&golden.norms(), &WIDTHS, *average, Ties::Published).unwrap();
            assert_eq!(bits, interleave(&numbers(keys), &numbers(values)), "{} at {average}", golden.name);
            assert_eq!(format!("{:.4}", bits.iter().sum::<f64>() / bits.len() as f64), *used, "{} at {average}", golden.name);
        }
    }
}

/// (5) And their group sizes.
#[test]
fn published_group_sizes_are_reproduced() {
    for golden in GOLDEN {
        let groups = norm_groups(&golden.norms(), &[16, 32, 64, 128, 256], 64.0).unwrap();
        let groups: Vec<f64> = groups.into_iter().map(f64::from).collect();
        assert_eq!(groups, interleave(&numbers(golden.groups[0]), &numbers(golden.groups[1])), "{}", golden.name);
    }
}

/// (6) Cases that can be followed by hand; where two are as good, the earlier unit gets more.
#[test]
fn hand_cases() {
    for (norms, bits, average, picks, error) in [
        (&[4.0, 1.0][..], &[2, 3, 4][..], 3.0, &[4, 2][..], 0.125),
        (&[1.0, 1.0], &[2, 3, 4], 3.0, &[3, 3], 0.03125),
        // (4, 2) and (3, 3) are as good.
        (&[2.0, 1.0], &[2, 3, 4], 3.0, &[4, 2], 0.078125),
        (&[1.0, 4.0], &[2, 4, 8], 3.0, &[2, 4], 0.125),
        (&[3.0, 3.0, 3.0, 3.0], &[2, 3, 4], 2.5, &[3, 3, 2, 2], 1.40625),
        // (6, 4) and (8, 2) are as good.
        (&[16.0, 1.0], &[1, 2, 3, 4, 6, 8], 5.0, &[6, 4], 0.06640625),
    ] {
        let units = powers(norms, bits);
        let budget = (average * norms.len() as f64) as u64;
        let picked = |choice: &Choice| choice.picks.iter().map(|pick| bits[*pick]).collect::<Vec<_>>();
        let [nested, skip] = FILLS.map(|fill| relax(&units, budget, fill).unwrap());
        assert_eq!(picked(&skip), picks, "{norms:?}");
        assert_eq!((skip.error, skip.cost), (error, budget), "{norms:?}");
        // In the last case, the first unit's step from 6 to 8 bits would save more than the
        // second's from 3 to 4, but does not fit.
        assert_eq!(picked(&nested), if norms[0] == 16.0 { &[6, 3] } else { picks }, "{norms:?}");
        let best = exact(&units, budget).unwrap();
        assert_eq!((best.error, best.cost), (error, budget), "{norms:?}");
        let widths: Vec<f64> = bits.iter().map(|b| *b as f64).collect();
        for ties in [Ties::Relative, Ties::Published] {
            let bits = norm_bits(norms, &widths, average, ties).unwrap();
            let gone: f64 = norms.iter().zip(&bits).map(|(norm, b)| norm * norm * 0.25_f64.powf(*b)).sum();
            assert_eq!((bits.iter().sum::<f64>(), gone), (budget as f64, error), "{norms:?}");
        }
    }
}

/// The bound takes a part of the step that does not fit, and the multiplier is its slope. Points
/// above the hull are passed over, but fill what is left.
#[test]
fn bound_multiplier_and_filling_by_hand() {
    let unit = |points: &[(u64, f64)]| points.iter().map(|&(cost, error)| Candidate { cost, error }).collect::<Vec<_>>();
    // The middle candidate lies above the line from the first to the last. It comes out of order,
    // with one that is beaten.
    let units = [unit(&[(10, 0.0), (0, 12.0), (6, 9.0), (7, 9.0)]), unit(&[(0, 2.0), (5, 1.0)])];
    let nested = relax(&units, 9, Fill::Nested).unwrap();
    // The first step saves 12 for 10, of which 9 are there.
    assert_eq!((&nested.picks[..], nested.cost, nested.error), (&[1, 0][..], 0, 14.0));
    assert_eq!(nested.multiplier, 1.2);
    assert!((nested.bound - 3.2).abs() < ROUNDING, "{nested:?}");
    assert!((nested.gap() - 10.8 / 14.0).abs() < ROUNDING, "{nested:?}");
    // The second unit's step fits, and leaves 4; but the candidate for 6 is the better way to spend
    // 9.
    let skip = relax(&units, 9, Fill::Skip).unwrap();
    assert_eq!((&skip.picks[..], skip.cost, skip.error), (&[2, 0][..], 6, 11.0));
    assert_eq!((skip.multiplier, skip.bound), (nested.multiplier, nested.bound));
    assert_eq!(skip.error, exact(&units, 9).unwrap().error);
}

/// (7) The unit of errors or norms has no effect; but it has on the published rule.
#[test]
fn scale_changes_nothing() {
    let (mut random, seed) = seeded();
    let factors: Vec<f64> = (-12..=12).map(|power| 10_f64.powi(power)).collect();
    for _ in 0..50 {
        let units = distorted(&mut random, 32, &[0, 2, 3, 4, 8], 0.3);
        let budget = random.random_range(64..256);
        let norms: Vec<f64> = (0..32).map(|_| f64::from(normal(&mut random)).exp()).collect();
        for factor in &factors {
            let scaled: Vec<Vec<Candidate>> = units.iter().map(|unit| unit.iter().map(|c| Candidate { error: c.error * factor, ..*c }).collect()).collect();
            for fill in FILLS {
                let (one, other) = (relax(&units, budget, fill).unwrap(), relax(&scaled, budget, fill).unwrap());
                assert_eq!(one.picks, other.picks, "times {factor}, WGKV_SEED={seed}");
                assert!((one.gap() - other.gap()).abs() < 1e-9, "times {factor}, WGKV_SEED={seed}");
            }
            assert_eq!(exact(&units, budget).unwrap().picks, exact(&scaled, budget).unwrap().picks, "times {factor}, WGKV_SEED={seed}");
            let scaled: Vec<f64> = norms.iter().map(|norm| norm * factor).collect();
            let bits = |norms: &[f64]| norm_bits(norms, &WIDTHS, 3.0, Ties::Relative).unwrap();
            assert_eq!(bits(&norms), bits(&scaled), "times {factor}, WGKV_SEED={seed}");
            let groups = |norms: &[f64]| norm_groups(norms, &[32, 64, 128], 64.0).unwrap();
            assert_eq!(groups(&norms), groups(&scaled), "times {factor}, WGKV_SEED={seed}");
        }
    }
    let bits = |norms, ties| norm_bits(norms, &[2.0, 3.0, 4.0], 3.0, ties).unwrap();
    for ties in [Ties::Relative, Ties::Published] {
        assert_eq!(bits(&[1.0, 10.0], ties), [2.0, 4.0]);
    }
    assert_eq!(bits(&[1e-5, 1e-4], Ties::Relative), [2.0, 4.0]);
    assert_eq!(bits(&[1e-5, 1e-4], Ties::Published), [4.0, 2.0], "its tolerance of 1e-6 takes all gains for equal");
    // Squares that no longer fit a number.
    assert_eq!(bits(&[1e-200, 1e-199], Ties::Relative), [2.0, 4.0]);
    assert_eq!(bits(&[1e200, 1e201], Ties::Relative), [2.0, 4.0]);
}

/// (8) The order of units has no effect where nothing is equal, and equal units get the same.
#[test]
fn order_changes_nothing() {
    let (mut random, seed) = seeded();
    for _ in 0..200 {
        let units = distorted(&mut random, 24, &[0, 2, 3, 4, 8], 0.3);
        let budget = random.random_range(48..192);
        let mut order: Vec<usize> = (0..units.len()).collect();
        order.shuffle(&mut random);
        let shuffled: Vec<Vec<Candidate>> = order.iter().map(|u| units[*u].clone()).collect();
        let moved = |choice: Choice| order.iter().map(|u| choice.picks[*u]).collect::<Vec<_>>();
        for fill in FILLS {
            let picks = relax(&shuffled, budget, fill).unwrap().picks;
            assert_eq!(picks, moved(relax(&units, budget, fill).unwrap()), "WGKV_SEED={seed}");
        }
        assert_eq!(exact(&shuffled, budget).unwrap().picks, moved(exact(&units, budget).unwrap()), "WGKV_SEED={seed}");
    }
    for (pick, bits) in [2, 3, 4, 6, 8].into_iter().enumerate() {
        let units = powers(&[0.3; 10], &[2, 3, 4, 6, 8]);
        for choice in [relax(&units, 10 * bits, Fill::Nested), relax(&units, 10 * bits, Fill::Skip), exact(&units, 10 * bits)] {
            assert_eq!(choice.unwrap().picks, [pick; 10]);
        }
        for norm in [0.0, 1e-9, 0.3, 1e9] {
            let widths = norm_bits(&[norm; 10], &[2.0, 3.0, 4.0, 6.0, 8.0], bits as f64, Ties::Relative).unwrap();
            assert_eq!(widths, [bits as f64; 10], "norms of {norm}");
        }
    }
    for size in [32, 64, 128] {
        for norm in [0.0, 1e-9, 0.3, 1e9] {
            assert_eq!(norm_groups(&[norm; 10], &[32, 64, 128], f64::from(size)).unwrap(), [size; 10], "norms of {norm}");
        }
    }
}

/// (9) Of two units, the one with the larger norm gets more bits by the logarithm of the norms'
/// ratio, as near as widths allow.
#[test]
fn widths_differ_by_the_logarithm_of_norms() {
    let (mut random, seed) = seeded();
    for _ in 0..300 {
        let log = random.random_range(-6.0..6.0_f64);
        let total = random.random_range(16..24);
        for parts in [1, 2, 16, 64] {
            // Bits in parts: fine ones stand for real numbers.
            let candidates = |norm: f64| {
                let bits = |cost: u64| cost as f64 / parts as f64;
                (parts..=24 * parts).map(|cost| Candidate { cost, error: norm * norm * 0.25_f64.powf(bits(cost)) }).collect::<Vec<_>>()
            };
            let units = [candidates(log.exp2()), candidates(1.0)];
            for choice in [relax(&units, total * parts, Fill::Skip).unwrap(), exact(&units, total * parts).unwrap()] {
                let differ = (choice.picks[0] as f64 - choice.picks[1] as f64) / parts as f64;
                assert!((differ - log).abs() <= 1.0 / parts as f64 + 1e-9, "{differ} for {log} in 1/{parts}, WGKV_SEED={seed}");
            }
        }
        let bits = norm_bits(&[log.exp2(), 1.0], &(1..=24).map(f64::from).collect::<Vec<_>>(), total as f64 / 2.0, Ties::Relative).unwrap();
        assert!((bits[0] - bits[1] - log).abs() <= 1.0 + 1e-9, "{bits:?} for {log}, WGKV_SEED={seed}");
    }
}

/// (10) One bit from the least to the greatest number errs more than keeping nothing, and is never
/// chosen.
#[test]
fn one_bit_is_never_chosen() {
    let (mut random, seed) = seeded();
    for _ in 0..500 {
        let units = distorted(&mut random, 16, &[0, 1, 2, 3, 4, 6, 8], 0.1);
        let budget = random.random_range(0..=128);
        for choice in [relax(&units, budget, Fill::Nested), relax(&units, budget, Fill::Skip), exact(&units, budget)] {
            let choice = choice.unwrap();
            assert!(!choice.picks.contains(&1), "{choice:?}, WGKV_SEED={seed}");
        }
    }
}

/// (11) The same choice to the last bit, on any thread.
#[test]
fn choices_are_repeatable() {
    let (mut random, seed) = seeded();
    // Many ties, and costs with more sums than can be kept.
    let near = |random: &mut StdRng, i: u64| Candidate { cost: i * 1_000_000 + random.random_range(0..1000), error: 0.2_f64.powi(i as i32) };
    let tied: Vec<Vec<Candidate>> = (0..64).map(|_| (0..8).map(|i| near(&mut random, i)).collect()).collect();
    for (units, budget) in [(anything(&mut random, 40, 8), None), (tied, Some(200_000_000))] {
        let budget = budget.unwrap_or(cheapest(&units).midpoint(dearest(&units)));
        let choose = || FILLS.map(|fill| relax(&units, budget, fill).unwrap());
        let once = choose();
        for choice in &once {
            consistent(choice, &units, budget, seed);
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(choose)).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), once, "WGKV_SEED={seed}");
            }
        });
    }
}

/// (28) Norms of Qwen3's projections give values more than keys, which is reported; those of Llama
/// do not.
#[test]
fn values_before_keys_are_noticed() {
    for golden in GOLDEN {
        for Bits { average, keys, values, .. } in &golden.bits {
            let bits = norm_bits(&golden.norms(), &WIDTHS, *average, Ties::Published).unwrap();
            let noticed = favours_values(&bits);
            if golden.name == "Qwen3-0.6B, frobenius" && *average == 3.0 {
                // Of 28 layers, 10 have keys of 4 bits, and 18 values.
                assert_eq!(noticed, Some(((10.0 * 4.0 + 18.0 * 2.0) / 28.0, (18.0 * 4.0 + 10.0 * 2.0) / 28.0)));
            } else {
                assert_eq!(noticed, None, "{} at {average}: {keys}, {values}", golden.name);
            }
        }
    }
    assert_eq!(favours_values(&[]), None);
    assert_eq!(favours_values(&[2.0, 4.0]), Some((2.0, 4.0)));
}

/// A model's 512 units: keys and values of every head, with 32 layers of 8 KV heads.
/// `benches/bit_rules.rs` measures how long that takes.
#[test]
fn many_units_are_near_the_bound() {
    // The bound is below the best by less than one step of one unit, of 512 whose errors differ by
    // factors of e^1.5.
    const GAP: f64 = 0.01;
    let (mut random, seed) = seeded();
    let factor = |random: &mut StdRng, spread: f64| (spread * f64::from(normal(random))).exp();
    // Two group sizes by five widths, costs in 1/128 bits per token of 128 channels.
    let units: Vec<Vec<Candidate>> = (0..512)
        .map(|_| {
            let scale = factor(&mut random, 1.5);
            let candidate = |(bits, group): (u64, u64)| Candidate {
                cost: 128 * (128 * bits + 32 * 128 / group),
                error: scale * 0.22_f64.powi(bits as i32) * (group as f64).powf(0.3) * factor(&mut random, 0.1),
            };
            [2, 3, 4, 6, 8].into_iter().flat_map(|bits| [(bits, 64), (bits, 128)]).map(candidate).collect()
        })
        .collect();
    for fill in FILLS {
        for eighths in 1..8 {
            let budget = cheapest(&units) + (dearest(&units) - cheapest(&units)) * eighths / 8;
            let choice = relax(&units, budget, fill).unwrap();
            println!("512 units of 10, {eighths}/8, {fill:?}: gap {:.5}%", 100.0 * choice.gap());
            assert!(choice.gap() < GAP || fill == Fill::Nested, "{}, WGKV_SEED={seed}", choice.gap());
            consistent(&choice, &units, budget, seed);
        }
    }
}

/// What is refused, and with which words.
#[test]
fn refusals_name_the_unit() {
    let good = vec![Candidate { cost: 1, error: 1.0 }];
    let with = |error: f64| vec![good.clone(), vec![Candidate { cost: 1, error: 0.0 }, Candidate { cost: 2, error }]];
    for (units, budget, message) in [
        (vec![], 9, "units must be 1 or more, but is 0"),
        (vec![good.clone(), vec![]], 9, "candidates must be 1 or more for every unit, but is 0 for unit 1"),
        (with(f64::NAN), 9, "error must be finite and 0 or more, but is NaN in candidate 1 of unit 1"),
        (with(-1.0), 9, "error must be finite and 0 or more, but is -1 in candidate 1 of unit 1"),
        (with(f64::INFINITY), 9, "error must be finite and 0 or more, but is inf in candidate 1 of unit 1"),
        (vec![vec![Candidate { cost: 1, error: f64::MAX }]; 3], 9, "error must be small enough for a finite sum, but is infinite when added up to unit 1"),
    ] {
        for refused in [relax(&units, budget, Fill::Nested), relax(&units, budget, Fill::Skip), exact(&units, budget)] {
            assert_eq!(refused.unwrap_err().to_string(), message);
        }
    }
    let dear = vec![vec![Candidate { cost: u64::MAX, error: 0.0 }]; 2];
    assert!(matches!(relax(&dear, u64::MAX, Fill::Skip), Err(Error::Capacity { need: u64::MAX, have: u64::MAX, .. })));
    // Costs of any size do where the sum of the cheapest fits.
    let dear = vec![vec![Candidate { cost: 0, error: 1.0 }, Candidate { cost: u64::MAX, error: 0.0 }]; 2];
    assert_eq!(relax(&dear, u64::MAX, Fill::Skip).unwrap().picks, [1, 0]);
    let wide: Vec<Vec<Candidate>> = vec![(0..3).map(|i| Candidate { cost: i * i * 1_000_003 + i, error: 1.0 / (i + 1) as f64 }).collect(); 9];
    let message = exact(&wide, 1 << 40).unwrap_err().to_string();
    assert!(message.starts_with("the exact table must be 16777216 cells or fewer"), "{message}");

    for (norms, widths, average, message) in [
        (&[][..], &WIDTHS[..], 2.0, "norms must be of keys and values in pairs, one pair or more, but is 0 numbers"),
        (&[1.0; 3], &WIDTHS, 2.0, "norms must be of keys and values in pairs, one pair or more, but is 3 numbers"),
        (&[1.0, f64::NAN], &WIDTHS, 2.0, "norms must be finite and 0 or more, but is NaN for unit 1"),
        (&[1.0, -1.0], &WIDTHS, 2.0, "norms must be finite and 0 or more, but is -1 for unit 1"),
        (&[1.0, 1.0], &[], 2.0, "widths must be ascending, finite and 0 or more, but is []"),
        (&[1.0, 1.0], &[2.0, 2.0], 2.0, "widths must be ascending, finite and 0 or more, but is [2.0, 2.0]"),
        (&[1.0, 1.0], &[2.0, 3.0], 1.9, "average must be finite and 2 or more, but is 1.9"),
        (&[1.0, 1.0], &[2.0, 3.0], f64::NAN, "average must be finite and 2 or more, but is NaN"),
    ] {
        assert_eq!(norm_bits(norms, widths, average, Ties::Relative).unwrap_err().to_string(), message);
    }
    for (sizes, average, message) in [
        (&[][..], 64.0, "sizes must be 1 or more, but is 0"),
        (&[0, 32], 64.0, "sizes must be ascending from 1 or more, but is [0, 32]"),
        (&[64, 32], 64.0, "sizes must be ascending from 1 or more, but is [64, 32]"),
        (&[32, 64], 65.0, "average_group must be more than 0 and at most 64, but is 65"),
        (&[32, 64], f64::NAN, "average_group must be more than 0 and at most 64, but is NaN"),
    ] {
        assert_eq!(norm_groups(&[1.0, 1.0], sizes, average).unwrap_err().to_string(), message);
    }
}

/// `κ / sqrt(norm)` where sizes are just that, and the larger norm has the smaller groups.
#[test]
fn group_sizes_by_hand() {
    // κ is (2 + 1) / (2 / 48) = 72: groups of 36 and 72.
    assert_eq!(norm_groups(&[4.0, 1.0], &[36, 48, 72], 48.0).unwrap(), [36, 72]);
    // Rounded, they are 32 and 64: 3/64 groups, where 2/48 are allowed. Larger groups lose 4 times
    // 32 of the first, or 64 of the second.
    assert_eq!(norm_groups(&[4.0, 1.0], &[32, 64, 128], 48.0).unwrap(), [32, 128]);
    // Nothing lies between, and it must be within the budget.
    assert_eq!(norm_groups(&[4.0, 1.0], &[32, 128], 50.0).unwrap(), [32, 128]);
    assert_eq!(norm_groups(&[4.0, 1.0], &[32, 128], 60.0).unwrap(), [128, 128]);
    // A norm of 0 does without.
    assert_eq!(norm_groups(&[4.0, 0.0], &[32, 64, 128], 64.0).unwrap(), [64, 64]);
}
