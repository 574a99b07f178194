//! What a rule spent on each unit, and why.

use super::Kind;
use crate::format::Precision;
use std::fmt;

/// One unit of a bit plan: keys or values that have one precision in common, and what was decided
/// about them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Unit {
    /// The layer.
    pub layer: u32,
    /// First KV head.
    pub head: u32,
    /// KV heads.
    pub heads: u32,
    /// Keys or values.
    pub kind: Kind,
    /// What was chosen.
    pub precision: Precision,
    /// Bits for one token.
    pub bits: u64,
    /// The error that remains, weighed by layer.
    pub error: f64,
    /// The error with the cheapest candidate.
    pub error_before: f64,
}

/// What a bit plan spends where, and why.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The rule, as [`BitRule`](crate::bits::BitRule) prints it.
    pub allocator: String,
    /// Bits that one packed token may take.
    pub allowed: u64,
    /// Bits that it takes.
    pub spent: u64,
    /// Numbers of a token.
    pub elements: u64,
    /// Output error of all units, weighed by layer, as measured.
    pub error: f64,
    /// For [`BitRule::Measured`](crate::bits::BitRule::Measured): no plan of these candidates
    /// within the budget has less error.
    pub bound: Option<f64>,
    /// For [`BitRule::Measured`](crate::bits::BitRule::Measured): error that the next bit a token
    /// would save.
    pub multiplier: Option<f64>,
    /// The units: keys before values of the same heads, heads ascending, layers ascending.
    pub units: Vec<Unit>,
}

impl Report {
    /// Returns the mean bits of a key's or a value's number, scales and zeros included.
    pub fn mean_bits(&self, kind: Kind) -> f64 {
        self.units.iter().filter(|unit| unit.kind == kind).map(|unit| unit.bits).sum::<u64>() as f64 / (self.elements as f64 / 2.0)
    }

    /// Returns all bits of a packed token over its numbers.
    pub fn bits_per_element(&self) -> f64 {
        self.spent as f64 / self.elements as f64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = |bits: u64| bits as f64 / self.elements as f64;
        writeln!(
            f,
            "{}: {:.4} of {:.4} bits per element, keys {:.3}, values {:.3}",
            self.allocator,
            per(self.spent),
            per(self.allowed),
            self.mean_bits(Kind::Key),
            self.mean_bits(Kind::Value)
        )?;
        write!(f, "weighed output error {:.4e}", self.error)?;
        if let (Some(bound), Some(multiplier)) = (self.bound, self.multiplier) {
            write!(f, ", none below {bound:.4e}; the next bit of a token would save {multiplier:.2e}")?;
        }
        writeln!(f, "\n{:>5} {:>7} {:>2} {:>8} {:>9} {:>11} {:>11}", "layer", "heads", "", "bits/grp", "of spent", "error", "saved")?;
        for unit in &self.units {
            let heads = if unit.heads == 1 { unit.head.to_string() } else { format!("{}..{}", unit.head, unit.head + unit.heads - 1) };
            let share = 100.0 * unit.bits as f64 / self.spent.max(1) as f64;
            let precision = unit.precision.to_string();
            let saved = unit.error_before - unit.error;
            writeln!(f, "{:>5} {heads:>7} {:>2} {precision:>8} {share:>8.2}% {:>11.3e} {saved:>11.3e}", unit.layer, unit.kind, unit.error)?;
        }
        Ok(())
    }
}
