//! The twin of `shaders/query.wgsl`.

use super::centre::Centred;
use super::factors::factors;
use super::{Constants, finite, hadamard, turn};
use crate::kernel::query::QueryParams;

/// Brings query rows into the basis of the codec, for `rows` rows of all query heads. Shader:
/// `shaders/query.wgsl`.
///
/// `turns` is as [`turns`](super::turns), `queries` `[rows, query_heads, head_dim]` in f32, f16 or bf16,
/// `marks` for Centred means and weights, `query_rows`
/// `[row, query_heads, head_dim + 4 * position_quads]`, `query_codes`
/// `[row, kv_heads, blocks, query_stride, heads]`.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn query(
    params: &QueryParams,
    constants: &Constants,
    rows: u32,
    tables: &[u32],
    turns: &[[f32; 2]],
    queries: &[u32],
    marks: &[u32],
    query_rows: &mut [f32],
    query_codes: &mut [u32],
) {
    let c = constants;
    let share = params.query_heads / params.kv_heads;
    for (r, query_head) in (0..rows).flat_map(|r| (0..params.query_heads).map(move |h| (r, h))) {
        let position = tables[(params.positions_at + r) as usize];
        let first = c.row(c.queries_at, params.row_first + r, params.query_heads, query_head);
        let row: Vec<f32> = (0..c.head_dim).map(|i| c.input(queries, first + i)).collect();
        let mut row = turn::query(c, turns, row, position);
        let centred = Centred::of(c, marks, query_head / share);
        // Whole quads: beyond the last pair stand zeros.
        let factors_of = |p| if p < c.rope_pairs { factors(c, &row, &centred.key_means, p) } else { [0.0; 2] };
        let positions: Vec<[f32; 2]> = (0..2 * c.position_quads).map(factors_of).collect();
        for (x, weight) in row.iter_mut().zip(&centred.weights) {
            *x /= weight;
        }
        if c.rotate_keys {
            row = hadamard::row(c, &row);
        }
        for x in &mut row {
            *x *= c.scale;
        }
        let at = ((r * params.query_heads + query_head) * (c.head_dim + 4 * c.position_quads)) as usize;
        query_rows[at..at + row.len()].copy_from_slice(&row);
        query_rows[at + row.len()..][..2 * positions.len()].copy_from_slice(positions.as_flattened());

        let block = query_head % share / c.heads;
        let at = (((r * params.kv_heads + query_head / share) * c.blocks + block) * c.query_stride) * c.heads + query_head % share % c.heads;
        let mut put = |entry: u32, word: u32| query_codes[(at + entry * c.heads) as usize] = word;
        let key_group = tables[(params.groups_at + query_head / share) as usize];
        for (i, here) in positions.iter().enumerate().take(c.position_waves as usize) {
            let [a, b] = turn::divided(turns[c.position_centre as usize + i], *here);
            put(c.positions_at + 2 * i as u32, a.to_bits());
            put(c.positions_at + 2 * i as u32 + 1, b.to_bits());
        }
        if key_group == 0 {
            for (i, x) in row.iter().enumerate() {
                put(i as u32, x.to_bits());
            }
            continue;
        }
        let largest = row.iter().map(|x| if finite(*x) { x.abs() } else { 3e38 }).fold(0.0, f32::max);
        let scale = largest / 127.0;
        let codes: Vec<i32> = row.iter().map(|x| (x / scale.max(1e-30)).round_ties_even().clamp(-127.0, 127.0) as i32).collect();
        let quads = c.head_dim / 4;
        for (i, quad) in codes.chunks_exact(4).enumerate() {
            put(i as u32, quad.iter().rev().fold(0, |word, code| word << 8 | (*code as u32 & 255)));
        }
        put(quads, if largest > 1e38 { 0x7fc0_0000 } else { scale.to_bits() });
        for (i, group) in codes.chunks_exact(key_group as usize).enumerate() {
            put(quads + 1 + i as u32, (group.iter().sum::<i32>() as f32).to_bits());
        }
    }
}
