//! What `bench` reports, and what it refuses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use serde_json::Value;
use wgkv_llama::bench::{BenchOptions, bench};
use wgkv_llama::error::Error;

#[test]
fn every_batch_and_context_is_measured() {
    let folder = tiny::folder("bench");
    tiny::write_model(&folder);
    let model = folder.to_str().unwrap();
    let prompt = folder.join("prompt.txt");
    std::fs::write(&prompt, "Once").unwrap();
    for source in [vec!["--seed", "7"], vec!["--prompt-file", prompt.to_str().unwrap(), "--kernels"]] {
        let words = ["--context", "20,41", "--batch", "1,3", "--prefill", "33,0", "--decode", "5", "--chunk", "16", "--repeats", "2", "--codec", "centred"];
        let measured = bench(&tiny::options::<BenchOptions>(&[&["--model", model], &words[..], &source].concat()));
        let report = match measured {
            // Not every adapter has clocks within a pass.
            Err(Error::Cache(wgkv::Error::Device(why))) if source.contains(&"--kernels") => {
                assert!(why.contains("timestamp"), "{why}");
                continue;
            }
            measured => measured.unwrap(),
        };
        let told = report.to_string();
        assert!(told.contains("weights F32, BF16, F16") && told.contains("centred K4V4"), "{told}");
        let json: Value = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!((json["codec"].as_str(), json["k_bits"].as_u64(), json["model"].as_str()), (Some("centred"), Some(4), Some("bench")));
        assert!(json["weight_bytes"].as_u64() > Some(0) && json["adapter"].as_str().is_some_and(|name| !name.is_empty()));
        let rows = |name: &str, wanted: &[[u64; 3]]| {
            let rates = json[name].as_array().unwrap();
            let had: Vec<[u64; 3]> = rates.iter().map(|rate| ["batch", "context", "tokens"].map(|name| rate[name].as_u64().unwrap())).collect();
            assert_eq!(had, wanted);
            for rate in rates {
                let [seconds, a_second] = ["seconds", "tokens_per_second"].map(|name| rate[name].as_f64().unwrap());
                let tokens = (rate["batch"].as_u64().unwrap() * rate["tokens"].as_u64().unwrap()) as f64;
                assert!(seconds > 0.0 && (tokens / seconds / a_second - 1.0).abs() < 1e-9 && rate["cache_bytes"].as_u64() > Some(0), "{rate}");
                let kernels: Vec<&str> = rate["kernels"].as_array().into_iter().flatten().map(|kernel| kernel["name"].as_str().unwrap()).collect();
                assert_eq!(source.contains(&"--kernels"), kernels.contains(&"attend_merge") && kernels.contains(&"sample"), "{kernels:?}");
            }
        };
        rows("prefill", &[[1, 0, 33], [3, 0, 33]]);
        rows("decode", &[[1, 20, 5], [1, 41, 5], [3, 20, 5], [3, 41, 5]]);
    }
}

#[test]
fn numbers_that_measure_nothing_are_refused() {
    let model = tiny::embedded();
    for (name, value) in [("--batch", "0"), ("--batch", "2,0"), ("--context", "0"), ("--repeats", "0")] {
        let refused = bench(&tiny::options::<BenchOptions>(&["--model", model.to_str().unwrap(), name, value])).unwrap_err();
        assert!(matches!(&refused, Error::Option { name: named, had, .. } if *named == name && had == value), "{refused}");
    }
}
