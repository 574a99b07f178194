//! The scores of one query row against one slice of the packed pages, from the planes of the keys that
//! [`align_plan`](super::align_plan) chose: AlignedKV (2409.16546).
//!
//! Shader: `shaders/align_scores.wgsl`. Twin: [`reference::align_scores`](crate::reference::align_scores).

use super::align_plan::heads_part;
use super::{Binding, Kernel, PLANES, QUERIES, REDUCE_SUBGROUP, REDUCE_WORKGROUP, Variant, flag};
use crate::gpu::{Part, Reduce};
use crate::plan::{Plan, Slab};

/// `AlignScoresParams` of `shaders/align_scores.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AlignScoresParams {
    /// First item in tables.
    pub items_at: u32,
    /// KV heads whose pages lie in the slab.
    pub slab_heads: u32,
    /// Which they are, in tables.
    pub heads_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "align_scores",
    source: include_str!("../../shaders/align_scores.wgsl"),
    bindings: &[
        ("params", Binding::Uniform),
        ("tables", Binding::Read),
        ("query_codes", Binding::Read),
        ("plans", Binding::Read),
        ("pages", Binding::Read),
        ("scores", Binding::Write),
    ],
    params_bytes: size_of::<AlignScoresParams>(),
    zeroed: false,
};

/// The part that reduces over the lanes.
pub(super) fn reduce_part(plan: &Plan) -> Part {
    match plan.reduce() {
        Reduce::Subgroup => REDUCE_SUBGROUP,
        Reduce::Workgroup => REDUCE_WORKGROUP,
    }
}

/// The variant for a slab of a plan.
pub fn variant(plan: &Plan, slab: &Slab) -> Variant {
    let mut variant = Variant::new(
        &KERNEL,
        &[heads_part(plan), reduce_part(plan), QUERIES, PLANES],
        &[
            ("HEAD_DIM", plan.shape().head_dim.into()),
            ("HEADS", plan.heads().into()),
            ("BLOCKS", plan.blocks().into()),
            ("QUERY_STRIDE", plan.query_stride().into()),
            ("POSITIONS_AT", plan.positions_at().into()),
            ("PAGE_VECS", slab.layout().vecs.into()),
            ("SCORE_SUMS", plan.score_sums() as f64),
            ("UNITS", 1.0),
            flag("COUNT", plan.counts_loads()),
        ],
    );
    variant.subgroups = plan.reduce() == Reduce::Subgroup;
    variant
}
