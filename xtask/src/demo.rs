//! `cargo xtask demo`: one prompt, three caches, and what each of them holds; with a GGUF file a
//! conversation.

use crate::command::{root, target};
use crate::llama::{self, Choice, number};
use crate::setup;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use wgkv::{Bits, Codec};

/// A paragraph in the manner of the model's training text, a little longer than a page.
const PROMPT: &str = "The river rises in the hills north of the town and flows south for about forty miles before it reaches the sea. \
    In the nineteenth century it was used to carry coal and timber to the harbour, and several mills were built along its banks. \
    The largest of these, which produced paper, employed more than three hundred people until it was destroyed by a fire in 1911. \
    After the war the railway took over most of the traffic, and the canal beside the river was closed. \
    Today the valley is known for its gardens and for the old stone bridge, which was restored by the county council. \
    The town";

const CHOICES: [Choice; 3] = [Choice::F16, Choice::new(Codec::Centred, Bits::Four, Bits::Four), Choice::new(Codec::Centred, Bits::Two, Bits::Two)];

/// Options of `demo`.
#[derive(clap::Args)]
pub struct Options {
    /// Text to continue.
    #[arg(long, default_value = PROMPT, hide_default_value = true)]
    prompt: String,
    /// Tokens to add.
    #[arg(long, default_value_t = 120)]
    tokens: usize,
    /// 0 takes the likeliest token; larger is more varied.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Seed of the sampling: the same random numbers are drawn for every cache.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Recent tokens that stay f16; with 0 every token is packed before it is attended to.
    #[arg(long, default_value_t = 0)]
    window: u32,
    /// Folder of another model; or a GGUF file, to talk with its model instead.
    #[arg(long, default_value = "assets/wiki-8m")]
    model: PathBuf,
}

/// Tokens by which a text may be shorter when it is taken apart in one piece, not in two.
const SEAM: u64 = 8;

struct Row {
    choice: Choice,
    bytes: f64,
    bits: f64,
    prefill: f64,
    decode: f64,
}

/// Talks with the model of a GGUF file.
fn chat(options: &Options) -> Result<()> {
    let model = std::path::absolute(&options.model)?;
    fs::File::open(&model).map(drop).with_context(|| format!("{} cannot be read", model.display()))?;
    setup::run_setup()?;
    let program = llama::build()?;
    let path = model.to_str().context("the model's path is not UTF-8")?;
    let (temperature, seed) = (options.temperature.to_string(), options.seed.to_string());
    println!();
    llama::replace(&program, &["chat", "--model", path, "--temperature", &temperature, "--seed", &seed])
}

/// Runs the demonstration.
pub fn run(options: &Options) -> Result<()> {
    if options.model.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return chat(options);
    }
    llama::check_model(&root().join(&options.model))?;
    setup::run_setup()?;
    let program = llama::build()?;
    let model = options.model.to_str().context("the model's path is not UTF-8")?;
    let file = target()?.0.join("demo.txt");
    let path = file.to_str().context("the target folder's path is not UTF-8")?;
    let (mut rows, mut context) = (Vec::new(), String::new());
    let window = options.window.to_string();
    println!("\n{}", options.prompt);
    for choice in CHOICES {
        println!("\n--- {choice} ---");
        let (tokens, temperature, seed) = (options.tokens.to_string(), options.temperature.to_string(), options.seed.to_string());
        let fixed = [
            ["generate", "--json"],
            ["--model", model],
            ["--prompt", &options.prompt],
            ["--tokens", &tokens],
            ["--temperature", &temperature],
            ["--seed", &seed],
            ["--sinks", "first:4"],
            ["--window", &window],
        ]
        .concat();
        let arguments: Vec<String> = fixed.into_iter().map(str::to_owned).chain(choice.options(64)).collect();
        let report = llama::report(&program, &arguments, true)?;
        println!();
        if choice == Choice::F16 {
            fs::write(&file, format!("{} {}", options.prompt, report["text"].as_str().unwrap_or_default()))?;
            let tokens = report["tokens"].as_array().map_or(0, Vec::len) as u64;
            context = (report["prompt_tokens"].as_u64().unwrap_or_default() + tokens).saturating_sub(SEAM).max(1).to_string();
        }
        rows.push(Row {
            choice,
            bytes: number(&report, "cache_bytes")?,
            bits: number(&report, "bits_per_element")?,
            prefill: number(&report, "prefill_tokens_per_second")?,
            decode: number(&report, "decode_tokens_per_second")?,
        });
    }
    println!("\n{:<16} {:>12} {:>13} {:>12} {:>12} {:>12} {:>8}", "codec", "cache bytes", "bits/element", "prefill t/s", "decode t/s", "perplexity", "KL");
    for Row { choice, bytes, bits, prefill, decode } in &rows {
        let fixed =
            ["perplexity", "--model", model, "--text", path, "--windows", "1", "--context", &context, "--strict", "--sinks", "first:4", "--window", &window];
        let arguments: Vec<String> = fixed.into_iter().map(str::to_owned).chain(choice.options(64)).collect();
        let report = llama::report(&program, &arguments, false)?;
        let (perplexity, kl) = (number(&report, "perplexity")?, number(&report, "kl")?);
        println!("{choice:<16} {bytes:>12} {bits:>13.3} {prefill:>12.1} {decode:>12.1} {perplexity:>12.2} {kl:>8.4}");
    }
    println!(
        "\nEvery text is drawn by the same random numbers, and goes its own way after the first token that differs. Perplexity is that of prompt and f16's"
    );
    println!(
        "text through each cache, KL what the probabilities of a next token diverge by, in nats. The first 4 tokens stay f16, as do the latest {}; they\n\
         count. The library's own default keeps the latest 128 tokens f16 as well.",
        options.window
    );
    Ok(())
}
