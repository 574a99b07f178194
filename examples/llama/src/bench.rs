//! `bench`: how many tokens a second a model reads and writes, at given contexts and batches.
//!
//! Every sequence of a batch reads the same prompt. Before anything is timed the GPU has been busy
//! for 0.9 s, so that its clocks are up. Decoding takes the likeliest token, which stays on
//! the GPU; a step is submitted while the one before it runs.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use wgkv::{Capacity, Chunk, Sequence, Sinks};
use wgkv_decoder::{Decoder, KvCache, Model, Part, Recorder, Sampling, Scored, Work};

use crate::device::wait;
use crate::error::{Error, Result};
use crate::generate::read_prompt;
use crate::options::{CacheOptions, CacheSummary, Layered, ModelOptions, open, open_layers, planned};

/// Time for which the GPU is busy before it is measured, by the wall's clock.
const WARM_UP: Duration = Duration::from_millis(900);
/// Steps that are recorded while others run.
const WARM_UP_STEPS: u32 = 8;
/// Steps whose kernels are timed.
const KERNEL_STEPS: u32 = 8;
/// Dispatches of a step that are timed at most: as many as a set of timestamps has.
const DISPATCHES: u32 = 2048;

/// Options of `bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// The cache.
    #[command(flatten)]
    pub cache: CacheOptions,
    /// Tokens that every sequence holds when decoding begins; several with commas.
    #[arg(long, value_delimiter = ',', default_value = "128")]
    pub context: Vec<u32>,
    /// Sequences that are read and decoded together; several with commas.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub batch: Vec<u32>,
    /// Tokens of a prompt whose reading is timed; several with commas, 0 for none.
    #[arg(long, value_delimiter = ',', default_value = "512")]
    pub prefill: Vec<u32>,
    /// Tokens to decode of every sequence; 0 for none.
    #[arg(long, default_value_t = 128)]
    pub decode: u32,
    /// Tokens of all sequences that are read in one step.
    #[arg(long, default_value_t = 512)]
    pub chunk: u32,
    /// Times that each is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    pub repeats: usize,
    /// File with the prompt, or - for standard input, repeated as often as it must be; random
    /// tokens without it.
    #[arg(long)]
    pub prompt_file: Option<PathBuf>,
    /// Seed of the random tokens.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Time each kernel as well, by the GPU's own clock.
    #[arg(long)]
    pub kernels: bool,
    /// Print one JSON object, on the last line, instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// The cache's format.
    #[serde(flatten)]
    pub format: CacheSummary,
    /// The model's folder or file.
    pub model: String,
    /// How the weights are stored.
    pub weights: String,
    /// Bytes of the weights on the device.
    pub weight_bytes: u64,
    /// Tokens that are read in one step.
    pub chunk: u32,
    /// Reading of prompts.
    pub prefill: Vec<Rate>,
    /// Decoding.
    pub decode: Vec<Rate>,
    /// The GPU.
    pub adapter: String,
}

/// How fast a batch was read or decoded.
#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    /// Sequences.
    pub batch: u32,
    /// Tokens that each held before.
    pub context: u32,
    /// Tokens of each that were read or decoded.
    pub tokens: u32,
    /// Seconds for it, the median.
    pub seconds: f64,
    /// Tokens a second, over all sequences.
    pub tokens_per_second: f64,
    /// Bytes that the cache held at the end.
    pub cache_bytes: u64,
    /// The GPU's time by kernel, longest first: of one pass over the prompt, or of one step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelTime>,
}

/// The time of one kernel.
#[derive(Debug, Clone, Serialize)]
pub struct KernelTime {
    /// The kernel.
    pub name: &'static str,
    /// Its dispatches.
    pub dispatches: f64,
    /// Milliseconds for all of them.
    pub milliseconds: f64,
}

/// Sequences that grow together.
struct Batch<'a, C> {
    decoder: &'a Decoder,
    work: Work,
    cache: C,
    sequences: Vec<Sequence>,
    prompt: &'a [u32],
    /// Tokens of each sequence in a step of the prompt.
    share: u32,
    /// Submissions that were not waited for.
    latest: Option<wgpu::SubmissionIndex>,
}

impl<C: KvCache> Batch<'_, C> {
    /// Ends the sequences and begins others.
    fn begin(&mut self, batch: u32) -> Result<()> {
        for sequence in self.sequences.drain(..) {
            self.cache.end(sequence)?;
        }
        self.sequences = (0..batch).map(|_| self.cache.begin()).collect::<wgkv::Result<_>>()?;
        Ok(())
    }

    /// Cuts every sequence back.
    fn truncate(&mut self, tokens: u32) -> Result<()> {
        let mut recorder = Recorder::new(self.decoder.gpu(), "truncate");
        for sequence in &self.sequences {
            self.cache.truncate(recorder.encoder(), *sequence, tokens)?;
        }
        recorder.submit();
        Ok(())
    }

    /// Submits a step of `tokens` tokens a sequence, and with `choose` the choice of those that
    /// follow.
    fn step(&mut self, tokens: u32, choose: bool) -> Result<wgpu::SubmissionIndex> {
        let chunks: Vec<Chunk> = self.sequences.iter().map(|&sequence| Chunk { sequence, tokens }).collect();
        let step = self.decoder.step(&mut self.work, &mut self.cache, &chunks)?;
        let mut recorder = Recorder::new(self.decoder.gpu(), "bench");
        self.decoder.forward(&mut recorder, &mut self.work, &self.cache, &step, None)?;
        if choose {
            self.decoder.score(&mut recorder, &mut self.work, Scored::Last)?;
            self.decoder.sample(&mut recorder, &mut self.work);
        }
        Ok(recorder.submit())
    }

    /// Submits the reading of the prompt's first tokens and the choice of what follows; `after`
    /// comes behind each step.
    fn read(&mut self, tokens: u32, mut after: impl FnMut(&Decoder) -> Result<()>) -> Result<()> {
        let prompt = &self.prompt[..tokens as usize];
        let mut left = prompt.len();
        for chunk in prompt.chunks(self.share as usize) {
            left -= chunk.len();
            self.work.write_ids(&chunk.repeat(self.sequences.len()))?;
            self.step(chunk.len() as u32, left == 0)?;
            after(self.decoder)?;
        }
        Ok(())
    }

    /// Decodes, each step recorded while the one before it runs.
    fn decode(&mut self, tokens: u32) -> Result<()> {
        for _ in 0..tokens {
            let submitted = self.step(1, true)?;
            if let Some(before) = self.latest.replace(submitted) {
                wait(self.decoder.gpu(), Some(before))?;
            }
        }
        self.latest = None;
        Ok(wait(self.decoder.gpu(), None)?)
    }
}

/// Adds up what kernels took.
#[derive(Default)]
struct Kernels(Vec<KernelTime>);

impl Kernels {
    /// Takes the times of what was submitted, if they are taken at all.
    fn take(&mut self, decoder: &Decoder) -> Result<()> {
        let Some(profile) = decoder.gpu().profile() else {
            return Ok(());
        };
        for (name, seconds) in pollster::block_on(profile.take(decoder.gpu()))? {
            match self.0.iter_mut().find(|kernel| kernel.name == name) {
                Some(kernel) => {
                    kernel.dispatches += 1.0;
                    kernel.milliseconds += 1e3 * seconds;
                }
                None => self.0.push(KernelTime { name, dispatches: 1.0, milliseconds: 1e3 * seconds }),
            }
        }
        Ok(())
    }

    /// Returns the means over a number of passes, longest first.
    fn finish(mut self, passes: u32) -> Vec<KernelTime> {
        for kernel in &mut self.0 {
            kernel.dispatches /= f64::from(passes);
            kernel.milliseconds /= f64::from(passes);
        }
        self.0.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        self.0
    }
}

/// Does something until the GPU was busy long enough.
fn warm_up(mut run: impl FnMut() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < WARM_UP {
        run()?;
    }
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or_default()
}

/// The formats of the weights, those of the layers first.
fn weight_formats(model: &Model) -> Result<String> {
    let layer = [Part::Query(0), Part::Key(0), Part::Value(0), Part::Output(0), Part::Gate(0), Part::Up(0), Part::Down(0)];
    let mut names: Vec<&'static str> = Vec::new();
    for part in layer.into_iter().chain([Part::Embedding, Part::Head]) {
        let name = model.tensor(part)?.format.name();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names.join(", "))
}

/// The prompt's tokens, `count` of them.
fn prompt(options: &BenchOptions, model: &Model, count: usize) -> Result<Vec<u32>> {
    let Some(path) = &options.prompt_file else {
        let mut random = StdRng::seed_from_u64(options.seed);
        return Ok((0..count).map(|_| random.random_range(0..model.config().vocabulary as u32)).collect());
    };
    let ids = model.text().encode(&read_prompt(path)?)?;
    if ids.is_empty() {
        return Err(Error::Option { name: "the prompt", wanted: "1 token or more".into(), had: "empty".into() });
    }
    Ok(ids.into_iter().cycle().take(count).collect())
}

/// Refuses numbers that measure nothing.
fn check(options: &BenchOptions) -> Result<()> {
    let refused = |name, wanted: &str, had: String| Err(Error::Option { name, wanted: wanted.into(), had });
    let listed = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    if options.batch.is_empty() || options.batch.contains(&0) {
        return refused("--batch", "1 or more", listed(&options.batch));
    }
    if options.context.is_empty() || options.context.contains(&0) {
        return refused("--context", "1 or more", listed(&options.context));
    }
    if options.repeats == 0 {
        return refused("--repeats", "1 or more", options.repeats.to_string());
    }
    Ok(())
}

/// Measures everything.
///
/// # Errors
/// Those of the model, the cache and the device; [`Error::Read`] and [`Error::Option`].
pub fn bench(options: &BenchOptions) -> Result<BenchReport> {
    check(options)?;
    let model = options.model.open()?;
    let config = model.config();
    let longest = options.context.iter().chain(&options.prefill).copied().max().unwrap_or(1);
    let prompt = prompt(options, &model, longest as usize)?;
    let (cache_options, bits) = options.cache.with_plan(&model)?;
    let protection = cache_options.protection(Sinks::First(4), 128);
    let learned = cache_options.learned(&model, &options.model.model)?;
    let allocation = cache_options.allocation(config, learned.as_ref(), bits)?;
    let gpu = match options.kernels {
        true => options.model.gpu()?.profiled(DISPATCHES)?,
        false => options.model.gpu()?,
    };
    let decoder = pollster::block_on(Decoder::load(&gpu, &model))?;
    let alignment = options.cache.align.unwrap_or_default();
    let [prefill, decode] = match config.layers_are_alike() {
        true => {
            let plan = |capacity| planned(config, allocation.clone(), learned.clone(), protection, capacity).alignment(alignment);
            rates(options, &decoder, &prompt, |capacity, _| open(&gpu, plan(capacity)))?
        }
        false => {
            let keep = steps(options);
            let wanted = |capacity, chunk| Layered { protection, alignment, capacity, chunk, keep };
            rates(options, &decoder, &prompt, |capacity, chunk| open_layers(&decoder, &allocation, learned.as_ref(), wanted(capacity, chunk)))?
        }
    };
    Ok(BenchReport {
        format: cache_options.summary(config, &allocation, protection),
        model: options.model.model.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        weights: weight_formats(&model)?,
        weight_bytes: decoder.weight_bytes(),
        chunk: options.chunk,
        prefill,
        decode,
        adapter: gpu.adapter_name().to_owned(),
    })
}

/// Tokens that are decoded behind a context before it is cut back, at most.
fn steps(options: &BenchOptions) -> u32 {
    options.decode.max(WARM_UP_STEPS).max(KERNEL_STEPS)
}

/// Times prefill and decoding of everything that was asked for. `open` opens a cache of some
/// capacity for steps of some tokens a sequence.
fn rates<C: KvCache>(options: &BenchOptions, decoder: &Decoder, prompt: &[u32], open: impl Fn(Capacity, u32) -> Result<C>) -> Result<[Vec<Rate>; 2]> {
    let batch = |batch: u32, tokens: u32| -> Result<Batch<'_, C>> {
        let share = (options.chunk / batch).clamp(1, prompt.len() as u32);
        let cache = open(Capacity::tokens(batch, tokens), share)?;
        let work = pollster::block_on(decoder.work(share * batch, batch))?;
        work.write_sampling(&vec![Sampling::GREEDY.row(0); batch as usize])?;
        let mut made = Batch { decoder, work, cache, sequences: Vec::new(), prompt, share, latest: None };
        made.begin(batch)?;
        Ok(made)
    };
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for &sequences in &options.batch {
        for &tokens in options.prefill.iter().filter(|tokens| **tokens > 0) {
            prefill.push(time_prefill(batch(sequences, tokens)?, sequences, tokens, options.repeats)?);
        }
        for &context in options.context.iter().filter(|_| options.decode > 0) {
            decode.push(time_decode(batch(sequences, context + steps(options))?, sequences, context, options)?);
        }
    }
    Ok([prefill, decode])
}

fn time_prefill<C: KvCache>(mut batch: Batch<'_, C>, sequences: u32, tokens: u32, repeats: usize) -> Result<Rate> {
    let gpu = batch.decoder.gpu();
    let few = tokens.min(batch.share);
    warm_up(|| {
        batch.begin(sequences)?;
        batch.read(few, |_| Ok(()))?;
        Ok(wait(gpu, None)?)
    })?;
    let mut times = Vec::new();
    for _ in 0..repeats {
        batch.begin(sequences)?;
        let started = Instant::now();
        batch.read(tokens, |_| Ok(()))?;
        wait(gpu, None)?;
        times.push(started.elapsed().as_secs_f64());
    }
    let cache_bytes = batch.cache.bytes_used();
    let mut kernels = Kernels::default();
    if gpu.profile().is_some() {
        Kernels::default().take(batch.decoder)?;
        batch.begin(sequences)?;
        batch.read(tokens, |decoder| kernels.take(decoder))?;
    }
    let seconds = median(times);
    let tokens_per_second = f64::from(sequences * tokens) / seconds;
    batch.cache.destroy();
    Ok(Rate { batch: sequences, context: 0, tokens, seconds, tokens_per_second, cache_bytes, kernels: kernels.finish(1) })
}

fn time_decode<C: KvCache>(mut batch: Batch<'_, C>, sequences: u32, context: u32, options: &BenchOptions) -> Result<Rate> {
    batch.read(context, |_| Ok(()))?;
    warm_up(|| {
        batch.decode(WARM_UP_STEPS)?;
        batch.truncate(context)
    })?;
    let (mut times, mut cache_bytes) = (Vec::new(), 0);
    for _ in 0..options.repeats {
        let started = Instant::now();
        batch.decode(options.decode)?;
        times.push(started.elapsed().as_secs_f64());
        cache_bytes = batch.cache.bytes_used();
        batch.truncate(context)?;
    }
    let mut kernels = Kernels::default();
    if batch.decoder.gpu().profile().is_some() {
        Kernels::default().take(batch.decoder)?;
        for _ in 0..KERNEL_STEPS {
            batch.step(1, true)?;
            kernels.take(batch.decoder)?;
        }
    }
    let seconds = median(times);
    let tokens_per_second = f64::from(sequences * options.decode) / seconds;
    batch.cache.destroy();
    Ok(Rate { batch: sequences, context, tokens: options.decode, seconds, tokens_per_second, cache_bytes, kernels: kernels.finish(KERNEL_STEPS) })
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let format = &self.format;
        writeln!(f, "{}, weights {} ({:.1} MiB), on {}", self.model, self.weights, mib(self.weight_bytes), self.adapter)?;
        match format.codec.as_str() {
            "f16" => writeln!(f, "cache f16")?,
            codec => writeln!(
                f,
                "cache {codec} {} group {} scales {}, sinks {}, window {}",
                format.widths(),
                format.group,
                format.scales,
                format.sinks,
                format.window
            )?,
        }
        writeln!(f, "\n{:<8} {:>6} {:>8} {:>7} {:>10} {:>12} {:>10}", "", "batch", "context", "tokens", "tokens/s", "per sequence", "cache MiB")?;
        for (name, rates) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            for rate in rates {
                let each = rate.tokens_per_second / f64::from(rate.batch);
                writeln!(
                    f,
                    "{name:<8} {:>6} {:>8} {:>7} {:>10.1} {each:>12.1} {:>10.2}",
                    rate.batch,
                    rate.context,
                    rate.tokens,
                    rate.tokens_per_second,
                    mib(rate.cache_bytes)
                )?;
                for KernelTime { name, dispatches, milliseconds } in &rate.kernels {
                    writeln!(f, "    {name:<24} {dispatches:>8.1} dispatches {milliseconds:>10.3} ms")?;
                }
            }
        }
        Ok(())
    }
}
