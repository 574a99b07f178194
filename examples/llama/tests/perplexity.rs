//! The whole road from text to perplexity, on whatever GPU is there (a software adapter will do).
//!
//! Some tests make a random model with everything that a config can ask for; the others run a trained one, the embedded
//! `assets/wiki-8m` unless `WGKV_LLAMA_MODEL` names another. Perplexity on published text, which the project does not
//! ship, is what `cargo xtask quality` measures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::path::{Path, PathBuf};

use wgkv::learned::Learned;
use wgkv::{Capacity, ChannelOrder, Codec, Format, Means, Protection, Sinks};
use wgkv_llama::attention::PlainAttention;
use wgkv_llama::bridge::Bridge;
use wgkv_llama::calibrate::{CalibrateOptions, calibrate, collect_means};
use wgkv_llama::compressed::CompressedAttention;
use wgkv_llama::model::Model;
use wgkv_llama::options::{open, open_f16, planned};
use wgkv_llama::perplexity::{PerplexityOptions, PerplexityReport, Score, perplexity, plain_score, score_window, windows};
use wgkv_llama::simulate::{Reorder, SimulatedAttention, Simulation};
use wgkv_llama::text::Text;
use wgkv_llama::weights::model_hash;

/// Logits of an f16 cache against f32 attention: f16 keeps 11 bits of keys and values.
const F16_LOGIT_ERROR: f32 = 1e-2;
/// How far from the published perplexity a correct model may land.
const PERPLEXITY_ERROR: f64 = 5e-3;

/// Perplexity and divergence of the kernels against the simulation, which quantizes neither queries nor probabilities: twice
/// the shares that `cargo xtask quality` allows, since 512 tokens are an eighth of the least that it measures.
const SIMULATION_ERROR: (f64, f64) = (0.02, 0.1);

/// Of the divergence without means, what is left at most with those of 256 tokens, or of sample text.
const PROMPT_SHARE: f64 = 0.5;

/// The model that the project embeds. It comes with a calibration.
fn embedded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/wiki-8m")
}

/// The embedded model, or the one that `WGKV_LLAMA_MODEL` names.
fn model_directory() -> PathBuf {
    std::env::var_os("WGKV_LLAMA_MODEL").map_or_else(embedded, PathBuf::from)
}

fn f16_cache(bridge: &Bridge, model: &Model, tokens: usize) -> wgkv::Cache {
    open_f16(bridge, model.config(), tokens).unwrap()
}

/// Runs the shipped text through an f16 cache and through plain attention and compares every score.
fn compare_with_plain(directory: &Path) {
    let bridge = Bridge::open(None).unwrap();
    let model = Model::open(directory, &bridge).unwrap();
    let text = Text::open(directory).unwrap();
    let ids = text.encode(include_str!("data/smoke.txt")).unwrap();
    let context = 512;
    let windows = windows(&ids, model.config(), 1, context).unwrap();

    // Two chunks, the second one shorter and no multiple of anything, so that the past and the causal edge are crossed;
    // then one token alone, as in decoding.
    let input = &windows[0].0;
    let mut cache = f16_cache(&bridge, &model, context);
    let mut compressed = CompressedAttention::new(&bridge, &mut cache).unwrap();
    let mut plain = PlainAttention::new(model.config(), bridge.device());
    for chunk in [&input[..300], &input[300..511], &input[511..]] {
        let rows = |hidden| model.logits(hidden).unwrap();
        let got = rows(model.forward(chunk, &mut compressed).unwrap());
        let wanted = rows(model.forward(chunk, &mut plain).unwrap());
        let worst = got.iter().zip(&wanted).map(|(got, wanted)| (got - wanted).abs() / (1.0 + wanted.abs())).fold(0.0, f32::max);
        assert!(
            worst < F16_LOGIT_ERROR && got.iter().all(|score| score.is_finite()),
            "{} tokens: logits differ by {worst}, allowed {F16_LOGIT_ERROR}",
            chunk.len()
        );
    }
    compressed.end().unwrap();

    let score = plain_score(&model, &bridge, &windows, context).unwrap();
    let mut attention = CompressedAttention::new(&bridge, &mut cache).unwrap();
    let cached = score_window(&model, &windows[0], 128, &mut attention, None, |_| ()).unwrap();
    attention.end().unwrap();
    assert!(
        (cached.perplexity() / score.perplexity() - 1.0).abs() < PERPLEXITY_ERROR,
        "perplexity {} through the cache, {} without",
        cached.perplexity(),
        score.perplexity()
    );
}

#[test]
fn the_f16_cache_agrees_with_plain_attention_on_a_random_model() {
    let folder = tiny::folder("random_model");
    tiny::write_model(&folder);
    compare_with_plain(&folder);
}

#[test]
fn the_f16_cache_agrees_with_plain_attention_on_a_trained_model() {
    compare_with_plain(&model_directory());
}

/// Options of a command, as typed.
fn options<T: clap::Args>(words: &[&str]) -> T {
    T::from_arg_matches(&T::augment_args(clap::Command::new("test")).get_matches_from([&["test"], words].concat())).unwrap()
}

fn smoke() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smoke.txt").to_str().unwrap().to_owned()
}

/// Calibrates a model with the shipped text and returns the file's path.
fn calibration_of(folder: &Path) -> PathBuf {
    let out = folder.join("rotate-kv.safetensors");
    let words = ["--model", folder.to_str().unwrap(), "--text", &smoke(), "--out", out.to_str().unwrap(), "--windows", "2", "--context", "96"];
    let report = calibrate(&options::<CalibrateOptions>(&words)).unwrap();
    assert_eq!((report.tokens, report.heads_per_group), (192, Some(2)));
    out
}

fn rotate_kv(folder: &Path, more: &[&str]) -> wgkv_llama::error::Result<PerplexityReport> {
    let fixed = ["--model", folder.to_str().unwrap(), "--text", &smoke(), "--codec", "rotate-kv", "--windows", "1", "--context", "96", "--strict"];
    perplexity(&options::<PerplexityOptions>(&[&fixed, more].concat()))
}

#[test]
fn a_calibration_serves_its_model_and_no_other() {
    let (one, other) = (tiny::folder("calibrated"), tiny::folder("calibrated_another"));
    tiny::write_model(&one);
    tiny::write_model(&other);
    let mut config = tiny::config();
    config["rope_theta"] = serde_json::json!(10_000.0);
    tiny::write_config(&other, &config);
    let file = calibration_of(&one);
    let file = file.to_str().unwrap();

    let report = rotate_kv(&one, &["--calibration", file]).unwrap();
    assert_eq!((report.format.sinks.as_str(), report.format.heads_per_group, report.simulated), ("massive:20", Some(2), false));
    assert!(report.perplexity.is_finite() && report.kl > 0.0);
    // One file holds what every number of heads and both reaches need.
    let report = rotate_kv(&one, &["--calibration", file, "--heads-per-group", "1", "--reach", "local", "--simulate"]).unwrap();
    assert_eq!((report.format.heads_per_group, report.order.as_deref(), report.simulated), (Some(1), Some("calibration, local"), true));

    let error = rotate_kv(&other, &["--calibration", file]).unwrap_err().to_string();
    for hash in [model_hash(&one).unwrap(), model_hash(&other).unwrap()] {
        assert!(error.contains(&hash), "{error}");
    }
    let error = rotate_kv(&one, &[]).unwrap_err().to_string();
    assert!(error.contains("wgkv-llama calibrate --model") && error.contains("--no-reorder"), "{error}");
}

#[test]
fn rotate_kv_costs_a_trained_model_what_its_simulation_says() {
    let directory = embedded();
    let bridge = Bridge::open(None).unwrap();
    let model = Model::open(&directory, &bridge).unwrap();
    let config = model.config();
    let calibration = ChannelOrder::load(directory.join("rotate-kv.safetensors")).unwrap();
    calibration.expect_model(&model_hash(&directory).unwrap()).unwrap();
    let ids = Text::open(&directory).unwrap().encode(include_str!("data/smoke.txt")).unwrap();
    let context = 512;
    let window = windows(&ids, config, 1, context).unwrap().remove(0);
    let (protection, capacity) = (Protection { sinks: Sinks::Massive(20), window: 0 }, Capacity::tokens(1, context as u32));
    let mut reference = f16_cache(&bridge, &model, context);

    for (bits, chunk) in [(wgkv::Bits::Two, context), (wgkv::Bits::Four, 200)] {
        let format = Format::new(Codec::RotateKv, bits, bits, 64).with_heads_per_group(calibration.heads_per_group());
        let mut score = |attention: &mut dyn wgkv_llama::attention::Attention| -> Score {
            let mut control = CompressedAttention::new(&bridge, &mut reference).unwrap();
            let score = score_window(&model, &window, chunk, attention, Some(&mut control), |_| ()).unwrap();
            control.end().unwrap();
            score
        };
        let mut cache = open(&bridge, planned(config, format, Some(calibration.clone().into()), protection, capacity)).unwrap();
        let got = score(&mut CompressedAttention::new(&bridge, &mut cache).unwrap());
        let simulation = Simulation::new(config, &format, &calibration, Reorder::AfterRotation, protection.sinks).unwrap();
        let wanted = score(&mut SimulatedAttention::new(&simulation, config, bridge.device()));
        let share = |got: f64, wanted: f64| (got / wanted - 1.0).abs();
        assert!(
            share(got.perplexity(), wanted.perplexity()) < SIMULATION_ERROR.0 && share(got.kl(), wanted.kl()) < SIMULATION_ERROR.1,
            "{bits:?}, chunks of {chunk}: perplexity {} and divergence {}, simulated {} and {}",
            got.perplexity(),
            got.kl(),
            wanted.perplexity(),
            wanted.kl()
        );
    }
}

#[test]
fn a_prompt_is_enough_to_centre_on() {
    let directory = embedded();
    let bridge = Bridge::open(None).unwrap();
    let model = Model::open(&directory, &bridge).unwrap();
    let config = model.config();
    let ids = Text::open(&directory).unwrap().encode(include_str!("data/smoke.txt")).unwrap();
    let context = 512;
    let (mut prompt, targets) = windows(&ids, config, 1, context).unwrap().remove(0);
    let rest = (prompt.split_off(context / 2), targets[context / 2..].to_vec());
    let collector = collect_means(&model, &bridge, &[(prompt.clone(), Vec::new())], |_| ()).unwrap();
    let hash = model_hash(&directory).unwrap();
    let means = pollster::block_on(collector.finish(&hash)).unwrap();
    assert_eq!(means.tokens(), prompt.len() as u64);
    let shipped = Means::load(directory.join("centred.safetensors")).unwrap();
    shipped.expect_model(&hash).unwrap();

    // What follows the prompt, beside halves of the same past: prompt and what is added lie in codes of two bits.
    let format = Format::new(Codec::Centred, wgkv::Bits::Two, wgkv::Bits::Two, 64);
    let protection = Protection { sinks: Sinks::First(4), window: 0 };
    let mut reference = f16_cache(&bridge, &model, context);
    let mut divergence = |learned: Option<Learned>| {
        let mut cache = open(&bridge, planned(config, format, learned, protection, Capacity::tokens(1, context as u32))).unwrap();
        let mut attention = CompressedAttention::new(&bridge, &mut cache).unwrap();
        let mut control = CompressedAttention::new(&bridge, &mut reference).unwrap();
        model.forward(&prompt, &mut attention).unwrap();
        model.forward(&prompt, &mut control).unwrap();
        let score = score_window(&model, &rest, context, &mut attention, Some(&mut control), |_| ()).unwrap();
        control.end().unwrap();
        score.kl()
    };
    let [of_prompt, of_text, none] = [Some(means.into()), Some(shipped.into()), None].map(&mut divergence);
    println!("divergence: centred on the prompt {of_prompt}, on sample text {of_text}, on nothing {none}");
    assert!(of_prompt < PROMPT_SHARE * none && of_text < PROMPT_SHARE * none, "{of_prompt}, {of_text}, {none}");
}
