//! GGUF files: what is read, that packed numbers unpack as ggml says, that rows and tokens come out
//! as Hugging Face has them, and that no file, however damaged, makes the reader panic, hang or ask
//! for more memory than the file is long. No GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny models")]
mod tiny;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tiny::{FORMATS, GgufFile, SIZES, Sizes};
use wgkv_decoder::{Architecture, Error, Message, Model, Part, RopeScaling, Stored, WeightFormat};

/// Everything that the reader may hold at once beyond some copies of the file: tokenizers have
/// tables and caches of their own.
const SLACK: usize = 6 << 20;
/// How many times the file: it lies in memory, its texts are copied into the tokenizer's tables,
/// and a tensor is unpacked.
const COPIES: usize = 40;
/// No file of a few thousand bytes may take longer, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts what the thread has in use and what it had at most.
struct Counting;

thread_local! {
    static USED: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    USED.set(USED.get() + bytes);
    MOST.set(MOST.get().max(USED.get()));
}

// SAFETY: every call goes to the system's allocator as it came; the counters hold no memory of
// their own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The smallest model there can be, for tests that open it ten thousand times.
const SMALL: Sizes = Sizes { hidden: 32, intermediate: 32, layers: 1, query_heads: 2, kv_heads: 1, head_dim: 4 };

fn small_tokens() -> Vec<String> {
    ["<s>", "</s>", "<unk>", "a", "b", "ab", "Ġ", "Ġa"].map(str::to_owned).to_vec()
}

fn small(architecture: &str, seed: u64) -> GgufFile {
    tiny::gguf(architecture, SMALL, &small_tokens(), seed).texts("tokenizer.ggml.merges", &["a b", "Ġ a"])
}

fn model(architecture: &str, seed: u64) -> GgufFile {
    tiny::gguf(architecture, SIZES, &tiny::tokens(), seed)
}

fn open(file: &GgufFile) -> Result<Model, Error> {
    Model::from_gguf(file.bytes())
}

fn refusal(file: &GgufFile) -> String {
    let error = open(file).err().unwrap();
    // The error's text must not depend on its debug form alone.
    assert!(!error.to_string().is_empty());
    error.to_string()
}

/// ggml's `dequantize_row_*`, written as ggml has them.
fn unpacked(name: &str, block: &[u8]) -> Vec<f32> {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let mut y = vec![0.0; FORMATS.iter().find(|format| format.0 == name).unwrap().2];
    let scale_min = |j: usize, q: &[u8]| {
        if j < 4 { (q[j] & 63, q[j + 4] & 63) } else { ((q[j + 4] & 0xF) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4)) }
    };
    match name {
        "F32" => y[0] = f32::from_le_bytes(block.try_into().unwrap()),
        "F16" => y[0] = half(0),
        "BF16" => y[0] = bf16::from_le_bytes(block.try_into().unwrap()).to_f32(),
        "Q8_0" => (0..32).for_each(|j| y[j] = block[2 + j] as i8 as f32 * half(0)),
        "Q4_0" | "Q4_1" | "Q5_0" | "Q5_1" => {
            let (five, with_min) = (name.starts_with("Q5"), name.ends_with('1'));
            let scales = if with_min { 4 } else { 2 };
            let qh = if five { u32::from_le_bytes(block[scales..scales + 4].try_into().unwrap()) } else { 0 };
            let qs = &block[scales + if five { 4 } else { 0 }..];
            for j in 0..16 {
                let xh_0 = ((qh >> j) << 4) & 0x10;
                let xh_1 = (qh >> (j + 12)) & 0x10;
                let (x0, x1) = ((u32::from(qs[j] & 0x0F) | xh_0) as i32, (u32::from(qs[j] >> 4) | xh_1) as i32);
                let middle = if five { 16 } else { 8 };
                (y[j], y[j + 16]) = if with_min {
                    (x0 as f32 * half(0) + half(2), x1 as f32 * half(0) + half(2))
                } else {
                    ((x0 - middle) as f32 * half(0), (x1 - middle) as f32 * half(0))
                };
            }
        }
        "Q4_K" | "Q5_K" => {
            let five = name == "Q5_K";
            let scales = &block[4..16];
            let (qh, qs) = if five { (&block[16..48], &block[48..]) } else { (&block[16..16], &block[16..]) };
            let mut at = 0;
            let (mut u1, mut u2) = (1u8, 2u8);
            for part in 0..4 {
                let ((sc1, m1), (sc2, m2)) = (scale_min(2 * part, scales), scale_min(2 * part + 1, scales));
                let (d1, min1) = (half(0) * f32::from(sc1), half(2) * f32::from(m1));
                let (d2, min2) = (half(0) * f32::from(sc2), half(2) * f32::from(m2));
                let ql = &qs[32 * part..];
                for l in 0..32 {
                    let more = if five && qh[l] & u1 != 0 { 16 } else { 0 };
                    y[at + l] = d1 * f32::from((ql[l] & 0xF) + more) - min1;
                }
                for l in 0..32 {
                    let more = if five && qh[l] & u2 != 0 { 16 } else { 0 };
                    y[at + 32 + l] = d2 * f32::from((ql[l] >> 4) + more) - min2;
                }
                at += 64;
                if part < 3 {
                    (u1, u2) = (u1 << 2, u2 << 2);
                }
            }
        }
        "Q6_K" => {
            for part in 0..2 {
                let (ql, qh, sc) = (&block[64 * part..], &block[128 + 32 * part..], &block[192 + 8 * part..]);
                for l in 0..32 {
                    let is = l / 16;
                    let codes = [
                        (ql[l] & 0xF) | ((qh[l] & 3) << 4),
                        (ql[l + 32] & 0xF) | (((qh[l] >> 2) & 3) << 4),
                        (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4),
                        (ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4),
                    ];
                    for (group, code) in codes.into_iter().enumerate() {
                        y[128 * part + 32 * group + l] = half(208) * (sc[is + 2 * group] as i8 as f32) * (i32::from(code) - 32) as f32;
                    }
                }
            }
        }
        other => panic!("{other}"),
    }
    y
}

#[test]
fn packed_numbers_are_those_that_ggml_unpacks() {
    let seed = tiny::seed();
    let random = &mut StdRng::seed_from_u64(seed);
    let all = [
        WeightFormat::F32,
        WeightFormat::F16,
        WeightFormat::Bf16,
        WeightFormat::Q8_0,
        WeightFormat::Q4_0,
        WeightFormat::Q4_1,
        WeightFormat::Q5_0,
        WeightFormat::Q5_1,
        WeightFormat::Q4K,
        WeightFormat::Q5K,
        WeightFormat::Q6K,
    ];
    for (format, (name, _, elements, bytes, _)) in all.into_iter().zip(FORMATS) {
        assert_eq!((format.name(), format.block_elements(), format.block_bytes()), (name, elements, bytes));
        assert_eq!(format.row_bytes(2 * elements), Some(2 * bytes));
        assert_eq!(format.row_bytes(elements + 1), if elements == 1 { Some(2 * bytes) } else { None });
        // Any bytes at all, scales that are no numbers included.
        let mut blocks = vec![0; 500 * bytes];
        random.fill_bytes(&mut blocks);
        let wanted: Vec<f32> = blocks.chunks(bytes).flat_map(|block| unpacked(name, block)).collect();
        let got = Stored { rows: 500, columns: elements, format, bytes: blocks }.numbers();
        assert_eq!(got.len(), wanted.len());
        for (place, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
            let same = got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan();
            assert!(same, "{name}: number {place} is {got}, wanted {wanted}. WGKV_SEED={seed}");
        }
    }
}

#[test]
fn every_architecture_is_read() {
    let seed = tiny::seed();
    for (name, architecture) in [
        ("llama", Architecture::Llama),
        ("qwen2", Architecture::Qwen2),
        ("qwen3", Architecture::Qwen3),
        ("smollm3", Architecture::SmolLm3),
        ("phi3", Architecture::Phi3),
        ("gemma2", Architecture::Gemma2),
        ("gemma3", Architecture::Gemma3),
        ("glm4", Architecture::Glm4),
    ] {
        let file = model(name, seed);
        let model = open(&file).unwrap();
        let config = model.config();
        assert_eq!((config.architecture, config.hidden, config.intermediate, config.layers), (architecture, 256, 512, 3));
        let (gemma, glm) = (name.starts_with("gemma"), name == "glm4");
        assert_eq!((config.query_heads, config.kv_heads, config.head_dim, config.rotary, config.vocabulary), (4, 2, 64, if glm { 32 } else { 64 }, 258));
        assert_eq!((config.max_tokens, config.rope_theta, config.norm_epsilon), (4096, 500_000.0, f64::from(1e-5_f32)));
        assert_eq!((config.begin, config.end.as_slice(), config.add_bos, config.tied), (Some(0), [1].as_slice(), false, gemma));
        let (biased, normed) = (matches!(name, "qwen2" | "glm4"), matches!(name, "qwen3" | "gemma3"));
        assert_eq!((config.attention_bias, config.head_norm, config.branch_norms), (biased, normed, gemma || glm));
        assert!(config.rope_layers.is_none() && !config.output_bias && !config.mlp_bias);
        for layer in 0..3 {
            assert_eq!((model.has(Part::KeyBias(layer)), model.has(Part::KeyNorm(layer)), model.has(Part::MlpOutNorm(layer))), (biased, normed, gemma || glm));
            let stored = model.tensor(Part::Key(layer)).unwrap();
            assert_eq!((stored.rows, stored.columns), (128, 256));
            assert!(stored.numbers().iter().all(|number| number.is_finite()));
        }
        assert!(model.chat().is_none());
    }
    // What Gemma's files leave to their readers: which layers slide, and the scale of scores, which
    // for the largest models is that of the stream's width.
    let gemma = |name: &str, layers| {
        let file = tiny::gguf(name, Sizes { layers, ..SMALL }, &small_tokens(), seed).texts("tokenizer.ggml.merges", &["a b", "Ġ a"]);
        open(&file.f32("gemma3.rope.freq_base_swa", 5000.0)).unwrap().config().clone()
    };
    let (gemma2, gemma3) = (gemma("gemma2", 3), gemma("gemma3", 7));
    assert_eq!((gemma2.sliding_layers.as_deref(), gemma2.sliding_theta), (Some([true, false, true].as_slice()), None));
    assert_eq!((gemma2.score_cap, gemma2.logit_cap, gemma2.embedding_scale), (Some(1.5), Some(2.5), 32_f64.sqrt()));
    assert_eq!((gemma3.sliding_window, gemma3.sliding_theta), (Some(24), Some(5000.0)));
    assert_eq!((gemma3.sliding_layers.as_deref(), gemma3.logit_cap), (Some([true, true, true, true, true, false, true].as_slice()), None));
    assert_eq!(["gemma2", "gemma3"].map(|name| gemma(name, 2).score_scale), [0.5; 2]);
    assert_eq!([("gemma2", 46), ("gemma3", 62)].map(|(name, layers)| gemma(name, layers).score_scale), [0.25; 2]);
    // Four layers, of which the last does not rotate.
    let file = tiny::gguf("smollm3", Sizes { layers: 4, ..SMALL }, &small_tokens(), seed);
    assert_eq!(open(&file).unwrap().config().rope_layers.as_deref(), Some([true, true, true, false].as_slice()));
}

#[test]
fn permuted_rows_are_put_back() {
    let seed = tiny::seed();
    for name in ["llama", "smollm3", "qwen3", "glm4"] {
        let mut file = model(name, seed);
        let numbers: Vec<u8> = (0..256_u16).flat_map(|number| f32::from(number).to_le_bytes()).collect();
        if name == "llama" {
            for (part, rows) in [("q", 256), ("k", 128), ("v", 128)] {
                file = file.tensor(&format!("blk.1.attn_{part}.bias"), &[rows], 0, numbers[..4 * rows].to_vec());
                for layer in [0, 2] {
                    file = file.tensor(&format!("blk.{layer}.attn_{part}.bias"), &[rows], 0, numbers[..4 * rows].to_vec());
                }
            }
        }
        let model = open(&file).unwrap();
        for (part, stored_as, permuted) in [(Part::Query(1), "attn_q", true), (Part::Key(1), "attn_k", true), (Part::Value(1), "attn_v", false)] {
            let (got, raw) = (model.tensor(part).unwrap(), file.stored(&format!("blk.1.{stored_as}.weight")));
            let row_bytes = got.format.row_bytes(256).unwrap();
            for row in 0..got.rows {
                // Channel 2 i + s of the file is channel i of half s.
                // Of GLM-4's heads only the first 32 channels rotate.
                let (head, channel, rotary) = (row / 64, row % 64, if name == "glm4" { 32 } else { 64 });
                let (half, pair) = (channel / (rotary / 2), channel % (rotary / 2));
                let from = if permuted && name != "qwen3" && channel < rotary { 64 * head + 2 * pair + half } else { row };
                let (got, wanted) = (&got.bytes[row * row_bytes..][..row_bytes], &raw[from * row_bytes..][..row_bytes]);
                assert!(got == wanted, "{name}: row {row} of {part:?}. WGKV_SEED={seed}");
            }
        }
        if name == "llama" {
            let bias = model.tensor(Part::KeyBias(1)).unwrap();
            assert_eq!((bias.rows, bias.columns), (1, 128));
            let wanted: Vec<f32> = (0..128_u8).map(|row| f32::from(64 * (row / 64) + 2 * (row % 32) + row % 64 / 32)).collect();
            assert_eq!(bias.numbers(), wanted);
            assert_eq!(model.tensor(Part::ValueBias(1)).unwrap().numbers()[..3], [0.0, 1.0, 2.0]);
        }
    }
}

#[test]
fn fused_tensors_are_taken_apart() {
    let seed = tiny::seed();
    let file = model("phi3", seed);
    let model = open(&file).unwrap();
    let bytes = |parts: &[Part]| parts.iter().flat_map(|&part| model.tensor(part).unwrap().bytes).collect::<Vec<u8>>();
    assert!(bytes(&[Part::Query(2), Part::Key(2), Part::Value(2)]) == file.stored("blk.2.attn_qkv.weight"), "WGKV_SEED={seed}");
    assert!(bytes(&[Part::Gate(2), Part::Up(2)]) == file.stored("blk.2.ffn_up.weight"), "WGKV_SEED={seed}");
    let file = self::model("glm4", seed);
    let model = open(&file).unwrap();
    let halves = [Part::Gate(2), Part::Up(2)].map(|part| model.tensor(part).unwrap().bytes).concat();
    assert!(halves == file.stored("blk.2.ffn_up.weight"), "WGKV_SEED={seed}");
}

#[test]
fn rotation_is_stretched_as_the_file_says() {
    let file = || small("llama", 1);
    let numbers = |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let plain = open(&file()).unwrap().config().frequencies();
    assert_eq!(plain, [1.0, 500_000_f64.powf(-0.5)]);
    // Llama 3's divisors are a tensor.
    let config = open(&file().tensor("rope_freqs.weight", &[2], 0, numbers(&[1.0, 8.0]))).unwrap().config().clone();
    assert_eq!(config.frequencies(), [1.0, plain[1] / 8.0]);
    assert_eq!(config.shape().rope.frequencies(), config.frequencies());
    let linear = file().text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(open(&linear).unwrap().config().frequencies(), [0.25, plain[1] / 4.0]);
    let yarn = linear.text("llama.rope.scaling.type", "yarn").u32("llama.rope.scaling.original_context_length", 1024);
    let config = open(&yarn).unwrap().config().clone();
    assert_eq!(config.rope_scaling, Some(RopeScaling::Yarn { factor: 4.0, beta_fast: 32.0, beta_slow: 1.0, original_max_tokens: 1024, truncate: true }));
    assert!((config.attention_factor - 1.138_629_436).abs() < 1e-8);
    // Phi-3's two sets, on half of each head's channels.
    let phi = small("phi3", 1).u32("phi3.rope.dimension_count", 2).u32("phi3.rope.scaling.original_context_length", 1024);
    let phi = phi.tensor("rope_factors_long.weight", &[1], 0, numbers(&[4.0])).f32("phi3.rope.scaling.attn_factor", 1.25);
    assert_eq!(refusal(&phi), "GGUF: rope_factors_short.weight is missing");
    let config = open(&phi.tensor("rope_factors_short.weight", &[1], 0, numbers(&[2.0]))).unwrap().config().clone();
    assert_eq!((config.rotary, config.frequencies(), config.frequencies_for(1025), config.attention_factor), (2, vec![0.5], vec![0.25], 1.25));
    let window = small("phi3", 1).u32("phi3.attention.sliding_window", 2047);
    assert_eq!(open(&window).unwrap().config().sliding_window, Some(2047));
}

#[test]
fn what_is_not_run_is_refused_by_name() {
    let file = || small("llama", 1);
    let numbers = |count: usize| vec![0; 4 * count];
    let cases: [(GgufFile, &[&str]); 31] = [
        (file().text("general.architecture", "gemma4"), &["\"gemma4\"", "llama, qwen2, qwen3, smollm3, phi3, gemma2, gemma3, glm4"]),
        (small("glm4", 1).i32s("glm4.rope.dimension_sections", &[1, 1]), &["glm4.rope.dimension_sections = given", "none"]),
        (file().without("general.architecture"), &["GGUF: general.architecture is missing"]),
        (file().without("llama.block_count"), &["GGUF: llama.block_count is missing"]),
        (file().u32("llama.block_count", 4_000_000_000), &["llama.block_count = 4000000000", "4096"]),
        (file().u32("llama.block_count", 2), &["tensor blk.1.attn_norm.weight is missing: wanted shape [32]"]),
        (file().text("llama.block_count", "one"), &["llama.block_count = \"one\"", "a number"]),
        (file().i32s("llama.attention.head_count_kv", &[1, 2]), &["llama.attention.head_count_kv = 2 numbers", "the same for every layer"]),
        (file().u32("llama.attention.head_count_kv", 3), &["llama.attention.head_count_kv = 3", "divisor of llama.attention.head_count"]),
        (file().u32("llama.attention.value_length", 8), &["llama.attention.value_length = 8", "4, as for keys"]),
        (file().u32("llama.rope.dimension_count", 2), &["llama.rope.dimension_count = 2", "the whole head"]),
        (file().f32("llama.rope.freq_base", f32::NAN), &["llama.rope.freq_base = NaN", "finite"]),
        (file().u32("llama.expert_count", 8), &["llama.expert_count = 8", "no experts"]),
        (file().text("llama.rope.scaling.type", "longrope"), &["llama.rope.scaling.type = longrope", "yarn, linear or none"]),
        (file().tensor("rope_freqs.weight", &[3], 0, numbers(3)), &["tensor rope_freqs.weight has shape [3], wanted [2]"]),
        (file().tensor("rope_freqs.weight", &[2], 0, numbers(2)), &["rope_freqs.weight = 2 numbers", "2 positive numbers"]),
        (file().without("blk.0.attn_q.weight"), &["tensor blk.0.attn_q.weight is missing: wanted shape [8, 32], looked through 1 file(s)"]),
        (file().tensor("blk.0.attn_q.weight", &[32, 8], 0, numbers(256)), &["tensor blk.0.attn_q.weight has shape [32, 8], wanted [8, 32]"]),
        (file().tensor("blk.0.attn_q.weight", &[2, 4, 32], 0, numbers(256)), &["has shape [2, 4, 32]"]),
        (file().tensor("blk.0.attn_q.weight", &[8, 32], 17, numbers(256)), &["tensor blk.0.attn_q.weight is stored as IQ2_XS", "Q4_K"]),
        (file().tensor("blk.0.attn_q.weight", &[8, 32], 77, numbers(256)), &["tensor blk.0.attn_q.weight is stored as type 77"]),
        (file().tensor("blk.0.attn_q.weight", &[8, 32], 12, numbers(256)), &["tensor blk.0.attn_q.weight", "whole blocks of 256 Q4_K numbers", "32"]),
        (file().text("tokenizer.ggml.model", "bert"), &["tokenizer.ggml.model = bert", "gpt2 or llama"]),
        (file().text("tokenizer.ggml.pre", "viking"), &["tokenizer.ggml.pre = viking", "llama-bpe"]),
        (file().texts("tokenizer.ggml.merges", &["a", "b"]), &["tokenizer.ggml.merges = \"a\" as number 0", "two tokens that make a third"]),
        (file().texts("tokenizer.ggml.merges", &["b a"]), &["tokenizer.ggml.merges = \"b a\" as number 0"]),
        (file().texts("tokenizer.ggml.tokens", &["a", "b", "a"]).without("tokenizer.ggml.token_type"), &["tokenizer.ggml.tokens", "\"a\" as token 0 and 2"]),
        (file().texts("tokenizer.ggml.tokens", &["a"; 9]).without("tokenizer.ggml.token_type"), &["9 tokens", "at most 8, the rows of token_embd.weight"]),
        (file().i32s("tokenizer.ggml.token_type", &[1]), &["tokenizer.ggml.token_type = 1 numbers", "8, one a token"]),
        (file().text("tokenizer.ggml.model", "llama"), &["tokenizer.ggml.scores is missing"]),
        (file().u32("tokenizer.ggml.add_bos_token", 1), &["tokenizer.ggml.add_bos_token = 1", "true or false"]),
    ];
    for (file, words) in cases {
        let error = refusal(&file);
        assert!(words.iter().all(|word| error.contains(word)), "wanted {words:?}: {error}");
    }
    assert!(open(&file()).is_ok());
}

#[test]
fn a_file_that_is_no_gguf_is_refused_with_what_it_has() {
    let good = small("llama", 1);
    let change = |place: usize, bytes: &[u8]| {
        let mut file = good.bytes();
        file[place..place + bytes.len()].copy_from_slice(bytes);
        Model::from_gguf(file).err().unwrap().to_string()
    };
    let (whole, header) = good.parts();
    // Where the first tensor's description begins, from the end of the header: the last one's
    // offset is its last word.
    let end = header;
    for (error, words) in [
        (Model::from_gguf(Vec::new()).err().unwrap().to_string(), ["wanted 4 bytes at 0", "found 0"]),
        (change(0, b"GGML"), ["start of the file: wanted GGUF", "\"GGML\""]),
        (change(4, &1u32.to_le_bytes()), ["version: wanted 2 or 3", "found 1"]),
        (change(4, &3u32.to_be_bytes()), ["version", "big-endian"]),
        (change(16, &u64::MAX.to_le_bytes()), ["key ", "of 18446744073709551615"]),
        (change(8, &(1u64 << 60).to_le_bytes()), ["tensor ", "wanted 1 to 4 dimensions"]),
        (change(24, &u64::MAX.to_le_bytes()), ["key 0 of ", "wanted 18446744073709551615 bytes"]),
        (change(32, b"\xff"), ["key 0 of", "UTF-8"]),
        (change(end - 8, &(1u64 << 40).to_le_bytes()), ["wanted 128 bytes at", "1099511627776"]),
        (change(end - 8, &(u64::MAX - 31).to_le_bytes()), ["wanted 128 bytes at", "18446744073709551584"]),
        (change(end - 8, &33u64.to_le_bytes()), ["an offset that is a multiple of 32", "found 33"]),
        (change(end - 8, &0u64.to_le_bytes()), ["data of its own from", "a start at"]),
        (change(end - 20, &0u64.to_le_bytes()), ["a dimension of 1 or more", "found 0"]),
        (change(end - 20, &(u64::MAX / 4).to_le_bytes()), ["wanted 18446744073709551612 bytes", "in the whole file"]),
        (change(end - 24, &5u32.to_le_bytes()), ["1 to 4 dimensions", "found 5"]),
        (refusal(&good.clone().alignment(48)), ["general.alignment", "a power of two"]),
        (refusal(&good.clone().text("general.alignment", "32")), ["general.alignment", "\"32\""]),
        (refusal(&good.clone().array("general.tags", 9, 1, vec![0; 12])), ["general.tags", "an array of arrays"]),
        (refusal(&good.clone().array("general.tags", 8, 1 << 50, vec![0; 12])), ["general.tags", "9007199254740992 bytes"]),
        (refusal(&good.clone().array("general.tags", 4, 1 << 50, vec![0; 12])), ["general.tags", "4503599627370496 bytes"]),
        (refusal(&good.clone().value("general.tags", 13, vec![])), ["general.tags", "a type from 0 to 12"]),
    ] {
        assert!(words.iter().all(|word| error.contains(word)), "wanted {words:?}: {error}");
    }
    // Two of one name: the writer would not, so the second key's name is changed to the first's,
    // and one tensor's to another's.
    let twice = good.clone().u32("llama.alock_count", 1).bytes();
    let place = twice.windows(17).position(|window| window == b"llama.alock_count").unwrap();
    let mut file = twice;
    file[place + 6] = b'b';
    assert!(Model::from_gguf(file).err().unwrap().to_string().contains("llama.block_count: wanted one value, found two"));
    let mut file = whole.clone();
    let place = file.windows(19).position(|window| window == b"blk.0.attn_q.weight").unwrap();
    file[place + 11] = b'k';
    assert!(Model::from_gguf(file).err().unwrap().to_string().contains("tensor blk.0.attn_k.weight: wanted one tensor of this name, found two"));
    // Other alignments, and version 2, are read.
    for alignment in [1, 8, 4096] {
        assert!(open(&good.clone().alignment(alignment)).is_ok(), "alignment {alignment}");
    }
    let mut file = whole;
    file[4] = 2;
    assert!(Model::from_gguf(file).is_ok());
}

/// Opens a file, uses whatever comes of it, and asserts that this ended in time and in little
/// memory.
fn survive(file: Vec<u8>, what: &dyn Fn() -> String) -> bool {
    let allowed = SLACK + COPIES * file.len();
    USED.set(0);
    MOST.set(0);
    let start = Instant::now();
    let survived = std::panic::catch_unwind(|| {
        let Ok(model) = Model::from_gguf(file) else { return false };
        let config = model.config();
        assert!(config.frequencies().iter().all(|frequency| frequency.is_finite()));
        let _ = (model.hash().unwrap(), config.parameters(), config.shape());
        for part in [Part::Embedding, Part::Head, Part::Query(0), Part::Key(0), Part::Value(0), Part::Gate(0), Part::Down(0), Part::KeyBias(0)] {
            if model.has(part) {
                let stored = model.tensor(part).unwrap();
                assert_eq!(stored.numbers().len(), stored.rows * stored.columns);
            }
        }
        let text = model.text();
        let ids = text.encode("ab a <s>").and_then(|_| text.encode_with_special("ab<s>a</s>"));
        let _ = ids.and_then(|ids| text.decode(&ids));
        if let Some(chat) = model.chat() {
            let _ = chat.render(&[Message { role: "user", content: "hi" }], true, "<s>", "</s>");
        }
        true
    });
    let most = MOST.get();
    assert!(start.elapsed() < PATIENCE, "{} took {:?}", what(), start.elapsed());
    assert!(most < allowed as isize, "{} took {most} bytes, {allowed} are allowed", what());
    survived.unwrap_or_else(|_| panic!("{} made it panic", what()))
}

/// The kinds of file whose headers differ most.
fn victims(seed: u64) -> [GgufFile; 3] {
    let scores: Vec<f32> = (0..8).map(|token| -(token as f32)).collect();
    let pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁a"];
    let sentencepiece = small("llama", seed)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &pieces)
        .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 1, 1]);
    let sentencepiece = sentencepiece.f32s("tokenizer.ggml.scores", &scores).without("output.weight").without("tokenizer.ggml.merges");
    let bytes =
        small("qwen2", seed).text("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}").flag("tokenizer.ggml.add_bos_token", true);
    let phi = small("phi3", seed).tensor("rope_factors_long.weight", &[2], 0, vec![63; 8]).tensor("rope_factors_short.weight", &[2], 0, vec![63; 8]);
    [sentencepiece.alignment(16), bytes, phi]
}

#[test]
fn damaged_files_neither_panic_nor_hang_nor_eat_memory() {
    let seed = tiny::seed();
    let random = &mut StdRng::seed_from_u64(seed);
    for (number, victim) in victims(seed).into_iter().enumerate() {
        let (whole, header) = victim.parts();
        let changed = |place: usize, bytes: &[u8]| {
            let mut file = whole.clone();
            let end = whole.len().min(place + bytes.len());
            file[place..end].copy_from_slice(&bytes[..end - place]);
            survive(file, &|| format!("file {number}, {bytes:?} at {place}, WGKV_SEED={seed}"))
        };
        assert!(survive(whole.clone(), &|| format!("file {number} as it is")));
        for place in 0..header {
            changed(place, &[whole[place] ^ 1 << random.random_range(0..8)]);
            changed(place, &[random.random()]);
            // A length or a count of eight bytes that is far too large, or just too large.
            let huge = [u64::MAX, 1 << 63, 1 << 40, (whole.len() - place) as u64, u64::from(u32::MAX)][random.random_range(0..5)];
            changed(place, &huge.to_le_bytes());
        }
        for _ in 0..300 {
            let (place, mut bytes) = (random.random_range(0..whole.len()), [0; 16]);
            random.fill_bytes(&mut bytes);
            changed(place, &bytes[..random.random_range(1..16)]);
        }
        for kept in 0..whole.len() {
            let opened = survive(whole[..kept].to_vec(), &|| format!("file {number}, {kept} bytes kept, WGKV_SEED={seed}"));
            assert!(!opened, "file {number} with {kept} of {} bytes", whole.len());
        }
    }
}

#[test]
fn a_model_in_a_file_is_the_one_in_memory() {
    let seed = tiny::seed();
    let file = model("llama", seed);
    let path = tiny::folder("gguf").join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let (on_disk, memory) = (Model::open(&path).unwrap(), open(&file).unwrap());
    assert_eq!(on_disk.config(), memory.config());
    assert_eq!(on_disk.tensor(Part::Query(1)).unwrap(), memory.tensor(Part::Query(1)).unwrap());
    let hash = on_disk.hash().unwrap();
    assert_eq!((hash.len(), &hash), (64, &memory.hash().unwrap()));
    // What is no part of the model leaves the hash as it is, and all else changes it.
    let same = file.clone().text("general.name", "other").flag("tokenizer.ggml.add_bos_token", true).alignment(64);
    assert_eq!(open(&same).unwrap().hash().unwrap(), hash);
    let mut other = file.stored("blk.1.ffn_down.weight").to_vec();
    let last = other.len() - 1;
    other[last] ^= 1;
    let format = FORMATS.iter().find(|format| format.0 == memory.tensor(Part::Down(1)).unwrap().format.name()).unwrap().1;
    for changed in [file.clone().f32("llama.rope.freq_base", 10_000.0), file.tensor("blk.1.ffn_down.weight", &[256, 512], format, other)] {
        assert_ne!(open(&changed).unwrap().hash().unwrap(), hash);
    }
    std::fs::write(&path, memory.hash().unwrap()).unwrap();
    assert!(matches!(Model::open(&path).err().unwrap(), Error::Gguf { path: named, .. } if named == path));
}

#[test]
fn bytes_are_merged_in_the_order_of_the_list() {
    // Merging "b c" first leaves "a" alone.
    let mut tokens = tiny::tokens();
    tokens.extend(["ab", "bc", "Ġa", "<|im_start|>", "12"].map(str::to_owned));
    let base = tiny::gguf("llama", SMALL, &tokens, 1).texts("tokenizer.ggml.merges", &["b c", "a b", "Ġ a", "1 2"]);
    let with = |pre: &str| open(&base.clone().text("tokenizer.ggml.pre", pre)).unwrap();
    let words = |model: &Model, text: &str| model.text().encode(text).unwrap().iter().map(|&id| model.text().token(id).unwrap()).collect::<Vec<String>>();
    let model = with("gpt-2");
    assert_eq!(words(&model, "abc ab"), ["a", "bc", "Ġ", "ab"]);
    assert_eq!(words(&model, "12"), ["12"]);
    // Digit by digit, or up to three of them together; a word that is a token needs no merges to
    // Llama 3.
    assert_eq!(words(&with("smollm"), "12"), ["1", "2"]);
    assert_eq!(words(&with("qwen2"), "12"), ["1", "2"]);
    assert_eq!(words(&with("llama-bpe"), "12 1212"), ["12", "Ġ", "12", "1", "2"]);
    // Composed to one character of two bytes, or left as three bytes.
    assert_eq!((with("qwen2").text().encode("e\u{301}").unwrap().len(), with("llama-bpe").text().encode("e\u{301}").unwrap().len()), (2, 3));
    let text = "Grüße, 世界!\n\tand <|im_start|> is only text";
    for pre in ["default", "gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "dbrx", "smaug-bpe"] {
        let model = with(pre);
        assert_eq!(model.text().decode(&model.text().encode(text).unwrap()).unwrap(), text, "{pre}");
    }
    let special = model.text().id("<|im_start|>").unwrap();
    assert!(!model.text().encode(text).unwrap().contains(&special));
    assert_eq!(model.text().encode_with_special("<|im_start|>a").unwrap(), [special, model.text().id("a").unwrap()]);
    // Tokens that end an answer are known by their text too, and a user's own token is found in any
    // text.
    let kinds: Vec<i32> = tokens.iter().map(|token| if token == "bc" { 4 } else { 1 }).collect();
    let model = open(&base.i32s("tokenizer.ggml.token_type", &kinds)).unwrap();
    assert_eq!(words(&model, "abcab"), ["a", "bc", "ab"]);
}

#[test]
fn pieces_are_merged_in_the_order_of_their_scores() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let bytes = tokens.len();
    tokens.extend(["▁", "a", "b", "c", "ab", "bc", "▁a", "▁abc", "abc"].map(str::to_owned));
    let kinds: Vec<i32> = (0..tokens.len()).map(|token| [2, 3, 3].get(token).copied().unwrap_or(if token < bytes { 6 } else { 1 })).collect();
    // "bc" before "ab".
    let mut scores = vec![0.0; tokens.len()];
    for (place, score) in [-10.0, -11.0, -12.0, -13.0, -3.0, -1.0, -4.0, -6.0, -5.0].into_iter().enumerate() {
        scores[bytes + place] = score;
    }
    let file = tiny::gguf("llama", SMALL, &tokens, 1).text("tokenizer.ggml.model", "llama").i32s("tokenizer.ggml.token_type", &kinds);
    let file = file.f32s("tokenizer.ggml.scores", &scores).without("tokenizer.ggml.merges").without("tokenizer.ggml.bos_token_id");
    let words = |file: &GgufFile, text: &str| {
        let model = open(file).unwrap();
        model.text().encode(text).unwrap().iter().map(|&id| model.text().token(id).unwrap()).collect::<Vec<String>>()
    };
    assert_eq!(words(&file, "bc"), ["▁", "bc"]);
    assert_eq!(words(&file, "ab c"), ["▁", "ab", "▁", "c"]);
    assert_eq!(words(&file, "abc"), ["▁abc"]);
    // What is no token is bytes.
    assert_eq!(words(&file, "é"), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(words(&file.clone().flag("tokenizer.ggml.add_space_prefix", false), "abc é"), ["abc", "▁", "<0xC3>", "<0xA9>"]);
    let model = open(&file).unwrap();
    let text = "ab é\n cab";
    assert_eq!(model.text().decode(&model.text().encode(text).unwrap()).unwrap(), text);
    assert_eq!((model.config().begin, model.config().add_bos), (Some(1), true));
    assert_eq!(model.text().encode("</s>").unwrap().len(), 5);
    assert_eq!(model.text().encode_with_special("</s>").unwrap(), [2]);
}
