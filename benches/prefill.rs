//! Time of attention of chunks of several tokens: all that `Cache::attend` records, among it `unpack`
//! and `attend_prefill` or `attend_matrices`.
//! TFLOP/s count four operations a channel for every pair of a query head's row and a token that it
//! sees. The result of six rows is compared with f64 attention over the dequantized tokens first.
//!
//! ```sh
//! cargo bench --bench prefill                 # all formats at one shape, then all shapes at one format
//! cargo bench --bench prefill -- --portable   # without cooperative matrices
//! ```
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::time::{Duration, Instant};
use wgkv::{Bits, Cache, Capability, Chunk, Code, Codec, Format, Gpu, Plan, Protection, Rows, Sequence, Sinks};
use wgkv_testing::bench::*;

/// Relative error of a row against f64: halves of queries, keys, values and weights.
const ROW_ERROR: f64 = 5e-3;

/// A GPU that idled takes this long, at work, to come back to its clock.
const WARM: Duration = Duration::from_millis(900);

/// New tokens of each sequence, the last of `case.tokens`.
#[derive(Clone, Copy)]
struct Chunks {
    case: Case,
    new: u32,
}

fn case(name: &'static str, heads: [u32; 2], head_dim: u32, sequences: u32, new: u32, tokens: u32) -> Chunks {
    Chunks { case: Case { name, query_heads: heads[0], kv_heads: heads[1], head_dim, sequences, tokens }, new }
}

/// Fills a cache with all tokens but the last `new` of each sequence, and one layer.
fn fill(gpu: &Gpu, plan: Plan, Chunks { case, new }: Chunks) -> (Cache, Vec<Sequence>) {
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    let mut cache = Cache::new(gpu, plan).unwrap();
    let row = (case.kv_heads * case.head_dim) as usize;
    let old = case.tokens - new;
    let most = 4096.min(case.tokens);
    let [keys, values] = [0, 17].map(|skip| upload(gpu, &numbers(most as usize * row + skip)[skip..]));
    let sequences: Vec<Sequence> = (0..case.sequences).map(|_| cache.begin().unwrap()).collect();
    for sequence in &sequences {
        for first in (0..old).step_by(most as usize) {
            let step = cache.step(&[Chunk { sequence: *sequence, tokens: most.min(old - first) }]).unwrap();
            let mut commands = encoder(gpu);
            let residual = upload(gpu, &numbers(if cache.plan().elects() { most as usize * 64 } else { 4 }));
            cache.elect(&mut commands, &step, 0, Rows::f32(&residual), 64).unwrap();
            cache.append(&mut commands, &step, 0, Rows::f32(&keys), Rows::f32(&values)).unwrap();
            submit(gpu, commands);
        }
    }
    wait(gpu);
    (cache, sequences)
}

/// Returns the largest relative error of six rows of the first and the last sequence.
fn error(gpu: &Gpu, cache: &Cache, Chunks { case, new }: Chunks, sequences: &[Sequence], queries: &[f32], output: &[f32]) -> f64 {
    let (d, kv_heads, share) = (case.head_dim as usize, case.kv_heads as usize, (case.query_heads / case.kv_heads) as usize);
    let tokens = case.tokens as usize;
    let mut worst = 0.0_f64;
    for s in [0, sequences.len() - 1] {
        let [keys, values] = [0, 1].map(|_| upload(gpu, &vec![f32::NAN; tokens * kv_heads * d]));
        let mut commands = encoder(gpu);
        cache.dequantize(&mut commands, sequences[s], 0, 0..case.tokens, Rows::f32(&keys), Rows::f32(&values)).unwrap();
        submit(gpu, commands);
        let [keys, values] = [keys, values].map(|rows| download(gpu, &rows, tokens * kv_heads * d));
        for (token, query_head) in [(0, 0), (new as usize / 2, share), (new as usize - 1, case.query_heads as usize - 1)] {
            let (position, head) = (tokens - new as usize + token, query_head / share % kv_heads);
            let at = ((s * new as usize + token) * case.query_heads as usize + query_head % case.query_heads as usize) * d;
            let mut query: Vec<f64> = queries[at..at + d].iter().map(|x| f64::from(*x)).collect();
            for (p, f) in cache.plan().shape().rope.frequencies().iter().enumerate() {
                let (sin, cos) = (position as f64 * f).sin_cos();
                let (a, b) = (query[p], query[p + d / 2]);
                (query[p], query[p + d / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
            let row = |rows: &'_ [f32], t: usize| -> Vec<f64> { rows[(t * kv_heads + head) * d..][..d].iter().map(|x| f64::from(*x)).collect() };
            let scores: Vec<f64> = (0..=position).map(|t| query.iter().zip(row(&keys, t)).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()).collect();
            let peak = scores.iter().copied().fold(f64::MIN, f64::max);
            let (mut want, mut sum) = (vec![0.0; d], 0.0);
            for (t, score) in scores.iter().enumerate() {
                let weight = (score - peak).exp();
                sum += weight;
                want.iter_mut().zip(row(&values, t)).for_each(|(x, value)| *x += weight * value);
            }
            want.iter_mut().for_each(|x| *x /= sum);
            let length = want.iter().map(|x| x * x).sum::<f64>().sqrt();
            let off = want.iter().zip(&output[at..at + d]).map(|(a, b)| (a - f64::from(*b)).powi(2)).sum::<f64>().sqrt();
            worst = worst.max(if off.is_finite() { off / length } else { f64::INFINITY });
        }
    }
    worst
}

/// Returns the seconds of each kernel in one recording, all its dispatches: the median of several, at
/// work since a while.
fn totals(gpu: &Gpu, times: usize, record: impl Fn(&mut wgpu::CommandEncoder)) -> Vec<(&'static str, f64)> {
    let timer = gpu.profile().unwrap();
    let start = Instant::now();
    let mut all: Vec<(&'static str, Vec<f64>)> = Vec::new();
    let mut counted = 0;
    while counted < times {
        let mut commands = encoder(gpu);
        record(&mut commands);
        submit(gpu, commands);
        let stamps = pollster::block_on(timer.take(gpu)).unwrap();
        if start.elapsed() < WARM && gpu.capability().straight {
            continue;
        }
        counted += 1;
        for (label, seconds) in stamps {
            match all.iter_mut().find(|(l, _)| *l == label) {
                Some((_, list)) if list.len() == counted => *list.last_mut().unwrap() += seconds,
                Some((_, list)) => list.push(seconds),
                None => all.push((label, vec![seconds])),
            }
        }
    }
    let median = |mut list: Vec<f64>| {
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    };
    all.into_iter().map(|(label, list)| (label, median(list))).collect()
}

fn measure(gpu: &Gpu, chunks: Chunks, format: Format, protection: Protection) {
    let Chunks { case, new } = chunks;
    let plan = plan(gpu, case, format, protection, 0).unwrap();
    let plan = plan.to_builder().query_rows(argument("--rows").map_or(2048, |rows| rows.parse().unwrap())).build(gpu.capability()).unwrap();
    let matrices = if plan.matrices() { "matrices" } else { "portable" };
    let (mut cache, sequences) = fill(gpu, plan, chunks);
    let rows = (case.sequences * new) as usize;
    let query_numbers: Vec<f32> = numbers(rows * (case.query_heads * case.head_dim) as usize).iter().map(|x| 2.0 * x).collect();
    let queries = upload(gpu, &query_numbers);
    let output = upload(gpu, &vec![f32::NAN; query_numbers.len()]);
    let numbers = upload(gpu, &numbers(rows * (case.kv_heads * case.head_dim) as usize));
    let residual = upload(gpu, &vec![1.0; if cache.plan().elects() { rows * 64 } else { 4 }]);
    let step = cache.step(&sequences.iter().map(|sequence| Chunk { sequence: *sequence, tokens: new }).collect::<Vec<_>>()).unwrap();
    let mut commands = encoder(gpu);
    cache.elect(&mut commands, &step, 0, Rows::f32(&residual), 64).unwrap();
    cache.append(&mut commands, &step, 0, Rows::f32(&numbers), Rows::f32(&numbers)).unwrap();
    let attend = |commands: &mut wgpu::CommandEncoder| cache.attend(commands, &step, 0, Rows::f32(&queries), Rows::f32(&output)).unwrap();
    attend(&mut commands);
    submit(gpu, commands);
    let got = download(gpu, &output, query_numbers.len());
    let error = error(gpu, &cache, chunks, &sequences, &query_numbers, &got);
    assert!(error < ROW_ERROR, "{}: relative error {error} against f64", case.name);
    let times = totals(gpu, if gpu.capability().straight { 9 } else { 1 }, attend);
    let seconds: f64 = times.iter().map(|(_, seconds)| seconds).sum();
    let old = f64::from(case.tokens - new);
    let pairs = f64::from(case.sequences) * (f64::from(new) * old + f64::from(new) * f64::from(new + 1) / 2.0);
    let flops = 4.0 * f64::from(case.query_heads * case.head_dim) * pairs;
    let parts: Vec<String> = times.iter().map(|(kernel, seconds)| format!("{kernel} {:.0}", seconds * 1e6)).collect();
    println!(
        "{matrices} {:>22} {format:>24} {:>9.0} us {:>7.1} TFLOP/s, error {error:.1e}: {}",
        case.name,
        seconds * 1e6,
        flops / seconds * 1e-12,
        parts.join(", ")
    );
}

fn main() {
    let gpu = gpu();
    let software = !gpu.capability().straight;
    let ways: &[bool] = if flag("--portable") || !gpu.capability().matrices { &[false] } else { &[true, false] };
    let window = Protection { sinks: Sinks::First(4), window: 128 };
    use Bits::{Eight, Four, Three, Two};
    let of = |codec, bits, d: u32| Format::new(codec, bits, bits, d.min(128));
    for matrices in ways {
        let gpu = gpu.pretend(Capability { matrices: *matrices && gpu.capability().matrices, ..*gpu.capability() }).profiled(8192).unwrap();
        if software {
            measure(&gpu, case("2x40 new, 300", [4, 1], 64, 2, 40, 300), of(Codec::Centred, Four, 64), window);
            continue;
        }
        let eight = case("8x512 new, 4096", [32, 8], 128, 8, 512, 4096);
        measure(&gpu, eight, of(Codec::Hadamard, Four, 128), Protection::NONE);
        measure(&gpu, eight, of(Codec::Hadamard, Four, 128), window);
        measure(&gpu, eight, Format::f16(), Protection::NONE);
        for bits in [Eight, Three, Two] {
            measure(&gpu, eight, of(Codec::Hadamard, bits, 128), Protection::NONE);
        }
        measure(&gpu, eight, of(Codec::Centred, Four, 128), Protection::NONE);
        measure(&gpu, eight, of(Codec::Centred, Two, 128), Protection::NONE);
        measure(&gpu, eight, of(Codec::Centred, Two, 128).with_codes(Code::Trellis, Code::Trellis), Protection::NONE);
        measure(&gpu, eight, of(Codec::RotateKv, Two, 128), Protection { sinks: Sinks::Massive(20), window: 0 });
        for (codec, protection) in [(Codec::Hadamard, Protection::NONE), (Codec::Centred, window)] {
            measure(&gpu, case("1x2048 new, 32768", [32, 8], 128, 1, 2048, 32768), of(codec, Four, 128), protection);
            measure(&gpu, case("1x8192 from nothing", [32, 8], 128, 1, 8192, 8192), of(codec, Four, 128), protection);
            measure(&gpu, case("1x512 new, 32768", [32, 8], 128, 1, 512, 32768), of(codec, Four, 128), protection);
            measure(&gpu, case("9/3/64: 1x512 new, 2048", [9, 3], 64, 1, 512, 2048), of(codec, Four, 64), protection);
            measure(&gpu, case("9/3/64: 1x2048 new, 6144", [9, 3], 64, 1, 2048, 6144), of(codec, Four, 64), protection);
        }
    }
}
