//! Channel orders as safetensors.
//!
//! Tensors `key_sums` (F64) and `orders` (U16), both `[layers, kv_heads * head_dim]`, and texts
//! that say what they are for. The orders follow from the sums; they are stored so that other
//! programs need not rotate, and checked when read.

use super::{ChannelOrder, MODEL_BYTES, Reach};
use crate::error::{Error, Result, Thing};
use crate::format::file::Envelope;
use crate::format::{Rope, Shape};
use safetensors::tensor::Dtype;

static FILE: Envelope<'static> = Envelope {
    thing: Thing::ChannelOrder,
    fixed: &[("format", "wgkv-calibration"), ("version", "1"), ("codec", "rotate-kv")],
    // 80 layers of 16384 channels are 13 MB.
    file_bytes: 1 << 28,
    // The model's name, each byte of which JSON may write in six, and a few hundred more.
    header_bytes: 6 * MODEL_BYTES + 4096,
    hashes_tensors: true,
};

fn wrong<T>(name: &'static str, wanted: impl ToString, had: impl ToString) -> Result<T> {
    Err(Error::mismatch(Thing::ChannelOrder, name, wanted, had))
}

impl ChannelOrder {
    /// Returns the bytes of a safetensors file, which [`ChannelOrder::from_bytes`] reads.
    ///
    /// Metadata: `format`, `version`, `codec`, `model`, `heads_per_group`, `head_dim`, `kv_heads`,
    /// `layers`, `reach` (`global` or `local`), `tokens`, `skipped`, and `hash`, the SHA-256 over
    /// all others and the tensors. Tensors: `key_sums` F64 and `orders` U16, both
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
        let texts = numbers.iter().map(|(key, n)| (*key, n.as_str())).chain([("model", self.model.as_str()), ("reach", self.reach.name())]);
        let shape = vec![self.orders.len(), self.order(0).len()];
        FILE.write(texts, &[("key_sums", Dtype::F64, shape.clone(), &sums), ("orders", Dtype::U16, shape, &orders)])
    }

    /// Reads the bytes of a safetensors file that [`ChannelOrder::to_bytes`] made. Everything is
    /// checked, so that damage, and files of other programs, are refused.
    ///
    /// # Errors
    /// [`Error::Mismatch`] of the channel order for another format or version, a hash that is not
    /// that of the content, tensors of other types or shapes, sums that are not finite, and orders
    /// that are not those of the sums; of an argument for a shape that is not served.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let file = FILE.read(bytes)?;
        let reach = match file.text("reach")? {
            text if text == Reach::Global.name() => Reach::Global,
            text if text == Reach::Local.name() => Reach::Local,
            other => return wrong("reach", "global or local", format!("{other:?}")),
        };
        let (kv_heads, head_dim, layers) = (file.number("kv_heads")?, file.number("head_dim")?, file.number::<u32>("layers")?);
        let heads_per_group = file.number("heads_per_group")?;
        let (tokens, skipped) = (file.number("tokens")?, file.number("skipped")?);

        let shape = Shape { layers, query_heads: kv_heads, kv_heads, head_dim, rope: Rope::none() };
        // The tensors say how many layers there are, which also bounds it by what was read.
        let width = super::check_channels(&Shape { layers: layers.min(1), ..shape.clone() }, heads_per_group)?;
        let lengths = [layers as usize, width];
        let (sums, orders) = (file.tensor("key_sums", Dtype::F64, &lengths)?, file.tensor("orders", Dtype::U16, &lengths)?);
        file.check(&[sums, orders])?;

        // The tensors are of these lengths, so that what is allocated here is no larger than the
        // file.
        let sums: Vec<f64> = sums.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        let orders: Vec<u16> = orders.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        let rows = sums.chunks_exact(width).map(<[f64]>::to_vec).collect();
        let read = Self::from_sums(&shape, heads_per_group, reach, file.text("model")?, tokens, rows)?.counted(skipped);
        orders.chunks_exact(width).zip(&read.orders).zip(0..).try_for_each(|((order, wanted), layer)| check_order(order, wanted, layer))?;
        Ok(read)
    }

    /// Writes [`ChannelOrder::to_bytes`] to a file.
    ///
    /// # Errors
    /// Those of [`ChannelOrder::to_bytes`], and [`Error::Io`] where the file cannot be written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        FILE.save(path.as_ref(), &self.to_bytes()?)
    }

    /// Reads a file that [`ChannelOrder::save`] wrote.
    ///
    /// # Errors
    /// Those of [`ChannelOrder::from_bytes`], and [`Error::Io`] where the file cannot be read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::from_bytes(&FILE.load(path.as_ref())?)
    }
}

/// Refuses a layer's order that is no permutation, or not the one that follows from its sums.
fn check_order(order: &[u16], wanted: &[u16], layer: u32) -> Result<()> {
    let mut seen = vec![false; order.len()];
    for channel in order {
        match seen.get_mut(usize::from(*channel)) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return wrong("order", "a permutation", format!("channel {channel} twice in layer {layer}")),
            None => return wrong("order", format!("of channels below {}", order.len()), format!("channel {channel} in layer {layer}")),
        }
    }
    match order.iter().zip(wanted).position(|(had, wanted)| had != wanted) {
        Some(place) => {
            let wanted = format!("that of its sums: channel {} at place {place} of layer {layer}", wanted[place]);
            wrong("order", wanted, format!("channel {}", order[place]))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What wgkv 0.1 wrote for one head of 64 channels whose sum of channel `c` is `c * 37 % 64`.
    const HEADER: &str = concat!(
        r#"{"__metadata__":{"reach":"local","tokens":"12","model":"a model","hash":"1ce366bc9f24dc48f9896524be34ef961618bd02e2984a87d44b157f17de111a","#,
        r#""format":"wgkv-calibration","version":"1","codec":"rotate-kv","layers":"1","kv_heads":"1","head_dim":"64","#,
        r#""heads_per_group":"1","skipped":"3"},"#,
        r#""key_sums":{"dtype":"F64","shape":[1,64],"data_offsets":[0,512]},"orders":{"dtype":"U16","shape":[1,64],"data_offsets":[512,640]}}"#,
    );
    const ORDER: [u16; 64] = [
        45, 57, 22, 28, 33, 43, 5, 10, 11, 14, 16, 20, 21, 27, 38, 40, 41, 51, 54, 55, 56, 2, 1, 3, 4, 6, 7, 8, 9, 12, 13, 18, 19, 23, 24, 25, 29, 32, 36, 37,
        42, 46, 47, 48, 49, 52, 58, 59, 62, 15, 17, 26, 30, 31, 34, 35, 39, 44, 50, 60, 61, 53, 63, 0,
    ];

    #[test]
    fn a_file_of_an_older_version_is_read_and_its_content_written_again() {
        let sums: Vec<f64> = (0..64).map(|c| f64::from(c * 37 % 64)).collect();
        let data: Vec<u8> = sums.iter().flat_map(|x| x.to_le_bytes()).chain(ORDER.iter().flat_map(|c| c.to_le_bytes())).collect();
        let bytes = [&(HEADER.len() as u64).to_le_bytes()[..], HEADER.as_bytes(), &data].concat();
        let order = ChannelOrder::from_bytes(&bytes).unwrap();
        assert_eq!((order.model(), order.reach(), order.tokens(), order.skipped()), ("a model", Reach::Local, 12, 3));
        assert_eq!((order.sums(0), order.order(0)), (&sums[..], &ORDER[..]));
        let again = order.to_bytes().unwrap();
        assert!(again.ends_with(&data));
        let (old, new) = (FILE.read(&bytes).unwrap(), FILE.read(&again).unwrap());
        for name in ["format", "version", "codec", "model", "reach", "layers", "kv_heads", "head_dim", "heads_per_group", "tokens", "skipped", "hash"] {
            assert_eq!(old.text(name), new.text(name));
        }
    }
}
