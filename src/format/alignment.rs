//! How much of every stored number decoding reads.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// By what the planes to read are chosen, for keys or for values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Criterion {
    /// All planes are read.
    #[default]
    Everything,
    /// AlignedKV's own rule (2409.16546), for halves: an addend needs no bits below the last place
    /// of the largest addend (keys), or of the estimated output (values). It bounds the error of an
    /// addend, not that of the sum.
    Published,
    /// A budget for the sum of all errors in the worst case, in multiples of the error that the
    /// stored numbers' own rounding has in the same sum (half a unit in the last place; half a step
    /// of a code). 0 reads everything.
    Budget(f32),
}

impl Criterion {
    /// Returns the shaders' number for it, and the budget's bits.
    pub(crate) fn words(self) -> [u32; 2] {
        match self {
            Self::Everything => [0, 0],
            Self::Published => [1, 0],
            Self::Budget(phi) => [2, phi.to_bits()],
        }
    }

    fn check(self, name: &'static str) -> Result<()> {
        match self {
            Self::Budget(phi) if !(phi >= 0.0 && phi.is_finite()) => Err(Error::argument(name, "finite and not negative", phi)),
            _ => Ok(()),
        }
    }
}

/// Which planes decoding reads of packed pages: of [`Codec::AlignedF16`](crate::Codec::AlignedF16),
/// and of integer codes of 4 and 8 bits in plans that were given one. Prefill reads all planes.
///
/// As text: `everything`, `published`, or budgets as in `phi-k:64,phi-v:256`, of which one may be
/// left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Alignment {
    /// For keys.
    pub keys: Criterion,
    /// For values.
    pub values: Criterion,
}

impl Alignment {
    /// AlignedKV's own rule (2409.16546).
    pub const PUBLISHED: Self = Self { keys: Criterion::Published, values: Criterion::Published };

    /// All planes are read.
    pub const EVERYTHING: Self = Self { keys: Criterion::Everything, values: Criterion::Everything };

    /// Returns budgets for keys and for values.
    pub fn budget(phi_k: f32, phi_v: f32) -> Self {
        Self { keys: Criterion::Budget(phi_k), values: Criterion::Budget(phi_v) }
    }

    /// Refuses budgets that are negative or not finite.
    pub(crate) fn check(&self) -> Result<()> {
        self.keys.check("phi_k")?;
        self.values.check("phi_v")
    }
}

impl fmt::Display for Alignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Vec::new();
        for (name, criterion) in [("k", self.keys), ("v", self.values)] {
            match criterion {
                Criterion::Everything => {}
                Criterion::Published => names.push(format!("published-{name}")),
                Criterion::Budget(phi) => names.push(format!("phi-{name}:{phi}")),
            }
        }
        match (*self, names.is_empty()) {
            (Self::PUBLISHED, _) => f.write_str("published"),
            (_, true) => f.write_str("everything"),
            _ => f.write_str(&names.join(",")),
        }
    }
}

impl FromStr for Alignment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "everything" => return Ok(Self::EVERYTHING),
            "published" => return Ok(Self::PUBLISHED),
            _ => {}
        }
        let wrong = || Error::argument("alignment", "everything, published, or budgets as in phi-k:64,phi-v:256", text);
        let mut alignment = Self::EVERYTHING;
        for part in text.split(',') {
            let budget = |phi: &str| phi.parse().map(Criterion::Budget).map_err(|_| wrong());
            match part.split_once(':') {
                Some(("phi-k", phi)) => alignment.keys = budget(phi)?,
                Some(("phi-v", phi)) => alignment.values = budget(phi)?,
                None if part == "published-k" => alignment.keys = Criterion::Published,
                None if part == "published-v" => alignment.values = Criterion::Published,
                _ => return Err(wrong()),
            }
        }
        alignment.check().map_err(|_| wrong())?;
        Ok(alignment)
    }
}
