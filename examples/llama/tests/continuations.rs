//! The same text with the same seed goes on alike here, with dense layers on burn, and in `examples/web`, with dense layers of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use wgkv::{Codec, Sinks};
use wgkv_llama::generate::{GenerateOptions, generate};
use wgkv_llama::options::{CacheOptions, ModelOptions};

#[test]
fn texts_go_on_as_in_the_web_example() {
    let texts: serde_json::Value = serde_json::from_str(include_str!("../../web/tests/continuations.json")).unwrap();
    for text in texts.as_array().unwrap() {
        let settings = &text["settings"];
        let number = |name: &str, default: f64| settings[name].as_f64().unwrap_or(default);
        let bits = settings["bits"].as_u64().unwrap() as u32;
        let options = GenerateOptions {
            model: ModelOptions { model: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/wiki-8m"), adapter: None },
            cache: CacheOptions {
                codec: settings["codec"].as_str().unwrap().parse::<Codec>().unwrap(),
                plan: None,
                k_bits: bits,
                v_bits: bits,
                group: Some(64),
                clip: None,
                scales: None,
                sinks: Some(Sinks::First(4)),
                window: Some(0),
                calibration: None,
                heads_per_group: None,
                reach: None,
                align: None,
            },
            prompt: text["prompt"].as_str().unwrap().to_owned(),
            tokens: settings["tokens"].as_u64().unwrap() as usize,
            temperature: number("temperature", 0.0) as f32,
            top_p: number("top_p", 1.0) as f32,
            seed: settings["seed"].as_u64().unwrap_or(0),
            chunk: 512,
            centre_on_prompt: false,
            json: false,
        };
        let report = generate(&options, &mut std::io::sink()).unwrap();
        assert_eq!(serde_json::json!(report.tokens), text["tokens"], "{}", report.text);
    }
}
