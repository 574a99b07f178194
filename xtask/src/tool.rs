//! The programs that the tasks run and do not build: which versions they must have, how they are
//! found, and what brings them.

use crate::apt;
use crate::version::Version;
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A program that the tasks run.
pub struct Tool {
    /// What it is called.
    pub name: &'static str,
    /// The version it must have.
    pub least: &'static str,
    /// The reason for that version.
    pub why: &'static str,
    /// Its programs, by name or by path, the preferred one first. They print their version when
    /// called with `--version`. None where the version is found otherwise.
    pub programs: &'static [&'static str],
    /// The package that brings it to Debian and Ubuntu; empty where theirs will not do.
    pub package: &'static str,
    /// Packages that it needs and that its own does not bring.
    pub with: &'static [&'static str],
    /// Where else it can be had.
    pub elsewhere: &'static str,
}

// The table. A version is one that was tried, unless its reason says what older ones lack.

/// The software adapter.
pub const LAVAPIPE: Tool = Tool {
    name: "Mesa (lavapipe)",
    least: "22.3",
    why: "the tests pass on it",
    programs: &[],
    package: "mesa-vulkan-drivers",
    with: &["libvulkan1"],
    elsewhere: "https://mesa3d.org",
};

/// The validator of SPIR-V.
pub const SPIRV_VAL: Tool = Tool {
    name: "spirv-val",
    least: "2023.1",
    why: "older ones do not know WGSL as a source language",
    programs: &["spirv-val"],
    package: "spirv-tools",
    with: &[],
    elsewhere: "the Vulkan SDK, https://vulkan.lunarg.com",
};

/// Runs Tint.
pub const NODE: Tool = Tool {
    name: "Node.js",
    least: "18",
    why: "tint.mjs calls Array.findLast",
    programs: &["node"],
    package: "nodejs",
    with: &[],
    elsewhere: "https://nodejs.org",
};

/// Fetches Tint and wasm-opt.
pub const NPM: Tool = Tool {
    name: "npm",
    least: "7",
    why: "tint/package-lock.json has its format",
    programs: &["npm"],
    package: "npm",
    with: &[],
    elsewhere: "https://nodejs.org",
};

/// The compiler for `wasm32-unknown-unknown` where rustup has not brought that target.
pub const RUSTC_WEB: Tool = Tool {
    name: "rustc-web",
    least: env!("CARGO_PKG_RUST_VERSION"),
    why: "Cargo.toml's rust-version",
    programs: &[],
    package: "rustc-web",
    with: &[],
    elsewhere: "rustup target add wasm32-unknown-unknown",
};

/// Shrinks WebAssembly. Fetched by npm in this version where the system has none, or an older one.
pub const WASM_OPT: Tool = Tool {
    name: "wasm-opt",
    least: "132.0.0",
    why: "it is the one that the tests have seen",
    programs: &["wasm-opt"],
    package: "",
    with: &[],
    elsewhere: "cargo xtask web, which has npm fetch it",
};

/// A browser with its own software adapter.
pub const CHROMIUM: Tool = Tool {
    name: "Chromium",
    least: "148",
    why: "the page's tests pass in it",
    programs: &[
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
        "chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    ],
    package: "chromium",
    with: &[],
    elsewhere: "https://www.google.com/chrome",
};

/// A browser on the system's adapter.
pub const FIREFOX: Tool = Tool {
    name: "Firefox",
    least: "153",
    why: "older ones for Linux are built without WebGPU",
    programs: &["firefox-esr", "firefox", "/Applications/Firefox.app/Contents/MacOS/firefox"],
    package: "firefox-esr",
    with: &[],
    elsewhere: "https://www.mozilla.org/firefox",
};

/// All of them.
pub const ALL: [&Tool; 8] = [&LAVAPIPE, &SPIRV_VAL, &NODE, &NPM, &RUSTC_WEB, &WASM_OPT, &CHROMIUM, &FIREFOX];

/// What was found of a tool that is missing, or too old.
pub type Had = String;

impl Tool {
    /// Returns whether a version will do.
    pub fn takes(&self, version: &Version) -> bool {
        Version::find(self.least).is_some_and(|least| *version >= least)
    }

    /// Returns which version is wanted, what was found instead, and what to type.
    pub fn wanted(&self, had: &str) -> String {
        format!("{} {} or later is wanted ({}), but {had}. To get it: {}", self.name, self.least, self.why, self.remedy())
    }

    /// Returns what to type where it is missing or too old.
    pub fn remedy(&self) -> String {
        if self.package.is_empty() || !apt::is_debian() {
            return self.elsewhere.into();
        }
        format!("sudo apt-get update && sudo apt-get install {}, or {}", self.packages(), self.elsewhere)
    }

    /// Returns its packages, as they are typed.
    pub fn packages(&self) -> String {
        [&[self.package], self.with].concat().join(" ")
    }

    /// Finds the first of its programs that has the version wanted.
    pub fn find(&self) -> Result<(PathBuf, Version), Had> {
        let (mut seen, mut had) = (Vec::new(), Vec::new());
        for path in self.programs.iter().filter_map(|program| which::which_all(program).ok()).flatten() {
            // Folders of the path may be links to each other, and programs too.
            let file = path.canonicalize().unwrap_or_else(|_| path.clone());
            if seen.contains(&file) {
                continue;
            }
            seen.push(file);
            match version(&path) {
                Some(version) if self.takes(&version) => return Ok((path, version)),
                Some(version) => had.push(format!("{} is {version}", path.display())),
                None => had.push(format!("{} does not print its version", path.display())),
            }
        }
        Err(if had.is_empty() { "it is not installed".into() } else { had.join(", ") })
    }

    /// Returns the program, once it is there in the version wanted.
    pub fn provide(&self) -> Result<PathBuf> {
        self.provide_by(|| self.find().map(|(path, _)| path))
    }

    /// Returns what `find` finds. Where it finds nothing, installs or upgrades the package if it
    /// may, and otherwise fails with what to type.
    pub fn provide_by<T>(&self, find: impl Fn() -> Result<T, Had>) -> Result<T> {
        let had = match find() {
            Ok(found) => return Ok(found),
            Err(had) => had,
        };
        if !apt::may_install() {
            bail!("{}", self.wanted(&had));
        }
        println!("    {} {} or later is wanted, but {had}", self.name, self.least);
        apt::install(self)?;
        find().map_err(|had| anyhow::anyhow!("{} (apt has installed {})", self.wanted(&had), self.packages()))
    }
}

/// Returns the version that a program prints.
fn version(program: &PathBuf) -> Option<Version> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    Version::find(&String::from_utf8_lossy(&output.stdout)).filter(|_| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_wanted_is_one() {
        for tool in ALL {
            assert!(Version::find(tool.least).is_some_and(|version| tool.takes(&version)), "{}", tool.name);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_what_was_had() {
        let wanted = FIREFOX.wanted("/usr/bin/firefox-esr is 140.10.2esr");
        for part in ["Firefox 153 or later", FIREFOX.why, "/usr/bin/firefox-esr is 140.10.2esr", FIREFOX.elsewhere] {
            assert!(wanted.contains(part), "{wanted}");
        }
        assert!(!wanted.contains('\n'), "{wanted}");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let absent = Tool { programs: &["wgkv-has-no-such-program"], ..FIREFOX };
        assert_eq!(absent.find().err().as_deref(), Some("it is not installed"));
    }
}
