//! Safetensors files, read tensor by tensor so that a model never lies in memory twice.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::format::{Stored, WeightFormat};
use crate::model::{Source, read_error};

/// Bytes that say how long a header is.
const PREFIX: u64 = 8;
/// A header longer than this is taken for damage, as the format's own reader does.
const HEADER_LIMIT: u64 = 100_000_000;
/// Bytes of one sample of a tensor, for the model's hash.
const SAMPLE: u64 = 4096;
/// Samples of one tensor: an eighth of a million bytes, so that a model of 8 billion parameters is
/// hashed in well under a second.
const SAMPLES: u64 = 32;

/// All weight files of a model, headers read and lengths checked.
#[derive(Debug)]
pub(crate) struct Weights {
    files: Vec<WeightFile>,
    places: HashMap<String, usize>,
}

#[derive(Debug)]
struct WeightFile {
    source: Source,
    metadata: Metadata,
    data: u64,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Opens what `model.safetensors.index.json` lists or, without one, every `*.safetensors` of
    /// the folder but wgkv's own.
    pub fn open(directory: &Path) -> Result<Self> {
        let index = directory.join("model.safetensors.index.json");
        let mut paths: Vec<PathBuf> = if index.exists() {
            let text = std::fs::read_to_string(&index).map_err(read_error(&index))?;
            let Index { weight_map } = serde_json::from_str(&text).map_err(|source| Error::Json { path: index, source })?;
            weight_map.into_values().map(|name| directory.join(name)).collect()
        } else {
            let mut paths = Vec::new();
            for entry in std::fs::read_dir(directory).map_err(read_error(directory))? {
                let path = entry.map_err(read_error(directory))?.path();
                if path.extension().is_some_and(|end| end == "safetensors") {
                    paths.push(path);
                }
            }
            paths
        };
        paths.sort();
        paths.dedup();
        let mut files = paths.into_iter().map(|path| WeightFile::open(Source::File(path))).collect::<Result<Vec<_>>>()?;
        files.retain(|file| !file.is_wgkv());
        if files.is_empty() {
            return Err(Error::NoWeights { path: directory.to_owned() });
        }
        Self::of(files)
    }

    /// Opens one file that lies in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::of(vec![WeightFile::open(Source::Bytes(bytes))?])
    }

    fn of(files: Vec<WeightFile>) -> Result<Self> {
        let mut places: HashMap<String, usize> = HashMap::new();
        for (place, file) in files.iter().enumerate() {
            for name in file.metadata.offset_keys() {
                if let Some(first) = places.insert(name.clone(), place) {
                    return Err(Error::TensorTwice { name, first: files[first].source.path(), second: file.source.path() });
                }
            }
        }
        Ok(Self { files, places })
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    fn find(&self, name: &str) -> Option<(&WeightFile, &TensorInfo)> {
        let file = &self.files[*self.places.get(name)?];
        Some((file, file.metadata.info(name)?))
    }

    /// A tensor's shape, and its format or the name of one that is not read here.
    pub fn describe(&self, name: &str) -> Option<(&[usize], std::result::Result<WeightFormat, String>)> {
        let (_, info) = self.find(name)?;
        let format = match info.dtype {
            Dtype::F32 => Ok(WeightFormat::F32),
            Dtype::F16 => Ok(WeightFormat::F16),
            Dtype::BF16 => Ok(WeightFormat::Bf16),
            other => Err(format!("{other:?}")),
        };
        Some((&info.shape, format))
    }

    /// Some rows of a tensor whose shape and format have been checked.
    pub fn rows(&self, name: &str, rows: std::ops::Range<usize>) -> Result<Stored> {
        let missing = || Error::TensorMissing { name: name.to_owned(), wanted: Vec::new(), files: self.files.len() };
        let (file, info) = self.find(name).ok_or_else(missing)?;
        let format = self.describe(name).and_then(|(_, format)| format.ok()).ok_or_else(missing)?;
        let columns = info.shape.last().copied().unwrap_or(1);
        let row_bytes = columns * format.block_bytes();
        let start = file.data + (info.data_offsets.0 + rows.start * row_bytes) as u64;
        Ok(Stored { rows: rows.len(), columns, format, bytes: file.source.read(start, rows.len() * row_bytes)? })
    }

    /// Hands over, in the order of the tensors' names, each one's name, element type and shape,
    /// followed by samples of its bytes. It does not depend on how tensors are spread over files.
    pub fn content(&self, mut seen: impl FnMut(&[u8])) -> Result<()> {
        let mut names: Vec<&String> = self.places.keys().collect();
        names.sort();
        for name in names {
            let Some((file, info)) = self.find(name) else { continue };
            title(&format!("{name} {:?} {:?}", info.dtype, info.shape), &mut seen);
            let (start, end) = info.data_offsets;
            sampled(&file.source, file.data + start as u64, (end - start) as u64, &mut seen)?;
        }
        Ok(())
    }
}

/// Hands over a text after its length, so that no two different models are one sequence of bytes.
pub(crate) fn title(text: &str, seen: &mut impl FnMut(&[u8])) {
    seen(&(text.len() as u64).to_le_bytes());
    seen(text.as_bytes());
}

/// Hands over a tensor's bytes. Of more than 128 KiB only 32 samples of 4 KiB count, evenly spread
/// from the first byte to the last.
pub(crate) fn sampled(source: &Source, start: u64, bytes: u64, seen: &mut impl FnMut(&[u8])) -> Result<()> {
    for place in samples(bytes) {
        seen(&source.read(start + place, SAMPLE.min(bytes - place) as usize)?);
    }
    Ok(())
}

/// Returns where the samples of a tensor begin: all of them, or some spread evenly.
fn samples(bytes: u64) -> Vec<u64> {
    if bytes <= SAMPLE * SAMPLES {
        return (0..bytes).step_by(SAMPLE as usize).collect();
    }
    (0..SAMPLES).map(|number| (bytes - SAMPLE) * number / (SAMPLES - 1)).collect()
}

impl WeightFile {
    /// Is it one of wgkv's own files, such as a calibration, which may lie beside the weights? Were
    /// it taken for weights, it would change the hash of the very model that it names.
    fn is_wgkv(&self) -> bool {
        self.metadata.metadata().as_ref().and_then(|texts| texts.get("format")).is_some_and(|format| format.starts_with("wgkv-"))
    }

    fn open(source: Source) -> Result<Self> {
        let path = source.path();
        let found = source.length()?;
        let short = |wanted| Error::Length { path: path.clone(), wanted, found };
        let broken = |reason: String| Error::Header { path: path.clone(), reason };
        if found < PREFIX {
            return Err(short(PREFIX));
        }
        let mut reader = source.reader()?;
        let mut prefix = [0; PREFIX as usize];
        reader.read_exact(&mut prefix).map_err(read_error(&path))?;
        let header = u64::from_le_bytes(prefix);
        if header > HEADER_LIMIT {
            return Err(broken(format!("it claims {header} bytes, at most {HEADER_LIMIT} are believed")));
        }
        let data = PREFIX + header;
        if found < data {
            return Err(short(data));
        }
        let mut text = vec![0; header as usize];
        reader.read_exact(&mut text).map_err(read_error(&path))?;
        drop(reader);
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        let wanted = data + metadata.data_len() as u64;
        if found != wanted {
            return Err(short(wanted));
        }
        Ok(Self { source, metadata, data })
    }
}

#[cfg(test)]
mod tests {
    use super::{SAMPLE, SAMPLES, samples};

    #[test]
    fn samples_cover_small_tensors_and_reach_the_end_of_large_ones() {
        assert!(samples(0).is_empty());
        assert_eq!(samples(5), [0]);
        assert_eq!(samples(SAMPLE + 1), [0, SAMPLE]);
        let large = samples(10_000_001);
        assert_eq!((large.len() as u64, large[0], large[large.len() - 1]), (SAMPLES, 0, 10_000_001 - SAMPLE));
        assert!(large.windows(2).all(|pair| pair[1] >= pair[0] + SAMPLE));
    }
}
