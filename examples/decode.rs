//! One sequence, a prompt and then token by token: `cargo run --example decode`.
//!
//! Keys and values are random numbers around a mean of each channel, as a model's are. `Codec::Centred` learns the means from the prompt
//! and stores how keys and values differ from them. Its output is compared with exact attention over the numbers as they came.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::process::ExitCode;
use wgkv::learned::MeansCollector;
use wgkv::low_level::reference::attention_exact;
use wgkv::wgpu::{Buffer, BufferUsages, util::BufferInitDescriptor, util::DeviceExt};
use wgkv::{Bits, Cache, Capacity, Chunk, Codec, Format, Gpu, Means, Plan, Protection, Result, Rope, Rows, Shape};

const PROMPT: usize = 300;
const TOKENS: usize = 320;

/// What the output may differ by with 4 bits, as a share of its size (root mean square).
const ALLOWED: f64 = 0.02;

fn main() -> ExitCode {
    match pollster::block_on(decode()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Draws a row of each token: numbers around a mean of each channel.
fn draw(random: &mut StdRng, channels: u32) -> Vec<f32> {
    let means: Vec<f32> = (0..channels).map(|_| random.random_range(-2.0..2.0)).collect();
    means.iter().cycle().take(TOKENS * means.len()).map(|mean| mean + random.random_range(-1.0..1.0)).collect()
}

fn upload(gpu: &Gpu, rows: &[f32]) -> Buffer {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    gpu.device().create_buffer_init(&BufferInitDescriptor { label: None, contents: bytemuck::cast_slice(rows), usage })
}

async fn decode() -> Result<()> {
    let gpu = Gpu::request().await?;
    let shape = Shape { layers: 1, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let mut random = StdRng::seed_from_u64(1);
    // Queries, keys and values: [tokens, heads, head_dim], queries and keys before RoPE.
    let widths = [shape.query_heads, shape.kv_heads, shape.kv_heads].map(|heads| (heads * shape.head_dim) as usize);
    let rows = widths.map(|width| draw(&mut random, width as u32));
    let [queries, keys, values] = &rows;
    let exact = attention_exact(&shape, keys, values, queries, TOKENS);

    let prompt = [0, 1, 2].map(|i| upload(&gpu, &rows[i][..PROMPT * widths[i]]));
    let collector = MeansCollector::new(&gpu, &shape)?;
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let [q, k, v] = prompt.each_ref().map(Rows::f32);
    collector.add(&mut encoder, 0, q, k, v, PROMPT as u32)?;
    gpu.queue().submit([encoder.finish()]);
    let means = collector.finish("random numbers").await?;

    println!("without means:");
    let without = error(&gpu, &shape, Means::natural(&shape), &rows, &exact).await?;
    println!("with the prompt's means:");
    let with = error(&gpu, &shape, means, &rows, &exact).await?;
    assert!(with < ALLOWED, "the error is {with}, but less than {ALLOWED} is right");
    assert!(with < without, "means should help: {with} with them, {without} without");
    Ok(())
}

/// Caches the prompt in one step and each other token in a step of its own. Returns the error of all outputs.
async fn error(gpu: &Gpu, shape: &Shape, means: Means, rows: &[Vec<f32>; 3], exact: &[f64]) -> Result<f64> {
    let format = Format::new(Codec::Centred, Bits::Four, Bits::Four, 64);
    // No token stays in half precision, so that every one shows what the codec costs.
    let builder = Plan::builder(shape.clone(), format).protection(Protection::NONE).capacity(Capacity::tokens(1, TOKENS as u32));
    let plan = builder.learned(means).build(gpu.capability())?;
    gpu.prepare(&plan).await?;
    let mut cache = Cache::new(gpu, plan)?;
    let sequence = cache.begin()?;

    let mut output: Vec<f32> = Vec::new();
    let mut first = 0;
    while first < TOKENS {
        let tokens = if first == 0 { PROMPT } else { 1 };
        let step = cache.step(&[Chunk { sequence, tokens: tokens as u32 }])?;
        let [queries, keys, values] = rows.each_ref().map(|rows| upload(gpu, &rows[first * rows.len() / TOKENS..(first + tokens) * rows.len() / TOKENS]));
        let attended = upload(gpu, &vec![0.0; queries.size() as usize / 4]);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        // A model does this for each of its layers.
        cache.append(&mut encoder, &step, 0, Rows::f32(&keys), Rows::f32(&values))?;
        cache.attend(&mut encoder, &step, 0, Rows::f32(&queries), Rows::f32(&attended))?;
        gpu.queue().submit([encoder.finish()]);
        output.extend(gpu.read(&attended, 0, attended.size() / 4).await?.into_iter().map(f32::from_bits));
        first += tokens;
    }
    let squares = output.iter().zip(exact).map(|(got, exact)| (f64::from(*got) - exact).powi(2)).sum::<f64>();
    let error = (squares / exact.iter().map(|x| x * x).sum::<f64>()).sqrt();
    println!("{} bits per element, error {error:.4}", cache.plan().bits_per_element(TOKENS as u64));
    Ok(error)
}
