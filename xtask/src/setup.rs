//! Makes sure that there is a GPU adapter, a software one where there is no other, and that the programs are there which check
//! shaders.

use crate::command::run;
use anyhow::{Result, bail};
use std::process::Command;
use wgkv::Gpu;

/// The packages that bring a software adapter to Debian and Ubuntu.
const DEBIAN_PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// What to install where no adapter is found, on this system.
pub fn advice() -> String {
    match std::env::consts::OS {
        "linux" => format!(
            "No Vulkan driver was found. Install your GPU's driver, or Mesa's, which also brings a software adapter:\n  \
             Debian, Ubuntu: sudo apt-get install {}\n  Fedora:         sudo dnf install mesa-vulkan-drivers",
            DEBIAN_PACKAGES.join(" ")
        ),
        "macos" => "No adapter was found. Metal is part of macOS: nothing needs to be installed, but a virtual machine may hide the GPU.".into(),
        "windows" => "No adapter was found. DirectX 12 is part of Windows, with a software adapter (WARP): nothing needs to be installed, but the GPU's driver may be too old.".into(),
        _ => "No adapter was found: a driver for Vulkan, Metal or DirectX 12 is needed.".into(),
    }
}

/// The instance that the library would make.
pub fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// The name of the adapter that the library would use.
fn adapter() -> Option<String> {
    let adapter = pollster::block_on(Gpu::request_adapter(&instance())).ok()?;
    let info = adapter.get_info();
    Some(format!("{} ({:?}, {:?})", info.name, info.backend, info.device_type))
}

/// Debian, or a system made from it?
pub fn is_debian() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    release
        .lines()
        .any(|line| line.split_once('=').is_some_and(|(key, value)| matches!(key, "ID" | "ID_LIKE") && (value.contains("debian") || value.contains("ubuntu"))))
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// May packages of Debian or Ubuntu be installed?
pub fn may_install() -> bool {
    cfg!(target_os = "linux") && is_debian() && is_root()
}

/// Names the adapter that will be used. Where there is none, installs Mesa's drivers if it may (root on Debian or Ubuntu),
/// and otherwise stops with the command that would.
pub fn run_setup() -> Result<()> {
    if let Some(name) = adapter() {
        println!("adapter: {name}");
        return Ok(());
    }
    if !may_install() {
        bail!("{}", advice());
    }
    println!("no Vulkan driver was found; installing {}", DEBIAN_PACKAGES.join(" "));
    install(&DEBIAN_PACKAGES)?;
    match adapter() {
        Some(name) => println!("adapter: {name}"),
        None => bail!("{} are installed, but still no adapter answers", DEBIAN_PACKAGES.join(" ")),
    }
    Ok(())
}

/// Makes sure that a program answers to `--version`: installs its package if it may, and otherwise stops with where to get it.
pub fn provide(program: &str, debian_package: &str, elsewhere: &str) -> Result<()> {
    let answers = || Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if answers() {
        return Ok(());
    }
    if !may_install() {
        bail!("{program} is missing. Debian, Ubuntu: sudo apt-get install {debian_package}\n  elsewhere: {elsewhere}");
    }
    println!("{program} is missing; installing {debian_package}");
    install(&[debian_package])?;
    if !answers() {
        bail!("{debian_package} is installed, but {program} does not answer");
    }
    Ok(())
}

/// Installs packages of Debian or Ubuntu.
pub fn install(packages: &[&str]) -> Result<()> {
    let install = || run(Command::new("apt-get").args(["install", "--yes", "--no-install-recommends"]).args(packages).env("DEBIAN_FRONTEND", "noninteractive"));
    // The package list may be missing or old: then the installation is tried again with a fresh one.
    if install().is_err() {
        update_packages()?;
        install()?;
    }
    Ok(())
}

/// Fetches the list of packages.
pub fn update_packages() -> Result<()> {
    run(Command::new("apt-get").arg("update"))
}
