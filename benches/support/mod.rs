//! What the benches share: a device, a filled cache, the read bandwidth, timing.
#![allow(dead_code, reason = "every bench uses its own part of it")]
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]

use std::sync::OnceLock;
use std::time::{Duration, Instant};
use wgkv::bits::BitPlan;
use wgkv::learned::Reach;
use wgkv::{Cache, Capacity, ChannelOrder, Chunk, Codec, Format, Gpu, Means, Plan, Precision, Protection, Rope, Rows, Sequence, Shape};
use wgpu::util::DeviceExt;

/// Relative error of attend against f32 attention over the dequantized rows: int8 queries and u8 weights, at short and long
/// contexts of the bench's uniform numbers. A wrong plane or scale gives errors near 1.
const ATTEND_ERROR: f64 = 0.05;

/// How long a GPU works before it is timed.
const WARM: Duration = Duration::from_millis(100);

/// One shape to measure.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub query_heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub sequences: u32,
    pub tokens: u32,
}

/// A value of `--name value` on the command line.
pub fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args();
    arguments.find(|a| a == name)?;
    arguments.next()
}

pub fn flag(name: &str) -> bool {
    std::env::args().any(|a| a == name)
}

pub fn gpu() -> Gpu {
    pollster::block_on(Gpu::request()).unwrap()
}

/// Uniform numbers in [-1, 1) from a fixed seed: the time of no kernel depends on them.
pub fn numbers(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub fn buffer(gpu: &Gpu, numbers: &[f32]) -> wgpu::Buffer {
    gpu.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: Some("bench"),
        contents: bytemuck::cast_slice(numbers),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
    })
}

pub fn read(gpu: &Gpu, buffer: &wgpu::Buffer, n: usize) -> Vec<f32> {
    bytemuck::cast_slice(&pollster::block_on(gpu.read(buffer, 0, n as u64)).unwrap()).to_vec()
}

pub fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("bench") })
}

pub fn submit(gpu: &Gpu, encoder: wgpu::CommandEncoder) {
    gpu.queue().submit([encoder.finish()]);
}

pub fn wait(gpu: &Gpu) {
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
}

/// The plan of a case, with as many layers as make the packed bytes `rotate_bytes` or more.
pub fn plan(gpu: &Gpu, case: Case, format: Format, protection: Protection, rotate_bytes: u64) -> wgkv::Result<Plan> {
    plan_mixed(gpu, case, format, &[[format.key(), format.value()]], protection, rotate_bytes)
}

/// The same with precisions that the KV heads take in turn.
pub fn plan_mixed(gpu: &Gpu, case: Case, format: Format, precisions: &[[Precision; 2]], protection: Protection, rotate_bytes: u64) -> wgkv::Result<Plan> {
    let shape =
        |layers| Shape { layers, query_heads: case.query_heads, kv_heads: case.kv_heads, head_dim: case.head_dim, rope: Rope::new(500_000.0, case.head_dim) };
    let budget = Capacity::tokens(case.sequences, case.tokens);
    let row = (case.kv_heads * case.head_dim) as usize;
    let plan = |layers| {
        let shape = shape(layers);
        let bits = BitPlan::new(&shape, format, |_, head| precisions[head as usize % precisions.len()])?;
        let builder = Plan::builder(shape.clone(), bits).protection(protection).capacity(budget);
        let builder = match format.codec() {
            // Means that turn, of the size of the rows.
            Codec::Centred => {
                let means = numbers(row);
                let layer = [means.clone(), vec![1.0; row], means];
                builder.learned(Means::new(&shape, "bench", vec![layer; layers as usize])?)
            }
            // Any order takes the time of the collected one, as long as it mixes all channels.
            Codec::RotateKv => {
                let sums = numbers(row * layers as usize).chunks(row).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
                builder.learned(ChannelOrder::from_sums(&shape, format.heads_per_group(case.kv_heads), Reach::Global, "bench", 1, sums)?)
            }
            _ => builder,
        };
        builder.build(gpu.capability())
    };
    let layers = rotate_bytes.div_ceil(plan(1)?.cost().cache()).max(1);
    plan(layers as u32)
}

/// A cache filled with all but one token of each sequence, in every layer.
pub fn filled(gpu: &Gpu, plan: Plan, case: Case) -> (Cache, Vec<Sequence>) {
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    let mut cache = Cache::new(gpu, plan).unwrap();
    let layers = cache.plan().shape().layers;
    let row = (case.kv_heads * case.head_dim) as usize;
    let most = 4096.min(case.tokens);
    let keys = buffer(gpu, &numbers(most as usize * row));
    let values = buffer(gpu, &numbers(most as usize * row + 17)[17..]);
    let sequences: Vec<Sequence> = (0..case.sequences).map(|_| cache.begin().unwrap()).collect();
    for sequence in &sequences {
        let mut left = case.tokens - 1;
        while left > 0 {
            let tokens = left.min(most);
            let step = cache.step(&[Chunk { sequence: *sequence, tokens }]).unwrap();
            let mut encoder = encoder(gpu);
            for layer in 0..layers {
                cache.append(&mut encoder, &step, layer, Rows::f32(&keys), Rows::f32(&values)).unwrap();
            }
            submit(gpu, encoder);
            left -= tokens;
        }
    }
    wait(gpu);
    (cache, sequences)
}

/// The relative error of decoding one sequence's last token, against f64 attention over the cache's own rows.
///
/// # Panics
/// If it is more than [`ATTEND_ERROR`], or a number is not finite.
pub fn check(gpu: &Gpu, cache: &Cache, case: Case, sequence: Sequence, queries: &[f32], output: &[f32]) -> f64 {
    let (d, kv) = (case.head_dim as usize, case.kv_heads as usize);
    let share = (case.query_heads / case.kv_heads) as usize;
    let tokens = cache.tokens(sequence).unwrap() as usize;
    let make = |n: usize| buffer(gpu, &vec![f32::NAN; n]);
    let part = 4096.min(tokens);
    let (keys, values) = (make(part * kv * d), make(part * kv * d));
    let mut peaks = vec![f64::MIN; share];
    let mut sums = vec![0.0; share];
    let mut rows = vec![vec![0.0; d]; share];
    let frequencies = cache.plan().shape().rope.frequencies().to_vec();
    let turned: Vec<Vec<f64>> = (0..share)
        .map(|h| {
            let q = &queries[h * d..][..d];
            let mut y: Vec<f64> = q.iter().map(|x| f64::from(*x)).collect();
            for (p, f) in frequencies.iter().enumerate() {
                let (s, c) = ((tokens - 1) as f64 * f).sin_cos();
                let (a, b) = (y[p], y[p + d / 2]);
                y[p] = a * c - b * s;
                y[p + d / 2] = b * c + a * s;
            }
            y
        })
        .collect();
    for first in (0..tokens).step_by(part) {
        let n = part.min(tokens - first);
        let mut encoder = encoder(gpu);
        cache.dequantize(&mut encoder, sequence, 0, first as u32..(first + n) as u32, Rows::f32(&keys), Rows::f32(&values)).unwrap();
        submit(gpu, encoder);
        let (k, v) = (read(gpu, &keys, n * kv * d), read(gpu, &values, n * kv * d));
        for t in 0..n {
            for h in 0..share {
                let s = (0..d).map(|i| turned[h][i] * f64::from(k[t * kv * d + i])).sum::<f64>() / (d as f64).sqrt();
                if s > peaks[h] {
                    let shrink = (peaks[h] - s).exp();
                    sums[h] *= shrink;
                    rows[h].iter_mut().for_each(|x| *x *= shrink);
                    peaks[h] = s;
                }
                let p = (s - peaks[h]).exp();
                sums[h] += p;
                for i in 0..d {
                    rows[h][i] += p * f64::from(v[t * kv * d + i]);
                }
            }
        }
    }
    let (mut error, mut norm) = (0.0, 0.0);
    for h in 0..share {
        for i in 0..d {
            let want = rows[h][i] / sums[h];
            error += (f64::from(output[h * d + i]) - want).powi(2);
            norm += want * want;
        }
    }
    let error = (error / norm).sqrt();
    assert!(output.iter().all(|x| x.is_finite()) && error < ATTEND_ERROR, "{} {case:?}: relative error {error}", cache.plan().format());
    error
}

/// Seconds of one call: the median of `samples`, each the mean over a submission of `calls`.
pub fn seconds(gpu: &Gpu, samples: usize, calls: u32, mut record: impl FnMut(&mut wgpu::CommandEncoder, u32)) -> f64 {
    warm(gpu);
    let mut times: Vec<f64> = (0..=samples)
        .map(|_| {
            let mut encoder = encoder(gpu);
            for call in 0..calls {
                record(&mut encoder, call);
            }
            let commands = encoder.finish();
            wait(gpu);
            let start = Instant::now();
            gpu.queue().submit([commands]);
            wait(gpu);
            start.elapsed().as_secs_f64() / f64::from(calls)
        })
        .skip(1) // the first warms up
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A shader from one buffer to another, bound to the two.
pub fn between(device: &wgpu::Device, source: &str, from: &wgpu::Buffer, to: &wgpu::Buffer) -> (wgpu::ComputePipeline, wgpu::BindGroup) {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(source.into()) });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[
            wgpu::BindGroupEntry { binding: 0, resource: from.as_entire_binding() },
            wgpu::BindGroupEntry { binding: 1, resource: to.as_entire_binding() },
        ],
    });
    (pipeline, group)
}

/// A kernel of 16-byte loads that reads a buffer of so many bytes.
fn reader(gpu: &Gpu, bytes: u64) -> (wgpu::ComputePipeline, wgpu::BindGroup) {
    let source = "
        @group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
        @group(0) @binding(1) var<storage, read_write> sums: array<u32>;
        @compute @workgroup_size(256)
        fn read_all(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
            let n = arrayLength(&data);
            let stride = groups.x * 256u;
            var sum = vec4<u32>(0u);
            for (var i = id.x; i < n; i += 4u * stride) {
                sum += data[i] ^ data[i + stride] ^ data[i + 2u * stride] ^ data[i + 3u * stride];
            }
            if (sum.x + sum.y + sum.z + sum.w == 12345u) { sums[0] = id.x; }
        }";
    between(gpu.device(), source, &storage(gpu, bytes), &storage(gpu, 16))
}

fn storage(gpu: &Gpu, size: u64) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false })
}

/// Bytes that one binding holds, of those that are wanted.
fn bindable(gpu: &Gpu, bytes: u64) -> u64 {
    bytes.min(gpu.capability().binding_bytes).min(gpu.capability().buffer_bytes) / 16 * 16
}

/// Keeps the GPU at work for a while: it clocks down while the host prepares something, and does not come back for small submissions.
pub fn warm(gpu: &Gpu) {
    static READER: OnceLock<(wgpu::ComputePipeline, wgpu::BindGroup)> = OnceLock::new();
    let (pipeline, group) = READER.get_or_init(|| reader(gpu, bindable(gpu, if gpu.capability().straight { 256 << 20 } else { 1 << 20 })));
    let start = Instant::now();
    while start.elapsed() < WARM {
        let mut encoder = encoder(gpu);
        for _ in 0..8 {
            record_sweep(&mut encoder, pipeline, group);
        }
        submit(gpu, encoder);
        wait(gpu);
    }
}

/// Bytes a second that a kernel of 16-byte loads reads, from a buffer of `bytes`.
pub fn read_bandwidth(gpu: &Gpu, bytes: u64) -> f64 {
    let bytes = bindable(gpu, bytes);
    let (pipeline, group) = reader(gpu, bytes);
    bytes as f64 / sweep(gpu, &pipeline, &group)
}

/// Bytes a second, read and written, of a kernel that copies so many into another buffer.
pub fn copy_bandwidth(gpu: &Gpu, bytes: u64) -> f64 {
    let source = "
        @group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
        @group(0) @binding(1) var<storage, read_write> copied: array<vec4<u32>>;
        @compute @workgroup_size(256)
        fn copy_all(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
            for (var i = id.x; i < arrayLength(&data); i += groups.x * 256u) { copied[i] = data[i]; }
        }";
    let bytes = bindable(gpu, bytes);
    let (pipeline, group) = between(gpu.device(), source, &storage(gpu, bytes), &storage(gpu, bytes));
    2.0 * bytes as f64 / sweep(gpu, &pipeline, &group)
}

/// Seconds of a kernel that goes through its buffers in strides.
fn sweep(gpu: &Gpu, pipeline: &wgpu::ComputePipeline, group: &wgpu::BindGroup) -> f64 {
    seconds(gpu, 5, 4, |encoder, _| record_sweep(encoder, pipeline, group))
}

fn record_sweep(encoder: &mut wgpu::CommandEncoder, pipeline: &wgpu::ComputePipeline, group: &wgpu::BindGroup) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, group, &[]);
    pass.dispatch_workgroups(4096, 1, 1);
}
