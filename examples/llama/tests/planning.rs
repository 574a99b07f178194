//! From text to bits: what `analyze` finds, what `plan` makes of it, and that `perplexity` and
//! `generate` store a cache that way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::path::Path;

use tiny::{embedded, options, smoke};
use wgkv::bits::{BitPlan, BitRule, Kind, Sensitivity};
use wgkv_llama::analyze::{AnalyzeOptions, analyze};
use wgkv_llama::error::{Error, Result};
use wgkv_llama::generate::{GenerateOptions, generate};
use wgkv_llama::perplexity::{PerplexityOptions, PerplexityReport, perplexity};
use wgkv_llama::pictures::Analysis;
use wgkv_llama::plan::{PlanOptions, plan};

fn measured(model: &Path, more: &[&str]) -> Result<PerplexityReport> {
    let fixed = ["--model", model.to_str().unwrap(), "--text", &smoke(), "--windows", "1", "--context", "256", "--strict"];
    perplexity(&options::<PerplexityOptions>(&[&fixed, more].concat()))
}

#[test]
fn keys_have_larger_norms_than_values_and_need_more_bits_under_plain_rounding() {
    // KV-AdaQuant (2502.15075) section 3, on the embedded model and the codec that the paper has:
    // rounding in groups of channels.
    let folder = tiny::folder("analysis");
    let model = embedded();
    let words = ["--model", model.to_str().unwrap(), "--text", &smoke(), "--out", folder.to_str().unwrap(), "--windows", "1", "--context", "256"];
    let report = analyze(&options::<AnalyzeOptions>(&[&words[..], &["--codec", "rtn", "--group", "64"]].concat())).unwrap();
    assert_eq!(report.keys_larger, report.norms.len(), "norms of keys and values by layer: {:?}", report.norms);

    let analysis: Analysis = serde_json::from_str(&std::fs::read_to_string(folder.join("analysis.json")).unwrap()).unwrap();
    assert_eq!((analysis.tokens, analysis.layers.len()), (256, 6));
    for layer in &analysis.layers {
        for head in layer.keys.iter().chain(&layer.values) {
            assert_eq!(head.singular_values.len(), 64);
            let squares: f64 = head.singular_values.iter().map(|x| x * x).sum();
            assert!((squares.sqrt() / head.frobenius - 1.0).abs() < 1e-5, "singular values of layer {} add up to its norm", layer.layer);
            assert!(head.spectral <= head.frobenius && head.errors.iter().map(|e| e.bits).eq([2, 3, 4, 8]));
            // More bits never err more, in the codes or in the output.
            assert!(head.errors.windows(2).all(|two| two[1].relative < two[0].relative && two[1].attention < two[0].attention), "{:?}", head.errors);
        }
        assert!(layer.key_weights.as_ref().unwrap().singular_values.len() == 256);
    }
    for name in ["norms", "spectra", "errors", "heat", "weights"] {
        let svg = std::fs::read_to_string(folder.join(format!("{name}.svg"))).unwrap();
        assert!(svg.contains("<svg") && svg.len() > 2000, "{name}.svg is empty");
    }
    assert!(std::fs::read_to_string(folder.join("index.html")).unwrap().contains("wiki-8m"));

    let kl = |k: &str, v: &str| measured(&model, &["--codec", "rtn", "--group", "64", "--k-bits", k, "--v-bits", v]).unwrap().kl;
    let (keys, values) = (kl("4", "2"), kl("2", "4"));
    assert!(keys < values, "K4V2 diverges by {keys}, K2V4 by {values}");
}

#[test]
fn a_plan_is_made_kept_within_its_budget_and_used() {
    let folder = tiny::folder("plan");
    let model = embedded();
    let (sensitivity, out) = (folder.join("sensitivity.json"), folder.join("plan.json"));
    let [model_word, sensitivity_word, out_word] = [&model, &sensitivity, &out].map(|path| path.to_str().unwrap().to_owned());
    let text = smoke();
    let fixed = [
        "--model",
        &model_word,
        "--text",
        &text,
        "--codec",
        "rtn",
        "--sinks",
        "none",
        "--window",
        "0",
        "--windows",
        "1",
        "--context",
        "256",
        "--divergence-windows",
        "1",
        "--sensitivity",
        &sensitivity_word,
        "--out",
        &out_word,
    ];
    let make = |more: &[&str]| plan(&options::<PlanOptions>(&[&fixed[..], more].concat())).unwrap().0;
    let allocation = make(&["--budget", "3.0"]);
    let report = allocation.report().unwrap();
    assert!(report.spent <= report.allowed && report.bits_per_element() > 2.9, "{report}");
    assert_eq!(report.allocator, BitRule::default().to_string());
    assert!(report.to_string().contains("measured: ") && report.units.len() == 48);
    assert_eq!(BitPlan::load(&out).unwrap(), allocation, "a plan comes back from its file");

    // What was measured is read again, and serves every budget and rule.
    let measurement = Sensitivity::load(&sensitivity).unwrap();
    assert!(measurement.weight_norms(5).is_some() && measurement.layer_weight(0) > 0.0 && measurement.norm(0, 0, Kind::Key) > 0.0);
    let more = make(&["--budget", "3.5"]);
    for (a, b) in report.units.iter().zip(&more.report().unwrap().units) {
        assert!(a.bits <= b.bits, "nested: layer {}, head {}, {}", a.layer, a.head, a.kind);
    }
    for rule in ["cache-norm", "repo-norm", "measured:layer", "K2V2"] {
        let report = make(&["--budget", "3.0", "--allocator", rule]).report().unwrap().clone();
        assert!(report.spent <= report.allowed, "{report}");
    }
    let allocation = make(&["--bytes", "1200000", "--tokens", "1024"]);
    assert!(8 * 1_200_000 >= 1024 * allocation.report().unwrap().spent);

    // The cache is as the plan says.
    let allocation = make(&["--budget", "3.0"]);
    let planned = measured(&model, &["--plan", &out_word]).unwrap();
    assert!((planned.bits_per_element - allocation.report().unwrap().bits_per_element()).abs() < 1e-9, "{}", planned.bits_per_element);
    assert_eq!(planned.format.mean_bits, Some(allocation.mean_bits()));
    let least = measured(&model, &["--codec", "rtn", "--group", "64", "--k-bits", "2", "--v-bits", "2"]).unwrap();
    assert!(planned.kl < least.kl, "more bits than 2 help: {} against {}", planned.kl, least.kl);
    let words = ["--model", &model_word, "--prompt", "The city of Paris is", "--tokens", "4", "--plan", &out_word];
    let report = generate(&options::<GenerateOptions>(&words), &mut Vec::new()).unwrap();
    assert_eq!((report.tokens.len(), report.format.codec.as_str()), (4, "rtn"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tiny::folder("plan_of_another");
    tiny::write_model(&folder);
    let (model, text, out) = (folder.to_str().unwrap(), smoke(), folder.join("plan.json"));
    let out = out.to_str().unwrap();
    let fixed = ["--model", model, "--text", &text, "--windows", "1", "--context", "96", "--divergence-windows", "0", "--out", out, "--codec", "rtn"];
    let make = |more: &[&str]| plan(&options::<PlanOptions>(&[&fixed[..], more].concat()));
    make(&["--budget", "4"]).unwrap();
    // Another model, other options beside the plan, too small a budget, no text.
    let other = embedded();
    let refused = measured(&other, &["--plan", out]);
    assert!(matches!(&refused, Err(Error::Cache(wgkv::Error::Mismatch { of: wgkv::Thing::BitPlan, name, .. })) if name == "model"), "{refused:?}");
    let typed = PerplexityOptions::augment(&["--model", model, "--text", &text, "--plan", out, "--k-bits", "2"]);
    assert!(typed.is_err(), "a plan and bits of one's own contradict each other");
    let refused = make(&["--budget", "1"]);
    assert!(matches!(refused, Err(Error::Cache(wgkv::Error::Capacity { .. }))), "{refused:?}");
    let damaged = folder.join("damaged.json");
    std::fs::write(&damaged, &std::fs::read_to_string(out).unwrap()[..100]).unwrap();
    let refused = measured(&folder, &["--plan", damaged.to_str().unwrap()]);
    assert!(matches!(&refused, Err(Error::Cache(wgkv::Error::Mismatch { of: wgkv::Thing::BitPlan, .. }))), "{refused:?}");
}

/// Parses words, so that those that contradict each other are refused.
trait Typed: clap::Args {
    fn augment(words: &[&str]) -> std::result::Result<clap::ArgMatches, clap::Error> {
        Self::augment_args(clap::Command::new("test")).try_get_matches_from([&["test"], words].concat())
    }
}

impl Typed for PerplexityOptions {}
