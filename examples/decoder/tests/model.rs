//! Whole models against f64: every architecture, prompts and single tokens, several sequences.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::sync::LazyLock;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use wgkv::layers::{LayeredCache, LayeredPlan};
use wgkv::{Cache, Capability, Capacity, Chunk, Format, Gpu, Plan, Protection, Rope, Sequence};
use wgkv_decoder::{Decoder, KvCache, LayerGroup, Model, Recorder, Sampling, Scored, Session, Work, reference};

static GPU: LazyLock<Gpu> = LazyLock::new(|| pollster::block_on(Gpu::request()).unwrap());

/// Share of the scores' root mean square that the error's may be. The cache rounds keys and values
/// to halves (2^-11 of each), products of many rows by cooperative matrices also rows and weights;
/// three layers of random weights, of which each feeds on the one before, make a few times that.
const LOGIT_ERROR: f64 = 1e-2;

fn cache(gpu: &Gpu, decoder: &Decoder, sequences: u32, tokens: u32) -> Cache {
    let mut builder = Plan::builder(decoder.config().shape(), Format::f16()).protection(Protection::NONE).capacity(Capacity::tokens(sequences, tokens));
    if let Some(window) = decoder.config().sliding_window {
        builder = builder.sliding_window(window);
    }
    let plan = builder.build(gpu.capability()).unwrap();
    pollster::block_on(gpu.prepare(&plan)).unwrap();
    Cache::new(gpu, plan).unwrap()
}

/// The plan of a cache whose layers are grouped by what the model asks of them, for steps of at most
/// `chunk` tokens.
fn layered_plan(gpu: &Gpu, decoder: &Decoder, capacity: Capacity, chunk: u32) -> LayeredPlan {
    plan_of_groups(gpu, decoder, decoder.config().groups_for(0), capacity, chunk)
}

fn plan_of_groups(gpu: &Gpu, decoder: &Decoder, groups: Vec<LayerGroup>, capacity: Capacity, chunk: u32) -> LayeredPlan {
    let mut builder = LayeredPlan::builder().capacity(capacity).chunk(chunk);
    for group in groups {
        let planned = decoder.planned(&group, Format::f16()).protection(Protection::NONE);
        builder = builder.group(group.layers, planned);
    }
    builder.build(gpu.capability()).unwrap()
}

fn layered_cache(gpu: &Gpu, decoder: &Decoder, sequences: u32, tokens: u32) -> LayeredCache {
    let cache = LayeredCache::new(gpu, layered_plan(gpu, decoder, Capacity::tokens(sequences, tokens), 64)).unwrap();
    pollster::block_on(cache.prepare()).unwrap();
    cache
}

fn scores(decoder: &Decoder, work: &Work, rows: usize) -> Vec<f32> {
    let words = (rows * decoder.config().vocabulary) as u64;
    bytemuck::cast_vec(pollster::block_on(decoder.gpu().read(work.scores(), 0, words)).unwrap())
}

fn expect(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    let size = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let error = size(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - b)) / size(&mut want.iter().copied());
    println!("{what}: {error:e}");
    assert!(error < LOGIT_ERROR, "{what}: off by {error:e} of the scores' root mean square");
}

fn check(gpu: &Gpu, model: &Model, name: &str, random: &mut StdRng) {
    let decoder = pollster::block_on(Decoder::load(gpu, model)).unwrap();
    check_with(&decoder, model, cache(gpu, &decoder, 2, 128), name, random);
}

/// The same through a cache of groups of layers.
fn check_layered(gpu: &Gpu, model: &Model, name: &str, random: &mut StdRng) {
    let decoder = pollster::block_on(Decoder::load(gpu, model)).unwrap();
    check_with(&decoder, model, layered_cache(gpu, &decoder, 2, 128), name, random);
}

/// Steps of two sequences: chunks of many rows, of a few and of one.
fn check_with<C: KvCache>(decoder: &Decoder, model: &Model, mut cache: C, name: &str, random: &mut StdRng) {
    let gpu = decoder.gpu();
    let vocabulary = decoder.config().vocabulary;
    let texts: [Vec<u32>; 2] = std::array::from_fn(|_| (0..70).map(|_| random.random_range(0..vocabulary as u32)).collect());
    let wanted = texts.each_ref().map(|text| reference::logits(model, text).unwrap());
    let sequences: [Sequence; 2] = std::array::from_fn(|_| cache.begin().unwrap());
    let mut work = pollster::block_on(decoder.work(80, 16)).unwrap();
    let mut at = [0_usize; 2];
    for counts in [[40, 7], [3, 1], [1, 1], [1, 0], [20, 30]] {
        let chunks: Vec<Chunk> = (0..2).filter(|n| counts[*n] > 0).map(|n| Chunk { sequence: sequences[n], tokens: counts[n] as u32 }).collect();
        let ids: Vec<u32> = (0..2).flat_map(|n| texts[n][at[n]..at[n] + counts[n]].to_vec()).collect();
        work.write_ids(&ids).unwrap();
        let step = decoder.step(&mut work, &mut cache, &chunks).unwrap();
        let mut recorder = Recorder::new(gpu, "test");
        decoder.forward(&mut recorder, &mut work, &cache, &step, None).unwrap();
        decoder.score(&mut recorder, &mut work, Scored::Last).unwrap();
        recorder.submit();
        let got = scores(decoder, &work, chunks.len());
        let mut rows = got.chunks(vocabulary);
        for n in (0..2).filter(|n| counts[*n] > 0) {
            at[n] += counts[n];
            expect(&format!("{name}, {counts:?}, sequence {n}"), rows.next().unwrap(), &wanted[n][(at[n] - 1) * vocabulary..at[n] * vocabulary]);
        }
        // All rows of the first chunk, as perplexity asks for them.
        if counts[0] > 8 {
            let (first, count) = (at[0] - counts[0], 12);
            decoder.score(&mut recorder, &mut work, Scored::Rows(2..2 + count)).unwrap();
            recorder.submit();
            let want = &wanted[0][(first + 2) * vocabulary..(first + 2 + count as usize) * vocabulary];
            expect(&format!("{name}, rows"), &scores(decoder, &work, count as usize), want);
        }
    }
}

#[test]
fn every_architecture_scores_as_in_f64() {
    let seed = tiny::seed();
    let random = &mut StdRng::seed_from_u64(seed);
    let folder = tiny::folder("scores");
    tiny::write_model(&folder);
    check(&GPU, &Model::open(&folder).unwrap(), "folder", random);
    for architecture in ["llama", "qwen2", "qwen3", "smollm3", "phi3", "glm4"] {
        let file = tiny::gguf(architecture, tiny::SIZES, &tiny::tokens(), random.random());
        check(&GPU, &Model::from_gguf(file.bytes()).unwrap(), architecture, random);
    }
    // Without subgroups, cooperative matrices and f16, as browsers have it.
    let portable = GPU.pretend(Capability { subgroups: None, matrices: false, halves: false, ..*GPU.capability() });
    let file = tiny::gguf("qwen3", tiny::SIZES, &tiny::tokens(), random.random());
    check(&portable, &Model::from_gguf(file.bytes()).unwrap(), "portable", random);
}

#[test]
fn a_sliding_window_and_yarn_score_as_in_f64() {
    let random = &mut StdRng::seed_from_u64(tiny::seed());
    let folder = tiny::folder("window");
    tiny::write_model(&folder);
    let mut config = tiny::config();
    config["sliding_window"] = json!(24);
    config["architectures"] = json!(["MistralForCausalLM"]);
    config["rope_scaling"] = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 });
    tiny::write_config(&folder, &config);
    let model = Model::open(&folder).unwrap();
    assert!(model.config().attention_factor > 1.0);
    check(&GPU, &model, "window and yarn", random);
}

/// A model of 64-channel heads and a vocabulary of bytes, with the settings of an architecture.
fn sized(architecture: &str, layers: usize, more: Value) -> Value {
    let mut config = json!({
        "architectures": [architecture],
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 258,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 0,
        "eos_token_id": 1
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// Gemma 3's shape: five layers that see a window, by a rotary base of their own, to one that sees
/// everything.
fn gemma3(layers: usize, window: u32) -> Value {
    let more = json!({
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 48,
        "sliding_window": window,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": { "rope_type": "linear", "factor": 8.0 }
    });
    sized("Gemma3ForCausalLM", layers, more)
}

fn model_of(folder: &str, config: &Value, random: &mut StdRng) -> Model {
    let folder = tiny::folder(folder);
    tiny::write_model_of(&folder, config, random.random());
    Model::open(&folder).unwrap()
}

#[test]
fn layers_that_differ_score_as_in_f64() {
    let random = &mut StdRng::seed_from_u64(tiny::seed());
    // Caps that bend scores, a scale of its own, and windows on alternate layers.
    let gemma2 = sized(
        "Gemma2ForCausalLM",
        3,
        json!({
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 40,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.5,
            "sliding_window": 24
        }),
    );
    check_layered(&GPU, &model_of("gemma2", &gemma2, random), "Gemma 2", random);
    check_layered(&GPU, &model_of("gemma3", &gemma3(7, 24), random), "Gemma 3", random);
    let glm4 = sized("Glm4ForCausalLM", 3, json!({ "attention_bias": true, "partial_rotary_factor": 0.5, "tie_word_embeddings": false }));
    check_layered(&GPU, &model_of("glm4", &glm4, random), "GLM-4", random);
    let yarn = json!({ "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false, "original_max_position_embeddings": 4096 });
    let more = json!({ "attention_bias": true, "sliding_window": 24, "rope_theta": 150_000, "rope_scaling": yarn, "tie_word_embeddings": false });
    check_layered(&GPU, &model_of("gpt-oss", &sized("GptOssForCausalLM", 3, more), random), "gpt-oss's attention", random);
    for architecture in ["smollm3", "gemma2", "gemma3", "glm4"] {
        let file = tiny::gguf(architecture, tiny::SIZES, &tiny::tokens(), random.random());
        check_layered(&GPU, &Model::from_gguf(file.bytes()).unwrap(), architecture, random);
    }
    // Without subgroups, cooperative matrices and f16, as browsers have it.
    let portable = GPU.pretend(Capability { subgroups: None, matrices: false, halves: false, ..*GPU.capability() });
    check_layered(&portable, &model_of("gemma2-portable", &gemma2, random), "Gemma 2, portable", random);
}

/// A cache that does not rotate leaves it to the decoder, by each layer's own frequencies.
#[test]
fn rows_that_the_decoder_turns_score_as_in_f64() {
    let random = &mut StdRng::seed_from_u64(tiny::seed());
    let model = model_of("gemma3-turned", &gemma3(7, 24), random);
    let decoder = pollster::block_on(Decoder::load(&GPU, &model)).unwrap();
    let mut groups = decoder.config().groups_for(0);
    groups.iter_mut().for_each(|group| group.shape.rope = Rope::none());
    let cache = LayeredCache::new(&GPU, plan_of_groups(&GPU, &decoder, groups, Capacity::tokens(2, 128), 64)).unwrap();
    pollster::block_on(cache.prepare()).unwrap();
    check_with(&decoder, &model, cache, "turned by the decoder", random);
}

/// A window holds the same number of tokens however long the text is: what a step brings, and pages
/// that are begun.
#[test]
fn windowed_layers_of_a_long_text_take_no_more_memory() {
    let random = &mut StdRng::seed_from_u64(tiny::seed());
    let (window, chunk, tokens) = (100, 128, 1000);
    let model = model_of("gemma3-long", &gemma3(6, window), random);
    let decoder = pollster::block_on(Decoder::load(&GPU, &model)).unwrap();
    let text: Vec<u32> = (0..tokens).map(|_| random.random_range(0..decoder.config().vocabulary as u32)).collect();
    let wanted = reference::logits(&model, &text).unwrap();
    let plan_of = |tokens| layered_plan(&GPU, &decoder, Capacity::tokens(1, tokens), chunk);
    let mut cache = LayeredCache::new(&GPU, plan_of(1024)).unwrap();
    pollster::block_on(cache.prepare()).unwrap();
    let sequence = cache.begin().unwrap();
    let mut work = pollster::block_on(decoder.work(chunk, 1)).unwrap();
    let vocabulary = decoder.config().vocabulary;
    let (mut at, mut held) = (0, Vec::new());
    for ids in text.chunks(chunk as usize) {
        work.write_ids(ids).unwrap();
        let step = decoder.step(&mut work, &mut cache, &[Chunk { sequence, tokens: ids.len() as u32 }]).unwrap();
        let mut recorder = Recorder::new(&GPU, "test");
        decoder.forward(&mut recorder, &mut work, &cache, &step, None).unwrap();
        decoder.score(&mut recorder, &mut work, Scored::Last).unwrap();
        recorder.submit();
        at += ids.len();
        expect(&format!("{at} tokens"), &scores(&decoder, &work, 1), &wanted[(at - 1) * vocabulary..at * vocabulary]);
        let [windowed, whole] = cache.groups() else { panic!("the model has two kinds of layers") };
        assert_eq!((windowed.plan().shape().layers, whole.plan().shape().layers), (5, 1));
        held.push([windowed, whole].map(|cache| cache.bytes_used()));
    }
    // Pages are of 128 tokens: 228 tokens lie in two pages or three.
    let plan = cache.groups()[0].plan();
    let page = plan.cost().cache() / u64::from(plan.pages());
    assert!(held.iter().all(|[windowed, _]| *windowed <= 3 * page), "{held:?}, a page has {page}");
    assert!(held.windows(2).all(|pair| pair[0][1] < pair[1][1]), "the other layers hold everything: {held:?}");
    // As many pages for a hundred times the context, and those of the other layers grow with it.
    let [short, long] = [1024, 131_072].map(plan_of);
    let bytes = |plan: &LayeredPlan, group: usize| plan.groups()[group].cost().cache();
    assert_eq!(bytes(&short, 0), bytes(&long, 0));
    assert_eq!(bytes(&long, 1), 128 * bytes(&short, 1));
    assert_eq!(long.max_tokens(), 131_072);
}

#[test]
fn a_cache_that_a_layer_cannot_use_is_refused_by_name() {
    let random = &mut StdRng::seed_from_u64(tiny::seed());
    let model = model_of("gemma3-refused", &gemma3(6, 24), random);
    let decoder = pollster::block_on(Decoder::load(&GPU, &model)).unwrap();
    let mut work = pollster::block_on(decoder.work(4, 1)).unwrap();
    // One window for all.
    let mut cache = cache(&GPU, &decoder, 1, 128);
    let sequence = cache.begin().unwrap();
    let error = decoder.step(&mut work, &mut cache, &[Chunk { sequence, tokens: 1 }]).unwrap_err().to_string();
    assert!(error.contains("sliding window of layer 5") && error.contains("none") && error.contains("24"), "{error}");
    // Nothing was begun.
    assert_eq!(cache.tokens(sequence).unwrap(), 0);
    // The rotation of other layers.
    let mut groups = decoder.config().groups_for(0);
    groups[0].shape.rope = groups[1].shape.rope.clone();
    let mut cache = LayeredCache::new(&GPU, plan_of_groups(&GPU, &decoder, groups, Capacity::tokens(1, 128), 4)).unwrap();
    let sequence = cache.begin().unwrap();
    let error = decoder.step(&mut work, &mut cache, &[Chunk { sequence, tokens: 1 }]).unwrap_err().to_string();
    assert!(error.contains("rotary frequencies of layer 0"), "{error}");
    // Scores without a cap.
    let more = json!({ "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 64, "sliding_window": 24 });
    let model = model_of("gemma2-refused", &sized("Gemma2ForCausalLM", 2, more), random);
    let decoder = pollster::block_on(Decoder::load(&GPU, &model)).unwrap();
    let mut builder = LayeredPlan::builder();
    for group in decoder.config().groups_for(0) {
        let mut planned = Plan::builder(group.shape, Format::f16());
        if let Some(window) = group.sliding_window {
            planned = planned.sliding_window(window);
        }
        builder = builder.group(group.layers, planned);
    }
    let mut cache = LayeredCache::new(&GPU, builder.build(GPU.capability()).unwrap()).unwrap();
    let sequence = cache.begin().unwrap();
    let mut work = pollster::block_on(decoder.work(4, 1)).unwrap();
    let error = decoder.step(&mut work, &mut cache, &[Chunk { sequence, tokens: 1 }]).unwrap_err().to_string();
    assert!(error.contains("soft cap of layer 0") && error.contains("50") && error.contains("none"), "{error}");
}

#[test]
fn a_session_goes_on_with_the_largest_scores() {
    let random = &mut StdRng::seed_from_u64(tiny::seed());
    let file = tiny::gguf("llama", tiny::SIZES, &tiny::tokens(), random.random());
    let model = Model::from_gguf(file.bytes()).unwrap();
    let decoder = pollster::block_on(Decoder::load(&GPU, &model)).unwrap();
    let prompt: Vec<u32> = (0..30).map(|_| random.random_range(0..decoder.config().vocabulary as u32)).collect();
    let new = || pollster::block_on(Session::new(&decoder, cache(&GPU, &decoder, 1, 128), 16, Sampling::GREEDY)).unwrap();
    let mut session = new();
    session.prompt(&prompt).unwrap();
    let mut text = prompt.clone();
    for _ in 0..10 {
        let token = pollster::block_on(session.next(true)).unwrap();
        let scores = reference::logits(&model, &text).unwrap();
        let last = &scores[scores.len() - decoder.config().vocabulary..];
        let best = last.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Scores within the error of each other may come in either order.
        let size = (last.iter().map(|x| x * x).sum::<f64>() / last.len() as f64).sqrt();
        assert!(best - last[token as usize] <= 8.0 * LOGIT_ERROR * size, "token {token} has {}, the largest is {best}", last[token as usize]);
        text.push(token);
        assert_eq!(session.tokens().unwrap(), text.len() as u32);
    }
    // What was taken back comes again.
    let last = text.pop().unwrap();
    session.take_back().unwrap();
    session.read(&[last], true, None).unwrap();
    let again = pollster::block_on(session.next(false)).unwrap();
    let mut other = new();
    other.prompt(&[text, vec![last]].concat()).unwrap();
    assert_eq!(again, pollster::block_on(other.next(false)).unwrap());
    session.reset().unwrap();
    assert_eq!(session.tokens().unwrap(), 0);
    assert!(pollster::block_on(session.next(true)).is_err(), "nothing was read");
}

#[test]
fn wrong_calls_are_refused_by_name() {
    let file = tiny::gguf("llama", tiny::SIZES, &tiny::tokens(), 1);
    let model = Model::from_gguf(file.bytes()).unwrap();
    let decoder = pollster::block_on(Decoder::load(&GPU, &model)).unwrap();
    let refused = |error: wgkv_decoder::Error, words: &[&str]| {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    refused(pollster::block_on(decoder.work(4, 5)).unwrap_err(), &["scored", "1 to 4", "5"]);
    let mut session = pollster::block_on(Session::new(&decoder, cache(&GPU, &decoder, 1, 128), 16, Sampling::GREEDY)).unwrap();
    refused(session.read(&[70_000], true, None).unwrap_err(), &["70000", &decoder.config().vocabulary.to_string()]);
    refused(session.read(&[1; 17], true, None).unwrap_err(), &["17", "16"]);
    // Longer than the cache: nothing is lost of what it holds.
    for _ in 0..8 {
        session.read(&[1; 16], true, None).unwrap();
    }
    assert!(session.read(&[1; 16], true, None).is_err());
    assert_eq!(session.tokens().unwrap(), 128);
}
