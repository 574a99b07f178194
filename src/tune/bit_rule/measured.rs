//! The rule that decides by what was measured.

use super::Choice;
use super::units::Problem;
use crate::error::Result;
use crate::tune::solve::{self, Candidate, Fill};

/// Chooses the least output error, weighed by layer, that the bits buy.
pub(super) fn choose(problem: &Problem<'_>, fill: Fill) -> Result<Choice> {
    let candidates: Vec<Vec<Candidate>> = problem.units.iter().map(|unit| unit.candidates.clone()).collect();
    let solve::Choice { picks, bound, multiplier, .. } = solve::relax(&candidates, problem.allowed, fill)?;
    Ok(Choice { picks, bound: Some(bound), multiplier: Some(multiplier) })
}
