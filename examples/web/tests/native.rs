//! What the browsers are compared with: the same code natively, on whatever adapter is there.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::path::Path;
use std::rc::Rc;
use wgkv::{Codec, Gpu};
use wgkv_web::{CODECS, Model, Session, Settings, check};

fn gpu() -> Gpu {
    pollster::block_on(Gpu::request()).unwrap()
}

fn model() -> Rc<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/wiki-8m");
    let files = ["config.json", "tokenizer.json", "model.safetensors", "rotate-kv.safetensors", "centred.safetensors"];
    let [config, tokenizer, weights, order, centre] = files.map(|name| std::fs::read(folder.join(name)).unwrap());
    Rc::new(Model::from_bytes(&config, &tokenizer, &weights, &order, &centre).unwrap())
}

/// A prompt with settings, and the tokens that every machine continues it with.
#[derive(serde::Deserialize)]
struct Continuation {
    prompt: String,
    settings: Settings,
    tokens: Vec<u32>,
}

/// Also read by the pages that test browsers, and by the tests of `wgkv-llama`.
fn continuations() -> Vec<Continuation> {
    serde_json::from_str(include_str!("continuations.json")).unwrap()
}

fn run(model: &Rc<Model>, gpu: &Gpu, settings: &Settings, prompt: &str) -> (Vec<u32>, String) {
    pollster::block_on(async {
        let mut session = Session::new(model.clone(), gpu, settings, prompt).await.unwrap();
        let (mut tokens, mut text) = (Vec::new(), String::new());
        loop {
            let progress = session.advance().await.unwrap();
            tokens.extend(progress.token);
            text += &progress.text;
            if progress.ended {
                assert!(progress.bytes <= progress.allocated);
                session.destroy();
                return (tokens, text);
            }
        }
    })
}

#[test]
fn continuations_are_the_same_as_everywhere() {
    let (gpu, model) = (gpu(), model());
    let mut wrong = Vec::new();
    for Continuation { prompt, settings, tokens } in continuations() {
        let (got, text) = run(&model, &gpu, &settings, &prompt);
        println!("{prompt}|{text}");
        if got != tokens {
            wrong.push((settings, got));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn every_codec_agrees_with_its_twins() {
    let gpu = gpu();
    for choice in CODECS {
        for bits in choice.bits {
            let report = pollster::block_on(check::check(&gpu, choice.codec, *bits, 1)).unwrap();
            println!("{report:?}");
            assert!(report.agrees, "{report:?}");
        }
    }
}

/// Snapshots that lavapipe made lie beside this file: codec and bits.
const SNAPSHOTS: [(Codec, u32); 3] = [(Codec::Hadamard, 4), (Codec::Centred, 2), (Codec::RotateKv, 2)];

fn snapshot_file((codec, bits): (Codec, u32)) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/{codec}-{bits}.safetensors"))
}

#[test]
fn snapshots_of_another_device_load_bit_for_bit_and_go_on() {
    let gpu = gpu();
    for (codec, bits) in SNAPSHOTS {
        let bytes = std::fs::read(snapshot_file((codec, bits))).unwrap();
        let report = pollster::block_on(check::exchange(&gpu, codec, bits, 1, &bytes)).unwrap();
        println!("{report:?}");
        assert!(report.agrees, "{report:?}");
    }
}

#[test]
#[ignore = "writes the snapshots anew, after the format changed"]
fn write_snapshots() {
    let gpu = gpu();
    for (codec, bits) in SNAPSHOTS {
        let bytes = pollster::block_on(check::snapshot(&gpu, codec, bits, 1)).unwrap();
        std::fs::write(snapshot_file((codec, bits)), bytes).unwrap();
    }
}

#[test]
fn a_picture_shows_that_centring_and_rotating_make_keys_smaller_to_code() {
    let (gpu, model) = (gpu(), model());
    let settings = Settings { codec: "hadamard".into(), bits: 2, window: 0, temperature: 0.0, top_p: 1.0, seed: 0, tokens: 40 };
    pollster::block_on(async {
        let mut session = Session::new(model, &gpu, &settings, "The river rises in the hills north of the town and flows south.").await.unwrap();
        assert!(session.picture(0, 0).await.is_err(), "there is nothing yet");
        while !session.advance().await.unwrap().ended {}
        for layer in 0..6 {
            let picture = session.picture(layer, 1).await.unwrap();
            println!("{:?}", picture.maps.iter().map(|map| (map.error, map.peak)).collect::<Vec<_>>());
            let tokens = picture.maps[0].numbers.len() / picture.channels;
            assert!(picture.maps.iter().all(|map| map.numbers.len() == tokens * 64));
            let errors: Vec<f64> = picture.maps.iter().map(|map| map.error).collect();
            assert!(errors[1] < errors[0] && errors[2] < errors[0], "layer {layer}: {errors:?}");
        }
        assert!(session.picture(6, 0).await.is_err());
        assert!(session.picture(0, 4).await.is_err());
        session.destroy();
    });
}
