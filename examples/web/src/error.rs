//! What can go wrong, with the library's own errors passed through.

/// A result of this package.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the library says.
    #[error(transparent)]
    Wgkv(#[from] wgkv::Error),
    /// `config.json` or the settings are not understood.
    #[error("{name} is not understood: {source}")]
    Json {
        /// The text.
        name: &'static str,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// The weights are not a safetensors file, or lack a tensor.
    #[error("model.safetensors: {0}")]
    Weights(#[from] safetensors::SafeTensorError),
    /// A tensor has another shape or element type than the model's numbers ask for.
    #[error("tensor {name} must be {wanted}, but is {found}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What it must be.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// The tokenizer cannot be read, or not used on a text.
    #[error("tokenizer.json: {0}")]
    Tokenizer(#[from] tokenizers::Error),
    /// The prompt leaves no room in the context.
    #[error("the prompt has {tokens} tokens, but the context has room for {room}")]
    Prompt {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that fit, with one to generate.
        room: usize,
    },
    /// The picture was asked for before anything was cached, or of a head that is not there.
    #[error("there are no keys of layer {layer}, head {head} to show")]
    NoKeys {
        /// The layer.
        layer: usize,
        /// The KV head.
        head: usize,
    },
}
