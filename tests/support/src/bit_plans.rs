//! Plans of bits and sensitivities that are made up, what they cost, and what must hold of them.

use crate::{any_bytes, any_change, learning, natural_order, normal, rotated, seeded};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use wgkv::bits::solve::Fill;
use wgkv::bits::{BitBudget, BitPlan, BitRule, Grain, Kind, Sensitivity};
use wgkv::{Bits, Capability, Capacity, Codec, Format, Plan, Precision, Protection, Rope, Scales, Shape};

/// Sums of the same errors in another order differ by rounding: a few units in the last place.
pub const ROUNDING: f64 = 1e-12;

/// Returns a precision.
pub fn precision(bits: Bits, group: u32) -> Precision {
    Precision::new(bits, group)
}

/// Returns a shape of `layers` layers with full RoPE.
pub fn full_rope(layers: u32, query_heads: u32, kv_heads: u32, head_dim: u32) -> Shape {
    Shape { layers, query_heads, kv_heads, head_dim, rope: Rope::new(10_000.0, head_dim) }
}

/// Returns the bits of one token's keys and of its values of one head: codes, and scales that lie with
/// them.
pub fn head_bits(shape: &Shape, format: &Format, [key, value]: [Precision; 2]) -> [[u64; 2]; 2] {
    let d = u64::from(shape.head_dim);
    let codes = |p: Precision| d * u64::from(p.bits.get());
    // A key's third bits lie in whole words.
    let key_codes = if key.bits == Bits::Three { 2 * d + 32 * d.div_ceil(32) } else { codes(key) };
    let scales = |p: Precision| if p.bits == Bits::Sixteen { 0 } else { d / d.min(p.group.into()) * u64::from(format.scales().bits()) };
    let key_scales = if format.codec() == Codec::RotateKv { 0 } else { scales(key) };
    [[key_codes, key_scales], [codes(value), scales(value)]]
}

/// Returns the bits of the scales that RotateKV's keys of one token have in one layer: groups go on
/// from one head to the next where they divide the row.
pub fn row_bits(shape: &Shape, format: &Format, key: Precision) -> u64 {
    let channels = shape.kv_heads * shape.head_dim;
    let group = [128, 64, 32].into_iter().find(|g| *g <= key.group && channels.is_multiple_of(*g)).unwrap_or(shape.head_dim);
    if format.codec() == Codec::RotateKv { u64::from(channels / group * format.scales().bits()) } else { 0 }
}

/// Returns the bits of one token over all layers: key codes, key scales, value codes, value scales.
pub fn token_bits(shape: &Shape, format: &Format, bit_plan: &BitPlan) -> [u64; 4] {
    let mut sum = [0; 4];
    for layer in 0..shape.layers {
        for head in 0..shape.kv_heads {
            let [keys, values] = head_bits(shape, format, bit_plan.of(layer, head));
            for (sum, bits) in sum.iter_mut().zip(keys.into_iter().chain(values)) {
                *sum += bits;
            }
        }
        sum[1] += row_bits(shape, format, bit_plan.of(layer, 0)[0]);
    }
    sum
}

/// Draws a shape, a codec, and precisions that fit both.
pub fn any_bit_plan(random: &mut StdRng) -> (Shape, Format, BitPlan) {
    let head_dim = [64, 80, 96, 128, 192, 256][random.random_range(0..6)];
    let kv_heads = random.random_range(1..=8);
    let shape = full_rope(random.random_range(1..=4), kv_heads * random.random_range(1..=4), kv_heads, head_dim);
    let codec = [Codec::F16, Codec::Rtn, Codec::Hadamard, Codec::RotateKv][random.random_range(0..4)];
    let scales = if random.random() { Scales::Half } else { Scales::Byte };
    let format = Format::new(codec, Bits::Four, Bits::Four, 128).with_scales(scales);
    let together = format.heads_per_group(kv_heads);
    let format = if codec == Codec::RotateKv { format.with_heads_per_group(together) } else { format };
    let mut any = |key: bool| {
        let bits = [Bits::Two, Bits::Three, Bits::Four, Bits::Eight, Bits::Sixteen];
        let fits = |p: &Precision| {
            let byte = scales == Scales::Byte && p.bits == Bits::Eight;
            !(byte || key && codec == Codec::RotateKv && p.bits == Bits::Sixteen || !head_dim.is_multiple_of(p.group.min(head_dim)))
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
    let bit_plan = BitPlan::new(&shape, format, |layer, head| precisions[layer as usize][head as usize]).unwrap();
    (shape, format, bit_plan)
}

/// Returns a sensitivity of these numbers: of a layer, head and kind the norm, and by candidate the
/// error of the codes and of the output.
pub fn told(
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

/// Returns the distortion of an asymmetric quantizer on normal numbers in groups of 64.
pub fn distortion(bits: Bits) -> f64 {
    match bits {
        Bits::Two => 0.2029,
        Bits::Three => 0.0371,
        Bits::Four => 0.00805,
        Bits::Eight => 0.00003,
        Bits::Sixteen => 0.0,
        other => panic!("no distortion of {other:?} is known"),
    }
}

/// Draws a log-normal number.
fn factor(random: &mut StdRng, spread: f64) -> f64 {
    (spread * f64::from(normal(random))).exp()
}

/// Makes up a sensitivity of log-normal norms and errors; finer groups and more bits err less,
/// nearly always.
pub fn made_up(random: &mut StdRng, shape: &Shape, format: &Format, candidates: &[Precision]) -> Sensitivity {
    let layer_weights: Vec<f64> = (0..shape.layers).map(|_| factor(random, 0.5)).collect();
    told(shape, format, candidates, &layer_weights, |_, _, _| {
        let (norm, scale) = (100.0 * factor(random, 1.0), factor(random, 1.5));
        let error = |p: &Precision| distortion(p.bits) * (f64::from(p.group) / 64.0).powf(0.3);
        let codes = candidates.iter().map(|p| norm * norm * error(p)).collect();
        (norm, codes, candidates.iter().map(|p| scale * error(p) * factor(random, 0.1)).collect())
    })
}

/// Adds weight norms for all layers.
pub fn with_norms(random: &mut StdRng, sensitivity: Sensitivity) -> Sensitivity {
    let norms = (0..sensitivity.layers()).map(|_| [20.0 * factor(random, 0.3), 10.0 * factor(random, 0.3)]).collect();
    sensitivity.with_weight_norms(norms).unwrap()
}

/// Returns every bit width in every group that is served.
pub fn all_candidates(shape: &Shape, format: &Format) -> Vec<Precision> {
    let groups: Vec<u32> = [32, 64, 128].into_iter().filter(|g| shape.head_dim.is_multiple_of(*g) || *g == 128 && !shape.head_dim.is_multiple_of(32)).collect();
    let bits: &[Bits] =
        if format.scales() == Scales::Byte { &[Bits::Two, Bits::Three, Bits::Four] } else { &[Bits::Two, Bits::Three, Bits::Four, Bits::Eight] };
    bits.iter().flat_map(|bits| groups.iter().map(|group| precision(*bits, *group))).collect()
}

/// Every rule.
pub const BIT_RULES: [BitRule; 8] = [
    BitRule::Measured { grain: Grain::Head, fill: Fill::Nested },
    BitRule::Measured { grain: Grain::Head, fill: Fill::Skip },
    BitRule::Measured { grain: Grain::Layer, fill: Fill::Nested },
    BitRule::Measured { grain: Grain::Layer, fill: Fill::Skip },
    BitRule::CacheNorm,
    BitRule::RepoNorm { average_group: None },
    BitRule::RepoNorm { average_group: Some(64.0) },
    BitRule::Fixed { key: Precision::new(Bits::Four, 128), value: Precision::new(Bits::Two, 128) },
];

/// Returns the shapes and formats to choose for.
pub fn places() -> Vec<(Shape, Format)> {
    let of = |codec| Format::new(codec, Bits::Four, Bits::Four, 128);
    vec![
        (full_rope(4, 8, 4, 128), of(Codec::Rtn)),
        (full_rope(3, 4, 2, 64), of(Codec::Hadamard).with_scales(Scales::Byte)),
        (full_rope(3, 3, 3, 80), of(Codec::Rtn)),
        (full_rope(3, 8, 4, 128), rotated(Bits::Four, Bits::Four, 128, 2)),
        (full_rope(2, 6, 6, 80), rotated(Bits::Four, Bits::Four, 128, 2).with_scales(Scales::Byte)),
    ]
}

/// Returns the plan of one sequence without room to spare, on a device whose bindings hold it.
pub fn one_sequence(shape: &Shape, bit_plan: &BitPlan, protection: Protection, tokens: u32) -> Plan {
    let capability = Capability { binding_bytes: 1 << 31, buffer_bytes: 1 << 31, workgroup_bytes: 1 << 16, ..Capability::webgpu_default() };
    let builder = Plan::builder(shape.clone(), bit_plan.clone()).protection(protection).capacity(Capacity::tokens(1, tokens));
    learning(builder, natural_order(shape, bit_plan.format()).as_ref()).build(&capability).unwrap()
}

/// Asserts what must hold of whatever a rule chooses.
#[track_caller]
pub fn consistent(shape: &Shape, sensitivity: &Sensitivity, bit_plan: &BitPlan, name: &str) {
    let report = bit_plan.report().unwrap();
    assert!(report.spent <= report.allowed, "{name}");
    assert_eq!(report.elements, shape.elements_per_token(), "{name}");
    assert_eq!(report.spent, one_sequence(shape, bit_plan, Protection::NONE, 128).bits(1), "{name}");
    assert_eq!(report.spent, token_bits(shape, sensitivity.format(), bit_plan).iter().sum::<u64>(), "{name}");
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
            assert_eq!(bit_plan.of(unit.layer, head)[unit.kind as usize], unit.precision, "{name}");
            error += sensitivity.layer_weight(unit.layer) * sensitivity.output_errors(unit.layer, head, unit.kind)[at];
        }
        assert!((unit.error - error).abs() <= ROUNDING * error, "{name}: {unit:?}, {error}");
    }
    assert_eq!(seen.len() as u32, 2 * shape.layers * shape.kv_heads, "{name}");
    assert!(report.units.is_sorted_by_key(|unit| (unit.layer, unit.head, unit.kind)), "{name}");
    assert_eq!(bit_plan.model(), sensitivity.model());
}

/// Returns a small plan of bits and the sensitivity that it was made of, as files.
pub fn bit_files(random: &mut StdRng, codec: Codec) -> [Value; 2] {
    let (shape, format) = (full_rope(2, 4, 2, 64), Format::new(codec, Bits::Four, Bits::Four, 64));
    let sensitivity = made_up(random, &shape, &format, &Sensitivity::default_candidates(&shape, &format));
    let sensitivity = with_norms(random, sensitivity);
    let bit_plan = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(4.0), BitRule::default()).unwrap();
    [bit_plan.to_json().unwrap(), sensitivity.to_json().unwrap()].map(|text| serde_json::from_str(&text).unwrap())
}

/// Changes one of [`bit_files`] at random, thousands of times, and has `used` read it, which returns
/// whether it could. Fails where too few could, or nothing would have been tried.
pub fn read_changed_bit_files(which: usize, used: impl Fn(&str) -> bool) {
    let (mut random, seed) = seeded();
    let mut read = 0;
    for codec in [Codec::Rtn, Codec::RotateKv] {
        let file = bit_files(&mut random, codec)[which].clone();
        for _ in 0..1500 {
            read += usize::from(used(&any_bytes(&mut random, &file)));
            // Numbers and words that are others, whatever their size.
            read += usize::from(used(&any_change(&mut random, &file)));
        }
    }
    assert!(read > 300, "{read}. WGKV_SEED={seed}");
}
