//! The best choice, by dynamic programming over costs.

use super::{Candidate, Choice, Fill, error, pareto, relax};
use crate::error::{Error, Result};

/// Cells of the table at most: one for every unit and every cost within the budget. 64 MiB.
const CELLS: u128 = 1 << 24;

/// Finds the best choice within the budget: the smallest error and, among equals, the smallest
/// cost.
///
/// Time and memory grow with the units times the budget, counted in the greatest common divisor of
/// the costs' differences. It is meant for tests and for small instances; [`relax()`] is close to
/// it at any size. [`Choice::bound`] is its error.
///
/// # Errors
/// As [`relax()`]; also [`Error::Mismatch`] where the table would exceed 2^24 cells.
pub fn exact(units: &[Vec<Candidate>], budget: u64) -> Result<Choice> {
    let relaxed = relax(units, budget, Fill::Nested)?;
    let paretos: Vec<Vec<usize>> = units.iter().map(|unit| pareto(unit)).collect();
    // Costs count from each unit's cheapest candidate.
    let rise = |u: usize, pick: usize| units[u][pick].cost - units[u][paretos[u][0]].cost;
    let rises = || paretos.iter().enumerate().flat_map(|(u, kept)| kept.iter().map(move |&pick| rise(u, pick)));
    let unit_cost = rises().fold(0, gcd).max(1);
    let cheapest: u64 = units.iter().zip(&paretos).map(|(unit, kept)| unit[kept[0]].cost).sum();
    let all: u128 = paretos.iter().enumerate().map(|(u, kept)| u128::from(rise(u, kept[kept.len() - 1]))).sum();
    let columns = all.min(u128::from(budget - cheapest)) / u128::from(unit_cost) + 1;
    let cells = columns.saturating_mul(units.len() as u128);
    if cells > CELLS {
        let wanted = format!("{CELLS} cells or fewer (units times budget, by the costs' greatest common divisor)");
        return Err(Error::argument("the exact table", wanted, format!("{cells} cells")));
    }

    let columns = columns as usize;
    let mut least = vec![f64::INFINITY; columns];
    least[0] = 0.0;
    let mut came = vec![0_u32; columns * units.len()];
    for ((unit, kept), came) in units.iter().zip(&paretos).zip(came.chunks_exact_mut(columns)) {
        let mut next = vec![f64::INFINITY; columns];
        for (place, &pick) in kept.iter().enumerate() {
            let rise = ((unit[pick].cost - unit[kept[0]].cost) / unit_cost) as usize;
            for column in rise..columns {
                let sum = least[column - rise] + unit[pick].error;
                if sum < next[column] {
                    next[column] = sum;
                    came[column] = place as u32;
                }
            }
        }
        least = next;
    }

    let mut column = (0..columns).fold(0, |best, column| if least[column] < least[best] { column } else { best });
    let cost = cheapest + column as u64 * unit_cost;
    let mut picks = vec![0; units.len()];
    for u in (0..units.len()).rev() {
        picks[u] = paretos[u][came[u * columns + column] as usize];
        column -= (rise(u, picks[u]) / unit_cost) as usize;
    }
    let error = error(units, &picks);
    Ok(Choice { picks, cost, error, multiplier: relaxed.multiplier, bound: error })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
