//! What a rule decides about: units of keys or values, and what each candidate costs them.

use super::{Grain, wrong};
use crate::error::Result;
use crate::format::{BitPlan, Format, Kind, PAGE_TOKENS, PageLayout, Precision, Shape, Unit};
use crate::tune::Sensitivity;
use crate::tune::solve::Candidate;

/// A unit before anything is decided: its heads, and what each candidate costs and does.
pub(super) struct Open {
    pub layer: u32,
    pub head: u32,
    pub heads: u32,
    pub kind: Kind,
    pub candidates: Vec<Candidate>,
}

impl Open {
    /// Returns the unit with a candidate chosen.
    pub fn close(&self, precision: Precision, pick: usize) -> Unit {
        let chosen = self.candidates[pick];
        let cheapest = self.candidates.iter().min_by_key(|candidate| candidate.cost).copied().unwrap_or(chosen);
        Unit {
            layer: self.layer,
            head: self.head,
            heads: self.heads,
            kind: self.kind,
            precision,
            bits: chosen.cost,
            error: chosen.error,
            error_before: cheapest.error,
        }
    }
}

/// What a rule chooses from, and the bits that it may spend.
pub(super) struct Problem<'a> {
    pub shape: &'a Shape,
    pub sensitivity: &'a Sensitivity,
    /// Bits that one token may take.
    pub allowed: u64,
    pub units: Vec<Open>,
}

impl<'a> Problem<'a> {
    /// Opens the units of a grain: keys before values of the same heads, which is the order in
    /// which ties are broken.
    pub fn new(shape: &'a Shape, sensitivity: &'a Sensitivity, allowed: u64, grain: Grain) -> Self {
        let mut problem = Self { shape, sensitivity, allowed, units: Vec::new() };
        let mut starts: Vec<(u32, u32, Kind)> = Vec::new();
        for kind in Kind::BOTH {
            let heads = if grain == Grain::Layer { shape.kv_heads } else { BitPlan::heads_alike(sensitivity.format(), kind, shape.kv_heads) };
            starts.extend((0..shape.kv_heads).step_by(heads as usize).map(|first| (first, heads, kind)));
        }
        starts.sort_by_key(|(first, _, kind)| (*first, *kind));
        let places = (0..shape.layers).flat_map(|layer| starts.iter().map(move |(head, heads, kind)| (layer, *head, *heads, *kind)));
        problem.units = places.map(|(layer, head, heads, kind)| problem.open(layer, head, heads, kind)).collect();
        problem
    }

    fn open(&self, layer: u32, head: u32, heads: u32, kind: Kind) -> Open {
        let sensitivity = self.sensitivity;
        let error = |n: usize| (head..head + heads).map(|h| sensitivity.output_errors(layer, h, kind).get(n).copied().unwrap_or(0.0)).sum::<f64>();
        let candidate = |(n, precision): (usize, &Precision)| Candidate {
            cost: self.token_bits(kind, *precision, heads),
            error: sensitivity.layer_weight(layer) * error(n),
        };
        Open { layer, head, heads, kind, candidates: sensitivity.candidates().iter().enumerate().map(candidate).collect() }
    }

    /// Returns the bits that one token's keys or values of `heads` heads take.
    pub fn token_bits(&self, kind: Kind, precision: Precision, heads: u32) -> u64 {
        token_bits(self.shape, self.sensitivity.format(), kind, precision, heads)
    }

    /// Returns which candidate a precision is. Groups that come to the same in a head of this size
    /// are the same.
    pub fn find(&self, precision: Precision) -> Result<usize> {
        let candidates = self.sensitivity.candidates();
        let key = |p: &Precision| (p.bits, p.group(self.shape.head_dim), p.code);
        let same = candidates.iter().position(|candidate| *candidate == precision);
        same.or_else(|| candidates.iter().position(|candidate| key(candidate) == key(&precision))).map_or_else(
            || {
                let had = candidates.iter().map(Precision::to_string).collect::<Vec<_>>().join(", ");
                wrong("candidates", format!("such that {precision} is among them"), had)
            },
            Ok,
        )
    }
}

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
