//! Packages of Debian and Ubuntu.
//!
//! A machine's lists of packages may be months old. They then offer versions that are too old, or
//! that the archive no longer has, so nothing is taken from them before its version is checked.
//! They are fetched again where that helps, once a run.

use crate::command::{output, run};
use crate::tool::Tool;
use crate::version::Version;
use anyhow::{Result, bail};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the lists were fetched in this run, or could not be.
static REFRESHED: AtomicBool = AtomicBool::new(false);

/// Returns whether this is Debian, or a system made from it.
pub fn is_debian() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    release
        .lines()
        .any(|line| line.split_once('=').is_some_and(|(key, value)| matches!(key, "ID" | "ID_LIKE") && (value.contains("debian") || value.contains("ubuntu"))))
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Returns whether packages may be installed: by root on Debian or Ubuntu.
pub fn may_install() -> bool {
    cfg!(target_os = "linux") && is_debian() && is_root()
}

/// Returns the version of a package that apt would install, as apt writes it.
fn candidate(package: &str) -> Result<Option<String>> {
    let policy = output(Command::new("apt-cache").args(["policy", package]))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}

/// Returns the version of a tool's package that apt would install. Fetches the lists if that is too
/// old, and stops if it still is.
pub fn offer(tool: &Tool) -> Result<String> {
    let mut offered = candidate(tool.package)?;
    let enough = |offered: &Option<String>| offered.as_deref().and_then(Version::find).is_some_and(|version| tool.takes(&version));
    if !enough(&offered) {
        let had = offered.as_deref().unwrap_or("nothing");
        println!("    {} {} or later is wanted, and apt offers {had}", tool.name, tool.least);
        if refresh() {
            offered = candidate(tool.package)?;
        }
    }
    match offered {
        Some(version) if enough(&Some(version.clone())) => Ok(version),
        offered => bail!("{}", tool.wanted(&format!("apt offers {} of {}", offered.as_deref().unwrap_or("no version"), tool.package))),
    }
}

/// Installs a tool's package, or upgrades it.
pub fn install(tool: &Tool) -> Result<()> {
    let install = |version: &str| {
        println!("    installing {} {version}", tool.package);
        let mut apt = Command::new("apt-get");
        // A system that has just started may be upgrading itself.
        apt.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0", "-qq", "install", "--yes", "--no-install-recommends", tool.package]);
        run(apt.args(tool.with).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let Err(error) = install(&offer(tool)?) else {
        return Ok(());
    };
    // The archive may no longer have what old lists name.
    if !refresh() {
        return Err(error);
    }
    install(&offer(tool)?)
}

/// Fetches the lists of packages, unless this run has tried that already or may not; returns
/// whether they may name other versions now.
pub fn refresh() -> bool {
    if !may_install() || REFRESHED.swap(true, Ordering::Relaxed) {
        return false;
    }
    println!("    fetching the lists of packages");
    if let Err(error) = run(Command::new("apt-get").args(["-qq", "update"])) {
        // One archive of several may be out of reach; what is wanted may be in another.
        println!("    {error:#}; some lists may still be old");
    }
    true
}
