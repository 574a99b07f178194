//! The whole road from text to perplexity, on whatever GPU answers (a software adapter will do).
//!
//! One test makes a random model with everything that a config can ask for; the other runs a trained one, the embedded
//! `assets/wiki-8m` unless `WGKV_LLAMA_MODEL` names another. Perplexity on published text, which the project does not
//! ship, is what `cargo xtask quality` measures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::path::{Path, PathBuf};

use wgkv_llama::attention::PlainAttention;
use wgkv_llama::bridge::Bridge;
use wgkv_llama::compressed::CompressedAttention;
use wgkv_llama::model::Model;
use wgkv_llama::options::open_cache;
use wgkv_llama::perplexity::{plain_score, score_window, windows};
use wgkv_llama::text::Text;

/// Logits of an f16 cache against f32 attention: f16 keeps 11 bits of keys and values.
const F16_LOGIT_ERROR: f32 = 1e-2;
/// How far from the published perplexity a correct model may land.
const PERPLEXITY_ERROR: f64 = 5e-3;

/// The model that the project embeds, or the one that `WGKV_LLAMA_MODEL` names.
fn model_directory() -> PathBuf {
    std::env::var_os("WGKV_LLAMA_MODEL").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/wiki-8m"), PathBuf::from)
}

fn f16_cache(bridge: &Bridge, model: &Model, tokens: usize) -> wgkv::Cache {
    open_cache(bridge, model.config(), wgkv::Format::f16(), wgkv::Protection::strict(), tokens).unwrap()
}

/// Runs the shipped text through an f16 cache and through plain attention and compares every score.
fn compare_with_plain(directory: &Path) {
    let bridge = Bridge::open(None).unwrap();
    let model = Model::open(directory, &bridge).unwrap();
    let text = Text::open(directory).unwrap();
    let ids = text.encode(include_str!("data/smoke.txt")).unwrap();
    let context = 512;
    let windows = windows(&ids, model.config(), 1, context).unwrap();

    // Two chunks, the second one shorter and no multiple of anything, so that the past and the causal edge are crossed;
    // then one token alone, as in decoding.
    let input = &windows[0].0;
    let mut cache = f16_cache(&bridge, &model, context);
    let mut compressed = CompressedAttention::new(&bridge, &mut cache).unwrap();
    let mut plain = PlainAttention::new(model.config(), bridge.device());
    for chunk in [&input[..300], &input[300..511], &input[511..]] {
        let rows = |hidden| model.logits(hidden).unwrap();
        let got = rows(model.forward(chunk, &mut compressed).unwrap());
        let wanted = rows(model.forward(chunk, &mut plain).unwrap());
        let worst = got.iter().zip(&wanted).map(|(got, wanted)| (got - wanted).abs() / (1.0 + wanted.abs())).fold(0.0, f32::max);
        assert!(
            worst < F16_LOGIT_ERROR && got.iter().all(|score| score.is_finite()),
            "{} tokens: logits differ by {worst}, allowed {F16_LOGIT_ERROR}",
            chunk.len()
        );
    }
    compressed.free().unwrap();

    let score = plain_score(&model, &bridge, &windows, context).unwrap();
    let mut attention = CompressedAttention::new(&bridge, &mut cache).unwrap();
    let cached = score_window(&model, &windows[0], 128, &mut attention, None, |_| ()).unwrap();
    attention.free().unwrap();
    assert!(
        (cached.perplexity() / score.perplexity() - 1.0).abs() < PERPLEXITY_ERROR,
        "perplexity {} through the cache, {} without",
        cached.perplexity(),
        score.perplexity()
    );
}

#[test]
fn the_f16_cache_agrees_with_plain_attention_on_a_random_model() {
    let folder = tiny::folder("random_model");
    tiny::write_model(&folder);
    compare_with_plain(&folder);
}

#[test]
fn the_f16_cache_agrees_with_plain_attention_on_a_trained_model() {
    compare_with_plain(&model_directory());
}
