//! The twin of `shaders/rotate.wgsl`.

use super::{Constants, hadamard};
use crate::kernel::rotate::RotateParams;

/// Rows times the orthonormal Hadamard matrix of order `head_dim`, in place: `rows` is `[rows, head_dim]`.
/// Shader: `shaders/rotate.wgsl`.
pub fn rotate(params: &RotateParams, constants: &Constants, rows: &mut [f32]) {
    let head_dim = constants.head_dim as usize;
    for row in rows.chunks_exact_mut(head_dim).take(params.rows as usize) {
        let rotated = hadamard::row(constants, row);
        row.copy_from_slice(&rotated);
    }
}
