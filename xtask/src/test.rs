//! `cargo xtask test`: everything that CI runs, quick checks first, the tests last.

use crate::command::{self, cargo, output, root, target, typed};
use crate::{lint_shaders, web};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use wgkv::low_level::kernel;

/// The most bytes that the registry's archive may have, so that growth gets noticed.
const CRATE_BYTES: u64 = 1_000_000;

/// The library's optional features.
///
/// How a dependency is built depends on all packages, targets and features that a command names,
/// and on the profile. So that nothing is built twice, every step that builds names the whole
/// workspace, these features and the tests' profile, and some target that takes what only tests
/// depend on.
pub const OPTIONAL: &str = "wgkv/store,wgkv/tracing";

/// Options of `test`.
#[derive(clap::Args)]
pub struct Options {
    /// Also build the package as its users would (takes minutes).
    #[arg(long)]
    full: bool,
}

/// Announces a step, runs it, and prints how long it took.
fn step(name: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("==> {name}");
    let start = Instant::now();
    body().with_context(|| format!("step {name:?}"))?;
    println!("    {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a step that is one command.
fn cargo_step(mut command: Command) -> Result<()> {
    step(&typed(&command), || command::run(&mut command))
}

/// Runs all steps and stops at the first that fails. The last line of the output is the closing
/// line of `cargo test`.
pub fn run(options: &Options) -> Result<()> {
    // Everything that may be missing or too old, before the first slow step.
    step("setup", || lint_shaders::run_setup().and_then(|()| web::run_setup(&web::Options::TEST).map(drop)))?;
    step("files of every kernel", kernel_files)?;
    cargo_step(cargo(&["fmt", "--all", "--check"]))?;
    cargo_step(cargo(&["clippy", "--workspace", "--all-targets", "--profile", "test", "--features", OPTIONAL, "--", "-D", "warnings"]))?;
    // With the examples, since their dependencies are those of the tests.
    let mut doc = cargo(&["doc", "--no-deps", "--workspace", "--lib", "--examples", "--profile", "test", "--features", OPTIONAL]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    cargo_step(doc)?;
    step("package", || package(options.full))?;
    step("web", || web::run(&web::Options::TEST))?;
    // The examples of the library alone run here, too: their entries in Cargo.toml say that they
    // are tests.
    let mut tests = cargo(&["test", "--workspace", "--lib", "--bins", "--tests", "--features", OPTIONAL]);
    tests.env(lint_shaders::EVERY_VARIANT, "1");
    cargo_step(tests)?;
    step("shaders by Chromium's compiler", lint_shaders::run_tint)?;
    // Last and with no line of this program after it, so that the output ends on the test runner's
    // closing line.
    doc_tests(cargo(&["test", "--workspace", "--doc", "--features", OPTIONAL]))
}

/// Runs the documentation's tests, and prints what they print up to the closing line of the last
/// package that has any.
fn doc_tests(mut command: Command) -> Result<()> {
    println!("==> {}", typed(&command));
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut running = command.spawn().context("cargo could not be started")?;
    // It holds the pipe's other end, which must close when cargo ends.
    drop(command);
    let mut printed = DocTests::default();
    for line in BufReader::new(reader).lines() {
        for line in printed.take(line?) {
            println!("{line}");
        }
    }
    let status = running.wait()?;
    if !status.success() {
        bail!("cargo test --doc failed ({status})");
    }
    if !printed.any {
        bail!("no package has tests in its documentation, but wgkv should");
    }
    Ok(())
}

/// The output of documentation tests without the packages that have none, and without what comes
/// after a closing line.
#[derive(Debug, Default)]
struct DocTests {
    /// Lines of a package that may turn out to have no tests.
    held: Vec<String>,
    /// Whether some package had tests.
    any: bool,
}

impl DocTests {
    /// Returns the lines that can be printed after one more has come.
    fn take(&mut self, line: String) -> Vec<String> {
        let ends = line.starts_with("test result: ");
        if ends && self.held.iter().any(|line| line == "running 0 tests") {
            self.held.clear();
        } else if line.is_empty() || line.contains("Doc-tests ") || line == "running 0 tests" {
            self.held.push(line);
        } else if !line.starts_with("all doctests ran in ") {
            self.any |= ends;
            self.held.push(line);
            return std::mem::take(&mut self.held);
        }
        Vec::new()
    }
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').collect()
}

/// Returns whether a bench names the kernel.
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

/// Checks that every kernel has its shader, wrapper, twin and test under its name, and a bench that
/// names it, and that every shader is a kernel's.
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

/// Finds all WGSL files below a folder, as paths from the root.
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

/// Checks that the package holds every shader and no model, and is small.
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

#[cfg(test)]
mod tests {
    use super::DocTests;

    fn printed(output: &str) -> (String, bool) {
        let mut tests = DocTests::default();
        let lines: Vec<String> = output.lines().flat_map(|line| tests.take(line.to_owned())).collect();
        (lines.join("\n"), tests.any)
    }

    #[test]
    fn the_output_ends_on_a_closing_line_of_tests_that_ran() {
        let none = "   Doc-tests b\n\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed\n\n";
        let some = "   Doc-tests a\n\nrunning 1 test\ntest a.rs - (line 1) ... ok\n\ntest result: ok. 1 passed; 0 failed";
        let (built, after) = ("    Finished `test` profile\n", "\n\nall doctests ran in 0.34s; merged doctests compilation took 0.33s\n");
        let (lines, any) = printed(&[built, none, some, after, none, none].concat());
        assert_eq!(lines, [built, "\n", some].concat());
        assert!(any);
        assert_eq!(printed(&[built, none].concat()), (built.trim_end().to_owned(), false));
    }

    #[test]
    fn what_fails_is_printed() {
        let failed = "   Doc-tests a\nerror: cannot find value `x`\n\nerror: doctest failed";
        assert_eq!(printed(failed), (failed.to_owned(), false));
    }
}
