//! What the loader refuses, and that each refusal names the thing, what was wanted and what was found. No GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use serde_json::{Value, json};
use wgkv_llama::config::Config;
use wgkv_llama::error::Error;
use wgkv_llama::rope;
use wgkv_llama::text::Text;
use wgkv_llama::weights::{Weights, model_hash};

fn config_with(name: &str, key: &str, value: Value) -> Result<Config, Error> {
    let folder = tiny::folder(name);
    let mut config = tiny::config();
    config[key] = value;
    tiny::write_config(&folder, &config);
    Config::open(&folder)
}

#[test]
fn a_config_is_read_with_its_defaults() {
    let config = config_with("config", "head_dim", Value::Null);
    // 96 / 4 heads, since head_dim is absent.
    assert_eq!(config.unwrap().head_dim, 24);
    let config = config_with("config_full", "bos_token_id", json!([7, 8])).unwrap();
    assert_eq!((config.head_dim, config.begin), (64, Some(7)));
    assert_eq!(config.end, [1]);
    assert!(config.rope_scaling.is_some());
}

#[test]
fn both_spellings_of_the_rope_type_are_read() {
    let scaling = |key: &str| {
        json!({ key: "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192 })
    };
    let old = config_with("rope_old", "rope_scaling", scaling("type")).unwrap();
    let new = config_with("rope_new", "rope_scaling", scaling("rope_type")).unwrap();
    assert_eq!(old, new);
    assert!(old.rope_scaling.is_some());
}

#[test]
fn another_architecture_is_refused_by_name() {
    let error = config_with("gemma", "architectures", json!(["Gemma2ForCausalLM"])).unwrap_err();
    assert!(matches!(&error, Error::Architecture { found, .. } if found == "Gemma2ForCausalLM"), "{error}");
    assert!(error.to_string().contains("Gemma2ForCausalLM"));
    assert!(error.to_string().contains("LlamaForCausalLM"));
}

#[test]
fn another_rope_scaling_is_refused_by_name() {
    let error = config_with("yarn", "rope_scaling", json!({ "rope_type": "yarn", "factor": 4.0 })).unwrap_err();
    assert!(error.to_string().contains("yarn"), "{error}");
    assert!(error.to_string().contains("llama3"), "{error}");
}

#[test]
fn a_missing_number_is_named() {
    let error = config_with("no_layers", "num_hidden_layers", Value::Null).unwrap_err();
    assert!(error.to_string().contains("num_hidden_layers"), "{error}");
}

#[test]
fn a_truncated_weight_file_is_refused_with_both_lengths() {
    let folder = tiny::folder("truncated");
    let path = folder.join("model.safetensors");
    tiny::write_weights(&path, &tiny::shapes(), 0);
    let whole = std::fs::read(&path).unwrap();
    // In the data, in the header, in the header's length.
    for kept in [whole.len() - 1, 100, 5] {
        std::fs::write(&path, &whole[..kept]).unwrap();
        match Weights::open(&folder).unwrap_err() {
            Error::Length { wanted, found, .. } => {
                assert_eq!(found, kept as u64);
                assert!(wanted > found && wanted <= whole.len() as u64);
            }
            other => panic!("{kept} bytes kept: {other}"),
        }
    }
}

#[test]
fn a_damaged_header_is_refused() {
    let folder = tiny::folder("damaged");
    std::fs::write(folder.join("model.safetensors"), b"\x04\0\0\0\0\0\0\0nope").unwrap();
    let error = Weights::open(&folder).unwrap_err();
    assert!(matches!(error, Error::Header { .. }), "{error}");
}

#[test]
fn a_folder_without_weights_is_refused() {
    let error = Weights::open(&tiny::folder("empty")).unwrap_err();
    assert!(matches!(error, Error::NoWeights { .. }), "{error}");
}

#[test]
fn a_missing_tensor_is_named_with_its_shape() {
    let folder = tiny::folder("missing");
    tiny::write_model(&folder);
    let weights = Weights::open(&folder).unwrap();
    assert!(!weights.has("model.layers.2.mlp.up_proj.weight"));
    let error = weights.tensor("model.layers.2.mlp.up_proj.weight", &[160, 96]).unwrap_err();
    assert_eq!(error.to_string(), "tensor model.layers.2.mlp.up_proj.weight is missing: wanted shape [160, 96], looked through 2 file(s)");
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let folder = tiny::folder("shape");
    tiny::write_model(&folder);
    let error = Weights::open(&folder).unwrap().tensor("model.norm.weight", &[128]).unwrap_err();
    assert_eq!(error.to_string(), "tensor model.norm.weight has shape [96], wanted [128]");
}

#[test]
fn every_element_type_is_widened() {
    let folder = tiny::folder("elements");
    tiny::write_model(&folder);
    let weights = Weights::open(&folder).unwrap();
    for (name, shape) in tiny::shapes() {
        let values = weights.tensor(&name, &shape).unwrap();
        assert_eq!(values.len(), shape.iter().product::<usize>());
        // The ends of the ranges that the weights were drawn from, with bf16's rounding.
        let limit = if shape.len() == 1 { 1.51 } else { 0.201 };
        assert!(values.iter().all(|value| value.abs() <= limit), "{name}");
        assert!(values.iter().any(|value| value.abs() > limit / 2.0), "{name}");
    }
}

#[test]
fn text_survives_the_tokenizer() {
    let folder = tiny::folder("tokenizer");
    tiny::write_tokenizer(&folder);
    let text = Text::open(&folder).unwrap();
    let written = "Grüße, 世界!\n\tand <s> is only text in a file name";
    let written = written.replace("<s>", "[s]");
    let ids = text.encode(&written).unwrap();
    assert_eq!(ids.len(), written.len());
    assert_eq!(text.decode(&ids).unwrap(), written);
    // Piece by piece, a character of several bytes appears whole or not yet.
    let mut stream = text.stream();
    let pieces: String = ids.iter().filter_map(|&id| stream(id).unwrap()).collect();
    assert_eq!(pieces, written);
}

#[test]
fn llama3_frequencies_are_those_of_the_published_rule() {
    // Llama 3.1: theta 500000, head_dim 128, factor 8 over 8192 positions.
    let mut config = config_with(
        "llama31",
        "rope_scaling",
        json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192 }),
    )
    .unwrap();
    config.head_dim = 128;
    let stretched = rope::frequencies(&config);
    config.rope_scaling = None;
    let plain = rope::frequencies(&config);
    assert_eq!(plain.len(), 64);
    for (pair, (stretched, plain)) in stretched.iter().zip(&plain).enumerate() {
        let ratio = stretched / plain;
        // Wavelengths: below 2048 kept, above 8192 divided by 8, blended between.
        let wavelength = std::f64::consts::TAU / plain;
        if wavelength < 2048.0 {
            assert_eq!(ratio, 1.0, "pair {pair}");
        } else if wavelength > 8192.0 {
            assert!((ratio - 0.125).abs() < 1e-12, "pair {pair}");
        } else {
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            let wanted = (1.0 - smooth) / 8.0 + smooth;
            assert!((ratio - wanted).abs() < 1e-12, "pair {pair}");
        }
    }
    assert!((plain[63] - 500000_f64.powf(-126.0 / 128.0)).abs() < 1e-18);
}

#[test]
fn a_models_hash_is_that_of_its_content() {
    let write = |name: &str, seed: u64, files: usize| {
        let folder = tiny::folder(name);
        tiny::write_config(&folder, &tiny::config());
        // The same tensors, whatever file they lie in: their values depend on the seed and their number in the file.
        let shapes = tiny::shapes();
        tiny::write_weights(&folder.join("all.safetensors"), &shapes, seed);
        if files == 2 {
            let bytes = std::fs::read(folder.join("all.safetensors")).unwrap();
            let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (number, part) in shapes.chunks(shapes.len() / 2 + 1).enumerate() {
                let views = part.iter().map(|(name, _)| (name.as_str(), all.tensor(name).unwrap()));
                safetensors::serialize_to_file(views, None, &folder.join(format!("part-{number}.safetensors"))).unwrap();
            }
            std::fs::remove_file(folder.join("all.safetensors")).unwrap();
        }
        folder
    };
    let folder = write("hash", 7, 1);
    let hash = model_hash(&folder).unwrap();
    assert_eq!(hash.len(), 64);
    // Calibrations may lie beside the weights that they were made from.
    let shape = wgkv::Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: wgkv::Rope::none() };
    wgkv::ChannelOrder::natural(&shape, 2).unwrap().save(folder.join("rotate-kv.safetensors")).unwrap();
    wgkv::Means::natural(&shape).save(folder.join("centred.safetensors")).unwrap();
    assert_eq!(hash, model_hash(&folder).unwrap());
    assert_eq!(hash, model_hash(&write("hash_in_parts", 7, 2)).unwrap());
    assert_ne!(hash, model_hash(&write("hash_of_another", 8, 1)).unwrap());
    let mut config = tiny::config();
    config["rope_theta"] = json!(10_000.0);
    tiny::write_config(&folder, &config);
    assert_ne!(hash, model_hash(&folder).unwrap());
}

#[test]
fn parameters_are_those_of_the_weights() {
    let folder = tiny::folder("parameters");
    tiny::write_config(&folder, &tiny::config());
    let wanted: usize = tiny::shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(Config::open(&folder).unwrap().parameters(), wanted as u64);
}

#[test]
fn a_wrong_path_is_refused_on_one_line_with_its_cause() {
    let text = std::env::temp_dir().join(format!("wgkv-no-such-{}", std::process::id()));
    let path = text.to_str().unwrap();
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/wiki-8m");
    for (model, more) in [(path, [].as_slice()), (embedded, &["--plan", path])] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_wgkv-llama"));
        command.args(["generate", "--prompt", "The", "--tokens", "1", "--model", model]).args(more);
        let output = command.env("RUST_BACKTRACE", "1").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let said: Vec<&str> = said.lines().filter(|line| !line.contains("XDG_RUNTIME_DIR")).collect();
        assert!(!output.status.success(), "{said:?}");
        assert_eq!(said.len(), 1, "{said:?}");
        let cause = std::fs::read(path).unwrap_err().to_string();
        assert!(said[0].starts_with("error: ") && said[0].contains(path) && said[0].matches(&cause).count() == 1, "{said:?}");
    }
}
