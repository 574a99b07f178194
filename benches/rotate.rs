//! `rotate` at every order, in place and into another buffer, beside a plain copy of the same size.
//!
//! ```text
//! cargo bench --bench rotate -- [--orders 64,512] [--invocations 32,64,128] [--elements 134217728] [--json FILE]
//! ```
//! Times are medians over submissions of many calls, a submission of copies before each of
//! rotations, so that both see the same clocks. `GB/s` counts 8 bytes a number, read and written
//! once; `share` is of the copy's. Before an order is timed, rows of its start, middle and end are
//! compared with the CPU twin, and with themselves after rotating twice.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]
#![allow(missing_docs, reason = "a bench has no readers")]

use std::time::Instant;
use wgkv::low_level::kernel::rotate::{INVOCATIONS, ORDERS, RotateParams, record_with};
use wgkv::low_level::reference::{self, Constants};
use wgkv::{Gpu, Rows};
use wgkv_testing::bench::*;

/// Relative to the length of the row: 11 roundings of 2^-24 a number, in each of the two results
/// compared.
const ROTATE_ERROR: f32 = 22.0 / 16_777_216.0;

/// Rows compared at each of the three places.
const SAMPLE: usize = 64;

/// Copies 16 bytes four times an invocation, consecutive invocations at consecutive places.
const COPY: &str = "
    @group(0) @binding(0) var<storage, read> rows: array<vec4<f32>>;
    @group(0) @binding(1) var<storage, read_write> copied: array<vec4<f32>>;
    @compute @workgroup_size(256)
    fn copy(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) i: u32) {
        let at = (id.x + id.y * groups.x) * 1024u + i;
        if (at + 768u < arrayLength(&copied)) {
            let a = rows[at];
            let b = rows[at + 256u];
            let c = rows[at + 512u];
            let d = rows[at + 768u];
            copied[at] = a;
            copied[at + 256u] = b;
            copied[at + 512u] = c;
            copied[at + 768u] = d;
        }
    }";

/// The rows, and as much room again.
struct Bench {
    gpu: Gpu,
    elements: usize,
    rows: wgpu::Buffer,
    rotated: wgpu::Buffer,
    copy: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

#[derive(Clone, Copy)]
struct Run {
    order: u32,
    in_place: bool,
    invocations: u32,
}

impl Bench {
    fn new(gpu: Gpu, elements: usize) -> Self {
        let device = gpu.device();
        let make = || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("bench"),
                size: 4 * elements as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let (rows, rotated) = (make(), make());
        let (copy, group) = between(device, COPY, &rows, &rotated);
        Self { elements, rows, rotated, copy, group, gpu }
    }

    /// Fills all rows with numbers, and the room beside them with zeros.
    fn fill(&self) {
        let part = numbers(self.elements.min(1 << 20));
        let source = upload(&self.gpu, &part);
        let mut encoder = encoder(&self.gpu);
        for at in (0..self.elements).step_by(part.len()) {
            let n = part.len().min(self.elements - at);
            encoder.copy_buffer_to_buffer(&source, 0, &self.rows, 4 * at as u64, 4 * n as u64);
        }
        encoder.clear_buffer(&self.rotated, 0, None);
        submit(&self.gpu, encoder);
    }

    fn record(&self, encoder: &mut wgpu::CommandEncoder, run: Run) {
        let (rows, rotated) = (Rows::f32(&self.rows), Rows::f32(&self.rotated));
        let (from, to) = if run.in_place { (None, rows) } else { (Some(rows), rotated) };
        record_with(&self.gpu, encoder, from, to, self.elements as u32 / run.order, run.order, run.invocations).unwrap();
    }

    fn record_copy(&self, encoder: &mut wgpu::CommandEncoder) {
        let workgroups = (self.elements as u32 / 4).div_ceil(1024);
        let down = workgroups.div_ceil(self.gpu.capability().workgroups);
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.copy);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(workgroups.div_ceil(down), down, 1);
    }

    /// Returns the rows at three places, one after the other.
    fn sample(&self, buffer: &wgpu::Buffer, order: usize) -> Vec<f32> {
        let count = self.elements / order;
        let most = SAMPLE.min(count);
        let part = |first: usize| pollster::block_on(self.gpu.read(buffer, 4 * (first * order) as u64, (most * order) as u64)).unwrap();
        [0, (count - most) / 2, count - most].into_iter().flat_map(|first| bytemuck::cast_slice(&part(first)).to_vec()).collect()
    }

    fn check(&self, run: Run) {
        let order = run.order as usize;
        self.fill();
        let before = self.sample(&self.rows, order);
        let mut want = vec![0.0; before.len()];
        reference::rotate(&RotateParams { rows: (before.len() / order) as u32, pad: [0; 3] }, &Constants::rotation(run.order), &before, &mut want);
        let go = |times| {
            let mut encoder = encoder(&self.gpu);
            (0..times).for_each(|_| self.record(&mut encoder, run));
            submit(&self.gpu, encoder);
        };
        let close = |what: &str, got: &[f32], want: &[f32]| {
            for (r, (got, want)) in got.chunks_exact(order).zip(want.chunks_exact(order)).enumerate() {
                let allowed = ROTATE_ERROR * want.iter().map(|x| x * x).sum::<f32>().sqrt();
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= allowed;
                assert!(got.iter().zip(want).all(near), "order {order}, in place {}, {} invocations: sampled row {r} {what}", run.in_place, run.invocations);
            }
        };
        go(1);
        if run.in_place {
            close("is not its twin's", &self.sample(&self.rows, order), &want);
            go(1);
            close("is not itself after rotating twice", &self.sample(&self.rows, order), &before);
        } else {
            close("is not its twin's", &self.sample(&self.rotated, order), &want);
            assert!(self.sample(&self.rows, order) == before, "order {order}: the input was written");
        }
    }

    /// Returns the seconds of one call, from a submission of several.
    fn time(&self, calls: u32, record: impl Fn(&mut wgpu::CommandEncoder)) -> f64 {
        let mut encoder = encoder(&self.gpu);
        (0..calls).for_each(|_| record(&mut encoder));
        let commands = encoder.finish();
        // The parameters' first contents are uploaded with the next submission, which must not be
        // the one that is timed.
        self.gpu.queue().submit([]);
        wait(&self.gpu);
        let start = Instant::now();
        self.gpu.queue().submit([commands]);
        wait(&self.gpu);
        start.elapsed().as_secs_f64() / f64::from(calls)
    }

    /// Returns the seconds of a copy and of a rotation.
    fn measure(&self, run: Run, samples: usize, calls: u32) -> (f64, f64) {
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let turn = |_| (self.time(calls, |encoder| self.record_copy(encoder)), self.time(calls, |encoder| self.record(encoder, run)));
        // GPUs clock down when idle, and the first of all compiles: two turns warm up.
        let (copies, rotations) = (0..samples + 2).map(turn).skip(2).unzip();
        (median(copies), median(rotations))
    }
}

fn main() {
    let gpu = gpu();
    let software = !gpu.capability().straight;
    let list = |name, default: &[u32]| argument(name).map_or(default.to_vec(), |text| text.split(',').map(|x| x.parse().unwrap()).collect());
    let orders = list("--orders", &ORDERS);
    let invocations = list("--invocations", &[INVOCATIONS]);
    // On a software adapter the numbers mean nothing; a small size shows that the bench runs.
    let wanted = argument("--elements").map_or(if software { 1 << 20 } else { 1 << 27 }, |n| n.parse::<usize>().unwrap());
    let most = gpu.capability().binding_bytes.min(gpu.capability().buffer_bytes) / 4;
    // Whole workgroups of the copy, so that it copies everything.
    let elements = wanted.min(most as usize) / 4096 * 4096;
    let (samples, calls) = if software { (3, 2) } else { (9, 32) };
    let bench = Bench::new(gpu, elements);
    println!("{}: {elements} numbers", bench.gpu.adapter_name());
    println!("{:>6} {:>9} {:>12} {:>10} {:>7} {:>10} {:>6}", "order", "in place", "invocations", "us", "GB/s", "copy GB/s", "share");
    let mut json = Vec::new();
    for order in orders {
        // The dense way has one workgroup.
        let invocations = if order.is_power_of_two() { invocations.as_slice() } else { &[INVOCATIONS] };
        for (invocations, in_place) in invocations.iter().flat_map(|n| [(*n, true), (*n, false)]) {
            let run = Run { order, in_place, invocations };
            bench.check(run);
            let (copy, rotation) = bench.measure(run, samples, calls);
            let speed = 8.0 * f64::from(elements as u32 / order * order) / rotation * 1e-9;
            let copy_speed = 8.0 * elements as f64 / copy * 1e-9;
            let (us, share) = (rotation * 1e6, speed / copy_speed);
            let shown = if order.is_power_of_two() { invocations } else { order };
            println!("{order:>6} {in_place:>9} {shown:>12} {us:>10.1} {speed:>7.0} {copy_speed:>10.0} {share:>6.3}");
            json.push(format!(
                "{{\"order\":{order},\"in_place\":{in_place},\"invocations\":{shown},\"us\":{us:.2},\"gb_s\":{speed:.1},\"copy_gb_s\":{copy_speed:.1},\"share\":{share:.4}}}"
            ));
        }
    }
    if let Some(file) = argument("--json") {
        std::fs::write(file, format!("{{\"adapter\":\"{}\",\"elements\":{elements},\"rows\":[{}]}}\n", bench.gpu.adapter_name(), json.join(","))).unwrap();
    }
}
