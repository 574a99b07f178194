//! Whole models against f64: every architecture, prompts and single tokens, several sequences.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::sync::LazyLock;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use wgkv::{Cache, Capability, Capacity, Chunk, Format, Gpu, Plan, Protection, Sequence};
use wgkv_decoder::{Decoder, Model, Recorder, Sampling, Scored, Session, Work, reference};

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

/// Steps of two sequences: chunks of many rows, of a few and of one.
fn check(gpu: &Gpu, model: &Model, name: &str, random: &mut StdRng) {
    let decoder = pollster::block_on(Decoder::load(gpu, model)).unwrap();
    let vocabulary = decoder.config().vocabulary;
    let texts: [Vec<u32>; 2] = std::array::from_fn(|_| (0..70).map(|_| random.random_range(0..vocabulary as u32)).collect());
    let wanted = texts.each_ref().map(|text| reference::logits(model, text).unwrap());
    let mut cache = cache(gpu, &decoder, 2, 128);
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
        let got = scores(&decoder, &work, chunks.len());
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
            expect(&format!("{name}, rows"), &scores(&decoder, &work, count as usize), want);
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
    for architecture in ["llama", "qwen2", "qwen3", "smollm3", "phi3"] {
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
