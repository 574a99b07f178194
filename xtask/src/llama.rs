//! The example program `wgkv-llama`, run from here.

use crate::command::{cargo, root, run, target, typed};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use wgkv::{Bits, Codec};

/// Codec and bits of one run; f16 has no bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The codec.
    pub codec: Codec,
    /// Bits of keys and values.
    pub bits: (Bits, Bits),
}

impl Choice {
    /// Half precision.
    pub const F16: Self = Self { codec: Codec::F16, bits: (Bits::Eight, Bits::Eight) };

    /// Makes a codec with bits for keys and values.
    pub const fn new(codec: Codec, keys: Bits, values: Bits) -> Self {
        Self { codec, bits: (keys, values) }
    }

    /// Returns the program's options for it.
    pub fn options(self, group: u32) -> Vec<String> {
        let mut options = vec!["--codec".to_owned(), self.codec.to_string()];
        if self.codec != Codec::F16 {
            for (name, number) in [("--k-bits", self.bits.0.get()), ("--v-bits", self.bits.1.get()), ("--group", group)] {
                options.extend([name.to_owned(), number.to_string()]);
            }
        }
        options
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.codec {
            Codec::F16 => f.pad("f16"),
            codec => f.pad(&format!("{codec} K{}V{}", self.bits.0.get(), self.bits.1.get())),
        }
    }
}

/// Checks that a folder can be a model's, before minutes are spent on building. For a wrong path
/// the error holds the system's reason.
pub fn check_model(model: &Path) -> Result<()> {
    let path = model.join("config.json");
    std::fs::File::open(&path).map(drop).with_context(|| format!("{} cannot be read", path.display()))
}

/// Builds the program in release mode; returns its path.
pub fn build() -> Result<PathBuf> {
    println!("building wgkv-llama (the first time takes several minutes)");
    run(&mut cargo(&["build", "--release", "--package", "wgkv-llama"]))?;
    let (folder, _) = target()?;
    Ok(folder.join("release").join(format!("wgkv-llama{}", std::env::consts::EXE_SUFFIX)))
}

/// Runs the program in place of this one, so that Ctrl-C is its own.
#[cfg(unix)]
pub fn replace(program: &Path, arguments: &[&str]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.args(arguments);
    // It returns only if it fails.
    Err(command.exec()).with_context(|| format!("{} could not be started", typed(&command)))
}

/// Runs the program as a part of this one, which a console's Ctrl-C reaches as well.
#[cfg(not(unix))]
pub fn replace(program: &Path, arguments: &[&str]) -> Result<()> {
    run(Command::new(program).args(arguments))
}

/// Runs the program, shows what it prints as it comes if asked to, and returns its last line, which
/// is one JSON object.
pub fn report(program: &PathBuf, arguments: &[String], show: bool) -> Result<Value> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{} could not be started", typed(&command)))?;
    let mut stdout = BufReader::new(child.stdout.take().context("the program has no standard output")?);
    let mut report = Report::default();
    loop {
        let piece = stdout.fill_buf()?;
        if piece.is_empty() {
            break;
        }
        let taken = piece.len();
        let text = report.take(piece);
        if show {
            let mut out = std::io::stdout();
            out.write_all(&text)?;
            out.flush()?;
        }
        stdout.consume(taken);
    }
    let status = child.wait()?;
    let name = format!("wgkv-llama {}", arguments.first().map_or("", |name| name.as_str()));
    if !status.success() {
        // The program has printed why.
        bail!("{name} failed ({status})");
    }
    serde_json::from_slice(&report.held).with_context(|| format!("the last line of {name} is not a JSON object"))
}

/// Separates text from the report: lines that begin with a brace are held back until it is known
/// that they are not the last.
#[derive(Debug, Default)]
struct Report {
    held: Vec<u8>,
    /// Whether the current line has begun, and with something else than a brace.
    in_text: bool,
}

impl Report {
    /// Returns what of the next bytes is text for certain.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for byte in bytes {
            if !self.in_text && (*byte == b'{' || !self.held.is_empty()) && self.held.last() != Some(&b'\n') {
                self.held.push(*byte);
                continue;
            }
            text.append(&mut self.held);
            if !self.in_text && *byte == b'{' {
                self.held.push(*byte);
            } else {
                text.push(*byte);
                self.in_text = *byte != b'\n';
            }
        }
        text
    }
}

/// Returns a number of a report.
pub fn number(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("wgkv-llama reports no number {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn the_last_line_is_the_report_and_the_others_are_text() {
        for pieces in [vec!["a\n{b}\n c{d\n{\"e\": 1}\n"], vec!["a\n{", "b}\n", " c{d\n{\"e\"", ": 1}", "\n"]] {
            let mut report = Report::default();
            let text: Vec<u8> = pieces.iter().flat_map(|piece| report.take(piece.as_bytes())).collect();
            assert_eq!(text, b"a\n{b}\n c{d\n");
            assert_eq!(report.held, b"{\"e\": 1}\n");
        }
    }
}
