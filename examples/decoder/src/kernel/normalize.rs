//! RMSNorm of rows, or their gathering, into f32 or halves, or onto other rows. Shader: `shaders/normalize.wgsl`.

use wgkv::low_level::{Binding, Kernel, Variant};

use super::flag;

/// `NormalizeParams` of `shaders/normalize.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct NormalizeParams {
    /// Numbers of a row, a multiple of 32.
    pub columns: u32,
    /// Added to the mean square before the root.
    pub epsilon: f32,
    /// Unused.
    pub pad: [u32; 2],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "normalize",
    source: include_str!("../../shaders/normalize.wgsl"),
    groups: &[&[("params", Binding::Uniform), ("x", Binding::Read), ("norm", Binding::Read), ("sources", Binding::Read), ("y", Binding::Write)]],
    params_bytes: size_of::<NormalizeParams>(),
    zeroed: false,
};

/// What becomes of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Written as f32.
    Numbers,
    /// Written as halves.
    Halves,
    /// Added to what is there, f32: the residual stream after a branch with a norm of its own.
    Added,
}

impl Output {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Numbers, Self::Halves, Self::Added];
}

/// Returns the variant that divides by the root mean square or not, and takes rows by a list or in
/// their order.
pub fn variant(norm: bool, select: bool, output: Output) -> Variant {
    let flags = [flag("NORM", norm), flag("SELECT", select), flag("HALF", output == Output::Halves), flag("ADD", output == Output::Added)];
    Variant::new(&KERNEL, &[], &flags)
}
