//! `append` packs exactly the new tokens, and packs them as its twin does; so does `append_block`, where it takes its place.
//!
//! - Every scale, zero and code is the rounding of a number within f32's error of the one computed in f64: scales as halves,
//!   zeros from the stored scale, codes from the stored scale and zero.
//! - It is the rounding that the twin makes, ties to even included, except where the number before rounding is within that error
//!   of a tie. Such exceptions are rare, and counted.
//! - Tokens that were packed before, and pages of other sequences, keep every bit. (Pages hold stale halves at first. The words
//!   of value codes are read, changed and written, so what was in them shows only where it should have stayed.)
//! - A key or value that is not finite is stored as zeros and listed; nothing else changes.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod support;

use support::*;
use wgkv::kernel::append::AppendParams;
use wgkv::kernel::append_block;
use wgkv::reference::{self, Constants};
use wgkv::*;

/// Error of a number of a turned and rotated row, relative to the row's length: at most 11 roundings in the rotation (see
/// tests/rotate.rs) and 5 in the turn (two of the composed cosine, two of the table's, one of the sum), of 2^-24 each.
const ROW_ERROR: f64 = 16.0 / 16_777_216.0;

/// Tokens of a page's place that a chunk packs in this step.
fn packs(plan: &Plan, record: &Record, token: u32) -> bool {
    (record.old_packed.max(unpacked(plan))..record.new_packed).contains(&token)
}

fn exact_rows(walk: &Walk, taken: &Taken, record: &Record, head: u32, token: u32) -> [Exact; 2] {
    let shape = &walk.case.shape;
    let d = shape.head_dim as usize;
    let rotates = walk.case.format.codec().rotates_values();
    if token < record.old_tokens {
        // It leaves the window: what is packed are the halves kept there, no arithmetic before.
        let at = window_row(walk, record.slot, head, token);
        let row: Vec<f64> = taken.before.protected_rows[at..at + d].iter().flat_map(|w| reference::half::unpack(*w)).map(f64::from).collect();
        return [&row[..d], &row[d..]].map(|row| Exact { row: row.to_vec(), error: 0.0 });
    }
    let at = (((record.row_first + token - record.old_tokens) * shape.kv_heads + head) * shape.head_dim) as usize;
    [(&taken.keys, true), (&taken.values, false)].map(|(input, key)| {
        let raw = &input.numbers[at..at + d];
        let error = if rotates || key { ROW_ERROR * basis_length(walk, raw, head, key) } else { 0.0 };
        Exact { row: basis(walk, raw, head, token, key), error }
    })
}

fn check_step(walk: &Walk, taken: &Taken, count: &mut Count) {
    let plan = walk.plan();
    let shape = plan.shape();
    let words = taken.step.words();
    let mut twin = taken.before.pages.clone();
    let mut status = vec![0; 1028];
    for ((params, constants), pages) in words.append.iter().zip(&walk.slab_constants).zip(&mut twin) {
        reference::append(
            params,
            constants,
            &words.tables,
            &walk.turns,
            &taken.keys.words,
            &taken.values.words,
            &taken.before.protected_rows,
            &taken.before.marks,
            pages,
            &mut status,
        );
    }
    assert_eq!(status[0], 0, "all rows are finite");
    let records = records(taken);
    for (physical, head) in (0..plan.pages()).flat_map(|p| (0..shape.kv_heads).map(move |h| (p, h))) {
        let [before, got, want] = [&taken.before.pages, &taken.after.pages, &twin].map(|pages| page(plan, pages, physical, head));
        let owner = records.iter().find_map(|r| Some((r, r.pages.iter().position(|p| *p == physical)? as u32)));
        let Some((record, number)) = owner else {
            assert!(got == before, "page {physical} of no sequence in this step changed, head {head}");
            continue;
        };
        if got.slab.format().codec() == Codec::AlignedF16 {
            check_maxima(walk, record, number, head, got);
        }
        for t in 0..128 {
            let token = 128 * number + t;
            let context = format!("{}: slot {}, token {token}, head {head}. WGKV_SEED={}", walk.case.why, record.slot, walk.seed);
            if packs(plan, record, token) {
                let [k, v] = exact_rows(walk, taken, record, head, token);
                let (format, layout) = (got.slab.format(), got.slab.layout());
                let packing = |bits: Bits| Packing { bits: bits.get(), clip: format.clip(bits), scales: format.scales() };
                // RotateKV's keys are packed by another kernel.
                if format.codec() != Codec::RotateKv {
                    let (got, want) = (key(got, t), key(want, t));
                    check_row(&format!("key, {context}"), packing(format.key().bits), layout.key_group as usize, &got, &want, &k, count);
                }
                let (got, want) = (value(got, t), value(want, t));
                check_row(&format!("value, {context}"), packing(format.value().bits), layout.value_group as usize, &got, &want, &v, count);
            } else {
                assert!(same(&key(got, t), &key(before, t)) && same(&value(got, t), &value(before, t)), "changed, but not packed: {context}");
            }
        }
    }
}

/// The page's largest exponents are those of what it holds, also of tokens packed in steps before.
fn check_maxima(walk: &Walk, record: &Record, number: u32, head: u32, page: Page<'_>) {
    let tokens = (128 * number).max(unpacked(walk.plan()))..(128 * number + 128).min(record.new_packed);
    if tokens.is_empty() {
        return;
    }
    let rows: Vec<[Packed; 2]> = tokens.map(|t| [key(page, t % 128), value(page, t % 128)]).collect();
    let d = walk.case.shape.head_dim as usize;
    for (i, got) in maxima(page).into_iter().enumerate() {
        let want = rows.iter().map(|row| row[i / d].codes[i % d] >> 10 & 31).max().unwrap();
        assert_eq!(got, want, "{}: exponent {i} of page {number}, head {head}. WGKV_SEED={}", walk.case.why, walk.seed);
    }
}

fn same(a: &Packed, b: &Packed) -> bool {
    a.codes == b.codes && a.scales == b.scales && a.zeros == b.zeros
}

fn cases() -> Vec<Case> {
    use Bits::*;
    let rope = |case: &Case, rope: Rope| Shape { rope, ..case.shape.clone() };
    let steps: Vec<Vec<(usize, u32)>> = vec![vec![(0, 150), (1, 7)], vec![(0, 20)], vec![(1, 300), (0, 1)], vec![(0, 120), (1, 1)]];
    let leaves = |case: Case| Case { protection: protect(4, 32), steps: steps.clone(), ..case };
    let mut cases = vec![
        case("2 bits of both, four groups in a head of 128", 128, 2, 2, rtn(Two, Two, 32)),
        case("2 bits clipped to 0.8, one group a head", 64, 1, 1, hadamard(Two, Two, 64)),
        case("keys of two planes; 20 x 4: the last word of the high plane is half full", 80, 1, 1, hadamard(Three, Three, 128)),
        Case { protection: protect(4, 0), ..case("sinks without a window: the first block is packed in part", 64, 2, 2, hadamard(Three, Four, 32)) },
        Case { element: Element::F16, ..leaves(case("f16 rows; tokens leave the window and are packed with fresh ones", 64, 2, 2, rtn(Four, Three, 128))) },
        Case {
            protection: protect(0, 128),
            steps: vec![vec![(0, 255)], vec![(0, 1)], vec![(0, 400), (1, 130)], vec![(1, 126), (0, 1)]],
            ..case("a window of a page; signed key bytes", 64, 1, 1, hadamard(Eight, Eight, 32))
        },
        Case { slabs: true, ..case("every KV head in a slab of its own; 12 x 8", 96, 3, 3, rtn(Two, Eight, 32)) },
        Case { protection: protect(127, 0), ..case("all but one token of the first page is a sink", 128, 1, 1, hadamard(Four, Two, 128)) },
        case("the largest head", 256, 1, 1, rtn(Eight, Three, 64)),
        case("the largest head rotated, eight groups", 256, 1, 1, hadamard(Three, Eight, 32)),
        leaves(case("the largest head rotated, all of it turning; two groups; a window", 256, 1, 1, hadamard(Three, Eight, 128))),
        Case { element: Element::F16, protection: protect(4, 128), ..case("f16 pages protect nothing", 64, 2, 2, Format::f16()) },
        case("f16 pages of a head of 80", 80, 1, 1, Format::f16()),
        case("planes of a head of 80", 80, 1, 1, Format::aligned_f16()),
        Case {
            element: Element::F16,
            ..leaves(case("planes; f16 rows; sinks; tokens leave the window and are packed with fresh ones", 64, 2, 2, Format::aligned_f16()))
        },
        Case { slabs: true, ..case("planes of the largest head, every KV head in a slab of its own", 256, 2, 2, Format::aligned_f16()) },
        Case { protection: protect(127, 0), ..case("planes of which one token of the first page is not a sink", 128, 2, 2, Format::aligned_f16()) },
        leaves(case("RotateKV's values, with bytes for scales; tokens leave the window", 64, 2, 2, rotated(Four, Two, 32, 2).with_scales(Scales::Byte))),
        Case { protection: massive(5, 0), ..case("RotateKV's values; elected sinks are packed, too", 80, 3, 3, rotated(Two, Three, 128, 1)) },
        Case { element: Element::F16, ..case("RotateKV's values of a head of 96, one group a head", 96, 4, 4, rotated(Eight, Eight, 128, 4)) },
        three_ways(case("heads stored in three ways", 128, 4, 4, hadamard(Two, Two, 128))),
        leaves(three_ways(case("the same without rotation; a window", 64, 4, 4, rtn(Two, Two, 32)))),
        two_ways(case("RotateKV's values in two ways", 64, 4, 4, rotated(Three, Two, 32, 2))),
        case("bytes for scales of both", 128, 1, 1, hadamard(Three, Four, 64).with_scales(Scales::Byte)),
        case("Centred: 2 bits of both, one group a head", 128, 2, 2, centred(Two, Two, 128)),
        Case { element: Element::F16, ..leaves(case("Centred: tokens leave the window; f16 rows; interleaved pairs", 64, 2, 2, centred(Three, Four, 32))) },
        Case { slabs: true, ..case("Centred: signed key bytes; 12 x 8; every KV head in a slab of its own", 96, 3, 3, centred(Eight, Eight, 32)) },
        leaves(three_ways(case("Centred: heads stored in three ways; no RoPE", 64, 4, 4, centred(Two, Two, 32)))),
        case("Centred: the largest head, eight groups; half of it turns", 256, 1, 1, centred(Four, Three, 32)),
        case("bytes for scales, no rotation", 64, 1, 1, rtn(Two, Three, 32).with_scales(Scales::Byte)),
        in_planes(case("planes of 4-bit codes, four groups", 128, 2, 2, rtn(Four, Four, 32))),
        in_planes(case("planes of 8-bit keys and 4-bit values, rotated; 20 x 4", 80, 1, 1, hadamard(Eight, Four, 128))),
        in_planes(Case {
            element: Element::F16,
            ..leaves(case("planes of 4-bit keys and 8-bit values; tokens leave the window", 64, 2, 2, rtn(Four, Eight, 64)))
        }),
        in_planes(Case { slabs: true, ..case("planes of the largest head, in slabs", 256, 2, 2, hadamard(Eight, Eight, 64)) }),
        in_planes(case("planes with bytes for scales", 96, 1, 1, hadamard(Four, Four, 32).with_scales(Scales::Byte))),
        in_planes(case("planes of Centred's 4-bit codes, one group a head", 128, 2, 2, centred(Four, Four, 128))),
        in_planes(Case {
            element: Element::F16,
            ..leaves(case("planes of Centred's 8-bit keys and 4-bit values; tokens leave the window", 64, 2, 2, centred(Eight, Four, 32)))
        }),
        in_planes(Case { slabs: true, ..case("planes of Centred's 4-bit keys and 8-bit values, in slabs; 20 x 4", 80, 2, 2, centred(Four, Eight, 128)) }),
    ];
    let interleaved = Case { element: Element::F16, ..leaves(case("interleaved pairs; groups of 64 and f16 rows", 128, 2, 2, hadamard(Eight, Four, 64))) };
    cases.push(Case { shape: rope(&interleaved, Rope::new(10_000.0, 128).interleaved()), ..interleaved });
    let largest = leaves(case("Centred: the largest head turns", 256, 1, 1, centred(Two, Eight, 64)));
    cases.push(Case { shape: rope(&largest, Rope::new(500_000.0, 256)), ..largest });
    cases[1].shape = rope(&cases[1], Rope::new(500.0, 64).interleaved());
    cases[3].shape = rope(&cases[3], Rope::new(10_000.0, 32));
    cases[4].shape = rope(&cases[4], Rope::none());
    cases[9].shape = rope(&cases[9], Rope::new(10_000.0, 64).interleaved());
    let first = cases.iter().position(|case| case.format.codec() == Codec::Centred).unwrap();
    cases[first + 1].shape = rope(&cases[first + 1], Rope::new(10_000.0, 64).interleaved());
    cases[first + 3].shape = rope(&cases[first + 3], Rope::none());
    cases[first + 4].shape = rope(&cases[first + 4], Rope::new(500_000.0, 128));
    cases
}

#[test]
fn append_agrees_with_its_reference_at_every_bit_width() {
    let gpu = gpu();
    let mut blocks = 0;
    // Without subgroups, and with them where that is another kernel.
    for (no_subgroups, case) in cases().into_iter().flat_map(|case| [(true, case.clone()), (false, case)]) {
        let start = std::time::Instant::now();
        let steps = case.steps.clone();
        let mut walk = Walk::new(&gpu, Case { no_subgroups, ..case });
        let kernels: Vec<&str> =
            walk.plan().slabs(0).iter().map(|slab| if append_block::suits(walk.plan(), slab) { "append_block" } else { "append" }).collect();
        if !no_subgroups && !kernels.contains(&"append_block") {
            continue;
        }
        blocks += usize::from(!no_subgroups);
        let mut count = Count::default();
        for chunks in &steps {
            let taken = walk.take(chunks, false);
            check_step(&walk, &taken, &mut count);
        }
        let ties = if [Codec::F16, Codec::AlignedF16].contains(&walk.case.format.codec()) { HALF_TIES } else { TIES };
        assert!(count.all > 1000 && (count.ties as f64) < ties * count.all as f64, "{count:?} rounded otherwise than the twin. WGKV_SEED={}", walk.seed);
        assert!(pollster::block_on(walk.cache.status()).unwrap().is_clean());
        println!("  {kernels:?} {count:?} {:?}", start.elapsed());
    }
    assert!(blocks >= 18 || gpu.capability().subgroups.is_none(), "{blocks} cases in whole blocks");
}

#[test]
fn groups_without_a_range_come_back() {
    // All numbers of a group alike: the scale is bounded below so that the zero stays an integer that a half holds.
    let gpu = gpu();
    for bits in [Bits::Two, Bits::Three, Bits::Four, Bits::Eight] {
        let mut walk = Walk::new(
            &gpu,
            Case {
                shape: Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::none() },
                ..case("flat groups", 64, 1, 1, rtn(bits, bits, 32))
            },
        );
        let levels: Vec<f32> = [0.0, 1e-7, -3e-5, 0.1, -1.0, 77.7, -1000.0, 20_000.0].into_iter().flat_map(|x| [x; 64]).collect();
        walk.take_rows(&[(0, 8)], [levels.clone(), levels.clone(), levels.clone()], false);
        for back in walk.dequantize(0) {
            for (x, want) in back.iter().zip(&levels) {
                // Half a step; a step is 2^-10 of the number, or 2^-14.
                let allowed = 0.51 * (want.abs() / 1024.0).max(2_f32.powi(-14)) * 1.001;
                assert!((x - want).abs() <= allowed, "{want} at {bits:?} came back as {x}");
            }
        }
    }
}

/// What is wrong with one row: (chunk row, KV head, in the key, in the value, the number).
type Harm = (u32, u32, bool, bool, f32);

/// Runs the same two steps twice: with harm, and with zeros in the harmed rows instead.
fn harmed(gpu: &Gpu, case: &Case, harms: &[Harm], flags: &[Flag]) {
    let shape = case.shape.clone();
    let d = shape.head_dim as usize;
    let [mut broken, mut zeroed] = [Walk::new(gpu, case.clone()), Walk::new(gpu, case.clone())];
    for (s, chunks) in case.steps.iter().enumerate() {
        let rows = broken.draw(chunks.iter().map(|(_, n)| n).sum());
        let (mut bad, mut zero) = (rows.clone(), rows);
        for (row, head, key, value, number) in harms.iter().filter(|_| s == 0) {
            let at = (row * shape.kv_heads + head) as usize * d;
            for (which, harmed) in [(0, *key), (1, *value)] {
                if harmed {
                    bad[which][at + 5] = *number;
                    zero[which][at..at + d].fill(0.0);
                }
            }
        }
        let (a, b) = (broken.take_rows(chunks, bad, true), zeroed.take_rows(chunks, zero, true));
        // RoPE turns zeros into zeros of either sign, so halves are compared with that sign taken off.
        let halves = |words: &[u32]| words.iter().map(|w| [w & 0xffff, w >> 16].map(|h| if h == 0x8000 { 0 } else { h })).collect::<Vec<_>>();
        assert!(halves(&a.after.protected_rows) == halves(&b.after.protected_rows), "{}: step {s} left other f16 rows", case.why);
        let alike = |(a, b): (&Vec<u32>, &Vec<u32>)| if case.format.codec() == Codec::F16 { halves(a) == halves(b) } else { a == b };
        assert!(a.after.pages.iter().zip(&b.after.pages).all(alike), "{}: step {s} left other pages", case.why);
        assert!(broken.output(&a) == zeroed.output(&b), "{}: step {s} attended otherwise", case.why);
        assert!(broken.output(&a).iter().all(|x| x.is_finite()));
    }
    let status = pollster::block_on(broken.cache.status()).unwrap();
    assert_eq!(status, Status { rows: flags.len() as u32, flags: flags.to_vec() }, "{}", case.why);
    assert!(pollster::block_on(broken.cache.status()).unwrap().is_clean(), "asking clears the list");
    assert!(pollster::block_on(zeroed.cache.status()).unwrap().is_clean());
}

#[test]
fn numbers_that_are_not_finite_are_stored_as_zeros_and_listed() {
    let gpu = gpu();
    let steps = vec![vec![(0, 40), (1, 9)], vec![(1, 1), (0, 1)]];
    let flag = |slot, token, head, key, value| Flag { layer: 0, slot, token, head, key, value };
    // Row 43 is token 3 of the second sequence.
    let harms = [(2, 1, true, false, f32::NAN), (31, 0, false, true, f32::INFINITY), (43, 1, true, true, f32::NEG_INFINITY)];
    let flags = [flag(0, 2, 1, true, false), flag(0, 31, 0, false, true), flag(1, 3, 1, true, true)];
    for case in [
        Case { steps: steps.clone(), ..case("packed at once, rotated", 64, 2, 2, hadamard(Bits::Four, Bits::Two, 32)) },
        Case { steps: steps.clone(), element: Element::F16, ..case("f16 rows into f16 pages", 64, 2, 2, Format::f16()) },
        Case { steps, protection: protect(4, 128), ..case("kept in the window", 64, 2, 2, hadamard(Bits::Four, Bits::Two, 32)) },
    ] {
        harmed(&gpu, &case, &harms, &flags);
        harmed(&gpu, &Case { no_subgroups: true, ..case }, &harms, &flags);
    }
}

#[test]
fn more_broken_rows_than_the_list_holds_are_counted() {
    let gpu = gpu();
    let mut walk = Walk::new(&gpu, Case { steps: vec![vec![(0, 300)]], ..case("300 broken keys", 64, 1, 1, rtn(Bits::Four, Bits::Four, 64)) });
    let [mut keys, values, queries] = walk.draw(300);
    for row in keys.chunks_exact_mut(64) {
        row[63] = f32::NAN;
    }
    walk.take_rows(&[(0, 300)], [keys, values, queries], false);
    let status = pollster::block_on(walk.cache.status()).unwrap();
    assert_eq!((status.rows, status.flags.len()), (300, 256));
    assert!(status.flags.iter().all(|f| f.key && !f.value));
}

#[test]
fn the_twin_lists_what_the_kernel_lists() {
    let gpu = gpu();
    let mut walk = Walk::new(&gpu, case("a broken row", 64, 1, 1, rtn(Bits::Four, Bits::Four, 64)));
    let [mut keys, mut values, queries] = walk.draw(3);
    keys[64] = f32::NAN;
    values[128] = f32::INFINITY;
    let taken = walk.take_rows(&[(0, 3)], [keys, values, queries], false);
    let (words, mut pages, mut status) = (taken.step.words(), taken.before.pages.clone(), vec![0; 1028]);
    let params: &AppendParams = &words.append[0];
    let constants: &Constants = &walk.constants;
    reference::append(
        params,
        constants,
        &words.tables,
        &walk.turns,
        &taken.keys.words,
        &taken.values.words,
        &taken.before.protected_rows,
        &taken.before.marks,
        &mut pages[0],
        &mut status,
    );
    assert_eq!(status[..12], [2, 0, 0, 0, 0, 0, 1, 1, 0, 0, 2, 2]);
    assert_eq!(pollster::block_on(walk.cache.status()).unwrap().rows, 2);
}

#[test]
fn planes_are_the_same_however_the_tokens_come() {
    // Heads that differ in size by 2^6, and a channel that is negative throughout: exponents are of magnitudes, and each head's own.
    let gpu = gpu();
    // Codes of tokens that were halves in a window differ from those of tokens that were not.
    for (format, protection) in [
        (Format::aligned_f16(), protect(0, 0)),
        (Format::aligned_f16(), protect(4, 16)),
        (rtn(Bits::Four, Bits::Eight, 32), protect(4, 0)),
        (centred(Bits::Eight, Bits::Four, 32), protect(4, 0)),
    ] {
        let coded = format != Format::aligned_f16();
        let maxima = |page: Page<'_>| if coded { Vec::new() } else { maxima(page) };
        let none = Case { protection, ..case("planes in one chunk", 64, 2, 2, format) };
        let none = if coded { in_planes(none) } else { none };
        let none = Case { shape: Shape { rope: Rope::none(), ..none.shape.clone() }, steps: vec![vec![(0, 300)]], ..none };
        let mut whole = Walk::new(&gpu, none.clone());
        let [mut keys, mut values, queries] = whole.draw(300);
        for (i, (k, v)) in keys.iter_mut().zip(&mut values).enumerate() {
            let size = if i / 64 % 2 == 1 { 64.0 } else { 1.0 };
            *k *= size;
            *v *= size;
            if i % 64 == 5 {
                *k = -20.0 * size - k.abs();
            }
        }
        whole.take_rows(&[(0, 300)], [keys.clone(), values.clone(), queries], false);
        let mut pieces = Walk::new(&gpu, Case { why: "planes in pieces", centre: whole.case.centre.clone(), ..none });
        let (mut at, mut largest) = (0, vec![0; if coded { 0 } else { 2 * 128 }]);
        for n in [45, 1, 1, 81, 1, 100, 1, 1, 69] {
            let [k, v] = [&keys, &values].map(|rows| rows[at * 128..(at + n) * 128].to_vec());
            let taken = pieces.take_rows(&[(0, n as u32)], [k, v, vec![0.0; n * 128]], false);
            at += n;
            if records(&taken)[0].new_packed > 4 {
                // Those of the first page never shrink.
                let physical = records(&taken)[0].pages[0];
                let now: Vec<u32> = (0..2).flat_map(|head| maxima(page(pieces.plan(), &taken.after.pages, physical, head))).collect();
                assert!(now.iter().zip(&largest).all(|(now, before)| now >= before));
                largest = now;
            }
        }
        let [got, want] = [&pieces, &whole].map(|walk| {
            let state = walk.state();
            (0..walk.plan().pages())
                .flat_map(|p| (0..2).map(move |head| (p, head)))
                .map(|(p, head)| {
                    let page = page(walk.plan(), &state.pages, p, head);
                    let packed = walk.plan().packed(300);
                    let tokens = (128 * p).max(unpacked(walk.plan()))..(128 * p + 128).min(packed);
                    if tokens.is_empty() {
                        return (Vec::new(), Vec::new());
                    }
                    (maxima(page), tokens.map(|t| (key(page, t % 128), value(page, t % 128))).collect::<Vec<_>>())
                })
                .collect::<Vec<_>>()
        });
        assert!(got == want, "{protection:?}. WGKV_SEED={}", whole.seed);
        // -20 and less is 16 to 32, or more where the other numbers are: the negative channel has the exponent of its magnitude.
        assert!(coded || (got[0].0[5] >= 19 && got[1].0[5] >= 25), "{:?}", &got[..2]);
    }
}
