//! `rotate` multiplies every row by the orthonormal, symmetric Hadamard matrix, in place or into
//! another buffer: it agrees with its twin up to the rounding of f32 sums and with the dense
//! product in f64 as closely as f32 can; its matrix is Sylvester's in natural order where the order
//! is a power of two; twice returns the row; lengths are kept; a row that is not finite spoils no
//! other; nothing but the rows of the result is written; more workgroups than one dimension of a
//! grid holds are served.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use wgkv::low_level::kernel::rotate::{INVOCATIONS, ORDERS, RotateParams, record, record_into, record_with};
use wgkv::low_level::reference::{self, Constants};
use wgkv::{Capability, Element, Error, Gpu, Rows};
use wgkv_testing::*;

/// Relative to the length of the row. Each number passes the sums of at most 10 butterflies, or two
/// dense sums of at most 20 terms, in trees of depth 5, and one product: at most 11 roundings of
/// 2^-24 each, on terms whose magnitudes sum to the row's length at most (over the root of the
/// order). Two codes that round differently (a product and a sum contracted, or not) are apart by
/// twice that.
const ROTATE_ERROR: f32 = 22.0 / 16_777_216.0;

/// The largest golden number is 12.7: on both sides it is the product of a whole number and of one
/// rounded to 2^-24 of it, and takes half a unit of the last place (2^-21) to round itself.
const GOLDEN_ERROR: f32 = 2.0 * (12.8 / 16_777_216.0 + 0.5 / 1_048_576.0);

/// (order, rows, why)
const CASES: [(u32, u32, &str); 19] = [
    (64, 1, "a single row"),
    (64, 3, "fewer rows than anything"),
    (64, 64, "exactly a workgroup of 4096 numbers"),
    (64, 65, "one row more than a workgroup"),
    (64, 127, "one row less than two workgroups"),
    (80, 5, "20 x 4: Paley's second construction"),
    (80, 65_536, "one more than a dimension of the grid holds: the grid folds into two equal lines"),
    (80, 65_537, "the folded grid has a surplus workgroup, which must write nothing"),
    (96, 7, "12 x 8: Paley's second construction"),
    (192, 9, "12 x 16"),
    (128, 1, "one row of 128"),
    (128, 33, "one row more than a workgroup"),
    (256, 17, "one row more than a workgroup"),
    (512, 1, "four heads of 128"),
    (512, 13, "rows that do not fill a workgroup"),
    (1024, 1, "a workgroup of 32 exactly"),
    (1024, 3, "three quarters of a workgroup"),
    (1024, 5, "one row more than a workgroup"),
    (1024, 1030, "many workgroups"),
];

/// In place or not, and by which workgroup.
#[derive(Clone, Copy, Debug)]
struct Way {
    in_place: bool,
    invocations: u32,
}

const WAYS: [Way; 6] = [
    Way { in_place: true, invocations: 128 },
    Way { in_place: false, invocations: 128 },
    Way { in_place: true, invocations: 64 },
    Way { in_place: false, invocations: 64 },
    Way { in_place: true, invocations: 32 },
    Way { in_place: false, invocations: 32 },
];

fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

/// The rows rotated. Both buffers have a row of poison after theirs, and the result is poison
/// before; what is not to be written is looked at.
fn rotated_by(gpu: &Gpu, rows: &[f32], count: u32, order: u32, way: Way) -> Vec<f32> {
    let poison = vec![f32::from_bits(POISON); order as usize];
    let given: Vec<f32> = rows.iter().chain(&poison).copied().collect();
    let source = upload(gpu, &given);
    let mut encoder = encoder(gpu);
    let got = if way.in_place {
        record_with(gpu, &mut encoder, None, Rows::f32(&source), count, order, way.invocations).unwrap();
        gpu.queue().submit([encoder.finish()]);
        download(gpu, &source, given.len())
    } else {
        let result = poisoned(gpu, given.len());
        record_with(gpu, &mut encoder, Some(Rows::f32(&source)), Rows::f32(&result), count, order, way.invocations).unwrap();
        gpu.queue().submit([encoder.finish()]);
        let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&download(gpu, &source, given.len())) == bits(&given), "{way:?}: {count} rows of {order}: the input was written");
        download(gpu, &result, given.len())
    };
    let (got, beyond) = got.split_at(rows.len());
    assert!(beyond.iter().all(|x| x.to_bits() == POISON), "{way:?}: {count} rows of {order}: a row beyond the last was written");
    got.to_vec()
}

fn rotated(gpu: &Gpu, rows: &[f32], count: u32, order: u32) -> Vec<f32> {
    rotated_by(gpu, rows, count, order, WAYS[0])
}

fn twin(rows: &[f32], order: u32) -> Vec<f32> {
    let mut out = vec![0.0; rows.len()];
    reference::rotate(&RotateParams { rows: rows.len() as u32 / order, pad: [0; 3] }, &Constants::rotation(order), rows, &mut out);
    out
}

/// The product in f64, as f32.
fn exact(row: &[f32]) -> Vec<f32> {
    reference::rotate_exact(&row.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()).iter().map(|x| *x as f32).collect()
}

/// Natural order back to front: which row of Sylvester's matrix has a given number of changes of
/// sign.
fn sequency(natural: &[f32]) -> Vec<f32> {
    let n = natural.len() as u32;
    let changes = |row: &u32| (1..n).filter(|j| (row & j).count_ones() % 2 != (row & (j - 1)).count_ones() % 2).count();
    let mut order: Vec<u32> = (0..n).collect();
    order.sort_by_key(changes);
    order.iter().map(|row| natural[*row as usize]).collect()
}

/// What Sylvester's matrix makes of 1, 2, .. n: the sum, and at every power of two `p` the numbers
/// without that bit less those with it, `-p n / 2`; nothing elsewhere. All sums are whole numbers
/// below 2^24, so f32 has them exactly.
fn ramp_rotated(n: u32) -> Vec<f32> {
    let scale = (1.0 / f64::from(n).sqrt()) as f32;
    let entry = |i: u32| match i {
        0 => (n * (n + 1) / 2) as f32 * scale,
        _ if i.is_power_of_two() => -((i * n / 2) as f32) * scale,
        _ => 0.0,
    };
    (0..n).map(entry).collect()
}

fn ramp(n: u32) -> Vec<f32> {
    (1..=n).map(|x| x as f32).collect()
}

#[test]
fn rotate_agrees_with_its_reference_at_every_order() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for (order, count, why) in CASES {
        println!("{count} rows of {order}: {why}");
        let n = order as usize;
        let rows = normals(&mut random, count as usize * n);
        let want = twin(&rows, order);
        // The dense way has one workgroup.
        for way in WAYS.into_iter().filter(|way| order.is_power_of_two() || way.invocations == INVOCATIONS) {
            let name = format!("{count} rows of {order}, {way:?}");
            let got = rotated_by(&gpu, &rows, count, order, way);
            let twice = rotated_by(&gpu, &got, count, order, way);
            for (r, row) in rows.chunks_exact(n).enumerate() {
                let at = r * n..(r + 1) * n;
                let allowed = ROTATE_ERROR * norm(row);
                close(&format!("{name}, row {r}"), &got[at.clone()], &want[at.clone()], allowed, 0.0, seed);
                close(&format!("{name}, row {r} twice"), &twice[at.clone()], row, 2.0 * allowed, 0.0, seed);
                let (before, after) = (norm(row), norm(&got[at.clone()]));
                // Errors of single numbers add up over a row by the root of their count.
                assert!((before - after).abs() <= allowed * (n as f32).sqrt(), "{name}: row {r} had length {before}, has {after}. WGKV_SEED={seed}");
                if r < 8 || r + 1 == count as usize {
                    close(&format!("{name}, row {r} in f64"), &got[at.clone()], &exact(row), allowed, f32::EPSILON, seed);
                }
            }
        }
    }
}

#[test]
fn a_grid_of_several_lines_is_served() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    // As if a dimension held three workgroups: 5 need two lines, 7 three lines with two surplus
    // workgroups.
    let few = gpu.pretend(Capability { workgroups: 3, ..*gpu.capability() });
    for (order, count) in [(64, 5 * 64), (64, 7 * 64 - 1), (80, 7), (512, 7 * 8 - 3), (1024, 7 * 4)] {
        let rows = normals(&mut random, (count * order) as usize);
        for way in [WAYS[0], WAYS[1]] {
            let got = rotated_by(&few, &rows, count, order, way);
            let name = format!("{count} rows of {order}, {way:?}");
            let longest = rows.chunks_exact(order as usize).map(norm).fold(0.0, f32::max);
            close(&name, &got, &twin(&rows, order), ROTATE_ERROR * longest, 0.0, seed);
        }
    }
}

#[test]
fn golden_numbers_of_order_8() {
    let scale = 0.353_553_39;
    let mut impulse = [0.0; 8];
    impulse[0] = 1.0;
    close("an impulse", &twin(&impulse, 8), &[scale; 8], GOLDEN_ERROR, 0.0, 0);
    // 12.72792206, -1.41421356, -2.82842712, 0, -5.65685425, 0, 0, 0
    let natural = [9.0, -1.0, -2.0, 0.0, -4.0, 0.0, 0.0, 0.0].map(|x| x * std::f32::consts::SQRT_2);
    close("1 to 8", &twin(&ramp(8), 8), &natural, GOLDEN_ERROR, 0.0, 0);
    close("1 to 8 by formula", &ramp_rotated(8), &natural, GOLDEN_ERROR, 0.0, 0);
    close("1 to 8 in f64", &exact(&ramp(8)), &natural, GOLDEN_ERROR, 0.0, 0);
    assert!(sequency(&natural).iter().zip(&natural).any(|(a, b)| (a - b).abs() > 1.0), "a transform in the order of sign changes must fail");
    let mut in_place = ramp(8);
    reference::rotate(&RotateParams { rows: 1, pad: [0; 3] }, &Constants::rotation(8), &[], &mut in_place);
    assert_eq!(in_place, twin(&ramp(8), 8));
}

#[test]
fn powers_of_two_have_sylvesters_matrix_in_natural_order() {
    let gpu = gpu();
    for n in ORDERS.into_iter().filter(|n| n.is_power_of_two()) {
        let scale = (1.0 / f64::from(n).sqrt()) as f32;
        let width = n as usize;
        // Impulses at every place are the whole matrix, with nothing to round but the last product.
        let mut rows = vec![0.0; width * width];
        (0..width).for_each(|i| rows[i * width + i] = 3.0);
        rows.extend(ramp(n));
        rows.extend(vec![0.75; width]);
        for way in [WAYS[0], WAYS[1]] {
            let got = rotated_by(&gpu, &rows, n + 2, n, way);
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let sign = if (i & j).count_ones().is_multiple_of(2) { 3.0 } else { -3.0 };
                assert_eq!(got[i as usize * width + j as usize], sign * scale, "{n}: entry ({i}, {j}), {way:?}");
            }
            let (ramp, constant) = got[width * width..].split_at(width);
            assert_eq!(ramp, ramp_rotated(n), "{n}: 1 to n, {way:?}");
            assert_ne!(ramp, sequency(&ramp_rotated(n)), "{n}: the order of sign changes is another");
            assert_eq!(constant[0], 0.75 * n as f32 * scale, "{n}: a constant row has its sum at the front, {way:?}");
            assert!(constant[1..].iter().all(|x| *x == 0.0), "{n}: a constant row has nothing else, {way:?}");
        }
    }
}

#[test]
fn other_orders_have_a_symmetric_matrix_of_signs() {
    let gpu = gpu();
    for n in [80_u32, 96, 192] {
        let width = n as usize;
        let mut rows = vec![0.0; width * width];
        (0..width).for_each(|i| rows[i * width + i] = 1.0);
        let got = rotated(&gpu, &rows, n, n);
        let scale = (1.0 / f64::from(n).sqrt()) as f32;
        for (i, j) in (0..width).flat_map(|i| (0..width).map(move |j| (i, j))) {
            assert_eq!(got[i * width + j].abs(), scale, "{n}: entry ({i}, {j})");
            assert_eq!(got[i * width + j], got[j * width + i], "{n}: entry ({i}, {j})");
        }
    }
}

#[test]
fn a_row_changes_no_other() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for order in ORDERS {
        let n = order as usize;
        let clean = normals(&mut random, 5 * n);
        for way in [WAYS[0], WAYS[1]] {
            let want = rotated_by(&gpu, &clean, 5, order, way);
            for bad in [-7.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut rows = clean.clone();
                rows[2 * n + random.random_range(0..n)] = bad;
                let got = rotated_by(&gpu, &rows, 5, order, way);
                for r in 0..5 {
                    let (got, want) = (&got[r * n..][..n], &want[r * n..][..n]);
                    if r != 2 {
                        assert_eq!(got, want, "order {order}: row {r} beside one with {bad}, {way:?}. WGKV_SEED={seed}");
                    } else if bad.is_finite() {
                        assert!(got.iter().zip(want).all(|(a, b)| a != b), "every number of the row holds a share of {bad}. WGKV_SEED={seed}");
                    } else {
                        assert!(got.iter().all(|x| !x.is_finite()), "every number of the row holds a share of {bad}. WGKV_SEED={seed}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_may_lie_anywhere_in_their_buffers() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for order in ORDERS {
        let count = 3;
        let rows = normals(&mut random, (count * order) as usize);
        let poison = |words: usize| vec![f32::from_bits(POISON); words];
        let source = upload(&gpu, &[poison(64), rows.clone(), poison(64)].concat());
        let result = poisoned(&gpu, 128 + rows.len() + 64);
        let mut encoder = encoder(&gpu);
        let from = Rows { offset: 256, ..Rows::f32(&source) };
        record_into(&gpu, &mut encoder, from, Rows { offset: 512, ..Rows::f32(&result) }, count, order).unwrap();
        record(&gpu, &mut encoder, from, count, order).unwrap();
        gpu.queue().submit([encoder.finish()]);
        for (name, buffer, before) in [("in place", &source, 64), ("into another", &result, 128)] {
            let all = download(&gpu, buffer, before + rows.len() + 64);
            let (front, rest) = all.split_at(before);
            let (got, back) = rest.split_at(rows.len());
            assert!(front.iter().chain(back).all(|x| x.to_bits() == POISON), "{name}, order {order}: something beside the rows was written");
            let longest = rows.chunks_exact(order as usize).map(norm).fold(0.0, f32::max);
            close(&format!("{name}, order {order}"), got, &twin(&rows, order), ROTATE_ERROR * longest, 0.0, seed);
        }
    }
}

#[test]
fn what_cannot_be_rotated_is_refused() {
    let gpu = gpu();
    let mut encoder = encoder(&gpu);
    let (a, b) = (upload(&gpu, &[1.0; 4096]), upload(&gpu, &[2.0; 1024]));
    // No order is filled up with zeros to the next one.
    for order in [0, 1, 8, 32, 63, 65, 100, 160, 384, 768, 1000, 2048, u32::MAX] {
        let want = Error::argument("order", "64, 80, 96, 128, 192, 256, 512 or 1024", order);
        assert_eq!(record(&gpu, &mut encoder, Rows::f32(&a), 1, order), Err(want.clone()));
        assert_eq!(record_into(&gpu, &mut encoder, Rows::f32(&a), Rows::f32(&b), 1, order), Err(want));
    }
    let mut into = |rows, rotated, count| record_into(&gpu, &mut encoder, rows, rotated, count, 64);
    let (from, to) = (Rows::f32(&a), Rows::f32(&b));
    let half = |rows| Rows { element: Element::F16, ..rows };
    assert_eq!(into(half(from), to, 1), Err(Error::argument("rows", "f32", "f16")));
    assert_eq!(into(from, half(to), 1), Err(Error::argument("rotated", "f32", "f16")));
    assert_eq!(into(from, to, 17), Err(Error::Rows { name: "rotated", need: 17 * 256, have: 4096 }));
    assert_eq!(into(to, from, 17), Err(Error::Rows { name: "rows", need: 17 * 256, have: 4096 }));
    let same = Error::argument("rotated", "in another buffer than rows", "in the same");
    assert_eq!(into(from, Rows { offset: 4096, ..from }, 1), Err(same));
    let alignment = u64::from(gpu.capability().storage_alignment);
    let odd = Rows { offset: 4, ..to };
    assert_eq!(into(from, odd, 1), Err(Error::Offset { name: "rotated", need: alignment, had: 4 }));
    assert_eq!(into(from, to, 0), Ok(()), "no rows are no error");
    let invocations = Error::argument("invocations", "32, 64 or 128", "256");
    assert_eq!(record_with(&gpu, &mut encoder, None, from, 1, 64, 256), Err(invocations));
    let small = gpu.pretend(Capability { binding_bytes: 1024, ..*gpu.capability() });
    let limit = Error::Limit { what: "max_storage_buffer_binding_size", reason: "rows", need: 1280, have: 1024 };
    assert_eq!(record(&small, &mut encoder, from, 5, 64), Err(limit));
    gpu.queue().submit([encoder.finish()]);
    assert!(download(&gpu, &a, 4096).iter().all(|x| *x == 1.0) && download(&gpu, &b, 1024).iter().all(|x| *x == 2.0), "what is refused writes nothing");
}
