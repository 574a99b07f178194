//! Means and weights as safetensors: tensors `key_means`, `weights` and `value_means`, F32
//! `[layers, kv_heads, head_dim]`, and texts that say what they are for.

use super::{Layer, Means, wrong};
use crate::error::{Result, Thing};
use crate::format::file::Envelope;
use crate::format::{Rope, Shape, tensors};
use safetensors::tensor::Dtype;

static FILE: Envelope<'static> = Envelope {
    thing: Thing::Means,
    fixed: &[("format", "wgkv-centre"), ("version", "1")],
    // 80 layers of 16384 channels are 16 MB.
    file_bytes: 1 << 28,
    header_bytes: 1 << 20,
    hashes_tensors: true,
};

const TENSORS: [&str; 3] = ["key_means", "weights", "value_means"];

impl Means {
    /// Returns the bytes of a safetensors file, which [`Means::from_bytes`] reads.
    ///
    /// Metadata: `format`, `version`, `model`, `tokens`, `skipped`, and `hash`, the SHA-256 over
    /// all others and the tensors. Tensors: `key_means`, `weights` and `value_means`, F32
    /// `[layers, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for more than 2^28 bytes, and for a model's name
    /// of more than some 2^20.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let [tokens, skipped] = [self.tokens, self.skipped].map(|n| n.to_string());
        let shape = vec![self.layers.len(), self.kv_heads as usize, self.head_dim as usize];
        let bytes = self.tensors();
        let tensors = [0, 1, 2].map(|n| (TENSORS[n], Dtype::F32, shape.clone(), &bytes[n][..]));
        FILE.write([("model", self.model.as_str()), ("tokens", &tokens), ("skipped", &skipped)], &tensors)
    }

    /// Returns the SHA-256, in hex, of the means and weights: what decides how tokens are stored.
    pub fn fingerprint(&self) -> String {
        tensors::hash(self.tensors().iter().map(Vec::as_slice))
    }

    /// Returns the bytes of the three tensors.
    fn tensors(&self) -> [Vec<u8>; 3] {
        let bytes = |of: fn(&Layer) -> &Vec<f32>| self.layers.iter().flat_map(of).flat_map(|x| x.to_le_bytes()).collect();
        [bytes(|layer| &layer.key_means), bytes(|layer| &layer.weights), bytes(|layer| &layer.value_means)]
    }

    /// Reads the bytes of a safetensors file that [`Means::to_bytes`] made. Everything is checked,
    /// so that damage, and files of other programs, are refused.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for another format or version, a hash that is
    /// not that of the content, tensors of other types or shapes, numbers that cannot be used.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let file = FILE.read(bytes)?;
        let (model, tokens, skipped) = (file.text("model")?.to_owned(), file.number("tokens")?, file.number("skipped")?);
        let Some(shape) = file.shape(TENSORS[0]).filter(|shape| shape.len() == 3) else {
            return wrong(TENSORS[0], "[layers, kv_heads, head_dim]", "not");
        };
        let mut tensors = Vec::with_capacity(TENSORS.len());
        for name in TENSORS {
            tensors.push(file.tensor(name, Dtype::F32, shape)?);
        }
        file.check(&tensors)?;
        let size = |n: usize| u32::try_from(shape[n]).or_else(|_| wrong("shape", "of 32 bits", shape[n]));
        let (layers, kv_heads, head_dim) = (size(0)?, size(1)?, size(2)?);
        Shape { layers, query_heads: kv_heads, kv_heads, head_dim, rope: Rope::none() }.check()?;
        let channels = shape[1] * shape[2];
        let row = |tensor: usize, layer: usize| -> Vec<f32> {
            tensors[tensor].as_chunks::<4>().0[layer * channels..][..channels].iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let layers = (0..shape[0]).map(|n| Layer { key_means: row(0, n), weights: row(1, n), value_means: row(2, n) }).collect();
        let means = Self { model, tokens, skipped, kv_heads, head_dim, layers };
        means.check()?;
        Ok(means)
    }

    /// Writes [`Means::to_bytes`] to a file.
    ///
    /// # Errors
    /// Those of [`Means::to_bytes`], and [`Error::Io`](crate::Error::Io) where the file cannot be
    /// written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        FILE.save(path.as_ref(), &self.to_bytes()?)
    }

    /// Reads a file that [`Means::save`] wrote.
    ///
    /// # Errors
    /// Those of [`Means::from_bytes`], and [`Error::Io`](crate::Error::Io) where the file cannot be
    /// read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::from_bytes(&FILE.load(path.as_ref())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What wgkv 0.1 wrote for one head of 64 channels: means `c / 4` and `-c`, weights 1 and 2.
    const HEADER: &str = concat!(
        r#"{"__metadata__":{"skipped":"1","hash":"0646a56b5141b5532d54a52bc7c8163f0e129748f4c0668523baf9fe43126ef7","#,
        r#""model":"a model","version":"1","tokens":"9","format":"wgkv-centre"},"key_means":{"dtype":"F32","shape":[1,1,64],"data_offsets":[0,256]},"#,
        r#""value_means":{"dtype":"F32","shape":[1,1,64],"data_offsets":[256,512]},"weights":{"dtype":"F32","shape":[1,1,64],"data_offsets":[512,768]}}"#,
    );

    #[test]
    fn a_file_of_an_older_version_is_read_and_its_content_written_again() {
        let keys: Vec<f32> = (0..64).map(|c| c as f32 / 4.0).collect();
        let values: Vec<f32> = (0..64).map(|c| -(c as f32)).collect();
        let weights: Vec<f32> = (0..64).map(|c| (1 + c % 2) as f32).collect();
        let data: Vec<u8> = [&keys, &values, &weights].into_iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        let bytes = [&(HEADER.len() as u64).to_le_bytes()[..], HEADER.as_bytes(), &data].concat();
        let means = Means::from_bytes(&bytes).unwrap();
        assert_eq!((means.model(), means.tokens(), means.skipped()), ("a model", 9, 1));
        assert_eq!((means.key_means(0), means.weights(0), means.value_means(0)), (&keys[..], &weights[..], &values[..]));
        let again = means.to_bytes().unwrap();
        assert!(again.ends_with(&data));
        let (old, new) = (FILE.read(&bytes).unwrap(), FILE.read(&again).unwrap());
        for name in ["format", "version", "model", "tokens", "skipped", "hash"] {
            assert_eq!(old.text(name), new.text(name));
        }
    }
}
