//! `config.json`: the numbers of a LLaMA-family model, checked once.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// Architectures whose layers are LLaMA's.
const ARCHITECTURES: &str = "LlamaForCausalLM, MistralForCausalLM (without a sliding window)";

/// The numbers of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub query_heads: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Elements of one head's row.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Tokens that the model was trained for, zero where the file does not say.
    pub max_tokens: usize,
    /// Added to the mean square before the root.
    pub norm_epsilon: f64,
    /// Rotary base.
    pub rope_theta: f64,
    /// Llama 3's stretching of the rotary frequencies.
    pub rope_scaling: Option<Llama3Scaling>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether the attention projections have a bias.
    pub attention_bias: bool,
    /// Whether the MLP projections have a bias.
    pub mlp_bias: bool,
    /// Token that opens every sequence.
    pub begin: Option<u32>,
    /// Tokens that end a text.
    pub end: Vec<u32>,
}

/// `rope_scaling` of type `llama3`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// Low frequencies are divided by this.
    pub factor: f64,
    /// Turns over the original context below which a frequency is low.
    pub low_freq_factor: f64,
    /// Turns over the original context above which a frequency is kept.
    pub high_freq_factor: f64,
    /// Context of the model before it was stretched.
    pub original_max_tokens: u32,
}

#[derive(Deserialize)]
struct Raw {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    // Newer files put theta and the scaling into one object.
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<u64>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn list(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl Config {
    /// Reads and checks the `config.json` of a model's folder.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::read(&directory.join("config.json"))
    }

    /// Reads and checks such a file.
    pub fn read(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        // An architecture may lay out its whole file differently, so its name is judged before the rest is parsed.
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|source| Error::Json { path: path.clone(), source })?;
        check_architecture(&value)?;
        let raw = serde_json::from_value(value).map_err(|source| Error::Json { path, source })?;
        Self::check(raw)
    }

    /// Numbers in the model's weights.
    pub fn parameters(&self) -> u64 {
        let (queries, keys) = (self.query_heads * self.head_dim, self.kv_heads * self.head_dim);
        let attention = self.hidden * (2 * queries + 2 * keys) + if self.attention_bias { queries + 2 * keys + self.hidden } else { 0 };
        let mlp = 3 * self.hidden * self.intermediate + if self.mlp_bias { 2 * self.intermediate + self.hidden } else { 0 };
        let embeddings = self.vocabulary * self.hidden * if self.tied { 1 } else { 2 };
        (embeddings + self.layers * (attention + mlp + 2 * self.hidden) + self.hidden) as u64
    }

    fn check(raw: Raw) -> Result<Self> {
        let need = |value: Option<usize>, name| match value {
            Some(value) if value > 0 => Ok(value),
            Some(value) => Err(Error::Setting { name, found: value.to_string(), wanted: "a positive number" }),
            None => Err(Error::SettingMissing { name }),
        };
        let hidden = need(raw.hidden_size, "hidden_size")?;
        let query_heads = need(raw.num_attention_heads, "num_attention_heads")?;
        let kv_heads = need(raw.num_key_value_heads.or(Some(query_heads)), "num_key_value_heads")?;
        if !query_heads.is_multiple_of(kv_heads) {
            return Err(Error::Setting { name: "num_key_value_heads", found: kv_heads.to_string(), wanted: "a divisor of num_attention_heads" });
        }
        if raw.head_dim.is_none() && !hidden.is_multiple_of(query_heads) {
            return Err(Error::Setting {
                name: "hidden_size",
                found: hidden.to_string(),
                wanted: "a multiple of num_attention_heads where head_dim is absent",
            });
        }
        if let Some(act) = raw.hidden_act.filter(|act| act != "silu") {
            return Err(Error::Setting { name: "hidden_act", found: act, wanted: "silu" });
        }
        if let Some(window) = raw.sliding_window {
            return Err(Error::Setting { name: "sliding_window", found: window.to_string(), wanted: "null" });
        }
        if let Some(factor) = raw.partial_rotary_factor.filter(|&factor| factor != 1.0) {
            return Err(Error::Setting { name: "partial_rotary_factor", found: factor.to_string(), wanted: "1" });
        }
        let rope = raw.rope_scaling.or(raw.rope_parameters);
        let rope_theta = rope.as_ref().and_then(|rope| rope.rope_theta).or(raw.rope_theta).unwrap_or(10_000.0);
        Ok(Self {
            hidden,
            intermediate: need(raw.intermediate_size, "intermediate_size")?,
            layers: need(raw.num_hidden_layers, "num_hidden_layers")?,
            query_heads,
            kv_heads,
            head_dim: need(raw.head_dim.or(Some(hidden / query_heads)), "head_dim")?,
            vocabulary: need(raw.vocab_size, "vocab_size")?,
            max_tokens: raw.max_position_embeddings.unwrap_or(0),
            norm_epsilon: raw.rms_norm_eps.unwrap_or(1e-6),
            rope_theta,
            rope_scaling: rope.map(scaling).transpose()?.flatten(),
            tied: raw.tie_word_embeddings.unwrap_or(false),
            attention_bias: raw.attention_bias.unwrap_or(false),
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            begin: raw.bos_token_id.and_then(|ids| ids.list().first().copied()),
            end: raw.eos_token_id.map(Ids::list).unwrap_or_default(),
        })
    }
}

fn check_architecture(value: &serde_json::Value) -> Result<()> {
    let architecture = value.get("architectures").and_then(|names| names.get(0)).and_then(|name| name.as_str());
    let model_type = value.get("model_type").and_then(|name| name.as_str());
    let refuse = |found: String| Err(Error::Architecture { found, wanted: ARCHITECTURES });
    match (architecture, model_type) {
        (Some("LlamaForCausalLM" | "MistralForCausalLM"), _) => Ok(()),
        (None, Some("llama" | "mistral")) => Ok(()),
        (Some(other), _) | (None, Some(other)) => refuse(other.to_owned()),
        (None, None) => refuse(String::new()),
    }
}

fn scaling(rope: RawRope) -> Result<Option<Llama3Scaling>> {
    let need = |value: Option<f64>, name| value.ok_or(Error::SettingMissing { name });
    match rope.rope_type.as_deref() {
        None | Some("default") => Ok(None),
        Some("llama3") => Ok(Some(Llama3Scaling {
            factor: need(rope.factor, "rope_scaling.factor")?,
            low_freq_factor: need(rope.low_freq_factor, "rope_scaling.low_freq_factor")?,
            high_freq_factor: need(rope.high_freq_factor, "rope_scaling.high_freq_factor")?,
            original_max_tokens: rope
                .original_max_position_embeddings
                .ok_or(Error::SettingMissing { name: "rope_scaling.original_max_position_embeddings" })?,
        })),
        Some(other) => Err(Error::Setting { name: "rope_scaling.rope_type", found: other.to_owned(), wanted: "llama3 or default" }),
    }
}
