//! The twin of `shaders/dequantize.wgsl`.

use super::cached::{Place, Store};
use super::centre::Centred;
use super::grouped::{Grouped, Spot};
use super::{Constants, hadamard, turn};
use crate::kernel::dequantize::DequantizeParams;

/// Turns cached tokens back into rows in f32. Shader: `shaders/dequantize.wgsl`.
///
/// `turns` is as [`turns`](super::turns), `marks` the groups of key channels and the elected sinks,
/// `key_scales` `[physical page, row_groups, scale_vecs]` vec4s, `pages`
/// `[physical page, slab head, 4 * page_vecs]`, `protected_rows`
/// `[slot, kv_heads, sinks + ring, head_dim]`, `keys` and `values` `[tokens, kv_heads, head_dim]`,
/// of which the slab's heads are written.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn dequantize(
    params: &DequantizeParams,
    constants: &Constants,
    tables: &[u32],
    turns: &[[f32; 2]],
    marks: &[u32],
    key_scales: &[u32],
    pages: &[u32],
    protected_rows: &[u32],
    keys: &mut [f32],
    values: &mut [f32],
) {
    let c = constants;
    let store = Store { constants, tables, marks, pages, protected_rows };
    let grouped = Grouped { constants, marks, key_scales, pages };
    let chunk = params.chunk as usize;
    for (n, slab_head) in (0..params.tokens).flat_map(|n| (0..params.slab_heads).map(move |z| (n, z))) {
        let head = tables[(params.heads_at + slab_head) as usize];
        let place = Place {
            slot: tables[chunk],
            packed: tables[chunk + 4],
            list: tables[chunk + 5],
            head,
            kv_heads: params.kv_heads,
            slab_head,
            slab_heads: params.slab_heads,
            limit: params.limit,
        };
        let t = params.first + n;
        let row = store.row(&place, t);
        let restore = c.restore && row.is_none();
        let mut value: Vec<f32> = (0..c.head_dim / 4).flat_map(|quad| store.value(&place, t, row, quad)).collect();
        let mut key: Vec<f32> = if restore {
            let spot = Spot { physical: tables[place.list.wrapping_add(t / 128) as usize], slab_heads: params.slab_heads, slab_head, head };
            (0..c.head_dim).map(|channel| grouped.mixed(&spot, t, channel)).collect()
        } else {
            (0..c.head_dim / 4).flat_map(|quad| store.key(&place, t, row, quad)).collect()
        };
        if c.rotate_keys || restore {
            key = hadamard::row(c, &key);
        }
        if c.rotate_values {
            value = hadamard::row(c, &value);
        }
        if restore {
            key = turn::row(c, turns, &key, t);
        }
        if c.centred {
            let Centred { key_means, weights, value_means, value_signs } = Centred::of(c, marks, head);
            let mut means = turn::row(c, turns, &key_means, t);
            if store.is_elected(&place, row) {
                (0..c.head_dim).filter(|i| turn::pair(c, *i) < c.rope_pairs).for_each(|i| means[i as usize] = 0.0);
            }
            for ((x, weight), mean) in key.iter_mut().zip(weights).zip(means) {
                *x = *x / weight + mean;
            }
            for ((x, sign), mean) in value.iter_mut().zip(value_signs).zip(value_means) {
                *x = *x / sign + mean;
            }
        }
        let at = ((n * params.kv_heads + head) * c.head_dim) as usize;
        keys[at..at + key.len()].copy_from_slice(&key);
        values[at..at + value.len()].copy_from_slice(&value);
    }
}
