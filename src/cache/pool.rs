//! The pool: the live sequences, where each stands, and which pages each holds. It touches no GPU.

use super::sequence::{Admission, Chunk, Growth, Sequence, Share, Standing};
use crate::error::{Error, Result};
use crate::format::PAGE_TOKENS;
use crate::plan::Plan;
use std::ops::RangeInclusive;

/// Why a sequence is not whole: a step was given to some layers and not to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Torn {
    /// A layer that lacks it.
    layer: u32,
    /// First tokens that all layers have as they must be.
    whole: u32,
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
    generation: u64,
    slot: u32,
    torn: Option<Torn>,
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
    fn seen(&self, plan: &Plan, back: u32) -> u32 {
        self.at.tokens - plan.span().first(self.at.tokens.saturating_sub(back))
    }

    /// Lets go of the pages that all but its last `keep` tokens fill; returns them.
    pub fn slide(&mut self, keep: u32) -> Vec<u32> {
        let dropped = self.slid(keep);
        let before = std::mem::replace(&mut self.at.dropped, dropped);
        self.pages.drain(..(dropped - before) as usize).collect()
    }

    /// Returns how many of its first pages are gone once all but the last `keep` tokens may go.
    fn slid(&self, keep: u32) -> u32 {
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
        let Standing { tokens, packed, dropped, limit, .. } = self.at;
        // What a page holds by now was f16 when the sequence was shorter, and pages may be gone.
        if plan.packed(tokens) != packed || dropped > 0 {
            return None;
        }
        let first = match (plan.elects(), plan.ring()) {
            // Sinks are elected among all tokens of a prompt, so a shorter prompt has others.
            (true, _) if limit < u32::MAX => return None,
            (true, _) => tokens,
            (false, 0) => 0,
            (false, _) if packed == 0 => 0,
            (false, _) => packed + plan.protection().window,
        };
        Some(first..=tokens)
    }

    /// Returns the growth by which kernels read it when it does not grow.
    pub fn still(&self, slot: u32) -> Growth {
        Growth { pages: self.pages.clone(), ..self.pageless(slot) }
    }

    /// Returns the same without its pages.
    fn pageless(&self, slot: u32) -> Growth {
        let Standing { tokens, packed, dropped, headless, limit, .. } = self.at;
        let pages = Vec::new();
        Growth { slot, old_tokens: tokens, new_tokens: tokens, rows: 0, old_packed: packed, new_packed: packed, dropped, headless, limit, pages }
    }
}

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

/// A page whose contents must be copied to another.
pub(crate) type PageCopy = Option<(u32, u32)>;

/// The live sequences of a cache and the pages they share.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pool {
    cache: u64,
    live: Vec<Option<Live>>,
    /// Places of no live sequence. Popped from the end.
    vacant: Vec<u32>,
    /// Popped from the end.
    free: Vec<u32>,
    /// Sequences that hold each page.
    users: Vec<u32>,
    generation: u64,
}

impl Pool {
    /// Makes a pool with all pages free. `cache` is the number that marks its handles.
    pub fn new(cache: u64, plan: &Plan) -> Self {
        Self::of(cache, plan.sequences(), plan.pages())
    }

    fn of(cache: u64, sequences: u32, pages: u32) -> Self {
        Self {
            cache,
            live: vec![None; sequences as usize],
            // Places and pages are handed out from the first.
            vacant: (0..sequences).rev().collect(),
            free: (0..pages).rev().collect(),
            users: vec![0; pages as usize],
            generation: 0,
        }
    }

    /// Returns every live sequence.
    pub fn sequences(&self) -> impl Iterator<Item = &Live> {
        self.live.iter().flatten()
    }

    pub fn free_pages(&self) -> u32 {
        self.free.len() as u32
    }

    pub fn find(&self, sequence: Sequence) -> Result<&Live> {
        self.live
            .get(sequence.slot as usize)
            .and_then(Option::as_ref)
            .filter(|live| sequence.cache == self.cache && live.generation == sequence.generation)
            .ok_or(Error::UnknownSequence { slot: sequence.slot })
    }

    /// Returns the place that the next sequence gets: that of the one which ended last.
    fn vacant_slot(&self) -> Result<u32> {
        self.vacant.last().copied().ok_or(Error::Sequences { have: self.live.len() as u32 })
    }

    /// Puts a sequence in a free place.
    fn place(&mut self, at: Standing, pages: Vec<u32>) -> Result<Sequence> {
        let slot = self.vacant_slot()?;
        self.vacant.pop();
        self.generation += 1;
        self.live[slot as usize] = Some(Live { generation: self.generation, slot, torn: None, at, pages });
        Ok(Sequence { cache: self.cache, generation: self.generation, slot })
    }

    /// Begins a sequence of no tokens.
    pub fn begin(&mut self) -> Result<Sequence> {
        self.place(Standing::default(), Vec::new())
    }

    /// Begins a sequence of which the tokens before this page are elsewhere.
    pub fn begin_at(&mut self, page: u32) -> Result<Sequence> {
        let tokens = page * PAGE_TOKENS;
        self.place(Standing { tokens, packed: tokens, dropped: page, headless: page > 0, ..Standing::default() }, Vec::new())
    }

    /// Begins a sequence that stands somewhere already, in pages that nobody held.
    pub fn adopt(&mut self, plan: &Plan, at: Standing) -> Result<Sequence> {
        self.expect_adopt(plan, &at)?;
        let pages = self.take(at.pages());
        self.place(at, pages)
    }

    /// Refuses a sequence that there is no room for.
    pub fn expect_adopt(&self, plan: &Plan, at: &Standing) -> Result<()> {
        let slot = self.vacant_slot()?;
        if u64::from(at.tokens) > plan.max_tokens() {
            return Err(Error::Length { slot, need: at.tokens.into(), have: plan.max_tokens() });
        }
        self.expect_free(at.pages())
    }

    /// Ends a sequence.
    pub fn end(&mut self, sequence: Sequence) -> Result<()> {
        self.find(sequence)?;
        if let Some(live) = self.live[sequence.slot as usize].take() {
            self.release(&live.pages);
            self.vacant.push(sequence.slot);
        }
        Ok(())
    }

    fn release(&mut self, pages: &[u32]) {
        for page in pages.iter().rev() {
            let users = &mut self.users[*page as usize];
            *users -= 1;
            if *users == 0 {
                self.free.push(*page);
            }
        }
    }

    fn expect_free(&self, need: u32) -> Result<()> {
        if need > self.free_pages() { Err(Error::Pages { need, have: self.free_pages() }) } else { Ok(()) }
    }

    /// Takes `count` pages that nobody holds. The caller has made sure that there are as many.
    fn take(&mut self, count: u32) -> Vec<u32> {
        let pages: Vec<u32> = (0..count).filter_map(|_| self.free.pop()).collect();
        pages.iter().for_each(|page| self.users[*page as usize] = 1);
        pages
    }

    /// Begins a sequence that holds another's first `tokens` tokens: it shares the full pages, and
    /// gets a page of its own, whose contents must be copied, in place of a last one that is not
    /// full.
    pub fn fork(&mut self, sequence: Sequence, tokens: u32) -> Result<(Sequence, PageCopy)> {
        let Live { at, mut pages, .. } = self.expect_fork(sequence, tokens)?;
        pages.iter().for_each(|page| self.users[*page as usize] += 1);
        let copy = if at.packed.is_multiple_of(PAGE_TOKENS) { None } else { self.own_last(&mut pages) };
        Ok((self.place(at, pages)?, copy))
    }

    /// Returns where a fork would stand, or refuses it.
    pub fn expect_fork(&self, sequence: Sequence, tokens: u32) -> Result<Live> {
        let cut = self.find(sequence)?.cut(tokens)?;
        self.expect_free(u32::from(!cut.at.packed.is_multiple_of(PAGE_TOKENS)))?;
        self.vacant_slot()?;
        Ok(cut)
    }

    /// Cuts a sequence back to its first `tokens` tokens. A page that ends inside and that others
    /// hold too is replaced by a copy.
    pub fn truncate(&mut self, sequence: Sequence, tokens: u32) -> Result<PageCopy> {
        let (mut cut, shared) = self.expect_truncate(sequence, tokens)?;
        let surplus = self.find(sequence)?.pages[cut.pages.len()..].to_vec();
        self.release(&surplus);
        let copy = if shared { self.own_last(&mut cut.pages) } else { None };
        self.live[sequence.slot as usize] = Some(cut);
        Ok(copy)
    }

    /// Returns where a sequence would stand that is cut back, and whether its last page must be
    /// copied; or refuses the cut.
    pub fn expect_truncate(&self, sequence: Sequence, tokens: u32) -> Result<(Live, bool)> {
        let live = self.find(sequence)?;
        let cut = live.cut(tokens)?;
        let surplus = &live.pages[cut.pages.len()..];
        let users = |page: &u32| self.users[*page as usize];
        let shared = !cut.at.packed.is_multiple_of(PAGE_TOKENS) && cut.pages.last().is_some_and(|page| users(page) > 1);
        if shared && !surplus.iter().any(|page| users(page) == 1) {
            self.expect_free(1)?;
        }
        Ok((cut, shared))
    }

    /// Gives back the full pages that all but a sequence's last `keep` tokens fill, and returns how
    /// many they are.
    pub fn slide(&mut self, sequence: Sequence, keep: u32) -> Result<u32> {
        let live = self.find(sequence)?;
        live.expect_whole(live.at.tokens)?;
        let pages = self.live[sequence.slot as usize].as_mut().map_or(Vec::new(), |live| live.slide(keep));
        self.release(&pages);
        Ok(pages.len() as u32)
    }

    /// Puts a page that nobody holds in the place of a sequence's last. The caller has made sure
    /// that there is one.
    fn own_last(&mut self, pages: &mut [u32]) -> PageCopy {
        let (last, page) = (pages.last_mut()?, self.take(1).pop()?);
        let copy = (std::mem::replace(last, page), page);
        self.release(&[copy.0]);
        Some(copy)
    }

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

    /// Returns how many more pages would be free if these sequences ended, and for each sequence
    /// whether it holds one of those pages.
    pub fn held_only_by(&self, sequences: &[Sequence]) -> Result<(u32, Vec<bool>)> {
        let mut users = self.users.clone();
        let held = sequences.iter().map(|sequence| Ok(&self.find(*sequence)?.pages)).collect::<Result<Vec<_>>>()?;
        held.iter().copied().flatten().for_each(|page| users[*page as usize] -= 1);
        let freed = users.iter().zip(&self.users).filter(|(left, had)| **left == 0 && **had > 0).count() as u32;
        Ok((freed, held.iter().map(|pages| pages.iter().any(|page| users[*page as usize] == 0)).collect()))
    }

    /// Checks the invariants: every page is free once, or held by as many sequences as its counter
    /// says, once by each, and every sequence has the pages that its length requires, shared only
    /// where they are full. Returns the number of live sequences, or what does not hold.
    pub fn check(&self, plan: &Plan) -> std::result::Result<u32, String> {
        let mut holders = vec![0; self.users.len()];
        let mut last = vec![None; self.users.len()];
        for (slot, live) in self.live.iter().enumerate() {
            let Some(Live { at, pages, .. }) = live else { continue };
            if at.packed > at.tokens || at.tokens > at.packed + plan.ring() {
                return Err(format!("sequence {slot} stands at {at:?}"));
            }
            if at.dropped > at.packed / PAGE_TOKENS || pages.len() as u32 != at.pages() {
                return Err(format!("sequence {slot} has {} pages where it stands at {at:?}", pages.len()));
            }
            for page in pages {
                *holders.get_mut(*page as usize).ok_or_else(|| format!("sequence {slot} has page {page}, which does not exist"))? += 1;
                if last[*page as usize].replace(slot) == Some(slot) {
                    return Err(format!("sequence {slot} has a page twice: {pages:?}"));
                }
            }
            let partial = pages.last().filter(|_| !at.packed.is_multiple_of(PAGE_TOKENS));
            if let Some(page) = partial.filter(|page| self.users[**page as usize] != 1) {
                return Err(format!("sequence {slot} shares page {page}, which it has yet to fill"));
            }
        }
        if holders != self.users {
            return Err(format!("pages are held by {holders:?} sequences, but counted are {:?}", self.users));
        }
        let mut vacant: Vec<usize> = self.vacant.iter().map(|slot| *slot as usize).collect();
        vacant.sort_unstable();
        if !vacant.iter().copied().eq((0..self.live.len()).filter(|slot| self.live[*slot].is_none())) {
            return Err(format!("places {vacant:?} are said to be free"));
        }
        let mut free = vec![0; holders.len()];
        self.free.iter().for_each(|page| free[*page as usize] += 1);
        match (0..).zip(holders.iter().zip(&free)).find(|(_, (held, free))| u32::from(**held == 0) != **free) {
            Some((page, (held, free))) => Err(format!("page {page} is held by {held} sequences and {free} times free")),
            None => Ok(self.sequences().count() as u32),
        }
    }
}

#[cfg(test)]
mod tests;
