//! Settings from a GGUF file's header.

use super::*;
use crate::gguf::Gguf;

/// Architectures that are run, as GGUF names them.
const GGUF_ARCHITECTURES: &str = "llama, qwen2, qwen3, smollm3, phi3, gemma2, gemma3, glm4";

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
            "gemma2" => Architecture::Gemma2,
            "gemma3" => Architecture::Gemma3,
            "glm4" => Architecture::Glm4,
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
        if rotary != head_dim && !matches!(architecture, Architecture::Phi3 | Architecture::Glm4) {
            return Err(setting(GGUF, key("rope.dimension_count"), rotary, format!("{head_dim}, the whole head")));
        }
        // Of multimodal models, whose text alone would be rotated otherwise.
        if architecture == Architecture::Glm4 && file.integers(&key("rope.dimension_sections"))?.is_some() {
            return Err(setting(GGUF, key("rope.dimension_sections"), "given", "none"));
        }
        let period = match architecture {
            Architecture::Gemma2 => Some(SLIDING_PERIOD as u64),
            Architecture::Gemma3 => optional("attention.sliding_window_pattern")?.or(Some(GEMMA3_PERIOD as u64)),
            _ => None,
        };
        let sliding_layers = match period {
            None => vec![true; layers],
            given => periodic(size(GGUF, &key("attention.sliding_window_pattern"), given, LAYER_LIMIT)?, layers),
        };
        let sliding_theta = match architecture {
            Architecture::Gemma3 => Some(file.float(&key("rope.freq_base_swa"))?.unwrap_or(GEMMA3_SLIDING_THETA)),
            _ => None,
        };
        let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
        let width = optional("attention.sliding_window")?.or((architecture == Architecture::Gemma2).then_some(GEMMA2_WINDOW));
        let sliding = match width.filter(|&width| width > 0) {
            None => Sliding::default(),
            Some(width) => {
                let max_tokens = if sliding_theta.is_some() { 0 } else { max_tokens };
                Sliding::new(GGUF, &key("attention.sliding_window"), width, sliding_layers, max_tokens)?
            }
        };
        let caps = if architecture == Architecture::Gemma2 { GEMMA2_CAPS.map(Some) } else { [None; 2] };
        let cap = |end: &str, default: Option<f64>| -> Result<Option<f64>> {
            // A file without a cap may say 0.
            if gemma { Ok(file.float(&key(end))?.or(default).filter(|cap| *cap != 0.0)) } else { Ok(None) }
        };
        let (score_cap, logit_cap) = (cap("attn_logit_softcapping", caps[0])?, cap("final_logit_softcapping", caps[1])?);
        // A GGUF file does not say what scores are multiplied by. The largest models of both
        // families have another number than the head's width, and are known by their layers.
        let scaled_by = match (architecture, layers) {
            (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62) => hidden / query_heads,
            _ => head_dim,
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
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            branch_norms: gemma || architecture == Architecture::Glm4,
            embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
            rope_theta: file.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            sliding_theta: sliding_theta.filter(|_| sliding.window.is_some()),
            rotary,
            rope_scaling,
            rope_layers: rope_layers.filter(|layers| layers.contains(&false)),
            attention_factor,
            sliding_window: sliding.window,
            sliding_layers: sliding.layers,
            score_scale: (scaled_by as f64).powf(-0.5),
            score_cap,
            logit_cap,
            sinks: false,
            head_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
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
