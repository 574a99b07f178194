//! The cases that the tests of the kernels that prefill share, and what they check.

use crate::State;
use crate::{
    Case, POISON, Taken, Walk, case, centred, close, exact_over_stored, floats, hadamard, massive, norm, protect, rotated, rtn, trellis, trellis_beside,
};
use wgkv::low_level::kernel::attend_matrices::AttendMatricesParams;
use wgkv::low_level::reference;
use wgkv::{Bits, Codec, Element, Format, Rope, Scales};

/// Error of a score, in log2 units: 2^-24 for each rounding of a sum of head_dim products, on
/// magnitudes that sum to |q| |k| at most, less than 60 in these cases; errors of a sum of random
/// terms grow as the root of their count.
const SCORE_ERROR: f32 = 6e-5;

/// The same by cooperative matrices: the queries are halves, which the twin rounds to nearest; where
/// a device rounds otherwise, an eleventh bit of each channel is off, on |q| |k| / sqrt(head_dim),
/// less than 8.
const MATRIX_SCORE_ERROR: f32 = 4e-3;

/// Error of a weight: that of the score times ln 2, and `exp2`'s own.
const WEIGHT_ERROR: f32 = 8e-5;

/// The same by cooperative matrices: that of the score, and the weight's own rounding to a half,
/// 2^-11, which is another where the row's peak is.
const MATRIX_WEIGHT_ERROR: f32 = 4e-3;

/// Error of an output against f64 attention over the stored rows: that of weights and sums, the
/// query's own rounding, and the merge's rotation.
const OUTPUT_ERROR: f32 = 1e-4;

/// The same where keys and values are not stored in f16 but unpacked to it: 0.29 * 2^-11 of a
/// channel in the mean square, which moves a score by as much of |q| |k| / sqrt(head_dim) (less than
/// 8 in these cases), a weight by ln 2 of that, and an output by its distance from the largest
/// values, 3; half of that, as for the others, and twice to spare; a value's own rounding is 2^-12
/// of 4 at most.
const UNPACKED_OUTPUT_ERROR: f32 = 3.5e-3;

/// The same by cooperative matrices: queries and weights are rounded to halves, too, each as much.
const MATRIX_OUTPUT_ERROR: f32 = 7e-3;

/// Of an output in f16: half a unit in the last place of a number below 4.
const HALF_ERROR: f32 = 1.0 / 1024.0;

/// Returns shapes, formats, protections and steps that prefill.
pub fn prefill_cases() -> Vec<Case> {
    use Bits::*;
    // A chunk that begins inside a block, one of a single tile, a decode step; unlike lengths.
    let steps: Vec<Vec<(usize, u32)>> = vec![vec![(0, 45), (1, 10)], vec![(1, 1), (0, 70)], vec![(0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(steps.clone());
    let mut cases = vec![
        of("a share of 1: 32 tokens a tile; 2-bit keys", 64, 2, 2, rtn(Two, Eight, 32)),
        of("a share of 2; decode over the f16 rows alone", 64, 4, 2, hadamard(Four, Two, 64)).protection(protect(4, 16)).rope(Rope::new(10_000.0, 32)),
        of("a share of 3: 10 tokens a tile; decode over sinks", 64, 3, 1, rtn(Three, Four, 64)).protection(protect(4, 0)).element(Element::F16),
        of("a share of 7: 4 tokens a tile; every KV head in a slab of its own", 64, 14, 2, hadamard(Eight, Three, 32))
            .slabs()
            .rope(Rope::new(10_000.0, 64).interleaved()),
        of("a share of 16: 2 tokens a tile; f16 pages", 64, 16, 1, Format::f16()).protection(protect(4, 128)),
        of("planes, a share of 3, sinks and a window", 80, 6, 2, Format::aligned_f16()).protection(protect(4, 16)).rope(Rope::none()),
        of("planes of 8-bit keys and 4-bit values, a share of 2", 64, 4, 2, hadamard(Eight, Four, 64)).protection(protect(4, 16)).in_planes(),
        of("planes of 4-bit keys and 8-bit values, a share of 4, four groups", 128, 4, 1, rtn(Four, Eight, 32)).in_planes(),
        of("a head of 80: half a slice; a share of 4; nothing packed yet", 80, 4, 1, hadamard(Three, Three, 128)).protection(protect(0, 128)),
        of("a head of 96, a share of 8; more sinks than a tile", 96, 8, 1, rtn(Two, Two, 32)).protection(protect(40, 32)).steps(vec![
            vec![(0, 30)],
            vec![(0, 150), (1, 3)],
            vec![(0, 1), (1, 1)],
        ]),
        of("a head of 128", 128, 2, 1, hadamard(Two, Four, 128)).protection(protect(127, 1)),
        of("heads stored in three ways", 64, 8, 4, rtn(Two, Two, 32)).three_ways().protection(protect(4, 16)),
        of("the largest head", 256, 2, 1, hadamard(Eight, Eight, 64)).protection(protect(4, 64)),
        of("a head of 192: two blocks of 96 columns; a share of 4", 192, 4, 1, hadamard(Four, Three, 64)).protection(protect(4, 64)),
        of("f16 pages of a head of 192", 192, 2, 1, Format::f16()),
        of("planes of a head of 192", 192, 2, 1, Format::aligned_f16()),
        of("a head of 512: four blocks of columns", 512, 2, 1, hadamard(Three, Four, 64)).protection(protect(4, 64)),
        of("f16 pages of a head of 512", 512, 3, 1, Format::f16()),
        of("Centred: a head of 192, a share of 2", 192, 2, 1, centred(Two, Four, 64)).protection(protect(4, 16)),
        of("Centred: a head of 512, a share of 4", 512, 4, 1, centred(Four, Two, 128)).protection(protect(4, 16)),
        of("Centred: a share of 4", 128, 8, 2, centred(Two, Two, 128)),
        of("Centred: planes of 8-bit keys and 4-bit values, a share of 2", 64, 4, 2, centred(Eight, Four, 64)).protection(protect(4, 16)).in_planes(),
        of("Centred: a share of 3, sinks and a window", 64, 6, 2, centred(Three, Four, 32)).protection(protect(4, 16)).element(Element::F16),
        of("Centred: 13 pairs of 80 channels turn, slabs", 80, 4, 2, centred(Eight, Two, 128))
            .protection(protect(4, 16))
            .slabs()
            .rope(Rope::new(10_000.0, 26).interleaved()),
        of("a trellis of both, a share of 4", 128, 8, 2, trellis(128)),
        of("a trellis of both, sinks and a window; f16 rows", 64, 6, 2, trellis(64)).protection(protect(4, 16)).element(Element::F16),
        of("a trellis of keys beside 3-bit values; five words", 80, 2, 1, trellis_beside(true, Three)),
        of("a trellis of values beside 8-bit keys, the largest head", 256, 2, 1, trellis_beside(false, Eight)),
        of("heads of which some have a trellis", 64, 8, 4, trellis(64)).some_trellis().protection(protect(4, 16)),
        of("Centred: no RoPE", 96, 2, 1, centred(Four, Eight, 32)).rope(Rope::none()),
    ];
    let slid: Vec<Vec<(usize, u32)>> = vec![vec![(0, 300), (1, 140)], vec![(0, 70), (1, 1)], vec![(0, 1), (1, 40)]];
    let slides = |case: Case| case.keep(20).steps(slid.clone());
    let small: Vec<Vec<(usize, u32)>> = vec![vec![(0, 45), (1, 10)], vec![(0, 37), (1, 1)], vec![(0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(small.clone());
    let long: Vec<Vec<(usize, u32)>> = vec![vec![(0, 150), (1, 30)], vec![(1, 2), (0, 120)], vec![(0, 1), (1, 1)]];
    let rotated = vec![
        of("RotateKV: a share of 1; 4 heads of 128, 2 bits", 128, 4, 4, rotated(Two, Two, 128, 4)),
        of("RotateKV: a share of 2, a group of 128 over two heads of 64; interleaved pairs", 64, 4, 2, rotated(Four, Two, 128, 2))
            .rope(Rope::new(500.0, 64).interleaved()),
        of("RotateKV: a share of 4, sinks and window, f16 rows", 64, 4, 1, rotated(Eight, Four, 64, 1)).protection(protect(4, 16)).element(Element::F16),
        of("RotateKV: a share of 7, two slabs, bytes for scales", 64, 28, 4, rotated(Two, Three, 32, 2).with_scales(Scales::Byte)).slabs(),
        of("RotateKV: elected sinks, a share of 8, half a head turned", 80, 16, 2, rotated(Three, Four, 128, 2))
            .protection(massive(20, 0))
            .steps(long.clone())
            .rope(Rope::new(10_000.0, 40)),
        of("RotateKV: elected sinks of more than a tile, and a window", 64, 2, 2, rotated(Two, Two, 64, 2)).protection(massive(40, 128)).steps(long),
        of("RotateKV: three heads of 96 alone, no RoPE", 96, 3, 3, rotated(Four, Four, 32, 1)).protection(massive(3, 0)).rope(Rope::none()),
        of("RotateKV: 8 heads at once, a share of 2", 64, 16, 8, rotated(Two, Two, 128, 8)),
        of("RotateKV: 6 heads, a share of 1, a head of 80", 80, 6, 6, rotated(Eight, Two, 128, 2)),
        of("RotateKV: two heads of 192", 192, 4, 2, rotated(Four, Three, 64, 2)),
        of("RotateKV: the largest head, a share of 16", 256, 16, 1, rotated(Four, Eight, 128, 1)),
        of("RotateKV: values in two ways", 64, 4, 4, rotated(Three, Two, 32, 2)).two_ways(),
        slides(of("RotateKV: elected sinks of sequences that slid", 64, 4, 2, rotated(Four, Two, 64, 2)).protection(massive(20, 0))),
        slides(of("RotateKV: a sliding window", 96, 3, 3, rotated(Four, Four, 32, 1)).protection(massive(3, 16)).sliding_window(200)),
    ];
    cases.extend(rotated);
    // Sequences that slid, by pages; and windows that begin where they will.
    cases.extend([
        slides(of("sequences that slid keep sinks and a window", 64, 4, 2, hadamard(Four, Two, 64)).protection(protect(4, 16))),
        slides(of("a sliding window hides sinks, too", 64, 3, 1, rtn(Three, Four, 64)).protection(protect(40, 0)).sliding_window(150)),
        slides(of("a sliding window of f16 pages", 64, 2, 1, Format::f16()).sliding_window(33)),
        slides(of("a sliding window of one token", 64, 2, 1, rtn(Two, Two, 32)).sliding_window(1).protection(protect(0, 16))),
        slides(of("chunks hide sinks, too; capped scores", 64, 4, 2, hadamard(Four, Four, 64)).protection(protect(4, 16)).chunked(90).soft_cap(3.0)),
        slides(of("chunks of one token", 64, 2, 1, Format::f16()).chunked(1)),
        slides(of("Centred: elected sinks", 64, 4, 2, centred(Four, Two, 64)).protection(massive(20, 16))),
        slides(of("Centred: a sliding window", 64, 4, 2, centred(Four, Four, 32)).protection(protect(4, 16)).sliding_window(200)),
    ]);
    cases
}

/// Checks what a step of one round unpacked, and the partial results of all query rows, against the
/// twins.
pub fn check_prefill(walk: &Walk, taken: &Taken) {
    let (words, c) = (taken.step.words(), walk.constants);
    let [query_rows, _, _, row_partials] = &taken.scratch;
    let matrices = walk.plan().matrices();
    let mut twin = vec![f32::from_bits(POISON); row_partials.len()];
    let State { marks, protected_rows, .. } = &taken.after;
    for (params, items) in &words.attend_rows {
        reference::attend_rows(params, &c, *items, &words.tables, floats(query_rows), &walk.turns, marks, protected_rows, &mut twin);
    }
    for (params, items) in &words.attend_prefill {
        let (tables, query_rows, unpacked) = (&words.tables, floats(query_rows), &taken.unpacked);
        if matrices {
            let params = AttendMatricesParams { items_at: params.items_at, kv_heads: params.kv_heads, pad: [0; 2] };
            reference::attend_matrices(&params, &c, *items, tables, query_rows, unpacked, marks, &mut twin);
        } else {
            reference::attend_prefill(params, &c, *items, tables, query_rows, unpacked, marks, &mut twin);
        }
    }
    let d = c.head_dim as usize;
    // Merge's records tell which partial results are whose.
    let records = words.attend_merge[0].0.records_at as usize;
    let mut written = vec![None; row_partials.len() / (d + 2)];
    for (row, record) in words.tables[records..].chunks_exact(5).take(taken.step.rows() as usize).enumerate() {
        written[record[2] as usize * walk.case.shape.query_heads as usize..][..(record[3] * walk.case.shape.query_heads) as usize].fill(Some(row));
    }
    let mut decodes = Vec::new();
    for (_, tokens) in &taken.chunks {
        decodes.extend(vec![*tokens == 1; *tokens as usize]);
    }
    for (i, (got, want)) in row_partials.chunks_exact(d + 2).zip(twin.chunks_exact(d + 2)).enumerate() {
        let name = format!("{}: partial {}, head {}", walk.case.why, i / walk.case.shape.query_heads as usize, i % walk.case.shape.query_heads as usize);
        let Some(row) = written[i] else {
            assert!(got.iter().all(|w| *w == POISON), "{name}: written, but of no item");
            continue;
        };
        let halves = matrices && !decodes[row];
        let score_error = if halves { MATRIX_SCORE_ERROR } else { SCORE_ERROR };
        let weight_error = if halves { MATRIX_WEIGHT_ERROR } else { WEIGHT_ERROR };
        let got = floats(got);
        // Which score a peak follows is the kernel's affair; peak and sum together are not.
        let log_sum = |row: &[f32]| if row[d + 1] == 0.0 { -1e30 } else { row[d] + row[d + 1].log2() };
        close(&format!("{name}: logarithm of the sum"), &[log_sum(got)], &[log_sum(want)], score_error, 2.0 * f32::EPSILON, walk.seed);
        // A tile of elected sinks may be of rows that keep none.
        let mean = |row: &[f32]| -> Vec<f32> { row[..d].iter().map(|x| if row[d + 1] == 0.0 { *x } else { x / row[d + 1] }).collect() };
        let want = mean(want);
        close(&format!("{name}: mean of values"), &mean(got), &want, 2.0 * weight_error * norm(&want).max(1.0), 0.0, walk.seed);
    }
}

/// Checks the output of chunks of several tokens against f64 attention over what is stored.
pub fn check_prefilled(walk: &Walk, taken: &Taken) {
    let output = walk.output(taken);
    let row = (walk.case.shape.query_heads * walk.case.shape.head_dim) as usize;
    let error = match walk.case.format.codec() {
        _ if walk.plan().matrices() => MATRIX_OUTPUT_ERROR,
        Codec::F16 | Codec::AlignedF16 => OUTPUT_ERROR,
        _ => UNPACKED_OUTPUT_ERROR,
    };
    let atol = error * if walk.case.element == Element::F16 { 1.0 } else { 2.0 } + if walk.case.element == Element::F16 { HALF_ERROR } else { 0.0 };
    let mut first = 0;
    for (sequence, tokens) in &taken.chunks {
        if *tokens > 1 {
            let want: Vec<f32> = exact_over_stored(walk, taken, *sequence, first, *tokens).iter().map(|x| *x as f32).collect();
            let got = &output[first as usize * row..][..want.len()];
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("  sequence {sequence}: {worst:.1e} of {atol:.1e}");
            close(&format!("{}: output of sequence {sequence}", walk.case.why), got, &want, atol, 0.0, walk.seed);
        }
        first += tokens;
    }
    let row_poisoned = |row: &[u32]| row.iter().all(|w| *w == POISON);
    assert!(!taken.output.chunks_exact(row / 2).any(row_poisoned), "every row of the output is written");
}
