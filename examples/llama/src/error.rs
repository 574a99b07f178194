//! What can go wrong with a command, each with its name and its numbers.

use std::path::PathBuf;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What was to be shown could not be written.
    #[error("cannot write to standard output")]
    Write(#[source] std::io::Error),
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(wgkv_decoder::Error),
    /// The model has no opening token, which windows of a text begin with.
    #[error("{} names no opening token (bos_token_id), which every window begins with", model.display())]
    NoOpening {
        /// The model.
        model: PathBuf,
    },
    /// The model has no chat template.
    #[error("{} has no chat template, so it cannot chat: continue a text with generate", model.display())]
    NoTemplate {
        /// The model.
        model: PathBuf,
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
        "codec rotate-kv wants a calibration of this model: make one with `wgkv-llama calibrate --model {model} --text FILE --out {out}` \
         and name it with --calibration (or measure without an order: perplexity --no-reorder)",
        model = model.display(),
        out = out.display()
    )]
    CalibrationMissing {
        /// The model's folder or file.
        model: PathBuf,
        /// Where its calibration could lie.
        out: PathBuf,
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
    /// The device refused.
    #[error("GPU: {0}")]
    Gpu(String),
    /// The cache refused or failed.
    #[error(transparent)]
    Cache(#[from] wgkv::Error),
    /// The pictures of an analysis could not be made.
    #[error(transparent)]
    Pictures(#[from] crate::pictures::Error),
}

impl From<wgkv_decoder::Error> for Error {
    fn from(error: wgkv_decoder::Error) -> Self {
        match error {
            wgkv_decoder::Error::Wgkv(error) => Self::Cache(error),
            error => Self::Model(error),
        }
    }
}

/// Shorthand for this package's results.
pub type Result<T> = std::result::Result<T, Error>;
