//! A safetensors file in its parts, to be written with something else in it.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Name, type, shape, bytes.
pub type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A file's metadata and tensors, these by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// By key.
    pub metadata: BTreeMap<String, String>,
    /// By name.
    pub tensors: Vec<Tensor>,
}

impl Parts {
    /// Takes a file apart.
    pub fn of(bytes: &[u8]) -> Self {
        let (_, header) = SafeTensors::read_metadata(bytes).expect("a file of safetensors");
        let read = SafeTensors::deserialize(bytes).expect("a file of safetensors");
        let mut tensors: Vec<Tensor> =
            read.tensors().into_iter().map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())).collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        Self { metadata: header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(), tensors }
    }

    /// Puts another text in the place of one.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Takes a text away.
    pub fn without(mut self, key: &str) -> Self {
        self.metadata.remove(key).expect("a text of this name");
        self
    }

    /// Puts another tensor in the place of one.
    pub fn tensor(mut self, name: &str, change: impl FnOnce(&mut Tensor)) -> Self {
        change(self.tensors.iter_mut().find(|t| t.0 == name).expect("a tensor of this name"));
        self
    }

    /// Returns the texts but the hash, each key and value, as they are hashed.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.metadata.iter().filter(|(k, _)| *k != "hash").flat_map(|(k, v)| [k.as_bytes(), v.as_bytes()])
    }

    /// Returns the file's bytes.
    pub fn write(&self) -> Vec<u8> {
        let views: Vec<(&str, TensorView<'_>)> = self
            .tensors
            .iter()
            .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("bytes of the shape")))
            .collect();
        safetensors::serialize(views, Some(self.metadata.clone().into_iter().collect())).expect("what safetensors can hold")
    }
}

/// Returns the SHA-256 in hex over pieces, each after its length.
pub fn hash<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for bytes in pieces {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    hex(&hasher.finalize())
}

/// Returns the SHA-256 in hex of bytes as they are.
pub fn checksum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Returns files of headers that no writer makes, about tensors of these names: no JSON, places
/// that overlap, leave a gap or run backwards, sizes that are no file's and that add up beyond 64
/// bits.
pub fn hostile([first, second]: [&str; 2]) -> Vec<Vec<u8>> {
    let tensor = |name: &str, shape: &str, first: u64, end: u64| format!("\"{name}\":{{\"dtype\":\"U8\",\"shape\":{shape},\"data_offsets\":[{first},{end}]}}");
    let most = (1_u64 << 61) - 1;
    [
        String::new(),
        "null".into(),
        "[]".into(),
        "{}".into(),
        "{\"__metadata__\":{}}".into(),
        format!("{{{},{}}}", tensor(first, "[16]", 0, 16), tensor(second, "[16]", 8, 24)), // overlap
        format!("{{{},{}}}", tensor(first, "[16]", 0, 16), tensor(second, "[16]", 0, 16)), // one place for both
        format!("{{{},{}}}", tensor(first, "[8]", 0, 8), tensor(second, "[8]", 16, 24)),   // a gap
        format!("{{{}}}", tensor(first, "[16]", 16, 0)),
        format!("{{{}}}", tensor(first, "[16]", 0, u64::MAX)),
        format!("{{{}}}", tensor(first, "[4294967295,4294967295]", 0, 24)),
        format!("{{{}}}", (0..9).map(|n| tensor(&format!("t{n}"), &format!("[{most}]"), n * most, (n + 1).saturating_mul(most))).collect::<Vec<_>>().join(",")),
        "[".repeat(3000),
    ]
    .iter()
    .map(|header| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 24]].concat())
    .collect()
}
