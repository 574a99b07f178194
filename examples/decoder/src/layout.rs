//! How weights lie on the GPU: as their file stores them, taken apart into planes of words.
//!
//! GGUF's blocks of 18 to 210 bytes are no whole words. So codes lie in one plane, eight of a row's
//! columns in as many words as they need; bits beyond four in a second; scales in a third. What is
//! stored is the same, and so are the numbers that come out.

use half::f16;

use crate::error::Result;
use crate::format::{Stored, WeightFormat};

/// Columns must be a multiple of this.
pub const COLUMNS: usize = 32;

/// A layout, named as the format that it holds. F32 and BF16 become F16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "they are GGUF's names")]
pub enum Layout {
    F16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

/// What codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codes {
    Halves,
    Nibbles,
    Fives,
    Sixes,
    Bytes,
}

/// What scales are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    None,
    Half { centre: u8 },
    Pair,
    Super,
    Signed,
}

/// Planes of words, one after another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Planes {
    /// The words.
    pub words: Vec<u32>,
    /// Where the second plane of codes lies.
    pub high_at: u32,
    /// Where the scales lie.
    pub scales_at: u32,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 9] = [Self::F16, Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Returns the layout for a format.
    pub fn of(format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => Self::F16,
            WeightFormat::Q8_0 => Self::Q8_0,
            WeightFormat::Q4_0 => Self::Q4_0,
            WeightFormat::Q4_1 => Self::Q4_1,
            WeightFormat::Q5_0 => Self::Q5_0,
            WeightFormat::Q5_1 => Self::Q5_1,
            WeightFormat::Q4K => Self::Q4K,
            WeightFormat::Q5K => Self::Q5K,
            WeightFormat::Q6K => Self::Q6K,
        }
    }

    pub(crate) fn codes(self) -> Codes {
        match self {
            Self::F16 => Codes::Halves,
            Self::Q8_0 => Codes::Bytes,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => Codes::Nibbles,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => Codes::Fives,
            Self::Q6K => Codes::Sixes,
        }
    }

    pub(crate) fn scales(self) -> Scales {
        match self {
            Self::F16 => Scales::None,
            Self::Q8_0 => Scales::Half { centre: 0 },
            Self::Q4_0 => Scales::Half { centre: 8 },
            Self::Q5_0 => Scales::Half { centre: 16 },
            Self::Q4_1 | Self::Q5_1 => Scales::Pair,
            Self::Q4K | Self::Q5K => Scales::Super,
            Self::Q6K => Scales::Signed,
        }
    }

    /// Returns the words of a matrix.
    pub fn words(self, rows: usize, columns: usize) -> usize {
        let elements = rows * columns;
        let codes = match self.codes() {
            Codes::Halves => elements / 2,
            Codes::Bytes => elements / 4,
            Codes::Nibbles => elements / 8,
            Codes::Fives => elements / 8 + elements / 32,
            Codes::Sixes => elements / 8 + elements / 16,
        };
        codes
            + match self.scales() {
                Scales::None => 0,
                Scales::Half { .. } => (elements / 32).div_ceil(2),
                Scales::Pair => elements / 32,
                Scales::Super | Scales::Signed => 5 * (elements / 256),
            }
    }

    /// Lays out rows, each `(matrix, row)`. All matrices have the same number of columns and a
    /// format of this layout.
    ///
    /// # Errors
    /// [`wgkv::Error::Mismatch`] for a number of columns that is no multiple of 32.
    pub fn planes<'a>(self, rows: impl Iterator<Item = (&'a Stored, usize)>) -> Result<Planes> {
        let mut packer = Packer::default();
        for (matrix, row) in rows {
            if !matrix.columns.is_multiple_of(COLUMNS) {
                return Err(wgkv::Error::argument("inputs of a projection", "a multiple of 32", matrix.columns).into());
            }
            let bytes = matrix.bytes.len() / matrix.rows.max(1);
            packer.row(matrix.format, &matrix.bytes[row * bytes..][..bytes]);
        }
        Ok(packer.finish(self))
    }
}

/// The planes so far.
#[derive(Default)]
struct Packer {
    codes: Vec<u32>,
    /// Bits beyond the fourth.
    high: Vec<u32>,
    scales: Vec<u32>,
    halves: Vec<u16>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn half_bits(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// A number as a half, cut to the range of halves.
fn narrowed(x: f32) -> u16 {
    f16::from_f32(x.clamp(-65504.0, 65504.0)).to_bits()
}

impl Packer {
    fn row(&mut self, format: WeightFormat, bytes: &[u8]) {
        match format {
            WeightFormat::F16 => self.codes.extend(bytes.as_chunks().0.iter().map(|&raw| u32::from_le_bytes(raw))),
            WeightFormat::F32 => self.numbers(bytes.as_chunks().0.iter().map(|&raw| f32::from_le_bytes(raw))),
            WeightFormat::Bf16 => self.numbers(bytes.as_chunks().0.iter().map(|&raw| half::bf16::from_le_bytes(raw).to_f32())),
            WeightFormat::Q8_0 => {
                for block in bytes.as_chunks::<34>().0 {
                    self.halves.push(half_bits(block, 0));
                    self.codes.extend((0..8).map(|n| word(block, 2 + 4 * n)));
                }
            }
            WeightFormat::Q4_0 => {
                for block in bytes.as_chunks::<18>().0 {
                    self.halves.push(half_bits(block, 0));
                    self.nibbles(&block[2..]);
                }
            }
            WeightFormat::Q4_1 => {
                for block in bytes.as_chunks::<20>().0 {
                    self.scales.push(word(block, 0));
                    self.nibbles(&block[4..]);
                }
            }
            WeightFormat::Q5_0 => {
                for block in bytes.as_chunks::<22>().0 {
                    self.halves.push(half_bits(block, 0));
                    self.high.push(word(block, 2));
                    self.nibbles(&block[6..]);
                }
            }
            WeightFormat::Q5_1 => {
                for block in bytes.as_chunks::<24>().0 {
                    self.scales.push(word(block, 0));
                    self.high.push(word(block, 4));
                    self.nibbles(&block[8..]);
                }
            }
            WeightFormat::Q4K => {
                for block in bytes.as_chunks::<144>().0 {
                    self.supers(block);
                    block[16..].chunks(32).for_each(|codes| self.nibble_pairs(codes));
                }
            }
            WeightFormat::Q5K => {
                for block in bytes.as_chunks::<176>().0 {
                    self.supers(block);
                    // Bit n of a byte is the fifth of the code of group n.
                    for group in 0..8 {
                        self.high.push((0..32).fold(0, |bits, n| bits | u32::from(block[16 + n] >> group & 1) << n));
                    }
                    block[48..].chunks(32).for_each(|codes| self.nibble_pairs(codes));
                }
            }
            WeightFormat::Q6K => {
                for block in bytes.as_chunks::<210>().0 {
                    self.sixes(block);
                }
            }
        }
    }

    fn numbers(&mut self, numbers: impl Iterator<Item = f32>) {
        let mut low = None;
        for x in numbers {
            match low.take() {
                None => low = Some(narrowed(x)),
                Some(first) => self.codes.push(u32::from(first) | u32::from(narrowed(x)) << 16),
            }
        }
    }

    /// Eight codes: the first four in the low nibbles, the others in the high ones.
    fn eight(&mut self, code: impl Fn(usize) -> u8) {
        self.codes.push((0..4).fold(0, |word, n| word | u32::from(code(n) & 15 | (code(n + 4) & 15) << 4) << (8 * n)));
    }

    /// 32 codes: byte n has code n in its low nibble, code n + 16 in its high one.
    fn nibbles(&mut self, bytes: &[u8]) {
        let code = |n: usize| if n < 16 { bytes[n] } else { bytes[n - 16] >> 4 };
        (0..4).for_each(|eight| self.eight(|n| code(8 * eight + n)));
    }

    /// 64 codes: byte n has code n in its low nibble, code n + 32 in its high one.
    fn nibble_pairs(&mut self, bytes: &[u8]) {
        let code = |n: usize| if n < 32 { bytes[n] } else { bytes[n - 32] >> 4 };
        (0..8).for_each(|eight| self.eight(|n| code(8 * eight + n)));
    }

    /// Scale and minimum of Q4_K and Q5_K, and the eight pairs of 6-bit codes, each as a byte.
    fn supers(&mut self, block: &[u8]) {
        self.scales.push(word(block, 0));
        let packed = &block[4..16];
        let pair = |group: usize| -> u32 {
            let (scale, least) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                (packed[group + 4] & 15 | packed[group - 4] >> 6 << 4, packed[group + 4] >> 4 | packed[group] >> 6 << 4)
            };
            u32::from(scale) | u32::from(least) << 8
        };
        (0..4).for_each(|n| self.scales.push(pair(2 * n) | pair(2 * n + 1) << 16));
    }

    /// A block of Q6_K: 128 bytes of low nibbles, 64 of two bits, 16 scales, a half.
    fn sixes(&mut self, block: &[u8]) {
        self.scales.push(u32::from(half_bits(block, 208)));
        self.scales.extend((0..4).map(|n| word(block, 192 + 4 * n)));
        let code = |n: usize| -> u8 {
            let (half, place) = (n / 128, n % 128);
            let (quarter, at) = (place / 32, place % 32);
            let low = block[64 * half + 32 * (quarter % 2) + at] >> (4 * (quarter / 2)) & 15;
            let high = block[128 + 32 * half + at] >> (2 * quarter) & 3;
            low | high << 4
        };
        for pair in 0..16 {
            for eight in [2 * pair, 2 * pair + 1] {
                self.eight(|n| code(8 * eight + n));
            }
            self.high.push((0..16).fold(0, |bits, n| bits | u32::from(code(16 * pair + n) >> 4) << (2 * n)));
        }
    }

    fn finish(self, layout: Layout) -> Planes {
        let Self { codes: mut words, high, mut scales, halves } = self;
        if let Scales::Half { .. } = layout.scales() {
            scales = halves.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair.get(1).copied().unwrap_or(0)) << 16).collect();
        }
        let high_at = words.len() as u32;
        words.extend(high);
        let scales_at = words.len() as u32;
        words.extend(scales);
        Planes { words, high_at, scales_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of planes, as the parts of WGSL read them.
    fn numbers(layout: Layout, planes: &Planes, elements: usize) -> Vec<f32> {
        let words = &planes.words;
        let (high_at, scales_at) = (planes.high_at as usize, planes.scales_at as usize);
        let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
        let nibble = |element: usize| {
            let n = element % 8;
            words[element / 8] >> (8 * (n % 4) + 4 * (n / 4)) & 15
        };
        let element = |element: usize| -> f32 {
            let (eight, n) = (element / 8, element % 8);
            let code = match layout.codes() {
                Codes::Halves => return half(words[element / 2] >> (16 * (element % 2)) & 0xffff),
                Codes::Bytes => f32::from((words[element / 4] >> (8 * (element % 4))) as u8 as i8),
                Codes::Nibbles => nibble(element) as f32,
                Codes::Fives => (nibble(element) | (words[high_at + eight / 4] >> (8 * (eight % 4) + n) & 1) << 4) as f32,
                Codes::Sixes => (nibble(element) | (words[high_at + eight / 2] >> (16 * (eight % 2) + 2 * n) & 3) << 4) as f32,
            };
            let (scale, offset) = match layout.scales() {
                Scales::None => (1.0, 0.0),
                Scales::Half { centre } => {
                    let block = eight / 4;
                    let scale = half(words[scales_at + block / 2] >> (16 * (block % 2)) & 0xffff);
                    (scale, -f32::from(centre) * scale)
                }
                Scales::Pair => {
                    let both = words[scales_at + eight / 4];
                    (half(both & 0xffff), half(both >> 16))
                }
                Scales::Super => {
                    let at = scales_at + 5 * (eight / 32);
                    let bytes = words[at + 1 + eight % 32 / 8] >> (16 * (eight / 4 % 2));
                    (half(words[at] & 0xffff) * (bytes & 255) as f32, -half(words[at] >> 16) * (bytes >> 8 & 255) as f32)
                }
                Scales::Signed => {
                    let at = scales_at + 5 * (eight / 32);
                    let byte = (words[at + 1 + eight % 32 / 8] >> (8 * (eight / 2 % 4))) as u8 as i8;
                    let scale = half(words[at] & 0xffff) * f32::from(byte);
                    (scale, -32.0 * scale)
                }
            };
            scale * code + offset
        };
        (0..elements).map(element).collect()
    }

    #[test]
    fn planes_hold_the_numbers_that_are_stored() {
        let formats = [
            WeightFormat::F16,
            WeightFormat::Q8_0,
            WeightFormat::Q4_0,
            WeightFormat::Q4_1,
            WeightFormat::Q5_0,
            WeightFormat::Q5_1,
            WeightFormat::Q4K,
            WeightFormat::Q5K,
            WeightFormat::Q6K,
        ];
        let mut state = 12345_u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for format in formats {
            let (rows, columns) = (5, 512);
            let length = rows * columns / format.block_elements() * format.block_bytes();
            let mut bytes: Vec<u8> = (0..length).map(|_| byte()).collect();
            // Halves that are finite wherever one may lie.
            bytes.iter_mut().for_each(|byte| *byte &= 0xbb);
            let stored = Stored { rows, columns, format, bytes };
            let layout = Layout::of(format);
            let planes = layout.planes((0..rows).map(|row| (&stored, row))).unwrap();
            assert_eq!(planes.words.len(), layout.words(rows, columns), "{}", format.name());
            let (got, want) = (numbers(layout, &planes, rows * columns), stored.numbers());
            for (n, (got, want)) in got.iter().zip(&want).enumerate() {
                // One product and one sum against ggml's order of the same: two roundings of f32.
                assert!(
                    (got - want).abs() <= 4.0 * f32::EPSILON * want.abs().max(1e-3 * got.abs()) + 1e-2 * f32::EPSILON,
                    "{} {n}: {got}, {want}",
                    format.name()
                );
            }
        }
    }
}
