//! New keys and values into the packed pages: RoPE, rotation, scale, codes, in one pass over both.
//! For RotateKV, whose keys [`append_reordered`](super::append_reordered) packs, values only.
//!
//! Shader: `shaders/append.wgsl`. Twin: [`reference::append`](crate::low_level::reference::append).

use super::parts::{self, shared};
use super::{
    Binding, Constants, Kernel, STEP, Variant, centred, element_constant, fit_parts, flag, hadamard_constants, laid_out, page_constants, rope_constants, turned,
};
use crate::format::Element;
use crate::gpu::RowForm;
use crate::plan::{Plan, Slab};

/// `AppendParams` of `shaders/append.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AppendParams {
    /// First item in tables.
    pub items_at: u32,
    /// Items: blocks of tokens (32, or 128 where numbers are stored in planes) with something new.
    pub items: u32,
    /// The layer, for the status list.
    pub layer: u32,
    /// KV heads whose pages lie in the slab.
    pub slab_heads: u32,
    /// Which they are, in tables.
    pub heads_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "append",
    source: include_str!("../../shaders/append.wgsl"),
    groups: &[
        &[("turns", Binding::Read), ("protected_rows", Binding::Read), ("marks", Binding::Read), ("pages", Binding::Write), ("status", Binding::Write)],
        STEP,
        &[("keys", Binding::Read), ("values", Binding::Read)],
    ],
    params_bytes: size_of::<AppendParams>(),
    zeroed: false,
};

/// Returns the constants that both packing kernels take.
pub(super) fn packing_constants(plan: &Plan, slab: &Slab, element: Element) -> Constants {
    let mut constants = rope_constants(plan);
    constants.push(turned(plan));
    constants.extend(page_constants(plan, slab));
    constants.extend([
        flag("KEYS", !plan.restores()),
        flag("ROTATE_KEYS", plan.format().codec().rotates_keys()),
        flag("ROTATE_VALUES", plan.format().codec().rotates_values()),
        centred(plan),
        ("UNPACKED", plan.unpacked().into()),
        element_constant(element),
        ("KEY_CLIP", slab.format().clip(slab.format().key().bits).into()),
        ("VALUE_CLIP", slab.format().clip(slab.format().value().bits).into()),
    ]);
    constants
}

/// Returns what finding the symbols of a trellis takes: the steps of an invocation, the invocations
/// of a token, and `rows` as the share of workgroup memory of its codes.
pub(super) fn symbol_constants(slab: &Slab, rows: u32) -> Constants {
    let (layout, format) = (slab.layout(), slab.format());
    let groups = [(format.key(), layout.key_group, layout.key_groups), (format.value(), layout.value_group, layout.value_groups)];
    let coded: Vec<(u32, u32)> = groups.into_iter().filter(|(precision, ..)| precision.is_trellis()).map(|(_, group, groups)| (group, groups)).collect();
    let steps = coded.first().map_or(4, |(group, _)| group / 2);
    let lanes = coded.iter().map(|(_, groups)| 2 * groups).sum::<u32>().max(1);
    let rows = if coded.is_empty() { 1 } else { rows };
    vec![("TRELLIS_STEPS", steps.into()), ("TRELLIS_LANES", lanes.into()), ("CODE_ROWS", rows.into())]
}

/// Returns the variant for a slab of a plan and the caller's rows.
pub fn variant(plan: &Plan, slab: &Slab, rows: RowForm) -> Variant {
    let head_dim = plan.shape().head_dim;
    let mut constants = hadamard_constants(head_dim);
    constants.extend(packing_constants(plan, slab, rows.element));
    constants.extend(symbol_constants(slab, head_dim / 2));
    constants.extend([("BLOCK", plan.append_block().into()), ("MAXIMA", slab.layout().maxima.into()), ("EIGHTHS", (head_dim / 8).into())]);
    let mut parts = shared::NEW_ROWS.to_vec();
    parts.extend([parts::SCALES.of(plan.format().scales()), shared::KEY_WORDS, shared::TRELLIS, shared::PLANES, shared::CODE_PLANES]);
    parts.extend(fit_parts(plan));
    laid_out(Variant::new(&KERNEL, &parts, &constants), rows)
}
