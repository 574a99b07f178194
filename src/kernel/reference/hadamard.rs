//! The two factors of the orthonormal Hadamard matrix of order `head_dim`, on rows of one or more
//! heads. Shader: `shaders/part/shared/hadamard.wgsl`.

use super::Constants;
pub use crate::format::hadamard::{mask, sign};

fn four(row: &[f32], mask: u32, j: u32, base: u32, stride: u32) -> f32 {
    let term = |j: u32| sign(mask, j) * row[(base + j * stride) as usize];
    (term(j) + term(j + 1)) + (term(j + 2) + term(j + 3))
}

/// Applies the factor over blocks: element `i` gathers the same place of every block of
/// `hadamard_inner` elements.
pub fn outer(constants: &Constants, row: &[f32], i: u32) -> f32 {
    let (order, inner) = (constants.hadamard_outer, constants.hadamard_inner);
    let mask = mask(order, i % constants.head_dim / inner);
    let base = i - i % constants.head_dim + i % inner;
    let four = |j| four(row, mask, j, base, inner);
    let sum = four(0) + four(4);
    match order {
        8 => sum,
        12 => sum + four(8),
        16 => sum + (four(8) + four(12)),
        32 => (sum + (four(8) + four(12))) + ((four(16) + four(20)) + (four(24) + four(28))),
        _ => sum + four(8) + (four(12) + four(16)),
    }
}

/// Applies the factor within a block, and the scale that makes the whole orthonormal.
pub fn inner(constants: &Constants, row: &[f32], i: u32) -> f32 {
    let order = constants.hadamard_inner;
    let mask = mask(16, i % order);
    let base = i - i % order;
    let mut sum = four(row, mask, 0, base, 1);
    if order > 4 {
        sum += four(row, mask, 4, base, 1);
    }
    if order > 8 {
        sum += four(row, mask, 8, base, 1) + four(row, mask, 12, base, 1);
    }
    sum * constants.hadamard_scale
}

/// Applies both factors to every head of a row.
pub fn row(constants: &Constants, row: &[f32]) -> Vec<f32> {
    let half_way: Vec<f32> = (0..row.len() as u32).map(|i| outer(constants, row, i)).collect();
    (0..row.len() as u32).map(|i| inner(constants, &half_way, i)).collect()
}
