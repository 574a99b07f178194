//! A LLaMA decoder on the CPU, around attention that is elsewhere.

use crate::attention::Attention;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, add, gate, rms_norm};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use wgkv::{Rope, Shape};

/// The numbers of a model, by their names in Hugging Face's `config.json`.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs, reason = "they are Hugging Face's")]
pub struct Config {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub bos_token_id: u32,
    pub eos_token_id: u32,
}

impl Config {
    /// Reads the file's text.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|source| Error::Json { name: "config.json", source })
    }

    /// The attention as the cache is told it.
    pub fn shape(&self) -> Shape {
        Shape {
            layers: self.num_hidden_layers as u32,
            query_heads: self.num_attention_heads as u32,
            kv_heads: self.num_key_value_heads as u32,
            head_dim: self.head_dim as u32,
            rope: Rope::new(self.rope_theta, self.head_dim as u32),
        }
    }
}

/// A model with tied embeddings and no biases.
#[derive(Debug)]
pub struct Decoder {
    config: Config,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    mlp_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// A tensor's numbers, if it has this shape.
fn tensor(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let view = tensors.tensor(name)?;
    let wrong = |wanted: String, found: String| Error::Tensor { name: name.to_owned(), wanted, found };
    if view.shape() != shape {
        return Err(wrong(format!("{shape:?}"), format!("{:?}", view.shape())));
    }
    let (pairs, quads) = (view.data().as_chunks::<2>().0, view.data().as_chunks::<4>().0);
    match view.dtype() {
        Dtype::F32 => Ok(quads.iter().map(|x| f32::from_le_bytes(*x)).collect()),
        Dtype::F16 => Ok(pairs.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect()),
        Dtype::BF16 => Ok(pairs.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect()),
        other => Err(wrong("F32, F16 or BF16".into(), format!("{other:?}"))),
    }
}

impl Decoder {
    /// Reads the weights of a safetensors file's bytes.
    ///
    /// # Errors
    /// [`Error::Weights`], [`Error::Tensor`].
    pub fn from_bytes(config: Config, bytes: &[u8]) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes)?;
        let row = |name: &str, columns| tensor(&tensors, name, &[columns]);
        let matrix = |name: &str, rows, columns| Ok::<_, Error>(Matrix::new(columns, tensor(&tensors, name, &[rows, columns])?));
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let [queries, keys] = [config.num_attention_heads, config.num_key_value_heads].map(|heads| heads * config.head_dim);
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
                Ok(Layer {
                    attention_norm: row(&name("input_layernorm"), hidden)?,
                    query: matrix(&name("self_attn.q_proj"), queries, hidden)?,
                    key: matrix(&name("self_attn.k_proj"), keys, hidden)?,
                    value: matrix(&name("self_attn.v_proj"), keys, hidden)?,
                    output: matrix(&name("self_attn.o_proj"), hidden, queries)?,
                    mlp_norm: row(&name("post_attention_layernorm"), hidden)?,
                    gate: matrix(&name("mlp.gate_proj"), wide, hidden)?,
                    up: matrix(&name("mlp.up_proj"), wide, hidden)?,
                    down: matrix(&name("mlp.down_proj"), hidden, wide)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { embedding: matrix("model.embed_tokens.weight", config.vocab_size, hidden)?, norm: row("model.norm.weight", hidden)?, layers, config })
    }

    /// The model's numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs tokens through every layer. Returns the scores of all tokens of the vocabulary for what follows the last.
    ///
    /// # Errors
    /// Those of the attention.
    pub async fn forward(&self, ids: &[u32], attention: &mut Attention) -> Result<Vec<f32>> {
        let epsilon = self.config.rms_norm_eps;
        attention.begin(ids.len())?;
        let mut stream: Vec<f32> = ids.iter().flat_map(|id| self.embedding.row(*id as usize)).copied().collect();
        for (number, layer) in self.layers.iter().enumerate() {
            let normed = rms_norm(&stream, &layer.attention_norm, epsilon);
            let [queries, keys, values] = [&layer.query, &layer.key, &layer.value].map(|matrix| matrix.apply(&normed));
            let mixed = attention.attend(number, &stream, &queries, &keys, &values).await?;
            add(&mut stream, &layer.output.apply(&mixed));
            let normed = rms_norm(&stream, &layer.mlp_norm, epsilon);
            let mut gated = layer.gate.apply(&normed);
            gate(&mut gated, &layer.up.apply(&normed));
            add(&mut stream, &layer.down.apply(&gated));
        }
        let last = &stream[stream.len() - self.config.hidden_size..];
        Ok(self.embedding.apply(&rms_norm(last, &self.norm, epsilon)))
    }
}
