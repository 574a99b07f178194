//! The twin of `shaders/attend_protected.wgsl`.

use super::cached::{Place, Store};
use super::{Constants, turn};
use crate::kernel::attend_protected::AttendProtectedParams;

const HIDDEN: f32 = -1e30;

/// A token of a tile: its position, and where its f16 row begins, if it has one.
type Token = (u32, Option<u32>);

/// Attends decoding rows to the tokens of their sequences that are kept in f16, for `items` slices of
/// these. Shader: `shaders/attend_protected.wgsl`.
///
/// `tables` holds the items (8 words), chunks (8 words) and lists of physical pages, `query_rows`
/// is `[row, query_heads, head_dim + 4 * position_quads]`, `turns` as [`turns`](super::turns),
/// `marks` what the codec learned and the elected sinks, `pages`
/// `[physical page, slab head, 4 * page_vecs]`, `protected_rows`
/// `[slot, kv_heads, sinks + ring, head_dim]`, `row_partials`
/// `[partial, query_heads, head_dim + 2]`.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn attend_protected(
    params: &AttendProtectedParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    query_rows: &[f32],
    turns: &[[f32; 2]],
    marks: &[u32],
    pages: &[u32],
    protected_rows: &[u32],
    row_partials: &mut [f32],
) {
    let c = constants;
    let store = Store { constants, tables, marks, pages, protected_rows };
    let head_dim = c.head_dim as usize;
    for (x, slab_head) in (0..items).flat_map(|x| (0..params.slab_heads).map(move |y| (x, y))) {
        let record = (params.items_at + 8 * x) as usize;
        let chunk = tables[record] as usize;
        let [token_first, tokens, row_first, after, tile_first, tile_end, partial_first] = [1, 2, 3, 4, 5, 6, 7].map(|e| tables[record + e]);
        let head = tables[(params.heads_at + slab_head) as usize];
        let packed = tables[chunk + 4];
        let place = Place {
            slot: tables[chunk],
            packed,
            list: tables[chunk + 5],
            head,
            kv_heads: params.kv_heads,
            slab_head,
            slab_heads: params.slab_heads,
            limit: tables[chunk + 7],
        };
        let query_first = tables[chunk + 1] + token_first;
        // Two ranges of places: before the end of the sinks, then from `after` on; only the latter
        // when everything is covered.
        let seen_end = (query_first + tokens).min(tables[chunk + 2]);
        let before_end = match after {
            0 => 0,
            _ if c.massive => c.sinks,
            _ => c.sinks.min(after),
        };
        // By tile: position and f16 row of each place, or nothing for a place without a token.
        let token = |t: u32| Some((t, store.row(&place, t)));
        let before = |n: u32| {
            if !c.massive {
                return token(n);
            }
            // The places here are those of the sinks' rows. A later sink comes among the other
            // tokens.
            Some((store.sink(&place, n), Some(store.offset(&place, n)))).filter(|(t, _)| *t < after)
        };
        let tiles: Vec<Vec<Option<Token>>> = (0..before_end)
            .step_by(32)
            .map(|first| (first..(first + 32).min(before_end)).map(before).collect())
            .chain((after..seen_end).step_by(32).map(|first| (first..(first + 32).min(seen_end)).map(token).collect()))
            .take(tile_end as usize)
            .skip(tile_first as usize)
            .collect();
        let quads = |take: &dyn Fn(u32) -> [f32; 4]| -> Vec<f32> { (0..c.head_dim / 4).flat_map(take).collect() };
        // For Centred, what the mean of the keys adds to a score takes the form of further
        // channels.
        let key = |t: u32, row: Option<u32>| {
            let mut key = quads(&|quad| store.key(&place, t, row, quad));
            key.extend((0..2 * c.position_quads).flat_map(|pair| turn::at(c, turns, pair.min(c.rope_pairs.max(1) - 1), t)));
            key
        };
        let rows = |take: &dyn Fn(u32, Option<u32>) -> Vec<f32>| -> Vec<Vec<Vec<f32>>> {
            let row = |at: &Option<Token>| at.map_or_else(|| vec![0.0; head_dim], |(t, row)| take(t, row));
            tiles.iter().map(|tile| tile.iter().map(row).collect()).collect()
        };
        let keys = rows(&key);
        let values = rows(&|t, row| quads(&|quad| store.value(&place, t, row, quad)));

        for r in 0..tokens * c.share {
            let place_of = |first: u32| ((first + r / c.share) * (params.kv_heads * c.share) + head * c.share + r % c.share) as usize;
            let channels = (c.head_dim + 4 * c.position_quads) as usize;
            let query = &query_rows[place_of(row_first) * channels..][..channels];
            let end = query_first + r / c.share + 1;
            let seen = end.saturating_sub(c.sliding_window)..end;
            let mut peak = HIDDEN;
            // By the invocation's place across the tile, four tokens each.
            let mut sums = [0.0; 8];
            let mut out = vec![0.0; head_dim];
            for ((tile, keys), values) in tiles.iter().zip(&keys).zip(&values) {
                let mut s = [HIDDEN; 32];
                for ((s, key), _) in s.iter_mut().zip(keys).zip(tile).filter(|(_, at)| at.is_some_and(|(t, _)| seen.contains(&t))) {
                    *s = score(query, key);
                }
                let new_peak = s.iter().copied().fold(peak, f32::max);
                let shrink = (peak - new_peak).exp2();
                peak = new_peak;
                // Hidden tokens weigh nothing, also in a row that has seen none yet.
                let p = s.map(|s| if s == HIDDEN { 0.0 } else { (s - peak).exp2() });
                for (sum, p) in sums.iter_mut().zip(p.chunks_exact(4)) {
                    *sum = *sum * shrink + ((p[0] + p[1]) + (p[2] + p[3]));
                }
                for (i, x) in out.iter_mut().enumerate() {
                    let at = |j: usize| values.get(j).map_or(0.0, |value| value[i]);
                    let mut more = 0.0;
                    for n in (0..32).step_by(4) {
                        more += (p[n] * at(n) + p[n + 1] * at(n + 1)) + (p[n + 2] * at(n + 2) + p[n + 3] * at(n + 3));
                    }
                    *x = *x * shrink + more;
                }
            }
            let at = place_of(partial_first) * (head_dim + 2);
            row_partials[at..at + head_dim].copy_from_slice(&out);
            row_partials[at + head_dim] = peak;
            row_partials[at + head_dim + 1] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
        }
    }
}

/// Returns a score in log2 units, summed four channels at a time.
fn score(query: &[f32], key: &[f32]) -> f32 {
    let mut score = 0.0;
    for (q, k) in query.chunks_exact(4).zip(key.chunks_exact(4)) {
        score += (q[0] * k[0] + q[1] * k[1]) + (q[2] * k[2] + q[3] * k[3]);
    }
    score
}
