//! The same text with the same seed goes on alike here and in `examples/web`, in a browser.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use wgkv_llama::generate::{GenerateOptions, generate};

#[test]
fn texts_go_on_as_in_the_web_example() {
    let texts: serde_json::Value = serde_json::from_str(include_str!("../../web/tests/continuations.json")).unwrap();
    for text in texts.as_array().unwrap() {
        let settings = &text["settings"];
        let bits = settings["bits"].to_string();
        let mut words = vec!["--prompt", text["prompt"].as_str().unwrap(), "--codec", settings["codec"].as_str().unwrap()];
        words.extend(["--k-bits", &bits, "--v-bits", &bits, "--group", "64", "--sinks", "first:4", "--window", "0"]);
        let numbers = ["tokens", "temperature", "top_p", "top_k", "seed"].map(|name| (format!("--{}", name.replace('_', "-")), settings[name].to_string()));
        words.extend(numbers.iter().filter(|(_, number)| number != "null").flat_map(|(name, number)| [name.as_str(), number.as_str()]));
        let model = tiny::embedded();
        words.extend(["--model", model.to_str().unwrap()]);
        let options = tiny::options::<GenerateOptions>(&words);
        let report = generate(&options, &mut std::io::sink()).unwrap();
        assert_eq!(serde_json::json!(report.tokens), text["tokens"], "{}", report.text);
    }
}
