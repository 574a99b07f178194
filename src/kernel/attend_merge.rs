//! Merges the partial results of one query row into its output row, and undoes the value rotation.
//!
//! Shader: `shaders/attend_merge.wgsl`. Twin:
//! [`reference::attend_merge`](crate::low_level::reference::attend_merge).

use super::parts::shared;
use super::{Binding, Kernel, STEP, Variant, centred, element_constant, flag, hadamard_constants, laid_out};
use crate::gpu::RowForm;
use crate::plan::Plan;
pub use crate::plan::sizes::MERGE_ITEMS;

/// `AttendMergeParams` of `shaders/attend_merge.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttendMergeParams {
    /// First row's record in tables.
    pub records_at: u32,
    /// First row in output.
    pub row_first: u32,
    /// Query heads.
    pub query_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "attend_merge",
    source: include_str!("../../shaders/attend_merge.wgsl"),
    groups: &[
        &[("partials", Binding::Read), ("row_partials", Binding::Read), ("marks", Binding::Read), ("query_rows", Binding::Read)],
        STEP,
        &[("output", Binding::Write), ("log_sums", Binding::Write)],
    ],
    params_bytes: size_of::<AttendMergeParams>(),
    zeroed: false,
};

/// Returns the variant for a plan and the type of the caller's rows, with items distributed among
/// `parts`, with log-sums where outputs are merged with those of other caches, and of the partial
/// results of [`attend_direct`](super::attend_direct) where `direct` says so.
pub fn variant(plan: &Plan, rows: RowForm, parts: u32, log_sums: bool, direct: bool) -> Variant {
    let head_dim = plan.shape().head_dim;
    let mut constants = hadamard_constants(head_dim);
    constants.extend([
        flag("ROTATE_VALUES", plan.format().codec().rotates_values()),
        centred(plan),
        element_constant(rows.element),
        flag("LOG_SUMS", log_sums),
        flag("DIRECT", direct),
        flag("SINK_LOGITS", plan.sink_logits(0).is_some()),
        ("LOGITS_AT", plan.logits_at() as f64),
        ("STILL", plan.still_channels().into()),
        ("QUERY_ROW", plan.query_row().into()),
        ("HEADS", plan.heads_per_reading().into()),
        ("BLOCKS", plan.blocks().into()),
        ("PARTS", parts.into()),
        ("THREADS", (head_dim * parts).into()),
    ]);
    let parts = [shared::HALF, shared::BFLOAT, shared::FINITE, shared::HADAMARD, shared::CENTRE, shared::SIGN];
    laid_out(Variant::new(&KERNEL, &parts, &constants), rows)
}
