//! Attends a block of query rows to cached tokens, causally, in f32.
//!
//! Shader: `shaders/attend_prefill.wgsl`. Twin:
//! [`reference::attend_prefill`](crate::low_level::reference::attend_prefill).

use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, elected_constants, group_constants, hadamard_constants, page_constants, position_quads, rope_constants};
pub use crate::plan::sizes::DECODE_PARTIALS;
use crate::plan::{Plan, Slab};

/// `AttendPrefillParams` of `shaders/attend_prefill.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttendPrefillParams {
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
    name: "attend_prefill",
    source: include_str!("../../shaders/attend_prefill.wgsl"),
    groups: &[
        &[
            ("query_rows", Binding::Read),
            ("turns", Binding::Read),
            ("marks", Binding::Read),
            ("key_scales", Binding::Read),
            ("pages", Binding::Read),
            ("protected_rows", Binding::Read),
            ("row_partials", Binding::Write),
        ],
        STEP,
    ],
    params_bytes: size_of::<AttendPrefillParams>(),
    zeroed: false,
};

/// Rows (query tokens times query heads that share a KV head) that one workgroup takes.
pub const TILE_ROWS: u32 = 32;

/// Tokens of a tile.
pub const TILE_TOKENS: u32 = 32;

/// Returns the variant for a slab of a plan.
pub fn variant(plan: &Plan, slab: &Slab) -> Variant {
    let mut constants = page_constants(plan, slab);
    let head_dim = plan.shape().head_dim;
    constants.extend(hadamard_constants(head_dim));
    constants.extend(group_constants(plan, slab));
    constants.extend(elected_constants(plan));
    constants.extend(rope_constants(plan));
    constants.extend([
        ("SHARE", plan.shape().share().into()),
        position_quads(plan),
        ("KEY_SLICES", (head_dim + 4 * plan.position_quads()).div_ceil(32).into()),
        ("SLICES", head_dim.div_ceil(32).into()),
        ("TILE_VECS", plan.tile_vecs().into()),
        ("SLIDING_WINDOW", plan.reach().into()),
    ]);
    let mut parts = vec![parts::SCALES.of(plan.format().scales()), shared::CHUNK, shared::CACHED, shared::PLANES, shared::CODE_PLANES, shared::TURN];
    if plan.restores() {
        parts.extend([parts::TILE.restored, shared::HALF, shared::HADAMARD, shared::GROUPED, shared::GROUPED_BLOCK]);
    } else {
        parts.push(parts::TILE.stored);
    }
    Variant::new(&KERNEL, &parts, &constants)
}
