//! Attends a block of query rows to unpacked tokens, causally, in f32.
//!
//! Shader: `shaders/attend_prefill.wgsl`. Twin:
//! [`reference::attend_prefill`](crate::low_level::reference::attend_prefill).

use super::parts::{self, shared};
use super::{Binding, Constants, Kernel, STEP, Variant, cap_constants, elected_constants};
use crate::plan::Plan;

/// `AttendPrefillParams` of `shaders/attend_prefill.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttendPrefillParams {
    /// First item in tables.
    pub items_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "attend_prefill",
    source: include_str!("../../shaders/attend_prefill.wgsl"),
    groups: &[&[("query_rows", Binding::Read), ("unpacked_rows", Binding::Read), ("marks", Binding::Read), ("row_partials", Binding::Write)], STEP],
    params_bytes: size_of::<AttendPrefillParams>(),
    zeroed: false,
};

/// Rows (query tokens times query heads that share a KV head) that one workgroup takes.
pub const TILE_ROWS: u32 = 64;

/// Returns how many channels of values a workgroup takes.
pub fn columns(head_dim: u32) -> u32 {
    head_dim / head_dim.div_ceil(128)
}

/// Returns what both kernels that attend to unpacked tokens are told of a plan.
pub(crate) fn prefill_constants(plan: &Plan) -> Constants {
    let mut constants = elected_constants(plan);
    constants.extend(cap_constants(plan));
    constants.extend([
        ("HEAD_DIM", plan.shape().head_dim.into()),
        ("SHARE", plan.shape().share().into()),
        ("SINKS", plan.sinks().into()),
        ("SLIDING_WINDOW", plan.reach().into()),
        ("CHUNK", plan.chunk().into()),
        ("QUERY_ROW", plan.query_row().into()),
    ]);
    constants
}

/// Returns the variant for a plan.
pub fn variant(plan: &Plan) -> Variant {
    let head_dim = plan.shape().head_dim;
    let mut constants = prefill_constants(plan);
    constants.extend([("SLICES", head_dim.div_ceil(32).into()), ("COLUMNS", columns(head_dim).into())]);
    Variant::new(&KERNEL, &[shared::CHUNK, shared::PREFILL, shared::CAP, parts::WALK.of(plan.unrolls())], &constants)
}
