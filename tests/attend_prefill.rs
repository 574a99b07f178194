//! `attend_prefill` computes, for each query row, the largest score, the sum of the weights and the weighted row of values over the
//! tokens that the row may see: all of them in a chunk of several tokens, those kept in f16 in a decode step.
//!
//! - It agrees with its twin on the same query rows, pages and f16 rows, up to f32's rounding.
//! - The output is f64 attention over the stored rows, up to f32's rounding: nothing else is lost on this path.
//! - It writes the rows of its items and no others.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod support;

use support::*;
use wgkv::reference;
use wgkv::*;

/// Error of a score, in log2 units: 2^-24 for each rounding of a sum of head_dim / 4 terms of four products, on magnitudes that sum to
/// |q| |k| at most, less than 60 in these tests; errors of a sum of random terms grow as the root of their count.
const SCORE_ERROR: f32 = 3e-5;

/// Error of a weight: that of the score times ln 2, and `exp2`'s own.
const WEIGHT_ERROR: f32 = 4e-5;

/// Error of the output against f64: weights and sums as above, the query's own rounding, and the merge's rotation.
const OUTPUT_ERROR: f32 = 1e-4;

/// Of an output in f16: half a unit in the last place of a number below 4.
const HALF_ERROR: f32 = 1.0 / 1024.0;

fn cases() -> Vec<Case> {
    use Bits::*;
    // A chunk that begins inside a block, one of a single tile, a decode step; unlike lengths.
    let steps: Vec<Vec<(usize, u32)>> = vec![vec![(0, 45), (1, 10)], vec![(1, 1), (0, 70)], vec![(0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| Case { steps: steps.clone(), ..case(why, head_dim, query_heads, kv_heads, format) };
    let mut cases = vec![
        of("a share of 1: 32 tokens a tile; 2-bit keys", 64, 2, 2, rtn(Two, Eight, 32)),
        Case { protection: protect(4, 16), ..of("a share of 2; decode over the f16 rows alone", 64, 4, 2, hadamard(Four, Two, 64)) },
        Case { protection: protect(4, 0), element: Element::F16, ..of("a share of 3: 10 tokens a tile; decode over sinks", 64, 3, 1, rtn(Three, Four, 64)) },
        Case { slabs: true, ..of("a share of 7: 4 tokens a tile; every KV head in a slab of its own", 64, 14, 2, hadamard(Eight, Three, 32)) },
        Case { protection: protect(4, 128), ..of("a share of 16: 2 tokens a tile; f16 pages", 64, 16, 1, Format::f16()) },
        Case { protection: protect(0, 128), ..of("a head of 80: half a slice; a share of 4; nothing packed yet", 80, 4, 1, hadamard(Three, Three, 128)) },
        Case {
            protection: protect(40, 32),
            steps: vec![vec![(0, 30)], vec![(0, 150), (1, 3)], vec![(0, 1), (1, 1)]],
            ..of("a head of 96, a share of 8; more sinks than a tile", 96, 8, 1, rtn(Two, Two, 32))
        },
        Case { protection: protect(127, 1), ..of("a head of 128", 128, 2, 1, hadamard(Two, Four, 128)) },
        Case { protection: protect(4, 64), ..of("the largest head", 256, 2, 1, hadamard(Eight, Eight, 64)) },
    ];
    cases[1].shape.rope = Rope::new(10_000.0, 32);
    cases[3].shape.rope = Rope::new(10_000.0, 64).interleaved();
    cases[5].shape.rope = Rope::none();
    cases
}

#[test]
fn attend_prefill_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases() {
        let start = std::time::Instant::now();
        let mut walk = Walk::new(&gpu, case);
        let steps = walk.case.steps.clone();
        for chunks in &steps {
            let taken = walk.take(chunks, true);
            check_partials(&walk, &taken);
            check_output(&walk, &taken);
        }
        println!("  {:?}", start.elapsed());
    }
}

fn check_partials(walk: &Walk, taken: &Taken) {
    let (words, c) = (taken.step.words(), walk.constants);
    let [query_rows, _, _, row_partials] = &taken.scratch;
    let mut twin = vec![f32::from_bits(POISON); row_partials.len()];
    for ((params, items), pages) in words.attend_prefill.iter().zip(&taken.after.pages) {
        reference::attend_prefill(params, &c, *items, &words.tables, floats(query_rows), pages, &taken.after.protected_rows, &mut twin);
    }
    let d = c.head_dim as usize;
    // Merge's records tell which partial results are this kernel's.
    let records = words.attend_merge[0].0.records_at as usize;
    let mut written = vec![false; row_partials.len() / (d + 2)];
    for record in words.tables[records..].chunks_exact(4).take(taken.step.rows() as usize) {
        written[record[2] as usize * walk.case.shape.query_heads as usize..][..(record[3] * walk.case.shape.query_heads) as usize].fill(true);
    }
    for (i, (got, want)) in row_partials.chunks_exact(d + 2).zip(twin.chunks_exact(d + 2)).enumerate() {
        let name = format!("{}: partial {}, head {}", walk.case.why, i / walk.case.shape.query_heads as usize, i % walk.case.shape.query_heads as usize);
        if !written[i] {
            assert!(got.iter().all(|w| *w == POISON), "{name}: written, but of no item");
            continue;
        }
        let got = floats(got);
        close(&format!("{name}: largest score"), &got[d..=d], &want[d..=d], SCORE_ERROR, f32::EPSILON, walk.seed);
        close(&format!("{name}: sum of weights"), &got[d + 1..], &want[d + 1..], 0.0, WEIGHT_ERROR, walk.seed);
        let mean = |row: &[f32]| -> Vec<f32> { row[..d].iter().map(|x| x / want[d + 1]).collect() };
        let want = mean(want);
        close(&format!("{name}: mean of values"), &mean(got), &want, 2.0 * WEIGHT_ERROR * norm(&want).max(1.0), 0.0, walk.seed);
    }
}

/// Chunks of several tokens: their output against f64.
fn check_output(walk: &Walk, taken: &Taken) {
    let output = walk.output(taken);
    let row = (walk.case.shape.query_heads * walk.case.shape.head_dim) as usize;
    let mut first = 0;
    for (sequence, tokens) in &taken.chunks {
        if *tokens > 1 {
            let want: Vec<f32> = exact_over_stored(walk, taken, *sequence, first, *tokens).iter().map(|x| *x as f32).collect();
            let got = &output[first as usize * row..][..want.len()];
            let atol =
                OUTPUT_ERROR * if walk.case.element == Element::F16 { 1.0 } else { 2.0 } + if walk.case.element == Element::F16 { HALF_ERROR } else { 0.0 };
            close(&format!("{}: output of sequence {sequence}", walk.case.why), got, &want, atol, 0.0, walk.seed);
        }
        first += tokens;
    }
    let row_poisoned = |row: &[u32]| row.iter().all(|w| *w == POISON);
    assert!(!taken.output.chunks_exact(row / 2).any(row_poisoned), "every row of the output is written");
}

#[test]
fn a_chunk_of_more_rows_than_a_pass_is_attended_in_several() {
    let gpu = gpu();
    let case = Case {
        protection: protect(4, 32),
        steps: vec![vec![(1, 20), (0, 1100)], vec![(0, 30), (1, 600)]],
        ..case("several passes", 64, 2, 1, hadamard(Bits::Four, Bits::Four, 64))
    };
    let mut walk = Walk::new(&gpu, case);
    let steps = walk.case.steps.clone();
    for chunks in &steps {
        let taken = walk.take(chunks, true);
        assert!(taken.step.words().query.len() > 1, "{} rows should be more than a pass", taken.step.rows());
        check_output(&walk, &taken);
    }
}
