//! `cargo xtask fuzz`: libFuzzer on everything that reads a file or a word (`tests/fuzz`). Needs a
//! C++ compiler, and no nightly Rust.

use crate::command::{cargo, root, run, target};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The environment variable that makes this program act as the compiler: cargo then calls it with
/// the compiler's command line.
const COMPILER: &str = "WGKV_XTASK_COMPILER";

/// The compiler's flags for counting which ways were taken, and what was compared with what: those
/// of cargo-fuzz.
const COVERAGE: [&str; 6] = [
    "-Ccodegen-units=1",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Compiles with the counters if cargo called this program as the compiler, and returns how that
/// ended.
pub fn compile() -> Option<Result<()>> {
    std::env::var_os(COMPILER)?;
    let mut arguments = std::env::args_os().skip(1);
    let compiler = arguments.next()?;
    Some(run(Command::new(compiler).args(arguments).args(COVERAGE)))
}

/// Options of `fuzz`.
#[derive(clap::Args)]
pub struct Options {
    /// The target; all of them, one after another, if none is named.
    target: Option<String>,
    /// How long each is searched.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Add what was found to the kept inputs, where it takes ways through the code that none of
    /// them takes.
    #[arg(long)]
    keep: bool,
}

/// Builds the search. Only the workspace's own crates count ways, with what they make of generic
/// code; all others are those of the tests.
fn build() -> Result<PathBuf> {
    let mut build = cargo(&["build", "--profile", "test", "--package", "wgkv-fuzz", "--features", "search", "--bin", "search"]);
    build.env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?).env(COMPILER, "1");
    run(&mut build)?;
    Ok(target()?.0.join("debug").join(format!("search{}", std::env::consts::EXE_SUFFIX)))
}

/// Searches each target; the first input that goes wrong ends it, and is written where libFuzzer
/// says.
pub fn run_search(options: &Options) -> Result<()> {
    let kept = root().join("tests/fuzz/corpus");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&kept).with_context(|| format!("{} cannot be read", kept.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if let Some(wanted) = &options.target {
        if !names.contains(wanted) {
            bail!("there is no target {wanted}, only {}", names.join(", "));
        }
        names = vec![wanted.clone()];
    }
    let program = build()?;
    let work = target()?.0.join("fuzz/corpus");
    for name in names {
        let (kept, found) = (kept.join(&name), work.join(&name));
        std::fs::create_dir_all(&found)?;
        let search = |arguments: &[String], folders: [&PathBuf; 2]| {
            let mut command = Command::new(&program);
            command.env("WGKV_FUZZ", &name).current_dir(&work).args(arguments).args(folders);
            run(&mut command)
        };
        println!("==> {name}: {} minutes", options.minutes);
        let seconds = (options.minutes * 60.0).round();
        search(&[format!("-max_total_time={seconds}"), "-timeout=10".into(), "-max_len=16384".into(), "-print_final_stats=1".into()], [&found, &kept])?;
        if options.keep {
            // As few inputs as take every way once, however often: the kept inputs are to be small.
            let merge = ["-merge=1", "-set_cover_merge=1", "-use_counters=0", "-use_cmp=0", "-max_len=400"];
            search(&merge.map(str::to_owned), [&kept, &found])?;
        }
    }
    Ok(())
}
