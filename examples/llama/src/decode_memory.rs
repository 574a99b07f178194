//! `decode-memory`: what decoding with a cache takes, of a model's shape and any batch, in memory
//! and in time.
//!
//! Weights are random f16 numbers of the model's shapes, multiplied at every step, so that their
//! memory and their reading are real. Nothing is prefilled: the context is random keys and values
//! that are appended to every layer, which takes the memory and gives attention the work that a
//! prompt would. Of rotate-kv it takes the natural order of channels: which channels share a scale
//! changes neither memory nor speed. Centred's means are 1, so that there is a position term.

use std::f32::consts::TAU;
use std::path::PathBuf;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use wgkv::aligned::Alignment;
use wgkv::bits::BitPlan;
use wgkv::{Cache, Capacity, Chunk, Codec, Format, Gpu, Protection, Rows, Sequence, Sinks};
use wgkv_decoder::{Config, Decoder, Recorder, Sampling, Scored, Work};

use crate::capacity::{device_bytes, stand_in, try_cache, unlearned};
use crate::device::{self, storage, upload};
use crate::error::{Error, Result};
use crate::options::{CacheOptions, CacheSummary, expect_alike, planned};

/// Rows of random keys that are appended at once.
const ROWS: u32 = 8192;
/// Numbers of those rows at most: 128 MiB, which every device binds.
const NUMBERS: usize = 1 << 25;

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
    /// Leave the dense layers out: their weights are allocated but not multiplied.
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
    /// Bytes on the device after the last step, as the allocator says: weights, cache, scratch and
    /// activations.
    pub device_bytes: Option<u64>,
}

/// The dense layers.
enum Dense {
    Multiplied(Decoder),
    MemoryOnly { _buffers: Vec<wgpu::Buffer> },
}

impl Dense {
    fn new(gpu: &Gpu, config: &Config, multiplied: bool) -> Result<Self> {
        match multiplied {
            true => Ok(Self::Multiplied(pollster::block_on(Decoder::random(gpu, config))?)),
            false => Ok(Self::MemoryOnly { _buffers: stand_in(gpu, 2 * config.parameters())? }),
        }
    }

    fn told(&self) -> &'static str {
        match self {
            Self::Multiplied(_) => "random f16 matrices, multiplied at every step",
            Self::MemoryOnly { .. } => "memory only: the dense layers were left out",
        }
    }
}

/// Normally distributed numbers with a deviation of 1.
fn random(count: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(0);
    let pair = |_| {
        let (radius, angle) = ((-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt(), TAU * random.random::<f32>());
        [radius * angle.cos(), radius * angle.sin()]
    };
    (0..count.div_ceil(2)).flat_map(pair).take(count).collect()
}

/// What a step works in.
#[expect(clippy::large_enum_variant, reason = "there is one of them")]
enum Buffers<'a> {
    Work(&'a Decoder, Work),
    /// Queries, keys (which are the values, too) and outputs of attention alone.
    Attention([wgpu::Buffer; 3]),
}

/// Sequences of a cache that are decoded together.
struct Batch<'a> {
    config: &'a Config,
    gpu: &'a Gpu,
    cache: Cache,
    chunks: Vec<Chunk>,
    buffers: Buffers<'a>,
}

impl Batch<'_> {
    /// Appends random keys and values of `tokens` tokens to each sequence.
    fn fill(&mut self, tokens: u32) -> Result<()> {
        let config = self.config;
        let (keys, batch) = (config.kv_heads * config.head_dim, self.chunks.len() as u32);
        // Sinks are looked for in a residual stream.
        let elects = self.cache.plan().elects();
        let width = if elects { keys.max(config.hidden) } else { keys };
        let rows = ROWS.min((NUMBERS / width) as u32);
        let share = (rows / batch).clamp(1, tokens.max(1));
        let rows = upload(self.gpu, "random rows", &random((share * batch) as usize * width));
        let rows = Rows::f32(&rows);
        let mut left = tokens;
        while left > 0 {
            let tokens = left.min(share);
            let chunks: Vec<Chunk> = self.chunks.iter().map(|chunk| Chunk { tokens, ..*chunk }).collect();
            let step = self.cache.step(&chunks)?;
            let mut recorder = Recorder::new(self.gpu, "fill");
            for layer in 0..config.layers as u32 {
                if elects {
                    self.cache.elect_in(recorder.pass(), &step, layer, rows, config.hidden as u32)?;
                }
                self.cache.append_in(recorder.pass(), &step, layer, rows, rows)?;
            }
            device::wait(self.gpu, Some(recorder.submit()))?;
            left -= tokens;
        }
        Ok(())
    }

    /// Submits a token of every sequence: all layers, and the choice of the next.
    fn step(&mut self) -> Result<()> {
        let mut recorder = Recorder::new(self.gpu, "step");
        match &mut self.buffers {
            Buffers::Work(decoder, work) => {
                let step = decoder.step(work, &mut self.cache, &self.chunks)?;
                decoder.forward(&mut recorder, work, &self.cache, &step, None)?;
                decoder.score(&mut recorder, work, Scored::Last)?;
                decoder.sample(&mut recorder, work);
            }
            Buffers::Attention([queries, keys, outputs]) => {
                let (queries, keys, outputs) = (Rows::f32(queries), Rows::f32(keys), Rows::f32(outputs));
                let step = self.cache.step(&self.chunks)?;
                for layer in 0..self.config.layers as u32 {
                    self.cache.append_in(recorder.pass(), &step, layer, keys, keys)?;
                    self.cache.attend_in(recorder.pass(), &step, layer, queries, outputs)?;
                }
            }
        }
        recorder.submit();
        Ok(())
    }
}

struct Job<'a> {
    options: &'a DecodeMemoryOptions,
    config: &'a Config,
    gpu: &'a Gpu,
    dense: &'a Dense,
}

impl Job<'_> {
    fn buffers(&self, batch: u32) -> Result<Buffers<'_>> {
        let (config, gpu) = (self.config, self.gpu);
        Ok(match self.dense {
            Dense::Multiplied(decoder) => {
                let work = pollster::block_on(decoder.work(batch, batch))?;
                work.write_ids(&vec![0; batch as usize])?;
                work.write_sampling(&vec![Sampling::GREEDY.row(0); batch as usize])?;
                Buffers::Work(decoder, work)
            }
            Dense::MemoryOnly { .. } => {
                let [queries, keys] = [config.query_heads, config.kv_heads].map(|heads| batch as usize * heads * config.head_dim);
                let outputs = storage(gpu, "outputs", queries as u64);
                Buffers::Attention([upload(gpu, "queries", &random(queries)), upload(gpu, "keys", &random(keys)), outputs])
            }
        })
    }

    fn run(&self, format: Format, protection: Protection, summary: CacheSummary, batch: u32) -> Result<Run> {
        let (options, config, gpu) = (self.options, self.config, self.gpu);
        let mut run = Run { format: summary, batch, refused: None, tokens_per_second: 0.0, cache_bytes: 0, scratch_bytes: 0, device_bytes: None };
        let alignment = options.cache.align.filter(|_| format.codec() == options.cache.codec).unwrap_or(Alignment::EVERYTHING);
        let builder = planned(config, format, unlearned(&config.shape(), &format)?, protection, Capacity::tokens(batch, options.context)).alignment(alignment);
        let mut cache = match try_cache(gpu, || Cache::new(gpu, builder.build(gpu.capability())?)) {
            Ok(cache) => cache,
            Err(error) => return Ok(Run { refused: Some(error.to_string()), ..run }),
        };
        pollster::block_on(gpu.prepare(cache.plan()))?;
        (run.cache_bytes, run.scratch_bytes) = (cache.bytes(), cache.memory().scratch);
        let sequences = (0..batch).map(|_| cache.begin()).collect::<wgkv::Result<Vec<Sequence>>>()?;
        let chunks = sequences.into_iter().map(|sequence| Chunk { sequence, tokens: 1 }).collect();
        let mut running = Batch { config, gpu, cache, chunks, buffers: self.buffers(batch)? };
        running.fill(options.context.saturating_sub(options.steps + 1))?;
        // One token warms up, and gives back what the filling took.
        running.step()?;
        device_bytes(gpu);
        let started = Instant::now();
        for _ in 0..options.steps {
            running.step()?;
        }
        device::wait(gpu, None)?;
        run.tokens_per_second = f64::from(options.steps * batch) / started.elapsed().as_secs_f64();
        run.device_bytes = device_bytes(gpu);
        running.cache.destroy();
        Ok(run)
    }
}

/// Runs the control and the codec.
pub fn decode_memory(options: &DecodeMemoryOptions) -> Result<DecodeMemoryReport> {
    let config = Config::read(&options.config)?;
    expect_alike(&config, "--config")?;
    if options.batch == 0 || options.context < options.steps + 2 {
        let had = format!("{} of {}", options.batch, options.context);
        return Err(Error::Option { name: "--batch of --context", wanted: format!("1 or more of {} tokens or more", options.steps + 2), had });
    }
    let gpu = device::open(options.adapter.as_deref())?;
    let dense = Dense::new(&gpu, &config, !options.attention_only)?;
    let device_bytes_weights = device_bytes(&gpu);
    let job = Job { options, config: &config, gpu: &gpu, dense: &dense };

    let protection = options.cache.protection(Sinks::None, 0);
    let format = options.cache.format(&config, None)?;
    let mut runs = Vec::new();
    let control = options.control_batch.unwrap_or(options.batch);
    if control > 0 && format.codec() != Codec::F16 {
        let plain = CacheOptions { codec: Codec::F16, ..options.cache.clone() };
        let strict = Protection::NONE;
        runs.push(job.run(Format::f16(), strict, plain.summary(&config, &BitPlan::uniform(&config.shape(), Format::f16())?, strict), control)?);
        device_bytes(&gpu);
    }
    runs.push(job.run(format, protection, options.cache.summary(&config, &BitPlan::uniform(&config.shape(), format)?, protection), options.batch)?);
    Ok(DecodeMemoryReport {
        parameters: config.parameters(),
        weight_bytes: 2 * config.parameters(),
        weights: dense.told(),
        device_bytes_weights,
        context: options.context,
        steps: options.steps,
        runs,
        adapter: gpu.adapter_name().to_owned(),
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
                codec => write!(f, "{codec} {} group {} scales {}", format.widths(), format.group, format.scales)?,
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
