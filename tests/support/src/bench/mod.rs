//! Caches that benches fill, and what they decode against f64; and time.

mod time;

pub use crate::{download, encoder, gpu, submit, upload, wait};
pub use time::*;

use wgkv::bits::BitPlan;
use wgkv::learned::Reach;
use wgkv::{Cache, Capacity, ChannelOrder, Chunk, Codec, Format, Gpu, Means, Plan, Precision, Protection, Rope, Rows, Sequence, Shape};

/// Relative error of attend against f32 attention over the dequantized rows: int8 queries and u8
/// weights, at short and long contexts of the bench's uniform numbers. A wrong plane or scale gives
/// errors near 1.
const ATTEND_ERROR: f64 = 0.05;

/// One shape to measure.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What the bench calls it.
    pub name: &'static str,
    /// Query heads.
    pub query_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Sequences that decode together.
    pub sequences: u32,
    /// Tokens of each.
    pub tokens: u32,
}

/// Returns the value of `--name value` on the command line.
pub fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args();
    arguments.find(|a| a == name)?;
    arguments.next()
}

/// Returns whether `--name` is on the command line.
pub fn flag(name: &str) -> bool {
    std::env::args().any(|a| a == name)
}

/// Returns uniform numbers in [-1, 1) from a fixed seed: the time of no kernel depends on them.
pub fn numbers(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Returns the plan of a case, with as many layers as make the packed bytes `rotate_bytes` or more.
pub fn plan(gpu: &Gpu, case: Case, format: Format, protection: Protection, rotate_bytes: u64) -> wgkv::Result<Plan> {
    plan_mixed(gpu, case, format, &[[format.key(), format.value()]], protection, rotate_bytes)
}

/// Returns the same with precisions that the KV heads take in turn.
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

/// Returns a cache filled with all but one token of each sequence, in every layer.
pub fn filled(gpu: &Gpu, plan: Plan, case: Case) -> (Cache, Vec<Sequence>) {
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    let mut cache = Cache::new(gpu, plan).unwrap();
    let layers = cache.plan().shape().layers;
    let row = (case.kv_heads * case.head_dim) as usize;
    let most = 4096.min(case.tokens);
    let keys = upload(gpu, &numbers(most as usize * row));
    let values = upload(gpu, &numbers(most as usize * row + 17)[17..]);
    let sequences: Vec<Sequence> = (0..case.sequences).map(|_| cache.begin().unwrap()).collect();
    for sequence in &sequences {
        let mut left = case.tokens - 1;
        while left > 0 {
            let tokens = left.min(most);
            let step = cache.step(&[Chunk { sequence: *sequence, tokens }]).unwrap();
            let mut commands = encoder(gpu);
            for layer in 0..layers {
                cache.append(&mut commands, &step, layer, Rows::f32(&keys), Rows::f32(&values)).unwrap();
            }
            submit(gpu, commands);
            left -= tokens;
        }
    }
    wait(gpu);
    (cache, sequences)
}

/// Returns the relative error of decoding one sequence's last token, against f64 attention over the
/// cache's own rows.
///
/// # Panics
/// If it is more than `ATTEND_ERROR`, or a number is not finite.
pub fn check(gpu: &Gpu, cache: &Cache, case: Case, sequence: Sequence, queries: &[f32], output: &[f32]) -> f64 {
    let (d, kv) = (case.head_dim as usize, case.kv_heads as usize);
    let share = (case.query_heads / case.kv_heads) as usize;
    let tokens = cache.tokens(sequence).unwrap() as usize;
    let make = |n: usize| upload(gpu, &vec![f32::NAN; n]);
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
        let mut commands = encoder(gpu);
        cache.dequantize(&mut commands, sequence, 0, first as u32..(first + n) as u32, Rows::f32(&keys), Rows::f32(&values)).unwrap();
        submit(gpu, commands);
        let (k, v) = (download(gpu, &keys, n * kv * d), download(gpu, &values, n * kv * d));
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
