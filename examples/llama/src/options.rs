//! Command-line options that describe a cache, shared by both commands.

use std::path::PathBuf;

use serde::Serialize;
use wgkv::{Bits, Budget, Cache, Codec, Format, Plan, Protection, Shape, Sinks};

use crate::bridge::Bridge;
use crate::config::Config;
use crate::error::Result;
use crate::rope;

/// Which model, on which GPU.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelOptions {
    /// Folder with config.json, tokenizer.json and *.safetensors.
    #[arg(long)]
    pub model: PathBuf,
    /// Part of the GPU's name; the fastest one without it.
    #[arg(long)]
    pub adapter: Option<String>,
}

/// How keys and values are stored.
#[derive(Debug, Clone, clap::Args)]
pub struct CacheOptions {
    /// Codec: f16, rtn, hadamard and the others that wgkv names.
    #[arg(long, default_value = "hadamard")]
    pub codec: Codec,
    /// Bits of a key's element.
    #[arg(long, default_value_t = 4)]
    pub k_bits: u32,
    /// Bits of a value's element.
    #[arg(long, default_value_t = 4)]
    pub v_bits: u32,
    /// Elements that share a scale; 64 (or head_dim where that is less) without it.
    #[arg(long)]
    pub group: Option<u32>,
    /// Part of a group's range that the codes cover, for the codecs that clip; the codec's own choice without it.
    #[arg(long)]
    pub clip: Option<f32>,
    /// Tokens kept in f16 for good: none or first:N.
    #[arg(long)]
    pub sinks: Option<Sinks>,
    /// Recent tokens kept in f16.
    #[arg(long)]
    pub window: Option<u32>,
}

/// The format of a cache with every default filled in, as printed.
#[derive(Debug, Clone, Serialize)]
pub struct CacheSummary {
    /// Codec's name.
    pub codec: String,
    /// Bits of a key's element.
    pub k_bits: u32,
    /// Bits of a value's element.
    pub v_bits: u32,
    /// Elements that share a scale.
    pub group: u32,
    /// Tokens kept in f16 for good.
    pub sinks: String,
    /// Recent tokens kept in f16.
    pub window: u32,
}

impl CacheOptions {
    /// The format for a model.
    pub fn format(&self, config: &Config) -> Result<Format> {
        if self.codec == Codec::F16 {
            return Ok(Format::f16());
        }
        let format = Format::new(self.codec, Bits::try_from(self.k_bits)?, Bits::try_from(self.v_bits)?, self.group(config));
        Ok(match self.clip {
            Some(clip) => format.with_clip(clip),
            None => format,
        })
    }

    /// What stays in f16, unless told otherwise the given defaults.
    pub fn protection(&self, sinks: Sinks, window: u32) -> Protection {
        Protection { sinks: self.sinks.unwrap_or(sinks), window: self.window.unwrap_or(window) }
    }

    /// The same in words and numbers.
    pub fn summary(&self, config: &Config, protection: Protection) -> CacheSummary {
        let plain = self.codec == Codec::F16;
        CacheSummary {
            codec: self.codec.to_string(),
            k_bits: if plain { 16 } else { self.k_bits },
            v_bits: if plain { 16 } else { self.v_bits },
            group: self.group(config),
            sinks: protection.sinks.to_string(),
            window: protection.window,
        }
    }

    fn group(&self, config: &Config) -> u32 {
        self.group.unwrap_or((config.head_dim as u32).min(64))
    }
}

/// Plans a cache for one sequence of this model, compiles its kernels and allocates it.
pub fn open_cache(bridge: &Bridge, config: &Config, format: Format, protection: Protection, tokens: usize) -> Result<Cache> {
    let shape = Shape {
        layers: config.layers as u32,
        query_heads: config.query_heads as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        rope: rope::rope(config),
    };
    let gpu = bridge.gpu();
    let budget = Budget::tokens(1, tokens as u32);
    let plan = Plan::new(shape, format, protection, budget, gpu.capability())?;
    pollster::block_on(gpu.prepare(&plan))?;
    Ok(Cache::new(gpu, plan)?)
}
