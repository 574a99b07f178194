//! What the benches share: a device, a filled cache, the read bandwidth, timing.
#![allow(dead_code, reason = "every bench uses its own part of it")]
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]

use std::time::Instant;
use wgkv::{Allocation, Budget, Cache, Calibration, Centre, Chunk, Codec, Format, Gpu, Plan, Precision, Protection, Reach, Rope, Rows, Sequence, Shape};
use wgpu::util::DeviceExt;

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
    let budget = Budget::tokens(case.sequences, case.tokens);
    let plan = |layers| {
        let allocation = Allocation::new(&shape(layers), format, |_, head| precisions[head as usize % precisions.len()])?;
        Plan::mixed(shape(layers), allocation, protection, budget, gpu.capability())
    };
    let one = plan(1)?;
    let layers = rotate_bytes.div_ceil(one.cost().cache()).max(1) as u32;
    let plan = plan(layers)?;
    if format.codec() == Codec::Centred {
        // Means that turn, of the size of the rows.
        let channels = (case.kv_heads * case.head_dim) as usize;
        let means = numbers(channels);
        let layer = || [means.clone(), vec![1.0; channels], means.clone()];
        return plan.with_centre(Centre::new(&shape(layers), "bench", (0..layers).map(|_| layer()).collect())?);
    }
    if format.codec() != Codec::RotateKv {
        return Ok(plan);
    }
    // Any order takes the time of the calibrated one, as long as it mixes all channels.
    let shape = shape(layers);
    let row = (case.kv_heads * case.head_dim) as usize;
    let sums = numbers(row * layers as usize).chunks(row).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
    plan.with_calibration(Calibration::from_sums(&shape, format.heads_per_group(case.kv_heads), Reach::Global, "bench", 1, sums)?)
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
    let sequences: Vec<Sequence> = (0..case.sequences).map(|_| cache.allocate().unwrap()).collect();
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

/// Seconds of one call: the median of `samples`, each the mean over a submission of `calls`.
pub fn seconds(gpu: &Gpu, samples: usize, calls: u32, mut record: impl FnMut(&mut wgpu::CommandEncoder, u32)) -> f64 {
    // GPUs clock down when idle: work for a while first.
    let warm = Instant::now();
    while warm.elapsed().as_millis() < 150 {
        let mut encoder = encoder(gpu);
        record(&mut encoder, 0);
        submit(gpu, encoder);
        wait(gpu);
    }
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

/// Bytes a second that a kernel of 16-byte loads reads, from a buffer of `bytes`.
pub fn read_bandwidth(gpu: &Gpu, bytes: u64) -> f64 {
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
    let device = gpu.device();
    let bytes = bytes.min(gpu.capability().binding_bytes).min(gpu.capability().buffer_bytes);
    let make = |size| device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false });
    let (data, sums) = (make(bytes / 16 * 16), make(16));
    let (pipeline, group) = between(device, source, &data, &sums);
    let time = seconds(gpu, 5, 4, |encoder, _| {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(4096, 1, 1);
    });
    bytes as f64 / time
}
