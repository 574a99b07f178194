//! A device without memory. By itself in its process, of which it limits the address space.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

use std::process::Command;

use pollster::block_on;
use wgkv::Gpu;
use wgkv_decoder::{Config, Decoder, Error};

/// Limits this process's address space to what it has and so much more.
fn limit(more: u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kilobytes: u64 = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    // A soft limit: it can be lifted again.
    let set = Command::new("prlimit").args(["--pid", &std::process::id().to_string(), &format!("--as={}:", 1024 * kilobytes + more)]).status();
    assert!(set.expect("prlimit of util-linux").success());
}

fn config(layers: usize) -> Config {
    let text = format!(
        r#"{{"architectures":["LlamaForCausalLM"],"hidden_size":2048,"intermediate_size":4096,"num_hidden_layers":{layers},
            "num_attention_heads":16,"num_key_value_heads":4,"vocab_size":1024,"tie_word_embeddings":true,"bos_token_id":1}}"#
    );
    Config::from_bytes(text.as_bytes()).unwrap()
}

#[test]
fn weights_that_the_device_has_no_memory_for_are_refused() {
    // Adapters that tell how much memory is in use are to use a hundredth of it. The software
    // adapter tells nothing, but has this process's.
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.memory_budget_thresholds.for_resource_creation = Some(1);
    let adapter = block_on(Gpu::request_adapter(&wgpu::Instance::new(descriptor))).unwrap();
    let (device, queue) = block_on(adapter.request_device(&wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() })).unwrap();
    let gpu = Gpu::new(device, queue);
    if adapter.get_info().device_type == wgpu::DeviceType::Cpu {
        limit(1 << 30);
    }
    // 2.7 GB, drawn a block at a time.
    match block_on(Decoder::random(&gpu, &config(40))).unwrap_err() {
        Error::Wgkv(wgkv::Error::Memory { need }) => assert!(need > 2_500_000_000, "{need}"),
        other => panic!("{other}"),
    }
    // The device lives, and a smaller one fits.
    assert_eq!(gpu.lost(), None);
    let decoder = block_on(Decoder::random(&gpu, &config(1))).unwrap();
    assert!(decoder.weight_bytes() > 50_000_000);
}
