//! Attention of one query row over one slice of the packed pages, straight from the codes.
//!
//! Per page and KV head it reads the page once for up to four query heads; integer dot products for the keys against int8
//! queries, and for the values against u8 weights. RotateKV's keys are restored first, in registers or workgroup memory (the
//! rotation over a group of heads undone, RoPE), and meet the queries as halves or f32. Shader: `shaders/attend_split.wgsl`.
//! Twin: [`reference::attend_split`](crate::kernel::reference::attend_split).

use super::{
    Binding, CODES_2, CODES_3, CODES_4, CODES_8, GROUPED, GROUPED_BLOCK, HADAMARD, KEYS_2, KEYS_3, KEYS_4, KEYS_8, KEYS_F16, KEYS_INTEGER, KEYS_RESTORED,
    KEYS_ROLLED, KEYS_STRAIGHT, Kernel, LANES, QUERIES, REDUCE_SUBGROUP, REDUCE_WORKGROUP, RESTORE_NONE, RESTORE_ROLLED, RESTORE_SHUFFLED, RESTORE_STRAIGHT,
    STEP, TURN, TURN_AT, VALUES_2, VALUES_3, VALUES_4, VALUES_8, VALUES_F16, VALUES_INTEGER, VALUES_ROLLED, VALUES_STRAIGHT, Variant, WORDS_2, WORDS_3,
    WORDS_4, WORDS_8, elected_constants, group_constants, hadamard_constants, heads_part, position_constants, position_parts, rope_constants, scales_part,
};
use crate::format::Bits;
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

/// One of four parts, by bits.
fn by_bits(bits: u32, parts: [Source; 4]) -> Source {
    let [two, three, four, eight] = parts;
    match bits {
        2 => two,
        3 => three,
        4 => four,
        _ => eight,
    }
}

/// The parts that make scores of the keys.
fn key_parts(plan: &Plan, slab: &Slab) -> Vec<Source> {
    let bits = slab.format().key().bits.get();
    if plan.restores() {
        return match plan.restore() {
            Restore::Shuffled => vec![KEYS_RESTORED, RESTORE_SHUFFLED, LANES, by_bits(bits, [WORDS_2, WORDS_3, WORDS_4, WORDS_8])],
            Restore::Straight => vec![KEYS_RESTORED, RESTORE_STRAIGHT, LANES, by_bits(bits, [CODES_2, CODES_3, CODES_4, CODES_8])],
            Restore::Rolled => vec![KEYS_RESTORED, RESTORE_ROLLED, GROUPED_BLOCK, GROUPED, HADAMARD, TURN],
        };
    }
    let mut parts = vec![QUERIES, RESTORE_NONE];
    if bits == 16 {
        parts.push(KEYS_F16);
    } else {
        let walk = if plan.straight() { KEYS_STRAIGHT } else { KEYS_ROLLED };
        parts.extend([KEYS_INTEGER, walk, by_bits(bits, [KEYS_2, KEYS_3, KEYS_4, KEYS_8])]);
    }
    parts
}

/// The variant for a slab of a plan.
pub fn variant(plan: &Plan, slab: &Slab) -> Variant {
    let layout = slab.layout();
    let head_dim = plan.shape().head_dim;
    let mut parts = vec![
        heads_part(plan),
        match plan.reduce() {
            Reduce::Subgroup => REDUCE_SUBGROUP,
            Reduce::Workgroup => REDUCE_WORKGROUP,
        },
        scales_part(plan),
        TURN_AT,
    ];
    parts.extend(key_parts(plan, slab));
    parts.extend(position_parts(plan));
    match slab.format().value().bits.get() {
        16 => parts.push(VALUES_F16),
        bits => parts.extend([
            VALUES_INTEGER,
            if plan.straight() { VALUES_STRAIGHT } else { VALUES_ROLLED },
            by_bits(bits, [VALUES_2, VALUES_3, VALUES_4, VALUES_8]),
        ]),
    }
    let float = slab.format().value().bits == Bits::Sixteen;
    let mut constants = hadamard_constants(head_dim);
    constants.extend(group_constants(plan, slab));
    constants.extend(elected_constants(plan));
    constants.extend(rope_constants(plan));
    constants.extend(position_constants(plan));
    constants.push(("POSITIONS_AT", plan.positions_at().into()));
    constants.extend([
        ("VALUE_GROUP", layout.value_group.into()),
        ("HEADS", plan.heads_per_reading().into()),
        ("BLOCKS", plan.blocks().into()),
        ("QUERY_STRIDE", plan.query_stride().into()),
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
        ("RESTORE_CELLS", plan.restore_cells().into()),
        ("RESTORE_SCALE", 1.0 / f64::from(plan.group_heads() * head_dim).sqrt()),
    ]);
    let mut variant = Variant::new(&KERNEL, &parts, &constants);
    variant.subgroups = plan.reduce() == Reduce::Subgroup;
    variant.halves = plan.restores() && plan.straight();
    variant
}
