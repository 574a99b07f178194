//! Every kernel by itself, by the GPU's own clock: `query`, `append` (or `append_block`),
//! `protect`, `dequantize`, `position`, `attend_split`, `attend_rows`, `attend_direct`, `attend_prefill`
//! (or `attend_matrices`), `attend_merge`, `measure`, `gram`, `append_reordered`, `elect`. `rotate` has a
//! bench of its own, and so have prefills, with `unpack`.
//!
//! ```text
//! cargo bench --bench kernels -- [--appends] [--workgroup]
//! ```
//! With `--appends`, only what packs, in more formats.
//!
//! Each line is the median over its dispatches. `GB/s` counts the bytes that the kernel must at
//! least read and write, beside the copy bandwidth of the same run; the results are checked before
//! anything is timed.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]
#![allow(missing_docs, reason = "a bench has no readers")]

use wgkv::low_level::kernel;
use wgkv::{Bits, Cache, Chunk, Code, Codec, Format, Gpu, Plan, Protection, Rows, Sinks};
use wgkv_testing::bench::*;

/// Half a step of 4-bit codes over rotated uniform numbers, as relative RMS: 0.10 in theory. A
/// wrong plane gives 1.
const CODE_ERROR: f64 = 0.15;

/// The same of 2 and 3 bits: a third to a half by the fit, and half of that.
const COARSE_ERRORS: [f64; 2] = [0.55, 0.28];

/// Sums of pairs of floats over numbers below 1: 2^-47 an addition. Plain sums of f32 lose about
/// 2^-24.
const SUM_ERROR: f64 = 1e-11;

/// Gram matrices, relative to the root of two numbers on the diagonal: 24 roundings of 2^-24
/// (`tests/gram.rs`).
const GRAM_ERROR: f64 = 24.0 / 16_777_216.0;

/// Runs a recording several times and returns each kernel's median seconds.
fn profile(gpu: &Gpu, times: usize, mut record: impl FnMut(&mut wgpu::CommandEncoder)) -> Vec<(&'static str, f64)> {
    let timer = gpu.profile().unwrap();
    warm(gpu);
    let mut all: Vec<(&'static str, Vec<f64>)> = Vec::new();
    for turn in 0..times + 3 {
        let mut encoder = encoder(gpu);
        record(&mut encoder);
        submit(gpu, encoder);
        let stamps = pollster::block_on(timer.take(gpu)).unwrap();
        // The first turns warm up.
        for (label, seconds) in stamps.into_iter().filter(|_| turn >= 3) {
            match all.iter_mut().find(|(l, _)| *l == label) {
                Some((_, list)) => list.push(seconds),
                None => all.push((label, vec![seconds])),
            }
        }
    }
    all.into_iter()
        .map(|(label, mut list)| {
            list.sort_by(f64::total_cmp);
            (label, list[list.len() / 2])
        })
        .collect()
}

fn line(kernel: &str, what: &str, seconds: f64, bytes: f64) {
    println!("{kernel:>16} {what:>44} {:>10.1} us {:>8.0} GB/s", seconds * 1e6, bytes / seconds * 1e-9);
}

fn find(times: &[(&'static str, f64)], kernel: &str) -> f64 {
    times.iter().find(|(k, _)| *k == kernel).unwrap().1
}

/// Which kernel packed, and its seconds.
fn packing(times: &[(&'static str, f64)]) -> (&'static str, f64) {
    *times.iter().find(|(kernel, _)| ["append", "append_block"].contains(kernel)).unwrap()
}

/// Relative error of dequantized rows.
fn error(got: &[f32], data: &[f32]) -> f64 {
    let error: f64 = got.iter().zip(data).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = data[..got.len()].iter().map(|x| f64::from(x * x)).sum();
    (error / norm).sqrt()
}

/// Packs prompts, then decoded tokens of all sequences, without a window.
fn appends(gpu: &Gpu, sequences: u32, tokens: u32, format: Format) {
    let case = Case { name: "", query_heads: 32, kv_heads: 8, head_dim: 128, sequences, tokens: tokens + 1 };
    let mut cache = Cache::new(gpu, plan(gpu, case, format, Protection::NONE, 0).unwrap()).unwrap();
    let kv_row = 8 * 128_usize;
    let data = numbers((sequences * tokens) as usize * kv_row);
    let rows = upload(gpu, &data);
    let prompts: Vec<Chunk> = (0..sequences).map(|_| Chunk { sequence: cache.begin().unwrap(), tokens }).collect();
    let decoded: Vec<Chunk> = prompts.iter().map(|chunk| Chunk { tokens: 1, ..*chunk }).collect();
    for (what, chunks, tokens) in [("new tokens", &prompts, tokens), ("decoded", &decoded, 1)] {
        let before = cache.bytes_used();
        let step = cache.step(chunks).unwrap();
        let times = profile(gpu, 15, |encoder| {
            step.unrecord();
            cache.append(encoder, &step, 0, Rows::f32(&rows), Rows::f32(&rows)).unwrap();
        });
        let (kernel, seconds) = packing(&times);
        let written = if tokens == 1 { 0.0 } else { (cache.bytes_used() - before) as f64 };
        line(kernel, &format!("{sequences}x{tokens} {what}: {format}"), seconds, 8.0 * f64::from(sequences * tokens) * kv_row as f64 + written);
    }
    let numbers = tokens as usize * kv_row;
    let (keys, values) = (upload(gpu, &vec![f32::NAN; numbers]), upload(gpu, &vec![f32::NAN; numbers]));
    let mut encoder = encoder(gpu);
    cache.dequantize(&mut encoder, prompts[0].sequence, 0, 0..tokens, Rows::f32(&keys), Rows::f32(&values)).unwrap();
    submit(gpu, encoder);
    let error = error(&download(gpu, &values, numbers), &data);
    let allowed = match format.value().bits {
        Bits::Two => COARSE_ERRORS[0],
        Bits::Three => COARSE_ERRORS[1],
        _ => CODE_ERROR,
    };
    assert!(error < allowed, "relative error {error} of dequantized values of {format}");
}

/// Adds up rows of keys, by which RotateKV orders channels.
fn measure(gpu: &Gpu, rows: u32) {
    let width = 1024;
    let data = numbers((rows * width) as usize);
    let keys = upload(gpu, &data);
    let lines = kernel::measure::LINES as usize;
    let (sums, counts) = (upload(gpu, &vec![0.0; 2 * lines * width as usize]), upload(gpu, &vec![0.0; 2 * lines]));
    let mut encoder = wgkv_testing::encoder(gpu);
    kernel::measure::record(gpu, &mut encoder, Rows::f32(&keys), false, rows, [1, width], &sums, &counts).unwrap();
    submit(gpu, encoder);
    let (mut got, mut want) = (vec![0.0_f64; width as usize], vec![0.0_f64; width as usize]);
    // Pairs of floats, so that the two of a column are neighbours.
    download(gpu, &sums, 2 * lines * width as usize).iter().enumerate().for_each(|(i, x)| got[i / 2 % width as usize] += f64::from(*x));
    data.iter().enumerate().for_each(|(i, x)| want[i % width as usize] += f64::from(*x));
    assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < SUM_ERROR * f64::from(rows)), "columns must add up as in f64");
    let times = profile(gpu, 9, |encoder| kernel::measure::record(gpu, encoder, Rows::f32(&keys), false, rows, [1, width], &sums, &counts).unwrap());
    line("measure", &format!("{rows} rows of {width}"), find(&times, "measure"), 4.0 * f64::from(rows * width));
}

/// Gram matrices of the difference of two buffers of rows, and of rows alone, as they are taken of
/// sample text.
fn gram(gpu: &Gpu, rows: u32) {
    let (heads, head_dim) = (8, 128);
    let (width, d) = ((heads * head_dim) as usize, head_dim as usize);
    let count = rows as usize * width;
    let data = numbers(count + 17);
    let (row_numbers, minus_numbers) = (&data[..count], &data[17..]);
    let (row_buffer, minus_buffer) = (upload(gpu, row_numbers), upload(gpu, minus_numbers));
    let gram_numbers = kernel::gram::chunks(rows) as usize * width * d;
    let grams = upload(gpu, &vec![f32::NAN; gram_numbers]);
    for difference in [true, false] {
        let minus = difference.then(|| Rows::f32(&minus_buffer));
        let record = |encoder: &mut wgpu::CommandEncoder| kernel::gram::record(gpu, encoder, Rows::f32(&row_buffer), minus, rows, heads, head_dim, &grams);
        let mut encoder = wgkv_testing::encoder(gpu);
        record(&mut encoder).unwrap();
        submit(gpu, encoder);
        let got = pollster::block_on(kernel::gram::sum(gpu, &grams, rows, heads, head_dim)).unwrap();
        // In f64 one line of each head's matrix (not the same in all), and the diagonal, which
        // tells what is allowed.
        let (mut want, mut squares) = (vec![0.0_f64; width], vec![0.0_f64; width]);
        let x = |i: usize| f64::from(row_numbers[i]) - if difference { f64::from(minus_numbers[i]) } else { 0.0 };
        let fixed = |head: usize| 17 * head % d;
        for first in (0..count).step_by(d) {
            let head = first / d % heads as usize;
            let factor = x(first + fixed(head));
            for channel in 0..d {
                let x = x(first + channel);
                want[head * d + channel] += factor * x;
                squares[head * d + channel] += x * x;
            }
        }
        for (i, want) in want.iter().enumerate() {
            let (head, channel) = (i / d, i % d);
            let allowed = GRAM_ERROR * (squares[i] * squares[head * d + fixed(head)]).sqrt();
            assert!((got[head][fixed(head) * d + channel] - want).abs() <= allowed, "products must add up as in f64");
        }
        let seconds = find(&profile(gpu, 9, |encoder| record(encoder).unwrap()), "gram");
        let what = format!("{rows} rows of {heads}x{head_dim}{}", if difference { ", difference" } else { "" });
        let read = if difference { 2 * count } else { count };
        line("gram", &what, seconds, 4.0 * (read + gram_numbers) as f64);
        // A product and a sum for each number on and below the diagonal.
        println!("{:>16} {what:>44} {:>10.1} us {:>8.0} GFLOP/s", "gram", seconds * 1e6, count as f64 * (d + 1) as f64 / seconds * 1e-9);
    }
}

/// Appends, decodes, prefills and dequantizes one cache.
fn cache(gpu: &Gpu, sequences: u32, tokens: u32, format: Format, protection: Protection) {
    let case = Case { name: "", query_heads: 32, kv_heads: 8, head_dim: 128, sequences, tokens: tokens + 1 };
    let plan: Plan = plan(gpu, case, format, protection, 0).unwrap();
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    let mut cache = Cache::new(gpu, plan).unwrap();
    let (kv_row, query_row) = (8 * 128_usize, 32 * 128_usize);
    let count = (sequences * tokens) as usize;
    let data = numbers(count * kv_row);
    let keys = upload(gpu, &data);
    let query_numbers = numbers(count * query_row);
    let queries = upload(gpu, &query_numbers);
    let output = upload(gpu, &vec![f32::NAN; count * query_row]);
    let chunks: Vec<Chunk> = (0..sequences).map(|_| Chunk { sequence: cache.begin().unwrap(), tokens }).collect();
    let step = cache.step(&chunks).unwrap();
    let name = format!("{format}, sinks {}, window {}", protection.sinks, protection.window);
    let bytes = cache.bytes_used() as f64;
    let rows = |row: usize, tokens: usize| 4.0 * (row * tokens) as f64;
    // The residual stream is as wide as the queries.
    let elects = matches!(protection.sinks, Sinks::Massive(_));
    let residual = upload(gpu, &numbers(if elects { count * query_row } else { 4 }));

    let times = profile(gpu, 5, |encoder| {
        // The same again and again, which costs what the first time does.
        step.unrecord();
        if elects {
            cache.elect(encoder, &step, 0, Rows::f32(&residual), query_row as u32).unwrap();
        }
        cache.append(encoder, &step, 0, Rows::f32(&keys), Rows::f32(&keys)).unwrap();
        cache.attend(encoder, &step, 0, Rows::f32(&queries), Rows::f32(&output)).unwrap();
    });
    let (kernel, seconds) = packing(&times);
    line(kernel, &format!("{sequences}x{tokens}: {name}"), seconds, 2.0 * rows(kv_row, count) + bytes);
    if format.codec() == Codec::RotateKv {
        let key_bytes = rows(kv_row, count) + bytes / 2.0;
        line("append_reordered", &format!("{sequences}x{tokens}: {name}"), find(&times, "append_reordered"), key_bytes);
    }
    if elects {
        // The median is of both its stages, the long and the short.
        line("elect", &format!("{sequences}x{tokens}x{query_row}: {name}"), find(&times, "elect"), rows(query_row, count));
    }
    if protection != Protection::NONE {
        let kept = f64::from(sequences * (cache.plan().sinks() + tokens - cache.plan().packed(tokens)));
        line("protect", &format!("{sequences}x{tokens}: {name}"), find(&times, "protect"), kept * kv_row as f64 * 12.0);
    }
    let attends = if cache.plan().matrices() { "attend_matrices" } else { "attend_prefill" };
    let prefill = find(&times, attends);
    let flops = 4.0 * f64::from(sequences) * f64::from(tokens) * f64::from(tokens) / 2.0 * query_row as f64;
    println!("{:>16} {:>44} {:>10.1} us {:>8.0} GFLOP/s (median of its passes)", attends, format!("{sequences}x{tokens}: {name}"), prefill * 1e6, {
        let passes = (count as f64 / f64::from(cache.plan().query_rows())).ceil();
        flops / passes / prefill * 1e-9
    });
    let got = download(gpu, &output, count * query_row);
    assert!(got.iter().all(|x| x.is_finite()), "attention over finite rows must be finite");

    let (key_rows, value_rows) = (upload(gpu, &vec![f32::NAN; tokens as usize * kv_row]), upload(gpu, &vec![f32::NAN; tokens as usize * kv_row]));
    let times = profile(gpu, 5, |encoder| cache.dequantize(encoder, chunks[0].sequence, 0, 0..tokens, Rows::f32(&key_rows), Rows::f32(&value_rows)).unwrap());
    let got = download(gpu, &value_rows, tokens as usize * kv_row);
    let error = error(&got, &data);
    assert!(error < CODE_ERROR, "relative error {error} of dequantized values");
    line("dequantize", &format!("1x{tokens}: {name}"), find(&times, "dequantize"), 2.0 * rows(kv_row, tokens as usize) + bytes / f64::from(sequences));

    // All sequences, then one alone, which attend_direct takes where the codec has it.
    for count in if sequences > 1 { vec![sequences, 1] } else { vec![1] } {
        let decode: Vec<Chunk> = chunks[..count as usize].iter().map(|c| Chunk { tokens: 1, ..*c }).collect();
        let step = cache.step(&decode).unwrap();
        let times = profile(gpu, 9, |encoder| {
            step.unrecord();
            cache.append(encoder, &step, 0, Rows::f32(&keys), Rows::f32(&keys)).unwrap();
            cache.attend(encoder, &step, 0, Rows::f32(&queries), Rows::f32(&output)).unwrap();
        });
        let got = download(gpu, &output, count as usize * query_row);
        check(gpu, &cache, case, chunks[0].sequence, &query_numbers, &got);
        let f16_rows = f64::from(count * cache.plan().protection().f16_tokens(tokens + 1)) * kv_row as f64 * 4.0;
        let page_bytes = bytes * f64::from(count) / f64::from(sequences);
        for (kernel, seconds) in &times {
            let bytes = match *kernel {
                "attend_direct" => page_bytes + f16_rows,
                "attend_split" => page_bytes,
                // 12 terms a page and query head.
                "position" => f64::from(count * tokens.div_ceil(128) * case.query_heads) * 48.0,
                "attend_rows" => f16_rows,
                "query" => 2.0 * rows(query_row, count as usize),
                "attend_merge" => rows(query_row, count as usize),
                _ => 2.0 * rows(kv_row, count as usize),
            };
            line(kernel, &format!("decode {count}x{tokens}: {name}"), *seconds, bytes);
        }
    }
}

fn main() {
    let gpu = gpu();
    let software = !gpu.capability().straight;
    let gpu = if flag("--workgroup") { gpu.pretend(gpu.capability().without_subgroups()) } else { gpu };
    let gpu = gpu.profiled(2048).unwrap();
    let bytes = if software { 64 << 20 } else { 1 << 30 };
    let [reads, copies] = [read_bandwidth(&gpu, bytes), copy_bandwidth(&gpu, bytes)].map(|speed| speed * 1e-9);
    println!("{}: reads {reads:.0} GB/s, copies {copies:.0} GB/s (read and written)", gpu.adapter_name());
    // On a software adapter the sizes only show that it runs.
    let four = Format::new(Codec::Hadamard, Bits::Four, Bits::Four, 128);
    let (sequences, tokens) = if software { (1, 256) } else { (8, 4096) };
    for codec in [Codec::Rtn, Codec::Hadamard, Codec::Centred] {
        for bits in [Bits::Two, Bits::Three, Bits::Four, Bits::Eight].into_iter().filter(|bits| flag("--appends") || *bits == Bits::Two) {
            let format = Format::new(codec, bits, bits, 128);
            appends(&gpu, sequences, tokens, format);
            appends(&gpu, if software { 2 } else { 64 }, if software { 128 } else { 512 }, format);
        }
    }
    let trellis = Format::new(Codec::Centred, Bits::Two, Bits::Two, 128).with_codes(Code::Trellis, Code::Trellis);
    appends(&gpu, sequences, tokens, trellis);
    appends(&gpu, if software { 2 } else { 64 }, if software { 128 } else { 512 }, trellis);
    if flag("--appends") {
        return;
    }
    measure(&gpu, if software { 1 << 8 } else { 1 << 16 });
    gram(&gpu, if software { 1 << 8 } else { 1 << 16 });
    cache(&gpu, sequences, tokens, four, Protection::NONE);
    cache(&gpu, sequences, tokens, four, Protection { sinks: Sinks::First(4), window: 128 });
    cache(&gpu, sequences, tokens, Format::new(Codec::Centred, Bits::Four, Bits::Four, 128), Protection { sinks: Sinks::First(4), window: 128 });
    let rotate_kv = Format::new(Codec::RotateKv, Bits::Four, Bits::Four, 128);
    cache(&gpu, sequences, tokens, rotate_kv, Protection { sinks: Sinks::Massive(20), window: 0 });
}
