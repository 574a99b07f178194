//! Models whose layers differ: what commands do with them, and which say that they cannot.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::path::{Path, PathBuf};

use half::bf16;
use rand::{RngExt, SeedableRng};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use wgkv_decoder::{Message, Model, reference};
use wgkv_llama::align_report::align_report;
use wgkv_llama::analyze::analyze;
use wgkv_llama::bench::{BenchOptions, bench};
use wgkv_llama::calibrate::calibrate;
use wgkv_llama::capacity::{CapacityOptions, capacity};
use wgkv_llama::chat::{ChatOptions, Console, Interrupt, chat};
use wgkv_llama::decode_memory::decode_memory;
use wgkv_llama::error::Error;
use wgkv_llama::generate::{GenerateOptions, generate};
use wgkv_llama::perplexity::{PerplexityOptions, perplexity};
use wgkv_llama::plan::plan;
use wgkv_llama::tradeoff::tradeoff;

/// Share of the scores' root mean square by which a chosen token's may fall short of the largest:
/// eight times the error that the decoder's tests allow a score, or five times of it where two
/// thirds of the scores are small.
const SCORE_ERROR: f64 = 8e-2;

const PROMPT: &str = "The river rises in the hills north of the town, and runs to the sea.";

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
    answer_in_ascii(&folder.join("model.safetensors"));
    std::fs::write(folder.join("chat_template.jinja"), "{% for m in messages %}{{ m.content }}\n{% endfor %}").unwrap();
    folder
}

/// Makes all scores but those of the printable ASCII characters small, so that what the model writes
/// tells its tokens.
fn answer_in_ascii(path: &Path) {
    let file = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let embedding = tensors.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!(embedding.dtype(), Dtype::BF16);
    let row = 2 * embedding.shape()[1];
    let printable = tiny::tokens().iter().map(|token| matches!(token.as_bytes(), [b'!'..=b'~'])).collect::<Vec<_>>();
    let scaled = |(n, bytes): (usize, &[u8])| {
        let value = bf16::from_le_bytes(bytes.try_into().unwrap());
        let factor = if printable[2 * n / row] { 1.0 } else { 1.0 / 64.0 };
        bf16::from_f32(factor * value.to_f32()).to_le_bytes()
    };
    let changed: Vec<u8> = embedding.data().chunks_exact(2).enumerate().flat_map(scaled).collect();
    let views = tensors.iter().map(|(name, view)| match name == "model.embed_tokens.weight" {
        true => (name, TensorView::new(view.dtype(), view.shape().to_vec(), &changed).unwrap()),
        false => (name, view),
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Asserts that every token of a text from this one on is the likeliest after those before it, as
/// f64 has it.
fn expect_greedy(model: &Model, text: &[u32], first: usize) {
    let (scores, vocabulary) = (reference::logits(model, text).unwrap(), model.config().vocabulary);
    for n in first..text.len() {
        let scores = &scores[(n - 1) * vocabulary..n * vocabulary];
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let size = (scores.iter().map(|score| score * score).sum::<f64>() / vocabulary as f64).sqrt();
        let had = scores[text[n] as usize];
        assert!(best - had <= SCORE_ERROR * size, "token {n} has {had}, the largest is {best}");
    }
}

#[test]
fn a_text_goes_on_as_in_f64_and_a_conversation_too() {
    let folder = gemma3("families", rand::rngs::StdRng::seed_from_u64(tiny::seed()).random());
    let path = folder.to_str().unwrap();
    let model = Model::open(&folder).unwrap();
    let words = ["--model", path, "--prompt", PROMPT, "--tokens", "8", "--codec", "f16", "--chunk", "20"];
    let report = generate(&tiny::options::<GenerateOptions>(&words), &mut std::io::sink()).unwrap();
    assert_eq!((report.prompt_tokens, report.tokens.len(), report.bits_per_element), (PROMPT.len() + 1, 8, 16.0));
    let mut text = vec![0];
    text.extend(model.text().encode(PROMPT).unwrap());
    text.extend(&report.tokens);
    expect_greedy(&model, &text, report.prompt_tokens);

    // A second turn goes on from what the windows hold, which reach beyond it, the first answer
    // among it; begun anew, the first turn is answered again.
    let turns = ["One line of a conversation.", "And then?"];
    let words = ["--model", path, "--tokens", "12", "--temperature", "0", "--context", "256", "--codec", "f16", "--chunk", "20"];
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let mut input = std::io::Cursor::new([turns[0], turns[1], "/reset", turns[0]].join("\n"));
    let console = &mut Console { input: &mut input, out: &mut out, notes: &mut notes, interactive: false, interrupt: &Interrupt::new() };
    chat(&tiny::options::<ChatOptions>(&words), console).unwrap();
    assert!(notes.is_empty(), "{}", String::from_utf8_lossy(&notes));
    let out = String::from_utf8(out).unwrap();
    let answers: Vec<&str> = out.lines().collect();
    let [first, second, again] = answers[..] else { panic!("three answers are wanted: {out:?}") };
    assert_eq!((first.len(), second.len(), again), (12, 12, first));
    let template = model.chat().unwrap();
    let [user, assistant] = ["user", "assistant"].map(|role| move |content| Message { role, content });
    for (messages, answer) in [(vec![user(turns[0])], first), (vec![user(turns[0]), assistant(first), user(turns[1])], second)] {
        let mut text = model.text().encode_with_special(&template.render(&messages, true, "", "").unwrap()).unwrap();
        let asked = text.len();
        text.extend(model.text().encode(answer).unwrap());
        assert_eq!(text.len(), asked + 12);
        expect_greedy(&model, &text, asked);
    }
}

#[test]
fn layers_that_slide_take_their_windows_only() {
    let folder = gemma3("families_memory", rand::rngs::StdRng::seed_from_u64(tiny::seed()).random());
    let prompt = PROMPT.repeat(15);
    let words = ["--model", folder.to_str().unwrap(), "--prompt", &prompt, "--tokens", "8", "--chunk", "512", "--sinks", "none", "--window", "0"];
    let words = [&words[..], &["--codec", "hadamard", "--k-bits", "4", "--v-bits", "4"]].concat();
    let report = generate(&tiny::options::<GenerateOptions>(&words), &mut std::io::sink()).unwrap();
    assert!(report.bits_per_element < 5.0 && report.tokens.len() == 8, "{report:?}");
    // All six layers packed would take more than a quarter of what they take in f16, and one layer
    // in f16 a sixth.
    assert!(report.cache_bytes < report.f16_bytes / 6, "{report:?}");

    // What is told beforehand is what was allocated, and what a GPU allocates for a batch.
    let (config, context) = (folder.join("config.json"), (report.prompt_tokens + report.tokens.len()).to_string());
    let words = ["--config", config.to_str().unwrap(), "--memory", "32MiB", "--context", &context, "--group", "64", "--allocate"];
    let told = capacity(&tiny::options::<CapacityOptions>(&words)).unwrap();
    let packed = told.rows.iter().find(|row| row.codec == "hadamard" && row.k_bits == 4).unwrap();
    assert_eq!((packed.sequence_bytes, packed.bits_per_element), (report.cache_bytes_allocated, report.bits_per_element));
    for row in &told.rows {
        assert!(row.batch > 0 && row.allocated.as_ref().is_some_and(|allocated| allocated.equal), "{row:?}");
    }
    // Weights of more bytes than can be counted leave no room.
    let bits = u64::MAX.to_string();
    let words = [&words[..8], &["--weights-bits", &bits]].concat();
    let told = capacity(&tiny::options::<CapacityOptions>(&words)).unwrap();
    assert!(told.weight_bytes == u64::MAX && told.rows.iter().all(|row| row.batch == 0));
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
fn capacity_counts_the_layers_that_have_attention() {
    let folder = tiny::folder("families_hybrid");
    let path = folder.join("config.json");
    let write = |config: &Value| std::fs::write(&path, serde_json::to_vec(config).unwrap()).unwrap();
    let words = ["--config", path.to_str().unwrap(), "--memory", "80GiB", "--context", "32768"];
    let told = |more: &[&str]| capacity(&tiny::options::<CapacityOptions>(&[&words, more].concat()));
    let given = ["--parameters", "27000000000"];
    // As Qwen3.5's: of four layers three have linear attention, and a fourth of a head turns.
    let types: Vec<&str> = (1..=64).map(|layer| if layer % 4 == 0 { "full_attention" } else { "linear_attention" }).collect();
    let text = json!({
        "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256, "layer_types": types,
        "linear_num_value_heads": 48, "rope_parameters": { "rope_theta": 1e7, "partial_rotary_factor": 0.25 }
    });
    write(&json!({ "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": text, "vision_config": {} }));
    let report = told(&given).unwrap();
    assert_eq!((report.layers, report.attention_layers, report.parameters), (64, 16, 27_000_000_000));
    let f16 = report.rows.iter().find(|row| row.codec == "f16").unwrap();
    // Keys and values of 4 heads of 256, two bytes each.
    assert_eq!(f16.sequence_bytes, 16 * 2 * 4 * 256 * 2 * 32_768);
    assert!(report.to_string().contains("16 of 64 layers have attention"), "{report}");
    // The same by the interval alone, as Qwen3-Next has it.
    let mut short = text.clone();
    short["layer_types"] = Value::Null;
    short["full_attention_interval"] = json!(4);
    write(&short);
    let same = told(&given).unwrap();
    assert_eq!((same.attention_layers, same.rows.iter().map(|row| row.batch).collect::<Vec<_>>()), (16, report.rows.iter().map(|row| row.batch).collect()));
    // Layers that slide have their window's pages only.
    let mut slides = text.clone();
    slides["sliding_window"] = json!(1024);
    slides["layer_types"] = types.iter().enumerate().map(|(n, kind)| if n % 8 == 3 { "sliding_attention" } else { kind }).collect();
    write(&slides);
    let fewer = told(&given).unwrap();
    assert_eq!(fewer.attention_layers, 16);
    assert!(fewer.rows.iter().zip(&report.rows).all(|(fewer, all)| fewer.sequence_bytes < all.sequence_bytes * 6 / 10), "{fewer}");
    // What cannot be told is refused by name.
    let refused = |config: &Value, more: &[&str], name: &str, had: &str| {
        write(config);
        let error = told(more).unwrap_err().to_string();
        assert!(error.starts_with(name) && error.contains(had), "{error}");
    };
    refused(&text, &[], "--parameters", "48 layers without attention");
    let with = |key: &str, value: Value| {
        let mut config = text.clone();
        config[key] = value;
        config
    };
    refused(&with("num_hidden_layers", json!(63)), &given, "--config", "64 names");
    refused(&with("num_attention_heads", json!(0)), &given, "--config", "num_attention_heads");
    refused(&with("layer_types", json!(vec!["linear_attention"; 64])), &given, "--config", "of none");
    refused(&with("layer_types", json!(["linear_attention", "dreaming"])), &given, "--config", "dreaming");
}

#[test]
fn commands_that_one_cache_serves_say_what_they_lack() {
    let folder = gemma3("families_refused", 1);
    let (text, out) = (tiny::smoke(), folder.join("means.safetensors"));
    let (model, out, config) = (folder.to_str().unwrap(), out.to_str().unwrap(), folder.join("config.json"));
    let config = config.to_str().unwrap();
    let named = |result: Result<(), Error>, name: &str, had: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with(name) && error.ends_with(had), "{error}");
    };
    let windows = "Gemma3 with windows in some layers";
    let reads = ["--model", model, "--text", &text];
    named(calibrate(&tiny::options(&[&reads[..], &["--out", out]].concat())).map(drop), "--model", windows);
    named(analyze(&tiny::options(&[&reads[..], &["--out", out]].concat())).map(drop), "--model", windows);
    named(plan(&tiny::options(&[&reads[..], &["--out", out, "--budget", "3"]].concat())).map(drop), "--model", windows);
    named(align_report(&tiny::options(&reads)).map(drop), "--model", windows);
    named(tradeoff(&tiny::options(&[&reads[..], &["--sample", &text]].concat())).map(drop), "--model", windows);
    named(decode_memory(&tiny::options(&["--config", config, "--context", "64"])).map(drop), "--config", windows);
    for (more, name, had) in [
        (&["--centre-on-prompt"][..], "--centre-on-prompt", "given"),
        (&["--calibration", out], "--calibration", "given"),
        (&["--codec", "rotate-kv"], "--codec", "rotate-kv"),
    ] {
        let options = tiny::options::<GenerateOptions>(&[&["--model", model, "--prompt", PROMPT], more].concat());
        named(generate(&options, &mut std::io::sink()).map(drop), name, had);
    }
    let simulated = [&reads[..], &["--codec", "rotate-kv", "--no-reorder"]].concat();
    named(perplexity(&tiny::options::<PerplexityOptions>(&simulated)).map(drop), "--no-reorder", "given");

    // Others that one plain cache does not serve, by their settings alone.
    let refused = |pairs: &[(&str, Value)], had: &str| {
        let mut config = tiny::config();
        config["rope_scaling"] = Value::Null;
        pairs.iter().for_each(|(key, value)| config[key] = value.clone());
        tiny::write_config(&folder, &config);
        let config = folder.join("config.json");
        let words = ["--config", config.to_str().unwrap(), "--context", "64"];
        named(decode_memory(&tiny::options(&words)).map(drop), "--config", had);
        // How many sequences fit can be told of all of them.
        let words = [&words[..], &["--memory", "1GiB", "--group", "64"]].concat();
        assert!(capacity(&tiny::options::<CapacityOptions>(&words)).unwrap().rows.iter().all(|row| row.batch > 0));
    };
    let gemma2 = [("hidden_activation", json!("gelu_pytorch_tanh")), ("query_pre_attn_scalar", json!(64)), ("sliding_window", json!(24))];
    refused(&[&[("architectures", json!(["Gemma2ForCausalLM"]))], &gemma2[..]].concat(), "Gemma2 with windows in some layers and capped scores");
    let all = ("layer_types", json!(["full_attention", "full_attention"]));
    refused(&[("architectures", json!(["GptOssForCausalLM"])), ("sliding_window", json!(24)), all], "GptOss with sinks' logits");
    let layers = ("layer_types", json!(["sliding_attention", "full_attention"]));
    refused(&[("architectures", json!(["MistralForCausalLM"])), ("sliding_window", json!(24)), layers], "Mistral with windows in some layers");
}
