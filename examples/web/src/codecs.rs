//! The codecs that the page offers and the tests walk through. A new one is one line here.

use serde::Serialize;
use wgkv::{Bits, Codec, Format};

/// A codec with the bits it is offered in.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Choice {
    /// The codec.
    #[serde(serialize_with = "by_name")]
    pub codec: Codec,
    /// Bits of keys and values.
    pub bits: &'static [u32],
    /// What it does, for the page.
    pub about: &'static str,
}

const CODES: &[u32] = &[2, 3, 4, 8];

/// All of them.
pub const CODECS: [Choice; 6] = [
    Choice { codec: Codec::Centred, bits: CODES, about: "takes off each channel’s mean, then rotates every head and rounds groups of channels" },
    Choice { codec: Codec::Hadamard, bits: CODES, about: "rotates every head by a Hadamard matrix, then rounds groups of channels" },
    Choice { codec: Codec::RotateKv, bits: CODES, about: "rotates keys over four heads before RoPE, channels in a calibrated order (arXiv 2501.16383)" },
    Choice { codec: Codec::Rtn, bits: CODES, about: "rounds groups of channels to the nearest code, as they come" },
    Choice { codec: Codec::AlignedF16, bits: &[16], about: "half precision in planes, of which decoding reads those that matter (arXiv 2409.16546)" },
    Choice { codec: Codec::F16, bits: &[16], about: "half precision: what the others are measured against" },
];

fn by_name<S: serde::Serializer>(codec: &Codec, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(codec)
}

/// A codec's format with the same bits for keys and values.
pub(crate) fn format(codec: Codec, bits: u32) -> wgkv::Result<Format> {
    let bits = Bits::try_from(bits)?;
    Ok(Format::new(codec, bits, bits, 64))
}
