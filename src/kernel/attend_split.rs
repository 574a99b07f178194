//! Attention of one query row over one slice of the packed pages, straight from the codes.
//!
//! Per page and KV head it reads the page once for up to four query heads, with integer dot
//! products for the keys against int8 queries, and for the values against u8 weights. RotateKV's
//! keys are restored first, in registers or workgroup memory (the rotation over a group of heads
//! undone, RoPE), and meet the queries as halves or f32. Shader: `shaders/attend_split.wgsl`. Twin:
//! [`reference::attend_split`](crate::low_level::reference::attend_split).

use super::parts::{self, shared};
use super::{
    Binding, Constants, Kernel, STEP, Variant, cap_constants, elected_constants, group_constants, hadamard_constants, position_constants, position_parts,
    rope_constants, trellis_constants,
};
use crate::format::{Bits, Precision};
use crate::gpu::{Reduce, Source};
use crate::plan::{Plan, Restore, Slab};

/// `AttendSplitParams` of `shaders/attend_split.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttendSplitParams {
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
    name: "attend_split",
    source: include_str!("../../shaders/attend_split.wgsl"),
    groups: &[
        &[
            ("turns", Binding::Read),
            ("query_codes", Binding::Read),
            ("marks", Binding::Read),
            ("key_scales", Binding::Read),
            ("pages", Binding::Read),
            ("position_terms", Binding::Read),
            ("partials", Binding::Write),
        ],
        STEP,
    ],
    params_bytes: size_of::<AttendSplitParams>(),
    zeroed: false,
};

/// Returns the parts that compute scores from the keys.
fn key_parts(plan: &Plan, slab: &Slab) -> Vec<Source> {
    let bits = slab.format().key().bits;
    if plan.restores() {
        let mut parts = vec![parts::KEYS.restored, parts::RESTORE.of(plan.restore())];
        parts.extend(match plan.restore() {
            Restore::Shuffled => vec![parts::QUERIES.none, shared::LANES, parts::RESTORE_WORDS.of(bits)],
            Restore::Straight => vec![parts::QUERIES.halves, shared::LANES, parts::RESTORE_CODES.of(bits)],
            Restore::Rolled => vec![parts::QUERIES.none, shared::GROUPED_BLOCK, shared::GROUPED, shared::HADAMARD, shared::TURN],
        });
        return parts;
    }
    let mut parts = vec![parts::QUERIES.stored, parts::RESTORE.none];
    parts.extend(score_parts(plan, slab));
    parts
}

/// Returns those of keys that are stored as attention reads them.
pub(super) fn score_parts(plan: &Plan, slab: &Slab) -> Vec<Source> {
    match slab.format().key().bits {
        Bits::Sixteen => vec![parts::KEYS.f16],
        _ if slab.format().key().is_trellis() => vec![parts::KEYS.integer, parts::KEYS_WALK.of(plan.straight()), parts::KEYS_TRELLIS],
        bits => vec![parts::KEYS.integer, parts::KEYS_WALK.of(plan.straight()), parts::KEYS_BITS.of(bits)],
    }
}

/// Returns the parts that add the weighted values, and what keys and values by a trellis have in
/// common.
pub(super) fn value_parts(plan: &Plan, slab: &Slab) -> Vec<Source> {
    let mut parts = match slab.format().value().bits {
        Bits::Sixteen => vec![parts::VALUES.f16],
        _ if slab.format().value().is_trellis() => {
            vec![parts::VALUES.integer, parts::VALUES_WALK.of(plan.straight()), parts::VALUES_TRELLIS, parts::BEFORE.of(plan.reduce())]
        }
        bits => vec![parts::VALUES.integer, parts::VALUES_WALK.of(plan.straight()), parts::VALUES_BITS.of(bits)],
    };
    if [slab.format().key(), slab.format().value()].iter().any(Precision::is_trellis) {
        parts.push(shared::TRELLIS_WORDS);
    }
    parts
}

/// Returns the variant for a slab of a plan.
pub fn variant(plan: &Plan, slab: &Slab) -> Variant {
    let mut parts = vec![
        parts::HEADS.of(plan.heads_per_reading()),
        parts::REDUCE.of(plan.reduce()),
        parts::SCALES.of(plan.format().scales()),
        shared::SPLIT,
        shared::TURN_AT,
        shared::CAP,
    ];
    parts.extend(key_parts(plan, slab));
    parts.extend(position_parts(plan));
    parts.extend(value_parts(plan, slab));
    let mut constants = split_constants(plan, slab);
    constants.extend(group_constants(plan, slab));
    constants.extend(position_constants(plan));
    constants.extend([
        ("QUERY_STRIDE", plan.query_stride().into()),
        ("RESTORE_CELLS", plan.restore_cells().into()),
        ("RESTORE_SCALE", 1.0 / f64::from(plan.group_heads() * plan.shape().head_dim).sqrt()),
    ]);
    let mut variant = Variant::new(&KERNEL, &parts, &constants);
    variant.subgroups = plan.reduce() == Reduce::Subgroup;
    variant.halves = plan.restores() && plan.straight();
    variant
}

/// Returns the values of overrides that `attend_direct` has, too.
pub(super) fn split_constants(plan: &Plan, slab: &Slab) -> Constants {
    let layout = slab.layout();
    let head_dim = plan.shape().head_dim;
    let float = slab.format().value().bits == Bits::Sixteen;
    let mut constants = hadamard_constants(head_dim);
    constants.extend(trellis_constants(slab));
    constants.extend(elected_constants(plan));
    constants.extend(cap_constants(plan));
    constants.extend(rope_constants(plan));
    constants.push(("POSITIONS_AT", plan.positions_at().into()));
    constants.extend([
        ("VALUE_GROUP", layout.value_group.into()),
        ("HEADS", plan.heads_per_reading().into()),
        ("BLOCKS", plan.blocks().into()),
        ("KEY_STEPS", layout.key_steps.into()),
        ("KEY_GROUP_STEPS", (layout.key_steps / layout.key_groups.max(1)).into()),
        ("KEY_SCALES", layout.key_scales.into()),
        ("VALUES", layout.values.into()),
        ("VALUE_STEPS", layout.value_steps.into()),
        ("VALUE_SCALES", layout.value_scales.into()),
        ("VALUE_GROUPS", layout.value_groups.max(1).into()),
        ("VALUE_WEIGHTS", if float { 128.0 } else { f64::from(32 * layout.value_groups) }),
        ("PAGE_VECS", layout.vecs.into()),
        ("KEY_BITS", slab.format().key().bits.get().into()),
        ("VALUE_BITS", slab.format().value().bits.get().into()),
        ("SINKS", plan.sinks().into()),
        ("UNITS", plan.group_heads().into()),
    ]);
    constants
}
