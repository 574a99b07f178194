//! What fuzzing asks of everything that reads a file or a word: bytes that mean nothing are an
//! error, never a panic, and take no more memory than such a file may; what is read comes out again
//! as it went in.
#![allow(clippy::expect_used, reason = "what goes wrong here must panic")]

mod meter;
mod seeds;

pub use seeds::{SNAPSHOT_TOKENS, seeds, snapshot_plan};

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use wgkv::aligned::Alignment;
use wgkv::bits::{BitPlan, BitRule, Sensitivity};
use wgkv::prefix::SnapshotStore;
use wgkv::prefix::object_store::memory::InMemory;
use wgkv::{ChannelOrder, Codec, Error, Means, Plan, Precision, Result, Scales, Sinks, Thing};

/// Bytes that reading may hold at once: some for each byte of the input (a list of JSON takes
/// two bytes a number, and grows by doubling), and some in any case.
const BYTES_PER_BYTE: usize = 40;
const BYTES: usize = 1 << 16;

/// Something that reads.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder in `corpus`.
    pub name: &'static str,
    /// Reads bytes; returns whether there was anything in them that could be read.
    pub read: fn(&[u8]) -> bool,
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "words", read: words },
    Target { name: "calibration", read: |bytes| tensors(bytes, ChannelOrder::from_bytes, ChannelOrder::to_bytes) },
    Target { name: "centre", read: |bytes| tensors(bytes, Means::from_bytes, Means::to_bytes) },
    Target { name: "snapshot", read: |bytes| tensors(bytes, snapshot, |whole| Ok(whole.clone())) },
    Target { name: "allocation", read: |bytes| json(bytes, BitPlan::from_json, BitPlan::to_json) },
    Target { name: "sensitivity", read: |bytes| json(bytes, Sensitivity::from_json, Sensitivity::to_json) },
];

/// The target of a name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// Reads, and panics if that takes more memory than it may.
fn metered<T>(bytes: &[u8], read: impl FnOnce(&[u8]) -> T) -> T {
    let (read, peak) = meter::peak(|| read(bytes));
    let most = BYTES_PER_BYTE * bytes.len() + BYTES;
    assert!(peak <= most, "{peak} bytes are held to read {}, but {most} are enough", bytes.len());
    read
}

/// Every word that has a meaning somewhere.
fn words(bytes: &[u8]) -> bool {
    fn word<T: FromStr<Err = Error> + Display + Debug + PartialEq>(text: &str) -> bool {
        let Ok(read) = metered(text.as_bytes(), |_| text.parse::<T>()) else { return false };
        let again = read.to_string();
        assert_eq!(again.parse::<T>(), Ok(read), "{text:?} is printed as {again:?}");
        true
    }
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let read = [word::<Codec>, word::<Scales>, word::<Precision>, word::<Sinks>, word::<Alignment>, word::<BitRule>].map(|word| word(text));
    read.contains(&true)
}

/// A file of JSON.
fn json<T: Debug + PartialEq>(bytes: &[u8], read: impl Fn(&str) -> Result<T>, write: impl Fn(&T) -> Result<String>) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let Ok(first) = metered(bytes, |_| read(text)) else { return false };
    let again = write(&first).expect("what was read can be written");
    assert_eq!(read(&again), Ok(first), "{again}");
    true
}

/// A file of safetensors. Checksums that are wrong are put right, as a forger would, so that what
/// lies behind them is reached.
fn tensors<T: Debug + PartialEq>(bytes: &[u8], read: impl Fn(&[u8]) -> Result<T>, write: impl Fn(&T) -> Result<Vec<u8>>) -> bool {
    let mut bytes = bytes.to_vec();
    // A snapshot has as many checksums as tensors, and one more.
    for _ in 0..10 {
        let first = match metered(&bytes, &read) {
            Ok(first) => first,
            Err(error) => match forged(&bytes, &error) {
                Some(forged) if forged != bytes => {
                    bytes = forged;
                    continue;
                }
                _ => return false,
            },
        };
        let again = write(&first).expect("what was read can be written");
        assert!(read(&again).as_ref() == Ok(&first), "written and read again it is something else");
        return true;
    }
    false
}

/// The bytes with the checksum that an error asks for, if that is the error.
fn forged(bytes: &[u8], error: &Error) -> Option<Vec<u8>> {
    const HEX: usize = 64;
    let Error::Mismatch { of: Thing::ChannelOrder | Thing::Means | Thing::Snapshot, name, wanted, had } = error else { return None };
    if name != "hash" && !name.starts_with("sha256.") {
        return None;
    }
    let (wanted, had) = (wanted.get(..HEX)?, had.trim_matches('"'));
    let at = bytes.windows(HEX).position(|window| window == had.as_bytes())?;
    Some([&bytes[..at], wanted.as_bytes(), &bytes[at + HEX..]].concat())
}

/// Bytes that a cache would load, by way of a store, which looks at them as the cache does and
/// needs no GPU.
fn snapshot(bytes: &[u8]) -> Result<Vec<u8>> {
    static PLAN: LazyLock<Plan> = LazyLock::new(snapshot_plan);
    static STORE: LazyLock<SnapshotStore> = LazyLock::new(|| SnapshotStore::new(Arc::new(InMemory::new()), "", ""));
    pollster::block_on(STORE.put(&*PLAN, &[0; SNAPSHOT_TOKENS], bytes.to_vec()))?;
    Ok(bytes.to_vec())
}
