//! The weighted values of one query row over one slice of the packed pages, from the planes that a
//! token's softmax weight calls for: AlignedKV (2409.16546).
//!
//! Shader: `shaders/align_values.wgsl`. Twin:
//! [`reference::align_values`](crate::low_level::reference::align_values).

use super::align_scores::number_parts;
use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, flag};
use crate::gpu::Reduce;
pub use crate::plan::sizes::LEDGER_VECS;
use crate::plan::{Plan, Slab};

/// `AlignValuesParams` of `shaders/align_values.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AlignValuesParams {
    /// First item in tables.
    pub items_at: u32,
    /// KV heads whose pages lie in the slab.
    pub slab_heads: u32,
    /// Which they are, in tables.
    pub heads_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// 0 everything is read, 1 the published rule, 2 under a budget.
    pub criterion: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "align_values",
    source: include_str!("../../shaders/align_values.wgsl"),
    groups: &[&[("scores", Binding::Read), ("plans", Binding::Read), ("pages", Binding::Read), ("partials", Binding::Write)], STEP],
    params_bytes: size_of::<AlignValuesParams>(),
    zeroed: false,
};

/// Returns the variant for a slab of a plan.
pub fn variant(plan: &Plan, slab: &Slab) -> Variant {
    let layout = slab.layout();
    let bits = slab.format().value().bits;
    let mut parts = vec![parts::HEADS.of(plan.heads_per_reading()), parts::REDUCE.of(plan.reduce()), shared::LEVELS];
    parts.extend(number_parts(plan, bits, parts::ALIGN_VALUES.code, parts::ALIGN_VALUES.half));
    let mut variant = Variant::new(
        &KERNEL,
        &parts,
        &[
            ("HEAD_DIM", plan.shape().head_dim.into()),
            ("SHARE", plan.shape().share().into()),
            ("HEADS", plan.heads_per_reading().into()),
            ("BLOCKS", plan.blocks().into()),
            ("PAGE_VECS", layout.vecs.into()),
            ("KEY_BITS", slab.format().key().bits.get().into()),
            // A trellis has no planes.
            flag("KEY_TRELLIS", false),
            flag("VALUE_TRELLIS", false),
            ("VALUE_BITS", bits.get().into()),
            ("VALUES", layout.values.into()),
            ("VALUE_GROUP", layout.value_group.into()),
            ("VALUE_GROUPS", layout.value_groups.into()),
            ("VALUE_SCALES", layout.value_scales.into()),
            // The scales of a single group are multiplied into the weights.
            ("STEPS", if layout.value_groups > 1 { f64::from(128 * layout.value_groups) } else { 1.0 }),
            ("LEDGERS", plan.ledgers() as f64),
            ("UNITS", 1.0),
            flag("COUNT", plan.counts_loads()),
        ],
    );
    variant.subgroups = plan.reduce() == Reduce::Subgroup;
    variant
}
