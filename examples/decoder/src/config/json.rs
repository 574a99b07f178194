//! Settings from `config.json` and the files beside it.

use std::path::Path;

use serde::{Deserialize, Deserializer};

use super::*;
use crate::model::read_error;

/// Architectures that are run, as `config.json` names them.
const ARCHITECTURES: &str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SmolLM3ForCausalLM, Phi3ForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, Glm4ForCausalLM, GptOssForCausalLM";

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
    // Gemma 3's newer files spell it with an underscore before.
    #[serde(alias = "_sliding_window_pattern")]
    sliding_window_pattern: Option<u64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<u64>,
    layer_types: Option<Vec<String>>,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    query_pre_attn_scalar: Option<f64>,
    // Null asks for none, which is not what a file asks for that says nothing.
    #[serde(default, deserialize_with = "given")]
    attn_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "given")]
    final_logit_softcapping: Option<Option<f64>>,
    rope_local_base_freq: Option<f64>,
    use_bidirectional_attention: Option<bool>,
    num_local_experts: Option<u64>,
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
    full_attention: Option<Box<RawRope>>,
    sliding_attention: Option<Box<RawRope>>,
}

/// A value that is there, be it null.
fn given<'a, D: Deserializer<'a>, T: Deserialize<'a>>(value: D) -> std::result::Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
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
        let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
        let default_head_dim = match architecture {
            Architecture::Gemma2 | Architecture::Gemma3 => Some(256),
            Architecture::Glm4 => Some(128),
            Architecture::GptOss => Some(64),
            _ if hidden.is_multiple_of(query_heads) => Some((hidden / query_heads) as u64),
            _ => None,
        };
        let Some(head_dim) = raw.head_dim.or(default_head_dim) else {
            return Err(setting(JSON, "hidden_size", hidden, "a multiple of num_attention_heads where head_dim is absent"));
        };
        let head_dim = size(JSON, "head_dim", Some(head_dim), HEAD_LIMIT)?;
        let (activation, wanted) = if gemma { (Activation::GeluTanh, "gelu_pytorch_tanh") } else { (Activation::Silu, "silu") };
        // Gemma's files may say both, and the first is what counts.
        let (name, found) = match raw.hidden_activation.filter(|_| gemma) {
            Some(found) => ("hidden_activation", Some(found)),
            None => ("hidden_act", raw.hidden_act),
        };
        if let Some(found) = found.filter(|found| found != wanted) {
            return Err(setting(JSON, name, found, wanted));
        }
        if let Some(experts) = raw.num_local_experts.filter(|&experts| experts > 0 && architecture == Architecture::GptOss) {
            return Err(setting(JSON, "num_local_experts", experts, "0, a dense model"));
        }
        if raw.use_bidirectional_attention == Some(true) {
            return Err(setting(JSON, "use_bidirectional_attention", true, "false"));
        }
        let layers = size(JSON, "num_hidden_layers", raw.num_hidden_layers, LAYER_LIMIT)?;
        let max_tokens = raw.max_position_embeddings.unwrap_or(0).min(u64::from(u32::MAX)) as usize;
        let sliding_layers = match &raw.layer_types {
            Some(types) => layer_types(types, layers)?,
            None => match architecture {
                // They apply what is given; most others only if told to, from some layer on.
                Architecture::Mistral | Architecture::Phi3 => vec![true; layers],
                Architecture::Gemma2 | Architecture::GptOss => periodic(SLIDING_PERIOD, layers),
                Architecture::Gemma3 => {
                    periodic(size(JSON, "sliding_window_pattern", raw.sliding_window_pattern.or(Some(GEMMA3_PERIOD as u64)), LAYER_LIMIT)?, layers)
                }
                _ => (0..layers as u64).map(|layer| raw.use_sliding_window == Some(true) && layer >= raw.max_window_layers.unwrap_or(0)).collect(),
            },
        };
        let mut rope = raw.rope_scaling.or(raw.rope_parameters).unwrap_or_default();
        let mut sliding_theta = (architecture == Architecture::Gemma3).then(|| raw.rope_local_base_freq.unwrap_or(GEMMA3_SLIDING_THETA));
        if let Some(own) = rope.sliding_attention.take() {
            let kind = own.rope_type.as_deref().unwrap_or("default");
            if kind != "default" {
                return Err(setting(JSON, "rope_parameters.sliding_attention.rope_type", kind, "default"));
            }
            sliding_theta = Some(own.rope_theta.ok_or_else(|| missing(JSON, "rope_parameters.sliding_attention.rope_theta"))?);
        }
        if let Some(full) = rope.full_attention.take() {
            rope = *full;
        }
        let sliding = match raw.sliding_window {
            None if sliding_layers.contains(&true) && (gemma || architecture == Architecture::GptOss) => return Err(missing(JSON, "sliding_window")),
            None => Sliding::default(),
            Some(width) if architecture == Architecture::Llama => return Err(setting(JSON, "sliding_window", width, "null")),
            Some(width) => Sliding::new(JSON, "sliding_window", width, sliding_layers, if sliding_theta.is_some() { 0 } else { max_tokens })?,
        };
        let rope_layers = match architecture {
            Architecture::SmolLm3 => Some(no_rope(raw.no_rope_layers, raw.no_rope_layer_interval, layers)?),
            _ => None,
        };
        let partial = rope.partial_rotary_factor.or(raw.partial_rotary_factor).unwrap_or(if architecture == Architecture::Glm4 { 0.5 } else { 1.0 });
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(setting(JSON, "partial_rotary_factor", partial, "above 0, 1 at most"));
        }
        let rotary = (head_dim as f64 * partial) as usize;
        let rope_theta = rope.rope_theta.or(raw.rope_theta).unwrap_or(match architecture {
            Architecture::Gemma3 => 1_000_000.0,
            Architecture::GptOss => 150_000.0,
            _ => 10_000.0,
        });
        let (rope_scaling, attention_factor) = scaling(rope, rotary, raw.max_position_embeddings, raw.original_max_position_embeddings)?;
        let attention_bias =
            raw.attention_bias.unwrap_or(architecture == Architecture::GptOss) && !matches!(architecture, Architecture::Mistral | Architecture::Phi3);
        let caps = match architecture {
            Architecture::Gemma2 => GEMMA2_CAPS.map(Some),
            _ => [None; 2],
        };
        let [score_cap, logit_cap] = match gemma {
            true => [raw.attn_logit_softcapping.unwrap_or(caps[0]), raw.final_logit_softcapping.unwrap_or(caps[1])],
            false => [None; 2],
        };
        let scaled_by = match gemma {
            true => positive(JSON, "query_pre_attn_scalar", raw.query_pre_attn_scalar)?,
            false => head_dim as f64,
        };
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
            norm_epsilon: raw.rms_norm_eps.unwrap_or(match architecture {
                Architecture::Phi3 | Architecture::GptOss => 1e-5,
                Architecture::Glm4 => 1.5625e-7,
                _ => 1e-6,
            }),
            activation,
            branch_norms: gemma || architecture == Architecture::Glm4,
            embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
            rope_theta,
            sliding_theta: sliding_theta.filter(|_| sliding.window.is_some()),
            rotary,
            rope_scaling,
            rope_layers: rope_layers.filter(|layers| layers.contains(&false)),
            attention_factor,
            sliding_window: sliding.window,
            sliding_layers: sliding.layers,
            score_scale: scaled_by.powf(-0.5),
            score_cap,
            logit_cap,
            sinks: architecture == Architecture::GptOss,
            head_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
            // These say so only where it is not.
            tied: raw.tie_word_embeddings.unwrap_or(gemma || architecture == Architecture::SmolLm3),
            attention_bias: attention_bias || architecture == Architecture::Qwen2,
            output_bias: attention_bias && !matches!(architecture, Architecture::Qwen2 | Architecture::Glm4),
            mlp_bias: raw.mlp_bias.unwrap_or(false) && matches!(architecture, Architecture::Llama | Architecture::SmolLm3),
            begin: raw.bos_token_id.and_then(|ids| ids.list().first().copied()),
            add_bos: true,
            end: raw.eos_token_id.map(Ids::list).unwrap_or_default(),
        }
        .sensible(JSON, ["num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps"].map(str::to_owned))
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
        "Gemma2ForCausalLM" | "gemma2" => Ok(Architecture::Gemma2),
        "Gemma3ForCausalLM" | "gemma3_text" => Ok(Architecture::Gemma3),
        "Glm4ForCausalLM" | "glm4" => Ok(Architecture::Glm4),
        "GptOssForCausalLM" | "gpt_oss" => Ok(Architecture::GptOss),
        other => Err(Error::Architecture { found: other.to_owned(), wanted: ARCHITECTURES }),
    }
}

/// By layer whether it slides, as the file lists it.
fn layer_types(types: &[String], layers: usize) -> Result<Vec<bool>> {
    if types.len() != layers {
        return Err(setting(JSON, "layer_types", format!("{} names", types.len()), format!("{layers}, one a layer")));
    }
    let slides = |name: &String| match name.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(setting(JSON, "layer_types", other, "full_attention or sliding_attention")),
    };
    types.iter().map(slides).collect()
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
