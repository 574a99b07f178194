//! What the GPU tests share: a device, seeded numbers, buffers, comparison.
#![allow(dead_code, reason = "every test file uses its own part of it")]

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use wgkv::Gpu;

/// The device. A machine without an adapter fails the test: nothing here skips itself.
pub fn gpu() -> Gpu {
    pollster::block_on(Gpu::request()).expect("these tests need a GPU adapter; lavapipe (mesa-vulkan-drivers) will do")
}

/// A generator from a fresh seed, printed so that a failure can be repeated with `WGKV_SEED`.
pub fn generator() -> StdRng {
    let seed = match std::env::var("WGKV_SEED") {
        Ok(seed) => seed.parse().expect("WGKV_SEED must be a number"),
        Err(_) => rand::rng().next_u64(),
    };
    println!("WGKV_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A number of the standard normal distribution (Box and Muller).
pub fn normal(random: &mut StdRng) -> f32 {
    let (u, v): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// So many of them.
pub fn normals(random: &mut StdRng, n: usize) -> Vec<f32> {
    (0..n).map(|_| normal(random)).collect()
}

/// A storage buffer with these numbers.
pub fn upload(gpu: &Gpu, numbers: &[f32]) -> wgpu::Buffer {
    use wgpu::util::DeviceExt;
    gpu.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: Some("test input"),
        contents: bytemuck::cast_slice(numbers),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
    })
}

/// What poisoned outputs hold: no kernel writes it, so a number never written shows.
pub const POISON: u32 = 0xffff_a5a5;

/// A storage buffer of poison.
pub fn poisoned(gpu: &Gpu, words: usize) -> wgpu::Buffer {
    upload(gpu, bytemuck::cast_slice(&vec![POISON; words]))
}

/// Reads f32 numbers back.
pub fn download(gpu: &Gpu, buffer: &wgpu::Buffer, n: usize) -> Vec<f32> {
    let words = pollster::block_on(gpu.read(buffer, 0, n as u64)).expect("the buffer can be read back");
    bytemuck::cast_slice(&words).to_vec()
}
