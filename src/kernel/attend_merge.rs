//! The partial results of one query row into its output row, with the value rotation undone.
//!
//! Shader: `shaders/attend_merge.wgsl`. Twin: [`reference::attend_merge`](crate::reference::attend_merge).

use super::{Binding, CENTRE, FINITE, HADAMARD, HALF, Kernel, Variant, centred, flag, hadamard_constants, half_rows};
use crate::gpu::Capability;
use crate::plan::Plan;
use crate::rows::Element;

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

/// Partial results of attend_split that one row can have.
pub const MERGE_ITEMS: u32 = 256;

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "attend_merge",
    source: include_str!("../../shaders/attend_merge.wgsl"),
    bindings: &[
        ("params", Binding::Uniform),
        ("tables", Binding::Read),
        ("partials", Binding::Read),
        ("row_partials", Binding::Read),
        ("marks", Binding::Read),
        ("output", Binding::Write),
        ("log_sums", Binding::Write),
    ],
    params_bytes: size_of::<AttendMergeParams>(),
    zeroed: false,
};

/// Invocations of a workgroup, at most.
const THREADS: u32 = 1024;

/// Items whose loads a part has in flight together.
const TURN_ITEMS: u32 = 16;

/// Parts that a row's items are shared out among, at most: as many as a device allows.
pub(crate) fn most_parts(head_dim: u32, capability: &Capability) -> u32 {
    let threads = THREADS.min(capability.invocations).min(capability.workgroup_size_x);
    let room = capability.workgroup_bytes.saturating_sub(4 * head_dim) / (16 * head_dim);
    (threads / head_dim).min(room).max(1)
}

/// Workgroup memory: the output row, and three numbers for every invocation, which lie as four.
pub(crate) fn workgroup_bytes(head_dim: u32, parts: u32) -> u32 {
    4 * head_dim + 16 * head_dim * parts
}

/// The numbers of parts that a plan has pipelines for, ascending: few, since each takes time to compile.
pub(crate) fn choices(plan: &Plan) -> Vec<u32> {
    let most = plan.merge_parts();
    let mut choices = vec![1, most.min(4), most];
    choices.dedup();
    choices
}

/// Parts that share a row's items in a pass whose rows have no more than so many from `attend_split`: enough for one turn each, if the plan has
/// as many.
pub fn parts(plan: &Plan, items: u32) -> u32 {
    choices(plan).into_iter().find(|parts| parts * TURN_ITEMS >= items).unwrap_or(plan.merge_parts())
}

/// The variant for a plan and the type of the caller's rows, for items shared out among so many [`parts`], and for outputs that are merged with
/// those of other caches.
pub fn variant(plan: &Plan, element: Element, parts: u32, log_sums: bool) -> Variant {
    let head_dim = plan.shape().head_dim;
    let mut constants = hadamard_constants(head_dim);
    constants.extend([
        flag("ROTATE_VALUES", plan.format().codec().rotates_values()),
        centred(plan),
        half_rows(element),
        flag("LOG_SUMS", log_sums),
        ("HEADS", plan.heads().into()),
        ("BLOCKS", plan.blocks().into()),
        ("PARTS", parts.into()),
        ("THREADS", (head_dim * parts).into()),
    ]);
    Variant::new(&KERNEL, &[HALF, FINITE, HADAMARD, CENTRE], &constants)
}
