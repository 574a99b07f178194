//! Unpacks keys and values that the prefilling rows of a pass see, as halves, once for all of these
//! rows.
//!
//! Shader: `shaders/unpack.wgsl`. Twin:
//! [`reference::unpack`](crate::low_level::reference::unpack).

use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, centred, elected_constants, group_constants, hadamard_constants, page_constants, position_quads, rope_constants};
use crate::plan::{Plan, Slab};

/// `UnpackParams` of `shaders/unpack.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct UnpackParams {
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
    name: "unpack",
    source: include_str!("../../shaders/unpack.wgsl"),
    groups: &[
        &[
            ("turns", Binding::Read),
            ("marks", Binding::Read),
            ("key_scales", Binding::Read),
            ("pages", Binding::Read),
            ("protected_rows", Binding::Read),
            ("unpacked_rows", Binding::Write),
        ],
        STEP,
    ],
    params_bytes: size_of::<UnpackParams>(),
    zeroed: false,
};

/// Tokens of a tile.
pub const TILE_TOKENS: u32 = 32;

/// Returns the variant for a slab of a plan.
pub fn variant(plan: &Plan, slab: &Slab) -> Variant {
    let mut constants = page_constants(plan, slab);
    let head_dim = plan.shape().head_dim;
    // `row` holds 512 cells at most.
    let quartets = match head_dim {
        0..=128 => 4,
        129..=256 => 2,
        _ => 1,
    };
    constants.extend(elected_constants(plan));
    constants.extend(rope_constants(plan));
    constants.extend(hadamard_constants(head_dim));
    constants.extend(group_constants(plan, slab));
    constants.extend([centred(plan), ("QUARTETS", quartets.into()), ("CELLS", (quartets * head_dim).into())]);
    let mut parts =
        vec![parts::SCALES.of(plan.format().scales()), shared::CHUNK, shared::CACHED, shared::TRELLIS_WORDS, shared::PLANES, shared::CODE_PLANES, shared::HALF];
    if plan.restores() {
        parts.extend([parts::TILE.restored, shared::HADAMARD, shared::TURN, shared::GROUPED, shared::GROUPED_BLOCK]);
    } else if position_quads(plan).1 > 0.0 {
        parts.extend([parts::TILE.centred, shared::HADAMARD, shared::TURN, shared::CENTRE, shared::SIGN]);
    } else {
        parts.push(parts::TILE.stored);
    }
    Variant::new(&KERNEL, &parts, &constants)
}
