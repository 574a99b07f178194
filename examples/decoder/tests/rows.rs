//! Embedding, norms and what is done to heads, against f64.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use half::f16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::{GPU, buffer, read, run, seed};
use wgkv_decoder::kernel::embed::EmbedParams;
use wgkv_decoder::kernel::heads::HeadsParams;
use wgkv_decoder::kernel::normalize::{NormalizeParams, Output};
use wgkv_decoder::kernel::{embed, heads, normalize};
use wgkv_decoder::layout::{Layout, Planes};
use wgkv_decoder::{Stored, WeightFormat, reference};

/// Share of a number that its error may be: a root, an inverse square root and a few products,
/// of 2^-23 each, and a sum of at most 16 squares a lane with 6 steps between lanes.
const NORM_ERROR: f64 = 32.0 / 8_388_608.0;

/// The same of an embedding times its factor, whose weight is a scale's product itself: two
/// roundings of 2^-24.
const SCALE_ERROR: f64 = 2.5 / 16_777_216.0;

/// The same of a turned number, as a share of the largest of its pair.
const TURN_ERROR: f64 = 36.0 / 8_388_608.0;

fn random_numbers(count: usize, random: &mut StdRng) -> Vec<f32> {
    (0..count).map(|_| 2.0 * random.random::<f32>() - 1.0).collect()
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|x| f64::from(*x)).collect()
}

#[test]
fn embedding_takes_the_rows_of_tokens_and_leaves_those_of_other_buffers() {
    let random = &mut StdRng::seed_from_u64(seed());
    let (vocabulary, columns, rows, first) = (50, 544, 9, 20_u32);
    for (format, scaled) in [(WeightFormat::F16, false), (WeightFormat::Q8_0, false), (WeightFormat::F16, true), (WeightFormat::Q8_0, true)] {
        let mut bytes: Vec<u8> = (0..vocabulary * columns / format.block_elements() * format.block_bytes()).map(|_| random.random()).collect();
        bytes.iter_mut().for_each(|byte| *byte &= 0xbb);
        let stored = Stored { rows: vocabulary, columns, format, bytes };
        let layout = Layout::of(format);
        // Only rows from `first` on lie in this buffer.
        let Planes { words, high_at, scales_at } = layout.planes((first as usize..vocabulary).map(|row| (&stored, row))).unwrap();
        let ids: Vec<u32> = (0..rows).map(|_| random.random_range(0..vocabulary as u32)).collect();
        let count = vocabulary as u32 - first;
        let factor = 15.491_933_f32;
        let params = EmbedParams { columns: columns as u32, rows: rows as u32, high_at, scales_at, first, count, factor, pad: 0 };
        let poison = vec![f32::NAN; rows * columns];
        let out = buffer(&GPU, bytemuck::cast_slice(&poison));
        let buffers = [buffer(&GPU, bytemuck::bytes_of(&params)), buffer(&GPU, bytemuck::cast_slice(&words)), buffer(&GPU, bytemuck::cast_slice(&ids))];
        run(&GPU, &embed::variant(layout, scaled), &[&buffers[0], &buffers[1], &buffers[2], &out], embed::grid(columns as u32, rows as u32));
        let (got, numbers) = (read(&GPU, &out), stored.numbers());
        for (row, id) in ids.iter().enumerate() {
            let got = &got[row * columns..][..columns];
            let want = &numbers[*id as usize * columns..][..columns];
            let same = |(got, want): (&u32, &f32)| match f32::from_bits(*got) {
                got if *id < first => got.is_nan(),
                got if scaled => (f64::from(got) - f64::from(factor) * f64::from(*want)).abs() <= SCALE_ERROR * f64::from(factor * want.abs()),
                got => got == *want,
            };
            assert!(got.iter().zip(want).all(same), "{} row {row}, token {id}", format.name());
        }
    }
}

#[test]
fn rows_are_normed_gathered_and_made_halves() {
    let random = &mut StdRng::seed_from_u64(seed());
    let (rows, columns) = (7, 928);
    for choice in 0..12 {
        let (norm, select, output) = (choice & 1 > 0, choice & 2 > 0, Output::ALL[choice / 4]);
        let (half, adds) = (output == Output::Halves, output == Output::Added);
        let mut x = random_numbers(rows * columns, random);
        // Beyond the range of halves.
        x[5] = 1e6;
        let g = random_numbers(columns, random);
        let sources: Vec<u32> = (0..rows).map(|_| random.random_range(0..rows as u32)).collect();
        let params = NormalizeParams { columns: columns as u32, epsilon: 1e-5, pad: [0; 2] };
        let size = rows * columns / if half { 2 } else { 1 };
        let before = if adds { random_numbers(size, random) } else { vec![f32::NAN; size] };
        let out = buffer(&GPU, bytemuck::cast_slice(&before));
        let buffers = [
            buffer(&GPU, bytemuck::bytes_of(&params)),
            buffer(&GPU, bytemuck::cast_slice(&x)),
            buffer(&GPU, bytemuck::cast_slice(&g)),
            buffer(&GPU, bytemuck::cast_slice(&sources)),
        ];
        run(&GPU, &normalize::variant(norm, select, output), &[&buffers[0], &buffers[1], &buffers[2], &buffers[3], &out], [rows as u32, 1, 1]);
        let got = read(&GPU, &out);
        for (row, source) in sources.iter().enumerate() {
            let source = if select { *source as usize } else { row };
            let row_of = wide(&x[source * columns..][..columns]);
            let want = if norm { reference::normalize(&row_of, &g, f64::from(1e-5_f32)) } else { row_of };
            for (column, want) in want.into_iter().enumerate() {
                let at = row * columns + column;
                let (got, error) = match half {
                    // A unit in the last place of a half, and the smallest half.
                    true => (f16::from_bits((got[at / 2] >> (16 * (at % 2))) as u16).to_f64(), 1.0 / 2048.0 + NORM_ERROR),
                    false => (f64::from(f32::from_bits(got[at])), if norm { NORM_ERROR } else { 0.0 }),
                };
                let want = if half { want.clamp(-65504.0, 65504.0) } else { want };
                let old = if adds { f64::from(before[at]) } else { 0.0 };
                // A sum is rounded once more.
                let rounding = if half { 6e-8 } else { 0.0 } + if adds { (want + old).abs() / 8_388_608.0 } else { 0.0 };
                let (want, error) = (want + old, error * want.abs() + rounding);
                assert!((got - want).abs() <= error, "{choice}: row {row}, column {column}: {got}, should be {want}");
            }
        }
    }
}

#[test]
fn heads_are_normed_and_turned_in_place() {
    let random = &mut StdRng::seed_from_u64(seed());
    for (head_dim, pairs) in [(64, 32), (80, 20), (128, 64), (256, 128)] {
        for (norm, turn) in [(true, false), (false, true), (true, true)] {
            let (rows, query_heads, kv_heads) = (5_usize, 3_usize, 2_usize);
            let keys_at = rows.next_multiple_of(64) * query_heads * head_dim;
            let numbers = keys_at + rows * kv_heads * head_dim;
            let x = random_numbers(numbers, random);
            let g = random_numbers(2 * head_dim, random);
            let angles: Vec<f64> = (0..rows * pairs).map(|_| 7.0 * random.random::<f64>()).collect();
            let of_layer = angles.iter().map(|angle| [angle.cos() as f32, angle.sin() as f32]);
            let waves: Vec<[f32; 2]> = std::iter::repeat_n([f32::NAN; 2], rows * pairs).chain(of_layer).collect();
            let params = HeadsParams {
                head_dim: head_dim as u32,
                query_heads: query_heads as u32,
                kv_heads: kv_heads as u32,
                keys_at: keys_at as u32,
                pairs: pairs as u32,
                epsilon: 1e-6,
                // After those of other layers.
                waves_at: (rows * pairs) as u32,
                pad: 0,
            };
            let out = buffer(&GPU, bytemuck::cast_slice(&x));
            let buffers = [buffer(&GPU, bytemuck::bytes_of(&params)), buffer(&GPU, bytemuck::cast_slice(&g)), buffer(&GPU, bytemuck::cast_slice(&waves))];
            run(&GPU, &heads::variant(norm, turn), &[&buffers[0], &out, &buffers[1], &buffers[2]], [(query_heads + kv_heads) as u32, rows as u32, 1]);
            let got: Vec<f32> = bytemuck::cast_vec(read(&GPU, &out));
            let mut want = wide(&x);
            for (base, heads, g) in [(0, query_heads, &g[..head_dim]), (keys_at, kv_heads, &g[head_dim..])] {
                for (n, head) in want[base..base + rows * heads * head_dim].chunks_exact_mut(head_dim).enumerate() {
                    if norm {
                        let normed = reference::normalize(head, g, f64::from(1e-6_f32));
                        head.copy_from_slice(&normed);
                    }
                    if turn {
                        reference::turn(head, angles[n / heads * pairs..][..pairs].iter().copied(), pairs);
                    }
                }
            }
            let largest = want.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!((f64::from(*got) - want).abs() <= TURN_ERROR * largest, "{head_dim} {norm} {turn}, at {at}: {got}, should be {want}");
            }
        }
    }
}
