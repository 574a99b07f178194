//! LLaMA-family models on burn, with wgkv holding their keys and values: text generation, and the measure of what a
//! compressed cache costs and saves.

pub mod align_report;
pub mod analyze;
pub mod attention;
pub mod bridge;
pub mod calibrate;
pub mod capacity;
pub mod compressed;
pub mod config;
pub mod decode_memory;
pub mod error;
pub mod generate;
pub mod model;
pub mod options;
pub mod perplexity;
pub mod pictures;
pub mod plan;
pub mod rope;
pub mod sampler;
pub mod sensitivity;
pub mod simulate;
pub mod text;
pub mod tradeoff;
pub mod weights;
