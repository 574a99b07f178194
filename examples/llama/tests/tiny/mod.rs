//! The decoder's tiny model, and what the tests of commands share beside it.

#[path = "../../../decoder/tests/tiny/mod.rs"]
mod model;

use std::path::{Path, PathBuf};

#[allow(unused_imports, reason = "each test file uses its own part")]
pub use model::*;

/// Returns options of a command, as typed.
pub fn options<T: clap::Args>(words: &[&str]) -> T {
    T::from_arg_matches(&T::augment_args(clap::Command::new("test")).get_matches_from([&["test"], words].concat())).unwrap()
}

/// The model that the project embeds.
pub fn embedded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/wiki-8m")
}

/// The text of the tests.
pub fn smoke() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smoke.txt").to_str().unwrap().to_owned()
}
