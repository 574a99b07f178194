//! Bits by layer, KV head, key and value: a mixed cache stores and attends every head as a cache of
//! that precision alone would.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Instant;
use wgkv_testing::*;

/// One device for all tests, so that pipelines are compiled once.
static GPU: LazyLock<Gpu> = LazyLock::new(gpu);

/// The same for RotateKV: in loops, since straight-line code takes a software adapter seconds to
/// compile.
static ROLLED: LazyLock<Gpu> = LazyLock::new(|| GPU.pretend(Capability { straight: false, ..*GPU.capability() }));

/// Relative RMS error of decoding one head against f64 attention over what is stored: what remains
/// are the 8-bit query and the 8-bit weights, about 0.4 % each in the worst case that
/// `tests/attend_merge.rs` has, which allows as much.
const DECODE_RMS: f64 = 0.02;

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

/// Three layers of four KV heads: stored in four ways, in two (the first of which the first layer
/// has, too), and all alike. Keys and values that are halves are among them.
fn arrangements(head_dim: u32) -> Vec<Vec<[Precision; 2]>> {
    use Bits::{Eight, Four, Three, Two};
    let first = [precision(Two, 32), precision(Eight, 64)];
    let four = vec![first, [Precision::F16, precision(Three, 32)], [precision(Three, head_dim), Precision::F16], [Precision::F16; 2]];
    let second = [precision(Four, 64), precision(Two, 32)];
    vec![four, vec![second, first, first, second], vec![second; 4]]
}

/// RotateKV's: heads are rotated in pairs, which have their values in common; a layer has its keys
/// in common.
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
        shape: full_rope(3, query_heads, 4, head_dim),
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
        Mixed { shape: full_rope(4, 8, 4, 64), layers: pairs(), ..of("RotateKV in pairs, a share of 2", rotated(2), 8, 64) },
        Mixed {
            shape: full_rope(4, 4, 4, 64),
            layers: pairs(),
            protection: protect(4, 16),
            prompt: 150,
            ..of("RotateKV in pairs, a window", rotated(2), 4, 64)
        },
    ];
    let coded = Precision::TRELLIS;
    let some = vec![[coded; 2], [coded, precision(Bits::Four, 64)], [precision(Bits::Three, 64), coded], [precision(Bits::Two, 64); 2]];
    let all = vec![[coded; 2]; 4];
    cases.push(Mixed {
        layers: vec![some.clone(), all, some],
        protection: protect(4, 16),
        prompt: 150,
        ..of("Centred, some heads by a trellis, a share of 2; sinks and a window", plain(Codec::Centred), 8, 64)
    });
    bytes(&mut cases[3].layers);
    cases
}

impl Mixed {
    fn gpu(&self) -> &'static Gpu {
        if self.format.codec() == Codec::RotateKv { &ROLLED } else { &GPU }
    }

    fn plan(&self, gpu: &Gpu, of: impl Fn(u32, u32) -> [Precision; 2], order: Option<&ChannelOrder>, sequences: u32, tokens: u32) -> Plan {
        let bit_plan = BitPlan::new(&self.shape, self.format, of).unwrap();
        let builder = Plan::builder(self.shape.clone(), bit_plan).protection(self.protection).capacity(Capacity::tokens(sequences, tokens));
        learning(builder, order).build(gpu.capability()).unwrap()
    }

    fn of(&self) -> impl Fn(u32, u32) -> [Precision; 2] {
        |layer, head| self.layers[layer as usize][head as usize]
    }

    fn order(&self, random: &mut StdRng) -> Option<ChannelOrder> {
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

/// All that one head of a layer has in the pages of a sequence that began in an empty cache, and
/// its key scales.
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
        let (gpu, shape, order) = (case.gpu(), &case.shape, case.order(&mut random));
        let text = Text::normal(&mut random, shape, case.prompt + DECODED);
        let read = |plan: Plan| {
            let mut reader = Reader::new(gpu, plan);
            let sequence = reader.cache.begin().unwrap();
            let outputs: Vec<Vec<Vec<u32>>> = [case.prompt, 1, 1, 1].map(|tokens| reader.read(sequence, &text, tokens)).to_vec();
            assert!(pollster::block_on(reader.cache.status()).unwrap().is_clean(), "{}", case.why);
            (reader, outputs)
        };
        let plan = |of: &dyn Fn(u32, u32) -> [Precision; 2]| case.plan(gpu, of, order.as_ref(), 1, 256);
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

/// With more pages than one, decoding splits them by how many heads a slab has: then outputs differ
/// by the rounding of weights, and are compared with f64. Pages and prompts stay what they are, bit
/// for bit.
#[test]
fn longer_sequences_are_near_exact_attention_over_what_is_stored() {
    for (case, tokens) in mixed().into_iter().zip([257, 300, 290, 260, 257, 300]).skip(1).step_by(2) {
        let (mut random, seed) = seeded();
        let (gpu, shape, order) = (case.gpu(), &case.shape, case.order(&mut random));
        let text = Text::normal(&mut random, shape, tokens + 1);
        let of = |of: &dyn Fn(u32, u32) -> [Precision; 2]| {
            let plan = case.plan(gpu, of, order.as_ref(), 1, 512);
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
                let error = relative_rms(got, want);
                // A NaN compares false, so it fails too.
                assert!(error < DECODE_RMS, "{}: layer {layer}, head {head}: relative error {error}. WGKV_SEED={seed}", case.why);
            }
        }
    }
}

#[test]
fn mixed_sequences_fork_and_are_cut_without_harm_to_others() {
    for case in mixed().into_iter().step_by(2) {
        let (mut random, seed) = seeded();
        let (gpu, shape, order) = (case.gpu(), &case.shape, case.order(&mut random));
        let name = format!("{}. WGKV_SEED={seed}", case.why);
        let begin = 150;
        let text = Text::normal(&mut random, shape, 190);
        let other = text.branch(&mut random, shape, begin);
        let cut = text.branch(&mut random, shape, 100);
        // One cache whose sequences are forked and cut, and one whose never are.
        let [mut forked, mut plain] = [(); 2].map(|()| Reader::new(gpu, case.plan(gpu, case.of(), order.as_ref(), 3, 512)));
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
