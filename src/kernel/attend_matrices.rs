//! Attends a block of query rows to unpacked tokens, causally, by cooperative matrices.
//!
//! Shader: `shaders/attend_matrices.wgsl`. Twin:
//! [`reference::attend_matrices`](crate::low_level::reference::attend_matrices).

use super::attend_prefill::prefill_constants;
use super::parts::shared;
use super::{Binding, Kernel, STEP, Variant};
use crate::plan::Plan;

/// `AttendMatricesParams` of `shaders/attend_matrices.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttendMatricesParams {
    /// First item in tables.
    pub items_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "attend_matrices",
    source: include_str!("../../shaders/attend_matrices.wgsl"),
    groups: &[&[("query_rows", Binding::Read), ("unpacked_rows", Binding::Read), ("marks", Binding::Read), ("row_partials", Binding::Write)], STEP],
    params_bytes: size_of::<AttendMatricesParams>(),
    zeroed: false,
};

/// Rows (query tokens times query heads that share a KV head) that one workgroup takes.
pub const TILE_ROWS: u32 = 128;

/// Returns the variant for a plan.
pub fn variant(plan: &Plan) -> Variant {
    let mut variant = Variant::new(&KERNEL, &[shared::CHUNK, shared::PREFILL, shared::CAP], &prefill_constants(plan));
    variant.matrices = true;
    variant
}
