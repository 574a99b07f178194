//! What can go wrong, with the errors of the library and of the decoder passed through.

/// A result of this package.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the library says.
    #[error(transparent)]
    Wgkv(#[from] wgkv::Error),
    /// What the decoder says of a model's files, or of running it.
    #[error("{}", with_reasons(.0))]
    Decoder(#[from] wgkv_decoder::Error),
    /// The prompt leaves no room in the context.
    #[error("the prompt has {tokens} tokens, but the context has room for {room}")]
    Prompt {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that fit, with one to generate.
        room: usize,
    },
    /// There is nothing to go on from.
    #[error("the prompt is empty, and this model has no token that begins a text")]
    Empty,
    /// The model was not made for conversations.
    #[error("the model has no chat template: it can only continue a text")]
    NoTemplate,
    /// The codec needs what nobody has measured of this model.
    #[error("{codec} needs an order of channels that is calibrated for the model, and this model came without one")]
    NotCalibrated {
        /// The codec.
        codec: wgkv::Codec,
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

/// An error and what lies behind it, for a page that shows one line.
fn with_reasons(error: &wgkv_decoder::Error) -> String {
    let mut text = error.to_string();
    let mut reason = std::error::Error::source(error);
    while let Some(error) = reason {
        text += &format!(": {error}");
        reason = error.source();
    }
    text
}
