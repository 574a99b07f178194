//! Sensitivities as JSON.

use super::{Head, Sensitivity, check_numbers, wrong};
use crate::error::{Result, Thing};
use crate::format::file::Json;
use crate::format::{FormatWords, Precision, Rope, Shape};
use serde::{Deserialize, Serialize};

/// 80 layers of 8 heads and 10 candidates are 2 MB.
const FILE: Json = Json { thing: Thing::Sensitivity, format: "wgkv-sensitivity", version: 1, file_bytes: 1 << 28 };

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    model: String,
    /// Left out where nothing was learned.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    learned: String,
    storage: FormatWords,
    layers: u32,
    kv_heads: u32,
    head_dim: u32,
    tokens: u64,
    queries: u64,
    candidates: Vec<String>,
    weight_norms: Vec<[f64; 2]>,
    layer_weights: Vec<f64>,
    heads: Vec<Head>,
}

impl Sensitivity {
    /// Returns the sensitivity as JSON, which [`Sensitivity::from_json`] reads: `format`,
    /// `version`, `model`, what the [`Format`](crate::Format) is, the shape, `candidates`, and by
    /// layer and KV head what was measured, keys before values.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a number is not finite, which JSON has no
    /// word for.
    pub fn to_json(&self) -> Result<String> {
        let file = File {
            format: FILE.format.into(),
            version: FILE.version,
            model: self.model.clone(),
            learned: self.learned.clone(),
            storage: FormatWords::of(&self.format),
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            tokens: self.tokens,
            queries: self.queries,
            candidates: self.candidates.iter().map(Precision::to_string).collect(),
            weight_norms: self.weight_norms.clone(),
            layer_weights: self.layer_weights.clone(),
            heads: self.heads.clone(),
        };
        FILE.write(&file, false)
    }

    /// Reads what [`Sensitivity::to_json`] wrote.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) of the sensitivity for another format or
    /// version, and numbers that do not fit each other or are not finite; of an argument,
    /// [`Error::Bits`](crate::Error::Bits), [`Error::Codec`](crate::Error::Codec) and
    /// [`Error::Group`](crate::Error::Group) for words and numbers that mean nothing here.
    pub fn from_json(text: &str) -> Result<Self> {
        let file: File = FILE.read(text, |file: &File| (&file.format, file.version))?;
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
        Ok(Self {
            model: file.model,
            learned: file.learned,
            format,
            layers: file.layers,
            kv_heads: file.kv_heads,
            head_dim: file.head_dim,
            candidates,
            tokens: file.tokens,
            queries: file.queries,
            weight_norms: file.weight_norms,
            layer_weights: file.layer_weights,
            heads: file.heads,
        })
    }

    /// Writes [`Sensitivity::to_json`] to a file.
    ///
    /// # Errors
    /// Those of [`Sensitivity::to_json`], and [`Error::Io`](crate::Error::Io) where the file cannot
    /// be written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        FILE.save(path.as_ref(), &self.to_json()?)
    }

    /// Reads a file that [`Sensitivity::save`] wrote.
    ///
    /// # Errors
    /// Those of [`Sensitivity::from_json`], and [`Error::Io`](crate::Error::Io) where the file
    /// cannot be read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::from_json(&FILE.load(path.as_ref())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What wgkv 0.1 wrote.
    const OLD: &str = concat!(
        r#"{"format":"wgkv-sensitivity","version":1,"model":"a model","storage":{"codec":"rotate-kv","scales":"f16","clip":null,"#,
        r#""heads_per_group":1},"layers":1,"kv_heads":1,"head_dim":128,"tokens":2048,"queries":96,"candidates":["2/128","4/64"],"#,
        r#""weight_norms":[[1.5,0.1]],"layer_weights":[0.25],"heads":[{"norms":[8.0,4.0],"code_errors":[[1.0,0.5],[0.75,1e-300]],"#,
        r#""output_errors":[[0.1,0.01],[0.2,0.02]],"output":3.0}]}"#,
    );

    #[test]
    fn a_file_of_an_older_version_is_read_and_written_byte_for_byte() {
        let read = Sensitivity::from_json(OLD).unwrap();
        assert_eq!((read.model(), read.tokens(), read.queries(), read.format().codec()), ("a model", 2048, 96, crate::Codec::RotateKv));
        assert_eq!(read.candidates(), [Precision::new(crate::Bits::Two, 128), Precision::new(crate::Bits::Four, 64)]);
        assert_eq!((read.weight_norms(0), read.layer_weight(0), read.output(0, 0)), (Some([1.5, 0.1]), 0.25, 3.0));
        assert_eq!(read.output_errors(0, 0, crate::bits::Kind::Value), [0.2, 0.02]);
        assert_eq!(read.to_json().unwrap(), OLD);
    }
}
