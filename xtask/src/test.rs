//! `cargo xtask test`: everything that CI runs, quick checks first, the tests last.

use crate::command::{self, cargo, output, root, target, typed};
use crate::{lint_shaders, setup, web};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use wgkv::low_level::kernel;

/// The registry's archive may not grow beyond this without somebody noticing.
const CRATE_BYTES: u64 = 1_000_000;

/// What the library has for those who ask for it. In all steps, so that what they share is built once.
const OPTIONAL: &str = "wgkv/store,wgkv/tracing";

/// Options of `test`.
#[derive(clap::Args)]
pub struct Options {
    /// Also build the package as its users would (takes minutes).
    #[arg(long)]
    full: bool,
}

/// Announces a step, runs it, and says how long it took.
fn step(name: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("==> {name}");
    let start = Instant::now();
    body().with_context(|| format!("step {name:?}"))?;
    println!("    {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// A step that is one command.
fn cargo_step(mut command: Command) -> Result<()> {
    step(&typed(&command), || command::run(&mut command))
}

/// Runs all steps; the first that fails ends it. The last line of the output is the closing line of `cargo test`.
pub fn run(options: &Options) -> Result<()> {
    step("setup", || setup::run_setup().and_then(|()| lint_shaders::run_setup()))?;
    step("files of every kernel", kernel_files)?;
    cargo_step(cargo(&["fmt", "--all", "--check"]))?;
    cargo_step(cargo(&["clippy", "--workspace", "--all-targets", "--features", OPTIONAL, "--", "-D", "warnings"]))?;
    let mut doc = cargo(&["doc", "--no-deps", "--package", "wgkv", "--features", OPTIONAL]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    cargo_step(doc)?;
    step("package", || package(options.full))?;
    step("web", || web::run(&web::Options::TEST))?;
    let mut tests = cargo(&["test", "--workspace", "--lib", "--bins", "--tests", "--features", OPTIONAL]);
    tests.env(lint_shaders::EVERY_VARIANT, "1");
    cargo_step(tests)?;
    step("shaders by Chromium's compiler", lint_shaders::run_tint)?;
    // Last and without a line of our own after it, so that the output ends on the test runner's closing line.
    println!("==> cargo test --package wgkv --doc --features {OPTIONAL}");
    command::run(&mut cargo(&["test", "--package", "wgkv", "--doc", "--features", OPTIONAL]))
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').collect()
}

/// Is the kernel named in a bench?
fn has_bench(name: &str) -> Result<bool> {
    for entry in std::fs::read_dir(root().join("benches")).context("benches/ cannot be read")? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && (path.file_stem().is_some_and(|stem| stem == name) || words(&std::fs::read_to_string(&path)?).contains(name))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every kernel has its shader, wrapper, twin and test under its name, and a bench that names it; and no shader is no kernel's.
fn kernel_files() -> Result<()> {
    let mut missing = Vec::new();
    for kernel in kernel::ALL {
        let name = kernel.name;
        for (folder, ending) in [("shaders", "wgsl"), ("src/kernel", "rs"), ("src/kernel/reference", "rs"), ("tests", "rs")] {
            let path = format!("{folder}/{name}.{ending}");
            if !root().join(&path).is_file() {
                missing.push(path);
            }
        }
        if !has_bench(name)? {
            missing.push(format!("a bench in benches/ that names {name}"));
        }
    }
    for entry in std::fs::read_dir(root().join("shaders"))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|e| e == "wgsl") && !kernel::ALL.iter().any(|kernel| kernel.name == stem) {
            missing.push(format!("a kernel called {stem} in kernel::ALL, for {}", path.display()));
        }
    }
    if !missing.is_empty() {
        bail!("missing: {}", missing.join(", "));
    }
    println!("    {} kernels have shader, wrapper, twin, test and bench", kernel::ALL.len());
    Ok(())
}

/// All WGSL files below a folder, as paths from the root.
fn shaders(folder: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            shaders(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "wgsl") {
            found.push(path.strip_prefix(root())?.to_string_lossy().replace('\\', "/"));
        }
    }
    Ok(())
}

/// The package holds every shader and no model, and is small.
fn package(full: bool) -> Result<()> {
    let listed = output(&mut cargo(&["package", "--package", "wgkv", "--allow-dirty", "--list"]))?.replace('\\', "/");
    let listed: BTreeSet<&str> = listed.lines().collect();
    let mut wanted = vec!["README.md".to_owned(), "LICENSE-MIT".to_owned(), "LICENSE-APACHE".to_owned(), "CHANGELOG.md".to_owned()];
    shaders(&root().join("shaders"), &mut wanted)?;
    let missing: Vec<&String> = wanted.iter().filter(|path| !listed.contains(path.as_str())).collect();
    if !missing.is_empty() {
        bail!("the package lacks {missing:?}");
    }
    let surplus: Vec<&&str> =
        listed.iter().filter(|path| ["assets/", "examples/", "xtask/", "target/", ".ci/"].iter().any(|folder| path.starts_with(folder))).collect();
    if !surplus.is_empty() {
        bail!("the package holds {surplus:?}, which it should not");
    }
    let mut arguments = vec!["package", "--quiet", "--package", "wgkv", "--allow-dirty"];
    if !full {
        arguments.push("--no-verify");
    }
    command::run(&mut cargo(&arguments))?;
    let (folder, version) = target()?;
    let path = folder.join("package").join(format!("wgkv-{version}.crate"));
    let bytes = std::fs::metadata(&path).with_context(|| format!("{} cannot be read", path.display()))?.len();
    if bytes >= CRATE_BYTES {
        bail!("{} has {bytes} bytes, but fewer than {CRATE_BYTES} are wanted", path.display());
    }
    println!("    {} files, {bytes} bytes", listed.len());
    Ok(())
}
