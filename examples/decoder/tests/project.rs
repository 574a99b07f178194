//! Products with weights of every layout against f64, by every kernel that makes them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use half::f16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::{GPU, buffer, read, run, seed};
use wgkv::{Capability, Gpu};
use wgkv_decoder::kernel::project::{Epilogue, Lanes, ProjectParams, lanes};
use wgkv_decoder::kernel::{project, project_matrix, project_tiles};
use wgkv_decoder::layout::{Layout, Planes};
use wgkv_decoder::{Activation, Stored, WeightFormat, reference};

/// What an f32 sum may be off by, as a share of the sum of the magnitudes of its terms: rounding to
/// nearest is 2^-24 a step, and no number of a product goes through more than 64 steps here (two of
/// unpacking, one of the norm, 8 of a lane's dots, at most 32 of a lane's or a tile's sums, 5 between
/// lanes, the epilogue). exp of silu is allowed 2^-20 of relative error by WGSL, root and inverse
/// square root 2 units.
const F32_ERROR: f64 = 96.0 / 16_777_216.0;

/// The same where rows and weights are rounded to halves first: 2^-11 each.
const HALF_ERROR: f64 = 2.5 / 2048.0;

/// Of a score's cap, what its tanh may be off by near 0: WGSL lets it be made of exponentials whose
/// difference is then small.
const TANH_ERROR: f64 = 16.0 / 16_777_216.0;

/// Share of an activated gate that the activation's own steps may be off by. GELU's is the gate
/// times a sigmoid of z, about `1.6 x + 0.07 x^3`: six roundings make z, each of which moves the
/// exponential by a share of |z|, and WGSL allows that 3 + 2 |z| units more. Where z is large and
/// positive, the exponential no longer counts.
fn activation_error(activation: Activation, x: f64) -> f64 {
    let z = match activation {
        Activation::Silu => return 0.0,
        Activation::GeluTanh => 2.0 * std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x.powi(3)),
    };
    (8.0 + 10.0 * z.abs()) / 8_388_608.0 / (1.0 + z.exp())
}

const FORMATS: [WeightFormat; 11] = [
    WeightFormat::F32,
    WeightFormat::F16,
    WeightFormat::Bf16,
    WeightFormat::Q8_0,
    WeightFormat::Q4_0,
    WeightFormat::Q4_1,
    WeightFormat::Q5_0,
    WeightFormat::Q5_1,
    WeightFormat::Q4K,
    WeightFormat::Q5K,
    WeightFormat::Q6K,
];

/// Random blocks whose scales are of ordinary size.
fn weights(format: WeightFormat, rows: usize, columns: usize, random: &mut StdRng) -> Stored {
    let blocks = rows * columns / format.block_elements();
    let mut bytes = Vec::with_capacity(blocks * format.block_bytes());
    for _ in 0..blocks {
        let mut block: Vec<u8> = (0..format.block_bytes()).map(|_| random.random()).collect();
        let mut put = |at: usize, largest: f32| {
            let half = f16::from_f32(largest * (2.0 * random.random::<f32>() - 1.0)).to_le_bytes();
            block[at..at + 2].copy_from_slice(&half);
        };
        match format {
            WeightFormat::F32 => block = (random.random::<f32>() - 0.5).to_le_bytes().to_vec(),
            WeightFormat::F16 => put(0, 0.5),
            WeightFormat::Bf16 => block = half::bf16::from_f32(random.random::<f32>() - 0.5).to_le_bytes().to_vec(),
            WeightFormat::Q8_0 => put(0, 0.004),
            WeightFormat::Q4_0 | WeightFormat::Q5_0 => put(0, 0.03),
            WeightFormat::Q4_1 | WeightFormat::Q5_1 => {
                put(0, 0.03);
                put(2, 0.3);
            }
            WeightFormat::Q4K | WeightFormat::Q5K => {
                put(0, 0.001);
                put(2, 0.005);
            }
            WeightFormat::Q6K => put(208, 0.0002),
            _ => unreachable!(),
        }
        bytes.extend(block);
    }
    Stored { rows, columns, format, bytes }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    One(Lanes),
    Four(Lanes),
    Tiles,
    Matrix(u32),
}

/// One product, whole: norm, bias, epilogue, a matrix in two blocks of which the second is asked for.
struct Case {
    by: By,
    format: WeightFormat,
    epilogue: Epilogue,
    bias: bool,
    norm: bool,
    rows: usize,
    columns: usize,
    outputs: usize,
}

fn check(gpu: &Gpu, case: &Case, random: &mut StdRng) {
    let &Case { by, format, epilogue, bias, norm, rows, columns, outputs } = case;
    let halves = matches!(by, By::Matrix(_));
    let stored = weights(format, outputs, columns, random);
    let layout = Layout::of(format);
    let Planes { words, high_at, scales_at } = layout.planes((0..outputs).map(|row| (&stored, row))).unwrap();
    let padded = rows.next_multiple_of(64);
    let scale = 10f32.powf(2.0 * random.random::<f32>() - 1.0);
    let x: Vec<f32> = (0..rows * columns).map(|_| scale * (2.0 * random.random::<f32>() - 1.0)).collect();
    let g: Vec<f32> = (0..columns).map(|_| 2.0 * random.random::<f32>()).collect();
    // A block before this one has made as many outputs.
    let first = if random.random() { 64 } else { 0 };
    let total = outputs + first;
    let b: Vec<f32> = (0..total).map(|_| random.random::<f32>() - 0.5).collect();
    let before: Vec<f32> = (0..padded * total).map(|_| random.random::<f32>() - 0.5).collect();
    // As a cap it bends some scores and not others.
    let factor = if epilogue == Epilogue::Capped { 3.0_f32 } else { 0.75 };
    let params = ProjectParams {
        columns: columns as u32,
        outputs: outputs as u32,
        first: first as u32,
        total: total as u32,
        high_at,
        scales_at,
        at_a: 0,
        split_b: total as u32 / 4 * 2,
        split_c: total as u32 - 2,
        at_b: (padded * (total / 4 * 2)) as u32,
        at_c: (padded * (total - 2)) as u32,
        epsilon: 1e-5,
        factor,
        pad: [0; 3],
    };
    let x_bytes: Vec<u8> = match halves {
        true => {
            let mut bytes: Vec<u8> = x.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
            bytes.resize(2 * padded * columns, 0);
            bytes
        }
        false => {
            let mut bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
            bytes.resize(4 * padded * columns, 0);
            bytes
        }
    };
    // Poisoned where the epilogue does not add.
    let poison = vec![f32::NAN; padded * total];
    let out = buffer(gpu, bytemuck::cast_slice(if epilogue == Epilogue::Add { &before } else { &poison }));
    let nothing = buffer(gpu, &[0; 16]);
    let weights_buffer = buffer(gpu, bytemuck::cast_slice(&words));
    let (params, x_buffer) = (buffer(gpu, bytemuck::bytes_of(&params)), buffer(gpu, &x_bytes));
    let (g_buffer, b_buffer) = (buffer(gpu, bytemuck::cast_slice(&g)), buffer(gpu, bytemuck::cast_slice(&b)));
    let most = gpu.capability().workgroups;
    match by {
        By::One(lanes) | By::Four(lanes) => {
            let one = matches!(by, By::One(_));
            let variant = project::variant(layout, epilogue, bias, norm, one, lanes);
            run(
                gpu,
                &variant,
                &[&params, &weights_buffer, &x_buffer, &g_buffer, &b_buffer, &out],
                project::grid(outputs as u32, rows as u32, one, lanes, most),
            );
        }
        By::Tiles => {
            let variant = project_tiles::variant(layout, epilogue, bias);
            run(gpu, &variant, &[&params, &weights_buffer, &x_buffer, &g_buffer, &b_buffer, &out], project_tiles::grid(outputs as u32, rows as u32));
        }
        By::Matrix(tiles) => {
            let variant = project_matrix::variant(layout, epilogue, bias, tiles);
            let last = if epilogue.is_gated() { [&nothing, &out] } else { [&out, &nothing] };
            run(
                gpu,
                &variant,
                &[&params, &weights_buffer, &x_buffer, &g_buffer, &b_buffer, last[0], last[1]],
                project_matrix::grid(outputs as u32, rows as u32, tiles),
            );
        }
    }
    let got = read(gpu, &out);

    // Numbers that are not codes are stored as halves.
    let half = |x: &f32| f16::from_f32(*x).to_f32();
    let numbers = stored.numbers();
    let numbers = if layout == Layout::F16 { numbers.iter().map(half).collect() } else { numbers };
    let norms = norm && !matches!(by, By::Tiles | By::Matrix(_));
    let wide: Vec<f64> = x
        .chunks_exact(columns)
        .flat_map(|row| {
            let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / columns as f64;
            let root = if norms { 1.0 / (mean + f64::from(1e-5_f32)).sqrt() } else { 1.0 };
            row.iter().zip(&g).map(move |(x, g)| f64::from(*x) * if norms { root * f64::from(*g) } else { 1.0 }).collect::<Vec<f64>>()
        })
        .collect();
    let products = reference::project(&wide, &numbers, columns);
    let error = if halves { HALF_ERROR } else { F32_ERROR };
    let number = |at: usize| f64::from(f32::from_bits(got[at]));
    let what = format!("{by:?} {} {epilogue:?} bias {bias} norm {norm} {rows} x {columns} x {outputs}", format.name());
    let close = |got: f64, want: f64, bound: f64, place: (usize, usize)| {
        assert!((got - want).abs() <= bound, "{what}, row and output {place:?}: {got}, should be {want} within {bound:e}");
    };
    let (split_b, split_c) = (total / 4 * 2, total - 2);
    for row in 0..rows {
        let with_bias = |output: usize| {
            let [product, size] = products[row * outputs + output];
            let added = if bias { f64::from(b[first + output]) } else { 0.0 };
            [product + added, size + added.abs()]
        };
        for output in 0..outputs {
            let [want, size] = with_bias(output);
            let all = first + output;
            match epilogue {
                Epilogue::Store => {
                    let (base, start, width, factor) = match all {
                        _ if all < split_b => (0, 0, split_b, f64::from(factor)),
                        _ if all < split_c => (padded * split_b, split_b, split_c - split_b, 1.0),
                        _ => (padded * split_c, split_c, total - split_c, 1.0),
                    };
                    close(number(base + row * width + all - start), factor * want, error * size + 1e-30, (row, output));
                }
                Epilogue::Add => {
                    let old = f64::from(before[row * total + all]);
                    close(number(row * total + all), old + want, error * (size + old.abs()), (row, output));
                }
                Epilogue::Capped => {
                    let cap = f64::from(factor);
                    close(number(row * total + all), reference::capped(want, cap), error * size + TANH_ERROR * cap, (row, output));
                }
                Epilogue::Gated(activation) if output % 2 == 0 => {
                    let [up, up_size] = with_bias(output + 1);
                    let gate = reference::activate(activation, want);
                    // The slope of silu is at most 1.1, that of gelu 1.13.
                    let bound = error * (1.13 * size * up.abs() + gate.abs() * up_size + 1.13 * error * size * up_size);
                    let at = (row * total + all) / 2;
                    let got = if halves { f16::from_bits((got[at / 2] >> (16 * (at % 2))) as u16).to_f64() } else { number(at) };
                    let rounding = if halves { (gate * up).abs() / 2048.0 + 6e-8 } else { 4.0 * F32_ERROR * (gate * up).abs() };
                    close(got, gate * up, bound + rounding + activation_error(activation, want) * (gate * up).abs() + 1e-30, (row, output));
                }
                Epilogue::Gated(_) => {}
            }
        }
    }
}

/// What can follow a product. GELU and caps know nothing of how weights are stored, so some formats
/// suffice for them.
fn epilogues(format: WeightFormat) -> impl Iterator<Item = Epilogue> {
    let some = [WeightFormat::F16, WeightFormat::Q8_0, WeightFormat::Q6K].contains(&format);
    Epilogue::ALL.into_iter().filter(move |epilogue| some || !matches!(epilogue, Epilogue::Gated(Activation::GeluTanh) | Epilogue::Capped))
}

fn sizes(format: WeightFormat, random: &mut StdRng) -> (usize, usize) {
    let block = format.block_elements().max(32);
    (block * random.random_range(1..=768 / block), 2 * random.random_range(2..80))
}

#[test]
fn a_few_rows_times_every_layout() {
    let random = &mut StdRng::seed_from_u64(seed());
    let of = |gpu: &Gpu| lanes(gpu.capability().subgroups);
    let without = GPU.pretend(Capability { subgroups: None, ..*GPU.capability() });
    for gpu in [&*GPU, &without] {
        for format in FORMATS {
            for epilogue in epilogues(format) {
                let (columns, outputs) = sizes(format, random);
                let (bias, norm) = (random.random(), random.random());
                let rows = random.random_range(1..=4);
                check(gpu, &Case { by: By::One(of(gpu)), format, epilogue, bias, norm, rows, columns, outputs }, random);
                let rows = random.random_range(1..=9);
                check(gpu, &Case { by: By::Four(of(gpu)), format, epilogue, bias, norm, rows, columns, outputs }, random);
            }
        }
    }
}

#[test]
fn many_rows_times_every_layout() {
    let random = &mut StdRng::seed_from_u64(seed());
    for format in FORMATS {
        for epilogue in epilogues(format) {
            let (columns, outputs) = sizes(format, random);
            let (bias, rows) = (random.random(), random.random_range(1..150));
            check(&GPU, &Case { by: By::Tiles, format, epilogue, bias, norm: false, rows, columns, outputs }, random);
        }
    }
}

#[test]
fn many_rows_by_cooperative_matrices() {
    // A device without them has nothing to test: the kernel is never made there.
    if !GPU.capability().matrices {
        println!("no cooperative matrices on {}", GPU.adapter_name());
        return;
    }
    let random = &mut StdRng::seed_from_u64(seed());
    for format in FORMATS {
        for epilogue in epilogues(format) {
            let (columns, outputs) = sizes(format, random);
            // Gated matrices come in multiples of 64.
            let outputs = if epilogue.is_gated() { outputs.next_multiple_of(64) } else { outputs };
            let (bias, rows) = (random.random(), random.random_range(1..150));
            check(&GPU, &Case { by: By::Matrix(random.random_range(1..=4)), format, epilogue, bias, norm: false, rows, columns, outputs }, random);
        }
    }
}
