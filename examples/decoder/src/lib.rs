//! LLaMA-family models entirely on wgpu, natively and in the browser, around wgkv's compressed
//! cache.
//!
//! [`Model`] opens a Hugging Face folder or a GGUF file, [`Decoder`] brings its weights to the GPU as
//! they are stored, [`Work`] has the buffers of a step. All of a token's work is one encoder and one
//! submission:
//!
//! ```text
//! embed -> per layer { norm + q, k, v -> append, attend -> output + residual -> norm + gate, up -> down + residual } -> norm + head -> sample
//! ```
//! [`Session`] does that token after token, and records the next step while the GPU works.

pub mod chat;
mod config;
mod decoder;
mod error;
mod format;
mod gguf;
pub mod kernel;
mod kv_cache;
pub mod layout;
mod matrix;
mod model;
mod recorder;
pub mod reference;
mod session;
mod text;
mod weights;
mod work;

pub use chat::{ChatTemplate, Message};
pub use config::{Activation, Architecture, Config, LayerGroup, RopeScaling};
pub use decoder::{Decoder, LayerRows, Scored, Tap};
pub use error::{Error, Result};
pub use format::{Stored, WeightFormat};
pub use kernel::sample::SampleRow;
pub use kv_cache::KvCache;
pub use model::{Model, Part};
pub use recorder::Recorder;
pub use session::{Sampling, Session};
pub use text::{Stream, Text};
pub use work::Work;
