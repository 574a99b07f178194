//! Many rows of halves times a matrix of weights, by cooperative matrices. Shader:
//! `shaders/project_matrix.wgsl`.

use wgkv::low_level::{Binding, Kernel, Variant};

use super::project::{Epilogue, ProjectParams, common};
use crate::layout::Layout;

/// Rows of a tile, of which a workgroup makes 1 to [`TILES`].
pub const TILE: u32 = 16;

/// The most tiles of a workgroup.
pub const TILES: u32 = 4;

/// Outputs of a workgroup.
pub const OUTPUTS: u32 = 32;

/// The kernel. Its parameters are those of `project`.
pub static KERNEL: Kernel = Kernel {
    name: "project_matrix",
    source: include_str!("../../shaders/project_matrix.wgsl"),
    groups: &[&[
        ("params", Binding::Uniform),
        ("weights", Binding::Read),
        ("x", Binding::Read),
        ("norm", Binding::Read),
        ("bias", Binding::Read),
        ("out", Binding::Write),
        ("out_halves", Binding::Write),
    ]],
    params_bytes: size_of::<ProjectParams>(),
    zeroed: false,
};

/// Returns how many tiles a workgroup has for steps of at most `rows` rows: no more than they fill.
pub fn tiles(rows: u32) -> u32 {
    rows.div_ceil(TILE).clamp(1, TILES)
}

/// Returns the variant for a layout of weights and this number of tiles.
pub fn variant(layout: Layout, epilogue: Epilogue, bias: bool, tiles: u32) -> Variant {
    let (sources, mut constants) = common(layout, epilogue, bias);
    constants.push(("ROW_TILES", tiles.into()));
    let mut variant = Variant::new(&KERNEL, &sources, &constants);
    variant.matrices = true;
    variant
}

/// Returns the workgroups for a product with these outputs and rows.
pub fn grid(outputs: u32, rows: u32, tiles: u32) -> [u32; 3] {
    [outputs.div_ceil(OUTPUTS), rows.div_ceil(TILE * tiles), 1]
}
