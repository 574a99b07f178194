//! The published rules: one pair of precisions for all, and KV-AdaQuant's greedy on norms.

use super::units::{Open, Problem};
use super::{Choice, wrong};
use crate::error::{Error, Result};
use crate::format::{BitPlan, Bits, Kind, Precision};
use crate::tune::solve::{self, Ties};

/// Chooses one precision for all keys and one for all values.
pub(super) fn fixed(problem: &Problem<'_>, key: Precision, value: Precision) -> Result<Choice> {
    let picks = [problem.find(key)?, problem.find(value)?];
    Ok(Choice::of(problem.units.iter().map(|unit| picks[unit.kind as usize]).collect()))
}

/// Chooses by the norms of the weights, layer by layer.
pub(super) fn repo_norm(problem: &Problem<'_>, average_group: Option<f64>) -> Result<Choice> {
    let layers = problem.shape.layers;
    let known: Vec<[f64; 2]> = (0..layers).filter_map(|layer| problem.sensitivity.weight_norms(layer)).collect();
    if known.len() != layers as usize {
        return wrong("weight norms", "told by Sensitivity::with_weight_norms", "not");
    }
    let norms = known.into_iter().flatten().collect();
    Greedy::new(problem, norms, problem.shape.kv_heads, average_group)?.picks(Ties::Published).map(Choice::of)
}

/// Chooses by the norms of the sample's keys and values, head by head.
pub(super) fn cache_norm(problem: &Problem<'_>) -> Result<Choice> {
    let (shape, sensitivity) = (problem.shape, problem.sensitivity);
    // Pairs of the keys and the values of a head; heads that share one precision are one.
    let heads = Kind::BOTH.map(|kind| BitPlan::heads_alike(sensitivity.format(), kind, shape.kv_heads));
    let heads = heads[0].max(heads[1]);
    let norm = |layer, head: u32, kind| (head..head + heads).map(|h| sensitivity.norm(layer, h, kind).powi(2)).sum::<f64>().sqrt();
    let firsts = (0..shape.layers).flat_map(|layer| (0..shape.kv_heads).step_by(heads as usize).map(move |head| (layer, head)));
    let norms = firsts.flat_map(|(layer, head)| Kind::BOTH.map(|kind| norm(layer, head, kind))).collect();
    let picks = Greedy::new(problem, norms, heads, None)?.picks(Ties::Relative)?;
    let of = |unit: &Open| 2 * ((unit.layer * shape.kv_heads + unit.head) / heads) as usize + unit.kind as usize;
    Ok(Choice::of(problem.units.iter().map(|unit| picks[of(unit)]).collect()))
}

/// The published greedy on norms, with what scales cost.
struct Greedy<'a> {
    problem: &'a Problem<'a>,
    /// In the order keys, values, keys, and so on, of `heads` heads each.
    norms: Vec<f64>,
    heads: u32,
    /// The widths and the largest group that were measured.
    widths: Vec<Bits>,
    largest: u32,
    /// By norm, if the rule chooses groups, too; otherwise all are the largest.
    groups: Option<Vec<u32>>,
}

impl<'a> Greedy<'a> {
    fn new(problem: &'a Problem<'a>, norms: Vec<f64>, heads: u32, average_group: Option<f64>) -> Result<Self> {
        let candidates = problem.sensitivity.candidates();
        let widths = sorted(candidates.iter().map(|candidate| candidate.bits));
        let sizes = sorted(candidates.iter().map(|candidate| candidate.group(problem.shape.head_dim)));
        let groups = average_group.map(|average| solve::norm_groups(&norms, &sizes, average)).transpose()?;
        let largest = sizes.last().copied().unwrap_or(problem.shape.head_dim);
        Ok(Self { problem, norms, heads, widths, largest, groups })
    }

    fn group(&self, n: usize) -> u32 {
        self.groups.as_ref().map_or(self.largest, |groups| groups[n])
    }

    /// Returns the bits of a token that norm `n` stands for, stored in this width.
    fn cost(&self, n: usize, bits: Bits) -> u64 {
        self.problem.token_bits(Kind::BOTH[n % 2], Precision::new(bits, self.group(n)), self.heads)
    }

    fn total(&self, bits: impl Fn(usize) -> Result<Bits>) -> Result<u64> {
        (0..self.norms.len()).map(|n| Ok(self.cost(n, bits(n)?))).sum()
    }

    /// Returns the widths, by norm, that the greedy chooses within the bits that the problem
    /// allows.
    fn bits(&self, ties: Ties) -> Result<Vec<Bits>> {
        let allowed = self.problem.allowed;
        let numbers = self.heads * self.problem.shape.head_dim;
        // What scales and zeros take, unit by unit, as the layout has them: what a width costs
        // beyond its codes.
        let scales: u64 = (0..self.norms.len()).map(|n| self.cost(n, Bits::Four) - u64::from(4 * numbers)).sum();
        let elements = self.norms.len() as f64 * f64::from(numbers);
        let widths: Vec<f64> = self.widths.iter().map(|bits| f64::from(bits.get())).collect();
        let mut codes = allowed.saturating_sub(scales);
        loop {
            let average = codes as f64 / elements;
            if let Some(least) = self.widths.first().filter(|least| average < f64::from(least.get())) {
                return Err(Error::Capacity { reason: "the cheapest candidates of all units", need: self.total(|_| Ok(*least))?, have: allowed });
            }
            let bits = solve::norm_bits(&self.norms, &widths, average, ties)?;
            let bits: Vec<Bits> = bits.into_iter().map(|bits| Bits::try_from(bits as u32)).collect::<Result<_>>()?;
            let spent = self.total(|n| Ok(bits[n]))?;
            if spent <= allowed {
                return Ok(bits);
            }
            // Three bits of a head of 80 take words in part: what they waste is not there to be
            // spent.
            codes = codes.saturating_sub(spent - allowed);
        }
    }

    /// Returns the candidates, by norm, of the widths and groups that the greedy chooses; of the
    /// largest group where a width was not measured in the one chosen.
    fn picks(&self, ties: Ties) -> Result<Vec<usize>> {
        let find = |(n, bits): (usize, Bits)| {
            let found = self.problem.find(Precision::new(bits, self.group(n)));
            found.or_else(|_| self.problem.find(Precision::new(bits, self.largest)))
        };
        self.bits(ties)?.into_iter().enumerate().map(find).collect()
    }
}

/// Returns the numbers that there are, each once, ascending.
fn sorted<T: Ord>(numbers: impl Iterator<Item = T>) -> Vec<T> {
    let mut numbers: Vec<T> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}
