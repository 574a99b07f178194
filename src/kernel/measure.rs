//! Adds up columns over tokens: of keys before RoPE, from which RotateKV's channel order follows,
//! and for Centred's means and weights also of values and queries, and of squares.
//!
//! Reads every number twice (the second time from a cache, where blocks of 32 rows fit one) and
//! writes nothing but sums. Shader: `shaders/measure.wgsl`. Twin:
//! [`reference::measure`](crate::low_level::reference::measure).

use super::parts::shared;
use super::{Binding, Kernel, Variant, flag, half_rows};
use crate::error::{Error, Result};
use crate::format::Element;
use crate::gpu::{Gpu, Rows};

/// Workgroups at most: lines of `sums` and `counts`.
pub const LINES: u32 = 32;

/// Rows that a workgroup takes at a time.
pub const BLOCK: u32 = 32;

/// `MeasureParams` of `shaders/measure.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct MeasureParams {
    /// Rows to add.
    pub rows: u32,
    /// Numbers of a row.
    pub width: u32,
    /// Must be 0. It keeps compilers from rearranging sums of floats.
    pub zero: u32,
    /// Unused.
    pub pad: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "measure",
    source: include_str!("../../shaders/measure.wgsl"),
    groups: &[&[("params", Binding::Uniform), ("keys", Binding::Read), ("sums", Binding::Write), ("counts", Binding::Write)]],
    params_bytes: size_of::<MeasureParams>(),
    zeroed: false,
};

/// Returns the variant for the type of the caller's rows, for sums of the numbers or of their
/// squares.
pub fn variant(element: Element, squares: bool) -> Variant {
    Variant::new(&KERNEL, &[shared::FINITE], &[half_rows(element), flag("SQUARES", squares)])
}

/// Returns the number of workgroups for `rows` rows.
pub fn workgroups(rows: u32) -> u32 {
    rows.div_ceil(BLOCK).min(LINES)
}

/// Records adding `rows` rows of `width` numbers (or their squares) to `sums` (`[LINES, width]`
/// pairs of f32, the sum and what its roundings lost) and `counts` (`[LINES]` pairs of u32, rows
/// added and rows left out because of a number that is not finite). The sum of a column is that
/// over all lines.
///
/// # Errors
/// [`Error::Mismatch`] for an odd width, [`Error::Limit`] for more rows than one binding holds, and
/// [`Error::Rows`], [`Error::Offset`], [`Error::Usage`] for buffers that cannot hold them; then
/// nothing was recorded.
#[expect(clippy::too_many_arguments, reason = "what it reads, then what it writes to")]
pub fn record(
    gpu: &Gpu,
    encoder: &mut wgpu::CommandEncoder,
    keys: Rows<'_>,
    squares: bool,
    rows: u32,
    width: u32,
    sums: &wgpu::Buffer,
    counts: &wgpu::Buffer,
) -> Result<()> {
    if width == 0 || !width.is_multiple_of(2) {
        return Err(Error::argument("width", "even, and 2 or more", width));
    }
    let capability = gpu.capability();
    // The shader counts numbers in 32 bits.
    let most = capability.binding_bytes.min(u64::from(u32::MAX) * keys.element.bytes());
    let elements = u64::from(rows) * u64::from(width);
    if elements * keys.element.bytes() > most {
        let need = elements * keys.element.bytes();
        return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason: "one batch of keys", need, have: most });
    }
    if rows == 0 {
        return Ok(());
    }
    let key_rows = keys.binding("keys", elements, capability)?;
    let lines = u64::from(LINES);
    let sum_lines = Rows::f32(sums).binding("sums", 2 * lines * u64::from(width), capability)?;
    let count_lines = Rows::f32(counts).binding("counts", 2 * lines, capability)?;
    let params = gpu.uniform(bytemuck::bytes_of(&MeasureParams { rows, width, zero: 0, pad: 0 }));
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv measure"), timestamp_writes: None });
    let [row_binding, sums, counts] = [key_rows, sum_lines, count_lines].map(wgpu::BindingResource::Buffer);
    let bindings = [params.as_entire_binding(), row_binding, sums, counts];
    gpu.pipeline(&variant(keys.element, squares)).dispatch_once(gpu, &mut pass, &bindings, [workgroups(rows), 1, 1]);
    Ok(())
}
