//! Hugging Face folders: what is read, what is refused, and that each refusal names the thing, what
//! was wanted and what was found. No GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny models")]
mod tiny;

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use wgkv_decoder::{Activation, Architecture, Config, Error, Model, Part, RopeScaling, Text, WeightFormat};

/// What frequencies may differ by from a formula that is written otherwise, relative to them.
const ROUNDING: f64 = 1e-12;
/// What the numbers of another program, printed with nine digits, may differ by.
const PRINTED: f64 = 1e-8;

fn config_with(pairs: &[(&str, Value)]) -> Result<Config, Error> {
    let mut config = tiny::config();
    for (key, value) in pairs {
        config[key] = value.clone();
    }
    Config::from_bytes(config.to_string().as_bytes())
}

fn model(name: &str) -> std::path::PathBuf {
    let folder = tiny::folder(name);
    tiny::write_model(&folder);
    folder
}

#[test]
fn a_config_is_read_with_its_defaults() {
    // 96 / 4 heads, since head_dim is absent.
    assert_eq!(config_with(&[("head_dim", Value::Null)]).unwrap().head_dim, 24);
    let config = config_with(&[("bos_token_id", json!([7, 8]))]).unwrap();
    assert_eq!((config.head_dim, config.rotary, config.begin, config.add_bos), (64, 64, Some(7), true));
    assert_eq!((config.architecture, config.end.as_slice()), (Architecture::Llama, [1].as_slice()));
    assert!(config.rope_scaling.is_some() && config.rope_layers.is_none() && config.sliding_window.is_none());
    assert!(!config.attention_bias && !config.output_bias && !config.mlp_bias && !config.head_norm && !config.tied);
    assert_eq!(config.attention_factor, 1.0);
}

#[test]
fn all_spellings_of_the_rope_type_are_read() {
    let scaling = |keys: &[&str]| {
        let mut scaling = json!({ "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
        for key in keys {
            scaling[key] = "llama3".into();
        }
        config_with(&[("rope_scaling", scaling)]).unwrap()
    };
    let (old, new, both) = (scaling(&["type"]), scaling(&["rope_type"]), scaling(&["type", "rope_type"]));
    assert!(old == new && new == both);
    assert!(old.rope_scaling.is_some());
    let one_object = config_with(&[
        ("rope_scaling", Value::Null),
        ("rope_theta", Value::Null),
        ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5 })),
    ])
    .unwrap();
    assert_eq!((one_object.rope_theta, one_object.rotary, one_object.rope_scaling), (1e6, 32, None));
}

#[test]
fn every_architecture_is_read() {
    let none = Value::Null;
    let of = |name: &str, more: &[(&str, Value)]| {
        let mut pairs = vec![("architectures", json!([name])), ("rope_scaling", Value::Null)];
        pairs.extend_from_slice(more);
        config_with(&pairs).unwrap()
    };
    let mistral = of("MistralForCausalLM", &[("sliding_window", json!(1024))]);
    assert_eq!((mistral.architecture, mistral.sliding_window), (Architecture::Mistral, Some(1024)));
    // A window over the whole context hides nothing.
    assert_eq!(of("MistralForCausalLM", &[("sliding_window", json!(4096))]).sliding_window, None);
    assert_eq!(of("MistralForCausalLM", &[("sliding_window", none.clone())]).sliding_window, None);
    let qwen2 = of("Qwen2ForCausalLM", &[("sliding_window", json!(1024)), ("use_sliding_window", json!(false)), ("max_window_layers", json!(1))]);
    assert!(qwen2.attention_bias && !qwen2.output_bias && !qwen2.head_norm && qwen2.sliding_window.is_none());
    let qwen2 = of("Qwen2ForCausalLM", &[("sliding_window", json!(1024)), ("use_sliding_window", json!(true)), ("max_window_layers", json!(0))]);
    assert_eq!(qwen2.sliding_window, Some(1024));
    let qwen3 = of("Qwen3ForCausalLM", &[("attention_bias", json!(false)), ("layer_types", json!(["full_attention", "full_attention"]))]);
    assert!(qwen3.head_norm && !qwen3.attention_bias && qwen3.sliding_window.is_none());
    let smollm3 = of("SmolLM3ForCausalLM", &[("no_rope_layers", json!([1, 0])), ("tie_word_embeddings", none)]);
    assert_eq!((smollm3.rope_layers.as_deref(), smollm3.tied), (Some([true, false].as_slice()), true));
    assert!(smollm3.shape().rope.frequencies().is_empty() && smollm3.frequencies().len() == 32);
    let smollm3 = of("SmolLM3ForCausalLM", &[("num_hidden_layers", json!(9))]);
    assert_eq!(smollm3.rope_layers.unwrap(), [true, true, true, false, true, true, true, false, true]);
    // Where all layers rotate there is nothing to tell apart.
    assert_eq!(of("SmolLM3ForCausalLM", &[("no_rope_layers", json!([1, 1]))]).rope_layers, None);
    let phi3 = of("Phi3ForCausalLM", &[("partial_rotary_factor", json!(0.75)), ("sliding_window", json!(2047))]);
    assert_eq!((phi3.rotary, phi3.frequencies().len(), phi3.sliding_window), (48, 24, Some(2047)));
    // Windows in some layers only: from one on, or as the file lists them.
    let some = [("sliding_window", json!(64)), ("use_sliding_window", json!(true)), ("max_window_layers", json!(1))];
    let qwen2 = of("Qwen2ForCausalLM", &some);
    assert_eq!((qwen2.sliding_window, qwen2.sliding_layers.as_deref()), (Some(64), Some([false, true].as_slice())));
    // Nor does one over the whole context in some layers.
    let wide = [("sliding_window", json!(4096)), ("use_sliding_window", json!(true)), ("max_window_layers", json!(1))];
    assert!(of("Qwen2ForCausalLM", &wide).layers_are_alike());
    let types = json!(["sliding_attention", "full_attention"]);
    let mistral = of("MistralForCausalLM", &[("sliding_window", json!(64)), ("layer_types", types)]);
    assert_eq!([0, 1].map(|layer| mistral.layer_window(layer)), [Some(64), None]);
    let llama = of("LlamaForCausalLM", &[("attention_bias", json!(true)), ("mlp_bias", json!(true))]);
    assert!(llama.attention_bias && llama.output_bias && llama.mlp_bias);
}

/// The settings of a released model of each family whose layers differ or have more norms, as its
/// `config.json` gives them, and the count of parameters that its card has.
#[test]
fn released_models_are_read() {
    let read = |config: Value| Config::from_bytes(config.to_string().as_bytes()).unwrap();
    let gemma2 = json!({
        "architectures": ["Gemma2ForCausalLM"], "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256_000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention_bias": false
    });
    let config = read(gemma2.clone());
    assert_eq!((config.parameters(), config.tied, config.activation, config.branch_norms), (2_614_341_888, true, Activation::GeluTanh, true));
    assert_eq!((config.embedding_scale, config.score_scale, config.score_cap, config.logit_cap), (48.0, 0.0625, Some(50.0), Some(30.0)));
    let groups = config.groups_for(8192);
    assert_eq!(
        groups.iter().map(|group| (group.sliding_window, group.layers[0], group.shape.layers)).collect::<Vec<_>>(),
        [(Some(4096), 0, 13), (None, 1, 13)]
    );
    // Layers rotate alike, so one cache's shape has the rotation.
    assert_eq!(config.shape().rope, wgkv::Rope::new(10_000.0, 256));
    // Caps that a file denies, and those of a file that does not speak of them.
    let capped = |value: Option<Value>| {
        let mut config = gemma2.clone();
        config.as_object_mut().unwrap().remove("attn_logit_softcapping");
        if let Some(value) = value {
            config["attn_logit_softcapping"] = value;
        }
        read(config).score_cap
    };
    assert_eq!([capped(None), capped(Some(Value::Null)), capped(Some(json!(20.0)))], [Some(50.0), None, Some(20.0)]);

    let gemma3 = json!({
        "architectures": ["Gemma3ForCausalLM"], "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262_144, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6,
        "rope_local_base_freq": 10_000, "rope_scaling": null, "attn_logit_softcapping": null, "final_logit_softcapping": null, "attention_bias": false
    });
    let config = read(gemma3.clone());
    assert_eq!((config.parameters(), config.head_norm, config.score_cap, config.logit_cap), (999_885_952, true, None, None));
    let groups = config.groups_for(32_768);
    assert_eq!(groups.iter().map(|group| (group.sliding_window, group.shape.layers)).collect::<Vec<_>>(), [(Some(512), 22), (None, 4)]);
    assert_eq!((groups[0].layers[..7].to_vec(), groups[1].layers.clone()), (vec![0, 1, 2, 3, 4, 6, 7], vec![5, 11, 17, 23]));
    assert_eq!([&groups[0], &groups[1]].map(|group| group.shape.rope.clone()), [10_000.0, 1_000_000.0].map(|theta| wgkv::Rope::new(theta, 256)));
    assert!(config.shape().rope.frequencies().is_empty(), "one cache cannot rotate by layer");
    // Newer files list the layers and give each kind its rotation.
    let mut newer = gemma3;
    for key in ["rope_theta", "rope_local_base_freq", "sliding_window_pattern"] {
        newer.as_object_mut().unwrap().remove(key);
    }
    newer["_sliding_window_pattern"] = json!(6);
    newer["layer_types"] = (0..26).map(|layer| if layer % 6 == 5 { "full_attention" } else { "sliding_attention" }).collect();
    newer["rope_parameters"] = json!({
        "full_attention": { "rope_type": "default", "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 }
    });
    assert_eq!(read(newer), config);

    let glm4 = json!({
        "architectures": ["Glm4ForCausalLM"], "hidden_size": 4096, "intermediate_size": 13_696, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151_552, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "hidden_act": "silu", "partial_rotary_factor": 0.5, "attention_bias": true, "tie_word_embeddings": false
    });
    let config = read(glm4);
    assert_eq!((config.parameters(), config.rotary, config.attention_bias, config.output_bias), (9_400_279_040, 64, true, false));
    assert_eq!((config.branch_norms, config.activation, config.groups_for(0).len()), (true, Activation::Silu, 1));
    assert_eq!(config.shape().rope, wgkv::Rope::new(10_000.0, 64));

    let mut gpt_oss = json!({
        "architectures": ["GptOssForCausalLM"], "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201_088, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 150_000,
        "hidden_act": "silu", "sliding_window": 128, "attention_bias": true, "tie_word_embeddings": false, "num_local_experts": 32,
        "rope_scaling": { "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false, "original_max_position_embeddings": 4096 }
    });
    let error = Config::from_bytes(gpt_oss.to_string().as_bytes()).unwrap_err().to_string();
    assert_eq!(error, "config.json: num_local_experts = 32 is not supported: wanted 0, a dense model");
    gpt_oss["num_local_experts"] = json!(0);
    let config = read(gpt_oss);
    assert!(config.sinks && config.attention_bias && config.output_bias && !config.tied && !config.mlp_bias);
    assert!((config.attention_factor - (0.1 * 32_f64.ln() + 1.0)).abs() < ROUNDING);
    assert_eq!([0, 1, 2, 23].map(|layer| config.layer_window(layer)), [Some(128), None, Some(128), None]);
    assert_eq!(config.groups_for(0)[0].shape.rope.frequencies(), config.frequencies());
}

#[expect(clippy::type_complexity, reason = "a table of settings and of the words of their refusals")]
#[test]
fn what_is_not_run_is_refused_by_name() {
    let gemma2 = |key: &'static str, number: f64| {
        [
            ("architectures", json!(["Gemma2ForCausalLM"])),
            ("hidden_activation", json!("gelu_pytorch_tanh")),
            ("query_pre_attn_scalar", json!(64)),
            ("sliding_window", json!(64)),
            (key, json!(number)),
        ]
    };
    let refusals: [(&[(&str, Value)], &[&str]); 33] = [
        (&[("architectures", json!(["Gemma3ForConditionalGeneration"]))], &["Gemma3ForConditionalGeneration", "LlamaForCausalLM", "Gemma3ForCausalLM"]),
        (&[("architectures", json!(["Gemma2ForCausalLM"]))], &["hidden_act = silu", "gelu_pytorch_tanh"]),
        (
            &[("architectures", json!(["Gemma2ForCausalLM"])), ("hidden_activation", json!("gelu_pytorch_tanh")), ("sliding_window", json!(64))],
            &["query_pre_attn_scalar is missing"],
        ),
        (&[("architectures", json!(["Gemma3ForCausalLM"])), ("hidden_activation", json!("gelu_pytorch_tanh"))], &["sliding_window is missing"]),
        (&[("use_bidirectional_attention", json!(true))], &["use_bidirectional_attention = true", "false"]),
        (&[("layer_types", json!(["full_attention"]))], &["layer_types = 1 names", "2, one a layer"]),
        (&[("layer_types", json!(["full_attention", "chunked_attention"]))], &["layer_types = chunked_attention", "sliding_attention"]),
        (&[("num_hidden_layers", Value::Null)], &["config.json: num_hidden_layers is missing"]),
        (&[("num_hidden_layers", json!(0))], &["num_hidden_layers = 0", "positive"]),
        (&[("num_hidden_layers", json!(4_000_000_000_u32))], &["num_hidden_layers = 4000000000", "4096"]),
        (&[("vocab_size", json!(u64::MAX))], &["vocab_size = 18446744073709551615"]),
        (&[("num_key_value_heads", json!(3))], &["num_key_value_heads = 3", "divisor of num_attention_heads"]),
        (&[("num_attention_heads", json!(5)), ("head_dim", Value::Null)], &["hidden_size = 96", "multiple of num_attention_heads"]),
        (&[("num_attention_heads", json!(1 << 20)), ("head_dim", json!(1 << 12))], &["num_attention_heads = 1048576", "268435456"]),
        (&[("head_dim", json!(63))], &["head_dim = 63", "pairs"]),
        (&[("hidden_act", json!("gelu"))], &["hidden_act = gelu", "silu"]),
        (&[("sliding_window", json!(1024))], &["sliding_window = 1024", "null"]),
        (&[("rope_theta", json!(1.0))], &["rope_theta = 1", "above 1"]),
        (&[("rms_norm_eps", json!(-1.0))], &["rms_norm_eps = -1"]),
        // Numbers that f64 has, and f32 does not.
        (&[("rms_norm_eps", json!(1e300))], &["rms_norm_eps = 1", "finite in f32"]),
        (&gemma2("final_logit_softcapping", 1e-300), &["cap of logits = 1e-300", "1e-30 to 1e30"]),
        (&gemma2("attn_logit_softcapping", 1e-300), &["cap of attention's scores = 1e-300", "1e-30 to 1e30"]),
        (&gemma2("attn_logit_softcapping", 1e300), &["cap of attention's scores = 1e300", "1e-30 to 1e30"]),
        (&gemma2("query_pre_attn_scalar", 1e300), &["scale of attention's scores = 1e-150", "1e-30 to 1e30"]),
        // Each size is within reason; all together they are not.
        (
            &[("hidden_size", json!(1 << 28)), ("intermediate_size", json!(1 << 28)), ("num_hidden_layers", json!(4096)), ("rope_scaling", Value::Null)],
            &["number of weights = 8", "at most 281474976710656"],
        ),
        (&[("rope_scaling", json!({ "rope_type": "dynamic" }))], &["rope_type = dynamic", "llama3", "yarn"]),
        (&[("rope_scaling", json!({ "rope_type": "yarn" }))], &["rope_scaling.factor is missing"]),
        (&[("rope_scaling", json!({ "rope_type": "linear", "factor": 0.0 }))], &["rope_scaling.factor = 0"]),
        (
            &[(
                "rope_scaling",
                json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4, "original_max_position_embeddings": 8 }),
            )],
            &["high_freq_factor = 4", "more than low_freq_factor"],
        ),
        (
            &[("rope_scaling", json!({ "rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] }))],
            &["rope_scaling.short_factor = 1 numbers", "32 positive numbers"],
        ),
        (&[("rope_scaling", json!({ "full_attention": {}, "sliding_attention": {} }))], &["sliding_attention.rope_theta is missing"]),
        (
            &[("rope_scaling", json!({ "full_attention": {}, "sliding_attention": { "rope_type": "yarn" } }))],
            &["sliding_attention.rope_type = yarn", "default"],
        ),
        (&[("architectures", json!(["SmolLM3ForCausalLM"])), ("no_rope_layers", json!([1]))], &["no_rope_layers = 1 numbers", "2, one a layer"]),
    ];
    for (pairs, words) in refusals {
        let error = config_with(pairs).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{pairs:?}: {error}");
    }
    // The wrong type is the parser's affair, a broken file too.
    assert!(matches!(config_with(&[("hidden_size", json!(-1))]).unwrap_err(), Error::Json { .. }));
    assert!(matches!(Config::from_bytes(b"{").unwrap_err(), Error::Json { .. }));
    let error = Config::open(Path::new("no-such-folder")).unwrap_err();
    assert!(matches!(&error, Error::Read { path, .. } if path.ends_with("no-such-folder/config.json")), "{error}");
}

#[test]
fn llama3_frequencies_are_those_of_the_published_rule_and_the_caches() {
    // Llama 3.1: theta 500000, head_dim 128, factor 8 over 8192 positions.
    let scaling = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    let mut config = config_with(&[("rope_scaling", scaling), ("head_dim", json!(128))]).unwrap();
    let stretched = config.frequencies();
    assert_eq!(config.shape().rope, wgkv::Rope::llama3(500_000.0, 128, 8.0, 1.0, 4.0, 8192));
    config.rope_scaling = None;
    assert_eq!(config.shape().rope, wgkv::Rope::new(500_000.0, 128));
    let plain = config.frequencies();
    assert_eq!(plain.len(), 64);
    for (pair, (stretched, plain)) in stretched.iter().zip(&plain).enumerate() {
        let ratio = stretched / plain;
        // Wavelengths: below 2048 kept, above 8192 divided by 8, blended between.
        let wavelength = std::f64::consts::TAU / plain;
        if wavelength < 2048.0 {
            assert_eq!(ratio, 1.0, "pair {pair}");
        } else if wavelength > 8192.0 {
            assert!((ratio - 0.125).abs() < ROUNDING, "pair {pair}");
        } else {
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            let wanted = (1.0 - smooth) / 8.0 + smooth;
            assert!((ratio - wanted).abs() < ROUNDING, "pair {pair}");
        }
    }
    assert!((plain[63] - 500000_f64.powf(-126.0 / 128.0)).abs() < 1e-18);
}

#[test]
fn yarn_and_longrope_are_those_of_the_published_formulas() {
    // Qwen3 with the scaling that its card gives: the pairs up to the ramp, on it and beyond.
    let config = config_with(&[
        ("architectures", json!(["Qwen3ForCausalLM"])),
        ("head_dim", json!(128)),
        ("rope_theta", json!(1e6)),
        ("max_position_embeddings", json!(40960)),
        ("rope_scaling", json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 })),
    ])
    .unwrap();
    assert!((config.attention_factor - 1.138_629_436).abs() < PRINTED);
    let (yarn, theta) = (config.frequencies(), |pair: i32| 1e6_f64.powf(-2.0 * f64::from(pair) / 128.0));
    // 32 turns within 32768 positions are had at pair 23.6, one turn at 39.7.
    assert!(yarn[..=23].iter().zip(0..).all(|(got, pair)| (got / theta(pair) - 1.0).abs() < ROUNDING));
    assert!(yarn[40..].iter().zip(40..).all(|(got, pair)| (got * 4.0 / theta(pair) - 1.0).abs() < ROUNDING));
    for pair in 24..40 {
        let wanted = theta(pair) * (1.0 - 0.75 * f64::from(pair - 23) / 17.0);
        assert!((yarn[pair as usize] / wanted - 1.0).abs() < ROUNDING, "pair {pair}");
    }
    // Phi-4-mini: three quarters of a head, 4096 positions stretched to 131072; ln 32 / ln 4096 is
    // 5 / 12.
    let (short, long): (Vec<f64>, Vec<f64>) = (0..24).map(|pair| (1.0 + f64::from(pair) / 100.0, 2.0 + f64::from(pair))).unzip();
    let config = config_with(&[
        ("architectures", json!(["Phi3ForCausalLM"])),
        ("partial_rotary_factor", json!(0.75)),
        ("max_position_embeddings", json!(131_072)),
        ("original_max_position_embeddings", json!(4096)),
        ("rope_scaling", json!({ "type": "longrope", "short_factor": short, "long_factor": long })),
    ])
    .unwrap();
    assert!((config.attention_factor - (17.0_f64 / 12.0).sqrt()).abs() < ROUNDING);
    for (context, factors) in [(4096, &short), (4097, &long)] {
        for (pair, got) in config.frequencies_for(context).into_iter().enumerate() {
            let wanted = 1.0 / (factors[pair] * 500_000_f64.powf(pair as f64 / 24.0));
            assert!((got / wanted - 1.0).abs() < ROUNDING, "context {context}, pair {pair}");
        }
    }
    assert_eq!(config.shape(), config.shape_for(4096));
    assert_eq!(config.shape_for(8192).rope.frequencies(), config.frequencies_for(8192));
    assert!(matches!(config.rope_scaling, Some(RopeScaling::LongRope { original_max_tokens: 4096, .. })));
}

#[test]
fn parameters_are_those_of_the_weights() {
    let wanted: usize = tiny::shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(config_with(&[]).unwrap().parameters(), wanted as u64);
    // SmolLM2-135M's own count.
    let sizes = [("hidden_size", 576), ("intermediate_size", 1536), ("num_hidden_layers", 30), ("num_attention_heads", 9), ("num_key_value_heads", 3)];
    let mut pairs: Vec<(&str, Value)> = sizes.map(|(key, size)| (key, json!(size))).to_vec();
    pairs.extend([("vocab_size", json!(49_152)), ("tie_word_embeddings", json!(true)), ("head_dim", Value::Null)]);
    assert_eq!(config_with(&pairs).unwrap().parameters(), 134_515_008);
}

#[test]
fn a_folder_is_read_whole() {
    let folder = model("whole");
    let model = Model::open(&folder).unwrap();
    assert!(model.chat().is_none());
    assert!(model.has(Part::Head) && model.has(Part::Down(1)) && !model.has(Part::Down(2)) && !model.has(Part::QueryBias(0)) && !model.has(Part::KeyNorm(0)));
    let parts = [(Part::Embedding, [258, 96]), (Part::Norm, [1, 96]), (Part::Query(1), [256, 96]), (Part::Output(0), [96, 256]), (Part::Up(1), [160, 96])];
    for (part, [rows, columns]) in parts {
        let stored = model.tensor(part).unwrap();
        assert_eq!((stored.rows, stored.columns, stored.bytes.len()), (rows, columns, rows * columns * stored.format.block_bytes()), "{part:?}");
        let values = stored.numbers();
        assert_eq!(values.len(), rows * columns);
        // The ends of the ranges that the weights were drawn from, with bf16's rounding.
        let limit = if rows == 1 { 1.51 } else { 0.201 };
        assert!(values.iter().all(|value| value.abs() <= limit), "{part:?}");
        assert!(values.iter().any(|value| value.abs() > limit / 2.0), "{part:?}");
    }
    let formats = [Part::Embedding, Part::Norm, Part::Head].map(|part| model.tensor(part).unwrap().format);
    assert_eq!(formats, [WeightFormat::Bf16, WeightFormat::F16, WeightFormat::F32]);
    let error = model.tensor(Part::Up(2)).unwrap_err();
    assert!(matches!(&error, Error::TensorMissing { name, .. } if name == "model.layers.2.mlp.up_proj.weight"), "{error}");
}

#[test]
fn parts_in_memory_are_the_same_model() {
    let folder = tiny::folder("in_memory");
    tiny::write_config(&folder, &tiny::config());
    tiny::write_tokenizer(&folder);
    tiny::write_weights(&folder.join("model.safetensors"), &tiny::shapes(), 5);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (files, memory) = (Model::open(&folder).unwrap(), Model::from_parts(&read("config.json"), &read("tokenizer.json"), read("model.safetensors")).unwrap());
    assert_eq!(files.config(), memory.config());
    assert_eq!(files.hash().unwrap(), memory.hash().unwrap());
    assert_eq!(files.tensor(Part::Gate(1)).unwrap(), memory.tensor(Part::Gate(1)).unwrap());
}

#[test]
fn fused_tensors_are_taken_apart() {
    let seed = tiny::seed();
    let folder = tiny::folder("fused");
    let mut config = tiny::config();
    (config["architectures"], config["rope_scaling"]) = (json!(["Phi3ForCausalLM"]), Value::Null);
    tiny::write_config(&folder, &config);
    tiny::write_tokenizer(&folder);
    let mut shapes: Vec<_> =
        tiny::shapes().into_iter().filter(|(name, _)| !["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"].iter().any(|part| name.contains(part))).collect();
    for layer in 0..2 {
        shapes.push((format!("model.layers.{layer}.self_attn.qkv_proj.weight"), vec![512, 96]));
        shapes.push((format!("model.layers.{layer}.mlp.gate_up_proj.weight"), vec![320, 96]));
    }
    tiny::write_weights(&folder.join("model.safetensors"), &shapes, seed);
    let model = Model::open(&folder).unwrap();
    let file = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let whole = |name: &str| file.tensor(&format!("model.layers.1.{name}.weight")).unwrap().data().to_vec();
    let bytes = |parts: &[Part]| parts.iter().flat_map(|&part| model.tensor(part).unwrap().bytes).collect::<Vec<u8>>();
    assert_eq!(bytes(&[Part::Query(1), Part::Key(1), Part::Value(1)]), whole("self_attn.qkv_proj"), "WGKV_SEED={seed}");
    assert_eq!(bytes(&[Part::Gate(1), Part::Up(1)]), whole("mlp.gate_up_proj"), "WGKV_SEED={seed}");
    assert_eq!(model.tensor(Part::Value(0)).unwrap().rows, 128);
}

#[test]
fn norms_that_are_counted_from_one_and_interleaved_rows_are_made_as_others_are() {
    let seed = tiny::seed();
    let open = |name: &str, more: Value| {
        let folder = tiny::folder(name);
        let mut config = tiny::config();
        config["rope_scaling"] = Value::Null;
        more.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        tiny::write_model_of(&folder, &config, seed);
        (Model::open(&folder).unwrap(), std::fs::read(folder.join("model.safetensors")).unwrap())
    };
    let numbers = |file: &[u8], name: &str| -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(file).unwrap();
        let tensor = file.tensor(name).unwrap();
        let format = match tensor.dtype() {
            safetensors::Dtype::BF16 => WeightFormat::Bf16,
            safetensors::Dtype::F16 => WeightFormat::F16,
            _ => WeightFormat::F32,
        };
        wgkv_decoder::Stored { rows: 1, columns: tensor.shape().iter().product(), format, bytes: tensor.data().to_vec() }.numbers()
    };
    let gemma = json!({
        "architectures": ["Gemma3ForCausalLM"], "hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": 64, "sliding_window": 16, "tie_word_embeddings": true
    });
    let (model, file) = open("counted_from_one", gemma);
    for (part, name) in [
        (Part::AttentionNorm(1), "model.layers.1.input_layernorm.weight"),
        (Part::AttentionOutNorm(1), "model.layers.1.post_attention_layernorm.weight"),
        (Part::MlpNorm(1), "model.layers.1.pre_feedforward_layernorm.weight"),
        (Part::MlpOutNorm(1), "model.layers.1.post_feedforward_layernorm.weight"),
        (Part::QueryNorm(0), "model.layers.0.self_attn.q_norm.weight"),
        (Part::KeyNorm(0), "model.layers.0.self_attn.k_norm.weight"),
        (Part::Norm, "model.norm.weight"),
    ] {
        let wanted: Vec<f32> = numbers(&file, name).into_iter().map(|weight| 1.0 + weight).collect();
        assert_eq!(model.tensor(part).unwrap().numbers(), wanted, "{name}. WGKV_SEED={seed}");
    }
    let down = model.tensor(Part::Down(0)).unwrap();
    assert_eq!(down.numbers(), numbers(&file, "model.layers.0.mlp.down_proj.weight"));

    let glm = json!({ "architectures": ["Glm4ForCausalLM"], "attention_bias": true, "partial_rotary_factor": 0.5 });
    let (model, file) = open("interleaved", glm);
    for (part, bias, name) in [(Part::Query(1), Part::QueryBias(1), "q"), (Part::Key(1), Part::KeyBias(1), "k")] {
        let named = |end: &str| format!("model.layers.1.self_attn.{name}_proj.{end}");
        let (weights, biases) = (numbers(&file, &named("weight")), numbers(&file, &named("bias")));
        let (got, got_bias) = (model.tensor(part).unwrap().numbers(), model.tensor(bias).unwrap().numbers());
        for row in 0..biases.len() {
            // Of the 32 channels that rotate, 2 i + s of the file is channel i of half s.
            let channel = row % 64;
            let from = if channel < 32 { row - channel + 2 * (channel % 16) + channel / 16 } else { row };
            assert_eq!(got[96 * row..][..96], weights[96 * from..][..96], "row {row} of {name}. WGKV_SEED={seed}");
            assert_eq!(got_bias[row], biases[from], "bias {row} of {name}. WGKV_SEED={seed}");
        }
    }
    let values = model.tensor(Part::Value(1)).unwrap();
    assert_eq!(values.numbers(), numbers(&file, "model.layers.1.self_attn.v_proj.weight"));
    let halves = [Part::Gate(0), Part::Up(0)].map(|part| model.tensor(part).unwrap().numbers()).concat();
    assert_eq!(halves, numbers(&file, "model.layers.0.mlp.gate_up_proj.weight"));
    // Tensors that are missing are named as this family names them.
    let folder = tiny::folder("no_sinks");
    let more = json!({ "architectures": ["GptOssForCausalLM"], "sliding_window": 16, "attention_bias": true });
    let mut config = tiny::config();
    config["rope_scaling"] = Value::Null;
    more.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
    tiny::write_config(&folder, &config);
    tiny::write_tokenizer(&folder);
    let shapes: Vec<_> = tiny::shapes_of(&config).into_iter().filter(|(name, _)| name != "model.layers.1.self_attn.sinks").collect();
    tiny::write_weights(&folder.join("model.safetensors"), &shapes, seed);
    let error = Model::open(&folder).err().unwrap().to_string();
    assert!(error.contains("model.layers.1.self_attn.sinks") && error.contains("[4]"), "{error}");
}

#[test]
fn a_tied_head_is_the_embedding() {
    let folder = model("tied");
    let mut config = tiny::config();
    config["tie_word_embeddings"] = true.into();
    tiny::write_config(&folder, &config);
    let model = Model::open(&folder).unwrap();
    assert!(!model.has(Part::Head));
    assert_eq!(model.tensor(Part::Head).unwrap(), model.tensor(Part::Embedding).unwrap());
}

#[test]
fn the_files_beside_the_config_count() {
    let folder = model("beside");
    let write = |name: &str, value: Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    write("generation_config.json", json!({ "eos_token_id": [1, 7] }));
    write("tokenizer_config.json", json!({ "add_bos_token": false, "chat_template": "{{ messages[0].content }}!" }));
    let model = Model::open(&folder).unwrap();
    assert_eq!((model.config().end.as_slice(), model.config().begin, model.config().add_bos), ([1, 7].as_slice(), Some(0), false));
    let message = wgkv_decoder::Message { role: "user", content: "hello" };
    assert_eq!(model.chat().unwrap().render(&[message], true, "", "").unwrap(), "hello!");
    // Of several templates the default one, and a file of its own before either.
    write("tokenizer_config.json", json!({ "chat_template": [{ "name": "tools", "template": "no" }, { "name": "default", "template": "yes" }] }));
    assert_eq!(Model::open(&folder).unwrap().chat().unwrap().render(&[], true, "", "").unwrap(), "yes");
    std::fs::write(folder.join("chat_template.jinja"), "file").unwrap();
    assert_eq!(Model::open(&folder).unwrap().chat().unwrap().render(&[], true, "", "").unwrap(), "file");
    // One that is none stands in nobody's way who does not chat.
    std::fs::write(folder.join("chat_template.jinja"), "{% for %}").unwrap();
    assert!(matches!(Model::open(&folder).unwrap().chat().unwrap().render(&[], true, "", "").unwrap_err(), Error::Template(_)));
    std::fs::remove_file(folder.join("chat_template.jinja")).unwrap();
    write("generation_config.json", json!({ "eos_token_id": "seven" }));
    assert!(matches!(Model::open(&folder).err().unwrap(), Error::Json { path, .. } if path.ends_with("generation_config.json")));
}

#[test]
fn a_truncated_weight_file_is_refused_with_both_lengths() {
    let folder = model("truncated");
    std::fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    let path = folder.join("model-1-of-2.safetensors");
    let whole = std::fs::read(&path).unwrap();
    // In the data, in the header, in the header's length; and a byte too many.
    for kept in [whole.len() - 1, 100, 5] {
        std::fs::write(&path, &whole[..kept]).unwrap();
        match Model::open(&folder).err().unwrap() {
            Error::Length { wanted, found, .. } => {
                assert_eq!(found, kept as u64);
                assert!(wanted > found && wanted <= whole.len() as u64);
            }
            other => panic!("{kept} bytes kept: {other}"),
        }
    }
    std::fs::write(&path, [whole.as_slice(), &[0]].concat()).unwrap();
    assert!(matches!(Model::open(&folder).err().unwrap(), Error::Length { wanted, found, .. } if wanted == whole.len() as u64 && found == wanted + 1));
}

#[test]
fn what_the_files_lack_is_named() {
    let open = |folder: &Path| Model::open(folder).err().unwrap();
    let folder = model("damaged");
    std::fs::write(folder.join("model-1-of-2.safetensors"), b"\x04\0\0\0\0\0\0\0nope").unwrap();
    assert!(matches!(open(&folder), Error::Header { .. }));
    std::fs::write(folder.join("model-1-of-2.safetensors"), [[255; 8], [0; 8]].concat()).unwrap();
    assert!(matches!(open(&folder), Error::Header { reason, .. } if reason.contains("100000000")));
    let folder = model("no_weights");
    for name in ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"] {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    assert!(matches!(open(&folder), Error::NoWeights { path } if path == folder));
    // A tensor less, in a shape of its own, in numbers that are not read, and twice.
    let (shapes, path) = (tiny::shapes(), folder.join("model.safetensors"));
    tiny::write_weights(&path, &shapes[..shapes.len() - 1], 0);
    let missing = "tensor model.layers.1.mlp.down_proj.weight is missing: wanted shape [96, 160], looked through 1 file(s)";
    assert_eq!(open(&folder).to_string(), missing);
    let mut other = shapes.clone();
    other[1].1 = vec![128];
    tiny::write_weights(&path, &other, 0);
    assert_eq!(open(&folder).to_string(), "tensor model.norm.weight has shape [128], wanted [96]");
    tiny::write_weights(&path, &shapes, 0);
    tiny::write_weights(&folder.join("more.safetensors"), &shapes[4..5], 0);
    let error = open(&folder);
    assert!(matches!(&error, Error::TensorTwice { name, .. } if *name == shapes[4].0), "{error}");
    let bytes = vec![0; 96 * 8];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F64, vec![96], &bytes).unwrap();
    std::fs::write(folder.join("more.safetensors"), safetensors::serialize([(&*shapes[1].0, view)], None).unwrap()).unwrap();
    let without: Vec<_> = shapes.iter().filter(|(name, _)| *name != shapes[1].0).cloned().collect();
    tiny::write_weights(&path, &without, 0);
    assert_eq!(open(&folder).to_string(), "tensor model.norm.weight is stored as F64, wanted F16, BF16 or F32");
    std::fs::remove_file(folder.join("more.safetensors")).unwrap();
    tiny::write_weights(&path, &shapes, 0);
    assert!(Model::open(&folder).is_ok());
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    assert!(matches!(open(&folder), Error::Read { path, .. } if path.ends_with("tokenizer.json")));
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(open(&folder), Error::Tokenizer(_)));
}

#[test]
fn damaged_parts_neither_panic_nor_hang() {
    let seed = tiny::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tiny::folder("hostile_parts");
    tiny::write_tokenizer(&folder);
    let tokenizer = std::fs::read(folder.join("tokenizer.json")).unwrap();
    let (config, weights) = (tiny::config().to_string().into_bytes(), tiny::weights(&tiny::shapes(), seed));
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut opened = 0;
    for (place, damage) in (0..header + 20).map(|place| (place, random.random::<u8>())).chain((0..8).map(|place| (place, 255))) {
        let mut changed = weights.clone();
        changed[place] = damage;
        opened += usize::from(Model::from_parts(&config, &tokenizer, changed).is_ok());
        if place < config.len() {
            let mut changed = config.clone();
            changed[place] = damage;
            let _ = Config::from_bytes(&changed);
            assert!(Config::from_bytes(&config[..place]).is_err());
        }
    }
    // Of the header's text every byte matters; the twenty after it are numbers.
    assert!((15..header / 4).contains(&opened), "{opened} opened. WGKV_SEED={seed}");
    for kept in (0..header).chain([weights.len() - 1]) {
        assert!(Model::from_parts(&config, &tokenizer, weights[..kept].to_vec()).is_err(), "{kept} bytes kept");
    }
}

#[test]
fn text_survives_the_tokenizer() {
    let folder = tiny::folder("tokenizer");
    tiny::write_tokenizer(&folder);
    let text = Text::open(&folder).unwrap();
    let written = "Grüße, 世界!\n\tand [s] is only text in a file name";
    let ids = text.encode(written).unwrap();
    assert_eq!(ids.len(), written.len());
    assert_eq!(text.decode(&ids).unwrap(), written);
    // Piece by piece, a character of several bytes appears whole or not yet.
    let mut stream = text.stream();
    let pieces: String = ids.iter().filter_map(|&id| stream.step(id).unwrap()).collect();
    assert_eq!(pieces, written);
    // A name of a special token is text, unless it is asked for.
    assert_eq!((text.id("<s>"), text.token(1).as_deref(), text.token(258)), (Some(0), Some("</s>"), None));
    let ids = text.encode("a<s>").unwrap();
    assert_eq!((ids.len(), text.decode(&ids).unwrap().as_str()), (4, "a<s>"));
    assert_eq!(text.encode_with_special("a<s>").unwrap(), [ids[0], 0]);
    assert_eq!(text.decode(&[ids[0], 0]).unwrap(), "a");
}

#[test]
fn a_models_hash_is_that_of_its_content() {
    let write = |name: &str, seed: u64, files: usize| {
        let folder = tiny::folder(name);
        tiny::write_config(&folder, &tiny::config());
        tiny::write_tokenizer(&folder);
        // The same tensors, whatever file they lie in: their values depend on the seed and their
        // number in the file.
        let shapes = tiny::shapes();
        let bytes = tiny::weights(&shapes, seed);
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (number, part) in shapes.chunks(shapes.len() / files + 1).enumerate() {
            let views = part.iter().map(|(name, _)| (name.as_str(), all.tensor(name).unwrap()));
            std::fs::write(folder.join(format!("part-{number}.safetensors")), safetensors::serialize(views, None).unwrap()).unwrap();
        }
        folder
    };
    let hash = |folder: &Path| Model::open(folder).unwrap().hash().unwrap();
    let folder = write("hash", 7, 1);
    let first = hash(&folder);
    assert_eq!(first.len(), 64);
    // Calibrations may lie beside the weights that they were made from.
    let shape = wgkv::Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: wgkv::Rope::none() };
    wgkv::ChannelOrder::natural(&shape, 2).unwrap().save(folder.join("rotate-kv.safetensors")).unwrap();
    wgkv::Means::natural(&shape).save(folder.join("centred.safetensors")).unwrap();
    assert_eq!(first, hash(&folder));
    assert_eq!(first, hash(&write("hash_in_parts", 7, 2)));
    assert_ne!(first, hash(&write("hash_of_another", 8, 1)));
    let mut config = tiny::config();
    config["rope_theta"] = json!(10_000.0);
    tiny::write_config(&folder, &config);
    assert_ne!(first, hash(&folder));
}

#[test]
fn the_embedded_model_is_the_one_that_its_calibrations_name() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/wiki-8m");
    let calibration = std::fs::read(folder.join("centred.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&calibration).unwrap();
    let named = &header.metadata().as_ref().unwrap()["model"];
    assert_eq!(Model::open(&folder).unwrap().hash().unwrap(), *named);
}

#[test]
fn a_wrong_path_is_named() {
    let path = std::env::temp_dir().join(format!("wgkv-no-such-{}", std::process::id()));
    assert!(matches!(Model::open(&path).err().unwrap(), Error::Read { path: named, .. } if named == path));
}
