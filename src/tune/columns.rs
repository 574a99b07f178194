//! Sums of columns over batches of rows, for the collectors.

use crate::error::{Error, Result};
use crate::format::{PAGE_TOKENS, Rope};
use crate::gpu::{Gpu, Rows};
use crate::kernel::measure::{LINES, Turned, record_turned, turns};

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

    /// Records adding rows, which perhaps come turned. Errors are those of [`record_turned`].
    pub fn add(&self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, input: Rows<'_>, turned: Option<Turned<'_>>, rows: u32) -> Result<()> {
        record_turned(gpu, encoder, input, turned, self.squares, rows, [self.heads, self.head_dim], &self.sums, &self.counts)
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

/// That keys come turned, to a collector.
#[derive(Debug)]
pub(crate) struct TurnedKeys {
    rope: Rope,
    turns: wgpu::Buffer,
}

impl TurnedKeys {
    /// Makes the table of the turns below `tokens`; none where nothing turns.
    pub fn new(gpu: &Gpu, rope: &Rope, tokens: u32) -> Result<Option<Self>> {
        if !(1..=1 << 30).contains(&tokens) {
            return Err(Error::argument("tokens of turned texts", format!("1 to {}", 1 << 30), tokens));
        }
        if rope.frequencies().is_empty() {
            return Ok(None);
        }
        let bytes = 8 * (u64::from(tokens.div_ceil(PAGE_TOKENS)) + u64::from(PAGE_TOKENS)) * rope.frequencies().len() as u64;
        let have = gpu.capability().binding_bytes.min(gpu.capability().buffer_bytes);
        if bytes > have {
            return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason: "the table of RoPE's turns", need: bytes, have });
        }
        let turns = gpu.filled("wgkv turns", bytemuck::cast_slice(&turns(rope, tokens)), wgpu::BufferUsages::STORAGE);
        Ok(Some(Self { rope: rope.clone(), turns }))
    }

    /// Returns the same for rows from a position on.
    pub fn from(&self, position: u32) -> Turned<'_> {
        Turned { rope: &self.rope, turns: &self.turns, position }
    }
}
