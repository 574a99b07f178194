//! The next token of each row of scores. Shader: `shaders/sample.wgsl`.

use wgkv::low_level::{Binding, Kernel, Variant};

/// `SampleParams` of `shaders/sample.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SampleParams {
    /// Scores of a row.
    pub vocabulary: u32,
    /// Row of the samplings and tokens that row 0 has.
    pub first: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// How a row's token is chosen: `Sampling` of `shaders/sample.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SampleRow {
    /// 0 takes the largest score.
    pub inverse_temperature: f32,
    /// Share of the probability that candidates make up; 1 for all.
    pub top_p: f32,
    /// Candidates; 0 for all.
    pub top_k: u32,
    /// Seed of the noise.
    pub seed: u32,
    /// Number of the token in its text.
    pub draw: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "sample",
    source: include_str!("../../shaders/sample.wgsl"),
    groups: &[&[("params", Binding::Uniform), ("scores", Binding::Read), ("sampling", Binding::Read), ("tokens", Binding::Write)]],
    params_bytes: size_of::<SampleParams>(),
    zeroed: false,
};

/// Returns the only variant.
pub fn variant() -> Variant {
    Variant::new(&KERNEL, &[], &[])
}
