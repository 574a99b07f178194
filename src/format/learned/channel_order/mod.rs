//! What RotateKV learns from sample text: the order of each layer's rotated key channels.

mod file;

use crate::error::{Error, Result, Thing};
use crate::format::hadamard::rotate_group_exact;
use crate::format::{Rope, Shape, check_heads_per_group, origin, tensors};
use std::ops::Range;

/// How far the order of channels reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Reach {
    /// Over all channels of a token's keys, as RotateKV does.
    #[default]
    Global,
    /// Over the channels of the KV heads that are rotated together: each such group needs no scale
    /// of another.
    Local,
}

impl Reach {
    /// Returns the name that files call it by.
    fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Local => "local",
        }
    }
}

/// Bytes of a model's name at most.
const MODEL_BYTES: usize = 4096;

/// The order of rotated key channels, by layer: channels that follow each other in it share a
/// scale.
///
/// RotateKV (2501.16383) section 4.1: the channels of `B k`, keys before RoPE and after the
/// rotation over groups of KV heads, sorted by their signed mean over sample text, ascending, ties
/// by index.
///
/// ```no_run
/// use wgkv::{Bits, Cache, Capacity, Codec, Format, Gpu, Plan, Protection, Result, Rows, Shape, Sinks};
/// use wgkv::learned::{OrderCollector, Reach};
///
/// /// `keys` are one batch of one layer's keys before RoPE, `[2048, kv_heads, head_dim]`.
/// async fn collect(gpu: &Gpu, shape: &Shape, keys: &wgpu::Buffer) -> Result<Cache> {
///     let collector = OrderCollector::new(gpu, shape, 4)?;
///     let mut encoder = gpu.device().create_command_encoder(&Default::default());
///     for layer in 0..shape.layers {
///         collector.add(&mut encoder, layer, Rows::f32(keys), 2048)?; // and so for every batch of the sample
///     }
///     gpu.queue().submit([encoder.finish()]);
///     let order = collector.finish("my model's hash", Reach::Global).await?;
///     order.save("rotate-kv.safetensors")?; // later: ChannelOrder::load
///
///     let format = Format::new(Codec::RotateKv, Bits::Two, Bits::Two, 128);
///     let protection = Protection { sinks: Sinks::Massive(20), window: 128 };
///     let builder = Plan::builder(shape.clone(), format).protection(protection).learned(order);
///     // Before every append of a prompt, its layers' residual stream goes to Cache::elect.
///     Cache::new(gpu, builder.capacity(Capacity::tokens(1, 32_768)).build(gpu.capability())?)
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelOrder {
    model: String,
    kv_heads: u32,
    head_dim: u32,
    heads_per_group: u32,
    reach: Reach,
    tokens: u64,
    skipped: u64,
    /// `[layer][channel]`: sums over the sample's tokens of the keys before RoPE and rotation.
    sums: Vec<Vec<f64>>,
    /// `[layer][place]`: channel.
    orders: Vec<Vec<u16>>,
}

impl ChannelOrder {
    /// Returns no order: channels share scales as they lie after the rotation. It needs no sample
    /// text, and costs accuracy.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the shape or `heads_per_group` is not served.
    pub fn natural(shape: &Shape, heads_per_group: u32) -> Result<Self> {
        let width = check_channels(shape, heads_per_group)?;
        Self::from_sums(shape, heads_per_group, Reach::Global, "", 0, vec![vec![0.0; width]; shape.layers as usize])
    }

    /// Makes the order from sums of the keys' channels over `tokens` tokens, before RoPE and
    /// rotation: `[layer][kv_heads * head_dim]`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the shape or `heads_per_group` is not served, where the sums are
    /// not of the shape or not finite, and where the model's name is longer than 4096 bytes.
    pub fn from_sums(shape: &Shape, heads_per_group: u32, reach: Reach, model: &str, tokens: u64, sums: Vec<Vec<f64>>) -> Result<Self> {
        let width = check_channels(shape, heads_per_group)?;
        let wrong = |name: &'static str, wanted: String, had: String| Err(Error::mismatch(Thing::ChannelOrder, name, wanted, had));
        if model.len() > MODEL_BYTES {
            return wrong("model", format!("named in {MODEL_BYTES} bytes at most"), format!("{} bytes long", model.len()));
        }
        if sums.len() != shape.layers as usize {
            return wrong("layers", shape.layers.to_string(), sums.len().to_string());
        }
        for row in &sums {
            if row.len() != width {
                return wrong("channels", width.to_string(), row.len().to_string());
            }
            if let Some(bad) = row.iter().find(|x| !x.is_finite()) {
                return wrong("sums", "finite".into(), bad.to_string());
            }
        }
        let block = (heads_per_group * shape.head_dim) as usize;
        let orders = sums.iter().map(|row| order(row, shape.head_dim, heads_per_group, if reach == Reach::Global { width } else { block })).collect();
        Ok(Self { model: model.to_owned(), kv_heads: shape.kv_heads, head_dim: shape.head_dim, heads_per_group, reach, tokens, skipped: 0, sums, orders })
    }

    /// Returns the order as one of whose tokens `skipped` were left out.
    pub(crate) fn counted(self, skipped: u64) -> Self {
        Self { skipped, ..self }
    }

    /// Returns the order of some of the KV heads, as if a layer had no others.
    pub(crate) fn shard(&self, heads: Range<u32>) -> Result<Self> {
        let channels = [heads.start, heads.end].map(|head| (head * self.head_dim) as usize);
        let sums = self.sums.iter().map(|row| row[channels[0]..channels[1]].to_vec()).collect();
        let kv_heads = heads.end - heads.start;
        let shape = Shape { layers: self.layers(), query_heads: kv_heads, kv_heads, head_dim: self.head_dim, rope: Rope::none() };
        Ok(Self { skipped: self.skipped, ..Self::from_sums(&shape, self.heads_per_group, self.reach, &self.model, self.tokens, sums)? })
    }

    /// Returns the channel at each place of a layer's order: `pi` of the paper. A permutation of
    /// `0..kv_heads * head_dim`.
    pub fn order(&self, layer: u32) -> &[u16] {
        self.orders.get(layer as usize).map_or(&[], Vec::as_slice)
    }

    /// Returns the place of each channel in a layer's order: `argsort(pi)`.
    pub fn places(&self, layer: u32) -> Vec<u16> {
        let order = self.order(layer);
        let mut places = vec![0; order.len()];
        for (place, channel) in order.iter().enumerate() {
            places[usize::from(*channel)] = place as u16;
        }
        places
    }

    /// Returns the name of the model that the order was made for; empty for
    /// [`ChannelOrder::natural`].
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Refuses a model of another name. [`ChannelOrder::natural`] names no model and serves all.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn expect_model(&self, model: &str) -> Result<()> {
        let natural = self.model.is_empty() && self.tokens == 0;
        if natural { Ok(()) } else { origin::expect_model(Thing::ChannelOrder, model, &self.model) }
    }

    /// Returns the SHA-256, in hex, of what decides how keys are stored: the model's name and the
    /// order. Caches whose orders have the same one store keys alike.
    pub fn fingerprint(&self) -> String {
        let orders: Vec<u8> = self.orders.iter().flatten().flat_map(|channel| channel.to_le_bytes()).collect();
        tensors::hash([self.model.as_bytes(), &orders])
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> u32 {
        self.orders.len() as u32
    }

    /// Returns the KV heads a layer.
    pub fn kv_heads(&self) -> u32 {
        self.kv_heads
    }

    /// Returns the channels a head.
    pub fn head_dim(&self) -> u32 {
        self.head_dim
    }

    /// Returns the KV heads that are rotated together.
    pub fn heads_per_group(&self) -> u32 {
        self.heads_per_group
    }

    /// Returns how far the order reaches.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Returns the tokens that the order was made from, in each layer.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns how many of these tokens were left out because their keys were not finite, added up
    /// over the layers.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Returns the sums over the sample's tokens of a layer's key channels, before RoPE and
    /// rotation.
    pub fn sums(&self, layer: u32) -> &[f64] {
        self.sums.get(layer as usize).map_or(&[], Vec::as_slice)
    }
}

/// Checks a shape whose channels are to be ordered, and returns the channels of its key rows.
pub(crate) fn check_channels(shape: &Shape, heads_per_group: u32) -> Result<usize> {
    shape.check()?;
    check_heads_per_group(heads_per_group, shape.kv_heads)?;
    // At most 4095 heads of 512: no overflow.
    let width = (shape.kv_heads * shape.head_dim) as usize;
    if width > 1 << 16 {
        return Err(Error::mismatch(Thing::ChannelOrder, "channels", "65536 at most", width));
    }
    Ok(width)
}

/// Returns the stable order of one layer's rotated channels, sorted within blocks of `span`.
fn order(sums: &[f64], head_dim: u32, heads_per_group: u32, span: usize) -> Vec<u16> {
    let block = (heads_per_group * head_dim) as usize;
    // Adding zero makes -0 a 0, which would come before it.
    let rotated: Vec<f64> = sums.chunks_exact(block).flat_map(|row| rotate_group_exact(row, head_dim)).map(|x| x + 0.0).collect();
    let mut order: Vec<u16> = (0..rotated.len()).map(|c| c as u16).collect();
    for part in order.chunks_mut(span) {
        part.sort_by(|a, b| rotated[usize::from(*a)].total_cmp(&rotated[usize::from(*b)]));
    }
    order
}
