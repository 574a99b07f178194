//! The whole way: append and attend against attention in f64 on the same numbers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
mod support;
use rand::rngs::StdRng;
use support::*;
use wgkv::reference::attention_exact;
use wgkv::*;

/// Relative RMS error of attention over independent normal numbers, where the values average out and the codes' error does
/// not: the hardest case there is. f16: half's 2^-11 on keys and values. The others: the quantizer's own error, which for a
/// group of n normal numbers over b bits is about 2 x 2.6 / (2^b - 1) / sqrt(12), on keys and on values, and half as much
/// again to spare. A wrong plane, scale, page or position gives 1 and more.
fn budget(format: &Format) -> f64 {
    match format.key_bits().min(format.value_bits()) {
        16 => 1e-3,
        8 => 0.03,
        4 => 0.25,
        3 => 0.5,
        _ => 0.9,
    }
}

/// A sequence grows by a prefill and then token by token; after each step the output is compared with f64.
fn follow(gpu: &Gpu, random: &mut StdRng, shape: &Shape, format: Format, protection: Protection) {
    let (prefill, decode) = (300, 3);
    let d = shape.head_dim as usize;
    let (hq, hk) = (shape.query_heads as usize, shape.kv_heads as usize);
    let tokens = prefill + decode;
    let keys = normals(random, tokens * hk * d);
    let values = normals(random, tokens * hk * d);
    let queries = normals(random, tokens * hq * d);
    let plan = Plan::new(shape.clone(), format, protection, Budget::tokens(1, tokens as u32), gpu.capability()).unwrap();
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    let mut cache = Cache::new(gpu, plan).unwrap();
    let sequence = cache.allocate().unwrap();
    let mut at = 0;
    for n in std::iter::once(prefill).chain(std::iter::repeat_n(1, decode)) {
        let rows = |numbers: &[f32], width: usize| upload(gpu, &numbers[at * width..(at + n) * width]);
        let (k, v, q) = (rows(&keys, hk * d), rows(&values, hk * d), rows(&queries, hq * d));
        let out = poisoned(gpu, n * hq * d);
        let step = cache.step(&[Chunk { sequence, tokens: n as u32 }]).unwrap();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.append(&mut encoder, &step, 0, Rows::f32(&k), Rows::f32(&v)).unwrap();
        cache.attend(&mut encoder, &step, 0, Rows::f32(&q), Rows::f32(&out)).unwrap();
        gpu.queue().submit([encoder.finish()]);
        let got = download(gpu, &out, n * hq * d);
        at += n;
        let want = attention_exact(shape, &keys[..at * hk * d], &values[..at * hk * d], &queries[(at - n) * hq * d..at * hq * d], n);
        let norm: f64 = want.iter().map(|x| x * x).sum();
        let error: f64 = got.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        let error = (error / norm).sqrt();
        // A NaN compares false, so it fails too.
        assert!(
            error < budget(&format),
            "{format}, head_dim {d}, {hq}/{hk} heads, {protection:?}, {at} tokens: relative error {error}, allowed {}",
            budget(&format)
        );
    }
    assert!(pollster::block_on(cache.status()).unwrap().is_clean());
}

fn coded(codec: Codec, key_bits: Bits, value_bits: Bits, group: u32) -> Format {
    Format::new(codec, key_bits, value_bits, group)
}

#[test]
fn attention_from_codes_stays_within_the_budget_of_its_bits() {
    let gpu = gpu();
    let random = &mut generator();
    let window = Protection { sinks: Sinks::First(4), window: 128 };
    let sinks = Protection { sinks: Sinks::First(5), window: 0 };
    let strict = Protection::strict();
    use Bits::{Eight, Four, Three, Two};
    use Codec::{Hadamard, Rtn};
    // (head_dim, query heads, KV heads, format, protection), each with what it is there for.
    let cases = [
        (128, 8, 2, Format::f16(), strict),                     // the control, two factors of 16 and 8
        (128, 8, 2, coded(Hadamard, Two, Two, 128), window),    // the format that matters most
        (128, 4, 4, coded(Hadamard, Four, Two, 32), strict),    // one query head a KV head; four groups a head
        (64, 7, 1, coded(Rtn, Eight, Eight, 64), strict),       // an odd share: two blocks, the second not full
        (64, 6, 3, coded(Hadamard, Three, Three, 32), sinks),   // the two planes of three bits; a share of two
        (80, 2, 2, coded(Hadamard, Four, Four, 128), window),   // Kronecker 20 x 4; a group that is the whole head
        (80, 3, 1, coded(Rtn, Three, Eight, 128), strict),      // the plane of third bits that ends in half a word
        (96, 4, 2, coded(Hadamard, Two, Four, 32), sinks),      // Kronecker 12 x 8; three groups
        (256, 5, 1, coded(Hadamard, Eight, Three, 64), strict), // two quads a lane
        (256, 1, 1, coded(Rtn, Four, Two, 32), window),         // eight groups a head
        (64, 16, 1, Format::f16(), window),                     // the largest share; f16 ignores the protection
    ];
    for (head_dim, query_heads, kv_heads, format, protection) in cases {
        let shape = Shape { layers: 1, query_heads, kv_heads, head_dim, rope: Rope::new(10_000.0, head_dim) };
        follow(&gpu, random, &shape, format, protection);
    }
}

#[test]
fn every_kind_of_rope_agrees() {
    let gpu = gpu();
    let random = &mut generator();
    let shape = |rope| Shape { layers: 1, query_heads: 2, kv_heads: 1, head_dim: 64, rope };
    for rope in [
        Rope::none(),
        Rope::new(10_000.0, 32),
        Rope::new(500_000.0, 64).interleaved(),
        Rope::new(10_000.0, 16).interleaved(),
        Rope::llama3(500_000.0, 64, 8.0, 1.0, 4.0, 8192),
    ] {
        follow(&gpu, random, &shape(rope), Format::f16(), Protection::strict());
    }
}

#[test]
fn weaker_devices_give_the_same_attention() {
    let gpu = gpu();
    let random = &mut generator();
    let shape = Shape { layers: 1, query_heads: 8, kv_heads: 4, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let format = coded(Codec::Hadamard, Bits::Four, Bits::Four, 64);
    let capability = *gpu.capability();
    // Loops where the GPU has straight-line code and the other way round; no subgroups; bindings that hold two heads' pages.
    for weaker in [
        Capability { straight: !capability.straight, ..capability },
        capability.without_subgroups(),
        Capability { straight: capability.straight, ..Capability::webgpu_default() },
        Capability { binding_bytes: 9 << 20, ..capability },
    ] {
        follow(&gpu.pretend(weaker), random, &shape, format, Protection::default());
    }
}
