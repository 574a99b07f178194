//! What a cache is asked for by models of which some layers have no attention (Qwen3.5, Qwen3-Next,
//! Jamba's kin): their `config.json` alone, since the decoder does not run them.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use wgkv::{Rope, Shape};
use wgkv_decoder::LayerGroup;

use crate::error::{Error, Result};

/// Sizes beyond this are taken for damage.
const LIMIT: u64 = 1 << 16;

/// The part of a `config.json` that tells.
#[derive(Debug, Deserialize)]
struct Raw {
    num_hidden_layers: Option<u64>,
    hidden_size: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    layer_types: Option<Vec<String>>,
    full_attention_interval: Option<u64>,
    sliding_window: Option<u64>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_parameters: Option<RawRope>,
}

#[derive(Debug, Default, Deserialize)]
struct RawRope {
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

/// The layers that have attention, and how many there are in all.
#[derive(Debug, Clone, PartialEq)]
pub struct Hybrid {
    /// Layers of the model.
    pub layers: u32,
    /// Those with attention, by whether they slide, with their numbers in the model.
    pub groups: Vec<LayerGroup>,
}

/// What a layer is, by its name.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Full,
    Sliding,
    None,
}

fn kind(name: &str) -> Result<Kind> {
    match name {
        "full_attention" | "attention" => Ok(Kind::Full),
        "sliding_attention" => Ok(Kind::Sliding),
        "linear_attention" | "mamba" | "mamba2" | "conv" | "recurrent" => Ok(Kind::None),
        other => Err(wrong("layer_types", "full_attention, sliding_attention, linear_attention, mamba, conv or recurrent", other)),
    }
}

fn wrong(name: &str, wanted: impl Into<String>, had: impl ToString) -> Error {
    Error::Option { name: "--config", wanted: format!("one whose {name} is {}", wanted.into()), had: had.to_string() }
}

/// A number that must be there, positive and within reason.
fn number(name: &str, value: Option<u64>) -> Result<u32> {
    match value {
        Some(value @ 1..=LIMIT) => Ok(value as u32),
        Some(other) => Err(wrong(name, format!("1 to {LIMIT}"), other)),
        None => Err(wrong(name, "there", "missing")),
    }
}

impl Hybrid {
    /// Reads a file, if it is one of a model of which some layers have no attention.
    ///
    /// # Errors
    /// [`Error::Read`], and [`Error::Option`] with what such a file lacks or says beyond that.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) else { return Ok(None) };
        // Of models that also see, the text's part.
        if let Some(text) = value.get_mut("text_config") {
            value = text.take();
        }
        let Ok(raw) = serde_json::from_value::<Raw>(value) else { return Ok(None) };
        Self::of(raw)
    }

    fn of(raw: Raw) -> Result<Option<Self>> {
        let kinds: Vec<Kind> = match (&raw.layer_types, raw.full_attention_interval) {
            // Only files that name a layer without attention are this module's.
            (Some(names), _) if names.iter().any(|name| kind(name).is_ok_and(|kind| kind == Kind::None)) => {
                names.iter().map(|name| kind(name)).collect::<Result<_>>()?
            }
            (None, Some(interval)) => {
                let interval = number("full_attention_interval", Some(interval))?;
                let layers = number("num_hidden_layers", raw.num_hidden_layers)?;
                (1..=layers).map(|layer| if layer.is_multiple_of(interval) { Kind::Full } else { Kind::None }).collect()
            }
            _ => return Ok(None),
        };
        let layers = number("num_hidden_layers", raw.num_hidden_layers.or(Some(kinds.len() as u64)))?;
        if kinds.len() != layers as usize {
            return Err(wrong("layer_types", format!("{layers} names, one a layer"), format!("{} names", kinds.len())));
        }
        let query_heads = number("num_attention_heads", raw.num_attention_heads)?;
        let kv_heads = number("num_key_value_heads", raw.num_key_value_heads.or(Some(query_heads.into())))?;
        let head_dim = number("head_dim", raw.head_dim.or(raw.hidden_size.map(|hidden| hidden / u64::from(query_heads))))?;
        let rope = raw.rope_parameters.unwrap_or_default();
        let theta = rope.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0);
        let partial = rope.partial_rotary_factor.or(raw.partial_rotary_factor).unwrap_or(1.0);
        if !(theta.is_finite() && theta > 1.0 && partial > 0.0 && partial <= 1.0) {
            return Err(wrong("rope_theta above 1, and its partial_rotary_factor", "above 0 and 1 at most", format!("{theta} and {partial}")));
        }
        let rope = Rope::new(theta, (f64::from(head_dim) * partial) as u32);
        let group = |wanted: Kind, sliding_window: Option<u32>| {
            let layers: Vec<u32> = kinds.iter().zip(0..).filter(|(kind, _)| **kind == wanted).map(|(_, layer)| layer).collect();
            let shape = Shape { layers: layers.len() as u32, query_heads, kv_heads, head_dim, rope: rope.clone() };
            LayerGroup { layers, shape, sliding_window }
        };
        let mut groups = vec![group(Kind::Full, None)];
        if kinds.contains(&Kind::Sliding) {
            groups.push(group(Kind::Sliding, Some(number("sliding_window", raw.sliding_window)?)));
        }
        groups.retain(|group| !group.layers.is_empty());
        if groups.is_empty() {
            return Err(wrong("layer_types", "of attention in some layer", "of none"));
        }
        Ok(Some(Self { layers, groups }))
    }

    /// Returns how many layers have attention.
    pub fn attention_layers(&self) -> u32 {
        self.groups.iter().map(|group| group.shape.layers).sum()
    }
}
