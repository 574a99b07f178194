//! What recording costs the processor: step, append, attend and finish of a decoded token, nothing
//! submitted.
//!
//! ```text
//! cargo bench --bench host [-- --context 1024] [--tokens 200]
//! ```
//! One sequence under the default plan (window 128, 4 sinks), rows in the same buffers in every
//! layer, as engines have them; every call in a compute pass of its own (`each`), or all of a
//! token's in one pass of the caller's (`one`). `layer` is all of a token's time over its layers,
//! in microseconds; the columns before it are its parts. Before timing anything, it submits one
//! token and checks that every output is a mean of the values.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]
#![allow(missing_docs, reason = "a bench has no readers")]

use std::time::{Duration, Instant};
use wgkv::{Bits, Cache, Capacity, Chunk, Codec, Format, Gpu, Means, Plan, Rope, Rows, Shape};

/// The share of the values' range by which an output may lie outside of it: more than codes of 4
/// bits and weights of 8 can be off by. A wrong plane gives outputs of any size.
const ATTEND_ERROR: f64 = 0.05;

/// Tokens until caches, branch predictors and the allocator are warm.
const WARM_TOKENS: u32 = 20;

struct Case {
    name: &'static str,
    layers: u32,
    query_heads: u32,
    kv_heads: u32,
    head_dim: u32,
}

/// The models: SmolLM2-135M and Llama-3.1-8B.
const CASES: [Case; 2] = [
    Case { name: "30 layers, 9/3 heads of 64", layers: 30, query_heads: 9, kv_heads: 3, head_dim: 64 },
    Case { name: "32 layers, 32/8 heads of 128", layers: 32, query_heads: 32, kv_heads: 8, head_dim: 128 },
];

fn argument(name: &str, default: u32) -> u32 {
    std::env::args().skip_while(|a| a != name).nth(1).map_or(default, |n| n.parse().unwrap())
}

fn numbers(n: u32, mut state: u32) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn buffer(gpu: &Gpu, numbers: &[f32]) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let size = 4 * numbers.len() as u64;
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some("bench"), size, usage, mapped_at_creation: false });
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(numbers));
    buffer
}

fn read(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<f32> {
    bytemuck::cast_slice(&pollster::block_on(gpu.read(buffer, 0, buffer.size() / 4)).unwrap()).to_vec()
}

fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("bench") })
}

fn plan(gpu: &Gpu, case: &Case, format: Format, tokens: u32) -> Plan {
    let rope = Rope::new(10_000.0, case.head_dim);
    let shape = Shape { layers: case.layers, query_heads: case.query_heads, kv_heads: case.kv_heads, head_dim: case.head_dim, rope };
    let builder = Plan::builder(shape.clone(), format).capacity(Capacity::tokens(1, tokens));
    let builder = if format.codec() == Codec::Centred {
        let channels = case.kv_heads * case.head_dim;
        let layer = || [numbers(channels, 1), vec![1.0; channels as usize], numbers(channels, 2)];
        builder.learned(Means::new(&shape, "bench", (0..case.layers).map(|_| layer()).collect()).unwrap())
    } else {
        builder
    };
    builder.build(gpu.capability()).unwrap()
}

/// Checks that every output is a mean of the values, as the softmax of any scores makes it.
fn check(values: &[f32], output: &[f32], case: &Case) {
    let [row, d, share] = [case.kv_heads * case.head_dim, case.head_dim, case.query_heads / case.kv_heads].map(|n| n as usize);
    let outputs = output.chunks_exact(d).enumerate();
    for (head, output) in outputs {
        for (channel, x) in output.iter().enumerate() {
            let column = values[head / share * d + channel..].iter().step_by(row);
            let (low, high) = column.fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
            let slack = ATTEND_ERROR as f32 * (high - low);
            assert!((low - slack..=high + slack).contains(x), "output {x} of head {head}, channel {channel} is no mean of values in {low}..{high}");
        }
    }
}

fn measure(gpu: &Gpu, case: &Case, format: Format, one_pass: bool) {
    let (context, tokens) = (argument("--context", 1024), argument("--tokens", 200));
    let plan = plan(gpu, case, format, context + tokens + WARM_TOKENS + 2);
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    let mut cache = Cache::new(gpu, plan).unwrap();
    let sequence = cache.begin().unwrap();
    let row = case.kv_heads * case.head_dim;
    let [k, v] = [3, 4].map(|seed| numbers(context * row, seed));
    let [keys, values] = [&k, &v].map(|rows| buffer(gpu, rows));
    let step = cache.step(&[Chunk { sequence, tokens: context }]).unwrap();
    let mut filling = encoder(gpu);
    (0..case.layers).for_each(|layer| cache.append(&mut filling, &step, layer, Rows::f32(&keys), Rows::f32(&values)).unwrap());
    gpu.queue().submit([filling.finish()]);

    let queries = buffer(gpu, &numbers(case.query_heads * case.head_dim, 5));
    let output = buffer(gpu, &vec![f32::NAN; (case.query_heads * case.head_dim) as usize]);
    let mut times = [Duration::ZERO; 4];
    let mut slowest_token = Duration::ZERO;
    for token in 0..=WARM_TOKENS + tokens {
        let start = Instant::now();
        let step = cache.step(&[Chunk { sequence, tokens: 1 }]).unwrap();
        let stepped = Instant::now();
        let mut encoder = encoder(gpu);
        let (mut append, mut attend) = (Duration::ZERO, Duration::ZERO);
        let [key_rows, value_rows, query_rows, output_rows] = [&keys, &values, &queries, &output].map(Rows::f32);
        if one_pass {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for layer in 0..case.layers {
                let before = Instant::now();
                cache.append_in(&mut pass, &step, layer, key_rows, value_rows).unwrap();
                let between = Instant::now();
                cache.attend_in(&mut pass, &step, layer, query_rows, output_rows).unwrap();
                append += between - before;
                attend += between.elapsed();
            }
        } else {
            for layer in 0..case.layers {
                let before = Instant::now();
                cache.append(&mut encoder, &step, layer, key_rows, value_rows).unwrap();
                let between = Instant::now();
                cache.attend(&mut encoder, &step, layer, query_rows, output_rows).unwrap();
                append += between - before;
                attend += between.elapsed();
            }
        }
        let before = Instant::now();
        let commands = encoder.finish();
        let finish = before.elapsed();
        let all = start.elapsed();
        if token == 0 {
            gpu.queue().submit([commands]);
            check(&v, &read(gpu, &output), case);
        } else if token > WARM_TOKENS {
            for (time, taken) in times.iter_mut().zip([stepped - start, append, attend, finish]) {
                *time += taken;
            }
            slowest_token = slowest_token.max(all);
        }
    }
    let micro = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(tokens);
    let layers = f64::from(case.layers);
    let [step, append, attend, finish] = times.map(micro);
    let layer = (step + append + attend + finish) / layers;
    println!(
        "{:<30} {:<24} {:>6} {step:>8.1} {:>8.2} {:>8.2} {:>8.2} {layer:>8.2} {:>9.0}",
        case.name,
        format.to_string(),
        if one_pass { "one" } else { "each" },
        append / layers,
        attend / layers,
        finish / layers,
        slowest_token.as_secs_f64() * 1e6
    );
}

fn main() {
    let gpu = pollster::block_on(Gpu::request()).unwrap();
    println!("{}; microseconds", gpu.adapter_name());
    println!("{:<30} {:<24} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9}", "shape", "format", "pass", "step", "append", "attend", "finish", "layer", "slowest");
    for case in &CASES {
        let packed = |codec| Format::new(codec, Bits::Four, Bits::Four, 128);
        for format in [Format::f16(), packed(Codec::Hadamard), packed(Codec::Centred)] {
            [false, true].into_iter().for_each(|one_pass| measure(&gpu, case, format, one_pass));
        }
    }
}
