//! The twin of `shaders/dequantize.wgsl`.

use super::cached::{Place, Store};
use super::{Constants, hadamard};
use crate::kernel::dequantize::DequantizeParams;

/// Cached tokens back to rows in f32. Shader: `shaders/dequantize.wgsl`.
///
/// `pages` is `[physical page, slab head, 4 * page_vecs]`, `protected_rows` `[slot, kv_heads, sinks + ring, head_dim]`, `keys`
/// and `values` `[tokens, kv_heads, head_dim]`, of which the slab's heads are written.
pub fn dequantize(
    params: &DequantizeParams,
    constants: &Constants,
    tables: &[u32],
    pages: &[u32],
    protected_rows: &[u32],
    keys: &mut [f32],
    values: &mut [f32],
) {
    let c = constants;
    let store = Store { constants, tables, pages, protected_rows };
    let chunk = params.chunk as usize;
    for (n, slab_head) in (0..params.tokens).flat_map(|n| (0..params.slab_heads).map(move |z| (n, z))) {
        let head = params.head_first + slab_head;
        let place = Place {
            slot: tables[chunk],
            packed: tables[chunk + 4],
            list: tables[chunk + 5],
            head,
            kv_heads: params.kv_heads,
            slab_head,
            slab_heads: params.slab_heads,
        };
        let mut key: Vec<f32> = (0..c.head_dim / 4).flat_map(|quad| store.key(&place, params.first + n, quad)).collect();
        let mut value: Vec<f32> = (0..c.head_dim / 4).flat_map(|quad| store.value(&place, params.first + n, quad)).collect();
        if c.rotate {
            key = hadamard::row(c, &key);
            value = hadamard::row(c, &value);
        }
        let at = ((n * params.kv_heads + head) * c.head_dim) as usize;
        keys[at..at + key.len()].copy_from_slice(&key);
        values[at..at + value.len()].copy_from_slice(&value);
    }
}
