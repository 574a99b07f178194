//! The pool: the live sequences, where each stands, and which pages each holds. It touches no GPU.

mod grow;
mod live;

pub(crate) use grow::{Grown, Undo};
pub(crate) use live::{Extent, Live};

use super::sequence::{Sequence, Standing};
use crate::error::{Error, Result};
use crate::format::PAGE_TOKENS;
use crate::plan::Plan;

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
mod tests {
    use super::*;
    use crate::{Admission, Bits, Capability, Capacity, Chunk, Codec, Format, Protection, Rope, Shape, Sinks};
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};
    use std::rc::Rc;

    const PAGE: usize = PAGE_TOKENS as usize;

    /// What a sequence must hold: a number for each of its tokens, how many of them are packed, and
    /// pages that forks share.
    #[derive(Clone)]
    struct Model {
        handle: Sequence,
        tokens: Vec<u32>,
        packed: usize,
        /// Pages that it slid beyond.
        dropped: usize,
        pages: Vec<Rc<()>>,
    }

    /// A pool, a memory on which its page copies are carried out, and a plain model of both.
    struct Soak {
        plan: Plan,
        pool: Pool,
        memory: Vec<[u32; PAGE]>,
        model: Vec<Model>,
        gone: Vec<Sequence>,
        random: StdRng,
        tokens: u32,
    }

    impl Soak {
        fn new(plan: Plan, random: StdRng) -> Self {
            let (pool, memory) = (Pool::new(7, &plan), vec![[0; PAGE]; plan.pages() as usize]);
            Self { plan, pool, memory, model: Vec::new(), gone: Vec::new(), random, tokens: 0 }
        }

        fn free(&self) -> u32 {
            let mut pages: Vec<_> = self.model.iter().flat_map(|s| &s.pages).map(Rc::as_ptr).collect();
            pages.sort_unstable();
            pages.dedup();
            self.plan.pages() - pages.len() as u32
        }

        fn below(&mut self, end: usize) -> usize {
            self.random.random_range(0..end)
        }

        /// Carries a copy out, and returns whether there was one.
        fn copied(&mut self, copy: PageCopy) -> bool {
            if let Some((from, to)) = copy {
                self.memory[to as usize] = self.memory[from as usize];
            }
            copy.is_some()
        }

        /// Draws one operation: the pool must do what the model does, or refuse it for the model's
        /// reason.
        fn turn(&mut self) {
            let (live, have, sequences) = (self.model.len(), self.free(), self.plan.sequences());
            match self.below(16) {
                0 | 1 => match self.pool.begin() {
                    Ok(handle) => self.model.push(Model { handle, tokens: Vec::new(), packed: 0, dropped: 0, pages: Vec::new() }),
                    Err(error) => assert_eq!((error, live as u32), (Error::Sequences { have: sequences }, sequences)),
                },
                2 if live > 0 => {
                    let n = self.below(live);
                    let ended = self.model.swap_remove(n);
                    assert_eq!(self.pool.end(ended.handle), Ok(()));
                    self.gone.push(ended.handle);
                }
                3 if live > 0 => self.fork(have),
                4 | 5 if live > 0 => self.truncate(have),
                6 => self.stranger(),
                7 => self.adopt(have),
                8 if live > 0 => self.slide(),
                9 if live > 0 => self.take_back(),
                _ if live > 0 => self.grow(have),
                _ => {}
            }
        }

        fn fork(&mut self, have: u32) {
            let n = self.below(self.model.len());
            let Model { handle, mut tokens, packed, dropped, mut pages } = self.model[n].clone();
            let kept = if self.below(2) == 0 { tokens.len() } else { self.below(tokens.len() + 1) };
            let forked = self.pool.fork(handle, kept as u32);
            if kept < dropped * PAGE {
                assert_eq!(forked, Err(Error::Dropped { token: kept as u32, first: (dropped * PAGE) as u32 }));
                return;
            }
            tokens.truncate(kept);
            let packed = packed.min(kept);
            pages.truncate(packed.div_ceil(PAGE) - dropped);
            let partial = !packed.is_multiple_of(PAGE);
            match forked {
                _ if partial && have == 0 => assert_eq!(forked, Err(Error::Pages { need: 1, have: 0 })),
                Ok((handle, copy)) => {
                    assert_eq!(self.copied(copy), partial);
                    if partial {
                        pages.pop();
                        pages.push(Rc::new(()));
                    }
                    self.model.push(Model { handle, tokens, packed, dropped, pages });
                }
                Err(error) => assert_eq!((error, self.model.len() as u32), (Error::Sequences { have: self.plan.sequences() }, self.plan.sequences())),
            }
        }

        fn truncate(&mut self, have: u32) {
            let n = self.below(self.model.len());
            let held = self.model[n].tokens.len();
            let kept = self.below(held + 2);
            if kept > held {
                let refused = self.pool.truncate(self.model[n].handle, kept as u32);
                assert_eq!(refused, Err(Error::Range { first: 0, end: kept as u32, have: held as u32 }));
                return;
            }
            let gone = self.model[n].dropped * PAGE;
            if kept < gone {
                let refused = self.pool.truncate(self.model[n].handle, kept as u32);
                assert_eq!(refused, Err(Error::Dropped { token: kept as u32, first: gone as u32 }));
                return;
            }
            let mut cut = self.model[n].clone();
            cut.tokens.truncate(kept);
            cut.packed = cut.packed.min(kept);
            cut.pages.truncate(cut.packed.div_ceil(PAGE) - cut.dropped);
            // The model's own reference is one more.
            let shared = !cut.packed.is_multiple_of(PAGE) && cut.pages.last().is_some_and(|page| Rc::strong_count(page) > 2);
            let freed = self.model[n].pages[cut.pages.len()..].iter().any(|page| Rc::strong_count(page) == 1);
            let answer = self.pool.truncate(cut.handle, kept as u32);
            if shared && have == 0 && !freed {
                assert_eq!(answer, Err(Error::Pages { need: 1, have: 0 }));
                return;
            }
            let copied = answer.map(|copy| self.copied(copy));
            assert_eq!(copied, Ok(shared));
            if shared {
                cut.pages.pop();
                cut.pages.push(Rc::new(()));
            }
            self.model[n] = cut;
        }

        fn slide(&mut self) {
            let n = self.below(self.model.len());
            let keep = [0, 1, 128, self.random.random_range(0..600), u32::MAX][self.below(5)];
            let Model { handle, tokens, packed, dropped, pages } = &mut self.model[n];
            let now = (tokens.len().saturating_sub(keep as usize).min(*packed) / PAGE).max(*dropped);
            pages.drain(..now - *dropped);
            assert_eq!(self.pool.slide(*handle, keep), Ok((now - std::mem::replace(dropped, now)) as u32));
        }

        /// A step that is taken back leaves the pool as it was, to the order of free pages.
        fn take_back(&mut self) {
            let (first, other) = (self.below(self.model.len()), self.below(self.model.len()));
            let mut chunks = vec![(first, self.below(400) as u32 + 1)];
            if other != first {
                chunks.push((other, self.below(400) as u32 + 1));
            }
            let named: Vec<Chunk> = chunks.iter().map(|(n, tokens)| Chunk { sequence: self.model[*n].handle, tokens: *tokens }).collect();
            let before = self.pool.clone();
            if let Ok(grown) = self.pool.grow(&self.plan, &named) {
                assert!(self.pool != before);
                self.pool.take_back(&grown.undo);
            }
            assert_eq!(self.pool, before);
        }

        /// Checks that handles of other caches and of ended sequences are refused.
        fn stranger(&mut self) {
            let mut handle = Sequence { cache: 8, generation: 1, slot: self.random.random_range(0..9) };
            if !self.gone.is_empty() && self.below(2) == 0 {
                let n = self.below(self.gone.len());
                handle = self.gone.swap_remove(n);
            }
            let unknown = Error::UnknownSequence { slot: handle.slot };
            assert_eq!(self.pool.end(handle), Err(unknown.clone()));
            assert_eq!(self.pool.fork(handle, 0), Err(unknown.clone()));
            assert_eq!(self.pool.truncate(handle, 0), Err(unknown.clone()));
            assert_eq!(self.pool.slide(handle, 0), Err(unknown.clone()));
            assert_eq!(self.pool.admit(&self.plan, &[Chunk { sequence: handle, tokens: 1 }]), Err(unknown));
        }

        fn adopt(&mut self, have: u32) {
            let (tokens, sequences) = (self.below(600) as u32, self.plan.sequences());
            let packed = self.plan.packed(tokens);
            let dropped = self.below(packed as usize / PAGE + 1) as u32;
            let need = packed.div_ceil(PAGE_TOKENS) - dropped;
            match self.pool.adopt(&self.plan, Standing { tokens, packed, dropped, ..Standing::default() }) {
                Ok(handle) => {
                    assert!(need <= have);
                    let live = self.pool.find(handle).unwrap();
                    live.pages.iter().for_each(|page| self.memory[*page as usize] = [0; PAGE]);
                    let pages = (0..need).map(|_| Rc::new(())).collect();
                    let [packed, dropped] = [packed, dropped].map(|n| n as usize);
                    self.model.push(Model { handle, tokens: vec![0; tokens as usize], packed, dropped, pages });
                }
                Err(Error::Sequences { have }) => assert_eq!((have, self.model.len() as u32), (sequences, sequences)),
                Err(error) => assert_eq!((error, need > have), (Error::Pages { need, have }, true)),
            }
        }

        fn grow(&mut self, have: u32) {
            let mut chunks = Vec::new();
            let mut order: Vec<usize> = (0..self.model.len()).collect();
            for _ in 0..1 + self.below(3).min(order.len() - 1) {
                let at = self.below(order.len());
                let tokens = [1, 1, 1, 3, 128, self.random.random_range(0..300)][self.below(6)];
                chunks.push((order.swap_remove(at), tokens));
            }
            if self.below(20) == 0 {
                chunks.push(chunks[0]);
            }
            let named: Vec<Chunk> = chunks.iter().map(|(n, tokens)| Chunk { sequence: self.model[*n].handle, tokens: *tokens }).collect();
            let admission = self.pool.admit(&self.plan, &named);
            let grown = self.pool.grow(&self.plan, &named);
            // What the model expects of the same step.
            let mut need = 0;
            for (i, (n, tokens)) in chunks.iter().enumerate() {
                let Model { handle, tokens: held, packed, dropped, pages } = &self.model[*n];
                let (slot, wanted) = (handle.slot, held.len() as u64 + u64::from(*tokens));
                let refused = match () {
                    () if *tokens == 0 => Error::EmptyChunk { slot },
                    () if chunks[..i].iter().any(|(other, _)| other == n) => Error::RepeatedSequence { slot },
                    () if wanted > self.plan.max_tokens() => Error::Length { slot, need: wanted, have: self.plan.max_tokens() },
                    () => {
                        need += (self.plan.packed(wanted as u32) as usize).max(*packed).div_ceil(PAGE) - dropped - pages.len();
                        continue;
                    }
                };
                assert_eq!(admission, Err(refused.clone()));
                assert_eq!(grown.map(|_| ()), Err(refused));
                return;
            }
            let need = need as u32;
            assert_eq!(admission, Ok(Admission { pages_needed: need, pages_free: have }));
            let Ok(grown) = grown else {
                assert_eq!((grown.map(|_| ()), need > have), (Err(Error::Pages { need, have }), true));
                return;
            };
            for ((n, tokens), growth) in chunks.iter().zip(&grown.growths) {
                let model = &mut self.model[*n];
                model.tokens.extend((1..=*tokens).map(|token| self.tokens + token));
                self.tokens += tokens;
                for at in model.packed..growth.new_packed as usize {
                    self.memory[growth.pages[at / PAGE - model.dropped] as usize][at % PAGE] = model.tokens[at];
                }
                model.packed = growth.new_packed as usize;
                model.pages.resize_with(model.packed.div_ceil(PAGE) - model.dropped, Rc::default);
            }
        }

        /// Checks that every page is where the model has it, and that a sequence reads what it
        /// must.
        fn check(&mut self) {
            assert_eq!(self.pool.check(&self.plan), Ok(self.model.len() as u32));
            assert_eq!(self.pool.free_pages(), self.free());
            if self.model.is_empty() {
                return;
            }
            let n = self.below(self.model.len());
            let model = &self.model[n];
            let live = self.pool.find(model.handle).unwrap();
            assert_eq!((live.at.tokens as usize, live.at.packed as usize), (model.tokens.len(), model.packed));
            let first = model.dropped * PAGE;
            let read = live.pages.iter().flat_map(|page| self.memory[*page as usize]).take(model.packed - first);
            assert!(read.eq(model.tokens[first..model.packed].iter().copied()), "{model:?} in pages {:?}", live.pages, model = model.tokens);
        }
    }

    /// Were places searched for, this would take 10^12 looks, hours.
    #[test]
    fn a_place_is_found_without_a_search() {
        let many = 1_000_000;
        let mut pool = Pool::of(7, many, 0);
        let handles: Vec<Sequence> = (0..many).map(|_| pool.begin().unwrap()).collect();
        assert!(handles.iter().map(Sequence::slot).eq(0..many), "from the first on");
        assert_eq!(pool.begin(), Err(Error::Sequences { have: many }));
        // What ended last is taken first, with a handle of its own.
        for slot in [5, many - 1, 0] {
            pool.end(handles[slot as usize]).unwrap();
        }
        for slot in [0, many - 1, 5] {
            let again = pool.begin().unwrap();
            assert_eq!(again.slot(), slot);
            assert!(again != handles[slot as usize]);
        }
        assert_eq!(pool.begin(), Err(Error::Sequences { have: many }));
    }

    /// Seeds that once failed, which run besides the fresh one.
    const FAILED: [u64; 0] = [];

    #[test]
    fn random_operations_leak_no_page_and_hold_none_twice() {
        let operations = std::env::var("WGKV_SOAK").map_or(1_000_000, |n| n.parse().unwrap());
        let fresh = std::env::var("WGKV_SEED").map_or_else(|_| rand::rng().next_u64(), |seed| seed.parse().unwrap());
        println!("WGKV_SEED={fresh}");
        let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::none() };
        let hadamard = Format::new(Codec::Hadamard, Bits::Two, Bits::Two, 64);
        let protect = |sinks, window| Protection { sinks: Sinks::First(sinks), window };
        // Tight and roomy pools; windows of nothing, of less than a page, of a page, and of more.
        let ways = [
            (hadamard, protect(0, 0), 4, 300),
            (hadamard, protect(4, 128), 6, 200),
            (hadamard, protect(2, 40), 3, 700),
            (Format::f16(), protect(0, 300), 8, 130),
        ];
        for seed in FAILED.into_iter().chain([fresh]) {
            for (format, protection, sequences, tokens) in ways {
                let plan = Plan::builder(shape.clone(), format)
                    .protection(protection)
                    .capacity(Capacity::tokens(sequences, tokens))
                    .build(&Capability::webgpu_default())
                    .unwrap();
                let mut soak = Soak::new(plan, StdRng::seed_from_u64(seed));
                for _ in 0..operations / ways.len() {
                    soak.turn();
                    soak.check();
                }
                // Everything can be given back.
                soak.model.drain(..).for_each(|model| soak.pool.end(model.handle).unwrap());
                soak.check();
                assert_eq!(soak.pool.free_pages(), soak.plan.pages());
            }
        }
    }

    #[test]
    fn a_step_slides_first_or_nothing_changes() {
        let seed = std::env::var("WGKV_SEED").map_or_else(|_| rand::rng().next_u64(), |seed| seed.parse().unwrap());
        println!("WGKV_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::none() };
        let plan = |builder: crate::PlanBuilder| builder.capacity(Capacity::tokens(5, 130)).max_tokens(1 << 20).build(&Capability::webgpu_default()).unwrap();
        let halves = || Plan::builder(shape.clone(), Format::f16()).protection(Protection::NONE);
        let packed = Plan::builder(shape.clone(), Format::new(Codec::Hadamard, Bits::Two, Bits::Two, 64));
        // Ten pages are fewer than five such sequences can want.
        for plan in [plan(halves().sliding_window(150)), plan(halves().chunked_attention(256)), plan(packed.sliding_window(300))] {
            let (mut pool, mut live) = (Pool::new(7, &plan), Vec::new());
            let (mut grew, mut lacked, mut shared) = (0, 0, 0);
            let back = random.random_range(0..40);
            for _ in 0..20_000 {
                match random.random_range(0..8) {
                    0 => live.extend(pool.begin()),
                    1 if !live.is_empty() => {
                        let sequence = live[random.random_range(0..live.len())];
                        let tokens = pool.find(sequence).unwrap().at.tokens;
                        live.extend(pool.fork(sequence, tokens).map(|(forked, _)| forked));
                    }
                    2 if live.len() > 1 => pool.end(live.swap_remove(random.random_range(0..live.len()))).unwrap(),
                    _ => {
                        let chunk = |sequence: &Sequence, random: &mut StdRng| Chunk { sequence: *sequence, tokens: random.random_range(1..160) };
                        let mut chunks: Vec<Chunk> = live.iter().map(|sequence| chunk(sequence, &mut random)).collect();
                        chunks.retain(|_| random.random_range(0..4) > 0);
                        let (before, admission) = (pool.clone(), pool.admit_slid(&plan, &chunks, back).unwrap());
                        match pool.grow_slid(&plan, &chunks, back) {
                            Ok(grown) => {
                                assert!(admission.fits());
                                assert_eq!(pool.free_pages(), admission.pages_free - admission.pages_needed);
                                grew += 1;
                                // Pages that several gave up together.
                                let held = |pool: &Pool| pool.users.iter().filter(|users| **users > 1).count();
                                shared += usize::from(held(&pool) < held(&before));
                                for growth in grown.growths {
                                    let first = plan.span().first(growth.old_tokens.saturating_sub(back));
                                    assert!(growth.first() <= first && (first - growth.first() < 128 || growth.first() + 128 > growth.old_packed));
                                }
                            }
                            Err(error) => {
                                assert_eq!(error, Error::Pages { need: admission.pages_needed, have: admission.pages_free });
                                assert!(pool == before && !admission.fits());
                                lacked += 1;
                            }
                        }
                    }
                }
                assert_eq!(pool.check(&plan), Ok(live.len() as u32));
            }
            assert!(grew > 100 && lacked > 100 && shared > 10, "{grew} steps, {lacked} lacked pages, {shared} gave up shared pages");
        }
    }
}
