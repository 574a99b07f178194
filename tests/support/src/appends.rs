//! What the kernels that pack are checked against: their twins, and numbers in f64.

use crate::{
    Case, Count, Exact, HALF_TIES, Packed, Packing, Page, Record, TIES, Taken, Walk, basis, basis_length, case, centred, check_row, hadamard, key, massive,
    maxima, page, protect, records, rotated, rtn, trellis, trellis_beside, unpacked, value, window_row,
};
use wgkv::bits::Kind;
use wgkv::low_level::reference;
use wgkv::{Code, Codec, Element, Flag, Format, Gpu, Plan, Precision, Rope, Scales, Status};

/// Error of a number of a turned and rotated row, relative to the row's length: at most 11
/// roundings in the rotation (see tests/rotate.rs) and 5 in the turn (two of the composed cosine,
/// two of the table's, one of the sum), of 2^-24 each.
const ROW_ERROR: f64 = 16.0 / 16_777_216.0;

/// Returns whether a chunk packs a token in this step.
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

/// Walks a case, and compares the pages after every step.
pub fn check_appends(mut walk: Walk) {
    let start = std::time::Instant::now();
    let mut count = Count::default();
    for chunks in walk.case.steps.clone() {
        let taken = walk.take(&chunks, false);
        check_append(&walk, &taken, &mut count);
    }
    let ties = if [Codec::F16, Codec::AlignedF16].contains(&walk.case.format.codec()) { HALF_TIES } else { TIES };
    assert!(count.all > 1000 && (count.ties as f64) < ties * count.all as f64, "{count:?} rounded otherwise than the twin. WGKV_SEED={}", walk.seed);
    assert!(pollster::block_on(walk.cache.status()).unwrap().is_clean());
    println!("  {count:?} {:?}", start.elapsed());
}

/// Compares the pages after a step with the twins', and with f64.
pub fn check_append(walk: &Walk, taken: &Taken, count: &mut Count) {
    let plan = walk.plan();
    let shape = plan.shape();
    let words = taken.step.words();
    let mut twin = taken.before.pages.clone();
    let mut status = vec![0; 1028];
    let slabs = walk.plan().slabs(0).iter().zip(&walk.slab_constants);
    for ((params, (slab, constants)), pages) in words.append.iter().zip(slabs).zip(&mut twin) {
        let append = if walk.plan().packs_blocks(slab) { reference::append_block } else { reference::append };
        append(
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
                let packing = |precision: Precision, kind: Kind| Packing {
                    bits: precision.bits.get(),
                    clip: format.clip(precision.bits),
                    scales: format.scales(),
                    trellis: (precision.code == Code::Trellis).then_some(kind),
                };
                // RotateKV's keys are packed by another kernel.
                if format.codec() != Codec::RotateKv {
                    let (got, want) = (key(got, t), key(want, t));
                    check_row(&format!("key, {context}"), packing(format.key(), Kind::Key), layout.key_group as usize, &got, &want, &k, count);
                }
                let (got, want) = (value(got, t), value(want, t));
                check_row(&format!("value, {context}"), packing(format.value(), Kind::Value), layout.value_group as usize, &got, &want, &v, count);
            } else {
                assert!(same(&key(got, t), &key(before, t)) && same(&value(got, t), &value(before, t)), "changed, but not packed: {context}");
            }
        }
    }
}

/// Asserts that the page's largest exponents are those of what it holds, also of tokens packed in
/// steps before.
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

/// Returns the cases of all that pack.
pub fn append_cases() -> Vec<Case> {
    use wgkv::Bits::*;
    let steps: Vec<Vec<(usize, u32)>> = vec![vec![(0, 150), (1, 7)], vec![(0, 20)], vec![(1, 300), (0, 1)], vec![(0, 120), (1, 1)]];
    let leaves = |case: Case| case.protection(protect(4, 32)).steps(steps.clone());
    let mut cases = vec![
        case("2 bits of both, four groups in a head of 128", 128, 2, 2, rtn(Two, Two, 32)),
        case("2 bits clipped to 0.8, one group a head", 64, 1, 1, hadamard(Two, Two, 64)).rope(Rope::new(500.0, 64).interleaved()),
        case("keys of two planes; 20 x 4: the last word of the high plane is half full", 80, 1, 1, hadamard(Three, Three, 128)),
        case("sinks without a window: the first block is packed in part", 64, 2, 2, hadamard(Three, Four, 32))
            .protection(protect(4, 0))
            .rope(Rope::new(10_000.0, 32)),
        leaves(case("f16 rows; tokens leave the window and are packed with fresh ones", 64, 2, 2, rtn(Four, Three, 128)))
            .element(Element::F16)
            .rope(Rope::none()),
        case("a window of a page; signed key bytes", 64, 1, 1, hadamard(Eight, Eight, 32)).protection(protect(0, 128)).steps(vec![
            vec![(0, 255)],
            vec![(0, 1)],
            vec![(0, 400), (1, 130)],
            vec![(1, 126), (0, 1)],
        ]),
        case("every KV head in a slab of its own; 12 x 8", 96, 3, 3, rtn(Two, Eight, 32)).slabs(),
        case("all but one token of the first page is a sink", 128, 1, 1, hadamard(Four, Two, 128)).protection(protect(127, 0)),
        case("the largest head; bf16 rows", 256, 1, 1, rtn(Eight, Three, 64)).element(Element::Bf16),
        case("the largest head rotated, eight groups", 256, 1, 1, hadamard(Three, Eight, 32)).rope(Rope::new(10_000.0, 64).interleaved()),
        leaves(case("the largest head rotated, all of it turning; two groups; a window", 256, 1, 1, hadamard(Three, Eight, 128))),
        case("a head of 192: 12 x 16, six groups", 192, 1, 1, hadamard(Three, Two, 32)),
        leaves(case("a head of 192 without rotation; f16 rows; a window", 192, 2, 2, rtn(Four, Eight, 64))).element(Element::F16),
        case("f16 pages of a head of 192, planes of which it has none", 192, 1, 1, Format::f16()),
        case("a head of 512: 32 x 16, 16 groups of keys and 8 of values", 512, 1, 1, hadamard(Two, Three, 64))
            .precisions(vec![[Precision::new(Eight, 32), Precision::new(Three, 64)]]),
        leaves(case("a head of 512 without rotation; a window", 512, 2, 2, rtn(Three, Four, 128))),
        case("f16 pages of a head of 512; bf16 rows", 512, 1, 1, Format::f16()).element(Element::Bf16),
        case("f16 pages protect nothing", 64, 2, 2, Format::f16()).element(Element::F16).protection(protect(4, 128)),
        case("f16 pages of a head of 80; bf16 rows", 80, 1, 1, Format::f16()).element(Element::Bf16),
        case("planes of a head of 80", 80, 1, 1, Format::aligned_f16()),
        case("planes of a head of 192", 192, 1, 1, Format::aligned_f16()),
        leaves(case("planes; f16 rows; sinks; tokens leave the window and are packed with fresh ones", 64, 2, 2, Format::aligned_f16())).element(Element::F16),
        case("planes of the largest head, every KV head in a slab of its own", 256, 2, 2, Format::aligned_f16()).slabs(),
        case("planes of which one token of the first page is not a sink", 128, 2, 2, Format::aligned_f16()).protection(protect(127, 0)),
        leaves(case("RotateKV's values, with bytes for scales; tokens leave the window", 64, 2, 2, rotated(Four, Two, 32, 2).with_scales(Scales::Byte))),
        case("RotateKV's values; elected sinks are packed, too", 80, 3, 3, rotated(Two, Three, 128, 1)).protection(massive(5, 0)),
        case("RotateKV's values of a head of 96, one group a head", 96, 4, 4, rotated(Eight, Eight, 128, 4)).element(Element::F16),
        case("heads stored in three ways", 128, 4, 4, hadamard(Two, Two, 128)).three_ways(),
        leaves(case("the same without rotation; a window", 64, 4, 4, rtn(Two, Two, 32)).three_ways()),
        case("RotateKV's values in two ways", 64, 4, 4, rotated(Three, Two, 32, 2)).two_ways(),
        case("bytes for scales of both", 128, 1, 1, hadamard(Three, Four, 64).with_scales(Scales::Byte)),
        case("Centred: 2 bits of both, one group a head", 128, 2, 2, centred(Two, Two, 128)),
        leaves(case("Centred: tokens leave the window; f16 rows; interleaved pairs", 64, 2, 2, centred(Three, Four, 32)))
            .element(Element::F16)
            .rope(Rope::new(10_000.0, 64).interleaved()),
        case("Centred: signed key bytes; 12 x 8; every KV head in a slab of its own", 96, 3, 3, centred(Eight, Eight, 32)).slabs(),
        leaves(case("Centred: heads stored in three ways; no RoPE", 64, 4, 4, centred(Two, Two, 32)).three_ways()).rope(Rope::none()),
        case("Centred: the largest head, eight groups; half of it turns", 256, 1, 1, centred(Four, Three, 32)).rope(Rope::new(500_000.0, 128)),
        leaves(case("rows that come turned", 64, 2, 2, hadamard(Four, Three, 64))).turned(),
        leaves(case("Centred: rows that come turned", 64, 2, 2, centred(Four, Three, 64))).turned(),
        leaves(case("Centred: rows that come turned, a head of 80", 80, 2, 2, centred(Four, Three, 128))).turned().rope(Rope::new(10_000.0, 40).interleaved()),
        case("Centred: a head of 192", 192, 1, 1, centred(Two, Four, 64)),
        leaves(case("Centred: a head of 512, half of which turns", 512, 1, 1, centred(Three, Two, 128))).rope(Rope::new(1_000_000.0, 256)),
        case("RotateKV's values of a head of 192", 192, 2, 2, rotated(Four, Two, 64, 2)),
        case("Centred: elected sinks are packed, too", 64, 2, 2, centred(Two, Three, 64)).protection(massive(5, 0)),
        case("bytes for scales, no rotation", 64, 1, 1, rtn(Two, Three, 32).with_scales(Scales::Byte)),
        case("planes of 4-bit codes, four groups", 128, 2, 2, rtn(Four, Four, 32)).in_planes(),
        case("planes of 8-bit keys and 4-bit values, rotated; 20 x 4", 80, 1, 1, hadamard(Eight, Four, 128)).in_planes(),
        leaves(case("planes of 4-bit keys and 8-bit values; tokens leave the window", 64, 2, 2, rtn(Four, Eight, 64))).element(Element::F16).in_planes(),
        case("planes of the largest head, in slabs", 256, 2, 2, hadamard(Eight, Eight, 64)).slabs().in_planes(),
        case("planes of 8-bit codes of a head of 192, six groups", 192, 1, 1, hadamard(Eight, Eight, 32)).in_planes(),
        case("planes with bytes for scales", 96, 1, 1, hadamard(Four, Four, 32).with_scales(Scales::Byte)).in_planes(),
        case("planes of Centred's 4-bit codes, one group a head", 128, 2, 2, centred(Four, Four, 128)).in_planes(),
        leaves(case("planes of Centred's 8-bit keys and 4-bit values; tokens leave the window", 64, 2, 2, centred(Eight, Four, 32)))
            .element(Element::F16)
            .in_planes(),
        case("planes of Centred's 4-bit keys and 8-bit values, in slabs; 20 x 4", 80, 2, 2, centred(Four, Eight, 128)).slabs().in_planes(),
    ];
    cases.push(
        leaves(case("interleaved pairs; groups of 64 and f16 rows", 128, 2, 2, hadamard(Eight, Four, 64)))
            .element(Element::F16)
            .rope(Rope::new(10_000.0, 128).interleaved()),
    );
    let steps = vec![vec![(0, 45), (1, 131)], vec![(1, 1), (0, 1)], vec![(0, 20), (1, 3)]];
    let short = |case: Case| case.steps(steps.clone());
    cases.extend([
        short(case("a trellis of both, one group a head", 128, 2, 2, trellis(128))),
        short(case("a trellis of keys beside 4-bit values", 128, 1, 1, trellis_beside(true, Four))),
        short(case("a trellis of values beside 3-bit keys; interleaved pairs", 128, 1, 1, trellis_beside(false, Three)))
            .rope(Rope::new(10_000.0, 128).interleaved()),
        leaves(case("a trellis of both in a head of 64; tokens leave the window; f16 rows", 64, 2, 2, trellis(64))).element(Element::F16),
        short(case("a trellis of keys in a head of 64", 64, 2, 2, trellis_beside(true, Two))),
        short(case("a trellis of values beside f16 keys", 64, 2, 2, trellis_beside(false, Sixteen))),
        short(case("a trellis of both; 20 x 4; every KV head in a slab of its own", 80, 3, 3, trellis(128))).slabs(),
        short(case("a trellis of both; 12 x 8; half of it turns", 96, 1, 1, trellis(128))).rope(Rope::new(10_000.0, 48)),
        short(case("a trellis of both in the largest head: two groups", 256, 1, 1, trellis(128))),
        short(case("a trellis of values in the largest head", 256, 1, 1, trellis_beside(false, Two))),
        short(case("heads of which some have a trellis", 64, 4, 4, trellis(64))).some_trellis(),
    ]);
    cases.push(leaves(case("Centred: the largest head turns", 256, 1, 1, centred(Two, Eight, 64))).rope(Rope::new(500_000.0, 256)));
    cases
}

/// What is wrong with one row: (chunk row, KV head, in the key, in the value, the number).
pub type Harm = (u32, u32, bool, bool, f32);

/// Runs the same two steps twice: with harm, and with zeros in the harmed rows instead.
pub fn harmed(gpu: &Gpu, case: &Case, harms: &[Harm], flags: &[Flag]) {
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
        // RoPE turns zeros into zeros of either sign, so halves are compared with that sign taken
        // off.
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
