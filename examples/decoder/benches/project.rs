//! Products of rows with matrices of weights: `project`, `project_tiles`, `project_matrix`.
//!
//! ```text
//! cargo bench -p wgkv-decoder --bench project [-- --shapes 12288x4096,4096x11008] [--rows 1,4,8,40,512] [--formats f16,q4_1,q4_k]
//! ```
//! Shapes are outputs x columns. Matrices take turns, so that no product finds its weights in the
//! cache. The first product of each kind is compared with f64 before it is timed.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]
#![allow(missing_docs, reason = "a bench has no readers")]

use std::time::{Duration, Instant};

use half::f16;
use wgkv::Gpu;
use wgkv::low_level::{Pipeline, Variant};
use wgkv_decoder::kernel::project::{Epilogue, ProjectParams, lanes};
use wgkv_decoder::kernel::{project, project_matrix, project_tiles};
use wgkv_decoder::layout::Layout;
use wgkv_decoder::{Stored, WeightFormat, reference};

/// Share of a sum of magnitudes by which a product may be off: halves of rows and weights.
const ERROR: f64 = 2.5 / 2048.0;

/// How long the GPU works before it is timed: clocks fall while the host prepares.
const WARM: Duration = Duration::from_millis(400);

/// Bytes of weights that take turns: more than a GPU's cache.
const TURNS: usize = 400 << 20;

fn list(name: &str, default: &str) -> Vec<String> {
    std::env::args().skip_while(|a| a != name).nth(1).unwrap_or_else(|| default.into()).split(',').map(str::to_owned).collect()
}

fn buffer(gpu: &Gpu, bytes: &[u8]) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::UNIFORM;
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: bytes.len().max(16) as u64, usage, mapped_at_creation: false });
    gpu.queue().write_buffer(&buffer, 0, bytes);
    buffer
}

struct Numbers(u64);

impl Numbers {
    fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn number(&mut self) -> f32 {
        (self.word() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Random blocks; scales are small numbers.
fn weights(format: WeightFormat, rows: usize, columns: usize, numbers: &mut Numbers) -> Stored {
    let length = rows * columns / format.block_elements() * format.block_bytes();
    let mut bytes: Vec<u8> = (0..length.div_ceil(4)).flat_map(|_| numbers.word().to_le_bytes()).collect();
    bytes.truncate(length);
    let scales: &[usize] = match format {
        WeightFormat::Q4_1 | WeightFormat::Q5_1 | WeightFormat::Q4K | WeightFormat::Q5K => &[0, 2],
        WeightFormat::Q6K => &[208],
        _ => &[0],
    };
    for block in bytes.chunks_mut(format.block_bytes()) {
        for at in scales {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(0.05 * numbers.number()).to_le_bytes());
        }
    }
    Stored { rows, columns, format, bytes }
}

fn main() {
    let gpu = pollster::block_on(Gpu::request()).unwrap();
    let lanes = lanes(gpu.capability().subgroups);
    println!("{}, cooperative matrices: {}", gpu.adapter_name(), gpu.capability().matrices);
    println!("{:>14} {:>6} {:>5} {:>16} {:>9} {:>8} {:>9}", "shape", "format", "rows", "kernel", "us", "GB/s", "TFLOP/s");
    let numbers = &mut Numbers(1);
    for shape in list("--shapes", "12288x4096,4096x4096,22016x4096,4096x11008,32000x4096,960x576,3072x576") {
        let (outputs, columns) = shape.split_once('x').unwrap();
        let (outputs, columns): (usize, usize) = (outputs.parse().unwrap(), columns.parse().unwrap());
        for format in list("--formats", "f16,q4_1,q4_k") {
            let format = match format.as_str() {
                "f16" => WeightFormat::F16,
                "q8_0" => WeightFormat::Q8_0,
                "q4_0" => WeightFormat::Q4_0,
                "q4_1" => WeightFormat::Q4_1,
                "q5_k" => WeightFormat::Q5K,
                "q6_k" => WeightFormat::Q6K,
                _ => WeightFormat::Q4K,
            };
            if !columns.is_multiple_of(format.block_elements().max(32)) {
                continue;
            }
            let stored = weights(format, outputs, columns, numbers);
            let layout = Layout::of(format);
            let planes = layout.planes((0..outputs).map(|row| (&stored, row))).unwrap();
            let words: &[u8] = bytemuck::cast_slice(&planes.words);
            let turns: Vec<wgpu::Buffer> = (0..TURNS.div_ceil(words.len()).clamp(2, 24)).map(|_| buffer(&gpu, words)).collect();
            for rows in list("--rows", "1,4,8,40,512") {
                let rows: usize = rows.parse().unwrap();
                let padded = rows.next_multiple_of(64);
                let x: Vec<f32> = (0..padded * columns).map(|_| numbers.number()).collect();
                let halves: Vec<u16> = x.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
                let params = ProjectParams {
                    columns: columns as u32,
                    outputs: outputs as u32,
                    total: outputs as u32,
                    split_b: outputs as u32,
                    split_c: outputs as u32,
                    high_at: planes.high_at,
                    scales_at: planes.scales_at,
                    factor: 1.0,
                    ..ProjectParams::default()
                };
                let (params, nothing, spare) = (buffer(&gpu, bytemuck::bytes_of(&params)), buffer(&gpu, &[0; 16]), buffer(&gpu, &[0; 16]));
                let out = buffer(&gpu, bytemuck::cast_slice(&vec![f32::NAN; padded * outputs]));
                let (x_buffer, half_buffer) = (buffer(&gpu, bytemuck::cast_slice(&x)), buffer(&gpu, bytemuck::cast_slice(&halves)));
                let few = rows <= 8;
                let mut kinds: Vec<(Variant, &wgpu::Buffer, [u32; 3])> = Vec::new();
                if few {
                    let variant = project::variant(layout, Epilogue::Store, false, false, rows == 1, lanes);
                    kinds.push((variant, &x_buffer, project::grid(outputs as u32, rows as u32, rows == 1, lanes, gpu.capability().workgroups)));
                }
                let tiles = project_matrix::tiles(rows as u32);
                if rows >= 8 {
                    kinds.push((project_tiles::variant(layout, Epilogue::Store, false), &x_buffer, project_tiles::grid(outputs as u32, rows as u32)));
                    if gpu.capability().matrices {
                        kinds.push((
                            project_matrix::variant(layout, Epilogue::Store, false, tiles),
                            &half_buffer,
                            project_matrix::grid(outputs as u32, rows as u32, tiles),
                        ));
                    }
                }
                for (variant, x_buffer, grid) in kinds {
                    pollster::block_on(gpu.prepare_variants(vec![variant.clone()])).unwrap();
                    let pipeline: Pipeline = gpu.pipeline(&variant);
                    let groups: Vec<wgpu::BindGroup> = turns
                        .iter()
                        .map(|weights| {
                            let mut bound = vec![&params, weights, x_buffer, &nothing, &nothing, &out];
                            if variant.matrices {
                                bound.push(&spare);
                            }
                            let bindings: Vec<_> = bound.iter().map(|buffer| buffer.as_entire_buffer_binding()).collect();
                            pipeline.bind_in_order(&gpu, 0, &bindings)
                        })
                        .collect();
                    let submit = |count: usize| {
                        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                        {
                            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                            for n in 0..count {
                                pipeline.dispatch(&gpu, &mut pass, &[(&groups[n % groups.len()], &[])], grid);
                            }
                        }
                        gpu.queue().submit([encoder.finish()]);
                        gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
                    };
                    submit(1);
                    let got: Vec<f32> = bytemuck::cast_vec(pollster::block_on(gpu.read(&out, 0, (rows * outputs) as u64)).unwrap());
                    let all = stored.numbers();
                    for n in 0..50 {
                        let (row, output) = (n * 7 % rows, n * 131 % outputs);
                        let wide: Vec<f64> = x[row * columns..][..columns].iter().map(|x| f64::from(*x)).collect();
                        let [want, size] = reference::project(&wide, &all[output * columns..][..columns], columns)[0];
                        assert!((f64::from(got[row * outputs + output]) - want).abs() <= ERROR * size, "{shape} {} {rows}", variant.kernel.name);
                    }
                    let warm = Instant::now();
                    let mut count = 4;
                    while warm.elapsed() < WARM {
                        let started = Instant::now();
                        submit(count);
                        if started.elapsed() < Duration::from_millis(20) {
                            count *= 2;
                        }
                    }
                    let times = (0..5).map(|_| {
                        let started = Instant::now();
                        submit(count);
                        started.elapsed().as_secs_f64() / count as f64
                    });
                    let seconds = times.fold(f64::INFINITY, f64::min);
                    println!(
                        "{shape:>14} {:>6} {rows:>5} {:>16} {:>9.1} {:>8.0} {:>9.1}",
                        format.name(),
                        variant.kernel.name,
                        1e6 * seconds,
                        words.len() as f64 / seconds / 1e9,
                        2.0 * (rows * outputs * columns) as f64 / seconds / 1e12
                    );
                }
            }
        }
    }
}
