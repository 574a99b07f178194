//! The numbers of a LLaMA-family model, from `config.json` or from a GGUF file's header, checked
//! once.

mod gguf;
mod json;

use std::f64::consts::TAU;
use std::ops::RangeInclusive;

use crate::error::{Error, Result};

pub(crate) use json::optional_json;

/// What errors call the two kinds of file.
const JSON: &str = "config.json";
const GGUF: &str = "GGUF";
/// A size beyond this is taken for damage; products of two of them fit into 64 bits.
const SIZE_LIMIT: u64 = 1 << 28;
/// Layers beyond this are taken for damage, as the cache does.
const LAYER_LIMIT: u64 = 4096;
/// Channels of a head beyond this are taken for damage.
const HEAD_LIMIT: u64 = 1 << 16;
/// More weights than this are taken for damage, so that their bits can be counted in 64 bits.
const WEIGHT_LIMIT: u64 = 1 << 48;
/// Caps and scales outside of this are taken for damage: in f32 they, or what kernels make of them,
/// would be zero or infinite.
const FACTORS: RangeInclusive<f64> = 1e-30..=1e30;
/// SmolLM3 leaves one layer in this many without rotation, unless the file says otherwise.
/// GGUF never says.
const NO_ROPE_INTERVAL: usize = 4;
/// Of this many layers Gemma 2, and gpt-oss, let the last see everything and the others slide.
const SLIDING_PERIOD: usize = 2;
/// The same of Gemma 3, unless the file says otherwise.
const GEMMA3_PERIOD: usize = 6;
/// Rotary base of the layers of Gemma 3 that slide, unless the file says otherwise.
const GEMMA3_SLIDING_THETA: f64 = 10_000.0;
/// Caps of Gemma 2 for the scores of attention and of the vocabulary, unless the file says
/// otherwise.
const GEMMA2_CAPS: [f64; 2] = [50.0, 30.0];
/// Window of Gemma 2, unless a GGUF file says otherwise.
const GEMMA2_WINDOW: u64 = 4096;
/// Texts of tokens that end an answer. A GGUF file names one such token or two, and its model may
/// have been trained to end with another.
const ENDS: [&str; 8] = ["<|eot_id|>", "<end_of_turn>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "</s>"];

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
    /// With norms after attention and MLP, GELU, caps on scores, and windows on alternate layers.
    Gemma2,
    /// The text model of Gemma 3: as Gemma 2 without caps, with a norm on each head's query and key
    /// and two rotary bases.
    Gemma3,
    /// With norms after attention and MLP, biases on queries, keys and values, and rotation of a
    /// part of a head. Its fused tensors are taken apart in reading.
    Glm4,
    /// gpt-oss's attention with a dense MLP: biases, a sink's logit by query head, and windows on
    /// alternate layers. The released models have experts, which are refused.
    GptOss,
}

/// What the MLP's gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU by its approximation with tanh.
    GeluTanh,
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
    /// What a branch goes through at its gate.
    pub activation: Activation,
    /// Whether the outputs of attention and MLP have norms of their own before they are added to
    /// the residual stream.
    pub branch_norms: bool,
    /// What a token's embedding is multiplied by, 1 for most models.
    pub embedding_scale: f64,
    /// Rotary base.
    pub rope_theta: f64,
    /// Rotary base of the layers that slide, whose frequencies are then not stretched; none where
    /// all layers rotate alike.
    pub sliding_theta: Option<f64>,
    /// Channels of a head that are rotated, from the first on; all of them but in GLM-4 and some Phi models.
    pub rotary: usize,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: Option<RopeScaling>,
    /// By layer whether it rotates queries and keys; none where all do.
    pub rope_layers: Option<Vec<bool>>,
    /// What rotated queries and rotated keys are each multiplied by, 1 for most models: YaRN's and
    /// LongRope's remedy for longer contexts. Where `rotary` is `head_dim`, attention scores are
    /// multiplied by its square; where it is less, that holds for the rotated channels only.
    pub attention_factor: f64,
    /// Newest tokens that a query sees in the layers that slide, itself included; none where it
    /// sees all in every layer.
    pub sliding_window: Option<u32>,
    /// By layer whether it slides; none where all do, or none does.
    pub sliding_layers: Option<Vec<bool>>,
    /// What products of queries and keys are multiplied by, `head_dim^(-1/2)` for most models.
    pub score_scale: f64,
    /// Attention's scores, scaled, go through `cap * tanh(score / cap)` with this cap.
    pub score_cap: Option<f64>,
    /// The same for the scores of the vocabulary.
    pub logit_cap: Option<f64>,
    /// Whether each query head has a logit of its own that takes part in the softmax and brings no
    /// value.
    pub sinks: bool,
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

/// Layers of a model that ask the same of a cache.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerGroup {
    /// Their numbers in the model, in order.
    pub layers: Vec<u32>,
    /// Their attention's shape: pairs in split halves.
    pub shape: wgkv::Shape,
    /// Newest tokens that a query sees, itself included; none where it sees all.
    pub sliding_window: Option<u32>,
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

/// A window, and by layer whether it holds, unless it holds in all.
#[derive(Default)]
struct Sliding {
    window: Option<u32>,
    layers: Option<Vec<bool>>,
}

impl Sliding {
    /// A window in these layers. One that hides nothing within the context is none.
    fn new(file: &'static str, name: &str, width: u64, layers: Vec<bool>, max_tokens: usize) -> Result<Self> {
        let window = tokens(file, name, Some(width))?;
        let mixed = layers.contains(&false);
        let hides = max_tokens == 0 || (window as usize) < max_tokens;
        Ok(if hides && layers.contains(&true) { Self { window: Some(window), layers: mixed.then_some(layers) } } else { Self::default() })
    }
}

/// By layer whether it slides: all but the last of every `period`.
fn periodic(period: usize, layers: usize) -> Vec<bool> {
    (1..=layers).map(|layer| !layer.is_multiple_of(period)).collect()
}

impl Config {
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
        if !((self.norm_epsilon as f32).is_finite() && self.norm_epsilon >= 0.0) {
            return Err(setting(file, epsilon, self.norm_epsilon, "a number of 0 or more, finite in f32"));
        }
        if let Some(theta) = self.sliding_theta.filter(|theta| !(theta.is_finite() && *theta > 0.0)) {
            return Err(setting(file, "rotary base of sliding layers", theta, "a positive number"));
        }
        for (name, number) in [
            ("cap of attention's scores", self.score_cap),
            ("cap of logits", self.logit_cap),
            ("scale of attention's scores", Some(self.score_scale)),
            ("factor of queries", Some(self.query_factor())),
        ] {
            if let Some(number) = number.filter(|number| !FACTORS.contains(number)) {
                return Err(setting(file, name, format!("{number:e}"), format!("{:e} to {:e}", FACTORS.start(), FACTORS.end())));
            }
        }
        let weights = self.weights();
        if weights > u128::from(WEIGHT_LIMIT) {
            return Err(setting(file, "number of weights", weights, format!("at most {WEIGHT_LIMIT}")));
        }
        let all = [self.frequencies(), self.frequencies_for(usize::MAX), self.sliding_frequencies(), vec![self.attention_factor]];
        if let Some(bad) = all.iter().flatten().find(|number| !number.is_finite()) {
            return Err(setting(file, "rope scaling", format!("a frequency or factor of {bad}"), "finite ones"));
        }
        Ok(self)
    }

    /// Returns how many numbers the model's weights are; the most that u64 has where they are more,
    /// which no file that is read has.
    pub fn parameters(&self) -> u64 {
        u64::try_from(self.weights()).unwrap_or(u64::MAX)
    }

    /// The same, before it is known that their number is within reason.
    fn weights(&self) -> u128 {
        let [hidden, intermediate, layers, vocabulary] = [self.hidden, self.intermediate, self.layers, self.vocabulary].map(|size| size as u128);
        let [query_heads, kv_heads, head_dim] = [self.query_heads, self.kv_heads, self.head_dim].map(|size| size as u128);
        let (queries, keys) = (query_heads * head_dim, kv_heads * head_dim);
        let only = |there: bool, count: u128| if there { count } else { 0 };
        let biases = only(self.attention_bias, queries + 2 * keys) + only(self.output_bias, hidden) + only(self.mlp_bias, 2 * intermediate + hidden);
        let norms = 2 * hidden + only(self.branch_norms, 2 * hidden) + only(self.head_norm, 2 * head_dim);
        let sinks = only(self.sinks, query_heads);
        let projections = hidden * (2 * queries + 2 * keys) + 3 * hidden * intermediate;
        let embeddings = vocabulary * hidden * if self.tied { 1 } else { 2 };
        embeddings + layers * (projections + biases + norms + sinks) + hidden
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

    /// Returns the radians a position for each pair of channels in the layers that slide, where
    /// these have a rotary base of their own.
    fn sliding_frequencies(&self) -> Vec<f64> {
        let Some(theta) = self.sliding_theta else { return Vec::new() };
        (0..self.rotary / 2).map(|pair| theta.powf(-2.0 * pair as f64 / self.rotary as f64)).collect()
    }

    /// Returns what queries are multiplied by on their way into the cache, which divides scores by
    /// the root of `head_dim`.
    pub(crate) fn query_factor(&self) -> f64 {
        self.attention_factor.powi(2) * self.score_scale * (self.head_dim as f64).sqrt()
    }

    /// Returns the newest tokens that a query of a layer sees, itself included; none where it sees
    /// all.
    pub fn layer_window(&self, layer: usize) -> Option<u32> {
        self.sliding_window.filter(|_| self.sliding_layers.as_ref().is_none_or(|layers| layers[layer]))
    }

    /// Returns the radians a position for each pair of channels that a layer rotates, in a context
    /// of `context` tokens; nothing where it does not rotate.
    pub fn layer_frequencies(&self, layer: usize, context: usize) -> Vec<f64> {
        match self.sliding_theta {
            _ if self.rope_layers.as_ref().is_some_and(|layers| !layers[layer]) => Vec::new(),
            Some(_) if self.layer_window(layer).is_some() => self.sliding_frequencies(),
            _ => self.frequencies_for(context),
        }
    }

    /// Returns the layers by what they ask of a cache, in the order of the first of each kind: one
    /// group for most models. Contexts have at most `context` tokens, which matters to LongRope
    /// only.
    pub fn groups_for(&self, context: usize) -> Vec<LayerGroup> {
        let [query_heads, kv_heads, head_dim] = [self.query_heads, self.kv_heads, self.head_dim].map(|size| size as u32);
        let mut groups: Vec<LayerGroup> = Vec::new();
        for layer in 0..self.layers {
            let (frequencies, window) = (self.layer_frequencies(layer, context), self.layer_window(layer));
            match groups.iter_mut().find(|group| group.sliding_window == window && group.shape.rope.frequencies() == frequencies) {
                Some(group) => {
                    group.layers.push(layer as u32);
                    group.shape.layers += 1;
                }
                None => {
                    let rope = wgkv::Rope::none().with_frequencies(frequencies);
                    groups.push(LayerGroup {
                        layers: vec![layer as u32],
                        shape: wgkv::Shape { layers: 1, query_heads, kv_heads, head_dim, rope },
                        sliding_window: window,
                    });
                }
            }
        }
        groups
    }

    /// Returns whether one [`wgkv::Cache`] serves all layers by its shape and window alone. Other
    /// models ask for one of [groups](Config::groups_for).
    pub fn layers_are_alike(&self) -> bool {
        self.sliding_layers.is_none() && self.score_cap.is_none() && !self.sinks
    }

    /// Returns whether layers rotate differently, or some do not at all.
    pub fn rotates_by_layer(&self) -> bool {
        self.rope_layers.is_some() || (self.sliding_theta.is_some() && self.sliding_layers.is_some())
    }

    /// Returns the attention's shape as one cache of all layers is asked for it, for contexts no
    /// longer than the original one: pairs in split halves, and no rotation where layers
    /// [differ](Config::rotates_by_layer) in it, since the decoder then turns their rows itself.
    /// [`Config::groups_for`] has the shapes for a cache that does.
    pub fn shape(&self) -> wgkv::Shape {
        self.shape_for(0)
    }

    /// Returns the same for a context of `context` tokens, which matters to LongRope only.
    pub fn shape_for(&self, context: usize) -> wgkv::Shape {
        let rope = match self.rotates_by_layer() {
            true => wgkv::Rope::none(),
            false => wgkv::Rope::none().with_frequencies(self.layer_frequencies(0, context)),
        };
        let [layers, query_heads, kv_heads, head_dim] = [self.layers, self.query_heads, self.kv_heads, self.head_dim].map(|size| size as u32);
        wgkv::Shape { layers, query_heads, kv_heads, head_dim, rope }
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
