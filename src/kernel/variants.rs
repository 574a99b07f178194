//! Every pipeline that a cache of a plan can use.

use super::{
    Variant, align_plan, align_scores, align_values, append, append_block, append_reordered, attend_matrices, attend_merge, attend_prefill, attend_rows,
    attend_split, dequantize, elect, position, protect, query, unpack,
};
use crate::format::Element;
use crate::plan::{Plan, Slab};

/// Returns every pipeline that a cache of this plan can use.
pub fn variants(plan: &Plan) -> Vec<Variant> {
    let mut variants = common_variants(plan);
    variants.extend(plan.slab_kinds().into_iter().flat_map(|slab| slab_variants(plan, slab)));
    variants
}

/// Returns the pipelines that have to do with one slab: its own, and those that serve all.
pub(crate) fn variants_of(plan: &Plan, slab: &Slab) -> Vec<Variant> {
    let mut variants = common_variants(plan);
    variants.extend(slab_variants(plan, slab));
    variants
}

/// Returns what packs the pages of a slab: [`append_block`] where that suits, else [`append`].
pub(crate) fn packing_variant(plan: &Plan, slab: &Slab, element: Element) -> Variant {
    if plan.packs_blocks(slab) { append_block::variant(plan, slab, element) } else { append::variant(plan, slab, element) }
}

/// Returns the pipelines that do not depend on the layout of pages.
fn common_variants(plan: &Plan) -> Vec<Variant> {
    let element = plan.element();
    let mut variants = vec![query::variant(plan, element)];
    for parts in plan.merge_choices() {
        variants.extend([false, true].map(|log_sums| attend_merge::variant(plan, element, parts, log_sums)));
    }
    variants.push(if plan.matrices() { attend_matrices::variant(plan) } else { attend_prefill::variant(plan) });
    if plan.position_quads() > 0 {
        variants.push(position::variant(plan, element));
    }
    if plan.sinks() + plan.ring() > 0 {
        variants.extend([protect::variant(plan, element), attend_rows::variant(plan)]);
    }
    if plan.elects() {
        variants.extend([false, true].map(|merge| elect::variant(plan, element, merge)));
    }
    variants
}

/// Returns the pipelines that work on one slab's pages.
fn slab_variants(plan: &Plan, slab: &Slab) -> Vec<Variant> {
    let element = plan.element();
    let mut variants = vec![packing_variant(plan, slab, element), dequantize::variant(plan, slab), unpack::variant(plan, slab)];
    if plan.aligns() {
        variants.extend([true, false].map(|keys| align_plan::variant(plan, slab, keys)));
        variants.extend([align_scores::variant(plan, slab), align_values::variant(plan, slab)]);
    } else {
        variants.push(attend_split::variant(plan, slab));
    }
    if plan.restores() {
        variants.push(append_reordered::variant(plan, slab, element));
    }
    variants
}
