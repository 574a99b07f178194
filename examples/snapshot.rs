//! A sequence that is saved to a file and goes on in another cache: `cargo run --example snapshot`.
//!
//! The other cache may be on another device, in another process or years later; on the same device its outputs are the same bit for bit.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::error::Error;
use std::process::ExitCode;
use wgkv::wgpu::{Buffer, BufferUsages, util::BufferInitDescriptor, util::DeviceExt};
use wgkv::{Bits, Cache, Capacity, Chunk, Codec, Format, Gpu, Plan, Rope, Rows, Sequence, Shape};

const PROMPT: u32 = 300;

fn main() -> ExitCode {
    match pollster::block_on(save_and_load()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn save_and_load() -> Result<(), Box<dyn Error>> {
    let gpu = Gpu::request().await?;
    let shape = Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let format = Format::new(Codec::Hadamard, Bits::Four, Bits::Two, 64);
    let plan = Plan::builder(shape, format).capacity(Capacity::tokens(1, 512)).build(gpu.capability())?;
    gpu.prepare(&plan).await?;

    let mut cache = Cache::new(&gpu, plan.clone())?;
    let sequence = cache.begin()?;
    advance(&mut cache, sequence, PROMPT, 1).await?;
    let path = std::env::temp_dir().join(format!("wgkv-snapshot-{}.safetensors", std::process::id()));
    std::fs::write(&path, cache.save(sequence).await?)?;
    let output = advance(&mut cache, sequence, 1, 2).await?;
    cache.destroy();

    let bytes = std::fs::read(&path)?;
    std::fs::remove_file(&path)?;
    let mut other = Cache::new(&gpu, plan)?;
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let loaded = other.load(&mut encoder, &bytes)?;
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(other.tokens(loaded)?, PROMPT);
    let again = advance(&mut other, loaded, 1, 2).await?;
    assert!(output == again, "what was loaded attends otherwise than what was saved");
    println!("{PROMPT} tokens in {} bytes of safetensors; the next token's attention is the same after loading", bytes.len());

    // Damaged bytes are refused, and the cache goes on.
    let mut damaged = bytes;
    damaged.truncate(damaged.len() - 1);
    other.end(loaded)?;
    match other.load(&mut gpu.device().create_command_encoder(&Default::default()), &damaged) {
        Ok(_) => return Err("a damaged snapshot was loaded".into()),
        Err(error) => println!("one byte less: {error}"),
    }
    Ok(())
}

fn upload(gpu: &Gpu, rows: &[f32]) -> Buffer {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    gpu.device().create_buffer_init(&BufferInitDescriptor { label: None, contents: bytemuck::cast_slice(rows), usage })
}

/// Adds `tokens` tokens of random rows, the same for the same seed. Returns the bits of the last layer's output.
async fn advance(cache: &mut Cache, sequence: Sequence, tokens: u32, seed: u64) -> wgkv::Result<Vec<u32>> {
    let (gpu, shape) = (cache.gpu().clone(), cache.plan().shape().clone());
    let mut random = StdRng::seed_from_u64(seed);
    let mut rows = |heads| upload(&gpu, &(0..tokens * heads * shape.head_dim).map(|_| random.random_range(-1.0..1.0)).collect::<Vec<_>>());
    let output = upload(&gpu, &vec![0.0; (tokens * shape.query_heads * shape.head_dim) as usize]);
    let step = cache.step(&[Chunk { sequence, tokens }])?;
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    for layer in 0..shape.layers {
        let [keys, values, queries] = [shape.kv_heads, shape.kv_heads, shape.query_heads].map(&mut rows);
        cache.append(&mut encoder, &step, layer, Rows::f32(&keys), Rows::f32(&values))?;
        cache.attend(&mut encoder, &step, layer, Rows::f32(&queries), Rows::f32(&output))?;
    }
    gpu.queue().submit([encoder.finish()]);
    gpu.read(&output, 0, output.size() / 4).await
}
