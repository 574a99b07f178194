//! `tradeoff`: allocations against fixed bits at equal bytes, by what they do to a model's predictions.
//!
//! Bits are allocated by sample text; perplexity and divergence are of other text. Every cache reads the same windows, with every token
//! quantized before it is attended to, and is compared with the same f16 predictions.

use std::fmt;
use std::path::PathBuf;

use burn::tensor::Tensor;
use serde::Serialize;
use wgkv::bits::{BitBudget, BitPlan, BitRule};
use wgkv::learned::{Learned, Reach};
use wgkv::{Bits, Capacity, Codec, Format, Precision, Protection, Sinks};

use crate::attention::Attention;
use crate::bridge::Bridge;
use crate::calibrate::{collect, collect_means};
use crate::compressed::CompressedAttention;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::options::{MASSIVE, ModelOptions, open, open_f16, planned, shape};
use crate::perplexity::{ROWS, Score, bar, windows};
use crate::plan::measure;
use crate::sensitivity::{Subject, Window};
use crate::text::Text;
use crate::weights::model_hash;

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

/// All rows of scores for hidden rows, a block at a time.
fn logits(model: &Model, hidden: &Tensor<2>) -> Result<Vec<Vec<f32>>> {
    let [rows, _] = hidden.dims();
    (0..rows).step_by(ROWS).map(|first| model.logits(hidden.clone().narrow(0, first, ROWS.min(rows - first)))).collect()
}

/// Adds one window's predictions through some attention.
fn score(model: &Model, (input, targets): &Window, attention: &mut dyn Attention, reference: &[Vec<f32>], score: &mut Score) -> Result<()> {
    let hidden = model.forward(input, attention)?;
    for ((logits, reference), targets) in logits(model, &hidden)?.iter().zip(reference).zip(targets.chunks(ROWS)) {
        score.add(logits, Some(reference), targets);
    }
    Ok(())
}

/// What one codec is compared by: fixed bits in every group, and every rule at every budget.
fn contenders(options: &TradeoffOptions, model: &Model, bridge: &Bridge, codec: Codec, sample: &[Window], hash: &str) -> Result<Vec<Contender>> {
    let config = model.config();
    let shape = shape(config);
    let format = Format::new(codec, Bits::Four, Bits::Four, 128);
    let windows = &sample[..CALIBRATION_WINDOWS.min(sample.len())];
    let (learned, sinks) = match codec {
        Codec::RotateKv => {
            let bar = bar(windows.iter().map(|(input, _)| input.len()).sum(), ", calibrating");
            let collector = collect(model, bridge, windows, format.heads_per_group(config.kv_heads as u32), |tokens| bar.inc(tokens as u64))?;
            bar.finish_and_clear();
            (Some(Learned::from(pollster::block_on(collector.finish(hash, Reach::Global))?)), MASSIVE)
        }
        Codec::Centred => {
            let bar = bar(windows.iter().map(|(input, _)| input.len()).sum(), ", calibrating");
            let collector = collect_means(model, bridge, windows, |tokens| bar.inc(tokens as u64))?;
            bar.finish_and_clear();
            (Some(Learned::from(pollster::block_on(collector.finish(hash))?)), Sinks::None)
        }
        _ => (None, Sinks::None),
    };
    let subject = Subject { model, bridge, format, learned: learned.as_ref(), sinks };
    let sensitivity = measure(&subject, hash, &sample[..options.sample_windows.min(sample.len())], options.divergence_windows)?;
    let protection = Protection { sinks, window: 0 };
    let contender = |name: String, budget: Option<f64>, allocation: BitPlan| {
        let one = planned(config, allocation.clone(), learned.clone(), Protection::NONE, Capacity::tokens(1, 128));
        let bits_per_element = one.build(bridge.gpu().capability())?.bits_per_element(128);
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
            let of = |bits: Bits| Precision { bits, group: *group };
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
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source });
    let (sample, content) = (read(&options.sample)?, read(&options.text)?);
    let config = Config::open(&options.model.model)?;
    let text = Text::open(&options.model.model)?;
    let hash = model_hash(&options.model.model)?;
    let wanted =
        options.sample_windows.max(if options.codecs.iter().any(|codec| [Codec::RotateKv, Codec::Centred].contains(codec)) { CALIBRATION_WINDOWS } else { 0 });
    let sample_ids = text.encode(&sample)?;
    let sample = windows(&sample_ids, &config, wanted.min(sample_ids.len() / options.context).max(options.sample_windows), options.context)?;
    let windows = windows(&text.encode(&content)?, &config, options.windows, options.context)?;
    let bridge = Bridge::open(options.model.adapter.as_deref())?;
    let model = Model::open(&options.model.model, &bridge)?;
    let mut all = Vec::new();
    for codec in &options.codecs {
        all.extend(contenders(options, &model, &bridge, *codec, &sample, &hash)?);
    }

    let bar = bar(windows.len() * (all.len() + 1) * options.context, "");
    let mut reference = open_f16(&bridge, &config, options.context)?;
    let mut plain = Score::default();
    // The f16 predictions of all windows: 16 windows of 2048 tokens and 8192 words are a gigabyte.
    let mut expected = Vec::new();
    for window in &windows {
        let mut attention = CompressedAttention::new(&bridge, &mut reference)?;
        let hidden = model.forward(&window.0, &mut attention)?;
        let rows = logits(&model, &hidden)?;
        for (rows, targets) in rows.iter().zip(window.1.chunks(ROWS)) {
            plain.add(rows, None, targets);
        }
        attention.end()?;
        expected.push(rows);
        bar.inc(options.context as u64);
    }
    for contender in &mut all {
        let capacity = Capacity::tokens(1, options.context as u32);
        let mut cache = open(&bridge, planned(&config, contender.allocation.clone(), contender.learned.clone(), contender.protection, capacity))?;
        for (window, expected) in windows.iter().zip(&expected) {
            let mut attention = CompressedAttention::new(&bridge, &mut cache)?;
            score(&model, window, &mut attention, expected, &mut contender.score)?;
            attention.end()?;
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
        adapter: bridge.adapter().to_owned(),
    })
}

impl TradeoffReport {
    /// The fixed bits with the least divergence among those of a codec that take no more than a budget.
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
