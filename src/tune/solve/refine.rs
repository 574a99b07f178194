//! What a greedy choice misses near the budget: a search over the few changes that can matter.

use super::Candidate;

/// Partial choices kept after every unit. Where costs have few different sums, there are never so
/// many.
const KEPT: usize = 256;

/// A unit's other candidate, or several such changes together, as differences from the base.
#[derive(Clone, Copy)]
struct Change {
    cost: i128,
    error: f64,
    /// Error by which this is worse than the bound, whatever other units do.
    penalty: f64,
    /// Into the list of links: how it came about.
    link: usize,
}

/// One change of a chain.
struct Link {
    unit: usize,
    pick: usize,
    before: usize,
}

/// Looks for picks within the budget that err less than `gap` above the bound of the fractional
/// relaxation.
///
/// `base` are the picks where the steps along the hulls stop, `room` is what they leave of the
/// budget, `multiplier` is the slope of the step that did not fit. Every choice errs by the bound,
/// plus a penalty of 0 or more for every unit whose pick differs from the base (its change of error
/// and the multiplier times its change of cost), plus the multiplier times the cost left over. So a
/// change with a penalty of `gap` or more can be ruled out, and few are left. Their sums are
/// searched unit by unit, without those that another beats in both cost and error. The result is
/// the best choice there is, unless more than [`KEPT`] sums are left at a time; then those with the
/// least penalty are kept.
pub(super) fn refine(units: &[Vec<Candidate>], paretos: &[Vec<usize>], base: &[usize], room: u64, multiplier: f64, gap: f64) -> Option<Vec<usize>> {
    let room = i128::from(room);
    let mut alternatives: Vec<(usize, Vec<(usize, Change)>)> = Vec::new();
    for (u, (unit, kept)) in units.iter().zip(paretos).enumerate() {
        let now = unit[base[u]];
        let change = |&pick: &usize| {
            let (cost, error) = (i128::from(unit[pick].cost) - i128::from(now.cost), unit[pick].error - now.error);
            // It is negative by rounding only.
            (pick, Change { cost, error, penalty: (error + multiplier * cost as f64).max(0.0), link: 0 })
        };
        let close: Vec<_> = kept.iter().filter(|&&pick| pick != base[u]).map(change).filter(|(_, c)| c.penalty < gap).collect();
        if !close.is_empty() {
            alternatives.push((u, close));
        }
    }
    // Those most likely to be of use go first, so that the gap narrows early.
    let least = |changes: &[(usize, Change)]| changes.iter().map(|(_, c)| c.penalty).fold(f64::INFINITY, f64::min);
    alternatives.sort_by(|(_, a), (_, b)| least(a).total_cmp(&least(b)));

    let mut gap = gap;
    let mut best = None;
    let mut links = vec![Link { unit: 0, pick: 0, before: 0 }];
    let mut sums = vec![Change { cost: 0, error: 0.0, penalty: 0.0, link: 0 }];
    for (u, changes) in &alternatives {
        let mut next: Vec<(Change, Option<usize>)> = sums.iter().map(|sum| (*sum, None)).collect();
        for (pick, change) in changes {
            for sum in &sums {
                let both = Change { cost: sum.cost + change.cost, error: sum.error + change.error, penalty: sum.penalty + change.penalty, link: sum.link };
                if both.penalty < gap {
                    next.push((both, Some(*pick)));
                }
            }
        }
        next.sort_by(|(a, _), (b, _)| a.cost.cmp(&b.cost).then(a.error.total_cmp(&b.error)));
        let mut error = f64::INFINITY;
        next.retain(|(sum, _)| {
            sum.error < error && {
                error = sum.error;
                true
            }
        });
        if next.len() > KEPT {
            next.sort_by(|(a, _), (b, _)| a.penalty.total_cmp(&b.penalty));
            next.truncate(KEPT);
        }
        sums.clear();
        for (mut sum, pick) in next {
            if let Some(pick) = pick {
                links.push(Link { unit: *u, pick, before: sum.link });
                sum.link = links.len() - 1;
                let above = sum.penalty + multiplier * (room - sum.cost) as f64;
                if sum.cost <= room && above < gap {
                    gap = above;
                    best = Some(sum.link);
                }
            }
            sums.push(sum);
        }
    }
    let mut link = best?;
    let mut picks = base.to_vec();
    while link > 0 {
        picks[links[link].unit] = links[link].pick;
        link = links[link].before;
    }
    Some(picks)
}
