//! Situations that hurt users of such caches, each tried.
//!
//! - Keys with a bias of norm 900 on a few pairs of RoPE (Qwen2.5), products of 60,000, positions up
//!   to 131,071: what Centred adds for the mean is right to a hundredth of a nat.
//! - Drafts that are taken back, some or all, leave what reading without them leaves, to the bit.
//! - What ended sequences left in pages, the largest halves or zeros for what was not finite, does
//!   not reach sequences that take those pages: they read as in a fresh cache, to the bit.
//! - A stream of 200,000 tokens under a sliding window holds the same pages all along.
//! - The attention of gpt-oss: heads of 64, keys with a bias, a window of 128, sink logits.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rand::RngExt;
use rand::rngs::StdRng;
use wgkv_testing::*;

/// What the mean of the keys adds to a score may be off by, in nats, where it is some thousands: f32
/// ends at 2^-11 of a log2 unit there, and dozens of terms are added up.
const MEAN_ERROR: f64 = 1e-2;

/// Deviations of a sum of many independent errors that are allowed for.
const DEVIATIONS: f64 = 6.0;

/// Returns a bias of this length on the first pairs of each head, in both halves.
fn bias(shape: &Shape, length: f32, random: &mut StdRng) -> Vec<f32> {
    let d = shape.head_dim as usize;
    (0..shape.kv_heads)
        .flat_map(|_| {
            let mut head = vec![0.0; d];
            for pair in [1, 5, 30] {
                let angle = random.random_range(0.0..std::f32::consts::TAU);
                (head[pair], head[pair + d / 2]) = (angle.cos(), angle.sin());
            }
            let scale = length / norm(&head);
            head.into_iter().map(move |x| x * scale)
        })
        .collect()
}

/// A token's row at each place, and the products that a query at another has with it.
struct Logits {
    gpu: Gpu,
    cache: Cache,
    shape: Shape,
}

impl Logits {
    fn new(gpu: &Gpu, shape: &Shape, storage: impl Into<Storage>, learned: Option<Means>) -> Self {
        let mut builder = Plan::builder(shape.clone(), storage).protection(Protection::NONE).capacity(Capacity::tokens(1, 128)).max_tokens(132_000);
        if let Some(means) = learned {
            builder = builder.learned(Learned::from(means));
        }
        let plan = builder.build(gpu.capability()).unwrap();
        Self { gpu: gpu.clone(), cache: Cache::new(gpu, plan).unwrap(), shape: shape.clone() }
    }

    /// Stores one token at a position, and attends to it from another, by one row: returns its key
    /// as it is stored, after RoPE, and each query head's score in nats.
    fn of(&mut self, [keys, queries]: [&[f32]; 2], [at, from]: [u32; 2]) -> [Vec<f32>; 2] {
        let gpu = self.gpu.clone();
        let sequence = self.cache.begin_at(at).unwrap();
        let [k, q] = [keys, queries].map(|rows| upload(&gpu, rows));
        let (out, sums) = (poisoned(&gpu, queries.len()), poisoned(&gpu, self.shape.query_heads as usize));
        let mut recorder = encoder(&gpu);
        let step = self.cache.step_parts(&[Share { sequence, first: at, queries: 1, tokens: 1 }]).unwrap();
        self.cache.append(&mut recorder, &step, 0, Rows::f32(&k), Rows::f32(&k)).unwrap();
        submit(&gpu, recorder);
        let mut recorder = encoder(&gpu);
        let step = self.cache.step_parts(&[Share { sequence, first: from, queries: 1, tokens: 0 }]).unwrap();
        self.cache.attend_part(&mut recorder, &step, 0, Rows::f32(&q), Rows::f32(&out), Rows::f32(&sums)).unwrap();
        let stored = [poisoned(&gpu, keys.len()), poisoned(&gpu, keys.len())];
        self.cache.dequantize(&mut recorder, sequence, 0, at..at + 1, Rows::f32(&stored[0]), Rows::f32(&stored[1])).unwrap();
        submit(&gpu, recorder);
        self.cache.end(sequence).unwrap();
        [download(&gpu, &stored[0], keys.len()), download(&gpu, &sums, self.shape.query_heads as usize)]
    }
}

#[test]
fn keys_with_a_bias_of_900_keep_their_scores() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let shape = Shape { layers: 1, query_heads: 28, kv_heads: 4, head_dim: 128, rope: Rope::new(1_000_000.0, 128) };
    let bias = bias(&shape, 900.0, &mut random);
    let means = |weight: f32| {
        let weights = vec![weight; bias.len()];
        Means::new(&shape, "biased", vec![[bias.clone(), weights, vec![0.0; bias.len()]]]).unwrap()
    };
    // Keys as halves are met by queries in f32, so what is left is what the mean adds.
    let mixed = |key: Precision| {
        let format = centred(Bits::Four, Bits::Four, 128);
        BitPlan::new(&shape, format, |_, _| [key, Precision::new(Bits::Four, 128)]).unwrap()
    };
    for (why, codes, mut logits) in [
        ("Centred, keys as halves", false, Logits::new(&gpu, &shape, mixed(Precision::F16), Some(means(1.0)))),
        ("Centred, 4 bits", true, Logits::new(&gpu, &shape, mixed(Precision::new(Bits::Four, 128)), Some(means(1.0)))),
        ("Hadamard, 4 bits", true, Logits::new(&gpu, &shape, hadamard(Bits::Four, Bits::Four, 128), None)),
    ] {
        for [at, from] in [[0, 1], [0, 4096], [4096, 4100], [0, 131_071], [130_944, 131_071]] {
            let keys: Vec<f32> = bias.iter().map(|mean| mean + normal(&mut random)).collect();
            let d = shape.head_dim as usize;
            // Queries along the keys, so that products come to 60,000.
            let queries: Vec<f32> = (0..shape.query_heads as usize)
                .flat_map(|head| {
                    let key = &bias[head / 7 * d..][..d];
                    let along = 66.0 / norm(key);
                    key.iter().map(|x| x * along).collect::<Vec<f32>>()
                })
                .map(|x| x + normal(&mut random))
                .collect();
            let [stored, got] = logits.of([&keys, &queries], [at, from]);
            let (mut worst, mut largest) = (0.0_f64, 0.0_f64);
            for (head, got) in got.iter().enumerate() {
                let row = |numbers: &[f32], at: usize| -> Vec<f64> { numbers[at..at + d].iter().map(|x| f64::from(*x)).collect() };
                let query = reference::turn_exact(&shape.rope, &row(&queries, head * d), from);
                let key = row(&stored, head / 7 * d);
                let want = key.iter().zip(&query).map(|(k, q)| k * q).sum::<f64>() / (d as f64).sqrt();
                // The int8 query's own error: a step of its largest channel, which the rotation
                // makes of three pairs and of noise, times the stored code's length.
                let plain = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
                let mean = reference::turn_exact(&shape.rope, &row(&bias, head / 7 * d), at);
                let code = match why {
                    "Hadamard, 4 bits" => plain(&key),
                    _ => plain(&key.iter().zip(&mean).map(|(k, m)| k - m).collect::<Vec<f64>>()),
                };
                let step = (6_f64.sqrt() * 66.0 + 4.0) / (d as f64).sqrt() / 127.0;
                let of_codes = if codes { DEVIATIONS * step / 12_f64.sqrt() * code / (d as f64).sqrt() } else { 0.0 };
                let error = (f64::from(*got) - want).abs();
                assert!(error <= MEAN_ERROR + of_codes, "{why}, {at} from {from}, head {head}: {got}, not {want}. WGKV_SEED={seed}");
                (worst, largest) = (worst.max(error), largest.max(want.abs()));
            }
            println!("{why}, {at} from {from}: {worst:.1e} of {largest:.0}");
        }
    }
}

#[test]
fn drafts_taken_back_leave_nothing() {
    use Bits::*;
    let gpu = gpu();
    let (mut random, _) = seeded();
    let shape = Shape { layers: 1, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    for (format, protection) in [
        (Format::f16(), Protection::NONE),
        (hadamard(Four, Three, 64), Protection::NONE),
        (centred(Two, Four, 64), protect(4, 0)),
        (hadamard(Two, Two, 32), protect(4, 16)),
        (centred(Three, Three, 64), protect(0, 128)),
        (trellis(64), protect(4, 16)),
    ] {
        let plan = Plan::builder(shape.clone(), format).protection(protection).capacity(Capacity::tokens(3, 512)).build(gpu.capability()).unwrap();
        let mut reader = Reader::new(&gpu, plan);
        let text = Text::normal(&mut random, &shape, 400);
        // Around the end of a page, and, with a window, where none is packed meanwhile.
        for prompt in [3, 125, 126, 130, 255] {
            if reader.cache.plan().packed(prompt as u32) != reader.cache.plan().packed(prompt as u32 + 5) && protection.window > 0 {
                continue;
            }
            for kept in 0..=5 {
                let [drafted, plain] = [(); 2].map(|()| reader.cache.begin().unwrap());
                for sequence in [drafted, plain] {
                    reader.store(sequence, &text, prompt);
                }
                // The drafts that are kept are the text's.
                let other = text.branch(&mut random, &shape, prompt + kept);
                reader.store(drafted, &other, 5);
                reader.truncate(drafted, (prompt + kept) as u32).unwrap();
                for _ in 0..kept {
                    reader.store(plain, &text, 1);
                }
                let rest = [1, 1, 9];
                let (got, want) = (reader.read_all(drafted, &text, &rest), reader.read_all(plain, &text, &rest));
                assert!(got == want, "{format}, {protection:?}: {prompt} tokens, {kept} of 5 drafts kept");
                reader.cache.end(drafted).unwrap();
                reader.cache.end(plain).unwrap();
            }
        }
    }
}

#[test]
fn what_ended_sequences_left_does_not_reach_others() {
    use Bits::*;
    let gpu = gpu();
    let (mut random, _) = seeded();
    let shape = Shape { layers: 1, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let text = Text::normal(&mut random, &shape, 300);
    let mut harmful = Text::normal(&mut random, &shape, 300);
    for numbers in harmful.layers.iter_mut().flatten() {
        for x in numbers.iter_mut() {
            *x = *[65504.0, -65504.0, f32::NAN, f32::INFINITY].get(random.random_range(0..6)).unwrap_or(x);
        }
    }
    for (format, protection) in [
        (Format::f16(), Protection::NONE),
        (Format::aligned_f16(), Protection::NONE),
        (rtn(Eight, Two, 32), protect(4, 16)),
        (hadamard(Four, Three, 64), protect(4, 128)),
        (centred(Two, Two, 64), Protection::NONE),
        (centred(Two, Two, 64), massive(4, 16)),
        (trellis(64), massive(4, 16)),
    ] {
        let read = |harm: bool| {
            let plan = Plan::builder(shape.clone(), format).protection(protection).capacity(Capacity::tokens(1, 384)).build(gpu.capability()).unwrap();
            let mut reader = Reader::new(&gpu, plan);
            if harm {
                let first = reader.cache.begin().unwrap();
                reader.store(first, &harmful, 300);
                reader.cache.end(first).unwrap();
            }
            let sequence = reader.cache.begin().unwrap();
            reader.read_all(sequence, &text, &[100, 1, 1, 80, 1])
        };
        assert!(read(true) == read(false), "{format}, {protection:?}");
    }
}

#[test]
fn a_stream_of_200_000_tokens_holds_the_same_pages() {
    const STREAM: usize = 200_000;
    const CHUNK: usize = 2000;
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let window = 256;
    let plan = Plan::builder(shape.clone(), hadamard(Bits::Eight, Bits::Eight, 64))
        .sliding_window(window)
        .protection(protect(4, 128))
        .capacity(Capacity::tokens(1, CHUNK as u32 + 1024))
        .max_tokens(STREAM as u32 + 128);
    let mut cache = Cache::new(&gpu, plan.build(gpu.capability()).unwrap()).unwrap();
    let sequence = cache.begin().unwrap();
    let bytes = cache.bytes();
    let mut pages = Vec::new();
    let chunk = Text::normal(&mut random, &shape, CHUNK);
    let [keys, values, ..] = &chunk.layers[0];
    let [k, v] = [keys, values].map(|rows| upload(&gpu, rows));
    for _ in 0..STREAM / CHUNK {
        cache.slide(sequence, window).unwrap();
        pages.push(cache.plan().pages() - cache.free_pages());
        let step = cache.step(&[Chunk { sequence, tokens: CHUNK as u32 }]).unwrap();
        let mut encoder = encoder(&gpu);
        cache.append(&mut encoder, &step, 0, Rows::f32(&k), Rows::f32(&v)).unwrap();
        submit(&gpu, encoder);
    }
    assert!(pages[1..].iter().max().unwrap() - pages[1..].iter().min().unwrap() <= 1, "{pages:?}");
    assert_eq!((cache.bytes(), cache.tokens(sequence).unwrap()), (bytes, STREAM as u32));

    // One token more attends to the last ones, at their positions.
    let last = Text::normal(&mut random, &shape, 1);
    let [key, value, query, _] = &last.layers[0];
    let [k, v, q] = [key, value, query].map(|row| upload(&gpu, row));
    let step = cache.step(&[Chunk { sequence, tokens: 1 }]).unwrap();
    let (out, seen) = (poisoned(&gpu, 64), window as usize - 1);
    let mut recorder = encoder(&gpu);
    cache.append(&mut recorder, &step, 0, Rows::f32(&k), Rows::f32(&v)).unwrap();
    cache.attend(&mut recorder, &step, 0, Rows::f32(&q), Rows::f32(&out)).unwrap();
    submit(&gpu, recorder);
    let with = |rows: &[f32], own: &[f32]| [&rows[(CHUNK - seen) * 64..], own].concat();
    let turned: Vec<f32> = with(keys, key)
        .chunks_exact(64)
        .zip((STREAM - seen) as u32..)
        .flat_map(|(row, t)| reference::turn_exact(&shape.rope, &row.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>(), t))
        .map(|x| x as f32)
        .collect();
    let want = attention_seen(&shape, [&turned, &with(values, value)], query, STREAM as u32);
    let error = relative_rms(&download(&gpu, &out, 64), &want);
    // Of 8-bit codes, and of the decoding query's.
    assert!(error <= DECODE_RMS, "relative error {error}. WGKV_SEED={seed}");
}

#[test]
fn attention_as_gpt_oss_has_it() {
    use Bits::*;
    let gpu = gpu();
    for (format, sinks) in [(centred(Eight, Eight, 64), 4), (centred(Four, Four, 64), 0), (hadamard(Three, Three, 64), 4)] {
        let steps = vec![vec![(0, 150), (1, 9)], vec![(0, 1), (1, 1)], vec![(0, 3), (1, 1)]];
        let case = case("gpt-oss", 64, 64, 8, format).steps(steps).sliding_window(128).sink_logits().protection(protect(sinks, 128));
        let mut walk = Walk::new(&gpu, case.rope(Rope::new(150_000.0, 64)));
        let row = 64 * 64;
        for chunks in walk.case.steps.clone() {
            let taken = walk.take(&chunks, true);
            check_prefilled(&walk, &taken);
            let (got, mut first) = (walk.output(&taken), 0);
            for (sequence, tokens) in &chunks {
                if *tokens == 1 {
                    let error = relative_rms(&got[first as usize * row..], &exact_over_stored(&walk, &taken, *sequence, first, 1));
                    let most = if format.codec() == Codec::Centred { CENTRED_RMS } else { DECODE_RMS };
                    assert!(error <= most, "{format}: sequence {sequence}, relative error {error}. WGKV_SEED={}", walk.seed);
                }
                first += tokens;
            }
        }
    }
}
