//! Everything that can go wrong between a folder of files and a logit, each with its name and its numbers.

use std::path::PathBuf;

/// Why a model could not be loaded or run.
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
    /// `config.json` or the index is not the JSON it should be.
    #[error("{} is not understood", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// The model is not one this program knows how to run.
    #[error("architecture {found:?} is not supported: wanted one of {wanted}")]
    Architecture {
        /// The name in `config.json`.
        found: String,
        /// The names that are understood.
        wanted: &'static str,
    },
    /// A setting of `config.json` asks for something that is not implemented.
    #[error("config.json: {name} = {found} is not supported: wanted {wanted}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        wanted: &'static str,
    },
    /// A setting without which nothing can be computed is absent.
    #[error("config.json: {name} is missing")]
    SettingMissing {
        /// The setting's name.
        name: &'static str,
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
    /// A weight file's header cannot be read.
    #[error("{}: the safetensors header is not understood: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the architecture needs is in none of the files.
    #[error("tensor {name} is missing: wanted shape {wanted:?}, looked through {files} file(s)")]
    TensorMissing {
        /// The tensor's name.
        name: String,
        /// The shape that `config.json` implies.
        wanted: Vec<usize>,
        /// How many weight files were searched.
        files: usize,
    },
    /// A tensor does not have the shape that `config.json` implies.
    #[error("tensor {name} has shape {found:?}, wanted {wanted:?}")]
    TensorShape {
        /// The tensor's name.
        name: String,
        /// The shape that `config.json` implies.
        wanted: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in numbers that are not read here.
    #[error("tensor {name} is stored as {found}, wanted F16, BF16 or F32")]
    TensorElement {
        /// The tensor's name.
        name: String,
        /// The element type in the file.
        found: String,
    },
    /// The tokenizer file cannot be used, or refused a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A token id that the model has no row for.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// The text is shorter than the windows asked for.
    #[error("the text has {found} tokens, {windows} window(s) of {context} want {wanted}")]
    TextShort {
        /// Windows asked for.
        windows: usize,
        /// Tokens in a window.
        context: usize,
        /// Tokens wanted.
        wanted: usize,
        /// Tokens the text has.
        found: usize,
    },
    /// The codec wants a calibration and was given none.
    #[error(
        "codec rotate-kv wants a calibration of this model: make one with `wgkv-llama calibrate --model {model} --text FILE --out {model}/rotate-kv.safetensors` \
         and name it with --calibration (or measure without an order: perplexity --no-reorder)",
        model = model.display()
    )]
    CalibrationMissing {
        /// The model's folder.
        model: PathBuf,
    },
    /// An option that does not fit the others.
    #[error("{name} must be {wanted}, but is {had}")]
    Option {
        /// The option.
        name: &'static str,
        /// What it may be here.
        wanted: String,
        /// What it is.
        had: String,
    },
    /// No GPU has the name asked for.
    #[error("no GPU adapter is called {wanted:?}: found {found:?}")]
    Adapter {
        /// Part of a name.
        wanted: String,
        /// Names of the adapters that were found.
        found: Vec<String>,
    },
    /// The device could not be made or shared.
    #[error("GPU: {0}")]
    Gpu(String),
    /// The dense layers' runtime failed.
    #[error("burn: {0}")]
    Burn(String),
    /// The cache refused or failed.
    #[error(transparent)]
    Cache(#[from] wgkv::Error),
    /// The pictures of an analysis could not be made.
    #[error(transparent)]
    Pictures(#[from] crate::pictures::Error),
}

/// Shorthand for this package's results.
pub type Result<T> = std::result::Result<T, Error>;
