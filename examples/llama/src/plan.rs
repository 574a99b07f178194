//! `plan`: bits for every layer, head, key and value, within a budget, from sample text.

use std::path::{Path, PathBuf};
use std::time::Instant;

use wgkv::bits::{BitBudget, BitPlan, BitRule, Sensitivity};
use wgkv::learned::Learned;
use wgkv::{Protection, Sinks};
use wgkv_decoder::Decoder;

use crate::error::{Error, Result};
use crate::options::{CacheOptions, ModelOptions, expect_alike, read_text};
use crate::perplexity::{Window, bar, windows};
use crate::sensitivity::Subject;

/// Options of `plan`.
#[derive(Debug, Clone, clap::Args)]
pub struct PlanOptions {
    /// The model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// The cache: codec, clip, scales and sinks. Its bits and group are what the plan chooses.
    #[command(flatten)]
    pub cache: CacheOptions,
    /// Sample text; not the one that the model is measured on.
    #[arg(long)]
    pub text: PathBuf,
    /// Bits for each number of a packed token, scales and zeros included.
    #[arg(long, required_unless_present = "bytes", conflicts_with = "bytes")]
    pub budget: Option<f64>,
    /// Bytes for one sequence of `--tokens` tokens, sinks and window included.
    #[arg(long, requires = "tokens")]
    pub bytes: Option<u64>,
    /// Tokens of that sequence.
    #[arg(long, requires = "bytes")]
    pub tokens: Option<u32>,
    /// Rule: measured (with :layer, :fill), cache-norm, repo-norm (with :64) or a pair such as
    /// K4V2.
    #[arg(long, default_value = "measured")]
    pub allocator: BitRule,
    /// File to write, JSON.
    #[arg(long)]
    pub out: PathBuf,
    /// File of what was measured, JSON: read if it is there, otherwise written, so that further
    /// plans need not measure again.
    #[arg(long)]
    pub sensitivity: Option<PathBuf>,
    /// Windows of the text to measure on.
    #[arg(long, default_value_t = 8)]
    pub windows: usize,
    /// Windows to weigh layers by the divergence of the model's predictions; with 0 each counts by
    /// its output's size.
    #[arg(long, default_value_t = 4)]
    pub divergence_windows: usize,
    /// Tokens in a window.
    #[arg(long, default_value_t = 2048)]
    pub context: usize,
}

/// Measures what there is to measure of a subject, with a bar of progress.
pub fn measure(subject: &Subject<'_>, name: &str, windows: &[Window], divergence_windows: usize) -> Result<Sensitivity> {
    let config = subject.model.config();
    let candidates = Sensitivity::default_candidates(&config.shape(), &subject.format);
    let tokens = |windows: &[Window]| windows.iter().map(|(input, _)| input.len()).sum::<usize>();
    let few = &windows[..divergence_windows.min(windows.len())];
    let bar = bar(tokens(windows) + config.layers * tokens(few), "");
    let probe = subject.probe(&candidates, windows, |tokens| bar.inc(tokens as u64))?;
    let mut sensitivity = probe.finish(name)?.with_weight_norms(subject.weight_norms()?)?;
    drop(probe);
    if !few.is_empty() {
        let weights = subject.divergences(&sensitivity, few, |tokens| bar.inc(tokens as u64))?;
        sensitivity = sensitivity.with_layer_weights(weights)?;
    }
    bar.finish_and_clear();
    Ok(sensitivity)
}

/// Makes the plan. Returns it with the seconds that it took to decide.
pub fn plan(options: &PlanOptions) -> Result<(BitPlan, f64)> {
    let content = read_text(&options.text)?;
    let model = options.model.open()?;
    expect_alike(model.config(), "--model")?;
    let (config, hash) = (model.config(), model.hash()?);
    let learned = options.cache.learned(&model, &options.model.model)?;
    let format = options.cache.format(config, learned.as_ref())?;
    let protection = options.cache.protection(Sinks::First(4), 128);
    let sensitivity = match options.sensitivity.as_deref().filter(|path| path.exists()) {
        Some(path) => known(path, &hash, format, learned.as_ref())?,
        None => {
            let windows = windows(&content, &model, &options.model, options.windows, options.context)?;
            let gpu = options.model.gpu()?;
            let decoder = pollster::block_on(Decoder::load(&gpu, &model))?;
            let subject = Subject { model: &model, decoder: &decoder, format, learned: learned.as_ref(), sinks: protection.sinks };
            let sensitivity = measure(&subject, &hash, &windows, options.divergence_windows)?;
            if let Some(path) = &options.sensitivity {
                sensitivity.save(path)?;
            }
            sensitivity
        }
    };
    let allowance = allowance(options, protection);
    let started = Instant::now();
    let allocation = BitPlan::choose(&config.shape(), &sensitivity, allowance, options.allocator)?;
    let seconds = started.elapsed().as_secs_f64();
    allocation.save(&options.out)?;
    Ok((allocation, seconds))
}

/// Returns what was measured before. Refuses it where it was of another model or codec, or with
/// other learned data.
fn known(path: &Path, hash: &str, format: wgkv::Format, learned: Option<&Learned>) -> Result<Sensitivity> {
    let sensitivity = Sensitivity::load(path)?;
    sensitivity.expect_model(hash)?;
    sensitivity.expect_learned(learned)?;
    let had = sensitivity.format();
    if had.codec() != format.codec() || had.scales() != format.scales() {
        let (wanted, had) = (format!("of codec {}, scales {}", format.codec(), format.scales()), format!("of codec {}, scales {}", had.codec(), had.scales()));
        return Err(Error::Option { name: "--sensitivity", wanted, had });
    }
    Ok(sensitivity)
}

fn allowance(options: &PlanOptions, protection: Protection) -> BitBudget {
    match (options.bytes, options.tokens, options.budget) {
        (Some(bytes), Some(tokens), _) => BitBudget::Bytes { bytes, tokens, protection },
        (_, _, budget) => BitBudget::BitsPerElement(budget.unwrap_or_default()),
    }
}
