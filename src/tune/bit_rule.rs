//! How bits are allocated: the published rules, and one that decides by what was measured.

use crate::error::{Error, Result, Thing};
use crate::format::{BitPlan, Bits, Format, Kind, PAGE_TOKENS, PageLayout, Precision, Protection, Report, Shape, Unit};
use crate::tune::Sensitivity;
use crate::tune::solve::{self, Candidate, Fill, Ties};
use std::fmt;
use std::str::FromStr;

/// How much an allocation may spend.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum BitBudget {
    /// So many bits for each number of a packed token's keys and values, scales and zeros included. Tokens that stay f16 come on
    /// top.
    BitsPerElement(f64),
    /// So many bytes for one sequence of so many tokens, with everything that it keeps: packed tokens, sinks and window.
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
    /// Bits for one packed token of all layers.
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
pub enum Grain {
    /// The keys, and the values, of every KV head of every layer, as far as the codec can tell heads apart.
    #[default]
    Head,
    /// The keys, and the values, of every layer. All heads of a layer are then one dispatch.
    Layer,
}

/// A rule that allocates bits.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum BitRule {
    /// One precision for all keys and one for all values: KV-AdaQuant's (2502.15075) headline, 4 bits for keys and 2 for values, is one.
    Fixed {
        /// Of keys.
        key: Precision,
        /// Of values.
        value: Precision,
    },
    /// KV-AdaQuant's published allocator (its code, not its paper): the greedy on the Frobenius norms of the weights that make keys
    /// and values, layer by layer, with `4^-bits` for the error. Its budget counts bits of codes alone; here it gets what the allowance
    /// leaves when scales are paid for. Needs [`Sensitivity::with_weight_norms`].
    RepoNorm {
        /// Allocate groups, too, smaller ones for larger norms, of this average size; otherwise all are the largest that was measured.
        average_group: Option<f64>,
    },
    /// The same rule on the norms of the sample's keys and values, head by head.
    CacheNorm,
    /// The least output error, weighed by layer, that the allowance buys: the default.
    Measured {
        /// What has a precision of its own.
        grain: Grain,
        /// Whether allocations of growing allowances are nested, or each is as good as can be.
        fill: Fill,
    },
}

impl Default for BitRule {
    fn default() -> Self {
        Self::Measured { grain: Grain::Head, fill: Fill::Nested }
    }
}

impl fmt::Display for BitRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { key, value } => write!(f, "fixed:K{key},V{value}"),
            Self::RepoNorm { average_group: None } => f.write_str("repo-norm"),
            Self::RepoNorm { average_group: Some(group) } => write!(f, "repo-norm:{group}"),
            Self::CacheNorm => f.write_str("cache-norm"),
            Self::Measured { grain, fill } => {
                f.write_str("measured")?;
                f.write_str(if *grain == Grain::Layer { ":layer" } else { "" })?;
                f.write_str(if *fill == Fill::Skip { ":fill" } else { "" })
            }
        }
    }
}

impl FromStr for BitRule {
    type Err = Error;

    /// `measured`, with `:layer` for one precision a layer and `:fill` for what is as good as can be instead of nested;
    /// `cache-norm`; `repo-norm`, with `:64` for groups of 64 on average; `fixed:K4/128,V2/128`, or `K4V2` for the same.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::argument("allocator", "measured, cache-norm, repo-norm or K4V2", text);
        let (word, rest) = text.split_once(':').unwrap_or((text, ""));
        if text.ends_with(':') {
            return Err(wrong());
        }
        match (word, rest) {
            ("measured", "") => Ok(Self::default()),
            ("measured", options) => {
                let (mut grain, mut fill) = (Grain::Head, Fill::Nested);
                for option in options.split(':') {
                    match option {
                        "layer" => grain = Grain::Layer,
                        "fill" => fill = Fill::Skip,
                        _ => return Err(wrong()),
                    }
                }
                Ok(Self::Measured { grain, fill })
            }
            ("cache-norm", "") => Ok(Self::CacheNorm),
            ("repo-norm", "") => Ok(Self::RepoNorm { average_group: None }),
            ("repo-norm", group) => Ok(Self::RepoNorm { average_group: Some(group.parse().ok().filter(|g: &f64| g.is_finite()).ok_or_else(wrong)?) }),
            ("fixed", pair) => {
                let (key, value) = pair.split_once(',').ok_or_else(wrong)?;
                let of = |text: &str, letter| text.strip_prefix(letter).ok_or_else(wrong)?.parse();
                Ok(Self::Fixed { key: of(key, 'K')?, value: of(value, 'V')? })
            }
            (pair, "") => {
                let (key, value) = pair.strip_prefix('K').and_then(|rest| rest.split_once('V')).ok_or_else(wrong)?;
                let of = |bits: &str| Ok::<_, Error>(Precision { bits: Bits::try_from(bits.parse::<u32>().map_err(|_| wrong())?)?, group: 128 });
                Ok(Self::Fixed { key: of(key)?, value: of(value)? })
            }
            _ => Err(wrong()),
        }
    }
}

/// A unit before anything is decided: its heads, and what each candidate costs and does.
struct Open {
    layer: u32,
    head: u32,
    heads: u32,
    kind: Kind,
    candidates: Vec<Candidate>,
}

/// Bits that one token's keys or values of so many heads take.
fn token_bits(shape: &Shape, format: &Format, kind: Kind, precision: Precision, heads: u32) -> u64 {
    let layout = PageLayout::new(&format.with_precisions(precision, precision), shape);
    let scale = u64::from(layout.scale_vecs) * 128;
    let page = match kind {
        Kind::Key => u64::from(heads) * (u64::from(layout.key_words) * 32 * 128 + u64::from(layout.key_groups) * scale),
        Kind::Value => u64::from(heads) * (u64::from(layout.value_words * shape.head_dim / 4) * 128 + u64::from(layout.value_groups) * scale),
    };
    // RotateKV's key scales are of all heads, and so are its units of keys.
    let rows = if kind == Kind::Key { u64::from(layout.row_groups) * scale } else { 0 };
    (page + rows) / u64::from(PAGE_TOKENS)
}

fn open(sensitivity: &Sensitivity, shape: &Shape, grain: Grain) -> Vec<Open> {
    let format = sensitivity.format();
    let mut units = Vec::new();
    for layer in 0..shape.layers {
        // Keys before values of the same heads: the order in which ties are broken.
        let mut starts: Vec<(u32, u32, Kind)> = Vec::new();
        for kind in Kind::BOTH {
            let heads = if grain == Grain::Layer { shape.kv_heads } else { BitPlan::heads_alike(format, kind, shape.kv_heads) };
            starts.extend((0..shape.kv_heads).step_by(heads as usize).map(|first| (first, heads, kind)));
        }
        starts.sort_by_key(|(first, _, kind)| (*first, *kind));
        for (head, heads, kind) in starts {
            let of = |n: usize| (head..head + heads).map(|h| sensitivity.output_errors(layer, h, kind).get(n).copied().unwrap_or(0.0)).sum::<f64>();
            let candidates = sensitivity
                .candidates()
                .iter()
                .enumerate()
                .map(|(n, precision)| Candidate { cost: token_bits(shape, format, kind, *precision, heads), error: sensitivity.layer_weight(layer) * of(n) });
            units.push(Open { layer, head, heads, kind, candidates: candidates.collect() });
        }
    }
    units
}

fn wrong<T>(name: &'static str, wanted: impl ToString, had: impl ToString) -> Result<T> {
    Err(Error::mismatch(Thing::Sensitivity, name, wanted, had))
}

/// Which candidate a precision is. Groups that come to the same in a head of this size are the same.
fn find(sensitivity: &Sensitivity, precision: Precision) -> Result<usize> {
    let key = |p: &Precision| (p.bits, p.group(sensitivity.head_dim()));
    sensitivity
        .candidates()
        .iter()
        .position(|candidate| *candidate == precision)
        .or_else(|| sensitivity.candidates().iter().position(|candidate| key(candidate) == key(&precision)))
        .map_or_else(|| wrong("candidates", format!("such that {precision} is among them"), list(sensitivity.candidates())), Ok)
}

fn list(precisions: &[Precision]) -> String {
    precisions.iter().map(Precision::to_string).collect::<Vec<_>>().join(", ")
}

/// Bits by unit, in the order keys, values, keys, ...; groups likewise, which only the published rule chooses.
struct Norms {
    bits: Vec<f64>,
    groups: Option<Vec<u32>>,
}

/// What the published greedy makes of norms, with so many bits a token for all units of `elements` numbers each.
fn by_norms(sensitivity: &Sensitivity, shape: &Shape, norms: &[f64], heads: u32, allowed: u64, average: Option<f64>, ties: Ties) -> Result<Norms> {
    let mut widths: Vec<Bits> = sensitivity.candidates().iter().map(|c| c.bits).collect();
    widths.sort_unstable();
    widths.dedup();
    let mut sizes: Vec<u32> = sensitivity.candidates().iter().map(|c| c.group(shape.head_dim)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let groups = average.map(|average| solve::norm_groups(norms, &sizes, average)).transpose()?;
    let largest = sizes.last().copied().unwrap_or(shape.head_dim);
    let format = sensitivity.format();
    let cost = |n: usize, bits: Bits| {
        let group = groups.as_ref().map_or(largest, |groups| groups[n]);
        token_bits(shape, format, Kind::BOTH[n % 2], Precision { bits, group }, heads)
    };
    // What scales and zeros take, unit by unit, as the layout has them: what a width costs beyond its codes.
    let scales: u64 = (0..norms.len()).map(|n| cost(n, Bits::Four) - u64::from(4 * heads * shape.head_dim)).sum();
    let elements = norms.len() as f64 * f64::from(heads * shape.head_dim);
    let all: Vec<f64> = widths.iter().map(|bits| f64::from(bits.get())).collect();
    let mut codes = allowed.saturating_sub(scales);
    let bits = loop {
        let average = codes as f64 / elements;
        if let Some(least) = widths.first().filter(|least| average < f64::from(least.get())) {
            let need = (0..norms.len()).map(|n| cost(n, *least)).sum();
            return Err(Error::Capacity { reason: "the cheapest candidates of all units", need, have: allowed });
        }
        let bits = solve::norm_bits(norms, &all, average, ties)?;
        let spent = bits.iter().enumerate().map(|(n, bits)| Ok(cost(n, Bits::try_from(*bits as u32)?))).sum::<Result<u64>>()?;
        if spent <= allowed {
            break bits;
        }
        // Three bits of a head of 80 take words in part: what they waste is not there to be spent.
        codes = codes.saturating_sub(spent - allowed);
    };
    Ok(Norms { bits, groups })
}

impl BitPlan {
    /// Allocates bits within an allowance, by a rule, from what was measured.
    ///
    /// The allowance is never exceeded, and more of it is never worse by the rule's own measure. With [`Fill::Nested`] allocations of
    /// growing allowances are nested: no unit ever gets less.
    ///
    /// # Errors
    /// [`Error::Capacity`] for less than the cheapest candidates take, [`Error::Mismatch`] where it lacks something that the rule
    /// needs, [`Error::Mismatch`] for an allowance that is no number.
    pub fn choose(shape: &Shape, sensitivity: &Sensitivity, budget: BitBudget, rule: BitRule) -> Result<Self> {
        shape.check()?;
        sensitivity.expect_shape(shape)?;
        let allowed = budget.token_bits(shape)?;
        let by_layer = matches!(rule, BitRule::RepoNorm { .. } | BitRule::Measured { grain: Grain::Layer, .. });
        let units = open(sensitivity, shape, if by_layer { Grain::Layer } else { Grain::Head });
        let mut certificate = None;
        let picks: Vec<usize> = match rule {
            BitRule::Fixed { key, value } => {
                let picks = [find(sensitivity, key)?, find(sensitivity, value)?];
                units.iter().map(|unit| picks[unit.kind as usize]).collect()
            }
            BitRule::Measured { fill, .. } => {
                let candidates: Vec<Vec<Candidate>> = units.iter().map(|unit| unit.candidates.clone()).collect();
                let choice = solve::relax(&candidates, allowed, fill)?;
                certificate = Some((choice.bound, choice.multiplier));
                choice.picks
            }
            BitRule::RepoNorm { average_group } => {
                let told: Vec<[f64; 2]> = (0..shape.layers).filter_map(|layer| sensitivity.weight_norms(layer)).collect();
                if told.len() != shape.layers as usize {
                    return wrong("weight norms", "told by Sensitivity::with_weight_norms", "not");
                }
                let norms: Vec<f64> = told.into_iter().flatten().collect();
                let Norms { bits, groups } = by_norms(sensitivity, shape, &norms, shape.kv_heads, allowed, average_group, Ties::Published)?;
                picks_of(sensitivity, &bits, groups.as_deref())?
            }
            BitRule::CacheNorm => {
                // Pairs of the keys and the values of a head; heads that have one precision in common are one.
                let heads = Kind::BOTH.map(|kind| BitPlan::heads_alike(sensitivity.format(), kind, shape.kv_heads));
                let heads = heads[0].max(heads[1]);
                let pair = |layer, head: u32, kind| (head..head + heads).map(|h| sensitivity.norm(layer, h, kind).powi(2)).sum::<f64>().sqrt();
                let firsts = (0..shape.layers).flat_map(|layer| (0..shape.kv_heads).step_by(heads as usize).map(move |head| (layer, head)));
                let norms: Vec<f64> = firsts.flat_map(|(layer, head)| Kind::BOTH.map(|kind| pair(layer, head, kind))).collect();
                let Norms { bits, .. } = by_norms(sensitivity, shape, &norms, heads, allowed, None, Ties::Relative)?;
                let picks = picks_of(sensitivity, &bits, None)?;
                let of = |unit: &Open| 2 * ((unit.layer * shape.kv_heads + unit.head) / heads) as usize + unit.kind as usize;
                units.iter().map(|unit| picks[of(unit)]).collect()
            }
        };
        let spent: u64 = units.iter().zip(&picks).map(|(unit, pick)| unit.candidates[*pick].cost).sum();
        if spent > allowed {
            return Err(Error::Capacity { reason: "the bits of a token, by this rule", need: spent, have: allowed });
        }
        let close = |(unit, pick): (&Open, &usize)| {
            let chosen = unit.candidates[*pick];
            let cheapest = unit.candidates.iter().min_by_key(|candidate| candidate.cost).copied().unwrap_or(chosen);
            Unit {
                layer: unit.layer,
                head: unit.head,
                heads: unit.heads,
                kind: unit.kind,
                precision: sensitivity.candidates()[*pick],
                bits: chosen.cost,
                error: chosen.error,
                error_before: cheapest.error,
            }
        };
        let units: Vec<Unit> = units.iter().zip(&picks).map(close).collect();
        let report = Report {
            allocator: rule.to_string(),
            allowed,
            spent,
            elements: shape.elements_per_token(),
            error: units.iter().map(|unit| unit.error).sum(),
            bound: certificate.map(|(bound, _)| bound),
            multiplier: certificate.map(|(_, multiplier)| multiplier),
            units,
        };
        Self::of_report(shape, *sensitivity.format(), sensitivity.model(), report)
    }

    /// The allocation that a report tells of.
    pub(super) fn of_report(shape: &Shape, format: Format, model: &str, report: Report) -> Result<Self> {
        let mut precisions = vec![[None; 2]; (shape.layers * shape.kv_heads) as usize];
        for unit in &report.units {
            for head in unit.head..unit.head + unit.heads {
                precisions[(unit.layer * shape.kv_heads + head) as usize][unit.kind as usize] = Some(unit.precision);
            }
        }
        let of = |layer: u32, head: u32| precisions[(layer * shape.kv_heads + head) as usize].map(|p| p.unwrap_or(format.key()));
        Ok(Self::new(shape, format, of)?.with_report(model, report))
    }

    /// Do values get more bits than keys, though every published result says that keys need them? KV-AdaQuant's rule on norms of
    /// weights does that to models whose key weights have small norms, like Qwen3. Answers the mean bits of both if so.
    pub fn favours_values(&self) -> Option<[f64; 2]> {
        let [keys, values] = self.mean_bits();
        (values > keys).then_some([keys, values])
    }
}

/// The candidates of these bits and groups; the largest group where none is told, or where a width was measured in no other.
fn picks_of(sensitivity: &Sensitivity, bits: &[f64], groups: Option<&[u32]>) -> Result<Vec<usize>> {
    let largest = sensitivity.candidates().iter().map(|c| c.group(sensitivity.head_dim())).max().unwrap_or(sensitivity.head_dim());
    bits.iter()
        .enumerate()
        .map(|(n, bits)| {
            let group = groups.map_or(largest, |groups| groups[n]);
            let bits = Bits::try_from(*bits as u32)?;
            find(sensitivity, Precision { bits, group }).or_else(|_| find(sensitivity, Precision { bits, group: largest }))
        })
        .collect()
}
