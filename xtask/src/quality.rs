//! `cargo xtask quality`: what each codec costs on a model, against what an independent simulation of it costs.
//!
//! The expected numbers are those of an f32 simulation that shares no code with this project: scales stored as f16, queries
//! and probabilities not quantized. A correct implementation lands within 1 % of its perplexities and 5 % of its divergences.

use crate::llama::{self, Choice, number};
use crate::setup;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use wgkv::{Bits, Codec};

const PERPLEXITY_ERROR: f64 = 0.01;
const KL_ERROR: f64 = 0.05;

const fn rtn(keys: Bits, values: Bits) -> Choice {
    Choice::new(Codec::Rtn, keys, values)
}

const fn hadamard(keys: Bits, values: Bits) -> Choice {
    Choice::new(Codec::Hadamard, keys, values)
}

use Bits::{Four, Three, Two};

/// What is measured.
const CHOICES: [Choice; 10] = [
    Choice::F16,
    rtn(Four, Four),
    rtn(Three, Three),
    rtn(Four, Two),
    rtn(Two, Four),
    rtn(Two, Two),
    hadamard(Four, Four),
    hadamard(Four, Two),
    hadamard(Two, Four),
    hadamard(Two, Two),
];

/// Perplexity and divergence that one codec must reach on WikiText-2 (test, raw), strict, windows of 2048.
struct Expected {
    model: &'static str,
    windows: usize,
    choice: Choice,
    perplexity: f64,
    kl: f64,
}

const fn expected(model: &'static str, windows: usize, choice: Choice, perplexity: f64, kl: f64) -> Expected {
    Expected { model, windows, choice, perplexity, kl }
}

const EXPECTED: [Expected; 20] = [
    expected("wiki-8m", 2, Choice::F16, 59.20, 0.0),
    expected("wiki-8m", 2, rtn(Four, Four), 60.69, 0.0268),
    expected("wiki-8m", 2, rtn(Four, Two), 68.43, 0.1364),
    expected("wiki-8m", 2, rtn(Two, Four), 112.7, 0.6714),
    expected("wiki-8m", 2, hadamard(Two, Two), 89.10, 0.4034),
    expected("wiki-8m", 16, Choice::F16, 59.31, 0.0),
    expected("wiki-8m", 16, rtn(Four, Four), 61.17, 0.0258),
    expected("wiki-8m", 16, rtn(Four, Two), 67.31, 0.1299),
    expected("wiki-8m", 16, rtn(Two, Four), 105.2, 0.6153),
    expected("wiki-8m", 16, hadamard(Two, Two), 88.43, 0.3986),
    expected("wiki-27m", 16, Choice::F16, 53.57, 0.0),
    expected("wiki-27m", 16, rtn(Four, Four), 54.60, 0.0237),
    expected("wiki-27m", 16, rtn(Three, Three), 59.14, 0.1148),
    expected("wiki-27m", 16, rtn(Four, Two), 60.46, 0.1734),
    expected("wiki-27m", 16, rtn(Two, Four), 98.77, 0.7045),
    expected("wiki-27m", 16, rtn(Two, Two), 113.0, 0.868),
    expected("wiki-27m", 16, hadamard(Four, Four), 54.29, 0.0149),
    expected("wiki-27m", 16, hadamard(Four, Two), 59.06, 0.1061),
    expected("wiki-27m", 16, hadamard(Two, Four), 65.71, 0.2286),
    expected("wiki-27m", 16, hadamard(Two, Two), 72.25, 0.3262),
];

/// Options of `quality`.
#[derive(clap::Args)]
pub struct Options {
    /// The model's folder; its name (wiki-8m, wiki-27m) tells which numbers are expected.
    #[arg(long, default_value = "assets/wiki-8m")]
    model: PathBuf,
    /// The text to predict: WikiText-2's raw test split, one file. It is not part of this repository.
    #[arg(long, default_value = "assets/wiki.test.raw")]
    text: PathBuf,
    /// Windows of 2048 tokens; 2, or 16 for a head dimension of 128.
    #[arg(long)]
    windows: Option<usize>,
}

fn head_dim(model: &Path) -> Result<u32> {
    let path = model.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let config: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    let told = config["head_dim"].as_u64();
    let worked_out = || Some(config["hidden_size"].as_u64()? / config["num_attention_heads"].as_u64().filter(|heads| *heads > 0)?);
    told.or_else(worked_out).and_then(|d| u32::try_from(d).ok()).with_context(|| format!("{} tells no head dimension", path.display()))
}

/// Is the number within a share of what it must be? A divergence of zero must be zero to the digits that are printed.
fn near(got: f64, wanted: f64, share: f64) -> bool {
    (got - wanted).abs() <= share * wanted + 5e-5
}

/// Measures every codec; an error if one is not what it must be.
pub fn run(options: &Options) -> Result<()> {
    let root = crate::command::root();
    let (model, text) = (root.join(&options.model), root.join(&options.text));
    if !text.is_file() {
        bail!("{} does not exist; name a file with --text (the expected numbers are for WikiText-2's raw test split)", text.display());
    }
    let head_dim = head_dim(&model)?;
    let group = if head_dim == 128 { 128 } else { 64 };
    let windows = options.windows.unwrap_or(if head_dim == 128 { 16 } else { 2 });
    let name = model.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    setup::run_setup()?;
    let program = llama::build()?;
    println!("\n{name}, group {group}, {windows} windows of 2048 tokens, strict\n");
    println!("{:<16} {:>12} {:>11} {:>9}   {:>8} {:>8}", "codec", "bits/element", "perplexity", "expected", "KL", "expected");
    let mut off = Vec::new();
    for choice in CHOICES {
        let fixed =
            ["perplexity".into(), "--model".into(), path(&model)?, "--text".into(), path(&text)?, "--windows".into(), windows.to_string(), "--strict".into()];
        let arguments: Vec<String> = fixed.into_iter().chain(choice.options(group)).collect();
        let report = llama::report(&program, &arguments, false)?;
        let (perplexity, kl, bits) = (number(&report, "perplexity")?, number(&report, "kl")?, number(&report, "bits_per_element")?);
        let wanted = EXPECTED.iter().find(|e| e.model == name && e.windows == windows && e.choice == choice);
        let right = wanted.is_none_or(|e| near(perplexity, e.perplexity, PERPLEXITY_ERROR) && near(kl, e.kl, KL_ERROR));
        let (wanted_perplexity, wanted_kl) = wanted.map_or(("-".into(), "-".into()), |e| (format!("{:.2}", e.perplexity), format!("{:.4}", e.kl)));
        let verdict = if right { "" } else { "  OFF" };
        println!("{choice:<16} {bits:>12.3} {perplexity:>11.2} {wanted_perplexity:>9}   {kl:>8.4} {wanted_kl:>8}{verdict}");
        if !right {
            off.push(choice.to_string());
        }
    }
    if !EXPECTED.iter().any(|e| e.model == name && e.windows == windows) {
        println!("\nno numbers are expected of {name} at {windows} windows: nothing was checked");
    }
    if !off.is_empty() {
        bail!("off by more than {} % of the perplexity or {} % of the divergence: {}", 100.0 * PERPLEXITY_ERROR, 100.0 * KL_ERROR, off.join(", "));
    }
    Ok(())
}

fn path(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_takes_a_share_and_the_digits_printed() {
        assert!(near(60.0, 60.5, 0.01) && !near(60.0, 60.7, 0.01));
        assert!(near(0.0, 0.0, 0.05) && !near(0.001, 0.0, 0.05));
        assert!(!near(f64::NAN, 60.0, 0.01));
    }

    #[test]
    fn everything_expected_is_measured() {
        assert!(EXPECTED.iter().all(|e| CHOICES.contains(&e.choice)));
    }
}
