//! What the mean of the keys adds to the scores of each page, as far as it turns slowly: terms of polynomials, for
//! [`attend_split`](super::attend_split) or [`align_scores`](super::align_scores). For Centred only.
//!
//! Shader: `shaders/position.wgsl`. Twin: [`reference::position`](crate::reference::position()).

use super::{Binding, Kernel, Variant, heads_part, position_constants};
use crate::plan::Plan;

/// `PositionParams` of `shaders/position.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PositionParams {
    /// First item in tables.
    pub items_at: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "position",
    source: include_str!("../../shaders/position.wgsl"),
    bindings: &[
        ("params", Binding::Uniform),
        ("tables", Binding::Read),
        ("turns", Binding::Read),
        ("query_codes", Binding::Read),
        ("position_terms", Binding::Write),
    ],
    params_bytes: size_of::<PositionParams>(),
    zeroed: false,
};

/// Pages of an item, at most.
pub const PAGES: u32 = 64;

/// Terms of a page: those of the even powers, then of the odd.
pub const TERMS: u32 = 12;

/// The variant for a plan.
pub fn variant(plan: &Plan) -> Variant {
    let mut constants = position_constants(plan);
    constants.extend([
        ("HEADS", plan.heads().into()),
        ("BLOCKS", plan.blocks().into()),
        ("QUERY_STRIDE", plan.query_stride().into()),
        ("ROPE_PAIRS", plan.shape().rope.frequencies().len() as f64),
        ("POSITION_PAGES", plan.position_pages().into()),
    ]);
    Variant::new(&KERNEL, &[heads_part(plan)], &constants)
}
