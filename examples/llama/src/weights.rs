//! Safetensors files, read tensor by tensor so that a model never lies in memory twice.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Bytes that say how long a header is.
const PREFIX: u64 = 8;
/// A header longer than this is taken for damage, as the format's own reader does.
const HEADER_LIMIT: u64 = 100_000_000;
/// Bytes of one sample of a tensor, for the model's hash.
const SAMPLE: u64 = 4096;
/// Samples of one tensor: an eighth of a million bytes, so that a model of 8 billion parameters is hashed in well under a second.
const SAMPLES: u64 = 32;

/// All weight files of a folder, headers read and lengths checked.
#[derive(Debug)]
pub struct Weights {
    files: Vec<WeightFile>,
    places: HashMap<String, usize>,
}

#[derive(Debug)]
struct WeightFile {
    path: PathBuf,
    metadata: Metadata,
    data: u64,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Opens what `model.safetensors.index.json` lists or, without one, every `*.safetensors` of the folder but wgkv's own.
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
        let mut files = paths.into_iter().map(WeightFile::open).collect::<Result<Vec<_>>>()?;
        files.retain(|file| !file.is_wgkv());
        if files.is_empty() {
            return Err(Error::NoWeights { path: directory.to_owned() });
        }
        let places = files.iter().enumerate().flat_map(|(place, file)| file.metadata.offset_keys().into_iter().map(move |name| (name, place))).collect();
        Ok(Self { files, places })
    }

    /// Whether a tensor of this name exists.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// One tensor as f32, refused unless it has exactly this shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let missing = || Error::TensorMissing { name: name.to_owned(), wanted: shape.to_vec(), files: self.files.len() };
        let file = &self.files[*self.places.get(name).ok_or_else(missing)?];
        let info = file.metadata.info(name).ok_or_else(missing)?;
        if info.shape != shape {
            return Err(Error::TensorShape { name: name.to_owned(), wanted: shape.to_vec(), found: info.shape.clone() });
        }
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        File::open(&file.path)
            .and_then(|mut opened| {
                opened.seek(SeekFrom::Start(file.data + start as u64))?;
                opened.read_exact(&mut bytes)
            })
            .map_err(read_error(&file.path))?;
        match info.dtype {
            Dtype::F32 => Ok(widen(&bytes, f32::from_le_bytes)),
            Dtype::F16 => Ok(widen(&bytes, |pair| f16::from_le_bytes(pair).to_f32())),
            Dtype::BF16 => Ok(widen(&bytes, |pair| bf16::from_le_bytes(pair).to_f32())),
            other => Err(Error::TensorElement { name: name.to_owned(), found: format!("{other:?}") }),
        }
    }
}

/// A name for a model by its content: SHA-256 over `config.json`, then over every tensor in the order of their names its name,
/// element type, shape and bytes, in hexadecimal. It does not depend on how tensors are spread over files.
///
/// Of a tensor with more than 128 KiB only 32 samples of 4 KiB count, evenly spread from its first byte to its last. Another
/// training run, a fine-tuned or otherwise converted model differs there; a single number changed by hand need not. The hash
/// guards against a mistake, not against intent.
///
/// # Errors
/// As [`Weights::open`], and [`Error::Read`].
pub fn model_hash(directory: &Path) -> Result<String> {
    let weights = Weights::open(directory)?;
    let config = directory.join("config.json");
    let mut hash = Sha256::new();
    // Lengths go first, so that no two different models are one sequence of bytes.
    let config = std::fs::read(&config).map_err(read_error(&config))?;
    hash.update((config.len() as u64).to_le_bytes());
    hash.update(&config);
    let mut names: Vec<&String> = weights.places.keys().collect();
    names.sort();
    let mut sample = vec![0; SAMPLE as usize];
    for name in names {
        let file = &weights.files[weights.places[name]];
        let Some(info) = file.metadata.info(name) else { continue };
        let title = format!("{name} {:?} {:?}", info.dtype, info.shape);
        hash.update((title.len() as u64).to_le_bytes());
        hash.update(title.as_bytes());
        let (start, end) = info.data_offsets;
        let bytes = (end - start) as u64;
        let mut opened = File::open(&file.path).map_err(read_error(&file.path))?;
        for place in samples(bytes) {
            let part = &mut sample[..SAMPLE.min(bytes - place) as usize];
            opened.seek(SeekFrom::Start(file.data + start as u64 + place)).and_then(|_| opened.read_exact(part)).map_err(read_error(&file.path))?;
            hash.update(part);
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns where the samples of a file begin: all of them, or some spread evenly.
fn samples(bytes: u64) -> Vec<u64> {
    if bytes <= SAMPLE * SAMPLES {
        return (0..bytes).step_by(SAMPLE as usize).collect();
    }
    (0..SAMPLES).map(|number| (bytes - SAMPLE) * number / (SAMPLES - 1)).collect()
}

impl WeightFile {
    /// Is it one of wgkv's own files, such as a calibration, which may lie beside the weights? Were it taken for weights, it would change the
    /// hash of the very model that it names.
    fn is_wgkv(&self) -> bool {
        self.metadata.metadata().as_ref().and_then(|texts| texts.get("format")).is_some_and(|format| format.starts_with("wgkv-"))
    }

    fn open(path: PathBuf) -> Result<Self> {
        let mut file = File::open(&path).map_err(read_error(&path))?;
        let found = file.metadata().map_err(read_error(&path))?.len();
        let short = |wanted| Error::Length { path: path.clone(), wanted, found };
        let broken = |reason: String| Error::Header { path: path.clone(), reason };
        if found < PREFIX {
            return Err(short(PREFIX));
        }
        let mut prefix = [0; PREFIX as usize];
        file.read_exact(&mut prefix).map_err(read_error(&path))?;
        let header = u64::from_le_bytes(prefix);
        if header > HEADER_LIMIT {
            return Err(broken(format!("it claims {header} bytes, at most {HEADER_LIMIT} are believed")));
        }
        let data = PREFIX + header;
        if found < data {
            return Err(short(data));
        }
        let mut text = vec![0; header as usize];
        file.read_exact(&mut text).map_err(read_error(&path))?;
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        let wanted = data + metadata.data_len() as u64;
        if found != wanted {
            return Err(short(wanted));
        }
        Ok(Self { path, metadata, data })
    }
}

fn widen<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&raw| element(raw)).collect()
}

fn read_error(path: &Path) -> impl Fn(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Read { path: path.clone(), source }
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
