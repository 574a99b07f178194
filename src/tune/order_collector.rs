//! Sums of keys over batches of sample text, on the GPU.

use super::columns::{Columns, Sums, TurnedKeys};
use crate::error::{Error, Result, Thing};
use crate::format::{ChannelOrder, Reach, Shape, check_channels};
use crate::gpu::{Gpu, Rows};

/// Collects the sums that a [`ChannelOrder`] is made from: batches of sample text go through the
/// unchanged model, and every layer's keys before RoPE (after their bias or norm, if any) go to
/// [`OrderCollector::add`].
///
/// ```no_run
/// # async fn f(gpu: wgkv::Gpu, shape: wgkv::Shape, keys: Vec<wgpu::Buffer>, tokens: u32) -> wgkv::Result<()> {
/// use wgkv::Rows;
/// use wgkv::learned::{OrderCollector, Reach};
/// let collector = OrderCollector::new(&gpu, &shape, 4)?;
/// // For every batch of the sample:
/// let mut encoder = gpu.device().create_command_encoder(&Default::default());
/// for (layer, keys) in keys.iter().enumerate() {
///     collector.add(&mut encoder, layer as u32, Rows::f32(keys), tokens)?;
/// }
/// gpu.queue().submit([encoder.finish()]);
/// // After the last:
/// let order = collector.finish("my-model", Reach::Global).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct OrderCollector {
    gpu: Gpu,
    shape: Shape,
    heads_per_group: u32,
    layers: Vec<Columns>,
    /// Where keys come turned.
    turned: Option<TurnedKeys>,
}

impl OrderCollector {
    /// Begins with no tokens.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the shape or `heads_per_group` is not served, and for more than
    /// 65536 channels a layer.
    pub fn new(gpu: &Gpu, shape: &Shape, heads_per_group: u32) -> Result<Self> {
        check_channels(shape, heads_per_group)?;
        let layers = (0..shape.layers).map(|_| Columns::new(gpu, shape.kv_heads, shape.head_dim, false)).collect();
        Ok(Self { gpu: gpu.clone(), shape: shape.clone(), heads_per_group, layers, turned: None })
    }

    /// Takes keys that come turned by the shape's RoPE, and turns keys back, of texts
    /// of `tokens` tokens at most. Without it, turned keys give an order of no use, which nothing
    /// can tell from others.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for no tokens, or more than 2^30, and [`Error::Limit`] where the device
    /// cannot bind a table for that many.
    pub fn turned_rows(mut self, tokens: u32) -> Result<Self> {
        self.turned = TurnedKeys::new(&self.gpu, &self.shape.rope, tokens)?;
        Ok(self)
    }

    /// Records adding one layer's keys of `rows` tokens, `[rows, kv_heads, head_dim]` or in another
    /// [layout](crate::RowLayout), before RoPE, or [turned](Self::turned_rows) from position 0 on.
    /// Nothing is submitted. Padding must not be among the rows; there may be none.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Mismatch`] for a layout that does not fit and for turned rows of
    /// more tokens than were told, [`Error::Rows`], [`Error::Offset`], [`Error::Usage`], and
    /// [`Error::Limit`] for more rows than one binding holds; then nothing was recorded.
    pub fn add(&self, encoder: &mut wgpu::CommandEncoder, layer: u32, keys: Rows<'_>, rows: u32) -> Result<()> {
        self.add_from(encoder, layer, 0, keys, rows)
    }

    /// Records what [`OrderCollector::add`] does, of tokens from position `first` on (in batched
    /// layouts those of every sequence), which only [turned](Self::turned_rows) keys depend on.
    ///
    /// # Errors
    /// Those of [`OrderCollector::add`].
    pub fn add_from(&self, encoder: &mut wgpu::CommandEncoder, layer: u32, first: u32, keys: Rows<'_>, rows: u32) -> Result<()> {
        let columns = self.layers.get(layer as usize).ok_or(Error::Layer { had: layer, layers: self.shape.layers })?;
        columns.add(&self.gpu, encoder, keys, self.turned.as_ref().map(|turned| turned.from(first)), rows)
    }

    /// Waits for all submitted work and makes the order of what was added. More may be added
    /// afterwards.
    ///
    /// Tokens whose keys in a layer hold a number that is not finite are left out of that layer's
    /// sums; [`ChannelOrder::skipped`] counts them.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a layer has no tokens, another number of tokens than the first
    /// layer, or none with finite keys, and where sums leave the range of f32; [`Error::Readback`].
    pub async fn finish(&self, model: &str, reach: Reach) -> Result<ChannelOrder> {
        let wrong = |name: &'static str, wanted: String, had: String| Err(Error::mismatch(Thing::ChannelOrder, name, wanted, had));
        let (mut tokens, mut skipped) = (0, 0);
        let mut sums = Vec::with_capacity(self.layers.len());
        for (columns, layer) in self.layers.iter().zip(0..) {
            let Sums { added, out, columns } = columns.read(&self.gpu).await?;
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
            sums.push(columns);
        }
        Ok(ChannelOrder::from_sums(&self.shape, self.heads_per_group, reach, model, tokens, sums)?.counted(skipped))
    }
}
