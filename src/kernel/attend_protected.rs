//! Attends decoding rows to the tokens of their sequences that are kept in f16.
//!
//! Shader: `shaders/attend_protected.wgsl`. Twin:
//! [`reference::attend_protected`](crate::low_level::reference::attend_protected).

use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, elected_constants, page_constants, position_quads, rope_constants};
pub use crate::plan::sizes::DECODE_PARTIALS;
use crate::plan::{Plan, Slab};

/// `AttendProtectedParams` of `shaders/attend_protected.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttendProtectedParams {
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
    name: "attend_protected",
    source: include_str!("../../shaders/attend_protected.wgsl"),
    groups: &[
        &[
            ("query_rows", Binding::Read),
            ("turns", Binding::Read),
            ("marks", Binding::Read),
            ("pages", Binding::Read),
            ("protected_rows", Binding::Read),
            ("row_partials", Binding::Write),
        ],
        STEP,
    ],
    params_bytes: size_of::<AttendProtectedParams>(),
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
    constants.extend(elected_constants(plan));
    constants.extend(rope_constants(plan));
    constants.extend([
        ("HEAD_DIM", head_dim.into()),
        ("SHARE", plan.shape().share().into()),
        position_quads(plan),
        ("KEY_SLICES", (head_dim + 4 * plan.position_quads()).div_ceil(32).into()),
        ("SLICES", head_dim.div_ceil(32).into()),
        ("SLIDING_WINDOW", plan.reach().into()),
    ]);
    let parts = [parts::SCALES.of(plan.format().scales()), shared::CHUNK, shared::CACHED, shared::PLANES, shared::CODE_PLANES, shared::TURN];
    Variant::new(&KERNEL, &parts, &constants)
}
