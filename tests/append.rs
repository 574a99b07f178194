//! `append` packs exactly the new tokens, and packs them as its twin does.
//!
//! - Every scale, zero and code is the rounding of a number within f32's error of the one computed
//!   in f64: scales as halves, zeros from the stored scale, codes from the stored scale and zero.
//! - It is the rounding that the twin makes, ties to even included, except where the number before
//!   rounding is within that error of a tie. Such exceptions are rare, and counted.
//! - Tokens that were packed before, and pages of other sequences, keep every bit. (Pages hold
//!   stale halves at first. The words of value codes are read, changed and written, so what was in
//!   them shows only where it should have stayed.)
//! - A key or value that is not finite is stored as zeros and listed; nothing else changes.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::kernel::append::AppendParams;
use wgkv::low_level::reference::{self, Constants};
use wgkv_testing::*;

#[test]
fn append_agrees_with_its_reference_at_every_bit_width() {
    let gpu = gpu();
    for case in append_cases() {
        check_appends(Walk::new(&gpu, case.no_subgroups()));
    }
}

#[test]
fn groups_without_a_range_come_back() {
    // All numbers of a group alike: the scale is bounded below so that the zero stays an integer
    // that a half holds.
    let gpu = gpu();
    for bits in [Bits::Two, Bits::Three, Bits::Four, Bits::Eight] {
        let mut walk = Walk::new(
            &gpu,
            case("flat groups", 64, 1, 1, rtn(bits, bits, 32)).shape(Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::none() }),
        );
        let levels: Vec<f32> = [0.0, 1e-7, -3e-5, 0.1, -1.0, 77.7, -1000.0, 20_000.0].into_iter().flat_map(|x| [x; 64]).collect();
        walk.take_rows(&[(0, 8)], [levels.clone(), levels.clone(), levels.clone()], false);
        for back in walk.dequantize(0) {
            for (x, want) in back.iter().zip(&levels) {
                assert!((x - want).abs() <= flat_group_error(*want), "{want} at {bits:?} came back as {x}");
            }
        }
    }
}

#[test]
fn numbers_that_are_not_finite_are_stored_as_zeros_and_listed() {
    let gpu = gpu();
    let steps = vec![vec![(0, 40), (1, 9)], vec![(1, 1), (0, 1)]];
    let bad = |is: bool| is.then_some(Defect::NotFinite);
    let flag = |slot, token, head, key, value| Flag { layer: 0, slot, token, head, key: bad(key), value: bad(value) };
    // Row 43 is token 3 of the second sequence.
    let harms = [(2, 1, true, false, f32::NAN), (31, 0, false, true, f32::INFINITY), (43, 1, true, true, f32::NEG_INFINITY)];
    let flags = [flag(0, 2, 1, true, false), flag(0, 31, 0, false, true), flag(1, 3, 1, true, true)];
    for case in [
        case("packed at once, rotated", 64, 2, 2, hadamard(Bits::Four, Bits::Two, 32)).steps(steps.clone()),
        case("f16 rows into f16 pages", 64, 2, 2, Format::f16()).steps(steps.clone()).element(Element::F16),
        case("kept in the window", 64, 2, 2, hadamard(Bits::Four, Bits::Two, 32)).steps(steps).protection(protect(4, 128)),
    ] {
        for case in [case.clone(), case.no_subgroups()] {
            harmed(&gpu, &case, &harms, &flags);
        }
    }
}

#[test]
fn more_broken_rows_than_the_list_holds_are_counted() {
    let gpu = gpu();
    let mut walk = Walk::new(&gpu, case("300 broken keys", 64, 1, 1, rtn(Bits::Four, Bits::Four, 64)).steps(vec![vec![(0, 300)]]));
    let [mut keys, values, queries] = walk.draw(300);
    for row in keys.chunks_exact_mut(64) {
        row[63] = f32::NAN;
    }
    walk.take_rows(&[(0, 300)], [keys, values, queries], false);
    let status = pollster::block_on(walk.cache.status()).unwrap();
    assert_eq!((status.rows, status.flags.len()), (300, 256));
    assert!(status.flags.iter().all(|f| f.key == Some(Defect::NotFinite) && f.value.is_none()));
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
    // Heads that differ in size by 2^6, and a channel that is negative throughout: exponents are of
    // magnitudes, and each head's own.
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
        let none = case("planes in one chunk", 64, 2, 2, format).protection(protection);
        let none = if coded { none.in_planes() } else { none };
        let none = none.rope(Rope::none()).steps(vec![vec![(0, 300)]]);
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
        let mut pieces = Walk::new(&gpu, none.why("planes in pieces").means(whole.case.means.clone()));
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
        // -20 and less is 16 to 32, or more where the other numbers are: the negative channel has
        // the exponent of its magnitude.
        assert!(coded || (got[0].0[5] >= 19 && got[1].0[5] >= 25), "{:?}", &got[..2]);
    }
}
