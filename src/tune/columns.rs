//! Sums of columns over batches of rows, for the collectors.

use crate::error::Result;
use crate::gpu::{Gpu, Rows};
use crate::kernel::measure::{LINES, record};

/// Sums of columns over batches of rows.
#[derive(Debug)]
pub(crate) struct Columns {
    heads: u32,
    head_dim: u32,
    squares: bool,
    /// `[LINES, heads, head_dim]` pairs of f32.
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
    /// Begins with no rows, of `heads` heads each: sums of the numbers, or of their squares.
    pub fn new(gpu: &Gpu, heads: u32, head_dim: u32, squares: bool) -> Self {
        // New buffers are zero, by WebGPU's rules.
        let buffer = |bytes| {
            gpu.create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgkv measure"),
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let lines = u64::from(LINES);
        Self { heads, head_dim, squares, sums: buffer(8 * lines * u64::from(heads * head_dim)), counts: buffer(8 * lines) }
    }

    /// Records adding rows. Errors are those of [`record`].
    pub fn add(&self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, input: Rows<'_>, rows: u32) -> Result<()> {
        record(gpu, encoder, input, self.squares, rows, [self.heads, self.head_dim], &self.sums, &self.counts)
    }

    /// Waits for all submitted work and returns the sums of all lines.
    pub async fn read(&self, gpu: &Gpu) -> Result<Sums> {
        let counts = gpu.read(&self.counts, 0, 2 * u64::from(LINES)).await?;
        let count = |of: usize| counts.iter().skip(of).step_by(2).map(|n| u64::from(*n)).sum::<u64>();
        let width = (self.heads * self.head_dim) as usize;
        let words = gpu.read(&self.sums, 0, 2 * u64::from(LINES) * width as u64).await?;
        let pairs: &[[f32; 2]] = bytemuck::cast_slice(&words);
        // Each line's pair is one number of about twice f32's precision.
        let column = |c: usize| pairs[c..].iter().step_by(width).map(|[high, low]| f64::from(*high) + f64::from(*low)).sum();
        Ok(Sums { added: count(0), out: count(1), columns: (0..width).map(column).collect() })
    }
}
