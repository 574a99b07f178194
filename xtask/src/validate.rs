//! `cargo xtask validate`: the library's tests under Vulkan's validation layers, which watch every
//! call for what the specification forbids, synchronization among it.

use crate::command::{cargo, target, typed};
use crate::setup;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// The layer, and what brings it to Debian and Ubuntu.
const LAYER: &str = "VK_LAYER_KHRONOS_validation";
const DEBIAN_PACKAGE: &str = "vulkan-validationlayers";

/// The layer's settings: it reports on standard output what it finds, and that it is there.
const SETTINGS: &str = "khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG
khronos_validation.report_flags = error,warn,info
khronos_validation.log_filename = stdout
khronos_validation.duplicate_message_limit = 10
";

/// The message by which the layer reports that it is there.
const STATUS: &str = "createinstance-status-message";

/// What layers from before 2023 report for every module that names WGSL as its source, as naga's do
/// in debug builds: they do not know the number. `cargo xtask lint-shaders` has such modules
/// validated by a newer program.
const UNKNOWN_SOURCE: &str = "Invalid source language operand";

/// Options of `validate`.
#[derive(clap::Args)]
pub struct Options {
    /// Names of test files; all of the library's if none is given.
    tests: Vec<String>,
}

/// Runs the tests; fails where one fails, where the layer finds something, and where it is not
/// there.
pub fn run(options: &Options) -> Result<()> {
    setup::run_setup()?;
    let folder = target()?.0.join("validate");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("vk_layer_settings.txt"), SETTINGS)?;
    let mut command = cargo(&["test", "--package", "wgkv", "--features", "store,tracing", "--no-fail-fast"]);
    if options.tests.is_empty() {
        command.args(["--lib", "--tests"]);
    }
    for test in &options.tests {
        command.args(["--test", test]);
    }
    command.env("VK_INSTANCE_LAYERS", LAYER).env("VK_LAYER_SETTINGS_PATH", &folder).stdout(Stdio::piped());
    println!("==> {} under {LAYER}", typed(&command));
    let mut running = command.spawn().context("cargo could not be started")?;
    let (mut watched, mut found) = (0, Vec::new());
    for line in BufReader::new(running.stdout.take().context("cargo has no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if line.contains(STATUS) {
            watched += 1;
        } else if line.contains("MessageID") && !line.contains(UNKNOWN_SOURCE) {
            eprintln!("{line}");
            found.push(line);
        } else if line.starts_with("test ") {
            println!("{line}");
        }
    }
    let status = running.wait()?;
    if watched == 0 {
        bail!("{LAYER} is missing. To get it: sudo apt-get update && sudo apt-get install {DEBIAN_PACKAGE} on Debian and Ubuntu, or the Vulkan SDK");
    }
    if !found.is_empty() {
        bail!("the layer found {} faults, the first of them: {}", found.len(), found[0]);
    }
    if !status.success() {
        bail!("tests failed ({status})");
    }
    println!("the layer watched {watched} instances, and found nothing");
    Ok(())
}
