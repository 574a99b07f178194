//! Every pipeline that a cache of a plan can use.

use super::{
    Variant, align_plan, align_scores, align_values, append, append_block, append_reordered, attend_direct, attend_matrices, attend_merge, attend_prefill,
    attend_rows, attend_split, dequantize, elect, position, protect, query, unpack,
};
use crate::gpu::RowForm;
use crate::plan::{Plan, Slab};

/// Returns every pipeline that a cache of this plan can use.
pub fn variants(plan: &Plan) -> Vec<Variant> {
    let mut variants = common_variants(plan);
    variants.extend(plan.slab_kinds().into_iter().flat_map(|slab| slab_variants(plan, slab)));
    if plan.strided_rows() {
        let rows = RowForm { element: plan.element(), strided: true };
        variants.extend(common_rows(plan, rows));
        variants.extend(plan.slab_kinds().into_iter().flat_map(|slab| slab_rows(plan, slab, rows)));
    }
    variants
}

/// Returns the pipelines that have to do with one slab: its own, and those that serve all.
pub(crate) fn variants_of(plan: &Plan, slab: &Slab) -> Vec<Variant> {
    let mut variants = common_variants(plan);
    variants.extend(slab_variants(plan, slab));
    variants
}

/// Returns what packs the pages of a slab: [`append_block`] where that suits, else [`append`].
pub(crate) fn packing_variant(plan: &Plan, slab: &Slab, rows: RowForm) -> Variant {
    if plan.packs_blocks(slab) { append_block::variant(plan, slab, rows) } else { append::variant(plan, slab, rows) }
}

/// Returns the pipelines that do not depend on the layout of pages.
fn common_variants(plan: &Plan) -> Vec<Variant> {
    let mut variants = common_rows(plan, plan.element().into());
    variants.push(if plan.matrices() { attend_matrices::variant(plan) } else { attend_prefill::variant(plan) });
    if plan.sinks() + plan.ring() > 0 {
        variants.push(attend_rows::variant(plan));
    }
    if plan.elects() {
        variants.extend([false, true].map(|merge| elect::variant(plan, plan.element(), merge)));
    }
    variants
}

/// Returns those that read or write the caller's rows of heads.
fn common_rows(plan: &Plan, rows: RowForm) -> Vec<Variant> {
    let mut variants = vec![query::variant(plan, rows)];
    let directs = if plan.direct_rows() > 0 { &[false, true][..] } else { &[false] };
    for parts in plan.merge_choices() {
        for &direct in directs {
            variants.extend([false, true].map(|log_sums| attend_merge::variant(plan, rows, parts, log_sums, direct)));
        }
    }
    if plan.position_quads() > 0 {
        variants.push(position::variant(plan, rows));
    }
    if plan.sinks() + plan.ring() > 0 {
        variants.push(protect::variant(plan, rows));
    }
    variants
}

/// Returns the pipelines that work on one slab's pages.
fn slab_variants(plan: &Plan, slab: &Slab) -> Vec<Variant> {
    let mut variants = slab_rows(plan, slab, plan.element().into());
    variants.extend([dequantize::variant(plan, slab), unpack::variant(plan, slab)]);
    if plan.aligns() {
        variants.extend([true, false].map(|keys| align_plan::variant(plan, slab, keys)));
        variants.extend([align_scores::variant(plan, slab), align_values::variant(plan, slab)]);
    } else {
        variants.push(attend_split::variant(plan, slab));
    }
    variants
}

/// Returns those of them that read the caller's rows.
fn slab_rows(plan: &Plan, slab: &Slab, rows: RowForm) -> Vec<Variant> {
    let mut variants = vec![packing_variant(plan, slab, rows)];
    if plan.restores() {
        variants.push(append_reordered::variant(plan, slab, rows));
    }
    if plan.direct_rows() > 0 {
        variants.push(attend_direct::variant(plan, slab, rows));
    }
    variants
}
