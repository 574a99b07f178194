//! Sums of keys, values and queries over batches of sample text, on the GPU.

use super::{Centre, wrong};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernel::measure::{self, Columns};
use crate::rows::Rows;
use crate::shape::Shape;

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
        let columns = |heads: u32, squares| Columns::new(gpu, heads * shape.head_dim, squares);
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
            columns.add(&self.gpu, encoder, input, rows)?;
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
        let mut layers = Vec::with_capacity(self.layers.len());
        for (columns, layer) in self.layers.iter().zip(0..) {
            let mut read: [measure::Sums; 4] = Default::default();
            for (sums, columns) in read.iter_mut().zip(columns) {
                *sums = columns.read(&self.gpu).await?;
                if sums.added == 0 {
                    return wrong("tokens", format!("1 or more of finite numbers in layer {layer}"), 0);
                }
                let tokens = sums.added + sums.out;
                let all = *all.get_or_insert(tokens);
                if tokens != all {
                    return wrong("tokens", format!("{all} in layer {layer}, as in layer 0"), tokens);
                }
            }
            // The same keys are read twice, and left out twice.
            let [keys, _, values, queries] = &read;
            skipped += keys.out + values.out + queries.out;
            layers.push(read);
        }
        Ok(Centre { skipped, ..Centre::from_sums(&self.shape, model, &layers)? })
    }
}
