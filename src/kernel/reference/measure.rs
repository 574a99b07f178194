//! The twin of `shaders/measure.wgsl`.

use super::{Constants, finite, turn};
use crate::kernel::measure::{BLOCK, MeasureParams};

/// Returns a number added to a sum of two floats: the sum, and what its roundings lost.
fn added([high, low]: [f32; 2], x: f32) -> [f32; 2] {
    let total = high + x;
    let share = total - high;
    let lost = (high - (total - share)) + (x - share);
    let rest = low + lost;
    let sum = total + rest;
    [sum, rest - (sum - total)]
}

/// Returns where column `c` of row `r` lies.
fn place(params: &MeasureParams, r: u32, c: u32) -> u32 {
    let MeasureParams { width, head_dim, base, tokens, sequence_stride, token_stride, head_stride, .. } = *params;
    if tokens == 0 {
        return r * width + c;
    }
    base + r / tokens * sequence_stride + r % tokens * token_stride + c / head_dim * head_stride + c % head_dim
}

/// Adds rows to column sums, turned back first where `constants` say that they come turned; rows
/// with a number that is not finite are left out and counted.
/// Shader: `shaders/measure.wgsl`.
///
/// `keys` is `[rows, width]` in f32, f16 or bf16, or as `params` says, `turns` the table of
/// [`measure::turns`](crate::low_level::kernel::measure::turns), `sums` `[workgroup, width]`,
/// `counts` `[workgroup]`: rows added, rows left out.
pub fn measure(
    params: &MeasureParams,
    constants: &Constants,
    workgroups: u32,
    keys: &[u32],
    turns: &[[f32; 2]],
    sums: &mut [[f32; 2]],
    counts: &mut [[u32; 2]],
) {
    let MeasureParams { rows, width, .. } = *params;
    for n in 0..workgroups {
        for first in (n * BLOCK..rows).step_by((workgroups * BLOCK) as usize) {
            for r in first..(first + BLOCK).min(rows) {
                let row: Vec<f32> = (0..width).map(|c| constants.input(keys, place(params, r, c))).collect();
                let whole = row.iter().all(|x| finite(*x));
                counts[n as usize][usize::from(!whole)] += 1;
                let row = if constants.turned && whole {
                    let position = params.position + r % params.sequence.max(1);
                    row.chunks_exact(constants.head_dim as usize).flat_map(|head| turn::back(constants, turns, head, position)).collect()
                } else {
                    row
                };
                for (sum, x) in sums[(n * width) as usize..].iter_mut().zip(row.iter().filter(|_| whole)) {
                    *sum = added(*sum, if constants.squares { x * x } else { *x });
                }
            }
        }
    }
}
