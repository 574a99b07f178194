//! The twin of `shaders/attend_prefill.wgsl`.

use super::Constants;
use super::cached::{Place, Store};
use crate::kernel::attend_prefill::AttendPrefillParams;

const HIDDEN: f32 = -1e30;

/// A block of query rows against cached tokens, causal, for `items` blocks. Shader: `shaders/attend_prefill.wgsl`.
///
/// `tables` holds the items (8 words), chunks (8 words) and lists of physical pages, `query_rows` is `[row, query_heads, head_dim]`,
/// `pages` `[physical page, slab head, 4 * page_vecs]`, `protected_rows` `[slot, kv_heads, sinks + ring, head_dim]`,
/// `row_partials` `[partial, query_heads, head_dim + 2]`.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn attend_prefill(
    params: &AttendPrefillParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    query_rows: &[f32],
    pages: &[u32],
    protected_rows: &[u32],
    row_partials: &mut [f32],
) {
    let c = constants;
    let store = Store { constants, tables, pages, protected_rows };
    let head_dim = c.head_dim as usize;
    for (x, slab_head) in (0..items).flat_map(|x| (0..params.slab_heads).map(move |y| (x, y))) {
        let record = (params.items_at + 8 * x) as usize;
        let chunk = tables[record] as usize;
        let [token_first, tokens, row_first, tile_first, tile_end, partial_first] = [1, 2, 3, 5, 6, 7].map(|e| tables[record + e]);
        let protected_only = tables[record + 4] != 0;
        let head = params.head_first + slab_head;
        let packed = tables[chunk + 4];
        let place = Place { slot: tables[chunk], packed, list: tables[chunk + 5], head, kv_heads: params.kv_heads, slab_head, slab_heads: params.slab_heads };
        let query_first = tables[chunk + 1] + token_first;
        // Two ranges of tokens: before the end of the sinks, then after the pages; just one when everything is covered.
        let seen_end = query_first + tokens;
        let (before_end, after) = if protected_only { (c.sinks.min(packed), packed) } else { (seen_end, seen_end) };
        let tiles: Vec<(u32, u32)> = (0..before_end)
            .step_by(32)
            .map(|first| (first, (first + 32).min(before_end)))
            .chain((after..seen_end).step_by(32).map(|first| (first, (first + 32).min(seen_end))))
            .take(tile_end as usize)
            .skip(tile_first as usize)
            .collect();
        let quads = |take: &dyn Fn(u32) -> [f32; 4]| -> Vec<f32> { (0..c.head_dim / 4).flat_map(take).collect() };
        let keys: Vec<Vec<Vec<f32>>> = tiles.iter().map(|(first, end)| (*first..*end).map(|t| quads(&|quad| store.key(&place, t, quad))).collect()).collect();
        let values: Vec<Vec<Vec<f32>>> =
            tiles.iter().map(|(first, end)| (*first..*end).map(|t| quads(&|quad| store.value(&place, t, quad))).collect()).collect();

        for r in 0..tokens * c.share {
            let place_of = |first: u32| ((first + r / c.share) * (params.kv_heads * c.share) + head * c.share + r % c.share) as usize;
            let query = &query_rows[place_of(row_first) * head_dim..][..head_dim];
            let mut peak = HIDDEN;
            // By the invocation's place across the tile: four tokens each.
            let mut sums = [0.0; 8];
            let mut out = vec![0.0; head_dim];
            for ((tile, keys), values) in tiles.iter().zip(&keys).zip(&values) {
                let (first, end) = *tile;
                let last = (query_first + r / c.share + 1).min(end);
                let mut s = [HIDDEN; 32];
                for (j, key) in keys.iter().enumerate().filter(|(j, _)| first + (*j as u32) < last) {
                    s[j] = score(query, key);
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

/// A score in log2 units, four channels at a time.
fn score(query: &[f32], key: &[f32]) -> f32 {
    let mut score = 0.0;
    for (q, k) in query.chunks_exact(4).zip(key.chunks_exact(4)) {
        score += (q[0] * k[0] + q[1] * k[1]) + (q[2] * k[2] + q[3] * k[3]);
    }
    score
}
