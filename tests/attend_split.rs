//! `attend_split` computes, for each slice of the packed pages and each query head, the largest
//! score, the sum of the weights and the weighted row of values, from the codes.
//!
//! - It agrees with its twin on the same query codes and the same pages: integer dot products
//!   exactly, the rest up to f32's rounding.
//! - The u8 weight of a token may be rounded otherwise where `exp2`'s error reaches a tie: then the
//!   row is off by 1/255 of the largest weight at most. That is rare, and counted.
//! - Tokens that are not visible (sinks, tokens not yet written) weigh nothing, whatever their
//!   place in the page holds.
//! - It writes the partial results of its items and no others.
//!
//! Everything is read back from the GPU, so the twin starts from the kernel's own inputs.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::reference;
use wgkv_testing::*;

/// Error of a score, in log2 units: 2^-24 for each of at most 12 roundings, on terms whose
/// magnitudes sum to less than 40 in these tests (a scale times a zero times the sum of a group's
/// codes can be several times the score).
const SCORE_ERROR: f32 = 3e-5;

/// Error of a weight: that of the score times ln 2, and `exp2`'s own, 2^-22 by WGSL's accuracy for
/// arguments near zero, and more for weights that are small.
const WEIGHT_ERROR: f32 = 4e-5;

/// The same for RotateKV's keys restored in f32: 8 + 16 + 8 additions of the rotation's three
/// factors, 4 roundings of the turn and 36 of the dot product, of 2^-24 each, on channels whose
/// products have a root mean square of |q| |k| / sqrt(head_dim), less than 8 in these tests:
/// sqrt(72) times that, and four standard deviations.
const RESTORED_SCORE_ERROR: f32 = 2e-5;

/// Of RotateKV's keys restored in halves, as a multiple of |q| |k| / sqrt(head_dim), k the key in
/// the mean over its group of heads:
/// - a key's channel is rounded to 11 bits about 12 times (code, nine additions of the rotation,
///   two products and the sum of the turn), and the query's once; the step and the base of its
///   group are each rounded, which moves a channel by as much of the group's range, five times the
///   channel together: sqrt(13 + 25) times 0.29 * 2^-11 of the channel in the mean square, 1.8 *
///   2^-11;
/// - the products of eight channels are summed in halves, by 16 workers: 128 roundings, of partial
///   sums of a third of the score;
/// - six standard deviations, for the worst of some ten thousand scores in some ten cases.
const RESTORE_HALF_ERROR: f32 = 12.0 / 2048.0;

/// Weights of one item and group that may be rounded otherwise.
const FLIPS: f32 = 3.0;

/// Share of the rows in which such a weight may be.
const FLIPPED_ROWS: f64 = 0.1;

fn shape(head_dim: u32, query_heads: u32) -> Shape {
    Shape { layers: 1, query_heads, kv_heads: 1, head_dim, rope: Rope::new(10_000.0, head_dim) }
}

fn cases(gpu: &Gpu) -> Vec<Case> {
    use Bits::*;
    let long = vec![vec![(0, 140), (1, 300), (2, 1)], vec![(2, 1), (0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(long.clone());
    let mut cases = vec![
        of("2 bits, a share of 1, two groups; reduced through workgroup memory everywhere", 64, 2, 2, rtn(Two, Two, 32)).no_subgroups(),
        of("2-bit values under 3-bit keys, a share of 2", 64, 4, 2, hadamard(Three, Two, 64)),
        of("a share of 3: one of four lanes idle; sinks are hidden", 64, 3, 1, rtn(Four, Three, 32)).protection(protect(4, 0)),
        of("a share of 7, every KV head in a slab of its own", 64, 14, 2, hadamard(Eight, Eight, 64)).slabs().element(Element::F16),
        of("f16 pages, a share of 16, all pages in one slice", 64, 16, 1, Format::f16()).split_workgroups(1),
        of("a head of 80: three high words, the last half full; one token of the first page is visible", 80, 4, 1, hadamard(Three, Three, 128))
            .protection(protect(127, 0)),
        of("a head of 96: three groups, a share of 8; the window is hidden", 96, 8, 1, rtn(Eight, Two, 32)).protection(protect(0, 16)),
        of("a head of 128, four groups, several pages a slice; reduced through workgroup memory everywhere", 128, 4, 1, hadamard(Two, Four, 32))
            .no_subgroups()
            .split_workgroups(2),
        of("heads stored in three ways, a share of 2", 128, 8, 4, hadamard(Two, Two, 128)).three_ways(),
        of("the same, a share of 7, sinks and a window", 64, 28, 4, rtn(Two, Two, 32)).three_ways().protection(protect(4, 16)),
        of("a head of 256: two quads a lane, eight groups", 256, 1, 1, hadamard(Four, Eight, 32)),
        of("a head of 192: the second quads fill half the lanes; six groups", 192, 4, 1, hadamard(Four, Eight, 32)),
        of("a head of 192, three groups, a share of 3", 192, 3, 1, rtn(Three, Two, 64)).protection(protect(4, 0)),
        of("f16 pages of a head of 192", 192, 2, 2, Format::f16()),
        of("a head of 512: four quads a lane, eight groups, a share of 4", 512, 4, 1, hadamard(Two, Four, 64)),
        of("8 bits of 512 channels in 16 groups of keys", 512, 2, 1, rtn(Eight, Eight, 64))
            .precisions(vec![[Precision::new(Eight, 32), Precision::new(Eight, 128)]]),
        of("f16 pages of a head of 512", 512, 3, 1, Format::f16()),
        of("sequences that slid", 64, 4, 2, hadamard(Two, Four, 64)).keep(140).protection(protect(4, 0)),
        of("a sliding window that begins inside a page, the same", 64, 2, 1, rtn(Four, Three, 32)).sliding_window(150).keep(150),
    ];
    // What the mean of the keys adds to a score is in its closed form here, by polynomials and
    // waves.
    cases.extend([
        of("Centred: 2 bits, a share of 4", 128, 4, 1, centred(Two, Two, 128)),
        of("Centred: sequences that slid, a sliding window", 64, 4, 2, centred(Two, Four, 64)).sliding_window(150).keep(150),
        of("Centred: a share of 3, reduced through workgroup memory", 64, 6, 2, centred(Three, Four, 32)).no_subgroups().protection(protect(4, 0)),
        of("Centred: a share of 7, interleaved pairs, slabs", 64, 14, 2, centred(Four, Three, 64)).slabs().rope(Rope::new(10_000.0, 64).interleaved()),
        of("Centred: heads stored in three ways, a share of 2; a window", 128, 8, 4, centred(Two, Two, 128)).three_ways().protection(protect(4, 16)),
        of("Centred: the largest head, every pair fast", 256, 1, 1, centred(Eight, Eight, 32)).rope(Rope::new(2.0, 256)),
        of("Centred: a head of 192, a share of 4", 192, 4, 1, centred(Two, Three, 64)),
        of("Centred: a head of 512, a share of 4", 512, 4, 1, centred(Two, Two, 128)),
        of("Centred: a head of 512, 128 fast pairs, f16 keys", 512, 2, 1, centred(Four, Four, 128))
            .precisions(vec![[Precision::F16, Precision::new(Four, 128)]])
            .rope(Rope::new(2.0, 256)),
        of("Centred: no pair fast; a part of the head turns", 80, 4, 1, centred(Two, Four, 128))
            .rope(Rope::none().with_frequencies((0..13).map(|p| 0.05 / f64::from(1 << p)).collect())),
        of("Centred: elected sinks are hidden, capped scores", 64, 8, 2, centred(Two, Four, 64)).protection(massive(20, 0)).soft_cap(4.0),
        of("capped scores, a share of 3", 64, 3, 1, hadamard(Four, Two, 64)).soft_cap(2.0),
        of("chunks, elected sinks are hidden", 64, 4, 2, rtn(Four, Four, 32)).chunked(70).protection(massive(7, 0)),
        of("a trellis of both, a share of 4", 128, 4, 1, trellis(128)),
        of("a trellis of both, reduced through workgroup memory; a share of 3", 128, 3, 1, trellis(128)).no_subgroups(),
        of("a trellis of keys beside 4-bit values, a share of 2; sinks are hidden", 64, 4, 2, trellis_beside(true, Four)).protection(protect(4, 0)),
        of("a trellis of values beside 3-bit keys, slabs", 64, 2, 2, trellis_beside(false, Three)).slabs(),
        of("a trellis of both; five words; a window is hidden", 80, 4, 1, trellis(128)).protection(protect(0, 16)),
        of("a trellis of both; six words, a share of 7", 96, 7, 1, trellis(128)),
        of("a trellis of both in the largest head: two groups", 256, 2, 1, trellis(128)),
        of("the same, reduced through workgroup memory", 256, 1, 1, trellis(128)).no_subgroups(),
        of("heads of which some have a trellis, a share of 2", 64, 8, 4, trellis(64)).some_trellis(),
        of("Centred: without means", 64, 2, 1, centred(Two, Two, 64)).means(Means::natural(&shape(64, 2))),
    ]);
    // RotateKV in loops.
    let plain = vec![vec![(0, 150), (1, 37), (2, 1)], vec![(2, 1), (0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(plain.clone());
    let rolled = |case: Case| case.straight(false);
    let loops = vec![
        of("RotateKV: a share of 1, 4 heads of 128, 2 bits", 128, 4, 4, rotated(Two, Two, 128, 4)),
        of("RotateKV: a share of 2, a group of 128 over two heads of 64, interleaved pairs", 64, 4, 2, rotated(Three, Two, 128, 2))
            .no_subgroups()
            .rope(Rope::new(500.0, 64).interleaved()),
        of("RotateKV: a share of 4, one head, sinks are hidden", 64, 4, 1, rotated(Four, Four, 64, 1)).protection(protect(4, 0)),
        of("RotateKV: a share of 7, two slabs, bytes for scales", 64, 28, 4, rotated(Two, Three, 32, 2).with_scales(Scales::Byte))
            .slabs()
            .element(Element::F16),
        of("RotateKV: a share of 8, elected sinks are hidden; half a head turned", 80, 16, 2, rotated(Eight, Two, 128, 2))
            .protection(massive(20, 0))
            .split_workgroups(1)
            .rope(Rope::new(10_000.0, 40)),
        of("RotateKV: three heads of 96 alone; a window; no RoPE", 96, 3, 3, rotated(Four, Eight, 32, 1)).protection(massive(7, 16)).rope(Rope::none()),
        of("RotateKV: 8 heads of 64 at once", 64, 8, 8, rotated(Two, Four, 64, 8)),
        of("RotateKV: elected sinks of sequences that slid", 64, 2, 2, rotated(Four, Two, 64, 2)).protection(massive(7, 0)).keep(20),
        of("RotateKV: 6 heads of 80 in pairs", 80, 6, 6, rotated(Three, Three, 128, 2)),
        of("RotateKV: values in two ways, one of them f16", 64, 8, 4, rotated(Four, Two, 64, 2)).two_ways(),
        of("RotateKV: a share of 16", 64, 16, 1, rotated(Two, Two, 64, 1)),
        of("RotateKV: a head of 192, two together", 192, 4, 2, rotated(Two, Four, 64, 2)),
        of("RotateKV: the largest head, two together", 256, 2, 2, rotated(Two, Two, 128, 2)).reach(Reach::Local),
    ];
    cases.extend(loops.into_iter().map(rolled));
    // RotateKV in halves, as straight-line code, which a software adapter takes seconds to compile:
    // few.
    let half = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).straight(true);
    let halves = [
        half("halves: 2 bits, 4 heads of 128, a share of 4", 128, 16, 4, rotated(Two, Two, 128, 4)),
        half("halves: 3 bits, a share of 1", 128, 4, 4, rotated(Three, Two, 128, 4)),
        half("halves: 4 bits, 4 heads of 64, a share of 7; sinks", 64, 28, 4, rotated(Four, Four, 128, 4)).protection(protect(4, 0)),
        half("halves: 8 bits, a share of 2", 128, 8, 4, rotated(Eight, Four, 128, 4)),
        half("halves: two heads of 64, elected sinks, bytes for scales", 64, 8, 2, rotated(Two, Two, 64, 2).with_scales(Scales::Byte))
            .protection(massive(20, 0)),
        half("halves: values in two ways", 64, 16, 4, rotated(Two, Two, 64, 2)).two_ways(),
        half("halves: one head of 128", 128, 4, 1, rotated(Two, Four, 128, 1)),
        half("halves: one head of 64, no RoPE", 64, 1, 1, rotated(Four, Two, 64, 1)).no_subgroups().rope(Rope::none()),
        half("halves: slabs of two heads of 128", 128, 4, 4, rotated(Three, Two, 64, 2)).slabs(),
    ];
    cases.extend(halves.into_iter().map(|case| case.steps(plain.clone())));
    // The cases above run the code that the device prefers; these, the other.
    let straight = Some(!gpu.capability().straight);
    for (why, bits) in
        [("the other walk at 2 bits", Two), ("the other walk at 3 bits", Three), ("the other walk at 4 bits", Four), ("the other walk at 8 bits", Eight)]
    {
        cases.push(case(why, 64, 2, 1, hadamard(bits, bits, 64)).straight(straight).steps(vec![vec![(0, 300)], vec![(0, 1)]]));
    }
    cases.push(case("Centred: the other walk", 128, 2, 1, centred(Two, Two, 128)).straight(straight).steps(vec![vec![(0, 300)], vec![(0, 1)]]));
    cases
}

#[test]
fn attend_split_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases(&gpu) {
        let start = std::time::Instant::now();
        let mut walk = Walk::new(&gpu, case);
        let steps = walk.case.steps.clone();
        let (last, fill) = steps.split_last().unwrap();
        for chunks in fill {
            walk.take(chunks, false);
        }
        let taken = walk.take(last, true);
        check(&walk, &taken);
        println!("  {:?}", start.elapsed());
    }
}

fn check(walk: &Walk, taken: &Taken) {
    let (words, c, shape) = (taken.step.words(), walk.constants, &walk.case.shape);
    let [_, query_codes, partials, _] = &taken.scratch;
    let mut twin = vec![f32::from_bits(POISON); partials.len()];
    for (((params, items), c), pages) in words.attend_split.iter().zip(&walk.slab_constants).zip(&taken.after.pages) {
        assert!(*items > 0, "the case has something to attend to");
        let State { marks, key_scales, .. } = &taken.after;
        reference::attend_split(params, c, *items, &words.tables, &walk.turns, query_codes, marks, key_scales, pages, floats(&taken.positions), &mut twin);
    }
    let items = words.attend_split[0].1;
    let d = c.head_dim as usize;
    let entries = (c.head_dim + 4) * c.heads;
    let used = (items * shape.kv_heads * c.blocks * entries) as usize;
    assert!(partials[used..].iter().all(|w| *w == POISON), "{}: partials of no item were written", walk.case.why);
    let (mut rows, mut flipped) = (0, 0);
    let score_error = if c.restore && walk.plan().straight() {
        half_error(walk, taken)
    } else if c.restore {
        RESTORED_SCORE_ERROR
    } else {
        SCORE_ERROR
    };
    // A weight is off by the score's error times ln 2, and by exp2's.
    let weight_error = WEIGHT_ERROR.max(score_error);
    let mut worst = 0.0_f32;
    for (item, head) in (0..items).flat_map(|x| (0..shape.query_heads).map(move |h| (x, h))) {
        let (kv, of) = (head / shape.share(), head % shape.share());
        let at = ((item * shape.kv_heads + kv) * c.blocks + of / c.heads) * entries + of % c.heads * (c.head_dim + 4);
        let take = |words: &[f32]| words[at as usize..][..d + 2].to_vec();
        let (got, want) = (take(floats(partials)), take(&twin));
        let name = format!("{}: item {item}, head {head}", walk.case.why);
        worst = worst.max((got[d] - want[d]).abs() / score_error);
        close(&format!("{name}: largest score"), &got[d..=d], &want[d..=d], score_error, f32::EPSILON, walk.seed);
        close(&format!("{name}: sum of weights"), &got[d + 1..], &want[d + 1..], 0.0, 2.0 * weight_error, walk.seed);
        let total = want[d + 1];
        assert!(total >= 1.0 - weight_error, "{name}: the largest weight is 1, so the sum {total} is more");
        // The rows as means of the values, so that they are of the values' size.
        let mean = |row: &[f32]| -> Vec<f32> { row[..d].iter().map(|x| x / total).collect() };
        let largest = largest_value(taken);
        let (got, want) = (mean(&got), mean(&want));
        let tight = 2.0 * weight_error * largest;
        rows += 1;
        if got.iter().zip(&want).any(|(a, b)| (a - b).abs() > tight) {
            flipped += 1;
            assert!(c.value_bits < 16, "{name}: weights of f16 values are not rounded to u8. WGKV_SEED={}", walk.seed);
        }
        let flips = if c.value_bits < 16 { FLIPS * largest / 255.0 } else { 0.0 };
        close(&format!("{name}: mean of values"), &got, &want, tight + flips, 0.0, walk.seed);
    }
    println!("  largest scores differ by {worst:.2} of what is allowed");
    println!("  {flipped} of {rows} rows with a weight rounded otherwise");
    assert!(f64::from(flipped) <= (FLIPPED_ROWS * f64::from(rows)).max(1.0), "{flipped} of {rows}");
}

/// The allowed error of scores in halves: by the longest query and the longest group of keys.
fn half_error(walk: &Walk, taken: &Taken) -> f32 {
    let (shape, c) = (&walk.case.shape, &walk.constants);
    let d = shape.head_dim as usize;
    let queries = &floats(&taken.scratch[0])[..(taken.step.rows() * shape.query_heads) as usize * d];
    let query = queries.chunks_exact(d).map(norm).fold(0.0, f32::max);
    let keys = taken.chunks.iter().map(|(s, _)| walk.dequantize(*s)[0].chunks_exact(c.group_heads as usize * d).map(norm).fold(0.0, f32::max));
    let key = keys.fold(0.0, f32::max) / (c.group_heads as f32).sqrt();
    RESTORE_HALF_ERROR * query * key / (d as f32).sqrt()
}

/// A bound on the magnitude of a stored value: five standard deviations, or the step's own largest.
/// (Rotated rows of normal numbers are normal, too.)
fn largest_value(taken: &Taken) -> f32 {
    taken.values.numbers.iter().fold(5.0_f32, |l, x| l.max(x.abs()))
}

#[test]
fn attend_split_is_near_exact_attention_over_the_stored_rows() {
    // Against f64 attention over the dequantized rows: what remains is the int8 query and the u8
    // weights.
    const RMS: f64 = 0.02;
    let gpu = gpu();
    let mut walk = Walk::new(&gpu, case("four full pages", 64, 2, 1, hadamard(Bits::Four, Bits::Four, 64)).steps(vec![vec![(0, 511)], vec![(0, 1)]]));
    walk.take(&[(0, 511)], false);
    let taken = walk.take(&[(0, 1)], true);
    let (got, want) = (walk.output(&taken), exact_over_stored(&walk, &taken, 0, 0, 1));
    let error = relative_rms(&got, &want);
    assert!(error < RMS, "relative error {error}. WGKV_SEED={}", walk.seed);
}
