//! `cargo xtask demo`: one prompt, three caches, and what each of them holds.

use crate::llama::{self, Choice, number};
use crate::setup;
use anyhow::{Context, Result};
use std::path::PathBuf;
use wgkv::{Bits, Codec};

/// A paragraph in the manner of the model's training text, a little longer than a page.
const PROMPT: &str = "The river rises in the hills north of the town and flows south for about forty miles before it reaches the sea. \
    In the nineteenth century it was used to carry coal and timber to the harbour, and several mills were built along its banks. \
    The largest of these, which produced paper, employed more than three hundred people until it was destroyed by a fire in 1911. \
    After the war the railway took over most of the traffic, and the canal beside the river was closed. \
    Today the valley is known for its gardens and for the old stone bridge, which was restored by the county council. \
    The bridge was designed by the engineer John";

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
    /// Recent tokens that stay f16; with 0 every token is packed before it is attended to.
    #[arg(long, default_value_t = 0)]
    window: u32,
    /// Folder of another model.
    #[arg(long, default_value = "assets/wiki-8m")]
    model: PathBuf,
}

struct Row {
    choice: Choice,
    bytes: f64,
    bits: f64,
    prefill: f64,
    decode: f64,
    tokens: Vec<u64>,
}

/// How many leading tokens are equal, and how many positions.
fn agreement(tokens: &[u64], control: &[u64]) -> (usize, usize) {
    let same = || tokens.iter().zip(control).map(|(a, b)| a == b);
    (same().take_while(|same| *same).count(), same().filter(|same| *same).count())
}

/// Runs the demonstration.
pub fn run(options: &Options) -> Result<()> {
    setup::run_setup()?;
    let program = llama::build()?;
    let model = options.model.to_str().context("the model's path is not UTF-8")?;
    let mut rows = Vec::new();
    println!("\n{}", options.prompt);
    for choice in CHOICES {
        println!("\n--- {choice} ---");
        let (tokens, window) = (options.tokens.to_string(), options.window.to_string());
        let fixed = ["generate", "--model", model, "--prompt", &options.prompt, "--tokens", &tokens, "--sinks", "first:4", "--window", &window, "--json"];
        let arguments: Vec<String> = fixed.into_iter().map(str::to_owned).chain(choice.options(64)).collect();
        let report = llama::report(&program, &arguments, true)?;
        println!();
        let tokens = report["tokens"].as_array().context("wgkv-llama reports no tokens")?;
        rows.push(Row {
            choice,
            bytes: number(&report, "cache_bytes")?,
            bits: number(&report, "bits_per_element")?,
            prefill: number(&report, "prefill_tokens_per_second")?,
            decode: number(&report, "decode_tokens_per_second")?,
            tokens: tokens.iter().filter_map(serde_json::Value::as_u64).collect(),
        });
    }
    println!("\n{:<16} {:>12} {:>13} {:>12} {:>12}   tokens as f16", "codec", "cache bytes", "bits/element", "prefill t/s", "decode t/s");
    for Row { choice, bytes, bits, prefill, decode, tokens } in &rows {
        let (leading, equal) = agreement(tokens, &rows[0].tokens);
        println!("{choice:<16} {bytes:>12} {bits:>13.3} {prefill:>12.1} {decode:>12.1}   first {leading}, {equal} of {} in place", tokens.len());
    }
    println!(
        "\nThe first 4 tokens stay f16, as do the latest {}; they count. The likeliest token is taken each time; after the first that differs",
        options.window
    );
    println!("the texts part, and later positions agree only by chance. The library's own default keeps the latest 128 tokens f16 as well.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_counts_the_beginning_and_all_positions() {
        assert_eq!(agreement(&[1, 2, 3, 4], &[1, 2, 9, 4, 5]), (2, 3));
        assert_eq!(agreement(&[], &[1]), (0, 0));
    }
}
