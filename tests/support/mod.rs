//! What the GPU tests share: a device, seeded numbers, buffers, comparison.
#![allow(dead_code, reason = "every test file uses its own part of it")]
#![allow(clippy::expect_used, reason = "a test's helper fails the test")]

mod aligned;
mod append;
mod packed;
mod parts;
mod rounding;
mod text;
mod walk;

#[allow(unused_imports, reason = "every test file uses its own part of it")]
pub use aligned::*;
#[allow(unused_imports, reason = "every test file uses its own part of it")]
pub use append::*;
#[allow(unused_imports, reason = "every test file uses its own part of it")]
pub use packed::*;
#[allow(unused_imports, reason = "every test file uses its own part of it")]
pub use parts::*;
#[allow(unused_imports, reason = "every test file uses its own part of it")]
pub use rounding::*;
#[allow(unused_imports, reason = "every test file uses its own part of it")]
pub use text::*;
#[allow(unused_imports, reason = "every test file uses its own part of it")]
pub use walk::*;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
pub use wgkv::aligned::*;
pub use wgkv::bits::*;
pub use wgkv::devices::*;
pub use wgkv::learned::*;
pub use wgkv::low_level::*;
pub use wgkv::prefix::*;
pub use wgkv::*;

/// The device. A machine without an adapter fails the test: nothing here skips itself.
pub fn gpu() -> Gpu {
    pollster::block_on(Gpu::request()).expect("these tests need a GPU adapter; lavapipe (mesa-vulkan-drivers) will do")
}

/// So many devices: the host's GPUs in turn, a device of its own each.
pub fn devices(count: usize) -> Vec<Gpu> {
    let mut devices = Vec::new();
    while devices.len() < count {
        devices.extend(pollster::block_on(Gpu::request_all()).expect("these tests need a GPU adapter"));
    }
    devices.truncate(count);
    devices
}

/// A generator from a fresh seed, printed so that a failure can be repeated with `WGKV_SEED`.
pub fn generator() -> StdRng {
    seeded().0
}

/// The same, with the seed, for messages.
pub fn seeded() -> (StdRng, u64) {
    let seed = match std::env::var("WGKV_SEED") {
        Ok(seed) => seed.parse().expect("WGKV_SEED must be a number"),
        Err(_) => rand::rng().next_u64(),
    };
    println!("WGKV_SEED={seed}");
    (StdRng::seed_from_u64(seed), seed)
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

/// Reads 32-bit words back.
pub fn words(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u32> {
    pollster::block_on(gpu.read(buffer, 0, buffer.size() / 4)).expect("the buffer can be read back")
}

/// As f32 numbers.
pub fn floats(words: &[u32]) -> &[f32] {
    bytemuck::cast_slice(words)
}

/// The length of a row.
pub fn norm(row: &[f32]) -> f32 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32
}

/// Asserts `|got - want| <= atol + rtol |want|` everywhere, and that nothing is NaN.
#[track_caller]
pub fn close(name: &str, got: &[f32], want: &[f32], atol: f32, rtol: f32, seed: u64) {
    assert_eq!(got.len(), want.len(), "{name}: lengths");
    let mut worst: Option<(usize, f32)> = None;
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        let excess = (a - b).abs() / (atol + rtol * b.abs());
        // A difference of 0 is right also where nothing is allowed.
        if a != b && (excess.is_nan() || excess > 1.0) && worst.is_none_or(|(_, w)| excess.is_nan() || excess > w) {
            worst = Some((i, excess));
        }
    }
    if let Some((i, excess)) = worst {
        let (a, b) = (got[i], want[i]);
        panic!(
            "{name}: number {i} is {a:e}, wanted {b:e}; they differ by {:e}, allowed are {:e} ({excess:.2} times). WGKV_SEED={seed}",
            (a - b).abs(),
            atol + rtol * b.abs()
        );
    }
}
