//! Files of plans of bits: they come back as they were, and damaged ones are refused. The numbers
//! in brackets are those of docs/testing.md's table of KV-AdaQuant (2502.15075).
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use serde_json::{Value, json};
use wgkv_testing::*;

fn not_of(name: &str, wanted: &str, had: &str) -> Error {
    Error::mismatch(Thing::BitPlan, name.to_owned(), wanted, had)
}

/// (11) What was saved comes back, to the last bit of every number.
#[test]
fn bit_plans_come_back_as_they_were() {
    let (mut random, seed) = seeded();
    for n in 0..40 {
        let (_, _, bit_plan) = any_bit_plan(&mut random);
        let text = bit_plan.to_json().unwrap();
        let back = BitPlan::from_json(&text).unwrap();
        assert_eq!(back, bit_plan, "{n}: {text}. WGKV_SEED={seed}");
        assert_eq!((bit_plan.to_json().unwrap(), back.to_json().unwrap()), (text.clone(), text), "the text is a function of the content");
    }
    for (shape, format) in places() {
        let format = format.with_clip(0.83);
        let sensitivity = made_up(&mut random, &shape, &format, &all_candidates(&shape, &format));
        let sensitivity = with_norms(&mut random, sensitivity);
        for rule in BIT_RULES {
            let bit_plan = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(5.3), rule).unwrap();
            let path = std::env::temp_dir().join(format!("wgkv-bit-plan-{seed}-{}.json", std::process::id()));
            bit_plan.save(&path).unwrap();
            let back = BitPlan::load(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!(back, bit_plan, "{rule}. WGKV_SEED={seed}");
            assert_eq!(back.report().unwrap().to_string(), bit_plan.report().unwrap().to_string());
            assert_eq!(back.model(), "made up");
            // The bits count, not how they were chosen.
            let mut bare: Value = serde_json::from_str(&bit_plan.to_json().unwrap()).unwrap();
            bare["report"] = Value::Null;
            let bare = BitPlan::from_json(&bare.to_string()).unwrap();
            assert!(bare.report().is_none());
            assert_eq!(one_sequence(&shape, &bare, Protection::NONE, 128).bits(1), bit_plan.report().unwrap().spent);
        }
    }
}

#[test]
fn files_that_cannot_be_read_or_written_are_told() {
    let nowhere = std::env::temp_dir().join("wgkv-no-such-folder").join("file.json");
    let (_, _, bit_plan) = any_bit_plan(&mut generator());
    no_such_file(&nowhere, BitPlan::load(&nowhere).map(drop), "reading");
    no_such_file(&nowhere, bit_plan.save(&nowhere), "writing");
}

#[test]
fn damaged_bit_plans_are_refused() {
    let (mut random, _) = seeded();
    let [file, _] = bit_files(&mut random, Codec::Rtn);
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
        ("/head_dim", json!(72), Error::argument("head_dim", "64, 80, 96, 128, 192, 256 or 512", "72")),
        ("/precisions/1/0", json!("2/48"), Error::Group { group: 48, head_dim: 64 }),
        ("/precisions/1/1", json!("2/0"), Error::Group { group: 0, head_dim: 64 }),
        ("/precisions/1/1", json!("5/64"), Error::Bits { had: 5 }),
        ("/precisions/1/1", json!("-2/64"), text("precision", "BITS/GROUP, or 16", "-2/64")),
        ("/precisions/1/1", json!("two"), text("precision", "BITS/GROUP, or 16", "two")),
        ("/storage/codec", json!("int4"), Error::Codec { had: "int4".into(), known: Codec::names() }),
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
        refused(BitPlan::from_json(&with_value(&file, place, value)), &want);
    }
    // Which group is met first depends on what was drawn.
    let narrow = BitPlan::from_json(&with_value(&file, "/head_dim", json!(80)));
    assert!(matches!(narrow, Err(Error::Group { group: 32 | 64, head_dim: 80 })), "{narrow:?}");
    // What is not JSON of this form at all: another type, a number too large for it, a field too
    // few or too many, a text cut short.
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
        assert!(unreadable(&with_value(&file, place, value)), "{place}");
    }
    cut_short(&file.to_string(), unreadable);
    for number in ["1e999", "NaN", "Infinity", "-1e999"] {
        assert!(unreadable(&file.to_string().replacen("\"error\":", &format!("\"error\":{number},\"gone\":"), 1)), "{number}");
    }
    // A report of an infinite error cannot be written.
    let (shape, format) = (full_rope(1, 1, 1, 64), rtn(Bits::Four, Bits::Four, 64));
    let large = told(&shape, &format, &[precision(Bits::Four, 64)], &[1e300], |_, _, _| (1.0, vec![1.0], vec![1e300]));
    let bit_plan = BitPlan::choose(&shape, &large, BitBudget::BitsPerElement(9.0), "K4V4".parse().unwrap()).unwrap();
    refused(bit_plan.to_json(), &not_of("numbers of the report", "finite and 0 or more", "inf"));
}

/// Does all that can be done with what a file gave: it may be refused, but nothing panics.
fn use_bit_plan(text: &str) -> bool {
    let Ok(bit_plan) = BitPlan::from_json(text) else { return false };
    let _ = (bit_plan.to_string(), bit_plan.report().map(Report::to_string), bit_plan.favours_values(), bit_plan.mean_bits());
    assert_eq!(BitPlan::from_json(&bit_plan.to_json().unwrap()).unwrap(), bit_plan);
    for kv_heads in [1, 2, 4] {
        let shape = full_rope(bit_plan.layers(), kv_heads, kv_heads, 64);
        let order = natural_order(&shape, bit_plan.format());
        let builder = Plan::builder(shape, bit_plan.clone()).capacity(Capacity::tokens(1, 300));
        let _ = learning(builder, order.as_ref()).build(&Capability::webgpu_default()).map(|plan| plan.to_string());
    }
    true
}

#[test]
fn no_file_makes_a_panic() {
    read_changed_bit_files(0, use_bit_plan);
}
