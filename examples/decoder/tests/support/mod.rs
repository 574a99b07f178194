//! What the tests of single kernels share.

use std::sync::LazyLock;

use rand::Rng;
use wgkv::Gpu;
use wgkv::low_level::Variant;

pub static GPU: LazyLock<Gpu> = LazyLock::new(|| pollster::block_on(Gpu::request()).unwrap());

pub fn seed() -> u64 {
    let seed = std::env::var("WGKV_SEED").map_or_else(|_| rand::rng().next_u64(), |seed| seed.parse().unwrap());
    println!("WGKV_SEED={seed}");
    seed
}

pub fn buffer(gpu: &Gpu, bytes: &[u8]) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::UNIFORM;
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: bytes.len().max(16) as u64, usage, mapped_at_creation: false });
    gpu.queue().write_buffer(&buffer, 0, bytes);
    buffer
}

pub fn run(gpu: &Gpu, variant: &Variant, buffers: &[&wgpu::Buffer], grid: [u32; 3]) {
    pollster::block_on(gpu.prepare_variants(vec![variant.clone()])).unwrap();
    let pipeline = gpu.pipeline(variant);
    let bindings: Vec<wgpu::BufferBinding<'_>> = buffers.iter().map(|buffer| buffer.as_entire_buffer_binding()).collect();
    let group = pipeline.bind_in_order(gpu, 0, &bindings);
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pipeline.dispatch(gpu, &mut pass, &[(&group, &[])], grid);
    }
    gpu.queue().submit([encoder.finish()]);
}

pub fn read(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u32> {
    pollster::block_on(gpu.read(buffer, 0, buffer.size() / 4)).unwrap()
}
