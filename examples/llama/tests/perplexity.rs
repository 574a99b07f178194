//! The whole road from text to perplexity, on whatever GPU is there (a software adapter will do).
//!
//! Some tests make a random model with everything that a config can ask for; the others run a
//! trained one, the embedded `assets/wiki-8m` unless `WGKV_LLAMA_MODEL` names another. Perplexity
//! on published text, which the project does not ship, is what `cargo xtask quality` measures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::path::{Path, PathBuf};

use tiny::{embedded, options, smoke};
use wgkv::learned::Learned;
use wgkv::{Cache, Capacity, ChannelOrder, Codec, Format, Means, Protection, Sinks};
use wgkv_decoder::{Decoder, Model, Tap};
use wgkv_llama::calibrate::{CalibrateOptions, calibrate, collect_means};
use wgkv_llama::device;
use wgkv_llama::options::{ModelOptions, open, open_f16, planned};
use wgkv_llama::perplexity::{Chunks, PerplexityOptions, PerplexityReport, Score, Window, perplexity, score_window, windows};
use wgkv_llama::reading::{Reading, work};
use wgkv_llama::simulate::{Reorder, SimulatedRows, Simulation};

/// Scores of a text read in pieces against the same text in one: products of few rows and of many
/// add in another order.
const PIECES_ERROR: f32 = 1e-2;
/// How far perplexity may land from what another decoder (on the tensor library burn, weights in
/// f32) found: f16 and the order of sums.
const PERPLEXITY_ERROR: f64 = 1e-3;
/// What it found for the first 512 tokens of the shipped text, with an f16 cache in pieces of 128.
const RANDOM_MODEL: f64 = 573.067;
const EMBEDDED_MODEL: f64 = 34.9911;

/// Perplexity and divergence of the kernels against the simulation, which quantizes neither queries
/// nor probabilities: twice the shares that `cargo xtask quality` allows, since 512 tokens are an
/// eighth of the least that it measures.
const SIMULATION_ERROR: (f64, f64) = (0.02, 0.1);

/// How far a divergence may lie from that of decoding, which rounds queries to 8 bits and adds in
/// another order.
const DECODED_ERROR: f64 = 0.1;

/// Of the divergence without means, what is left at most with those of 256 tokens, or of sample
/// text.
const PROMPT_SHARE: f64 = 0.5;

/// A model, and its device.
struct Loaded {
    path: PathBuf,
    model: Model,
    decoder: Decoder,
}

impl Loaded {
    fn new(path: PathBuf) -> Self {
        let model = Model::open(&path).unwrap();
        let decoder = pollster::block_on(Decoder::load(&device::open(None).unwrap(), &model)).unwrap();
        Self { path, model, decoder }
    }

    fn f16_cache(&self, tokens: usize) -> Cache {
        open_f16(self.decoder.gpu(), self.decoder.config(), tokens).unwrap()
    }

    fn window(&self, context: usize) -> Window {
        let options = ModelOptions { model: self.path.clone(), adapter: None };
        windows(include_str!("data/smoke.txt"), &self.model, &options, 1, context).unwrap().remove(0)
    }
}

/// Reads the shipped text in one piece and in several, and compares every score.
fn compare_pieces(path: PathBuf) {
    let loaded = Loaded::new(path);
    let (decoder, context) = (&loaded.decoder, 512);
    let (input, _) = loaded.window(context);
    let (mut whole, mut parts) = (loaded.f16_cache(context), loaded.f16_cache(context));
    let (mut whole_work, mut parts_work) = (work(decoder, context).unwrap(), work(decoder, 300).unwrap());
    let mut wanted = Reading::begin(decoder, &mut whole_work, &mut whole).unwrap();
    wanted.read(&input, None).unwrap();
    // Two chunks, the second one shorter and no multiple of anything, so that the past and the
    // causal edge are crossed; then one token alone, as in decoding.
    let mut reading = Reading::begin(decoder, &mut parts_work, &mut parts).unwrap();
    for chunk in [0..300, 300..511, 511..512] {
        reading.read(&input[chunk.clone()], None).unwrap();
        for first in (0..chunk.len()).step_by(100) {
            let rows = first..chunk.len().min(first + 100);
            let got = reading.scores(rows.clone()).unwrap();
            let wanted = wanted.scores(chunk.start + rows.start..chunk.start + rows.end).unwrap();
            let worst = got.iter().zip(&wanted).map(|(got, wanted)| (got - wanted).abs() / (1.0 + wanted.abs())).fold(0.0, f32::max);
            assert!(got.iter().all(|score| score.is_finite()) && worst < PIECES_ERROR, "{chunk:?}: scores differ by {worst}, allowed {PIECES_ERROR}");
        }
    }
    reading.end().unwrap();
    wanted.end().unwrap();
}

#[test]
fn a_random_model_predicts_the_same_in_pieces() {
    let folder = tiny::folder("random_model");
    tiny::write_model(&folder);
    compare_pieces(folder);
}

#[test]
fn a_trained_model_predicts_the_same_in_pieces() {
    compare_pieces(std::env::var_os("WGKV_LLAMA_MODEL").map_or_else(embedded, PathBuf::from));
}

#[test]
fn perplexities_are_those_of_another_decoder() {
    let folder = tiny::folder("known");
    tiny::write_model(&folder);
    for (model, wanted) in [(folder, RANDOM_MODEL), (embedded(), EMBEDDED_MODEL)] {
        let words = ["--model", model.to_str().unwrap(), "--text", &smoke(), "--codec", "f16", "--windows", "1", "--context", "512"];
        let got = perplexity(&options::<PerplexityOptions>(&words)).unwrap().perplexity;
        assert!((got / wanted - 1.0).abs() < PERPLEXITY_ERROR, "{}: {got}, should be {wanted}", model.display());
    }
}

#[test]
fn a_window_shows_what_decoding_shows() {
    let folder = tiny::folder("decoded");
    tiny::write_model(&folder);
    let run = |more: &[&str]| {
        let fixed = ["--model", folder.to_str().unwrap(), "--text", &smoke(), "--windows", "1", "--context", "200", "--codec", "rtn", "--sinks", "none"];
        let cache = ["--k-bits", "2", "--v-bits", "2", "--window", "16"];
        perplexity(&options::<PerplexityOptions>(&[&fixed[..], &cache, more].concat()))
    };
    let measured = |more: &[&str]| run(more).unwrap();
    // The first page is packed behind 144 tokens. Read at once, it is codes for all of them.
    let [told, decoded, at_once] = [&[][..], &["--chunk", "1"], &["--chunk", "200"]].map(measured);
    println!("divergence: {}, token by token {}, at once {}", told.kl, decoded.kl, at_once.kl);
    assert_eq!((told.format.window, told.bits_per_element), (decoded.format.window, decoded.bits_per_element));
    assert!((told.kl / decoded.kl - 1.0).abs() < DECODED_ERROR, "{}, token by token {}", told.kl, decoded.kl);
    assert!(at_once.kl > 2.0 * decoded.kl, "{}, token by token {}", at_once.kl, decoded.kl);

    // Behind a prompt of 143 tokens, where a page begins to be packed, and of 150.
    let [behind, decoded] = [&["--prompt", "100"][..], &["--chunk", "1", "--prompt", "150"]].map(measured);
    assert_eq!((told.tokens, behind.tokens, decoded.tokens), (200, 57, 50));
    assert!(behind.kl > told.kl && decoded.kl > told.kl, "{}, {}, from the beginning {}", behind.kl, decoded.kl, told.kl);
    let error = run(&["--prompt", "144"]).unwrap_err().to_string();
    assert!(error.contains("--prompt") && error.contains("271 in whole chunks"), "{error}");
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
    for hash in [&one, &other].map(|folder| Model::open(folder).unwrap().hash().unwrap()) {
        assert!(error.contains(&hash), "{error}");
    }
    let error = rotate_kv(&one, &[]).unwrap_err().to_string();
    assert!(error.contains("wgkv-llama calibrate --model") && error.contains("--no-reorder"), "{error}");
}

#[test]
fn rotate_kv_costs_a_trained_model_what_its_simulation_says() {
    let loaded = Loaded::new(embedded());
    let (decoder, config) = (&loaded.decoder, loaded.decoder.config());
    let calibration = ChannelOrder::load(embedded().join("rotate-kv.safetensors")).unwrap();
    calibration.expect_model(&loaded.model.hash().unwrap()).unwrap();
    let context = 512;
    let window = loaded.window(context);
    let (protection, capacity) = (Protection { sinks: Sinks::Massive(20), window: 0 }, Capacity::tokens(1, context as u32));
    let mut reference = loaded.f16_cache(context);
    let (mut its_work, mut own_work) = (work(decoder, context).unwrap(), work(decoder, context).unwrap());

    for (bits, chunk) in [(wgkv::Bits::Two, context), (wgkv::Bits::Four, 200)] {
        let format = Format::new(Codec::RotateKv, bits, bits, 64).with_heads_per_group(calibration.heads_per_group());
        let mut score = |cache: &mut Cache, tap: Option<&mut dyn Tap>| -> Score {
            let mut control = Reading::begin(decoder, &mut its_work, &mut reference).unwrap();
            let mut reading = Reading::begin(decoder, &mut own_work, cache).unwrap();
            let score = score_window(&window, Chunks::of(chunk), &mut reading, tap, Some(&mut control), |_| ()).unwrap();
            control.end().unwrap();
            score
        };
        let planned = planned(config, format, Some(calibration.clone().into()), protection, capacity);
        let got = score(&mut open(decoder.gpu(), planned).unwrap(), None);
        let simulation = Simulation::new(config, &format, &calibration, Reorder::AfterRotation, protection.sinks).unwrap();
        let wanted = score(&mut loaded.f16_cache(context), Some(&mut SimulatedRows::new(&simulation, config)));
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

/// Of the divergence with uniform codes of two bits, what a trellis of both leaves at most, and at least:
/// on WikiText-2 it leaves 0.65 of it (`cargo xtask quality`); of keys or of values alone 0.85 and less than
/// all.
const TRELLIS_SHARE: std::ops::Range<f64> = 0.45..0.8;

#[test]
fn a_trellis_costs_a_trained_model_a_third_less() {
    let model = embedded();
    let divergence = |more: &[&str]| {
        let fixed = ["--model", model.to_str().unwrap(), "--text", &smoke(), "--codec", "centred", "--k-bits", "2", "--v-bits", "2", "--group", "64"];
        let rest = ["--windows", "1", "--context", "512", "--strict", "--sinks", "first:4"];
        let report = perplexity(&options::<PerplexityOptions>(&[&fixed[..], &rest, more].concat())).unwrap();
        println!("{more:?}: perplexity {}, divergence {}", report.perplexity, report.kl);
        (report.kl, report.bits_per_element)
    };
    let [(plain, bits), both, keys, values] = [&[][..], &["--trellis", "both"], &["--trellis", "keys"], &["--trellis", "values"]].map(divergence);
    for (one, other_bits) in [both, keys, values] {
        assert!(one < plain && other_bits == bits, "{one} at {other_bits} bits, {plain} at {bits}");
    }
    assert!(TRELLIS_SHARE.contains(&(both.0 / plain)) && both.0 < keys.0.min(values.0), "{both:?}, {keys:?}, {values:?} of {plain}");
}

#[test]
fn a_prompt_is_enough_to_centre_on() {
    let loaded = Loaded::new(embedded());
    let (decoder, config) = (&loaded.decoder, loaded.decoder.config());
    let context = 512;
    let (mut prompt, targets) = loaded.window(context);
    let rest = (prompt.split_off(context / 2), targets[context / 2..].to_vec());
    let collector = collect_means(decoder, &[(prompt.clone(), Vec::new())], |_| ()).unwrap();
    let hash = loaded.model.hash().unwrap();
    let means = pollster::block_on(collector.finish(&hash)).unwrap();
    assert_eq!(means.tokens(), prompt.len() as u64);
    let shipped = Means::load(embedded().join("centred.safetensors")).unwrap();
    shipped.expect_model(&hash).unwrap();

    // What follows the prompt, beside halves of the same past: prompt and what is added lie in
    // codes of two bits.
    let format = Format::new(Codec::Centred, wgkv::Bits::Two, wgkv::Bits::Two, 64);
    let protection = Protection { sinks: Sinks::First(4), window: 0 };
    let mut reference = loaded.f16_cache(context);
    let (mut its_work, mut own_work) = (work(decoder, context).unwrap(), work(decoder, context).unwrap());
    let mut divergence = |learned: Option<Learned>| {
        let mut cache = open(decoder.gpu(), planned(config, format, learned, protection, Capacity::tokens(1, context as u32))).unwrap();
        let mut reading = Reading::begin(decoder, &mut own_work, &mut cache).unwrap();
        let mut control = Reading::begin(decoder, &mut its_work, &mut reference).unwrap();
        reading.read(&prompt, None).unwrap();
        control.read(&prompt, None).unwrap();
        let score = score_window(&rest, Chunks::of(context), &mut reading, None, Some(&mut control), |_| ()).unwrap();
        control.end().unwrap();
        score.kl()
    };
    let [of_prompt, of_text, none] = [Some(means.into()), Some(shipped.into()), None].map(&mut divergence);
    println!("divergence: centred on the prompt {of_prompt}, on sample text {of_text}, on nothing {none}");
    assert!(of_prompt < PROMPT_SHARE * none && of_text < PROMPT_SHARE * none, "{of_prompt}, {of_text}, {none}");
}
