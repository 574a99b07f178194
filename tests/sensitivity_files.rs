//! Files of sensitivities: they come back as they were, and damaged ones are refused. The numbers
//! in brackets are those of docs/testing.md's table of KV-AdaQuant (2502.15075).
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use serde_json::{Value, json};
use wgkv_testing::*;

/// (11) What was saved comes back, to the last bit of every number.
#[test]
fn sensitivities_come_back_as_they_were() {
    let (mut random, seed) = seeded();
    for (shape, format) in places() {
        let format = format.with_clip(0.83);
        let sensitivity = made_up(&mut random, &shape, &format, &all_candidates(&shape, &format));
        let sensitivity = with_norms(&mut random, sensitivity);
        let path = std::env::temp_dir().join(format!("wgkv-sensitivity-{seed}-{}.json", std::process::id()));
        sensitivity.save(&path).unwrap();
        assert_eq!(Sensitivity::load(&path).unwrap(), sensitivity, "WGKV_SEED={seed}");
        std::fs::remove_file(&path).unwrap();
        let text = sensitivity.to_json().unwrap();
        let back = Sensitivity::from_json(&text).unwrap();
        assert_eq!(back, sensitivity, "WGKV_SEED={seed}");
        assert_eq!((sensitivity.to_json().unwrap(), back.to_json().unwrap()), (text.clone(), text), "the text is a function of the content");
    }
}

#[test]
fn files_that_cannot_be_read_or_written_are_told() {
    let nowhere = std::env::temp_dir().join("wgkv-no-such-folder").join("file.json");
    let random = &mut generator();
    let (shape, format) = places().swap_remove(0);
    no_such_file(&nowhere, Sensitivity::load(&nowhere).map(drop), "reading");
    no_such_file(&nowhere, made_up(random, &shape, &format, &all_candidates(&shape, &format)).save(&nowhere), "writing");
}

#[test]
fn damaged_sensitivities_are_refused() {
    let (mut random, _) = seeded();
    let [_, file] = bit_files(&mut random, Codec::Rtn);
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
        ("/head_dim", json!(0), shape("head_dim", "64, 80, 96, 128, 192, 256 or 512", "0")),
        ("/head_dim", json!(96), Error::Group { group: 64, head_dim: 96 }),
        ("/storage/codec", json!("f16"), not_of("codec", "one that has codes", "f16")),
        ("/storage/codec", json!("int4"), Error::Codec { had: "int4".into(), known: Codec::names() }),
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
        refused(Sensitivity::from_json(&with_value(&file, place, value)), &want);
    }
    // Rotations over heads that do not divide.
    let [_, rotating] = bit_files(&mut random, Codec::RotateKv);
    for heads in [0, 3, 4] {
        let read = Sensitivity::from_json(&with_value(&rotating, "/storage/heads_per_group", json!(heads)));
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
        assert!(unreadable(&with_value(&file, place, value)), "{place}");
    }
    cut_short(&file.to_string(), unreadable);
}

/// Does all that can be done with what a file gave: it may be refused, but nothing panics.
fn use_sensitivity(text: &str) -> bool {
    let Ok(sensitivity) = Sensitivity::from_json(text) else { return false };
    assert_eq!(Sensitivity::from_json(&sensitivity.to_json().unwrap()).unwrap(), sensitivity);
    let shape = full_rope(sensitivity.layers(), sensitivity.kv_heads(), sensitivity.kv_heads(), sensitivity.head_dim());
    for (rule, bits) in BIT_RULES.into_iter().flat_map(|rule| [2.4, 4.0, 9.0].map(|bits| (rule, bits))) {
        if let Ok(bit_plan) = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(bits), rule) {
            let _ = bit_plan.report().map(Report::to_string);
        }
    }
    true
}

#[test]
fn no_file_makes_a_panic() {
    read_changed_bit_files(1, use_sensitivity);
}
