//! Programs that the tasks run.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns the repository's root.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Returns the cargo that runs this task, in the repository's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Returns a command as it would be typed.
pub fn typed(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args()).map(|word| {
        let is_cargo = Path::new(word).file_stem().is_some_and(|stem| stem == "cargo");
        let word = if is_cargo { "cargo".into() } else { word.to_string_lossy() };
        if word.contains(char::is_whitespace) { format!("{word:?}") } else { word.into_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end; fails if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{} could not be started", typed(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", typed(command));
    }
    Ok(())
}

/// Returns what a command prints; fails if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{} could not be started", typed(command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", typed(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns where cargo puts what it builds, and the version of the package `wgkv`.
pub fn target() -> Result<(PathBuf, String)> {
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?)?;
    let folder = metadata["target_directory"].as_str().context("cargo metadata has no target_directory")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let package = packages.iter().find(|package| package["name"] == "wgkv").context("cargo metadata has no package wgkv")?;
    Ok((folder.into(), package["version"].as_str().unwrap_or_default().to_owned()))
}
