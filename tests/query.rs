//! `query` turns, rotates and scales query rows, and quantizes them to int8 for `attend_split`.
//!
//! - `query_rows` agrees with the twin up to f32's rounding.
//! - The scale is the row's largest magnitude over 127; every code is the rounding of the number
//!   over the scale, as the twin rounds (ties to even) except where f32's error reaches a tie; each
//!   group's sum is exactly the sum of the codes.
//! - A query that is not finite gives NaN in its own head's output, and changes nothing else.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::reference;
use wgkv_testing::*;

/// Relative to the length of the row: 11 roundings of the rotation, 5 of the turn, one of the
/// scale, of 2^-24 each, and the same again since two codes may round differently.
const ROW_ERROR: f32 = 34.0 / 16_777_216.0;

/// The same of what the mean of the keys adds to a score by position: two products of the weighted
/// query's channels, by up to 3, with means of up to 8.
const POSITION_ERROR: f32 = 2.0 * 3.0 * 8.0 * ROW_ERROR;

/// A quotient: 2.5 units in the last place by WGSL's accuracy, 2^-23 each, and a rounding more.
const QUOTIENT_ERROR: f32 = 3.0 / 8_388_608.0;

fn cases() -> Vec<Case> {
    use Bits::*;
    vec![
        case("a share of 1", 64, 2, 2, hadamard(Four, Four, 32)),
        case("a share of 2, f16 rows, no rotation", 64, 4, 2, rtn(Four, Four, 64)).element(Element::F16).rope(Rope::new(10_000.0, 32)),
        case("a share of 3 leaves a head of the block of 4 empty; 20 x 4", 80, 6, 2, hadamard(Two, Two, 128)).rope(Rope::new(10_000.0, 80).interleaved()),
        case("a share of 7: a block of 4 and one of 3; 12 x 8", 96, 7, 1, hadamard(Two, Two, 32)),
        case("a share of 16: four blocks", 128, 16, 1, hadamard(Eight, Two, 128)),
        case("a head of 192", 192, 6, 2, hadamard(Four, Two, 32)),
        case("the largest head, 16 groups of keys", 512, 4, 1, hadamard(Four, Two, 64)).precisions(vec![[Precision::new(Four, 32), Precision::new(Two, 64)]]),
        case("Centred: the largest head", 512, 4, 1, centred(Four, Two, 64)),
        case("a head of 256; bf16 rows", 256, 4, 1, hadamard(Three, Two, 64)).rope(Rope::none()).element(Element::Bf16),
        case("keys in groups of 32 and 128 and in f16", 128, 8, 4, hadamard(Two, Two, 128)).three_ways(),
        case("Centred: weighted, with positions; a share of 3", 64, 6, 2, centred(Two, Two, 64)),
        case("Centred: keys in groups of 32 and 128 and in f16; a share of 2", 128, 8, 4, centred(Two, Two, 128)).three_ways(),
        case("Centred: 13 pairs of 80 channels turn", 80, 4, 1, centred(Four, Two, 128)).element(Element::F16).rope(Rope::new(10_000.0, 26).interleaved()),
        case("queries that come turned, a scale of their own", 64, 4, 2, hadamard(Four, Four, 64)).turned().score_scale(3.0),
        case("Centred: queries that come turned", 64, 4, 2, centred(Four, Four, 64)).turned().score_scale(0.5),
        case("f32 queries for f16 keys", 64, 4, 1, Format::f16()),
        case("f32 queries for RotateKV's keys, turned, not rotated", 64, 8, 4, rotated(Two, Two, 64, 4)),
        case("the same, a share of 7, f16 rows", 80, 14, 2, rotated(Four, Two, 128, 2)).element(Element::F16),
    ]
}

/// Checks that the scale is the largest magnitude of a row over 127, as the kernel divides, and
/// that the codes follow from it.
fn check_codes(walk: &Walk, name: &str, key_group: u32, codes: &[u32], row: &[f32]) {
    let c = &walk.constants;
    let quads = c.head_dim as usize / 4;
    let scale = f32::from_bits(codes[quads]);
    let largest = row.iter().fold(0.0_f32, |l, x| l.max(x.abs()));
    close(&format!("{name}: scale"), &[scale], &[largest / 127.0], 0.0, QUOTIENT_ERROR, walk.seed);
    let bytes: Vec<i8> = codes[..quads].iter().flat_map(|w| w.to_le_bytes()).map(|b| b as i8).collect();
    for (i, (x, code)) in row.iter().zip(&bytes).enumerate() {
        // The row here is the kernel's own, so only the quotient has an error.
        let quotient = f64::from(*x) / f64::from(scale);
        let off = (quotient - f64::from(*code)).abs();
        assert!(off <= 0.5 + 127.0 * f64::from(QUOTIENT_ERROR), "{name}: code {i} is {code}, should be {quotient}. WGKV_SEED={}", walk.seed);
    }
    for (g, group) in bytes.chunks_exact(key_group as usize).enumerate() {
        let sum: i32 = group.iter().map(|b| i32::from(*b)).sum();
        assert_eq!(f32::from_bits(codes[quads + 1 + g]), sum as f32, "{name}: sum of group {g}");
    }
}

#[test]
fn query_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases() {
        let mut walk = Walk::new(&gpu, case.steps(vec![vec![(0, 5), (1, 1)], vec![(1, 1), (0, 130)]]));
        let steps = walk.case.steps.clone();
        for chunks in &steps {
            let taken = walk.take(chunks, true);
            let (words, c, shape) = (taken.step.words(), walk.constants, walk.case.shape.clone());
            let [query_rows, query_codes, ..] = &taken.scratch;
            let mut rows = vec![f32::from_bits(POISON); query_rows.len()];
            let mut codes = vec![POISON; query_codes.len()];
            reference::query(
                &words.query[0],
                &c,
                taken.step.rows(),
                &words.tables,
                &walk.turns,
                &taken.queries.words,
                &taken.after.marks,
                &mut rows,
                &mut codes,
            );
            let d = c.head_dim as usize;
            let stride = d + 4 * c.position_quads as usize;
            let used = (taken.step.rows() * shape.query_heads) as usize * stride;
            for (i, (got, want)) in floats(query_rows)[..used].chunks_exact(stride).zip(rows[..used].chunks_exact(stride)).enumerate() {
                let ((got, places), (want, wanted)) = (got.split_at(d), want.split_at(d));
                close(&format!("{}: positions of query row and head {i}", walk.case.why), places, wanted, POSITION_ERROR * norm(want), 0.0, walk.seed);
                close(&format!("{}: query row and head {i}", walk.case.why), got, want, ROW_ERROR * norm(want), 0.0, walk.seed);
            }
            assert!(query_rows[used..].iter().all(|w| *w == POISON), "rows beyond the last were written");
            for (at, (got, want)) in query_codes.iter().zip(&codes).enumerate() {
                assert_eq!(*got == POISON, *want == POISON, "{}: the kernel and its twin write different places; word {at}", walk.case.why);
            }
            // [row, kv_heads, blocks, query_stride, heads]
            for (r, query_head) in (0..taken.step.rows()).flat_map(|r| (0..shape.query_heads).map(move |h| (r, h))) {
                let (kv, of) = (query_head / shape.share(), query_head % shape.share());
                let at = ((r * shape.kv_heads + kv) * c.blocks + of / c.heads) * c.query_stride * c.heads + of % c.heads;
                let take = |words: &[u32]| -> Vec<u32> { (0..c.query_stride).map(|e| words[(at + e * c.heads) as usize]).collect() };
                let name = format!("{}: row {r}, head {query_head}", walk.case.why);
                let at = (r * shape.query_heads + query_head) as usize * stride;
                let row = &floats(query_rows)[at..][..d];
                let got = take(query_codes);
                // The factors of waves, as long as those among the rows.
                let [waves, wanted] = [&got, &take(&codes)].map(|words| floats(&words[c.positions_at as usize..]).to_vec());
                close(&format!("{name}: waves"), &waves, &wanted, POSITION_ERROR * norm(row), 0.0, walk.seed);
                let precision = walk.plan().bit_plan().of(0, kv)[0];
                if precision.bits == Bits::Sixteen || walk.case.format.codec() == Codec::RotateKv {
                    assert!(floats(&got)[..d] == *row, "{name}: f32 queries are the rows");
                } else {
                    let group = precision.group(shape.head_dim);
                    check_codes(&walk, &name, group, &got, row);
                    check_codes(&walk, &format!("{name} (twin)"), group, &take(&codes), &rows[at..][..d]);
                }
            }
        }
    }
}

#[test]
fn a_query_that_is_not_finite_gives_nan_in_its_own_head_only() {
    let gpu = gpu();
    let steps = vec![vec![(0, 140), (1, 5)], vec![(1, 1), (0, 1)], vec![(0, 3), (1, 2)]];
    for case in [
        case("packed pages", 64, 6, 2, hadamard(Bits::Four, Bits::Two, 32)),
        case("f16 pages, f16 rows", 64, 6, 2, Format::f16()).element(Element::F16),
        case("sinks and window", 64, 6, 2, hadamard(Bits::Four, Bits::Two, 32)).protection(protect(4, 128)),
        case("keys as they came", 64, 6, 2, rtn(Bits::Eight, Bits::Eight, 64)),
        case("Centred", 64, 6, 2, centred(Bits::Four, Bits::Two, 64)),
        case("RotateKV", 64, 6, 2, rotated(Bits::Four, Bits::Two, 32, 2)),
        case("RotateKV with elected sinks", 64, 6, 2, rotated(Bits::Two, Bits::Two, 64, 1)).protection(massive(20, 0)),
        case("RotateKV in halves", 64, 6, 2, rotated(Bits::Two, Bits::Two, 64, 2)).straight(true),
    ] {
        let case = case.steps(steps.clone());
        for bad in [f32::NAN, f32::INFINITY] {
            let mut clean = Walk::new(&gpu, case.clone());
            let mut harmed = Walk::new(&gpu, clean.case.clone());
            for chunks in &steps {
                let rows = clean.draw(chunks.iter().map(|(_, n)| n).sum());
                let mut broken = rows.clone();
                // Head 4 of row 1: the second KV head's second query head.
                broken[2][(6 + 4) * 64 + 7] = bad;
                let want = clean.take_rows(chunks, rows, true);
                let got = harmed.take_all(chunks, broken, want.residual.numbers.clone(), true);
                // Beside others, its log-sum is NaN, too.
                let [asked, out] = [&got.queries.words, &vec![POISON; got.output.len()]].map(|words| upload(&gpu, bytemuck::cast_slice(words)));
                let count = (got.step.rows() * 6) as usize;
                let log_sums = poisoned(&gpu, count);
                let of = |buffer| Rows::new(buffer, harmed.case.element);
                let mut encoder = encoder(&harmed.gpu);
                harmed.cache.attend_part(&mut encoder, &got.step, 0, of(&asked), of(&out), Rows::f32(&log_sums)).unwrap();
                submit(&harmed.gpu, encoder);
                assert!(words(&gpu, &out) == got.output, "{}: another output beside {bad}", case.why);
                for (i, log_sum) in download(&gpu, &log_sums, count).into_iter().enumerate() {
                    assert_eq!((log_sum.is_nan(), log_sum.is_finite()), (i == 6 + 4, i != 6 + 4), "{}: log-sum {i} beside {bad}", case.why);
                }
                for (i, (got, want)) in harmed.output(&got).chunks_exact(64).zip(clean.output(&want).chunks_exact(64)).enumerate() {
                    if i == 6 + 4 {
                        assert!(got.iter().all(|x| x.is_nan()), "{}: {bad} gave {got:?}", case.why);
                    } else {
                        assert!(got == want && got.iter().all(|x| x.is_finite()), "{}: row {}, head {} changed beside {bad}", case.why, i / 6, i % 6);
                    }
                }
            }
            assert!(pollster::block_on(harmed.cache.status()).unwrap().is_clean(), "queries are not listed");
        }
    }
}
