//! The twin of `shaders/gram.wgsl`.

use super::Constants;
use crate::kernel::gram::{BLOCK, CHUNK, GramParams, chunks};

/// Returns the sum of a block's products of two channels, in the shader's order.
fn block_sum(down: &[f32], across: &[f32]) -> f32 {
    let [x, y, z, w] = [0, 1, 2, 3].map(|lane| {
        let product = |quad: usize| down[4 * quad + lane] * across[4 * quad + lane];
        ((product(0) + product(1)) + (product(2) + product(3))) + ((product(4) + product(5)) + (product(6) + product(7)))
    });
    (x + y) + (z + w)
}

/// Computes the Gram matrices of rows less `minus`, by chunk and head; of `rows` alone where
/// `minus` is empty. Shader: `shaders/gram.wgsl`.
///
/// `rows` and `minus` are `[row, heads, head_dim]`, `grams` is
/// `[chunk, heads, head_dim, head_dim]`.
pub fn gram(params: &GramParams, constants: &Constants, rows: &[f32], minus: &[f32], grams: &mut [f32]) {
    let (count, heads, d) = (params.rows as usize, params.heads as usize, constants.head_dim as usize);
    let (chunk_rows, block) = (CHUNK as usize, BLOCK as usize);
    for (chunk, head) in (0..chunks(params.rows) as usize).flat_map(|chunk| (0..heads).map(move |head| (chunk, head))) {
        let first = chunk * chunk_rows;
        let taken = (count - first).min(chunk_rows);
        // Each channel's numbers side by side: what the strips hold of all blocks, with zeros after
        // the last row.
        let length = taken.next_multiple_of(block);
        let mut columns = vec![0.0; d * length];
        for (r, channel) in (0..taken).flat_map(|r| (0..d).map(move |channel| (r, channel))) {
            let at = ((first + r) * heads + head) * d + channel;
            columns[channel * length + r] = if minus.is_empty() { rows[at] } else { rows[at] - minus[at] };
        }
        let column = |channel: usize| columns[channel * length..][..length].chunks_exact(block);
        let matrix = &mut grams[(chunk * heads + head) * d * d..][..d * d];
        for (row, across) in (0..d).flat_map(|row| (0..=row).map(move |across| (row, across))) {
            let sum = column(row).zip(column(across)).fold(0.0, |sum, (down, across)| sum + block_sum(down, across));
            matrix[row * d + across] = sum;
            matrix[across * d + row] = sum;
        }
    }
}
