//! Where everything lies in a page: 128 tokens of one KV head, keys and values.

use crate::format::{Bits, Codec, Format, Shape};

/// Tokens of a page.
pub const PAGE_TOKENS: u32 = 128;

/// The planes of a page, in units of 16 bytes (a `vec4<u32>`):
///
/// | plane | size | element `[..]` holds |
/// |---|---|---|
/// | key codes | `key_words * 32` | `[word, lane]`: the word of tokens `4 lane .. 4 lane + 3` |
/// | key scales | `key_groups * scale_vecs` | `[group, lane]`: (scale, zero) of the same four tokens |
/// | value codes | `value_words * head_dim / 4` | `[word, quad]`: the word of channels `4 quad .. 4 quad + 3` |
/// | value scales | `value_groups * scale_vecs` | as for the keys |
///
/// A word of key codes holds consecutive channels of one token: for 2, 4 and 8 bits, shift `j` and
/// the mask of the low bits of each byte give channels `4 (word * 8 / bits + j) ..`, one a byte. A
/// word of value codes holds consecutive tokens of one channel in the same way. Three bits are a
/// plane of the low two bits followed by a plane of the third bits, 32 a word. f16 is two channels
/// (keys) or two tokens (values) a word, and has no scales.
///
/// A scale and a zero are two halves, in a word; or ([`Scales::Byte`](crate::Scales::Byte)) a byte
/// each, or ([`Scales::Symmetric`](crate::Scales::Symmetric)) the scale alone is one half, so that
/// a lane's four tokens take two words, and a group's plane half as many vectors.
///
/// The planes of [`Codec::AlignedF16`](crate::Codec::AlignedF16) take the place of those f16 codes,
/// each a run of 32-bit words:
///
/// | plane | words | element `[..]` holds |
/// |---|---|---|
/// | first eight bits of the keys | `32 * head_dim` | `[channel, lane]`: bytes of tokens `4 lane + (0, 2, 1, 3)` |
/// | next four | `16 * head_dim` | `[channel, pair of lanes]`: nibbles of tokens `8 pair + (0, 2, 4, 6, 1, 3, 5, 7)` |
/// | last four | the same | the same |
///
/// Values lie in the same way with tokens and channels exchanged, `[token, ..]`. At the page's end
/// stand the largest exponents that a channel's keys (a byte each), then its values, have in the
/// page.
///
/// Where a plan with an [`Alignment`](crate::aligned::Alignment) stores integer codes in planes,
/// those take the place of the same codes without: planes of 2 and 2 bits for 4, of 4, 2 and 2 for
/// 8, the high bits first, each a run of 32-bit words:
///
/// | plane | words | element `[..]` holds |
/// |---|---|---|
/// | 2 bits of the keys | `8 * head_dim` | `[quad of channels, lane]`: a byte for each channel, of tokens `4 lane + (0, 1, 2, 3)` from the low bits on |
/// | 4 bits of the keys | `16 * head_dim` | `[quad of channels, word, lane]`: the same of tokens `4 lane + (0, 2)`, then of `4 lane + (1, 3)` |
///
/// Values lie in the same way with tokens and channels exchanged: `[lane, quad]`, a byte for each
/// token. A quad of channels (of tokens) is read or left unread as a whole.
///
/// The key scales of [`Codec::RotateKv`](crate::Codec::RotateKv) are of groups over all KV heads
/// and lie in a plane of their own, `[physical page, row_groups, scale_vecs]`; a page has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PageLayout {
    /// Channels that share a key scale.
    pub key_group: u32,
    /// Groups of keys that have their scales in the page: 0 for f16, and for RotateKV.
    pub key_groups: u32,
    /// Channels that share a value scale.
    pub value_group: u32,
    /// Groups of values; 0 for f16.
    pub value_groups: u32,
    /// For RotateKV: groups of a token's whole key row; otherwise 0.
    pub row_groups: u32,
    /// Channels of such a group.
    pub row_group: u32,
    /// Units of one group's scales and zeros in a page.
    pub scale_vecs: u32,
    /// Words of one token's key codes in all planes.
    pub key_words: u32,
    /// Words of one token's key codes in the low plane.
    pub key_steps: u32,
    /// Words of one channel's value codes in all planes.
    pub value_words: u32,
    /// Words of one channel's value codes in the low plane.
    pub value_steps: u32,
    /// Units from the page's start to the key scales.
    pub key_scales: u32,
    /// Units from the page's start to the value codes.
    pub values: u32,
    /// Units from the page's start to the value scales.
    pub value_scales: u32,
    /// For AlignedF16: units from the page's start to the channels' largest exponents.
    pub maxima: u32,
    /// Units of the page.
    pub vecs: u32,
}

/// Returns the words in the low plane, and in all planes, of `n` codes.
fn words(n: u32, bits: Bits) -> (u32, u32) {
    let plain = n * bits.get() / 32;
    if bits == Bits::Three { (n / 16, n / 16 + n.div_ceil(32)) } else { (plain, plain) }
}

impl PageLayout {
    /// Returns the layout of a page of this format in a cache of this shape.
    pub(crate) fn new(format: &Format, shape: &Shape) -> Self {
        let head_dim = shape.head_dim;
        let (key, value) = (format.key(), format.value());
        let reorders = format.codec() == Codec::RotateKv;
        let key_groups = if reorders { 0 } else { key.groups(head_dim) };
        let value_groups = value.groups(head_dim);
        let row_group = if reorders { key.row_group(shape) } else { 0 };
        let row_groups = if reorders { shape.kv_heads * head_dim / row_group } else { 0 };
        let scale_vecs = format.scales().bits();
        let (key_steps, key_words) = words(head_dim, key.bits);
        let (value_steps, value_words) = words(PAGE_TOKENS, value.bits);
        let key_scales = key_words * 32;
        let values = key_scales + key_groups * scale_vecs;
        let value_scales = values + value_words * head_dim / 4;
        let maxima = value_scales + value_groups * scale_vecs;
        let vecs = maxima + if format.codec() == Codec::AlignedF16 { head_dim / 8 } else { 0 };
        Self {
            key_group: key.group(head_dim),
            key_groups,
            value_group: value.group(head_dim),
            value_groups,
            row_groups,
            row_group,
            scale_vecs,
            key_words,
            key_steps,
            value_words,
            value_steps,
            key_scales,
            values,
            value_scales,
            maxima,
            vecs,
        }
    }

    /// Returns the bytes of the key scales that lie beside one page of all heads.
    pub fn row_scale_bytes(&self) -> u64 {
        16 * u64::from(self.row_groups * self.scale_vecs)
    }

    /// Returns the words of one head's page.
    pub(crate) fn words(&self) -> usize {
        4 * self.vecs as usize
    }

    /// Returns the bytes of one head's page.
    pub fn bytes(&self) -> u64 {
        16 * u64::from(self.vecs)
    }
}
