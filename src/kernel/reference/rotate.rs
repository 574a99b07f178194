//! The twin of `shaders/rotate.wgsl` and of the parts `shared/butterfly`, `rotate/butterfly` and
//! `rotate/dense`.

use super::{Constants, hadamard};
use crate::kernel::rotate::RotateParams;

/// Bits of a number's index in its row, in the order in which the shader takes their factors:
/// before the first exchange, between both, and after the second.
const BITS: [u32; 10] = [7, 8, 9, 0, 1, 2, 3, 4, 5, 6];

/// Multiplies rows by the orthonormal Hadamard matrix of order `head_dim`: both slices are
/// `[rows, head_dim]`, and `rows` is empty to rotate in place. Any power of two up to 1024 will do,
/// also those that the kernel does not serve. Shader: `shaders/rotate.wgsl`.
pub fn rotate(params: &RotateParams, constants: &Constants, rows: &[f32], rotated: &mut [f32]) {
    let head_dim = constants.head_dim as usize;
    for (r, out) in rotated.chunks_exact_mut(head_dim).take(params.rows as usize).enumerate() {
        if !rows.is_empty() {
            out.copy_from_slice(&rows[r * head_dim..][..head_dim]);
        }
        if head_dim.is_power_of_two() {
            butterflies(constants, out);
        } else {
            let dense = hadamard::row(constants, out);
            out.copy_from_slice(&dense);
        }
    }
}

/// Applies a factor of order 2 for each bit of the index, and the scale that makes the whole
/// orthonormal.
fn butterflies(constants: &Constants, row: &mut [f32]) {
    let n = row.len();
    for step in BITS.map(|bit| 1 << bit).into_iter().filter(|step| *step < n) {
        for i in (0..n).filter(|i| i & step == 0) {
            let (a, b) = (row[i], row[i + step]);
            (row[i], row[i + step]) = (a + b, a - b);
        }
    }
    row.iter_mut().for_each(|x| *x *= constants.hadamard_scale);
}
