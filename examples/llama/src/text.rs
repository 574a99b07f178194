//! `tokenizer.json`: text to ids and back.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::error::{Error, Result};

/// A model's tokenizer.
pub struct Text {
    tokenizer: Tokenizer,
}

impl Text {
    /// Opens the `tokenizer.json` of a model's folder.
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer.json");
        // Read here, so that a missing file is named as such and not as a parser's complaint.
        let bytes = std::fs::read(&path).map_err(|source| Error::Read { path, source })?;
        Ok(Self { tokenizer: Tokenizer::from_bytes(bytes).map_err(failed)? })
    }

    /// Ids of a text, without special tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(failed)
    }

    /// Returns a decoder that takes ids one by one and gives text as soon as characters are whole.
    pub fn stream(&self) -> impl FnMut(u32) -> Result<Option<String>> + '_ {
        let mut stream = self.tokenizer.decode_stream(true);
        move |id| stream.step(id).map_err(failed)
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}
