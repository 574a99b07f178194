//! What a cache costs.

use super::Plan;
use crate::format::PAGE_TOKENS;
use std::fmt;

/// What a cache costs, in bytes. All of it is allocated when the cache is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Cost {
    /// Key codes of all pages.
    pub key_codes: u64,
    /// Key scales and zeros of all pages.
    pub key_scales: u64,
    /// Value codes of all pages.
    pub value_codes: u64,
    /// Value scales and zeros of all pages.
    pub value_scales: u64,
    /// f16 rows of sinks and windows.
    pub protected: u64,
    /// For [`Codec::RotateKv`](crate::Codec::RotateKv): the group of every key channel, and the
    /// tokens that are sinks. For [`Codec::Centred`](crate::Codec::Centred): means and weights.
    pub marks: u64,
    /// Queries and partial results of one pass; shared by all layers.
    pub scratch: u64,
}

impl Cost {
    /// Returns the bytes of the cache proper: everything but the scratch.
    pub fn cache(&self) -> u64 {
        self.key_codes + self.key_scales + self.value_codes + self.value_scales + self.protected + self.marks
    }

    /// Returns what several caches cost together.
    pub(crate) fn sum(costs: impl Iterator<Item = Self>) -> Self {
        costs.fold(Self::default(), |a, b| Self {
            key_codes: a.key_codes + b.key_codes,
            key_scales: a.key_scales + b.key_scales,
            value_codes: a.value_codes + b.value_codes,
            value_scales: a.value_scales + b.value_scales,
            protected: a.protected + b.protected,
            marks: a.marks + b.marks,
            scratch: a.scratch + b.scratch,
        })
    }
}

impl Plan {
    /// Returns what the cache will cost.
    pub fn cost(&self) -> Cost {
        let mut cost = Cost {
            key_codes: 0,
            key_scales: 0,
            value_codes: 0,
            value_scales: 0,
            protected: self.protected_bytes() * u64::from(self.shape.layers),
            marks: 4 * self.marks_words() * u64::from(self.shape.layers),
            scratch: self.query_rows_bytes()
                + self.query_codes_bytes()
                + self.partials_bytes()
                + self.row_partials_bytes()
                + self.unpacked_bytes()
                + self.turns_bytes()
                + self.scores_bytes()
                + self.plans_bytes()
                + self.position_terms_bytes(),
        };
        for layer in 0..self.shape.layers {
            cost.key_scales += self.key_scales_bytes(layer);
            for slab in self.slabs(layer) {
                let layout = &slab.layout;
                let all = |vecs: u32| 16 * u64::from(self.pages) * u64::from(slab.count()) * u64::from(vecs);
                cost.key_codes += all(32 * layout.key_words);
                cost.key_scales += all(layout.key_groups * layout.scale_vecs);
                cost.value_codes += all(layout.value_words * self.shape.head_dim / 4);
                cost.value_scales += all(layout.value_groups * layout.scale_vecs);
                // The largest exponents of keys and of values.
                let maxima = all(layout.vecs - layout.maxima);
                cost.key_scales += maxima / 2;
                cost.value_scales += maxima / 2;
            }
        }
        cost
    }

    /// Returns the bits that `tokens` tokens of one sequence need: codes, scales and zeros of the
    /// packed ones, f16 rows of the others.
    pub fn bits(&self, tokens: u64) -> u64 {
        let packed = u64::from(self.packed(u32::try_from(tokens).unwrap_or(u32::MAX)));
        let token = 8 * self.page_bytes() / u64::from(PAGE_TOKENS);
        let row = 16 * self.shape.elements_per_token();
        // There are as many elected sinks as rows, at most.
        let rows = (tokens - packed.min(tokens)) + u64::from(self.sinks()).min(packed);
        packed * token + rows * row
    }

    /// Returns all stored bits of a sequence of `tokens` tokens, divided by the count of numbers
    /// that they stand for.
    pub fn bits_per_element(&self, tokens: u64) -> f64 {
        self.bits(tokens) as f64 / (tokens.max(1) * self.shape.elements_per_token()) as f64
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { key_codes, key_scales, value_codes, value_scales, protected, marks, scratch } = self.cost();
        let shape = &self.shape;
        writeln!(
            f,
            "{} for {} layers of {} query heads, {} KV heads, head_dim {}",
            self.bit_plan, shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim
        )?;
        writeln!(
            f,
            "{} sequences, {} pages of {PAGE_TOKENS} tokens, sinks {}, window {}",
            self.sequences, self.pages, self.protection.sinks, self.protection.window
        )?;
        self.write_scores(f)?;
        self.write_kernels(f)?;
        for (name, bytes) in [
            ("key codes", key_codes),
            ("key scales", key_scales),
            ("value codes", value_codes),
            ("value scales", value_scales),
            ("f16 rows", protected),
            ("marks", marks),
            ("scratch", scratch),
        ] {
            writeln!(f, "{name:>14} {bytes:>14} bytes")?;
        }
        write!(f, "{:>14} {:>14.3} at {} tokens", "bits/element", self.bits_per_element(self.max_tokens()), self.max_tokens())
    }
}
