//! `attend_prefill` computes, for each query row of a chunk of several tokens, a peak, the sum of the
//! weights and the weighted row of values over the unpacked tokens that the row may see.
//!
//! - It agrees with its twin on the same query rows and unpacked tokens, up to f32's rounding.
//! - The output is f64 attention over the stored rows, up to f32's rounding and that of keys and
//!   values which are unpacked to halves: nothing else is lost on this path.
//! - It writes the rows of its items and no others.
//! - In how many rounds the tokens are unpacked, and among how many items they are split, changes
//!   nothing else.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv_testing::*;

#[test]
fn attend_prefill_agrees_with_its_reference() {
    let gpu = gpu();
    for case in prefill_cases() {
        let start = std::time::Instant::now();
        let mut walk = Walk::new(&gpu, case.no_matrices());
        let steps = walk.case.steps.clone();
        for chunks in &steps {
            let taken = walk.take(chunks, true);
            assert!(taken.step.words().rounds.iter().all(|rounds| *rounds <= 1), "the twin has what the last round unpacked");
            check_prefill(&walk, &taken);
            check_prefilled(&walk, &taken);
        }
        println!("  {:?}", start.elapsed());
    }
}

/// Long chunks in several passes, rounds and splits: the larger scratch is, the more splits.
#[test]
fn rounds_passes_and_splits_change_nothing() {
    let gpu = gpu();
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).protection(protect(4, 32));
    let passes = vec![vec![(1, 20), (0, 1100)], vec![(0, 30), (1, 600)]];
    let long = vec![vec![(0, 900), (1, 40)], vec![(1, 7), (0, 300)]];
    for (case, several) in [
        (of("several passes", 64, 2, 1, hadamard(Bits::Four, Bits::Four, 64)).steps(passes.clone()), "passes"),
        (of("rounds of three tiles", 64, 3, 1, hadamard(Bits::Two, Bits::Eight, 64)).unpacked_tiles(3).steps(long.clone()), "rounds"),
        (of("rounds of a tile of f16", 80, 4, 2, Format::f16()).unpacked_tiles(1).steps(vec![vec![(0, 200), (1, 33)]]), "rounds"),
        (of("splits, and rounds of which two fit", 128, 4, 1, centred(Bits::Four, Bits::Four, 128)).unpacked_tiles(24).steps(long.clone()), "rounds"),
        (of("splits", 64, 9, 3, rtn(Bits::Three, Bits::Four, 64)).steps(long.clone()), "splits"),
        (of("splits of a sliding window", 64, 2, 2, hadamard(Bits::Four, Bits::Four, 64)).sliding_window(400).steps(long), "splits"),
    ] {
        for matrices in [false, true] {
            let mut walk = Walk::new(&gpu, if matrices { case.clone() } else { case.clone().no_matrices() });
            if matrices && !walk.plan().matrices() {
                continue;
            }
            let steps = walk.case.steps.clone();
            for chunks in &steps {
                let taken = walk.take(chunks, true);
                let words = taken.step.words();
                let records = &words.tables[words.attend_merge[0].0.records_at as usize..];
                match several {
                    "passes" => assert!(words.query.len() > 1, "{} rows should be more than a pass", taken.step.rows()),
                    "rounds" => assert!(words.rounds.iter().any(|rounds| *rounds > 1), "{:?} rounds", words.rounds),
                    _ => assert!(records.chunks_exact(5).take(taken.step.rows() as usize).any(|record| record[3] > 1), "nothing is split"),
                }
                check_prefilled(&walk, &taken);
            }
        }
    }
}
