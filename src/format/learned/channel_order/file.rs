//! Calibrations as safetensors.
//!
//! Tensors `key_sums` (F64) and `orders` (U16), `[layers, kv_heads * head_dim]` both, and metadata that say what for. The
//! orders follow from the sums; they are stored so that other programs need not rotate, and checked when read.

use super::{ChannelOrder, MODEL_BYTES, Reach};
use crate::error::{Error, Result, Thing};
use crate::format::tensors::{self, Texts};
use crate::format::{Rope, Shape};
use safetensors::tensor::{Dtype, Metadata};
use std::str::FromStr;

const FORMAT: &str = "wgkv-calibration";
const VERSION: &str = "1";
const CODEC: &str = "rotate-kv";

/// Bytes of a file at most. 80 layers of 16384 channels are 13 MB.
const FILE_BYTES: usize = 1 << 28;

/// Bytes of the header at most: the model's name, each byte of which JSON may write in six, and a few hundred more.
const HEADER_BYTES: usize = 6 * MODEL_BYTES + 4096;

fn error(name: &'static str, wanted: String, had: String) -> Error {
    Error::mismatch(Thing::ChannelOrder, name, wanted, had)
}

fn wrong<T>(name: &'static str, wanted: impl ToString, had: impl ToString) -> Result<T> {
    Err(error(name, wanted.to_string(), had.to_string()))
}

/// SHA-256 over metadata and tensors, each text and tensor after its length.
fn hash(texts: &Texts<'_>, sums: &[u8], orders: &[u8]) -> String {
    tensors::hash(tensors::pieces(texts).chain([sums, orders]))
}

/// The header, after checks that keep the parser from large numbers.
fn header(bytes: &[u8]) -> Result<(Metadata, &[u8])> {
    if bytes.len() > FILE_BYTES {
        return wrong("file", format!("{FILE_BYTES} bytes at most"), format!("{} bytes long", bytes.len()));
    }
    tensors::header(bytes, HEADER_BYTES, error)
}

fn number<T: FromStr>(name: &'static str, text: &str) -> Result<T> {
    text.parse().or_else(|_| wrong(name, "a number", format!("{text:?}")))
}

impl ChannelOrder {
    /// As the bytes of a safetensors file, which [`ChannelOrder::from_bytes`] reads. Metadata: `format`, `version`, `codec`,
    /// `model`, `heads_per_group`, `head_dim`, `kv_heads`, `layers`, `reach` (`global` or `local`), `tokens`, `skipped`, and
    /// `hash`, the SHA-256 over all others and the tensors. Tensors: `key_sums` F64 and `orders` U16, both
    /// `[layers, kv_heads * head_dim]`. The order of the metadata may differ from file to file.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for more than 2^28 bytes.
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
        let mut metadata: Texts<'_> = numbers.iter().map(|(key, n)| (*key, n.as_str())).collect();
        let reach = match self.reach {
            Reach::Global => "global",
            Reach::Local => "local",
        };
        metadata.extend([("format", FORMAT), ("version", VERSION), ("codec", CODEC), ("model", &self.model), ("reach", reach)]);
        let hash = hash(&metadata, &sums, &orders);
        metadata.insert("hash", &hash);
        let shape = vec![self.orders.len(), self.order(0).len()];
        let tensors = [("key_sums", Dtype::F64, shape.clone(), &sums[..]), ("orders", Dtype::U16, shape, &orders)];
        let bytes = tensors::write(tensors, &metadata, |e| error("tensors", "as safetensors wants them".into(), e))?;
        // Nothing is written that could not be read.
        header(&bytes)?;
        Ok(bytes)
    }

    /// From the bytes of a safetensors file that [`ChannelOrder::to_bytes`] made. Everything is checked, so that damage, and
    /// files of other programs, are refused.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another format or version, a hash that is not that of the content, tensors of other types or
    /// shapes, sums that are not finite, and orders that are not those of the sums; [`Error::Mismatch`] for a shape that is not
    /// served.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (metadata, data) = header(bytes)?;
        let mut texts = tensors::texts(&metadata);
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
        // How many layers there are is the tensors' word, which also bounds it by what was read.
        let width = super::check_channels(&Shape { layers: layers.min(1), ..shape.clone() }, heads_per_group)?;
        let lengths = [layers as usize, width];
        let tensor = |name, dtype| tensors::tensor(&metadata, data, name, dtype, &lengths, |wanted, had| error(name, wanted, had));
        let (sums, orders) = (tensor("key_sums", Dtype::F64)?, tensor("orders", Dtype::U16)?);
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

    /// Writes [`ChannelOrder::to_bytes`] to a file.
    ///
    /// # Errors
    /// As [`ChannelOrder::to_bytes`], and [`Error::Io`](crate::Error::Io) where the file cannot be written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        tensors::save(path.as_ref(), &self.to_bytes()?)
    }

    /// Reads a file that [`ChannelOrder::save`] wrote.
    ///
    /// # Errors
    /// As [`ChannelOrder::from_bytes`], and [`Error::Io`](crate::Error::Io) where the file cannot be read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<Self> {
        let bytes = tensors::load(path.as_ref(), FILE_BYTES)?;
        Self::from_bytes(&bytes)
    }
}
