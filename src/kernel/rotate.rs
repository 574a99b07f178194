//! Rows times the orthonormal Hadamard matrix of order `head_dim`: `y = H x`. Applied twice it returns the row.
//!
//! Reads and writes every number once; two factors of at most 20 additions each, three barriers.
//! Shader: `shaders/rotate.wgsl`. Twin: [`reference::rotate`](crate::reference::rotate).

use super::{Binding, HADAMARD, Kernel, PLACE, Variant, hadamard_constants};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::rows::{Element, Rows};
use crate::shape::HEAD_DIMS;

/// `RotateParams` of `shaders/rotate.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct RotateParams {
    /// Rows to rotate.
    pub rows: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "rotate",
    source: include_str!("../../shaders/rotate.wgsl"),
    bindings: &[("params", Binding::Uniform), ("rows", Binding::Write)],
    params_bytes: size_of::<RotateParams>(),
    zeroed: false,
};

/// The variant for a head dimension.
pub fn variant(head_dim: u32) -> Variant {
    Variant::new(&KERNEL, &[PLACE, HADAMARD], &hadamard_constants(head_dim))
}

/// Records the rotation, in place, of `rows` f32 rows of `head_dim` numbers.
///
/// # Errors
/// [`Error::Shape`] for a head dimension that is not served, [`Error::Element`] for rows that are not f32, and
/// [`Error::Rows`], [`Error::Offset`], [`Error::Usage`] for a buffer that cannot hold them.
pub fn record(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, rows: Rows<'_>, count: u32, head_dim: u32) -> Result<()> {
    if !HEAD_DIMS.contains(&head_dim) {
        return Err(Error::Shape { name: "head_dim", wanted: "64, 80, 96, 128 or 256".into(), had: head_dim.to_string() });
    }
    if rows.element != Element::F32 {
        return Err(Error::Element { name: "rows", wanted: "f32", had: rows.element.name() });
    }
    if count == 0 {
        return Ok(());
    }
    let binding = rows.binding("rows", u64::from(count) * u64::from(head_dim), gpu.capability().storage_alignment)?;
    let params = crate::step::uniform(gpu.device(), bytemuck::bytes_of(&RotateParams { rows: count, pad: [0; 3] }));
    let grid = crate::step::fold(count, gpu.capability().workgroups);
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv rotate"), timestamp_writes: None });
    gpu.pipeline(&variant(head_dim)).dispatch(gpu, &mut pass, &[params.as_entire_binding(), binding], [grid[0], grid[1], 1]);
    Ok(())
}
