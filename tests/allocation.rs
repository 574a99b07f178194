//! Bits by layer, KV head, key and value: a mixed cache stores and attends every head as a cache of that precision alone would; what
//! an allocation costs is what the plan says, bit by bit; no allowance is exceeded by any rule; what cannot be stored, and files that
//! are damaged, are refused. The numbers in brackets are those of the list of invariants in section 6 of our notes on KV-AdaQuant
//! (2502.15075).
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Instant;
use wgkv::bits::solve::{Fill, Ties, norm_bits, norm_groups};
use wgkv_testing::*;

/// One device for all tests, so that pipelines are compiled once.
static GPU: LazyLock<Gpu> = LazyLock::new(gpu);

/// The same for RotateKV: in loops, since straight-line code takes a software adapter seconds to compile.
static ROLLED: LazyLock<Gpu> = LazyLock::new(|| GPU.pretend(Capability { straight: false, ..*GPU.capability() }));

/// Relative RMS error of decoding one head against f64 attention over what is stored: what remains are the 8-bit query and the 8-bit
/// weights, about 0.4 % each in the worst case that `tests/attend_merge.rs` has, which allows as much.
const DECODE_RMS: f64 = 0.02;

/// [`Fill::Skip`] comes within this of the best choice, so an allowance that grows may cost as much (invariant 3).
const SKIP_SLACK: f64 = 1.01;

/// Sums of the same errors in another order differ by rounding: a few units in the last place.
const ROUNDING: f64 = 1e-12;

// A mixed cache.

/// A cache whose heads differ.
struct Mixed {
    why: &'static str,
    shape: Shape,
    format: Format,
    /// By layer and KV head.
    layers: Vec<Vec<[Precision; 2]>>,
    protection: Protection,
    /// Tokens of the prompt; then three are decoded.
    prompt: usize,
}

const DECODED: usize = 3;

fn precision(bits: Bits, group: u32) -> Precision {
    Precision::new(bits, group)
}

/// A shape of so many layers with full RoPE.
fn shape(layers: u32, query_heads: u32, kv_heads: u32, head_dim: u32) -> Shape {
    Shape { layers, query_heads, kv_heads, head_dim, rope: Rope::new(10_000.0, head_dim) }
}

/// Three layers of four KV heads: stored in four ways, in two (the first of which the first layer has, too), and all alike. Keys and
/// values that are halves are among them.
fn arrangements(head_dim: u32) -> Vec<Vec<[Precision; 2]>> {
    use Bits::{Eight, Four, Three, Two};
    let first = [precision(Two, 32), precision(Eight, 64)];
    let four = vec![first, [Precision::F16, precision(Three, 32)], [precision(Three, head_dim), Precision::F16], [Precision::F16; 2]];
    let second = [precision(Four, 64), precision(Two, 32)];
    vec![four, vec![second, first, first, second], vec![second; 4]]
}

/// RotateKV's: heads are rotated in pairs, which have their values in common; a layer has its keys in common.
fn pairs() -> Vec<Vec<[Precision; 2]>> {
    use Bits::{Eight, Four, Three, Two};
    let layer = |key, values: [Precision; 2]| vec![[key, values[0]], [key, values[0]], [key, values[1]], [key, values[1]]];
    let [narrow, wide] = [precision(Two, 32), precision(Four, 128)];
    vec![
        layer(narrow, [precision(Three, 64), Precision::F16]),
        layer(wide, [narrow, precision(Eight, 64)]),
        layer(narrow, [narrow, narrow]),
        layer(wide, [precision(Eight, 64), narrow]),
    ]
}

fn mixed() -> Vec<Mixed> {
    let of = |why, format, query_heads, head_dim| Mixed {
        why,
        shape: shape(3, query_heads, 4, head_dim),
        format,
        layers: arrangements(head_dim),
        protection: Protection::NONE,
        prompt: 90,
    };
    let plain = |codec| Format::new(codec, Bits::Four, Bits::Four, 128);
    let rotated = |heads| plain(Codec::RotateKv).with_heads_per_group(heads);
    let bytes = |layers: &mut Vec<Vec<[Precision; 2]>>| {
        let narrow = |p: &mut Precision| p.bits = if p.bits == Bits::Eight { Bits::Three } else { p.bits };
        layers.iter_mut().flatten().flatten().for_each(narrow);
    };
    let mut cases = vec![
        of("Rtn, a share of 1", plain(Codec::Rtn), 4, 64),
        of("Hadamard, a share of 3", plain(Codec::Hadamard), 12, 64),
        // 150 tokens: a page, and a window of 22.
        Mixed { protection: protect(4, 16), prompt: 150, ..of("Hadamard, a share of 2; sinks and a window", plain(Codec::Hadamard), 8, 128) },
        Mixed { protection: protect(5, 0), ..of("Rtn, a share of 4; sinks; bytes for scales", plain(Codec::Rtn).with_scales(Scales::Byte), 16, 128) },
        Mixed { shape: shape(4, 8, 4, 64), layers: pairs(), ..of("RotateKV in pairs, a share of 2", rotated(2), 8, 64) },
        Mixed { shape: shape(4, 4, 4, 64), layers: pairs(), protection: protect(4, 16), prompt: 150, ..of("RotateKV in pairs, a window", rotated(2), 4, 64) },
    ];
    bytes(&mut cases[3].layers);
    cases
}

impl Mixed {
    fn gpu(&self) -> &'static Gpu {
        if self.format.codec() == Codec::RotateKv { &ROLLED } else { &GPU }
    }

    fn plan(&self, gpu: &Gpu, of: impl Fn(u32, u32) -> [Precision; 2], calibration: Option<&ChannelOrder>, sequences: u32, tokens: u32) -> Plan {
        let allocation = BitPlan::new(&self.shape, self.format, of).unwrap();
        let builder = Plan::builder(self.shape.clone(), allocation).protection(self.protection).capacity(Capacity::tokens(sequences, tokens));
        learning(builder, calibration).build(gpu.capability()).unwrap()
    }

    fn of(&self) -> impl Fn(u32, u32) -> [Precision; 2] {
        |layer, head| self.layers[layer as usize][head as usize]
    }

    fn calibration(&self, random: &mut StdRng) -> Option<ChannelOrder> {
        (self.format.codec() == Codec::RotateKv).then(|| random_order(&self.shape, &self.format, Reach::Global, random))
    }

    /// The heads of all layers that have these precisions.
    fn heads(&self, two: [Precision; 2]) -> impl Iterator<Item = (u32, u32)> {
        let all = (0..).zip(&self.layers).flat_map(|(layer, heads)| (0..).zip(heads).map(move |(head, had)| (layer, head, had)));
        all.filter(move |(_, _, had)| **had == two).map(|(layer, head, _)| (layer, head))
    }

    /// Every pair of precisions that a head has, once.
    fn kinds(&self) -> BTreeSet<[Precision; 2]> {
        self.layers.iter().flatten().copied().collect()
    }
}

/// All that one head of a layer has in the pages of a sequence that began in an empty cache, and its key scales.
fn pages(reader: &Reader, layer: u32, head: u32, count: u32) -> (Vec<Vec<u32>>, Vec<u32>) {
    let (buffers, _) = reader.cache.layer_buffers(layer).unwrap();
    let slabs: Vec<Vec<u32>> = buffers.iter().map(|buffer| words(&reader.gpu, buffer)).collect();
    let [key_scales, _] = reader.cache.reordered_buffers(layer).unwrap();
    let of = |physical| page_of(reader.cache.plan(), layer, &slabs, physical, head).words.to_vec();
    ((0..count).map(of).collect(), words(&reader.gpu, key_scales))
}

/// One KV head's query heads of an output `[rows, query_heads, head_dim]`.
fn of_head(shape: &Shape, output: &[u32], head: u32) -> Vec<u32> {
    let width = (shape.share() * shape.head_dim) as usize;
    output.chunks_exact(width).skip(head as usize).step_by(shape.kv_heads as usize).flatten().copied().collect()
}

#[test]
fn every_head_is_what_it_is_in_a_cache_of_its_precision() {
    for case in mixed() {
        let start = Instant::now();
        let (mut random, seed) = seeded();
        let (gpu, shape, calibration) = (case.gpu(), &case.shape, case.calibration(&mut random));
        let text = Text::normal(&mut random, shape, case.prompt + DECODED);
        let read = |plan: Plan| {
            let mut reader = Reader::new(gpu, plan);
            let sequence = reader.cache.begin().unwrap();
            let outputs: Vec<Vec<Vec<u32>>> = [case.prompt, 1, 1, 1].map(|tokens| reader.read(sequence, &text, tokens)).to_vec();
            assert!(pollster::block_on(reader.cache.status()).unwrap().is_clean(), "{}", case.why);
            (reader, outputs)
        };
        let plan = |of: &dyn Fn(u32, u32) -> [Precision; 2]| case.plan(gpu, of, calibration.as_ref(), 1, 256);
        let (mixed, got) = read(plan(&case.of()));
        assert!((0..shape.layers).any(|layer| mixed.cache.plan().slabs(layer).len() > 1), "{}", case.why);
        for two in case.kinds() {
            let (uniform, want) = read(plan(&|_, _| two));
            for (layer, head) in case.heads(two) {
                let name = format!("{}: layer {layer}, head {head}, K {} V {}. WGKV_SEED={seed}", case.why, two[0], two[1]);
                assert!(pages(&mixed, layer, head, 1) == pages(&uniform, layer, head, 1), "stored otherwise: {name}");
                for (step, (got, want)) in got.iter().zip(&want).enumerate() {
                    let [got, want] = [got, want].map(|outputs| of_head(shape, &outputs[layer as usize], head));
                    assert!(!got.contains(&POISON) && got == want, "step {step} attended otherwise: {name}");
                }
            }
        }
        println!("  {} {:?}", case.why, start.elapsed());
    }
}

/// With more pages than one, decoding splits them by how many heads a slab has: then outputs differ by the rounding of weights, and
/// are compared with f64. Pages and prompts stay what they are, bit for bit.
#[test]
fn longer_sequences_are_near_exact_attention_over_what_is_stored() {
    for (case, tokens) in mixed().into_iter().zip([257, 300, 290, 260, 257, 300]).skip(1).step_by(2) {
        let (mut random, seed) = seeded();
        let (gpu, shape, calibration) = (case.gpu(), &case.shape, case.calibration(&mut random));
        let text = Text::normal(&mut random, shape, tokens + 1);
        let of = |of: &dyn Fn(u32, u32) -> [Precision; 2]| {
            let plan = case.plan(gpu, of, calibration.as_ref(), 1, 512);
            let mut reader = Reader::new(gpu, plan.to_builder().split_workgroups(4).build(gpu.capability()).unwrap());
            let sequence = reader.cache.begin().unwrap();
            let outputs = [tokens, 1].map(|n| reader.read(sequence, &text, n));
            (reader, sequence, outputs)
        };
        let (mixed, sequence, [prompt, decoded]) = of(&case.of());
        let packed = mixed.cache.plan().packed(tokens as u32 + 1).div_ceil(128);
        assert!(packed > 1, "{}", case.why);
        let two = case.layers[0][0];
        let (uniform, _, [want, _]) = of(&|_, _| two);
        for (layer, head) in case.heads(two) {
            let name = format!("{}: layer {layer}, head {head}. WGKV_SEED={seed}", case.why);
            assert!(pages(&mixed, layer, head, packed) == pages(&uniform, layer, head, packed), "stored otherwise: {name}");
            let [got, want] = [&prompt, &want].map(|outputs| of_head(shape, &outputs[layer as usize], head));
            assert!(got == want, "attended otherwise: {name}");
        }
        for (layer, output) in (0..).zip(&decoded) {
            let [keys, values] = mixed.stored(sequence, layer);
            let queries = &text.layers[layer as usize][2][tokens * Text::widths(shape)[2]..];
            let want = attention_over(shape, [&keys, &values], queries, tokens as u32, 1);
            let width = (shape.share() * shape.head_dim) as usize;
            for (head, (got, want)) in floats(output).chunks_exact(width).zip(want.chunks_exact(width)).enumerate() {
                let error = (apart(got, want) / want.iter().map(|x| x * x).sum::<f64>()).sqrt();
                // A NaN compares false, so it fails too.
                assert!(error < DECODE_RMS, "{}: layer {layer}, head {head}: relative error {error}. WGKV_SEED={seed}", case.why);
            }
        }
    }
}

/// The squared distance.
fn apart(got: &[f32], want: &[f64]) -> f64 {
    got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum()
}

#[test]
fn mixed_sequences_fork_and_are_cut_without_harm_to_others() {
    for case in mixed().into_iter().step_by(2) {
        let (mut random, seed) = seeded();
        let (gpu, shape, calibration) = (case.gpu(), &case.shape, case.calibration(&mut random));
        let name = format!("{}. WGKV_SEED={seed}", case.why);
        let begin = 150;
        let text = Text::normal(&mut random, shape, 190);
        let other = text.branch(&mut random, shape, begin);
        let cut = text.branch(&mut random, shape, 100);
        // One cache whose sequences are forked and cut, and one whose never are.
        let [mut forked, mut plain] = [(); 2].map(|()| Reader::new(gpu, case.plan(gpu, case.of(), calibration.as_ref(), 3, 512)));
        let first = forked.cache.begin().unwrap();
        forked.read(first, &text, begin);
        let controls = [&text, &other].map(|text| {
            let control = plain.cache.begin().unwrap();
            plain.read(control, text, begin);
            control
        });
        let second = forked.recorded(|cache, encoder| cache.fork(encoder, first));
        // In turn, so that each could harm the other.
        for tokens in [1, 12] {
            for (sequence, control, text) in [(first, controls[0], &text), (second, controls[1], &other)] {
                assert!(forked.read(sequence, text, tokens) == plain.read(control, text, tokens), "{tokens} tokens after a fork: {name}");
            }
        }
        // The cut lies in a page that the first holds, too.
        forked.recorded(|cache, encoder| cache.truncate(encoder, second, 100));
        plain.cache.end(controls[1]).unwrap();
        let control = plain.cache.begin().unwrap();
        plain.read(control, &cut, 100);
        for tokens in [1, 12, 1] {
            let (got, want) = (forked.read(second, &cut, tokens), plain.read(control, &cut, tokens));
            // A window's tokens that were packed before the cut stay packed.
            if case.protection.window == 0 {
                assert!(got == want, "{tokens} tokens after a cut: {name}");
            }
            assert!(got.iter().all(|output| floats(output).iter().all(|x| x.is_finite())), "{name}");
            assert!(forked.read(first, &text, tokens) == plain.read(controls[0], &text, tokens), "the other sequence after a cut: {name}");
        }
        forked.cache.end(first).unwrap();
        let want = plain.read(control, &cut, 1);
        assert!(case.protection.window > 0 || forked.read(second, &cut, 1) == want, "after the first was freed: {name}");
    }
}

// What is refused.

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, want: &Error) {
    let Err(error) = result else { panic!("should be refused: {want}") };
    assert_eq!(error, *want);
}

fn not_of(name: &str, wanted: &str, had: &str) -> Error {
    Error::mismatch(Thing::BitPlan, name.to_owned(), wanted, had)
}

#[test]
fn heads_that_a_codec_cannot_tell_apart_are_refused() {
    let shape = shape(2, 8, 4, 64);
    let format = rotated(Bits::Four, Bits::Four, 64, 2);
    let [narrow, wide] = [precision(Bits::Two, 64), precision(Bits::Four, 64)];
    let differ = |at: (u32, u32), two: [Precision; 2]| BitPlan::new(&shape, format, move |layer, head| if (layer, head) == at { two } else { [wide; 2] });
    for (at, two, want) in [
        ((1, 3), [narrow, wide], not_of("K of layer 1, head 3", "4/64 as of head 0 (rotate-kv stores them together)", "2/64")),
        ((0, 0), [narrow, wide], not_of("K of layer 0, head 1", "2/64 as of head 0 (rotate-kv stores them together)", "4/64")),
        ((1, 3), [wide, narrow], not_of("V of layer 1, head 3", "4/64 as of head 2 (rotate-kv stores them together)", "2/64")),
        ((0, 2), [wide, Precision::F16], not_of("V of layer 0, head 3", "16 as of head 2 (rotate-kv stores them together)", "4/64")),
    ] {
        refused(differ(at, two), &want);
    }
    // Layers may differ in keys, pairs in values; and all of it where heads are rotated alone, but for keys.
    assert!(BitPlan::new(&shape, format, |layer, head| [[narrow, wide][layer as usize], [narrow, wide][head as usize / 2]]).is_ok());
    let alone = rotated(Bits::Four, Bits::Four, 64, 1);
    assert!(BitPlan::new(&shape, alone, |_, head| [wide, [narrow, wide][head as usize % 2]]).is_ok());
    refused(
        BitPlan::new(&shape, alone, |_, head| [[narrow, wide][head as usize % 2], wide]),
        &not_of("K of layer 0, head 1", "2/64 as of head 0 (rotate-kv stores them together)", "4/64"),
    );
    // Codecs that rotate by head, or not at all, tell all heads apart.
    for codec in [Codec::Rtn, Codec::Hadamard] {
        let format = Format::new(codec, Bits::Four, Bits::Four, 64);
        assert!(BitPlan::new(&shape, format, |layer, head| [[narrow, wide][head as usize % 2], [wide, narrow][layer as usize]]).is_ok());
    }
}

#[test]
fn precisions_that_do_not_fit_are_refused() {
    let at = |at: (u32, u32), two: [Precision; 2]| move |layer, head| if (layer, head) == at { two } else { [precision(Bits::Four, 128); 2] };
    let last = |two| at((1, 1), two);
    let four = precision(Bits::Four, 128);
    let wrong = |name, wanted: &str, had: &str| Error::argument(name, wanted, had);
    for (head_dim, group) in [(64, 48), (64, 0), (64, 256), (80, 64), (80, 32), (96, 64)] {
        for (place, two) in [[precision(Bits::Three, group), four], [four, precision(Bits::Three, group)]].into_iter().enumerate() {
            for codec in [Codec::Rtn, Codec::Hadamard] {
                let format = Format::new(codec, Bits::Four, Bits::Four, 128);
                refused(BitPlan::new(&shape(2, 2, 2, head_dim), format, last(two)), &Error::Group { group, head_dim });
            }
            // A group means nothing at 16 bits.
            let halves = [[precision(Bits::Sixteen, group), four], [four, precision(Bits::Sixteen, group)]][place];
            assert!(BitPlan::new(&shape(2, 2, 2, head_dim), rtn(Bits::Four, Bits::Four, 128), last(halves)).is_ok());
        }
    }
    for two in [[precision(Bits::Eight, 128), four], [four, precision(Bits::Eight, 128)]] {
        let bytes = rtn(Bits::Four, Bits::Four, 128).with_scales(Scales::Byte);
        refused(BitPlan::new(&shape(2, 2, 2, 128), bytes, last(two)), &wrong("bits", "2, 3, 4 or 16 with scales of 8 bits", "8"));
    }
    let rotating = rotated(Bits::Four, Bits::Four, 128, 1);
    refused(BitPlan::new(&shape(2, 2, 2, 64), rotating, last([Precision::F16, four])), &wrong("key bits", "2, 3, 4 or 8 with rotate-kv", "16"));
    refused(BitPlan::uniform(&shape(1, 1, 1, 64), rotated(Bits::Sixteen, Bits::Four, 128, 1)), &wrong("key bits", "2, 3, 4 or 8 with rotate-kv", "16"));
    let clipped = rtn(Bits::Four, Bits::Four, 128).with_clip(1.5);
    refused(BitPlan::new(&shape(2, 2, 2, 64), clipped, last([four; 2])), &wrong("clip", "above 0 and at most 1", "1.5"));
    // f16 has one way of storing, whatever is asked.
    let half = BitPlan::new(&shape(2, 2, 2, 64), Format::f16(), last([precision(Bits::Two, 48); 2])).unwrap();
    assert!(half.is_uniform() && half.of(1, 1) == [Precision::F16; 2]);
}

#[test]
fn an_allocation_of_another_shape_is_refused() {
    let own = shape(2, 8, 4, 64);
    let allocation = BitPlan::uniform(&own, rtn(Bits::Four, Bits::Two, 64)).unwrap();
    let plan = |shape: &Shape| {
        Plan::builder(shape.clone(), allocation.clone()).protection(Protection::NONE).capacity(Capacity::tokens(1, 128)).build(&Capability::webgpu_default())
    };
    assert!(plan(&own).is_ok());
    // How many query heads share a KV head, and RoPE, are no matter of bits.
    assert!(plan(&Shape { query_heads: 4, rope: Rope::none(), ..own.clone() }).is_ok());
    refused(plan(&Shape { layers: 3, ..own.clone() }), &not_of("layers", "3", "2"));
    refused(plan(&Shape { kv_heads: 8, ..own.clone() }), &not_of("kv_heads", "8", "4"));
    refused(plan(&Shape { head_dim: 128, ..own.clone() }), &not_of("head_dim", "128", "64"));
    // What no kernel serves is said first.
    refused(plan(&Shape { layers: 0, ..own.clone() }), &Error::argument("layers", "1 or more", "0"));
    assert_eq!(allocation.of(2, 0), allocation.of(0, 4), "heads that do not exist have the format's own");
    let (mut random, _) = seeded();
    let measured = made_up(&mut random, &own, &rtn(Bits::Four, Bits::Four, 64), &Sensitivity::default_candidates(&own, &rtn(Bits::Four, Bits::Four, 64)));
    for (name, wanted, had, other) in [
        ("layers", "3", "2", Shape { layers: 3, ..own.clone() }),
        ("kv_heads", "8", "4", Shape { kv_heads: 8, ..own.clone() }),
        ("head_dim", "128", "64", Shape { head_dim: 128, ..own.clone() }),
    ] {
        let want = Error::mismatch(Thing::Sensitivity, name, wanted, had);
        refused(measured.expect_shape(&other), &want);
        refused(BitPlan::choose(&other, &measured, BitBudget::BitsPerElement(4.0), BitRule::default()), &want);
    }
    // Names.
    assert!(allocation.expect_model("any").is_ok() && allocation.model().is_empty());
    let named = BitPlan::choose(&own, &measured, BitBudget::BitsPerElement(4.0), BitRule::default()).unwrap();
    assert!(named.expect_model("made up").is_ok() && measured.expect_model("made up").is_ok());
    refused(named.expect_model("other"), &not_of("model", "\"other\"", "\"made up\""));
    refused(measured.expect_model("other"), &Error::mismatch(Thing::Sensitivity, "model", "\"other\"", "\"made up\""));
}

// What it costs.

/// Bits of one token's keys and of its values of one head: codes, and scales that lie with them.
fn head_bits(shape: &Shape, format: &Format, [key, value]: [Precision; 2]) -> [[u64; 2]; 2] {
    let d = u64::from(shape.head_dim);
    let codes = |p: Precision| d * u64::from(p.bits.get());
    // A key's third bits lie in whole words.
    let key_codes = if key.bits == Bits::Three { 2 * d + 32 * d.div_ceil(32) } else { codes(key) };
    let scales = |p: Precision| if p.bits == Bits::Sixteen { 0 } else { d / d.min(p.group.into()) * u64::from(format.scales().bits()) };
    let key_scales = if format.codec() == Codec::RotateKv { 0 } else { scales(key) };
    [[key_codes, key_scales], [codes(value), scales(value)]]
}

/// Bits of the scales that RotateKV's keys of one token have in one layer: groups go on from one head to the next where they divide
/// the row.
fn row_bits(shape: &Shape, format: &Format, key: Precision) -> u64 {
    let channels = shape.kv_heads * shape.head_dim;
    let group = [128, 64, 32].into_iter().find(|g| *g <= key.group && channels.is_multiple_of(*g)).unwrap_or(shape.head_dim);
    if format.codec() == Codec::RotateKv { u64::from(channels / group * format.scales().bits()) } else { 0 }
}

/// Bits of one token over all layers: key codes, key scales, value codes, value scales.
fn token_bits(shape: &Shape, format: &Format, allocation: &BitPlan) -> [u64; 4] {
    let mut sum = [0; 4];
    for layer in 0..shape.layers {
        for head in 0..shape.kv_heads {
            let [keys, values] = head_bits(shape, format, allocation.of(layer, head));
            for (sum, bits) in sum.iter_mut().zip(keys.into_iter().chain(values)) {
                *sum += bits;
            }
        }
        sum[1] += row_bits(shape, format, allocation.of(layer, 0)[0]);
    }
    sum
}

/// A shape, a codec, and precisions that fit both.
fn any_allocation(random: &mut StdRng) -> (Shape, Format, BitPlan) {
    let head_dim = [64, 80, 96, 128, 256][random.random_range(0..5)];
    let kv_heads = random.random_range(1..=8);
    let shape = shape(random.random_range(1..=4), kv_heads * random.random_range(1..=4), kv_heads, head_dim);
    let codec = [Codec::F16, Codec::Rtn, Codec::Hadamard, Codec::RotateKv][random.random_range(0..4)];
    let scales = if random.random() { Scales::Half } else { Scales::Byte };
    let format = Format::new(codec, Bits::Four, Bits::Four, 128).with_scales(scales);
    let together = format.heads_per_group(kv_heads);
    let format = if codec == Codec::RotateKv { format.with_heads_per_group(together) } else { format };
    let mut any = |key: bool| {
        let bits = [Bits::Two, Bits::Three, Bits::Four, Bits::Eight, Bits::Sixteen];
        let fits = |p: &Precision| {
            let byte = scales == Scales::Byte && p.bits == Bits::Eight;
            !(byte || key && codec == Codec::RotateKv && p.bits == Bits::Sixteen || p.group != 128 && !head_dim.is_multiple_of(p.group))
        };
        loop {
            let drawn = precision(bits[random.random_range(0..5)], [32, 64, 128][random.random_range(0..3)]);
            if fits(&drawn) {
                return drawn;
            }
        }
    };
    let mut precisions = Vec::new();
    for _ in 0..shape.layers {
        let mut layer: Vec<[Precision; 2]> = (0..kv_heads).map(|_| [any(true), any(false)]).collect();
        for head in 0..kv_heads as usize {
            if codec == Codec::RotateKv {
                layer[head] = [layer[0][0], layer[head / together as usize * together as usize][1]];
            }
        }
        precisions.push(layer);
    }
    let allocation = BitPlan::new(&shape, format, |layer, head| precisions[layer as usize][head as usize]).unwrap();
    (shape, format, allocation)
}

#[test]
fn every_bit_is_accounted_for() {
    let (mut random, seed) = seeded();
    let capability = Capability { binding_bytes: 1 << 31, buffer_bytes: 1 << 31, ..Capability::webgpu_default() };
    for n in 0..400 {
        let (shape, format, allocation) = any_allocation(&mut random);
        let name = format!("{n}: {allocation} of {shape:?}. WGKV_SEED={seed}");
        let bits = token_bits(&shape, &format, &allocation);
        let elements = shape.elements_per_token();
        let (sequences, tokens) = (random.random_range(1..=3), random.random_range(1..2000));
        for protection in [Protection::NONE, protect(4, 0), protect(random.random_range(0..100), random.random_range(1..300))] {
            let Ok(plan) =
                Plan::builder(shape.clone(), allocation.clone()).protection(protection).capacity(Capacity::tokens(sequences, tokens)).build(&capability)
            else {
                // RotateKV of large heads takes more workgroup memory than WebGPU promises.
                assert!(format.codec() == Codec::RotateKv && shape.head_dim >= 128, "{name}");
                continue;
            };
            let protection = if format.codec() == Codec::F16 { Protection::NONE } else { protection };
            let (packed, kept) = (protection.packed(tokens), protection.f16_tokens(tokens));
            let want = u64::from(packed) * bits.iter().sum::<u64>() + u64::from(kept) * 16 * elements;
            assert_eq!(plan.bits(tokens.into()), want, "{protection:?}, {tokens} tokens, {name}");
            assert_eq!(plan.bits_per_element(tokens.into()), want as f64 / (f64::from(tokens) * elements as f64), "{name}");
            let cost = plan.cost();
            let pages = u64::from(sequences * packed.div_ceil(128).max(1));
            assert_eq!([cost.key_codes, cost.key_scales, cost.value_codes, cost.value_scales], bits.map(|bits| pages * 16 * bits), "{name}");
            let ring = if protection.window == 0 { 0 } else { protection.window + 128 };
            assert_eq!(cost.protected, u64::from(sequences * (protection.sinks.rows() + ring)) * 2 * elements, "{name}");
        }
    }
}

/// Every head has a place, among heads that are stored as it is, in no more buffers than bindings of this size ask for.
#[test]
fn every_head_lies_in_one_slab() {
    let (mut random, seed) = seeded();
    // So long that pages are larger than scratch.
    let tokens = 1 << 22;
    let mut split = 0;
    for n in 0..300 {
        let (shape, format, allocation) = any_allocation(&mut random);
        let name = format!("{n}: {allocation} of {shape:?}. WGKV_SEED={seed}");
        let plan = |bytes| {
            let capability = Capability { binding_bytes: bytes, buffer_bytes: bytes, workgroup_bytes: 1 << 16, ..Capability::webgpu_default() };
            Plan::builder(shape.clone(), allocation.clone()).protection(Protection::NONE).capacity(Capacity::tokens(1, tokens)).build(&capability)
        };
        let together = format.heads_per_group(shape.kv_heads);
        let Ok(whole) = plan(1 << 40) else {
            assert!(format.codec() == Codec::RotateKv && shape.head_dim >= 128, "{name}");
            continue;
        };
        let bunch = |slab: &Slab| slab.layout().bytes() * u64::from(whole.pages() * together);
        let largest = (0..shape.layers).flat_map(|layer| whole.slabs(layer)).map(bunch).max().unwrap();
        let binding = largest * random.random_range(1..=2) + random.random_range(0..largest);
        // RotateKV's plane of key scales may be what does not fit.
        let Ok(plan) = plan(binding) else {
            assert!(format.codec() == Codec::RotateKv, "{name}");
            continue;
        };
        for layer in 0..shape.layers {
            let slabs = plan.slabs(layer);
            let mut heads: Vec<u32> = slabs.iter().flat_map(Slab::heads).copied().collect();
            heads.sort_unstable();
            assert!(heads.into_iter().eq(0..shape.kv_heads), "layer {layer}, {name}");
            for slab in slabs {
                assert!(slab.heads().is_sorted() && bunch(slab) / u64::from(together) * u64::from(slab.count()) <= binding, "layer {layer}, {name}");
                assert!(slab.heads().iter().all(|head| *slab.format() == allocation.format_of(layer, *head)), "layer {layer}, {name}");
                let bunches = slab.heads().chunks(together as usize);
                assert!(bunches.into_iter().all(|heads| heads[0].is_multiple_of(together) && heads.len() == together as usize), "layer {layer}, {name}");
            }
            for kind in whole.slabs(layer) {
                let alike: Vec<&Slab> = slabs.iter().filter(|slab| slab.format() == kind.format()).collect();
                let most = binding / bunch(kind);
                assert_eq!(alike.len() as u64, u64::from(kind.count() / together).div_ceil(most), "layer {layer}, {name}");
                split += usize::from(alike.len() > 1);
            }
        }
        assert!(plan.slabs(shape.layers).is_empty());
    }
    assert!(split > 20, "{split} slabs were split. WGKV_SEED={seed}");
}

/// (12) What a number takes with its scale and zero.
#[test]
fn bits_are_those_of_the_groups() {
    let bits = |head_dim, precision: Precision, scales| {
        let shape = shape(1, 1, 1, head_dim);
        let allocation = BitPlan::uniform(&shape, rtn(Bits::Four, Bits::Four, 128).with_scales(scales).with_precisions(precision, precision)).unwrap();
        let plan =
            Plan::builder(shape, allocation).protection(Protection::NONE).capacity(Capacity::tokens(1, 128)).build(&Capability::webgpu_default()).unwrap();
        plan.bits_per_element(128)
    };
    use Bits::{Eight, Four, Three, Two};
    for (precision, scales, want) in [
        (precision(Two, 32), Scales::Half, 3.0),
        (precision(Two, 64), Scales::Half, 2.5),
        (precision(Two, 128), Scales::Half, 2.25),
        (precision(Two, 128), Scales::Byte, 2.125),
        (precision(Two, 32), Scales::Byte, 2.5),
        (precision(Three, 128), Scales::Half, 3.25),
        (precision(Four, 64), Scales::Half, 4.5),
        (precision(Four, 32), Scales::Half, 5.0),
        (precision(Eight, 128), Scales::Half, 8.25),
        (Precision::F16, Scales::Half, 16.0),
    ] {
        assert_eq!(bits(128, precision, scales), want, "{precision} {scales}");
    }
    // The third bits of 80 channels take 2.5 words, of which a key has 3; values' third bits are of 128 tokens.
    assert_eq!(bits(80, precision(Three, 128), Scales::Half), (256.0 + 32.0 + 240.0 + 32.0) / 160.0);
    assert_eq!(bits(80, precision(Two, 128), Scales::Half), 2.4);
}

// Allocators.

/// A sensitivity of these numbers: of a layer, head and kind the norm, and by candidate the error of the codes and of the output.
fn told(
    shape: &Shape,
    format: &Format,
    candidates: &[Precision],
    layer_weights: &[f64],
    mut of: impl FnMut(u32, u32, Kind) -> (f64, Vec<f64>, Vec<f64>),
) -> Sensitivity {
    let mut heads = Vec::new();
    for (layer, head) in (0..shape.layers).flat_map(|layer| (0..shape.kv_heads).map(move |head| (layer, head))) {
        let [(key, key_codes, key_errors), (value, value_codes, value_errors)] = Kind::BOTH.map(|kind| of(layer, head, kind));
        heads.push(json!({
            "norms": [key * key, value * value],
            "code_errors": [key_codes, value_codes],
            "output_errors": [key_errors, value_errors],
            "output": 1.0,
        }));
    }
    let heads_per_group = (format.codec() == Codec::RotateKv).then(|| format.heads_per_group(shape.kv_heads));
    let text = json!({
        "format": "wgkv-sensitivity",
        "version": 1,
        "model": "made up",
        "storage": {
            "codec": format.codec().to_string(),
            "scales": format.scales().to_string(),
            "clip": null,
            "heads_per_group": heads_per_group,
        },
        "layers": shape.layers,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tokens": 1024,
        "queries": 96,
        "candidates": candidates.iter().map(Precision::to_string).collect::<Vec<_>>(),
        "weight_norms": [],
        "layer_weights": layer_weights,
        "heads": heads,
    });
    Sensitivity::from_json(&text.to_string()).unwrap()
}

/// Distortion of an asymmetric quantizer on normal numbers in groups of 64 (section 5.3).
fn distortion(bits: Bits) -> f64 {
    match bits {
        Bits::Two => 0.2029,
        Bits::Three => 0.0371,
        Bits::Four => 0.00805,
        Bits::Eight => 0.00003,
        Bits::Sixteen => 0.0,
    }
}

/// Log-normal numbers.
fn factor(random: &mut StdRng, spread: f64) -> f64 {
    (spread * f64::from(normal(random))).exp()
}

/// Units of log-normal norms and sensitivities; finer groups and more bits err less, nearly always.
fn made_up(random: &mut StdRng, shape: &Shape, format: &Format, candidates: &[Precision]) -> Sensitivity {
    let layer_weights: Vec<f64> = (0..shape.layers).map(|_| factor(random, 0.5)).collect();
    told(shape, format, candidates, &layer_weights, |_, _, _| {
        let (norm, scale) = (100.0 * factor(random, 1.0), factor(random, 1.5));
        let error = |p: &Precision| distortion(p.bits) * (f64::from(p.group) / 64.0).powf(0.3);
        let codes = candidates.iter().map(|p| norm * norm * error(p)).collect();
        (norm, codes, candidates.iter().map(|p| scale * error(p) * factor(random, 0.1)).collect())
    })
}

/// Weight norms for all its layers.
fn with_norms(random: &mut StdRng, sensitivity: Sensitivity) -> Sensitivity {
    let norms = (0..sensitivity.layers()).map(|_| [20.0 * factor(random, 0.3), 10.0 * factor(random, 0.3)]).collect();
    sensitivity.with_weight_norms(norms).unwrap()
}

/// Every bit width in every group that is served.
fn all_candidates(shape: &Shape, format: &Format) -> Vec<Precision> {
    let groups: Vec<u32> = [32, 64, 128].into_iter().filter(|g| shape.head_dim.is_multiple_of(*g) || *g == 128 && !shape.head_dim.is_multiple_of(32)).collect();
    let bits: &[Bits] =
        if format.scales() == Scales::Byte { &[Bits::Two, Bits::Three, Bits::Four] } else { &[Bits::Two, Bits::Three, Bits::Four, Bits::Eight] };
    bits.iter().flat_map(|bits| groups.iter().map(|group| precision(*bits, *group))).collect()
}

const ALLOCATORS: [BitRule; 8] = [
    BitRule::Measured { grain: Grain::Head, fill: Fill::Nested },
    BitRule::Measured { grain: Grain::Head, fill: Fill::Skip },
    BitRule::Measured { grain: Grain::Layer, fill: Fill::Nested },
    BitRule::Measured { grain: Grain::Layer, fill: Fill::Skip },
    BitRule::CacheNorm,
    BitRule::RepoNorm { average_group: None },
    BitRule::RepoNorm { average_group: Some(64.0) },
    BitRule::Fixed { key: Precision { bits: Bits::Four, group: 128 }, value: Precision { bits: Bits::Two, group: 128 } },
];

/// Shapes and formats to allocate for.
fn places() -> Vec<(Shape, Format)> {
    let of = |codec| Format::new(codec, Bits::Four, Bits::Four, 128);
    vec![
        (shape(4, 8, 4, 128), of(Codec::Rtn)),
        (shape(3, 4, 2, 64), of(Codec::Hadamard).with_scales(Scales::Byte)),
        (shape(3, 3, 3, 80), of(Codec::Rtn)),
        (shape(3, 8, 4, 128), rotated(Bits::Four, Bits::Four, 128, 2)),
        (shape(2, 6, 6, 80), rotated(Bits::Four, Bits::Four, 128, 2).with_scales(Scales::Byte)),
    ]
}

fn strict_plan(shape: &Shape, allocation: &BitPlan, protection: Protection, tokens: u32) -> Plan {
    let capability = Capability { binding_bytes: 1 << 31, buffer_bytes: 1 << 31, workgroup_bytes: 1 << 16, ..Capability::webgpu_default() };
    Plan::builder(shape.clone(), allocation.clone()).protection(protection).capacity(Capacity::tokens(1, tokens)).build(&capability).unwrap()
}

/// What must hold of whatever a rule allocates.
#[track_caller]
fn consistent(shape: &Shape, sensitivity: &Sensitivity, allocation: &BitPlan, name: &str) {
    let report = allocation.report().unwrap();
    assert!(report.spent <= report.allowed, "{name}");
    assert_eq!(report.elements, shape.elements_per_token(), "{name}");
    assert_eq!(report.spent, strict_plan(shape, allocation, Protection::NONE, 128).bits(1), "{name}");
    assert_eq!(report.spent, token_bits(shape, sensitivity.format(), allocation).iter().sum::<u64>(), "{name}");
    assert_eq!(report.spent, report.units.iter().map(|unit| unit.bits).sum::<u64>(), "{name}");
    assert_eq!(report.bits_per_element(), report.spent as f64 / shape.elements_per_token() as f64, "{name}");
    let halves: f64 = Kind::BOTH.map(|kind| report.mean_bits(kind)).iter().sum();
    assert!((halves / 2.0 - report.bits_per_element()).abs() < ROUNDING * halves, "{name}");
    assert!((report.error - report.units.iter().map(|unit| unit.error).sum::<f64>()).abs() <= ROUNDING * report.error, "{name}");
    assert!(report.bound.is_none_or(|bound| bound <= report.error), "{name}");
    // Every head's keys and values are of one unit, in the order that is told.
    let mut seen = BTreeSet::new();
    for unit in &report.units {
        let at = sensitivity.candidates().iter().position(|candidate| *candidate == unit.precision).unwrap();
        let mut error = 0.0;
        for head in unit.head..unit.head + unit.heads {
            assert!(seen.insert((unit.layer, unit.kind, head)), "{name}");
            assert_eq!(allocation.of(unit.layer, head)[unit.kind as usize], unit.precision, "{name}");
            error += sensitivity.layer_weight(unit.layer) * sensitivity.output_errors(unit.layer, head, unit.kind)[at];
        }
        assert!((unit.error - error).abs() <= ROUNDING * error, "{name}: {unit:?}, {error}");
    }
    assert_eq!(seen.len() as u32, 2 * shape.layers * shape.kv_heads, "{name}");
    assert!(report.units.is_sorted_by_key(|unit| (unit.layer, unit.head, unit.kind)), "{name}");
    assert_eq!(allocation.model(), sensitivity.model());
}

#[test]
fn no_allowance_is_exceeded_and_more_is_never_worse() {
    let (mut random, seed) = seeded();
    for (shape, format) in places() {
        let candidates = all_candidates(&shape, &format);
        let sensitivity = made_up(&mut random, &shape, &format, &candidates);
        let sensitivity = with_norms(&mut random, sensitivity);
        for allocator in ALLOCATORS {
            let mut last: Option<BitPlan> = None;
            let mut count = 0;
            for step in 0..50 {
                let allowance = 1.8 + 8.0 * (f64::from(step) / 49.0).powi(2) + 0.01 * random.random::<f64>();
                let name = format!("{allocator} at {allowance} of {format}, {shape:?}. WGKV_SEED={seed}");
                let allowed = (allowance * shape.elements_per_token() as f64) as u64;
                let allocation = match BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(allowance), allocator) {
                    Ok(allocation) => allocation,
                    Err(Error::Capacity { reason, need, have }) => {
                        assert!(last.is_none() && have == allowed && need > allowed, "{name}: {need} of {have} for {reason}");
                        continue;
                    }
                    Err(other) => panic!("{name}: {other}"),
                };
                count += 1;
                consistent(&shape, &sensitivity, &allocation, &name);
                let report = allocation.report().unwrap();
                assert_eq!((report.allowed, &report.allocator), (allowed, &allocator.to_string()), "{name}");
                if let (Some(last), BitRule::Measured { fill, .. }) = (&last, allocator) {
                    let before = last.report().unwrap();
                    let slack = if fill == Fill::Nested { 1.0 } else { SKIP_SLACK };
                    assert!(report.error <= before.error * slack, "{name}: {} after {}", report.error, before.error);
                    assert!(report.bound <= before.bound, "{name}");
                    if fill == Fill::Nested {
                        let nested = before.units.iter().zip(&report.units).all(|(a, b)| a.bits <= b.bits && a.error >= b.error);
                        assert!(nested, "{name}: a unit has less");
                    }
                }
                last = Some(allocation);
            }
            assert!(count >= 25, "{allocator} allocated {count} times of 50. WGKV_SEED={seed}");
        }
    }
}

#[test]
fn filling_is_never_worse_than_stopping() {
    let (mut random, seed) = seeded();
    for (shape, format) in places() {
        let sensitivity = made_up(&mut random, &shape, &format, &all_candidates(&shape, &format));
        for _ in 0..20 {
            let allowance = BitBudget::BitsPerElement(random.random_range(3.5..7.0));
            for grain in [Grain::Head, Grain::Layer] {
                let [nested, filled] = [Fill::Nested, Fill::Skip].map(|fill| {
                    let allocation = BitPlan::choose(&shape, &sensitivity, allowance, BitRule::Measured { grain, fill }).unwrap();
                    allocation.report().unwrap().clone()
                });
                assert!(filled.error <= nested.error && filled.bound == nested.bound && filled.spent >= nested.spent, "{allowance:?}. WGKV_SEED={seed}");
            }
        }
    }
}

/// Bytes of a sequence pay for its packed tokens, its sinks and its window.
#[test]
fn bytes_at_a_context_are_never_exceeded() {
    let (mut random, seed) = seeded();
    for (shape, format) in places() {
        let sensitivity = made_up(&mut random, &shape, &format, &all_candidates(&shape, &format));
        let elements = shape.elements_per_token();
        for protection in [Protection::NONE, protect(4, 0), protect(4, 128), protect(20, 64), protect(0, 300)] {
            for tokens in [1_000, 4_096, 32_768] {
                let mut last: Option<BitPlan> = None;
                for step in 0..8 {
                    // Kept tokens, and so many bits for each number of the others.
                    let kept = u64::from(protection.f16_tokens(tokens)) * elements * 2;
                    let bits = 3.3 + 0.7 * f64::from(step) + 0.1 * random.random::<f64>();
                    let bytes = kept + (f64::from(protection.packed(tokens)) * elements as f64 * bits / 8.0) as u64;
                    let name = format!("{bytes} bytes for {tokens} tokens, {protection:?} of {format}, {shape:?}. WGKV_SEED={seed}");
                    let allocation = BitPlan::choose(&shape, &sensitivity, BitBudget::Bytes { bytes, tokens, protection }, BitRule::default())
                        .unwrap_or_else(|e| panic!("{name}: {e}"));
                    consistent(&shape, &sensitivity, &allocation, &name);
                    let report = allocation.report().unwrap();
                    assert_eq!(report.allowed, 8 * (bytes - kept) / u64::from(protection.packed(tokens)), "{name}");
                    let used = strict_plan(&shape, &allocation, protection, tokens).bits(tokens.into());
                    assert!(used <= 8 * bytes, "{name}: {used} bits");
                    if let Some(last) = &last {
                        let before = last.report().unwrap();
                        assert!(before.units.iter().zip(&report.units).all(|(a, b)| a.bits <= b.bits), "{name}: a unit has less");
                    }
                    last = Some(allocation);
                }
            }
        }
    }
}

#[test]
fn allowances_that_hold_nothing_are_refused() {
    let (mut random, _) = seeded();
    let (shape, format) = (shape(2, 4, 2, 128), rtn(Bits::Four, Bits::Four, 128));
    let candidates = Sensitivity::default_candidates(&shape, &format);
    let sensitivity = made_up(&mut random, &shape, &format, &candidates);
    let sensitivity = with_norms(&mut random, sensitivity);
    let allocate = |allowance, allocator| BitPlan::choose(&shape, &sensitivity, allowance, allocator);
    let elements = shape.elements_per_token();
    // Two bits in groups of 128: 2.25.
    let least = elements * 9 / 4;
    for allocator in [BitRule::default(), BitRule::Measured { grain: Grain::Layer, fill: Fill::Skip }, BitRule::CacheNorm, ALLOCATORS[5]] {
        assert_eq!(allocate(BitBudget::BitsPerElement(2.25), allocator).unwrap().report().unwrap().spent, least, "{allocator}");
        for (allowance, have) in [(2.2499, (2.2499 * elements as f64) as u64), (0.0, 0)] {
            let want = Error::Capacity { reason: "the cheapest candidates of all units", need: least, have };
            refused(allocate(BitBudget::BitsPerElement(allowance), allocator), &want);
        }
    }
    let fixed = "K4V2".parse().unwrap();
    refused(
        allocate(BitBudget::BitsPerElement(3.0), fixed),
        &Error::Capacity { reason: "the bits of a token, by this rule", need: elements * 13 / 4, have: elements * 3 },
    );
    assert!(allocate(BitBudget::BitsPerElement(3.25), fixed).is_ok());
    for bits in [f64::NAN, f64::INFINITY, -1.0] {
        let want = Error::argument("bits per element", "finite and 0 or more", bits);
        refused(allocate(BitBudget::BitsPerElement(bits), BitRule::default()), &want);
    }

    let bytes = |bytes, tokens, protection| allocate(BitBudget::Bytes { bytes, tokens, protection }, BitRule::default());
    // 255 tokens leave a window of 128 less than a page to pack.
    for (tokens, protection) in [(0, Protection::NONE), (128, Protection::default()), (255, Protection::default())] {
        let want = Error::argument("tokens", "more than the window keeps", tokens);
        refused(bytes(1 << 30, tokens, protection), &want);
    }
    assert!(bytes(1 << 30, 256, Protection::default()).is_ok());
    // 128 tokens of the window and 4 sinks, 2 bytes a number; then 128 packed tokens.
    let kept = 132 * elements * 2;
    refused(bytes(kept - 1, 256, Protection::default()), &Error::Capacity { reason: "the bytes of the tokens that stay f16", need: kept, have: kept - 1 });
    let all = kept + 128 * least / 8;
    refused(
        bytes(all - 1, 256, Protection::default()),
        &Error::Capacity { reason: "the cheapest candidates of all units", need: least, have: (8 * (all - 1 - kept)) / 128 },
    );
    assert_eq!(bytes(all, 256, Protection::default()).unwrap().report().unwrap().spent, least);
    // More than there is to spend.
    for plenty in [bytes(u64::MAX, 256, Protection::default()), allocate(BitBudget::BitsPerElement(1e300), BitRule::default())] {
        assert!(plenty.unwrap().report().unwrap().units.iter().all(|unit| unit.precision == precision(Bits::Eight, 128)));
    }
    // What a rule needs.
    let untold = made_up(&mut random, &shape, &format, &candidates);
    let want = |name: &'static str, wanted: &str, had: &str| Error::mismatch(Thing::Sensitivity, name, wanted, had);
    refused(
        BitPlan::choose(&shape, &untold, BitBudget::BitsPerElement(4.0), ALLOCATORS[5]),
        &want("weight norms", "told by Sensitivity::with_weight_norms", "not"),
    );
    let listed = "2/128, 2/64, 2/32, 3/128, 3/64, 3/32, 4/128, 4/64, 4/32, 8/128";
    assert_eq!(candidates.iter().map(Precision::to_string).collect::<Vec<_>>().join(", "), listed);
    refused(allocate(BitBudget::BitsPerElement(9.0), "fixed:K8/64,V2/128".parse().unwrap()), &want("candidates", "such that 8/64 is among them", listed));
    for (norms, wanted, had) in [
        (vec![[1.0; 2]], "2, one a layer", "1"),
        (vec![[1.0, f64::NAN]; 2], "finite and 0 or more", "NaN"),
        (vec![[-1.0, 1.0]; 2], "finite and 0 or more", "-1"),
    ] {
        refused(untold.clone().with_weight_norms(norms), &want("weight norms", wanted, had));
    }
    for (weights, wanted, had) in [(vec![1.0; 3], "2, one a layer", "3"), (vec![1.0, f64::INFINITY], "finite and 0 or more", "inf")] {
        refused(untold.clone().with_layer_weights(weights), &want("layer weights", wanted, had));
    }
    // A weight that is small beside the others is measured badly.
    let floored = untold.with_layer_weights(vec![1e-9, 4.0]).unwrap();
    assert_eq!([0, 1, 2].map(|layer| floored.layer_weight(layer)), [0.4, 4.0, 0.0]);
}

#[test]
fn allocators_are_written_and_read() {
    let mut all = ALLOCATORS.to_vec();
    all.extend([
        BitRule::RepoNorm { average_group: Some(48.5) },
        BitRule::Fixed { key: precision(Bits::Eight, 32), value: Precision::F16 },
        BitRule::Fixed { key: Precision::F16, value: precision(Bits::Three, 64) },
    ]);
    for allocator in all {
        assert_eq!(allocator.to_string().parse::<BitRule>().unwrap(), allocator, "{allocator}");
    }
    for (text, want) in [
        ("measured", BitRule::default()),
        ("measured:layer", ALLOCATORS[2]),
        ("measured:fill", ALLOCATORS[1]),
        ("measured:layer:fill", ALLOCATORS[3]),
        ("measured:fill:layer", ALLOCATORS[3]),
        ("cache-norm", BitRule::CacheNorm),
        ("repo-norm", ALLOCATORS[5]),
        ("repo-norm:64", ALLOCATORS[6]),
        ("K4V2", ALLOCATORS[7]),
        ("fixed:K4/128,V2/128", ALLOCATORS[7]),
        ("K16V16", BitRule::Fixed { key: Precision::F16, value: Precision::F16 }),
    ] {
        assert_eq!(text.parse::<BitRule>().unwrap(), want, "{text}");
    }
    for text in [
        "",
        "Measured",
        "measured:",
        "measured:head",
        "measured:layer:",
        "cache-norm:64",
        "cache-norm:",
        "repo-norm:",
        "repo-norm:x",
        "repo-norm:inf",
        "repo-norm:NaN",
        "fixed",
        "fixed:",
        "fixed:K4/128",
        "fixed:V2/128,K4/128",
        "fixed:K4/128;V2/128",
        "K4",
        "K4V",
        "V2K4",
        "KxV2",
        "K4V2:",
        "K4V2:fill",
        "K-4V2",
        "k4v2",
    ] {
        refused(text.parse::<BitRule>(), &Error::argument("allocator", "measured, cache-norm, repo-norm or K4V2", text));
    }
    refused("K5V2".parse::<BitRule>(), &Error::Bits { had: 5 });
    refused("fixed:K6/64,V2/64".parse::<BitRule>(), &Error::Bits { had: 6 });
    refused("fixed:K4,V2/64".parse::<BitRule>(), &Error::argument("precision", "BITS/GROUP, or 16", "4"));
}

/// A fixed pair is what it says, wherever it fits; groups that come to the same in a head are the same.
#[test]
fn fixed_pairs_are_what_they_say() {
    let (mut random, seed) = seeded();
    let (shape, format) = (shape(3, 4, 2, 64), hadamard(Bits::Four, Bits::Four, 64));
    let sensitivity = made_up(&mut random, &shape, &format, &Sensitivity::default_candidates(&shape, &format));
    let allocation = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(3.5), "K4V2".parse().unwrap()).unwrap();
    consistent(&shape, &sensitivity, &allocation, &format!("WGKV_SEED={seed}"));
    assert!(allocation.is_uniform() && allocation.of(2, 1) == [precision(Bits::Four, 64), precision(Bits::Two, 64)]);
    assert_eq!(allocation.mean_bits(), [4.0, 2.0]);
    assert_eq!(allocation.to_string(), "hadamard K4V2 group 64");
    assert!(allocation.favours_values().is_none());
    let swapped = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(3.5), "fixed:K2/32,V3/64".parse().unwrap()).unwrap();
    assert_eq!(swapped.of(0, 0), [precision(Bits::Two, 32), precision(Bits::Three, 64)]);
    assert_eq!(swapped.favours_values(), Some([2.0, 3.0]));
    let report = swapped.report().unwrap();
    assert!(report.bound.is_none() && report.multiplier.is_none());
    assert_eq!((report.mean_bits(Kind::Key), report.mean_bits(Kind::Value), report.bits_per_element()), (3.0, 3.5, 3.25));
    let told = report.to_string();
    for words in ["fixed:K2/32,V3/64: 3.2500 of 3.5000 bits per element, keys 3.000, values 3.500", "2/32", "3/64"] {
        assert!(told.contains(words), "{told}");
    }
    // A group of 128 that is its own where RotateKV's goes over heads.
    let rotating = rotated(Bits::Four, Bits::Four, 128, 2);
    let sensitivity = made_up(&mut random, &shape, &rotating, &[64, 128].map(|group| precision(Bits::Four, group)));
    for group in [64, 128] {
        let [key, value] = [precision(Bits::Four, group); 2];
        let allocation = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(9.0), BitRule::Fixed { key, value }).unwrap();
        assert_eq!(allocation.of(0, 0), [key, value]);
    }
}

/// The published rule: its bits are those of its norms and what scales leave of the allowance.
#[test]
fn norm_rules_are_the_published_ones() {
    let (mut random, seed) = seeded();
    let widths = [2.0, 3.0, 4.0, 8.0];
    for (shape, format) in [places()[0].clone(), places()[3].clone(), (shape(5, 4, 2, 64), rtn(Bits::Four, Bits::Four, 64))] {
        let candidates = all_candidates(&shape, &format);
        let sensitivity = made_up(&mut random, &shape, &format, &candidates);
        let sensitivity = with_norms(&mut random, sensitivity);
        let elements = shape.elements_per_token() as f64;
        let group = shape.head_dim;
        // Bits of scales for each number, in groups as large as a head.
        let scales = 32.0 / f64::from(group);
        for average in [2.0, 2.3, 2.5, 3.0, 3.3, 4.0, 5.7, 8.0] {
            let name = format!("average {average} of {format}, {shape:?}. WGKV_SEED={seed}");
            let allowed = ((average + scales) * elements) as u64;
            let average = (allowed as f64 - scales * elements) / elements;
            let allowance = BitBudget::BitsPerElement(allowed as f64 / elements);
            let by_layer = BitPlan::choose(&shape, &sensitivity, allowance, ALLOCATORS[5]).unwrap();
            let norms: Vec<f64> = (0..shape.layers).flat_map(|layer| sensitivity.weight_norms(layer).unwrap()).collect();
            let want = norm_bits(&norms, &widths, average, Ties::Published).unwrap();
            for (layer, head) in (0..shape.layers).flat_map(|layer| (0..shape.kv_heads).map(move |head| (layer, head))) {
                let bits = by_layer.of(layer, head).map(|p| f64::from(p.bits.get()));
                assert_eq!(bits[..], want[2 * layer as usize..][..2], "layer {layer}, {name}");
                assert!(by_layer.of(layer, head).iter().all(|p| p.group == group), "{name}");
            }

            let by_head = BitPlan::choose(&shape, &sensitivity, allowance, BitRule::CacheNorm).unwrap();
            // RotateKV's keys of a layer are one, and so their values are.
            let heads = if format.codec() == Codec::RotateKv { shape.kv_heads } else { 1 };
            let norm = |layer, first: u32, kind| (first..first + heads).map(|head| sensitivity.norm(layer, head, kind).powi(2)).sum::<f64>().sqrt();
            let firsts = || (0..shape.layers).flat_map(|layer| (0..shape.kv_heads).step_by(heads as usize).map(move |head| (layer, head)));
            let norms: Vec<f64> = firsts().flat_map(|(layer, head)| Kind::BOTH.map(|kind| norm(layer, head, kind))).collect();
            let want = norm_bits(&norms, &widths, average, Ties::Relative).unwrap();
            for (n, (layer, first)) in firsts().enumerate() {
                for head in first..first + heads {
                    let bits = by_head.of(layer, head).map(|p| f64::from(p.bits.get()));
                    assert_eq!(bits[..], want[2 * n..][..2], "layer {layer}, head {head}, {name}");
                }
            }
            consistent(&shape, &sensitivity, &by_layer, &name);
            consistent(&shape, &sensitivity, &by_head, &name);
        }
    }
}

/// With groups of its own the published rule pays for them out of the same allowance.
#[test]
fn groups_of_the_published_rule_are_paid_for() {
    let (mut random, seed) = seeded();
    let (shape, format) = (shape(6, 8, 4, 128), rtn(Bits::Four, Bits::Four, 128));
    let sensitivity = made_up(&mut random, &shape, &format, &all_candidates(&shape, &format));
    let sensitivity = with_norms(&mut random, sensitivity);
    let norms: Vec<f64> = (0..shape.layers).flat_map(|layer| sensitivity.weight_norms(layer).unwrap()).collect();
    for group in [32.0, 48.0, 64.0, 100.0, 128.0] {
        for allowance in [3.0, 3.3, 4.0, 5.0, 7.0] {
            let name = format!("groups of {group} at {allowance}. WGKV_SEED={seed}");
            let allocator = BitRule::RepoNorm { average_group: Some(group) };
            let allocation = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(allowance), allocator).unwrap();
            consistent(&shape, &sensitivity, &allocation, &name);
            let groups = norm_groups(&norms, &[32, 64, 128], group).unwrap();
            let scales = groups.iter().map(|group| 32.0 / f64::from(*group)).sum::<f64>() / groups.len() as f64;
            let bits = norm_bits(&norms, &[2.0, 3.0, 4.0, 8.0], allowance - scales, Ties::Published).unwrap();
            for (n, unit) in allocation.report().unwrap().units.iter().enumerate() {
                // Exact, since every allowance is a whole number of bits for a token.
                assert_eq!((f64::from(unit.precision.bits.get()), unit.precision.group), (bits[n], groups[n]), "unit {n}, {name}");
            }
        }
    }
    let wide = BitRule::RepoNorm { average_group: Some(200.0) };
    refused(
        BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(4.0), wide),
        &Error::argument("average_group", "more than 0 and at most 128", "200"),
    );
}

/// Frobenius norms of the key and value projections of Qwen3-0.6B (section 2.3).
const QWEN: [&str; 2] = [
    "31.368 29.649 28.729 29.472 28.883 28.552 28.246 26.903 27.599 27.270 27.603 27.256 26.295 24.856 \
     24.759 23.372 24.352 23.806 23.269 23.471 25.374 25.947 26.573 25.825 25.924 24.290 23.885 29.219",
    "27.268 29.107 28.570 30.812 30.287 28.781 28.851 28.355 28.297 27.667 27.634 26.298 26.979 26.920 \
     25.434 26.475 26.306 27.240 26.020 26.449 27.688 29.503 29.529 28.779 28.548 31.488 30.266 33.087",
];

/// (28) The published rule starves the keys of a model whose key projections have small norms, and it is said.
#[test]
fn values_before_keys_are_noticed() {
    let (mut random, seed) = seeded();
    let (shape, format) = (shape(28, 16, 8, 128), rtn(Bits::Four, Bits::Four, 128));
    let [keys, values]: [Vec<f64>; 2] = QWEN.map(|text| text.split_whitespace().map(|x| x.parse().unwrap()).collect());
    let allocate = |candidates: &[Bits], random: &mut StdRng| {
        let candidates: Vec<Precision> = candidates.iter().map(|bits| precision(*bits, 128)).collect();
        let norms = keys.iter().zip(&values).map(|(k, v)| [*k, *v]).collect();
        let sensitivity = made_up(random, &shape, &format, &candidates).with_weight_norms(norms).unwrap();
        BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(3.25), ALLOCATORS[5]).unwrap()
    };
    let starved = allocate(&[Bits::Two, Bits::Four, Bits::Eight], &mut random);
    // Section 2.3: of 28 layers, 10 have keys of 4 bits, and 18 values.
    assert_eq!(starved.favours_values(), Some([(10.0 * 4.0 + 18.0 * 2.0) / 28.0, (18.0 * 4.0 + 10.0 * 2.0) / 28.0]), "WGKV_SEED={seed}");
    // With 3 bits there is nothing to choose.
    let even = allocate(&[Bits::Two, Bits::Three, Bits::Four, Bits::Eight], &mut random);
    assert_eq!((even.favours_values(), even.mean_bits()), (None, [3.0, 3.0]), "WGKV_SEED={seed}");
}

/// Every head of Llama-3.1-8B: 512 units of 10 candidates.
#[test]
fn a_model_is_allocated_in_less_than_a_second() {
    let (mut random, seed) = seeded();
    let (shape, format) = (shape(32, 32, 8, 128), hadamard(Bits::Four, Bits::Four, 128));
    let candidates = Sensitivity::default_candidates(&shape, &format);
    let sensitivity = made_up(&mut random, &shape, &format, &candidates);
    let sensitivity = with_norms(&mut random, sensitivity);
    for allocator in &ALLOCATORS[..6] {
        for allowance in [2.5, 3.0, 3.5, 4.0] {
            let start = Instant::now();
            let allocation = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(allowance), *allocator).unwrap();
            let taken = start.elapsed();
            println!("{allocator} at {allowance}: {taken:?}");
            assert!(taken.as_secs_f64() < 1.0, "{allocator} at {allowance} took {taken:?}. WGKV_SEED={seed}");
            let by_head = matches!(allocator, BitRule::CacheNorm | BitRule::Measured { grain: Grain::Head, .. });
            assert_eq!((allocation.report().unwrap().units.len(), candidates.len()), (if by_head { 512 } else { 64 }, 10));
            consistent(&shape, &sensitivity, &allocation, &format!("{allocator} at {allowance}. WGKV_SEED={seed}"));
        }
    }
}

// Files.

/// (11) What was saved comes back, to the last bit of every number.
#[test]
fn files_come_back_as_they_were() {
    let (mut random, seed) = seeded();
    let folder = std::env::temp_dir();
    for n in 0..40 {
        let (_, _, allocation) = any_allocation(&mut random);
        let text = allocation.to_json().unwrap();
        assert_eq!(BitPlan::from_json(&text).unwrap(), allocation, "{n}: {text}. WGKV_SEED={seed}");
    }
    for (shape, format) in places() {
        let format = format.with_clip(0.83);
        let sensitivity = made_up(&mut random, &shape, &format, &all_candidates(&shape, &format));
        let sensitivity = with_norms(&mut random, sensitivity);
        let path = folder.join(format!("wgkv-sensitivity-{seed}-{}.json", std::process::id()));
        sensitivity.save(&path).unwrap();
        assert_eq!(Sensitivity::load(&path).unwrap(), sensitivity, "WGKV_SEED={seed}");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Sensitivity::from_json(&sensitivity.to_json().unwrap()).unwrap(), sensitivity, "WGKV_SEED={seed}");
        for allocator in ALLOCATORS {
            let allocation = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(5.3), allocator).unwrap();
            let path = folder.join(format!("wgkv-allocation-{seed}-{}.json", std::process::id()));
            allocation.save(&path).unwrap();
            let back = BitPlan::load(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!(back, allocation, "{allocator}. WGKV_SEED={seed}");
            assert_eq!(back.report().unwrap().to_string(), allocation.report().unwrap().to_string());
            assert_eq!(back.model(), "made up");
            // The bits count, not who decided on them.
            let mut bare: Value = serde_json::from_str(&allocation.to_json().unwrap()).unwrap();
            bare["report"] = Value::Null;
            let bare = BitPlan::from_json(&bare.to_string()).unwrap();
            assert!(bare.report().is_none());
            assert_eq!(strict_plan(&shape, &bare, Protection::NONE, 128).bits(1), allocation.report().unwrap().spent);
        }
    }
    let nowhere = folder.join("wgkv-no-such-folder").join("file.json");
    let unreachable = |result: Result<()>, what: &str| match result {
        Err(Error::Io { doing, path, source }) => {
            assert_eq!((doing, path, source.get().kind()), (what, nowhere.display().to_string(), std::io::ErrorKind::NotFound));
        }
        other => panic!("{what} must fail, but is {other:?}"),
    };
    unreachable(BitPlan::load(&nowhere).map(drop), "reading");
    unreachable(Sensitivity::load(&nowhere).map(drop), "reading");
    let (_, _, allocation) = any_allocation(&mut random);
    unreachable(allocation.save(&nowhere), "writing");
}

/// A small allocation and what it was made of, as files.
fn files(random: &mut StdRng, codec: Codec) -> [Value; 2] {
    let (shape, format) = (shape(2, 4, 2, 64), Format::new(codec, Bits::Four, Bits::Four, 64));
    let sensitivity = made_up(random, &shape, &format, &Sensitivity::default_candidates(&shape, &format));
    let sensitivity = with_norms(random, sensitivity);
    let allocation = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(4.0), BitRule::default()).unwrap();
    [allocation.to_json().unwrap(), sensitivity.to_json().unwrap()].map(|text| serde_json::from_str(&text).unwrap())
}

/// A file with something else in one place; a field that is not there is added.
fn with(file: &Value, place: &str, value: Value) -> String {
    let mut file = file.clone();
    let (parent, name) = place.rsplit_once('/').unwrap();
    match file.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[name.parse::<usize>().unwrap()] = value,
        fields => fields[name] = value,
    }
    file.to_string()
}

/// A list of a file without its last item.
fn shorter(file: &Value, place: &str) -> Value {
    let items = file.pointer(place).unwrap().as_array().unwrap();
    items[..items.len() - 1].into()
}

/// Asserts that no part of a text that ends early is read.
#[track_caller]
fn cut_short(text: &str, refused: impl Fn(&str) -> bool) {
    for end in (0..text.len()).step_by(7).chain([text.len() - 1]) {
        assert!(refused(&text[..end]), "{end} bytes of {}", text.len());
    }
}

#[test]
fn damaged_allocations_are_refused() {
    let (mut random, _) = seeded();
    let [file, _] = files(&mut random, Codec::Rtn);
    assert!(BitPlan::from_json(&file.to_string()).is_ok());
    let text = |name, wanted, had: &str| Error::argument(name, wanted, had);
    let heads = |count: &str| format!("layers times kv_heads, {count}, 1 to 1048576");
    let unit = |had| not_of("units", "within 2 layers of 2 heads", had);
    let negative = not_of("numbers of the report", "finite and 0 or more", "-1.5");
    for (place, value, want) in [
        ("/format", json!("wgkv-sensitivity"), not_of("format", "wgkv-allocation", "\"wgkv-sensitivity\"")),
        ("/version", json!(2), not_of("version", "1", "2")),
        ("/precisions", shorter(&file, "/precisions"), not_of("precisions", &heads("4"), "3")),
        ("/layers", json!(0), not_of("precisions", &heads("0"), "4")),
        ("/layers", json!(3), not_of("precisions", &heads("6"), "4")),
        ("/layers", json!(u32::MAX), not_of("precisions", &heads("8589934590"), "4")),
        ("/kv_heads", json!(u32::MAX), not_of("precisions", &heads("8589934590"), "4")),
        ("/head_dim", json!(72), Error::argument("head_dim", "64, 80, 96, 128 or 256", "72")),
        ("/precisions/1/0", json!("2/48"), Error::Group { group: 48, head_dim: 64 }),
        ("/precisions/1/1", json!("2/0"), Error::Group { group: 0, head_dim: 64 }),
        ("/precisions/1/1", json!("5/64"), Error::Bits { had: 5 }),
        ("/precisions/1/1", json!("-2/64"), text("precision", "BITS/GROUP, or 16", "-2/64")),
        ("/precisions/1/1", json!("two"), text("precision", "BITS/GROUP, or 16", "two")),
        ("/storage/codec", json!("int4"), Error::Codec { had: "int4".into() }),
        ("/storage/scales", json!("f4"), text("scales", "f16, f8 or symmetric", "f4")),
        ("/storage/clip", json!(-0.5), Error::argument("clip", "above 0 and at most 1", "-0.5")),
        ("/report/error", json!(-1.5), negative.clone()),
        ("/report/bound", json!(-1.5), negative.clone()),
        ("/report/multiplier", json!(-1.5), negative.clone()),
        ("/report/units/0/error", json!(-1.5), negative.clone()),
        ("/report/units/0/error_before", json!(-1.5), negative),
        ("/report/units/0/kind", json!("Q"), not_of("kind of a unit", "K or V", "\"Q\"")),
        ("/report/units/1/heads", json!(0), unit("0 heads from head 0 of layer 0")),
        ("/report/units/1/heads", json!(3), unit("3 heads from head 0 of layer 0")),
        ("/report/units/0/head", json!(u32::MAX), unit("1 heads from head 4294967295 of layer 0")),
        ("/report/units/0/layer", json!(2), unit("1 heads from head 0 of layer 2")),
        ("/report/spent_bits", json!(7), not_of("bits of all units", "7, as spent", &file["report"]["spent_bits"].to_string())),
        ("/report/units/0/bits", json!(u64::MAX), not_of("bits of all units", &format!("{}, as spent", file["report"]["spent_bits"]), "too many")),
    ] {
        refused(BitPlan::from_json(&with(&file, place, value)), &want);
    }
    // Which group is met first depends on what was drawn.
    let narrow = BitPlan::from_json(&with(&file, "/head_dim", json!(80)));
    assert!(matches!(narrow, Err(Error::Group { group: 32 | 64, head_dim: 80 })), "{narrow:?}");
    // What is not JSON of this form at all: another type, a number too large for it, a field too few or too many, a text cut short.
    let unreadable = |text: &str| matches!(BitPlan::from_json(text), Err(Error::Mismatch { of: Thing::BitPlan, name, wanted, .. }) if name == "file" && wanted == "what wgkv writes");
    for (place, value) in [
        ("/layers", json!(-1)),
        ("/layers", json!(2.5)),
        ("/layers", json!(1_u64 << 32)),
        ("/model", Value::Null),
        ("/precisions/0", json!(["2/64"])),
        ("/precisions", json!("2/64")),
        ("/report/error", Value::Null),
        ("/more", json!(1)),
        ("/report/more", json!(1)),
        ("/report/units/0/more", json!(1)),
    ] {
        assert!(unreadable(&with(&file, place, value)), "{place}");
    }
    cut_short(&file.to_string(), unreadable);
    for number in ["1e999", "NaN", "Infinity", "-1e999"] {
        assert!(unreadable(&file.to_string().replacen("\"error\":", &format!("\"error\":{number},\"gone\":"), 1)), "{number}");
    }
    // A report of an infinite error cannot be written.
    let (shape, format) = (shape(1, 1, 1, 64), rtn(Bits::Four, Bits::Four, 64));
    let large = told(&shape, &format, &[precision(Bits::Four, 64)], &[1e300], |_, _, _| (1.0, vec![1.0], vec![1e300]));
    let allocation = BitPlan::choose(&shape, &large, BitBudget::BitsPerElement(9.0), "K4V4".parse().unwrap()).unwrap();
    refused(allocation.to_json(), &not_of("numbers of the report", "finite and 0 or more", "inf"));
}

#[test]
fn damaged_sensitivities_are_refused() {
    let (mut random, _) = seeded();
    let [_, file] = files(&mut random, Codec::Rtn);
    assert!(Sensitivity::from_json(&file.to_string()).is_ok());
    let not_of = |name: &str, wanted: &str, had: &str| Error::mismatch(Thing::Sensitivity, name.to_owned(), wanted, had);
    let heads = |count: &str, had| not_of("heads", &format!("{count}, layers times kv_heads, and not 0"), had);
    let shape = |name, wanted: &str, had: &str| Error::argument(name, wanted, had);
    let negative = |of: &str| not_of(&format!("numbers of {of}"), "finite and 0 or more", "-4");
    for (place, value, want) in [
        ("/format", json!("wgkv-allocation"), not_of("format", "wgkv-sensitivity", "\"wgkv-allocation\"")),
        ("/version", json!(0), not_of("version", "1", "0")),
        ("/heads", shorter(&file, "/heads"), heads("4", "3")),
        ("/layers", json!(0), heads("0", "4")),
        ("/layers", json!(u32::MAX), heads("8589934590", "4")),
        ("/kv_heads", json!(u32::MAX), heads("8589934590", "4")),
        ("/candidates", json!([]), not_of("candidates", "1 or more", "0")),
        ("/candidates", shorter(&file, "/candidates"), not_of("numbers of layer 0, head 0", "6, one a candidate", "7")),
        ("/candidates/2", json!("2/0"), Error::Group { group: 0, head_dim: 64 }),
        ("/candidates/2", json!("9/64"), Error::Bits { had: 9 }),
        ("/candidates/2", json!("2"), Error::argument("precision", "BITS/GROUP, or 16", "2")),
        ("/head_dim", json!(0), shape("head_dim", "64, 80, 96, 128 or 256", "0")),
        ("/head_dim", json!(96), Error::Group { group: 64, head_dim: 96 }),
        ("/storage/codec", json!("f16"), not_of("codec", "one that has codes", "f16")),
        ("/storage/codec", json!("int4"), Error::Codec { had: "int4".into() }),
        ("/heads/1/norms/1", json!(-4.0), negative("layer 0, head 1")),
        ("/heads/2/output", json!(-4.0), negative("layer 1, head 0")),
        ("/heads/2/output_errors/1/3", json!(-4.0), negative("layer 1, head 0")),
        ("/heads/2/code_errors/0/0", json!(-4.0), negative("layer 1, head 0")),
        ("/heads/3/code_errors/1", shorter(&file, "/heads/3/code_errors/1"), not_of("numbers of layer 1, head 1", "7, one a candidate", "6")),
        ("/layer_weights/1", json!(-4.0), not_of("layer weights", "finite and 0 or more", "-4")),
        ("/layer_weights", json!([1.0]), not_of("layer weights", "2, one a layer", "1")),
        ("/weight_norms", json!([[1.0, 2.0]]), not_of("weight norms", "2, one a layer", "1")),
        ("/weight_norms/0", json!([1.0, -4.0]), not_of("weight norms", "finite and 0 or more", "-4")),
    ] {
        refused(Sensitivity::from_json(&with(&file, place, value)), &want);
    }
    // Rotations over heads that do not divide.
    let [_, rotating] = files(&mut random, Codec::RotateKv);
    for heads in [0, 3, 4] {
        let read = Sensitivity::from_json(&with(&rotating, "/storage/heads_per_group", json!(heads)));
        assert!(
            matches!(&read, Err(Error::Mismatch { of: Thing::Argument, name, had, .. }) if name == "heads_per_group" && *had == heads.to_string()),
            "{heads}"
        );
    }
    let unreadable = |text: &str| matches!(Sensitivity::from_json(text), Err(Error::Mismatch { of: Thing::Sensitivity, name, wanted, .. }) if name == "file" && wanted == "what wgkv writes");
    for (place, value) in [
        ("/tokens", json!(-1)),
        ("/layers", json!(1_u64 << 32)),
        ("/heads/0/output", Value::Null),
        ("/heads/0/norms", json!([1.0])),
        ("/heads", json!({})),
        ("/more", json!(1)),
        ("/heads/0/more", json!(1)),
    ] {
        assert!(unreadable(&with(&file, place, value)), "{place}");
    }
    cut_short(&file.to_string(), unreadable);
}

/// Does all that can be done with what a file gave: it may be refused, but nothing panics.
fn use_allocation(text: &str) -> bool {
    let Ok(allocation) = BitPlan::from_json(text) else { return false };
    let _ = (allocation.to_string(), allocation.report().map(Report::to_string), allocation.favours_values(), allocation.mean_bits());
    assert_eq!(BitPlan::from_json(&allocation.to_json().unwrap()).unwrap(), allocation);
    for kv_heads in [1, 2, 4] {
        let shape = shape(allocation.layers(), kv_heads, kv_heads, 64);
        let _ = Plan::builder(shape, allocation.clone()).capacity(Capacity::tokens(1, 300)).build(&Capability::webgpu_default()).map(|plan| plan.to_string());
    }
    true
}

fn use_sensitivity(text: &str) -> bool {
    let Ok(sensitivity) = Sensitivity::from_json(text) else { return false };
    assert_eq!(Sensitivity::from_json(&sensitivity.to_json().unwrap()).unwrap(), sensitivity);
    let shape = shape(sensitivity.layers(), sensitivity.kv_heads(), sensitivity.kv_heads(), sensitivity.head_dim());
    for (allocator, bits) in ALLOCATORS.into_iter().flat_map(|allocator| [2.4, 4.0, 9.0].map(|bits| (allocator, bits))) {
        if let Ok(allocation) = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(bits), allocator) {
            let _ = allocation.report().map(Report::to_string);
        }
    }
    true
}

/// A place in a JSON value, drawn.
fn any_place<'a>(random: &mut StdRng, value: &'a mut Value) -> &'a mut Value {
    let length = match value {
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    };
    if length == 0 || random.random_range(0..20) == 0 {
        return value;
    }
    let n = random.random_range(0..length);
    match value {
        Value::Array(items) => any_place(random, &mut items[n]),
        Value::Object(fields) => any_place(random, fields.values_mut().nth(n).unwrap()),
        leaf => leaf,
    }
}

/// What a place in a file might hold, by mistake or by malice.
fn any_value(random: &mut StdRng, file: &Value) -> Value {
    let one = |random: &mut StdRng, list: &[Value]| list[random.random_range(0..list.len())].clone();
    match random.random_range(0..8) {
        0 => one(random, &[0.0, 1.0, -1.0, 1e-300, 1e300, 2.0, 1e18].map(Value::from)),
        1 => one(random, &[0, 1, 2, 64, 80, 255, 1 << 31, u64::from(u32::MAX), u64::MAX].map(Value::from)),
        2 => {
            let words = ["", "K", "2/64", "16", "8/128", "2/0", "0/0", "4294967295/4294967295", "rtn", "hadamard", "rotate-kv", "f16", "f8"];
            one(random, &words.map(Value::from))
        }
        3 => one(random, &[Value::Null, json!([]), json!({}), json!(true)]),
        4 => any_place(random, &mut file.clone()).clone(),
        _ => json!(random.random_range(0..10)),
    }
}

#[test]
fn no_file_makes_a_panic() {
    let (mut random, seed) = seeded();
    let mut read = [0; 2];
    for codec in [Codec::Rtn, Codec::RotateKv] {
        let uses: [fn(&str) -> bool; 2] = [use_allocation, use_sensitivity];
        for ((file, uses), read) in files(&mut random, codec).into_iter().zip(uses).zip(&mut read) {
            for _ in 0..1500 {
                // Bytes that are others.
                let mut bytes = file.to_string().into_bytes();
                for _ in 0..random.random_range(1..=3) {
                    let at = random.random_range(0..bytes.len());
                    let meant = b"0123456789-.e\"[]{},:KV/ "[random.random_range(0..24)];
                    bytes[at] = if random.random() { bytes[at] ^ 1 << random.random_range(0..8) } else { meant };
                }
                *read += usize::from(uses(&String::from_utf8_lossy(&bytes)));
                // Numbers and words that are others, whatever their size.
                let mut file = file.clone();
                let value = any_value(&mut random, &file);
                *any_place(&mut random, &mut file) = value;
                *read += usize::from(uses(&file.to_string()));
            }
        }
    }
    // Some of it must be readable, or nothing was tried.
    assert!(read.iter().all(|count| *count > 300), "{read:?}. WGKV_SEED={seed}");
}
