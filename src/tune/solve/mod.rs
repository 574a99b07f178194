//! Choosing the width, group or layout of every part of a cache, so that the whole errs least
//! within a budget.
//!
//! The parts are *units* (say, the keys or the values of one KV head of one layer). Every unit has
//! *candidates*: ways to store it, each with a cost in whole units of the caller's choice (bits,
//! bytes) and a measured error. One candidate is picked for every unit, so that costs add up to the
//! budget at most and the sum of errors is small:
//!
//! - [`relax()`] follows the lower convex hulls of the units, steepest step first. It is fast, and
//!   returns with its choice a bound that no choice can beat, so the distance to the best is known.
//! - [`exact()`] finds the best by dynamic programming, where costs are few enough.
//! - [`norm_bits`] and [`norm_groups`] are the published rule of KV-AdaQuant (2502.15075), which
//!   needs norms only: errors are taken to be `norm² 4^-bits`. It is here to compare with. Norms
//!   say little of the error of attention, and the rule can starve keys ([`favours_values`]).
//!
//! All are deterministic: they run on one thread, and ties are broken by cost and then by the
//! unit's place. Callers order units by importance: keys before values, lower layers first, lower
//! heads first.
//!
//! ```
//! use wgkv::bits::solve::{Candidate, Fill, relax};
//!
//! // Keys that err four times as much as values at any width, and three bits for each on average.
//! let unit = |scale: f64| [2, 3, 4].map(|bits| Candidate { cost: bits, error: scale * 0.25_f64.powi(bits as i32) }).to_vec();
//! let choice = relax(&[unit(16.0), unit(1.0)], 6, Fill::Skip)?;
//! assert_eq!(choice.picks, [2, 0]); // four bits for keys, two for values
//! assert_eq!(choice.gap(), 0.0); // and nothing can be better
//! # Ok::<(), wgkv::Error>(())
//! ```

mod exact;
mod norm;
mod refine;
mod relax;

pub use exact::exact;
pub use norm::{Ties, favours_values, norm_bits, norm_groups};
pub use relax::relax;

use crate::error::{Error, Result};

/// One way of storing a unit: what it costs and what it does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Cost, in the unit of the budget.
    pub cost: u64,
    /// Error it adds to the whole: finite, 0 or more, in any one scale.
    pub error: f64,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// By unit: index into its candidates.
    pub picks: Vec<usize>,
    /// Cost of all picks.
    pub cost: u64,
    /// Error of all picks.
    pub error: f64,
    /// Lagrange multiplier: error that the first step not taken would save for each unit of cost. 0
    /// where all were taken.
    pub multiplier: f64,
    /// No choice within the budget has a smaller error, but for the rounding of sums.
    pub bound: f64,
}

impl Choice {
    /// Returns the largest part of the error that the best choice might save: 0 to 1.
    pub fn gap(&self) -> f64 {
        if self.error > 0.0 { (self.error - self.bound) / self.error } else { 0.0 }
    }
}

/// What [`relax()`] does when the next step exceeds the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Fill {
    /// Stop. For growing budgets, choices are nested: no unit ever gets less, and the error never
    /// grows.
    #[default]
    Nested,
    /// Leave this unit as it is and go on with the others. Then spend what is left, until no single
    /// change for the better fits, and look for exchanges between units: where costs have few
    /// different sums, the best choice is found. The error is never larger than that of
    /// [`Fill::Nested`].
    Skip,
}

/// Refuses units that nothing can be chosen for. Returns what the budget leaves when every unit has
/// its cheapest candidate.
fn check(units: &[Vec<Candidate>], budget: u64) -> Result<u64> {
    let refuse = |name: &'static str, wanted: &str, had| Err(Error::argument(name, wanted, had));
    if units.is_empty() {
        return refuse("units", "1 or more", "0".into());
    }
    let (mut need, mut worst) = (0_u128, 0.0);
    for (u, unit) in units.iter().enumerate() {
        if let Some((i, candidate)) = unit.iter().enumerate().find(|(_, c)| !(c.error.is_finite() && c.error >= 0.0)) {
            return refuse("error", "finite and 0 or more", format!("{} in candidate {i} of unit {u}", candidate.error));
        }
        let Some(cheapest) = unit.iter().map(|c| c.cost).min() else {
            return refuse("candidates", "1 or more for every unit", format!("0 for unit {u}"));
        };
        need += u128::from(cheapest);
        worst += unit.iter().map(|c| c.error).fold(0.0, f64::max);
        if worst == f64::INFINITY {
            return refuse("error", "small enough for a finite sum", format!("infinite when added up to unit {u}"));
        }
    }
    let refused = |need| Error::Capacity { reason: "the cheapest candidates of all units", need, have: budget };
    let need = u64::try_from(need).map_err(|_| refused(u64::MAX))?;
    budget.checked_sub(need).ok_or_else(|| refused(need))
}

/// Returns the error of these picks. It is always added in the order of units, so that equal picks
/// have equal errors.
fn error(units: &[Vec<Candidate>], picks: &[usize]) -> f64 {
    units.iter().zip(picks).map(|(unit, &pick)| unit[pick].error).sum()
}

/// Returns the cost of these picks, which is known to be within a budget.
fn cost(units: &[Vec<Candidate>], picks: &[usize]) -> u64 {
    units.iter().zip(picks).map(|(unit, &pick)| unit[pick].cost).sum()
}

/// Returns the candidates that are not beaten in both cost and error: indices, costs ascending,
/// errors descending.
fn pareto(unit: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..unit.len()).collect();
    order.sort_by(|&i, &j| unit[i].cost.cmp(&unit[j].cost).then(unit[i].error.total_cmp(&unit[j].error)));
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        if kept.last().is_none_or(|&last| unit[i].error < unit[last].error) {
            kept.push(i);
        }
    }
    kept
}
