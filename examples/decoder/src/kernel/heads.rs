//! RMSNorm and RoPE of queries and keys head by head, in place. Shader: `shaders/heads.wgsl`.

use wgkv::low_level::{Binding, Kernel, Variant};

use super::flag;

/// The most channels of a head.
pub const HEAD_DIM_LIMIT: u32 = 512;

/// `HeadsParams` of `shaders/heads.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HeadsParams {
    /// Channels of a head, [`HEAD_DIM_LIMIT`] at most.
    pub head_dim: u32,
    /// Heads of queries.
    pub query_heads: u32,
    /// Heads of keys.
    pub kv_heads: u32,
    /// Where the rows of keys lie, in numbers.
    pub keys_at: u32,
    /// Pairs of channels that RoPE turns.
    pub pairs: u32,
    /// Added to the mean square before the root.
    pub epsilon: f32,
    /// Where the cosines and sines of the layer's frequencies lie, in pairs of both.
    pub waves_at: u32,
    /// Unused.
    pub pad: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "heads",
    source: include_str!("../../shaders/heads.wgsl"),
    groups: &[&[("params", Binding::Uniform), ("heads_rows", Binding::Write), ("norm", Binding::Read), ("waves", Binding::Read)]],
    params_bytes: size_of::<HeadsParams>(),
    zeroed: false,
};

/// Returns the variant that norms, turns, or both.
pub fn variant(norm: bool, turn: bool) -> Variant {
    Variant::new(&KERNEL, &[], &[flag("NORM", norm), flag("TURN", turn)])
}
