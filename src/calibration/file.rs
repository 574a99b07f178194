//! Calibrations as safetensors.
//!
//! Tensors `key_sums` (F64) and `orders` (U16), `[layers, kv_heads * head_dim]` both, and metadata that say what for. The
//! orders follow from the sums; they are stored so that other programs need not rotate, and checked when read.

use super::{Calibration, MODEL_BYTES, Reach};
use crate::error::{Error, Result};
use crate::shape::{Rope, Shape};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView, serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::str::FromStr;

const FORMAT: &str = "wgkv-calibration";
const VERSION: &str = "1";
const CODEC: &str = "rotate-kv";

/// Bytes of a file at most. 80 layers of 16384 channels are 13 MB.
const FILE_BYTES: usize = 1 << 28;

/// Bytes of the header at most: the model's name, each byte of which JSON may write in six, and a few hundred more.
const HEADER_BYTES: usize = 6 * MODEL_BYTES + 4096;

/// Opening brackets of the header at most, of which a tensor has two. The sizes of seven tensors, 2^61 bytes at most each,
/// cannot overflow when the safetensors crate adds them up, as those of more can.
const BRACKETS: usize = 15;

fn wrong<T>(name: &'static str, wanted: impl ToString, had: impl ToString) -> Result<T> {
    Err(Error::Calibration { name, wanted: wanted.to_string(), had: had.to_string() })
}

/// SHA-256 over metadata and tensors, each text and tensor after its length.
fn hash(metadata: &BTreeMap<&str, &str>, sums: &[u8], orders: &[u8]) -> String {
    let mut hasher = Sha256::new();
    let texts = metadata.iter().flat_map(|(key, value)| [key.as_bytes(), value.as_bytes()]);
    for bytes in texts.chain([sums, orders]) {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The header, after checks that keep the parser from large numbers.
fn header(bytes: &[u8]) -> Result<(Metadata, &[u8])> {
    if bytes.len() > FILE_BYTES {
        return wrong("file", format!("{FILE_BYTES} bytes at most"), format!("{} bytes long", bytes.len()));
    }
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return wrong("file", "8 bytes or more", format!("{} bytes long", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES as u64 {
        return wrong("header", format!("{HEADER_BYTES} bytes at most"), format!("{length} bytes long"));
    }
    let Some((text, data)) = rest.split_at_checked(length as usize) else {
        return wrong("file", format!("{} bytes or more", 8 + length), format!("{} bytes long", bytes.len()));
    };
    let brackets = text.iter().filter(|byte| **byte == b'[').count();
    if brackets > BRACKETS {
        return wrong("header", format!("of {BRACKETS} opening brackets at most"), format!("of {brackets}"));
    }
    match SafeTensors::read_metadata(bytes) {
        Ok((_, metadata)) => Ok((metadata, data)),
        Err(e) => wrong("file", "safetensors", e),
    }
}

/// The bytes of a tensor of `[layers, width]`.
fn tensor<'a>(metadata: &Metadata, data: &'a [u8], name: &'static str, dtype: Dtype, shape: &[usize]) -> Result<&'a [u8]> {
    let Some(info) = metadata.info(name) else {
        return wrong(name, "there", "missing");
    };
    if info.dtype != dtype || info.shape != shape {
        return wrong(name, format!("{dtype:?} {shape:?}"), format!("{:?} {:?}", info.dtype, info.shape));
    }
    let (first, end) = info.data_offsets;
    data.get(first..end).map_or_else(|| wrong(name, "in the file", "cut off"), Ok)
}

fn number<T: FromStr>(name: &'static str, text: &str) -> Result<T> {
    text.parse().or_else(|_| wrong(name, "a number", format!("{text:?}")))
}

impl Calibration {
    /// As the bytes of a safetensors file, which [`Calibration::from_bytes`] reads. Metadata: `format`, `version`, `codec`,
    /// `model`, `heads_per_group`, `head_dim`, `kv_heads`, `layers`, `reach` (`global` or `local`), `tokens`, `skipped`, and
    /// `hash`, the SHA-256 over all others and the tensors. Tensors: `key_sums` F64 and `orders` U16, both
    /// `[layers, kv_heads * head_dim]`. The order of the metadata may differ from file to file.
    ///
    /// # Errors
    /// [`Error::Calibration`] for more than 2^28 bytes, or a model's name with more than a few brackets.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let sums: Vec<u8> = self.sums.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        let orders: Vec<u8> = self.orders.iter().flatten().flat_map(|c| c.to_le_bytes()).collect();
        let numbers = [
            ("heads_per_group", u64::from(self.heads_per_group)),
            ("head_dim", self.head_dim.into()),
            ("kv_heads", self.kv_heads.into()),
            ("layers", self.layers().into()),
            ("tokens", self.tokens),
            ("skipped", self.skipped),
        ]
        .map(|(key, n)| (key, n.to_string()));
        let mut metadata: BTreeMap<&str, &str> = numbers.iter().map(|(key, n)| (*key, n.as_str())).collect();
        let reach = match self.reach {
            Reach::Global => "global",
            Reach::Local => "local",
        };
        metadata.extend([("format", FORMAT), ("version", VERSION), ("codec", CODEC), ("model", &self.model), ("reach", reach)]);
        let hash = hash(&metadata, &sums, &orders);
        metadata.insert("hash", &hash);
        let shape = vec![self.orders.len(), self.order(0).len()];
        let view = |dtype, data| TensorView::new(dtype, shape.clone(), data).or_else(|e| wrong("tensors", "as safetensors wants them", e));
        let tensors = [("key_sums", view(Dtype::F64, &sums)?), ("orders", view(Dtype::U16, &orders)?)];
        // Which map the crate takes depends on its features; `collect` makes either.
        let entries = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let bytes = serialize(tensors, Some(entries)).or_else(|e| wrong("tensors", "as safetensors wants them", e))?;
        // Nothing is written that could not be read.
        header(&bytes)?;
        Ok(bytes)
    }

    /// From the bytes of a safetensors file that [`Calibration::to_bytes`] made. Everything is checked, so that damage, and
    /// files of other programs, are refused.
    ///
    /// # Errors
    /// [`Error::Calibration`] for another format or version, a hash that is not that of the content, tensors of other types or
    /// shapes, sums that are not finite, and orders that are not those of the sums; [`Error::Shape`] for a shape that is not
    /// served.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (metadata, data) = header(bytes)?;
        let mut texts: BTreeMap<&str, &str> = metadata.metadata().iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let text = |name: &'static str| texts.get(name).copied().map_or_else(|| wrong(name, "there", "missing"), Ok);
        for (name, wanted) in [("format", FORMAT), ("version", VERSION), ("codec", CODEC)] {
            let had = text(name)?;
            if had != wanted {
                return wrong(name, wanted, format!("{had:?}"));
            }
        }
        let reach = match text("reach")? {
            "global" => Reach::Global,
            "local" => Reach::Local,
            other => return wrong("reach", "global or local", format!("{other:?}")),
        };
        let (kv_heads, head_dim, layers): (u32, u32, u32) =
            (number("kv_heads", text("kv_heads")?)?, number("head_dim", text("head_dim")?)?, number("layers", text("layers")?)?);
        let heads_per_group = number("heads_per_group", text("heads_per_group")?)?;
        let (tokens, skipped) = (number("tokens", text("tokens")?)?, number("skipped", text("skipped")?)?);
        let model = text("model")?;
        let told = text("hash")?;

        let shape = Shape { layers, query_heads: kv_heads, kv_heads, head_dim, rope: Rope::none() };
        let width = super::check(&shape, heads_per_group)?;
        let lengths = [layers as usize, width];
        let (sums, orders) = (tensor(&metadata, data, "key_sums", Dtype::F64, &lengths)?, tensor(&metadata, data, "orders", Dtype::U16, &lengths)?);
        if metadata.tensors().len() != 2 {
            return wrong("tensors", "key_sums and orders", format!("{} tensors", metadata.tensors().len()));
        }
        texts.remove("hash");
        let hash = hash(&texts, sums, orders);
        if hash != told {
            return wrong("hash", format!("{hash}, that of its content"), format!("{told:?}"));
        }

        // The tensors are of these lengths, so that what is allocated here is no larger than the file.
        let sums: Vec<f64> = sums.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        let orders: Vec<u16> = orders.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        let rows = sums.chunks_exact(width).map(<[f64]>::to_vec).collect();
        let read = Self { skipped, ..Self::from_sums(&shape, heads_per_group, reach, model, tokens, rows)? };
        for ((order, wanted), layer) in orders.chunks_exact(width).zip(&read.orders).zip(0..) {
            let mut seen = vec![false; width];
            for channel in order {
                match seen.get_mut(usize::from(*channel)) {
                    Some(seen) if !*seen => *seen = true,
                    Some(_) => return wrong("order", "a permutation", format!("channel {channel} twice in layer {layer}")),
                    None => return wrong("order", format!("of channels below {width}"), format!("channel {channel} in layer {layer}")),
                }
            }
            if let Some(place) = order.iter().zip(wanted).position(|(had, wanted)| had != wanted) {
                let wanted = format!("that of its sums: channel {} at place {place} of layer {layer}", wanted[place]);
                return wrong("order", wanted, format!("channel {}", order[place]));
            }
        }
        Ok(read)
    }

    /// Writes [`Calibration::to_bytes`] to a file.
    ///
    /// # Errors
    /// As [`Calibration::to_bytes`], and [`Error::Calibration`] with the system's message where the file cannot be written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::write(path, self.to_bytes()?).or_else(|e| wrong("file", "writable", format!("{}: {e}", path.display())))
    }

    /// Reads a file that [`Calibration::save`] wrote.
    ///
    /// # Errors
    /// As [`Calibration::from_bytes`], and [`Error::Calibration`] with the system's message where the file cannot be read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<Self> {
        use std::io::Read;
        let path = path.as_ref();
        let mut bytes = Vec::new();
        // A byte more than is allowed, so that a longer file is refused and not cut off.
        let read = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES as u64 + 1).read_to_end(&mut bytes));
        read.or_else(|e| wrong("file", "readable", format!("{}: {e}", path.display())))?;
        Self::from_bytes(&bytes)
    }
}
