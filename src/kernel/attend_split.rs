//! Attention of one query row over one slice of the packed pages, straight from the codes.
//!
//! Per page and KV head it reads the page once for up to four query heads; integer dot products for the keys against int8
//! queries, and for the values against u8 weights. Shader: `shaders/attend_split.wgsl`.
//! Twin: [`reference::attend_split`](crate::reference::attend_split).

use super::{
    Binding, HEADS_1, HEADS_2, HEADS_4, KEYS_2, KEYS_3, KEYS_4, KEYS_8, KEYS_F16, KEYS_INTEGER, KEYS_ROLLED, KEYS_STRAIGHT, Kernel, QUERIES, REDUCE_SUBGROUP,
    REDUCE_WORKGROUP, VALUES_2, VALUES_3, VALUES_4, VALUES_8, VALUES_F16, VALUES_INTEGER, VALUES_ROLLED, VALUES_STRAIGHT, Variant,
};
use crate::gpu::Reduce;
use crate::plan::Plan;

/// `AttendSplitParams` of `shaders/attend_split.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttendSplitParams {
    /// First item in tables.
    pub items_at: u32,
    /// KV heads whose pages lie in the slab.
    pub slab_heads: u32,
    /// The first of them.
    pub head_first: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "attend_split",
    source: include_str!("../../shaders/attend_split.wgsl"),
    bindings: &[
        ("params", Binding::Uniform),
        ("tables", Binding::Read),
        ("query_codes", Binding::Read),
        ("pages", Binding::Read),
        ("partials", Binding::Write),
    ],
    params_bytes: size_of::<AttendSplitParams>(),
    zeroed: false,
};

/// The variant for a plan.
pub fn variant(plan: &Plan) -> Variant {
    let layout = plan.layout();
    let head_dim = plan.shape().head_dim;
    let mut parts = vec![
        match plan.heads() {
            1 => HEADS_1,
            2 => HEADS_2,
            _ => HEADS_4,
        },
        match plan.reduce() {
            Reduce::Subgroup => REDUCE_SUBGROUP,
            Reduce::Workgroup => REDUCE_WORKGROUP,
        },
        QUERIES,
    ];
    let walk = |straight, rolled| if plan.straight() { straight } else { rolled };
    match plan.format().key_bits() {
        16 => parts.push(KEYS_F16),
        bits => parts.extend([
            KEYS_INTEGER,
            walk(KEYS_STRAIGHT, KEYS_ROLLED),
            match bits {
                2 => KEYS_2,
                3 => KEYS_3,
                4 => KEYS_4,
                _ => KEYS_8,
            },
        ]),
    }
    match plan.format().value_bits() {
        16 => parts.push(VALUES_F16),
        bits => parts.extend([
            VALUES_INTEGER,
            walk(VALUES_STRAIGHT, VALUES_ROLLED),
            match bits {
                2 => VALUES_2,
                3 => VALUES_3,
                4 => VALUES_4,
                _ => VALUES_8,
            },
        ]),
    }
    let float = plan.format().value_bits() == 16;
    let mut variant = Variant::new(
        &KERNEL,
        &parts,
        &[
            ("HEAD_DIM", head_dim.into()),
            ("GROUP", layout.group.into()),
            ("HEADS", plan.heads().into()),
            ("BLOCKS", plan.blocks().into()),
            ("QUERY_STRIDE", plan.query_stride().into()),
            ("KEY_STEPS", layout.key_steps.into()),
            ("KEY_GROUP_STEPS", (layout.key_steps / layout.groups.max(1)).into()),
            ("KEY_SCALES", layout.key_scales.into()),
            ("VALUES", layout.values.into()),
            ("VALUE_STEPS", layout.value_steps.into()),
            ("VALUE_SCALES", layout.value_scales.into()),
            ("VALUE_GROUPS", layout.groups.max(1).into()),
            ("VALUE_WEIGHTS", if float { 128.0 } else { f64::from(32 * layout.groups) }),
            ("PAGE_VECS", layout.vecs.into()),
        ],
    );
    variant.subgroups = plan.reduce() == Reduce::Subgroup;
    variant
}
