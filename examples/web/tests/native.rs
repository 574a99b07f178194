//! What the browsers are compared with: the same code natively, on whatever adapter is there.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod tiny;

use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use wgkv::{Codec, Gpu};
use wgkv_web::{CODECS, Error, Message, Model, Session, Settings, check};

fn gpu() -> Gpu {
    pollster::block_on(Gpu::request()).unwrap()
}

fn model(gpu: &Gpu) -> Rc<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/wiki-8m");
    let files = ["config.json", "tokenizer.json", "model.safetensors", "rotate-kv.safetensors", "centred.safetensors"];
    let [config, tokenizer, weights, order, centre] = files.map(|name| std::fs::read(folder.join(name)).unwrap());
    Rc::new(pollster::block_on(Model::from_parts(gpu, &config, &tokenizer, weights, &order, &centre)).unwrap())
}

/// Opens a file as a browser does, of which nothing is in memory.
async fn open(gpu: &Gpu, file: Vec<u8>) -> wgkv_web::Result<Model> {
    Model::from_gguf(gpu, "a.gguf", file.len() as u64, move |start, bytes| file.get(start as usize..).unwrap_or_default().read_exact(bytes)).await
}

fn tiny_model(gpu: &Gpu) -> Rc<Model> {
    Rc::new(pollster::block_on(open(gpu, tiny::gguf())).unwrap())
}

/// A prompt with settings, and the tokens that every machine continues it with.
#[derive(serde::Deserialize)]
struct Continuation {
    prompt: String,
    settings: Settings,
    tokens: Vec<u32>,
}

/// Files of continuations: of the page's own model, which the tests of `wgkv-llama` read, too, and
/// of the tiny one. The pages that test browsers read both.
const CONTINUATIONS: [&str; 2] = ["continuations.json", "tiny.json"];

fn test_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn continuations(name: &str) -> Vec<Continuation> {
    serde_json::from_slice(&std::fs::read(test_file(name)).unwrap()).unwrap()
}

fn run(model: &Rc<Model>, settings: &Settings, prompt: &str) -> (Vec<u32>, String) {
    pollster::block_on(async {
        let mut session = Session::new(model.clone(), settings, prompt).await.unwrap();
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

/// What each of a file's texts goes on with.
fn written(name: &str) -> Vec<(Continuation, Vec<u32>)> {
    let gpu = gpu();
    let model = if name == CONTINUATIONS[0] { model(&gpu) } else { tiny_model(&gpu) };
    let go_on = |text: Continuation| {
        let (tokens, added) = run(&model, &text.settings, &text.prompt);
        println!("{}|{added}", text.prompt);
        (text, tokens)
    };
    continuations(name).into_iter().map(go_on).collect()
}

#[test]
fn continuations_are_the_same_as_everywhere() {
    for name in CONTINUATIONS {
        for (text, tokens) in written(name) {
            assert_eq!(tokens, text.tokens, "{name}: {:?}", text.settings);
        }
    }
}

#[test]
#[ignore = "writes the continuations anew, after the sampling or a model changed"]
fn write_continuations() {
    for name in CONTINUATIONS {
        let mut text = std::fs::read_to_string(test_file(name)).unwrap();
        for (_, tokens) in written(name) {
            // The settings stay as somebody wrote them.
            let (before, after) = text.split_once("\"tokens\": [").unwrap();
            let (_, after) = after.split_once(']').unwrap();
            text = format!("{before}\"tokens\":\u{0} {tokens:?}{after}");
        }
        std::fs::write(test_file(name), text.replace('\0', "")).unwrap();
    }
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
    let gpu = gpu();
    let model = model(&gpu);
    let settings = Settings { codec: "hadamard".into(), bits: 2, window: 0, temperature: 0.0, top_p: 1.0, seed: 0, tokens: 40, context: 0 };
    pollster::block_on(async {
        let mut session = Session::new(model, &settings, "The river rises in the hills north of the town and flows south.").await.unwrap();
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

/// Runs to the end of the text or the answer, for `tokens` tokens at most.
async fn advance(session: &mut Session, tokens: usize) -> (Vec<u32>, String) {
    let (mut ids, mut text) = (Vec::new(), String::new());
    while ids.len() < tokens {
        let progress = session.advance().await.unwrap();
        ids.extend(progress.token);
        text += &progress.text;
        if progress.ended {
            break;
        }
    }
    (ids, text)
}

fn messages(contents: &[&str]) -> Vec<Message> {
    let role = |n: usize| if n.is_multiple_of(2) { "user" } else { "assistant" };
    contents.iter().enumerate().map(|(n, content)| Message { role: role(n).into(), content: (*content).to_owned() }).collect()
}

#[test]
fn a_conversation_goes_on_from_what_the_cache_holds_as_if_it_were_read_anew() {
    let gpu = gpu();
    let model = tiny_model(&gpu);
    let settings = |tokens| Settings { codec: "f16".into(), bits: 16, window: 0, temperature: 0.0, top_p: 1.0, seed: 0, tokens, context: 400 };
    pollster::block_on(async {
        // Answers that end at their limit, that somebody stops, and that are stopped before they begin.
        for (limit, stopped) in [(12, 12), (30, 7), (30, 0)] {
            let mut session = Session::conversation(model.clone(), &settings(limit)).await.unwrap();
            session.say(&messages(&["Where does the river rise?"])).unwrap();
            let (ids, first) = if stopped > 0 {
                advance(&mut session, stopped).await
            } else {
                assert_eq!(session.advance().await.unwrap().token, None);
                Default::default()
            };
            assert_eq!(ids.len(), stopped);
            let all = messages(&["Where does the river rise?", &first, "And then?"]);
            session.say(&all).unwrap();
            let progress = session.advance().await.unwrap();
            let (going_on, _) = advance(&mut session, 10).await;

            let mut anew = Session::conversation(model.clone(), &settings(limit)).await.unwrap();
            anew.say(&all).unwrap();
            let again = anew.advance().await.unwrap();
            // Bytes that are no characters come back as others, so only whole texts are read alike.
            if !first.contains(char::REPLACEMENT_CHARACTER) && stopped == 0 {
                assert_eq!(progress.tokens, again.tokens);
                assert_eq!(going_on, advance(&mut anew, 10).await.0);
            }
            session.destroy();
            anew.destroy();
        }
    });
}

#[test]
fn a_conversation_that_has_no_room_left_says_so_and_stands() {
    let gpu = gpu();
    let settings = Settings { codec: "hadamard".into(), bits: 4, window: 0, temperature: 1.0, top_p: 0.9, seed: 0, tokens: 8, context: 100 };
    pollster::block_on(async {
        let mut session = Session::conversation(tiny_model(&gpu), &settings).await.unwrap();
        session.say(&messages(&["A short one"])).unwrap();
        let (_, first) = advance(&mut session, 100).await;
        let mut long = String::new();
        (0..60).for_each(|n| write!(long, "{n} ").unwrap());
        let error = session.say(&messages(&["A short one", &first, &long])).unwrap_err();
        assert!(matches!(error, Error::Prompt { room: 99, .. }), "{error}");
        session.say(&messages(&["A short one", &first, "Yes"])).unwrap();
        assert!(!advance(&mut session, 100).await.0.is_empty());
        session.destroy();

        let error = Session::conversation(model(&gpu), &settings).await.err().unwrap();
        assert!(matches!(error, Error::NoTemplate));
    });
}

#[test]
fn what_a_model_cannot_do_is_refused_with_a_reason() {
    let gpu = gpu();
    let model = tiny_model(&gpu);
    let settings = Settings { codec: "rotate-kv".into(), bits: 4, window: 0, temperature: 0.0, top_p: 1.0, seed: 0, tokens: 8, context: 0 };
    pollster::block_on(async {
        assert!(model.about().codecs.iter().all(|choice| choice.codec != Codec::RotateKv));
        let error = Session::new(model.clone(), &settings, "A text").await.err().unwrap();
        assert!(matches!(error, Error::NotCalibrated { codec: Codec::RotateKv }), "{error}");
        let settings = Settings { codec: "centred".into(), ..settings };
        assert!(matches!(Session::new(model.clone(), &settings, "").await.err().unwrap(), Error::Empty));
        let error = Session::new(model, &settings, &"x".repeat(600)).await.err().unwrap();
        assert!(matches!(error, Error::Prompt { tokens: 600, room: 511 }), "{error}");

        let whole = tiny::gguf();
        let error = open(&gpu, whole[..whole.len() - 100].to_vec()).await.err().unwrap();
        assert!(error.to_string().starts_with("a.gguf: tensor output.weight"), "{error}");
        let error = open(&gpu, b"PK, not a model".to_vec()).await.err().unwrap();
        assert!(error.to_string().contains("GGUF"), "{error}");
    });
}
