//! Sums of keys, values and queries over batches of sample text, on the GPU.

use super::{Centre, Sums, wrong};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernel::measure::{self, LINES};
use crate::rows::Rows;
use crate::shape::Shape;

/// Sums of one layer's columns, as [`measure`] writes them.
#[derive(Debug)]
struct Columns {
    width: u32,
    squares: bool,
    /// `[LINES, width]` pairs of f32.
    sums: wgpu::Buffer,
    /// `[LINES]` pairs of u32.
    counts: wgpu::Buffer,
}

/// Collects what a [`Centre`] is made from. Made by [`Centre::collect`].
///
/// ```no_run
/// # async fn f(gpu: wgkv::Gpu, shape: wgkv::Shape, rows: Vec<[wgpu::Buffer; 3]>, tokens: u32) -> wgkv::Result<()> {
/// use wgkv::{Centre, Rows};
/// let collector = Centre::collect(&gpu, &shape)?;
/// // For every batch of the sample:
/// let mut encoder = gpu.device().create_command_encoder(&Default::default());
/// for (layer, rows) in rows.iter().enumerate() {
///     let [queries, keys, values] = rows.each_ref().map(Rows::f32);
///     collector.add(&mut encoder, layer as u32, queries, keys, values, tokens)?;
/// }
/// gpu.queue().submit([encoder.finish()]);
/// // After the last:
/// let centre = collector.finish("my-model").await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct CentreCollector {
    gpu: Gpu,
    shape: Shape,
    /// By layer: keys, their squares, values, squares of queries.
    layers: Vec<[Columns; 4]>,
}

impl CentreCollector {
    pub(super) fn new(gpu: &Gpu, shape: &Shape) -> Result<Self> {
        shape.check()?;
        // New buffers are zero, by WebGPU's rules.
        let buffer = |bytes| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgkv centre"),
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let lines = u64::from(LINES);
        let columns = |heads: u32, squares| {
            let width = heads * shape.head_dim;
            Columns { width, squares, sums: buffer(8 * lines * u64::from(width)), counts: buffer(8 * lines) }
        };
        let layer = |_| [columns(shape.kv_heads, false), columns(shape.kv_heads, true), columns(shape.kv_heads, false), columns(shape.query_heads, true)];
        Ok(Self { gpu: gpu.clone(), shape: shape.clone(), layers: (0..shape.layers).map(layer).collect() })
    }

    /// Records adding one layer's rows of `rows` tokens: queries `[rows, query_heads, head_dim]`, keys and values
    /// `[rows, kv_heads, head_dim]`, queries and keys before RoPE. Nothing is submitted. Padding must not be among the rows; no rows are
    /// nothing to add.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Rows`], [`Error::Offset`], [`Error::Usage`], and [`Error::Limit`] for more rows than one binding holds.
    /// What was recorded before an error counts all the same: then the collector is of no more use.
    pub fn add(&self, encoder: &mut wgpu::CommandEncoder, layer: u32, queries: Rows<'_>, keys: Rows<'_>, values: Rows<'_>, rows: u32) -> Result<()> {
        let columns = self.layers.get(layer as usize).ok_or(Error::Layer { had: layer, layers: self.shape.layers })?;
        for (columns, input) in columns.iter().zip([keys, keys, values, queries]) {
            measure::record(&self.gpu, encoder, input, columns.squares, rows, columns.width, &columns.sums, &columns.counts)?;
        }
        Ok(())
    }

    /// Waits for all submitted work and makes the means and weights of what was added. More may be added afterwards.
    ///
    /// Rows with a number that is not finite are left out; [`Centre::skipped`] tells how many.
    ///
    /// # Errors
    /// [`Error::Centre`] where a layer has no finite rows, or another number of tokens than the first layer, and where sums leave the range
    /// of f32; [`Error::Readback`].
    pub async fn finish(&self, model: &str) -> Result<Centre> {
        let mut skipped = 0;
        let mut all = None;
        let mut sums = Vec::with_capacity(self.layers.len());
        for (columns, layer) in self.layers.iter().zip(0..) {
            let mut read = Vec::with_capacity(columns.len());
            for columns in columns {
                let (tokens, out, sums) = self.read(columns).await?;
                if tokens == 0 {
                    return wrong("tokens", format!("1 or more of finite numbers in layer {layer}"), 0);
                }
                let all = *all.get_or_insert(tokens + out);
                if tokens + out != all {
                    return wrong("tokens", format!("{all} in layer {layer}, as in layer 0"), tokens + out);
                }
                skipped += if columns.squares && columns.width == self.shape.kv_heads * self.shape.head_dim { 0 } else { out };
                read.push((tokens as f64, sums));
            }
            let mut read = read.into_iter();
            let mut next = || read.next().unwrap_or_default();
            let ((tokens, keys), (_, key_squares), (value_tokens, values), (query_tokens, query_squares)) = (next(), next(), next(), next());
            sums.push(Sums { tokens, keys, key_squares, values, value_tokens, query_squares, query_tokens });
        }
        Ok(Centre { skipped, ..Centre::from_sums(&self.shape, model, &sums)? })
    }

    /// Rows added, rows left out, column sums.
    async fn read(&self, columns: &Columns) -> Result<(u64, u64, Vec<f64>)> {
        let counts = self.gpu.read(&columns.counts, 0, 2 * u64::from(LINES)).await?;
        let count = |of: usize| counts.iter().skip(of).step_by(2).map(|n| u64::from(*n)).sum::<u64>();
        let width = columns.width as usize;
        let words = self.gpu.read(&columns.sums, 0, 2 * u64::from(LINES) * u64::from(columns.width)).await?;
        let pairs: &[[f32; 2]] = bytemuck::cast_slice(&words);
        let column = |c: usize| pairs[c..].iter().step_by(width).map(|[high, low]| f64::from(*high) + f64::from(*low)).sum();
        Ok((count(0), count(1), (0..width).map(column).collect()))
    }
}
