//! The twin of `shaders/unpack.wgsl`.

use super::cached::{Place, Store};
use super::centre::Centred;
use super::grouped::{Grouped, Spot};
use super::half::half_pair;
use super::{Constants, hadamard, turn};
use crate::kernel::unpack::UnpackParams;

/// Unpacks `items` tiles of 32 tokens of a slab's KV heads. Shader: `shaders/unpack.wgsl`.
///
/// `tables` holds the items (4 words), chunks (8 words) and lists of physical pages, `turns` is as
/// [`turns`](super::turns), `marks` what the codec learned and the elected sinks, `key_scales`
/// `[physical page, row_groups, scale_vecs]` vec4s, `pages`
/// `[physical page, slab head, 4 * page_vecs]`, `protected_rows`
/// `[slot, kv_heads, sinks + ring, head_dim]`. `unpacked_rows` is `[tile, kv_heads]`, of keys
/// `[head_dim / 8, token]` of eight channels as halves, then of values `[4, head_dim]` of eight
/// tokens.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn unpack(
    params: &UnpackParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    turns: &[[f32; 2]],
    marks: &[u32],
    key_scales: &[u32],
    pages: &[u32],
    protected_rows: &[u32],
    unpacked_rows: &mut [u32],
) {
    let c = constants;
    let store = Store { constants, tables, marks, pages, protected_rows };
    let grouped = Grouped { constants, marks, key_scales, pages };
    let head_dim = c.head_dim as usize;
    for (x, slab_head) in (0..items).flat_map(|x| (0..params.slab_heads).map(move |y| (x, y))) {
        let record = (params.items_at + 4 * x) as usize;
        let [chunk, tile, after, to] = [0, 1, 2, 3].map(|e| tables[record + e]);
        let chunk = chunk as usize;
        let head = tables[(params.heads_at + slab_head) as usize];
        let place = Place {
            slot: tables[chunk],
            packed: tables[chunk + 4],
            list: tables[chunk + 5],
            head,
            kv_heads: params.kv_heads,
            slab_head,
            slab_heads: params.slab_heads,
            limit: tables[chunk + 7],
        };
        let tokens = tables[chunk + 2];
        let before_end = match after {
            0 => 0,
            _ if c.massive => c.sinks,
            _ => c.sinks.min(after),
        };
        let before_tiles = before_end.div_ceil(32);
        // The position and f16 row of a place of the tile, or nothing for one without a token.
        let token = |n: u32| {
            if tile >= before_tiles {
                let t = after + 32 * (tile - before_tiles) + n;
                return (t < tokens).then(|| (t, store.row(&place, t)));
            }
            let s = 32 * tile + n;
            if s >= before_end {
                None
            } else if c.massive {
                // The places are those of the sinks' rows. A later sink is met among the others.
                Some((store.sink(&place, s), Some(store.offset(&place, s)))).filter(|(t, _)| *t < after)
            } else {
                Some((s, store.row(&place, s)))
            }
        };
        let quads = |take: &dyn Fn(u32) -> [f32; 4]| -> Vec<f32> { (0..c.head_dim / 4).flat_map(take).collect() };
        let key = |t: u32, row: Option<u32>| {
            if c.restore && row.is_none() {
                let spot = Spot { physical: tables[place.list.wrapping_add(t / 128) as usize], slab_heads: params.slab_heads, slab_head, head };
                return restored(c, turns, &grouped, &spot, t);
            }
            let mut key = quads(&|quad| store.key(&place, t, row, quad));
            if c.position_quads > 0 && !store.is_elected(&place, row) {
                key.iter_mut().zip(turned_mean(c, turns, marks, head, t)).for_each(|(x, mean)| *x += mean);
            }
            key
        };
        let none = || vec![0.0; head_dim];
        let tile: Vec<[Vec<f32>; 2]> = (0..32)
            .map(|n| {
                let Some((t, row)) = token(n) else { return [none(), none()] };
                [key(t, row), quads(&|quad| store.value(&place, t, row, quad))]
            })
            .collect();
        let at = ((to * params.kv_heads + head) * 32 * c.head_dim) as usize;
        for n in 0..32 {
            for (pair, x) in tile[n][0].chunks_exact(2).enumerate() {
                unpacked_rows[at + (pair / 4 * 32 + n) * 4 + pair % 4] = half_pair(x[0], x[1]);
            }
        }
        for (pair, two) in tile.chunks_exact(2).enumerate() {
            for i in 0..head_dim {
                unpacked_rows[at + 16 * head_dim + (pair / 4 * head_dim + i) * 4 + pair % 4] = half_pair(two[0][1][i], two[1][1][i]);
            }
        }
    }
}

/// Returns a key of RotateKV restored and turned to its position. Shader:
/// `shaders/part/tile/restored.wgsl`.
fn restored(c: &Constants, turns: &[[f32; 2]], grouped: &Grouped<'_>, spot: &Spot, t: u32) -> Vec<f32> {
    let spread = grouped.spread(spot, t);
    let plain: Vec<f32> = (0..c.head_dim).map(|i| hadamard::outer(c, &spread, i)).collect();
    turn::row(c, turns, &plain, t)
}

/// Returns what the mean of Centred's keys adds to one at a position, of the channels that turn.
/// Shader: `shaders/part/tile/centred.wgsl`.
fn turned_mean(c: &Constants, turns: &[[f32; 2]], marks: &[u32], head: u32, t: u32) -> Vec<f32> {
    let Centred { key_means, weights, .. } = Centred::of(c, marks, head);
    let turned = turn::row(c, turns, &key_means, t);
    let weighted: Vec<f32> = (0..c.head_dim).map(|i| if turn::pair(c, i) < c.rope_pairs { turned[i as usize] * weights[i as usize] } else { 0.0 }).collect();
    hadamard::row(c, &weighted)
}
