//! One decode step of one layer: query rotation, attend_split, attend_rows, attend_merge, from a
//! full cache.
//!
//! ```text
//! cargo bench --bench attention -- [--shapes 64x32768,28/4/128:8x32768] [--formats hadamard:2:2,hadamard:2+4:2+4,f16] [--plans packed,default,64/first:8] [--kernels] [--json FILE]
//! ```
//! A shape is sequences x tokens, after query heads, KV heads and head_dim if they are not those of
//! `--heads`. Bits such as `2+4` are those that the KV heads have in turn: two ways of storing
//! heads are two dispatches. `2t` is two bits by a trellis. A plan is `packed`, where every token is, or `default`, with a window of
//! 128 and 4 sinks, or a window and sinks; every format is measured under each. Gtok/s = sequences x kv_heads x tokens / time. Buffers rotate over 200
//! MB or more, so that no cache holds them; every result is compared with attention over the
//! dequantized rows before it is timed. `MB` are those of the pages and f16 rows that one step reads; `share` is
//! of the read bandwidth measured in the same run; `f16` how many times faster than our own kernel
//! on halves, where the formats begin with it; `ready` the seconds until all pipelines of the plan
//! were compiled.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]
#![allow(missing_docs, reason = "a bench has no readers")]

use std::time::Instant;
use wgkv::{Bits, Chunk, Codec, Format, Gpu, Plan, Precision, Protection, Rows, Scales, Step};
use wgkv_testing::bench::*;

/// Llama-3.1-8B's heads at growing contexts and batches, Llama-3.1-70B's, Qwen2.5-7B's, a KV head
/// for every query head, heads of 64.
const SHAPES: &str = "1x4096,1x32768,1x131072,8x32768,64x4096,64x8192,64x32768,16x131072,64/8/128:8x32768,28/4/128:8x32768,32/32/128:8x8192,32/8/64:8x32768";

const FORMATS: &str = "f16,centred:2:2,centred:3:3,centred:4:4,centred:8:8,centred:4:2,centred:3:2,centred:2:4,centred:2t:2t,hadamard:2:2,hadamard:3:3,hadamard:4:4,\
hadamard:8:8,hadamard:4:2,rtn:2:2,rtn:4:4,rotate-kv:2:2,rotate-kv:4:4";

/// The format, and the precisions that KV heads take in turn.
fn format(text: &str) -> (Format, Vec<[Precision; 2]>) {
    let mut fields = text.split(':');
    let codec: Codec = fields.next().unwrap().parse().unwrap();
    if codec == Codec::F16 {
        return (Format::f16(), vec![[Precision::F16; 2]]);
    }
    let (k, v) = (fields.next().unwrap_or("2"), fields.next().unwrap_or("2"));
    let group: u32 = fields.next().and_then(|f| f.parse().ok()).unwrap_or(128);
    let widths = |field: &str| -> Vec<Precision> { field.split('+').map(|width| format!("{width}/{group}").parse().unwrap()).collect() };
    let (k, v) = (widths(k), widths(v));
    let precisions: Vec<[Precision; 2]> = (0..k.len().max(v.len())).map(|n| [k[n % k.len()], v[n % v.len()]]).collect();
    let format = Format::new(codec, Bits::Two, Bits::Two, group).with_precisions(k[0], v[0]);
    (if text.ends_with(":f8") { format.with_scales(Scales::Byte) } else { format }, precisions)
}

/// What stays f16 under a plan; nothing where the plan is not one.
fn protection(text: &str) -> Option<Protection> {
    match text {
        "packed" => Some(Protection::NONE),
        "default" => Some(Protection::default()),
        _ => {
            let (window, sinks) = text.split_once('/')?;
            Some(Protection { window: window.parse().ok()?, sinks: sinks.parse().ok()? })
        }
    }
}

struct Row {
    seconds: f64,
    error: f64,
    bytes: f64,
    /// Until the pipelines were compiled, as far as they were not before.
    ready: f64,
    kernels: Vec<(&'static str, f64)>,
}

/// Query heads, KV heads and head_dim.
fn heads(text: &str) -> [u32; 3] {
    let numbers: Vec<u32> = text.split('/').map(|h| h.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

type Stored = (Format, Vec<[Precision; 2]>);

fn measure(gpu: &Gpu, case: Case, (format, precisions): Stored, protection: Protection, rotate_bytes: u64) -> wgkv::Result<Row> {
    let mut plan: Plan = plan_mixed(gpu, case, format, &precisions, protection, rotate_bytes)?;
    if let Some(n) = argument("--split") {
        plan = plan.to_builder().split_workgroups(n.parse().unwrap()).build(gpu.capability())?;
    }
    if let Some(n) = argument("--direct") {
        plan = plan.to_builder().direct_rows(n.parse().unwrap()).build(gpu.capability())?;
    }
    let layers = plan.shape().layers;
    let bytes = plan.bits(u64::from(case.tokens)) as f64 / 8.0 / f64::from(layers) * f64::from(case.sequences);
    let start = Instant::now();
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    let ready = start.elapsed().as_secs_f64();
    let (mut cache, sequences) = filled(gpu, plan, case);
    let elements = (case.sequences * case.query_heads * case.head_dim) as usize;
    let data = numbers(elements);
    let queries = upload(gpu, &data);
    let keys = upload(gpu, &numbers((case.sequences * case.kv_heads * case.head_dim) as usize));
    let output = upload(gpu, &vec![f32::NAN; elements]);
    let chunks: Vec<Chunk> = sequences.iter().map(|s| Chunk { sequence: *s, tokens: 1 }).collect();
    let step: Step = cache.step(&chunks).unwrap();
    let mut encoder = wgkv_testing::encoder(gpu);
    for layer in 0..layers {
        cache.append(&mut encoder, &step, layer, Rows::f32(&keys), Rows::f32(&keys)).unwrap();
    }
    cache.attend(&mut encoder, &step, 0, Rows::f32(&queries), Rows::f32(&output)).unwrap();
    submit(gpu, encoder);
    let got = download(gpu, &output, elements);
    let error = check(gpu, &cache, case, sequences[0], &data, &got);

    let once = seconds(gpu, 2, 4, |encoder, call| cache.attend(encoder, &step, call % layers, Rows::f32(&queries), Rows::f32(&output)).unwrap());
    let calls = ((0.015 / once) as u32).clamp(4, 200).next_multiple_of(layers.min(64));
    // Now and then the GPU's clock dips, to a half or less, for as long as a row is measured: the
    // least of three medians.
    let seconds = (0..3)
        .map(|_| seconds(gpu, 5, calls, |encoder, call| cache.attend(encoder, &step, call % layers, Rows::f32(&queries), Rows::f32(&output)).unwrap()))
        .fold(f64::INFINITY, f64::min);
    let mut kernels: Vec<(&'static str, f64)> = Vec::new();
    if let Some(profile) = cache.gpu().profile() {
        pollster::block_on(profile.take(gpu)).unwrap();
        warm(gpu);
        let mut encoder = wgkv_testing::encoder(gpu);
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
    Ok(Row { seconds, error, bytes, ready, kernels })
}

fn main() {
    let gpu = gpu();
    let software = !gpu.capability().straight;
    let gpu = if flag("--workgroup") { gpu.pretend(gpu.capability().without_subgroups()) } else { gpu };
    let gpu = if flag("--rolled") { gpu.pretend(wgkv::Capability { straight: false, ..*gpu.capability() }) } else { gpu };
    let gpu = if flag("--straight") { gpu.pretend(wgkv::Capability { straight: true, ..*gpu.capability() }) } else { gpu };
    let gpu = if flag("--kernels") { gpu.profiled(2048).unwrap() } else { gpu };
    // On a software adapter the numbers mean nothing; small shapes show that the bench runs.
    let shapes = argument("--shapes").unwrap_or_else(|| if software { "1x1024,28/4/64:2x512" } else { SHAPES }.into());
    let formats = argument("--formats").unwrap_or_else(|| if software { "f16,centred:2:2,hadamard:2:2,hadamard:2+4:2,rotate-kv:2:2" } else { FORMATS }.into());
    let plans = argument("--plans").unwrap_or_else(|| "packed,default".into());
    let usual = argument("--heads").unwrap_or_else(|| "32/8/128".into());
    let bandwidth = read_bandwidth(&gpu, if software { 64 << 20 } else { 1 << 30 });
    println!("{}: reads {:.0} GB/s; heads {usual} but where a shape says otherwise", gpu.adapter_name(), bandwidth * 1e-9);
    println!(
        "{:>22} {:>20} {:>12} {:>10} {:>8} {:>9} {:>7} {:>6} {:>8} {:>7}",
        "shape", "format", "plan", "us", "Gtok/s", "MB", "share", "f16", "error", "ready"
    );
    let mut json = Vec::new();
    for shape in shapes.split(',') {
        let (of, size) = shape.split_once(':').unwrap_or((&usual, shape));
        let ([query_heads, kv_heads, head_dim], (sequences, tokens)) = (heads(of), size.split_once('x').unwrap());
        let case = Case { name: "", query_heads, kv_heads, head_dim, sequences: sequences.parse().unwrap(), tokens: tokens.parse().unwrap() };
        let mut halves = None;
        for (name, plan) in formats.split(',').flat_map(|name| plans.split(',').map(move |plan| (name, plan))) {
            let Some(protection) = protection(plan) else {
                println!("{shape:>22} {name:>20} {plan:>12} is no plan: packed, default, or a window and sinks such as 64/first:8");
                continue;
            };
            // Halves have no other rows.
            if name == "f16" && plan != "packed" && plans.split(',').any(|plan| plan == "packed") {
                continue;
            }
            match measure(&gpu, case, format(name), protection, if software { 1 << 20 } else { 200 << 20 }) {
                Ok(row) => {
                    if name == "f16" {
                        halves = Some(row.seconds);
                    }
                    let speed = f64::from(case.sequences * case.kv_heads) * f64::from(case.tokens) / row.seconds * 1e-9;
                    let (us, share, times) = (row.seconds * 1e6, row.bytes / row.seconds / bandwidth, halves.map(|halves| halves / row.seconds));
                    println!(
                        "{shape:>22} {name:>20} {plan:>12} {us:>10.1} {speed:>8.2} {:>9.1} {share:>7.2} {:>6} {:>8.5} {:>7.2}",
                        row.bytes * 1e-6,
                        times.map_or("-".into(), |times| format!("{times:.2}")),
                        row.error,
                        row.ready
                    );
                    for (kernel, time) in &row.kernels {
                        println!("{:>50} {:>10.1} us", kernel, time * 1e6);
                    }
                    json.push(serde_json::json!({
                        "shape": size, "heads": [query_heads, kv_heads, head_dim], "format": name, "plan": plan, "us": us, "gtok_s": speed,
                        "bytes": row.bytes, "share": share, "times_f16": times, "error": row.error, "ready_s": row.ready,
                    }));
                }
                // Not measured is not a number: the reason stands in its place.
                Err(error) => println!("{shape:>22} {name:>20} {plan:>12} does not fit: {error}"),
            }
        }
    }
    if let Some(file) = argument("--json") {
        let all = serde_json::json!({ "adapter": gpu.adapter_name(), "read_gb_s": bandwidth * 1e-9, "rows": json });
        std::fs::write(file, format!("{all}\n")).unwrap();
    }
}
