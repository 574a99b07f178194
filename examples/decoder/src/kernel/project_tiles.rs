//! Many rows times a matrix of weights, on any device. Shader: `shaders/project_tiles.wgsl`.

use wgkv::low_level::{Kernel, Variant};

use super::project::{Epilogue, ProjectParams, common};
use crate::layout::Layout;

/// Rows, and outputs, of a workgroup.
pub const TILE: u32 = 64;

/// The kernel. Its parameters and bindings are those of `project`.
pub static KERNEL: Kernel = Kernel {
    name: "project_tiles",
    source: include_str!("../../shaders/project_tiles.wgsl"),
    groups: super::project::KERNEL.groups,
    params_bytes: size_of::<ProjectParams>(),
    zeroed: false,
};

/// Returns the variant for a layout of weights.
pub fn variant(layout: Layout, epilogue: Epilogue, bias: bool) -> Variant {
    let (sources, constants) = common(layout, epilogue, bias);
    Variant::new(&KERNEL, &sources, &constants)
}

/// Returns the workgroups for a product with these outputs and rows.
pub fn grid(outputs: u32, rows: u32) -> [u32; 3] {
    [outputs.div_ceil(TILE), rows.div_ceil(TILE), 1]
}
