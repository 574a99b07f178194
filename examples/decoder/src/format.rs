//! How a tensor's numbers are stored, and what they are when unpacked.

use half::{bf16, f16};

/// How the numbers of a tensor are stored: plain, or in GGUF's blocks.
///
/// A block is `block_elements` consecutive numbers of one row; rows are whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// 32 signed bytes and a scale.
    Q8_0,
    /// 32 codes of 4 bits around 8, and a scale.
    Q4_0,
    /// 32 codes of 4 bits, a scale and a smallest value.
    Q4_1,
    /// 32 codes of 5 bits around 16, and a scale.
    Q5_0,
    /// 32 codes of 5 bits, a scale and a smallest value.
    Q5_1,
    /// 256 codes of 4 bits in eight groups, whose scales and smallest values are 6-bit codes
    /// themselves.
    Q4K,
    /// The same with codes of 5 bits.
    Q5K,
    /// 256 codes of 6 bits around 32 in sixteen groups with 8-bit scales.
    Q6K,
}

impl WeightFormat {
    /// Returns how many numbers a block holds: 1 for the plain formats.
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Returns how many bytes a block takes.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Returns the name that the format has in its files, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Returns the bytes of a row of `columns` numbers, or none where they are not whole blocks or
    /// too many.
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        if columns.is_multiple_of(self.block_elements()) { (columns / self.block_elements()).checked_mul(self.block_bytes()) } else { None }
    }

    /// Appends what the blocks in `bytes` stand for. A rest that is no whole block is left out.
    fn unpack(self, bytes: &[u8], numbers: &mut Vec<f32>) {
        match self {
            Self::F32 => numbers.extend(bytes.as_chunks().0.iter().map(|&raw| f32::from_le_bytes(raw))),
            Self::F16 => numbers.extend(bytes.as_chunks().0.iter().map(|&raw| f16::from_le_bytes(raw).to_f32())),
            Self::Bf16 => numbers.extend(bytes.as_chunks().0.iter().map(|&raw| bf16::from_le_bytes(raw).to_f32())),
            Self::Q8_0 => bytes.as_chunks().0.iter().for_each(|block| numbers.extend(q8_0(block))),
            Self::Q4_0 => bytes.as_chunks().0.iter().for_each(|block| numbers.extend(q4_0(block))),
            Self::Q4_1 => bytes.as_chunks().0.iter().for_each(|block| numbers.extend(q4_1(block))),
            Self::Q5_0 => bytes.as_chunks().0.iter().for_each(|block| numbers.extend(q5_0(block))),
            Self::Q5_1 => bytes.as_chunks().0.iter().for_each(|block| numbers.extend(q5_1(block))),
            Self::Q4K => bytes.as_chunks().0.iter().for_each(|block| numbers.extend(q4_k(block))),
            Self::Q5K => bytes.as_chunks().0.iter().for_each(|block| numbers.extend(q5_k(block))),
            Self::Q6K => bytes.as_chunks().0.iter().for_each(|block| numbers.extend(q6_k(block))),
        }
    }
}

/// A tensor as its file stores it: a matrix of `[rows, columns]`, which are outputs and inputs of a
/// projection. A vector is one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Outputs of the projection, tokens of an embedding, 1 of a vector.
    pub rows: usize,
    /// Inputs of the projection, elements of a vector.
    pub columns: usize,
    /// How the numbers are stored.
    pub format: WeightFormat,
    /// Row after row, each of [`WeightFormat::row_bytes`], little-endian.
    pub bytes: Vec<u8>,
}

impl Stored {
    /// Returns the numbers row after row, in f32.
    ///
    /// The arithmetic is that of ggml's `dequantize_row_*`, in the same order and roundings, so the
    /// results are the same bits.
    pub fn numbers(&self) -> Vec<f32> {
        // Sized by the bytes that there are, not by what the shape claims.
        let mut numbers = Vec::with_capacity(self.bytes.len() / self.format.block_bytes() * self.format.block_elements());
        self.format.unpack(&self.bytes, &mut numbers);
        numbers
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn low(byte: u8) -> u8 {
    byte & 15
}

fn high(byte: u8) -> u8 {
    byte >> 4
}

fn q8_0(block: &[u8; 34]) -> [f32; 32] {
    let scale = half(block, 0);
    std::array::from_fn(|element| f32::from(block[2 + element].cast_signed()) * scale)
}

/// The code of an element where 16 bytes hold 32 of 4 bits: the first half in the lower bits, the
/// second in the upper.
fn nibble(codes: &[u8], element: usize) -> u8 {
    if element < 16 { low(codes[element]) } else { high(codes[element - 16]) }
}

/// The fifth bit of an element, as 16 or 0.
fn fifth(bits: &[u8], element: usize) -> u8 {
    (bits[element / 8] >> (element % 8) & 1) << 4
}

fn q4_0(block: &[u8; 18]) -> [f32; 32] {
    let scale = half(block, 0);
    std::array::from_fn(|element| (f32::from(nibble(&block[2..], element)) - 8.0) * scale)
}

fn q4_1(block: &[u8; 20]) -> [f32; 32] {
    let (scale, least) = (half(block, 0), half(block, 2));
    std::array::from_fn(|element| f32::from(nibble(&block[4..], element)) * scale + least)
}

fn q5_0(block: &[u8; 22]) -> [f32; 32] {
    let scale = half(block, 0);
    std::array::from_fn(|element| (f32::from(nibble(&block[6..], element) | fifth(&block[2..], element)) - 16.0) * scale)
}

fn q5_1(block: &[u8; 24]) -> [f32; 32] {
    let (scale, least) = (half(block, 0), half(block, 2));
    std::array::from_fn(|element| f32::from(nibble(&block[8..], element) | fifth(&block[4..], element)) * scale + least)
}

/// Scale and smallest value of one of the eight groups, 6 bits each: twelve bytes hold the sixteen
/// codes. The first four groups' lie in the lower 6 bits of a byte; of the others, the lower 4 bits
/// are a byte's halves and the upper 2 the top of the first groups' bytes.
fn six_bits(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, least) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (low(packed[group + 4]) | packed[group - 4] >> 6 << 4, high(packed[group + 4]) | packed[group] >> 6 << 4)
    };
    (f32::from(scale), f32::from(least))
}

/// The code of an element where every 32 bytes hold two groups of 32, one in the lower bits and one
/// in the upper.
fn grouped_nibble(codes: &[u8], element: usize) -> u8 {
    let byte = codes[element / 64 * 32 + element % 32];
    if element % 64 < 32 { low(byte) } else { high(byte) }
}

fn q4_k(block: &[u8; 144]) -> [f32; 256] {
    let (scale, least) = (half(block, 0), half(block, 2));
    std::array::from_fn(|element| {
        let (group_scale, group_least) = six_bits(&block[4..], element / 32);
        scale * group_scale * f32::from(grouped_nibble(&block[16..], element)) - least * group_least
    })
}

fn q5_k(block: &[u8; 176]) -> [f32; 256] {
    let (scale, least) = (half(block, 0), half(block, 2));
    std::array::from_fn(|element| {
        let (group_scale, group_least) = six_bits(&block[4..], element / 32);
        let code = grouped_nibble(&block[48..], element) | (block[16 + element % 32] >> (element / 32) & 1) << 4;
        scale * group_scale * f32::from(code) - least * group_least
    })
}

fn q6_k(block: &[u8; 210]) -> [f32; 256] {
    let scale = half(block, 208);
    std::array::from_fn(|element| {
        // Each half of the block has 64 bytes of lower and 32 of upper bits.
        let (part, within) = (element / 128, element % 128);
        let byte = block[part * 64 + within % 64];
        let lower = if within < 64 { low(byte) } else { high(byte) };
        let upper = block[128 + part * 32 + within % 32] >> (within / 32 * 2) & 3;
        let group_scale = f32::from(block[192 + element / 16].cast_signed());
        scale * group_scale * (f32::from(lower | upper << 4) - 32.0)
    })
}
