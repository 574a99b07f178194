//! Column sums over tokens of keys before RoPE, for RotateKV's calibration; and for Centred's also of values and queries, and of squares.
//!
//! Reads every number twice (the second time from a cache, where blocks of 32 rows fit one) and writes nothing but sums.
//! Shader: `shaders/measure.wgsl`. Twin: [`reference::measure`](crate::reference::measure).

use super::{Binding, FINITE, Kernel, Variant, flag, half_rows};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::rows::{Element, Rows};

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
    bindings: &[("params", Binding::Uniform), ("keys", Binding::Read), ("sums", Binding::Write), ("counts", Binding::Write)],
    params_bytes: size_of::<MeasureParams>(),
    zeroed: false,
};

/// The variant for the type of the caller's rows, for sums of the numbers or of their squares.
pub fn variant(element: Element, squares: bool) -> Variant {
    Variant::new(&KERNEL, &[FINITE], &[half_rows(element), flag("SQUARES", squares)])
}

/// Workgroups for so many rows.
pub fn workgroups(rows: u32) -> u32 {
    rows.div_ceil(BLOCK).min(LINES)
}

/// Records adding `rows` rows of `width` numbers (or their squares) to `sums` (`[LINES, width]` pairs of f32, the sum and what its roundings
/// lost) and `counts` (`[LINES]` pairs of u32, rows added and rows left out because of a number that is not finite). Column
/// sums are those of the lines together.
///
/// # Errors
/// [`Error::Shape`] for an odd width, [`Error::Limit`] for more rows than one binding holds, and [`Error::Rows`],
/// [`Error::Offset`], [`Error::Usage`] for buffers that cannot hold them; then nothing was recorded.
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
        return Err(Error::Shape { name: "width", wanted: "even, and 2 or more".into(), had: width.to_string() });
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
    let params = crate::step::uniform(gpu, bytemuck::bytes_of(&MeasureParams { rows, width, zero: 0, pad: 0 }));
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv measure"), timestamp_writes: None });
    let bindings = [params.as_entire_binding(), key_rows, sum_lines, count_lines];
    gpu.pipeline(&variant(keys.element, squares)).dispatch(gpu, &mut pass, &bindings, [workgroups(rows), 1, 1]);
    Ok(())
}

/// Sums of columns over batches of rows, for whoever calibrates.
#[derive(Debug)]
pub(crate) struct Columns {
    width: u32,
    squares: bool,
    /// `[LINES, width]` pairs of f32.
    sums: wgpu::Buffer,
    /// `[LINES]` pairs of u32.
    counts: wgpu::Buffer,
}

/// What was added up.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    /// Rows added.
    pub added: u64,
    /// Rows left out, since a number was not finite.
    pub out: u64,
    /// By column.
    pub columns: Vec<f64>,
}

impl Columns {
    /// Nothing yet, of rows of `width` numbers: of the numbers, or of their squares.
    pub fn new(gpu: &Gpu, width: u32, squares: bool) -> Self {
        // New buffers are zero, by WebGPU's rules.
        let buffer = |bytes| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgkv measure"),
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let lines = u64::from(LINES);
        Self { width, squares, sums: buffer(8 * lines * u64::from(width)), counts: buffer(8 * lines) }
    }

    /// Records adding rows; errors as those of [`record`].
    pub fn add(&self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, input: Rows<'_>, rows: u32) -> Result<()> {
        record(gpu, encoder, input, self.squares, rows, self.width, &self.sums, &self.counts)
    }

    /// Waits for all submitted work and adds up the lines.
    pub async fn read(&self, gpu: &Gpu) -> Result<Sums> {
        let counts = gpu.read(&self.counts, 0, 2 * u64::from(LINES)).await?;
        let count = |of: usize| counts.iter().skip(of).step_by(2).map(|n| u64::from(*n)).sum::<u64>();
        let width = self.width as usize;
        let words = gpu.read(&self.sums, 0, 2 * u64::from(LINES) * u64::from(self.width)).await?;
        let pairs: &[[f32; 2]] = bytemuck::cast_slice(&words);
        // Each line's pair is one number of about twice f32's precision.
        let column = |c: usize| pairs[c..].iter().step_by(width).map(|[high, low]| f64::from(*high) + f64::from(*low)).sum();
        Ok(Sums { added: count(0), out: count(1), columns: (0..width).map(column).collect() })
    }
}
