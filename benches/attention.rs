//! One decode step of one layer: query rotation, attend_split, attend_merge, from a full cache.
//!
//! ```text
//! cargo bench --bench attention -- [--shapes 64x32768,1x32768] [--formats hadamard:2:2,hadamard:2+4:2+4,f16] [--kernels] [--json FILE]
//! ```
//! Bits such as `2+4` are those that the KV heads have in turn: two ways of storing heads are two dispatches.
//! Gtok/s = sequences x kv_heads x tokens / time. Buffers rotate over 200 MB or more, so that no cache holds them; every
//! result is compared with attention over the dequantized rows before it is timed. `bytes` are those of the pages that one
//! step reads; `share` is of the read bandwidth measured in the same run.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]
#![allow(missing_docs, reason = "a bench has no readers")]

mod support;
use support::*;
use wgkv::{Bits, Cache, Chunk, Codec, Format, Gpu, Plan, Precision, Protection, Rows, Scales, Sequence, Step};

/// Relative error of attend against f32 attention over the dequantized rows: int8 queries and u8 weights, at short and long
/// contexts of the bench's uniform numbers. A wrong plane or scale gives errors near 1.
const ATTEND_ERROR: f64 = 0.05;

/// The format, and the precisions that KV heads take in turn.
fn format(text: &str) -> (Format, Vec<[Precision; 2]>) {
    let mut fields = text.split(':');
    let codec: Codec = fields.next().unwrap().parse().unwrap();
    if codec == Codec::F16 {
        return (Format::f16(), vec![[Precision::F16; 2]]);
    }
    let bits = |field: &str| -> Vec<Bits> { field.split('+').map(|bits| Bits::try_from(bits.parse::<u32>().unwrap()).unwrap()).collect() };
    let (k, v) = (bits(fields.next().unwrap_or("2")), bits(fields.next().unwrap_or("2")));
    let group = fields.next().and_then(|f| f.parse().ok()).unwrap_or(128);
    let turns = 0..k.len().max(v.len());
    let precisions: Vec<[Precision; 2]> = turns.map(|n| [Precision::new(k[n % k.len()], group), Precision::new(v[n % v.len()], group)]).collect();
    let format = Format::new(codec, k[0], v[0], group);
    (if text.ends_with(":f8") { format.with_scales(Scales::Byte) } else { format }, precisions)
}

/// Attention of one sequence's last token in f64 over the cache's own rows.
fn check(gpu: &Gpu, cache: &Cache, case: Case, sequence: Sequence, queries: &[f32], output: &[f32]) -> f64 {
    let (d, kv) = (case.head_dim as usize, case.kv_heads as usize);
    let share = (case.query_heads / case.kv_heads) as usize;
    let tokens = cache.tokens(sequence).unwrap() as usize;
    let make = |n: usize| buffer(gpu, &vec![f32::NAN; n]);
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
        let mut encoder = encoder(gpu);
        cache.dequantize(&mut encoder, sequence, 0, first as u32..(first + n) as u32, Rows::f32(&keys), Rows::f32(&values)).unwrap();
        submit(gpu, encoder);
        let (k, v) = (read(gpu, &keys, n * kv * d), read(gpu, &values, n * kv * d));
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
    (error / norm).sqrt()
}

struct Row {
    seconds: f64,
    error: f64,
    bytes: f64,
    kernels: Vec<(&'static str, f64)>,
}

fn measure(gpu: &Gpu, case: Case, (format, precisions): (Format, Vec<[Precision; 2]>), rotate_bytes: u64) -> wgkv::Result<Row> {
    let mut plan: Plan = plan_mixed(gpu, case, format, &precisions, Protection::strict(), rotate_bytes)?;
    if let Some(n) = argument("--split") {
        plan = plan.with_split_workgroups(n.parse().unwrap());
    }
    let layers = plan.shape().layers;
    let bytes = plan.bits(u64::from(case.tokens)) as f64 / 8.0 / f64::from(layers) * f64::from(case.sequences);
    let (mut cache, sequences) = filled(gpu, plan, case);
    let elements = (case.sequences * case.query_heads * case.head_dim) as usize;
    let data = numbers(elements);
    let queries = buffer(gpu, &data);
    let keys = buffer(gpu, &numbers((case.sequences * case.kv_heads * case.head_dim) as usize));
    let output = buffer(gpu, &vec![f32::NAN; elements]);
    let chunks: Vec<Chunk> = sequences.iter().map(|s| Chunk { sequence: *s, tokens: 1 }).collect();
    let step: Step = cache.step(&chunks).unwrap();
    let mut encoder = support::encoder(gpu);
    for layer in 0..layers {
        cache.append(&mut encoder, &step, layer, Rows::f32(&keys), Rows::f32(&keys)).unwrap();
    }
    cache.attend(&mut encoder, &step, 0, Rows::f32(&queries), Rows::f32(&output)).unwrap();
    submit(gpu, encoder);
    let got = read(gpu, &output, elements);
    let error = check(gpu, &cache, case, sequences[0], &data, &got);
    assert!(got.iter().all(|x| x.is_finite()) && error < ATTEND_ERROR, "{format} {case:?}: relative error {error}");

    let once = seconds(gpu, 2, 4, |encoder, call| cache.attend(encoder, &step, call % layers, Rows::f32(&queries), Rows::f32(&output)).unwrap());
    let calls = ((0.02 / once) as u32).clamp(4, 200).next_multiple_of(layers.min(64));
    let seconds = seconds(gpu, 7, calls, |encoder, call| cache.attend(encoder, &step, call % layers, Rows::f32(&queries), Rows::f32(&output)).unwrap());
    let mut kernels: Vec<(&'static str, f64)> = Vec::new();
    if let Some(profile) = cache.gpu().profile() {
        pollster::block_on(profile.take(gpu)).unwrap();
        let mut encoder = support::encoder(gpu);
        for call in 0..100 {
            cache.attend(&mut encoder, &step, call % layers, Rows::f32(&queries), Rows::f32(&output)).unwrap();
        }
        submit(gpu, encoder);
        for (label, time) in pollster::block_on(profile.take(gpu)).unwrap() {
            match kernels.iter_mut().find(|(l, _)| *l == label) {
                Some((_, sum)) => *sum += time / 100.0,
                None => kernels.push((label, time / 100.0)),
            }
        }
    }
    Ok(Row { seconds, error, bytes, kernels })
}

fn main() {
    let gpu = gpu();
    let software = !gpu.capability().straight;
    let gpu = if flag("--workgroup") { gpu.pretend(gpu.capability().without_subgroups()) } else { gpu };
    let gpu = if flag("--rolled") { gpu.pretend(wgkv::Capability { straight: false, ..*gpu.capability() }) } else { gpu };
    let gpu = if flag("--straight") { gpu.pretend(wgkv::Capability { straight: true, ..*gpu.capability() }) } else { gpu };
    let gpu = if flag("--kernels") { gpu.profiled(2048).unwrap() } else { gpu };
    // On a software adapter the numbers mean nothing; small shapes show that the bench runs.
    let shapes = argument("--shapes").unwrap_or_else(|| if software { "1x1024,2x512" } else { "1x32768,1x131072,64x8192,64x32768" }.into());
    let formats = argument("--formats").unwrap_or_else(|| {
        if software {
            "centred:2:2,hadamard:2:2,hadamard:2+4:2,rotate-kv:2:2,f16"
        } else {
            "centred:2:2,centred:3:3,centred:4:2,centred:4:4,centred:8:8,hadamard:2:2,rotate-kv:2:2,rotate-kv:4:4,hadamard:3:3,hadamard:4:2,hadamard:4:4,hadamard:8:8,rtn:2:2,rtn:4:4,f16"
        }
        .into()
    });
    let heads = argument("--heads").unwrap_or_else(|| "32/8/128".into());
    let heads: Vec<u32> = heads.split('/').map(|h| h.parse().unwrap()).collect();
    let bandwidth = read_bandwidth(&gpu, if software { 64 << 20 } else { 1 << 30 });
    println!("{}: reads {:.0} GB/s; {} query heads, {} KV heads, head_dim {}", gpu.adapter_name(), bandwidth * 1e-9, heads[0], heads[1], heads[2]);
    println!("{:>12} {:>26} {:>10} {:>8} {:>9} {:>7} {:>8}", "shape", "format", "us", "Gtok/s", "MB", "share", "error");
    let mut json = Vec::new();
    for shape in shapes.split(',') {
        let (sequences, tokens) = shape.split_once('x').unwrap();
        let case = Case {
            name: "",
            query_heads: heads[0],
            kv_heads: heads[1],
            head_dim: heads[2],
            sequences: sequences.parse().unwrap(),
            tokens: tokens.parse().unwrap(),
        };
        for name in formats.split(',') {
            match measure(&gpu, case, format(name), if software { 1 << 20 } else { 200 << 20 }) {
                Ok(row) => {
                    let speed = f64::from(case.sequences * case.kv_heads) * f64::from(case.tokens) / row.seconds * 1e-9;
                    let share = row.bytes / row.seconds / bandwidth;
                    println!("{shape:>12} {name:>26} {:>10.1} {speed:>8.2} {:>9.1} {share:>7.2} {:>8.5}", row.seconds * 1e6, row.bytes * 1e-6, row.error);
                    for (kernel, time) in &row.kernels {
                        println!("{:>50} {:>10.1} us", kernel, time * 1e6);
                    }
                    json.push(format!("{{\"shape\":\"{shape}\",\"format\":\"{name}\",\"heads\":{heads:?},\"us\":{:.2},\"gtok_s\":{speed:.3},\"bytes\":{:.0},\"share\":{share:.4}}}", row.seconds * 1e6, row.bytes));
                }
                // Not measured is not a number: the reason stands in its place.
                Err(error) => println!("{shape:>12} {name:>26} does not fit: {error}"),
            }
        }
    }
    if let Some(file) = argument("--json") {
        std::fs::write(file, format!("{{\"adapter\":\"{}\",\"read_gb_s\":{:.1},\"rows\":[{}]}}\n", gpu.adapter_name(), bandwidth * 1e-9, json.join(",")))
            .unwrap();
    }
}
