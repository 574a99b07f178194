//! Rules that choose bits: none exceeds its budget, more is never worse, and the published ones
//! choose what was published. The numbers in brackets are those of docs/testing.md's table of
//! KV-AdaQuant (2502.15075).
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use rand::rngs::StdRng;
use wgkv::bits::solve::{Fill, Ties, norm_bits, norm_groups};
use wgkv_testing::*;

/// [`Fill::Skip`] comes within this of the best choice, so a budget that grows may cost as much
/// (invariant 3).
const SKIP_SLACK: f64 = 1.01;

#[test]
fn no_budget_is_exceeded_and_more_is_never_worse() {
    let (mut random, seed) = seeded();
    for (shape, format) in places() {
        let candidates = all_candidates(&shape, &format);
        let sensitivity = made_up(&mut random, &shape, &format, &candidates);
        let sensitivity = with_norms(&mut random, sensitivity);
        for rule in BIT_RULES {
            let mut last: Option<BitPlan> = None;
            let mut count = 0;
            for step in 0..50 {
                let budget = 1.8 + 8.0 * (f64::from(step) / 49.0).powi(2) + 0.01 * random.random::<f64>();
                let name = format!("{rule} at {budget} of {format}, {shape:?}. WGKV_SEED={seed}");
                let allowed = (budget * shape.elements_per_token() as f64) as u64;
                let bit_plan = match BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(budget), rule) {
                    Ok(bit_plan) => bit_plan,
                    Err(Error::Capacity { reason, need, have }) => {
                        assert!(last.is_none() && have == allowed && need > allowed, "{name}: {need} of {have} for {reason}");
                        continue;
                    }
                    Err(other) => panic!("{name}: {other}"),
                };
                count += 1;
                consistent(&shape, &sensitivity, &bit_plan, &name);
                let report = bit_plan.report().unwrap();
                assert_eq!((report.allowed, &report.allocator), (allowed, &rule.to_string()), "{name}");
                if let (Some(last), BitRule::Measured { fill, .. }) = (&last, rule) {
                    let before = last.report().unwrap();
                    let slack = if fill == Fill::Nested { 1.0 } else { SKIP_SLACK };
                    assert!(report.error <= before.error * slack, "{name}: {} after {}", report.error, before.error);
                    assert!(report.bound <= before.bound, "{name}");
                    if fill == Fill::Nested {
                        let nested = before.units.iter().zip(&report.units).all(|(a, b)| a.bits <= b.bits && a.error >= b.error);
                        assert!(nested, "{name}: a unit has less");
                    }
                }
                last = Some(bit_plan);
            }
            assert!(count >= 25, "{rule} chose {count} times of 50. WGKV_SEED={seed}");
        }
    }
}

#[test]
fn filling_is_never_worse_than_stopping() {
    let (mut random, seed) = seeded();
    for (shape, format) in places() {
        let sensitivity = made_up(&mut random, &shape, &format, &all_candidates(&shape, &format));
        for _ in 0..20 {
            let budget = BitBudget::BitsPerElement(random.random_range(3.5..7.0));
            for grain in [Grain::Head, Grain::Layer] {
                let [nested, filled] = [Fill::Nested, Fill::Skip].map(|fill| {
                    let bit_plan = BitPlan::choose(&shape, &sensitivity, budget, BitRule::Measured { grain, fill }).unwrap();
                    bit_plan.report().unwrap().clone()
                });
                assert!(filled.error <= nested.error && filled.bound == nested.bound && filled.spent >= nested.spent, "{budget:?}. WGKV_SEED={seed}");
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
                    // Kept tokens, and `bits` bits for each number of the others.
                    let kept = u64::from(protection.f16_tokens(tokens)) * elements * 2;
                    let bits = 3.3 + 0.7 * f64::from(step) + 0.1 * random.random::<f64>();
                    let bytes = kept + (f64::from(protection.packed(tokens)) * elements as f64 * bits / 8.0) as u64;
                    let name = format!("{bytes} bytes for {tokens} tokens, {protection:?} of {format}, {shape:?}. WGKV_SEED={seed}");
                    let bit_plan = BitPlan::choose(&shape, &sensitivity, BitBudget::Bytes { bytes, tokens, protection }, BitRule::default())
                        .unwrap_or_else(|e| panic!("{name}: {e}"));
                    consistent(&shape, &sensitivity, &bit_plan, &name);
                    let report = bit_plan.report().unwrap();
                    assert_eq!(report.allowed, 8 * (bytes - kept) / u64::from(protection.packed(tokens)), "{name}");
                    let used = one_sequence(&shape, &bit_plan, protection, tokens).bits(tokens.into());
                    assert!(used <= 8 * bytes, "{name}: {used} bits");
                    if let Some(last) = &last {
                        let before = last.report().unwrap();
                        assert!(before.units.iter().zip(&report.units).all(|(a, b)| a.bits <= b.bits), "{name}: a unit has less");
                    }
                    last = Some(bit_plan);
                }
            }
        }
    }
}

#[test]
fn budgets_that_hold_nothing_are_refused() {
    let (mut random, _) = seeded();
    let (shape, format) = (full_rope(2, 4, 2, 128), rtn(Bits::Four, Bits::Four, 128));
    let candidates = Sensitivity::default_candidates(&shape, &format);
    let sensitivity = made_up(&mut random, &shape, &format, &candidates);
    let sensitivity = with_norms(&mut random, sensitivity);
    let choose = |budget, rule| BitPlan::choose(&shape, &sensitivity, budget, rule);
    let elements = shape.elements_per_token();
    // Two bits in groups of 128: 2.25.
    let least = elements * 9 / 4;
    for rule in [BitRule::default(), BitRule::Measured { grain: Grain::Layer, fill: Fill::Skip }, BitRule::CacheNorm, BIT_RULES[5]] {
        assert_eq!(choose(BitBudget::BitsPerElement(2.25), rule).unwrap().report().unwrap().spent, least, "{rule}");
        for (budget, have) in [(2.2499, (2.2499 * elements as f64) as u64), (0.0, 0)] {
            let want = Error::Capacity { reason: "the cheapest candidates of all units", need: least, have };
            refused(choose(BitBudget::BitsPerElement(budget), rule), &want);
        }
    }
    let fixed = "K4V2".parse().unwrap();
    refused(
        choose(BitBudget::BitsPerElement(3.0), fixed),
        &Error::Capacity { reason: "the bits of a token, by this rule", need: elements * 13 / 4, have: elements * 3 },
    );
    assert!(choose(BitBudget::BitsPerElement(3.25), fixed).is_ok());
    for bits in [f64::NAN, f64::INFINITY, -1.0] {
        let want = Error::argument("bits per element", "finite and 0 or more", bits);
        refused(choose(BitBudget::BitsPerElement(bits), BitRule::default()), &want);
    }

    let bytes = |bytes, tokens, protection| choose(BitBudget::Bytes { bytes, tokens, protection }, BitRule::default());
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
    for plenty in [bytes(u64::MAX, 256, Protection::default()), choose(BitBudget::BitsPerElement(1e300), BitRule::default())] {
        assert!(plenty.unwrap().report().unwrap().units.iter().all(|unit| unit.precision == precision(Bits::Eight, 128)));
    }
    // What a rule needs.
    let untold = made_up(&mut random, &shape, &format, &candidates);
    let want = |name: &'static str, wanted: &str, had: &str| Error::mismatch(Thing::Sensitivity, name, wanted, had);
    refused(
        BitPlan::choose(&shape, &untold, BitBudget::BitsPerElement(4.0), BIT_RULES[5]),
        &want("weight norms", "told by Sensitivity::with_weight_norms", "not"),
    );
    let listed = "2/128, 2/64, 2/32, 3/128, 3/64, 3/32, 4/128, 4/64, 4/32, 8/128";
    assert_eq!(candidates.iter().map(Precision::to_string).collect::<Vec<_>>().join(", "), listed);
    refused(choose(BitBudget::BitsPerElement(9.0), "fixed:K8/64,V2/128".parse().unwrap()), &want("candidates", "such that 8/64 is among them", listed));
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
fn rules_are_written_and_read() {
    let mut all = BIT_RULES.to_vec();
    all.extend([
        BitRule::RepoNorm { average_group: Some(48.5) },
        BitRule::Fixed { key: precision(Bits::Eight, 32), value: Precision::F16 },
        BitRule::Fixed { key: Precision::F16, value: precision(Bits::Three, 64) },
    ]);
    for rule in all {
        assert_eq!(rule.to_string().parse::<BitRule>().unwrap(), rule, "{rule}");
    }
    for (text, want) in [
        ("measured", BitRule::default()),
        ("measured:layer", BIT_RULES[2]),
        ("measured:fill", BIT_RULES[1]),
        ("measured:layer:fill", BIT_RULES[3]),
        ("measured:fill:layer", BIT_RULES[3]),
        ("cache-norm", BitRule::CacheNorm),
        ("repo-norm", BIT_RULES[5]),
        ("repo-norm:64", BIT_RULES[6]),
        ("K4V2", BIT_RULES[7]),
        ("fixed:K4/128,V2/128", BIT_RULES[7]),
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

/// A fixed pair is what it says, wherever it fits; groups that come to the same in a head are the
/// same.
#[test]
fn fixed_pairs_are_what_they_say() {
    let (mut random, seed) = seeded();
    let (shape, format) = (full_rope(3, 4, 2, 64), hadamard(Bits::Four, Bits::Four, 64));
    let sensitivity = made_up(&mut random, &shape, &format, &Sensitivity::default_candidates(&shape, &format));
    let bit_plan = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(3.5), "K4V2".parse().unwrap()).unwrap();
    consistent(&shape, &sensitivity, &bit_plan, &format!("WGKV_SEED={seed}"));
    assert!(bit_plan.is_uniform() && bit_plan.of(2, 1) == [precision(Bits::Four, 64), precision(Bits::Two, 64)]);
    assert_eq!(bit_plan.mean_bits(), [4.0, 2.0]);
    assert_eq!(bit_plan.to_string(), "hadamard K4V2 group 64");
    assert!(bit_plan.favours_values().is_none());
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
        let bit_plan = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(9.0), BitRule::Fixed { key, value }).unwrap();
        assert_eq!(bit_plan.of(0, 0), [key, value]);
    }
}

/// The published rule: its bits are those of its norms and what scales leave of the budget.
#[test]
fn norm_rules_are_the_published_ones() {
    let (mut random, seed) = seeded();
    let widths = [2.0, 3.0, 4.0, 8.0];
    for (shape, format) in [places()[0].clone(), places()[3].clone(), (full_rope(5, 4, 2, 64), rtn(Bits::Four, Bits::Four, 64))] {
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
            let budget = BitBudget::BitsPerElement(allowed as f64 / elements);
            let by_layer = BitPlan::choose(&shape, &sensitivity, budget, BIT_RULES[5]).unwrap();
            let norms: Vec<f64> = (0..shape.layers).flat_map(|layer| sensitivity.weight_norms(layer).unwrap()).collect();
            let want = norm_bits(&norms, &widths, average, Ties::Published).unwrap();
            for (layer, head) in (0..shape.layers).flat_map(|layer| (0..shape.kv_heads).map(move |head| (layer, head))) {
                let bits = by_layer.of(layer, head).map(|p| f64::from(p.bits.get()));
                assert_eq!(bits[..], want[2 * layer as usize..][..2], "layer {layer}, {name}");
                assert!(by_layer.of(layer, head).iter().all(|p| p.group == group), "{name}");
            }

            let by_head = BitPlan::choose(&shape, &sensitivity, budget, BitRule::CacheNorm).unwrap();
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

/// With groups of its own the published rule pays for them out of the same budget.
#[test]
fn groups_of_the_published_rule_are_paid_for() {
    let (mut random, seed) = seeded();
    let (shape, format) = (full_rope(6, 8, 4, 128), rtn(Bits::Four, Bits::Four, 128));
    let sensitivity = made_up(&mut random, &shape, &format, &all_candidates(&shape, &format));
    let sensitivity = with_norms(&mut random, sensitivity);
    let norms: Vec<f64> = (0..shape.layers).flat_map(|layer| sensitivity.weight_norms(layer).unwrap()).collect();
    for group in [32.0, 48.0, 64.0, 100.0, 128.0] {
        for budget in [3.0, 3.3, 4.0, 5.0, 7.0] {
            let name = format!("groups of {group} at {budget}. WGKV_SEED={seed}");
            let rule = BitRule::RepoNorm { average_group: Some(group) };
            let bit_plan = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(budget), rule).unwrap();
            consistent(&shape, &sensitivity, &bit_plan, &name);
            let groups = norm_groups(&norms, &[32, 64, 128], group).unwrap();
            let scales = groups.iter().map(|group| 32.0 / f64::from(*group)).sum::<f64>() / groups.len() as f64;
            let bits = norm_bits(&norms, &[2.0, 3.0, 4.0, 8.0], budget - scales, Ties::Published).unwrap();
            for (n, unit) in bit_plan.report().unwrap().units.iter().enumerate() {
                // Exact, since every budget is a whole number of bits for a token.
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

/// Frobenius norms of the key and value projections of Qwen3-0.6B.
const QWEN: [&str; 2] = [
    "31.368 29.649 28.729 29.472 28.883 28.552 28.246 26.903 27.599 27.270 27.603 27.256 26.295 24.856 \
     24.759 23.372 24.352 23.806 23.269 23.471 25.374 25.947 26.573 25.825 25.924 24.290 23.885 29.219",
    "27.268 29.107 28.570 30.812 30.287 28.781 28.851 28.355 28.297 27.667 27.634 26.298 26.979 26.920 \
     25.434 26.475 26.306 27.240 26.020 26.449 27.688 29.503 29.529 28.779 28.548 31.488 30.266 33.087",
];

/// (28) The published rule starves the keys of a model whose key projections have small norms, and
/// reports it.
#[test]
fn values_before_keys_are_noticed() {
    let (mut random, seed) = seeded();
    let (shape, format) = (full_rope(28, 16, 8, 128), rtn(Bits::Four, Bits::Four, 128));
    let [keys, values]: [Vec<f64>; 2] = QWEN.map(|text| text.split_whitespace().map(|x| x.parse().unwrap()).collect());
    let choose = |candidates: &[Bits], random: &mut StdRng| {
        let candidates: Vec<Precision> = candidates.iter().map(|bits| precision(*bits, 128)).collect();
        let norms = keys.iter().zip(&values).map(|(k, v)| [*k, *v]).collect();
        let sensitivity = made_up(random, &shape, &format, &candidates).with_weight_norms(norms).unwrap();
        BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(3.25), BIT_RULES[5]).unwrap()
    };
    let starved = choose(&[Bits::Two, Bits::Four, Bits::Eight], &mut random);
    // What the authors' repository makes of these norms: of 28 layers, 10 have keys of 4 bits, and
    // 18 values.
    assert_eq!(starved.favours_values(), Some([(10.0 * 4.0 + 18.0 * 2.0) / 28.0, (18.0 * 4.0 + 10.0 * 2.0) / 28.0]), "WGKV_SEED={seed}");
    // With 3 bits there is nothing to choose.
    let even = choose(&[Bits::Two, Bits::Three, Bits::Four, Bits::Eight], &mut random);
    assert_eq!((even.favours_values(), even.mean_bits()), (None, [3.0, 3.0]), "WGKV_SEED={seed}");
}

/// Every head of Llama-3.1-8B: 512 units of 10 candidates. `benches/bit_rules.rs` measures how long
/// that takes.
#[test]
fn every_head_of_a_model_has_bits() {
    let (mut random, seed) = seeded();
    let (shape, format) = (full_rope(32, 32, 8, 128), hadamard(Bits::Four, Bits::Four, 128));
    let candidates = Sensitivity::default_candidates(&shape, &format);
    let sensitivity = made_up(&mut random, &shape, &format, &candidates);
    let sensitivity = with_norms(&mut random, sensitivity);
    for rule in &BIT_RULES[..6] {
        for budget in [2.5, 3.0, 3.5, 4.0] {
            let bit_plan = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(budget), *rule).unwrap();
            let by_head = matches!(rule, BitRule::CacheNorm | BitRule::Measured { grain: Grain::Head, .. });
            assert_eq!((bit_plan.report().unwrap().units.len(), candidates.len()), (if by_head { 512 } else { 64 }, 10));
            consistent(&shape, &sensitivity, &bit_plan, &format!("{rule} at {budget}. WGKV_SEED={seed}"));
        }
    }
}
