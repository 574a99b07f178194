//! Zeros for the places that a snapshot copies and its sequence does not use: they hold what others
//! left there.

use super::{Standing, Tensors, runs};
use crate::format::codes::{code_planes, planes, scales};
use crate::format::{Bits, Codec, PAGE_TOKENS};
use crate::plan::{Plan, Slab};
use std::ops::Range;

/// A token of an elected row that is empty.
const NOBODY: u32 = u32::MAX;

/// Clears one layer's words.
pub(super) fn clear(plan: &Plan, layer: u32, standing: &Standing, tensors: &mut Tensors<Vec<u32>>) {
    let pages = standing.pages();
    for run in runs(plan, layer, pages) {
        let slab = &plan.slabs(layer)[run.slab];
        let words = &mut tensors.pages[run.in_snapshot];
        clear_tokens(words, &used(plan, standing, run.page), |words, t| clear_token(words, plan, slab, t));
    }
    let layout = plan.layout_of(layer);
    let (scales, vecs) = (plan.format().scales(), layout.scale_vecs);
    let words = layout.row_scale_bytes() as usize / 4;
    for (page, words) in (0..pages).zip(tensors.key_scales.chunks_exact_mut(words.max(1))) {
        let clear_scales = |words: &mut [u32], t| (0..layout.row_groups).for_each(|group| scales::put(scales, words, group * vecs, t, 0));
        clear_tokens(words, &used(plan, standing, page), clear_scales);
    }
    if plan.elects() {
        clear_sinks(plan, standing, tensors);
    }
}

/// Returns which tokens the sequence has in one of its pages.
fn used(plan: &Plan, standing: &Standing, page: u32) -> Range<u32> {
    let first = standing.first() + page * PAGE_TOKENS;
    plan.unpacked().clamp(first, first + PAGE_TOKENS) - first..(standing.packed - first).min(PAGE_TOKENS)
}

/// Clears all tokens but those used; where none is used, also what they have in common.
fn clear_tokens(words: &mut [u32], used: &Range<u32>, clear: impl Fn(&mut [u32], u32)) {
    if used.is_empty() {
        words.fill(0);
    } else {
        (0..PAGE_TOKENS).filter(|t| !used.contains(t)).for_each(|t| clear(words, t));
    }
}

/// Clears codes and scales of one token of a page, which lie as
/// [`PageLayout`](crate::low_level::PageLayout) says.
fn clear_token(page: &mut [u32], plan: &Plan, slab: &Slab, t: u32) {
    let (layout, format, head_dim) = (slab.layout(), slab.format(), plan.shape().head_dim);
    let values = 4 * layout.values as usize;
    if format.codec() == Codec::AlignedF16 {
        for channel in 0..head_dim {
            planes::put(head_dim, page, PAGE_TOKENS, channel, t, 0);
            planes::put(head_dim, &mut page[values..], head_dim, t, channel, 0);
        }
        return;
    }
    for (first, groups) in [(layout.key_scales, layout.key_groups), (layout.value_scales, layout.value_groups)] {
        (0..groups).for_each(|group| scales::put(format.scales(), page, first + group * layout.scale_vecs, t, 0));
    }
    if plan.aligns_codes() {
        for channel in 0..head_dim {
            code_planes::put(head_dim, format.key().bits.get(), page, PAGE_TOKENS / 4, channel, t, 0);
            code_planes::put(head_dim, format.value().bits.get(), &mut page[values..], head_dim / 4, t, channel, 0);
        }
        return;
    }
    (0..layout.key_words).for_each(|word| page[(PAGE_TOKENS * word + t) as usize] = 0);
    let (lane, corner) = (t / 4, t % 4);
    let code = |bits: u32, first: u32| (first + lane * bits / 8, ((1 << bits) - 1) << (lane % (8 / bits) * bits + 8 * corner));
    let codes: [(u32, u32); 2] = match format.value().bits {
        Bits::Sixteen => [(t / 2, 0xffff << (16 * (t % 2))); 2],
        Bits::Three => [code(2, 0), code(1, layout.value_steps)],
        bits => [code(bits.get(), 0); 2],
    };
    for (word, mask) in codes {
        let first = values + (word * head_dim) as usize;
        page[first..first + head_dim as usize].iter_mut().for_each(|word| *word &= !mask);
    }
}

/// Empties the elected rows that are void: those of a past that was cut off, or of another
/// sequence.
fn clear_sinks(plan: &Plan, standing: &Standing, tensors: &mut Tensors<Vec<u32>>) {
    let (kept, largest) = tensors.sinks.split_at_mut(plan.sinks() as usize);
    let head_dim = plan.shape().head_dim as usize;
    let head_words = tensors.rows.len() / plan.shape().kv_heads as usize;
    for (s, token) in kept.iter_mut().enumerate().filter(|(_, token)| **token >= standing.limit) {
        *token = NOBODY;
        tensors.rows.chunks_exact_mut(head_words).for_each(|head| head[s * head_dim..(s + 1) * head_dim].fill(0));
    }
    for one in largest.as_chunks_mut::<2>().0.iter_mut().filter(|[_, token]| *token >= standing.limit) {
        *one = [0, NOBODY];
    }
}
