//! The envelopes of the files that this crate saves: a format's name and version around tensors and
//! texts (safetensors), or around fields (JSON).

use super::tensors::{self, Texts};
use crate::error::{Error, Result, Thing};
use safetensors::tensor::{Dtype, Metadata};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
#[cfg(not(target_arch = "wasm32"))]
use std::path::Path;
use std::str::FromStr;

/// A tensor to write: its name, type and shape, and its bytes.
pub(crate) type Tensor<'a> = (&'a str, Dtype, Vec<usize>, &'a [u8]);

/// One kind of safetensors file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope<'e> {
    /// What such a file holds; all errors name it.
    pub thing: Thing,
    /// The texts that all such files have: `format`, `version`, and what else must be as it says.
    pub fixed: &'e [(&'static str, &'e str)],
    /// Bytes of a file at most.
    pub file_bytes: usize,
    /// Bytes of a header at most.
    pub header_bytes: usize,
    /// Whether the hash is of texts and tensors, or of the texts alone (of which some may be
    /// checksums of tensors).
    pub hashes_tensors: bool,
}

impl Envelope<'_> {
    fn error(&self, name: impl Into<Cow<'static, str>>, wanted: impl ToString, had: impl ToString) -> Error {
        Error::mismatch(self.thing, name, wanted, had)
    }

    /// Returns the bytes of a file of these texts and tensors, with the fixed texts and the hash.
    pub fn write<'a>(&self, texts: impl IntoIterator<Item = (&'a str, &'a str)>, tensors: &[Tensor<'_>]) -> Result<Vec<u8>> {
        let mut all: Texts<'_> = self.fixed.iter().copied().collect();
        for (name, text) in texts {
            all.insert(name, text);
        }
        let mut texts = all;
        let hashed = if self.hashes_tensors { tensors } else { &[] };
        let hash = tensors::hash(tensors::pieces(&texts).chain(hashed.iter().map(|(.., bytes)| *bytes)));
        texts.insert("hash", &hash);
        let bytes = tensors::write(tensors.iter().cloned(), &texts, |e| self.error("tensors", "as safetensors wants them", e))?;
        // Nothing is written that could not be read.
        self.header(&bytes)?;
        Ok(bytes)
    }

    /// Returns the header of a file and what follows it, after checks that keep the parser from
    /// large numbers.
    fn header<'b>(&self, bytes: &'b [u8]) -> Result<(Metadata, &'b [u8])> {
        if bytes.len() > self.file_bytes {
            return Err(self.error("file", format!("{} bytes at most", self.file_bytes), format!("{} bytes long", bytes.len())));
        }
        tensors::header(bytes, self.header_bytes, |name, wanted, had| self.error(name, wanted, had))
    }

    /// Writes bytes to a file.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        save(path, bytes)
    }

    /// Returns the bytes that a file holds.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(&self, path: &Path) -> Result<Vec<u8>> {
        load(path, self.file_bytes)
    }

    /// Opens a file: checks its header and its fixed texts. What is read afterwards counts only if
    /// [`Contents::check`] lets it pass.
    pub fn read<'b>(&self, bytes: &'b [u8]) -> Result<Contents<'_, 'b>> {
        let (metadata, data) = self.header(bytes)?;
        let contents = Contents { envelope: self, metadata, data };
        for (name, wanted) in self.fixed {
            let had = contents.text(name)?;
            if had != *wanted {
                return Err(self.error(*name, wanted, format!("{had:?}")));
            }
        }
        Ok(contents)
    }
}

/// What lies in a safetensors file.
#[derive(Debug)]
pub(crate) struct Contents<'e, 'b> {
    envelope: &'e Envelope<'e>,
    metadata: Metadata,
    data: &'b [u8],
}

impl<'b> Contents<'_, 'b> {
    /// Returns the text of this name, if the file has it.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.metadata.metadata().as_ref().and_then(|texts| texts.get(name)).map(String::as_str)
    }

    /// Returns the text of this name, which must be there.
    pub fn text(&self, name: &str) -> Result<&str> {
        self.find(name).ok_or_else(|| self.envelope.error(name.to_owned(), "there", "missing"))
    }

    /// Returns the number that the text of this name is.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse().map_err(|_| self.envelope.error(name.to_owned(), "a number", format!("{text:?}")))
    }

    /// Returns the shape of the tensor of this name, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    /// Returns the bytes of the tensor of this name, which must be there, of this type and shape.
    pub fn tensor(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&'b [u8]> {
        tensors::tensor(&self.metadata, self.data, name, dtype, shape, |wanted, had| self.envelope.error(name.to_owned(), wanted, had))
    }

    /// Checks that the file has no tensors but these, in the order in which they were written, and
    /// that its hash is that of its content.
    pub fn check(&self, tensors: &[&[u8]]) -> Result<()> {
        let error = |name, wanted, had| Err(self.envelope.error(name, wanted, had));
        let count = self.metadata.tensors().len();
        if count != tensors.len() {
            return error("tensors", format!("{} in number", tensors.len()), count.to_string());
        }
        let told = self.text("hash")?;
        let mut texts = tensors::texts(&self.metadata);
        texts.remove("hash");
        let hashed = if self.envelope.hashes_tensors { tensors } else { &[] };
        let hash = tensors::hash(tensors::pieces(&texts).chain(hashed.iter().copied()));
        if hash == told { Ok(()) } else { error("hash", format!("{hash}, that of its content"), format!("{told:?}")) }
    }
}

/// One kind of JSON file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Json {
    /// What such a file holds; all errors name it.
    pub thing: Thing,
    /// Its `format`.
    pub format: &'static str,
    /// Its `version`.
    pub version: u32,
    /// Bytes of a file at most.
    pub file_bytes: usize,
}

impl Json {
    fn error(&self, name: &'static str, wanted: impl ToString, had: impl ToString) -> Error {
        Error::mismatch(self.thing, name, wanted, had)
    }

    /// Returns a file as text: on one line, or on a line a field.
    pub fn write(&self, file: &impl Serialize, pretty: bool) -> Result<String> {
        let text = if pretty { serde_json::to_string_pretty(file) } else { serde_json::to_string(file) };
        text.map_err(|e| self.error("file", "numbers that JSON has", e))
    }

    /// Returns what a text says. `head` returns the format and the version that it names.
    pub fn read<T: DeserializeOwned>(&self, text: &str, head: impl Fn(&T) -> (&str, u32)) -> Result<T> {
        if text.len() > self.file_bytes {
            return Err(self.error("file", format!("{} bytes at most", self.file_bytes), format!("{} bytes long", text.len())));
        }
        let file: T = serde_json::from_str(text).map_err(|e| self.error("file", "what wgkv writes", e))?;
        let (format, version) = head(&file);
        if format != self.format {
            return Err(self.error("format", self.format, format!("{format:?}")));
        }
        if version != self.version {
            return Err(self.error("version", self.version, version));
        }
        Ok(file)
    }

    /// Writes a text to a file.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: &Path, text: &str) -> Result<()> {
        save(path, text.as_bytes())
    }

    /// Returns the text that a file holds.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(&self, path: &Path) -> Result<String> {
        String::from_utf8(load(path, self.file_bytes)?).map_err(|e| self.error("file", "UTF-8", e.utf8_error()))
    }
}

/// Writes a file.
#[cfg(not(target_arch = "wasm32"))]
fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::Io { doing: "writing", path: path.display().to_string(), source: e.into() })
}

/// Reads a file of `most` bytes, or a byte more where it is longer, so that it is refused and not
/// cut off.
#[cfg(not(target_arch = "wasm32"))]
fn load(path: &Path, most: usize) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(most as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|e| Error::Io { doing: "reading", path: path.display().to_string(), source: e.into() })?;
    Ok(bytes)
}
