//! What the mean of the keys adds to the scores of each page, as far as it turns slowly: terms of
//! polynomials, for [`attend_split`](super::attend_split) or [`align_scores`](super::align_scores).
//! For Centred only.
//!
//! Shader: `shaders/position.wgsl`. Twin:
//! [`reference::position`](crate::low_level::reference::position()).

use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, centred, element_constant, laid_out, position_constants, rope_constants, score_scale, turned};
use crate::gpu::RowForm;
use crate::plan::Plan;
pub use crate::plan::sizes::POSITION_TERMS as TERMS;

/// `PositionParams` of `shaders/position.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PositionParams {
    /// First item in tables.
    pub items_at: u32,
    /// First row's position in tables.
    pub positions_at: u32,
    /// First row in queries.
    pub row_first: u32,
    /// Query heads.
    pub query_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "position",
    source: include_str!("../../shaders/position.wgsl"),
    groups: &[&[("turns", Binding::Read), ("marks", Binding::Read), ("position_terms", Binding::Write)], STEP, &[("queries", Binding::Read)]],
    params_bytes: size_of::<PositionParams>(),
    zeroed: false,
};

/// Pages of an item, at most.
pub const PAGES: u32 = 16;

/// Returns the variant for a plan and the type of the caller's rows.
pub fn variant(plan: &Plan, rows: RowForm) -> Variant {
    let head_dim = plan.shape().head_dim;
    let mut constants = rope_constants(plan);
    constants.push(turned(plan));
    constants.extend(position_constants(plan));
    constants.extend([
        ("HEADS", plan.heads_per_reading().into()),
        ("BLOCKS", plan.blocks().into()),
        ("HEAD_DIM", head_dim.into()),
        centred(plan),
        element_constant(rows.element),
        score_scale(plan),
        ("POSITION_PAGES", plan.position_pages().into()),
    ]);
    let variant = Variant::new(
        &KERNEL,
        &[
            parts::HEADS.of(plan.heads_per_reading()),
            shared::TURN,
            shared::TURN_AT,
            shared::CENTRE,
            shared::SIGN,
            shared::ELEMENT,
            shared::QUERY_AT,
            shared::FACTORS,
            shared::SLOW,
        ],
        &constants,
    );
    laid_out(variant, rows)
}
