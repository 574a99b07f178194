//! Cached tokens back to rows in f32: keys as they were after RoPE, values as they came.
//!
//! Shader: `shaders/dequantize.wgsl`. Twin: [`reference::dequantize`](crate::reference::dequantize).

use super::{Binding, CACHED, HADAMARD, Kernel, PLACE, Variant, flag, hadamard_constants, page_constants};
use crate::plan::Plan;

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
    /// The first of them.
    pub head_first: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "dequantize",
    source: include_str!("../../shaders/dequantize.wgsl"),
    bindings: &[
        ("params", Binding::Uniform),
        ("tables", Binding::Read),
        ("pages", Binding::Read),
        ("protected_rows", Binding::Read),
        ("keys", Binding::Write),
        ("values", Binding::Write),
    ],
    params_bytes: size_of::<DequantizeParams>(),
    zeroed: false,
};

/// The variant for a plan.
pub fn variant(plan: &Plan) -> Variant {
    let mut constants = hadamard_constants(plan.shape().head_dim);
    constants.extend(page_constants(plan));
    constants.push(flag("ROTATE", plan.format().codec().rotates_keys()));
    Variant::new(&KERNEL, &[PLACE, HADAMARD, CACHED], &constants)
}
