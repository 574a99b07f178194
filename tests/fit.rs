//! How well a row comes back does not hang on how large it is, nor on how its numbers are spread,
//! and a row that cannot be stored is listed.
//!
//! - Centred stores a row times a power of two as it stores the row: the same codes, the scale times
//!   that power; attention reads it so, too, a prefill as far as halves hold it.
//! - Rows whose channels share an offset, and rows with one large channel, cost Centred no more than
//!   they cost Hadamard.
//! - A group whose scale cannot be stored is listed as saturated, by every kernel that packs and by
//!   its twin; the largest that can be is not.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::reference;
use wgkv_testing::*;

const BITS: [Bits; 4] = [Bits::Two, Bits::Three, Bits::Four, Bits::Eight];

/// What a prefill's output may differ by, in half units in the last place of the smallest halves,
/// since keys and values are unpacked to halves: below 2^-14 they have that unit whatever they are. A
/// value is off by one at most, and so is an output for it; keys move a score by 0.58 of it in the
/// root mean square (times the length of the query over the root of the head dimension, about 1),
/// five times that, and an output by its distance from the largest values, 4.
const UNPACKED_UNITS: f32 = 13.0;

fn natural(case: Case) -> Case {
    let means = Means::natural(&case.shape);
    case.means(means)
}

#[test]
fn rows_of_every_magnitude_come_back_as_well() {
    let gpu = gpu();
    let uniform = BITS.into_iter().enumerate().map(|(n, bits)| centred(bits, bits, [64, 32][n / 2]));
    for (n, format) in uniform.chain([trellis(64), trellis(128)]).enumerate() {
        // A chunk that attends as a prefill, then a token that attends over what is packed.
        let steps = [vec![(0, 70)], vec![(0, 1)]];
        let head_dim = [64, 128][n % 2];
        let case = natural(case("magnitudes", head_dim, 2, 1, format));
        // Cooperative matrices would have queries of 2^22 as halves, too.
        let case = if n == 1 { case.no_subgroups() } else { case }.no_matrices();
        // What comes back of keys and values, and attention's output, by step.
        let mut walk = Walk::new(&gpu, case.clone());
        let rows: Vec<[Vec<f32>; 3]> = steps.iter().map(|chunks| walk.draw(chunks[0].1)).collect();
        let run = |power: i32| {
            let mut walk = Walk::new(&gpu, case.clone());
            let factor = 2_f32.powi(power);
            let times = |numbers: &[f32]| numbers.iter().map(|x| x * factor).collect::<Vec<f32>>();
            let mut got = Vec::new();
            for (chunks, [keys, values, queries]) in steps.iter().zip(&rows) {
                // Queries as much smaller leave the scores as they are.
                let queries = queries.iter().map(|x| x / factor).collect();
                let taken = walk.take_rows(chunks, [times(keys), times(values), queries], true);
                got.push(walk.output(&taken));
            }
            got.extend(walk.dequantize(0));
            assert!(pollster::block_on(walk.cache.status()).unwrap().is_clean());
            (factor, got)
        };
        let (_, one) = run(0);
        // Halves end at 2^-24, and from 2^13 on a rotated normal row may be beyond the largest.
        for power in [-22, -17, -14, -13, -12, -11, -10, -9, -8, -5, 6, 13] {
            let (factor, scaled) = run(power);
            for (which, (one, scaled)) in ["a prefill's output", "a step's output", "keys", "values"].iter().zip(one.iter().zip(&scaled)) {
                let most = if which.contains("prefill") && power < 0 { UNPACKED_UNITS * 2_f32.powi(-25) } else { 0.0 };
                // A NaN is beyond it.
                let wrong = one.iter().zip(scaled).map(|(a, b)| (a * factor - b).abs()).position(|error| error.is_nan() || error > most);
                assert_eq!(wrong, None, "{format}: {which} of rows of 2^{power} differ first there. WGKV_SEED={}", walk.seed);
            }
        }
    }
}

/// Returns the mean over rows of the error that comes back, relative to the row, of keys and values.
fn error(gpu: &Gpu, format: Format, rows: &[f32]) -> f64 {
    let case = case("a sweep", 128, 1, 1, format).rope(Rope::none());
    let case = if format.codec() == Codec::Centred { natural(case) } else { case };
    let tokens = (rows.len() / 128) as u32;
    let mut walk = Walk::new(gpu, case.steps(vec![vec![(0, tokens)]]));
    walk.take_rows(&[(0, tokens)], [rows.to_vec(), rows.to_vec(), vec![0.0; rows.len()]], false);
    let back = walk.dequantize(0);
    let relative = |(row, back): (&[f32], &[f32])| relative_rms(back, &row.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>());
    back.iter().flat_map(|back| rows.chunks(128).zip(back.chunks(128)).map(relative)).sum::<f64>() / f64::from(2 * tokens)
}

/// What Centred lost at 2 bits before codes were fitted by their own error: for offsets of 0, .5, 1
/// and 2 (as reported with the fault, of rows drawn alike).
const BEFORE: [f64; 4] = [0.36, 0.51, 0.85, 1.41];

/// At 2 bits, over the better of what Hadamard loses and what Centred lost.
const TWO_BITS: f64 = 1.15;

/// At 3, 4 and 8 bits, over what Hadamard loses.
const MORE_BITS: f64 = 1.1;

/// What the sample of 600 rows may add to a quotient of two means. At 8 bits it is about 1.085 for
/// normal numbers, twice the largest magnitude over the range, and 4 of 56 seeds had 1.100 to 1.108:
/// a deviation of about 0.01, of which this allows five.
const SAMPLING: f64 = 1.05;

#[test]
fn offsets_and_outliers_cost_no_more_than_they_cost_hadamard() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    // An offset that all channels of a token share, in normal numbers, and the size of one channel.
    for (n, (offset, outlier)) in [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (2.0, 0.0), (0.0, 10.0), (0.0, 30.0)].into_iter().enumerate() {
        let mut rows = normals(&mut random, 600 * 128);
        for row in rows.chunks_mut(128) {
            let shared = offset * normal(&mut random);
            row.iter_mut().for_each(|x| *x += shared);
            if outlier > 0.0 {
                let channel = ((normal(&mut random).to_bits() >> 3) % 128) as usize;
                row[channel] = outlier;
            }
        }
        for bits in BITS {
            let [ours, theirs] = [centred(bits, bits, 128), hadamard(bits, bits, 128)].map(|format| error(&gpu, format, &rows));
            println!("offset {offset}, outlier {outlier}, {bits:?}: Centred {ours:.4}, Hadamard {theirs:.4}");
            let allowed = if bits == Bits::Two { TWO_BITS * BEFORE.get(n).map_or(theirs, |before| theirs.min(*before)) } else { MORE_BITS * theirs };
            assert!(ours <= allowed * SAMPLING, "offset {offset}, outlier {outlier}, {bits:?}: {ours}, allowed {allowed}, Hadamard {theirs}. WGKV_SEED={seed}");
        }
    }
}

/// The number below 2^110.
const LARGEST: f32 = f32::from_bits(0x767f_ffff);

/// Returns the (token, word) entries that the twins of the packing kernels list for a step.
fn twin_lists(walk: &Walk, taken: &Taken) -> Vec<[u32; 2]> {
    let words = taken.step.words();
    let mut status = vec![0; 1028];
    let (mut pages, mut key_scales) = (taken.before.pages.clone(), taken.before.key_scales.clone());
    let State { protected_rows, marks, .. } = &taken.before;
    for (n, (slab, constants)) in walk.plan().slabs(0).iter().zip(&walk.slab_constants).enumerate() {
        let append = if walk.plan().packs_blocks(slab) { reference::append_block } else { reference::append };
        let (keys, values, page) = (&taken.keys.words, &taken.values.words, &mut pages[n]);
        append(&words.append[n], constants, &words.tables, &walk.turns, keys, values, protected_rows, marks, page, &mut status);
        if let Some(params) = words.append_reordered.get(n) {
            reference::append_reordered(params, constants, &words.tables, &walk.turns, keys, protected_rows, marks, page, &mut key_scales, &mut status);
        }
    }
    let mut listed: Vec<[u32; 2]> = status[4..].chunks_exact(4).take(status[0] as usize).map(|entry| [entry[2], entry[3]]).collect();
    listed.sort_unstable();
    listed
}

#[test]
fn rows_that_no_scale_holds_are_listed() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    // What a scale ends at, times about what a normal row has in steps at 2 bits.
    let cases = [
        ("halves", rtn(Bits::Two, Bits::Two, 64), 65_504.0),
        ("bytes", rtn(Bits::Two, Bits::Two, 64).with_scales(Scales::Byte), 448.0),
        ("bytes, rotated", hadamard(Bits::Four, Bits::Two, 64).with_scales(Scales::Byte), 448.0),
        ("symmetric", centred(Bits::Two, Bits::Four, 64), 8e9),
        ("a trellis", trellis(64), 8e9),
        ("symmetric, 8 bits", centred(Bits::Eight, Bits::Three, 64), 8e9),
        ("reordered", rotated(Bits::Four, Bits::Four, 64, 1), 65_504.0),
        ("f16", Format::f16(), 65_504.0),
        ("planes", Format::aligned_f16(), 65_504.0),
    ];
    for (why, format, end) in cases {
        let first = case(why, 64, 1, 1, format).rope(Rope::none());
        let first = if format.codec() == Codec::Centred { natural(first) } else { first };
        for case in [first.clone(), first.no_subgroups()] {
            let mut walk = Walk::new(&gpu, case);
            let [mut keys, mut values, queries] = [(); 3].map(|()| normals(&mut random, 40 * 64));
            // Far enough that every width of codes needs a scale beyond the end; and near it.
            let (beyond, near) = (400.0 * end, 0.125 * end);
            for (numbers, factors) in [(&mut keys, [(3, beyond), (17, beyond), (20, near)]), (&mut values, [(3, beyond), (33, beyond), (21, near)])] {
                for (token, factor) in factors {
                    numbers[token * 64..][..64].iter_mut().for_each(|x| *x *= factor);
                }
            }
            // The largest number that counts as finite, in turns of sign.
            values[35 * 64..][..64].iter_mut().enumerate().for_each(|(i, x)| *x = if i % 3 == 0 { -LARGEST } else { LARGEST });
            let taken = walk.take_rows(&[(0, 40)], [keys, values, queries], true);
            let flag = |token, key: bool, value: bool| Flag {
                layer: 0,
                slot: 0,
                token,
                head: 0,
                key: key.then_some(Defect::Saturated),
                value: value.then_some(Defect::Saturated),
            };
            let status = pollster::block_on(walk.cache.status()).unwrap();
            // RotateKV's keys and values are packed by two kernels.
            let wanted = match format.codec() {
                Codec::RotateKv => vec![flag(3, false, true), flag(3, true, false), flag(17, true, false), flag(33, false, true), flag(35, false, true)],
                _ => vec![flag(3, true, true), flag(17, true, false), flag(33, false, true), flag(35, false, true)],
            };
            assert_eq!(status.flags, wanted, "{why}. WGKV_SEED={}", seed);
            let words = |flag: &Flag| [flag.token, 4 * u32::from(flag.key.is_some()) + 8 * u32::from(flag.value.is_some())];
            let mut wanted: Vec<[u32; 2]> = wanted.iter().map(words).collect();
            wanted.sort_unstable();
            assert_eq!(twin_lists(&walk, &taken), wanted, "{why}: the twin's list. WGKV_SEED={}", seed);
            // Nothing of theirs reaches the other rows.
            let [keys, values] = walk.dequantize(0);
            for (token, (key, value)) in keys.chunks(64).zip(values.chunks(64)).enumerate() {
                assert!(key.iter().chain(value).all(|x| x.is_finite()), "{why}: token {token} came back as {key:?}, {value:?}");
                if ![3, 17, 20].contains(&token) {
                    assert!(key.iter().all(|x| x.abs() < 100.0), "{why}: the key of token {token} came back as {key:?}. WGKV_SEED={}", seed);
                }
                if ![3, 33, 21, 35].contains(&token) {
                    assert!(value.iter().all(|x| x.abs() < 100.0), "{why}: the value of token {token} came back as {value:?}. WGKV_SEED={}", seed);
                }
            }
        }
    }
}
