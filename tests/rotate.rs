//! `rotate` multiplies every row by the orthonormal, symmetric Hadamard matrix: it agrees with its twin up to the rounding of
//! f32 sums and with the dense product in f64 as closely as f32 can; twice returns the row; lengths are kept; a row that is
//! not finite spoils no other; rows beyond the last stay as they were; more rows than one dimension of a grid holds are served.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod support;

use rand::RngExt;
use support::*;
use wgkv::kernel::rotate::{RotateParams, record};
use wgkv::reference::{self, Constants};
use wgkv::{Gpu, Rows};

/// Relative to the length of the row. Each number passes two sums of at most 20 terms, in trees of depth 5, and one product:
/// at most 11 roundings of 2^-24 each, on terms whose magnitudes sum to the row's length at most. Two codes that round
/// differently (a product and a sum contracted, or not) are apart by twice that.
const ROTATE_ERROR: f32 = 22.0 / 16_777_216.0;

/// (head_dim, rows, why)
const CASES: [(u32, u32, &str); 8] = [
    (64, 1, "a single row"),
    (64, 3, "fewer rows than anything"),
    (80, 5, "20 x 4: Paley's second construction"),
    (96, 7, "12 x 8: Paley's second construction"),
    (128, 33, "16 x 8"),
    (256, 17, "16 x 16, the largest workgroup"),
    (64, 65_536, "one more than a dimension of the grid holds: the grid folds into two equal lines"),
    (64, 65_537, "the folded grid has a surplus workgroup, which must write nothing"),
];

fn rotated(gpu: &Gpu, rows: &[f32], count: u32, head_dim: u32) -> Vec<f32> {
    let buffer = upload(gpu, rows);
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    record(gpu, &mut encoder, Rows::f32(&buffer), count, head_dim).unwrap();
    gpu.queue().submit([encoder.finish()]);
    download(gpu, &buffer, rows.len())
}

#[test]
fn rotate_agrees_with_its_reference_at_every_head_dim() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for (head_dim, count, why) in CASES {
        println!("{why}");
        let d = head_dim as usize;
        let rows = normals(&mut random, count as usize * d);
        // One row of poison more than is asked for.
        let mut given = rows.clone();
        given.extend(vec![f32::from_bits(POISON); d]);
        let got = rotated(&gpu, &given, count, head_dim);
        let (got, beyond) = got.split_at(rows.len());
        assert!(beyond.iter().all(|x| x.to_bits() == POISON), "{why}: a row beyond the last was written");

        let mut want = rows.clone();
        reference::rotate(&RotateParams { rows: count, pad: [0; 3] }, &Constants::rotation(head_dim), &mut want);
        let twice = rotated(&gpu, got, count, head_dim);
        for (r, row) in rows.chunks_exact(d).enumerate() {
            let at = r * d..(r + 1) * d;
            let allowed = ROTATE_ERROR * norm(row);
            close(&format!("{why}, row {r}"), &got[at.clone()], &want[at.clone()], allowed, 0.0, seed);
            close(&format!("{why}, row {r} twice"), &twice[at.clone()], row, 2.0 * allowed, 0.0, seed);
            let (before, after) = (norm(row), norm(&got[at.clone()]));
            // Errors of single numbers add up over a row by the root of their count.
            assert!((before - after).abs() <= allowed * (d as f32).sqrt(), "{why}: row {r} had length {before}, has {after}. WGKV_SEED={seed}");
            if r < 64 {
                let exact = reference::rotate_exact(&row.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
                let exact: Vec<f32> = exact.iter().map(|x| *x as f32).collect();
                close(&format!("{why}, row {r} in f64"), &got[at.clone()], &exact, allowed, f32::EPSILON, seed);
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_spoils_no_other() {
    let gpu = gpu();
    let (mut random, _) = seeded();
    for head_dim in [64, 80, 96, 128, 256] {
        let d = head_dim as usize;
        let clean = normals(&mut random, 5 * d);
        let want = rotated(&gpu, &clean, 5, head_dim);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut rows = clean.clone();
            rows[2 * d + random.random_range(0..d)] = bad;
            let got = rotated(&gpu, &rows, 5, head_dim);
            for r in 0..5 {
                let (got, want) = (&got[r * d..][..d], &want[r * d..][..d]);
                if r == 2 {
                    assert!(got.iter().all(|x| !x.is_finite()), "every number of the row holds a share of {bad}");
                } else {
                    assert_eq!(got, want, "row {r} beside one with {bad}");
                }
            }
        }
    }
}
