//! The project's own commands, run as `cargo xtask NAME`.

mod apt;
mod command;
mod demo;
mod doctor;
mod fuzz;
mod lint_shaders;
mod llama;
mod quality;
mod registry;
mod runtime;
mod setup;
mod shader;
mod test;
mod tool;
mod validate;
mod version;
mod web;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Say which GPUs and tools are there, what they can do, and what is missing.
    Doctor,
    /// Continue a prompt with the embedded model through three caches and compare them.
    Demo(demo::Options),
    /// Everything that CI runs.
    Test(test::Options),
    /// Compile every kernel in every variant with naga and with Chromium's compiler, and check the
    /// SPIR-V.
    LintShaders,
    /// Print what a kernel is linked from for a plan, or write all modules or the list of parts.
    Shader(shader::Options),
    /// Search for inputs that break what reads files and words.
    Fuzz(fuzz::Options),
    /// Run the library's tests under Vulkan's validation layers.
    Validate(validate::Options),
    /// Measure perplexity and divergence of the codecs on a model, against what they must be.
    Quality(quality::Options),
    /// Build the page and the npm package, serve the page, or test both in browsers.
    Web(web::Options),
}

fn main() -> ExitCode {
    if let Some(compiled) = fuzz::compile() {
        return if compiled.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    // SAFETY: nothing has started a thread yet.
    let result = unsafe { runtime::provide() }.and_then(|()| run(Arguments::parse().task));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On one line, followed by its causes: a wrong path on the command line needs no back
            // trace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Doctor => doctor::run(),
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::LintShaders => lint_shaders::run_lint(),
        Task::Shader(options) => shader::run(&options),
        Task::Fuzz(options) => fuzz::run_search(&options),
        Task::Validate(options) => validate::run(&options),
        Task::Quality(options) => quality::run(&options),
        Task::Web(options) => web::run(&options),
    }
}
