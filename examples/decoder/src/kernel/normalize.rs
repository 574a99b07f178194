//! RMSNorm of rows, or their gathering, into f32 or halves. Shader: `shaders/normalize.wgsl`.

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

/// Returns the variant that divides by the root mean square or not, takes rows by a list or in their
/// order, and writes halves or f32.
pub fn variant(norm: bool, select: bool, half: bool) -> Variant {
    Variant::new(&KERNEL, &[], &[flag("NORM", norm), flag("SELECT", select), flag("HALF", half)])
}
