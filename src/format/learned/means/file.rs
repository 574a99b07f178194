//! Means and weights as safetensors: tensors `key_means`, `weights` and `value_means`, F32 `[layers, kv_heads, head_dim]`, and metadata
//! that say what for.

use super::{Layer, Means, wrong};
use crate::error::{Error, Result, Thing};
use crate::format::tensors::{self, Texts};
use crate::format::{Rope, Shape};
use safetensors::tensor::{Dtype, Metadata};
use std::str::FromStr;

const FORMAT: &str = "wgkv-centre";
const VERSION: &str = "1";

/// Bytes of a file at most, and of its header. 80 layers of 16384 channels are 16 MB.
const FILE_BYTES: usize = 1 << 28;
const HEADER_BYTES: usize = 1 << 20;

const TENSORS: [&str; 3] = ["key_means", "weights", "value_means"];

fn hash(texts: &Texts<'_>, tensors: [&[u8]; 3]) -> String {
    tensors::hash(tensors::pieces(texts).chain(tensors))
}

fn number<T: FromStr>(name: &'static str, text: &str) -> Result<T> {
    text.parse().or_else(|_| wrong(name, "a number", format!("{text:?}")))
}

/// The header, after checks that keep the parser from large numbers.
fn header(bytes: &[u8]) -> Result<(Metadata, &[u8])> {
    if bytes.len() > FILE_BYTES {
        return wrong("file", format!("{FILE_BYTES} bytes at most"), format!("{} bytes long", bytes.len()));
    }
    tensors::header(bytes, HEADER_BYTES, |name, wanted, had| Error::mismatch(Thing::Means, name, wanted, had))
}

impl Means {
    /// As the bytes of a safetensors file, which [`Means::from_bytes`] reads. Metadata: `format`, `version`, `model`, `tokens`, `skipped`,
    /// and `hash`, the SHA-256 over all others and the tensors. Tensors: `key_means`, `weights` and `value_means`, F32
    /// `[layers, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for more than 2^28 bytes, and for a model's name of more than some 2^20.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let tensors = self.tensors();
        let [tokens, skipped] = [self.tokens, self.skipped].map(|n| n.to_string());
        let mut texts: Texts<'_> =
            [("format", FORMAT), ("version", VERSION), ("model", &self.model), ("tokens", &tokens), ("skipped", &skipped)].into_iter().collect();
        let hash = hash(&texts, tensors.each_ref().map(Vec::as_slice));
        texts.insert("hash", &hash);
        let shape = vec![self.layers.len(), self.kv_heads as usize, self.head_dim as usize];
        let views = TENSORS.iter().zip(&tensors).map(|(name, data)| (*name, Dtype::F32, shape.clone(), data.as_slice()));
        let bytes = tensors::write(views, &texts, |had| Error::mismatch(Thing::Means, "tensors", "as safetensors wants them", had))?;
        // Nothing is written that could not be read.
        header(&bytes)?;
        Ok(bytes)
    }

    /// SHA-256, in hex, of the means and weights: what decides how tokens are stored.
    pub fn fingerprint(&self) -> String {
        let tensors = self.tensors();
        hash(&Texts::new(), tensors.each_ref().map(Vec::as_slice))
    }

    /// The bytes of the three tensors.
    fn tensors(&self) -> [Vec<u8>; 3] {
        let bytes = |of: fn(&Layer) -> &Vec<f32>| self.layers.iter().flat_map(of).flat_map(|x| x.to_le_bytes()).collect();
        [bytes(|layer| &layer.key_means), bytes(|layer| &layer.weights), bytes(|layer| &layer.value_means)]
    }

    /// From the bytes of a safetensors file that [`Means::to_bytes`] made. Everything is checked, so that damage, and files of other
    /// programs, are refused.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for another format or version, a hash that is not that of the content, tensors of other types
    /// or shapes, numbers that cannot be used.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (metadata, data) = header(bytes)?;
        let mut texts = tensors::texts(&metadata);
        let text = |name: &'static str| texts.get(name).copied().map_or_else(|| wrong(name, "there", "missing"), Ok);
        for (name, wanted) in [("format", FORMAT), ("version", VERSION)] {
            let had = text(name)?;
            if had != wanted {
                return wrong(name, wanted, format!("{had:?}"));
            }
        }
        let (model, tokens, skipped, told) =
            (text("model")?.to_owned(), number("tokens", text("tokens")?)?, number("skipped", text("skipped")?)?, text("hash")?.to_owned());
        let shape = metadata.info(TENSORS[0]).map(|info| info.shape.clone()).filter(|shape| shape.len() == 3);
        let Some(shape) = shape else {
            return wrong(TENSORS[0], "[layers, kv_heads, head_dim]", "not");
        };
        let mut tensors = Vec::with_capacity(TENSORS.len());
        for name in TENSORS {
            tensors.push(tensors::tensor(&metadata, data, name, Dtype::F32, &shape, |wanted, had| Error::mismatch(Thing::Means, name, wanted, had))?);
        }
        if metadata.tensors().len() != TENSORS.len() {
            return wrong("tensors", "three", metadata.tensors().len());
        }
        texts.remove("hash");
        let hash = hash(&texts, [tensors[0], tensors[1], tensors[2]]);
        if hash != told {
            return wrong("hash", format!("{hash}, that of its content"), format!("{told:?}"));
        }
        let size = |n: usize| u32::try_from(shape[n]).or_else(|_| wrong("shape", "of 32 bits", shape[n]));
        let (layers, kv_heads, head_dim) = (size(0)?, size(1)?, size(2)?);
        Shape { layers, query_heads: kv_heads, kv_heads, head_dim, rope: Rope::none() }.check()?;
        let channels = shape[1] * shape[2];
        let row = |tensor: usize, layer: usize| -> Vec<f32> {
            tensors[tensor].as_chunks::<4>().0[layer * channels..][..channels].iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let layers = (0..shape[0]).map(|n| Layer { key_means: row(0, n), weights: row(1, n), value_means: row(2, n) }).collect();
        let centre = Self { model, tokens, skipped, kv_heads, head_dim, layers };
        centre.check()?;
        Ok(centre)
    }

    /// Writes [`Means::to_bytes`] to a file.
    ///
    /// # Errors
    /// As [`Means::to_bytes`], and [`Error::Io`](crate::Error::Io) where the file cannot be written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        tensors::save(path.as_ref(), &self.to_bytes()?)
    }

    /// Reads a file that [`Means::save`] wrote.
    ///
    /// # Errors
    /// As [`Means::from_bytes`], and [`Error::Io`](crate::Error::Io) where the file cannot be read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<Self> {
        let bytes = tensors::load(path.as_ref(), FILE_BYTES)?;
        Self::from_bytes(&bytes)
    }
}
