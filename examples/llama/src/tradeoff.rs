//! `tradeoff`: allocations against fixed bits at equal bytes, by what they do to a model's
//! predictions.
//!
//! Bits are allocated by sample text; perplexity and divergence are of other text. Every cache
//! reads the same windows, with every token quantized before it is attended to, and is compared
//! with the same f16 predictions.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use wgkv::bits::{BitBudget, BitPlan, BitRule};
use wgkv::learned::{Learned, Reach};
use wgkv::{Bits, Capacity, Codec, Format, Precision, Protection, Sinks};
use wgkv_decoder::{Decoder, Model};

use crate::calibrate::{collect, collect_means};
use crate::error::{Error, Result};
use crate::options::{MASSIVE, ModelOptions, expect_alike, open, open_f16, planned, read_text};
use crate::perplexity::{Score, Window, bar, windows};
use crate::plan::measure;
use crate::reading::{ROWS, Reading, work};
use crate::sensitivity::Subject;

/// Windows that rotate-kv's order of channels and centred's means are made from.
const CALIBRATION_WINDOWS: usize = 48;

/// Bits of keys and values that every layer and head has alike: the controls.
const PAIRS: [(Bits, Bits); 9] = [
    (Bits::Two, Bits::Two),
    (Bits::Three, Bits::Two),
    (Bits::Two, Bits::Three),
    (Bits::Three, Bits::Three),
    (Bits::Four, Bits::Two),
    (Bits::Two, Bits::Four),
    (Bits::Four, Bits::Three),
    (Bits::Three, Bits::Four),
    (Bits::Four, Bits::Four),
];

/// Options of `tradeoff`.
#[derive(Debug, Clone, clap::Args)]
pub struct TradeoffOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// Text that bits are allocated by.
    #[arg(long)]
    pub sample: PathBuf,
    /// Text to be predicted: another one.
    #[arg(long)]
    pub text: PathBuf,
    /// Codecs.
    #[arg(long, value_delimiter = ',', default_value = "rtn,hadamard,rotate-kv")]
    pub codecs: Vec<Codec>,
    /// Bits per element that may be spent.
    #[arg(long, value_delimiter = ',', default_value = "2.5,3,3.5,4")]
    pub budgets: Vec<f64>,
    /// Rules.
    #[arg(long, value_delimiter = ',', default_value = "measured,measured:layer,cache-norm,repo-norm")]
    pub allocators: Vec<BitRule>,
    /// Tokens kept in f16 for good, which the bits do not count: none, first:N or massive:N; none
    /// without it, with rotate-kv massive:20.
    #[arg(long)]
    pub sinks: Option<Sinks>,
    /// Windows of the text to predict.
    #[arg(long, default_value_t = 16)]
    pub windows: usize,
    /// Windows of the sample to measure on.
    #[arg(long, default_value_t = 16)]
    pub sample_windows: usize,
    /// Windows of the sample to weigh layers by.
    #[arg(long, default_value_t = 8)]
    pub divergence_windows: usize,
    /// Tokens in a window.
    #[arg(long, default_value_t = 2048)]
    pub context: usize,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// One cache that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// The codec.
    pub codec: String,
    /// A rule with what it was allowed, or fixed bits and their group.
    pub name: String,
    /// Whether it is a rule that allocates.
    pub allocated: bool,
    /// What it was allowed, for a rule.
    pub budget: Option<f64>,
    /// Bits for each number of a packed token.
    pub bits_per_element: f64,
    /// Mean bits of a key's and of a value's code.
    pub mean_bits: [f64; 2],
    /// e to the mean negative log probability of the targets.
    pub perplexity: f64,
    /// Mean divergence from the f16 cache's predictions, in nats.
    pub kl: f64,
}

/// All that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct TradeoffReport {
    /// What the f16 cache reaches.
    pub perplexity: f64,
    /// Targets.
    pub tokens: usize,
    /// The budgets.
    pub budgets: Vec<f64>,
    /// The caches.
    pub entries: Vec<Entry>,
    /// The GPU.
    pub adapter: String,
}

/// A cache to be measured.
struct Contender {
    entry: Entry,
    allocation: BitPlan,
    learned: Option<Learned>,
    protection: Protection,
    score: Score,
}

/// Reads a window in one step and returns all rows of scores, a block at a time.
fn scores(reading: &mut Reading<'_>, (input, _): &Window) -> Result<Vec<Vec<f32>>> {
    reading.read(input, None)?;
    (0..input.len()).step_by(ROWS).map(|first| reading.scores(first..input.len().min(first + ROWS))).collect()
}

/// What one codec is compared by: fixed bits in every group, and every rule at every budget.
fn contenders(options: &TradeoffOptions, model: &Model, decoder: &Decoder, codec: Codec, sample: &[Window], hash: &str) -> Result<Vec<Contender>> {
    let config = model.config();
    let shape = config.shape();
    let format = Format::new(codec, Bits::Four, Bits::Four, 128);
    let windows = &sample[..CALIBRATION_WINDOWS.min(sample.len())];
    let sinks = options.sinks.unwrap_or(if codec == Codec::RotateKv { MASSIVE } else { Sinks::None });
    let learned = match codec {
        Codec::RotateKv => {
            let bar = bar(windows.iter().map(|(input, _)| input.len()).sum(), ", calibrating");
            let collector = collect(decoder, windows, format.heads_per_group(config.kv_heads as u32), |tokens| bar.inc(tokens as u64))?;
            bar.finish_and_clear();
            Some(Learned::from(pollster::block_on(collector.finish(hash, Reach::Global))?))
        }
        Codec::Centred => {
            let bar = bar(windows.iter().map(|(input, _)| input.len()).sum(), ", calibrating");
            let collector = collect_means(decoder, windows, |tokens| bar.inc(tokens as u64))?;
            bar.finish_and_clear();
            Some(Learned::from(pollster::block_on(collector.finish(hash))?))
        }
        _ => None,
    };
    let subject = Subject { model, decoder, format, learned: learned.as_ref(), sinks };
    let sensitivity = measure(&subject, hash, &sample[..options.sample_windows.min(sample.len())], options.divergence_windows)?;
    let protection = Protection { sinks, window: 0 };
    let contender = |name: String, budget: Option<f64>, allocation: BitPlan| {
        let one = planned(config, allocation.clone(), learned.clone(), Protection::NONE, Capacity::tokens(1, 128));
        let bits_per_element = one.build(decoder.gpu().capability())?.bits_per_element(128);
        let entry = Entry {
            codec: codec.to_string(),
            name,
            allocated: budget.is_some(),
            budget,
            bits_per_element,
            mean_bits: allocation.mean_bits(),
            perplexity: 0.0,
            kl: 0.0,
        };
        Ok::<_, Error>(Contender { entry, allocation, learned: learned.clone(), protection, score: Score::default() })
    };
    let mut all = Vec::new();
    let mut groups: Vec<u32> = sensitivity.candidates().iter().map(|c| c.group).collect();
    groups.sort_unstable();
    groups.dedup();
    for (key, value) in PAIRS {
        for group in groups.iter().rev() {
            let of = |bits: Bits| Precision::new(bits, *group);
            let allocation = BitPlan::uniform(&shape, format.with_precisions(of(key), of(value)))?;
            all.push(contender(format!("K{}V{} group {group}", key.get(), value.get()), None, allocation)?);
        }
    }
    for budget in &options.budgets {
        for allocator in &options.allocators {
            let allocation = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(*budget), *allocator)?;
            all.push(contender(format!("{allocator} {budget}"), Some(*budget), allocation)?);
        }
    }
    Ok(all)
}

/// Measures everything.
pub fn tradeoff(options: &TradeoffOptions) -> Result<TradeoffReport> {
    let (sample, content) = (read_text(&options.sample)?, read_text(&options.text)?);
    let model = options.model.open()?;
    expect_alike(model.config(), "--model")?;
    let (config, hash) = (model.config(), model.hash()?);
    let calibrates = options.codecs.iter().any(|codec| [Codec::RotateKv, Codec::Centred].contains(codec));
    let wanted = options.sample_windows.max(if calibrates { CALIBRATION_WINDOWS } else { 0 });
    let there = model.text().encode(&sample)?.len() / options.context.max(1);
    let sample = windows(&sample, &model, &options.model, wanted.min(there).max(options.sample_windows), options.context)?;
    let windows = windows(&content, &model, &options.model, options.windows, options.context)?;
    let gpu = options.model.gpu()?;
    let decoder = pollster::block_on(Decoder::load(&gpu, &model))?;
    let mut all = Vec::new();
    for codec in &options.codecs {
        all.extend(contenders(options, &model, &decoder, *codec, &sample, &hash)?);
    }

    let bar = bar(windows.len() * (all.len() + 1) * options.context, "");
    let mut work = work(&decoder, options.context)?;
    let mut reference = open_f16(&gpu, config, options.context)?;
    let mut plain = Score::default();
    // The f16 predictions of all windows: 16 windows of 2048 tokens and 8192 words are a gigabyte.
    let mut expected = Vec::new();
    for window in &windows {
        let mut reading = Reading::begin(&decoder, &mut work, &mut reference)?;
        let rows = scores(&mut reading, window)?;
        for (rows, targets) in rows.iter().zip(window.1.chunks(ROWS)) {
            plain.add(rows, None, targets);
        }
        reading.end()?;
        expected.push(rows);
        bar.inc(options.context as u64);
    }
    for contender in &mut all {
        let capacity = Capacity::tokens(1, options.context as u32);
        let mut cache = open(&gpu, planned(config, contender.allocation.clone(), contender.learned.clone(), contender.protection, capacity))?;
        for (window, expected) in windows.iter().zip(&expected) {
            let mut reading = Reading::begin(&decoder, &mut work, &mut cache)?;
            for ((rows, expected), targets) in scores(&mut reading, window)?.iter().zip(expected).zip(window.1.chunks(ROWS)) {
                contender.score.add(rows, Some(expected), targets);
            }
            reading.end()?;
            bar.inc(options.context as u64);
        }
        contender.entry.perplexity = contender.score.perplexity();
        contender.entry.kl = contender.score.kl();
    }
    bar.finish_and_clear();
    Ok(TradeoffReport {
        perplexity: plain.perplexity(),
        tokens: plain.tokens,
        budgets: options.budgets.clone(),
        entries: all.into_iter().map(|contender| contender.entry).collect(),
        adapter: gpu.adapter_name().to_owned(),
    })
}

impl TradeoffReport {
    /// The fixed bits with the least divergence among those of a codec that take no more than a
    /// budget.
    pub fn best_fixed(&self, codec: &str, budget: f64) -> Option<&Entry> {
        let fits = |e: &&Entry| e.codec == codec && !e.allocated && e.bits_per_element <= budget + 1e-9;
        self.entries.iter().filter(fits).min_by(|a, b| a.kl.total_cmp(&b.kl))
    }
}

impl fmt::Display for TradeoffReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "f16: perplexity {:.2} over {} tokens\n", self.perplexity, self.tokens)?;
        let mut codecs: Vec<&str> = self.entries.iter().map(|e| e.codec.as_str()).collect();
        codecs.dedup();
        writeln!(f, "| codec | budget | best fixed bits that fit | KL | rule | bits/element | K, V | perplexity | KL | against best fixed |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|")?;
        for codec in &codecs {
            for budget in &self.budgets {
                let Some(best) = self.best_fixed(codec, *budget) else { continue };
                for e in self.entries.iter().filter(|e| e.codec == *codec && e.budget == Some(*budget)) {
                    let rule = e.name.rsplit_once(' ').map_or(e.name.as_str(), |(rule, _)| rule);
                    writeln!(
                        f,
                        "| {codec} | {budget} | {} ({:.3}) | {:.4} | {rule} | {:.3} | {:.2}, {:.2} | {:.2} | {:.4} | {:.2} |",
                        best.name,
                        best.bits_per_element,
                        best.kl,
                        e.bits_per_element,
                        e.mean_bits[0],
                        e.mean_bits[1],
                        e.perplexity,
                        e.kl,
                        e.kl / best.kl
                    )?;
                }
            }
        }
        writeln!(f, "\n| codec | fixed bits | bits/element | perplexity | KL |\n|---|---|---|---|---|")?;
        for e in self.entries.iter().filter(|e| !e.allocated) {
            writeln!(f, "| {} | {} | {:.3} | {:.2} | {:.4} |", e.codec, e.name, e.bits_per_element, e.perplexity, e.kl)?;
        }
        Ok(())
    }
}
