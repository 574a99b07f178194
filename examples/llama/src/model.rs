//! The LLaMA layers around the attention, on burn.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};

use crate::attention::Attention;
use crate::bridge::Bridge;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::Weights;

/// A model whose weights are on the GPU.
pub struct Model {
    config: Config,
    device: Device,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Tensor<2>,
    head: Option<Matrix>,
}

struct Layer {
    attention_norm: Tensor<2>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    mlp_norm: Tensor<2>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

struct Linear {
    weight: Matrix,
    bias: Option<Tensor<2>>,
}

/// A matrix `[rows, columns]`, cut between rows where one binding cannot hold it (a large vocabulary in f32 is such a case).
struct Matrix {
    blocks: Vec<Tensor<2>>,
    block_rows: usize,
}

/// Reads and uploads, one tensor at a time.
struct Loader<'a> {
    weights: Weights,
    bridge: &'a Bridge,
}

impl Model {
    /// Loads a folder in Hugging Face's layout onto the bridge's device.
    pub fn open(directory: &Path, bridge: &Bridge) -> Result<Self> {
        let config = Config::open(directory)?;
        let loader = Loader { weights: Weights::open(directory)?, bridge };
        let embedding = loader.matrix("model.embed_tokens.weight", config.vocabulary, config.hidden)?;
        let layers = (0..config.layers).map(|layer| Layer::load(&loader, &config, layer)).collect::<Result<_>>()?;
        let norm = loader.row("model.norm.weight", config.hidden)?;
        let head = match config.tied {
            true => None,
            false => Some(loader.matrix("lm_head.weight", config.vocabulary, config.hidden)?),
        };
        Ok(Self { config, device: bridge.device().clone(), embedding, layers, norm, head })
    }

    /// The model's numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs tokens through every layer and returns the normed hidden rows, `[tokens, hidden]`.
    pub fn forward(&self, ids: &[u32], attention: &mut dyn Attention) -> Result<Tensor<2>> {
        let vocabulary = self.config.vocabulary;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::Token { id, vocabulary });
        }
        attention.begin(ids.len())?;
        let epsilon = self.config.norm_epsilon;
        let mut stream = self.embedding.select(ids, &self.device);
        for (index, layer) in self.layers.iter().enumerate() {
            attention.enter(index, &stream)?;
            let normed = rms_norm(stream.clone(), &layer.attention_norm, epsilon);
            let mixed = attention.attend(index, layer.query.apply(normed.clone()), layer.key.apply(normed.clone()), layer.value.apply(normed))?;
            stream = stream + layer.output.apply(mixed);
            let normed = rms_norm(stream.clone(), &layer.mlp_norm, epsilon);
            let gate = activation::silu(layer.gate.apply(normed.clone()));
            stream = stream + layer.down.apply(gate * layer.up.apply(normed));
        }
        Ok(rms_norm(stream, &self.norm, epsilon))
    }

    /// A layer's projections that make keys and values, and the one that takes attention's output, `[outputs, inputs]` each.
    pub fn projections(&self, layer: usize) -> Option<[Tensor<2>; 3]> {
        let layer = self.layers.get(layer)?;
        Some([&layer.key, &layer.value, &layer.output].map(|linear| linear.weight.whole()))
    }

    /// Scores of every token of the vocabulary for hidden rows, read back row after row.
    pub fn logits(&self, hidden: Tensor<2>) -> Result<Vec<f32>> {
        self.head.as_ref().unwrap_or(&self.embedding).apply(hidden).try_into_vec_as::<f32>().map_err(|error| Error::Burn(error.to_string()))
    }

    /// Scores that follow the last of the tokens.
    pub fn next(&self, ids: &[u32], attention: &mut dyn Attention) -> Result<Vec<f32>> {
        let hidden = self.forward(ids, attention)?;
        let [tokens, _] = hidden.dims();
        self.logits(hidden.narrow(0, tokens - 1, 1))
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, config: &Config, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (hidden, wide) = (config.hidden, config.intermediate);
        let queries = config.query_heads * config.head_dim;
        let keys = config.kv_heads * config.head_dim;
        let attention = |part: &str, rows, columns| loader.linear(&name(&format!("self_attn.{part}_proj")), rows, columns, config.attention_bias);
        let mlp = |part: &str, rows, columns| loader.linear(&name(&format!("mlp.{part}_proj")), rows, columns, config.mlp_bias);
        Ok(Self {
            attention_norm: loader.row(&name("input_layernorm.weight"), hidden)?,
            query: attention("q", queries, hidden)?,
            key: attention("k", keys, hidden)?,
            value: attention("v", keys, hidden)?,
            output: attention("o", hidden, queries)?,
            mlp_norm: loader.row(&name("post_attention_layernorm.weight"), hidden)?,
            gate: mlp("gate", wide, hidden)?,
            up: mlp("up", wide, hidden)?,
            down: mlp("down", hidden, wide)?,
        })
    }
}

impl Loader<'_> {
    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        let values = self.weights.tensor(name, &[rows, columns])?;
        let block_rows = (self.bridge.tensor_limit() / columns).clamp(1, rows);
        if block_rows == rows {
            return Ok(Matrix { blocks: vec![self.bridge.upload(values, [rows, columns])], block_rows });
        }
        let blocks = values.chunks(block_rows * columns).map(|block| self.bridge.upload(block.to_vec(), [block.len() / columns, columns])).collect();
        Ok(Matrix { blocks, block_rows })
    }

    fn row(&self, name: &str, columns: usize) -> Result<Tensor<2>> {
        let values = self.weights.tensor(name, &[columns])?;
        Ok(self.bridge.upload(values, [1, columns]))
    }

    fn linear(&self, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
        Ok(Linear {
            weight: self.matrix(&format!("{name}.weight"), rows, columns)?,
            bias: match bias {
                true => Some(self.row(&format!("{name}.bias"), rows)?),
                false => None,
            },
        })
    }
}

impl Linear {
    fn apply(&self, rows: Tensor<2>) -> Tensor<2> {
        let product = self.weight.apply(rows);
        match &self.bias {
            Some(bias) => product + bias.clone(),
            None => product,
        }
    }
}

impl Matrix {
    /// `rows · selfᵀ`.
    fn apply(&self, rows: Tensor<2>) -> Tensor<2> {
        let product = |block: &Tensor<2>| rows.clone().matmul(block.clone().transpose());
        match self.blocks.as_slice() {
            [block] => product(block),
            blocks => Tensor::cat(blocks.iter().map(product).collect(), 1),
        }
    }

    /// All rows as one tensor.
    fn whole(&self) -> Tensor<2> {
        match self.blocks.as_slice() {
            [block] => block.clone(),
            blocks => Tensor::cat(blocks.to_vec(), 0),
        }
    }

    /// The rows with these numbers, in their order.
    fn select(&self, ids: &[u32], device: &Device) -> Tensor<2> {
        let indices = |values: Vec<i32>| {
            let count = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [count]), device)
        };
        if let [block] = self.blocks.as_slice() {
            return block.clone().select(0, indices(ids.iter().map(|&id| id as i32).collect()));
        }
        // Gather block by block, then bring the rows back into the order they were asked for.
        let mut order = Vec::with_capacity(ids.len());
        let mut parts = Vec::new();
        for (number, block) in self.blocks.iter().enumerate() {
            let mut local = Vec::new();
            for (place, &id) in ids.iter().enumerate() {
                if id as usize / self.block_rows == number {
                    order.push(place);
                    local.push((id as usize % self.block_rows) as i32);
                }
            }
            if !local.is_empty() {
                parts.push(block.clone().select(0, indices(local)));
            }
        }
        let mut places = vec![0; ids.len()];
        for (gathered, &place) in order.iter().enumerate() {
            places[place] = gathered as i32;
        }
        Tensor::cat(parts, 0).select(0, indices(places))
    }
}

fn rms_norm(rows: Tensor<2>, weight: &Tensor<2>, epsilon: f64) -> Tensor<2> {
    let root = rows.clone().square().mean_dim(1).add_scalar(epsilon).sqrt();
    rows / root * weight.clone()
}
