//! Sensitivities as JSON.

use super::{Head, Sensitivity, check_numbers, wrong};
use crate::error::Result;
use crate::format::{FormatWords, Precision, Rope, Shape, tensors};
use serde::{Deserialize, Serialize};

const FORMAT: &str = "wgkv-sensitivity";
const VERSION: u32 = 1;

/// Bytes of a file at most. 80 layers of 8 heads and 10 candidates are 2 MB.
const FILE_BYTES: usize = 1 << 28;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    model: String,
    storage: FormatWords,
    layers: u32,
    kv_heads: u32,
    head_dim: u32,
    tokens: u64,
    queries: u64,
    candidates: Vec<String>,
    weight_norms: Vec<[f64; 2]>,
    layer_weights: Vec<f64>,
    heads: Vec<HeadFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadFile {
    norms: [f64; 2],
    code_errors: [Vec<f64>; 2],
    output_errors: [Vec<f64>; 2],
    output: f64,
}

impl Sensitivity {
    /// As JSON, which [`Sensitivity::from_json`] reads: `format`, `version`, `model`, what the [`Format`](crate::Format) is, the
    /// shape, `candidates`, and by layer and KV head what was measured, keys before values.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a number is not finite, which JSON has no word for.
    pub fn to_json(&self) -> Result<String> {
        let heads = self.heads.iter().cloned().map(|Head { norms, code_errors, output_errors, output }| HeadFile { norms, code_errors, output_errors, output });
        let file = File {
            format: FORMAT.into(),
            version: VERSION,
            model: self.model.clone(),
            storage: FormatWords::of(&self.format),
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            tokens: self.tokens,
            queries: self.queries,
            candidates: self.candidates.iter().map(Precision::to_string).collect(),
            weight_norms: self.weight_norms.clone(),
            layer_weights: self.layer_weights.clone(),
            heads: heads.collect(),
        };
        serde_json::to_string(&file).or_else(|e| wrong("file", "numbers that JSON has", e))
    }

    /// From what [`Sensitivity::to_json`] wrote.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for another format or version, and numbers that do not fit each other or are
    /// not finite; [`Error::Mismatch`](crate::Error::Mismatch), [`Error::Bits`](crate::Error::Bits), [`Error::Codec`](crate::Error::Codec),
    /// [`Error::Mismatch`](crate::Error::Mismatch) and [`Error::Group`](crate::Error::Group) for words and numbers that mean nothing here.
    pub fn from_json(text: &str) -> Result<Self> {
        if text.len() > FILE_BYTES {
            return wrong("file", format!("{FILE_BYTES} bytes at most"), format!("{} bytes long", text.len()));
        }
        let file: File = serde_json::from_str(text).or_else(|e| wrong("file", "what wgkv writes", e))?;
        if file.format != FORMAT {
            return wrong("format", FORMAT, format!("{:?}", file.format));
        }
        if file.version != VERSION {
            return wrong("version", VERSION, file.version);
        }
        let candidates: Vec<Precision> = file.candidates.iter().map(|c| c.parse()).collect::<Result<_>>()?;
        let count = u64::from(file.layers) * u64::from(file.kv_heads);
        if file.heads.len() as u64 != count || count == 0 {
            return wrong("heads", format!("{count}, layers times kv_heads, and not 0"), file.heads.len());
        }
        if candidates.is_empty() {
            return wrong("candidates", "1 or more", 0);
        }
        let format = file.storage.format()?;
        if format.codec().is_f16() {
            return wrong("codec", "one that has codes", format.codec());
        }
        let shape = Shape { layers: file.layers, query_heads: file.kv_heads, kv_heads: file.kv_heads, head_dim: file.head_dim, rope: Rope::none() };
        shape.check()?;
        for candidate in &candidates {
            format.with_precisions(*candidate, *candidate).check(&shape)?;
        }
        if !file.weight_norms.is_empty() {
            check_numbers("weight norms", file.layers, file.weight_norms.len(), file.weight_norms.iter().flatten())?;
        }
        check_numbers("layer weights", file.layers, file.layer_weights.len(), file.layer_weights.iter())?;
        for (head, n) in file.heads.iter().zip(0..) {
            let name = format!("numbers of layer {}, head {}", n / file.kv_heads, n % file.kv_heads);
            let lists = head.code_errors.iter().chain(&head.output_errors);
            if let Some(list) = lists.clone().find(|list| list.len() != candidates.len()) {
                return wrong(name, format!("{}, one a candidate", candidates.len()), list.len());
            }
            if let Some(bad) = lists.flatten().chain(&head.norms).chain([&head.output]).find(|x| !(x.is_finite() && **x >= 0.0)) {
                return wrong(name, "finite and 0 or more", bad);
            }
        }
        let heads = file.heads.into_iter().map(|HeadFile { norms, code_errors, output_errors, output }| Head { norms, code_errors, output_errors, output });
        Ok(Self {
            model: file.model,
            format,
            layers: file.layers,
            kv_heads: file.kv_heads,
            head_dim: file.head_dim,
            candidates,
            tokens: file.tokens,
            queries: file.queries,
            weight_norms: file.weight_norms,
            layer_weights: file.layer_weights,
            heads: heads.collect(),
        })
    }

    /// Writes [`Sensitivity::to_json`] to a file.
    ///
    /// # Errors
    /// As [`Sensitivity::to_json`], and [`Error::Mismatch`](crate::Error::Mismatch) where the file
    /// cannot be written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        tensors::save(path.as_ref(), self.to_json()?.as_bytes())
    }

    /// Reads a file that [`Sensitivity::save`] wrote.
    ///
    /// # Errors
    /// As [`Sensitivity::from_json`], and [`Error::Mismatch`](crate::Error::Mismatch) where the file
    /// cannot be read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<Self> {
        let bytes = tensors::load(path.as_ref(), FILE_BYTES)?;
        Self::from_json(std::str::from_utf8(&bytes).or_else(|e| wrong("file", "UTF-8", e))?)
    }
}
