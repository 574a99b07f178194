//! Stores new keys and values that stay f16: sinks and the window.
//!
//! Shader: `shaders/protect.wgsl`. Twin:
//! [`reference::protect`](crate::low_level::reference::protect).

use super::parts::shared;
use super::{Binding, Kernel, STEP, Variant, centred, elected_constants, element_constant, flag, hadamard_constants, laid_out, rope_constants, turned};
use crate::gpu::RowForm;
use crate::plan::Plan;

/// `ProtectParams` of `shaders/protect.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ProtectParams {
    /// First item in tables.
    pub items_at: u32,
    /// Items: tokens to keep.
    pub items: u32,
    /// The layer, for the status list.
    pub layer: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "protect",
    source: include_str!("../../shaders/protect.wgsl"),
    groups: &[
        &[("turns", Binding::Read), ("marks", Binding::Read), ("protected_rows", Binding::Write), ("status", Binding::Write)],
        STEP,
        &[("keys", Binding::Read), ("values", Binding::Read)],
    ],
    params_bytes: size_of::<ProtectParams>(),
    zeroed: true,
};

/// Returns the variant for a plan and the caller's rows.
pub fn variant(plan: &Plan, rows: RowForm) -> Variant {
    let mut constants = hadamard_constants(plan.shape().head_dim);
    constants.extend(rope_constants(plan));
    constants.push(turned(plan));
    constants.extend(elected_constants(plan));
    constants.extend([
        flag("ROTATE_KEYS", plan.format().codec().rotates_keys()),
        flag("ROTATE_VALUES", plan.format().codec().rotates_values()),
        centred(plan),
        element_constant(rows.element),
        ("SINKS", plan.sinks().into()),
        ("RING", plan.ring().into()),
    ]);
    laid_out(Variant::new(&KERNEL, &shared::NEW_ROWS, &constants), rows)
}
