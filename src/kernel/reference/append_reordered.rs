//! The twin of `shaders/append_reordered.wgsl`.

use super::append::key_words;
use super::cached::{offset, window_row};
use super::group::{group_beyond, group_code, group_pack, group_scale, group_zero};
use super::grouped::group_of;
use super::hadamard::{mask, sign};
use super::half::unpack;
use super::{Constants, finite, hadamard, report, scales, turn};
use crate::kernel::append_reordered::AppendReorderedParams;

/// Packs RotateKV's keys into pages: rotated over groups of KV heads, before RoPE, with scales that
/// channels share as the channel order says. Shader: `shaders/append_reordered.wgsl`.
///
/// `turns` is as [`turns`](super::turns), `keys` `[rows, kv_heads, head_dim]` in f32, f16 or bf16,
/// `protected_rows` `[slot, kv_heads, sinks + ring, head_dim]`, `marks` the group of each of
/// `[kv_heads, head_dim]` channels, a byte each, `pages`
/// `[physical page, slab head, 4 * page_vecs]`, `key_scales`
/// `[physical page, row_groups, scale_vecs]` vec4s, `status` the count, three words of padding,
/// then entries of four words.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn append_reordered(
    params: &AppendReorderedParams,
    constants: &Constants,
    tables: &[u32],
    turns: &[[f32; 2]],
    keys: &[u32],
    protected_rows: &[u32],
    marks: &[u32],
    pages: &mut [u32],
    key_scales: &mut [u32],
    status: &mut [u32],
) {
    let c = constants;
    let levels = ((1_u32 << c.key_bits) - 1) as f32;
    let place = |head: u32| Some(tables[(params.places_at + head) as usize]).filter(|place| *place < params.slab_heads);
    for n in 0..params.items {
        let item = (params.items_at + 2 * n) as usize;
        let (chunk, four) = (tables[item] as usize, tables[item + 1]);
        let [slot, old_tokens, _, old_packed, new_packed, list, row_first] = [0, 1, 2, 3, 4, 5, 6].map(|e| tables[chunk + e]);
        let page = tables[list.wrapping_add(four / 32) as usize];
        for t in (4 * four).max(old_packed.max(c.unpacked))..(4 * four + 4).min(new_packed) {
            let plain = |head: u32| -> Vec<f32> {
                if t >= old_tokens {
                    let first = c.row(c.keys_at, row_first + t - old_tokens, params.kv_heads, head);
                    let fresh: Vec<f32> = (0..c.head_dim).map(|i| c.input(keys, first + i)).collect();
                    return if c.turned { turn::back(c, turns, &fresh, t) } else { fresh };
                }
                let at = offset(c, slot, params.kv_heads, head, window_row(c, t));
                let kept: Vec<f32> = (0..c.head_dim / 2).flat_map(|i| unpack(protected_rows[(at + i) as usize])).collect();
                turn::back(c, turns, &kept, t)
            };
            let mut row = Vec::new();
            for head_first in (0..params.kv_heads).step_by(c.group_heads as usize) {
                let group: Vec<f32> = (head_first..head_first + c.group_heads).flat_map(&plain).collect();
                let mut rotated = mixed_heads(c, &hadamard::row(c, &group));
                if !rotated.iter().all(|x| finite(*x)) {
                    rotated.fill(0.0);
                    for head in (head_first..head_first + c.group_heads).filter(|head| place(*head).is_some()) {
                        report(status, params.layer, slot, t, head, 1);
                    }
                }
                row.extend(rotated);
            }
            let group = |i: usize| group_of(marks, i as u32) as usize;
            let mut extents = vec![(f32::NEG_INFINITY, f32::NEG_INFINITY); c.row_groups as usize];
            for (i, x) in row.iter().enumerate() {
                let (high, low) = &mut extents[group(i)];
                (*high, *low) = (high.max(*x), low.max(-x));
            }
            let mut steps = Vec::new();
            let mut saturates = false;
            for (g, (high, low)) in extents.into_iter().enumerate() {
                let scale = group_scale(c.scales, -low, high, c.key_clip, levels);
                let zero = group_zero(-low, c.key_clip, scale);
                saturates |= group_beyond(c.scales, -low, high, c.key_clip, levels);
                steps.push((scale, zero));
                if params.scales != 0 {
                    let stored = if c.key_bits == 8 { zero - 128.0 } else { zero };
                    let plane = (page * c.row_groups + g as u32) * scales::vecs(c.scales);
                    scales::put(c.scales, key_scales, plane, t, group_pack(c.scales, scale, stored));
                }
            }
            // A group's channels may be of any head.
            for n in (0..params.slab_heads).filter(|_| saturates) {
                report(status, params.layer, slot, t, tables[(params.heads_at + n) as usize], 4);
            }
            // Eight bits lie in memory as signed bytes.
            let flip = if c.key_bits == 8 { 128 } else { 0 };
            let code = |(i, x): (usize, &f32)| group_code(*x, steps[group(i)].0, steps[group(i)].1, levels) ^ flip;
            let codes: Vec<u32> = row.iter().enumerate().map(code).collect();
            for (place, codes) in (0..).zip(codes.chunks_exact(c.head_dim as usize)).filter_map(|(head, codes)| Some((place(head)?, codes))) {
                let at = ((page * params.slab_heads + place) * (4 * c.page_vecs)) as usize;
                key_words(c, &mut pages[at..at + 4 * c.page_vecs as usize], t, codes);
            }
        }
    }
}

/// Applies the factor over the heads of a group.
fn mixed_heads(c: &Constants, row: &[f32]) -> Vec<f32> {
    let head_dim = c.head_dim as usize;
    (0..row.len())
        .map(|i| {
            let mask = mask(16, (i / head_dim) as u32);
            let mut sum = 0.0;
            for j in 0..c.group_heads {
                sum += sign(mask, j) * row[j as usize * head_dim + i % head_dim];
            }
            sum * c.group_scale
        })
        .collect()
}
