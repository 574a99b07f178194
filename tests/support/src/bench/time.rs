//! Timing on a GPU, and its bandwidth.

use crate::{encoder, submit, wait};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use wgkv::Gpu;

/// How long a GPU works before it is timed, by the wall's clock: after a rest, and where it was just
/// at work. Small submissions leave a large GPU at a sixth of its clock.
const WARM: Duration = Duration::from_millis(900);
const KEPT_WARM: Duration = Duration::from_millis(100);

/// A rest.
const REST: Duration = Duration::from_millis(100);

/// Returns the seconds of one call: the median of `samples`, each the mean over a submission of
/// `calls`.
pub fn seconds(gpu: &Gpu, samples: usize, calls: u32, mut record: impl FnMut(&mut wgpu::CommandEncoder, u32)) -> f64 {
    warm(gpu);
    let mut times: Vec<f64> = (0..=samples)
        .map(|_| {
            let mut commands = encoder(gpu);
            for call in 0..calls {
                record(&mut commands, call);
            }
            let commands = commands.finish();
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

/// Returns a shader from one buffer to another, bound to the two.
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

/// Returns a kernel of 16-byte loads that reads a buffer of `bytes` bytes.
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

/// Returns the bytes that one binding holds, of those that are wanted.
fn bindable(gpu: &Gpu, bytes: u64) -> u64 {
    bytes.min(gpu.capability().binding_bytes).min(gpu.capability().buffer_bytes) / 16 * 16
}

/// Keeps the GPU at work for a while: it clocks down while the host prepares something, and does
/// not come back for small submissions.
pub fn warm(gpu: &Gpu) {
    static READER: OnceLock<(wgpu::ComputePipeline, wgpu::BindGroup)> = OnceLock::new();
    let (pipeline, group) = READER.get_or_init(|| reader(gpu, bindable(gpu, if gpu.capability().straight { 256 << 20 } else { 1 << 20 })));
    static AT_WORK: Mutex<Option<Instant>> = Mutex::new(None);
    let mut at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
    let long = if at_work.is_some_and(|last| last.elapsed() < REST) || !gpu.capability().straight { KEPT_WARM } else { WARM };
    let start = Instant::now();
    while start.elapsed() < long {
        let mut commands = encoder(gpu);
        for _ in 0..8 {
            record_sweep(&mut commands, pipeline, group);
        }
        submit(gpu, commands);
        wait(gpu);
    }
    *at_work = Some(Instant::now());
}

/// Returns the bytes a second that a kernel of 16-byte loads reads, from a buffer of `bytes`.
pub fn read_bandwidth(gpu: &Gpu, bytes: u64) -> f64 {
    let bytes = bindable(gpu, bytes);
    let (pipeline, group) = reader(gpu, bytes);
    bytes as f64 / sweep(gpu, &pipeline, &group)
}

/// Returns the bytes a second, read and written, of a kernel that copies `bytes` bytes into another
/// buffer.
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

/// Returns the seconds of a kernel that goes through its buffers in strides.
fn sweep(gpu: &Gpu, pipeline: &wgpu::ComputePipeline, group: &wgpu::BindGroup) -> f64 {
    seconds(gpu, 5, 4, |encoder, _| record_sweep(encoder, pipeline, group))
}

fn record_sweep(encoder: &mut wgpu::CommandEncoder, pipeline: &wgpu::ComputePipeline, group: &wgpu::BindGroup) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, group, &[]);
    pass.dispatch_workgroups(4096, 1, 1);
}
