//! `attend_rows` computes, for each slice of the f16 rows of a decoding row and each query head, the
//! largest score, the sum of the weights and the weighted row of values.
//!
//! - It agrees with its twin on the same query rows and f16 rows, up to f32's rounding.
//! - Over f16 rows alone, the output is f64 attention over the stored rows, up to f32's rounding.
//! - Sinks and tokens that the row does not see weigh nothing: those of a past that was cut off,
//!   those beyond a sliding window, sinks that a part of a sequence never had.
//! - It writes the partial results of its items and no others.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::reference;
use wgkv_testing::*;

/// Error of a score, in log2 units: 2^-24 for each of 192 roundings (a product and a sum for each
/// two channels, and for each two pairs of RoPE), on magnitudes that sum to |q| |k| at most, less
/// than 60 in these tests; errors of a sum of random terms grow as the root of their count.
const SCORE_ERROR: f32 = 6e-5;

/// Error of a weight: that of the score times ln 2, and `exp2`'s own.
const WEIGHT_ERROR: f32 = 6e-5;

/// Error of the output against f64: weights and sums as above, the query's own rounding, and the
/// merge's rotation; values are below 5 or so.
const OUTPUT_ERROR: f32 = 3e-4;

/// The same where an elected sink of Centred is still in the window: it is stored twice, with its mean
/// and without, and what is compared with is the former. Each is rounded to halves, as
/// UNPACKED_OUTPUT_ERROR of what prefills has it.
const TWICE_ERROR: f32 = 3.5e-3;

/// Of an output in f16: half a unit in the last place of a number below 4.
const HALF_ERROR: f32 = 1.0 / 1024.0;

fn cases(gpu: &Gpu) -> Vec<Case> {
    use Bits::*;
    // Fewer tokens than the window, then more; unlike lengths; a sequence whose page has just been
    // packed, and one whose next token packs it.
    let steps: Vec<Vec<(usize, u32)>> = vec![vec![(0, 143), (1, 10), (2, 271)], vec![(1, 1), (0, 1)], vec![(2, 1), (0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(steps.clone());
    let mut cases = vec![
        of("a share of 1; the default protection", 64, 2, 2, rtn(Two, Eight, 32)).protection(protect(4, 128)),
        of("a share of 2, half a head turns, rows of f16", 64, 4, 2, hadamard(Four, Two, 64))
            .protection(protect(4, 16))
            .rope(Rope::new(10_000.0, 32))
            .element(Element::F16),
        of("a share of 3: a head of the four is none; sinks alone", 64, 3, 1, rtn(Three, Four, 64)).protection(protect(4, 0)),
        of("a share of 7: the second four has three; every KV head in a slab of its own", 64, 14, 2, hadamard(Eight, Three, 32))
            .protection(protect(4, 16))
            .slabs()
            .rope(Rope::new(10_000.0, 64).interleaved()),
        of("a share of 16; a window alone", 64, 16, 1, hadamard(Two, Two, 64)).protection(protect(0, 32)),
        of("planes of halves, a share of 3", 80, 6, 2, Format::aligned_f16()).protection(protect(4, 16)).rope(Rope::none()),
        of("planes of 8-bit keys and 4-bit values", 64, 4, 2, hadamard(Eight, Four, 64)).protection(protect(4, 16)).in_planes(),
        of("a head of 80, whose tenth vector is alone; a share of 4", 80, 4, 1, hadamard(Three, Three, 128)).protection(protect(0, 128)),
        of("a head of 96, a share of 8; more sinks than a tile, and in the last of their tiles other tokens", 96, 8, 1, rtn(Two, Two, 32))
            .protection(protect(40, 32)),
        of("all tokens of the first page but one are sinks; a window of one", 128, 2, 1, hadamard(Two, Four, 128)).protection(protect(127, 1)),
        of("heads stored in three ways", 64, 8, 4, rtn(Two, Two, 32)).three_ways().protection(protect(4, 16)),
        of("the largest head", 256, 2, 1, hadamard(Eight, Eight, 64)).protection(protect(4, 64)),
        of("a head of 192, a share of 4", 192, 4, 1, hadamard(Four, Four, 64)).protection(protect(4, 64)),
        of("a head of 512, a share of 4", 512, 4, 1, rtn(Four, Four, 64)).protection(protect(4, 64)),
        of("reduced through workgroup memory; all tiles in one item", 64, 4, 1, hadamard(Four, Four, 64))
            .protection(protect(4, 128))
            .no_subgroups()
            .split_workgroups(1),
        of("a few tiles an item", 64, 4, 1, hadamard(Four, Four, 64)).protection(protect(40, 128)).split_workgroups(12),
        of("a sliding window that begins among the f16 rows, and hides the sinks", 64, 2, 1, rtn(Four, Three, 32))
            .protection(protect(4, 128))
            .sliding_window(70),
        of("sequences that slid keep their sinks", 64, 4, 2, hadamard(Two, Four, 64)).protection(protect(4, 16)).keep(140),
        of("the other walk", 128, 4, 1, hadamard(Four, Four, 64)).protection(protect(4, 16)).straight(Some(!gpu.capability().straight)),
        of("the other walk, a head of 192", 192, 2, 1, hadamard(Four, Four, 64)).protection(protect(4, 16)).straight(Some(!gpu.capability().straight)),
        of("the other walk, a head of 512", 512, 2, 1, hadamard(Four, Four, 64)).protection(protect(4, 16)).straight(Some(!gpu.capability().straight)),
        of("the other walk, the largest head", 256, 2, 1, hadamard(Four, Four, 64)).protection(protect(4, 16)).straight(Some(!gpu.capability().straight)),
    ];
    cases.extend([
        of("Centred: the default protection, a share of 4", 128, 8, 2, centred(Two, Two, 128)).protection(protect(4, 128)),
        of("Centred: a share of 3, f16 rows", 64, 6, 2, centred(Three, Four, 32)).protection(protect(4, 16)).element(Element::F16),
        of("Centred: more sinks than a tile, means of slow and fast pairs apart", 64, 2, 1, centred(Four, Four, 64)).protection(protect(40, 16)),
        of("Centred: 13 pairs of 80 channels turn, slabs", 80, 4, 2, centred(Eight, Two, 128))
            .protection(protect(4, 16))
            .slabs()
            .rope(Rope::new(10_000.0, 26).interleaved()),
        of("Centred: the largest head, every pair fast", 256, 2, 1, centred(Eight, Eight, 32)).protection(protect(4, 64)).rope(Rope::new(2.0, 256)),
        of("Centred: a head of 192, a share of 4", 192, 4, 1, centred(Four, Four, 64)).protection(protect(4, 64)),
        of("Centred: a head of 512, a share of 4, of which fewer share a reading", 512, 4, 1, centred(Four, Four, 64)).protection(protect(4, 64)),
        of("Centred: the other walk, a head of 512", 512, 1, 1, centred(Two, Two, 128)).protection(protect(4, 16)).straight(Some(!gpu.capability().straight)),
        of("Centred: no RoPE", 96, 2, 1, centred(Four, Eight, 32)).protection(protect(4, 16)).rope(Rope::none()),
        of("Centred: planes", 64, 4, 2, centred(Eight, Four, 64)).protection(protect(4, 16)).in_planes(),
        of("Centred: the other walk", 128, 2, 1, centred(Two, Two, 128)).protection(protect(4, 16)).straight(Some(!gpu.capability().straight)),
        of("Centred: elected sinks, capped scores", 64, 4, 2, centred(Two, Four, 64)).protection(massive(20, 16)).soft_cap(4.0),
        of("Centred: rows that come turned", 64, 4, 2, centred(Four, Four, 64)).protection(protect(4, 16)).turned(),
        of("chunks and elected sinks", 64, 4, 2, hadamard(Four, Four, 64)).protection(massive(7, 16)).chunked(33),
        of("Centred: without means", 64, 2, 1, centred(Two, Two, 64)).protection(protect(4, 16)).means(Means::natural(&Shape {
            layers: 1,
            query_heads: 2,
            kv_heads: 1,
            head_dim: 64,
            rope: Rope::new(10_000.0, 64),
        })),
    ]);
    let small: Vec<Vec<(usize, u32)>> = vec![vec![(0, 150), (1, 30)], vec![(1, 1), (0, 1)], vec![(0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(small.clone());
    cases.extend([
        of("RotateKV: sinks and window, f16 rows", 64, 4, 1, rotated(Eight, Four, 64, 1)).protection(protect(4, 16)).element(Element::F16),
        of("RotateKV: elected sinks, half a head turned", 80, 16, 2, rotated(Three, Four, 128, 2)).protection(massive(20, 0)).rope(Rope::new(10_000.0, 40)),
        of("RotateKV: elected sinks of more than a tile, and a window; a share of 7", 64, 14, 2, rotated(Two, Two, 64, 2)).protection(massive(40, 128)),
        of("RotateKV: elected sinks of sequences that slid", 64, 2, 2, rotated(Four, Two, 64, 2)).protection(massive(7, 16)).keep(20),
        of("RotateKV: no RoPE", 96, 3, 3, rotated(Four, Four, 32, 1)).protection(massive(3, 16)).rope(Rope::none()),
    ]);
    cases
}

#[test]
fn attend_rows_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases(&gpu) {
        let start = std::time::Instant::now();
        let mut walk = Walk::new(&gpu, case);
        let mut items = 0;
        let steps = walk.case.steps.clone();
        for (s, chunks) in steps.iter().enumerate() {
            let taken = walk.take(chunks, s > 0);
            if s > 0 {
                items += check_partials(&walk, &taken);
                check_output(&walk, &taken);
            }
        }
        assert!(items > 0, "{}: the case has f16 rows", walk.case.why);
        println!("  {:?}", start.elapsed());
    }
}

/// Compares the partial results of a step of decoding rows alone with the twin's; returns how many
/// items there are.
fn check_partials(walk: &Walk, taken: &Taken) -> u32 {
    let (words, c) = (taken.step.words(), walk.constants);
    let [query_rows, _, _, row_partials] = &taken.scratch;
    let mut twin = vec![f32::from_bits(POISON); row_partials.len()];
    let [(params, items)] = words.attend_rows[..] else { panic!("one pass") };
    let State { marks, protected_rows, .. } = &taken.after;
    reference::attend_rows(&params, &c, items, &words.tables, floats(query_rows), &walk.turns, marks, protected_rows, &mut twin);
    let (d, heads) = (c.head_dim as usize, walk.case.shape.query_heads as usize);
    let used = items as usize * heads;
    for (i, (got, want)) in row_partials.chunks_exact(d + 2).zip(twin.chunks_exact(d + 2)).enumerate() {
        let name = format!("{}: partial {}, head {}", walk.case.why, i / heads, i % heads);
        assert_eq!(want[d].to_bits() == POISON, i >= used, "{name}: the twin writes what items say");
        if i >= used {
            assert!(got.iter().all(|w| *w == POISON), "{name}: written, but of no item");
            continue;
        }
        let got = floats(got);
        close(&format!("{name}: largest score"), &got[d..=d], &want[d..=d], SCORE_ERROR, f32::EPSILON, walk.seed);
        close(&format!("{name}: sum of weights"), &got[d + 1..], &want[d + 1..], 0.0, 2.0 * WEIGHT_ERROR, walk.seed);
        // A tile of elected sinks may be of rows that keep none.
        let total = if want[d + 1] == 0.0 { 1.0 } else { want[d + 1] };
        let mean = |row: &[f32]| -> Vec<f32> { row[..d].iter().map(|x| x / total).collect() };
        let want = mean(want);
        close(&format!("{name}: mean of values"), &mean(got), &want, 2.0 * WEIGHT_ERROR * norm(&want).max(1.0), 0.0, walk.seed);
    }
    items
}

/// Checks the output of rows that found all their tokens among the f16 rows against f64.
fn check_output(walk: &Walk, taken: &Taken) {
    let output = walk.output(taken);
    let row = (walk.case.shape.query_heads * walk.case.shape.head_dim) as usize;
    for (first, ((sequence, _), record)) in taken.chunks.iter().zip(records(taken)).enumerate() {
        if record.new_packed == 0 && walk.plan().ring() > 0 {
            let want: Vec<f32> = exact_over_stored(walk, taken, *sequence, first as u32, 1).iter().map(|x| *x as f32).collect();
            let twice = walk.plan().elects() && walk.case.format.codec() == Codec::Centred;
            let error = if twice { TWICE_ERROR } else { OUTPUT_ERROR } + if walk.case.element == Element::F16 { HALF_ERROR } else { 0.0 };
            close(&format!("{}: output of sequence {sequence}", walk.case.why), &output[first * row..][..row], &want, error, 0.0, walk.seed);
        }
    }
}

#[test]
fn a_query_beyond_a_caches_tokens_sees_all_f16_rows() {
    // Other caches hold the tokens between.
    let gpu = gpu();
    for (format, protection) in [(hadamard(Bits::Four, Bits::Four, 64), protect(4, 16)), (centred(Bits::Four, Bits::Two, 64), protect(40, 100))] {
        let mut walk = Walk::new(&gpu, case("a part", 64, 4, 2, format).protection(protection).steps(vec![vec![(0, 600)]]));
        walk.take(&[(0, 300)], false);
        let step = walk.cache.step_parts(&[Share { sequence: walk.sequences[0], first: 600, queries: 1, tokens: 0 }]).unwrap();
        let words = step.words();
        let (params, items) = words.attend_rows[0];
        let list = &words.tables[params.items_at as usize..][..8 * items as usize];
        assert_eq!(list[2..5], [600, 0, walk.plan().sinks()], "position, first token, sinks");
        let (window, tiles) = (300 - walk.plan().packed(300), list.chunks_exact(8).map(|item| item[6] - item[5]).sum::<u32>());
        assert_eq!(tiles, (walk.plan().sinks() + window).div_ceil(32));
    }
}
