//! `attend_direct` computes, for each slice of the f16 rows and of the packed pages of a few decoding
//! rows, the largest score, the sum of the weights and the weighted row of values, from the caller's
//! queries.
//!
//! - It agrees with its twin on the same queries, pages and f16 rows up to f32's rounding; where that
//!   decides a query's code or a token's weight, up to one code each.
//! - `attend_merge` makes of its partial results what its twin makes of them.
//! - It writes the partial results of its items and no others.
//! - A query head that is not finite has an output of NaN, and no other changes.
//! - The outputs are those of the kernels that it stands for.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::reference::{self, Constants};
use wgkv::{Cache, Capability, Error, Plan};
use wgkv_testing::*;

/// Error of a score, in log2 units, before codes are rounded otherwise: as in `tests/attend_rows.rs`
/// for f16 rows, whose sums are longer than those of integer codes, and as much again for the query's
/// own roundings.
const SCORE_ERROR: f32 = 1.2e-4;

/// Error of a weight: that of the score times ln 2, and `exp2`'s own.
const WEIGHT_ERROR: f32 = 1.2e-4;

/// How near a channel, in steps of its code, must be to a tie to be rounded otherwise: 2^-24 for each
/// of some 30 roundings of the turn and the rotation, on sums of magnitudes that are sqrt(head_dim) = 16
/// times as large as the result at most, at 127 steps.
const TIE: f32 = 127.0 * 16.0 * 30.0 / 16_777_216.0;

/// Tokens of one item and group whose u8 weight may be rounded otherwise.
const FLIPS: f32 = 3.0;

/// Error of an output of this kernel against that of the others, relative to values below 5: two
/// roundings of weights to 1/255, and a query's code rounded otherwise.
const OUTPUT_ERROR: f32 = 0.05;

fn cases(gpu: &Gpu) -> Vec<Case> {
    use Bits::*;
    // More tokens than the window; unlike lengths; a sequence without pages; then one that has just
    // been packed.
    let steps: Vec<Vec<(usize, u32)>> = vec![vec![(0, 143), (1, 10), (2, 415)], vec![(1, 1), (0, 1)], vec![(2, 1), (0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(steps.clone()).direct();
    let other = Some(!gpu.capability().straight);
    vec![
        of("a share of 1, two groups; everything packed", 64, 2, 2, rtn(Two, Two, 32)),
        of("a share of 2, f16 rows; sinks and a window", 64, 4, 2, hadamard(Three, Two, 64)).protection(protect(4, 16)).element(Element::F16),
        of("a share of 3: a head of the four is none; bf16", 64, 3, 1, rtn(Four, Three, 64)).protection(protect(4, 0)).element(Element::Bf16),
        of("a share of 7: the second four has three; every KV head in a slab of its own", 64, 14, 2, hadamard(Eight, Eight, 64))
            .protection(protect(4, 16))
            .slabs()
            .rope(Rope::new(10_000.0, 64).interleaved()),
        of("f16 pages, a share of 16, all pages in one slice", 64, 16, 1, Format::f16()).split_workgroups(1),
        of("a head of 80, half of it turned; the default protection", 80, 4, 1, hadamard(Three, Three, 128))
            .protection(protect(4, 128))
            .rope(Rope::new(10_000.0, 40)),
        of("a head of 96: three groups, a share of 8; no RoPE", 96, 8, 1, rtn(Eight, Two, 32)).protection(protect(0, 16)).rope(Rope::none()),
        of("a head of 128, four groups; reduced through workgroup memory", 128, 4, 1, hadamard(Two, Four, 32)).protection(protect(40, 32)).no_subgroups(),
        of("heads stored in three ways, a share of 2", 128, 8, 4, hadamard(Two, Two, 128)).three_ways().protection(protect(4, 16)),
        of("a head of 256", 256, 1, 1, hadamard(Four, Eight, 128)).protection(protect(4, 16)),
        of("sequences that slid, a sliding window", 64, 4, 2, hadamard(Two, Four, 64)).sliding_window(150).keep(150).protection(protect(4, 16)),
        of("capped scores, elected sinks", 64, 4, 2, hadamard(Four, Two, 64)).soft_cap(2.0).protection(massive(7, 16)),
        of("Centred: the default protection, a share of 4", 128, 8, 2, centred(Two, Two, 128)).protection(protect(4, 128)),
        of("Centred: a share of 3, f16 rows; reduced through workgroup memory", 64, 6, 2, centred(Three, Four, 64))
            .protection(protect(4, 16))
            .element(Element::F16)
            .no_subgroups(),
        of("Centred: a share of 1, interleaved pairs, slabs", 64, 2, 2, centred(Four, Three, 32))
            .protection(protect(4, 16))
            .slabs()
            .rope(Rope::new(10_000.0, 64).interleaved()),
        of("Centred: everything packed, several pages a slice", 64, 4, 2, centred(Two, Four, 64)).split_workgroups(2),
        of("Centred: every pair fast", 128, 2, 1, centred(Eight, Eight, 64)).rope(Rope::new(2.0, 128)).protection(protect(4, 16)),
        of("Centred: elected sinks, capped scores", 64, 8, 2, centred(Two, Four, 64)).protection(massive(20, 16)).soft_cap(4.0),
        of("Centred: rows that come turned", 64, 4, 2, centred(Four, Four, 64)).protection(protect(4, 16)).turned(),
        of("a trellis of both, a share of 4; sinks and a window", 128, 8, 2, trellis(128)).protection(protect(4, 16)),
        of("a trellis of both, five words; everything packed", 80, 2, 2, trellis(128)),
        of("heads of which some have a trellis, reduced through workgroup memory", 64, 8, 4, trellis(64)).some_trellis().no_subgroups(),
        of("a trellis of both: the other walk", 128, 2, 1, trellis(128)).protection(protect(4, 16)).straight(other),
        of("Centred: the other walk", 128, 2, 1, centred(Two, Two, 128)).protection(protect(4, 16)).straight(other),
    ]
}

#[test]
fn attend_direct_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases(&gpu) {
        let start = std::time::Instant::now();
        let mut walk = Walk::new(&gpu, case);
        assert!(walk.plan().to_string().contains("attend_direct"), "{}: the plan has the kernel", walk.case.why);
        let steps = walk.case.steps.clone();
        for (s, chunks) in steps.iter().enumerate() {
            let taken = walk.take(chunks, s > 0);
            if s > 0 {
                check_partials(&walk, &taken);
                check_output(&walk, &taken);
            }
        }
        println!("  {:?}", start.elapsed());
    }
}

/// How many of a query head's codes may be rounded otherwise, and their step.
struct Codes {
    near_ties: u32,
    step: f32,
}

/// Returns that of every row and query head.
fn codes(walk: &Walk, taken: &Taken) -> Vec<Codes> {
    let (c, words) = (walk.constants, taken.step.words());
    let heads = walk.case.shape.query_heads;
    let rows = taken.step.rows();
    let mut query_rows = vec![0.0; (rows * heads * c.query_row) as usize];
    let mut query_codes = vec![0; (rows * walk.case.shape.kv_heads * c.blocks * c.query_stride * c.heads) as usize];
    let State { marks, .. } = &taken.after;
    reference::query(&words.query[0], &c, rows, &words.tables, &walk.turns, &taken.queries.words, marks, &mut query_rows, &mut query_codes);
    let of = |row: &[f32]| {
        let row = &row[..c.head_dim as usize];
        let step = row.iter().fold(0.0_f32, |l, x| l.max(x.abs())) / 127.0;
        let near = |x: &&f32| ((*x / step).fract().abs() - 0.5).abs() < TIE;
        Codes { near_ties: row.iter().filter(near).count() as u32, step }
    };
    query_rows.chunks_exact(c.query_row as usize).map(of).collect()
}

/// Compares the partial results of a step of decoding rows with the twin's.
fn check_partials(walk: &Walk, taken: &Taken) {
    let (words, c, shape) = (taken.step.words(), walk.constants, &walk.case.shape);
    let partials = &taken.scratch[2];
    let mut twin = vec![f32::from_bits(POISON); partials.len()];
    assert_eq!(words.attend_direct.len(), walk.slab_constants.len(), "one pass");
    for (((params, items), c), pages) in words.attend_direct.iter().zip(&walk.slab_constants).zip(&taken.after.pages) {
        let State { marks, protected_rows, .. } = &taken.after;
        reference::attend_direct(params, c, *items, &words.tables, &walk.turns, marks, protected_rows, pages, &taken.queries.words, &mut twin);
    }
    let (params, items) = words.attend_direct[0];
    let d = c.head_dim as usize;
    let entries = (c.head_dim + 4) * c.heads;
    let used = (items * shape.kv_heads * c.blocks * entries) as usize;
    assert!(partials[used..].iter().all(|w| *w == POISON), "{}: partials of no item were written", walk.case.why);
    let codes = codes(walk, taken);
    // No stored number of a key, rotated and weighted, is larger than this.
    let key = (0..walk.sequences.len()).flat_map(|s| walk.dequantize(s)[0].chunks_exact(d).map(norm).collect::<Vec<_>>()).fold(0.0, f32::max);
    let largest = taken.values.numbers.iter().fold(6.0_f32, |l, x| l.max(x.abs()));
    for (item, head) in (0..items).flat_map(|x| (0..shape.query_heads).map(move |h| (x, h))) {
        let rows = item < params.row_items;
        let row = words.tables[(if rows { params.row_items_at + 8 * item + 1 } else { params.items_at + 9 * (item - params.row_items) }) as usize];
        let (kv, of) = (head / shape.share(), head % shape.share());
        let at = ((item * shape.kv_heads + kv) * c.blocks + of / c.heads) * entries + of % c.heads * (c.head_dim + 4);
        let take = |words: &[f32]| words[at as usize..][..d + 2].to_vec();
        let (got, want) = (take(floats(partials)), take(&twin));
        let name = format!("{}: {} {item}, head {head}", walk.case.why, if rows { "f16 rows" } else { "pages" });
        let integer = !rows && walk.case.format.codec() != Codec::F16;
        let Codes { near_ties, step } = codes[(row * shape.query_heads + head) as usize];
        let flipped = if integer { near_ties as f32 * step * 4.0 * key } else { 0.0 };
        let weight_error = WEIGHT_ERROR + 2.0 * flipped;
        close(&format!("{name}: largest score"), &got[d..=d], &want[d..=d], SCORE_ERROR + flipped, 2.0 * f32::EPSILON, walk.seed);
        close(&format!("{name}: sum of weights"), &got[d + 1..], &want[d + 1..], 0.0, 2.0 * weight_error, walk.seed);
        // A tile of elected sinks may be of rows that keep none.
        let total = if want[d + 1] == 0.0 { 1.0 } else { want[d + 1] };
        let mean = |row: &[f32]| -> Vec<f32> { row[..d].iter().map(|x| x / total).collect() };
        let flips = if integer { FLIPS * largest / 255.0 } else { 0.0 };
        close(&format!("{name}: mean of values"), &mean(&got), &mean(&want), 2.0 * weight_error * largest + flips, 0.0, walk.seed);
    }
}

/// Compares what attend_merge made of the kernel's partial results with what its twin makes of them.
fn check_output(walk: &Walk, taken: &Taken) {
    let words = taken.step.words();
    let State { marks, .. } = &taken.after;
    let [query_rows, _, partials, row_partials] = &taken.scratch;
    let [(params, rows)] = words.attend_merge[..] else { panic!("one pass") };
    let most = (0..rows).map(|r| words.tables[(params.records_at + 5 * r + 1) as usize]).max().unwrap();
    let c = Constants { parts: walk.plan().merge_parts_for(most), direct: true, ..walk.constants };
    let mut twin = vec![POISON; taken.output.len()];
    let [partials, row_partials, query_rows] = [partials, row_partials, query_rows].map(|words| floats(words));
    reference::attend_merge(&params, &c, rows, &words.tables, partials, row_partials, marks, query_rows, &mut twin, None);
    let got = walk.output(taken);
    let want = match walk.case.element {
        Element::F32 => floats(&twin).to_vec(),
        Element::F16 => twin.iter().flat_map(|w| reference::half::unpack(*w)).collect(),
        _ => twin.iter().flat_map(|w| reference::bfloat::unpack(*w)).collect::<Vec<f32>>(),
    };
    // As tests/attend_merge.rs has it, in f32 and rounded once more.
    let rounding = match walk.case.element {
        Element::F32 => 0.0,
        Element::F16 => 1.0 / 1024.0,
        _ => 1.0 / 128.0,
    };
    for (got, want) in got.chunks_exact(walk.constants.head_dim as usize).zip(want.chunks_exact(walk.constants.head_dim as usize)) {
        close(&format!("{}: output", walk.case.why), got, want, 4e-6 * norm(want), rounding, walk.seed);
    }
}

#[test]
fn outputs_are_those_of_the_kernels_that_it_stands_for() {
    let gpu = gpu();
    let steps: Vec<Vec<(usize, u32)>> = vec![vec![(0, 300), (1, 40)], vec![(0, 1), (1, 1)]];
    for format in [hadamard(Bits::Four, Bits::Four, 64), centred(Bits::Two, Bits::Three, 64)] {
        let case = case("both ways", 64, 8, 2, format).steps(steps.clone()).protection(protect(4, 16));
        let mut one = Walk::new(&gpu, case.clone().direct());
        let case = match &one.case.means {
            Some(means) => case.means(means.clone()),
            None => case,
        };
        let mut other = Walk::new(&gpu, case);
        let mut outputs = [Vec::new(), Vec::new()];
        for chunks in &steps {
            let rows = one.draw(chunks.iter().map(|(_, n)| n).sum());
            outputs = [&mut one, &mut other].map(|walk| {
                let taken = walk.take_rows(chunks, rows.clone(), true);
                walk.output(&taken)
            });
        }
        let [one_output, other_output] = outputs;
        close(&format!("{format}: output"), &one_output, &other_output, OUTPUT_ERROR, 0.0, one.seed);
    }
}

#[test]
fn a_query_that_is_not_finite_breaks_its_own_output_alone() {
    let gpu = gpu();
    for (format, bad) in [(Format::f16(), f32::NAN), (hadamard(Bits::Four, Bits::Four, 64), f32::INFINITY), (centred(Bits::Two, Bits::Three, 64), f32::NAN)] {
        let case = case("a query that is not finite", 64, 8, 2, format).steps(vec![vec![(0, 300), (1, 40)]]).protection(protect(4, 16)).direct();
        let mut walk = Walk::new(&gpu, case);
        walk.take(&[(0, 300), (1, 40)], false);
        // Head 5 of the first row.
        let mut rows = walk.draw(2);
        rows[2][5 * 64 + 17] = bad;
        let taken = walk.take_rows(&[(0, 1), (1, 1)], rows, true);
        for (head, got) in walk.output(&taken).chunks_exact(64).enumerate() {
            if head == 5 {
                assert!(got.iter().all(|x| x.is_nan()), "{format}: head 5 of row 0 is {got:?}");
            } else {
                assert!(got.iter().all(|x| x.is_finite()), "{format}: head {head}");
            }
        }
    }
}

#[test]
fn a_plan_for_more_workgroup_memory_is_refused() {
    let gpu = gpu();
    let shape = Shape { layers: 1, query_heads: 4, kv_heads: 1, head_dim: 96, rope: Rope::new(10_000.0, 96) };
    let layer = || vec![1.0; 96];
    let means = Means::new(&shape, "", vec![[layer(), layer(), layer()]]).unwrap();
    let [roomy, small] = [32_768, 16_384].map(|workgroup_bytes| Capability { workgroup_bytes, subgroups: None, ..*gpu.capability() });
    let plan = Plan::builder(shape, centred(Bits::Two, Bits::Two, 128)).learned(Some(means.into())).build(&roomy).unwrap();
    assert!(plan.to_string().contains("attend_direct"), "{plan}");
    // Made for the small device, it does without.
    let other = plan.to_builder().build(&small).unwrap();
    assert!(!other.to_string().contains("attend_direct"), "{other}");
    let Err(Error::Limit { what, reason, need, have }) = Cache::new(&gpu.pretend(small), plan) else { panic!("the device has too little") };
    assert_eq!((what, reason), ("max_compute_workgroup_storage_size", "attend_direct's queries and factors"));
    assert!(need > have && have == 16_384, "{need}, {have}");
}
