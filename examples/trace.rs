//! What a program that serves would watch: `cargo run --example trace --features tracing`.
//!
//! Three prompts with a common beginning are read, the later two from the first one's pages. Spans and events go to `tracing`, here as
//! lines of text; the index's counters are printed at the end.

use wgkv::{Bits, Budget, Cache, Chunk, Codec, Format, Gpu, Plan, Prefixes, Protection, Result, Rope, Rows, Shape};

fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG).init();
    match pollster::block_on(serve()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<()> {
    let gpu = Gpu::request().await?;
    let shape = Shape { layers: 1, query_heads: 2, kv_heads: 1, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let format = Format::new(Codec::Hadamard, Bits::Four, Bits::Four, 64);
    let plan = Plan::new(shape, format, Protection::strict(), Budget::tokens(4, 512), gpu.capability())?;
    gpu.prepare(&plan).await?;
    let mut prefixes = Prefixes::new(&plan);
    let mut cache = Cache::new(&gpu, plan)?;
    for prompt in 0..3 {
        let tokens: Vec<u32> = (0..400).map(|token| if token < 300 { token } else { token + 1000 * prompt }).collect();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let begun = prefixes.begin(&mut cache, &mut encoder, &tokens)?;
        let rest = Chunk { sequence: begun.sequence, tokens: tokens.len() as u32 - begun.tokens };
        assert!(prefixes.make_room(&mut cache, &[rest])?.fits());
        let step = cache.step(&[rest])?;
        // A model's keys, values and queries.
        let rows = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: u64::from(step.rows()) * 2 * 64 * 4,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let output = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: rows.size(),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        cache.append(&mut encoder, &step, 0, Rows::f32(&rows), Rows::f32(&rows))?;
        cache.attend(&mut encoder, &step, 0, Rows::f32(&rows), Rows::f32(&output))?;
        prefixes.remember(&mut cache, &mut encoder, begun.sequence, &tokens)?;
        gpu.queue().submit([encoder.finish()]);
        cache.free(begun.sequence)?;
    }
    println!("{:#?}", prefixes.counters());
    Ok(())
}
