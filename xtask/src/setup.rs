//! Makes sure that there is a GPU adapter, a software one where there is no other.

use crate::apt;
use crate::tool::{Had, LAVAPIPE};
use crate::version::Version;
use anyhow::{Result, bail};
use wgkv::Gpu;

/// Returns what to do where no adapter is found, on this system.
pub fn advice() -> String {
    match std::env::consts::OS {
        "linux" => format!(
            "no Vulkan driver was found. Install your GPU's driver, or Mesa's, which also brings a software adapter: on Debian and Ubuntu \
             sudo apt-get update && sudo apt-get install {}, on Fedora sudo dnf install mesa-vulkan-drivers",
            LAVAPIPE.packages()
        ),
        "macos" => "no adapter was found. Metal is part of macOS, and nothing needs to be installed, but a virtual machine may hide the GPU".into(),
        "windows" => "no adapter was found. DirectX 12 is part of Windows, with a software adapter (WARP), and nothing needs to be installed, \
                      but the GPU's driver may be too old"
            .into(),
        _ => "no adapter was found: a driver for Vulkan, Metal or DirectX 12 is needed".into(),
    }
}

/// Returns the instance that the library would make.
pub fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// Returns Mesa's version where an adapter is its software adapter.
pub fn lavapipe(info: &wgpu::AdapterInfo) -> Option<Version> {
    (info.driver == "llvmpipe").then(|| Version::find(&info.driver_info)).flatten()
}

/// Returns every adapter that is there.
pub fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

/// Returns the name of the adapter that the library would use. Where there is none, or only Mesa's
/// in a version that is too old, the error asks for Mesa's package; not where the environment names
/// an adapter that is missing, since the package would not help.
fn adapter() -> Result<Result<String>, Had> {
    let instance = instance();
    if adapters(&instance).is_empty() {
        return Err("no adapter was found".into());
    }
    let info = match pollster::block_on(Gpu::request_adapter(&instance)) {
        Ok(adapter) => adapter.get_info(),
        Err(error) => return Ok(Err(error.into())),
    };
    match lavapipe(&info).filter(|version| !LAVAPIPE.takes(version)) {
        Some(version) => Err(format!("{} is {version}", info.name)),
        None => Ok(Ok(format!("{} ({:?}, {:?})", info.name, info.backend, info.device_type))),
    }
}

/// Names the adapter that will be used. Where there is none, installs Mesa's drivers if it may
/// (root on Debian or Ubuntu), and otherwise stops with the command that would.
pub fn run_setup() -> Result<()> {
    if !apt::may_install() && adapters(&instance()).is_empty() {
        bail!("{}", advice());
    }
    println!("adapter: {}", LAVAPIPE.provide_by(adapter)??);
    Ok(())
}
