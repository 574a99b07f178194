//! A page in which a language model writes on wgkv's compressed cache, and what it shows of that
//! cache.
//!
//! The model runs on the GPU, by `wgkv-decoder`. The same code runs in a browser's worker and
//! natively, where the tests compare them. Nothing here blocks: a browser has no way to.

pub mod check;
mod codecs;
mod error;
mod kept;
mod model;
mod picture;
mod session;
mod stream;
#[cfg(target_arch = "wasm32")]
mod web;

pub use codecs::{CODECS, Choice};
pub use error::{Error, Result};
pub use model::{About, Model};
pub use picture::{Map, Picture};
pub use session::{Message, Progress, Session, Settings};
