//! `generate`: continue a prompt and say what the cache cost.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use wgkv::learned::Learned;
use wgkv::{Capacity, Sinks};
use wgkv_decoder::{Config, Decoder, KvCache, Model, Session};

use crate::calibrate::collect_means;
use crate::error::{Error, Result};
use crate::options::{CacheOptions, CacheSummary, ChoiceOptions, Layered, ModelOptions, expect_absent, open, open_layers, planned, read_text};

/// Where a prompt comes from: one of the two.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct PromptOptions {
    /// Text to continue.
    #[arg(long)]
    pub prompt: Option<String>,
    /// File with the text to continue, or - for standard input.
    #[arg(long)]
    pub prompt_file: Option<PathBuf>,
}

/// Options of `generate`.
#[derive(Debug, Clone, clap::Args)]
pub struct GenerateOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// The cache.
    #[command(flatten)]
    pub cache: CacheOptions,
    /// The prompt.
    #[command(flatten)]
    pub prompt: PromptOptions,
    /// Tokens to add at most.
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// 0 takes the likeliest token; larger is more varied.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// How tokens are chosen.
    #[command(flatten)]
    pub choice: ChoiceOptions,
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

/// Returns the text of a prompt's file, or of standard input for `-`.
///
/// # Errors
/// [`Error::Read`].
pub fn read_prompt(path: &Path) -> Result<String> {
    if path != Path::new("-") {
        return read_text(path);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|source| Error::Read { path: "standard input".into(), source })?;
    Ok(text)
}

/// Continues the prompt, handing each piece of text to `out` as soon as it is known.
///
/// # Errors
/// Those of the model, the cache and the device; [`Error::Read`] and [`Error::Write`];
/// [`Error::Option`] for a prompt of no tokens.
pub fn generate(options: &GenerateOptions, out: &mut dyn Write) -> Result<GenerateReport> {
    let written = match (&options.prompt.prompt, &options.prompt.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_prompt(path)?,
        (None, None) => String::new(),
    };
    let model = options.model.open()?;
    let (config, text) = (model.config(), model.text());
    let mut prompt: Vec<u32> = config.begin.filter(|_| config.add_bos).into_iter().collect();
    prompt.extend(text.encode(&written)?);
    if prompt.is_empty() {
        return Err(Error::Option { name: "the prompt", wanted: "1 token or more".into(), had: "empty".into() });
    }
    let (cache_options, bits) = options.cache.with_plan(&model)?;
    let protection = cache_options.protection(Sinks::First(4), 128);
    expect_absent(config, "--centre-on-prompt", options.centre_on_prompt)?;
    let calibrated = if options.centre_on_prompt { None } else { cache_options.learned(&model, &options.model.model)? };

    let gpu = options.model.gpu()?;
    let decoder = pollster::block_on(Decoder::load(&gpu, &model))?;
    let learned = if options.centre_on_prompt {
        let window = (prompt.clone(), Vec::new());
        let collector = collect_means(&decoder, &[window], |_| {})?;
        Some(Learned::from(pollster::block_on(collector.finish(&model.hash()?))?))
    } else {
        calibrated
    };
    let allocation = cache_options.allocation(config, learned.as_ref(), bits)?;
    let capacity = Capacity::tokens(1, (prompt.len() + options.tokens) as u32);
    let alignment = options.cache.align.unwrap_or_default();
    let chunk = options.chunk.clamp(1, prompt.len()) as u32;
    let format = cache_options.summary(config, &allocation, protection);
    let job = Job { options, model: &model, decoder: &decoder, prompt: &prompt, chunk, format };
    match config.layers_are_alike() {
        true => job.run(open(&gpu, planned(config, allocation, learned, protection, capacity).alignment(alignment))?, out),
        false => job.run(open_layers(&decoder, &allocation, learned.as_ref(), Layered { protection, alignment, capacity, chunk, keep: 0 })?, out),
    }
}

/// What is continued, and by what.
struct Job<'a> {
    options: &'a GenerateOptions,
    model: &'a Model,
    decoder: &'a Decoder,
    prompt: &'a [u32],
    chunk: u32,
    format: CacheSummary,
}

impl Job<'_> {
    fn run<C: KvCache>(self, cache: C, out: &mut dyn Write) -> Result<GenerateReport> {
        let Self { options, model, decoder, prompt, chunk, format } = self;
        let (config, text) = (model.config(), model.text());
        let mut session = pollster::block_on(Session::new(decoder, cache, chunk, options.choice.sampling(options.temperature)))?;

        let started = Instant::now();
        session.prompt(prompt)?;
        let mut next = pollster::block_on(session.next(options.tokens > 1))?;
        let prefill = started.elapsed().as_secs_f64();

        let mut stream = text.stream();
        let mut tokens = Vec::new();
        let started = Instant::now();
        while tokens.len() < options.tokens {
            if config.end.contains(&next) {
                // The step that takes the token is under way where another token could have followed.
                if tokens.len() + 1 < options.tokens {
                    session.take_back()?;
                }
                break;
            }
            tokens.push(next);
            if let Some(piece) = stream.step(next)? {
                out.write_all(piece.as_bytes()).and_then(|()| out.flush()).map_err(Error::Write)?;
            }
            if tokens.len() < options.tokens {
                next = pollster::block_on(session.next(tokens.len() + 1 < options.tokens))?;
            }
        }
        let decode = started.elapsed().as_secs_f64();

        let live = prompt.len() + tokens.len().saturating_sub(1);
        let cache = session.cache();
        let report = GenerateReport {
            format,
            prompt_tokens: prompt.len(),
            text: text.decode(&tokens)?,
            prefill_tokens_per_second: prompt.len() as f64 / prefill,
            decode_tokens_per_second: tokens.len().saturating_sub(1) as f64 / decode,
            cache_bytes: cache.bytes_used(),
            cache_bytes_allocated: cache.bytes(),
            f16_bytes: f16_bytes(config, live),
            bits_per_element: cache.bits_per_element(live as u64),
            adapter: decoder.gpu().adapter_name().to_owned(),
            tokens,
        };
        session.destroy();
        Ok(report)
    }
}

/// Bytes of an uncompressed cache.
pub fn f16_bytes(config: &Config, tokens: usize) -> u64 {
    (2 * 2 * config.layers * config.kv_heads * config.head_dim * tokens) as u64
}
