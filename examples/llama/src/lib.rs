//! What can be done with a LLaMA-family model and wgkv's cache: chat and continue a text, learn
//! from the model what codecs want, and measure what a compressed cache costs and saves. The models
//! run on `wgkv-decoder`.

pub mod align_report;
pub mod analyze;
pub mod bench;
pub mod calibrate;
pub mod capacity;
pub mod chat;
pub mod decode_memory;
pub mod device;
pub mod directions;
pub mod error;
pub mod generate;
pub mod hybrid;
pub mod options;
pub mod perplexity;
pub mod pictures;
pub mod plan;
pub mod reading;
pub mod sensitivity;
pub mod simulate;
pub mod tradeoff;
