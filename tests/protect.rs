//! `protect` keeps exactly the new tokens that are sinks or in the window, in f16, turned and
//! rotated.
//!
//! - Every half is the rounding of a number within f32's error of the one computed in f64, and the
//!   one the twin makes except where that error reaches a tie: rarely, and counted.
//! - All other f16 rows, those of other sequences among them, keep every bit.
//! - A row that f16 cannot hold once it is turned and rotated is clamped and listed; one that it can
//!   hold is not listed, however large.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::reference::{self, cached};
use wgkv_testing::*;

/// Error of a number of a turned and rotated row, relative to the row's length; see
/// tests/append.rs.
const ROW_ERROR: f64 = 16.0 / 16_777_216.0;

/// Halves that may be rounded otherwise than the twin does it: f32's error is 2^-13 of a half's
/// last place, a little more for numbers much smaller than their row.
const TIES: f64 = 0.01;

fn cases() -> Vec<Case> {
    use Bits::*;
    let format = hadamard(Four, Four, 32);
    vec![
        case("sinks without a window", 64, 2, 2, format).protection(protect(4, 0)),
        case("the smallest window; f16 rows", 64, 1, 1, rtn(Two, Two, 32)).protection(protect(0, 1)).element(Element::F16),
        case("the default; sinks arrive in two steps", 64, 2, 2, rtn(Four, Four, 64)).protection(protect(4, 128)).steps(vec![
            vec![(0, 2)],
            vec![(0, 300), (1, 3)],
            vec![(0, 1), (1, 200)],
            vec![(1, 128)],
        ]),
        case("the most sinks; 20 x 4", 80, 1, 1, hadamard(Four, Four, 128)).protection(protect(127, 128)).rope(Rope::new(10_000.0, 80).interleaved()),
        case("12 x 8", 96, 1, 1, hadamard(Four, Four, 32)).protection(protect(4, 16)).rope(Rope::none()),
        case("a head of 128, without rotation", 128, 1, 1, rtn(Four, Four, 128)).protection(protect(4, 32)).rope(Rope::new(10_000.0, 64)),
        case("a head of 192: 12 x 16", 192, 1, 1, format).protection(protect(4, 32)),
        case("the largest head: 32 x 16", 512, 1, 1, hadamard(Two, Four, 64)).protection(protect(4, 32)),
        case("a head of 256", 256, 1, 1, format).protection(protect(4, 32)),
        case("more tokens than a dimension of the grid, as pretended, holds", 64, 1, 1, format)
            .workgroups(512)
            .protection(protect(4, 1024))
            .steps(vec![vec![(0, 700)], vec![(0, 1)]]),
        case("RotateKV: keys turned, not rotated; values rotated", 64, 4, 4, rotated(Two, Two, 128, 4)).protection(protect(4, 16)),
        case("Centred, one group of 80", 80, 2, 2, centred(Two, Two, 128)).protection(protect(4, 16)).rope(Rope::new(10_000.0, 80).interleaved()),
        case("Centred, f16 rows", 128, 2, 2, centred(Three, Two, 64)).protection(protect(4, 32)).element(Element::F16).rope(Rope::new(10_000.0, 64)),
        case("Centred: rows that come turned", 64, 2, 2, centred(Four, Four, 64)).protection(protect(4, 16)).turned(),
        case("Centred: elected sinks with a window; half of the head turns", 64, 2, 2, centred(Four, Four, 64))
            .protection(massive(20, 16))
            .rope(Rope::new(10_000.0, 32))
            .steps(vec![vec![(0, 9), (1, 200)], vec![(0, 50), (1, 1)], vec![(1, 20)]]),
        case("Centred: elected sinks, rows that come turned", 64, 2, 2, centred(Four, Four, 64)).protection(massive(20, 16)).turned(),
        case("elected sinks, of a prompt in chunks", 64, 2, 2, rotated(Four, Four, 64, 2)).protection(massive(20, 0)).steps(vec![
            vec![(0, 9), (1, 200)],
            vec![(0, 50), (1, 1)],
            vec![(1, 20)],
        ]),
        case("elected sinks with a window; f16 rows", 64, 1, 1, rotated(Four, Four, 64, 1)).protection(massive(7, 128)).element(Element::F16).steps(vec![
            vec![(0, 140), (1, 3)],
            vec![(0, 1), (1, 300)],
            vec![(1, 1)],
        ]),
    ]
}

#[test]
fn protect_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases() {
        let steps = case.steps.clone();
        let mut walk = Walk::new(&gpu, case);
        let shape = walk.case.shape.clone();
        let d = shape.head_dim as usize;
        let (mut all, mut ties) = (0, 0);
        for chunks in &steps {
            let taken = walk.take(chunks, false);
            let words = taken.step.words();
            let (mut twin, mut status) = (taken.before.protected_rows.clone(), vec![0; 1028]);
            reference::protect(
                &words.protect[0],
                &walk.constants,
                &words.tables,
                &walk.turns,
                &taken.keys.words,
                &taken.values.words,
                &taken.after.marks,
                &mut twin,
                &mut status,
            );
            assert_eq!(status[0], 0);

            // Which words should change, from what protection means.
            let mut kept = vec![false; twin.len()];
            for record in records(&taken) {
                // The token of each row of the sinks (elected ones may lie in the window as well),
                // then those of the window.
                let (plan, c) = (walk.plan(), &walk.constants);
                let new = record.old_tokens..record.new_tokens;
                let sink = |s: u32| if plan.elects() { Some(taken.after.marks[cached::elected(c, record.slot) + s as usize]) } else { Some(s) };
                let elects = !plan.elects() || record.new_tokens > record.old_tokens + 1;
                let sinks = (0..plan.sinks()).filter(|_| elects).filter_map(|s| Some((s, sink(s).filter(|t| new.contains(t))?)));
                let window = (record.new_packed.max(unpacked(plan))..record.new_tokens).filter(|t| new.contains(t));
                for (s, token) in sinks.chain(window.map(|t| (cached::window_row(c, t), t))) {
                    for head in 0..shape.kv_heads {
                        let context = format!("{}: slot {}, token {token}, head {head}. WGKV_SEED={}", walk.case.why, record.slot, walk.seed);
                        let at = cached::offset(c, record.slot, shape.kv_heads, head, s) as usize;
                        kept[at..at + d].fill(true);
                        let from = (((record.row_first + token - record.old_tokens) * shape.kv_heads + head) * shape.head_dim) as usize;
                        for (input, at, key) in [(&taken.keys, at, true), (&taken.values, at + d / 2, false)] {
                            let raw = &input.numbers[from..from + d];
                            let error = ROW_ERROR * basis_length(&walk, raw, head, key);
                            let exact = basis_of(&walk, raw, head, token, key, plan.elects() && s < plan.sinks());
                            let got: Vec<f32> = taken.after.protected_rows[at..at + d / 2].iter().flat_map(|w| reference::half::unpack(*w)).collect();
                            let want: Vec<f32> = twin[at..at + d / 2].iter().flat_map(|w| reference::half::unpack(*w)).collect();
                            for i in 0..d {
                                // Half a unit in the last place of a half is 2^-11 of it at most,
                                // or 2^-25.
                                let allowed = (exact[i].abs() / 2048.0).max(2_f64.powi(-25)) + error;
                                assert!((f64::from(got[i]) - exact[i]).abs() <= allowed, "channel {i} is {}, should be {}: {context}", got[i], exact[i]);
                                all += 1;
                                ties += usize::from(got[i] != want[i]);
                            }
                        }
                    }
                }
            }
            for (i, kept) in kept.iter().enumerate() {
                assert!(*kept || taken.after.protected_rows[i] == taken.before.protected_rows[i], "{}: word {i} should have stayed", walk.case.why);
                assert!(*kept || twin[i] == taken.before.protected_rows[i], "{}: the twin's word {i} should have stayed", walk.case.why);
            }
        }
        assert!(all > 1000 && f64::from(ties as u32) < TIES * f64::from(all), "{ties} of {all} rounded otherwise than the twin. WGKV_SEED={}", walk.seed);
        println!("  {ties} of {all} halves rounded otherwise");
    }
}

/// Every number of a token's key and of its value, and what is wrong with each.
type Planted = (f32, f32, Option<Defect>, Option<Defect>);

#[test]
fn rows_that_f16_cannot_hold_are_clamped_and_listed() {
    let gpu = gpu();
    let format = hadamard(Bits::Four, Bits::Four, 32);
    // Rotation gathers equal numbers in one, sqrt(64) times as large.
    let saturated = Some(Defect::Saturated);
    let rotated = [
        (20_000.0, 1.0, saturated, None),
        (1.0, -20_000.0, None, saturated),
        // 65504 is the largest half; 8188 * 8 is that, and the factors of Hadamard are exact.
        (8188.0, -8188.0, None, None),
        (8189.0, 8189.0, saturated, saturated),
        (f32::NAN, 20_000.0, Some(Defect::NotFinite), saturated),
        // Sums would leave f32.
        (3e38, -3e38, Some(Defect::NotFinite), Some(Defect::NotFinite)),
    ];
    let plain = [(65_504.0, -65_504.0, None, None), (65_505.0, 1e30, saturated, saturated)];
    // Signs spread equal numbers over all coefficients.
    let spread = [(70_000.0, 1.0, saturated, None), (1.0, -70_000.0, None, saturated), (20_000.0, -20_000.0, None, None)];
    let centred_case = case("Centred, from f32 rows", 64, 1, 1, centred(Bits::Four, Bits::Four, 32)).protection(protect(2, 16));
    let means = Means::natural(&centred_case.shape);
    for (case, rows) in [
        (case("sinks", 64, 1, 1, format).protection(protect(8, 0)), &rotated[..]),
        (case("a window", 64, 1, 1, format).protection(protect(0, 16)), &rotated),
        (case("not rotated", 64, 1, 1, rtn(Bits::Four, Bits::Four, 32)).protection(protect(2, 16)), &plain),
        (centred_case.means(means), &spread),
    ] {
        let mut walk = Walk::new(&gpu, case.rope(Rope::none()));
        let fill = |of: fn(&Planted) -> f32| rows.iter().flat_map(|row| [of(row); 64]).collect::<Vec<f32>>();
        let n = rows.len() as u32;
        let taken = walk.take_rows(&[(0, n)], [fill(|r| r.0), fill(|r| r.1), vec![0.0; rows.len() * 64]], false);
        let flags: Vec<Flag> = (0..)
            .zip(rows)
            .filter(|(_, row)| row.2.is_some() || row.3.is_some())
            .map(|(token, row)| Flag { layer: 0, slot: 0, token, head: 0, key: row.2, value: row.3 })
            .collect();
        let status = pollster::block_on(walk.cache.status()).unwrap();
        assert_eq!(status, Status { rows: flags.len() as u32, flags: flags.clone() }, "{}", walk.case.why);
        // Nothing stored is infinite, and the twin lists and stores the same.
        let halves = |words: &[u32]| words.iter().flat_map(|w| reference::half::unpack(*w)).collect::<Vec<f32>>();
        assert!(halves(&taken.after.protected_rows).iter().all(|x| x.is_finite()), "{}", walk.case.why);
        let (words, mut twin, mut list) = (taken.step.words(), taken.before.protected_rows.clone(), vec![0; 1028]);
        let (turns, marks) = (&walk.turns, &taken.after.marks);
        reference::protect(&words.protect[0], &walk.constants, &words.tables, turns, &taken.keys.words, &taken.values.words, marks, &mut twin, &mut list);
        let listed: Vec<[u32; 2]> = list[4..].chunks_exact(4).take(list[0] as usize).map(|e| [e[2], e[3]]).collect();
        let bits = |defect, bit| match defect {
            None => 0,
            Some(Defect::NotFinite) => bit,
            Some(Defect::Saturated) => 4 * bit,
        };
        let wanted: Vec<[u32; 2]> = flags.iter().map(|f| [f.token, bits(f.key, 1) | bits(f.value, 2)]).collect();
        assert_eq!(listed, wanted, "{}: the twin's list", walk.case.why);
    }
}
