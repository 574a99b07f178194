//! One layer's attention, as a LLaMA-like model has it: burn's linear layers, and between them
//! attention through wgkv's cache, or burn's own.

use crate::bridge::{Bridge, View};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig, RotaryEncoding, RotaryEncodingConfig};
use burn::tensor::{Device, Tensor, module::attention_fallback, ops::AttentionModuleOptions};
use std::error::Error;
use wgkv::{Cache, Rope, Shape, Step};

/// Width of the residual stream.
pub const HIDDEN: usize = 256;
const QUERY_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const THETA: f32 = 10_000.0;

/// Returns what wgkv must know of the model. burn's [`RotaryEncoding`] turns neighbouring channels,
/// which wgkv calls interleaved; Hugging Face's weights want split halves, [`Rope::new`] alone.
pub fn shape() -> Shape {
    let rope = Rope::new(f64::from(THETA), HEAD_DIM as u32).interleaved();
    Shape { layers: 1, query_heads: QUERY_HEADS as u32, kv_heads: KV_HEADS as u32, head_dim: HEAD_DIM as u32, rope }
}

/// Norm, projections and positions of one layer.
#[derive(Module, Debug)]
pub struct Attention {
    norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    rope: RotaryEncoding,
}

impl Attention {
    /// Draws random weights, for sequences of at most `tokens` tokens.
    pub fn random(tokens: usize, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        Self {
            norm: RmsNormConfig::new(HIDDEN).init(device),
            query: linear(HIDDEN, QUERY_HEADS * HEAD_DIM),
            key: linear(HIDDEN, KV_HEADS * HEAD_DIM),
            value: linear(HIDDEN, KV_HEADS * HEAD_DIM),
            output: linear(QUERY_HEADS * HEAD_DIM, HIDDEN),
            rope: RotaryEncodingConfig::new(tokens, HEAD_DIM).with_theta(THETA).init(device),
        }
    }

    /// Returns queries, keys and values, `[tokens, heads * head_dim]`, before RoPE.
    fn project(&self, stream: Tensor<2>) -> [Tensor<2>; 3] {
        let normed = self.norm.forward(stream);
        [&self.query, &self.key, &self.value].map(|linear| linear.forward(normed.clone()))
    }

    /// Attends through a cache, to which it adds the tokens of a [`Step`]. `stream` and the result,
    /// which is yet to be added to it, are `[tokens, HIDDEN]`.
    pub fn forward(&self, stream: Tensor<2>, bridge: &Bridge, cache: &Cache, step: &Step, layer: u32) -> Result<Tensor<2>, Box<dyn Error>> {
        let [queries, keys, values] = self.project(stream);
        let mixed = Tensor::<2>::empty(queries.dims(), &bridge.device);
        let views = bridge.view([queries, keys, values, mixed.clone()])?;
        let [queries, keys, values, output] = views.each_ref().map(View::rows);

        let gpu = &bridge.gpu;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.append(&mut encoder, step, layer, keys, values)?;
        cache.attend(&mut encoder, step, layer, queries, output)?;
        gpu.queue().submit([encoder.finish()]);
        Ok(self.output.forward(mixed))
    }

    /// Attends to a whole sequence without a cache, by burn's own RoPE and softmax in f32.
    pub fn forward_plain(&self, stream: Tensor<2>) -> Tensor<2> {
        let [tokens, _] = stream.dims();
        // [1, heads, tokens, head_dim], with a KV head for each of its query heads.
        let heads = |rows: Tensor<2>, count: usize| {
            let rows = rows.reshape([tokens, count, 1, HEAD_DIM]).repeat_dim(2, QUERY_HEADS / count);
            rows.reshape([1, tokens, QUERY_HEADS, HEAD_DIM]).swap_dims(1, 2)
        };
        let [queries, keys, values] = self.project(stream);
        let [queries, keys] = [heads(queries, QUERY_HEADS), heads(keys, KV_HEADS)].map(|rows| self.rope.forward(rows));
        let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
        let mixed = attention_fallback(queries, keys, heads(values, KV_HEADS), None, None, options);
        self.output.forward(mixed.swap_dims(1, 2).reshape([tokens, QUERY_HEADS * HEAD_DIM]))
    }
}
