//! Several sequences in one step, forked, cut back and ended: `cargo run --example batch`.
//!
//! What each sequence was given is kept beside the cache, and every output is compared with exact attention over it.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::process::ExitCode;
use wgkv::low_level::reference::attention_exact;
use wgkv::wgpu::{BufferUsages, util::BufferInitDescriptor, util::DeviceExt};
use wgkv::{Bits, Cache, Capacity, Chunk, Codec, Format, Gpu, Plan, Protection, Result, Rope, Rows, Sequence, Shape};

/// What an output may differ by with 8 bits, as a share of its size (root mean square).
const ALLOWED: f64 = 0.01;

/// A sequence, and the keys and values that it was given.
type Text = (Sequence, [Vec<f32>; 2]);

fn main() -> ExitCode {
    match pollster::block_on(batch()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn batch() -> Result<()> {
    let gpu = Gpu::request().await?;
    let shape = Shape { layers: 1, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let format = Format::new(Codec::Hadamard, Bits::Eight, Bits::Eight, 64);
    let plan = Plan::builder(shape, format).protection(Protection::NONE).capacity(Capacity::tokens(4, 384)).build(gpu.capability())?;
    gpu.prepare(&plan).await?;
    let mut cache = Cache::new(&gpu, plan)?;
    let (free, mut random) = (cache.free_pages(), StdRng::seed_from_u64(1));

    // Three prompts of different lengths in one step, then a token for each.
    let mut texts = (0..3).map(|_| Ok((cache.begin()?, Default::default()))).collect::<Result<Vec<Text>>>()?;
    advance(&mut cache, &mut random, &mut texts, &[300, 5, 128]).await?;
    advance(&mut cache, &mut random, &mut texts, &[1, 1, 1]).await?;

    // A fork shares the full pages of the first; the two go on differently.
    let before = cache.free_pages();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let sequence = cache.fork(&mut encoder, texts[0].0)?;
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(before - cache.free_pages(), 1, "of three pages the last, which is not full, is copied");
    texts.push((sequence, texts[0].1.clone()));
    advance(&mut cache, &mut random, &mut texts, &[1, 1, 1, 1]).await?;

    // The first takes back 100 tokens, the second ends, and the others go on.
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let left = cache.tokens(texts[0].0)? - 100;
    cache.truncate(&mut encoder, texts[0].0, left)?;
    gpu.queue().submit([encoder.finish()]);
    texts[0].1.iter_mut().for_each(|rows| rows.truncate(rows.len() / (left as usize + 100) * left as usize));
    cache.end(texts.remove(1).0)?;
    advance(&mut cache, &mut random, &mut texts, &[1, 40, 1]).await?;

    for (sequence, _) in texts {
        cache.end(sequence)?;
    }
    assert_eq!(cache.free_pages(), free, "all pages come back");
    Ok(())
}

/// Adds tokens of random rows to the sequences in one step, and compares the outputs.
async fn advance(cache: &mut Cache, random: &mut StdRng, texts: &mut [Text], tokens: &[u32]) -> Result<()> {
    let (gpu, shape) = (cache.gpu().clone(), cache.plan().shape().clone());
    let chunks: Vec<Chunk> = texts.iter().zip(tokens).map(|((sequence, _), tokens)| Chunk { sequence: *sequence, tokens: *tokens }).collect();
    let step = cache.step(&chunks)?;
    // The rows of one sequence come after those of another.
    let [q, k] = [shape.query_heads, shape.kv_heads].map(|heads| (heads * shape.head_dim) as usize);
    let [queries, keys, values] = [q, k, k].map(|width| (0..step.rows() as usize * width).map(|_| random.random_range(-1.0..1.0)).collect::<Vec<f32>>());
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    let [key_rows, value_rows, query_rows, output] = [&keys, &values, &queries, &vec![0.0; queries.len()]].map(|rows| {
        let contents = bytemuck::cast_slice(rows);
        gpu.device().create_buffer_init(&BufferInitDescriptor { label: None, contents, usage })
    });
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    cache.append(&mut encoder, &step, 0, Rows::f32(&key_rows), Rows::f32(&value_rows))?;
    cache.attend(&mut encoder, &step, 0, Rows::f32(&query_rows), Rows::f32(&output))?;
    gpu.queue().submit([encoder.finish()]);
    let output = gpu.read(&output, 0, queries.len() as u64).await?;

    let mut first = 0;
    for ((_, [all_keys, all_values]), tokens) in texts.iter_mut().zip(tokens) {
        let end = first + *tokens as usize;
        all_keys.extend(&keys[first * k..end * k]);
        all_values.extend(&values[first * k..end * k]);
        let exact = attention_exact(&shape, all_keys, all_values, &queries[first * q..end * q], end - first);
        let squares = output[first * q..end * q].iter().zip(&exact).map(|(bits, exact)| (f64::from(f32::from_bits(*bits)) - exact).powi(2));
        let error = (squares.sum::<f64>() / exact.iter().map(|x| x * x).sum::<f64>()).sqrt();
        println!("{} tokens, {tokens} new: error {error:.4}", all_keys.len() / k);
        assert!(error < ALLOWED, "the error is {error}, but less than {ALLOWED} is right");
        first = end;
    }
    Ok(())
}
