//! Where a prompt comes from, and that whatever is refused is named on one line with its cause.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of the tiny model")]
mod tiny;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::json;

/// Runs the program with this standard input.
fn run(words: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgkv-llama"));
    command.args(words).env("RUST_BACKTRACE", "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Not every command reads it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// The one line by which a command is refused.
fn refused(words: &[&str]) -> String {
    let output = run(words, "");
    let said = String::from_utf8(output.stderr).unwrap();
    let said: Vec<&str> = said.lines().filter(|line| !line.contains("XDG_RUNTIME_DIR")).collect();
    assert!(!output.status.success(), "{said:?}");
    assert!(said.len() == 1 && said[0].starts_with("error: "), "{said:?}");
    said[0].to_owned()
}

fn generated(words: &[&str], input: &str) -> serde_json::Value {
    let model = tiny::embedded();
    let output = run(&[&["generate", "--json", "--tokens", "4", "--model", model.to_str().unwrap()], words].concat(), input);
    let out = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

#[test]
fn a_prompt_comes_from_the_command_line_a_file_or_standard_input() {
    let text = "The city of Paris is";
    let file = tiny::folder("prompt_file").join("prompt.txt");
    std::fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap();
    let wanted = generated(&["--prompt", text], "");
    assert_eq!(wanted["tokens"].as_array().unwrap().len(), 4);
    for (words, input) in [(["--prompt-file", path], ""), (["--prompt-file", "-"], text)] {
        let got = generated(&words, input);
        assert_eq!((&got["prompt_tokens"], &got["tokens"]), (&wanted["prompt_tokens"], &wanted["tokens"]));
    }
    // One of the two, and not both.
    for words in [vec!["--prompt", text, "--prompt-file", path], vec![]] {
        let output = run(&[&["generate", "--model", "."], &words[..]].concat(), "");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains("--prompt-file"), "{said}");
    }
}

#[test]
fn a_wrong_path_is_refused_on_one_line_with_its_cause() {
    let text = std::env::temp_dir().join(format!("wgkv-no-such-{}", std::process::id()));
    let path = text.to_str().unwrap();
    let embedded = tiny::embedded();
    let embedded = embedded.to_str().unwrap();
    let cause = std::fs::read(path).unwrap_err().to_string();
    for words in [
        vec!["generate", "--prompt", "The", "--model", path],
        vec!["generate", "--prompt", "The", "--model", embedded, "--plan", path],
        vec!["generate", "--prompt-file", path, "--model", embedded],
        vec!["perplexity", "--text", path, "--model", embedded],
        vec!["chat", "--model", path],
        vec!["bench", "--model", path],
    ] {
        let said = refused(&words);
        assert!(said.contains(path) && said.matches(&cause).count() == 1, "{said}");
    }
}

#[test]
fn what_cannot_be_done_is_named() {
    let embedded = tiny::embedded();
    let embedded = embedded.to_str().unwrap();
    let said = refused(&["chat", "--model", embedded]);
    assert!(said.contains("wiki-8m") && said.contains("no chat template") && said.contains("generate"), "{said}");
    let said = refused(&["generate", "--model", embedded, "--prompt", "The", "--adapter", "no such adapter"]);
    assert!(said.contains("no such adapter") && said.contains("none of ["), "{said}");
    let said = refused(&["generate", "--model", embedded, "--prompt", "The", "--calibration", "x", "--codec", "rtn"]);
    assert!(said.contains("--calibration must be left out with this codec"), "{said}");

    // A model that opens a text with nothing has nothing to go on from, and no windows.
    let folder = tiny::folder("no_opening");
    tiny::write_model(&folder);
    let mut config = tiny::config();
    config["bos_token_id"] = json!(null);
    tiny::write_config(&folder, &config);
    let folder = folder.to_str().unwrap();
    let said = refused(&["generate", "--model", folder, "--prompt", ""]);
    assert!(said.contains("the prompt must be 1 token or more"), "{said}");
    let text = tiny::smoke();
    let said = refused(&["perplexity", "--model", folder, "--text", &text]);
    assert!(said.contains("no opening token") && said.contains("bos_token_id"), "{said}");
    let said = refused(&["perplexity", "--model", embedded, "--text", &text, "--context", "100000"]);
    assert!(said.contains("window(s) of 100000") && said.contains("want 200000"), "{said}");

    // A damaged file.
    let file = tiny::folder("damaged_gguf").join("model.gguf");
    std::fs::write(&file, b"GGUF\x03\0\0\0").unwrap();
    let said = refused(&["generate", "--model", file.to_str().unwrap(), "--prompt", "The"]);
    assert!(said.contains("model.gguf"), "{said}");
}
