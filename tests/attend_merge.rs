//! `attend_merge` makes each output row of its partial results: from the slices of the pages and
//! from the f16 rows.
//!
//! - It agrees with its twin on the same partial results up to f32's rounding, in f32 and (one
//!   rounding more) in f16.
//! - The output of a decode step is f64 attention over the stored rows, up to the int8 query and
//!   the u8 weights.
//! - Logarithms of sums are those of f64 over the stored keys in every codec, whichever channels
//!   turn, for rows of a prompt and for decoded ones.
//! - A query that saw no token has an output of 0, without a mean, and a log-sum of -1e30.
//! - It writes every row, and nothing beyond the last.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::Capability;
use wgkv::low_level::reference::{self, Constants};
use wgkv_testing::*;

/// Error of a number of the output, relative to the length of its row: a weighted mean over at most
/// 256 partial results in groups of eight, `exp2` of each weight (2^-22 and more for small ones),
/// the quotient, and the rotation's 11 roundings of 2^-24.
const MERGE_ERROR: f32 = 4e-6;

/// Error of a logarithm of a sum, and relative to it: that of the merge, `log2`'s own, which is
/// absolute near 1, and two roundings.
const LOG_SUM_ERROR: f32 = 2e-6;

/// What a log-sum may differ by from that of f64 over the stored keys, in nats. In prefill f32's
/// roundings of scores around 10, over 140 tokens, 2^-22 of them, several times; where keys that are not stored in f16 are unpacked
/// to halves, 2^-12 of each channel (and of the query's, by cooperative matrices), which at 5 times its spread is 5 * 2^-12 * |q| |k| / sqrt(64), with lengths of 8
/// and 15.
const LOG_SUM_PREFILL: f64 = 2e-5;
const LOG_SUM_UNPACKED: f64 = 0.02;

/// The same of decoding: the int8 query moves a score by a uniform number of its step, 3.5 / 127 /
/// sqrt(12) = 0.008 of a channel, times the key's length over sqrt(64), 2; five times its spread.
const LOG_SUM_DECODE: f64 = 0.08;

/// A unit in the last place of a half.
const HALF_ERROR: f32 = 1.0 / 1024.0;

/// The same of bf16, which has 8 bits.
const BFLOAT_ERROR: f32 = 1.0 / 128.0;

fn cases() -> Vec<Case> {
    use Bits::*;
    let steps: Vec<Vec<(usize, u32)>> = vec![vec![(0, 140), (1, 30), (2, 400)], vec![(2, 1), (0, 1), (1, 1)], vec![(1, 3), (2, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(steps.clone());
    let mut cases = vec![
        of("partials of pages alone, no rotation", 64, 2, 2, rtn(Eight, Eight, 32)),
        of("both kinds, rotation, f16 rows, a share of 3", 64, 6, 2, hadamard(Four, Four, 64)).element(Element::F16).protection(protect(4, 16)),
        of("f16 rows of an odd number of heads, a share of 7", 64, 7, 1, Format::f16()).element(Element::F16),
        of("bf16 rows; rotation; 12 x 8", 96, 4, 2, hadamard(Four, Four, 32)).element(Element::Bf16).protection(protect(4, 16)),
        of("every KV head in a slab of its own, 20 x 4", 80, 8, 2, hadamard(Four, Four, 128))
            .slabs()
            .protection(protect(4, 128))
            .rope(Rope::new(10_000.0, 80).interleaved()),
        of("12 x 8", 96, 2, 1, hadamard(Eight, Four, 32)).protection(protect(0, 16)).rope(Rope::none()),
        of("a head of 128", 128, 1, 1, hadamard(Four, Eight, 128)).protection(protect(4, 0)),
        of("a head of 192", 192, 2, 1, hadamard(Four, Four, 64)).protection(protect(4, 16)),
        of("a head of 512", 512, 2, 1, hadamard(Four, Four, 128)).protection(protect(4, 16)),
        of("Centred: a head of 512; sink logits", 512, 2, 1, centred(Four, Four, 128)).protection(protect(4, 16)).sink_logits(),
        of("a head of 256", 256, 1, 1, hadamard(Four, Four, 128)).protection(protect(4, 0)),
        of("sequences that slid keep sinks and a window", 64, 4, 2, hadamard(Four, Four, 64)).keep(20).protection(protect(4, 16)),
        of("a sliding window", 64, 4, 2, rtn(Eight, Four, 32)).keep(200).sliding_window(200).protection(protect(4, 16)),
        long(70, case("more partials than invocations", 64, 1, 1, rtn(Four, Four, 64))),
        long(20, case("some parts, not all with items", 128, 2, 1, hadamard(Four, Four, 128))),
        long(135, case("all parts, one with a second turn, f16 rows", 128, 1, 1, hadamard(Four, Four, 128))).element(Element::F16),
        long(135, case("no more parts than every device allows", 128, 1, 1, hadamard(Four, Four, 128))).invocations(256),
        long(40, case("one part that takes turns", 256, 1, 1, hadamard(Four, Four, 128))).invocations(256),
    ];
    // RotateKV: shares of 1, 2, 4, 7, 8 and 16; 1, 2, 4 and 8 heads together; heads of every size;
    // what f16 there can be.
    let steps = vec![vec![(0, 150), (1, 30), (2, 260)], vec![(2, 1), (0, 1), (1, 1)], vec![(1, 3), (2, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(steps.clone());
    let mut rotated = vec![
        of("RotateKV: elected sinks of sequences that slid", 64, 4, 2, rotated(Four, Four, 64, 2)).keep(20).protection(massive(20, 0)),
        of("RotateKV: 2 bits, 4 heads of 128", 128, 16, 4, rotated(Two, Two, 128, 4)),
        of("RotateKV: 6 heads of 64, a window, f16 rows", 64, 12, 6, rotated(Three, Two, 128, 2)).protection(protect(0, 128)).element(Element::F16),
        of("RotateKV: 8 heads of 64 at once, elected sinks", 64, 8, 8, rotated(Four, Four, 64, 8)).protection(massive(20, 0)),
        of("RotateKV: 2 heads of 80, elected sinks and a window, a share of 7", 80, 14, 2, rotated(Two, Three, 128, 2))
            .protection(massive(20, 128))
            .rope(Rope::new(500.0, 80).interleaved()),
        of("RotateKV: 3 heads of 96, sinks, a share of 8", 96, 24, 3, rotated(Eight, Four, 32, 1)).protection(protect(4, 0)).rope(Rope::new(10_000.0, 48)),
        of("RotateKV: slabs, bytes for scales, no RoPE", 64, 8, 4, rotated(Four, Two, 64, 2).with_scales(Scales::Byte))
            .no_subgroups()
            .slabs()
            .rope(Rope::none()),
        of("RotateKV: a share of 16, as many elected sinks as can be", 64, 16, 1, rotated(Two, Two, 32, 1)).protection(massive(64, 16)),
        of("RotateKV: halves, a share of 4, elected sinks", 128, 16, 4, rotated(Two, Two, 128, 4)).straight(true).protection(massive(20, 0)),
        of("RotateKV: halves, 2 heads of 64, a share of 7", 64, 14, 2, rotated(Four, Two, 128, 2)).straight(true).protection(protect(4, 128)),
    ];
    rotated.extend([
        of("Centred: a sliding window", 64, 4, 2, centred(Four, Four, 64)).keep(180).sliding_window(150),
        of("Centred: 2 bits, a share of 4", 128, 8, 2, centred(Two, Two, 128)),
        of("Centred: sinks and a window, f16 rows, a share of 3", 64, 6, 2, centred(Three, Two, 64)).protection(protect(4, 128)).element(Element::F16),
        of("Centred: 20 x 4", 80, 4, 1, centred(Four, Four, 128)).protection(protect(4, 16)).no_subgroups().rope(Rope::new(10_000.0, 80).interleaved()),
        of("Centred: no RoPE", 64, 4, 2, centred(Four, Eight, 32)).rope(Rope::none()),
        of("Centred: sink logits, half of the head turns", 64, 4, 2, centred(Four, Eight, 32)).rope(Rope::new(10_000.0, 32)).sink_logits(),
        of("sink logits, f16 rows", 128, 4, 1, hadamard(Four, Four, 128)).element(Element::F16).sink_logits(),
    ]);
    cases.extend(rotated);
    cases
}

/// Returns a case of a sequence of `pages` pages and one that has none, which decode together.
fn long(pages: u32, case: Case) -> Case {
    case.protection(protect(0, 16)).steps(vec![vec![(0, 128 * pages + 100), (1, 3)], vec![(0, 1), (1, 1)]])
}

#[test]
fn parts_are_as_many_as_the_items_take_and_the_device_allows() {
    let wide = Capability { invocations: 1024, workgroup_size_x: 1024, workgroup_bytes: 32_768, ..Capability::webgpu_default() };
    for (capability, head_dim, by_items) in [
        (wide, 64, [(0, 1), (16, 1), (17, 4), (64, 4), (65, 16), (256, 16)]),
        (wide, 80, [(0, 1), (16, 1), (17, 4), (64, 4), (65, 12), (256, 12)]),
        (wide, 128, [(0, 1), (16, 1), (17, 4), (64, 4), (65, 8), (256, 8)]),
        (wide, 256, [(0, 1), (16, 1), (17, 4), (64, 4), (65, 4), (256, 4)]),
        // All invocations' numbers would leave no room for the row.
        (Capability { workgroup_bytes: 16_384, ..wide }, 128, [(0, 1), (16, 1), (17, 4), (64, 4), (65, 7), (256, 7)]),
        (Capability { workgroup_size_x: 512, ..wide }, 96, [(0, 1), (16, 1), (17, 4), (64, 4), (65, 5), (256, 5)]),
        (Capability::webgpu_default(), 128, [(0, 1), (16, 1), (17, 2), (64, 2), (65, 2), (256, 2)]),
        (Capability::webgpu_default(), 256, [(0, 1), (16, 1), (17, 1), (64, 1), (65, 1), (256, 1)]),
    ] {
        let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim, rope: Rope::none() };
        let plan = Plan::builder(shape, Format::f16()).protection(Protection::NONE).capacity(Capacity::tokens(1, 1)).build(&capability).unwrap();
        assert_eq!(by_items.map(|(items, _)| (items, plan.merge_parts_for(items))), by_items, "heads of {head_dim}, {capability:?}");
    }
}

#[test]
fn attend_merge_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases() {
        let start = std::time::Instant::now();
        let mut walk = Walk::new(&gpu, case);
        let steps = walk.case.steps.clone();
        for (s, chunks) in steps.iter().enumerate() {
            let taken = walk.take(chunks, s > 0);
            if s == 0 {
                continue;
            }
            let (words, c, shape) = (taken.step.words(), walk.constants, walk.case.shape.clone());
            let [query_rows, _, partials, row_partials] = &taken.scratch;
            let mut twin = vec![POISON; taken.output.len()];
            let (params, rows) = &words.attend_merge[0];
            let records = words.tables[params.records_at as usize..].chunks_exact(5).take(*rows as usize);
            let c = Constants { parts: walk.plan().merge_parts_for(records.map(|record| record[1]).max().unwrap()), ..c };
            let mut log_sums = vec![0.0; (taken.step.rows() * shape.query_heads) as usize];
            let marks = &taken.after.marks;
            let [query_rows, partials, row_partials] = [query_rows, partials, row_partials].map(|words| floats(words));
            reference::attend_merge(params, &c, *rows, &words.tables, partials, row_partials, marks, query_rows, &mut twin, Some(&mut log_sums));
            beside_others(&walk, &taken, &log_sums);
            let (want, rounding): (Vec<f32>, f32) = match c.element {
                Element::F16 => (twin.iter().flat_map(|w| reference::half::unpack(*w)).collect(), HALF_ERROR),
                Element::Bf16 => (twin.iter().flat_map(|w| reference::bfloat::unpack(*w)).collect(), BFLOAT_ERROR),
                _ => (floats(&twin).to_vec(), 0.0),
            };
            let (d, got) = (c.head_dim as usize, walk.output(&taken));
            for (i, (got, want)) in got.chunks_exact(d).zip(want.chunks_exact(d)).enumerate() {
                let name = format!("{}: step {s}, row {}, head {}", walk.case.why, i / shape.query_heads as usize, i % shape.query_heads as usize);
                close(&name, got, want, MERGE_ERROR * norm(want), rounding, walk.seed);
            }
            decodes(&walk, &taken, &got);
        }
        println!("  {:?}", start.elapsed());
    }
}

/// Checks that the output is the same, bit for bit, with the logarithms of the sums, and that these
/// are the twin's.
fn beside_others(walk: &Walk, taken: &Taken, want: &[f32]) {
    let (output, log_sums) = part(walk, taken);
    assert!(output == taken.output, "{}: the output is another", walk.case.why);
    close(&format!("{}: logarithms of sums", walk.case.why), &log_sums, want, LOG_SUM_ERROR, LOG_SUM_ERROR, walk.seed);
}

/// Attends once more, beside others: returns the words of the output, and the logarithms.
fn part(walk: &Walk, taken: &Taken) -> (Vec<u32>, Vec<f32>) {
    let gpu = &walk.gpu;
    let element = walk.case.element;
    let [queries, output] = [&taken.queries.words, &vec![POISON; taken.output.len()]].map(|words| upload(gpu, bytemuck::cast_slice(words)));
    let count = (taken.step.rows() * walk.case.shape.query_heads) as usize;
    let log_sums = poisoned(gpu, count);
    let rows = |buffer| Rows::new(buffer, element);
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    walk.cache.attend_part(&mut encoder, &taken.step, 0, rows(&queries), rows(&output), Rows::f32(&log_sums)).unwrap();
    gpu.queue().submit([encoder.finish()]);
    (words(gpu, &output), download(gpu, &log_sums, count))
}

fn decodes(walk: &Walk, taken: &Taken, got: &[f32]) {
    let row = (walk.case.shape.query_heads * walk.case.shape.head_dim) as usize;
    let mut first = 0;
    for (sequence, tokens) in &taken.chunks {
        if *tokens == 1 {
            let want = exact_over_stored(walk, taken, *sequence, first, 1);
            let error = relative_rms(&got[first as usize * row..], &want);
            println!("  sequence {sequence}: relative error {error:.5}");
            let most = if walk.case.format.codec() == Codec::Centred { CENTRED_RMS } else { DECODE_RMS };
            // A NaN compares false, so it fails too.
            assert!(error <= most, "{}: sequence {sequence}, relative error {error}. WGKV_SEED={}", walk.case.why, walk.seed);
        }
        first += tokens;
    }
}

#[test]
fn nothing_beyond_the_last_row_is_written() {
    let gpu = gpu();
    for element in [Element::F32, Element::F16, Element::Bf16] {
        let mut walk = Walk::new(&gpu, case("an output longer than its rows", 64, 2, 1, rtn(Bits::Four, Bits::Four, 64)).element(element));
        walk.take(&[(0, 9)], false);
        let rows = walk.draw(1).map(|numbers| walk.input(numbers).words);
        let step = walk.cache.step(&[Chunk { sequence: walk.sequences[0], tokens: 1 }]).unwrap();
        let [k, v, q] = [&rows[0], &rows[1], &rows[2]].map(|words| upload(&walk.gpu, bytemuck::cast_slice(words)));
        let (used, out) = (rows[2].len(), poisoned(&walk.gpu, rows[2].len() + 64));
        let of = |buffer| Rows::new(buffer, element);
        let mut encoder = walk.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        walk.cache.append(&mut encoder, &step, 0, of(&k), of(&v)).unwrap();
        walk.cache.attend(&mut encoder, &step, 0, of(&q), of(&out)).unwrap();
        walk.gpu.queue().submit([encoder.finish()]);
        let got = words(&walk.gpu, &out);
        assert!(got[..used].iter().all(|w| *w != POISON) && got[used..].iter().all(|w| *w == POISON), "{element:?}");
    }
}

#[test]
fn log_sums_are_of_whole_scores_however_keys_are_stored_and_turned() {
    use Bits::*;
    let gpu = gpu();
    let whole = Rope::new(10_000.0, 64);
    let ropes = [whole.clone(), Rope::new(10_000.0, 32), Rope::new(10_000.0, 40).interleaved(), Rope::none()];
    // A prompt over two pages, a decoded token, and a chunk after it.
    let steps = vec![vec![(0, 140), (1, 5)], vec![(1, 1), (0, 1)], vec![(0, 3)]];
    let of = |why, format| case(why, 64, 8, 2, format).steps(steps.clone());
    for (case, unpacks) in [
        (of("halves", Format::f16()), false),
        (of("integers", rtn(Eight, Four, 32)).protection(protect(4, 16)), true),
        (of("integers, rotated", hadamard(Four, Four, 64)), true),
        (of("RotateKV", rotated(Four, Four, 64, 2)), true),
        (of("Centred, pages alone", centred(Eight, Four, 64)).protection(protect(0, 0)), true),
        (of("Centred, f16 rows", centred(Eight, Four, 32)).protection(protect(4, 32)).element(Element::F16), true),
        (of("Centred, in planes", centred(Eight, Eight, 32)).in_planes(), true),
        (of("Centred, portable, in slabs", centred(Eight, Four, 32)).slabs().no_subgroups(), true),
        (of("halves in planes", Format::aligned_f16()), false),
        (of("Centred, sink logits", centred(Eight, Four, 32)).sink_logits().score_scale(0.7), true),
        (of("integers, capped scores and sink logits", hadamard(Eight, Four, 32)).soft_cap(3.0).sink_logits().protection(protect(4, 16)), true),
    ] {
        for rope in &ropes {
            let mut walk = Walk::new(&gpu, case.clone().rope(rope.clone()));
            let centred = walk.case.format.codec() == Codec::Centred;
            let (mut prefill, mut decode) = (0.0_f64, 0.0_f64);
            for chunks in &steps {
                let taken = walk.take(chunks, true);
                let (_, got) = part(&walk, &taken);
                let (mut first, heads) = (0, walk.case.shape.query_heads);
                for (sequence, tokens) in chunks {
                    let want = log_sums_over_stored(&walk, &taken, *sequence, first, *tokens);
                    let error = want.iter().zip(&got[(first * heads) as usize..]).map(|(want, got)| (want - f64::from(*got)).abs());
                    let worst = if *tokens == 1 { &mut decode } else { &mut prefill };
                    // A NaN counts.
                    *worst = error.fold(*worst, |worst, error| if error <= worst { worst } else { error });
                    first += tokens;
                }
            }
            println!("  {} pairs turn: prefill {prefill:.2e}, decode {decode:.2e}", rope.frequencies().len());
            let context = format!("{}, {rope:?}: prefill {prefill}, decode {decode}. WGKV_SEED={}", walk.case.why, walk.seed);
            assert!(prefill <= if unpacks || walk.plan().matrices() { LOG_SUM_UNPACKED } else { LOG_SUM_PREFILL }, "{context}");
            assert!(decode <= LOG_SUM_DECODE * if centred { CENTRED_RMS / DECODE_RMS } else { 1.0 }, "{context}");
        }
    }
}

#[test]
fn queries_that_see_nothing_have_outputs_of_zero() {
    let gpu = gpu();
    for case in [
        case("halves", 64, 4, 2, Format::f16()),
        case("rotated, f16 rows", 64, 4, 2, hadamard(Bits::Four, Bits::Four, 32)).element(Element::F16),
        case("Centred, which adds the mean of the values", 64, 4, 2, centred(Bits::Four, Bits::Four, 64)).protection(protect(4, 16)),
        case("halves in planes", 64, 4, 2, Format::aligned_f16()),
        case("RotateKV", 64, 4, 2, rotated(Bits::Four, Bits::Four, 64, 2)),
    ] {
        let mut walk = Walk::new(&gpu, case.steps(vec![vec![(0, 3), (1, 1)]]));
        // Beside one that sees tokens, a chunk and a single query that do not.
        walk.take(&[(0, 3)], false);
        let width = 4 * 64;
        let queries = walk.draw(5)[2].clone();
        let queries = walk.input(queries);
        let [held, empty] = [walk.sequences[0], walk.sequences[1]];
        for shares in [
            vec![Share { sequence: empty, first: 7, queries: 1, tokens: 0 }, Share { sequence: held, first: 3, queries: 2, tokens: 0 }],
            vec![Share { sequence: held, first: 3, queries: 1, tokens: 0 }, Share { sequence: empty, first: 7, queries: 4, tokens: 0 }],
            vec![Share { sequence: empty, first: 7, queries: 4, tokens: 0 }],
        ] {
            let step = walk.cache.step_parts(&shares).unwrap();
            let rows = step.rows();
            let count = (rows * width) as usize;
            let numbers = |words: &[u32]| match walk.case.element {
                Element::F32 => floats(words)[..count].to_vec(),
                _ => words.iter().flat_map(|w| reference::half::unpack(*w)).take(count).collect::<Vec<f32>>(),
            };
            let words_of = queries.words.len();
            let [asked, alone, beside] =
                [&queries.words, &vec![POISON; words_of], &vec![POISON; words_of]].map(|words| upload(&walk.gpu, bytemuck::cast_slice(words)));
            let log_sums = poisoned(&walk.gpu, (4 * rows) as usize);
            let of = |buffer| Rows::new(buffer, walk.case.element);
            let mut encoder = walk.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            walk.cache.attend(&mut encoder, &step, 0, of(&asked), of(&alone)).unwrap();
            walk.cache.attend_part(&mut encoder, &step, 0, of(&asked), of(&beside), Rows::f32(&log_sums)).unwrap();
            walk.gpu.queue().submit([encoder.finish()]);
            let [alone, beside] = [&alone, &beside].map(|buffer| numbers(&words(&walk.gpu, buffer)));
            assert!(alone == beside, "{}: {shares:?}", walk.case.why);
            let log_sums = download(&walk.gpu, &log_sums, (4 * rows) as usize);

            // The twin, which is given no partial results where there are none.
            let step_words = step.words();
            let (params, _) = &step_words.attend_merge[0];
            let [query_rows, _, partials, row_partials] = walk.cache.scratch_buffers().map(|buffer| words(&walk.gpu, buffer));
            let [query_rows, partials, row_partials] = [&query_rows, &partials, &row_partials].map(|words| floats(words));
            let (mut twin, mut twin_sums) = (vec![POISON; words_of], vec![f32::NAN; (4 * rows) as usize]);
            let (c, marks) = (Constants { parts: 1, ..walk.constants }, walk.state().marks);
            reference::attend_merge(params, &c, rows, &step_words.tables, partials, row_partials, &marks, query_rows, &mut twin, Some(&mut twin_sums));
            let twin = numbers(&twin);
            let mut row = 0;
            for share in &shares {
                for _ in 0..share.queries {
                    let [at, sums] = [width, 4].map(|width| (row * width) as usize..((row + 1) * width) as usize);
                    let zeros = |numbers: &[f32]| numbers.iter().all(|x| *x == 0.0);
                    let hidden = |log_sums: &[f32]| log_sums.iter().all(|x| *x == -1e30);
                    let context = format!("{}: row {row} of {shares:?}. WGKV_SEED={}", walk.case.why, walk.seed);
                    let nothing = share.sequence == empty;
                    assert_eq!([zeros(&alone[at.clone()]), zeros(&twin[at])], [nothing; 2], "{context}");
                    assert_eq!([hidden(&log_sums[sums.clone()]), hidden(&twin_sums[sums])], [nothing; 2], "{context}");
                    row += 1;
                }
            }
            assert!(alone.iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn attention_in_place_is_attention() {
    // Rows of two passes.
    let gpu = gpu();
    for case in [
        case("in place", 64, 2, 1, rtn(Bits::Four, Bits::Four, 64)),
        case("in place, with the means' factors", 64, 2, 1, centred(Bits::Four, Bits::Four, 64)).element(Element::F16),
    ] {
        let mut walk = Walk::new(&gpu, case.protection(protect(4, 16)).steps(vec![vec![(0, 600)]]));
        let taken = walk.take(&[(0, 600)], true);
        let rows = upload(&walk.gpu, bytemuck::cast_slice(&taken.queries.words));
        let of = Rows::new(&rows, walk.case.element);
        let mut encoder = walk.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        walk.cache.attend(&mut encoder, &taken.step, 0, of, of).unwrap();
        walk.gpu.queue().submit([encoder.finish()]);
        assert!(words(&walk.gpu, &rows) == taken.output, "{}. WGKV_SEED={}", walk.case.why, walk.seed);
    }
}
