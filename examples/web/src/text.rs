//! Text to tokens and back.

use crate::error::Result;
use tokenizers::{Tokenizer, step_decode_stream};

/// A model's tokenizer.
pub struct Text {
    tokenizer: Tokenizer,
}

/// What a stream of tokens has given so far, as far as the next one needs it.
#[derive(Debug, Default)]
pub struct Stream {
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}

impl Text {
    /// Reads `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Ok(Self { tokenizer: Tokenizer::from_bytes(bytes)? })
    }

    /// Tokens of a text, without special ones.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec())
    }

    /// The text that a token adds, as soon as its characters are whole.
    pub fn next(&self, stream: &mut Stream, token: u32) -> Result<String> {
        let text = step_decode_stream(&self.tokenizer, vec![token], true, &mut stream.ids, &mut stream.prefix, &mut stream.prefix_index)?;
        Ok(text.unwrap_or_default())
    }
}
