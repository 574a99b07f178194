//! `decode-memory`: what decoding with a cache takes, of a model's shape and any batch, in memory and in time.
//!
//! Weights are random f16 numbers of the model's shapes, multiplied by burn, so that their memory and their reading are real.
//! Nothing is prefilled: the context is random keys and values that are appended to every layer, which takes the memory and
//! gives attention the work that a prompt would. Of rotate-kv it takes the natural order of channels: which channels share a
//! scale changes neither memory nor speed. Centred's means are 1, so that there is a position term.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Tensor, activation};
use serde::Serialize;
use wgkv::aligned::Alignment;
use wgkv::bits::BitPlan;
use wgkv::{Capacity, Codec, Format, Protection, Sinks};

use crate::attention::Attention;
use crate::bridge::Bridge;
use crate::capacity::{device_bytes, stand_in, try_cache, unlearned};
use crate::compressed::CompressedAttention;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::options::{CacheOptions, CacheSummary, planned, shape};

/// Rows of random keys that are appended at once.
const ROWS: u32 = 8192;
/// Standard deviation of the weights: what models are initialised with.
const SPREAD: f64 = 0.02;

/// Options of `decode-memory`.
#[derive(Debug, Clone, clap::Args)]
pub struct DecodeMemoryOptions {
    /// The model's config.json; no weights are read.
    #[arg(long)]
    pub config: PathBuf,
    /// The cache. A calibration is not read.
    #[command(flatten)]
    pub cache: CacheOptions,
    /// Sequences that are decoded at once.
    #[arg(long, default_value_t = 1)]
    pub batch: u32,
    /// Sequences of the f16 control, which runs first; as many without it, 0 for no control.
    #[arg(long)]
    pub control_batch: Option<u32>,
    /// Tokens of every sequence at the end.
    #[arg(long)]
    pub context: u32,
    /// Tokens to decode of every sequence, after one that warms up.
    #[arg(long, default_value_t = 16)]
    pub steps: u32,
    /// Leave the dense layers out: their weights are allocated but not multiplied. So it is on GPUs without f16 in shaders.
    #[arg(long)]
    pub attention_only: bool,
    /// Part of the GPU's name; the fastest one without it.
    #[arg(long)]
    pub adapter: Option<String>,
    /// Print one JSON object, on the last line, instead of text.
    #[arg(long)]
    pub json: bool,
}

/// What decoding took.
#[derive(Debug, Clone, Serialize)]
pub struct DecodeMemoryReport {
    /// Numbers in the model's weights.
    pub parameters: u64,
    /// Bytes of the weights, in f16.
    pub weight_bytes: u64,
    /// What the weights were: random numbers that were multiplied, or memory only.
    pub weights: &'static str,
    /// Bytes on the device with the weights and nothing else, as the allocator says.
    pub device_bytes_weights: Option<u64>,
    /// Tokens of every sequence at the end.
    pub context: u32,
    /// Tokens decoded of every sequence.
    pub steps: u32,
    /// The f16 control, if there was one, and the codec.
    pub runs: Vec<Run>,
    /// The GPU.
    pub adapter: String,
}

/// One cache's run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The cache's format.
    #[serde(flatten)]
    pub format: CacheSummary,
    /// Sequences.
    pub batch: u32,
    /// Why it could not run; nothing else is known then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Tokens a second, over all sequences.
    pub tokens_per_second: f64,
    /// Bytes of the cache.
    pub cache_bytes: u64,
    /// Bytes that attention works in.
    pub scratch_bytes: u64,
    /// Bytes on the device after the last step, as the allocator says: weights, cache, scratch and activations.
    pub device_bytes: Option<u64>,
}

/// The dense layers.
#[expect(clippy::large_enum_variant, reason = "there is one of them")]
enum Dense {
    /// An untied embedding takes its memory, too, though a step reads only a few of its rows.
    Multiplied {
        layers: Vec<[Tensor<2>; 7]>,
        head: Tensor<2>,
        _embedding: Option<Tensor<2>>,
    },
    MemoryOnly {
        _buffers: Vec<wgpu::Buffer>,
    },
}

impl Dense {
    fn new(bridge: &Bridge, config: &Config, multiplied: bool) -> Result<Self> {
        if !multiplied {
            return Ok(Self::MemoryOnly { _buffers: stand_in(bridge.gpu(), 2 * config.parameters())? });
        }
        let (queries, keys) = (config.query_heads * config.head_dim, config.kv_heads * config.head_dim);
        let matrix = |rows, columns| bridge.random_f16([rows, columns], SPREAD);
        let (hidden, wide) = (config.hidden, config.intermediate);
        let layers = (0..config.layers)
            .map(|_| {
                [
                    matrix(queries, hidden),
                    matrix(keys, hidden),
                    matrix(keys, hidden),
                    matrix(hidden, queries),
                    matrix(wide, hidden),
                    matrix(wide, hidden),
                    matrix(hidden, wide),
                ]
            })
            .collect();
        // The norms' weights are left out: a millionth of the memory.
        let embedding = (!config.tied).then(|| matrix(config.vocabulary, hidden));
        Ok(Self::Multiplied { layers, head: matrix(config.vocabulary, hidden), _embedding: embedding })
    }

    fn told(&self) -> &'static str {
        match self {
            Self::Multiplied { .. } => "random f16 matrices, multiplied at every step",
            Self::MemoryOnly { .. } => "memory only: the dense layers were left out",
        }
    }
}

/// `rows · weightᵀ` in f16.
fn product(rows: &Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    rows.clone().cast(DType::F16).matmul(weight.clone().transpose()).cast(DType::F32)
}

fn normed(rows: &Tensor<2>, config: &Config) -> Tensor<2> {
    rows.clone() / rows.clone().square().mean_dim(1).add_scalar(config.norm_epsilon).sqrt()
}

fn random(rows: usize, columns: usize, device: &Device) -> Tensor<2> {
    Tensor::random([rows, columns], Distribution::Normal(0.0, 1.0), (device, DType::F32))
}

/// One token of every sequence through all layers.
fn step(dense: &Dense, config: &Config, rows: Tensor<2>, attention: &mut CompressedAttention<'_>) -> Result<Tensor<2>> {
    attention.begin(1)?;
    let [batch, _] = rows.dims();
    let device = rows.device();
    match dense {
        Dense::Multiplied { layers, head, .. } => {
            let mut stream = rows;
            for (index, [query, key, value, output, gate, up, down]) in layers.iter().enumerate() {
                attention.enter(index, &stream)?;
                let rows = normed(&stream, config);
                let mixed = attention.attend(index, product(&rows, query), product(&rows, key), product(&rows, value))?;
                stream = stream + product(&mixed, output);
                let rows = normed(&stream, config);
                stream = stream + product(&(activation::silu(product(&rows, gate)) * product(&rows, up)), down);
            }
            Ok(product(&normed(&stream, config), head))
        }
        Dense::MemoryOnly { .. } => {
            let (queries, keys) = (config.query_heads * config.head_dim, config.kv_heads * config.head_dim);
            let mut mixed = random(batch, queries, &device);
            let key = random(batch, keys, &device);
            for layer in 0..config.layers {
                mixed = attention.attend(layer, mixed, key.clone(), key.clone())?;
            }
            Ok(mixed)
        }
    }
}

/// Waits for everything and takes one number, so that nothing is left undone.
fn wait(rows: Tensor<2>) -> Result<()> {
    rows.narrow(0, 0, 1).narrow(1, 0, 1).try_into_vec_as::<f32>().map(|_| ()).map_err(|error| Error::Burn(error.to_string()))
}

struct Job<'a> {
    options: &'a DecodeMemoryOptions,
    config: &'a Config,
    bridge: &'a Bridge,
    dense: &'a Dense,
}

impl Job<'_> {
    /// Appends random keys and values of `tokens` tokens to each sequence.
    fn fill(&self, attention: &mut CompressedAttention<'_>, batch: u32, tokens: u32) -> Result<()> {
        let (config, device) = (self.config, self.bridge.device());
        let share = (ROWS / batch).clamp(1, tokens.max(1));
        let mut left = tokens;
        while left > 0 {
            let tokens = left.min(share);
            let rows = (tokens * batch) as usize;
            let keys = random(rows, config.kv_heads * config.head_dim, device);
            let residual = random(rows, config.hidden, device);
            attention.begin(tokens as usize)?;
            for layer in 0..config.layers {
                attention.enter(layer, &residual)?;
                attention.append(layer, keys.clone(), keys.clone())?;
            }
            left -= tokens;
        }
        Ok(())
    }

    fn run(&self, format: Format, protection: Protection, summary: CacheSummary, batch: u32) -> Result<Run> {
        let (options, config, bridge) = (self.options, self.config, self.bridge);
        let mut run = Run { format: summary, batch, refused: None, tokens_per_second: 0.0, cache_bytes: 0, scratch_bytes: 0, device_bytes: None };
        let alignment = options.cache.align.filter(|_| format.codec() == options.cache.codec).unwrap_or(Alignment::EVERYTHING);
        let builder = planned(config, format, unlearned(config, &format)?, protection, Capacity::tokens(batch, options.context)).alignment(alignment);
        let mut cache = match try_cache(bridge.gpu(), builder.build(bridge.gpu().capability())) {
            Ok(cache) => cache,
            Err(error) => return Ok(Run { refused: Some(error.to_string()), ..run }),
        };
        pollster::block_on(bridge.gpu().prepare(cache.plan()))?;
        let memory = cache.memory();
        (run.cache_bytes, run.scratch_bytes) = (cache.bytes(), memory.scratch);
        let mut attention = CompressedAttention::batch(bridge, &mut cache, batch)?;
        // One token warms up: burn tries its kernels on the first product of each shape.
        self.fill(&mut attention, batch, options.context.saturating_sub(options.steps + 1))?;
        bridge.clean()?;
        let rows = random(batch as usize, config.hidden, bridge.device());
        wait(step(self.dense, config, rows.clone(), &mut attention)?)?;
        let started = Instant::now();
        for _ in 0..options.steps {
            wait(step(self.dense, config, rows.clone(), &mut attention)?)?;
        }
        run.tokens_per_second = f64::from(options.steps * batch) / started.elapsed().as_secs_f64();
        run.device_bytes = device_bytes(bridge.gpu());
        attention.end()?;
        Ok(run)
    }
}

/// Runs the control and the codec.
pub fn decode_memory(options: &DecodeMemoryOptions) -> Result<DecodeMemoryReport> {
    let config = Config::read(&options.config)?;
    if options.batch == 0 || options.context < options.steps + 2 {
        let had = format!("{} of {}", options.batch, options.context);
        return Err(Error::Option { name: "--batch of --context", wanted: format!("1 or more of {} tokens or more", options.steps + 2), had });
    }
    let bridge = Bridge::open(options.adapter.as_deref())?;
    let halves = bridge.gpu().device().features().contains(wgpu::Features::SHADER_F16);
    let dense = Dense::new(&bridge, &config, halves && !options.attention_only)?;
    bridge.flush()?;
    let device_bytes_weights = device_bytes(bridge.gpu());
    let job = Job { options, config: &config, bridge: &bridge, dense: &dense };

    let protection = options.cache.protection(Sinks::None, 0);
    let format = options.cache.format(&config, None)?;
    let mut runs = Vec::new();
    let control = options.control_batch.unwrap_or(options.batch);
    if control > 0 && format.codec() != Codec::F16 {
        let plain = CacheOptions { codec: Codec::F16, ..options.cache.clone() };
        let strict = Protection::NONE;
        runs.push(job.run(Format::f16(), strict, plain.summary(&config, &BitPlan::uniform(&shape(&config), Format::f16())?, strict), control)?);
        bridge.clean()?;
    }
    runs.push(job.run(format, protection, options.cache.summary(&config, &BitPlan::uniform(&shape(&config), format)?, protection), options.batch)?);
    Ok(DecodeMemoryReport {
        parameters: config.parameters(),
        weight_bytes: 2 * config.parameters(),
        weights: dense.told(),
        device_bytes_weights,
        context: options.context,
        steps: options.steps,
        runs,
        adapter: bridge.adapter().to_owned(),
    })
}

impl std::fmt::Display for DecodeMemoryReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let known = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |bytes| format!("{:.1} MiB", mib(bytes)));
        writeln!(f, "on {}", self.adapter)?;
        writeln!(
            f,
            "weights: {} numbers, {:.1} MiB in f16 ({}); on the device {}",
            self.parameters,
            mib(self.weight_bytes),
            self.weights,
            known(self.device_bytes_weights)
        )?;
        writeln!(
            f,
            "{} tokens a sequence, of them {} decoded; the others are random keys and values that were appended, not a prompt\n",
            self.context, self.steps
        )?;
        for run in &self.runs {
            let format = &run.format;
            match format.codec.as_str() {
                "f16" => write!(f, "f16")?,
                codec => write!(f, "{codec} K{}V{} group {} scales {}", format.k_bits, format.v_bits, format.group, format.scales)?,
            }
            write!(f, ", {} sequences: ", run.batch)?;
            match &run.refused {
                Some(why) => writeln!(f, "refused: {why}")?,
                None => writeln!(
                    f,
                    "{:.1} tokens/s, cache {:.1} MiB, scratch {:.1} MiB, on the device {}",
                    run.tokens_per_second,
                    mib(run.cache_bytes),
                    mib(run.scratch_bytes),
                    known(run.device_bytes)
                )?,
            }
        }
        if let [control, codec] = self.runs.as_slice()
            && control.refused.is_none()
            && codec.refused.is_none()
        {
            let ratio = |a: u64, b: u64| a as f64 / b.max(1) as f64;
            writeln!(
                f,
                "\nagainst f16: speed × {:.2}, cache / {:.2}, memory on the device / {:.2}",
                codec.tokens_per_second / control.tokens_per_second,
                ratio(control.cache_bytes, codec.cache_bytes),
                ratio(control.device_bytes.unwrap_or(0), codec.device_bytes.unwrap_or(0))
            )?;
        }
        Ok(())
    }
}
