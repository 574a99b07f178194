//! How keys and values are stored: the codec, its bits, its groups.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A way of storing keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// Half precision, keys after RoPE: the control that the others are measured against.
    F16,
    /// Round to nearest: keys after RoPE, asymmetric codes in groups of channels, one scale and zero a token and group.
    Rtn,
    /// The same codes after an orthonormal Hadamard rotation of every head (as QuaRot, 2404.00456, does).
    Hadamard,
}

impl Codec {
    /// Does it multiply every head by a Hadamard matrix?
    pub fn rotates(self) -> bool {
        self == Self::Hadamard
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Rtn => "rtn",
            Self::Hadamard => "hadamard",
        })
    }
}

impl FromStr for Codec {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f16" => Ok(Self::F16),
            "rtn" => Ok(Self::Rtn),
            "hadamard" => Ok(Self::Hadamard),
            _ => Err(Error::Codec { had: name.to_owned() }),
        }
    }
}

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bits {
    /// Codes 0 to 3.
    Two = 2,
    /// Codes 0 to 7, as a plane of two bits and a plane of one.
    Three = 3,
    /// Codes 0 to 15.
    Four = 4,
    /// Codes 0 to 255.
    Eight = 8,
}

impl Bits {
    /// The number.
    pub fn get(self) -> u32 {
        self as u32
    }
}

impl TryFrom<u32> for Bits {
    type Error = Error;

    fn try_from(bits: u32) -> Result<Self> {
        match bits {
            2 => Ok(Self::Two),
            3 => Ok(Self::Three),
            4 => Ok(Self::Four),
            8 => Ok(Self::Eight),
            had => Err(Error::Bits { had }),
        }
    }
}

/// How one cache stores keys and values.
///
/// The arithmetic of an asymmetric group, in the order of RotateKV (2501.16383) section 3: with `clip` c and `b` bits,
/// `scale = c (max - min) / (2^b - 1)` rounded to f16, `zero = round(-c min / scale)`, `code = clamp(round(x / scale) + zero,
/// 0, 2^b - 1)`, read back as `scale (code - zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    codec: Codec,
    key_bits: Bits,
    value_bits: Bits,
    group: u32,
    key_clip: f32,
    value_clip: f32,
}

impl Format {
    /// A codec with bits for keys and for values and a group of 32, 64 or 128 channels. A group of 128 is one group a head
    /// where the head is smaller. For [`Codec::F16`] bits and group mean nothing.
    ///
    /// The clip is 0.8 for a rotating codec at 2 bits and 1 otherwise.
    pub fn new(codec: Codec, key_bits: Bits, value_bits: Bits, group: u32) -> Self {
        let clip = |bits| if codec.rotates() && bits == Bits::Two { 0.8 } else { 1.0 };
        Self { codec, key_bits, value_bits, group, key_clip: clip(key_bits), value_clip: clip(value_bits) }
    }

    /// Half precision.
    pub fn f16() -> Self {
        Self::new(Codec::F16, Bits::Eight, Bits::Eight, 128)
    }

    /// Another share of a group's range for the codes to span, for keys and values, in (0, 1].
    pub fn with_clip(mut self, clip: f32) -> Self {
        self.key_clip = clip;
        self.value_clip = clip;
        self
    }

    /// The codec.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Bits of a key's code as stored: 2, 3, 4, 8, or 16 for f16.
    pub fn key_bits(&self) -> u32 {
        if self.codec == Codec::F16 { 16 } else { self.key_bits.get() }
    }

    /// Bits of a value's code as stored: 2, 3, 4, 8, or 16 for f16.
    pub fn value_bits(&self) -> u32 {
        if self.codec == Codec::F16 { 16 } else { self.value_bits.get() }
    }

    /// Share of a group's range that key codes span.
    pub fn key_clip(&self) -> f32 {
        self.key_clip
    }

    /// Share of a group's range that value codes span.
    pub fn value_clip(&self) -> f32 {
        self.value_clip
    }

    /// Channels that share a scale in a head of `head_dim` channels.
    pub fn group(&self, head_dim: u32) -> u32 {
        if self.codec == Codec::F16 { head_dim } else { self.group.min(head_dim) }
    }

    pub(crate) fn check(&self, head_dim: u32) -> Result<()> {
        if self.codec != Codec::F16
            && (![32, 64, 128].contains(&self.group) || !head_dim.is_multiple_of(self.group(head_dim)) || (self.group > head_dim && self.group != 128))
        {
            return Err(Error::Group { group: self.group, head_dim });
        }
        for (name, clip) in [("key clip", self.key_clip), ("value clip", self.value_clip)] {
            if !(clip > 0.0 && clip <= 1.0) {
                return Err(Error::Shape { name, wanted: "above 0 and at most 1".into(), had: clip.to_string() });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.codec {
            Codec::F16 => write!(f, "f16"),
            codec => write!(f, "{codec} K{}V{} group {}", self.key_bits(), self.value_bits(), self.group),
        }
    }
}
