//! The twin of `shaders/attend_rows.wgsl`.

use super::attend_split::reduce_add;
use super::cached::{Place, Store, window_row};
use super::cap::cap;
use super::{Constants, turn};
use crate::kernel::attend_rows::{AttendRowsParams, TILE_PLACES};

const HIDDEN: f32 = -1e30;

/// Attends one decoding query row to the f16 rows of a slice of its sinks and window, for `items`
/// slices. Shader: `shaders/attend_rows.wgsl`.
///
/// `tables` holds the items and chunks (8 words each), `query_rows` is
/// `[row, query_heads, query_row]`, `turns` as [`turns`](super::turns), `marks` holds the elected
/// sinks, `protected_rows` is `[slot, kv_heads, sinks + ring, head_dim]`, `row_partials`
/// `[partial, query_heads, head_dim + 2]`. The bindings that the shader does not read are left out.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn attend_rows(
    params: &AttendRowsParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    query_rows: &[f32],
    turns: &[[f32; 2]],
    marks: &[u32],
    protected_rows: &[u32],
    row_partials: &mut [f32],
) {
    let c = constants;
    let store = Store { constants, tables, marks, pages: &[], protected_rows };
    let head_dim = c.head_dim as usize;
    for (x, head) in (0..items).flat_map(|x| (0..params.kv_heads).map(move |head| (x, head))) {
        let item = (params.items_at + 8 * x) as usize;
        let chunk = tables[item] as usize;
        let [row, position, visible, sinks, first, end, partial] = [1, 2, 3, 4, 5, 6, 7].map(|e| tables[item + e]);
        let [slot, new_tokens, packed, limit] = [0, 2, 4, 7].map(|e| tables[chunk + e]);
        let place = Place { slot, packed, list: 0, head, kv_heads: params.kv_heads, slab_head: 0, slab_heads: 0, limit };
        let places = sinks + new_tokens - packed;
        // Position and row of a place that the query sees.
        let token = |n: u32| {
            let (t, row) = if n < sinks {
                (store.sink(&place, n), Some(store.offset(&place, n)))
            } else {
                let t = packed + n - sinks;
                // An elected sink that no page holds yet has a row of the window, too.
                (t, if c.massive { Some(store.offset(&place, window_row(c, t))) } else { store.row(&place, t) })
            };
            // A later sink is met among the tokens after the pages.
            let seen = n < places && (visible..=position).contains(&t) && (n >= sinks || t < packed);
            row.filter(|_| seen).map(|row| (t, row))
        };
        for h in 0..c.share {
            let query_head = head * c.share + h;
            let query = &query_rows[((row * params.kv_heads * c.share + query_head) * c.query_row) as usize..][..c.query_row as usize];
            let mut peak = HIDDEN;
            // By lane, a token of each tile.
            let mut sums = [0.0; TILE_PLACES as usize];
            let mut out = vec![0.0; head_dim];
            for tile in first..end {
                let tokens: [Option<(u32, u32)>; TILE_PLACES as usize] = std::array::from_fn(|lane| token(TILE_PLACES * tile + lane as u32));
                // The query's factors at the tile's first place, of tokens after the pages and of
                // sinks.
                let turned = [i64::from(packed) - i64::from(sinks), 0].map(|at| turned_factors(c, turns, query, at + i64::from(TILE_PLACES * tile)));
                let s: [f32; TILE_PLACES as usize] = std::array::from_fn(|lane| {
                    let Some((t, at)) = tokens[lane] else {
                        return HIDDEN;
                    };
                    let quads = (0..c.head_dim / 4).map(|quad| store.key(&place, t, Some(at), quad));
                    let score = quads.flat_map(|four| [[four[0], four[1]], [four[2], four[3]]]).zip(query.chunks_exact(2)).fold(0.0, pair_added);
                    let sink = usize::from(TILE_PLACES * tile + (lane as u32) < sinks);
                    // Elected sinks keep their mean.
                    cap(c, if c.massive && sink == 1 { score } else { score_of_mean(c, turns, &turned[sink], lane, score) })
                });
                let new_peak = s.iter().copied().fold(peak, f32::max);
                let shrink = (peak - new_peak).exp2();
                peak = new_peak;
                out.iter_mut().for_each(|x| *x *= shrink);
                for ((sum, s), token) in sums.iter_mut().zip(s).zip(tokens) {
                    let p = if token.is_some() { (s - peak).exp2() } else { 0.0 };
                    *sum = *sum * shrink + p;
                    if let Some((t, at)) = token {
                        for (quad, out) in (0..).zip(out.chunks_exact_mut(4)) {
                            out.iter_mut().zip(store.value(&place, t, Some(at), quad)).for_each(|(x, value)| *x += value * p);
                        }
                    }
                }
            }
            let at = ((partial * params.kv_heads * c.share + query_head) * (c.head_dim + 2)) as usize;
            row_partials[at..at + head_dim].copy_from_slice(&out);
            row_partials[at + head_dim] = peak;
            row_partials[at + head_dim + 1] = reduce_add(&sums);
        }
    }
}

fn pair_added(sum: f32, (key, query): ([f32; 2], &[f32])) -> f32 {
    sum + (key[0] * query[0] + key[1] * query[1])
}

/// Returns a query's factors of the mean of the keys, by pair, turned to a position, which may lie
/// before 0 where more sinks are elected than tokens packed.
fn turned_factors(c: &Constants, turns: &[[f32; 2]], query: &[f32], position: i64) -> Vec<[f32; 2]> {
    let turn = |p: u32| {
        let [cos, sin] = turn::at(c, turns, p, position.unsigned_abs() as u32);
        [cos, if position < 0 { -sin } else { sin }]
    };
    let factors = query[c.head_dim as usize..].chunks_exact(2).enumerate();
    // Beyond the last pair stand zeros.
    factors.map(|(p, factors)| turn::divided(turn((p as u32).min(c.rope_pairs - 1)), [factors[0], factors[1]])).collect()
}

/// Returns a score with what the mean of the keys adds to it at a lane. Shader:
/// `shaders/part/rows/centred.wgsl`.
fn score_of_mean(c: &Constants, turns: &[[f32; 2]], factors: &[[f32; 2]], lane: usize, score: f32) -> f32 {
    factors.chunks_exact(2).enumerate().fold(score, |score, (q, two)| {
        let share = |p: usize| {
            let turn = turns[2 * (c.row_turns as usize + TILE_PLACES as usize * q + lane) + p];
            two[p][0] * turn[0] + two[p][1] * turn[1]
        };
        score + (share(0) + share(1))
    })
}
