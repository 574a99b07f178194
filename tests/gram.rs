//! `gram` makes the Gram matrices of rows by head, or of the difference of two buffers of rows: it
//! agrees with its twin up to the rounding of f32 sums and with sums in f64 as closely as its tree
//! of sums can, also where plain sums of f32 could not; whole numbers are exact; matrices are
//! symmetric bit for bit; nothing but them is written; what is not finite is refused.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use rand::rngs::StdRng;
use wgkv::low_level::kernel::gram::{self, BLOCK, CHUNK, GramParams, TILE};
use wgkv::low_level::reference::{self, Constants};
use wgkv::{Capability, Element, Error, Gpu, Rows};
use wgkv_testing::*;

/// Half a unit of the last place, what one rounding of f32 loses at most.
const ROUNDING: f64 = 1.0 / 16_777_216.0;

/// A number of a chunk's matrix passes 21 roundings: of its product, three sums of quads of rows,
/// two of a quad's rows, and 15 of blocks (the first of 16 is added to zero). One more stands for
/// what is of second order.
const SUM_ROUNDINGS: f64 = 22.0;

/// Relative to the sum of the products' magnitudes: a compiler may contract a product and a sum,
/// and then either side may have rounded all the other way.
const TWIN_ERROR: f64 = 2.0 * SUM_ROUNDINGS * ROUNDING;

/// The same against f64, where each of a product's two differences was rounded, too. It is 1.4e-6:
/// far less than the 1e-4 of a matrix's largest number that an order of channels would not notice.
const EXACT_ERROR: f64 = (SUM_ROUNDINGS + 2.0) * ROUNDING;

/// (head_dim, heads, rows, why)
const CASES: [(u32, u32, u32, &str); 15] = [
    (64, 1, 1, "a single row"),
    (64, 3, 31, "one row less than a block"),
    (64, 1, 32, "exactly a block"),
    (64, 2, 33, "one row more than a block"),
    (64, 33, 70, "many heads"),
    (80, 3, 100, "five tiles across, rows that are no multiple of a block"),
    (80, 1, CHUNK + 1, "one row more than a chunk"),
    (96, 2, CHUNK - 1, "one row less than a chunk"),
    (96, 1, CHUNK, "exactly a chunk"),
    (128, 2, 2 * CHUNK, "exactly two chunks"),
    (128, 1, 5 * CHUNK + 77, "several chunks, the last in part"),
    (192, 2, 45, "a head of 192"),
    (256, 2, 45, "a head of 256"),
    (256, 1, CHUNK + BLOCK + 5, "the same and two chunks"),
    (512, 1, 45, "the widest head"),
];

/// What the matrices are of: `[rows, heads, head_dim]` each.
struct Sample {
    head_dim: u32,
    heads: u32,
    rows: Vec<f32>,
    minus: Option<Vec<f32>>,
}

impl Sample {
    /// Rows with a mean and a scale of their own in each channel, so that numbers of a matrix
    /// differ.
    fn new(random: &mut StdRng, head_dim: u32, heads: u32, rows: u32, difference: bool) -> Self {
        let width = heads * head_dim;
        let mut draw = || (0..rows * width).map(|i| (normal(random) + (i % 5) as f32 * 0.3) * (1.0 + (i % width % 11) as f32)).collect();
        Self { head_dim, heads, rows: draw(), minus: difference.then(draw) }
    }

    fn count(&self) -> u32 {
        self.rows.len() as u32 / (self.heads * self.head_dim)
    }

    /// Numbers of a matrix.
    fn size(&self) -> usize {
        (self.head_dim * self.head_dim) as usize
    }

    /// Matrices of all chunks.
    fn numbers(&self) -> usize {
        (gram::chunks(self.count()) * self.heads) as usize * self.size()
    }

    /// Rows with a row of poison (not finite) more than is asked for, and matrices of poison with
    /// one more than is to be written.
    fn made(&self, gpu: &Gpu) -> wgpu::Buffer {
        let poison = vec![f32::from_bits(POISON); (self.heads * self.head_dim) as usize];
        let given = |rows: &Vec<f32>| upload(gpu, &[rows.as_slice(), poison.as_slice()].concat());
        let (rows, minus) = (given(&self.rows), self.minus.as_ref().map(given));
        let grams = poisoned(gpu, self.numbers() + self.size());
        let mut encoder = encoder(gpu);
        let (rows, minus) = (Rows::f32(&rows), minus.as_ref().map(Rows::f32));
        gram::record(gpu, &mut encoder, rows, minus, self.count(), self.heads, self.head_dim, &grams).unwrap();
        gpu.queue().submit([encoder.finish()]);
        grams
    }

    fn sum(&self, gpu: &Gpu, grams: &wgpu::Buffer) -> wgkv::Result<Vec<Vec<f64>>> {
        pollster::block_on(gram::sum(gpu, grams, self.count(), self.heads, self.head_dim))
    }

    fn twin(&self) -> Vec<f32> {
        let params = GramParams { rows: self.count(), heads: self.heads, pad: [0; 2] };
        let constants = Constants { head_dim: self.head_dim, ..Constants::default() };
        let mut grams = vec![f32::from_bits(POISON); self.numbers()];
        reference::gram(&params, &constants, &self.rows, self.minus.as_deref().unwrap_or_default(), &mut grams);
        grams
    }

    /// In f64, by head.
    fn exact(&self) -> Vec<Vec<f64>> {
        let d = self.head_dim as usize;
        let mut sums = vec![vec![0.0; self.size()]; self.heads as usize];
        let mut x: Vec<f64> = self.rows.iter().map(|x| f64::from(*x)).collect();
        for (x, minus) in x.iter_mut().zip(self.minus.iter().flatten()) {
            *x -= f64::from(*minus);
        }
        for (i, row) in x.chunks_exact(d).enumerate() {
            let sum = &mut sums[i % self.heads as usize];
            for (sums, a) in sum.chunks_exact_mut(d).zip(row) {
                sums.iter_mut().zip(row).for_each(|(sum, b)| *sum += a * b);
            }
        }
        sums
    }
}

fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

/// Asserts that a matrix is another up to `error`, relative to the sum of the magnitudes of a
/// number's products. By Cauchy and Schwarz that is at most the root of the two numbers on the
/// diagonal. NaN is refused.
#[track_caller]
fn agree(name: &str, got: &[f64], want: &[f64], error: f64, seed: u64) {
    assert_eq!(got.len(), want.len(), "{name}: lengths");
    let d = want.len().isqrt();
    for (i, j) in (0..d).flat_map(|i| (0..d).map(move |j| (i, j))) {
        let (a, b) = (got[i * d + j], want[i * d + j]);
        let allowed = error * (want[i * d + i] * want[j * d + j]).sqrt();
        let off = (a - b).abs();
        assert!(off <= allowed, "{name}: number ({i}, {j}) is {a:e}, wanted {b:e}; they differ by {off:e}, allowed are {allowed:e}. WGKV_SEED={seed}");
    }
}

fn trace(matrix: &[f64]) -> f64 {
    matrix.iter().step_by(matrix.len().isqrt() + 1).sum()
}

/// The lengths of all rows together: the root of the trace, off by half of what the numbers of the
/// trace are off by at most.
#[track_caller]
fn lengths_agree(name: &str, got: &[f64], want: &[f64], seed: u64) {
    let (a, b) = (trace(got).sqrt(), trace(want).sqrt());
    assert!((a - b).abs() <= EXACT_ERROR / 2.0 * b, "{name}: the rows' length is {a:e}, wanted {b:e}. WGKV_SEED={seed}");
}

fn doubles(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|x| f64::from(*x)).collect()
}

#[test]
fn gram_agrees_with_its_reference_and_with_f64() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for (head_dim, heads, rows, why) in CASES {
        for difference in [false, true] {
            let name = format!("{rows} rows of {heads} x {head_dim}, difference {difference}");
            println!("{name}: {why}");
            let sample = Sample::new(&mut random, head_dim, heads, rows, difference);
            let grams = sample.made(&gpu);
            let got = words(&gpu, &grams);
            let (got, beyond) = got.split_at(sample.numbers());
            assert!(beyond.iter().all(|w| *w == POISON), "{name}: a matrix beyond the last was written");
            let d = head_dim as usize;
            for (n, (got, want)) in got.chunks_exact(d * d).zip(sample.twin().chunks_exact(d * d)).enumerate() {
                let (chunk, head) = (n / heads as usize, n % heads as usize);
                let lower = (0..d).flat_map(|i| (0..i).map(move |j| (i, j)));
                for (i, j) in lower {
                    assert_eq!(got[i * d + j], got[j * d + i], "{name}: chunk {chunk}, head {head} at ({i}, {j}) is not symmetric. WGKV_SEED={seed}");
                }
                agree(&format!("{name}, chunk {chunk}, head {head}"), &doubles(floats(got)), &doubles(want), TWIN_ERROR, seed);
            }
            let sums = sample.sum(&gpu, &grams).unwrap();
            assert_eq!(sums.len(), heads as usize);
            for (head, (got, want)) in sums.iter().zip(&sample.exact()).enumerate() {
                agree(&format!("{name}, head {head} in f64"), got, want, EXACT_ERROR, seed);
                lengths_agree(&format!("{name}, head {head}"), got, want, seed);
            }
        }
    }
}

#[test]
fn whole_numbers_are_exact() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for head_dim in [64, 80, 96, 128, 192, 256, 512] {
        let (heads, rows) = (3, 2 * BLOCK + 7);
        let mut draw = || (0..rows * heads * head_dim).map(|_| random.random_range(-9_i32..10) as f32).collect::<Vec<_>>();
        for minus in [None, Some(draw())] {
            let sample = Sample { head_dim, heads, rows: draw(), minus };
            // All sums are below 2^24, so f32 has them in any order.
            assert!(sample.sum(&gpu, &sample.made(&gpu)).unwrap() == sample.exact(), "heads of {head_dim}. WGKV_SEED={seed}");
        }
    }
}

#[test]
fn large_means_under_small_noise_are_summed_as_in_f64() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let (head_dim, heads, rows) = (64, 2, 3 * CHUNK - 40);
    let width = heads * head_dim;
    let means: Vec<f32> = (0..width).map(|_| 500.0 + 1500.0 * random.random::<f32>()).collect();
    let mut draw = || (0..rows).flat_map(|_| means.clone()).map(|mean| mean + normal(&mut random) / 1024.0).collect::<Vec<f32>>();
    let (rows, minus) = (draw(), draw());

    // One sum after another loses the same again and again, since each product is all but that of
    // the row before.
    let sample = Sample { head_dim, heads, rows: rows.clone(), minus: None };
    let exact = sample.exact();
    let plain = (0..head_dim as usize).map(|c| rows.iter().skip(c).step_by(width as usize).fold(0.0_f32, |sum, x| sum + x * x));
    let refused = |(c, sum): (usize, f32)| (f64::from(sum) / exact[0][c * (head_dim as usize + 1)] - 1.0).abs() > EXACT_ERROR;
    assert!(plain.enumerate().any(refused), "the tolerance would pass plain sums of f32. WGKV_SEED={seed}");
    let got = sample.sum(&gpu, &sample.made(&gpu)).unwrap();
    for head in 0..heads as usize {
        agree(&format!("means, head {head}"), &got[head], &exact[head], EXACT_ERROR, seed);
        lengths_agree(&format!("means, head {head}"), &got[head], &exact[head], seed);
    }

    // The difference leaves only noise, a millionth of the means: it must be taken before anything
    // is summed.
    let sample = Sample { head_dim, heads, rows, minus: Some(minus) };
    let (got, exact) = (sample.sum(&gpu, &sample.made(&gpu)).unwrap(), sample.exact());
    for head in 0..heads as usize {
        agree(&format!("noise, head {head}"), &got[head], &exact[head], EXACT_ERROR, seed);
        lengths_agree(&format!("noise, head {head}"), &got[head], &exact[head], seed);
    }
}

#[test]
fn rows_may_lie_anywhere_in_one_buffer_or_two() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let (head_dim, heads, rows) = (80, 2, 50);
    let sample = Sample::new(&mut random, head_dim, heads, rows, true);
    let (a, b) = (sample.rows.as_slice(), sample.minus.as_deref().unwrap());
    // 256 bytes suit every device. Around the rows lies poison, which is not finite.
    let poison = |numbers: usize| vec![f32::from_bits(POISON); numbers];
    let one = upload(&gpu, &[&poison(64), a, &poison(192), b, &poison(64)].concat());
    let other = upload(&gpu, &[&poison(128), b, &poison(64)].concat());
    let second = 256 + 4 * a.len() as u64 + 4 * 192;
    assert!(second.is_multiple_of(256));
    let at = |buffer, offset| Rows { offset, ..Rows::f32(buffer) };
    let made = |rows, minus| {
        let grams = poisoned(&gpu, sample.numbers());
        let mut encoder = encoder(&gpu);
        gram::record(&gpu, &mut encoder, rows, minus, sample.count(), heads, head_dim, &grams).unwrap();
        gpu.queue().submit([encoder.finish()]);
        words(&gpu, &grams)
    };
    let want = words(&gpu, &sample.made(&gpu))[..sample.numbers()].to_vec();
    assert!(made(at(&one, 256), Some(at(&one, second))) == want, "rows and minus in one buffer. WGKV_SEED={seed}");
    assert!(made(at(&one, 256), Some(at(&other, 512))) == want, "rows and minus in two buffers. WGKV_SEED={seed}");
    assert!(made(at(&one, 256), Some(at(&one, 256))).iter().all(|w| floats(&[*w]) == [0.0]), "rows less themselves. WGKV_SEED={seed}");
    let alone = Sample { minus: None, rows: b.to_vec(), ..sample };
    let want = words(&gpu, &alone.made(&gpu))[..alone.numbers()].to_vec();
    assert!(made(at(&one, second), None) == want, "rows alone. WGKV_SEED={seed}");
}

#[test]
fn no_rows_record_nothing_and_sum_to_zero() {
    let gpu = gpu();
    assert_eq!([0, 1, CHUNK, CHUNK + 1].map(gram::chunks), [0, 1, 1, 2]);
    let (rows, grams) = (upload(&gpu, &[0.0; 64]), poisoned(&gpu, 64 * 64));
    let mut encoder = encoder(&gpu);
    assert_eq!(gram::record(&gpu, &mut encoder, Rows::f32(&rows), None, 0, 3, 64, &grams), Ok(()));
    assert_eq!(gram::record(&gpu, &mut encoder, Rows::f32(&rows), Some(Rows::f32(&rows)), 0, 3, 64, &grams), Ok(()));
    gpu.queue().submit([encoder.finish()]);
    assert!(words(&gpu, &grams).iter().all(|w| *w == POISON), "something was written");
    assert_eq!(pollster::block_on(gram::sum(&gpu, &grams, 0, 3, 64)), Ok(vec![vec![0.0; 64 * 64]; 3]));
}

#[test]
fn what_is_not_finite_is_refused_by_the_sum() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let (head_dim, heads, rows) = (64, 3, CHUNK + 20);
    let whole = Sample::new(&mut random, head_dim, heads, rows, true);
    assert!(whole.sum(&gpu, &whole.made(&gpu)).is_ok());
    // The last is finite, but its square is not.
    for (bad, in_minus) in [(f32::NAN, false), (f32::INFINITY, false), (f32::NEG_INFINITY, true), (f32::NAN, true), (1e20, false)] {
        let mut sample = Sample::new(&mut random, head_dim, heads, rows, true);
        let at = random.random_range(0..sample.rows.len());
        let planted = if in_minus { sample.minus.as_mut().unwrap() } else { &mut sample.rows };
        planted[at] = bad;
        let head = at as u32 / head_dim % heads;
        let refused = sample.sum(&gpu, &sample.made(&gpu));
        let Some((_, had)) = refused.as_ref().err().and_then(|error| error.wanted_of(Thing::Sensitivity, "Gram matrix of the rows or the outputs")) else {
            panic!("{bad} at {at} must be refused, but {:?}. WGKV_SEED={seed}", refused.map(|sums| sums.len()));
        };
        assert!(had.ends_with(&format!("in head {head}")), "{bad} in head {head}: {had}. WGKV_SEED={seed}");
        // Nothing else is spoilt.
        let chunk = at as u32 / (head_dim * heads) / CHUNK;
        let grams = words(&gpu, &sample.made(&gpu));
        for (n, matrix) in floats(&grams[..sample.numbers()]).chunks_exact(sample.size()).enumerate() {
            let spoilt = n as u32 == chunk * heads + head;
            assert_eq!(matrix.iter().any(|x| !x.is_finite()), spoilt, "{bad} at {at}: matrix {n}. WGKV_SEED={seed}");
        }
    }
}

#[test]
fn what_cannot_be_bound_is_refused() {
    let gpu = gpu();
    let encoder = std::cell::RefCell::new(encoder(&gpu));
    let record = |gpu: &Gpu, rows: Rows<'_>, minus: Option<Rows<'_>>, count, heads, head_dim, grams: &wgpu::Buffer| {
        gram::record(gpu, &mut encoder.borrow_mut(), rows, minus, count, heads, head_dim, grams)
    };
    let (buffer, short, grams) = (upload(&gpu, &[0.0; 64 * 64]), upload(&gpu, &[0.0; 64]), poisoned(&gpu, 64 * 64));
    let unusable = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 4 * 64 * 64,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    let rows = Rows::f32(&buffer);
    let shifted = Rows { offset: 4, ..rows };

    for head_dim in [0, 16, 72, 1024] {
        assert!(matches!(record(&gpu, rows, None, 1, 1, head_dim, &grams), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "head_dim"));
    }
    assert!(matches!(record(&gpu, rows, None, 1, 0, 64, &grams), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "heads"));
    assert!(matches!(record(&gpu, Rows::f32(&grams), None, 1, 1, 64, &grams), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "grams"));
    assert!(matches!(record(&gpu, rows, Some(Rows::f32(&grams)), 1, 1, 64, &grams), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "grams"));
    let halves = Rows { element: Element::F16, ..rows };
    assert_eq!(record(&gpu, halves, None, 1, 1, 64, &grams), Err(Error::argument("rows", "f32", "f16")));
    assert_eq!(record(&gpu, rows, Some(halves), 1, 1, 64, &grams), Err(Error::argument("minus", "f32", "f16")));

    assert_eq!(record(&gpu, rows, None, 65, 1, 64, &grams), Err(Error::Rows { name: "rows", need: 65 * 256, have: 64 * 256 }));
    assert_eq!(record(&gpu, rows, Some(Rows::f32(&short)), 2, 1, 64, &grams), Err(Error::Rows { name: "minus", need: 512, have: 256 }));
    assert_eq!(record(&gpu, rows, None, 1, 2, 64, &grams), Err(Error::Rows { name: "grams", need: 2 * 64 * 256, have: 64 * 256 }));
    assert!(matches!(record(&gpu, shifted, None, 1, 1, 64, &grams), Err(Error::Offset { name: "rows", had: 4, .. })));
    assert!(matches!(record(&gpu, rows, Some(shifted), 1, 1, 64, &grams), Err(Error::Offset { name: "minus", had: 4, .. })));
    let without = Rows::f32(&unusable);
    assert_eq!(record(&gpu, without, None, 1, 1, 64, &grams), Err(Error::Usage { name: "rows", need: "STORAGE" }));
    assert_eq!(record(&gpu, rows, Some(without), 1, 1, 64, &grams), Err(Error::Usage { name: "minus", need: "STORAGE" }));
    assert_eq!(record(&gpu, rows, None, 1, 1, 64, &unusable), Err(Error::Usage { name: "grams", need: "STORAGE" }));

    for heads in [65_536, u32::MAX] {
        assert!(matches!(record(&gpu, rows, None, u32::MAX, heads, 256, &grams), Err(Error::Limit { reason: "one batch of rows", .. })));
    }
    let less = |binding_bytes, workgroups| gpu.pretend(Capability { binding_bytes, workgroups, ..*gpu.capability() });
    let (all, most) = (gpu.capability().binding_bytes, gpu.capability().workgroups);
    let need = 64 * 256;
    let limit = Error::Limit { what: "max_storage_buffer_binding_size", reason: "the Gram matrices of one batch", need, have: need - 4 };
    assert_eq!(record(&less(need - 4, most), rows, None, 1, 1, 64, &grams), Err(limit));
    let across = 64 / TILE;
    let tiles = across * (across + 1) / 2;
    for (count, heads, workgroups, reason) in
        [(1, 1, tiles - 1, "tiles of a Gram matrix"), (1, tiles + 1, tiles, "heads of a row"), (CHUNK * tiles + 1, 1, tiles, "chunks of one batch of rows")]
    {
        let (need, have) = ((workgroups + 1).into(), workgroups.into());
        let limit = Error::Limit { what: "max_compute_workgroups_per_dimension", reason, need, have };
        assert_eq!(record(&less(all, workgroups), rows, None, count, heads, 64, &grams), Err(limit));
    }

    gpu.queue().submit([encoder.into_inner().finish()]);
    assert!(words(&gpu, &grams).iter().all(|w| *w == POISON), "a refused call recorded something");

    let sum = |grams, count, heads, head_dim| pollster::block_on(gram::sum(&gpu, grams, count, heads, head_dim));
    assert!(matches!(sum(&grams, 1, 1, 72), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "head_dim"));
    assert!(matches!(sum(&grams, 1, 0, 64), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "heads"));
    assert_eq!(sum(&grams, CHUNK + 1, 1, 64), Err(Error::Rows { name: "grams", need: 2 * 64 * 256, have: 64 * 256 }));
    assert!(matches!(sum(&grams, u32::MAX, u32::MAX, 256), Err(Error::Rows { name: "grams", .. })));
    let kept =
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: 4 * 64 * 64, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false });
    assert_eq!(sum(&kept, 1, 1, 64), Err(Error::Usage { name: "grams", need: "COPY_SRC" }));
}
