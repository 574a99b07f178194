//! Attention of one decoding query row over the tokens that no page holds: the f16 rows of sinks and
//! window.
//!
//! It runs beside [`attend_split`](super::attend_split), which takes the pages. Shader:
//! `shaders/attend_rows.wgsl`. Twin:
//! [`reference::attend_rows`](crate::low_level::reference::attend_rows).

use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, cap_constants, elected_constants, position_quads, rope_constants};
use crate::gpu::Reduce;
use crate::plan::Plan;
pub use crate::plan::sizes::DECODE_PARTIALS;

/// `AttendRowsParams` of `shaders/attend_rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttendRowsParams {
    /// First item in tables.
    pub items_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "attend_rows",
    source: include_str!("../../shaders/attend_rows.wgsl"),
    groups: &[
        &[
            ("query_rows", Binding::Read),
            ("turns", Binding::Read),
            ("marks", Binding::Read),
            ("protected_rows", Binding::Read),
            // Not read, so that attend_split needs no barrier of its own: see the shader.
            ("query_codes", Binding::Read),
            ("position_terms", Binding::Read),
            ("row_partials", Binding::Write),
        ],
        STEP,
    ],
    params_bytes: size_of::<AttendRowsParams>(),
    zeroed: false,
};

/// Places of a tile.
pub const TILE_PLACES: u32 = 32;

/// Returns the variant for a plan.
pub fn variant(plan: &Plan) -> Variant {
    let mut parts = vec![
        parts::HEADS.of(plan.heads_per_reading()),
        parts::REDUCE.of(plan.reduce()),
        shared::HALF_ROWS,
        shared::CHUNK,
        shared::CAP,
        parts::ROWS_WALK.of(plan.straight()),
    ];
    if plan.position_quads() > 0 {
        parts.extend([parts::ROWS.centred, shared::TURN, shared::TURN_AT]);
    } else {
        parts.push(parts::ROWS.plain);
    }
    let mut constants = rope_constants(plan);
    constants.extend(elected_constants(plan));
    constants.extend(cap_constants(plan));
    constants.extend([
        ("HEAD_DIM", plan.shape().head_dim.into()),
        ("HEADS", plan.heads_per_reading().into()),
        ("BLOCKS", plan.blocks().into()),
        ("SHARE", plan.shape().share().into()),
        ("QUERY_ROW", plan.query_row().into()),
        ("SINKS", plan.sinks().into()),
        ("RING", plan.ring().into()),
        ("UNITS", 1.0),
        position_quads(plan),
        ("ROW_TURNS", plan.row_turns().into()),
    ]);
    let mut variant = Variant::new(&KERNEL, &parts, &constants);
    variant.subgroups = plan.reduce() == Reduce::Subgroup;
    variant
}
