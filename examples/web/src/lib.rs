//! A LLaMA decoder in plain Rust around wgkv's compressed cache, and what a page shows of it.
//!
//! The model is small, so its dense layers run on the CPU; keys and values go to the GPU, stay there in codes, and attention comes back. The
//! same code runs in a browser's worker and natively, where the tests compare them. Nothing here blocks: a browser has no way to.

mod attention;
pub mod check;
mod codecs;
mod decoder;
mod error;
mod matrix;
mod picture;
#[path = "../../llama/src/sampler.rs"]
mod sampler;
mod session;
mod text;
#[cfg(target_arch = "wasm32")]
mod web;

pub use attention::Attention;
pub use codecs::{CODECS, Choice};
pub use decoder::{Config, Decoder};
pub use error::{Error, Result};
pub use picture::{Map, Picture};
pub use session::{Model, Progress, Session, Settings};
