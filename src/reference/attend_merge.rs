//! The twin of `shaders/attend_merge.wgsl`.

use super::half::half_bits;
use super::{Constants, finite, hadamard};
use crate::kernel::attend_merge::{AttendMergeParams, MERGE_ITEMS};

const HIDDEN: f32 = -1e30;

/// The partial results of `rows` query rows into their output rows. Shader: `shaders/attend_merge.wgsl`.
///
/// `tables` holds the records (4 words), `partials` is `[item, kv_heads, blocks, heads, head_dim + 4]`, `row_partials`
/// `[row, query_heads, head_dim + 2]`, `output` `[rows, query_heads, head_dim]` in f32 or f16.
pub fn attend_merge(params: &AttendMergeParams, constants: &Constants, rows: u32, tables: &[u32], partials: &[f32], row_partials: &[f32], output: &mut [u32]) {
    let c = constants;
    let share = params.query_heads / params.kv_heads;
    let head_dim = c.head_dim as usize;
    for (r, query_head) in (0..rows).flat_map(|r| (0..params.query_heads).map(move |h| (r, h))) {
        let record = (params.records_at + 4 * r) as usize;
        let first = tables[record];
        let count = tables[record + 1].min(MERGE_ITEMS) as usize;
        let with_rows = tables[record + 2] != 0;
        let block = query_head % share / c.heads;
        let stride = (params.kv_heads * c.blocks * c.heads * (c.head_dim + 4)) as usize;
        let at = first as usize * stride + (((query_head / share * c.blocks + block) * c.heads + query_head % share % c.heads) * (c.head_dim + 4)) as usize;
        let entry = |s: usize, e: usize| partials[at + s * stride + e];
        let row_at = ((r * params.query_heads + query_head) * (c.head_dim + 2)) as usize;

        let mut peak = if with_rows { row_partials[row_at + head_dim] } else { HIDDEN };
        peak = (0..count).map(|s| entry(s, head_dim)).fold(peak, f32::max);
        let weights: Vec<f32> = (0..count).map(|s| (entry(s, head_dim) - peak).exp2()).collect();
        let row_weight = if with_rows { (row_partials[row_at + head_dim] - peak).exp2() } else { 0.0 };
        // Entry `e` of the sum over the partials: the parts take eight items a turn each, in turn; surplus places weigh nothing.
        let merged = |e: usize| {
            let mut gathered = 0.0;
            for part in 0..c.parts as usize {
                let mut x = if with_rows && part == 0 { row_weight * row_partials[row_at + e] } else { 0.0 };
                for s in (8 * part..count).step_by(8 * c.parts as usize) {
                    let term = |k: usize| if s + k < count { weights[s + k] * entry(s + k, e) } else { 0.0 };
                    x += ((term(0) + term(1)) + (term(2) + term(3))) + ((term(4) + term(5)) + (term(6) + term(7)));
                }
                gathered += x;
            }
            gathered
        };
        let total = merged(head_dim + 1);
        let mut row: Vec<f32> = (0..head_dim).map(|i| merged(i) / total).collect();
        if c.rotate {
            row = hadamard::row(c, &row);
        }
        let output_at = (((params.row_first + r) * params.query_heads + query_head) * c.head_dim) as usize;
        if c.half_rows {
            let half_or_nan = |x: f32| if finite(x) { half_bits(x) } else { 0x7e00 };
            for (i, pair) in row.chunks_exact(2).enumerate() {
                output[output_at / 2 + i] = half_or_nan(pair[0]) | (half_or_nan(pair[1]) << 16);
            }
        } else {
            for (i, x) in row.iter().enumerate() {
                output[output_at + i] = x.to_bits();
            }
        }
    }
}
