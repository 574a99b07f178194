//! KV-AdaQuant's rule: widths and group sizes from the norms of keys and values alone.

use crate::error::{Error, Result};

/// Room for the rounding of sums, as a part of the budget: widths such as 1.58 bits have no exact
/// sums.
const SLOP: f64 = 1e-9;

/// When [`norm_bits`] takes two gains for equal, so that the earlier unit goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Ties {
    /// They differ by 1e-9 of themselves at most. The scale of the norms has no effect.
    #[default]
    Relative,
    /// They differ by 1e-6 at most, as published. Small norms are all equal to it, so the result
    /// depends on their scale.
    Published,
}

/// Returns the bits of every unit by the greedy rule of KV-AdaQuant (2502.15075): errors are taken
/// to be `norm² 4^-bits`.
///
/// `norms` come in the order K0, V0, K1, V1, and so on; `widths` ascend; `average` is of bits
/// without scales and zeros. All units begin with the least width. The unit whose next width saves
/// most for each bit is widened, as long as one fits.
///
/// # Errors
/// [`Error::Mismatch`] where norms are not in pairs, or negative or not finite; where widths do not
/// ascend from 0 or more; where the average is less than the least width.
pub fn norm_bits(norms: &[f64], widths: &[f64], average: f64, ties: Ties) -> Result<Vec<f64>> {
    check_norms(norms)?;
    if widths.is_empty() || !widths.iter().all(|w| w.is_finite() && *w >= 0.0) || !widths.is_sorted_by(|a, b| a < b) {
        return refuse("widths", "ascending, finite and 0 or more".into(), format!("{widths:?}"));
    }
    if !(average.is_finite() && average >= widths[0]) {
        return refuse("average", format!("finite and {} or more", widths[0]), format!("{average}"));
    }
    let weights: Vec<f64> = match ties {
        Ties::Published => norms.iter().map(|norm| norm * norm).collect(),
        Ties::Relative => to_largest(norms).iter().map(|norm| norm * norm).collect(),
    };
    let beats = |gain: f64, best: f64| match ties {
        Ties::Published => gain > best + 1e-6,
        Ties::Relative => gain > best * (1.0 + 1e-9),
    };
    let total = norms.len() as f64 * average * (1.0 + SLOP);
    let mut places = vec![0_usize; norms.len()];
    let mut used = norms.len() as f64 * widths[0];
    loop {
        let mut best: Option<(f64, usize)> = None;
        for (u, (&place, weight)) in places.iter().zip(&weights).enumerate() {
            let Some(wider) = widths.get(place + 1) else { continue };
            let step = wider - widths[place];
            let gain = weight * (0.25_f64.powf(widths[place]) - 0.25_f64.powf(*wider)) / step;
            if used + step <= total && best.is_none_or(|(most, _)| beats(gain, most)) {
                best = Some((gain, u));
            }
        }
        let Some((_, u)) = best else { break };
        used += widths[places[u] + 1] - widths[places[u]];
        places[u] += 1;
    }
    Ok(places.iter().map(|&place| widths[place]).collect())
}

/// Returns the group sizes of every unit by the rule of KV-AdaQuant (2502.15075): the error is
/// taken to be `norm` times group size.
///
/// `norms` come in the order K0, V0, K1, V1, and so on; `sizes` ascend. Groups have a scale each,
/// so the sum of `1 / size` over the units stays within `units / average_group`. Where sizes could
/// be any number, the best would be `κ / sqrt(norm)`; these are rounded to the nearest of `sizes`
/// (of two as near, the smaller). Then, while there are too many groups, the unit that loses least
/// for each group saved gets the next larger size; while there is room, the unit that gains most
/// for each group added gets the next smaller one. (The published rule may end with a few groups
/// too many.)
///
/// # Errors
/// [`Error::Mismatch`] where norms are not in pairs, or negative or not finite; where sizes do not
/// ascend from 1 or more; where the average is more than the largest size.
pub fn norm_groups(norms: &[f64], sizes: &[u32], average_group: f64) -> Result<Vec<u32>> {
    check_norms(norms)?;
    let (Some(&least), Some(&most)) = (sizes.first(), sizes.last()) else {
        return refuse("sizes", "1 or more".into(), "0".into());
    };
    if least == 0 || !sizes.is_sorted_by(|a, b| a < b) {
        return refuse("sizes", "ascending from 1 or more".into(), format!("{sizes:?}"));
    }
    if !(average_group > 0.0 && average_group <= f64::from(most)) {
        return refuse("average_group", format!("more than 0 and at most {most}"), format!("{average_group}"));
    }
    let norms = to_largest(norms);
    let budget = norms.len() as f64 / average_group;
    let allowed = budget * (1.0 + SLOP);
    let kappa = norms.iter().map(|norm| norm.sqrt()).sum::<f64>() / budget;
    let size = |place: usize| f64::from(sizes[place]);
    // Counts how often the best size lies above the middle of two neighbours. A norm of 0 gets the
    // largest.
    let nearest = |norm: &f64| (1..sizes.len()).filter(|&place| kappa / norm.sqrt() > (size(place - 1) + size(place)) / 2.0).count();
    let mut places: Vec<usize> = norms.iter().map(nearest).collect();
    let mut used: f64 = places.iter().map(|&place| 1.0 / size(place)).sum();
    // Groups saved by the step from this place to the next, and what it costs for each of them.
    let saved = |place: usize| 1.0 / size(place) - 1.0 / size(place + 1);
    let price = |norm: f64, place: usize| norm * (size(place + 1) - size(place)) / saved(place);
    while used > allowed {
        // As published, by loss for each group saved, and not below the budget. If every step leads
        // there, more groups saved are of no use, and the loss alone counts.
        let cheapest = |beyond: bool| {
            let mut best: Option<(f64, usize)> = None;
            for (u, (&place, &norm)) in places.iter().zip(&norms).enumerate() {
                if place + 1 == sizes.len() || (!beyond && used - saved(place) < budget * (1.0 - SLOP)) {
                    continue;
                }
                let loss = if beyond { norm * (size(place + 1) - size(place)) } else { price(norm, place) };
                if best.is_none_or(|(least, _)| loss < least) {
                    best = Some((loss, u));
                }
            }
            best
        };
        let Some((_, u)) = cheapest(false).or_else(|| cheapest(true)) else { break };
        used -= saved(places[u]);
        places[u] += 1;
    }
    loop {
        let mut best: Option<(f64, usize)> = None;
        for (u, (&place, &norm)) in places.iter().zip(&norms).enumerate() {
            if place == 0 || used + saved(place - 1) > allowed {
                continue;
            }
            let price = price(norm, place - 1);
            if best.is_none_or(|(most, _)| price > most) {
                best = Some((price, u));
            }
        }
        let Some((_, u)) = best else { break };
        used += saved(places[u] - 1);
        places[u] -= 1;
    }
    Ok(places.iter().map(|&place| sizes[place]).collect())
}

/// Returns the mean bits of keys and of values, where values get more: a sign that norms mislead.
/// `bits` are in the order of [`norm_bits`].
///
/// Models with a norm on their keys (Qwen3) have large value projections, which the rule widens at
/// the cost of keys; KV-AdaQuant's own tables show such models to need wide keys more than others.
pub fn favours_values(bits: &[f64]) -> Option<(f64, f64)> {
    let layers = (bits.len() / 2) as f64;
    let mean = |first: usize| bits.iter().skip(first).step_by(2).sum::<f64>() / layers;
    let (keys, values) = (mean(0), mean(1));
    (values > keys * (1.0 + SLOP)).then_some((keys, values))
}

fn refuse<T>(name: &'static str, wanted: String, had: String) -> Result<T> {
    Err(Error::argument(name, wanted, had))
}

fn check_norms(norms: &[f64]) -> Result<()> {
    if norms.is_empty() || !norms.len().is_multiple_of(2) {
        return refuse("norms", "of keys and values in pairs, one pair or more".into(), format!("{} numbers", norms.len()));
    }
    match norms.iter().position(|norm| !(norm.is_finite() && *norm >= 0.0)) {
        Some(u) => refuse("norms", "finite and 0 or more".into(), format!("{} for unit {u}", norms[u])),
        None => Ok(()),
    }
}

/// Returns the norms divided by the largest, so that no square overflows. Where all are 0, all are
/// 1.
fn to_largest(norms: &[f64]) -> Vec<f64> {
    let largest = norms.iter().copied().fold(0.0, f64::max);
    norms.iter().map(|norm| if largest > 0.0 { norm / largest } else { 1.0 }).collect()
}
