//! Models small enough to be made on the spot: random weights, a tokenizer of single bytes, Hugging
//! Face's files or a GGUF file.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Draws a seed anew, or takes `WGKV_SEED`, and prints it.
pub fn seed() -> u64 {
    let seed = std::env::var("WGKV_SEED").map_or_else(|_| rand::rng().next_u64(), |seed| seed.parse().unwrap());
    println!("WGKV_SEED={seed}");
    seed
}

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

/// The same of a model whose every number its `config.json` gives, of one of the architectures that
/// have more or other tensors.
pub fn shapes_of(config: &Value) -> Vec<(String, Vec<usize>)> {
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, wide, vocabulary) = (number("hidden_size"), number("intermediate_size"), number("vocab_size"));
    let head_dim = number("head_dim");
    let [queries, keys] = ["num_attention_heads", "num_key_value_heads"].map(|key| number(key) * head_dim);
    let architecture = config["architectures"][0].as_str().unwrap();
    let gemma = architecture.starts_with("Gemma");
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]), ("model.norm.weight".to_owned(), vec![hidden])];
    if config["tie_word_embeddings"] == json!(false) {
        shapes.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
    }
    for layer in 0..number("num_hidden_layers") {
        let mut add = |part: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{part}"), shape.to_vec()));
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        for (part, rows, columns) in [("q", queries, hidden), ("k", keys, hidden), ("v", keys, hidden), ("o", hidden, queries)] {
            add(&format!("self_attn.{part}_proj.weight"), &[rows, columns]);
            if config["attention_bias"] == json!(true) && !(part == "o" && architecture == "Glm4ForCausalLM") {
                add(&format!("self_attn.{part}_proj.bias"), &[rows]);
            }
        }
        if gemma {
            add("pre_feedforward_layernorm.weight", &[hidden]);
            add("post_feedforward_layernorm.weight", &[hidden]);
        }
        match architecture {
            "Gemma3ForCausalLM" => ["q", "k"].iter().for_each(|part| add(&format!("self_attn.{part}_norm.weight"), &[head_dim])),
            "Glm4ForCausalLM" => ["self_attn", "mlp"].iter().for_each(|part| add(&format!("post_{part}_layernorm.weight"), &[hidden])),
            "GptOssForCausalLM" => add("self_attn.sinks", &[number("num_attention_heads")]),
            _ => {}
        }
        if architecture == "Glm4ForCausalLM" {
            add("mlp.gate_up_proj.weight", &[2 * wide, hidden]);
        } else {
            add("mlp.gate_proj.weight", &[wide, hidden]);
            add("mlp.up_proj.weight", &[wide, hidden]);
        }
        add("mlp.down_proj.weight", &[hidden, wide]);
    }
    shapes
}

/// Writes the whole model of such a configuration, without a tokenizer's training: its tokens are
/// single bytes.
pub fn write_model_of(folder: &Path, config: &Value, seed: u64) {
    write_config(folder, config);
    write_tokenizer(folder);
    write_weights(&folder.join("model.safetensors"), &shapes_of(config), seed);
}

/// The bytes of a safetensors file with tensors of these shapes, filled from a seed, each in the
/// next of the three element types. Weights of norms lie around 1, or around 0 where the model
/// counts them from 1.
pub fn weights(shapes: &[(String, Vec<usize>)], seed: u64) -> Vec<u8> {
    let from_one = shapes.iter().any(|(name, _)| name.contains("feedforward_layernorm"));
    let mut random = StdRng::seed_from_u64(seed);
    let stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = shapes
        .iter()
        .enumerate()
        .map(|(number, (name, shape))| {
            let norm = shape.len() == 1 && !name.ends_with("bias") && !from_one;
            let vector = shape.len() == 1;
            // Large enough to count among the scores of some dozens of keys.
            let sinks = name.ends_with("sinks");
            let values = (0..shape.iter().product()).map(|_| random.random::<f32>() - 0.5).map(|value| match (norm, vector) {
                _ if sinks => 3.0 + value,
                (true, _) => 1.0 + value,
                (false, true) => value,
                (false, false) => value * 0.4,
            });
            let (dtype, bytes) = match number % 3 {
                0 => (Dtype::BF16, values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect()),
                1 => (Dtype::F16, values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect()),
                _ => (Dtype::F32, values.flat_map(f32::to_le_bytes).collect()),
            };
            (name.clone(), dtype, shape.clone(), bytes)
        })
        .collect();
    let views = stored.iter().map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// Writes such a file.
pub fn write_weights(path: &Path, shapes: &[(String, Vec<usize>)], seed: u64) {
    std::fs::write(path, weights(shapes, seed)).unwrap();
}

/// Writes a tokenizer whose tokens are `<s>`, `</s>` and the 256 bytes.
pub fn write_tokenizer(folder: &Path) {
    let vocabulary = tokens().into_iter().zip(0..).collect::<tokenizers::models::bpe::Vocab>();
    let model = BPE::builder().vocab_and_merges(vocabulary, Vec::new()).build().unwrap();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(bytes));
    tokenizer.with_decoder(Some(bytes));
    tokenizer.add_special_tokens(["<s>", "</s>"].map(|token| AddedToken::from(token, true))).unwrap();
    tokenizer.save(folder.join("tokenizer.json"), false).unwrap();
}

/// `<s>`, `</s>` and the 256 bytes as GPT-2 writes them.
pub fn tokens() -> Vec<String> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    ["<s>", "</s>"].map(str::to_owned).into_iter().chain(alphabet.into_iter().map(String::from)).collect()
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

/// GGUF's weight formats that are read: name, number in the file, numbers and bytes of a block, and
/// where its 16-bit scales stand.
pub const FORMATS: [(&str, u32, usize, usize, &[usize]); 11] = [
    ("F32", 0, 1, 4, &[]),
    ("F16", 1, 1, 2, &[]),
    ("BF16", 30, 1, 2, &[]),
    ("Q8_0", 8, 32, 34, &[0]),
    ("Q4_0", 2, 32, 18, &[0]),
    ("Q4_1", 3, 32, 20, &[0, 2]),
    ("Q5_0", 6, 32, 22, &[0]),
    ("Q5_1", 7, 32, 24, &[0, 2]),
    ("Q4_K", 12, 256, 144, &[0, 2]),
    ("Q5_K", 13, 256, 176, &[0, 2]),
    ("Q6_K", 14, 256, 210, &[208]),
];

/// Random numbers of a format, small and finite, in its bytes.
pub fn packed(format: usize, count: usize, random: &mut StdRng) -> Vec<u8> {
    let (name, _, elements, bytes, scales) = FORMATS[format];
    let number = |random: &mut StdRng| (random.random::<f32>() - 0.5) * 0.4;
    match name {
        "F32" => (0..count).flat_map(|_| number(random).to_le_bytes()).collect(),
        "F16" => (0..count).flat_map(|_| f16::from_f32(number(random)).to_le_bytes()).collect(),
        "BF16" => (0..count).flat_map(|_| bf16::from_f32(number(random)).to_le_bytes()).collect(),
        _ => {
            let mut all = vec![0; count / elements * bytes];
            random.fill_bytes(&mut all);
            for block in all.chunks_mut(bytes) {
                for &place in scales {
                    // A K block multiplies its scale by a code of 6 or 8 bits.
                    let scale = number(random) / if elements == 256 { 2000.0 } else { 20.0 };
                    block[place..place + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                }
            }
            all
        }
    }
}

/// A GGUF file in the making: values and tensors in the order in which they are added.
#[derive(Clone, Default)]
pub struct GgufFile {
    values: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    alignment: Option<u32>,
}

fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl GgufFile {
    /// Sets a value of any type in place of one of the same name, whose bytes are the caller's
    /// affair.
    pub fn value(mut self, key: &str, kind: u32, bytes: Vec<u8>) -> Self {
        self.values.retain(|(name, ..)| name != key);
        self.values.push((key.to_owned(), kind, bytes));
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.value(key, 4, value.to_le_bytes().to_vec())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.value(key, 6, value.to_le_bytes().to_vec())
    }

    pub fn flag(self, key: &str, value: bool) -> Self {
        self.value(key, 7, vec![u8::from(value)])
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.value(key, 8, counted(value))
    }

    pub fn array(self, key: &str, kind: u32, count: usize, items: Vec<u8>) -> Self {
        self.value(key, 9, [kind.to_le_bytes().as_slice(), &(count as u64).to_le_bytes(), &items].concat())
    }

    pub fn texts<T: AsRef<str>>(self, key: &str, values: &[T]) -> Self {
        self.array(key, 8, values.len(), values.iter().flat_map(|text| counted(text.as_ref())).collect())
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        self.array(key, 5, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        self.array(key, 6, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn alignment(self, alignment: u32) -> Self {
        let mut file = self.u32("general.alignment", alignment);
        file.alignment = Some(alignment);
        file
    }

    pub fn without(mut self, name: &str) -> Self {
        self.values.retain(|(key, ..)| key != name);
        self.tensors.retain(|(tensor, ..)| tensor != name);
        self
    }

    /// Sets a tensor, in place of one of the same name: its shape outermost first, its format by
    /// number.
    pub fn tensor(mut self, name: &str, shape: &[usize], format: u32, bytes: Vec<u8>) -> Self {
        let tensor = (name.to_owned(), shape.iter().rev().map(|&size| size as u64).collect(), format, bytes);
        match self.tensors.iter_mut().find(|(found, ..)| found == name) {
            Some(found) => *found = tensor,
            None => self.tensors.push(tensor),
        }
        self
    }

    /// A tensor of random numbers in one of [`FORMATS`].
    pub fn random(self, name: &str, shape: &[usize], format: usize, random: &mut StdRng) -> Self {
        let bytes = packed(format, shape.iter().product(), random);
        self.tensor(name, shape, FORMATS[format].1, bytes)
    }

    pub fn stored(&self, name: &str) -> &[u8] {
        &self.tensors.iter().find(|(found, ..)| found == name).unwrap().3
    }

    /// The file's bytes, and how many of them are header.
    pub fn parts(&self) -> (Vec<u8>, usize) {
        let alignment = self.alignment.unwrap_or(32) as usize;
        let mut file =
            [b"GGUF".as_slice(), &3u32.to_le_bytes(), &(self.tensors.len() as u64).to_le_bytes(), &(self.values.len() as u64).to_le_bytes()].concat();
        for (key, kind, bytes) in &self.values {
            file.extend([counted(key).as_slice(), &kind.to_le_bytes(), bytes].concat());
        }
        let mut offset = 0usize;
        for (name, dimensions, format, bytes) in &self.tensors {
            file.extend([counted(name).as_slice(), &(dimensions.len() as u32).to_le_bytes()].concat());
            file.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
            file.extend([format.to_le_bytes().as_slice(), &(offset as u64).to_le_bytes()].concat());
            offset = (offset + bytes.len()).next_multiple_of(alignment);
        }
        let header = file.len();
        for (.., bytes) in &self.tensors {
            file.resize(file.len().next_multiple_of(alignment), 0);
            file.extend(bytes);
        }
        (file, header)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.parts().0
    }
}

/// What a tiny GGUF model is made of.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub query_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Rows of whole K blocks.
pub const SIZES: Sizes = Sizes { hidden: 256, intermediate: 512, layers: 3, query_heads: 4, kv_heads: 2, head_dim: 64 };

/// A tiny model as a GGUF file of this architecture, with a tokenizer of single bytes: every matrix
/// in a format drawn anew.
pub fn gguf(architecture: &str, sizes: Sizes, tokens: &[String], seed: u64) -> GgufFile {
    let random = &mut StdRng::seed_from_u64(seed);
    let Sizes { hidden, intermediate, layers, query_heads, kv_heads, head_dim } = sizes;
    let key = |end: &str| format!("{architecture}.{end}");
    let kinds: Vec<i32> = tokens.iter().map(|token| if token.starts_with('<') && token.len() > 2 { 3 } else { 1 }).collect();
    let mut file = GgufFile::default()
        .text("general.architecture", architecture)
        .u32(&key("block_count"), layers as u32)
        .u32(&key("context_length"), 4096)
        .u32(&key("embedding_length"), hidden as u32)
        .u32(&key("feed_forward_length"), intermediate as u32)
        .u32(&key("attention.head_count"), query_heads as u32)
        .u32(&key("attention.head_count_kv"), kv_heads as u32)
        .u32(&key("attention.key_length"), head_dim as u32)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&key("rope.freq_base"), 500_000.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .texts::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1);
    let (queries, keys) = (query_heads * head_dim, kv_heads * head_dim);
    let gemma = architecture.starts_with("gemma");
    let mut matrices = vec![("token_embd".to_owned(), tokens.len(), hidden)];
    if gemma {
        file = file.u32(&key("attention.sliding_window"), 24);
    } else {
        matrices.push(("output".to_owned(), tokens.len(), hidden));
    }
    if architecture == "gemma2" {
        // Low enough to bend scores.
        file = file.f32(&key("attn_logit_softcapping"), 1.5).f32(&key("final_logit_softcapping"), 2.5);
    }
    if architecture == "glm4" {
        file = file.u32(&key("rope.dimension_count"), head_dim as u32 / 2);
    }
    let mut vectors = vec![("output_norm.weight".to_owned(), hidden)];
    for layer in 0..layers {
        let named = |name: &str| format!("blk.{layer}.{name}");
        if architecture == "phi3" {
            matrices.extend([(named("attn_qkv"), queries + 2 * keys, hidden), (named("ffn_up"), 2 * intermediate, hidden)]);
        } else {
            matrices.extend([(named("attn_q"), queries, hidden), (named("attn_k"), keys, hidden), (named("attn_v"), keys, hidden)]);
            if architecture == "glm4" {
                matrices.push((named("ffn_up"), 2 * intermediate, hidden));
            } else {
                matrices.extend([(named("ffn_gate"), intermediate, hidden), (named("ffn_up"), intermediate, hidden)]);
            }
        }
        matrices.extend([(named("attn_output"), hidden, queries), (named("ffn_down"), hidden, intermediate)]);
        vectors.extend([(named("attn_norm.weight"), hidden), (named("ffn_norm.weight"), hidden)]);
        if gemma || architecture == "glm4" {
            vectors.extend([(named("post_attention_norm.weight"), hidden), (named("post_ffw_norm.weight"), hidden)]);
        }
        if matches!(architecture, "qwen2" | "glm4") {
            vectors.extend([(named("attn_q.bias"), queries), (named("attn_k.bias"), keys), (named("attn_v.bias"), keys)]);
        }
        if matches!(architecture, "qwen3" | "gemma3") {
            vectors.extend([(named("attn_q_norm.weight"), head_dim), (named("attn_k_norm.weight"), head_dim)]);
        }
    }
    for (name, rows, columns) in matrices {
        let fitting: Vec<usize> = (0..FORMATS.len()).filter(|&format| columns.is_multiple_of(FORMATS[format].2)).collect();
        let format = fitting[random.random_range(0..fitting.len())];
        file = file.random(&format!("{name}.weight"), &[rows, columns], format, random);
    }
    for (name, columns) in vectors {
        file = file.random(&name, &[columns], 0, random);
    }
    file
}
