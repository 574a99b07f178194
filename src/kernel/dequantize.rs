//! Turns cached tokens back into rows in f32: keys as they were after RoPE, values as they came.
//!
//! Shader: `shaders/dequantize.wgsl`. Twin:
//! [`reference::dequantize`](crate::low_level::reference::dequantize).

use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, centred, elected_constants, flag, group_constants, hadamard_constants, page_constants, rope_constants, turned};
use crate::plan::{Plan, Slab};

/// `DequantizeParams` of `shaders/dequantize.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DequantizeParams {
    /// The sequence's record in tables.
    pub chunk: u32,
    /// First token to restore.
    pub first: u32,
    /// Tokens to restore.
    pub tokens: u32,
    /// KV heads whose pages lie in the slab.
    pub slab_heads: u32,
    /// Which they are, in tables.
    pub heads_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// Elected sinks from this token on are void.
    pub limit: u32,
    /// Unused.
    pub pad: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "dequantize",
    source: include_str!("../../shaders/dequantize.wgsl"),
    groups: &[
        &[("turns", Binding::Read), ("marks", Binding::Read), ("key_scales", Binding::Read), ("pages", Binding::Read), ("protected_rows", Binding::Read)],
        STEP,
        &[("keys", Binding::Write), ("values", Binding::Write)],
    ],
    params_bytes: size_of::<DequantizeParams>(),
    zeroed: false,
};

/// Returns the variant for a slab of a plan.
pub fn variant(plan: &Plan, slab: &Slab) -> Variant {
    let mut constants = hadamard_constants(plan.shape().head_dim);
    constants.extend(page_constants(plan, slab));
    constants.extend(group_constants(plan, slab));
    constants.extend(elected_constants(plan));
    constants.extend(rope_constants(plan));
    constants.push(turned(plan));
    constants.extend([
        flag("ROTATE_KEYS", plan.format().codec().rotates_keys()),
        flag("ROTATE_VALUES", plan.format().codec().rotates_values()),
        flag("RESTORE", plan.restores()),
        centred(plan),
    ]);
    Variant::new(
        &KERNEL,
        &[
            shared::PLACE,
            shared::CHUNK,
            shared::HADAMARD,
            shared::TURN,
            shared::MEAN,
            shared::CENTRE,
            shared::SIGN,
            parts::SCALES.of(plan.format().scales()),
            shared::CACHED,
            shared::TRELLIS_WORDS,
            shared::PLANES,
            shared::CODE_PLANES,
            shared::GROUPED,
        ],
        &constants,
    )
}
