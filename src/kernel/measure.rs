//! Adds up columns over tokens: of keys before RoPE, from which RotateKV's channel order follows,
//! and for Centred's means and weights also of values and queries, and of squares.
//!
//! Reads every number twice (the second time from a cache, where blocks of 32 rows fit one) and
//! writes nothing but sums. Shader: `shaders/measure.wgsl`. Twin:
//! [`reference::measure`](crate::low_level::reference::measure).

use super::parts::shared;
use super::{Binding, Kernel, Variant, element_constant, flag};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, RowForm, RowShape, Rows, Strides};

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
    /// Columns of a head. From here on where the rows lie, for the variant of rows with strides,
    /// as [`Strides`](crate::low_level::Strides) has it.
    pub head_dim: u32,
    /// The first row, in numbers from the binding's start.
    pub base: u32,
    /// Rows of a sequence; `u32::MAX` where all are of one.
    pub tokens: u32,
    /// From a sequence to the next, in numbers.
    pub sequence_stride: u32,
    /// From a row to the next of its sequence.
    pub token_stride: u32,
    /// From a head to the next.
    pub head_stride: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "measure",
    source: include_str!("../../shaders/measure.wgsl"),
    groups: &[&[("params", Binding::Uniform), ("keys", Binding::Read), ("sums", Binding::Write), ("counts", Binding::Write)]],
    params_bytes: size_of::<MeasureParams>(),
    zeroed: false,
};

/// Returns the variant for the caller's rows, for sums of the numbers or of their squares.
pub fn variant(rows: RowForm, squares: bool) -> Variant {
    let constants = [element_constant(rows.element), flag("SQUARES", squares), flag("STRIDED", rows.strided)];
    Variant::new(&KERNEL, &[shared::FINITE, shared::ELEMENT], &constants)
}

/// Returns the number of workgroups for `rows` rows.
pub fn workgroups(rows: u32) -> u32 {
    rows.div_ceil(BLOCK).min(LINES)
}

/// Records adding `rows` rows (or their squares) of `heads` heads of `head_dim` numbers to `sums`
/// (`[LINES, heads * head_dim]` pairs of f32, the sum and what its roundings lost) and `counts`
/// (`[LINES]` pairs of u32, rows added and rows left out because of a number that is not finite).
/// The sum of a column is that over all lines.
///
/// # Errors
/// [`Error::Mismatch`] for an odd number of columns and for strides that do not fit the rows,
/// [`Error::Limit`] for more rows than one binding holds, and [`Error::Rows`], [`Error::Offset`],
/// [`Error::Usage`] for buffers that cannot hold them; then nothing was recorded.
#[expect(clippy::too_many_arguments, reason = "what it reads, then what it writes to")]
pub fn record(
    gpu: &Gpu,
    encoder: &mut wgpu::CommandEncoder,
    keys: Rows<'_>,
    squares: bool,
    rows: u32,
    [heads, head_dim]: [u32; 2],
    sums: &wgpu::Buffer,
    counts: &wgpu::Buffer,
) -> Result<()> {
    let width = heads * head_dim;
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
    let placed = keys.read("keys", RowShape { rows, heads, head_dim, chunk: None }, capability)?;
    let lines = u64::from(LINES);
    let sum_lines = Rows::f32(sums).binding("sums", 2 * lines * u64::from(width), capability)?;
    let count_lines = Rows::f32(counts).binding("counts", 2 * lines, capability)?;
    let Strides { base, tokens, sequence_stride, token_stride, head_stride, .. } = placed.strides.unwrap_or_default();
    let params = MeasureParams { rows, width, zero: 0, head_dim, base, tokens, sequence_stride, token_stride, head_stride, pad: [0; 3] };
    let params = gpu.uniform(bytemuck::bytes_of(&params));
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv measure"), timestamp_writes: None });
    let form = placed.form(keys.element);
    let [row_binding, sums, counts] = [placed.binding, sum_lines, count_lines].map(wgpu::BindingResource::Buffer);
    let bindings = [params.as_entire_binding(), row_binding, sums, counts];
    gpu.pipeline(&variant(form, squares)).dispatch_once(gpu, &mut pass, &bindings, [workgroups(rows), 1, 1]);
    Ok(())
}
