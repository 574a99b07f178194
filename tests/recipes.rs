//! What the caller arranges for models that are not of the shapes served: positions of its own, and
//! heads padded with zeros. In every codec, prompts and decoded tokens are attention in f64 over the
//! rows as they were, with the true width.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rand::RngExt;
use rand::rngs::StdRng;
use wgkv::low_level::reference::{Scores, attention_exact_with};
use wgkv_testing::*;

/// Relative RMS error of an output over normal rows, at 8 bits: the error of a code is a step of the
/// group's extent, 6 deviations by 255, over sqrt(12), on keys and on values, where the values average
/// out and the error does not; as in tests/flow.rs. Of halves 2^-11 of each.
const CODE_ERROR: f64 = 0.03;
const HALF_ERROR: f64 = 1e-3;

/// Tokens of the prompt, and decoded after it.
const STEPS: [usize; 4] = [150, 1, 1, 20];

fn formats(group: u32) -> Vec<(Format, Protection, f64)> {
    use Bits::Eight;
    vec![
        (Format::f16(), protect(0, 0), HALF_ERROR),
        (Format::aligned_f16(), protect(4, 16), HALF_ERROR),
        (rtn(Eight, Eight, group), protect(4, 16), CODE_ERROR),
        (hadamard(Eight, Eight, group), protect(0, 16), CODE_ERROR),
        (centred(Eight, Eight, group), protect(4, 16), CODE_ERROR),
        (rotated(Eight, Eight, group, 2), protect(4, 0), CODE_ERROR),
    ]
}

/// Rows of each kind, `[tokens, heads, width]`.
struct Given {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

/// Returns what a cache of a plan makes of rows as wide as its heads, step by step.
fn attended(gpu: &Gpu, builder: PlanBuilder, rows: &Given) -> Vec<f32> {
    let tokens: usize = STEPS.iter().sum();
    let mut cache = Cache::new(gpu, builder.capacity(Capacity::tokens(1, tokens as u32)).build(gpu.capability()).unwrap()).unwrap();
    let shape = cache.plan().shape().clone();
    let [kv, q] = [shape.kv_heads, shape.query_heads].map(|heads| (heads * shape.head_dim) as usize);
    let sequence = cache.begin().unwrap();
    let (mut at, mut all) = (0, Vec::new());
    for n in STEPS {
        let upload = |rows: &[f32], width: usize| upload(gpu, &rows[at * width..][..n * width]);
        let (keys, values, queries) = (upload(&rows.keys, kv), upload(&rows.values, kv), upload(&rows.queries, q));
        let output = poisoned(gpu, n * q);
        let step = cache.step(&[Chunk { sequence, tokens: n as u32 }]).unwrap();
        let mut encoder = encoder(gpu);
        cache.append(&mut encoder, &step, 0, Rows::f32(&keys), Rows::f32(&values)).unwrap();
        cache.attend(&mut encoder, &step, 0, Rows::f32(&queries), Rows::f32(&output)).unwrap();
        submit(gpu, encoder);
        all.extend(download(gpu, &output, n * q));
        at += n;
    }
    all
}

/// Gives a plan what its codec learns; means have zeros in the channels from `width` on.
fn learned(builder: PlanBuilder, shape: &Shape, format: &Format, [key_width, value_width]: [usize; 2], random: &mut StdRng) -> PlanBuilder {
    match format.codec() {
        Codec::Centred => {
            let d = shape.head_dim as usize;
            let mut means =
                |width: usize| -> Vec<f32> { (0..shape.kv_heads as usize * d).map(|i| if i % d < width { 0.3 * normal(random) } else { 0.0 }).collect() };
            let layer = [means(key_width), vec![1.0; shape.kv_heads as usize * d], means(value_width)];
            builder.learned(Means::new(shape, "", vec![layer]).unwrap())
        }
        Codec::RotateKv => builder.learned(random_order(shape, format, Reach::Global, random)),
        _ => builder,
    }
}

/// Turns rows of heads in f64: pair `p` of token `t` by `places(t, p)` times its frequency.
fn turn(rope: &Rope, rows: &[f32], heads: usize, width: usize, places: &dyn Fn(usize, usize) -> u32) -> Vec<f32> {
    let pairs = rope.frequencies().len();
    let mut turned = rows.to_vec();
    for (n, (head, from)) in turned.chunks_exact_mut(width).zip(rows.chunks_exact(width)).enumerate() {
        for (p, frequency) in rope.frequencies().iter().enumerate() {
            let (sin, cos) = (f64::from(places(n / heads, p)) * frequency).sin_cos();
            let (a, b) = (f64::from(from[p]), f64::from(from[p + pairs]));
            (head[p], head[p + pairs]) = ((a * cos - b * sin) as f32, (b * cos + a * sin) as f32);
        }
    }
    turned
}

#[test]
fn rows_may_be_turned_by_positions_of_the_callers() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let tokens: usize = STEPS.iter().sum();
    let (heads, kv_heads, d) = (4, 2, 64);
    let rope = Rope::new(10_000.0, d as u32);
    let shape = Shape { layers: 1, query_heads: heads as u32, kv_heads: kv_heads as u32, head_dim: d as u32, rope: rope.clone() };
    let still = Shape { rope: Rope::none(), ..shape.clone() };
    // As M-RoPE has it: a text, an image of rows and columns in a third of the pairs each, whose other
    // pairs stand still, and a text that goes on after the largest of them; from where it likes.
    let (start, text, [rows, columns]) = (random.random_range(0..5000), random.random_range(10..60), [random.random_range(2..7), random.random_range(2..9)]);
    let places = |t: usize, pair: usize| -> u32 {
        let image = text + rows * columns;
        let place = match t {
            t if t < text => t,
            t if t >= image => t - image + text + rows.max(columns),
            t => text + [0, (t - text) / columns, (t - text) % columns][pair % 3],
        };
        start + place as u32
    };
    let [keys, values, queries] = [kv_heads, kv_heads, heads].map(|heads| normals(&mut random, tokens * heads * d));
    let [keys, queries] = [(keys, kv_heads), (queries, heads)].map(|(rows, heads)| turn(&rope, &rows, heads, d, &places));
    let exact = attention_exact_with(&still, &Scores::plain(d as u32), &keys, &values, &queries, tokens);
    let given = Given { keys, values, queries };
    for (format, protection, most) in formats(64) {
        // Without RoPE, and with the model's, whose turns by place in the text are then not the rows'.
        for shape in [&still, &shape] {
            let turned = !shape.rope.frequencies().is_empty();
            let builder = Plan::builder(shape.clone(), format).protection(protection).turned_rows(turned);
            let got = attended(&gpu, learned(builder, shape, &format, [d, d], &mut random), &given);
            let error = relative_rms(&got, &exact);
            println!("{format}, turned_rows {turned}: {error:.5} of {most}");
            assert!(error <= most, "{format}, turned_rows {turned}: relative error {error}. WGKV_SEED={seed}");
        }
    }
}

/// Puts zeros behind every row.
fn pad(rows: &[f32], width: usize, padded: usize) -> Vec<f32> {
    rows.chunks_exact(width).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, padded - width))).collect()
}

#[test]
fn heads_padded_with_zeros_attend_as_without() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let tokens: usize = STEPS.iter().sum();
    let (heads, kv_heads) = (4, 2);
    // Keys' width and values', what both are padded to, and channels that RoPE turns.
    for (key_width, value_width, padded, rotary) in [(72, 72, 80, 72), (88, 88, 96, 44), (100, 100, 128, 100), (192, 128, 192, 64)] {
        // The pairs of RoPE are those of the head without padding.
        let shape = |head_dim: usize| Shape {
            layers: 1,
            query_heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            rope: Rope::new(10_000.0, rotary),
        };
        let keys = normals(&mut random, tokens * kv_heads * key_width);
        let values = normals(&mut random, tokens * kv_heads * value_width);
        let queries = normals(&mut random, tokens * heads * key_width);
        // Values of zero beyond their width add nothing.
        let exact = attention_exact_with(&shape(key_width), &Scores::plain(key_width as u32), &keys, &pad(&values, value_width, key_width), &queries, tokens);
        let exact: Vec<f64> = exact.chunks_exact(key_width).flat_map(|row| row[..value_width].to_vec()).collect();
        let given = Given { keys: pad(&keys, key_width, padded), values: pad(&values, value_width, padded), queries: pad(&queries, key_width, padded) };
        let group = [128, 64, 32].into_iter().find(|group| padded % group.min(&padded) == 0).unwrap();
        // Every codec of the narrowest and of unlike widths; of the others those that store zeros, and rotate them.
        let every = [72, 192].contains(&key_width);
        let served = |(format, ..): &(Format, Protection, f64)| every || [Codec::F16, Codec::Hadamard, Codec::Centred].contains(&format.codec());
        for (format, protection, most) in formats(group as u32).into_iter().filter(served) {
            let builder = Plan::builder(shape(padded), format).protection(protection).score_scale(1.0 / (key_width as f32).sqrt());
            let got = attended(&gpu, learned(builder, &shape(padded), &format, [key_width, value_width], &mut random), &given);
            let (kept, dropped): (Vec<&[f32]>, Vec<&[f32]>) = got.chunks_exact(padded).map(|row| row.split_at(value_width)).unzip();
            let error = relative_rms(&kept.concat(), &exact);
            println!("{key_width} and {value_width} as {padded}, {format}: {error:.5} of {most}");
            assert!(error <= most, "{key_width} and {value_width} as {padded}, {format}: relative error {error}. WGKV_SEED={seed}");
            // What the zeros come back as is the codes' error and no more.
            let size = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
            let strayed = dropped.concat().iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            assert!(strayed <= most * size, "{key_width} and {value_width} as {padded}, {format}: zeros became {strayed} of {size}. WGKV_SEED={seed}");
        }
    }
}
