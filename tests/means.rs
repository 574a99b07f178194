//! Means and weights: what the collector finds on the GPU is what f64 finds, a file returns what
//! was saved and refuses everything else, and a cache that knows the means stores less error than
//! one that does not.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use safetensors::Dtype;
use wgkv_testing::*;

fn shape() -> Shape {
    Shape { layers: 2, query_heads: 6, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

/// Draws rows of normal numbers around different means.
fn rows(random: &mut rand::rngs::StdRng, tokens: usize, width: usize) -> Vec<f32> {
    let means: Vec<f32> = (0..width).map(|c| normal(random) * if c % 9 == 0 { 8.0 } else { 1.0 }).collect();
    let spread: Vec<f32> = (0..width).map(|_| normal(random).exp()).collect();
    (0..tokens * width).map(|i| means[i % width] + spread[i % width] * normal(random)).collect()
}

#[test]
fn the_collector_finds_means_and_weights() {
    /// Sums are of two floats; squares are rounded before, by 2^-24 of each at most. A variance is
    /// off by as much of the mean square that it is what is left of, and a fourth root has a fourth
    /// of it.
    const SQUARE_ERROR: f64 = 1.0 / 16_777_216.0;
    /// Of the queries' squares, of the root, and of the weight as f32.
    const WEIGHT_ERROR: f64 = 2.0 * SQUARE_ERROR;
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let shape = shape();
    let (d, hq, hk) = (64_usize, 6, 2);
    for element in [Element::F32, Element::F16] {
        let collector = MeansCollector::new(&gpu, &shape).unwrap();
        let mut all: Vec<[Vec<f32>; 3]> = vec![Default::default(); 2];
        for (layer, all) in all.iter_mut().enumerate() {
            let drawn = [rows(&mut random, 300, hq * d), rows(&mut random, 300, hk * d), rows(&mut random, 300, hk * d)];
            let words = drawn.map(|numbers| input(element, numbers));
            // In two batches of unlike lengths.
            for range in [0..100, 100..300] {
                let buffers = [0, 1, 2].map(|n| {
                    let width = [hq, hk, hk][n] * d * element.bytes() as usize / 4;
                    upload(&gpu, bytemuck::cast_slice(&words[n].words[range.start * width..range.end * width]))
                });
                let rows = buffers.each_ref().map(|buffer| Rows::new(buffer, element));
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                collector.add(&mut encoder, layer as u32, rows[0], rows[1], rows[2], range.len() as u32).unwrap();
                gpu.queue().submit([encoder.finish()]);
            }
            *all = words.map(|words| words.numbers);
        }
        let learned = pollster::block_on(collector.finish("a model")).unwrap();
        assert_eq!((learned.tokens(), learned.skipped(), learned.model(), learned.layers()), (300, 0, "a model", 2));
        for (layer, [queries, keys, values]) in all.iter().enumerate() {
            let layer = layer as u32;
            let column = |rows: &[f32], width: usize, c: usize| -> Vec<f64> { rows.iter().skip(c).step_by(width).map(|x| f64::from(*x)).collect() };
            let mean = |xs: &[f64]| xs.iter().sum::<f64>() / xs.len() as f64;
            for (head, i) in (0..hk).flat_map(|head| (0..d).map(move |i| (head, i))) {
                let at = head * d + i;
                let (k, v) = (column(keys, hk * d, at), column(values, hk * d, at));
                let name = format!("layer {layer}, head {head}, channel {i}");
                close(&name, &[learned.key_means(layer)[at]], &[mean(&k) as f32], 1e-6, 1e-6, seed);
                close(&name, &[learned.value_means(layer)[at]], &[mean(&v) as f32], 1e-6, 1e-6, seed);
                let spread = |i: usize| {
                    let k = column(keys, hk * d, head * d + i);
                    let m = mean(&k);
                    mean(&k.iter().map(|x| (x - m).powi(2)).collect::<Vec<_>>())
                };
                let asked = |i: usize| {
                    let of = |n: usize| mean(&column(queries, hq * d, (head * 3 + n) * d + i).iter().map(|x| x * x).collect::<Vec<_>>());
                    (of(0) + of(1) + of(2)) / 3.0
                };
                let square = |i: usize| mean(&column(keys, hk * d, head * d + i).iter().map(|x| x * x).collect::<Vec<_>>());
                let other = (i + 32) % 64;
                let error = WEIGHT_ERROR + 0.25 * SQUARE_ERROR * (square(i) + square(other)) / (spread(i) + spread(other));
                let want = ((asked(i) + asked(other)) / (spread(i) + spread(other))).powf(0.25);
                let got = f64::from(learned.weights(layer)[at]);
                assert!((got - want).abs() < error * want, "{name}: weight {got}, should be {want}. WGKV_SEED={seed}");
            }
        }
    }
}

/// Means of keys that come turned, of a pair's length: a turn is composed of two that are rounded,
/// by two products, and turns by two more, on numbers that were rounded as they were turned: eight
/// times 2^-24.
const TURNED_ERROR: f64 = 8.0 / 16_777_216.0;

#[test]
fn keys_that_come_turned_give_the_same_means_and_weights() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for rope in [Rope::new(10_000.0, 64), Rope::new(10_000.0, 32).interleaved(), Rope::none()] {
        let shape = Shape { layers: 1, rope, ..shape() };
        let (d, hq, hk) = (64_usize, 6, 2);
        let [queries, keys, values] = [hq, hk, hk].map(|heads| rows(&mut random, 300, heads * d));
        let turned = |rows: &[f32], heads: usize| turned_to(&Shape { query_heads: heads as u32, ..shape.clone() }, rows, 0, 300);
        let came = [turned(&queries, hq), turned(&keys, hk), values.clone()];
        let plain = [queries, keys.clone(), values];
        let learn = |collector: MeansCollector, rows: &[Vec<f32>; 3]| {
            for range in [0..100, 100..300] {
                let buffers = [hq, hk, hk].map(|heads| heads * d);
                let buffers: Vec<wgpu::Buffer> =
                    rows.iter().zip(buffers).map(|(rows, width)| upload(&gpu, &rows[range.start * width..range.end * width])).collect();
                let [queries, keys, values] = [0, 1, 2].map(|n| Rows::f32(&buffers[n]));
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                collector.add_from(&mut encoder, 0, range.start as u32, queries, keys, values, range.len() as u32).unwrap();
                gpu.queue().submit([encoder.finish()]);
            }
            pollster::block_on(collector.finish("a model")).unwrap()
        };
        let want = learn(MeansCollector::new(&gpu, &shape).unwrap(), &plain);
        let got = learn(MeansCollector::new(&gpu, &shape).unwrap().turned_rows(300).unwrap(), &came);
        assert_eq!((got.tokens(), got.value_means(0)), (300, want.value_means(0)));
        for at in 0..hk * d {
            let (head, i) = (at / d * d, at % d);
            let pairs = shape.rope.frequencies().len();
            let other = match shape.rope.layout() {
                _ if i >= 2 * pairs => i,
                RopeLayout::SplitHalves => (i + pairs) % (2 * pairs),
                RopeLayout::Interleaved => i ^ 1,
            };
            let both = |of: &dyn Fn(f64) -> f64| -> f64 {
                let column = |c: usize| keys.iter().skip(head + c).step_by(hk * d).map(|x| of(f64::from(*x))).sum::<f64>() / 300.0;
                column(i) + column(other)
            };
            let (mean, square) = (f64::from(want.key_means(0)[at]), both(&|x| x * x));
            let error = TURNED_ERROR * square.sqrt() + 1e-6 * mean.abs();
            let found = f64::from(got.key_means(0)[at]);
            assert!((found - mean).abs() <= error, "mean {at} of {:?}: {found}, not {mean}. WGKV_SEED={seed}", shape.rope);
            // A variance is what is left of a mean square, of which the errors are a share, those of
            // the square and of the mean's twice each; a fourth root has a fourth.
            let means = [i, other].map(|c| f64::from(want.key_means(0)[head + c]).powi(2)).iter().sum::<f64>();
            let error = 4.0 * TURNED_ERROR * square / (square - means) + 1e-6;
            let (weight, found) = (f64::from(want.weights(0)[at]), f64::from(got.weights(0)[at]));
            assert!((found - weight).abs() <= error * weight, "weight {at} of {:?}: {found}, not {weight}. WGKV_SEED={seed}", shape.rope);
        }
    }
    // Positions that were not told of are refused, and texts of no tokens.
    let shape = shape();
    let collector = MeansCollector::new(&gpu, &shape).unwrap().turned_rows(128).unwrap();
    let buffer = upload(&gpu, &[0.0; 40 * 6 * 64]);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let mut add = |first| collector.add_from(&mut encoder, 0, first, Rows::f32(&buffer), Rows::f32(&buffer), Rows::f32(&buffer), 40);
    add(88).unwrap();
    let beyond = add(89).unwrap_err().to_string();
    assert!(beyond.contains("128") && beyond.contains("129"), "{beyond}");
    let none = MeansCollector::new(&gpu, &shape).unwrap().turned_rows(0).unwrap_err().to_string();
    assert!(none.contains("tokens of turned texts") && none.contains('0'), "{none}");
}

/// Returns numbers as the caller's rows.
fn input(element: Element, numbers: Vec<f32>) -> Input {
    match element {
        Element::F32 => Input { words: numbers.iter().map(|x| x.to_bits()).collect(), numbers },
        _ => {
            let halves: Vec<half::f16> = numbers.iter().map(|x| half::f16::from_f32(*x)).collect();
            let words = halves.chunks_exact(2).map(|p| u32::from(p[0].to_bits()) | u32::from(p[1].to_bits()) << 16).collect();
            Input { numbers: halves.iter().map(|x| x.to_f32()).collect(), words }
        }
    }
}

#[test]
fn silent_channels_and_broken_rows_do_no_harm() {
    let gpu = gpu();
    let random = &mut generator();
    let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let collector = MeansCollector::new(&gpu, &shape).unwrap();
    let (mut queries, mut keys, values) = (normals(random, 5 * 64), normals(random, 5 * 64), normals(random, 5 * 64));
    // A pair that is constant, one that no query looks at, and a row that is not finite.
    for row in 0..5 {
        keys[row * 64 + 3] = 2.0;
        keys[row * 64 + 35] = -1.0;
        queries[row * 64 + 7] = 0.0;
        queries[row * 64 + 39] = 0.0;
    }
    keys[2 * 64 + 11] = f32::NAN;
    let buffers = [&queries, &keys, &values].map(|numbers| upload(&gpu, numbers));
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let rows = buffers.each_ref().map(Rows::f32);
    collector.add(&mut encoder, 0, rows[0], rows[1], rows[2], 5).unwrap();
    gpu.queue().submit([encoder.finish()]);
    let learned = pollster::block_on(collector.finish("")).unwrap();
    assert_eq!((learned.tokens(), learned.skipped()), (4, 1));
    assert!(learned.weights(0).iter().all(|w| w.is_finite() && *w > 0.0));
    assert_eq!(learned.key_means(0)[3], 2.0);
    // Broken queries count, too, also where there are as many query heads as KV heads.
    queries[4 * 64 + 1] = f32::INFINITY;
    let buffers = [&queries, &keys, &values].map(|numbers| upload(&gpu, numbers));
    let collector = MeansCollector::new(&gpu, &shape).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let rows = buffers.each_ref().map(Rows::f32);
    collector.add(&mut encoder, 0, rows[0], rows[1], rows[2], 5).unwrap();
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(pollster::block_on(collector.finish("")).unwrap().skipped(), 2);
    let empty = MeansCollector::new(&gpu, &shape).unwrap();
    assert!(matches!(pollster::block_on(empty.finish("")), Err(Error::Mismatch { of: Thing::Means, name, .. }) if name == "tokens"));
}

fn drawn() -> Means {
    let random = &mut generator();
    let shape = shape();
    let means = normals(random, 128);
    random_means(&Shape { layers: 2, ..shape }, &means, random)
}

#[test]
fn a_file_returns_what_was_saved() {
    let learned = drawn();
    let bytes = learned.to_bytes().unwrap();
    let back = Means::from_bytes(&bytes).unwrap();
    assert_eq!(back, learned);
    // The bytes are a function of the content.
    assert!((0..9).all(|_| learned.to_bytes().unwrap() == bytes) && back.to_bytes().unwrap() == bytes);
    let path = std::env::temp_dir().join(format!("wgkv-means-{}", std::process::id()));
    learned.save(&path).unwrap();
    assert_eq!(Means::load(&path).unwrap(), learned);
    std::fs::remove_file(&path).unwrap();
    let gone = Means::load(&path).unwrap_err();
    assert!(matches!(&gone, Error::Io { doing: "reading", path: of, .. } if *of == path.display().to_string()), "{gone:?}");
    // Nothing is written that could not be read.
    let rows = [vec![0.0; 128], vec![1.0; 128], vec![0.0; 128]];
    let named = |model: &str| Means::new(&Shape { layers: 1, ..shape() }, model, vec![rows.clone()]).unwrap().to_bytes();
    assert!(Means::from_bytes(&named(&"m".repeat(1 << 19)).unwrap()).is_ok());
    assert!(matches!(named(&"m".repeat(1 << 20)), Err(Error::Mismatch { of: Thing::Means, name, .. }) if name == "header"));
}

#[test]
fn every_damaged_file_is_refused() {
    let bytes = drawn().to_bytes().unwrap();
    let refused =
        |bytes: &[u8]| assert!(matches!(Means::from_bytes(bytes), Err(Error::Mismatch { of: Thing::Means, .. } | Error::Mismatch { of: Thing::Argument, .. })));
    for end in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        refused(&bytes[..end]);
    }
    // Any bit that is flipped; a few of the many.
    for at in (0..bytes.len()).step_by(37) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        refused(&damaged);
    }
    for length in [u64::MAX, 1 << 40, bytes.len() as u64] {
        let mut damaged = bytes.clone();
        damaged[..8].copy_from_slice(&length.to_le_bytes());
        refused(&damaged);
    }
    // Tensors of other types and shapes, and headers that no writer makes.
    let parts = Parts::of(&bytes);
    for name in parts.tensors.iter().map(|tensor| tensor.0.as_str()) {
        for change in [|t: &mut Tensor| t.1 = Dtype::I32, |t: &mut Tensor| t.2.push(1), |t: &mut Tensor| t.0.push('0')] {
            refused(&parts.clone().tensor(name, change).write());
        }
    }
    let names = [0, 1].map(|n| parts.tensors[n].0.as_str());
    hostile(names).iter().for_each(|bytes| refused(bytes));
}

#[test]
fn what_does_not_fit_is_refused() {
    let gpu = gpu();
    let shape = shape();
    let builder = |format| Plan::builder(shape.clone(), format).protection(Protection::NONE).capacity(Capacity::tokens(1, 128));
    let plan = |format| builder(format).build(gpu.capability());
    let wrong = |result: Result<Plan>, what: &str| match result {
        Err(Error::Mismatch { of: Thing::Means, name, .. } | Error::Mismatch { of: Thing::Argument, name, .. }) => assert_eq!(name, what),
        other => panic!("{what} should be refused, but: {other:?}"),
    };
    wrong(builder(rtn(Bits::Two, Bits::Two, 64)).learned(drawn()).build(gpu.capability()), "codec");
    let format = centred(Bits::Two, Bits::Two, 64);
    let other = Means::natural(&Shape { layers: 3, ..shape.clone() });
    wrong(builder(format).learned(other).build(gpu.capability()), "layers");
    wrong(plan(format.with_clip(0.8)), "clip");
    wrong(plan(format.with_scales(Scales::Half)), "scales");
    wrong(plan(rtn(Bits::Two, Bits::Two, 64).with_scales(Scales::Symmetric)), "scales");
    // Weights that RoPE would mix.
    let mut weights = vec![1.0; 128];
    weights[3] = 2.0;
    let layer = [vec![0.0; 128], weights, vec![0.0; 128]];
    assert!(matches!(Means::new(&shape, "", vec![layer.clone(), layer]), Err(Error::Mismatch { of: Thing::Means, name, .. }) if name == "weights"));
    assert!(drawn().expect_model("random").is_ok() && Means::natural(&shape).expect_model("any").is_ok());
    assert!(matches!(drawn().expect_model("other"), Err(Error::Mismatch { of: Thing::Means, name, .. }) if name == "model"));
}

#[test]
fn means_save_bits() {
    // Keys with large means at 2 bits: known, they cost nothing; unknown, they take the codes,
    // which lose a share of what they hold. It is the same of normal rows; one row of means in all
    // keys is unlike those by some 6 % of that share, of which this is eight times.
    const SHARE: f64 = 1.5;
    let gpu = gpu();
    let steps = vec![vec![(0, 255)], vec![(0, 1)]];
    let shape = Shape { layers: 1, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let random = &mut generator();
    let means: Vec<f32> = normals(random, 128).iter().map(|x| 2.0 * x).collect();
    let keys: Vec<f32> = (0..256 * 128).map(|i| means[i % 128] + normal(random)).collect();
    let energy = |of: &dyn Fn(usize) -> f32| (0..keys.len()).map(|i| f64::from(of(i)).powi(2)).sum::<f64>();
    let held = energy(&|i| keys[i] - means[i % 128]) / energy(&|i| keys[i]);
    let known = Means::new(&shape, "", vec![[means, vec![1.0; 128], vec![0.0; 128]]]).unwrap();
    let error = |learned: Means| {
        let case = case("means", 64, 4, 2, centred(Bits::Two, Bits::Two, 64)).steps(steps.clone()).means(learned);
        let mut walk = Walk::new(&gpu, case);
        for (chunks, range) in steps.iter().zip([0..255, 255..256]) {
            let [_, values, queries] = walk.draw(range.len() as u32);
            walk.take_rows(chunks, [keys[range.start * 128..range.end * 128].to_vec(), values, queries], false);
        }
        let [back, _] = walk.dequantize(0);
        let turned = (0..256_u32).flat_map(|t| (0..2).map(move |h| (t, h))).flat_map(|(t, h)| {
            let row: Vec<f64> = keys[(t as usize * 2 + h) * 64..][..64].iter().map(|x| f64::from(*x)).collect();
            reference::turn_exact(&shape.rope, &row, t)
        });
        back.iter().zip(turned).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>()
    };
    let (known, unknown) = (error(known), error(Means::natural(&shape)));
    let share = known / unknown;
    println!("codes lose {share:.4} of what they lose without means, and hold {held:.4}");
    assert!((held / SHARE..held * SHARE).contains(&share), "codes hold {held}, but lose {share}");
}
