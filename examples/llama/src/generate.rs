//! `generate`: continue a prompt and say what the cache cost.

use std::io::Write;
use std::time::Instant;

use serde::Serialize;
use wgkv::learned::Learned;
use wgkv::{Capacity, Sinks};

use crate::bridge::Bridge;
use crate::calibrate::collect_means;
use crate::compressed::CompressedAttention;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::options::{CacheOptions, CacheSummary, ModelOptions, open, planned};
use crate::sampler::Sampler;
use crate::text::Text;
use crate::weights::model_hash;

/// Options of `generate`.
#[derive(Debug, Clone, clap::Args)]
pub struct GenerateOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// The cache.
    #[command(flatten)]
    pub cache: CacheOptions,
    /// Text to continue.
    #[arg(long)]
    pub prompt: String,
    /// Tokens to add at most.
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// 0 takes the likeliest token; larger is more varied.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Share of the probability to sample from.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Prompt tokens that are processed at once.
    #[arg(long, default_value_t = 512)]
    pub chunk: usize,
    /// For centred: estimate means and weights from the prompt, which is then read twice.
    #[arg(long, conflicts_with = "calibration")]
    pub centre_on_prompt: bool,
    /// Print the statistics as one JSON object, on the last line.
    #[arg(long)]
    pub json: bool,
}

/// What a generation took.
#[derive(Debug, Clone, Serialize)]
pub struct GenerateReport {
    /// The cache's format.
    #[serde(flatten)]
    pub format: CacheSummary,
    /// Prompt tokens, the opening token included.
    pub prompt_tokens: usize,
    /// Generated tokens.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Prompt tokens a second.
    pub prefill_tokens_per_second: f64,
    /// Generated tokens a second, the first (which the prefill yields) excluded.
    pub decode_tokens_per_second: f64,
    /// Bytes that the cache holds for the tokens at the end.
    pub cache_bytes: u64,
    /// Bytes that were allocated for it.
    pub cache_bytes_allocated: u64,
    /// Bytes that the same tokens take in f16.
    pub f16_bytes: u64,
    /// Stored bits for each key or value element.
    pub bits_per_element: f64,
    /// The GPU.
    pub adapter: String,
}

/// Continues the prompt, handing each piece of text to `out` as soon as it is known.
pub fn generate(options: &GenerateOptions, out: &mut dyn Write) -> Result<GenerateReport> {
    let bridge = Bridge::open(options.model.adapter.as_deref())?;
    let text = Text::open(&options.model.model)?;
    let model = Model::open(&options.model.model, &bridge)?;
    let config = model.config();

    let mut prompt: Vec<u32> = config.begin.into_iter().collect();
    prompt.extend(text.encode(&options.prompt)?);
    let (cache_options, bits) = options.cache.with_plan(config, &options.model.model)?;
    let protection = cache_options.protection(Sinks::First(4), 128);
    let learned = if options.centre_on_prompt {
        let window = (prompt.clone(), Vec::new());
        let collector = collect_means(&model, &bridge, &[window], |_| {})?;
        Some(Learned::from(pollster::block_on(collector.finish(&model_hash(&options.model.model)?))?))
    } else {
        cache_options.learned(config, &options.model.model)?
    };
    let allocation = cache_options.allocation(config, learned.as_ref(), bits)?;
    let capacity = Capacity::tokens(1, (prompt.len() + options.tokens) as u32);
    let builder = planned(config, allocation.clone(), learned, protection, capacity).alignment(options.cache.align.unwrap_or_default());
    let mut cache = open(&bridge, builder)?;
    let mut attention = CompressedAttention::new(&bridge, &mut cache)?;
    let mut sampler = Sampler::new(options.temperature, options.top_p, options.seed);
    let mut stream = text.stream();
    let write_error = |source| Error::Read { path: "standard output".into(), source };

    let started = Instant::now();
    let mut logits = Vec::new();
    for chunk in prompt.chunks(options.chunk.max(1)) {
        logits = model.next(chunk, &mut attention)?;
    }
    let prefill = started.elapsed().as_secs_f64();

    let mut tokens = Vec::new();
    let started = Instant::now();
    while tokens.len() < options.tokens && !logits.is_empty() {
        let token = sampler.pick(&logits);
        if config.end.contains(&token) {
            break;
        }
        tokens.push(token);
        if let Some(piece) = stream(token)? {
            out.write_all(piece.as_bytes()).map_err(write_error)?;
            out.flush().map_err(write_error)?;
        }
        if tokens.len() < options.tokens {
            logits = model.next(&[token], &mut attention)?;
        }
    }
    let decode = started.elapsed().as_secs_f64();

    let live = prompt.len() + tokens.len().saturating_sub(1);
    let report = GenerateReport {
        format: cache_options.summary(config, &allocation, protection),
        prompt_tokens: prompt.len(),
        text: text.decode(&tokens)?,
        prefill_tokens_per_second: prompt.len() as f64 / prefill,
        decode_tokens_per_second: tokens.len().saturating_sub(1) as f64 / decode,
        cache_bytes: attention.cache().bytes_used(),
        cache_bytes_allocated: attention.cache().bytes(),
        f16_bytes: f16_bytes(config, live),
        bits_per_element: attention.cache().plan().bits_per_element(live as u64),
        adapter: bridge.adapter().to_owned(),
        tokens,
    };
    attention.end()?;
    Ok(report)
}

/// Bytes of an uncompressed cache.
fn f16_bytes(config: &Config, tokens: usize) -> u64 {
    (2 * 2 * config.layers * config.kv_heads * config.head_dim * tokens) as u64
}
