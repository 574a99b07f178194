//! Packs RotateKV's new keys into pages: rotated over groups of KV heads before RoPE, with scales
//! shared in the learned order of channels.
//!
//! Reads each key twice, since a token's whole row may be larger than workgroup memory. Shader:
//! `shaders/append_reordered.wgsl`. Twin:
//! [`reference::append_reordered`](crate::low_level::reference::append_reordered).

use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, element_constant, group_constants, hadamard_constants, laid_out, rope_constants, turned};
use crate::gpu::RowForm;
use crate::plan::{Plan, Slab};

/// `AppendReorderedParams` of `shaders/append_reordered.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AppendReorderedParams {
    /// First item in tables.
    pub items_at: u32,
    /// Items: lanes (four tokens of a page) with something new.
    pub items: u32,
    /// The layer, for the status list.
    pub layer: u32,
    /// KV heads whose pages lie in the slab.
    pub slab_heads: u32,
    /// Which they are, in tables.
    pub heads_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// By KV head: its place in the slab, or one beyond all, in tables.
    pub places_at: u32,
    /// 1 if the layer's key scales are written along with this slab: they are of all heads.
    pub scales: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "append_reordered",
    source: include_str!("../../shaders/append_reordered.wgsl"),
    groups: &[
        &[
            ("turns", Binding::Read),
            ("protected_rows", Binding::Read),
            ("marks", Binding::Read),
            ("pages", Binding::Write),
            ("key_scales", Binding::Write),
            ("status", Binding::Write),
        ],
        STEP,
        &[("keys", Binding::Read)],
    ],
    params_bytes: size_of::<AppendReorderedParams>(),
    zeroed: false,
};

/// Returns the variant for a slab of a plan and the caller's rows.
pub fn variant(plan: &Plan, slab: &Slab, rows: RowForm) -> Variant {
    let mut constants = hadamard_constants(plan.shape().head_dim);
    constants.extend(rope_constants(plan));
    constants.push(turned(plan));
    constants.extend(group_constants(plan, slab));
    constants.extend([
        element_constant(rows.element),
        ("KEY_BITS", slab.format().key().bits.get().into()),
        ("KEY_CLIP", slab.format().clip(slab.format().key().bits).into()),
        ("PAGE_VECS", slab.layout().vecs.into()),
        ("SINKS", plan.sinks().into()),
        ("RING", plan.ring().into()),
        ("UNPACKED", plan.unpacked().into()),
        ("GROUP_CELLS", (plan.group_heads() * plan.shape().head_dim).into()),
    ]);
    let scales = plan.format().scales();
    let mut parts = vec![shared::HALF, shared::FINITE, shared::PLACE, shared::CHUNK, shared::TURN, shared::HADAMARD, shared::KEY_WORDS, shared::REPORT];
    parts.extend([shared::ELEMENT, shared::GROUP, parts::GROUP.of(scales), parts::GROUP_PLANE.of(scales), parts::SCALES.of(scales)]);
    laid_out(Variant::new(&KERNEL, &parts, &constants), rows)
}
