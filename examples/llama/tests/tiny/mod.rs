//! A model small enough to be made on the spot: random weights, a tokenizer of single bytes,
//! Hugging Face's files.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// A fresh folder for one test.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The numbers of the tiny model: untied, grouped queries, stretched rotation.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 258,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256
        },
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "bos_token_id": 0,
        "eos_token_id": [1]
    })
}

/// Names and shapes of the tiny model's tensors.
pub fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes =
        vec![("model.embed_tokens.weight".to_owned(), vec![258, 96]), ("model.norm.weight".to_owned(), vec![96]), ("lm_head.weight".to_owned(), vec![258, 96])];
    for layer in 0..2 {
        for (part, shape) in [
            ("input_layernorm", vec![96]),
            ("post_attention_layernorm", vec![96]),
            ("self_attn.q_proj", vec![256, 96]),
            ("self_attn.k_proj", vec![128, 96]),
            ("self_attn.v_proj", vec![128, 96]),
            ("self_attn.o_proj", vec![96, 256]),
            ("mlp.gate_proj", vec![160, 96]),
            ("mlp.up_proj", vec![160, 96]),
            ("mlp.down_proj", vec![96, 160]),
        ] {
            shapes.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    shapes
}

/// Writes tensors of these shapes, filled from a seed, each in the next of the three element types.
pub fn write_weights(path: &Path, shapes: &[(String, Vec<usize>)], seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = shapes
        .iter()
        .enumerate()
        .map(|(number, (name, shape))| {
            let norm = shape.len() == 1;
            let values = (0..shape.iter().product()).map(|_| random.random::<f32>() - 0.5).map(|value| if norm { 1.0 + value } else { value * 0.4 });
            let (dtype, bytes) = match number % 3 {
                0 => (Dtype::BF16, values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect()),
                1 => (Dtype::F16, values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect()),
                _ => (Dtype::F32, values.flat_map(f32::to_le_bytes).collect()),
            };
            (name.clone(), dtype, shape.clone(), bytes)
        })
        .collect();
    let views = stored.iter().map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Writes a tokenizer whose tokens are `<s>`, `</s>` and the 256 bytes.
pub fn write_tokenizer(folder: &Path) {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let special = ["<s>".to_owned(), "</s>".to_owned()];
    let vocabulary = special.iter().cloned().chain(alphabet.into_iter().map(String::from)).zip(0..).collect::<tokenizers::models::bpe::Vocab>();
    let model = BPE::builder().vocab_and_merges(vocabulary, Vec::new()).build().unwrap();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(bytes));
    tokenizer.with_decoder(Some(bytes));
    tokenizer.add_special_tokens(special.map(|token| AddedToken::from(token, true))).unwrap();
    tokenizer.save(folder.join("tokenizer.json"), false).unwrap();
}

/// Returns options of a command, as typed.
pub fn options<T: clap::Args>(words: &[&str]) -> T {
    T::from_arg_matches(&T::augment_args(clap::Command::new("test")).get_matches_from([&["test"], words].concat())).unwrap()
}

/// The model that the project embeds.
pub fn embedded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/wiki-8m")
}

/// The text of the tests.
pub fn smoke() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smoke.txt").to_str().unwrap().to_owned()
}

/// Writes `config.json`.
pub fn write_config(folder: &Path, config: &Value) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// Writes the whole model: two weight files and their index.
pub fn write_model(folder: &Path) {
    write_config(folder, &config());
    write_tokenizer(folder);
    let shapes = shapes();
    let (first, second) = shapes.split_at(shapes.len() / 2);
    let mut places = serde_json::Map::new();
    for (number, part) in [first, second].into_iter().enumerate() {
        let name = format!("model-{}-of-2.safetensors", number + 1);
        write_weights(&folder.join(&name), part, number as u64);
        for (tensor, _) in part {
            places.insert(tensor.clone(), name.clone().into());
        }
    }
    std::fs::write(folder.join("model.safetensors.index.json"), json!({ "weight_map": places }).to_string()).unwrap();
}
