//! Conversations: that a turn goes on from what the cache holds as from a fresh reading, and what
//! commands and Ctrl-C do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::path::{Path, PathBuf};

use wgkv_decoder::{Decoder, Message, Model, Sampling, Session};
use wgkv_llama::chat::{ChatOptions, Console, Interrupt, chat};
use wgkv_llama::device;
use wgkv_llama::error::{Error, Result};
use wgkv_llama::options::open_f16;

/// Written around every message.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

const FIRST: &str = "The river rises in the hills north of the town.";
const SECOND: &str = "What was built along its banks in the nineteenth century?";

/// The embedded model with a template.
fn model(name: &str) -> PathBuf {
    let folder = tiny::folder(name);
    for file in ["tokenizer.json", "model.safetensors"] {
        std::fs::copy(tiny::embedded().join(file), folder.join(file)).unwrap();
    }
    // Without a token that ends a text, answers have all the tokens that they may.
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(tiny::embedded().join("config.json")).unwrap()).unwrap();
    config["eos_token_id"] = serde_json::Value::Null;
    tiny::write_config(&folder, &config);
    std::fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
    folder
}

/// Converses greedily with an f16 cache; returns answers and notes.
fn converse(model: &Path, lines: &[&str], more: &[&str]) -> Result<[String; 2]> {
    let fixed = ["--model", model.to_str().unwrap(), "--temperature", "0", "--codec", "f16"];
    let options = tiny::options::<ChatOptions>(&[&fixed, more].concat());
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let mut input = std::io::Cursor::new(lines.join("\n"));
    let console = &mut Console { input: &mut input, out: &mut out, notes: &mut notes, interactive: false, interrupt: &Interrupt::new() };
    chat(&options, console)?;
    Ok([out, notes].map(|bytes| String::from_utf8(bytes).unwrap()))
}

/// What the model answers when it reads a whole conversation at once.
fn answer(model: &Path, messages: &[Message<'_>], tokens: usize) -> String {
    let model = Model::open(model).unwrap();
    let decoder = pollster::block_on(Decoder::load(&device::open(None).unwrap(), &model)).unwrap();
    let ids = model.text().encode_with_special(&model.chat().unwrap().render(messages, true, "", "").unwrap()).unwrap();
    let cache = open_f16(decoder.gpu(), decoder.config(), ids.len() + tokens).unwrap();
    let mut session = pollster::block_on(Session::new(&decoder, cache, 512, Sampling::GREEDY)).unwrap();
    session.prompt(&ids).unwrap();
    let tokens: Vec<u32> = (0..tokens).map(|n| pollster::block_on(session.next(n + 1 < tokens)).unwrap()).collect();
    model.text().decode(&tokens).unwrap()
}

#[test]
fn a_turn_is_answered_as_from_a_fresh_reading() {
    let model = model("chat");
    let few = ["--tokens", "12"];
    let [one, notes] = converse(&model, &[FIRST], &few).unwrap();
    assert!(one.len() > 12 && one.ends_with('\n') && notes.is_empty(), "{one:?}, {notes:?}");
    let [two, _] = converse(&model, &[FIRST, SECOND], &few).unwrap();
    let second = two.strip_prefix(&one).unwrap();
    let user = |content| Message { role: "user", content };
    let said = Message { role: "assistant", content: one.strip_suffix('\n').unwrap() };
    assert_eq!(one, answer(&model, &[user(FIRST)], 12) + "\n");
    assert_eq!(second, answer(&model, &[user(FIRST), said, user(SECOND)], 12) + "\n");

    // Begun anew, it says the same again; empty lines are nothing, and nothing comes after the end.
    let [again, _] = converse(&model, &[FIRST, "", "/reset", "  ", FIRST, "/exit", SECOND], &few).unwrap();
    assert_eq!(again, one.repeat(2));
    // What it is told beforehand counts, and survives.
    let told = ["--tokens", "12", "--system", "A list of ships of the Royal Navy."];
    let [told, _] = converse(&model, &[FIRST, "/reset", FIRST], &told).unwrap();
    let system = Message { role: "system", content: "A list of ships of the Royal Navy." };
    assert_eq!(told, (answer(&model, &[system, user(FIRST)], 12) + "\n").repeat(2));
}

#[test]
fn a_full_cache_is_told_and_the_conversation_can_begin_anew() {
    let model = model("chat_full");
    let long = FIRST.repeat(20);
    let [out, notes] = converse(&model, &[&long, FIRST, "/reset", FIRST], &["--context", "64", "--tokens", "8"]).unwrap();
    assert_eq!(notes.lines().count(), 1, "{notes}");
    assert!(notes.contains("/reset") && notes.contains("64"), "{notes}");
    let [one, _] = converse(&model, &[FIRST], &["--tokens", "8"]).unwrap();
    assert_eq!(out, one.repeat(2));

    // In the midst of an answer.
    let [out, notes] = converse(&model, &[FIRST], &["--context", "32", "--tokens", "50"]).unwrap();
    assert!(notes.contains("full") && notes.contains("/reset") && notes.contains("32"), "{notes}");
    let [whole, _] = converse(&model, &[FIRST], &["--tokens", "50"]).unwrap();
    assert!(out.len() > 4 && whole.starts_with(out.strip_suffix('\n').unwrap()), "{out:?}, {whole:?}");
}

#[test]
fn a_model_without_a_template_is_refused() {
    let refused = converse(&tiny::embedded(), &[FIRST], &[]).unwrap_err();
    assert!(matches!(&refused, Error::NoTemplate { model } if *model == tiny::embedded()), "{refused}");
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_an_answer_and_at_the_prompt_the_program() {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    let model = model("chat_interrupt");
    let chat = |tokens: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wgkv-llama"));
        command.args(["chat", "--context", "20000", "--tokens", tokens, "--model", model.to_str().unwrap()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        writeln!(input, "{FIRST}").unwrap();
        // An answer is under way.
        output.read_exact(&mut [0; 8]).unwrap();
        (child, input, output)
    };
    let interrupt = |id: u32| assert!(Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap().success());

    // The rest of the answer would take many minutes; the next line is read at once.
    let (mut child, mut input, mut output) = chat("19000");
    interrupt(child.id());
    writeln!(input, "/exit").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with('\n') && rest.len() < 10_000, "{rest}");
    assert!(child.wait().unwrap().success());

    let (mut child, _input, _output) = chat("4");
    while child.try_wait().unwrap().is_none() {
        interrupt(child.id());
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    assert!(child.wait().unwrap().success());
}
