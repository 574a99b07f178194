//! How keys and values are stored: the codec, its bits, its groups.

use crate::error::{Error, Result};
use crate::format::Shape;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A way of storing keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// Half precision, keys after RoPE: the control that the others are measured against.
    F16,
    /// Round to nearest: keys after RoPE, asymmetric codes in groups of channels, with one scale
    /// and zero for each token and group.
    Rtn,
    /// The same codes after an orthonormal Hadamard rotation of every head (as QuaRot, 2404.00456,
    /// does).
    Hadamard,
    /// RotateKV (2501.16383): keys before RoPE, rotated over groups of KV heads, in groups of
    /// channels that a [`ChannelOrder`](crate::ChannelOrder) found to have similar means; values
    /// rotated by head.
    RotateKv,
    /// AlignedKV (2409.16546): half precision like [`Codec::F16`], in planes of 8, 4 and 4 bits, of
    /// which decoding reads those that can matter for its query; see
    /// [`Alignment`](crate::aligned::Alignment).
    AlignedF16,
    /// Centred, of this crate: the mean of every key and value channel is taken off before RoPE (a
    /// [`Means`](crate::Means) knows them), keys are weighted by pairs of channels, then heads are
    /// rotated as with [`Codec::Hadamard`] and stored in symmetric codes: a scale a group and no
    /// zero. What the mean of the keys adds to a score follows from the positions and the query
    /// alone.
    Centred,
}

impl Codec {
    /// All codecs.
    const ALL: [Self; 6] = [Self::F16, Self::Rtn, Self::Hadamard, Self::RotateKv, Self::AlignedF16, Self::Centred];

    /// Returns the codec's name, which texts and files call it by.
    fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Rtn => "rtn",
            Self::Hadamard => "hadamard",
            Self::RotateKv => "rotate-kv",
            Self::AlignedF16 => "aligned-f16",
            Self::Centred => "centred",
        }
    }

    /// Returns the names of all codecs, as an error lists them.
    pub fn names() -> String {
        let [rest @ .., last] = Self::ALL.map(Self::name);
        format!("{} and {last}", rest.join(", "))
    }

    /// Returns whether every head's keys, after RoPE, are multiplied by a Hadamard matrix.
    pub fn rotates_keys(self) -> bool {
        matches!(self, Self::Hadamard | Self::Centred)
    }

    /// Returns whether every number is stored in half precision.
    pub(crate) fn is_f16(self) -> bool {
        matches!(self, Self::F16 | Self::AlignedF16)
    }

    /// Returns whether every head's values are multiplied by a Hadamard matrix.
    pub fn rotates_values(self) -> bool {
        matches!(self, Self::Hadamard | Self::RotateKv | Self::Centred)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Codec {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name).ok_or_else(|| Error::Codec { had: name.to_owned(), known: Self::names() })
    }
}

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Bits {
    /// Codes 0 to 3.
    Two = 2,
    /// Codes 0 to 7, as a plane of two bits and a plane of one.
    Three = 3,
    /// Codes 0 to 15.
    Four = 4,
    /// Codes 0 to 255.
    Eight = 8,
    /// No code but the number itself in half precision, without scale: what [`Codec::F16`] stores,
    /// and what any codec can keep values, or ([`Codec::RotateKv`] apart) keys, in.
    /// [`Codec::AlignedF16`] stores it, too, in planes.
    Sixteen = 16,
}

impl Bits {
    /// Returns the number.
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
            16 => Ok(Self::Sixteen),
            had => Err(Error::Bits { had }),
        }
    }
}

/// What the codes of a group say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Code {
    /// Each code is a level, at even steps.
    #[default]
    Uniform,
    /// Each code of two bits and the two before it, in the order of the trellis and round the
    /// group, are one of ten levels, half as far apart: the same bits as [`Code::Uniform`], and a
    /// third less error. It is for [`Codec::Centred`]; a group is the head, or of 128 channels
    /// where that is larger.
    Trellis,
}

impl Code {
    const ALL: [Self; 2] = [Self::Uniform, Self::Trellis];

    /// Returns the name that texts call it by.
    fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Trellis => "trellis",
        }
    }

    /// Returns the letter after the bits of such a code.
    fn letter(self) -> &'static str {
        match self {
            Self::Uniform => "",
            Self::Trellis => "t",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Code {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name).ok_or_else(|| Error::argument("code", Self::ALL.map(Self::name).join(" or "), name))
    }
}

/// How the scale and the zero of a group are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Scales {
    /// Two halves: 32 bits a group.
    #[default]
    Half,
    /// An 8-bit float (E4M3, at least 2^-9) and an 8-bit integer: 16 bits a group. The scale grows
    /// where the zero would not fit.
    Byte,
    /// One half and no zero, 16 bits a group: the form of [`Codec::Centred`], whose codes lie
    /// symmetric about zero.
    Symmetric,
}

impl Scales {
    const ALL: [Self; 3] = [Self::Half, Self::Byte, Self::Symmetric];

    /// Returns the name that texts and files call it by.
    fn name(self) -> &'static str {
        match self {
            Self::Half => "f16",
            Self::Byte => "f8",
            Self::Symmetric => "symmetric",
        }
    }

    /// Returns the bits that a group's scale and zero take together.
    pub fn bits(self) -> u32 {
        match self {
            Self::Half => 32,
            Self::Byte | Self::Symmetric => 16,
        }
    }
}

impl fmt::Display for Scales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scales {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|scales| scales.name() == name);
        known.ok_or_else(|| {
            let [half, byte, symmetric] = Self::ALL.map(Self::name);
            Error::argument("scales", format!("{half}, {byte} or {symmetric}"), name)
        })
    }
}

/// How the keys or the values of one head are stored: bits of a code, channels that share a scale,
/// and what codes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Precision {
    /// Bits of a code.
    pub bits: Bits,
    /// Channels that share a scale and a zero: 32, 64 or 128. A group of 128 is one group a head
    /// where the head is smaller. It means nothing at 16 bits.
    pub group: u32,
    /// What the codes say.
    pub code: Code,
}

impl Precision {
    /// Half precision.
    pub const F16: Self = Self { bits: Bits::Sixteen, group: 128, code: Code::Uniform };

    /// Two bits by [`Code::Trellis`], for [`Codec::Centred`].
    pub const TRELLIS: Self = Self { bits: Bits::Two, group: 128, code: Code::Trellis };

    /// Returns the precision of these bits a code, each a level, and channels a scale.
    pub const fn new(bits: Bits, group: u32) -> Self {
        Self { bits, group, code: Code::Uniform }
    }

    /// Returns whether codes are those of a trellis.
    pub(crate) fn is_trellis(&self) -> bool {
        self.code == Code::Trellis
    }

    /// Reads bits as [`Precision`] prints them, `2` or `2t`; nothing where the text is no number.
    pub(crate) fn of_width(width: &str, group: u32) -> Option<Result<Self>> {
        let (bits, code) = match width.strip_suffix(Code::Trellis.letter()) {
            Some(bits) => (bits, Code::Trellis),
            None => (width, Code::Uniform),
        };
        let bits = bits.parse::<u32>().ok()?;
        Some(Bits::try_from(bits).map(|bits| if bits == Bits::Sixteen && code == Code::Uniform { Self::F16 } else { Self { bits, group, code } }))
    }

    /// Returns the bits, and the letter of the code.
    fn width(&self) -> String {
        format!("{}{}", self.bits.get(), self.code.letter())
    }

    /// Returns the channels that share a scale in a head of `head_dim` channels.
    pub fn group(&self, head_dim: u32) -> u32 {
        if self.bits == Bits::Sixteen { head_dim } else { self.group.min(head_dim) }
    }

    /// Returns the groups in a head of `head_dim` channels: 0 at 16 bits.
    pub fn groups(&self, head_dim: u32) -> u32 {
        if self.bits == Bits::Sixteen { 0 } else { head_dim / self.group(head_dim) }
    }

    /// Returns the channels of a token's whole key row that share a scale, for [`Codec::RotateKv`]:
    /// the group, or the half or quarter of it that divides the row, or else a head. They may be of
    /// several heads.
    pub fn row_group(&self, shape: &Shape) -> u32 {
        let channels = shape.kv_heads * shape.head_dim;
        [128, 64, 32].into_iter().find(|g| *g <= self.group && channels.is_multiple_of(*g)).unwrap_or(shape.head_dim)
    }
}

impl FromStr for Precision {
    type Err = Error;

    /// Reads what [`Precision`] prints: `2/128` for 2 bits in groups of 128, `2t/128` for the same
    /// by [`Code::Trellis`], `16` for half precision, which has no group (`16/64` is the same).
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::argument("precision", "BITS/GROUP, or 16", text);
        if text == "16" {
            return Ok(Self::F16);
        }
        let (width, group) = text.split_once('/').ok_or_else(wrong)?;
        Self::of_width(width, group.parse().map_err(|_| wrong())?).ok_or_else(wrong)?
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits {
            Bits::Sixteen if self.code == Code::Uniform => f.write_str("16"),
            _ => write!(f, "{}/{}", self.width(), self.group),
        }
    }
}

/// How one cache stores keys and values; with a [`BitPlan`](crate::bits::BitPlan), what its heads
/// have in common.
///
/// The arithmetic of an asymmetric group, in the order of RotateKV (2501.16383) section 3: with
/// `clip` c and `b` bits, `scale = c (max - min) / (2^b - 1)` rounded as it is stored,
/// `zero = round(-c min / scale)`, `code = clamp(round(x / scale) + zero, 0, 2^b - 1)`, read back
/// as `scale (code - zero)`.
///
/// That of a symmetric group ([`Codec::Centred`]): the zero is `2^(b - 1) - 1/2`, between the two
/// middle codes, and stored nowhere. The codes are those of a step that begins at Max's for a
/// normal distribution (J. Max, 1960) and is refined twice to the least squares; the scale is then
/// the one that keeps inner products their size, `sum x^2 / sum x (code - zero)`. That of the least
/// squares would shrink what is read back by the share of the error.
///
/// That of a trellis code ([`Code::Trellis`]): symbols `s` of two bits, whose indices go round the
/// group; the level `v = f + 2 (s_i ^ s_(i-2) ^ (2 (f & 1) + (s_(i-2) >> 1)))` with `f = s_(i-1)`
/// is 0 to 9, read back as `scale (v - 4.5)`. Of all sequences of symbols it stores the one of
/// least error at a step of 0.44 of the group's root mean square, and the scale that keeps inner
/// products their size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    codec: Codec,
    key: Precision,
    value: Precision,
    clip: Option<f32>,
    scales: Scales,
    heads_per_group: Option<u32>,
}

impl Format {
    /// Returns a codec with bits for keys and for values and a group of 32, 64 or 128 channels. A
    /// group of 128 is one group a head where the head is smaller. For [`Codec::F16`] and
    /// [`Codec::AlignedF16`] bits and group mean nothing.
    ///
    /// The clip is 0.8 for a rotating codec at 2 bits and 1 otherwise.
    pub fn new(codec: Codec, key_bits: Bits, value_bits: Bits, group: u32) -> Self {
        let precision = |bits| if codec.is_f16() { Precision::F16 } else { Precision::new(bits, group) };
        let scales = if codec == Codec::Centred { Scales::Symmetric } else { Scales::Half };
        Self { codec, key: precision(key_bits), value: precision(value_bits), clip: None, scales, heads_per_group: None }
    }

    /// Returns half precision.
    pub fn f16() -> Self {
        Self::new(Codec::F16, Bits::Sixteen, Bits::Sixteen, 128)
    }

    /// Returns half precision in planes, AlignedKV (2409.16546).
    pub fn aligned_f16() -> Self {
        Self::new(Codec::AlignedF16, Bits::Sixteen, Bits::Sixteen, 128)
    }

    /// Sets bits and groups for keys and for values. [`Codec::F16`] and [`Codec::AlignedF16`] keep
    /// theirs.
    pub fn with_precisions(mut self, key: Precision, value: Precision) -> Self {
        if !self.codec.is_f16() {
            (self.key, self.value) = (key, value);
        }
        self
    }

    /// Sets what the codes of keys and of values say. [`Codec::F16`] and [`Codec::AlignedF16`],
    /// which have none, stay as they are.
    pub fn with_codes(self, key: Code, value: Code) -> Self {
        let (keys, values) = (Precision { code: key, ..self.key }, Precision { code: value, ..self.value });
        self.with_precisions(keys, values)
    }

    /// Sets the share of a group's range that codes span, for keys and values, in (0, 1].
    pub fn with_clip(mut self, clip: f32) -> Self {
        self.clip = Some(clip);
        self
    }

    /// Sets how scales and zeros are stored.
    pub fn with_scales(mut self, scales: Scales) -> Self {
        self.scales = scales;
        self
    }

    /// Sets, for [`Codec::RotateKv`], the KV heads that are rotated together: a power of two that
    /// divides their number, 8 at most.
    pub fn with_heads_per_group(mut self, heads: u32) -> Self {
        self.heads_per_group = Some(heads);
        self
    }

    /// Returns how scales and zeros are stored.
    pub fn scales(&self) -> Scales {
        self.scales
    }

    /// Returns the KV heads that are rotated together: those set, otherwise 4, or the largest power
    /// of two below that divides `kv_heads`. 1 for the codecs that rotate by head or not at all.
    pub fn heads_per_group(&self, kv_heads: u32) -> u32 {
        match (self.codec, self.heads_per_group) {
            (Codec::RotateKv, Some(heads)) => heads,
            (Codec::RotateKv, None) => 1 << kv_heads.trailing_zeros().min(2),
            _ => 1,
        }
    }

    /// Returns the codec.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns the bits and group of keys.
    pub fn key(&self) -> Precision {
        self.key
    }

    /// Returns the bits and group of values.
    pub fn value(&self) -> Precision {
        self.value
    }

    /// Returns the share of a group's range that codes of these bits span.
    pub fn clip(&self, bits: Bits) -> f32 {
        self.clip.unwrap_or(if matches!(self.codec, Codec::Hadamard | Codec::RotateKv) && bits == Bits::Two { 0.8 } else { 1.0 })
    }

    /// Refuses a format that does not fit the shape.
    pub(crate) fn check(&self, shape: &Shape) -> Result<()> {
        for precision in [self.key, self.value] {
            let Precision { bits, group, .. } = precision;
            let divides = shape.head_dim.is_multiple_of(precision.group(shape.head_dim).max(1)) && (group <= shape.head_dim || group == 128);
            if bits != Bits::Sixteen && !([32, 64, 128].contains(&group) && divides) {
                return Err(Error::Group { group, head_dim: shape.head_dim });
            }
            if precision.code == Code::Trellis {
                self.check_trellis(&precision, shape.head_dim)?;
            }
            if self.scales == Scales::Byte && bits == Bits::Eight {
                return Err(Error::argument("bits", "2, 3, 4 or 16 with scales of 8 bits", "8"));
            }
        }
        if self.value.groups(shape.head_dim) > 8 {
            let wanted = format!("{} at least with heads of {}: 8 groups a head are served", shape.head_dim / 8, shape.head_dim);
            return Err(Error::argument("value group", wanted, self.value.group));
        }
        if (self.scales == Scales::Symmetric) != (self.codec == Codec::Centred) {
            let wanted = if self.codec == Codec::Centred { "symmetric with centred" } else { "f16 or f8, unless with centred" };
            return Err(Error::argument("scales", wanted, self.scales));
        }
        if let (Codec::Centred, Some(clip)) = (self.codec, self.clip) {
            return Err(Error::argument("clip", "none with centred", clip));
        }
        if let Some(clip) = self.clip.filter(|clip| !(*clip > 0.0 && *clip <= 1.0)) {
            return Err(Error::argument("clip", "above 0 and at most 1", clip));
        }
        if self.codec == Codec::RotateKv {
            self.check_rotation(shape)?;
        }
        Ok(())
    }

    /// Refuses a trellis code where there is none.
    fn check_trellis(&self, precision: &Precision, head_dim: u32) -> Result<()> {
        if self.codec != Codec::Centred {
            return Err(Error::argument("codec of a trellis code", "centred, whose codes lie symmetric about zero", self.codec));
        }
        if precision.bits != Bits::Two {
            return Err(Error::argument("bits of a trellis code", "2", precision.bits.get()));
        }
        if ![64, 80, 96, 128, 256].contains(&head_dim) {
            return Err(Error::argument("head_dim of a trellis code", "64, 80, 96, 128 or 256", head_dim));
        }
        // A shorter trellis gains less, and its scales cost more.
        let wanted = head_dim.min(128);
        if precision.group(head_dim) != wanted {
            return Err(Error::argument("group of a trellis code", format!("{wanted} with heads of {head_dim} channels"), precision.group));
        }
        Ok(())
    }

    fn check_rotation(&self, shape: &Shape) -> Result<()> {
        let heads = self.heads_per_group(shape.kv_heads);
        check_heads_per_group(heads, shape.kv_heads)?;
        let wrong = |name: &'static str, wanted: &str, had: u32| Err(Error::argument(name, wanted, had));
        if self.key.bits == Bits::Sixteen {
            return wrong("key bits", "2, 3, 4 or 8 with rotate-kv", 16);
        }
        if shape.head_dim > 256 {
            return wrong("head_dim with rotate-kv", "256 at most", shape.head_dim);
        }
        if heads * shape.head_dim > 1024 {
            return wrong("heads_per_group * head_dim", "1024 at most", heads * shape.head_dim);
        }
        let groups = shape.kv_heads * shape.head_dim / self.key.row_group(shape);
        if groups > 256 {
            return wrong("kv_heads * head_dim / group", "256 at most", groups);
        }
        Ok(())
    }
}

/// A format without its precisions, in the words of a file. Words that mean nothing here are errors
/// of their own, so they are read as texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FormatWords {
    codec: String,
    scales: String,
    clip: Option<f32>,
    heads_per_group: Option<u32>,
}

impl FormatWords {
    pub(crate) fn of(format: &Format) -> Self {
        Self { codec: format.codec.to_string(), scales: format.scales.to_string(), clip: format.clip, heads_per_group: format.heads_per_group }
    }

    /// Returns the format, with four bits in groups of 128 for its own precisions.
    pub(crate) fn format(&self) -> Result<Format> {
        let format = Format::new(self.codec.parse()?, Bits::Four, Bits::Four, 128);
        Ok(Format { scales: self.scales.parse()?, clip: self.clip, heads_per_group: self.heads_per_group, ..format })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.codec {
            codec if codec.is_f16() => write!(f, "{codec}"),
            codec => {
                write!(f, "{codec} K{}V{}", self.key.width(), self.value.width())?;
                match (self.key.group, self.value.group) {
                    (key, value) if key == value => write!(f, " group {key}")?,
                    (key, value) => write!(f, " groups {key} and {value}")?,
                }
                if self.scales == Scales::Byte { write!(f, " scales f8") } else { Ok(()) }
            }
        }
    }
}

/// Refuses a number of KV heads that cannot be rotated together.
pub(crate) fn check_heads_per_group(heads_per_group: u32, kv_heads: u32) -> Result<()> {
    if !heads_per_group.is_power_of_two() || heads_per_group > 8 || !kv_heads.is_multiple_of(heads_per_group) {
        let wanted = format!("1, 2, 4 or 8 and divide kv_heads ({kv_heads})");
        return Err(Error::argument("heads_per_group", wanted, heads_per_group));
    }
    Ok(())
}
