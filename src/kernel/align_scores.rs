//! The scores of one query row against one slice of the packed pages, from the planes of the keys
//! that [`align_plan`](super::align_plan) chose: AlignedKV (2409.16546).
//!
//! Shader: `shaders/align_scores.wgsl`. Twin:
//! [`reference::align_scores`](crate::low_level::reference::align_scores).

use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, flag, position_constants, position_parts};
use crate::format::Bits;
use crate::gpu::{Reduce, Source};
use crate::plan::{Plan, Slab};

/// `AlignScoresParams` of `shaders/align_scores.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AlignScoresParams {
    /// First item in tables.
    pub items_at: u32,
    /// KV heads whose pages lie in the slab.
    pub slab_heads: u32,
    /// Which they are, in tables.
    pub heads_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "align_scores",
    source: include_str!("../../shaders/align_scores.wgsl"),
    groups: &[
        &[
            ("turns", Binding::Read),
            ("query_codes", Binding::Read),
            ("plans", Binding::Read),
            ("pages", Binding::Read),
            ("position_terms", Binding::Read),
            ("scores", Binding::Write),
        ],
        STEP,
    ],
    params_bytes: size_of::<AlignScoresParams>(),
    zeroed: false,
};

/// Returns the parts that read planes of numbers with `bits` bits, given the kernel's own part for
/// codes and for halves.
pub(super) fn number_parts(plan: &Plan, bits: Bits, code: Source, half: Source) -> Vec<Source> {
    match bits {
        Bits::Four => vec![code, parts::LEVELS.of(bits), parts::PLANES.four, parts::SCALES.of(plan.format().scales()), shared::PAGE_SCALES],
        Bits::Eight => vec![code, parts::LEVELS.of(bits), parts::PLANES.eight, parts::SCALES.of(plan.format().scales()), shared::PAGE_SCALES],
        _ => vec![half, parts::LEVELS.of(bits), shared::PLANES],
    }
}

/// Returns the variant for a slab of a plan.
pub fn variant(plan: &Plan, slab: &Slab) -> Variant {
    let layout = slab.layout();
    let mut parts = vec![parts::HEADS.of(plan.heads_per_reading()), parts::REDUCE.of(plan.reduce()), parts::QUERIES.stored, shared::TURN_AT];
    parts.extend(position_parts(plan));
    parts.extend(number_parts(plan, slab.format().key().bits, parts::ALIGN_KEYS.code, parts::ALIGN_KEYS.half));
    let mut constants = position_constants(plan);
    constants.push(("POSITIONS_AT", plan.positions_at().into()));
    constants.extend([
        ("HEAD_DIM", plan.shape().head_dim.into()),
        ("BLOCKS", plan.blocks().into()),
        ("QUERY_STRIDE", plan.query_stride().into()),
        ("ROPE_PAIRS", plan.shape().rope.frequencies().len() as f64),
        ("PAGE_VECS", layout.vecs.into()),
        ("KEY_BITS", slab.format().key().bits.get().into()),
        // A trellis has no planes.
        flag("KEY_TRELLIS", false),
        flag("VALUE_TRELLIS", false),
        ("VALUE_BITS", slab.format().value().bits.get().into()),
        ("KEY_GROUPS", layout.key_groups.into()),
        ("KEY_GROUP_QUADS", (layout.key_group / 4).into()),
        ("KEY_SCALES", layout.key_scales.into()),
        ("VALUE_GROUPS", layout.value_groups.into()),
        ("VALUE_SCALES", layout.value_scales.into()),
        flag("CODES", plan.aligns_codes()),
        ("SCORE_SUMS", plan.score_sums() as f64),
        ("SCORE_QUADS", plan.score_quads() as f64),
        ("UNITS", 1.0),
        flag("COUNT", plan.counts_loads()),
    ]);
    let mut variant = Variant::new(&KERNEL, &parts, &constants);
    variant.subgroups = plan.reduce() == Reduce::Subgroup;
    variant
}
