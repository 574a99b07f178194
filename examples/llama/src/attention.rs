//! What a model asks of a cache, and the plainest cache that does it: f32 tensors and a softmax.

use burn::tensor::{Device, Tensor, TensorData, activation};

use crate::config::Config;
use crate::error::Result;
use crate::rope;

/// Attention over everything a sequence (or each of several) has seen, with the newest tokens added to it.
///
/// All rows are `[tokens, heads × head_dim]` and come before RoPE.
pub trait Attention {
    /// Announces `tokens` more tokens of each sequence, once for all layers.
    fn begin(&mut self, tokens: usize) -> Result<()>;

    /// Shows the residual stream that enters a layer, `[tokens, hidden]` before the layer's norm (for layer 0 the
    /// embeddings), ahead of the layer's [`Attention::attend`]. Only what looks for massive activations cares.
    fn enter(&mut self, _layer: usize, _residual: &Tensor<2>) -> Result<()> {
        Ok(())
    }

    /// Adds the keys and values to one layer and attends to all of it, causally.
    fn attend(&mut self, layer: usize, queries: Tensor<2>, keys: Tensor<2>, values: Tensor<2>) -> Result<Tensor<2>>;
}

/// Uncompressed f32 keys and values in burn's own tensors: the control for everything else.
pub struct PlainAttention {
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    frequencies: Vec<f64>,
    device: Device,
    seen: usize,
    tables: Option<Tables>,
    layers: Vec<Option<(Tensor<3>, Tensor<3>)>>,
}

/// What one step's layers share.
struct Tables {
    cos: Tensor<3>,
    sin: Tensor<3>,
    mask: Tensor<3>,
}

impl PlainAttention {
    /// An empty sequence.
    pub fn new(config: &Config, device: &Device) -> Self {
        Self {
            query_heads: config.query_heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            frequencies: rope::frequencies(config),
            device: device.clone(),
            seen: 0,
            tables: None,
            layers: vec![None; config.layers],
        }
    }

    /// `[tokens, heads × head_dim]` as `[heads, tokens, head_dim]`.
    fn heads(&self, rows: Tensor<2>, heads: usize) -> Tensor<3> {
        let [tokens, _] = rows.dims();
        rows.reshape([tokens, heads, self.head_dim]).swap_dims(0, 1)
    }

    /// Rotates the two halves of each row against each other.
    fn rotate(&self, rows: Tensor<3>, tables: &Tables) -> Tensor<3> {
        let half = self.head_dim / 2;
        let low = rows.clone().narrow(2, 0, half);
        let high = rows.narrow(2, half, half);
        let (cos, sin) = (tables.cos.clone(), tables.sin.clone());
        Tensor::cat(vec![low.clone() * cos.clone() - high.clone() * sin.clone(), high * cos + low * sin], 2)
    }
}

impl Attention for PlainAttention {
    fn begin(&mut self, tokens: usize) -> Result<()> {
        let past = self.seen;
        self.seen += tokens;
        let half = self.head_dim / 2;
        let angles = (past..self.seen).flat_map(|position| self.frequencies.iter().map(move |frequency| position as f64 * frequency));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f64::sin_cos).map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        // The query heads of one KV head are stacked, so the causal triangle repeats once per query head.
        let stacked = self.query_heads / self.kv_heads * tokens;
        let seen = self.seen;
        let mask: Vec<f32> = (0..stacked)
            .flat_map(|row| {
                let last = past + row % tokens;
                (0..seen).map(move |column| if column > last { -1e30 } else { 0.0 })
            })
            .collect();
        let table = |values, shape: [usize; 3]| Tensor::from_data(TensorData::new(values, shape), &self.device);
        self.tables = Some(Tables { cos: table(cos, [1, tokens, half]), sin: table(sin, [1, tokens, half]), mask: table(mask, [1, stacked, seen]) });
        Ok(())
    }

    fn attend(&mut self, layer: usize, queries: Tensor<2>, keys: Tensor<2>, values: Tensor<2>) -> Result<Tensor<2>> {
        let [tokens, width] = queries.dims();
        let Some(tables) = &self.tables else {
            return Ok(queries.zeros_like());
        };
        let queries = self.rotate(self.heads(queries, self.query_heads), tables);
        let mut keys = self.rotate(self.heads(keys, self.kv_heads), tables);
        let mut values = self.heads(values, self.kv_heads);
        if let Some((old_keys, old_values)) = self.layers[layer].take() {
            keys = Tensor::cat(vec![old_keys, keys], 1);
            values = Tensor::cat(vec![old_values, values], 1);
        }
        self.layers[layer] = Some((keys.clone(), values.clone()));

        let stacked = self.query_heads / self.kv_heads * tokens;
        let queries = queries.reshape([self.kv_heads, stacked, self.head_dim]);
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let scores = queries.matmul(keys.swap_dims(1, 2)).mul_scalar(scale) + tables.mask.clone();
        let output = activation::softmax(scores, 2).matmul(values);
        Ok(output.reshape([self.query_heads, tokens, self.head_dim]).swap_dims(0, 1).reshape([tokens, width]))
    }
}
