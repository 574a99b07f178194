//! `cargo xtask doctor`: the tools and the GPUs that are there, what they can do, and what is
//! missing.

use crate::command::target;
use crate::setup;
use crate::tool::{self, Had, LAVAPIPE, RUSTC_WEB, Tool};
use crate::web;
use anyhow::{Result, bail};
use std::time::Instant;
use wgkv::low_level::kernel::variants;
use wgkv::{Bits, Capability, Capacity, Codec, Format, Gpu, Plan, Rope, Shape};

/// Plans the attention of an 8-billion-parameter Llama in one layer, to show which kernels an
/// adapter gets.
fn plan(capability: &Capability) -> Result<Plan> {
    let shape = Shape { layers: 1, query_heads: 32, kv_heads: 8, head_dim: 128, rope: Rope::new(500_000.0, 128) };
    let format = Format::new(Codec::Hadamard, Bits::Four, Bits::Four, 64);
    Ok(Plan::builder(shape, format).capacity(Capacity::tokens(1, 4096)).build(capability)?)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn describe(adapter: &wgpu::Adapter) -> Result<()> {
    let features = adapter.features();
    let has = |feature| if features.contains(feature) { "yes" } else { "no" };
    let limits = adapter.limits();
    let info = adapter.get_info();
    println!("  driver          {} {}", info.driver, info.driver_info);
    println!("  subgroups       {} ({} to {} lanes)", has(wgpu::Features::SUBGROUP), info.subgroup_min_size, info.subgroup_max_size);
    println!("  timestamps      {}", has(wgpu::Features::TIMESTAMP_QUERY));
    println!("  shader-f16      {} (not needed)", has(wgpu::Features::SHADER_F16));
    println!("  binding         {} at most", mebibytes(limits.max_storage_buffer_binding_size));
    println!("  buffer          {} at most", mebibytes(limits.max_buffer_size));
    println!("  storage buffers {} a stage", limits.max_storage_buffers_per_shader_stage);
    println!(
        "  workgroup       {} invocations, {} bytes, {} a dimension",
        limits.max_compute_invocations_per_workgroup, limits.max_compute_workgroup_storage_size, limits.max_compute_workgroups_per_dimension
    );
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("doctor"),
        required_features: features & (wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY),
        required_limits: limits,
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    let gpu = Gpu::new(device, queue);
    let plan = plan(gpu.capability())?;
    let walk = if plan.straight() { "straight-line code" } else { "loops (a software adapter)" };
    println!("  attend_split    {:?} reduction, {walk}", plan.reduce());
    let variants = variants(&plan);
    for variant in variants.iter().filter(|variant| variant.kernel.name == "attend_split") {
        let parts: Vec<&str> = variant.parts.iter().map(|part| part.path.trim_start_matches("part/").trim_end_matches(".wgsl")).collect();
        println!("                  {}", parts.join(", "));
    }
    let start = Instant::now();
    pollster::block_on(gpu.prepare(&plan))?;
    println!("  kernels         {} compiled in {:.2} s", variants.len(), start.elapsed().as_secs_f64());
    Ok(())
}

/// Returns what is there of a tool, or what is wrong with it.
fn had(tool: &Tool, adapters: &[wgpu::Adapter]) -> Result<Result<String, Had>> {
    if tool.name == LAVAPIPE.name {
        let version = adapters.iter().find_map(|adapter| setup::lavapipe(&adapter.get_info()));
        return Ok(match version {
            Some(version) if tool.takes(&version) => Ok(version.to_string()),
            Some(version) => Err(format!("{version}, too old")),
            None if adapters.is_empty() => Err("not installed".into()),
            None => Ok("not installed, nor needed beside a GPU's driver".into()),
        });
    }
    if tool.name == RUSTC_WEB.name {
        return web::compiler(&target()?.0);
    }
    Ok(tool.find().map(|(path, version)| format!("{version}, {}", path.display())))
}

/// Prints for every tool which version is wanted, and which is there.
fn describe_tools(adapters: &[wgpu::Adapter]) -> Result<()> {
    println!("{:<16} {:>8}  had", "tool", "wanted");
    for tool in tool::ALL {
        let had = had(tool, adapters)?;
        println!("{:<16} {:>8}  {}", tool.name, tool.least, had.as_ref().unwrap_or_else(|had| had));
        if had.is_err() {
            println!("{:<25}  to get it: {}", "", tool.remedy());
        }
    }
    println!();
    Ok(())
}

/// Describes every tool and adapter; an error where there is no adapter, or where none serves.
pub fn run() -> Result<()> {
    let instance = setup::instance();
    let adapters = setup::adapters(&instance);
    describe_tools(&adapters)?;
    if adapters.is_empty() {
        bail!("{}", setup::advice());
    }
    let used = pollster::block_on(Gpu::request_adapter(&instance)).map(|adapter| adapter.get_info());
    let mut serves = false;
    for adapter in &adapters {
        let info = adapter.get_info();
        let mark = if used.as_ref().is_ok_and(|used| used.name == info.name && used.backend == info.backend) { " <- used" } else { "" };
        println!("{} ({:?}, {:?}){mark}", info.name, info.backend, info.device_type);
        match describe(adapter) {
            Ok(()) => serves = true,
            Err(error) => println!("  does not serve: {error:#}"),
        }
    }
    used?;
    if !serves {
        bail!("no adapter serves");
    }
    println!("WGPU_ADAPTER_NAME chooses an adapter by a part of its name, WGPU_BACKEND a backend (vulkan, metal, dx12).");
    Ok(())
}
