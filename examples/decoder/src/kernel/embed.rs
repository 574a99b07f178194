//! Rows of the embedding for tokens. Shader: `shaders/embed.wgsl`.

use wgkv::low_level::{Binding, Kernel, Variant};

use super::{flag, parts};
use crate::layout::Layout;

/// `EmbedParams` of `shaders/embed.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct EmbedParams {
    /// Numbers of a row, a multiple of 32.
    pub columns: u32,
    /// Tokens.
    pub rows: u32,
    /// Where the second plane of codes lies, in words.
    pub high_at: u32,
    /// Where the scales lie, in words.
    pub scales_at: u32,
    /// Row of the embedding that is the buffer's first.
    pub first: u32,
    /// Rows that the buffer has.
    pub count: u32,
    /// What every number is multiplied by, in a variant that scales.
    pub factor: f32,
    /// Unused.
    pub pad: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "embed",
    source: include_str!("../../shaders/embed.wgsl"),
    groups: &[&[("params", Binding::Uniform), ("weights", Binding::Read), ("ids", Binding::Read), ("x", Binding::Write)]],
    params_bytes: size_of::<EmbedParams>(),
    zeroed: false,
};

/// Returns the variant for a layout of the embedding, which multiplies the rows by a factor or does
/// not.
pub fn variant(layout: Layout, scaled: bool) -> Variant {
    let mut constants = parts::constants(layout);
    constants.push(flag("SCALED", scaled));
    Variant::new(&KERNEL, &parts::of(layout), &constants)
}

/// Returns the workgroups for `rows` rows of `columns` columns.
pub fn grid(columns: u32, rows: u32) -> [u32; 3] {
    [columns.div_ceil(512), rows, 1]
}
