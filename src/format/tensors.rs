//! Safetensors: what every reader of such a file checks first, and the hashes that its metadata
//! hold.

use crate::error::{Error, Result};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, TensorView};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A file's texts by name.
pub(crate) type Texts<'a> = BTreeMap<&'a str, &'a str>;

/// SHA-256 over pieces, each after its length, as they come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hash(Sha256);

impl Hash {
    /// Adds a piece after its length.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update((piece.len() as u64).to_le_bytes());
        self.0.update(piece);
    }

    /// Returns the hash of all pieces so far.
    pub fn digest(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}

/// Returns the SHA-256, in hex, over pieces, each after its length.
pub(crate) fn hash<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Hash::default();
    pieces.into_iter().for_each(|piece| hash.add(piece));
    hex(&hash.digest())
}

/// Returns the SHA-256, in hex, of bytes as they are.
pub(crate) fn checksum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Returns bytes in hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the pieces of texts to hash.
pub(crate) fn pieces<'a>(texts: &Texts<'a>) -> impl Iterator<Item = &'a [u8]> {
    texts.iter().flat_map(|(key, value)| [key.as_bytes(), value.as_bytes()])
}

/// Returns whether a number of the header, outside of strings, is larger than any file can be. It
/// stands here because the safetensors crate adds such numbers up before it looks at them.
fn has_huge_number(header: &[u8]) -> bool {
    let (mut quoted, mut escaped, mut number) = (false, false, 0_usize);
    header.iter().any(|byte| {
        number = if byte.is_ascii_digit() && !quoted { number.saturating_mul(10).saturating_add(usize::from(byte - b'0')) } else { 0 };
        (quoted, escaped) = match byte {
            b'"' if !escaped => (!quoted, false),
            b'\\' => (quoted, quoted && !escaped),
            _ => (quoted, false),
        };
        number > isize::MAX as usize
    })
}

/// Returns a file's header and what follows it, after checks that keep the parser from large
/// numbers: a header has `most` bytes at most. `wrong` makes an error of what does not fit, what it
/// must be, and what it is.
pub(crate) fn header(bytes: &[u8], most: usize, wrong: impl Fn(&'static str, String, String) -> Error) -> Result<(Metadata, &[u8])> {
    let long = |bytes: u64| format!("{bytes} bytes long");
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(wrong("file", "8 bytes or more".into(), long(bytes.len() as u64)));
    };
    let length = u64::from_le_bytes(*length);
    if length > most as u64 {
        return Err(wrong("header", format!("{most} bytes at most"), long(length)));
    }
    let Some((text, data)) = rest.split_at_checked(length as usize) else {
        return Err(wrong("file", format!("{} bytes or more", 8 + length), long(bytes.len() as u64)));
    };
    // The safetensors crate adds places up without looking.
    if has_huge_number(text) {
        return Err(wrong("header", format!("of numbers up to {}", isize::MAX), "of a larger one".into()));
    }
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| wrong("file", "safetensors".into(), e.to_string()))?;
    // A header is filled up with spaces. JSON has more white space, which no hash over its texts
    // would see.
    let filling = text.get(text.trim_ascii_end().len()..).unwrap_or_default();
    if filling.iter().any(|byte| *byte != b' ') {
        return Err(wrong("header", "spaces after its end".into(), "other white space".into()));
    }
    Ok((metadata, data))
}

/// Returns a file's texts.
pub(crate) fn texts(metadata: &Metadata) -> Texts<'_> {
    metadata.metadata().iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

/// Returns the bytes of a tensor, which must be there, of this type and shape. `wrong` makes an
/// error of what it must be and what it is.
pub(crate) fn tensor<'a>(
    metadata: &Metadata,
    data: &'a [u8],
    name: &str,
    dtype: Dtype,
    shape: &[usize],
    wrong: impl Fn(String, String) -> Error,
) -> Result<&'a [u8]> {
    let info = metadata.info(name).ok_or_else(|| wrong("there".into(), "missing".into()))?;
    if info.dtype != dtype || info.shape != shape {
        return Err(wrong(format!("{dtype:?} {shape:?}"), format!("{:?} {:?}", info.dtype, info.shape)));
    }
    let (first, end) = info.data_offsets;
    data.get(first..end).ok_or_else(|| wrong("in the file".into(), "cut off".into()))
}

/// Returns the file of tensors and texts: a function of these alone. It is written here because the
/// safetensors crate keeps texts in a map without an order, so that two files of the same content
/// would differ. Like the crate, it puts wider types first, then goes by name. `wrong` makes an
/// error of what does not fit.
pub(crate) fn write<'a>(
    tensors: impl IntoIterator<Item = (&'a str, Dtype, Vec<usize>, &'a [u8])>,
    texts: &Texts<'_>,
    wrong: impl Fn(String) -> Error,
) -> Result<Vec<u8>> {
    // It checks that a tensor has as many bytes as its shape says.
    let view = |(name, dtype, shape, data)| Ok((name, TensorView::new(dtype, shape, data)?));
    let views = tensors.into_iter().map(view).collect::<std::result::Result<Vec<(&str, TensorView<'_>)>, SafeTensorError>>();
    let mut views = views.map_err(|e| wrong(e.to_string()))?;
    views.sort_by(|(name, a), (other, b)| b.dtype().cmp(&a.dtype()).then(name.cmp(other)));
    let header = header_of(&views, texts).map_err(|e| wrong(e.to_string()))?;
    let data: usize = views.iter().map(|(_, view)| view.data().len()).sum();
    let mut bytes = Vec::with_capacity(8 + header.len() + data);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header.as_bytes());
    views.iter().for_each(|(_, view)| bytes.extend(view.data()));
    Ok(bytes)
}

/// Returns the header of a file of these tensors, in their order, filled up with spaces to a
/// multiple of 8 bytes.
fn header_of(views: &[(&str, TensorView<'_>)], texts: &Texts<'_>) -> serde_json::Result<String> {
    let mut header = format!("{{\"__metadata__\":{}", serde_json::to_string(texts)?);
    let mut end = 0;
    for (name, view) in views {
        let first = end;
        end += view.data().len();
        let info = TensorInfo { dtype: view.dtype(), shape: view.shape().to_vec(), data_offsets: (first, end) };
        header.push_str(&format!(",{}:{}", serde_json::to_string(name)?, serde_json::to_string(&info)?));
    }
    header.push('}');
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Thing;

    #[test]
    fn only_numbers_outside_of_strings_are_looked_at() {
        let huge = "18446744073709551616";
        for (text, wanted) in [
            (format!("{{\"a\":[0,{}]}}", isize::MAX), false),
            (format!("{{\"a\":[0,{}]}}", isize::MAX as usize + 1), true),
            (format!("{{\"a\":{huge}}}"), true),
            (format!("{{\"{huge}\":1}}"), false),
            (format!("{{\"a\\\"{huge}\":1}}"), false),
            (format!("{{\"a\\\\\":{huge}}}"), true),
            (format!("{{\"a\":\"{huge}\",\"b\":{huge}}}"), true),
            ("1,".repeat(100), false),
        ] {
            assert_eq!(has_huge_number(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn a_header_is_filled_up_with_nothing_but_spaces() {
        let error = |name: &'static str, wanted, had| Error::mismatch(Thing::ChannelOrder, name, wanted, had);
        for name in ["a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"] {
            let bytes = write([(name, Dtype::U8, vec![1], &[7][..])], &Texts::new(), |e| error("file", String::new(), e)).unwrap();
            assert!(header(&bytes, 1000, error).is_ok(), "{name}");
            let end = bytes.len() - 1;
            let filling = bytes[..end].iter().rev().take_while(|byte| **byte == b' ').count();
            for at in end - filling..end {
                for other in *b"\t\n\r" {
                    let mut harmed = bytes.clone();
                    harmed[at] = other;
                    assert!(
                        matches!(header(&harmed, 1000, error), Err(Error::Mismatch { of: Thing::ChannelOrder, name, .. }) if name == "header"),
                        "{name}, byte {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn files_are_those_of_the_safetensors_crate_with_texts_in_order() {
        let names = ["zeta", "alpha", "version", "\"quoted\"\n", "format", "hash"];
        let texts: Texts<'_> = names.iter().map(|name| (*name, "text of \u{1} \\ \u{e9}")).collect();
        let tensors: [(&str, Dtype, Vec<usize>, &[u8]); 4] = [
            ("b", Dtype::U8, vec![3], &[1, 2, 3]),
            ("a", Dtype::U8, vec![0], &[]),
            ("wide", Dtype::U32, vec![2, 1], &[1; 8]),
            ("half \"", Dtype::F16, vec![1, 1], &[9; 2]),
        ];
        let wrong = |e| Error::mismatch(Thing::Snapshot, "tensors", "right", e);
        let bytes = write(tensors.iter().cloned(), &texts, wrong).unwrap();
        for _ in 0..20 {
            // Every map of the standard library hashes otherwise.
            let views = tensors.iter().map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
            let entries = texts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let theirs = safetensors::serialize(views, Some(entries)).unwrap();
            // The same bytes but for the order of the texts.
            let sorted = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes.sort_unstable();
                bytes
            };
            assert_eq!(sorted(&theirs), sorted(&bytes));
            let [(ours, data), (other, rest)] = [&bytes, &theirs].map(|bytes| header(bytes, 1000, |_, _, had| wrong(had)).unwrap());
            assert_eq!((data, super::texts(&ours)), (rest, super::texts(&other)));
            assert_eq!(format!("{:?}", ours.offset_keys()), format!("{:?}", other.offset_keys()));
            assert_eq!(write(tensors.iter().rev().cloned(), &texts, wrong).unwrap(), bytes);
        }
        let text = String::from_utf8_lossy(&bytes[8..]);
        let places: Vec<usize> = texts.keys().map(|name| text.find(&serde_json::to_string(name).unwrap()).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
        // What does not fit its shape is refused.
        assert!(write([("a", Dtype::U32, vec![2], &[0; 7][..])], &texts, wrong).is_err());
    }
}
