//! Attention of one decoding query row, from the caller's queries, over one slice of the packed
//! pages or of the f16 rows: what [`query`](super::query), [`position`](super::position),
//! [`attend_rows`](super::attend_rows) and [`attend_split`](super::attend_split) do, in one
//! dispatch.
//!
//! For passes of a few decoding rows, where dispatches that wait for each other take longer than
//! what they do ([`PlanBuilder::direct_rows`](crate::PlanBuilder::direct_rows)). Shader:
//! `shaders/attend_direct.wgsl`. Twin:
//! [`reference::attend_direct`](crate::low_level::reference::attend_direct).

use super::attend_split::{score_parts, split_constants, value_parts};
use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, centred, element_constant, flag, laid_out, position_quads, score_scale, turned};
use crate::gpu::{Reduce, RowForm};
use crate::plan::{Plan, Slab};

/// `AttendDirectParams` of `shaders/attend_direct.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttendDirectParams {
    /// First item of pages in tables.
    pub items_at: u32,
    /// First item of f16 rows in tables.
    pub row_items_at: u32,
    /// Items of f16 rows, which come before those of pages.
    pub row_items: u32,
    /// KV heads whose pages lie in the slab.
    pub slab_heads: u32,
    /// Which they are, in tables.
    pub heads_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// First row's position in tables.
    pub positions_at: u32,
    /// First row in queries.
    pub row_first: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "attend_direct",
    source: include_str!("../../shaders/attend_direct.wgsl"),
    groups: &[
        &[("turns", Binding::Read), ("marks", Binding::Read), ("protected_rows", Binding::Read), ("pages", Binding::Read), ("partials", Binding::Write)],
        STEP,
        &[("queries_in", Binding::Read)],
    ],
    params_bytes: size_of::<AttendDirectParams>(),
    zeroed: false,
};

/// Returns the variant for a slab of a plan and the caller's rows.
pub fn variant(plan: &Plan, slab: &Slab, rows: RowForm) -> Variant {
    let mut parts = vec![
        parts::HEADS.of(plan.heads_per_reading()),
        parts::REDUCE.of(plan.reduce()),
        parts::SCALES.of(plan.format().scales()),
        parts::RESTORE.none,
        parts::ROWS_WALK.of(plan.straight()),
        parts::SPREAD.of(if plan.shape().head_dim.is_power_of_two() { plan.reduce() } else { Reduce::Workgroup }),
        shared::SPLIT,
        shared::HALF_ROWS,
        shared::MADE,
        shared::QUERY_FACTORS,
        shared::FACTORS,
        shared::HADAMARD,
        shared::CENTRE,
        shared::SIGN,
        shared::TURN,
        shared::TURN_AT,
        shared::ELEMENT,
        shared::CHUNK,
        shared::CAP,
    ];
    parts.extend(score_parts(plan, slab));
    parts.extend(value_parts(plan, slab));
    if plan.position_quads() > 0 {
        parts.extend([
            parts::POSITIONS.made,
            shared::WAVES,
            shared::SLOW,
            parts::TERMS.of(plan.reduce()),
            parts::POSITIONS_WALK.of(plan.straight()),
            parts::MIRROR.of(plan.reduce()),
            parts::ROWS.centred,
        ]);
    } else {
        parts.extend([parts::POSITIONS.none, parts::ROWS.plain]);
    }
    let mut constants = split_constants(plan, slab);
    let key_group = if slab.float_queries() { 0 } else { slab.layout().key_group };
    constants.extend([
        flag("ROTATE_KEYS", plan.format().codec().rotates_keys()),
        flag("HALF_ROWS", plan.sinks() + plan.ring() > 0),
        centred(plan),
        position_quads(plan),
        element_constant(rows.element),
        score_scale(plan),
        turned(plan),
        ("SHARE", plan.shape().share().into()),
        ("KEY_GROUP", key_group.into()),
        ("RING", plan.ring().into()),
        ("ROW_TURNS", plan.row_turns().into()),
        ("POSITION_CENTRE", plan.position_centre().into()),
        ("POSITION_WAVES", plan.position_waves().into()),
        ("POSITION_PAGES", plan.position_pages().into()),
    ]);
    let mut variant = Variant::new(&KERNEL, &parts, &constants);
    variant.subgroups = plan.reduce() == Reduce::Subgroup;
    laid_out(variant, rows)
}
