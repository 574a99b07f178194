//! How sequences grow by a step, what that takes of the pool, and how it is taken back.

use super::Pool;
use super::live::Torn;
use crate::cache::sequence::{Admission, Chunk, Growth, Share, Standing};
use crate::error::{Error, Result};
use crate::plan::Plan;

/// What a step changed of a sequence: where it stood before, and how many pages it had.
#[derive(Clone, Debug)]
pub(crate) struct Undo {
    slot: u32,
    at: Standing,
    pages: usize,
}

impl Undo {
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

/// How the sequences of a step grew, and how to take that back.
#[derive(Debug)]
pub(crate) struct Grown {
    pub growths: Vec<Growth>,
    /// Of the sequences that have more tokens now, in the order in which they grew.
    pub undo: Vec<Undo>,
}

impl Pool {
    /// Returns a chunk as a part, for a sequence of which no other cache holds tokens.
    pub fn whole(&self, chunk: &Chunk) -> Result<Share> {
        let first = self.find(chunk.sequence)?.at.tokens;
        Ok(Share { sequence: chunk.sequence, first, queries: chunk.tokens, tokens: chunk.tokens })
    }

    /// Returns how the sequences of these parts would grow, still without pages, and what that
    /// takes of the pool.
    fn growths(&self, plan: &Plan, parts: impl IntoIterator<Item = Result<Share>>) -> Result<(Vec<Growth>, Admission)> {
        let mut growths = Vec::new();
        let mut named = vec![false; self.live.len()];
        let mut need = 0_u32;
        for part in parts {
            let Share { sequence, first, queries, tokens } = part?;
            let slot = sequence.slot;
            let live = self.find(sequence)?;
            live.expect_whole(live.at.tokens)?;
            let still = live.pageless(slot);
            if queries == 0 {
                return Err(Error::EmptyChunk { slot });
            }
            if std::mem::replace(&mut named[slot as usize], true) {
                return Err(Error::RepeatedSequence { slot });
            }
            let most = if first == still.old_tokens { queries } else { 0 };
            if first < still.old_tokens || tokens > most {
                return Err(Error::Share { slot, first, tokens, have: still.old_tokens, most });
            }
            let have = plan.max_tokens();
            let fits = |count: u32| first.checked_add(count).filter(|n| u64::from(*n) <= have);
            let length = |count: u32| Error::Length { slot, need: u64::from(first) + u64::from(count), have };
            fits(queries).ok_or_else(|| length(queries))?;
            let new_tokens = if tokens > 0 { fits(tokens).ok_or_else(|| length(tokens))? } else { still.new_tokens };
            // A sequence that was cut back inside its pages is packed beyond what its length
            // requires.
            let new_packed = plan.packed(new_tokens).max(still.old_packed);
            let growth = Growth { old_tokens: first, new_tokens, rows: queries, new_packed, ..still };
            need = need.saturating_add(growth.pages_lacking(live.pages.len() as u32));
            growths.push(growth);
        }
        Ok((growths, Admission { pages_needed: need, pages_free: self.free_pages() }))
    }

    /// Returns what a step would take; its errors are all but those of missing pages.
    pub fn admit(&self, plan: &Plan, chunks: &[Chunk]) -> Result<Admission> {
        Ok(self.growths(plan, chunks.iter().map(|chunk| self.whole(chunk)))?.1)
    }

    /// Returns the same for a step of parts.
    pub fn admit_parts(&self, plan: &Plan, parts: &[Share]) -> Result<Admission> {
        Ok(self.growths(plan, parts.iter().copied().map(Ok))?.1)
    }

    /// Returns the same for a step before which its sequences [slide](Pool::slide) beyond what no
    /// query will see, even after a cut of up to `back` tokens. The pages that this frees count as
    /// free: it does not change how many the step takes.
    pub fn admit_slid(&self, plan: &Plan, chunks: &[Chunk], back: u32) -> Result<Admission> {
        let mut admission = self.admit(plan, chunks)?;
        let mut given_up: Vec<u32> = Vec::new();
        for chunk in chunks {
            let live = self.find(chunk.sequence)?;
            given_up.extend(&live.pages[..(live.slid(live.seen(plan, back)) - live.at.dropped) as usize]);
        }
        // Sequences that share a page may give it up together.
        given_up.sort_unstable();
        let freed = given_up.chunk_by(|a, b| a == b).filter(|same| same.len() as u32 == self.users[same[0] as usize]);
        admission.pages_free += freed.count() as u32;
        Ok(admission)
    }

    /// Slides sequences and grows them by new tokens, or does neither.
    pub fn grow_slid(&mut self, plan: &Plan, chunks: &[Chunk], back: u32) -> Result<Grown> {
        self.admit_slid(plan, chunks, back)?.expect_fits()?;
        for chunk in chunks {
            let seen = self.find(chunk.sequence)?.seen(plan, back);
            self.slide(chunk.sequence, seen)?;
        }
        self.grow(plan, chunks)
    }

    /// Grows sequences by new tokens.
    pub fn grow(&mut self, plan: &Plan, chunks: &[Chunk]) -> Result<Grown> {
        let grown = self.growths(plan, chunks.iter().map(|chunk| self.whole(chunk)))?;
        self.carry_out(grown)
    }

    /// Grows sequences of which other caches hold tokens, too.
    pub fn grow_parts(&mut self, plan: &Plan, parts: &[Share]) -> Result<Grown> {
        let grown = self.growths(plan, parts.iter().copied().map(Ok))?;
        self.carry_out(grown)
    }

    fn carry_out(&mut self, (mut growths, admission): (Vec<Growth>, Admission)) -> Result<Grown> {
        self.expect_free(admission.pages_needed)?;
        let mut undo = Vec::new();
        for growth in &mut growths {
            let Some(mut live) = self.live[growth.slot as usize].take() else { continue };
            let before = Undo { slot: growth.slot, at: live.at.clone(), pages: live.pages.len() };
            live.pages.extend(self.take(growth.pages_lacking(live.pages.len() as u32)));
            growth.pages.clone_from(&live.pages);
            // A part may have queries alone.
            if live.at.tokens < growth.new_tokens {
                live.at = Standing {
                    tokens: growth.new_tokens,
                    packed: growth.new_packed,
                    limit: growth.limit_now(),
                    before: (growth.old_tokens, growth.limit),
                    ..live.at
                };
                undo.push(before);
            }
            self.live[growth.slot as usize] = Some(live);
        }
        Ok(Grown { growths, undo })
    }

    /// Takes back what a step changed, if nothing but [`Pool::begin`] and [`Pool::adopt`] was
    /// called since: pages are free again in the order in which they were.
    pub fn take_back(&mut self, grown: &[Undo]) {
        for Undo { slot, at, pages } in grown.iter().rev() {
            if let Some(live) = &mut self.live[*slot as usize] {
                live.at = at.clone();
                let surplus = live.pages.split_off(*pages);
                self.release(&surplus);
            }
        }
    }

    /// Marks sequences that grew by a step which some layers were given and this one was not.
    pub fn tear(&mut self, grown: &[Undo], layer: u32) {
        for Undo { slot, at, .. } in grown {
            if let Some(live) = &mut self.live[*slot as usize] {
                // What left the window lies in pages in some layers, and in f16 rows, of which the
                // former no longer have all, in others.
                let whole = if live.at.packed == at.packed { at.tokens } else { at.packed };
                live.torn = Some(Torn { layer, whole });
            }
        }
    }
}
