//! The `wgkv-llama` command.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wgkv_llama::align_report::{AlignReportOptions, align_report};
use wgkv_llama::analyze::{AnalyzeOptions, analyze};
use wgkv_llama::bench::{BenchOptions, bench};
use wgkv_llama::calibrate::{CalibrateOptions, calibrate};
use wgkv_llama::capacity::{CapacityOptions, capacity};
use wgkv_llama::chat::{ChatOptions, Console, Interrupt, chat};
use wgkv_llama::decode_memory::{DecodeMemoryOptions, decode_memory};
use wgkv_llama::generate::{GenerateOptions, GenerateReport, generate};
use wgkv_llama::perplexity::{PerplexityOptions, perplexity};
use wgkv_llama::plan::{PlanOptions, plan};
use wgkv_llama::tradeoff::{TradeoffOptions, tradeoff};

/// Runs LLaMA-family models (Mistral, Qwen, SmolLM, Phi, Gemma and GLM among them) with a compressed
/// key/value cache.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Talk with a model.
    Chat(ChatOptions),
    /// Continue a prompt.
    Generate(GenerateOptions),
    /// Measure perplexity, and divergence from an f16 cache.
    Perplexity(PerplexityOptions),
    /// Learn from sample text what rotate-kv must know of a model.
    Calibrate(CalibrateOptions),
    /// Draw a model's keys and values: norms, spectra, and what bits cost.
    Analyze(AnalyzeOptions),
    /// Allocate bits to every layer, head, key and value within a budget.
    Plan(PlanOptions),
    /// Compare allocations with fixed bits at equal bytes.
    Tradeoff(TradeoffOptions),
    /// Tell how many bits of its keys and values a model needs, as AlignedKV finds it, and what
    /// reading only those does to products.
    AlignReport(AlignReportOptions),
    /// Tell how many sequences fit beside a model's weights, codec by codec.
    Capacity(CapacityOptions),
    /// Decode with random weights of a model's shape, and tell what it takes.
    DecodeMemory(DecodeMemoryOptions),
    /// Measure how many tokens a second are read and written.
    Bench(BenchOptions),
}

/// What Ctrl-C does in `chat`.
static INTERRUPT: Interrupt = Interrupt::new();

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Returns an error on one line, each cause behind what it caused.
fn with_causes(error: &dyn std::error::Error) -> String {
    let errors = std::iter::successors(Some(error), |error| error.source());
    errors.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs a command.
fn run(command: &Command) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    match command {
        Command::Chat(options) => {
            // The handler runs on a thread of its own, while this one holds standard output.
            ctrlc::set_handler(|| {
                if !INTERRUPT.take() {
                    eprintln!();
                    std::process::exit(0);
                }
            })?;
            let interactive = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
            let (mut input, mut notes) = (std::io::stdin().lock(), std::io::stderr());
            chat(options, &mut Console { input: &mut input, out: &mut out, notes: &mut notes, interactive, interrupt: &INTERRUPT })?;
        }
        Command::Generate(options) => {
            let report = generate(options, &mut out)?;
            writeln!(out)?;
            match options.json {
                true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
                false => writeln!(out, "\n{}", summary(&report))?,
            }
        }
        Command::Perplexity(options) => writeln!(out, "{}", serde_json::to_string(&perplexity(options)?)?)?,
        Command::Calibrate(options) => writeln!(out, "{}", serde_json::to_string(&calibrate(options)?)?)?,
        Command::Analyze(options) => writeln!(out, "{}", serde_json::to_string(&analyze(options)?)?)?,
        Command::Plan(options) => {
            let (allocation, seconds) = plan(options)?;
            if let Some(report) = allocation.report() {
                write!(out, "{report}")?;
            }
            if let Some([keys, values]) = allocation.favours_values() {
                eprintln!("note: values are favoured, {values:.2} bits on average against {keys:.2} for keys");
            }
            writeln!(out, "decided in {:.1} ms, written to {}", 1e3 * seconds, options.out.display())?;
        }
        Command::Tradeoff(options) => print(&mut out, &tradeoff(options)?, options.json)?,
        Command::AlignReport(options) => print(&mut out, &align_report(options)?, options.json)?,
        Command::Capacity(options) => print(&mut out, &capacity(options)?, options.json)?,
        Command::DecodeMemory(options) => print(&mut out, &decode_memory(options)?, options.json)?,
        Command::Bench(options) => print(&mut out, &bench(options)?, options.json)?,
    }
    Ok(())
}

fn print<T: serde::Serialize + std::fmt::Display>(out: &mut impl Write, report: &T, json: bool) -> Result<(), Box<dyn std::error::Error>> {
    match json {
        true => writeln!(out, "{}", serde_json::to_string(report)?)?,
        false => write!(out, "{report}")?,
    }
    Ok(())
}

fn summary(report: &GenerateReport) -> String {
    let format = &report.format;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!(
        "{} {} group {}, sinks {}, window {}, on {}\n\
         prefill {:.1} tokens/s ({} tokens), decode {:.1} tokens/s ({} tokens)\n\
         cache {:.3} MiB, in f16 {:.3} MiB, {:.3} bits per element",
        format.codec,
        format.widths(),
        format.group,
        format.sinks,
        format.window,
        report.adapter,
        report.prefill_tokens_per_second,
        report.prompt_tokens,
        report.decode_tokens_per_second,
        report.tokens.len(),
        mib(report.cache_bytes),
        mib(report.f16_bytes),
        report.bits_per_element,
    )
}
