//! GGUF files: the header is read and checked once, tensors on demand.
//!
//! Nothing in the header is believed. A length counts only once that many bytes are known to
//! follow, so that no more is ever allocated than the file is long; every tensor must lie within
//! the file, aligned, and over no other.

use std::collections::BTreeMap;
use std::io::Read;

use crate::error::{Error, Result};
use crate::format::{Stored, WeightFormat};
use crate::model::Source;
use crate::weights::{sampled, title};

const MAGIC: [u8; 4] = *b"GGUF";
/// Where tensors begin, if the file does not say otherwise, is a multiple of this.
const ALIGNMENT: u64 = 32;
/// Dimensions of a tensor, as ggml has them.
const DIMENSIONS: u32 = 4;
/// Formats that are read, for errors.
const FORMATS: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K";
/// What errors call a setting's file.
const FILE: &str = "GGUF";

/// An opened GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    source: Source,
    values: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
}

/// A value of the header.
#[derive(Debug, PartialEq)]
enum Value {
    Integer(i128),
    Float(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<Box<str>>),
    /// As in the file, since a vector of values would be many times as large.
    Numbers {
        kind: Kind,
        bytes: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Tensor {
    /// Outermost first, as Hugging Face writes shapes and unlike the file.
    shape: Vec<usize>,
    format: WeightFormat,
    /// Bytes from the start of the file.
    start: u64,
    bytes: u64,
}

impl Kind {
    const ALL: [Self; 13] =
        [Self::U8, Self::I8, Self::U16, Self::I16, Self::U32, Self::I32, Self::F32, Self::Bool, Self::Text, Self::Array, Self::U64, Self::I64, Self::F64];

    /// Bytes of a number, or none for what has no fixed size.
    fn bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }

    /// The number in its bytes, of which there must be enough.
    fn number(self, raw: &[u8]) -> Value {
        let mut wide = [0; 8];
        wide[..raw.len()].copy_from_slice(raw);
        let unsigned = u64::from_le_bytes(wide);
        match self {
            Self::F32 => Value::Float(f64::from(f32::from_bits(unsigned as u32))),
            Self::F64 => Value::Float(f64::from_bits(unsigned)),
            Self::Bool => Value::Flag(unsigned != 0),
            Self::I8 => Value::Integer(i128::from(unsigned as i8)),
            Self::I16 => Value::Integer(i128::from(unsigned as i16)),
            Self::I32 => Value::Integer(i128::from(unsigned as i32)),
            Self::I64 => Value::Integer(i128::from(unsigned as i64)),
            _ => Value::Integer(i128::from(unsigned)),
        }
    }
}

impl Value {
    fn describe(&self) -> String {
        match self {
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) => format!("{text:?}"),
            Self::Texts(texts) => format!("{} texts", texts.len()),
            Self::Numbers { kind, bytes } => format!("{} numbers of type {kind:?}", bytes.len() / kind.bytes().unwrap_or(1)),
        }
    }
}

/// Reads a header from its start, and knows how much of the file is left.
struct Header<'a> {
    source: &'a Source,
    reader: Box<dyn Read + 'a>,
    at: u64,
    length: u64,
    /// What is being read, for errors.
    place: String,
}

impl Header<'_> {
    fn wrong(&self, wanted: impl ToString, found: impl ToString) -> Error {
        Error::Gguf { path: self.source.path(), place: self.place.clone(), wanted: wanted.to_string(), found: found.to_string() }
    }

    fn expect(&self, count: u64) -> Result<()> {
        let left = self.length - self.at;
        if count > left {
            return Err(self.wrong(format!("{count} bytes at {}", self.at), format!("{left} to the end of the file")));
        }
        Ok(())
    }

    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        self.expect(count)?;
        let mut bytes = vec![0; count as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.expect(bytes.len() as u64)?;
        self.reader.read_exact(bytes).map_err(|source| Error::Read { path: self.source.path(), source })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32> {
        let mut raw = [0; 4];
        self.fill(&mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    fn u64(&mut self) -> Result<u64> {
        let mut raw = [0; 8];
        self.fill(&mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes).map_err(|error| self.wrong("UTF-8", error.utf8_error()))
    }

    fn kind(&mut self) -> Result<Kind> {
        let number = self.u32()?;
        Kind::ALL.get(number as usize).copied().ok_or_else(|| self.wrong("a type from 0 to 12", number))
    }

    fn value(&mut self) -> Result<Value> {
        let kind = self.kind()?;
        match kind {
            Kind::Text => self.text().map(Value::Text),
            Kind::Array => self.array(),
            // Eight bytes at most.
            kind => Ok(kind.number(&self.take(kind.bytes().unwrap_or(0) as u64)?)),
        }
    }

    fn array(&mut self) -> Result<Value> {
        let kind = self.kind()?;
        let count = self.u64()?;
        match kind {
            Kind::Array => Err(self.wrong("an array of numbers or texts", "an array of arrays")),
            Kind::Text => {
                // Each has a length of eight bytes at least.
                self.expect(count.saturating_mul(8))?;
                let mut texts = Vec::new();
                for _ in 0..count {
                    texts.push(self.text()?.into_boxed_str());
                }
                Ok(Value::Texts(texts))
            }
            kind => {
                let bytes = self.take(count.saturating_mul(kind.bytes().unwrap_or(0) as u64))?;
                Ok(Value::Numbers { kind, bytes })
            }
        }
    }

    /// A tensor's name and description; where it starts is still relative to the data.
    fn tensor(&mut self) -> Result<(String, Tensor)> {
        let name = self.text()?;
        self.place = format!("tensor {name}");
        let dimensions = self.u32()?;
        if !(1..=DIMENSIONS).contains(&dimensions) {
            return Err(self.wrong(format_args!("1 to {DIMENSIONS} dimensions"), dimensions));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.push(usize::try_from(size).ok().filter(|&size| size > 0).ok_or_else(|| self.wrong("a dimension of 1 or more that fits", size))?);
        }
        let columns = shape[0];
        shape.reverse();
        let format = self.u32()?;
        let format = weight_format(format).map_err(|found| Error::TensorElement { name: name.clone(), found, wanted: FORMATS })?;
        let bytes = format
            .row_bytes(columns)
            .ok_or_else(|| self.wrong(format_args!("rows of whole blocks of {} {} numbers", format.block_elements(), format.name()), columns))?;
        let bytes = shape[..shape.len() - 1].iter().try_fold(bytes as u64, |bytes, &rows| bytes.checked_mul(rows as u64));
        let bytes = bytes.ok_or_else(|| self.wrong("a size that fits into 64 bits", format_args!("{shape:?}")))?;
        let start = self.u64()?;
        Ok((name, Tensor { shape, format, start, bytes }))
    }
}

impl Gguf {
    /// Reads and checks the header.
    pub fn open(source: Source) -> Result<Self> {
        let length = source.length()?;
        let mut header = Header { source: &source, reader: source.reader()?, at: 0, length, place: "start of the file".into() };
        let mut magic = [0; 4];
        header.fill(&mut magic)?;
        if magic != MAGIC {
            return Err(header.wrong("GGUF", format_args!("{:?}", String::from_utf8_lossy(&magic))));
        }
        header.place = "version".into();
        let version = header.u32()?;
        if !(2..=3).contains(&version) {
            let big = version.swap_bytes();
            return Err(header.wrong("2 or 3", if big < 16 { format!("{big}, written by a big-endian machine") } else { version.to_string() }));
        }
        header.place = "numbers of tensors and values".into();
        let (tensor_count, value_count) = (header.u64()?, header.u64()?);
        let mut values = BTreeMap::new();
        for number in 0..value_count {
            header.place = format!("key {number} of {value_count}");
            let key = header.text()?;
            header.place = key.clone();
            let value = header.value()?;
            if values.insert(key, value).is_some() {
                return Err(header.wrong("one value", "two"));
            }
        }
        let mut tensors = BTreeMap::new();
        for number in 0..tensor_count {
            header.place = format!("tensor {number} of {tensor_count}");
            let (name, tensor) = header.tensor()?;
            if tensors.insert(name, tensor).is_some() {
                return Err(header.wrong("one tensor of this name", "two"));
            }
        }
        header.place = "general.alignment".into();
        let alignment = match values.get("general.alignment") {
            None => ALIGNMENT,
            Some(&Value::Integer(alignment)) if alignment > 0 && alignment <= 1 << 31 && (alignment as u64).is_power_of_two() => alignment as u64,
            Some(other) => return Err(header.wrong("a power of two", other.describe())),
        };
        // Both are below 2^63: a file is no longer, and an alignment far shorter.
        let data = header.at.next_multiple_of(alignment);
        drop(header);
        let file = Self { source, values, tensors: BTreeMap::new() };
        file.place(tensors, data, alignment, length)
    }

    /// Checks where the tensors lie, and makes that count from the file's start.
    fn place(mut self, mut tensors: BTreeMap<String, Tensor>, data: u64, alignment: u64, length: u64) -> Result<Self> {
        let wrong = |name: &str, wanted: String, found: String| Error::Gguf { path: self.source.path(), place: format!("tensor {name}"), wanted, found };
        for (name, tensor) in &mut tensors {
            if !tensor.start.is_multiple_of(alignment) {
                return Err(wrong(name, format!("an offset that is a multiple of {alignment}"), tensor.start.to_string()));
            }
            let start = data.checked_add(tensor.start);
            if start.and_then(|start| start.checked_add(tensor.bytes)).is_none_or(|end| end > length) {
                return Err(wrong(name, format!("{} bytes at {data} + {}", tensor.bytes, tensor.start), format!("{length} in the whole file")));
            }
            tensor.start += data;
        }
        let mut places: Vec<(u64, u64, &String)> = tensors.iter().map(|(name, tensor)| (tensor.start, tensor.start + tensor.bytes, name)).collect();
        places.sort_unstable();
        for pair in places.windows(2) {
            let ((_, end, before), (start, _, name)) = (pair[0], pair[1]);
            if start < end {
                return Err(wrong(name, format!("data of its own from {end} on, after tensor {before}"), format!("a start at {start}")));
            }
        }
        self.tensors = tensors;
        Ok(self)
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// A tensor's shape without ones at its front, outermost first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let shape = &self.tensors.get(name)?.shape[..];
        let ones = shape[..shape.len() - 1].iter().take_while(|&&size| size == 1).count();
        Some(&shape[ones..])
    }

    /// Some rows of a tensor whose shape has been checked.
    pub fn rows(&self, name: &str, rows: std::ops::Range<usize>) -> Result<Stored> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::TensorMissing { name: name.to_owned(), wanted: Vec::new(), files: 1 })?;
        let columns = tensor.shape[tensor.shape.len() - 1];
        let row_bytes = tensor.format.row_bytes(columns).unwrap_or(0);
        let bytes = self.source.read(tensor.start + (rows.start * row_bytes) as u64, rows.len() * row_bytes)?;
        Ok(Stored { rows: rows.len(), columns, format: tensor.format, bytes })
    }

    /// Hands over what makes this model what it is, in an order that does not depend on the file's:
    /// the settings below `prefix`, then every tensor's name, format and shape, followed by samples
    /// of its bytes.
    pub fn content(&self, prefix: &str, mut seen: impl FnMut(&[u8])) -> Result<()> {
        for (key, value) in self.values.iter().filter(|(key, _)| key.starts_with(prefix) || *key == "general.architecture") {
            title(&format!("{key} {value:?}"), &mut seen);
        }
        for (name, tensor) in &self.tensors {
            title(&format!("{name} {} {:?}", tensor.format.name(), tensor.shape), &mut seen);
            sampled(&self.source, tensor.start, tensor.bytes, &mut seen)?;
        }
        Ok(())
    }

    fn mismatch<T>(&self, key: &str, value: &Value, wanted: &str) -> Result<T> {
        Err(Error::Setting { file: FILE, name: key.to_owned(), found: value.describe(), wanted: wanted.to_owned() })
    }

    /// A whole number of 0 or more; one that is given by layer must be the same for all.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let same = match value {
            Value::Integer(number) => Some(*number),
            Value::Numbers { .. } => {
                let numbers = self.integers(key)?.unwrap_or_default();
                numbers.first().filter(|&first| numbers.iter().all(|number| number == first)).map(|&number| i128::from(number))
            }
            _ => None,
        };
        match same.and_then(|number| u64::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => self.mismatch(key, value, "a number of 0 or more, the same for every layer"),
        }
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(*number)),
            Some(Value::Integer(number)) => Ok(Some(*number as f64)),
            Some(other) => self.mismatch(key, other, "a finite number"),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(*flag)),
            Some(other) => self.mismatch(key, other, "true or false"),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => self.mismatch(key, other, "a text"),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[Box<str>]>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts)),
            Some(other) => self.mismatch(key, other, "a list of texts"),
        }
    }

    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.numbers(key, |value| match value {
            Value::Integer(number) => i64::try_from(number).ok(),
            Value::Flag(flag) => Some(i64::from(flag)),
            _ => None,
        })
    }

    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.numbers(key, |value| match value {
            Value::Float(number) => Some(number),
            Value::Integer(number) => Some(number as f64),
            _ => None,
        })
    }

    fn numbers<T>(&self, key: &str, number: impl Fn(Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let numbers: Option<Vec<T>> = match value {
            Value::Numbers { kind, bytes } => bytes.chunks_exact(kind.bytes().unwrap_or(1)).map(|raw| number(kind.number(raw))).collect(),
            // An empty list has no type worth the name.
            Value::Texts(texts) if texts.is_empty() => Some(Vec::new()),
            _ => None,
        };
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => self.mismatch(key, value, "a list of numbers"),
        }
    }
}

/// The format of a number in the file, or the name of one that is not read here.
fn weight_format(number: u32) -> std::result::Result<WeightFormat, String> {
    Ok(match number {
        0 => WeightFormat::F32,
        1 => WeightFormat::F16,
        2 => WeightFormat::Q4_0,
        3 => WeightFormat::Q4_1,
        6 => WeightFormat::Q5_0,
        7 => WeightFormat::Q5_1,
        8 => WeightFormat::Q8_0,
        12 => WeightFormat::Q4K,
        13 => WeightFormat::Q5K,
        14 => WeightFormat::Q6K,
        30 => WeightFormat::Bf16,
        9 => return Err("Q8_1".into()),
        10 => return Err("Q2_K".into()),
        11 => return Err("Q3_K".into()),
        15 => return Err("Q8_K".into()),
        16 => return Err("IQ2_XXS".into()),
        17 => return Err("IQ2_XS".into()),
        18 => return Err("IQ3_XXS".into()),
        19 => return Err("IQ1_S".into()),
        20 => return Err("IQ4_NL".into()),
        21 => return Err("IQ3_S".into()),
        22 => return Err("IQ2_S".into()),
        23 => return Err("IQ4_XS".into()),
        24 => return Err("I8".into()),
        25 => return Err("I16".into()),
        26 => return Err("I32".into()),
        27 => return Err("I64".into()),
        28 => return Err("F64".into()),
        29 => return Err("IQ1_M".into()),
        34 => return Err("TQ1_0".into()),
        35 => return Err("TQ2_0".into()),
        39 => return Err("MXFP4".into()),
        40 => return Err("NVFP4".into()),
        41 => return Err("Q1_0".into()),
        other => return Err(format!("type {other}")),
    })
}
