//! Brings query rows into the basis of the codec: RoPE, rotation, the softmax scale, and int8 codes
//! for [`attend_split`](super::attend_split).
//!
//! Shader: `shaders/query.wgsl`. Twin: [`reference::query`](crate::low_level::reference::query).

use super::parts::{self, shared};
use super::{
    Binding, Kernel, STEP, Variant, centred, element_constant, flag, hadamard_constants, laid_out, position_quads, rope_constants, score_scale, turned,
};
use crate::gpu::RowForm;
use crate::plan::Plan;

/// `QueryParams` of `shaders/query.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct QueryParams {
    /// First row's position in tables.
    pub positions_at: u32,
    /// First row in queries.
    pub row_first: u32,
    /// Query heads.
    pub query_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// In tables, by KV head: channels that share a key scale, or 0 where attend_split takes the
    /// queries in f32.
    pub groups_at: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "query",
    source: include_str!("../../shaders/query.wgsl"),
    groups: &[
        &[("turns", Binding::Read), ("marks", Binding::Read), ("query_rows", Binding::Write), ("query_codes", Binding::Write)],
        STEP,
        &[("queries", Binding::Read)],
    ],
    params_bytes: size_of::<QueryParams>(),
    zeroed: false,
};

/// Returns the variant for a plan and the caller's rows.
pub fn variant(plan: &Plan, rows: RowForm) -> Variant {
    let head_dim = plan.shape().head_dim;
    let mut constants = hadamard_constants(head_dim);
    constants.extend(rope_constants(plan));
    constants.push(turned(plan));
    constants.extend([
        flag("ROTATE_KEYS", plan.format().codec().rotates_keys()),
        centred(plan),
        position_quads(plan),
        ("POSITIONS_AT", plan.positions_at().into()),
        ("POSITION_WAVES", plan.position_waves().into()),
        ("POSITION_CENTRE", plan.position_centre().into()),
        element_constant(rows.element),
        score_scale(plan),
        ("HEADS", plan.heads_per_reading().into()),
        ("BLOCKS", plan.blocks().into()),
        ("QUERY_STRIDE", plan.query_stride().into()),
        ("EIGHTHS", (head_dim / 8).into()),
        ("QUADS", (head_dim / 4).into()),
    ]);
    let variant = Variant::new(
        &KERNEL,
        &[shared::FINITE, shared::TURN, shared::HADAMARD, shared::CENTRE, shared::SIGN, shared::ELEMENT, shared::QUERY_AT, shared::FACTORS, parts::HEADS.one],
        &constants,
    );
    laid_out(variant, rows)
}
