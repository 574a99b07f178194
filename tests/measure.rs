//! `measure` adds up the columns of key rows, over calls: it agrees with its twin and with sums in
//! f64 far more closely than sums of f32 could; rows with a number that is not finite are left out
//! whole and counted; whatever it does not own stays.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use rand::rngs::StdRng;
use wgkv::low_level::kernel::measure::{self, BLOCK, LINES, MeasureParams};
use wgkv::low_level::reference::{self, Constants};
use wgkv::{Element, Error, Gpu, Rope, Rows};
use wgkv_testing::*;

/// Relative to the sum of magnitudes. Each addition to a pair of floats loses at most 2^-47 of it;
/// here a line adds 2^10 rows at most, and the lines are added in f64. Sums of f32 lose about 2^-24
/// by addition, and the tests see that they are refused.
const SUM_ERROR: f64 = 1.0 / (1_u64 << 37) as f64;

/// (width, rows of each call, why)
const CASES: [(u32, &[u32], &str); 9] = [
    (64, &[1], "a single row"),
    (64, &[31, 32, 33], "around a block"),
    (80, &[5, 64], "a width that is no power of two"),
    (192, &[100], "fewer columns than invocations"),
    (512, &[1023, 1], "almost a block for each line"),
    (1024, &[1024, 1025], "a block for each line, and one more"),
    (1088, &[70], "a width that leaves invocations without a column"),
    (4096, &[200, 3, 77], "a wide row"),
    (128, &[1000, 1, 1, 2, 1000, 40, 1, 1, 999, 1, 1, 333], "many calls"),
];

/// Rows as words, and as the numbers that they hold.
struct Batch {
    words: Vec<u32>,
    numbers: Vec<f32>,
}

fn batch(numbers: Vec<f32>, element: Element) -> Batch {
    let words: Vec<u32> = match element {
        Element::F32 => numbers.iter().map(|x| x.to_bits()).collect(),
        _ => {
            let bits = |x: f32| if element == Element::F16 { half::f16::from_f32(x).to_bits() } else { half::bf16::from_f32(x).to_bits() };
            numbers.chunks_exact(2).map(|p| p.iter().rev().fold(0, |word, x| word << 16 | u32::from(bits(*x)))).collect()
        }
    };
    let numbers = match element {
        Element::F32 => numbers,
        Element::Bf16 => words.iter().flat_map(|w| reference::bfloat::unpack(*w)).collect(),
        _ => words.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]).map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
    };
    Batch { words, numbers }
}

/// Draws keys with a different mean in each column, so that sums grow.
fn keys(random: &mut StdRng, rows: u32, width: u32) -> Vec<f32> {
    (0..rows * width).map(|i| normal(random) + (i % width % 7) as f32 * 3.0 - 9.0).collect()
}

struct Sums {
    sums: wgpu::Buffer,
    counts: wgpu::Buffer,
    width: u32,
}

impl Sums {
    /// Makes sums of zero, with a line of poison after each buffer's end.
    fn new(gpu: &Gpu, width: u32) -> Self {
        let buffer = |words: u32| {
            let mut zeros = vec![0; words as usize];
            zeros.extend(vec![POISON; 2 * width as usize]);
            upload(gpu, floats(&zeros))
        };
        Self { sums: buffer(2 * LINES * width), counts: buffer(2 * LINES), width }
    }

    fn add(&self, gpu: &Gpu, batch: &Batch, element: Element) {
        let rows = batch.numbers.len() as u32 / self.width;
        // A row of poison (not finite) more than is needed.
        let mut given = batch.words.clone();
        given.extend(vec![POISON; self.width as usize]);
        let buffer = upload(gpu, floats(&given));
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        measure::record(gpu, &mut encoder, Rows::new(&buffer, element), false, rows, [1, self.width], &self.sums, &self.counts).unwrap();
        gpu.queue().submit([encoder.finish()]);
    }

    fn read(&self, gpu: &Gpu) -> (Vec<[f32; 2]>, Vec<[u32; 2]>) {
        let (sums, counts) = (words(gpu, &self.sums), words(gpu, &self.counts));
        let (sums, beyond) = sums.split_at((2 * LINES * self.width) as usize);
        let (counts, beyond_counts) = counts.split_at(2 * LINES as usize);
        assert!(beyond.iter().chain(beyond_counts).all(|w| *w == POISON), "a line beyond the last was written");
        (bytemuck::cast_slice(sums).to_vec(), bytemuck::cast_slice(counts).to_vec())
    }
}

/// Returns the lines added up.
fn columns(sums: &[[f32; 2]], width: u32) -> Vec<f64> {
    (0..width as usize).map(|c| sums[c..].iter().step_by(width as usize).map(|[high, low]| f64::from(*high) + f64::from(*low)).sum()).collect()
}

fn added_up(gpu: &Gpu, width: u32, calls: &[u32], element: Element, random: &mut StdRng, seed: u64, why: &str) {
    let sums = Sums::new(gpu, width);
    let (mut twin_sums, mut twin_counts) = (vec![[0.0; 2]; (LINES * width) as usize], vec![[0; 2]; LINES as usize]);
    let (mut exact, mut magnitudes, mut plain) = (vec![0.0_f64; width as usize], vec![0.0_f64; width as usize], vec![0.0_f32; width as usize]);
    let constants = Constants { element, ..Constants::default() };
    for rows in calls {
        let batch = batch(keys(random, *rows, width), element);
        sums.add(gpu, &batch, element);
        let params = MeasureParams { rows: *rows, width, ..MeasureParams::default() };
        reference::measure(&params, &constants, measure::workgroups(*rows), &batch.words, &[], &mut twin_sums, &mut twin_counts);
        for (i, x) in batch.numbers.iter().enumerate() {
            let c = i % width as usize;
            exact[c] += f64::from(*x);
            magnitudes[c] += f64::from(x.abs());
            plain[c] += x;
        }
    }
    let (got, counts) = sums.read(gpu);
    assert_eq!(counts, twin_counts, "{why}: counts. WGKV_SEED={seed}");
    assert_eq!(counts.iter().map(|[added, _]| added).sum::<u32>(), calls.iter().sum::<u32>());
    let (got_columns, twin_columns) = (columns(&got, width), columns(&twin_sums, width));
    let mut plain_is_refused = false;
    for c in 0..width as usize {
        let allowed = SUM_ERROR * magnitudes[c];
        for (name, sum) in [("the kernel's", got_columns[c]), ("the twin's", twin_columns[c])] {
            let off = (sum - exact[c]).abs();
            assert!(off <= allowed, "{why}: {name} sum of column {c} is off by {off:e}, allowed are {allowed:e}. WGKV_SEED={seed}");
        }
        plain_is_refused |= (f64::from(plain[c]) - exact[c]).abs() > allowed;
    }
    // Sums of a few rows, and of halves, are exact in f32 as well.
    let many = element == Element::F32 && calls.iter().sum::<u32>() > 60;
    assert!(plain_is_refused || !many, "{why}: the tolerance would pass sums of f32");
    // What is lost must be small beside the number, or later additions would lose more.
    for [high, low] in got {
        assert!(low.abs() <= high.abs() * f32::EPSILON, "{why}: {high} and {low} overlap. WGKV_SEED={seed}");
    }
}

#[test]
fn measure_agrees_with_its_reference_and_with_f64() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for (width, calls, why) in CASES {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            println!("{why}, {element:?}");
            added_up(&gpu, width, calls, element, &mut random, seed, why);
        }
    }
}

#[test]
fn a_small_number_after_large_ones_that_cancel_is_not_lost() {
    let gpu = gpu();
    // The rows of one block, one after another: f32 keeps none of the small numbers, and a compiler
    // that rearranged sums would keep none either.
    let column: Vec<f32> = (0..30).flat_map(|i| [1e8 + i as f32 * 8.0, 1.0 / 1024.0, -1e8 - i as f32 * 8.0]).collect();
    let column = &column[..BLOCK as usize - 2];
    let numbers: Vec<f32> = column.iter().flat_map(|x| [*x; 64]).collect();
    let sums = Sums::new(&gpu, 64);
    sums.add(&gpu, &batch(numbers, Element::F32), Element::F32);
    let exact: f64 = column.iter().map(|x| f64::from(*x)).sum();
    assert_eq!(exact, 10.0 / 1024.0);
    assert_eq!(column.iter().sum::<f32>(), 0.0, "f32 alone loses them");
    assert!(columns(&sums.read(&gpu).0, 64).iter().all(|sum| *sum == exact));
}

#[test]
fn rows_that_are_not_finite_are_left_out_whole_and_counted() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for element in [Element::F32, Element::F16, Element::Bf16] {
        for (width, rows) in [(64, 40), (320, 1500)] {
            let mut numbers = keys(&mut random, rows, width);
            let broken: Vec<u32> = [0, 7, rows - 1].into_iter().chain((0..rows / 10).map(|_| random.random_range(0..rows))).collect();
            for (i, row) in broken.iter().enumerate() {
                let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3];
                numbers[(row * width + random.random_range(0..width)) as usize] = bad;
            }
            let all = batch(numbers, element);
            let sums = Sums::new(&gpu, width);
            sums.add(&gpu, &all, element);
            let (got, counts) = sums.read(&gpu);
            let left = |r: u32| broken.contains(&r);
            let out = (0..rows).filter(|r| left(*r)).count() as u32;
            let total = counts.iter().fold([0, 0], |t, c| [t[0] + c[0], t[1] + c[1]]);
            assert_eq!(total, [rows - out, out], "WGKV_SEED={seed}");
            for (c, sum) in columns(&got, width).iter().enumerate() {
                let column = (0..rows).filter(|r| !left(*r)).map(|r| f64::from(all.numbers[(r * width) as usize + c]));
                let (exact, magnitude) = column.fold((0.0, 0.0), |(s, m), x| (s + x, m + x.abs()));
                assert!((sum - exact).abs() <= SUM_ERROR * magnitude, "column {c} is {sum}, wanted {exact}. WGKV_SEED={seed}");
            }
        }
    }
}

#[test]
fn what_cannot_be_bound_is_refused() {
    let gpu = gpu();
    let buffer = upload(&gpu, &[0.0; 2 * 32 * 64]);
    let record = |keys: Rows<'_>, rows, width, sums: &wgpu::Buffer, counts: &wgpu::Buffer| {
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        measure::record(&gpu, &mut encoder, keys, false, rows, [1, width], sums, counts)
    };
    let (keys, short) = (Rows::f32(&buffer), upload(&gpu, &[0.0; 8]));
    assert_eq!(record(keys, 0, 64, &short, &short), Ok(()), "nothing to add");
    assert!(matches!(record(keys, 1, 63, &buffer, &buffer), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "width"));
    assert!(matches!(record(keys, 1, 0, &buffer, &buffer), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "width"));
    assert!(matches!(record(keys, 65, 64, &buffer, &buffer), Err(Error::Rows { name: "keys", need: 16_640, have: 16_384 })));
    assert!(matches!(record(keys, 1, 64, &short, &buffer), Err(Error::Rows { name: "sums", .. })));
    assert!(matches!(record(keys, 1, 64, &buffer, &short), Err(Error::Rows { name: "counts", .. })));
    assert!(matches!(record(keys.at(2), 1, 64, &buffer, &buffer), Err(Error::Offset { name: "keys", .. })));
    assert!(matches!(record(keys, u32::MAX, 65_536, &buffer, &buffer), Err(Error::Limit { reason: "one batch of keys", .. })));
}

#[test]
fn rows_of_any_layout_have_the_sums_of_dense_rows() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for element in [Element::F32, Element::F16, Element::Bf16] {
        for [sequences, tokens, heads, d] in [[3, 7, 2, 64], [1, 90, 3, 80], [40, 1, 1, 96], [33, 2, 4, 64]] {
            let rows = sequences * tokens;
            let dense = batch(keys(&mut random, rows, heads * d), element);
            let sums = Sums::new(&gpu, heads * d);
            sums.add(&gpu, &dense, element);
            let (want, _) = sums.read(&gpu);
            // Heads first, at strides and from an offset that are all odd.
            let (base, token_stride) = (2 * random.random_range(0..50) + 1, d + 1);
            let head_stride = tokens * token_stride + 2 * random.random_range(0..9) + u32::from(tokens % 2 == 0);
            let sequence_stride = heads * head_stride + 3;
            let place = |r: u32, h: u32| base + r / tokens * sequence_stride + r % tokens * token_stride + h * head_stride;
            let bytes = element.bytes() as usize;
            let mut laid = POISON.to_le_bytes().repeat(((base + sequences * sequence_stride) as usize * bytes).div_ceil(4));
            for (n, (r, h)) in (0..rows).flat_map(|r| (0..heads).map(move |h| (r, h))).enumerate() {
                let length = d as usize * bytes;
                let row: &[u8] = &bytemuck::cast_slice(&dense.words)[n * length..][..length];
                laid[place(r, h) as usize * bytes..][..length].copy_from_slice(row);
            }
            let laid: Vec<u32> = bytemuck::pod_collect_to_vec(&laid);
            let buffer = upload(&gpu, floats(&laid));
            let layout = wgkv::RowLayout::Batched { tokens, sequence_stride, token_stride, head_stride };
            let strided = Rows { layout, ..Rows::new(&buffer, element) }.at(u64::from(base) * element.bytes());
            let sums = Sums::new(&gpu, heads * d);
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            measure::record(&gpu, &mut encoder, strided, false, rows, [heads, d], &sums.sums, &sums.counts).unwrap();
            gpu.queue().submit([encoder.finish()]);
            let (got, counts) = sums.read(&gpu);
            assert!(got == want, "{element:?}, {layout:?}. WGKV_SEED={seed}");
            assert_eq!(counts.iter().map(|c| c[0]).sum::<u32>(), rows);
            let params =
                MeasureParams { rows, width: heads * d, head_dim: d, base, tokens, sequence_stride, token_stride, head_stride, ..MeasureParams::default() };
            let constants = Constants { element, ..Constants::default() };
            let (mut twin, mut counts) = (vec![[0.0; 2]; got.len()], vec![[0; 2]; LINES as usize]);
            reference::measure(&params, &constants, measure::workgroups(rows), &laid, &[], &mut twin, &mut counts);
            let wanted = columns(&want, heads * d);
            for (c, (sum, twin)) in columns(&twin, heads * d).iter().zip(&wanted).enumerate() {
                let magnitude: f64 = dense.numbers.iter().skip(c).step_by((heads * d) as usize).map(|x| f64::from(x.abs())).sum();
                assert!((sum - twin).abs() <= SUM_ERROR * magnitude, "column {c}: {sum} and {twin}. WGKV_SEED={seed}");
            }
        }
    }
}

#[test]
fn rows_that_come_turned_are_turned_back() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let ropes = |d: u32| [Rope::new(10_000.0, d), Rope::new(500_000.0, d / 2).interleaved(), Rope::llama3(5e5, d, 8.0, 1.0, 4.0, 8192)];
    for (element, [sequences, tokens, heads, d]) in [(Element::F32, [1, 300, 2, 64]), (Element::F16, [3, 77, 1, 80]), (Element::Bf16, [2, 40, 3, 128])] {
        for rope in ropes(d) {
            let (rows, width, first) = (sequences * tokens, heads * d, random.random_range(0..4000));
            let plain = keys(&mut random, rows, width);
            let position = |r: usize| first + r as u32 % tokens;
            let turned: Vec<f32> = plain
                .chunks_exact(d as usize)
                .enumerate()
                .flat_map(|(n, head)| {
                    let head: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
                    reference::turn_exact(&rope, &head, position(n / heads as usize))
                })
                .map(|x| x as f32)
                .collect();
            let given = batch(turned, element);
            let buffer = upload(&gpu, floats(&given.words));
            let sums = Sums::new(&gpu, width);
            let table = measure::turns(&rope, first + tokens);
            let turns = upload(&gpu, bytemuck::cast_slice(&table));
            let layout = wgkv::RowLayout::Batched { tokens, sequence_stride: tokens * width, token_stride: width, head_stride: d };
            let rows_at = if sequences == 1 { Rows::new(&buffer, element) } else { Rows { layout, ..Rows::new(&buffer, element) } };
            let record = |position: u32| {
                let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                let turned = measure::Turned { rope: &rope, turns: &turns, position };
                measure::record_turned(&gpu, &mut encoder, rows_at, Some(turned), false, rows, [heads, d], &sums.sums, &sums.counts)?;
                gpu.queue().submit([encoder.finish()]);
                Ok(())
            };
            // The table ends with a page.
            let end = (first + tokens).next_multiple_of(128);
            let beyond = record(end - tokens + 1);
            let had = (end + 1).to_string();
            assert!(matches!(&beyond, Err(Error::Mismatch { name, had: found, .. }) if name.contains("turned rows") && *found == had), "{beyond:?}");
            record(first).unwrap();
            let (got, counts) = sums.read(&gpu);
            assert_eq!(counts.iter().map(|c| c[0]).sum::<u32>(), rows);
            let rope_kind = if rope.layout() == wgkv::RopeLayout::Interleaved { 2 } else { 1 };
            let constants =
                Constants { element, head_dim: d, turned: true, rope: rope_kind, rope_pairs: rope.frequencies().len() as u32, ..Constants::default() };
            let params = MeasureParams { rows, width, head_dim: d, sequence: tokens, position: first, ..MeasureParams::default() };
            let (mut twin, mut counts) = (vec![[0.0; 2]; got.len()], vec![[0; 2]; LINES as usize]);
            reference::measure(&params, &constants, measure::workgroups(rows), &given.words, &table, &mut twin, &mut counts);
            let (got, twin) = (columns(&got, width), columns(&twin, width));
            for c in 0..width as usize {
                // In f64 of the rows as they were given.
                let head = c / d as usize * d as usize;
                let back = |r: usize| {
                    let row: Vec<f64> = given.numbers[r * width as usize + head..][..d as usize].iter().map(|x| f64::from(*x)).collect();
                    turned_back(&rope, &row, position(r))[c - head]
                };
                let want: f64 = (0..rows as usize).map(back).sum();
                let magnitude: f64 = (0..rows as usize).map(|r| f64::from(norm(&given.numbers[r * width as usize + head..][..d as usize]))).sum();
                for (name, sum) in [("the kernel's", got[c]), ("the twin's", twin[c])] {
                    let allowed = TURN_ERROR * magnitude;
                    assert!((sum - want).abs() <= allowed, "{element:?}, {rope:?}: {name} sum of column {c} is {sum}, wanted {want}. WGKV_SEED={seed}");
                }
            }
        }
    }
}

/// Of a row's length: a turn is composed of two of the table's, each rounded to 2^-24, by two
/// products, and turns by two more: seven roundings of 2^-24 at most, the sums' own beside it.
const TURN_ERROR: f64 = 8.0 / 16_777_216.0;

/// A row turned back from its position, in f64.
fn turned_back(rope: &Rope, row: &[f64], position: u32) -> Vec<f64> {
    let back = rope.clone().with_frequencies(rope.frequencies().iter().map(|f| -f).collect());
    reference::turn_exact(&back, row, position)
}
