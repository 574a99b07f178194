//! How bits are chosen: the published rules, and one that decides by what was measured.

mod measured;
mod published;
mod text;
mod units;

use crate::error::{Error, Result, Thing};
use crate::format::{BitPlan, Format, Precision, Protection, Report, Shape, Unit};
use crate::tune::Sensitivity;
use crate::tune::solve::{self, Fill};
use units::Problem;

/// How much a bit plan may spend.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum BitBudget {
    /// Bits for each number of a packed token's keys and values, scales and zeros included. Tokens
    /// that stay f16 come on top.
    BitsPerElement(f64),
    /// Bytes for one sequence of a given length, with everything that it keeps: packed tokens,
    /// sinks and window.
    Bytes {
        /// Bytes of the sequence.
        bytes: u64,
        /// Tokens of the sequence.
        tokens: u32,
        /// What stays f16.
        protection: Protection,
    },
}

impl BitBudget {
    /// Returns the bits for one packed token of all layers.
    fn token_bits(&self, shape: &Shape) -> Result<u64> {
        let elements = shape.elements_per_token();
        match *self {
            Self::BitsPerElement(bits) if bits.is_finite() && bits >= 0.0 => Ok((bits * elements as f64) as u64),
            Self::BitsPerElement(bits) => Err(Error::argument("bits per element", "finite and 0 or more", bits)),
            Self::Bytes { bytes, tokens, protection } => {
                let packed = u64::from(protection.packed(tokens));
                let kept = 16 * elements * u64::from(protection.f16_tokens(tokens));
                match bytes.saturating_mul(8).checked_sub(kept) {
                    _ if packed == 0 => Err(Error::argument("tokens", "more than the window keeps", tokens)),
                    Some(rest) => Ok(rest / packed),
                    None => Err(Error::Capacity { reason: "the bytes of the tokens that stay f16", need: kept / 8, have: bytes }),
                }
            }
        }
    }
}

/// What has a precision of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Grain {
    /// The keys, and the values, of every KV head of every layer, as far as the codec can tell
    /// heads apart.
    #[default]
    Head,
    /// The keys, and the values, of every layer. All heads of a layer are then one dispatch.
    Layer,
}

/// A rule that chooses bits.
///
/// As text: `measured`, with `:layer` and `:fill`; `cache-norm`; `repo-norm`, with `:64` for groups
/// of 64 on average; `fixed:K4/128,V2/128`, or `K4V2` for the same.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum BitRule {
    /// One precision for all keys and one for all values: KV-AdaQuant's (2502.15075) headline, 4
    /// bits for keys and 2 for values, is one.
    Fixed {
        /// Of keys.
        key: Precision,
        /// Of values.
        value: Precision,
    },
    /// KV-AdaQuant's published rule (its code, not its paper): the greedy on the Frobenius norms of
    /// the weights that make keys and values, layer by layer, with `4^-bits` for the error. Its
    /// budget counts bits of codes alone; here it gets what the budget leaves when scales are paid
    /// for. Needs [`Sensitivity::with_weight_norms`].
    RepoNorm {
        /// Choose groups, too, smaller ones for larger norms, of this average size; otherwise all
        /// are the largest that was measured.
        average_group: Option<f64>,
    },
    /// The same rule on the norms of the sample's keys and values, head by head.
    CacheNorm,
    /// The least output error, weighed by layer, that the budget buys: the default.
    Measured {
        /// What has a precision of its own.
        grain: Grain,
        /// Whether the plans of growing budgets are nested, or each is as good as can be.
        fill: Fill,
    },
}

impl BitRule {
    /// Returns what the rule gives a precision of its own.
    fn grain(self) -> Grain {
        match self {
            Self::Fixed { .. } | Self::CacheNorm => Grain::Head,
            Self::RepoNorm { .. } => Grain::Layer,
            Self::Measured { grain, .. } => grain,
        }
    }

    fn choose(self, problem: &Problem<'_>) -> Result<Choice> {
        match self {
            Self::Fixed { key, value } => published::fixed(problem, key, value),
            Self::RepoNorm { average_group } => published::repo_norm(problem, average_group),
            Self::CacheNorm => published::cache_norm(problem),
            Self::Measured { fill, .. } => measured::choose(problem, fill),
        }
    }
}

impl Default for BitRule {
    fn default() -> Self {
        Self::Measured { grain: Grain::default(), fill: Fill::default() }
    }
}

/// What a rule chose: a candidate for every unit, and what is known of better choices.
struct Choice {
    picks: Vec<usize>,
    bound: Option<f64>,
    multiplier: Option<f64>,
}

impl Choice {
    /// Returns a choice of a rule that knows nothing of better ones.
    fn of(picks: Vec<usize>) -> Self {
        Self { picks, bound: None, multiplier: None }
    }
}

fn wrong<T>(name: &'static str, wanted: impl ToString, had: impl ToString) -> Result<T> {
    Err(Error::mismatch(Thing::Sensitivity, name, wanted, had))
}

impl BitPlan {
    /// Chooses bits within a budget, by a rule, from what was measured.
    ///
    /// The budget is never exceeded, and more of it is never worse by the rule's own measure. With
    /// [`Fill::Nested`] the plans of growing budgets are nested: no unit ever gets less.
    ///
    /// # Errors
    /// [`Error::Capacity`] for less than the cheapest candidates take; [`Error::Mismatch`] where
    /// the sensitivity lacks something that the rule needs, and for a budget that is no number.
    pub fn choose(shape: &Shape, sensitivity: &Sensitivity, budget: BitBudget, rule: BitRule) -> Result<Self> {
        shape.check()?;
        sensitivity.expect_shape(shape)?;
        let allowed = budget.token_bits(shape)?;
        let problem = Problem::new(shape, sensitivity, allowed, rule.grain());
        let Choice { picks, bound, multiplier } = rule.choose(&problem)?;
        let units: Vec<Unit> = problem.units.iter().zip(picks).map(|(unit, pick)| unit.close(sensitivity.candidates()[pick], pick)).collect();
        let spent: u64 = units.iter().map(|unit| unit.bits).sum();
        if spent > allowed {
            return Err(Error::Capacity { reason: "the bits of a token, by this rule", need: spent, have: allowed });
        }
        let report = Report {
            allocator: rule.to_string(),
            allowed,
            spent,
            elements: shape.elements_per_token(),
            error: units.iter().map(|unit| unit.error).sum(),
            bound,
            multiplier,
            units,
        };
        Self::of_report(shape, *sensitivity.format(), sensitivity.model(), report)
    }

    /// Returns the plan whose units a report lists.
    fn of_report(shape: &Shape, format: Format, model: &str, report: Report) -> Result<Self> {
        let mut precisions = vec![[None; 2]; (shape.layers * shape.kv_heads) as usize];
        for unit in &report.units {
            for head in unit.head..unit.head + unit.heads {
                precisions[(unit.layer * shape.kv_heads + head) as usize][unit.kind as usize] = Some(unit.precision);
            }
        }
        let of = |layer: u32, head: u32| precisions[(layer * shape.kv_heads + head) as usize].map(|p| p.unwrap_or(format.key()));
        Ok(Self::new(shape, format, of)?.with_report(model, report))
    }

    /// Returns the mean bits of keys and of values where values get more, though every published
    /// result says that keys need them. KV-AdaQuant's rule on norms of weights does that to models
    /// whose key weights have small norms, like Qwen3.
    pub fn favours_values(&self) -> Option<[f64; 2]> {
        let bits = |layer| (0..self.kv_heads()).flat_map(move |head| self.of(layer, head)).map(|precision| f64::from(precision.bits.get()));
        let bits: Vec<f64> = (0..self.layers()).flat_map(bits).collect();
        solve::favours_values(&bits).map(|(keys, values)| [keys, values])
    }
}
