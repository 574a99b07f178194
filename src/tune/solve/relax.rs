//! Steps along the units' lower convex hulls, steepest first, with a bound on what any choice could
//! reach.

use super::{Candidate, Choice, Fill, check, cost, error, pareto, refine::refine};
use crate::error::Result;

/// A step along a unit's hull.
struct Step {
    unit: usize,
    /// The candidate it leads to.
    pick: usize,
    /// What it costs more than the candidate before it.
    cost: u64,
    /// Error saved for each unit of cost.
    slope: f64,
}

/// Picks a candidate for every unit by its place on the lower convex hull of cost and error.
///
/// Every unit begins with its cheapest candidate. Steps along the hulls are taken while they fit,
/// those that save most error for their cost first; among equals, the cheaper one, then that of the
/// earlier unit. [`Choice::bound`] is what would be reached if a part of the first step that does
/// not fit could be taken: the fractional relaxation.
///
/// Scaling all errors by one factor changes no pick, as no tolerance is absolute.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) where there are no units, a unit has no candidates,
/// or an error is negative or not finite; [`Error::Capacity`](crate::Error::Capacity) where the
/// budget is below the cheapest total.
pub fn relax(units: &[Vec<Candidate>], budget: u64, fill: Fill) -> Result<Choice> {
    let mut slack = check(units, budget)?;
    let paretos: Vec<Vec<usize>> = units.iter().map(|unit| pareto(unit)).collect();
    let mut picks: Vec<usize> = paretos.iter().map(|kept| kept[0]).collect();
    let mut steps: Vec<Step> = paretos.iter().enumerate().flat_map(|(u, kept)| steps(u, &units[u], kept)).collect();
    // Within a unit slopes descend, so its steps stay in order.
    steps.sort_by(|a, b| b.slope.total_cmp(&a.slope).then(a.cost.cmp(&b.cost)).then(a.unit.cmp(&b.unit)));

    let mut rest = steps.iter();
    let mut first = None;
    for step in rest.by_ref() {
        if step.cost > slack {
            first = Some(step);
            break;
        }
        slack -= step.cost;
        picks[step.unit] = step.pick;
    }
    let Some(first) = first else {
        // Every unit has its best.
        let error = error(units, &picks);
        return Ok(Choice { picks, cost: budget - slack, error, multiplier: 0.0, bound: error });
    };
    let bound = error(units, &picks) - first.slope * slack as f64;

    if fill == Fill::Skip {
        let (stopped, room) = (picks.clone(), slack);
        let mut blocked = vec![false; units.len()];
        blocked[first.unit] = true;
        for step in rest {
            if blocked[step.unit] || step.cost > slack {
                blocked[step.unit] = true;
            } else {
                slack -= step.cost;
                picks[step.unit] = step.pick;
            }
        }
        polish(units, &paretos, &mut picks, &mut slack);
        if let Some(better) = refine(units, &paretos, &stopped, room, first.slope, error(units, &picks) - bound)
            && error(units, &better) < error(units, &picks)
        {
            slack = budget - cost(units, &better);
            picks = better;
            polish(units, &paretos, &mut picks, &mut slack);
        }
    }
    let error = error(units, &picks);
    // A bound that is reached may come out beyond it by rounding.
    Ok(Choice { picks, cost: budget - slack, error, multiplier: first.slope, bound: bound.clamp(0.0, error) })
}

/// Returns the steps of a unit along its lower convex hull: slopes strictly descend, so points on a
/// straight line are left out.
fn steps(u: usize, unit: &[Candidate], pareto: &[usize]) -> Vec<Step> {
    let step = |from: usize, pick: usize| {
        let cost = unit[pick].cost - unit[from].cost;
        Step { unit: u, pick, cost, slope: (unit[from].error - unit[pick].error) / cost as f64 }
    };
    let mut steps: Vec<Step> = Vec::new();
    for &pick in &pareto[1..] {
        let mut next = step(steps.last().map_or(pareto[0], |last| last.pick), pick);
        while steps.last().is_some_and(|last| last.slope <= next.slope) {
            steps.pop();
            next = step(steps.last().map_or(pareto[0], |last| last.pick), pick);
        }
        steps.push(next);
    }
    steps
}

/// Spends the slack on single changes, the one that saves most error first, until none fits. They
/// need not lie on a hull.
fn polish(units: &[Vec<Candidate>], paretos: &[Vec<usize>], picks: &mut [usize], slack: &mut u64) {
    loop {
        let mut best: Option<(f64, u64, usize, usize)> = None;
        for (u, (unit, kept)) in units.iter().zip(paretos).enumerate() {
            let now = unit[picks[u]];
            // Of a unit's candidates that fit, the dearest errs least.
            let Some(&pick) = kept.iter().rev().find(|&&i| unit[i].cost.saturating_sub(now.cost) <= *slack) else { continue };
            let saved = now.error - unit[pick].error;
            if saved > 0.0 {
                let cost = unit[pick].cost - now.cost;
                if best.is_none_or(|(most, least, ..)| saved > most || (saved == most && cost < least)) {
                    best = Some((saved, cost, u, pick));
                }
            }
        }
        let Some((_, cost, u, pick)) = best else { return };
        picks[u] = pick;
        *slack -= cost;
    }
}
