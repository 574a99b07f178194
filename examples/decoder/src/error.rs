//! What can go wrong between a model's files and its tensors, each with its name and its numbers.

use std::path::PathBuf;

/// Why a model could not be loaded or run.
///
/// A model that was handed over as bytes has no path; its errors name it `<bytes>`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `config.json`, another of the folder's JSON files or the index is not the JSON it should be.
    #[error("{} is not understood", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// The model is not one this crate knows how to run.
    #[error("architecture {found:?} is not supported: wanted one of {wanted}")]
    Architecture {
        /// The name in the file.
        found: String,
        /// The names that are understood.
        wanted: &'static str,
    },
    /// A setting asks for something that is not implemented, or is no sensible number.
    #[error("{file}: {name} = {found} is not supported: wanted {wanted}")]
    Setting {
        /// The file that holds it: `config.json`, another of the folder's, or `GGUF`.
        file: &'static str,
        /// The setting's name.
        name: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        wanted: String,
    },
    /// A setting without which nothing can be computed is absent.
    #[error("{file}: {name} is missing")]
    SettingMissing {
        /// The file that should hold it.
        file: &'static str,
        /// The setting's name.
        name: String,
    },
    /// The folder holds no weights.
    #[error("{} holds no *.safetensors file", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A weight file is shorter or longer than its header says.
    #[error("{} is truncated or overlong: its header asks for {wanted} bytes, the file has {found}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes that the header describes, header included.
        wanted: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A safetensors file's header cannot be read.
    #[error("{}: the safetensors header is not understood: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file's header is not one.
    #[error("{}: {place}: wanted {wanted}, found {found}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The field or the tensor.
        place: String,
        /// What should stand there.
        wanted: String,
        /// What stands there.
        found: String,
    },
    /// Two tensors of a model have one name.
    #[error("tensor {name} is stored twice: in {} and in {}", first.display(), second.display())]
    TensorTwice {
        /// The tensor's name.
        name: String,
        /// The file with the one.
        first: PathBuf,
        /// The file with the other.
        second: PathBuf,
    },
    /// A tensor that the architecture needs is in none of the files.
    #[error("tensor {name} is missing: wanted shape {wanted:?}, looked through {files} file(s)")]
    TensorMissing {
        /// The tensor's name.
        name: String,
        /// The shape that the settings imply; empty for a part that this model does not have.
        wanted: Vec<usize>,
        /// How many weight files were searched.
        files: usize,
    },
    /// A tensor does not have the shape that the settings imply.
    #[error("tensor {name} has shape {found:?}, wanted {wanted:?}")]
    TensorShape {
        /// The tensor's name.
        name: String,
        /// The shape that the settings imply.
        wanted: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in numbers that are not read here.
    #[error("tensor {name} is stored as {found}, wanted {wanted}")]
    TensorElement {
        /// The tensor's name.
        name: String,
        /// The element type in the file.
        found: String,
        /// The element types that are read.
        wanted: &'static str,
    },
    /// The tokenizer cannot be used, or refused a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template cannot be used, refused the messages, or ran out of its allowance of time
    /// and memory.
    #[error("chat template: {0}")]
    Template(String),
    /// A token id that the model has no row for.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// The cache refused or failed.
    #[error(transparent)]
    Wgkv(#[from] wgkv::Error),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
