//! The whole way: append and attend against attention in f64 on the same numbers.
mod support;
use support::*;
use wgkv::*;

fn exact(shape: &Shape, keys: &[f32], values: &[f32], queries: &[f32], tokens: usize, rows: usize) -> Vec<f64> {
    let d = shape.head_dim as usize;
    let (hq, hk) = (shape.query_heads as usize, shape.kv_heads as usize);
    let turn = |x: &[f32], t: usize| -> Vec<f64> {
        let f = shape.rope.frequencies();
        let p = f.len();
        let mut y: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        for i in 0..p {
            let (s, c) = (t as f64 * f[i]).sin_cos();
            let (a, b) = match shape.rope.layout() {
                RopeLayout::SplitHalves => (i, i + p),
                RopeLayout::Interleaved => (2 * i, 2 * i + 1),
            };
            let (u, v) = (y[a], y[b]);
            y[a] = u * c - v * s;
            y[b] = v * c + u * s;
        }
        y
    };
    let mut out = vec![0.0; rows * hq * d];
    for h in 0..hq {
        let kv = h / (hq / hk);
        let k: Vec<Vec<f64>> = (0..tokens).map(|t| turn(&keys[(t * hk + kv) * d..][..d], t)).collect();
        for r in 0..rows {
            let t = tokens - rows + r;
            let q = turn(&queries[(r * hq + h) * d..][..d], t);
            let s: Vec<f64> = k[..=t].iter().map(|k| k.iter().zip(&q).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()).collect();
            let m = s.iter().cloned().fold(f64::MIN, f64::max);
            let p: Vec<f64> = s.iter().map(|s| (s - m).exp()).collect();
            let l: f64 = p.iter().sum();
            for i in 0..d {
                out[(r * hq + h) * d + i] = p.iter().enumerate().map(|(j, p)| p * f64::from(values[(j * hk + kv) * d + i])).sum::<f64>() / l;
            }
        }
    }
    out
}

fn run(gpu: &Gpu, shape: &Shape, format: Format, protection: Protection, prefill: usize, decode: usize) -> f64 {
    let mut random = generator();
    let d = shape.head_dim as usize;
    let (hq, hk) = (shape.query_heads as usize, shape.kv_heads as usize);
    let tokens = prefill + decode;
    let keys = normals(&mut random, tokens * hk * d);
    let values = normals(&mut random, tokens * hk * d);
    let queries = normals(&mut random, tokens * hq * d);
    let plan = Plan::new(shape.clone(), format, protection, Budget::tokens(1, tokens as u32), gpu.capability()).unwrap();
    let start = std::time::Instant::now();
    for v in plan.variants() { let t = std::time::Instant::now(); gpu.pipeline(&v); if t.elapsed().as_millis() > 200 { println!("   {} {:?}", v.kernel.name, t.elapsed()); } }
    let _ = start;
    let mut cache = Cache::new(gpu, plan).unwrap();
    let sequence = cache.allocate().unwrap();
    let mut worst: f64 = 0.0;
    let mut at = 0;
    for n in std::iter::once(prefill).chain(std::iter::repeat_n(1, decode)) {
        let (k, v, q) = (upload(gpu, &keys[at * hk * d..(at + n) * hk * d]), upload(gpu, &values[at * hk * d..(at + n) * hk * d]), upload(gpu, &queries[at * hq * d..(at + n) * hq * d]));
        let out = poisoned(gpu, n * hq * d);
        let step = cache.step(&[Chunk { sequence, tokens: n as u32 }]).unwrap();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.append(&mut encoder, &step, 0, Rows::f32(&k), Rows::f32(&v)).unwrap();
        cache.attend(&mut encoder, &step, 0, Rows::f32(&q), Rows::f32(&out)).unwrap();
        gpu.queue().submit([encoder.finish()]);
        let got = download(gpu, &out, n * hq * d);
        at += n;
        let want = exact(shape, &keys, &values, &queries[(at - n) * hq * d..], at, n);
        let norm: f64 = want.iter().map(|x| x * x).sum();
        let error: f64 = got.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        assert!(got.iter().all(|x| x.is_finite()));
        worst = worst.max((error / norm).sqrt());
    }
    worst
}

#[test]
fn smoke() {
    let gpu = gpu();
    for (head_dim, query_heads, kv_heads) in [(128, 8, 2), (64, 7, 1), (80, 2, 2), (96, 4, 2), (256, 5, 1)] {
        let shape = Shape { layers: 1, query_heads, kv_heads, head_dim, rope: Rope::new(10000.0, head_dim) };
        for (name, format) in [
            ("f16", Format::f16()),
            ("rtn8", Format::new(Codec::Rtn, Bits::Eight, Bits::Eight, 128)),
            ("had8", Format::new(Codec::Hadamard, Bits::Eight, Bits::Eight, 128)),
            ("had4", Format::new(Codec::Hadamard, Bits::Four, Bits::Four, 128)),
            ("had3", Format::new(Codec::Hadamard, Bits::Three, Bits::Three, 128)),
            ("had2", Format::new(Codec::Hadamard, Bits::Two, Bits::Two, 128)),
        ] {
            for protection in [Protection::strict(), Protection { sinks: Sinks::First(4), window: 0 }, Protection { sinks: Sinks::First(4), window: 128 }] {
                let start = std::time::Instant::now();
                let e = run(&gpu, &shape, format, protection, 300, 3);
                println!("{head_dim} {query_heads}/{kv_heads} {name} {protection:?} {e:.5} {:?}", start.elapsed());
            }
        }
    }
}
