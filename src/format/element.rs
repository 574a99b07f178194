//! The types of numbers in the caller's rows.

/// The type of a number in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats: IEEE halves.
    F16,
    /// The upper 16 bits of 32-bit floats. What is written is rounded to the nearest, ties to even.
    Bf16,
}

impl Element {
    /// Returns the bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Returns the name that errors and shaders call it by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}
