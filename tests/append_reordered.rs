//! `append_reordered` packs exactly the new tokens' keys for RotateKV: rotated over groups of KV
//! heads before RoPE, with scales that channels share in the order that was collected; and it packs
//! them as its twin does.
//!
//! - Every scale, zero and code is the rounding of a number within f32's error of `P B k` computed
//!   in f64; it is the rounding that the twin makes except where that error reaches a tie: rarely,
//!   and counted.
//! - A code lies at its channel's place in `B k`; the order decides only which scale it has.
//! - Tokens that leave the window are turned back: what is packed is `P B` of the f16 row before
//!   RoPE.
//! - Tokens that were packed before, pages of other sequences and their scales keep every bit.
//! - A key that is not finite zeros its group of heads and no other, and lists each of its heads.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::reference::{self, rotate_group_exact, turn_exact};
use wgkv_testing::*;

/// Error of a number of a rotated row, relative to the length of its group of heads: at most 11
/// roundings in the rotation of a head (see tests/rotate.rs), 9 in the sum over eight heads and its
/// factor, and 5 where the row is turned back, of 2^-24 each.
const ROW_ERROR: f64 = 25.0 / 16_777_216.0;

fn cases() -> Vec<Case> {
    use Bits::*;
    let leave: Vec<Vec<(usize, u32)>> = vec![vec![(0, 150), (1, 7)], vec![(0, 20)], vec![(1, 300), (0, 1)], vec![(0, 120), (1, 1)]];
    let few: Vec<Vec<(usize, u32)>> = vec![vec![(0, 45), (1, 34)], vec![(1, 1), (0, 1)], vec![(0, 9)]];
    let of = |why, head_dim, kv_heads, format| case(why, head_dim, kv_heads, kv_heads, format).steps(few.clone());
    vec![
        of("the paper's: 4 heads of 128, 2 bits clipped to 0.8", 128, 4, rotated(Two, Two, 128, 4)),
        of("a group of 128 spans two heads of 64", 64, 2, rotated(Four, Four, 128, 2)),
        of("one head, 3 bits", 64, 1, rotated(Three, Two, 64, 1)),
        of("8 heads in 2 groups, ordered within each", 64, 8, rotated(Two, Four, 32, 4)).reach(Reach::Local),
        of("8 heads at once: the sum over heads is the longest", 64, 8, rotated(Eight, Two, 64, 8)),
        of("6 heads in 3 groups; 20 x 4; a row of 480 channels, groups of 32", 80, 6, rotated(Three, Three, 128, 2)),
        of("3 heads of 96, each rotated alone; groups of 32 of all of them", 96, 3, rotated(Four, Two, 32, 1)),
        of("every group of heads in a slab of its own: the first writes the scales", 64, 4, rotated(Four, Four, 64, 2)).slabs(),
        of("f16 rows; bytes for scales", 64, 4, rotated(Two, Two, 128, 4).with_scales(Scales::Byte)).element(Element::F16),
        of("bytes for scales, 3 bits", 96, 2, rotated(Three, Four, 128, 2).with_scales(Scales::Byte)),
        of("bytes for scales, 4 bits", 128, 2, rotated(Four, Two, 128, 2).with_scales(Scales::Byte)),
        of("4 heads of 192, 12 x 16", 192, 4, rotated(Four, Two, 64, 4)),
        of("the largest head", 256, 2, rotated(Two, Two, 128, 2)),
        of("sinks without a window: the first lane is never packed", 64, 2, rotated(Four, Four, 64, 2)).protection(protect(4, 0)),
        of("a lane is packed in part", 64, 2, rotated(Four, Four, 64, 2).with_scales(Scales::Byte)).protection(protect(3, 0)),
        of("keys that come turned", 64, 4, rotated(Four, Two, 64, 2)).turned().protection(protect(4, 0)),
        of("keys that come turned, half of a head, pairs side by side", 64, 2, rotated(Three, Two, 64, 2)).turned().rope(Rope::new(10_000.0, 32).interleaved()),
        of("elected sinks are packed, too", 64, 2, rotated(Two, Two, 64, 2)).protection(massive(9, 0)),
        case("tokens leave the window and are turned back", 64, 4, 4, rotated(Four, Four, 64, 4)).protection(protect(4, 32)).steps(leave.clone()),
        case("a window of a page; interleaved pairs; signed bytes", 64, 1, 1, rotated(Eight, Eight, 32, 1))
            .protection(protect(0, 128))
            .element(Element::F16)
            .steps(vec![vec![(0, 255)], vec![(0, 1)], vec![(0, 400), (1, 130)], vec![(1, 126), (0, 1)]])
            .rope(Rope::new(500.0, 64).interleaved()),
        case("the window with elected sinks, half a head turned", 80, 2, 2, rotated(Two, Two, 128, 2))
            .protection(massive(20, 32))
            .steps(leave.clone())
            .rope(Rope::new(10_000.0, 40)),
        case("a window without RoPE", 64, 3, 3, rotated(Three, Two, 32, 1).with_scales(Scales::Byte)).protection(protect(0, 1)).steps(leave).rope(Rope::none()),
        case("values in two ways: pairs of heads in slabs of their own", 64, 4, 4, rotated(Three, Two, 32, 2)).two_ways(),
    ]
}

/// The keys of one token of all heads as they are to be packed, in f64, and f32's error of each
/// group of heads.
fn exact_row(walk: &Walk, taken: &Taken, record: &Record, token: u32) -> Exact {
    let shape = &walk.case.shape;
    let d = shape.head_dim as usize;
    let back = shape.rope.clone().with_frequencies(shape.rope.frequencies().iter().map(|f| -f).collect());
    let plain = |head: u32| -> Vec<f64> {
        if token < record.old_tokens {
            let at = window_row(walk, record.slot, head, token);
            let kept: Vec<f64> = taken.before.protected_rows[at..at + d / 2].iter().flat_map(|w| reference::half::unpack(*w)).map(f64::from).collect();
            return turn_exact(&back, &kept, token);
        }
        let at = ((record.row_first + token - record.old_tokens) * shape.kv_heads + head) as usize * d;
        let fresh: Vec<f64> = taken.keys.numbers[at..at + d].iter().map(|x| f64::from(*x)).collect();
        if walk.case.turned { turn_exact(&back, &fresh, token) } else { fresh }
    };
    let group = walk.plan().group_heads();
    let rows: Vec<Vec<f64>> = (0..shape.kv_heads).step_by(group as usize).map(|first| (first..first + group).flat_map(&plain).collect()).collect();
    let length = |row: &Vec<f64>| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let error = ROW_ERROR * rows.iter().map(length).fold(0.0, f64::max);
    Exact { row: rows.iter().flat_map(|row| rotate_group_exact(row, shape.head_dim)).collect(), error }
}

/// What the twin makes of a step, from what the kernel began with.
fn twin(walk: &Walk, taken: &Taken) -> (State, Vec<u32>) {
    let words = taken.step.words();
    let (mut state, mut status) = (taken.before.clone(), vec![0; 1028]);
    assert_eq!(words.append_reordered.len(), state.pages.len(), "a dispatch a slab");
    for ((params, constants), pages) in words.append_reordered.iter().zip(&walk.slab_constants).zip(&mut state.pages) {
        reference::append_reordered(
            params,
            constants,
            &words.tables,
            &walk.turns,
            &taken.keys.words,
            &taken.before.protected_rows,
            &taken.after.marks,
            pages,
            &mut state.key_scales,
            &mut status,
        );
    }
    (state, status)
}

/// Codes of one token of all heads.
fn codes(plan: &Plan, state: &State, physical: u32, token: u32) -> Vec<u32> {
    (0..plan.shape().kv_heads).flat_map(|head| key(page(plan, &state.pages, physical, head), token).codes).collect()
}

fn check_step(walk: &Walk, taken: &Taken, count: &mut Count) {
    let plan = walk.plan();
    let (format, layout) = (plan.slabs(0)[0].format(), plan.slabs(0)[0].layout());
    let (want, status) = twin(walk, taken);
    assert_eq!(status[0], 0, "all rows are finite");
    let places = plan.channel_order().unwrap().places(0);
    let records = records(taken);
    for physical in 0..plan.pages() {
        let owner = records.iter().find_map(|r| Some((r, r.pages.iter().position(|p| *p == physical)? as u32)));
        for t in 0..128 {
            let packs = owner.is_some_and(|(r, n)| (r.old_packed.max(unpacked(plan))..r.new_packed).contains(&(128 * n + t)));
            let [got_codes, before_codes, want_codes] = [&taken.after, &taken.before, &want].map(|state| codes(plan, state, physical, t));
            let [got_scales, before_scales, want_scales] = [&taken.after, &taken.before, &want].map(|state| row_scales(plan, &state.key_scales, physical, t));
            let Some((record, n)) = owner.filter(|_| packs) else {
                assert!(got_codes == before_codes && got_scales == before_scales, "{}: page {physical}, place {t} changed, but was not packed", walk.case.why);
                continue;
            };
            let token = 128 * n + t;
            let context = format!("{}: slot {}, token {token}. WGKV_SEED={}", walk.case.why, record.slot, walk.seed);
            let exact = exact_row(walk, taken, record, token);
            for g in 0..layout.row_groups as usize {
                let channels: Vec<usize> = (0..exact.row.len()).filter(|c| u32::from(places[*c]) / layout.row_group == g as u32).collect();
                assert_eq!(channels.len(), layout.row_group as usize);
                let take = |(scales, zeros): &(Vec<f32>, Vec<f32>), codes: &[u32]| Group {
                    scale: scales[g],
                    zero: zeros[g],
                    codes: channels.iter().map(|c| codes[*c]).collect(),
                };
                let row: Vec<f64> = channels.iter().map(|c| exact.row[*c]).collect();
                let packing = Packing { bits: format.key().bits.get(), clip: format.clip(format.key().bits), scales: format.scales(), trellis: None };
                let (got, want) = (take(&got_scales, &got_codes), take(&want_scales, &want_codes));
                check_group(&format!("{context}, group {g}"), packing, &got, &want, &row, exact.error, count);
            }
        }
    }
}

#[test]
fn append_reordered_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases() {
        let start = std::time::Instant::now();
        let steps = case.steps.clone();
        let mut walk = Walk::new(&gpu, case);
        let mut count = Count::default();
        for chunks in &steps {
            let taken = walk.take(chunks, false);
            check_step(&walk, &taken, &mut count);
        }
        assert!(count.all > 1000 && (count.ties as f64) < TIES * count.all as f64, "{count:?} rounded otherwise than the twin. WGKV_SEED={}", walk.seed);
        assert!(pollster::block_on(walk.cache.status()).unwrap().is_clean());
        println!("  {count:?} {:?}", start.elapsed());
    }
}

#[test]
fn a_key_that_is_not_finite_zeros_its_group_of_heads() {
    let gpu = gpu();
    let steps: Vec<Vec<(usize, u32)>> = vec![vec![(0, 40), (1, 9)], vec![(1, 1), (0, 1)]];
    for (case, flagged) in [
        // Heads 2 and 3 are of the harmed group; with slabs each lists its own.
        (case("two groups of two heads", 64, 4, 4, rotated(Bits::Four, Bits::Two, 64, 2)).steps(steps.clone()), vec![2, 3]),
        (case("in slabs", 64, 4, 4, rotated(Bits::Four, Bits::Two, 64, 2)).steps(steps.clone()).slabs(), vec![2, 3]),
        (case("one head alone", 64, 4, 4, rotated(Bits::Two, Bits::Two, 64, 1)).steps(steps.clone()), vec![3]),
        // The f16 row of the head is zeros already when it is packed.
        (case("kept in the window", 64, 4, 4, rotated(Bits::Four, Bits::Two, 64, 4)).steps(steps).protection(protect(0, 16)), vec![3]),
    ] {
        let (d, heads) = (64, 4);
        let groups: Vec<u32> = if case.protection.window > 0 { vec![3] } else { flagged.clone() };
        let mut broken = Walk::new(&gpu, case.clone());
        // The same order of channels for both.
        let mut zeroed = Walk::new(&gpu, broken.case.clone());
        for (s, chunks) in case.steps.iter().enumerate() {
            let rows = broken.draw(chunks.iter().map(|(_, n)| n).sum());
            let (mut bad, mut zero) = (rows.clone(), rows);
            if s == 0 {
                // Token 3 of the second sequence, head 3.
                let row = (40 + 3) * heads;
                bad[0][(row + 3) * d + 9] = if case.slabs { f32::NEG_INFINITY } else { f32::NAN };
                for head in &groups {
                    zero[0][(row + *head as usize) * d..][..d].fill(0.0);
                }
            }
            let (a, b) = (broken.take_rows(chunks, bad, true), zeroed.take_rows(chunks, zero, true));
            // RoPE turns zeros into zeros of either sign.
            let halves = |words: &[u32]| words.iter().map(|w| [w & 0xffff, w >> 16].map(|h| if h == 0x8000 { 0 } else { h })).collect::<Vec<_>>();
            assert!(halves(&a.after.protected_rows) == halves(&b.after.protected_rows), "{}: step {s} left other f16 rows", case.why);
            assert!(a.after.pages == b.after.pages && a.after.key_scales == b.after.key_scales, "{}: step {s} left other pages", case.why);
            assert!(broken.output(&a) == zeroed.output(&b), "{}: step {s} attended otherwise", case.why);
            assert!(broken.output(&a).iter().all(|x| x.is_finite()));
            if s == 0 && case.protection.window == 0 {
                let (_, status) = twin(&broken, &a);
                let heads: Vec<u32> = (0..status[0] as usize).map(|n| status[4 + 4 * n + 3] / 16).collect();
                assert_eq!(heads, flagged, "{}: the twin's list", case.why);
            }
        }
        let flags: Vec<Flag> =
            flagged.iter().map(|head| Flag { layer: 0, slot: 1, token: 3, head: *head, key: Some(Defect::NotFinite), value: None }).collect();
        assert_eq!(pollster::block_on(broken.cache.status()).unwrap(), Status { rows: flags.len() as u32, flags }, "{}", case.why);
        assert!(pollster::block_on(zeroed.cache.status()).unwrap().is_clean());
    }
}

#[test]
fn groups_without_a_range_come_back() {
    // A row whose rotation is one number at the first channel of each group of heads, and zeros
    // elsewhere; and one all zeros.
    let gpu = gpu();
    for scales in [Scales::Half, Scales::Byte] {
        for bits in [Bits::Two, Bits::Three, Bits::Four] {
            let format = rotated(bits, bits, 64, 2).with_scales(scales).with_clip(1.0);
            let shape = Shape { layers: 1, query_heads: 2, kv_heads: 2, head_dim: 64, rope: Rope::none() };
            let mut walk = Walk::new(&gpu, case("flat groups", 64, 2, 2, format).shape(shape));
            let numbers = [0.0, 1e-3, -0.1, 1.0, -77.0];
            let rows: Vec<f32> = numbers.into_iter().flat_map(|x| [x; 128]).collect();
            let taken = walk.take_rows(&[(0, numbers.len() as u32)], [rows.clone(), rows.clone(), rows.clone()], false);
            assert!(taken.after.key_scales.len() > 16);
            let [keys, _] = walk.dequantize(0);
            for (row, x) in keys.chunks_exact(128).zip(numbers) {
                // The rotation of a row of one number is its length in one place: one code of its
                // step, or the smallest step.
                let length = x.abs() * 128_f32.sqrt();
                let step = (length / ((1 << bits.get()) - 1) as f32).max(if scales == Scales::Half { 2_f32.powi(-14) } else { 2_f32.powi(-9) });
                // Half a code; with a scale of a byte, which is off by a sixteenth at most, up to a
                // whole code at the range's end.
                let codes = if scales == Scales::Half { 0.6 } else { 1.0 };
                let error = row.iter().map(|y| (y - x).powi(2)).sum::<f32>().sqrt();
                assert!(error <= codes * step * 1.1, "{x} at {bits:?}, {scales} came back with an error of {error}, step {step}");
            }
        }
    }
}
