//! Sums of keys over batches of sample text, on the GPU.

use super::{Calibration, Reach, check};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernel::measure::{self, LINES};
use crate::rows::Rows;
use crate::shape::Shape;

/// The buffers of one layer, as [`measure`] writes them.
#[derive(Debug)]
struct Layer {
    /// `[LINES, width]` pairs of f32.
    sums: wgpu::Buffer,
    /// `[LINES]` pairs of u32.
    counts: wgpu::Buffer,
}

/// Collects what a [`Calibration`] is made from. Made by [`Calibration::collect`].
///
/// ```no_run
/// # async fn f(gpu: wgkv::Gpu, shape: wgkv::Shape, keys: Vec<wgpu::Buffer>, tokens: u32) -> wgkv::Result<()> {
/// use wgkv::{Calibration, Reach, Rows};
/// let collector = Calibration::collect(&gpu, &shape, 4)?;
/// // For every batch of the sample:
/// let mut encoder = gpu.device().create_command_encoder(&Default::default());
/// for (layer, keys) in keys.iter().enumerate() {
///     collector.add(&mut encoder, layer as u32, Rows::f32(keys), tokens)?;
/// }
/// gpu.queue().submit([encoder.finish()]);
/// // After the last:
/// let calibration = collector.finish("my-model", Reach::Global).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Collector {
    gpu: Gpu,
    shape: Shape,
    heads_per_group: u32,
    width: u32,
    layers: Vec<Layer>,
}

impl Collector {
    pub(super) fn new(gpu: &Gpu, shape: &Shape, heads_per_group: u32) -> Result<Self> {
        let width = check(shape, heads_per_group)? as u32;
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
        let layers = (0..shape.layers).map(|_| Layer { sums: buffer(8 * lines * u64::from(width)), counts: buffer(8 * lines) }).collect();
        Ok(Self { gpu: gpu.clone(), shape: shape.clone(), heads_per_group, width, layers })
    }

    /// Records adding one layer's keys of `rows` tokens, `[rows, kv_heads, head_dim]` before RoPE. Nothing is submitted. Padding
    /// must not be among the rows; no rows are nothing to add.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Rows`], [`Error::Offset`], [`Error::Usage`], and [`Error::Limit`] for more rows than one
    /// binding holds; then nothing was recorded.
    pub fn add(&self, encoder: &mut wgpu::CommandEncoder, layer: u32, keys: Rows<'_>, rows: u32) -> Result<()> {
        let buffers = self.layers.get(layer as usize).ok_or(Error::Layer { had: layer, layers: self.shape.layers })?;
        measure::record(&self.gpu, encoder, keys, false, rows, self.width, &buffers.sums, &buffers.counts)
    }

    /// Waits for all submitted work and makes the calibration of what was added. More may be added afterwards.
    ///
    /// Tokens whose keys in a layer hold a number that is not finite are left out of that layer's sums;
    /// [`Calibration::skipped`] tells how many.
    ///
    /// # Errors
    /// [`Error::Calibration`] where a layer has no tokens, another number of tokens than the first layer, or none with finite
    /// keys, and where sums leave the range of f32; [`Error::Readback`].
    pub async fn finish(&self, model: &str, reach: Reach) -> Result<Calibration> {
        let wrong = |name, wanted: String, had: String| Err(Error::Calibration { name, wanted, had });
        let width = self.width as usize;
        let (mut tokens, mut skipped) = (0, 0);
        let mut sums = Vec::with_capacity(self.layers.len());
        for (buffers, layer) in self.layers.iter().zip(0..) {
            let counts = self.gpu.read(&buffers.counts, 0, 2 * u64::from(LINES)).await?;
            let count = |of: usize| counts.iter().skip(of).step_by(2).map(|n| u64::from(*n)).sum::<u64>();
            let (added, out) = (count(0), count(1));
            if added + out == 0 {
                return wrong("tokens", "1 or more in every layer".into(), format!("0 in layer {layer}"));
            }
            if layer == 0 {
                tokens = added + out;
            }
            if added + out != tokens {
                return wrong("tokens", format!("{tokens} in layer {layer}, as in layer 0"), (added + out).to_string());
            }
            if added == 0 {
                return wrong("keys", "finite".into(), format!("not, in all {out} tokens of layer {layer}"));
            }
            skipped += out;
            let words = self.gpu.read(&buffers.sums, 0, 2 * u64::from(LINES) * width as u64).await?;
            let pairs: &[[f32; 2]] = bytemuck::cast_slice(&words);
            // Each line's pair is one number of about twice f32's precision.
            sums.push((0..width).map(|c| pairs[c..].iter().step_by(width).map(|[high, low]| f64::from(*high) + f64::from(*low)).sum()).collect());
        }
        Ok(Calibration { skipped, ..Calibration::from_sums(&self.shape, self.heads_per_group, reach, model, tokens, sums)? })
    }
}
