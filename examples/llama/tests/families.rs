//! Models whose layers differ: what commands do with them, and which say that they cannot.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::path::PathBuf;

use rand::{RngExt, SeedableRng};
use serde_json::json;
use wgkv_decoder::{Model, reference};
use wgkv_llama::bench::{BenchOptions, bench};
use wgkv_llama::calibrate::{CalibrateOptions, calibrate};
use wgkv_llama::chat::{ChatOptions, Console, Interrupt, chat};
use wgkv_llama::generate::{GenerateOptions, generate};
use wgkv_llama::perplexity::{PerplexityOptions, perplexity};

/// Share of the scores' root mean square by which a chosen token's may fall short of the largest:
/// eight times the error that the decoder's tests allow a score.
const SCORE_ERROR: f64 = 8e-2;

/// Five layers that see 24 tokens to one that sees all, by two rotary bases.
fn gemma3(name: &str, seed: u64) -> PathBuf {
    let folder = tiny::folder(name);
    let mut config = tiny::config();
    for (key, value) in [
        ("architectures", json!(["Gemma3ForCausalLM"])),
        ("num_hidden_layers", json!(6)),
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("query_pre_attn_scalar", json!(64)),
        ("sliding_window", json!(24)),
        ("rope_theta", json!(1e6)),
        ("rope_scaling", json!(null)),
        ("tie_word_embeddings", json!(true)),
        ("eos_token_id", json!(null)),
    ] {
        config[key] = value;
    }
    tiny::write_model_of(&folder, &config, seed);
    std::fs::write(folder.join("chat_template.jinja"), "{% for m in messages %}{{ m.content }}\n{% endfor %}").unwrap();
    folder
}

#[test]
fn a_text_goes_on_as_in_f64_and_a_conversation_too() {
    let seed = tiny::seed();
    let folder = gemma3("families", rand::rngs::StdRng::seed_from_u64(seed).random());
    let path = folder.to_str().unwrap();
    let prompt = "The river rises in the hills north of the town, and runs to the sea.";
    let words = ["--model", path, "--prompt", prompt, "--tokens", "8", "--codec", "f16", "--chunk", "20"];
    let report = generate(&tiny::options::<GenerateOptions>(&words), &mut std::io::sink()).unwrap();
    assert_eq!((report.prompt_tokens, report.tokens.len(), report.bits_per_element), (prompt.len() + 1, 8, 16.0));
    let model = Model::open(&folder).unwrap();
    let mut text = vec![0];
    text.extend(model.text().encode(prompt).unwrap());
    let first = text.len();
    text.extend(&report.tokens);
    let (scores, vocabulary) = (reference::logits(&model, &text).unwrap(), model.config().vocabulary);
    for (n, token) in report.tokens.iter().enumerate() {
        let scores = &scores[(first + n - 1) * vocabulary..(first + n) * vocabulary];
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let size = (scores.iter().map(|score| score * score).sum::<f64>() / vocabulary as f64).sqrt();
        let had = scores[*token as usize];
        assert!(best - had <= SCORE_ERROR * size, "token {n} has {had}, the largest is {best}. WGKV_SEED={seed}");
    }
    // Layers that slide hold their windows only, packed as well.
    let packed = [&words[..6], &["--codec", "hadamard", "--k-bits", "8", "--v-bits", "8", "--window", "0", "--chunk", "20"]].concat();
    let packed = generate(&tiny::options::<GenerateOptions>(&packed), &mut std::io::sink()).unwrap();
    assert!(packed.bits_per_element < 16.0 && packed.tokens.len() == 8, "{packed:?}");

    let options = tiny::options::<ChatOptions>(&["--model", path, "--tokens", "4", "--temperature", "0", "--context", "256"]);
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let mut input = std::io::Cursor::new("One line of a conversation.\nAnother, for which the first is kept.\n/reset\nOne line of a conversation.");
    let console = &mut Console { input: &mut input, out: &mut out, notes: &mut notes, interactive: false, interrupt: &Interrupt::new() };
    chat(&options, console).unwrap();
    assert!(!out.is_empty() && notes.is_empty(), "{}", String::from_utf8_lossy(&notes));
}

#[test]
fn texts_are_scored_and_timed_in_groups_of_layers() {
    let folder = gemma3("families_scored", rand::rngs::StdRng::seed_from_u64(tiny::seed()).random());
    let (path, text) = (folder.to_str().unwrap(), tiny::smoke());
    let words = ["--model", path, "--text", &text, "--windows", "2", "--context", "64", "--chunk", "16"];
    let scored = |more: &[&str]| perplexity(&tiny::options::<PerplexityOptions>(&[&words, more].concat())).unwrap();
    let f16 = scored(&["--codec", "f16"]);
    assert_eq!((f16.tokens, f16.kl, f16.bits_per_element), (128, 0.0, 16.0));
    let packed = scored(&["--codec", "hadamard", "--k-bits", "4", "--v-bits", "4", "--strict"]);
    assert!(packed.bits_per_element < 8.0 && packed.kl > 0.0 && packed.kl.is_finite(), "{packed:?}");

    let words = ["--model", path, "--codec", "f16", "--context", "60", "--prefill", "70", "--decode", "5", "--repeats", "2", "--chunk", "32", "--batch", "2"];
    let report = bench(&tiny::options::<BenchOptions>(&words)).unwrap();
    assert!(report.prefill.len() == 1 && report.decode.len() == 1 && report.decode[0].tokens_per_second > 0.0);
}

#[test]
fn commands_that_learn_from_one_cache_say_what_they_lack() {
    let folder = gemma3("families_refused", 1);
    let (text, out) = (tiny::smoke(), folder.join("means.safetensors"));
    let words = ["--model", folder.to_str().unwrap(), "--text", &text, "--windows", "1", "--context", "32", "--codec", "centred"];
    let words = [&words[..], &["--out", out.to_str().unwrap()]].concat();
    let error = calibrate(&tiny::options::<CalibrateOptions>(&words)).unwrap_err().to_string();
    assert!(error.contains("sliding window of layer 5") && error.contains("none") && error.contains("24"), "{error}");
}
