//! One live sequence: where it stands, and which pages it holds.

use crate::cache::sequence::{Growth, Standing};
use crate::error::{Error, Result};
use crate::format::PAGE_TOKENS;
use crate::plan::Plan;
use std::ops::RangeInclusive;

/// Why a sequence is not whole: a step was given to some layers and not to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn {
    /// A layer that lacks it.
    pub layer: u32,
    /// First tokens that all layers have as they must be.
    pub whole: u32,
}

/// How far a sequence reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Its tokens, in the layers that have most.
    pub tokens: u32,
    /// Those of them that all layers have.
    pub whole: u32,
    /// A layer that lacks the others.
    pub missing: Option<u32>,
    /// The first token that it did not slide beyond.
    pub first: u32,
}

/// One live sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Live {
    pub(super) generation: u64,
    pub(super) slot: u32,
    pub(super) torn: Option<Torn>,
    pub at: Standing,
    /// Its pages, without those that it slid beyond.
    pub pages: Vec<u32>,
}

impl Live {
    /// Returns where it stands when it is cut back to its first `tokens` tokens, without its claim
    /// to the pages beyond.
    pub fn cut(&self, tokens: u32) -> Result<Self> {
        let Standing { tokens: held, packed, dropped, headless, limit, before } = self.at;
        if tokens > held {
            return Err(Error::Range { first: 0, end: tokens, have: held });
        }
        self.expect_held(tokens)?;
        self.expect_whole(tokens)?;
        if tokens == held {
            return Ok(self.clone());
        }
        let packed = packed.min(tokens);
        // A step that is taken back whole may never have held its election, so sinks that were void
        // before it are void again.
        let limit = if tokens <= before.0 { before.1 } else { limit };
        let at = Standing { tokens, packed, dropped, headless, limit: limit.min(tokens), before };
        Ok(Self { pages: self.pages[..at.pages() as usize].to_vec(), at, torn: None, ..*self })
    }

    /// Returns how far it reaches.
    pub fn extent(&self) -> Extent {
        let (whole, missing) = self.torn.map_or((self.at.tokens, None), |torn| (torn.whole, Some(torn.layer)));
        Extent { tokens: self.at.tokens, whole, missing, first: self.at.first() }
    }

    /// Returns how many of its last tokens queries may see that come next, or next once up to `back`
    /// tokens are cut off.
    pub(super) fn seen(&self, plan: &Plan, back: u32) -> u32 {
        self.at.tokens - plan.span().first(self.at.tokens.saturating_sub(back))
    }

    /// Lets go of the pages that all but its last `keep` tokens fill; returns them.
    pub fn slide(&mut self, keep: u32) -> Vec<u32> {
        let dropped = self.slid(keep);
        let before = std::mem::replace(&mut self.at.dropped, dropped);
        self.pages.drain(..(dropped - before) as usize).collect()
    }

    /// Returns how many of its first pages are gone once all but the last `keep` tokens may go.
    pub(super) fn slid(&self, keep: u32) -> u32 {
        (self.at.tokens.saturating_sub(keep).min(self.at.packed) / PAGE_TOKENS).max(self.at.dropped)
    }

    /// Refuses tokens that some layers lack.
    pub fn expect_whole(&self, tokens: u32) -> Result<()> {
        match self.torn {
            Some(Torn { layer, whole }) if tokens > whole => Err(Error::Torn { slot: self.slot, layer, whole }),
            _ => Ok(()),
        }
    }

    /// Refuses tokens that it slid beyond, since they are gone.
    pub fn expect_held(&self, first: u32) -> Result<()> {
        if first < self.at.first() { Err(Error::Dropped { token: first, first: self.at.first() }) } else { Ok(()) }
    }

    /// Returns the lengths to which it can be cut back and be as if nothing had ever followed, if
    /// there are any.
    pub fn exact_lengths(&self, plan: &Plan) -> Option<RangeInclusive<u32>> {
        let Standing { tokens, packed, limit, .. } = self.at;
        // What a page holds by now was f16 when the sequence was shorter, and pages may be gone that
        // its next query would see.
        if plan.packed(tokens) != packed {
            return None;
        }
        let held = plan.span().seen_from(self.at.first()).filter(|held| *held <= tokens)?;
        let first = match (plan.elects(), plan.ring()) {
            // Sinks are elected among all tokens of a prompt, so a shorter prompt has others.
            (true, _) if limit < u32::MAX => return None,
            (true, _) => tokens,
            (false, 0) => 0,
            (false, _) if packed == 0 => 0,
            (false, _) => packed + plan.protection().window,
        };
        Some(held.max(first)..=tokens)
    }

    /// Returns the growth by which kernels read it when it does not grow.
    pub fn still(&self, slot: u32) -> Growth {
        Growth { pages: self.pages.clone(), ..self.pageless(slot) }
    }

    /// Returns the same without its pages.
    pub(super) fn pageless(&self, slot: u32) -> Growth {
        let Standing { tokens, packed, dropped, headless, limit, .. } = self.at;
        let pages = Vec::new();
        Growth { slot, old_tokens: tokens, new_tokens: tokens, rows: 0, old_packed: packed, new_packed: packed, dropped, headless, limit, pages }
    }
}
