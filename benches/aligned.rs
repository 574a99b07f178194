//! One decode step of one layer from planes, AlignedKV (2409.16546): reading the planes that a
//! criterion chooses, against the same kernels reading everything, and against a plain cache of the
//! same numbers: f16, or the same codes without planes.
//!
//! ```text
//! cargo bench --bench aligned -- [--numbers f16,k8v8,k4v4] [--shapes 64x8192,8x32768] [--heads 32/8/128,32/32/128]
//!     [--align published,phi-k:64+phi-v:256] [--spread 1] [--kernels]
//! ```
//! Codes are of `Codec::Hadamard` in groups of 128. The three are timed in turn, again and again,
//! and the medians compared. Buffers rotate over 200 MB or more, so that no cache holds them.
//! Channels of keys and queries differ in size by `2^(spread * normal)`, and so do scores, as those
//! of models do: what can stay unread depends on nothing else. Every result is compared with
//! reading everything before it is timed. `bytes` are of keys and values read; `gain` is the share
//! of time saved over the share of bytes saved.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]
#![allow(missing_docs, reason = "a bench has no readers")]

use std::time::Instant;
use wgkv::aligned::{Alignment, AlignmentReport};
use wgkv::{Bits, Cache, Chunk, Codec, Format, Gpu, Plan, Protection, Rows, Sequence, Step};
use wgkv_testing::bench::*;

/// Relative error of an output against reading everything: what budgets of hundreds of halves' last
/// places leave.
const ALIGN_ERROR: f64 = 0.05;

/// The same of codes, of which budgets allow as much as rounding to them did, or a part of it.
const CODE_ALIGN_ERROR: f64 = 0.5;

/// Relative error of reading everything against the plain cache: f32's; and of codes what rounds
/// weights to 8 bits there.
const PLAIN_ERROR: [f64; 2] = [1e-3, 0.03];

/// What is stored in planes, how it is stored without, and the criteria to measure unless the
/// command line names others.
struct Numbers {
    name: &'static str,
    planes: Format,
    plain: Format,
    align: &'static str,
}

fn all_numbers() -> [Numbers; 3] {
    let code = |bits| Format::new(Codec::Hadamard, bits, bits, 128);
    let coded = |name, bits, align| Numbers { name, planes: code(bits), plain: code(bits), align };
    [
        Numbers {
            name: "f16",
            planes: Format::aligned_f16(),
            plain: Format::f16(),
            align: "published,phi-k:16+phi-v:64,phi-k:64+phi-v:256,phi-k:1e9+phi-v:1e9",
        },
        coded("k8v8", Bits::Eight, "phi-k:1+phi-v:4"),
        coded("k4v4", Bits::Four, "phi-k:0.25+phi-v:1"),
    ]
}

/// Returns numbers whose channels differ in size.
fn spread(n: usize, head_dim: usize, strength: f32) -> Vec<f32> {
    let sizes: Vec<f32> = numbers(4 * head_dim).chunks(4).map(|four| (strength * four.iter().sum::<f32>() * 0.87).exp2()).collect();
    numbers(n).into_iter().enumerate().map(|(i, x)| 1.7 * x * sizes[i % head_dim % (head_dim / 2)]).collect()
}

/// A cache filled with all but one token of each sequence, and the inputs of its next step.
struct Filled {
    cache: Cache,
    sequences: Vec<Sequence>,
    queries: wgpu::Buffer,
    output: wgpu::Buffer,
    elements: usize,
}

impl Filled {
    fn new(gpu: &Gpu, plan: Plan, case: Case, strength: f32) -> Self {
        pollster::block_on(gpu.prepare(&plan)).unwrap();
        let mut cache = Cache::new(gpu, plan).unwrap();
        let (d, row) = (case.head_dim as usize, (case.kv_heads * case.head_dim) as usize);
        let most = 4096.min(case.tokens);
        let keys = upload(gpu, &spread(most as usize * row, d, strength));
        let values = upload(gpu, &numbers(most as usize * row + 17)[17..]);
        let sequences: Vec<Sequence> = (0..case.sequences).map(|_| cache.begin().unwrap()).collect();
        for sequence in &sequences {
            let mut left = case.tokens;
            while left > 0 {
                let tokens = left.min(most);
                let step = cache.step(&[Chunk { sequence: *sequence, tokens }]).unwrap();
                let mut encoder = encoder(gpu);
                for layer in 0..cache.plan().shape().layers {
                    cache.append(&mut encoder, &step, layer, Rows::f32(&keys), Rows::f32(&values)).unwrap();
                }
                submit(gpu, encoder);
                left -= tokens;
            }
        }
        wait(gpu);
        let elements = (case.sequences * case.query_heads * case.head_dim) as usize;
        // Sized so that scores have a standard deviation of about the spread, in nats.
        let queries = upload(gpu, &spread(elements, d, strength).iter().map(|x| x * 0.5).collect::<Vec<f32>>());
        Self { cache, sequences, queries, output: upload(gpu, &vec![f32::NAN; elements]), elements }
    }

    /// Takes a step that appends and attends once, in every layer, and returns its output in the
    /// first.
    fn step(&mut self, gpu: &Gpu, case: Case, align: Alignment) -> (Step, Vec<f32>, AlignmentReport) {
        self.cache.align(align).unwrap();
        // The same token again and again: the last step's is taken back first.
        let mut encoder = encoder(gpu);
        for sequence in &self.sequences {
            self.cache.truncate(&mut encoder, *sequence, case.tokens).unwrap();
        }
        let chunks: Vec<Chunk> = self.sequences.iter().map(|s| Chunk { sequence: *s, tokens: 1 }).collect();
        let step = self.cache.step(&chunks).unwrap();
        let keys = upload(gpu, &numbers((case.sequences * case.kv_heads * case.head_dim) as usize));
        for layer in 0..self.cache.plan().shape().layers {
            self.cache.append(&mut encoder, &step, layer, Rows::f32(&keys), Rows::f32(&keys)).unwrap();
        }
        self.cache.attend(&mut encoder, &step, 0, Rows::f32(&self.queries), Rows::f32(&self.output)).unwrap();
        submit(gpu, encoder);
        let report = pollster::block_on(self.cache.traffic(&step, 0)).unwrap();
        (step, download(gpu, &self.output, self.elements), report)
    }

    fn time(&self, gpu: &Gpu, step: &Step, calls: u32) -> f64 {
        let layers = self.cache.plan().shape().layers;
        let mut encoder = encoder(gpu);
        for call in 0..calls {
            self.cache.attend(&mut encoder, step, call % layers, Rows::f32(&self.queries), Rows::f32(&self.output)).unwrap();
        }
        let commands = encoder.finish();
        wait(gpu);
        let start = Instant::now();
        gpu.queue().submit([commands]);
        wait(gpu);
        start.elapsed().as_secs_f64() / f64::from(calls)
    }
}

fn difference(got: &[f32], want: &[f32]) -> f64 {
    let (error, norm) = got.iter().zip(want).fold((0.0, 0.0), |(e, n), (a, b)| (e + f64::from(a - b).powi(2), n + f64::from(*b).powi(2)));
    (error / norm).sqrt()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let gpu = gpu();
    let software = !gpu.capability().straight;
    let gpu = if flag("--workgroup") { gpu.pretend(gpu.capability().without_subgroups()) } else { gpu };
    let gpu = if flag("--kernels") { gpu.profiled(2048).unwrap() } else { gpu };
    // On a software adapter the numbers mean nothing; small shapes show that the bench runs.
    let shapes = argument("--shapes").unwrap_or_else(|| if software { "2x512" } else { "64x8192,8x32768" }.into());
    let aligns = argument("--align");
    let heads = argument("--heads").unwrap_or_else(|| "32/8/128,32/32/128".into());
    let names = argument("--numbers").unwrap_or_else(|| "f16,k8v8,k4v4".into());
    let numbers = all_numbers();
    let strength: f32 = argument("--spread").map_or(1.0, |s| s.parse().unwrap());
    let rotate = if software { 1 << 20 } else { 200 << 20 };
    let bandwidth = read_bandwidth(&gpu, if software { 64 << 20 } else { 1 << 30 });
    println!("{}: reads {:.0} GB/s", gpu.adapter_name(), bandwidth * 1e-9);
    println!(
        "{:>10} {:>10} {:>8} {:>26} {:>8} {:>8} {:>9} {:>9} {:>9} {:>7} {:>6} {:>6} {:>6} {:>8}",
        "heads", "shape", "numbers", "align", "K bits", "V bits", "plain us", "all us", "us", "GB/s", "bytes", "times", "gain", "error"
    );
    let [heads, shapes, names] = [&heads, &shapes, &names].map(|list| list.split(',').collect::<Vec<_>>());
    let (shapes, names) = (&shapes, &names);
    let rows = heads.iter().flat_map(|heads| shapes.iter().flat_map(move |shape| names.iter().map(move |name| (*heads, *shape, *name))));
    for (heads, shape, name) in rows {
        let Numbers { planes, plain, align, .. } = numbers.iter().find(|numbers| numbers.name == name).unwrap();
        let coded = planes.codec() != Codec::AlignedF16;
        let aligns = aligns.as_deref().unwrap_or(align);
        let of_heads: Vec<u32> = heads.split('/').map(|h| h.parse().unwrap()).collect();
        let (sequences, tokens) = shape.split_once('x').unwrap();
        let case = Case {
            name: "",
            query_heads: of_heads[0],
            kv_heads: of_heads[1],
            head_dim: of_heads[2],
            sequences: sequences.parse().unwrap(),
            // Leaves room for the token that every step appends.
            tokens: tokens.parse::<u32>().unwrap() - 1,
        };
        let planned = |format| plan(&gpu, Case { tokens: case.tokens + 1, ..case }, format, Protection::NONE, rotate);
        // Codes are stored in planes for any budget; which one is set before every step.
        let stored = if coded { Alignment::budget(0.0, 0.0) } else { Alignment::EVERYTHING };
        let plans = planned(*planes).and_then(|plan| Ok((plan.to_builder().alignment(stored).build(gpu.capability())?, planned(*plain)?)));
        let (aligned, plain) = match plans {
            Ok(plans) => plans,
            Err(error) => {
                println!("{heads:>10} {shape:>10} {name:>8} does not fit: {error}");
                continue;
            }
        };
        let mut plain = Filled::new(&gpu, plain, case, strength);
        let mut aligned = Filled::new(&gpu, aligned, case, strength);
        let (plain_step, plain_output, _) = plain.step(&gpu, case, Alignment::EVERYTHING);
        let (_, all_output, _) = aligned.step(&gpu, case, Alignment::EVERYTHING);
        let off = difference(&all_output, &plain_output);
        assert!(off < PLAIN_ERROR[usize::from(coded)], "reading everything differs from the plain cache by {off}");
        for text in aligns.split(',') {
            let align: Alignment = text.replace('+', ",").parse().unwrap();
            let (step, output, report) = aligned.step(&gpu, case, align);
            let error = difference(&output, &all_output);
            assert!(output.iter().all(|x| x.is_finite()), "outputs must be finite");
            // Without a bound on the error there is none to assert: as little is read as possible.
            assert!(error < if coded { CODE_ALIGN_ERROR } else { ALIGN_ERROR } || text.contains("1e9"), "{align}: relative error {error}");
            let layers = aligned.cache.plan().shape().layers;
            let calls = ((0.02 / aligned.time(&gpu, &step, layers)) as u32).clamp(4, 200).next_multiple_of(layers.min(64));
            // A step becomes stale when the next is made, so each is made anew before it is timed.
            let (mut plain_times, mut all_times, mut times) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..if software { 1 } else { 9 } {
                plain_times.push(plain.time(&gpu, &plain_step, calls));
                let (step, ..) = aligned.step(&gpu, case, Alignment::EVERYTHING);
                all_times.push(aligned.time(&gpu, &step, calls));
                let (step, ..) = aligned.step(&gpu, case, align);
                times.push(aligned.time(&gpu, &step, calls));
            }
            let [plain_time, all, time] = [plain_times, all_times, times].map(median);
            let traffic = report.traffic;
            println!(
                "{heads:>10} {shape:>10} {name:>8} {:>26} {:>8.2} {:>8.2} {:>9.1} {:>9.1} {:>9.1} {:>7.0} {:>6.3} {:>6.3} {:>6.2} {error:>8.5}",
                align.to_string(),
                traffic.key_bits(),
                traffic.value_bits(),
                plain_time * 1e6,
                all * 1e6,
                time * 1e6,
                (traffic.read() + traffic.metadata + traffic.scores) as f64 / time * 1e-9,
                traffic.read() as f64 / traffic.full as f64,
                time / all,
                (1.0 - time / all) / traffic.saved().max(1e-9)
            );
            if let Some(profile) = gpu.profile() {
                let (step, ..) = aligned.step(&gpu, case, align);
                pollster::block_on(profile.take(&gpu)).unwrap();
                aligned.time(&gpu, &step, 32);
                let mut kernels: Vec<(String, f64)> = Vec::new();
                let mut plans = 0;
                for (label, time) in pollster::block_on(profile.take(&gpu)).unwrap() {
                    // align_plan runs for keys, then for values.
                    let label = if label == "align_plan" { format!("align_plan, {}", ["keys", "values"][plans % 2]) } else { label.to_owned() };
                    plans += usize::from(label.starts_with("align_plan"));
                    match kernels.iter_mut().find(|(l, _)| *l == label) {
                        Some((_, sum)) => *sum += time / 32.0,
                        None => kernels.push((label, time / 32.0)),
                    }
                }
                for (kernel, time) in kernels {
                    // align_scores reads the keys, align_values the values.
                    println!("{kernel:>50} {:>10.1} us", time * 1e6);
                }
            }
        }
    }
}
