//! A device without memory. By itself in its process, of which it limits the address space.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

use pollster::block_on;
use std::process::Command;
use wgkv_testing::*;

/// Limits this process's address space to what it has and so much more, or to nothing.
fn limit(more: Option<u64>) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kilobytes: u64 = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    let bytes = more.map_or("unlimited".to_owned(), |more| (1024 * kilobytes + more).to_string());
    // A soft limit: it can be lifted again.
    let set = Command::new("prlimit").args(["--pid", &std::process::id().to_string(), &format!("--as={bytes}:")]).status().expect("prlimit of util-linux");
    assert!(set.success());
}

#[test]
fn memory_that_the_device_has_not_is_refused() {
    // Adapters that tell how much memory is in use are to use a hundredth of it: of none, they
    // would not give the device. The software adapter tells nothing, but has this process's.
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.memory_budget_thresholds.for_resource_creation = Some(1);
    let instance = wgpu::Instance::new(descriptor);
    let adapter = block_on(Gpu::request_adapter(&instance)).unwrap();
    let software = adapter.get_info().device_type == wgpu::DeviceType::Cpu;
    let (device, queue) = block_on(adapter.request_device(&wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() })).unwrap();
    let gpu = Gpu::new(device, queue);
    let shape = Shape { layers: 20, query_heads: 8, kv_heads: 8, head_dim: 128, rope: Rope::new(10_000.0, 128) };
    let plan = |layers, tokens| {
        let shape = Shape { layers, ..shape.clone() };
        Plan::builder(shape, Format::f16()).protection(Protection::NONE).capacity(Capacity::tokens(1, tokens)).build(gpu.capability()).unwrap()
    };
    // 2.5 GiB.
    let large = plan(20, 32_768);
    let need = large.cost().cache() + large.cost().scratch;
    if software {
        limit(Some(1 << 30));
    }
    let refused = Cache::new(&gpu, large.clone()).map(|cache| cache.bytes()).unwrap_err();
    assert_eq!(refused, Error::Memory { need });
    assert!(refused.to_string().contains(&need.to_string()));
    assert_eq!(block_on(Cache::request(&gpu, large.clone())).map(|cache| cache.bytes()).unwrap_err(), Error::Memory { need });
    assert_eq!(gpu.lost(), None);
    if !software {
        return;
    }

    // With what was refused given back, a smaller one fits, and the copy of a snapshot does not.
    let mut cache = Cache::new(&gpu, plan(1, 32_768)).unwrap();
    let sequence = cache.begin().unwrap();
    // What the tokens are does not matter.
    let rows = upload(&gpu, &vec![0.0; 1024 * 8 * 128]);
    for _ in 0..24 {
        let step = cache.step(&[Chunk { sequence, tokens: 1024 }]).unwrap();
        let mut commands = encoder(&gpu);
        cache.append(&mut commands, &step, 0, Rows::f32(&rows), Rows::f32(&rows)).unwrap();
        submit(&gpu, commands);
    }
    wait(&gpu);
    limit(Some(4 << 20));
    let refused = block_on(cache.save(sequence)).map(|bytes| bytes.len());
    limit(None);
    assert_eq!(refused, Err(Error::Memory { need: 24_576 * 8 * 128 * 4 }));
    // Nothing is lost.
    let saved = block_on(cache.save(sequence)).unwrap();
    assert_eq!(Parts::of(&saved).metadata["tokens"], "24576");
    assert!(Cache::new(&gpu, large).is_ok());
}
