//! The twin of `shaders/attend_prefill.wgsl`, and what that of `shaders/attend_matrices.wgsl` has in
//! common with it.

use super::Constants;
use super::cap::cap;
use super::half::{half_round, unpack};
use crate::kernel::attend_prefill::AttendPrefillParams;

const HIDDEN: f32 = -1e30;

/// How a kernel attends.
pub(super) struct Way {
    /// How far a score may exceed its row's peak.
    pub growth: f32,
    /// Whether queries and weights are rounded to halves.
    pub halves: bool,
}

/// Attends a block of query rows to unpacked tokens, causally, for `items` blocks. Shader:
/// `shaders/attend_prefill.wgsl`.
///
/// `tables` holds the items (12 words) and chunks (8 words), `query_rows` is
/// `[row, query_heads, query_row]`, `unpacked_rows` what [`unpack`](super::unpack()) makes, `marks`
/// what the codec learned and the elected sinks, `row_partials`
/// `[partial, query_heads, head_dim + 2]`.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn attend_prefill(
    params: &AttendPrefillParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    query_rows: &[f32],
    unpacked_rows: &[u32],
    marks: &[u32],
    row_partials: &mut [f32],
) {
    let way = Way { growth: 40.0, halves: false };
    attend(&way, [params.items_at, params.kv_heads, items], constants, tables, query_rows, unpacked_rows, marks, row_partials);
}

/// Attends in one way or the other. Of the parameters it takes the first item, the KV heads, the
/// items.
#[expect(clippy::too_many_arguments, reason = "the shaders' bindings, in their order")]
pub(super) fn attend(
    way: &Way,
    [items_at, kv_heads, items]: [u32; 3],
    constants: &Constants,
    tables: &[u32],
    query_rows: &[f32],
    unpacked_rows: &[u32],
    marks: &[u32],
    row_partials: &mut [f32],
) {
    let c = constants;
    let head_dim = c.head_dim as usize;
    let halve = |x: f32| if way.halves && x.is_finite() { half_round(x) } else { x };
    for (x, head) in (0..items).flat_map(|x| (0..kv_heads).map(move |y| (x, y))) {
        let record = (items_at + 12 * x) as usize;
        let chunk = tables[record] as usize;
        let [token_first, tokens, row_first, after, tile_first, tile_end, place, partial, each] = [1, 2, 3, 4, 5, 6, 7, 8, 9].map(|e| tables[record + e]);
        let query_first = tables[chunk + 1] + token_first;
        let before_end = match after {
            0 => 0,
            _ if c.massive => c.sinks,
            _ => c.sinks.min(after),
        };
        let before_tiles = before_end.div_ceil(32);
        // The position of a place of a tile, if it has a token.
        let position = |tile: u32, n: u32| {
            if tile >= before_tiles {
                return Some(after + 32 * (tile - before_tiles) + n).filter(|t| *t < tables[chunk + 2]);
            }
            let s = Some(32 * tile + n).filter(|s| *s < before_end)?;
            if !c.massive {
                return Some(s);
            }
            Some(marks[(c.elected_at + tables[chunk] * 3 * c.sinks + s) as usize]).filter(|t| *t < tables[chunk + 7] && *t < after)
        };
        for r in 0..tokens * c.share {
            let (token, query_head) = (r / c.share, head * c.share + r % c.share);
            let row = ((row_first + token) * kv_heads * c.share + query_head) as usize * c.query_row as usize;
            let query: Vec<f32> = query_rows[row..row + head_dim].iter().map(|x| halve(*x)).collect();
            let end = query_first + token + 1;
            let chunk = (end - 1).checked_div(c.chunk);
            let seen = chunk.map_or(end.saturating_sub(c.sliding_window), |n| n * c.chunk)..end;
            let (mut peak, mut sum, mut out) = (HIDDEN, 0.0, vec![0.0; head_dim]);
            for tile in tile_first..tile_end {
                let at = (((place + tile - tile_first) * kv_heads + head) * 32 * c.head_dim) as usize;
                let (keys, values) = unpacked_rows[at..at + 32 * head_dim].split_at(16 * head_dim);
                let key = |n: usize, i: usize| unpack(keys[(i / 8 * 32 + n) * 4 + i % 8 / 2])[i % 2];
                let value = |n: usize, i: usize| unpack(values[(n / 8 * head_dim + i) * 4 + n % 8 / 2])[n % 2];
                let mut s = [HIDDEN; 32];
                for (s, n) in s.iter_mut().zip(0..).filter(|(_, n)| position(tile, *n).is_some_and(|t| seen.contains(&t))) {
                    *s = cap(c, (0..head_dim).fold(0.0, |sum, i| sum + query[i] * key(n as usize, i)));
                }
                // The peak stays until a score exceeds it by far.
                let highest = s.iter().copied().fold(HIDDEN, f32::max);
                if highest > peak + way.growth {
                    let shrink = (peak - highest).exp2();
                    sum *= shrink;
                    out.iter_mut().for_each(|x| *x *= shrink);
                    peak = highest;
                }
                // Hidden tokens weigh nothing, also in a row that has seen none yet.
                let p = s.map(|s| if s == HIDDEN { 0.0 } else { (s - peak).exp2() });
                sum += p.chunks_exact(4).map(|p| (p[0] + p[1]) + (p[2] + p[3])).sum::<f32>();
                for (i, x) in out.iter_mut().enumerate() {
                    *x = (0..32).fold(*x, |sum, n| sum + halve(p[n]) * value(n, i));
                }
            }
            let at = ((partial + token * each) * kv_heads * c.share + query_head) as usize * (head_dim + 2);
            row_partials[at..at + head_dim].copy_from_slice(&out);
            row_partials[at + head_dim] = peak;
            row_partials[at + head_dim + 1] = sum;
        }
    }
}
