//! The whole way: append and attend against attention in f64 on the same numbers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rand::rngs::StdRng;
use wgkv::low_level::reference::attention_exact;
use wgkv_testing::*;

/// Relative RMS error of attention over independent normal numbers, where the values average out
/// and the codes' error does not: the hardest case there is. f16: half's 2^-11 on keys and values.
/// The others: the quantizer's own error, which for a group of n normal numbers over b bits is
/// about 2 x 2.6 / (2^b - 1) / sqrt(12), on keys and on values, and half as much again to spare. A
/// wrong plane, scale, page or position gives 1 and more.
fn budget(format: &Format) -> f64 {
    match format.key().bits.min(format.value().bits).get() {
        16 => 1e-3,
        8 => 0.03,
        4 => 0.25,
        3 => 0.5,
        _ => 0.9,
    }
}

/// How far outputs are from what they should be. Together they keep within the budget, each counted
/// alike however many tokens it has. One alone can be further off by chance, where the score of a
/// token that has much of the weight is rounded by three times what is usual, but by no more than
/// twice the budget, nor near the 1.4 that another text's output would be.
#[derive(Default)]
struct Distance {
    outputs: u32,
    squares: f64,
}

impl Distance {
    fn add(&mut self, got: &[f32], want: &[f64], format: &Format, name: &str) {
        assert_eq!(got.len(), want.len());
        let square = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>() / want.iter().map(|x| x * x).sum::<f64>();
        let (error, allowed) = (square.sqrt(), (2.0 * budget(format)).min(1.2));
        // A NaN compares false, so it fails too.
        assert!(error < allowed, "{format}, {name}: relative error {error}, allowed {allowed}");
        self.outputs += 1;
        self.squares += square;
    }

    fn assert(&self, format: &Format, name: &str) {
        let (error, allowed) = ((self.squares / f64::from(self.outputs)).sqrt(), budget(format));
        assert!(error < allowed, "{format}, {name}: relative error {error} of {} outputs, allowed {allowed}", self.outputs);
    }
}

/// A plan with a random order of channels, or means, where the format needs them.
fn planned(gpu: &Gpu, random: &mut StdRng, shape: &Shape, format: Format, protection: Protection, budget: Capacity) -> Plan {
    planning(random, shape, format, protection, budget).build(gpu.capability()).unwrap()
}

/// The same before it is built.
fn planning(random: &mut StdRng, shape: &Shape, format: Format, protection: Protection, budget: Capacity) -> PlanBuilder {
    let plan = Plan::builder(shape.clone(), format).protection(protection).capacity(budget);
    if format.codec() == Codec::Centred {
        // Means that the rows do not have: small ones, since their squares are added to what the
        // codes must hold.
        let mut means = || normals(random, (shape.kv_heads * shape.head_dim) as usize).iter().map(|x| 0.3 * x).collect::<Vec<f32>>();
        let layer = [means(), vec![1.0; (shape.kv_heads * shape.head_dim) as usize], means()];
        return plan.learned(Means::new(shape, "", vec![layer; shape.layers as usize]).unwrap());
    }
    if format.codec() != Codec::RotateKv {
        return plan;
    }
    plan.learned(random_order(shape, &format, Reach::Global, random))
}

/// A sequence grows by a prefill and then token by token; the outputs of both are compared with
/// f64.
fn follow(gpu: &Gpu, random: &mut StdRng, shape: &Shape, format: Format, protection: Protection, alignment: Alignment) {
    let (prefill, decode) = (300, 3);
    let d = shape.head_dim as usize;
    let (hq, hk) = (shape.query_heads as usize, shape.kv_heads as usize);
    let tokens = prefill + decode;
    let keys = normals(random, tokens * hk * d);
    let values = normals(random, tokens * hk * d);
    let queries = normals(random, tokens * hq * d);
    let plan = planning(random, shape, format, protection, Capacity::tokens(1, tokens as u32)).alignment(alignment).build(gpu.capability()).unwrap();
    let residual = normals(random, tokens * 8);
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    let mut cache = Cache::new(gpu, plan).unwrap();
    let sequence = cache.begin().unwrap();
    let (mut at, mut far) = (0, Distance::default());
    for n in std::iter::once(prefill).chain(std::iter::repeat_n(1, decode)) {
        let rows = |numbers: &[f32], width: usize| upload(gpu, &numbers[at * width..(at + n) * width]);
        let (k, v, q) = (rows(&keys, hk * d), rows(&values, hk * d), rows(&queries, hq * d));
        let out = poisoned(gpu, n * hq * d);
        let step = cache.step(&[Chunk { sequence, tokens: n as u32 }]).unwrap();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.elect(&mut encoder, &step, 0, Rows::f32(&rows(&residual, 8)), 8).unwrap();
        cache.append(&mut encoder, &step, 0, Rows::f32(&k), Rows::f32(&v)).unwrap();
        cache.attend(&mut encoder, &step, 0, Rows::f32(&q), Rows::f32(&out)).unwrap();
        gpu.queue().submit([encoder.finish()]);
        let got = download(gpu, &out, n * hq * d);
        at += n;
        let want = attention_exact(shape, &keys[..at * hk * d], &values[..at * hk * d], &queries[(at - n) * hq * d..at * hq * d], n);
        let name = format!("head_dim {d}, {hq}/{hk} heads, {protection:?}, {at} tokens");
        far.add(&got, &want, &format, &name);
        if at == prefill || at == tokens {
            far.assert(&format, &name);
            far = Distance::default();
        }
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
    let strict = Protection::NONE;
    use Bits::{Eight, Four, Three, Two};
    use Codec::{Hadamard, Rtn};
    // (head_dim, query heads, KV heads, format, protection), each with what it is there for.
    let cases = [
        (128, 8, 2, Format::f16(), strict),                                         // the control, two factors of 16 and 8
        (128, 8, 2, coded(Hadamard, Two, Two, 128), window),                        // the format that matters most
        (128, 4, 4, coded(Hadamard, Four, Two, 32), strict),                        // one query head a KV head; four groups a head
        (64, 7, 1, coded(Rtn, Eight, Eight, 64), strict),                           // an odd share: two blocks, the second not full
        (64, 6, 3, coded(Hadamard, Three, Three, 32), sinks),                       // the two planes of three bits; a share of two
        (80, 2, 2, coded(Hadamard, Four, Four, 128), window),                       // Kronecker 20 x 4; a group that is the whole head
        (80, 3, 1, coded(Rtn, Three, Eight, 128), strict),                          // the plane of third bits that ends in half a word
        (96, 4, 2, coded(Hadamard, Two, Four, 32), sinks),                          // Kronecker 12 x 8; three groups
        (256, 5, 1, coded(Hadamard, Eight, Three, 64), strict),                     // two quads a lane
        (256, 1, 1, coded(Rtn, Four, Two, 32), window),                             // eight groups a head
        (64, 16, 1, Format::f16(), window),                                         // the largest share; f16 ignores the protection
        (128, 8, 2, Format::aligned_f16(), strict),                                 // planes, read in two passes
        (80, 3, 1, Format::aligned_f16(), window),                                  // a block with a place to spare; few tokens packed
        (256, 5, 1, Format::aligned_f16(), sinks),                                  // two quads a lane, two blocks
        (128, 8, 4, rotated(Two, Two, 128, 4), strict),                             // RotateKV as its authors have it
        (128, 8, 8, rotated(Eight, Eight, 128, 4), strict),                         // its rotation and order undone; a share of one
        (64, 8, 4, rotated(Eight, Eight, 128, 4), massive(20, 0)),                  // groups of two heads; a share of two; elected sinks
        (64, 16, 4, rotated(Eight, Eight, 64, 2), window),                          // a share of four
        (64, 16, 2, rotated(Eight, Eight, 32, 2), strict),                          // a share of eight
        (96, 3, 3, rotated(Four, Two, 32, 1), massive(20, 128)),                    // three heads, elected sinks and a window
        (80, 12, 6, rotated(Three, Four, 128, 2).with_scales(Scales::Byte), sinks), // Kronecker 20 x 4; scales of a byte
        (64, 8, 8, rotated(Four, Four, 128, 8), window),                            // eight heads at once
        (128, 8, 2, centred(Four, Four, 128), strict),                              // means that the keys do not have
        (128, 8, 2, centred(Eight, Eight, 128), window),                            // the same with a window
        (64, 7, 1, centred(Eight, Eight, 32), sinks),                               // an odd share
        (80, 3, 1, centred(Eight, Eight, 128), window),                             // Kronecker 20 x 4
        (256, 5, 1, centred(Eight, Eight, 64), strict),                             // two quads a lane
        (192, 5, 1, Format::f16(), strict),                                         // the second quads fill half the lanes
        (192, 8, 2, coded(Hadamard, Four, Four, 64), window),                       // Kronecker 12 x 16
        (192, 4, 1, centred(Eight, Eight, 64), window),                             // means of a head of 192
        (512, 8, 2, coded(Hadamard, Four, Four, 128), window),                      // 32 x 16
        (512, 4, 1, centred(Eight, Eight, 128), window),                            // means of a head of 512
        (128, 8, 2, trellis(128), window),                                          // a trellis of both
        (80, 3, 1, trellis_beside(true, Four), sinks),                              // of keys: five words of them
        (256, 5, 1, trellis_beside(false, Three), strict),                          // of values: two groups
    ];
    for (head_dim, query_heads, kv_heads, format, protection) in cases {
        let shape = Shape { layers: 1, query_heads, kv_heads, head_dim, rope: Rope::new(10_000.0, head_dim) };
        follow(&gpu, random, &shape, format, protection, Alignment::EVERYTHING);
    }
    // Codes in planes, of which so much is read that the budget of their bits still holds.
    for (head_dim, query_heads, kv_heads, format, protection) in [
        (128, 8, 2, coded(Hadamard, Four, Four, 128), strict), // the format that planes matter most for
        (80, 3, 1, coded(Rtn, Eight, Eight, 128), window),     // a block with a place to spare; few tokens packed
        (256, 5, 1, coded(Hadamard, Eight, Four, 32), sinks),  // two quads a lane, eight groups, two blocks
        (64, 2, 2, coded(Hadamard, Four, Eight, 64), strict),  // a share of one
        (128, 8, 2, centred(Four, Four, 128), strict),         // means that the keys do not have
        (192, 3, 1, coded(Hadamard, Four, Eight, 64), window), // the second quads fill half the lanes
        (64, 7, 1, centred(Eight, Eight, 32), window),         // the same with a window; an odd share
    ] {
        let shape = Shape { layers: 1, query_heads, kv_heads, head_dim, rope: Rope::new(10_000.0, head_dim) };
        follow(&gpu, random, &shape, format, protection, Alignment::budget(0.0, 0.0));
        follow(&gpu, random, &shape, format, protection, Alignment::budget(0.25, 0.25));
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
        follow(&gpu, random, &shape(rope.clone()), Format::f16(), Protection::NONE, Alignment::EVERYTHING);
        follow(&gpu, random, &shape(rope), rotated(Bits::Eight, Bits::Eight, 64, 1), Protection::NONE, Alignment::EVERYTHING);
    }
}

#[test]
fn weaker_devices_give_the_same_attention() {
    let gpu = gpu();
    let random = &mut generator();
    let shape = Shape { layers: 1, query_heads: 8, kv_heads: 4, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let format = coded(Codec::Hadamard, Bits::Four, Bits::Four, 64);
    let capability = *gpu.capability();
    // Loops where the GPU has straight-line code and the other way round; no subgroups; bindings
    // that hold two heads' pages.
    for weaker in [
        Capability { straight: !capability.straight, ..capability },
        capability.without_subgroups(),
        Capability { straight: capability.straight, ..Capability::webgpu_default() },
        Capability { binding_bytes: 9 << 20, ..capability },
    ] {
        follow(&gpu.pretend(weaker), random, &shape, format, Protection::default(), Alignment::EVERYTHING);
        follow(&gpu.pretend(weaker), random, &shape, rotated(Bits::Four, Bits::Four, 64, 2), Protection::default(), Alignment::EVERYTHING);
        follow(&gpu.pretend(weaker), random, &shape, trellis(64), Protection::default(), Alignment::EVERYTHING);
    }
}

/// What passes of other lengths may change in an output below 4: a pass of few rows splits their
/// tokens among workgroups, so that sums are in another order, a few units in f32's last place.
const PASS_ERROR: f32 = 1e-5;

/// The same by cooperative matrices: a part's peak decides how its weights round to halves, 2^-11 of
/// each, of which a mean of values keeps little.
const MATRIX_PASS_ERROR: f32 = 4e-3;

#[test]
fn passes_of_other_lengths_give_the_same_attention() {
    let gpu = gpu();
    let random = &mut generator();
    let text = Text::normal(random, &small(), 700);
    for (format, protection) in ways() {
        let plan = planned(&gpu, random, &small(), format, protection, Capacity::tokens(1, 700));
        assert_eq!(plan.query_rows(), 512);
        // In one pass, in two, and in many of which none ends with a tile.
        let mut outputs = [1024, 512, 77].map(|rows| {
            let mut reader = Reader::new(&gpu, plan.to_builder().query_rows(rows).build(gpu.capability()).unwrap());
            let sequence = reader.cache.begin().unwrap();
            reader.read_all(sequence, &text, &[630, 1])
        });
        let first = std::mem::take(&mut outputs[0]);
        for output in &outputs[1..] {
            let pairs = output.iter().flatten().zip(first.iter().flatten());
            let worst = pairs.map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs()).fold(0.0, f32::max);
            let most = if plan.matrices() { MATRIX_PASS_ERROR } else { PASS_ERROR };
            assert!(output.len() == first.len() && worst <= most, "{format}, {protection:?}: {worst}");
        }
    }
}

#[test]
fn bits_are_those_of_the_paper() {
    // RotateKV (2501.16383): bits of a code, and scale and zero of a group; protected tokens have
    // 16 bits a number besides.
    let gpu = gpu();
    let random = &mut generator();
    let shape = Shape { layers: 2, query_heads: 8, kv_heads: 8, head_dim: 128, rope: Rope::new(10_000.0, 128) };
    let tokens = 4096;
    for (scales, group, bits) in [
        (Scales::Half, 32, 3.0),
        (Scales::Half, 64, 2.5),
        (Scales::Half, 128, 2.25),
        (Scales::Byte, 32, 2.5),
        (Scales::Byte, 64, 2.25),
        (Scales::Byte, 128, 2.125),
    ] {
        let format = rotated(Bits::Two, Bits::Two, group, 4).with_scales(scales);
        for (protection, sinks) in [(Protection::NONE, 0.0), (massive(20, 0), 20.0), (protect(4, 0), 4.0)] {
            let plan = planned(&gpu, random, &shape, format, protection, Capacity::tokens(1, tokens));
            assert_eq!(plan.bits_per_element(u64::from(tokens)), bits + 16.0 * sinks / f64::from(tokens), "{format}, {protection:?}");
            let cost = plan.cost();
            let elements = f64::from(tokens) * shape.elements_per_token() as f64;
            let pages = 8 * (cost.key_codes + cost.key_scales + cost.value_codes + cost.value_scales);
            assert_eq!(pages as f64 / elements, bits);
            assert_eq!(8.0 * cost.protected as f64 / elements, 16.0 * sinks / f64::from(tokens));
            // A byte a key channel, and three words a sink.
            assert_eq!(cost.marks, 2 * (8 * 128 + if plan.elects() { 12 * 20 } else { 0 }));
            let cache = Cache::new(&gpu, plan).unwrap();
            // Buffers are of 16 bytes at least.
            assert!(cache.bytes() >= cost.cache() && cache.bytes() <= cost.cache() + 2 * 16);
        }
    }
}

fn small() -> Shape {
    Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

/// Formats and protections to fork and cut.
fn ways() -> Vec<(Format, Protection)> {
    use Bits::{Eight, Four, Three, Two};
    let strict = Protection::NONE;
    vec![
        (Format::f16(), strict),
        (rtn(Eight, Two, 32), strict),
        (hadamard(Four, Three, 64), Protection { sinks: Sinks::First(4), window: 0 }),
        (hadamard(Four, Four, 64), Protection::default()),
        (trellis(64), protect(4, 0)),
        (trellis_beside(true, Four), Protection::default()),
        (rotated(Two, Two, 64, 2), strict),
        (rotated(Three, Four, 128, 1).with_scales(Scales::Byte), strict),
        (rotated(Four, Two, 32, 2), massive(20, 0)),
        (rotated(Four, Four, 64, 2), massive(8, 128)),
    ]
}

/// Two caches alike: one for what is tested, one for sequences that were never forked or cut.
fn readers(gpu: &Gpu, random: &mut StdRng, format: Format, protection: Protection, budget: Capacity) -> [Reader; 2] {
    let plan = planned(gpu, random, &small(), format, protection, budget);
    [(); 2].map(|()| Reader::new(gpu, plan.clone()))
}

#[test]
fn forks_grow_on_their_own() {
    let gpu = gpu();
    let random = &mut generator();
    let text = Text::normal(random, &small(), 700);
    for (format, protection) in ways() {
        let [mut forked, mut plain] = readers(&gpu, random, format, protection, Capacity::tokens(3, 512));
        let name = format!("{format}, {protection:?}");
        let all = forked.cache.free_pages();
        // 144 tokens end inside a page, 128 with one.
        for begin in [vec![130, 1, 12, 1], vec![128]] {
            let tokens: usize = begin.iter().sum();
            let other = text.branch(random, &small(), tokens);
            let first = forked.cache.begin().unwrap();
            forked.read_all(first, &text, &begin);
            let free = forked.cache.free_pages();
            let second = forked.fork(first).unwrap();
            let packed = forked.cache.plan().packed(tokens as u32);
            assert_eq!(free - forked.cache.free_pages(), u32::from(packed % 128 != 0), "{name}: a copy of the last page, if it is not full");
            assert_eq!(forked.cache.tokens(second).unwrap(), tokens as u32);

            let controls = [&text, &other].map(|text| {
                let control = plain.cache.begin().unwrap();
                plain.read_all(control, text, &begin);
                control
            });
            // In turn, so that each could harm the other.
            for chunks in [vec![1], vec![120, 1]] {
                for (sequence, control, text) in [(first, controls[0], &text), (second, controls[1], &other)] {
                    assert!(forked.read_all(sequence, text, &chunks) == plain.read_all(control, text, &chunks), "{name}: {chunks:?} after {begin:?}");
                }
            }
            // A fork of the fork, and the end of the first: the others stay.
            let third = forked.fork(second).unwrap();
            forked.cache.end(first).unwrap();
            assert!(matches!(forked.fork(first), Err(Error::UnknownSequence { .. })));
            let want = plain.read_all(controls[1], &other, &[1, 20]);
            for sequence in [second, third] {
                assert!(forked.read_all(sequence, &other, &[1, 20]) == want, "{name}: after the first was freed");
            }
            forked.cache.end(second).unwrap();
            let want = plain.read_all(controls[1], &other, &[1, 1]);
            assert!(forked.read_all(third, &other, &[1, 1]) == want, "{name}: alone");
            forked.cache.end(third).unwrap();
            assert_eq!(forked.cache.free_pages(), all, "{name}: every page is given back");
            controls.into_iter().for_each(|control| plain.cache.end(control).unwrap());
        }
    }
}

#[test]
fn what_was_cut_off_leaves_no_trace() {
    let gpu = gpu();
    let random = &mut generator();
    let text = Text::normal(random, &small(), 700);
    // From where to where: at and around a page's end, at and around a sequence's. Each way takes
    // three of them.
    let cuts = [(270, 270), (270, 269), (270, 256), (270, 130), (150, 3), (150, 0), (130, 1)];
    for (w, (format, protection)) in ways().into_iter().enumerate() {
        let [mut cut, mut plain] = readers(&gpu, random, format, protection, Capacity::tokens(2, 512));
        let name = format!("{format}, {protection:?}");
        let all = cut.cache.free_pages();
        for (read, tokens) in [0, 2, 3].map(|n| cuts[(w + n) % cuts.len()]) {
            let sequence = cut.cache.begin().unwrap();
            cut.read_all(sequence, &text, &[read]);
            cut.truncate(sequence, tokens).unwrap();
            assert_eq!(cut.cache.tokens(sequence).unwrap(), tokens);
            let packed = cut.cache.plan().packed(read as u32).min(tokens);
            assert_eq!(all - cut.cache.free_pages(), packed.div_ceil(128), "{name}: pages beyond {tokens} tokens are given back");

            let other = text.branch(random, &small(), tokens as usize);
            let control = plain.cache.begin().unwrap();
            if tokens > 0 {
                plain.read_all(control, &other, &[tokens as usize]);
            }
            let strict = protection.window == 0 || format.codec() == Codec::F16;
            // Sinks are elected among all tokens of a prompt, and those of a shorter one are
            // others.
            let same = strict && !cut.cache.plan().elects();
            for chunks in [vec![1, 1], vec![120, 1]] {
                let at = cut.cache.tokens(sequence).unwrap() as usize;
                let (got, want) = (cut.read_all(sequence, &other, &chunks), plain.read_all(control, &other, &chunks));
                if same {
                    assert!(got == want, "{name}: {chunks:?} after {read} cut to {tokens}");
                }
                near_exact(&cut, sequence, &other, at, &chunks, &got, &name);
            }
            cut.cache.end(sequence).unwrap();
            plain.cache.end(control).unwrap();
            assert_eq!(cut.cache.free_pages(), all);
        }
    }
}

/// Outputs against f64 attention over the text's own rows, within the budget of the format's bits.
/// (Tokens that are f16 make the error less.)
fn near_exact(reader: &Reader, sequence: Sequence, text: &Text, at: usize, chunks: &[usize], outputs: &[Vec<u32>], name: &str) {
    let plan = reader.cache.plan();
    let (shape, [kv, _, q, _]) = (plan.shape(), Text::widths(plan.shape()));
    let (mut end, mut far) = (at, Distance::default());
    for (n, outputs) in chunks.iter().zip(outputs.chunks_exact(text.layers.len())) {
        end += n;
        let name = format!("{name}: slot {}, {end} tokens", sequence.slot());
        for ([keys, values, queries, _], output) in text.layers.iter().zip(outputs) {
            let want = attention_exact(shape, &keys[..end * kv], &values[..end * kv], &queries[(end - n) * q..end * q], *n);
            far.add(floats(output), &want, plan.format(), &name);
        }
    }
    far.assert(plan.format(), &format!("{name}: slot {}, tokens {at} to {end}", sequence.slot()));
}

#[test]
fn cutting_inside_a_shared_page_copies_it() {
    let gpu = gpu();
    let random = &mut generator();
    let text = Text::normal(random, &small(), 700);
    for (format, protection) in ways() {
        let [mut cut, mut plain] = readers(&gpu, random, format, protection, Capacity::tokens(2, 512));
        let name = format!("{format}, {protection:?}");
        // Both hold a full page at least.
        let first = cut.cache.begin().unwrap();
        let control = plain.cache.begin().unwrap();
        cut.read_all(first, &text, &[260]);
        plain.read_all(control, &text, &[260]);
        let second = cut.fork(first).unwrap();
        let free = cut.cache.free_pages();
        let held = cut.cache.plan().packed(260).div_ceil(128);
        let own = u32::from(!cut.cache.plan().packed(260).is_multiple_of(128));
        cut.truncate(second, 100).unwrap();
        // Its copy of the last page is given back, and one taken for the copy of the first.
        assert_eq!(i64::from(cut.cache.free_pages()) - i64::from(free), i64::from(own) - 1, "{name}: {held} pages were shared");
        let other = text.branch(random, &small(), 100);
        for chunks in [vec![1], vec![70, 1]] {
            let at = cut.cache.tokens(second).unwrap() as usize;
            let got = cut.read_all(second, &other, &chunks);
            near_exact(&cut, second, &other, at, &chunks, &got, &name);
            assert!(cut.read_all(first, &text, &[1, 2]) == plain.read_all(control, &text, &[1, 2]), "{name}: the other sequence changed");
        }
    }
}

#[test]
fn forks_and_cuts_that_are_refused_change_nothing() {
    let gpu = gpu();
    let random = &mut generator();
    let text = Text::normal(random, &small(), 700);
    for (format, protection) in [(hadamard(Bits::Four, Bits::Four, 64), Protection::NONE), (rotated(Bits::Four, Bits::Four, 64, 2), massive(4, 0))] {
        // Three pages, three sequences.
        let [mut reader, mut plain] = readers(&gpu, random, format, protection, Capacity::tokens(3, 128));
        let first = reader.cache.begin().unwrap();
        let control = plain.cache.begin().unwrap();
        reader.read_all(first, &text, &[256]);
        plain.read_all(control, &text, &[256]);
        let state = |reader: &Reader, sequence| (reader.cache.tokens(sequence).unwrap(), reader.cache.free_pages(), reader.cache.bytes_used());

        // Two full pages are shared; the third page is the first sequence's now, so none is left to
        // copy one.
        let second = reader.fork(first).unwrap();
        assert_eq!(reader.cache.free_pages(), 1);
        let want = plain.read_all(control, &text, &[1]);
        assert!(reader.read_all(first, &text, &[1]) == want);
        let before = state(&reader, first);
        assert!(matches!(reader.fork(first), Err(Error::Pages { need: 1, have: 0 })));
        assert!(matches!(reader.truncate(second, 100), Err(Error::Pages { need: 1, have: 0 })));
        assert!(matches!(reader.truncate(second, 257), Err(Error::Range { first: 0, end: 257, have: 256 })));
        assert_eq!(state(&reader, first), before);
        assert_eq!(reader.cache.tokens(second).unwrap(), 256);
        // At a page's end no copy is needed; then a page that only one sequence holds is cut
        // without a copy.
        reader.truncate(second, 128).unwrap();
        let third = reader.fork(second).unwrap();
        assert!(matches!(reader.fork(second), Err(Error::Sequences { have: 3 })));
        reader.cache.end(second).unwrap();
        for gone in [second, control] {
            assert!(matches!(reader.fork(gone), Err(Error::UnknownSequence { .. })));
            assert!(matches!(reader.truncate(gone, 0), Err(Error::UnknownSequence { .. })));
        }
        reader.cache.end(third).unwrap();
        let step = reader.cache.step(&[Chunk { sequence: first, tokens: 1 }]).unwrap();
        reader.truncate(first, 257).unwrap();
        let rows = upload(&gpu, &text.layers[0][0]);
        let stale = reader.tried(|cache, encoder| cache.append(encoder, &step, 0, Rows::f32(&rows), Rows::f32(&rows)));
        assert!(matches!(stale, Err(Error::Stale { .. })), "a step of before the cut");
        // All that was refused left no trace.
        assert!(reader.read_all(first, &text, &[1, 100]) == plain.read_all(control, &text, &[1, 100]));
    }
}

#[test]
fn a_destroyed_cache_gives_its_memory_back_and_leaves_the_device_be() {
    let gpu = gpu();
    let plan = Plan::builder(small(), Format::f16()).protection(Protection::NONE).capacity(Capacity::tokens(1, 128)).build(gpu.capability()).unwrap();
    let cache = Cache::new(&gpu, plan.clone()).unwrap();
    let pages = cache.layer_buffers(0).unwrap().0[0].clone();
    cache.destroy();
    let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
    gpu.queue().write_buffer(&pages, 0, &[0; 16]);
    assert!(pollster::block_on(scope.pop()).is_some(), "the pages are gone");
    let mut next = Cache::new(&gpu, plan).unwrap();
    next.begin().unwrap();
    assert!(pollster::block_on(next.status()).unwrap().is_clean());
}

#[test]
fn a_device_can_be_said_to_have_subgroups() {
    let gpu = gpu();
    let told = gpu.pretend(gpu.capability().without_subgroups());
    assert_eq!(told.capability().subgroups, None);
    let info = gpu.device().adapter_info();
    let sizes = (info.subgroup_min_size > 0).then_some((info.subgroup_min_size, info.subgroup_max_size));
    assert_eq!(told.with_subgroups().capability().subgroups, sizes);
}

#[test]
fn pipelines_are_kept_for_the_next_run() {
    let random = &mut generator();
    let text = Text::normal(random, &small(), 40);
    let (format, budget) = (hadamard(Bits::Four, Bits::Two, 64), Capacity::tokens(1, 128));
    let mut kept: Option<Vec<u8>> = None;
    let mut outputs = Vec::new();
    for _ in 0..2 {
        let gpu = gpu();
        assert_eq!(gpu.pipeline_cache(), None);
        // SAFETY: nothing, then what a cache of the same driver gave.
        let keeping = unsafe { gpu.with_pipeline_cache(kept.as_deref()) }.unwrap();
        // As much as the last run left is there before anything is compiled. A software adapter may
        // keep no more than its name.
        let begun = keeping.pipeline_cache().unwrap().len();
        assert!(kept.as_ref().is_none_or(|kept| kept.len() == begun), "{begun} bytes of {}", kept.map_or(0, |kept| kept.len()));
        let [mut reader, _] = readers(&keeping, random, format, Protection::NONE, budget);
        pollster::block_on(keeping.prepare(reader.cache.plan())).unwrap();
        let full = keeping.pipeline_cache().unwrap();
        assert!(full.len() >= begun && (kept.is_some() || full.len() > begun || !gpu.capability().straight), "{begun} bytes, then {}", full.len());
        kept = Some(full);
        let sequence = reader.cache.begin().unwrap();
        outputs.push(reader.read_all(sequence, &text, &[30, 1]));
    }
    assert!(outputs[0] == outputs[1]);
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(Gpu::request_adapter(&instance)).unwrap();
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    // SAFETY: nothing is handed over.
    assert!(matches!(unsafe { Gpu::new(device, queue).with_pipeline_cache(None) }, Err(Error::Device(_))));
}
