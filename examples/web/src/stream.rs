//! Tokens to text, one by one, without holding on to the tokenizer.

use crate::error::Result;
use wgkv_decoder::Text;

/// What a stream of tokens has given so far, as far as the next one needs it.
#[derive(Debug, Default)]
pub struct Stream {
    /// Tokens whose text is given, for what stands between them and the next, then those whose text
    /// is not.
    ids: Vec<u32>,
    given: usize,
    /// The text of the former.
    before: String,
}

impl Stream {
    /// Returns the text that a token adds, as soon as its characters are whole.
    ///
    /// # Errors
    /// [`wgkv_decoder::Error::Tokenizer`].
    pub fn next(&mut self, text: &Text, id: u32) -> Result<String> {
        self.ids.push(id);
        let whole = text.decode(&self.ids)?;
        if whole.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        // A tokenizer that writes the same tokens otherwise when more follow has none in common.
        let added = whole.strip_prefix(self.before.as_str()).unwrap_or_default().to_owned();
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        self.before = text.decode(&self.ids)?;
        Ok(added)
    }
}
