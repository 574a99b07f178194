//! Safetensors files, read tensor by tensor so that a model never lies in memory twice.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use crate::error::{Error, Result};

/// Bytes that say how long a header is.
const PREFIX: u64 = 8;
/// A header longer than this is taken for damage, as the format's own reader does.
const HEADER_LIMIT: u64 = 100_000_000;

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
    /// Opens what `model.safetensors.index.json` lists or, without one, every `*.safetensors` of the folder.
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
        if paths.is_empty() {
            return Err(Error::NoWeights { path: directory.to_owned() });
        }
        let files = paths.into_iter().map(WeightFile::open).collect::<Result<Vec<_>>>()?;
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

impl WeightFile {
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
