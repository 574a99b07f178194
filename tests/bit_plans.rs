//! Plans of bits: what cannot be stored is refused, and what is stored costs what the plan says,
//! bit by bit. The numbers in brackets are those of docs/testing.md's table of KV-AdaQuant
//! (2502.15075).
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use wgkv_testing::*;

fn not_of(name: &str, wanted: &str, had: &str) -> Error {
    Error::mismatch(Thing::BitPlan, name.to_owned(), wanted, had)
}

#[test]
fn heads_that_a_codec_cannot_tell_apart_are_refused() {
    let shape = full_rope(2, 8, 4, 64);
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
    // Layers may differ in keys, pairs in values; and all of it where heads are rotated alone, but
    // for keys.
    assert!(BitPlan::new(&shape, format, |layer, head| [[narrow, wide][layer as usize], [narrow, wide][head as usize / 2]]).is_ok());
    let alone = rotated(Bits::Four, Bits::Four, 64, 1);
    assert!(BitPlan::new(&shape, alone, |_, head| [wide, [narrow, wide][head as usize % 2]]).is_ok());
    refused(
        BitPlan::new(&shape, alone, |_, head| [[narrow, wide][head as usize % 2], wide]),
        &not_of("K of layer 0, head 1", "2/64 as of head 0 (rotate-kv stores them together)", "4/64"),
    );
    // Codecs that rotate by head, or not at all, let every head differ.
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
                refused(BitPlan::new(&full_rope(2, 2, 2, head_dim), format, last(two)), &Error::Group { group, head_dim });
            }
            // A group means nothing at 16 bits.
            let halves = [[precision(Bits::Sixteen, group), four], [four, precision(Bits::Sixteen, group)]][place];
            assert!(BitPlan::new(&full_rope(2, 2, 2, head_dim), rtn(Bits::Four, Bits::Four, 128), last(halves)).is_ok());
        }
    }
    for two in [[precision(Bits::Eight, 128), four], [four, precision(Bits::Eight, 128)]] {
        let bytes = rtn(Bits::Four, Bits::Four, 128).with_scales(Scales::Byte);
        refused(BitPlan::new(&full_rope(2, 2, 2, 128), bytes, last(two)), &wrong("bits", "2, 3, 4 or 16 with scales of 8 bits", "8"));
    }
    let rotating = rotated(Bits::Four, Bits::Four, 128, 1);
    refused(BitPlan::new(&full_rope(2, 2, 2, 64), rotating, last([Precision::F16, four])), &wrong("key bits", "2, 3, 4 or 8 with rotate-kv", "16"));
    refused(BitPlan::uniform(&full_rope(1, 1, 1, 64), rotated(Bits::Sixteen, Bits::Four, 128, 1)), &wrong("key bits", "2, 3, 4 or 8 with rotate-kv", "16"));
    let clipped = rtn(Bits::Four, Bits::Four, 128).with_clip(1.5);
    refused(BitPlan::new(&full_rope(2, 2, 2, 64), clipped, last([four; 2])), &wrong("clip", "above 0 and at most 1", "1.5"));
    // f16 has one way of storing, whatever precision is given.
    let half = BitPlan::new(&full_rope(2, 2, 2, 64), Format::f16(), last([precision(Bits::Two, 48); 2])).unwrap();
    assert!(half.is_uniform() && half.of(1, 1) == [Precision::F16; 2]);
}

#[test]
fn a_bit_plan_of_another_shape_is_refused() {
    let own = full_rope(2, 8, 4, 64);
    let bit_plan = BitPlan::uniform(&own, rtn(Bits::Four, Bits::Two, 64)).unwrap();
    let plan = |shape: &Shape| {
        Plan::builder(shape.clone(), bit_plan.clone()).protection(Protection::NONE).capacity(Capacity::tokens(1, 128)).build(&Capability::webgpu_default())
    };
    assert!(plan(&own).is_ok());
    // How many query heads share a KV head, and RoPE, do not matter to bits.
    assert!(plan(&Shape { query_heads: 4, rope: Rope::none(), ..own.clone() }).is_ok());
    refused(plan(&Shape { layers: 3, ..own.clone() }), &not_of("layers", "3", "2"));
    refused(plan(&Shape { kv_heads: 8, ..own.clone() }), &not_of("kv_heads", "8", "4"));
    refused(plan(&Shape { head_dim: 128, ..own.clone() }), &not_of("head_dim", "128", "64"));
    // What no kernel serves is said first.
    refused(plan(&Shape { layers: 0, ..own.clone() }), &Error::argument("layers", "1 or more", "0"));
    assert_eq!(bit_plan.of(2, 0), bit_plan.of(0, 4), "heads that do not exist have the format's own");
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
    assert!(bit_plan.expect_model("any").is_ok() && bit_plan.model().is_empty());
    let named = BitPlan::choose(&own, &measured, BitBudget::BitsPerElement(4.0), BitRule::default()).unwrap();
    assert!(named.expect_model("made up").is_ok() && measured.expect_model("made up").is_ok());
    refused(named.expect_model("other"), &not_of("model", "\"other\"", "\"made up\""));
    refused(measured.expect_model("other"), &Error::mismatch(Thing::Sensitivity, "model", "\"other\"", "\"made up\""));
}

#[test]
fn every_bit_is_accounted_for() {
    let (mut random, seed) = seeded();
    let capability = Capability { binding_bytes: 1 << 31, buffer_bytes: 1 << 31, ..Capability::webgpu_default() };
    for n in 0..400 {
        let (shape, format, bit_plan) = any_bit_plan(&mut random);
        let name = format!("{n}: {bit_plan} of {shape:?}. WGKV_SEED={seed}");
        let bits = token_bits(&shape, &format, &bit_plan);
        let elements = shape.elements_per_token();
        let (sequences, tokens) = (random.random_range(1..=3), random.random_range(1..2000));
        for protection in [Protection::NONE, protect(4, 0), protect(random.random_range(0..100), random.random_range(1..300))] {
            let builder = Plan::builder(shape.clone(), bit_plan.clone()).protection(protection).capacity(Capacity::tokens(sequences, tokens));
            let Ok(plan) = learning(builder, natural_order(&shape, &format).as_ref()).build(&capability) else {
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

/// Every head has a place, among heads that are stored as it is, in no more buffers than bindings
/// of this size ask for.
#[test]
fn every_head_lies_in_one_slab() {
    let (mut random, seed) = seeded();
    // So long that pages are larger than scratch.
    let tokens = 1 << 22;
    let mut split = 0;
    for n in 0..300 {
        let (shape, format, bit_plan) = any_bit_plan(&mut random);
        let name = format!("{n}: {bit_plan} of {shape:?}. WGKV_SEED={seed}");
        let plan = |bytes| {
            let capability = Capability { binding_bytes: bytes, buffer_bytes: bytes, workgroup_bytes: 1 << 16, ..Capability::webgpu_default() };
            let builder = Plan::builder(shape.clone(), bit_plan.clone()).protection(Protection::NONE).capacity(Capacity::tokens(1, tokens));
            learning(builder, natural_order(&shape, &format).as_ref()).build(&capability)
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
                assert!(slab.heads().iter().all(|head| *slab.format() == bit_plan.format_of(layer, *head)), "layer {layer}, {name}");
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
        let shape = full_rope(1, 1, 1, head_dim);
        let bit_plan = BitPlan::uniform(&shape, rtn(Bits::Four, Bits::Four, 128).with_scales(scales).with_precisions(precision, precision)).unwrap();
        let plan = Plan::builder(shape, bit_plan).protection(Protection::NONE).capacity(Capacity::tokens(1, 128)).build(&Capability::webgpu_default()).unwrap();
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
    // The third bits of 80 channels take 2.5 words, of which a key has 3; values' third bits are of
    // 128 tokens.
    assert_eq!(bits(80, precision(Three, 128), Scales::Half), (256.0 + 32.0 + 240.0 + 32.0) / 160.0);
    assert_eq!(bits(80, precision(Two, 128), Scales::Half), 2.4);
}
