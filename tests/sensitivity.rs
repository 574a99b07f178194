//! A probe measures what storing keys or values with fewer bits does to the output of attention:
//! against attention in f64 over what a real cache stores; the same whatever a model's gauge; what
//! it says decides well, for keys and values in its terms and for queries it never saw. The numbers
//! in brackets are those of docs/testing.md's table of KV-AdaQuant (2502.15075).
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use pollster::block_on;
use rand::rngs::StdRng;
use std::ops::Range;
use std::sync::LazyLock;
use wgkv::low_level::reference::{Scores, attention_exact_with};
use wgkv_testing::*;

/// One device for all tests, so that pipelines are compiled once.
/// Without cooperative matrices, for which queries are rounded to halves.
static GPU: LazyLock<Gpu> = LazyLock::new(|| {
    let gpu = gpu();
    gpu.pretend(Capability { matrices: false, ..*gpu.capability() })
});

/// The same for RotateKV: in loops, since straight-line code takes a software adapter seconds to
/// compile.
static ROLLED: LazyLock<Gpu> = LazyLock::new(|| GPU.pretend(Capability { straight: false, ..*GPU.capability() }));

/// Relative error of an output error against f64: attention over past positions is f32's, 1e-6 of
/// the output, of which the changes measured here are a thousandth at least (8 bits), and as their
/// squares are what counts, twice that; and as much to spare.
const OUTPUT_ERROR: f64 = 2e-4;

/// The same of the change that codes make, since keys and values are unpacked to halves: the error
/// of a half is 2^-12 of a number in the worst case, that of 8 bits 2^-8 of the largest in its group,
/// so it adds its share of 2^-8 of the squares, and as much again where a number is below the
/// largest; seen were 6e-3. Fewer bits make larger changes, of which it is less.
const UNPACKED_ERROR: f64 = 2e-2;

/// Relative error of sums of squares of numbers that are equal on both sides: a difference's
/// rounding in f32, and that of sums of up to 512 products as a tree of 21 roundings.
const SUM_ERROR: f64 = 4e-6;

/// Relative error of singular values from a Gram matrix: that of the matrix, over the square of the
/// smallest by the largest, which is a third at least for 300 rows of 64 random numbers.
const SPECTRUM_ERROR: f64 = 20.0 * SUM_ERROR;

/// Relative error of sums of few terms in another order, in f64.
const ROUNDING: f64 = 1e-12;

/// Outputs of the attention block in these tests: another number than the channels of all heads.
const HIDDEN: u32 = 96;

fn candidates(bits: &[Bits], group: u32) -> Vec<Precision> {
    bits.iter().map(|bits| precision(*bits, group)).collect()
}

fn plain(codec: Codec) -> Format {
    Format::new(codec, Bits::Four, Bits::Four, 128)
}

fn rotating(heads: u32) -> Format {
    plain(Codec::RotateKv).with_heads_per_group(heads)
}

fn gpu_of(format: &Format) -> &'static Gpu {
    if format.codec() == Codec::RotateKv { &ROLLED } else { &GPU }
}

/// What is measured, and how.
#[derive(Clone)]
struct Setting {
    shape: Shape,
    format: Format,
    candidates: Vec<Precision>,
    sinks: Sinks,
    /// What the codec learned from sample text.
    learned: Option<Learned>,
    /// By layer: `[HIDDEN, query_heads, head_dim]`; none where they are not told.
    projections: Vec<Vec<f32>>,
    /// What the plan has beyond shape and format: the probe is then of the plan.
    scoring: Option<fn(PlanBuilder) -> PlanBuilder>,
}

impl Setting {
    fn new(shape: Shape, format: Format, candidates: Vec<Precision>) -> Self {
        Self { shape, format, candidates, sinks: Sinks::None, learned: None, projections: Vec::new(), scoring: None }
    }

    /// The same with random output projections.
    fn projected(mut self, random: &mut StdRng) -> Self {
        let numbers = (HIDDEN * self.shape.query_heads * self.shape.head_dim) as usize;
        self.projections = (0..self.shape.layers).map(|_| normals(random, numbers)).collect();
        self
    }

    fn begin(&self, tokens: usize) -> Result<Probe> {
        let Self { shape, format, candidates, sinks, learned, projections, scoring } = self;
        let gpu = gpu_of(format);
        let mut probe = match scoring {
            None => block_on(Sensitivity::probe(gpu, shape, *format, candidates, learned.as_ref(), *sinks, tokens as u32))?,
            Some(with) => {
                // Its own bits, window and capacity are not those of the probe's caches.
                let first = format.with_precisions(candidates[0], candidates[0]);
                let builder = with(Plan::builder(shape.clone(), first).protection(Protection { sinks: *sinks, window: 16 }));
                let plan = learning(builder, learned.as_ref()).capacity(Capacity::tokens(2, 64)).max_tokens(64).build(gpu.capability())?;
                block_on(Sensitivity::probe_plan(gpu, &plan, candidates, tokens as u32))?
            }
        };
        for (layer, weights) in (0..).zip(projections) {
            block_on(probe.output_projection(layer, Rows::f32(&upload(gpu, weights)), HIDDEN))?;
        }
        Ok(probe)
    }

    /// Measures windows.
    fn probe(&self, texts: &[&Text]) -> Probe {
        let mut probe = self.begin(texts.iter().map(|text| text.tokens()).max().unwrap()).unwrap();
        for text in texts {
            self.window(&mut probe, text).unwrap();
        }
        probe
    }

    fn measure(&self, text: &Text) -> Sensitivity {
        self.probe(&[text]).finish("test").unwrap()
    }

    fn window(&self, probe: &mut Probe, text: &Text) -> Result<()> {
        probe.begin(text.tokens() as u32)?;
        (0..self.shape.layers).try_for_each(|layer| self.add(probe, layer, text))
    }

    fn add(&self, probe: &mut Probe, layer: u32, text: &Text) -> Result<()> {
        let buffers = text.layers[layer as usize].each_ref().map(|numbers| upload(gpu_of(&self.format), numbers));
        let [keys, values, queries, residual] = buffers.each_ref().map(Rows::f32);
        block_on(probe.add(layer, queries, keys, values, Some((residual, STREAM as u32))))
    }

    /// A real cache with these precisions for all heads; exact ones have no sinks.
    fn reader(&self, format: Format, [key, value]: [Precision; 2], text: &Text) -> (Reader, Sequence) {
        let gpu = gpu_of(&self.format);
        let bit_plan = BitPlan::new(&self.shape, format, |_, _| [key, value]).unwrap();
        let sinks = if format.codec() == Codec::F16 { Sinks::None } else { self.sinks };
        let (tokens, protection) = (text.tokens(), Protection { sinks, window: 0 });
        let builder = Plan::builder(self.shape.clone(), bit_plan).protection(protection).capacity(Capacity::tokens(1, tokens as u32));
        let builder = self.scoring.iter().fold(builder, |builder, with| with(builder));
        let learned = self.learned.as_ref().filter(|_| format.codec() == self.format.codec());
        let mut reader = Reader::new(gpu, learning(builder, learned).build(gpu.capability()).unwrap());
        let sequence = reader.cache.begin().unwrap();
        (reader, sequence)
    }

    /// What such a cache stores of a text, by layer.
    fn stored(&self, format: Format, precisions: [Precision; 2], text: &Text) -> Vec<[Vec<f32>; 2]> {
        let (mut reader, sequence) = self.reader(format, precisions, text);
        reader.store(sequence, text, text.tokens());
        (0..self.shape.layers).map(|layer| reader.stored(sequence, layer)).collect()
    }
}

/// Attention in f64 of the sampled queries of a layer over what is stored: `[sampled, query_heads,
/// head_dim]`.
fn sampled_attention(shape: &Shape, scores: &Scores<'_>, span: Span, [keys, values]: [&[f32]; 2], queries: &[f32]) -> Vec<f64> {
    let width = (shape.query_heads * shape.head_dim) as usize;
    if span != Span::All {
        let still = Shape { rope: Rope::none(), ..shape.clone() };
        let row = (shape.kv_heads * shape.head_dim) as usize;
        let of = |position: u32| {
            let (first, end) = (span.first(position) as usize * row, (position + 1) as usize * row);
            let query = turned_to(shape, &queries[position as usize * width..], position, 1);
            attention_exact_with(&still, scores, &keys[first..end], &values[first..end], &query, 1)
        };
        return Probe::sampled((queries.len() / width) as u32).into_iter().flatten().flat_map(of).collect();
    }
    let of =
        |range: Range<u32>| attention_over_with(shape, scores, [keys, values], &queries[range.start as usize * width..], range.start, range.end - range.start);
    Probe::sampled((queries.len() / width) as u32).into_iter().flat_map(of).collect()
}

fn squares(row: impl IntoIterator<Item = f64>) -> f64 {
    row.into_iter().map(|x| x * x).sum()
}

/// By query head: the mean over rows of the squared length of its share of the block's output.
fn shares(shape: &Shape, rows: &[f64], projection: Option<&Vec<f32>>) -> Vec<f64> {
    let (d, heads) = (shape.head_dim as usize, shape.query_heads as usize);
    let count = rows.len() / (d * heads);
    let share = |row: &[f64], head: usize| match projection {
        None => squares(row.iter().copied()),
        Some(weights) => squares(weights.chunks_exact(d * heads).map(|w| w[head * d..][..d].iter().zip(row).map(|(w, x)| f64::from(*w) * x).sum())),
    };
    let mut sums = vec![0.0; heads];
    for (n, row) in rows.chunks_exact(d).enumerate() {
        sums[n % heads] += share(row, n % heads) / count as f64;
    }
    sums
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// One KV head of rows `[tokens, kv_heads, head_dim]`.
fn head_rows(shape: &Shape, rows: &[f32], head: u32) -> Vec<Vec<f64>> {
    let d = shape.head_dim as usize;
    rows.chunks_exact(d).skip(head as usize).step_by(shape.kv_heads as usize).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
}

#[track_caller]
fn near(name: &str, got: f64, want: f64, tolerance: f64) {
    // A NaN compares false, so it fails too.
    assert!((got - want).abs() <= tolerance * want, "{name}: {got:e}, wanted {want:e}: {:e} apart, allowed are {tolerance:e}", (got - want).abs() / want);
}

/// Singular values of a matrix, descending: rotations of two columns each (Hestenes' one-sided
/// Jacobi method), until all are orthogonal. No Gram matrix is made.
fn singular_values(rows: &[Vec<f64>]) -> Vec<f64> {
    let mut columns: Vec<Vec<f64>> = (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i]).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let mut turned = true;
    while turned {
        turned = false;
        for q in 1..columns.len() {
            let (left, right) = columns.split_at_mut(q);
            for p in left {
                let (a, b, both) = (dot(p, p), dot(&right[0], &right[0]), dot(p, &right[0]));
                if both.abs() <= 1e-12 * (a * b).sqrt() {
                    continue;
                }
                turned = true;
                let ratio = (b - a) / (2.0 * both);
                let tangent = ratio.signum() / (ratio.abs() + ratio.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                for (x, y) in p.iter_mut().zip(&mut right[0]) {
                    (*x, *y) = (cosine * (*x - tangent * *y), cosine * (*y + tangent * *x));
                }
            }
        }
    }
    let mut values: Vec<f64> = columns.iter().map(|column| dot(column, column).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

#[test]
fn what_is_measured_is_what_f64_says() {
    use Bits::{Eight, Four, Three, Two};
    let (mut random, seed) = seeded();
    let shape = Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let mixed = vec![precision(Two, 32), precision(Three, 64), precision(Eight, 64)];
    let of = |format, candidates| Setting::new(shape.clone(), format, candidates);
    let settings = [
        of(plain(Codec::Rtn), mixed.clone()).projected(&mut random),
        Setting { sinks: Sinks::First(4), ..of(plain(Codec::Hadamard), mixed) },
        Setting {
            sinks: Sinks::Massive(9),
            learned: Some(random_order(&shape, &rotating(2), Reach::Global, &mut random).into()),
            ..of(rotating(2), candidates(&[Two, Four], 64)).projected(&mut random)
        },
        Setting {
            learned: Some(random_order(&shape, &rotating(1), Reach::Global, &mut random).into()),
            ..of(rotating(1).with_scales(Scales::Byte), candidates(&[Three], 64))
        },
        // With the means that the cache to come is given: without them its codes would hold more.
        Setting {
            learned: Some(random_means(&shape, &normals(&mut random, 128), &mut random).into()),
            ..of(plain(Codec::Centred), candidates(&[Two, Four], 64))
        },
        // What a plan makes of scores; Gemma 2's, gpt-oss's, and both with rows that come turned.
        Setting { scoring: Some(|plan| plan.score_scale(0.2).soft_cap(3.0)), ..of(plain(Codec::Hadamard), candidates(&[Two, Four], 64)) },
        Setting {
            scoring: Some(|plan| plan.sink_logits([1.5, -0.5, 0.0, 3.0].repeat(2))),
            ..of(plain(Codec::Rtn), candidates(&[Three], 32)).projected(&mut random)
        },
        Setting {
            scoring: Some(|plan| plan.score_scale(0.07).soft_cap(2.0).sink_logits(vec![0.5; 8]).turned_rows(true)),
            learned: Some(random_means(&shape, &normals(&mut random, 128), &mut random).into()),
            sinks: Sinks::First(4),
            ..of(plain(Codec::Centred), candidates(&[Two, Four], 64))
        },
        Setting {
            scoring: Some(|plan| plan.sliding_window(40).soft_cap(3.0)),
            sinks: Sinks::First(4),
            ..of(plain(Codec::Hadamard), candidates(&[Two, Four], 64))
        },
        Setting {
            scoring: Some(|plan| plan.score_scale(0.2).turned_rows(true)),
            learned: Some(random_order(&shape, &rotating(2), Reach::Global, &mut random).into()),
            ..of(rotating(2), candidates(&[Four], 64))
        },
    ];
    for setting in settings {
        let text = Text::normal(&mut random, &shape, 300);
        let probe = setting.probe(&[&text]);
        let measured = probe.finish("test").unwrap();
        let restores = setting.format.codec() == Codec::RotateKv;
        let tolerance = UNPACKED_ERROR;
        let exact = setting.stored(Format::f16(), [Precision::F16; 2], &text);
        // RotateKV's keys are codes: values are compared under keys of 8 bits, or 4 where bytes for
        // scales have no more.
        let key = match (restores, setting.format.scales()) {
            (false, _) => Precision::F16,
            (true, Scales::Half) => precision(Eight, 128),
            (true, _) => precision(Four, 128),
        };
        let control = if restores { setting.stored(setting.format, [key, Precision::F16], &text) } else { exact.clone() };
        let plan = setting.reader(Format::f16(), [Precision::F16; 2], &text).0.cache.plan().clone();
        // Queries that come turned are not turned in f64 either.
        let still = Shape { rope: if plan.turned_rows() { Rope::none() } else { shape.rope.clone() }, ..shape.clone() };
        let attend = |layer: usize, stored: &[Vec<f32>; 2]| {
            sampled_attention(&still, &Scores::of(&plan, layer as u32), plan.span(), [&stored[0], &stored[1]], &text.layers[layer][2])
        };
        let of_kv = |shares: &[f64], head: u32| shares.chunks_exact(shape.share() as usize).nth(head as usize).unwrap().iter().sum::<f64>();
        let mut worst = [0.0_f64; 2];
        for layer in 0..shape.layers {
            let at = layer as usize;
            let projection = setting.projections.get(at);
            let outputs = [&exact, &control].map(|stored| attend(at, &stored[at]));
            let whole = shares(&shape, &outputs[0], projection);
            for head in 0..shape.kv_heads {
                let name = format!("{}, layer {layer}, head {head}. WGKV_SEED={seed}", setting.format);
                near(&format!("output of {name}"), measured.output(layer, head), of_kv(&whole, head), OUTPUT_ERROR);
                for kind in Kind::BOTH {
                    let rows = head_rows(&shape, &exact[at][kind as usize], head);
                    let norm = squares(rows.iter().flatten().copied()).sqrt();
                    near(&format!("norm of {kind} of {name}"), measured.norm(layer, head, kind), norm, SUM_ERROR);
                    check_gram(&format!("Gram matrix of {kind} of {name}"), probe.gram(layer, head, kind), &rows);
                }
            }
            let sum = (0..shape.kv_heads).map(|head| measured.output(layer, head)).sum::<f64>();
            near("weight of a layer", measured.layer_weight(layer), 1.0 / sum, ROUNDING);
        }
        for ((n, candidate), kind) in setting.candidates.iter().enumerate().flat_map(|n| Kind::BOTH.map(|kind| (n, kind))) {
            let precisions = if kind == Kind::Key { [*candidate, Precision::F16] } else { [key, *candidate] };
            let stored = setting.stored(setting.format, precisions, &text);
            for layer in 0..shape.layers {
                let at = layer as usize;
                let without = attend(at, if kind == Kind::Key { &exact[at] } else { &control[at] });
                let errors = shares(&shape, &minus(&attend(at, &stored[at]), &without), setting.projections.get(at));
                for head in 0..shape.kv_heads {
                    let name = format!("{kind} of {candidate}, {}, layer {layer}, head {head}. WGKV_SEED={seed}", setting.format);
                    let (got, want) = (measured.output_errors(layer, head, kind)[n], of_kv(&errors, head));
                    worst[kind as usize] = worst[kind as usize].max((got - want).abs() / want);
                    near(&format!("output error of {name}"), got, want, tolerance);
                    let [own, other] = [&stored[at], &exact[at]].map(|stored| head_rows(&shape, &stored[kind as usize], head).concat());
                    let want = squares(minus(&own, &other)) / squares(other);
                    near(&format!("code error of {name}"), measured.code_errors(layer, head, kind)[n], want, 2.0 * SUM_ERROR);
                }
            }
        }
        println!("{}: output errors of keys and values are {worst:.6?} off", setting.format);
        let sampled: u32 = Probe::sampled(300).iter().map(|range| range.end - range.start).sum();
        assert_eq!((measured.tokens(), measured.queries()), (300, sampled.into()));
        assert_eq!((measured.model(), measured.candidates()), ("test", &setting.candidates[..]));
        assert!(measured.output_errors(2, 0, Kind::Key).is_empty() && measured.output_errors(0, 2, Kind::Key).is_empty());
        assert!(measured.code_errors(0, 2, Kind::Key).is_empty() && measured.norm(2, 0, Kind::Key) == 0.0 && probe.gram(0, 2, Kind::Key).is_empty());
        // What was measured comes back from its file.
        assert_eq!(Sensitivity::from_json(&measured.to_json().unwrap()).unwrap(), measured, "WGKV_SEED={seed}");
    }
}

/// (25, 26) Symmetric, near the rows' own, and with their singular values.
#[track_caller]
fn check_gram(name: &str, gram: &[f64], rows: &[Vec<f64>]) {
    let d = rows[0].len();
    let want = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f64>();
    let largest = gram.iter().fold(0.0, |most, x| x.abs().max(most));
    for (i, j) in (0..d).flat_map(|i| (0..=i).map(move |j| (i, j))) {
        assert!(gram[i * d + j] == gram[j * d + i] && (gram[i * d + j] - want(i, j)).abs() < SUM_ERROR * largest, "{name}: ({i}, {j})");
    }
    // A Gram matrix's own singular values are squares of the rows'.
    let matrix: Vec<Vec<f64>> = gram.chunks_exact(d).map(<[f64]>::to_vec).collect();
    for (n, (got, want)) in singular_values(&matrix).iter().zip(singular_values(rows)).enumerate() {
        near(&format!("singular value {n} of the {name}"), got.sqrt(), want, SPECTRUM_ERROR);
    }
}

#[test]
fn sampled_positions_are_spread_over_the_window() {
    for tokens in (2..3000).chain([4096, 32_768, 131_072]) {
        let ranges = Probe::sampled(tokens);
        assert_eq!(ranges.last().unwrap().end, tokens);
        // A range of one would decode, and see everything.
        assert!(ranges.iter().all(|range| range.start + 2 <= range.end), "{tokens}: {ranges:?}");
        assert!(ranges.windows(2).all(|two| two[0].end <= two[1].start), "{tokens}: {ranges:?}");
        let sampled: u32 = ranges.iter().map(|range| range.end - range.start).sum();
        if tokens < 128 {
            assert_eq!((ranges.len(), &ranges[0]), (1, &(0..tokens)));
        } else {
            assert!((32 + 8..=32 + 64).contains(&sampled) && ranges[0].start == 64, "{tokens}: {ranges:?}");
        }
        if tokens >= 1024 {
            // As many in every part of the logarithm; a run's first position is rounded down to a
            // token, of 64 or more.
            const ROUNDED: f64 = 2.0 / 64.0;
            assert_eq!((ranges.len(), sampled), (9, 96), "{tokens}: {ranges:?}");
            let steps: Vec<f64> = ranges.windows(2).map(|two| f64::from(two[1].start) / f64::from(two[0].start)).collect();
            assert!(steps.iter().all(|step| (step / steps[0] - 1.0).abs() < ROUNDED), "{tokens}: {ranges:?}");
        }
    }
}

/// Numbers in 64ths, none of them so near 0 that a half times 8 has more digits than the half.
fn grid(random: &mut StdRng, n: usize) -> Vec<f32> {
    normals(random, n).into_iter().map(|x| (64.0 * x).round() / 64.0).collect()
}

fn scaled(numbers: &[f32], by: f32) -> Vec<f32> {
    numbers.iter().map(|x| x * by).collect()
}

/// (21) A model that divides its scale otherwise between keys and queries, or between values and
/// the output projection, has the same table and the same bits, to the last bit; but the norms that
/// the published rule decides by are others.
#[test]
fn a_models_gauge_changes_nothing() {
    const GAUGE: f32 = 8.0;
    for codec in [Codec::Rtn, Codec::Hadamard] {
        let (mut random, seed) = seeded();
        let shape = Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::none() };
        let setting = Setting::new(shape.clone(), plain(codec), candidates(&[Bits::Two, Bits::Three, Bits::Four], 64)).projected(&mut random);
        let [kv, _, q, _] = Text::widths(&shape).map(|width| 100 * width);
        let layers = (0..2).map(|_| [kv, kv, q, 100 * STREAM].map(|n| grid(&mut random, n))).collect();
        let text = Text { layers };
        let weights = [[5.0, 4.0], [6.0, 3.5]];
        let measure = |key: f32, value: f32| {
            let mut setting = setting.clone();
            setting.projections.iter_mut().for_each(|weights| *weights = scaled(weights, 1.0 / value));
            let mut text = text.clone();
            for [keys, values, queries, _] in &mut text.layers {
                (*keys, *values, *queries) = (scaled(keys, key), scaled(values, value), scaled(queries, 1.0 / key));
            }
            let norms = weights.iter().map(|[k, v]| [k * f64::from(key), v * f64::from(value)]).collect();
            setting.measure(&text).with_weight_norms(norms).unwrap()
        };
        let choose = |sensitivity: &Sensitivity, bits: f64, rule: &str| {
            BitPlan::choose(&shape, sensitivity, BitBudget::BitsPerElement(bits), rule.parse().unwrap()).unwrap()
        };
        let plain = measure(1.0, 1.0);
        for (key, value) in [(GAUGE, 1.0), (1.0 / GAUGE, GAUGE)] {
            let other = measure(key, value);
            let name = format!("{codec}, keys times {key}, values times {value}. WGKV_SEED={seed}");
            for (layer, head) in (0..2).flat_map(|layer| [(layer, 0), (layer, 1)]) {
                for (kind, by) in Kind::BOTH.into_iter().zip([key, value]) {
                    assert_eq!(other.output_errors(layer, head, kind), plain.output_errors(layer, head, kind), "{name}");
                    assert_eq!(other.code_errors(layer, head, kind), plain.code_errors(layer, head, kind), "{name}");
                    assert_eq!(other.norm(layer, head, kind), f64::from(by) * plain.norm(layer, head, kind), "{name}");
                }
                assert_eq!(other.output(layer, head), plain.output(layer, head), "{name}");
                assert_eq!(other.layer_weight(layer), plain.layer_weight(layer), "{name}");
            }
            for bits in [2.5, 3.0, 3.25, 3.5, 4.0] {
                for rule in ["measured", "measured:fill", "measured:layer"] {
                    assert_eq!(choose(&other, bits, rule), choose(&plain, bits, rule), "{rule} at {bits}: {name}");
                }
            }
            for rule in ["cache-norm", "repo-norm"] {
                let changed = [&other, &plain].map(|sensitivity| choose(sensitivity, 3.5, rule).mean_bits());
                assert_ne!(changed[0], changed[1], "{rule}: {name}");
            }
        }
    }
}

/// Errors of all heads where keys and values have these bits.
fn pair(sensitivity: &Sensitivity, key: Bits, value: Bits) -> f64 {
    let at = |bits| sensitivity.candidates().iter().position(|candidate| candidate.bits == bits).unwrap();
    let heads = (0..sensitivity.layers()).flat_map(|layer| (0..sensitivity.kv_heads()).map(move |head| (layer, head)));
    heads.map(|(layer, head)| sensitivity.output_errors(layer, head, Kind::Key)[at(key)] + sensitivity.output_errors(layer, head, Kind::Value)[at(value)]).sum()
}

/// (18, 19) Keys come first where attention is sharp, values where it is flat: whatever their
/// norms.
#[test]
fn the_spread_of_logits_decides_who_comes_first() {
    /// The notes expect 2.0 and more; 2.25 to 2.45 is what seeds give here.
    const KEYS_FIRST: f64 = 2.0;
    /// The notes expect 5 and more; 9 to 11 is what seeds give here.
    const VALUES_FIRST: f64 = 5.0;
    use Bits::{Four, Three, Two};
    let (mut random, seed) = seeded();
    let shape = Shape { layers: 1, query_heads: 4, kv_heads: 4, head_dim: 64, rope: Rope::none() };
    let setting = Setting::new(shape.clone(), plain(Codec::Rtn), candidates(&[Two, Three, Four], 64));
    // Keys are 8 times as large as values.
    let mut measure = |deviation: f32| {
        let mut text = Text::normal(&mut random, &shape, 1024);
        let [keys, _, queries, _] = &mut text.layers[0];
        (*keys, *queries) = (scaled(keys, 8.0), scaled(queries, deviation / 8.0));
        setting.measure(&text)
    };
    let choose = |sensitivity: &Sensitivity, rule: &str| BitPlan::choose(&shape, sensitivity, BitBudget::BitsPerElement(3.25), rule.parse().unwrap()).unwrap();
    let sharp = measure(2.0);
    let [k4v2, k2v4, k3v3] = [(Four, Two), (Two, Four), (Three, Three)].map(|(key, value)| pair(&sharp, key, value));
    println!("sharp: K2V4 {:.2} times K4V2, K3V3 {:.2} times", k2v4 / k4v2, k3v3 / k4v2);
    assert!(k2v4 >= KEYS_FIRST * k4v2, "K2V4 errs {k2v4}, K4V2 {k4v2}. WGKV_SEED={seed}");
    assert!(k3v3 < k4v2, "K3V3 errs {k3v3}, K4V2 {k4v2}. WGKV_SEED={seed}");

    let flat = measure(0.25);
    let [k4v2, k2v4] = [(Four, Two), (Two, Four)].map(|(key, value)| pair(&flat, key, value));
    println!("flat: K4V2 {:.2} times K2V4", k4v2 / k2v4);
    assert!(k4v2 >= VALUES_FIRST * k2v4, "K4V2 errs {k4v2}, K2V4 {k2v4}. WGKV_SEED={seed}");
    let measured = choose(&flat, "measured");
    let [keys, values] = measured.mean_bits();
    assert!(values > keys && measured.favours_values() == Some([keys, values]), "{keys}, {values}. WGKV_SEED={seed}");
    for sensitivity in [&flat, &sharp] {
        let [keys, values] = choose(sensitivity, "cache-norm").mean_bits();
        assert!(keys > values, "norms say {keys}, {values}. WGKV_SEED={seed}");
    }
    let [keys, values] = choose(&sharp, "measured").mean_bits();
    assert!(keys >= values, "{keys}, {values}. WGKV_SEED={seed}");
}

/// Errors of a plan of bits by another's table.
fn score(bit_plan: &BitPlan, by: &Sensitivity) -> f64 {
    let heads = (0..by.layers()).flat_map(|layer| (0..by.kv_heads()).map(move |head| (layer, head)));
    let error = |(layer, head)| {
        let of = |(kind, precision): (Kind, Precision)| {
            by.layer_weight(layer) * by.output_errors(layer, head, kind)[by.candidates().iter().position(|c| *c == precision).unwrap()]
        };
        Kind::BOTH.into_iter().zip(bit_plan.of(layer, head)).map(of).sum::<f64>()
    };
    heads.map(error).sum()
}

/// (23, 24) Heads differ, and bits that follow what was measured beat the best pair for all of
/// them, also by queries that were not sampled. The 24 heads are those of section 5.7.
#[test]
fn measured_bits_beat_the_best_fixed_pair_on_other_queries() {
    /// Invariant 23, for each seed.
    const BETTER: f64 = 0.9;
    /// Invariant 24, for few queries a head; here are 96.
    const HELD_OUT: f64 = 1.3;
    use Bits::{Four, Three, Two};
    let shape = Shape { layers: 1, query_heads: 24, kv_heads: 24, head_dim: 64, rope: Rope::none() };
    for codec in [Codec::Rtn, Codec::Hadamard] {
        let (mut random, seed) = seeded();
        let setting = Setting::new(shape.clone(), plain(codec), candidates(&[Two, Three, Four], 64));
        let mut text = Text::normal(&mut random, &shape, 512);
        // 60 % of the heads have keys with 4 channels off by 8; logits spread by 1.3 in the median,
        // and heads by 0.7 around it.
        let offsets: Vec<f32> = (0..24 * 64).map(|i| if i / 64 % 5 < 3 && i % 16 == 3 { 8.0 } else { 0.0 }).collect();
        text.layers[0][0].iter_mut().zip(offsets.iter().cycle()).for_each(|(key, offset)| *key += offset);
        let deviations: Vec<f32> = (0..24).map(|_| 1.3 * (0.7 * normal(&mut random)).exp()).collect();
        let asked = |random: &mut StdRng| {
            let mut text = text.clone();
            text.layers[0][2] = normals(random, 512 * 24 * 64).iter().enumerate().map(|(i, x)| x * deviations[i / 64 % 24]).collect();
            text
        };
        let [one, other] = [(); 2].map(|()| asked(&mut random)).map(|text| setting.measure(&text));
        let choose = |by: &Sensitivity, rule| BitPlan::choose(&shape, by, BitBudget::BitsPerElement(3.5), rule).unwrap();
        let [held_out, own] = [&one, &other].map(|by| score(&choose(by, BitRule::default()), &other));
        let pairs = ["K3V3", "K4V2", "K2V4"].map(|pair| (pair, score(&choose(&one, pair.parse().unwrap()), &other)));
        println!("{codec}: {held_out:.4}, on its own queries {own:.4}, {pairs:.4?}");
        let best = pairs.iter().map(|(_, error)| *error).fold(f64::INFINITY, f64::min);
        assert!(held_out <= BETTER * best, "{codec}: {held_out} against {pairs:?}. WGKV_SEED={seed}");
        assert!(held_out <= HELD_OUT * own, "{codec}: {held_out} against {own}. WGKV_SEED={seed}");
    }
}

/// (22) What all units do together is about the sum of what each does alone: so a table of units is
/// enough.
#[test]
fn errors_of_units_add_up() {
    /// Invariant 22, and a little for what heads have in common in the block's output.
    const TOGETHER: Range<f64> = 0.8..1.1;
    let shape = Shape { layers: 1, query_heads: 8, kv_heads: 4, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    for codec in [Codec::Rtn, Codec::Hadamard] {
        let (mut random, seed) = seeded();
        let setting = Setting::new(shape.clone(), plain(codec), candidates(&[Bits::Three], 64)).projected(&mut random);
        // Queries and keys of variance 1: so are the logits.
        let text = Text::normal(&mut random, &shape, 300);
        let measured = setting.measure(&text);
        let outputs = [(Format::f16(), Precision::F16), (setting.format, precision(Bits::Three, 64))].map(|(format, precision)| {
            let (mut reader, sequence) = setting.reader(format, [precision; 2], &text);
            reader.read(sequence, &text, text.tokens())
        });
        let width = (shape.query_heads * shape.head_dim) as usize;
        let [exact, coded] = outputs.each_ref().map(|outputs| floats(&outputs[0]));
        let rows: Vec<usize> = Probe::sampled(300).into_iter().flatten().map(|row| row as usize * width).collect();
        let block = |at: &usize| {
            let change: Vec<f64> = coded[*at..*at + width].iter().zip(&exact[*at..*at + width]).map(|(a, b)| f64::from(a - b)).collect();
            squares(setting.projections[0].chunks_exact(width).map(|w| w.iter().zip(&change).map(|(w, x)| f64::from(*w) * x).sum()))
        };
        let joint = rows.iter().map(block).sum::<f64>() / rows.len() as f64;
        let sum: f64 = (0..4).flat_map(|head| Kind::BOTH.map(|kind| measured.output_errors(0, head, kind)[0])).sum();
        println!("{codec}: {:.3}", sum / joint);
        assert!(TOGETHER.contains(&(sum / joint)), "{codec}: {sum} alone, {joint} together. WGKV_SEED={seed}");
    }
}

/// Windows count as their queries do, whatever came before them, and however short they are.
#[test]
fn windows_add_up() {
    let (mut random, seed) = seeded();
    let shape = Shape { layers: 2, query_heads: 2, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let setting = Setting {
        sinks: Sinks::First(3),
        ..Setting::new(shape.clone(), plain(Codec::Hadamard), candidates(&[Bits::Two, Bits::Four], 64)).projected(&mut random)
    };
    let texts = [150, 150, 2, 40, 200].map(|tokens| Text::normal(&mut random, &shape, tokens));
    let all = setting.probe(&texts.each_ref()).finish("test").unwrap();
    let each = texts.each_ref().map(|text| setting.measure(text));
    let [tokens, queries] = [Sensitivity::tokens, Sensitivity::queries].map(|of| each.iter().map(of).sum::<u64>());
    assert_eq!((all.tokens(), all.queries()), (tokens, queries));
    assert_eq!((each[2].tokens(), each[2].queries(), each[3].queries()), (2, 2, 40));
    let mean = |of: &dyn Fn(&Sensitivity) -> f64| each.iter().map(|one| of(one) * one.queries() as f64).sum::<f64>() / queries as f64;
    for (layer, head) in (0..2).flat_map(|layer| [(layer, 0), (layer, 1)]) {
        let name = format!("layer {layer}, head {head}. WGKV_SEED={seed}");
        near(&format!("output of {name}"), all.output(layer, head), mean(&|one| one.output(layer, head)), ROUNDING);
        for kind in Kind::BOTH {
            let name = format!("{kind} of {name}");
            let norm = each.iter().map(|one| one.norm(layer, head, kind).powi(2)).sum::<f64>();
            near(&format!("norm of {name}"), all.norm(layer, head, kind), norm.sqrt(), ROUNDING);
            for n in 0..2 {
                near(
                    &format!("output error of {name}"),
                    all.output_errors(layer, head, kind)[n],
                    mean(&|one| one.output_errors(layer, head, kind)[n]),
                    ROUNDING,
                );
                let code = each.iter().map(|one| one.code_errors(layer, head, kind)[n] * one.norm(layer, head, kind).powi(2)).sum::<f64>();
                near(&format!("code error of {name}"), all.code_errors(layer, head, kind)[n], code / norm, ROUNDING);
            }
        }
    }
    // Two tokens, of which three sinks would be kept, lose nothing but the rounding to halves: of
    // each number's square 2^-22 at most. Codes of 4 bits lose 0.8 %
    // (`normal_numbers_lose_what_the_quantizers_distortion_says`), of which the sinks among 40
    // tokens take little.
    const HALVES_LOSE: f64 = 1.0 / 4_194_304.0;
    const CODES_LOSE: f64 = 0.004;
    let errors = |text: usize| Kind::BOTH.map(|kind| each[text].code_errors(0, 0, kind)[1]);
    assert!(errors(2).iter().all(|error| *error < HALVES_LOSE), "{:?}. WGKV_SEED={seed}", errors(2));
    assert!(errors(3).iter().all(|error| *error > CODES_LOSE), "{:?}. WGKV_SEED={seed}", errors(3));
}

/// Keys and values in f16 are as good as the same numbers in f32.
#[test]
fn rows_may_be_halves() {
    let (mut random, seed) = seeded();
    let shape = Shape { layers: 1, query_heads: 4, kv_heads: 2, head_dim: 80, rope: Rope::new(10_000.0, 80) };
    let setting = Setting::new(shape.clone(), plain(Codec::Rtn), candidates(&[Bits::Three], 128));
    let mut text = Text::normal(&mut random, &shape, 150);
    let halves = |numbers: &mut Vec<f32>| {
        let halves: Vec<half::f16> = numbers.iter().map(|x| half::f16::from_f32(*x)).collect();
        *numbers = halves.iter().map(|x| x.to_f32()).collect();
        let words: Vec<u32> = halves.chunks_exact(2).map(|two| u32::from(two[0].to_bits()) | u32::from(two[1].to_bits()) << 16).collect();
        upload(&GPU, bytemuck::cast_slice(&words))
    };
    let [keys, values, queries, _] = &mut text.layers[0];
    let [keys, values] = [keys, values].map(halves);
    let queries = upload(&GPU, queries);
    let mut probe = setting.begin(150).unwrap();
    probe.begin(150).unwrap();
    let rows = |buffer| Rows::f16(buffer);
    block_on(probe.add(0, Rows::f32(&queries), rows(&keys), rows(&values), None)).unwrap();
    assert_eq!(probe.finish("test").unwrap(), setting.measure(&text), "WGKV_SEED={seed}");
}

fn not_of(name: &'static str, wanted: &str, had: &str) -> Error {
    Error::mismatch(Thing::Sensitivity, name, wanted, had)
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let (mut random, _) = seeded();
    let shape = Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::none() };
    let four = candidates(&[Bits::Four], 64);
    let begin = |format, candidates: &[Precision], sinks| Setting { sinks, ..Setting::new(shape.clone(), format, candidates.to_vec()) }.begin(100);
    refused(begin(plain(Codec::Rtn), &[], Sinks::None), &not_of("candidates", "1 or more", "0"));
    for codec in [Codec::F16, Codec::AlignedF16] {
        refused(begin(plain(codec), &four, Sinks::None), &not_of("codec", "one that has codes", &codec.to_string()));
    }
    refused(begin(plain(Codec::Rtn), &[precision(Bits::Four, 48)], Sinks::None), &Error::Group { group: 48, head_dim: 64 });
    let wanted = "given by PlanBuilder::learned, as rotate-kv needs one".to_owned();
    refused(begin(rotating(2), &four, Sinks::None), &Error::mismatch(Thing::ChannelOrder, "presence", wanted, "none"));
    let means = Setting { learned: Some(Means::natural(&shape).into()), ..Setting::new(shape.clone(), plain(Codec::Rtn), four.clone()) };
    refused(means.begin(100), &Error::mismatch(Thing::Means, "codec", "centred", "rtn"));
    refused(begin(plain(Codec::Rtn), &four, Sinks::Massive(65)), &Error::argument("massive sinks", "1 to 64", 65));

    let setting = Setting::new(shape.clone(), plain(Codec::Rtn), four.clone());
    let text = Text::normal(&mut random, &shape, 100);
    let mut probe = setting.begin(100).unwrap();
    refused(setting.add(&mut probe, 0, &text), &not_of("window", "begun before a layer is added", "not"));
    refused(probe.finish("test"), &not_of("tokens of layer 0", "1, as in layer 0, and not 0", "0"));
    for tokens in [0, 1] {
        refused(probe.begin(tokens), &Error::argument("tokens of a window", "2 or more", tokens));
    }
    // 101 tokens would fit its pages; 4000 would not.
    for tokens in [101, 4000] {
        refused(probe.begin(tokens), &Error::Length { slot: 0, need: tokens.into(), have: 100 });
    }
    probe.begin(100).unwrap();
    let [keys, values, queries, _] = text.layers[0].each_ref().map(|numbers| upload(&GPU, numbers));
    let [k, v, q] = [&keys, &values, &queries].map(Rows::f32);
    let mut add = |layer, q, k, v| block_on(probe.add(layer, q, k, v, None));
    refused(add(2, q, k, v), &Error::Layer { had: 2, layers: 2 });
    refused(add(0, Rows { element: Element::F16, ..q }, k, v), &Error::argument("queries", "f32", "f16"));
    refused(add(0, q, k, Rows { element: Element::F16, ..v }), &Error::argument("values", "f32", "f16"));
    refused(add(0, k, k, v), &Error::Rows { name: "queries", need: 4 * 100 * 256, have: 4 * 100 * 128 });
    refused(add(0, q, Rows { offset: 256, ..k }, v), &Error::Rows { name: "keys", need: 4 * 100 * 128, have: 4 * 100 * 128 - 256 });
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let mute = GPU.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: queries.size(), usage, mapped_at_creation: false });
    refused(add(0, Rows::f32(&mute), k, v), &Error::Usage { name: "queries", need: "COPY_SRC" });
    refused(block_on(probe.output_projection(2, q, 3)), &Error::Layer { had: 2, layers: 2 });
    refused(block_on(probe.output_projection(0, q, 101)), &Error::Rows { name: "rows", need: 4 * 101 * 256, have: 4 * 100 * 256 });

    // Numbers that are not finite; then the same layer once more, as it should be.
    for (which, number, want) in [
        (0, f32::NAN, not_of("keys and values", "finite", "not in layer 1: the key of token 3, head 1")),
        (1, f32::INFINITY, not_of("keys and values", "finite", "not in layer 1: the value of token 3, head 1")),
    ] {
        let mut broken = text.clone();
        broken.layers[1][which][(3 * 2 + 1) * 64 + 7] = number;
        refused(setting.add(&mut probe, 1, &broken), &want);
    }
    let mut broken = text.clone();
    broken.layers[1][2][99 * 256] = f32::NAN;
    let refusal = setting.add(&mut probe, 1, &broken);
    assert!(matches!(&refusal, Err(Error::Mismatch { of: Thing::Sensitivity, wanted, .. }) if wanted == "finite"), "{refusal:?}");
    setting.add(&mut probe, 1, &text).unwrap();
    refused(probe.finish("test"), &not_of("tokens of layer 0", "1, as in layer 0, and not 0", "0"));
    setting.add(&mut probe, 0, &text).unwrap();
    assert_eq!(probe.finish("test").unwrap(), setting.measure(&text), "what was refused left no trace");
    // A second window of which a layer is missing.
    probe.begin(60).unwrap();
    setting.add(&mut probe, 0, &Text::normal(&mut random, &shape, 60)).unwrap();
    refused(probe.finish("test"), &not_of("tokens of layer 1", "160, as in layer 0, and not 0", "100"));

    // Sinks that are elected need the residual stream.
    let setting = Setting {
        sinks: Sinks::Massive(4),
        learned: Some(random_order(&shape, &rotating(2), Reach::Global, &mut random).into()),
        ..Setting::new(shape.clone(), rotating(2), candidates(&[Bits::Two], 64))
    };
    let mut probe = setting.begin(100).unwrap();
    probe.begin(100).unwrap();
    let [keys, values, queries, _] = text.layers[0].each_ref().map(|numbers| upload(&ROLLED, numbers));
    let unelected = block_on(probe.add(0, Rows::f32(&queries), Rows::f32(&keys), Rows::f32(&values), None));
    refused(unelected, &Error::Unelected { layer: 0, sinks: "massive:4".into() });
    setting.window(&mut probe, &text).unwrap();
    assert!(probe.finish("test").is_ok());
}

#[test]
fn candidates_that_are_worth_measuring_fit() {
    let list = |head_dim, format: Format| {
        let shape = Shape { layers: 1, query_heads: 2, kv_heads: 2, head_dim, rope: Rope::none() };
        let candidates = Sensitivity::default_candidates(&shape, &format);
        for candidate in &candidates {
            assert!(BitPlan::new(&shape, format, |_, _| [*candidate; 2]).is_ok(), "{candidate} of {head_dim}");
        }
        candidates.iter().map(Precision::to_string).collect::<Vec<_>>().join(" ")
    };
    let byte = plain(Codec::Hadamard).with_scales(Scales::Byte);
    assert_eq!(list(128, plain(Codec::Rtn)), "2/128 2/64 2/32 3/128 3/64 3/32 4/128 4/64 4/32 8/128");
    assert_eq!(list(256, plain(Codec::Rtn)), "2/128 2/64 2/32 3/128 3/64 3/32 4/128 4/64 4/32 8/128");
    assert_eq!(list(128, byte), "2/128 2/64 2/32 3/128 3/64 3/32 4/128 4/64 4/32");
    assert_eq!(list(64, plain(Codec::Hadamard)), "2/64 2/32 3/64 3/32 4/64 4/32 8/64");
    assert_eq!(list(96, plain(Codec::Rtn)), "2/32 3/32 4/32 8/32");
    assert_eq!(list(80, plain(Codec::Rtn)), "2/128 3/128 4/128 8/128");
    assert_eq!(list(64, rotating(2)), "2/64 2/32 3/64 3/32 4/64 4/32 8/64");
}
