//! `perplexity`: how much a codec costs, as perplexity and as divergence from the f16 cache.
//!
//! The text is encoded once, without special tokens, and cut into windows of `context` ids. A
//! window's input is the opening token and all ids but the last, its targets are the ids. The f16
//! cache and the codec's cache see the same chunks side by side, so their scores are compared row
//! by row and never kept.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde::Serialize;
use wgkv::aligned::{Alignment, Traffic};
use wgkv::bits::BitPlan;
use wgkv::learned::Learned;
use wgkv::{Capacity, Codec, Format, PAGE_TOKENS, Protection, Sinks};
use wgkv_decoder::{Decoder, KvCache, Model, Tap};

use crate::error::{Error, Result};
use crate::options::{CacheOptions, CacheSummary, Layered, ModelOptions, channel_order, expect_absent, open, open_layers, planned, read_text};
use crate::reading::{ROWS, Reading, work};
use crate::simulate::{Reorder, SimulatedRows, Simulation};

/// A window's input and targets.
pub type Window = (Vec<u32>, Vec<u32>);

/// Options of `perplexity`.
#[derive(Debug, Clone, clap::Args)]
pub struct PerplexityOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// The cache.
    #[command(flatten)]
    pub cache: CacheOptions,
    /// Text to be predicted.
    #[arg(long)]
    pub text: PathBuf,
    /// Windows to measure.
    #[arg(long, default_value_t = 2)]
    pub windows: usize,
    /// Tokens in a window.
    #[arg(long, default_value_t = 2048)]
    pub context: usize,
    /// Quantize every token before it is attended to: no window, no sinks unless asked for
    /// (massive:20 for rotate-kv), one chunk.
    #[arg(long)]
    pub strict: bool,
    /// For rotate-kv: share scales among channels as they lie after the rotation, without a
    /// calibration.
    #[arg(long, conflicts_with = "calibration")]
    pub no_reorder: bool,
    /// For rotate-kv: sort the channels before the rotation, the order that its paper warns of.
    /// Implies --simulate.
    #[arg(long, conflicts_with = "no_reorder")]
    pub reorder_first: bool,
    /// For rotate-kv: quantize on the CPU and attend in f32 instead of running the codec's kernels.
    /// Implies --strict.
    #[arg(long)]
    pub simulate: bool,
    /// Tokens that are processed at once, as of a prompt that comes in such chunks: those of one
    /// chunk see older tokens of the window as codes. Without it every token sees what it would see
    /// in decoding: where a window protects recent tokens, chunks are the runs of 128 tokens that
    /// see the same tokens in f16; else the context is one chunk. With aligned-f16 and --align
    /// tokens come one by one.
    #[arg(long)]
    pub chunk: Option<usize>,
    /// Tokens at the beginning of each window that are read at once, as a prompt, and not scored.
    #[arg(long, default_value_t = 0)]
    pub prompt: usize,
}

/// What a measurement gave.
#[derive(Debug, Clone, Serialize)]
pub struct PerplexityReport {
    /// The cache's format.
    #[serde(flatten)]
    pub format: CacheSummary,
    /// e to the mean negative log probability of the targets.
    pub perplexity: f64,
    /// Mean divergence of the codec's predictions from those of the f16 cache, in nats.
    pub kl: f64,
    /// Stored bits for each key or value element, at a full context.
    pub bits_per_element: f64,
    /// Targets that were predicted.
    pub tokens: usize,
    /// Time for all of it.
    pub seconds: f64,
    /// For rotate-kv: by what the channels are in order, "calibration" (with its reach), "none" or
    /// "before rotation".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// What decoding read from planes, where it did not read everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aligned: Option<AlignedSummary>,
    /// Whether the codec was simulated on the CPU.
    pub simulated: bool,
    /// The GPU.
    pub adapter: String,
}

/// What decoding read from planes.
#[derive(Debug, Clone, Serialize)]
pub struct AlignedSummary {
    /// By what the planes were chosen.
    pub align: String,
    /// Bits read of a key and of a value, by layer.
    pub layers: Vec<[f64; 2]>,
    /// Bits read of a key.
    pub k_bits: f64,
    /// Bits read of a value.
    pub v_bits: f64,
    /// Share of the bytes of keys and values that stayed unread.
    pub saved: f64,
}

impl AlignedSummary {
    /// From the traffic of all layers.
    fn new(align: Alignment, layers: &[Traffic]) -> Self {
        let mut total = Traffic::default();
        layers.iter().for_each(|layer| total.add(layer));
        Self {
            align: align.to_string(),
            layers: layers.iter().map(|layer| [layer.key_bits(), layer.value_bits()]).collect(),
            k_bits: total.key_bits(),
            v_bits: total.value_bits(),
            saved: total.saved(),
        }
    }
}

/// Sums over targets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Negative log probability.
    pub loss: f64,
    /// Divergence from the reference.
    pub divergence: f64,
    /// Targets.
    pub tokens: usize,
}

impl Score {
    /// e to the mean loss.
    pub fn perplexity(&self) -> f64 {
        (self.loss / self.tokens as f64).exp()
    }

    /// Mean divergence.
    pub fn kl(&self) -> f64 {
        self.divergence / self.tokens as f64
    }

    /// Adds rows of scores, and their divergence from the reference's rows where there is one.
    pub fn add(&mut self, logits: &[f32], reference: Option<&[f32]>, targets: &[u32]) {
        let vocabulary = logits.len() / targets.len();
        let row = |(row, &target): (usize, &u32)| {
            let range = row * vocabulary..(row + 1) * vocabulary;
            let scores = &logits[range.clone()];
            let total = log_sum_exp(scores);
            let divergence = reference.map_or(0.0, |reference| {
                let expected = &reference[range];
                let expected_total = log_sum_exp(expected);
                let shift = (total - expected_total) as f32;
                let top = expected_total as f32;
                // Both exponents and differences are small numbers here, so f32 terms suffice;
                // their sum does not.
                expected.iter().zip(scores).map(|(&p, &q)| f64::from((p - top).exp() * (p - q + shift))).sum::<f64>()
            });
            (total - f64::from(scores[target as usize]), divergence)
        };
        // Rows side by side, and added up in their order, so that the sums are the same every time.
        let rows: Vec<(f64, f64)> = targets.par_iter().enumerate().map(row).collect();
        for (loss, divergence) in rows {
            self.loss += loss;
            self.divergence += divergence;
        }
        self.tokens += targets.len();
    }
}

fn log_sum_exp(scores: &[f32]) -> f64 {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|&score| f64::from((score - top).exp())).sum();
    f64::from(top) + sum.ln()
}

/// Inputs and targets of each window of a text.
///
/// # Errors
/// [`Error::NoOpening`] and [`Error::TextShort`].
pub fn windows(text: &str, model: &Model, options: &ModelOptions, count: usize, context: usize) -> Result<Vec<Window>> {
    let begin = model.config().begin.ok_or_else(|| Error::NoOpening { model: options.model.clone() })?;
    let ids = model.text().encode(text)?;
    let wanted = count * context;
    if ids.len() < wanted || wanted == 0 {
        return Err(Error::TextShort { windows: count, context, wanted: wanted.max(1), found: ids.len() });
    }
    Ok(ids[..wanted]
        .chunks(context)
        .map(|targets| {
            let mut input = vec![begin];
            input.extend(&targets[..context - 1]);
            (input, targets.to_vec())
        })
        .collect())
}

/// How a window is cut into chunks that are read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// Tokens of the first.
    pub first: usize,
    /// Tokens of each other; more than 0.
    pub rest: usize,
    /// Whether the last is filled up to this length with tokens that nobody scores.
    pub filled: bool,
    /// Whether the first is a prompt that nobody scores.
    pub prompt: bool,
}

impl Chunks {
    /// Chunks of one length, the last as long as what is left.
    pub fn of(tokens: usize) -> Self {
        Self { first: tokens.max(1), rest: tokens.max(1), filled: false, prompt: false }
    }

    /// Chunks within which decoding packs nothing, for a cache that keeps `window` recent tokens,
    /// and the window that a cache must be given so that each token of a chunk sees in f16 what it
    /// would see if it came alone.
    ///
    /// In decoding pages are packed when `window` tokens and a whole page have come since: the
    /// token at place p sees those before place (p + 1 − window) / 128 · 128 as codes. That is the
    /// same place for 128 tokens, the first of which stands at a multiple of 128 plus window − 1.
    /// A chunk that ends with the last of them packs up to there if its cache keeps 127 tokens
    /// more.
    pub fn decoded(window: u32) -> (Self, u32) {
        let page = PAGE_TOKENS as usize;
        let first = (window as usize + page - 1) % page;
        (Self { first: if first == 0 { page } else { first }, rest: page, filled: true, prompt: false }, window.saturating_add(PAGE_TOKENS - 1))
    }

    /// These chunks behind a prompt of `prompt` tokens; those that begin within it are cut.
    pub fn behind(self, prompt: usize) -> Self {
        match (prompt, self.filled) {
            (0, _) => self,
            (_, false) => Self { first: prompt, prompt: true, ..self },
            // A whole number of chunks later: pages are packed at the same places.
            (_, true) => Self { first: self.first + prompt.saturating_sub(self.first).div_ceil(self.rest) * self.rest, prompt: true, ..self },
        }
    }

    /// Returns the places of a window of `tokens` tokens that are read at once.
    pub fn ranges(self, tokens: usize) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let begin = at;
            at = tokens.min(begin + if begin == 0 { self.first } else { self.rest });
            (begin < tokens).then_some(begin..at)
        })
    }

    /// Returns the most tokens that are read at once of a window of `tokens`.
    pub fn longest(self, tokens: usize) -> usize {
        if self.filled { self.first.max(self.rest) } else { self.first.max(self.rest).min(tokens) }
    }

    /// Returns how many tokens a cache must hold to read a window of `tokens`.
    pub fn room(self, tokens: usize) -> usize {
        if self.filled { tokens + self.rest - 1 } else { tokens }
    }
}

/// Scores one window as it is read and, side by side, through a reference. A tap sees the rows of
/// the former.
///
/// # Errors
/// Those of [`Reading::read`] and [`Reading::scores`].
pub fn score_window<C: KvCache>(
    window: &Window,
    chunks: Chunks,
    reading: &mut Reading<'_, C>,
    mut tap: Option<&mut dyn Tap>,
    mut reference: Option<&mut Reading<'_, C>>,
    mut progress: impl FnMut(usize),
) -> Result<Score> {
    let mut score = Score::default();
    let (all, targets) = window;
    for range in chunks.ranges(all.len()) {
        let (mut input, targets) = (Cow::from(&all[range.clone()]), &targets[range.clone()]);
        if chunks.filled && range.start > 0 && input.len() < chunks.rest {
            // No token sees those behind it.
            input.to_mut().resize(chunks.rest, all[range.end - 1]);
        }
        match &mut tap {
            Some(tap) => reading.read(&input, Some(&mut **tap))?,
            None => reading.read(&input, None)?,
        }
        if let Some(reference) = &mut reference {
            reference.read(&input, None)?;
        }
        let scored = if chunks.prompt && range.start == 0 { &[] } else { targets };
        for (block, targets) in scored.chunks(ROWS).enumerate() {
            let rows = block * ROWS..block * ROWS + targets.len();
            let logits = reading.scores(rows.clone())?;
            let expected = reference.as_mut().map(|reference| reference.scores(rows)).transpose()?;
            score.add(&logits, expected.as_deref(), targets);
        }
        progress(range.len());
    }
    Ok(score)
}

impl std::ops::AddAssign for Score {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.divergence += other.divergence;
        self.tokens += other.tokens;
    }
}

/// A progress bar over tokens; `what` names the number that [`ProgressBar::set_message`] shows.
pub fn bar(tokens: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(tokens as u64);
    if let Ok(style) = ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} tokens, {{eta}} left{what} {{msg}}")) {
        bar.set_style(style);
    }
    bar
}

/// Runs the measurement.
pub fn perplexity(options: &PerplexityOptions) -> Result<PerplexityReport> {
    let started = Instant::now();
    let model = options.model.open()?;
    let config = model.config();
    let (cache_options, bits) = options.cache.with_plan(&model)?;
    let codec = cache_options.codec;
    let simulate = options.simulate || options.reorder_first;
    let ablations = [("--no-reorder", options.no_reorder), ("--reorder-first", options.reorder_first), ("--simulate", options.simulate)];
    if let Some((name, _)) = ablations.iter().find(|(_, given)| *given && codec != Codec::RotateKv) {
        return Err(Error::Option { name, wanted: "left out with this codec".into(), had: format!("given with codec {codec}") });
    }
    // Whatever can be refused is refused before the model is loaded.
    ablations.iter().try_for_each(|(name, given)| expect_absent(config, name, *given))?;
    let windows = windows(&read_text(&options.text)?, &model, &options.model, options.windows, options.context)?;
    let protection = match options.strict || simulate {
        true => cache_options.protection(Sinks::None, 0),
        false => cache_options.protection(Sinks::First(4), 128),
    };
    if simulate && protection.window > 0 {
        return Err(Error::Option { name: "--window", wanted: "0 with --simulate".into(), had: protection.window.to_string() });
    }
    let learned = match options.no_reorder {
        true => Some(cache_options.uncalibrated(config)?.into()),
        false => cache_options.learned(&model, &options.model.model)?,
    };
    let order = channel_order(learned.as_ref()).map(|order| match (options.no_reorder, options.reorder_first) {
        (true, _) => "none".to_owned(),
        (_, true) => "before rotation".to_owned(),
        _ => format!("calibration, {:?}", order.reach()).to_lowercase(),
    });
    // Prefill reads all planes: only tokens that come one by one show what the others are worth.
    let alignment = options.cache.align.unwrap_or_default();
    let (chunks, window) = match (options.chunk, protection.window) {
        (Some(tokens), window) => (Chunks::of(tokens.clamp(1, options.context.max(1))), window),
        (None, window) if codec == Codec::AlignedF16 || alignment != Alignment::EVERYTHING => (Chunks::of(1), window),
        (None, 0) => (Chunks::of(options.context), 0),
        (None, window) => Chunks::decoded(window),
    };
    // A prompt beyond the context is refused as it is, whatever its chunks would be.
    let chunks = chunks.behind(options.prompt.min(options.context));
    if chunks.prompt && chunks.first >= options.context {
        let wanted = format!("few enough that tokens of the {} are left to score", options.context);
        return Err(Error::Option { name: "--prompt", wanted, had: format!("{}, that is {} in whole chunks", options.prompt, chunks.first) });
    }
    let allocation = cache_options.allocation(config, learned.as_ref(), bits)?;
    if simulate && !allocation.is_uniform() {
        return Err(Error::Option { name: "--plan", wanted: "left out with --simulate".into(), had: "given".into() });
    }

    let gpu = options.model.gpu()?;
    let decoder = pollster::block_on(Decoder::load(&gpu, &model))?;
    let (capacity, room) = (Capacity::tokens(1, options.context as u32), Capacity::tokens(1, chunks.room(options.context) as u32));
    let kept = Protection { window, ..protection };
    let job = Job { decoder: &decoder, windows: &windows, chunks, codec };
    let finish = |(total, traffic): (Score, Vec<Traffic>), bits_per_element: f64| PerplexityReport {
        format: cache_options.summary(config, &allocation, protection),
        perplexity: total.perplexity(),
        kl: total.kl(),
        bits_per_element,
        tokens: total.tokens,
        seconds: started.elapsed().as_secs_f64(),
        order: order.clone(),
        aligned: options.cache.align.filter(|_| !traffic.is_empty()).map(|align| AlignedSummary::new(align, &traffic)),
        simulated: simulate,
        adapter: gpu.adapter_name().to_owned(),
    };
    if !config.layers_are_alike() {
        let wanted = Layered { protection, alignment, capacity, chunk: chunks.longest(options.context) as u32, keep: 0 };
        let bits_per_element = open_layers(&decoder, &allocation, learned.as_ref(), wanted)?.bits_per_element(options.context as u64);
        let wanted = Layered { protection: kept, capacity: room, ..wanted };
        let cache = open_layers(&decoder, &allocation, learned.as_ref(), wanted)?;
        let f16 = Layered { protection: Protection::NONE, alignment: Alignment::EVERYTHING, ..wanted };
        let halves = BitPlan::uniform(&config.shape(), Format::f16())?;
        return Ok(finish(job.run(cache, None, || open_layers(&decoder, &halves, None, f16))?, bits_per_element));
    }
    let builder = planned(config, allocation.clone(), learned.clone(), protection, capacity);
    let bits_per_element = builder.clone().build(gpu.capability())?.bits_per_element(options.context as u64);
    let reorder = if options.reorder_first { Reorder::BeforeRotation } else { Reorder::AfterRotation };
    let simulation = match &learned {
        Some(Learned::ChannelOrder(order)) if simulate => Some(Simulation::new(config, allocation.format(), order, reorder, protection.sinks)?),
        _ => None,
    };
    // What the simulation leaves of keys and values is kept in halves.
    let cache = match simulation {
        Some(_) => open(&gpu, planned(config, Format::f16(), None, Protection::NONE, capacity))?,
        // The shape, whose frequencies may depend on the tokens, stays that of the context.
        None => open(&gpu, builder.alignment(alignment).protection(kept).capacity(room))?,
    };
    let reference = || open(&gpu, planned(config, Format::f16(), None, Protection::NONE, capacity).capacity(room));
    Ok(finish(job.run(cache, simulation.as_ref(), reference)?, bits_per_element))
}

/// Windows of a text, and what reads them.
struct Job<'a> {
    decoder: &'a Decoder,
    windows: &'a [Window],
    /// What is read at once.
    chunks: Chunks,
    codec: Codec,
}

impl Job<'_> {
    /// Scores all windows by a cache and by the one in f16 that `reference` opens.
    fn run<C: KvCache>(&self, mut cache: C, simulation: Option<&Simulation>, reference: impl FnOnce() -> Result<C>) -> Result<(Score, Vec<Traffic>)> {
        let &Self { decoder, windows, chunks, codec } = self;
        let longest = chunks.longest(windows.iter().map(|(input, _)| input.len()).max().unwrap_or(1));
        // The f16 codec is its own reference: its divergence is zero and need not be measured.
        let mut reference = match codec {
            Codec::F16 => None,
            _ => Some((reference()?, work(decoder, longest)?)),
        };
        let mut work = work(decoder, longest)?;
        let bar = bar(windows.iter().map(|(input, _)| input.len()).sum(), ", perplexity");
        let mut total = Score::default();
        let mut traffic: Vec<Traffic> = Vec::new();
        for window in windows {
            let mut reading = Reading::begin(decoder, &mut work, &mut cache)?;
            let mut control = match &mut reference {
                Some((cache, work)) => Some(Reading::begin(decoder, work, cache)?),
                None => None,
            };
            let mut tap = simulation.map(|simulation| SimulatedRows::new(simulation, decoder.config()));
            let tap = tap.as_mut().map(|tap| tap as &mut dyn Tap);
            total += score_window(window, chunks, &mut reading, tap, control.as_mut(), |tokens| bar.inc(tokens as u64))?;
            traffic.resize(reading.traffic().len().max(traffic.len()), Traffic::default());
            traffic.iter_mut().zip(reading.traffic()).for_each(|(sum, layer)| sum.add(layer));
            reading.end()?;
            control.map_or(Ok(()), Reading::end)?;
            bar.set_message(format!("{:.3}", total.perplexity()));
        }
        bar.finish_and_clear();
        Ok((total, traffic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_a_chunk_every_token_sees_what_decoding_shows_it() {
        for window in [1, 2, 64, 127, 128, 129, 200, 255, 256, 257, 1000] {
            let (chunks, kept) = Chunks::decoded(window);
            let (decoding, read) = (Protection { window, ..Protection::NONE }, Protection { window: kept, ..Protection::NONE });
            for tokens in [1, 100, 127, 128, 129, 511, 512, 2048] {
                let mut next = 0;
                for range in chunks.ranges(tokens) {
                    assert_eq!(range.start, next);
                    next = range.end;
                    let held = if range.start > 0 { range.start + chunks.rest } else { range.end };
                    assert!(held <= chunks.room(tokens) && held - range.start <= chunks.longest(tokens));
                    for place in range {
                        let wanted = decoding.packed(place as u32 + 1);
                        assert_eq!(read.packed(held as u32), wanted, "window {window}, {tokens} tokens, place {place}");
                    }
                }
                assert_eq!(next, tokens);
            }
        }
    }

    #[test]
    fn chunks_of_one_length_have_the_rest_at_the_end() {
        assert_eq!(Chunks::of(100).ranges(250).collect::<Vec<_>>(), [0..100, 100..200, 200..250]);
        assert_eq!(Chunks::of(0).ranges(2).collect::<Vec<_>>(), [0..1, 1..2]);
        assert_eq!((Chunks::of(100).longest(50), Chunks::of(100).room(250)), (50, 250));
    }

    #[test]
    fn a_prompt_is_the_first_chunk_and_leaves_the_others_where_they_are() {
        assert_eq!(Chunks::of(1).behind(5).ranges(7).collect::<Vec<_>>(), [0..5, 5..6, 6..7]);
        let (chunks, _) = Chunks::decoded(128);
        assert_eq!(chunks.behind(0), chunks);
        for (prompt, wanted) in [(1, 127), (127, 127), (128, 255), (300, 383)] {
            assert_eq!(chunks.behind(prompt).ranges(600).collect::<Vec<_>>()[..2], [0..wanted, wanted..wanted + 128]);
        }
    }

    #[test]
    fn equal_scores_predict_with_the_vocabularys_perplexity_and_do_not_diverge() {
        let mut score = Score::default();
        let logits = [3.0_f32; 20];
        score.add(&logits, Some(&logits), &[0, 4, 2, 1]);
        assert!((score.perplexity() - 5.0).abs() < 1e-6);
        assert!(score.kl().abs() < 1e-9);
    }

    #[test]
    fn divergence_is_that_of_the_two_distributions() {
        // softmax(0, ln 3) = (1/4, 3/4) against (1/2, 1/2).
        let mut score = Score::default();
        score.add(&[0.0, 0.0], Some(&[0.0, 3.0_f32.ln()]), &[0]);
        let wanted = 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln();
        assert!((score.kl() - wanted).abs() < 1e-6);
    }
}
