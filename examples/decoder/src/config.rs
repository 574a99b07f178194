//! The numbers of a LLaMA-family model, from `config.json` or from a GGUF file's header, checked
//! once.

use std::f64::consts::TAU;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::model::read_error;

/// Architectures that are run, as `config.json` and as GGUF name them.
const ARCHITECTURES: &str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SmolLM3ForCausalLM, Phi3ForCausalLM";
const GGUF_ARCHITECTURES: &str = "llama, qwen2, qwen3, smollm3, phi3";
/// What errors call the two kinds of file.
const JSON: &str = "config.json";
const GGUF: &str = "GGUF";
/// A size beyond this is taken for damage; products of two of them fit into 64 bits.
const SIZE_LIMIT: u64 = 1 << 28;
/// Layers beyond this are taken for damage, as the cache does.
const LAYER_LIMIT: u64 = 4096;
/// Channels of a head beyond this are taken for damage.
const HEAD_LIMIT: u64 = 1 << 16;
/// SmolLM3 leaves one layer in this many without rotation, unless the file says otherwise.
/// GGUF never says.
const NO_ROPE_INTERVAL: usize = 4;
/// Texts of tokens that end an answer. A GGUF file names one such token or two, and its model may
/// have been trained to end with another.
const ENDS: [&str; 7] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "</s>"];

/// What a model's layers look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// LLaMA and what copies it, such as SmolLM2.
    Llama,
    /// LLaMA's layers, often with a sliding window. A GGUF file calls it `llama`.
    Mistral,
    /// With biases on queries, keys and values.
    Qwen2,
    /// With a norm on each head's query and key.
    Qwen3,
    /// With layers that do not rotate.
    SmolLm3,
    /// With rotation factors for short and for long contexts. Its fused tensors are taken apart in
    /// reading.
    Phi3,
}

/// The numbers of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What the layers look like.
    pub architecture: Architecture,
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
    /// Channels of a head that are rotated, from the first on; all of them but in some Phi models.
    pub rotary: usize,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: Option<RopeScaling>,
    /// By layer whether it rotates queries and keys; none where all do.
    pub rope_layers: Option<Vec<bool>>,
    /// What rotated queries and rotated keys are each multiplied by, 1 for most models: YaRN's and
    /// LongRope's remedy for longer contexts. Where `rotary` is `head_dim`, attention scores are
    /// multiplied by its square; where it is less, that holds for the rotated channels only.
    pub attention_factor: f64,
    /// Newest tokens that a query sees, itself included; none where it sees all.
    pub sliding_window: Option<u32>,
    /// Whether each head's query and key is normalized before rotation, with weights of `head_dim`
    /// that the heads share.
    pub head_norm: bool,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether the projections to queries, keys and values have a bias.
    pub attention_bias: bool,
    /// Whether the projection of the attention's output has a bias.
    pub output_bias: bool,
    /// Whether the MLP's projections have a bias.
    pub mlp_bias: bool,
    /// Token that opens a text, even where the tokenizer does not add it by itself.
    pub begin: Option<u32>,
    /// Whether the tokenizer puts `begin` before a text: what a GGUF file says, and for a folder
    /// true unless `tokenizer_config.json` denies it.
    pub add_bos: bool,
    /// Tokens that end a text.
    pub end: Vec<u32>,
}

/// How rotary frequencies are stretched for contexts longer than those of the first training.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// All frequencies are divided by one number.
    Linear {
        /// That number.
        factor: f64,
    },
    /// Llama 3's: low frequencies are divided, high ones kept, and those between blended.
    Llama3 {
        /// Low frequencies are divided by this.
        factor: f64,
        /// Turns over the original context below which a frequency is low.
        low_freq_factor: f64,
        /// Turns over the original context above which a frequency is kept.
        high_freq_factor: f64,
        /// Context of the model before it was stretched, in tokens.
        original_max_tokens: u32,
    },
    /// Each pair's frequency is divided by its own number: how GGUF stores Llama 3's.
    Divided {
        /// Those numbers, one a pair.
        factors: Vec<f64>,
    },
    /// YaRN: divided below one number of turns, kept above another, and a ramp over the pairs
    /// between.
    Yarn {
        /// Low frequencies are divided by this.
        factor: f64,
        /// Turns over the original context from which a frequency is kept.
        beta_fast: f64,
        /// Turns over the original context up to which a frequency is divided.
        beta_slow: f64,
        /// Context of the model before it was stretched, in tokens.
        original_max_tokens: u32,
        /// Whether the ramp's ends are rounded to whole pairs.
        truncate: bool,
    },
    /// LongRope: each pair's frequency is divided by its own number, of which there are two sets.
    LongRope {
        /// For contexts up to the original one, one a pair.
        short: Vec<f64>,
        /// For longer contexts, one a pair.
        long: Vec<f64>,
        /// Context of the model before it was stretched, in tokens.
        original_max_tokens: u32,
    },
}

#[derive(Deserialize)]
struct Raw {
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    original_max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    // Newer files put theta and the scaling into one object.
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<u64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<u64>,
    layer_types: Option<Vec<String>>,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize, Default)]
struct RawRope {
    // Files of the time between have both.
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    // Of models whose layers rotate differently.
    full_attention: Option<IgnoredAny>,
    sliding_attention: Option<IgnoredAny>,
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

/// The part of `tokenizer_config.json` that is of use here.
#[derive(Deserialize)]
struct TokenizerConfig {
    add_bos_token: Option<bool>,
}

/// The part of `generation_config.json` that is of use here.
#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<Ids>,
}

fn setting(file: &'static str, name: impl Into<String>, found: impl ToString, wanted: impl Into<String>) -> Error {
    Error::Setting { file, name: name.into(), found: found.to_string(), wanted: wanted.into() }
}

fn missing(file: &'static str, name: impl Into<String>) -> Error {
    Error::SettingMissing { file, name: name.into() }
}

/// A size that must be there, positive and within reason.
fn size(file: &'static str, name: &str, value: Option<u64>, limit: u64) -> Result<usize> {
    let value = value.ok_or_else(|| missing(file, name))?;
    if value == 0 || value > limit {
        return Err(setting(file, name, value, format!("a positive number up to {limit}")));
    }
    Ok(value as usize)
}

/// A number that must be there, finite and above zero.
fn positive(file: &'static str, name: &str, value: Option<f64>) -> Result<f64> {
    let value = value.ok_or_else(|| missing(file, name))?;
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(setting(file, name, value, "a positive number")) }
}

/// A context's length in tokens.
fn tokens(file: &'static str, name: &str, value: Option<u64>) -> Result<u32> {
    size(file, name, value, u64::from(u32::MAX)).map(|tokens| tokens as u32)
}

/// A frequency's divisors, one a pair.
fn divisors(file: &'static str, name: &str, factors: Option<Vec<f64>>, pairs: usize) -> Result<Vec<f64>> {
    let factors = factors.ok_or_else(|| missing(file, name))?;
    if factors.len() != pairs || !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
        return Err(setting(file, name, format!("{} numbers", factors.len()), format!("{pairs} positive numbers")));
    }
    Ok(factors)
}

/// YaRN's factor for queries and keys.
fn yarn_scale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// LongRope's factor for queries and keys.
fn long_scale(factor: f64, original_max_tokens: u32) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / f64::from(original_max_tokens).ln()).sqrt() }
}

/// A window that hides nothing within the context is none.
fn window(file: &'static str, name: &str, value: u64, max_tokens: usize) -> Result<Option<u32>> {
    let window = tokens(file, name, Some(value))?;
    Ok(Some(window).filter(|&window| max_tokens == 0 || (window as usize) < max_tokens))
}

impl Config {
    /// Reads and checks the `config.json` of a model's folder, and what the files beside it say of
    /// the tokens that begin and end a text (`tokenizer_config.json`, `generation_config.json`),
    /// where they are there.
    ///
    /// # Errors
    /// As [`Config::from_bytes`], and [`Error::Read`].
    pub fn open(directory: &Path) -> Result<Self> {
        let mut config = Self::read(&directory.join("config.json"))?;
        if let Some(TokenizerConfig { add_bos_token }) = optional_json(&directory.join("tokenizer_config.json"))? {
            config.add_bos = add_bos_token.unwrap_or(true);
        }
        if let Some(GenerationConfig { eos_token_id }) = optional_json(&directory.join("generation_config.json"))? {
            for id in eos_token_id.map(Ids::list).unwrap_or_default() {
                if !config.end.contains(&id) {
                    config.end.push(id);
                }
            }
        }
        Ok(config)
    }

    /// Reads and checks such a file alone.
    ///
    /// # Errors
    /// As [`Config::from_bytes`], and [`Error::Read`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&std::fs::read(path).map_err(read_error(path))?, path)
    }

    /// Checks the bytes of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Architecture`], [`Error::Setting`] and [`Error::SettingMissing`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes, Path::new(JSON))
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let failed = |source| Error::Json { path: path.to_owned(), source };
        // An architecture may lay out its whole file differently, so its name is judged before the
        // rest is parsed.
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(failed)?;
        let architecture = architecture(&value)?;
        Self::check(architecture, serde_json::from_value(value).map_err(failed)?)
    }

    fn check(architecture: Architecture, raw: Raw) -> Result<Self> {
        let hidden = size(JSON, "hidden_size", raw.hidden_size, SIZE_LIMIT)?;
        let query_heads = size(JSON, "num_attention_heads", raw.num_attention_heads, SIZE_LIMIT)?;
        if raw.head_dim.is_none() && !hidden.is_multiple_of(query_heads) {
            return Err(setting(JSON, "hidden_size", hidden, "a multiple of num_attention_heads where head_dim is absent"));
        }
        if let Some(act) = raw.hidden_act.filter(|act| act != "silu") {
            return Err(setting(JSON, "hidden_act", act, "silu"));
        }
        let layers = size(JSON, "num_hidden_layers", raw.num_hidden_layers, LAYER_LIMIT)?;
        let head_dim = size(JSON, "head_dim", raw.head_dim.or(Some((hidden / query_heads) as u64)), HEAD_LIMIT)?;
        let max_tokens = raw.max_position_embeddings.unwrap_or(0).min(u64::from(u32::MAX)) as usize;
        let sliding_window = match raw.sliding_window {
            None => None,
            Some(width) if architecture == Architecture::Llama => return Err(setting(JSON, "sliding_window", width, "null")),
            Some(width) => {
                // Mistral and Phi-3 apply what is given; the others only if told to, from some
                // layer on.
                let slides = |layer: usize| match (architecture, &raw.layer_types) {
                    (Architecture::Mistral | Architecture::Phi3, None) => true,
                    (_, Some(types)) => types.get(layer).is_some_and(|name| name == "sliding_attention"),
                    (_, None) => raw.use_sliding_window == Some(true) && layer as u64 >= raw.max_window_layers.unwrap_or(0),
                };
                match (0..layers).filter(|&layer| slides(layer)).count() {
                    0 => None,
                    sliding if sliding == layers => window(JSON, "sliding_window", width, max_tokens)?,
                    sliding => return Err(setting(JSON, "sliding_window", format!("{width} in {sliding} of {layers} layers"), "the same in all layers")),
                }
            }
        };
        let rope_layers = match architecture {
            Architecture::SmolLm3 => Some(no_rope(raw.no_rope_layers, raw.no_rope_layer_interval, layers)?),
            _ => None,
        };
        let rope = raw.rope_scaling.or(raw.rope_parameters).unwrap_or_default();
        if rope.full_attention.is_some() || rope.sliding_attention.is_some() {
            return Err(setting(JSON, "rope_parameters", "one by kind of layer", "the same for all layers"));
        }
        let partial = rope.partial_rotary_factor.or(raw.partial_rotary_factor).unwrap_or(1.0);
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(setting(JSON, "partial_rotary_factor", partial, "above 0, 1 at most"));
        }
        let rotary = (head_dim as f64 * partial) as usize;
        let rope_theta = rope.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0);
        let (rope_scaling, attention_factor) = scaling(rope, rotary, raw.max_position_embeddings, raw.original_max_position_embeddings)?;
        let attention_bias = raw.attention_bias.unwrap_or(false) && !matches!(architecture, Architecture::Mistral | Architecture::Phi3);
        Self {
            architecture,
            hidden,
            intermediate: size(JSON, "intermediate_size", raw.intermediate_size, SIZE_LIMIT)?,
            layers,
            query_heads,
            kv_heads: size(JSON, "num_key_value_heads", raw.num_key_value_heads.or(Some(query_heads as u64)), SIZE_LIMIT)?,
            head_dim,
            vocabulary: size(JSON, "vocab_size", raw.vocab_size, SIZE_LIMIT)?,
            max_tokens,
            norm_epsilon: raw.rms_norm_eps.unwrap_or(if architecture == Architecture::Phi3 { 1e-5 } else { 1e-6 }),
            rope_theta,
            rotary,
            rope_scaling,
            rope_layers: rope_layers.filter(|layers| layers.contains(&false)),
            attention_factor,
            sliding_window,
            head_norm: architecture == Architecture::Qwen3,
            // A SmolLM3 says so only where it is not.
            tied: raw.tie_word_embeddings.unwrap_or(architecture == Architecture::SmolLm3),
            attention_bias: attention_bias || architecture == Architecture::Qwen2,
            output_bias: attention_bias && architecture != Architecture::Qwen2,
            mlp_bias: raw.mlp_bias.unwrap_or(false) && matches!(architecture, Architecture::Llama | Architecture::SmolLm3),
            begin: raw.bos_token_id.and_then(|ids| ids.list().first().copied()),
            add_bos: true,
            end: raw.eos_token_id.map(Ids::list).unwrap_or_default(),
        }
        .sensible(JSON, ["num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps"].map(str::to_owned))
    }

    /// Refuses what no reader of one number alone can see. The names are the file's.
    fn sensible(self, file: &'static str, [query_heads, kv_heads, head_dim, theta, epsilon]: [String; 5]) -> Result<Self> {
        if !self.query_heads.is_multiple_of(self.kv_heads) {
            return Err(setting(file, kv_heads, self.kv_heads, format!("a divisor of {query_heads}")));
        }
        if self.query_heads as u64 * self.head_dim as u64 > SIZE_LIMIT {
            return Err(setting(file, query_heads, self.query_heads, format!("at most {SIZE_LIMIT} channels in all heads of {}", self.head_dim)));
        }
        if !self.head_dim.is_multiple_of(2) || !self.rotary.is_multiple_of(2) || self.rotary == 0 || self.rotary > self.head_dim {
            return Err(setting(file, head_dim, format!("{}, of which {} rotate", self.head_dim, self.rotary), "pairs of channels"));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(setting(file, theta, self.rope_theta, "a number above 1"));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon >= 0.0) {
            return Err(setting(file, epsilon, self.norm_epsilon, "a number of 0 or more"));
        }
        let all = [self.frequencies(), self.frequencies_for(usize::MAX), vec![self.attention_factor]];
        if let Some(bad) = all.iter().flatten().find(|number| !number.is_finite()) {
            return Err(setting(file, "rope scaling", format!("a frequency or factor of {bad}"), "finite ones"));
        }
        Ok(self)
    }

    /// Returns how many numbers the model's weights are.
    pub fn parameters(&self) -> u64 {
        let [hidden, intermediate, layers, vocabulary] = [self.hidden, self.intermediate, self.layers, self.vocabulary].map(|size| size as u64);
        let [queries, keys] = [self.query_heads, self.kv_heads].map(|heads| (heads * self.head_dim) as u64);
        let only = |there: bool, count: u64| if there { count } else { 0 };
        let biases = only(self.attention_bias, queries + 2 * keys) + only(self.output_bias, hidden) + only(self.mlp_bias, 2 * intermediate + hidden);
        let norms = 2 * hidden + only(self.head_norm, 2 * self.head_dim as u64);
        let projections = hidden * (2 * queries + 2 * keys) + 3 * hidden * intermediate;
        let embeddings = vocabulary * hidden * if self.tied { 1 } else { 2 };
        embeddings + layers * (projections + biases + norms) + hidden
    }

    /// Returns the radians a position for each pair of channels, `rotary / 2` of them, for contexts
    /// no longer than the original one; only LongRope has others for longer contexts.
    pub fn frequencies(&self) -> Vec<f64> {
        self.frequencies_for(0)
    }

    /// Returns the same for a context of `context` tokens. All tokens of a sequence must be rotated
    /// by the same frequencies, so the longest context that is planned for decides.
    pub fn frequencies_for(&self, context: usize) -> Vec<f64> {
        let rotary = self.rotary as f64;
        let plain = |pair: usize| self.rope_theta.powf(-2.0 * pair as f64 / rotary);
        let all = 0..self.rotary / 2;
        match &self.rope_scaling {
            None => all.map(plain).collect(),
            Some(RopeScaling::Linear { factor }) => all.map(|pair| plain(pair) / factor).collect(),
            &Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_tokens }) => all
                .map(|pair| {
                    let frequency = plain(pair);
                    // How often this pair turns within the context that the model first saw. The
                    // arithmetic is `wgkv::Rope::llama3`'s.
                    let turns = f64::from(original_max_tokens) * frequency / TAU;
                    let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    frequency / factor * (1.0 - kept) + frequency * kept
                })
                .collect(),
            Some(RopeScaling::Divided { factors }) => all.zip(factors).map(|(pair, factor)| plain(pair) / factor).collect(),
            &Some(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_tokens, truncate }) => {
                // The pair, as a fraction of one, that turns this often within the original
                // context.
                let pair_of = |turns: f64| rotary * (f64::from(original_max_tokens) / (turns * TAU)).ln() / (2.0 * self.rope_theta.ln());
                let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                (first, last) = (first.max(0.0), last.min(rotary - 1.0));
                if first == last {
                    last += 0.001;
                }
                all.map(|pair| {
                    let divided = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                    plain(pair) / factor * divided + plain(pair) * (1.0 - divided)
                })
                .collect()
            }
            Some(RopeScaling::LongRope { short, long, original_max_tokens }) => {
                let factors = if context > *original_max_tokens as usize { long } else { short };
                all.zip(factors).map(|(pair, factor)| plain(pair) / factor).collect()
            }
        }
    }

    /// Returns the attention's shape as the cache is asked for it, for contexts no longer than the
    /// original one: pairs in split halves, and no rotation where some layers do without, since the
    /// caller must turn the rows of the others itself.
    pub fn shape(&self) -> wgkv::Shape {
        self.shape_for(0)
    }

    /// Returns the same for a context of `context` tokens, which matters to LongRope only.
    pub fn shape_for(&self, context: usize) -> wgkv::Shape {
        let rope = if self.rope_layers.is_some() { wgkv::Rope::none() } else { wgkv::Rope::none().with_frequencies(self.frequencies_for(context)) };
        let [layers, query_heads, kv_heads, head_dim] = [self.layers, self.query_heads, self.kv_heads, self.head_dim].map(|size| size as u32);
        wgkv::Shape { layers, query_heads, kv_heads, head_dim, rope }
    }
}

/// Reads a file that a folder need not have.
pub(crate) fn optional_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(read_error(path))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Json { path: path.to_owned(), source })
}

fn architecture(value: &serde_json::Value) -> Result<Architecture> {
    let name = value.get("architectures").and_then(|names| names.get(0)).and_then(|name| name.as_str());
    let model_type = value.get("model_type").and_then(|name| name.as_str());
    match name.or(model_type).unwrap_or_default() {
        "LlamaForCausalLM" | "llama" => Ok(Architecture::Llama),
        "MistralForCausalLM" | "mistral" => Ok(Architecture::Mistral),
        "Qwen2ForCausalLM" | "qwen2" => Ok(Architecture::Qwen2),
        "Qwen3ForCausalLM" | "qwen3" => Ok(Architecture::Qwen3),
        "SmolLM3ForCausalLM" | "smollm3" => Ok(Architecture::SmolLm3),
        "Phi3ForCausalLM" | "phi3" => Ok(Architecture::Phi3),
        other => Err(Error::Architecture { found: other.to_owned(), wanted: ARCHITECTURES }),
    }
}

/// By layer whether it rotates. The file's list has a 1 where it does, whatever its name suggests.
fn no_rope(list: Option<Vec<u8>>, interval: Option<usize>, layers: usize) -> Result<Vec<bool>> {
    if let Some(list) = list {
        if list.len() != layers {
            return Err(setting(JSON, "no_rope_layers", format!("{} numbers", list.len()), format!("{layers}, one a layer")));
        }
        return Ok(list.into_iter().map(|rotates| rotates != 0).collect());
    }
    let interval = interval.unwrap_or(NO_ROPE_INTERVAL);
    if interval == 0 {
        return Err(setting(JSON, "no_rope_layer_interval", interval, "a positive number"));
    }
    Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect())
}

/// The stretching of frequencies, and the factor of queries and keys that goes with it.
fn scaling(rope: RawRope, rotary: usize, max_tokens: Option<u64>, model_original: Option<u64>) -> Result<(Option<RopeScaling>, f64)> {
    const ORIGINAL: &str = "rope_scaling.original_max_position_embeddings";
    let factor = || positive(JSON, "rope_scaling.factor", rope.factor);
    let own = rope.original_max_position_embeddings;
    match rope.rope_type.as_deref().or(rope.r#type.as_deref()) {
        None | Some("default") => Ok((None, 1.0)),
        Some("linear") => Ok((Some(RopeScaling::Linear { factor: factor()? }), 1.0)),
        Some("llama3") => {
            let low_freq_factor = positive(JSON, "rope_scaling.low_freq_factor", rope.low_freq_factor)?;
            let high_freq_factor = positive(JSON, "rope_scaling.high_freq_factor", rope.high_freq_factor)?;
            if low_freq_factor >= high_freq_factor {
                return Err(setting(JSON, "rope_scaling.high_freq_factor", high_freq_factor, format!("more than low_freq_factor, {low_freq_factor}")));
            }
            let original_max_tokens = tokens(JSON, ORIGINAL, own)?;
            Ok((Some(RopeScaling::Llama3 { factor: factor()?, low_freq_factor, high_freq_factor, original_max_tokens }), 1.0))
        }
        Some("yarn") => {
            let factor = factor()?;
            let original_max_tokens = tokens(JSON, ORIGINAL, own.or(model_original).or(max_tokens))?;
            let attention_factor = match (rope.attention_factor, rope.mscale, rope.mscale_all_dim) {
                (Some(given), ..) => positive(JSON, "rope_scaling.attention_factor", Some(given))?,
                (None, Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => yarn_scale(factor, scale) / yarn_scale(factor, all),
                _ => yarn_scale(factor, 1.0),
            };
            let beta_fast = positive(JSON, "rope_scaling.beta_fast", rope.beta_fast.or(Some(32.0)))?;
            let beta_slow = positive(JSON, "rope_scaling.beta_slow", rope.beta_slow.or(Some(1.0)))?;
            let truncate = rope.truncate.unwrap_or(true);
            Ok((Some(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_tokens, truncate }), attention_factor))
        }
        // Phi-3's first files call it `su`.
        Some("longrope" | "su") => {
            let original = model_original.or(own);
            let original_max_tokens = tokens(JSON, "original_max_position_embeddings", original.or(max_tokens))?;
            let factor = match (original, max_tokens, rope.factor) {
                (Some(original), Some(max), _) => max as f64 / original as f64,
                (_, _, factor) => factor.unwrap_or(1.0),
            };
            let attention_factor = match rope.attention_factor {
                Some(given) => positive(JSON, "rope_scaling.attention_factor", Some(given))?,
                None => long_scale(factor, original_max_tokens),
            };
            let short = divisors(JSON, "rope_scaling.short_factor", rope.short_factor, rotary / 2)?;
            let long = divisors(JSON, "rope_scaling.long_factor", rope.long_factor, rotary / 2)?;
            Ok((Some(RopeScaling::LongRope { short, long, original_max_tokens }), attention_factor))
        }
        Some(other) => Err(setting(JSON, "rope_scaling.rope_type", other, "llama3, yarn, longrope, linear or default")),
    }
}

impl Config {
    /// Reads and checks the settings of a GGUF file.
    pub(crate) fn from_gguf(file: &Gguf) -> Result<Self> {
        let name = file.text("general.architecture")?.ok_or_else(|| missing(GGUF, "general.architecture"))?;
        let architecture = match name {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            "smollm3" => Architecture::SmolLm3,
            "phi3" => Architecture::Phi3,
            other => return Err(Error::Architecture { found: other.to_owned(), wanted: GGUF_ARCHITECTURES }),
        };
        let key = |end: &str| format!("{name}.{end}");
        let needed = |end: &str, limit| size(GGUF, &key(end), file.unsigned(&key(end))?, limit);
        let optional = |end: &str| file.unsigned(&key(end));
        if let Some(experts) = optional("expert_count")?.filter(|&experts| experts > 0) {
            return Err(setting(GGUF, key("expert_count"), experts, "no experts"));
        }
        let hidden = needed("embedding_length", SIZE_LIMIT)?;
        let query_heads = needed("attention.head_count", SIZE_LIMIT)?;
        let head_dim = match optional("attention.key_length")? {
            None if !hidden.is_multiple_of(query_heads) => {
                let wanted = format!("a multiple of attention.head_count, {query_heads}, where attention.key_length is absent");
                return Err(setting(GGUF, key("embedding_length"), hidden, wanted));
            }
            None => hidden / query_heads,
            given => size(GGUF, &key("attention.key_length"), given, HEAD_LIMIT)?,
        };
        if let Some(values) = optional("attention.value_length")?.filter(|&values| values != head_dim as u64) {
            return Err(setting(GGUF, key("attention.value_length"), values, format!("{head_dim}, as for keys")));
        }
        let layers = needed("block_count", LAYER_LIMIT)?;
        let max_tokens = optional("context_length")?.unwrap_or(0).min(u64::from(u32::MAX)) as usize;
        let rotary = match optional("rope.dimension_count")? {
            None => head_dim,
            given => size(GGUF, &key("rope.dimension_count"), given, head_dim as u64)?,
        };
        // Rows that were permuted for interleaved pairs over the whole head cannot be put back for
        // a part of it.
        if rotary != head_dim && architecture != Architecture::Phi3 {
            return Err(setting(GGUF, key("rope.dimension_count"), rotary, format!("{head_dim}, the whole head")));
        }
        let sliding_window = match optional("attention.sliding_window")?.filter(|&width| width > 0) {
            None => None,
            Some(width) => window(GGUF, &key("attention.sliding_window"), width, max_tokens)?,
        };
        let (rope_scaling, attention_factor) = gguf_scaling(file, &key, rotary, max_tokens)?;
        let vocabulary = file.shape("token_embd.weight").and_then(|shape| shape.first().copied());
        let vocabulary = vocabulary.ok_or_else(|| Error::TensorMissing { name: "token_embd.weight".into(), wanted: vec![0, hidden], files: 1 })?;
        let (begin, end, add_bos) = gguf_ends(file)?;
        let rope_layers = (architecture == Architecture::SmolLm3).then(|| no_rope(None, None, layers)).transpose()?;
        Self {
            architecture,
            hidden,
            intermediate: needed("feed_forward_length", SIZE_LIMIT)?,
            layers,
            query_heads,
            kv_heads: match optional("attention.head_count_kv")? {
                None => query_heads,
                given => size(GGUF, &key("attention.head_count_kv"), given, SIZE_LIMIT)?,
            },
            head_dim,
            vocabulary: size(GGUF, "rows of token_embd.weight", Some(vocabulary as u64), SIZE_LIMIT)?,
            max_tokens,
            norm_epsilon: {
                let key = key("attention.layer_norm_rms_epsilon");
                file.float(&key)?.ok_or_else(|| missing(GGUF, key))?
            },
            rope_theta: file.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            rotary,
            rope_scaling,
            rope_layers: rope_layers.filter(|layers| layers.contains(&false)),
            attention_factor,
            sliding_window,
            head_norm: architecture == Architecture::Qwen3,
            tied: !file.has("output.weight"),
            attention_bias: architecture == Architecture::Qwen2 || file.has("blk.0.attn_q.bias"),
            output_bias: file.has("blk.0.attn_output.bias"),
            mlp_bias: file.has("blk.0.ffn_gate.bias"),
            begin,
            add_bos,
            end,
        }
        .sensible(
            GGUF,
            [
                key("attention.head_count"),
                key("attention.head_count_kv"),
                key("attention.key_length"),
                key("rope.freq_base"),
                key("attention.layer_norm_rms_epsilon"),
            ],
        )
    }
}

/// The stretching of frequencies that a GGUF file asks for by its settings or its tensors.
fn gguf_scaling(file: &Gguf, key: &impl Fn(&str) -> String, rotary: usize, max_tokens: usize) -> Result<(Option<RopeScaling>, f64)> {
    let (kind, factor, attention, original) =
        (key("rope.scaling.type"), key("rope.scaling.factor"), key("rope.scaling.attn_factor"), key("rope.scaling.original_context_length"));
    let given = match file.float(&attention)? {
        None => None,
        factor => Some(positive(GGUF, &attention, factor)?),
    };
    let tensor = |name: &str| -> Result<Option<Vec<f64>>> {
        let Some(shape) = file.shape(name) else { return Ok(None) };
        if shape != [rotary / 2] {
            return Err(Error::TensorShape { name: name.to_owned(), wanted: vec![rotary / 2], found: shape.to_vec() });
        }
        let factors = file.rows(name, 0..1)?.numbers().into_iter().map(f64::from).collect();
        divisors(GGUF, name, Some(factors), rotary / 2).map(Some)
    };
    let original = || tokens(GGUF, &original, file.unsigned(&original)?.or(Some(max_tokens as u64)));
    if let Some(long) = tensor("rope_factors_long.weight")? {
        let short = divisors(GGUF, "rope_factors_short.weight", tensor("rope_factors_short.weight")?, rotary / 2)?;
        let original_max_tokens = original()?;
        let attention_factor = given.unwrap_or_else(|| long_scale(max_tokens as f64 / f64::from(original_max_tokens), original_max_tokens));
        return Ok((Some(RopeScaling::LongRope { short, long, original_max_tokens }), attention_factor));
    }
    if let Some(factors) = tensor("rope_freqs.weight")? {
        return Ok((Some(RopeScaling::Divided { factors }), given.unwrap_or(1.0)));
    }
    match file.text(&kind)? {
        None | Some("none") => Ok((None, given.unwrap_or(1.0))),
        Some("linear") => Ok((Some(RopeScaling::Linear { factor: positive(GGUF, &factor, file.float(&factor)?)? }), given.unwrap_or(1.0))),
        Some("yarn") => {
            let factor = positive(GGUF, &factor, file.float(&factor)?)?;
            let (fast, slow) = (key("rope.scaling.yarn_beta_fast"), key("rope.scaling.yarn_beta_slow"));
            let beta_fast = positive(GGUF, &fast, file.float(&fast)?.or(Some(32.0)))?;
            let beta_slow = positive(GGUF, &slow, file.float(&slow)?.or(Some(1.0)))?;
            let scaling = RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_tokens: original()?, truncate: true };
            // ggml multiplies its own by the file's.
            Ok((Some(scaling), given.unwrap_or(1.0) * yarn_scale(factor, 1.0)))
        }
        Some(other) => Err(setting(GGUF, kind, other, "yarn, linear or none")),
    }
}

/// The token that begins a text, those that end one, and whether the first is put before every
/// text.
fn gguf_ends(file: &Gguf) -> Result<(Option<u32>, Vec<u32>, bool)> {
    let id = |key: &str| match file.unsigned(key)? {
        None => Ok(None),
        Some(id) => u32::try_from(id).map(Some).map_err(|_| setting(GGUF, key, id, "a token's number")),
    };
    let sentencepiece = file.text("tokenizer.ggml.model")? == Some("llama");
    let mut end = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        end.extend(id(key)?.filter(|id| !end.contains(id)));
    }
    let control = file.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    for (token, text) in file.texts("tokenizer.ggml.tokens")?.unwrap_or_default().iter().enumerate() {
        if control.get(token) == Some(&3) && ENDS.contains(&&**text) && !end.contains(&(token as u32)) {
            end.push(token as u32);
        }
    }
    let begin = id("tokenizer.ggml.bos_token_id")?.or(sentencepiece.then_some(1));
    let pre = file.text("tokenizer.ggml.pre")?.unwrap_or_default();
    let add_bos = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(sentencepiece || matches!(pre, "llama3" | "llama-v3" | "llama-bpe" | "tekken"));
    Ok((begin, end, add_bos))
}
