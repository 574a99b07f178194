//! The cache: packed pages, f16 rows, and which sequence holds which of them.

mod buffers;
mod groups;
mod open;
mod params;
mod pass;
mod pipelines;
mod pool;
mod record;
mod records;
mod sequence;
mod snapshot;
mod status;
mod step;
mod traffic;

pub use buffers::Memory;
pub use sequence::{Admission, Chunk, Sequence, Share};
#[cfg(feature = "store")]
pub(crate) use snapshot::check_snapshot;
pub use status::{Defect, Flag, Status};
pub use step::{Step, Words};
pub use traffic::{AlignmentReport, Certificate, Traffic};

use crate::error::{Error, Result};
use crate::format::{Alignment, PAGE_TOKENS};
use crate::gpu::trace::{event, span};
use crate::gpu::{Gpu, enough};
use crate::kernel::STEP;
use crate::plan::Plan;
use buffers::Buffers;
use futures::FutureExt;
use groups::Groups;
use open::{Open, Recorded};
use pipelines::Pipelines;
use pool::{Extent, Grown, Pool};
use sequence::Growth;
use status::STATUS_WORDS;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identities of caches, so that one cache refuses the handles of another.
static CACHES: AtomicU64 = AtomicU64::new(1);

/// Keys and values of many sequences, packed, on one device.
///
/// Every step of the model goes: [`Cache::step`] once, then for each layer [`Cache::append`] and
/// [`Cache::attend`] on the caller's encoder (and before them [`Cache::elect`], where the plan's
/// sinks are massive activations). A layer is elected and appended once in a step, and attended to
/// after that as often as you like; another order is refused by [`Error::Order`]. Nothing here submits or waits but [`Cache::request`],
/// [`Cache::status`], [`Cache::traffic`], [`Cache::save`] and [`Cache::save_prefix`]. Rows that were
/// recorded are held until the next step, or until a sequence ends, is forked, cut back or slid.
///
/// # Panics
/// Where a buffer, an encoder or a compute pass is of another device, which wgpu does not tell:
/// [`Rows`](crate::Rows) has the words of the panic.
#[derive(Debug)]
pub struct Cache {
    id: u64,
    gpu: Gpu,
    plan: Plan,
    buffers: Buffers,
    pipelines: Pipelines,
    groups: Groups,
    /// The layout of the bind group that holds what each dispatch of a step reads.
    step_layout: wgpu::BindGroupLayout,
    pool: Pool,
    serial: u64,
    /// The latest step, if it is not stale and brought tokens.
    open: Option<Open>,
}

impl Cache {
    /// Makes a cache and allocates everything that the plan lists. Browsers report later whether a
    /// device had the memory for it, so there only [`Cache::request`] finds that it had not.
    ///
    /// # Errors
    /// [`Error::Limit`] if the plan was made for a device that can do more than this one,
    /// [`Error::Memory`], [`Error::Lost`].
    pub fn new(gpu: &Gpu, plan: Plan) -> Result<Self> {
        let (cache, answer) = Self::make(gpu, plan)?;
        answer.now_or_never().unwrap_or(Ok(()))?;
        Ok(cache)
    }

    /// Makes a cache as [`Cache::new`] does, and waits until the device has reported whether it had
    /// the memory.
    ///
    /// # Errors
    /// As [`Cache::new`].
    pub async fn request(gpu: &Gpu, plan: Plan) -> Result<Self> {
        let (cache, answer) = Self::make(gpu, plan)?;
        match answer.await {
            Ok(()) => Ok(cache),
            Err(error) => {
                cache.destroy();
                Err(error)
            }
        }
    }

    fn make(gpu: &Gpu, plan: Plan) -> Result<(Self, impl Future<Output = Result<()>> + use<>)> {
        gpu.alive()?;
        plan.check(gpu.capability())?;
        let need = plan.cost().cache() + plan.cost().scratch;
        let scope = gpu.watch_memory();
        let cache = Self::on(gpu, plan);
        event!(INFO, pages = cache.plan.pages(), sequences = cache.plan.sequences(), bytes = need, "cache");
        Ok((cache, enough(scope, need)))
    }

    /// Makes the cache and its buffers.
    fn on(gpu: &Gpu, plan: Plan) -> Self {
        let id = CACHES.fetch_add(1, Ordering::Relaxed);
        let buffers = Buffers::new(gpu, &plan);
        Self {
            id,
            gpu: gpu.clone(),
            pool: Pool::new(id, &plan),
            groups: Groups::new(&buffers),
            pipelines: Pipelines::new(&plan),
            step_layout: gpu.group_layout("wgkv step", STEP),
            buffers,
            plan,
            serial: 0,
            open: None,
        }
    }

    /// Gives the memory back at once. Work that is recorded but not submitted may no longer refer
    /// to the cache. Dropping the cache is enough natively, but leaves the buffers to the garbage
    /// collector in a browser.
    pub fn destroy(self) {
        self.buffers.destroy();
    }

    /// Returns the plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the device that the cache lives on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Begins a sequence of no tokens.
    ///
    /// # Errors
    /// [`Error::Sequences`] if the plan's sequences are all live.
    pub fn begin(&mut self) -> Result<Sequence> {
        self.pool.begin()
    }

    /// Begins a sequence whose tokens before `position` lie in other caches, on other devices or
    /// hosts: one part of a context that is split by tokens. It grows by [`Cache::step_parts`] and
    /// is attended to by [`Cache::attend_part`]; its sinks are in the cache that has the first
    /// tokens. [`ContextParallel`](crate::devices::ContextParallel) does all of this for several
    /// devices of a host.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a position that is not a multiple of 128 and for sinks that are
    /// elected, [`Error::Length`] for a position beyond the plan's
    /// [`max_tokens`](Plan::max_tokens), [`Error::Sequences`].
    pub fn begin_at(&mut self, position: u32) -> Result<Sequence> {
        if !position.is_multiple_of(PAGE_TOKENS) {
            return Err(Error::argument("the position that a sequence begins at", "a multiple of 128", position));
        }
        self.expect_split()?;
        if u64::from(position) > self.plan.max_tokens() {
            return Err(Error::Length { slot: 0, need: position.into(), have: self.plan.max_tokens() });
        }
        self.pool.begin_at(position / PAGE_TOKENS)
    }

    /// Refuses elected sinks: they are chosen among all tokens of a prompt, which no cache of a
    /// split context has.
    pub(crate) fn expect_split(&self) -> Result<()> {
        if self.plan.elects() {
            let wanted = "the first tokens, or none, where a context is split";
            return Err(Error::argument("sinks", wanted, self.plan.protection().sinks));
        }
        Ok(())
    }

    /// Ends a sequence and gives back its pages.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn end(&mut self, sequence: Sequence) -> Result<()> {
        // A step made before may name the sequence, and its tables then point at pages that nobody
        // holds.
        self.change(|pool, _| pool.end(sequence))?;
        event!(DEBUG, slot = sequence.slot(), pages_free = self.free_pages(), "freed");
        Ok(())
    }

    /// Begins a sequence that holds what another holds: it shares the other's full pages and gets a
    /// copy, recorded on `encoder`, of the last page where that is not full, of the f16 rows and of
    /// the elected sinks. Either can then grow without the other.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Torn`], [`Error::Sequences`], [`Error::Pages`],
    /// [`Error::Lost`]; then nothing has changed.
    pub fn fork(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence) -> Result<Sequence> {
        let tokens = self.settled_tokens(sequence)?;
        self.fork_prefix(encoder, sequence, tokens)
    }

    /// Does what [`Cache::fork`] does with a sequence's first `tokens` tokens, as if the other had
    /// been [cut back](Cache::truncate) to them: pages beyond are not shared, and no page is copied
    /// where they end with one.
    ///
    /// # Errors
    /// Those of [`Cache::fork`], [`Error::Range`] and [`Error::Dropped`].
    pub fn fork_prefix(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<Sequence> {
        let _span = span!("fork", slot = sequence.slot(), tokens);
        self.gpu.alive()?;
        let (forked, copy) = self.change(|pool, _| pool.fork(sequence, tokens))?;
        self.copy_page(encoder, copy);
        let plan = &self.plan;
        let [from, to] = [sequence.slot(), forked.slot()].map(u64::from);
        let rows = plan.protected_bytes() / u64::from(plan.sequences());
        let sinks = if plan.elects() { 12 * u64::from(plan.sinks()) } else { 0 };
        let first_sink = 4 * u64::from(plan.elected_at());
        for layer in &self.buffers.layers {
            self.copy_within(encoder, &layer.protected_rows, from * rows, to * rows, rows);
            self.copy_within(encoder, &layer.marks, first_sink + from * sinks, first_sink + to * sinks, sinks);
        }
        Ok(forked)
    }

    /// Cuts a sequence back to its first `tokens` tokens, as speculative decoding does with
    /// rejected tokens. Pages and sinks beyond are given back. A page that ends inside and that
    /// other sequences hold too is copied on `encoder`.
    ///
    /// With a window, tokens that are packed stay packed, even where they are recent now. A step of
    /// which nothing was recorded is [taken back](Cache::abandon) first, and its tokens are no more
    /// to cut. After one that only some layers were given, the sequence can be cut back to what it
    /// held before, or with a window to what was packed of that, since the layers differ in what
    /// came later.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Range`], [`Error::Dropped`] for a length before the
    /// first token that [`Cache::slide`] left, [`Error::Torn`] for a length that not all layers
    /// have, [`Error::Pages`] where a shared page must be copied and none is free, [`Error::Lost`];
    /// then nothing has changed.
    pub fn truncate(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<()> {
        let _span = span!("truncate", slot = sequence.slot(), tokens);
        self.gpu.alive()?;
        let copy = self.change(|pool, _| pool.truncate(sequence, tokens))?;
        self.copy_page(encoder, copy);
        Ok(())
    }

    /// Drops old tokens of a sequence, as attention over a sliding window or an endless stream does
    /// (StreamingLLM, 2309.17453), and returns the first token that it still holds. The pages
    /// filled by all but the last `keep` tokens are given back. The sinks stay, and so do tokens
    /// that share a page with tokens that are kept: up to 127 more than `keep`. All keep their
    /// positions, so a stream ends at the plan's [`max_tokens`](Plan::max_tokens).
    ///
    /// Under a [`PlanBuilder::sliding_window`](crate::PlanBuilder::sliding_window) of W tokens no
    /// query misses a token if `keep` is W, plus the number of tokens that may be cut off again.
    /// Without it, queries see all that is held. `F16` keeps no sinks.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Torn`].
    pub fn slide(&mut self, sequence: Sequence, keep: u32) -> Result<u32> {
        let mut settled = self.settled();
        let pool = settled.as_mut().unwrap_or(&mut self.pool);
        if pool.slide(sequence, keep)? > 0 {
            // A step made before may name the pages.
            self.replace(settled);
            event!(DEBUG, slot = sequence.slot(), pages_free = self.free_pages(), "slid");
        }
        Ok(self.pool.find(sequence)?.at.first())
    }

    /// Returns how many tokens a sequence holds once the open step is stale.
    pub(crate) fn settled_tokens(&self, sequence: Sequence) -> Result<u32> {
        Ok(self.pool().find(sequence)?.at.tokens)
    }

    /// Returns how far a sequence reaches once the open step is stale.
    pub(crate) fn extent(&self, sequence: Sequence) -> Result<Extent> {
        Ok(self.pool().find(sequence)?.extent())
    }

    /// Refuses a cut that [`Cache::truncate`] would refuse.
    pub(crate) fn expect_cut(&self, sequence: Sequence, tokens: u32) -> Result<()> {
        self.gpu.alive()?;
        self.pool().expect_truncate(sequence, tokens).map(|_| ())
    }

    /// Refuses a fork that [`Cache::fork_prefix`] would refuse.
    pub(crate) fn expect_fork(&self, sequence: Sequence, tokens: u32) -> Result<()> {
        self.gpu.alive()?;
        self.pool().expect_fork(sequence, tokens).map(|_| ())
    }

    /// Returns how many tokens a sequence holds.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn tokens(&self, sequence: Sequence) -> Result<u32> {
        Ok(self.pool.find(sequence)?.at.tokens)
    }

    /// Returns the bytes allocated for keys and values: pages, f16 rows, scales.
    pub fn bytes(&self) -> u64 {
        let memory = self.memory();
        memory.pages + memory.protected + memory.marks
    }

    /// Returns the bytes that the tokens of all live sequences need: codes, scales, zeros, and f16
    /// rows in use. Pages that sequences share count for each of them.
    pub fn bytes_used(&self) -> u64 {
        let page = self.plan.page_bytes();
        self.pool.sequences().map(|live| self.plan.bits(u64::from(live.at.tokens)).div_ceil(8) - page * u64::from(live.at.dropped)).sum()
    }

    /// Returns the number of pages that no sequence holds.
    pub fn free_pages(&self) -> u32 {
        self.pool.free_pages()
    }

    /// Returns what a [step](Cache::step) of these chunks would take of the cache's pages, and what
    /// is free, without changing anything. A step made next succeeds if [it fits](Admission::fits),
    /// and fails with [`Error::Pages`] and the same numbers if not. An open step of which nothing
    /// was recorded counts as taken back, which making the next would do.
    ///
    /// # Errors
    /// Those of [`Cache::step`] that ending other sequences would not help with: all but
    /// [`Error::Pages`].
    pub fn can_append(&self, chunks: &[Chunk]) -> Result<Admission> {
        self.can_append_slid(chunks, None)
    }

    /// Returns the same for a step before which its sequences slide, beyond what no query will see
    /// even if up to `back` tokens are cut off; without `back` they do not slide.
    pub(crate) fn can_append_slid(&self, chunks: &[Chunk], back: Option<u32>) -> Result<Admission> {
        self.gpu.alive()?;
        match back {
            Some(back) => self.pool().admit_slid(&self.plan, chunks, back),
            None => self.pool().admit(&self.plan, chunks),
        }
    }

    /// Returns the pool as it will be when the open step is stale, on which the next call builds.
    pub(crate) fn pool(&self) -> Cow<'_, Pool> {
        self.settled().map_or(Cow::Borrowed(&self.pool), Cow::Owned)
    }

    /// Returns that pool if it is another than now.
    fn settled(&self) -> Option<Pool> {
        self.open.as_ref()?.settled(&self.pool)
    }

    /// Makes all steps so far stale, and has the pool be what that leaves.
    fn replace(&mut self, settled: Option<Pool>) {
        if let Some(pool) = settled {
            self.pool = pool;
        }
        self.open = None;
        self.outdate();
    }

    /// Changes the pool, and makes all steps so far stale. After an error nothing has changed.
    fn change<T>(&mut self, change: impl FnOnce(&mut Pool, &Plan) -> Result<T>) -> Result<T> {
        let mut settled = self.settled();
        let done = change(settled.as_mut().unwrap_or(&mut self.pool), &self.plan)?;
        self.replace(settled);
        Ok(done)
    }

    /// Makes an open step stale that was not given to all layers.
    pub(crate) fn settle(&mut self) {
        if let settled @ Some(_) = self.settled() {
            self.replace(settled);
        }
    }

    /// Makes all steps so far stale.
    pub(crate) fn retire(&mut self) {
        let settled = self.settled();
        self.replace(settled);
    }

    /// Grows sequences by new tokens: takes the pages they need and makes the tables that all
    /// layers read. The new tokens count from here on, so every layer must be given their keys and
    /// values by [`Cache::append`] with this step, before any call that makes it stale.
    ///
    /// If the step before is not stale by now, this makes it so. Where nothing was recorded of it,
    /// it is taken back, as by [`Cache::abandon`]. Where some layers were given it and others were
    /// not, its sequences are refused by [`Error::Torn`] until they are cut back or ended; others
    /// can go on.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Torn`], [`Error::RepeatedSequence`],
    /// [`Error::EmptyChunk`], [`Error::Length`], [`Error::Pages`], [`Error::Lost`]. After an error
    /// nothing has changed, and the step before can still be used.
    pub fn step(&mut self, chunks: &[Chunk]) -> Result<Step> {
        self.step_slid(chunks, None)
    }

    /// Makes the same step, before which its sequences slide as
    /// [`can_append_slid`](Self::can_append_slid) says, or neither.
    pub(crate) fn step_slid(&mut self, chunks: &[Chunk], back: Option<u32>) -> Result<Step> {
        let _span = span!("step", chunks = chunks.len());
        self.gpu.alive()?;
        let grown = self.change(|pool, plan| match back {
            Some(back) => pool.grow_slid(plan, chunks, back),
            None => pool.grow(plan, chunks),
        })?;
        Ok(self.open(grown))
    }

    /// Takes a step back of which nothing was recorded, as if it had never been made: its sequences
    /// hold what they held, and its pages are free. For a request that was cancelled, or a step
    /// that another cache refused ([`step_together`] does it by itself).
    ///
    /// # Errors
    /// [`Error::Stale`]; [`Error::Order`] if [`Step::recorded`] names a layer. Then nothing has
    /// changed but that the step is gone: [cut its sequences back](Cache::truncate) or end them. If
    /// what was recorded is not submitted, [`Step::unrecord`] lets it be abandoned.
    pub fn abandon(&mut self, step: Step) -> Result<()> {
        self.expect_abandoned(&step)?;
        self.settle();
        event!(DEBUG, tokens = step.rows, pages_free = self.free_pages(), "abandoned");
        Ok(())
    }

    /// Refuses a step that [`Cache::abandon`] would refuse.
    pub(crate) fn expect_abandoned(&self, step: &Step) -> Result<()> {
        self.expect_latest(step)?;
        match step.recorded.first() {
            Some(layer) => Err(Error::Order { call: "Cache::abandon", layer, wanted: "before anything is recorded", had: "after it" }),
            None => Ok(()),
        }
    }

    /// Returns what [`Cache::can_append`] does, for a step of parts.
    ///
    /// # Errors
    /// Those of [`Cache::step_parts`] but [`Error::Pages`].
    pub fn can_append_parts(&self, parts: &[Share]) -> Result<Admission> {
        self.gpu.alive()?;
        self.expect_split()?;
        self.pool().admit_parts(&self.plan, parts)
    }

    /// Makes a step as [`Cache::step`] does, where other caches hold tokens of the sequences, too:
    /// queries attend, from positions of their own, to what lies here, and some of their tokens, or
    /// none, are appended here. Keys and values have a row for every query; rows of tokens that are
    /// not appended here are not read.
    ///
    /// A step that appends no token here need not be given to [`Cache::append`], which records
    /// nothing of it. Any other must be, as one of [`Cache::step`], before it attends.
    ///
    /// # Errors
    /// Those of [`Cache::step`], and [`Error::Share`]. After an error nothing has changed.
    pub fn step_parts(&mut self, parts: &[Share]) -> Result<Step> {
        let _span = span!("step", chunks = parts.len());
        self.gpu.alive()?;
        self.expect_split()?;
        let grown = self.change(|pool, plan| pool.grow_parts(plan, parts))?;
        Ok(self.open(grown))
    }

    /// Makes the step by which sequences grew.
    fn open(&mut self, Grown { growths, undo }: Grown) -> Step {
        let recorded = Arc::new(Recorded::nothing(self.plan.shape().layers));
        let step = self.step_of(&growths, (recorded.clone(), !undo.is_empty()));
        self.open = step.appends.then_some(Open { recorded, grown: undo });
        event!(DEBUG, tokens = step.rows, pages = growths.iter().map(Growth::pages_taken).sum::<u32>(), pages_free = self.free_pages(), "grown");
        step
    }

    /// Makes all steps so far stale, and drops the bind groups of the caller's rows.
    fn outdate(&mut self) {
        self.serial += 1;
        self.groups.forget_rows();
    }

    fn step_of(&self, growths: &[Growth], recorded: (Arc<Recorded>, bool)) -> Step {
        Step::new(&self.gpu, &self.plan, &self.step_layout, growths, (self.id, self.serial), recorded)
    }

    /// Makes a step that attends once more from positions whose tokens a sequence already holds, in
    /// ranges of two or more. It does not make the latest step stale; both are valid until the next
    /// is made. If that one brings the sequence's tokens, layers must be given them by it before
    /// this one attends; this one must not be appended. The ranges must lie in the pages.
    pub(crate) fn revisit(&self, sequence: Sequence, ranges: &[Range<u32>]) -> Result<Step> {
        self.gpu.alive()?;
        let live = self.pool.find(sequence)?;
        let mut growths = Vec::with_capacity(ranges.len());
        for range in ranges {
            if range.end > live.at.packed || range.start + 1 >= range.end {
                return Err(Error::Range { first: range.start, end: range.end, have: live.at.packed });
            }
            live.expect_held(range.start)?;
            live.expect_whole(range.end)?;
            growths.push(Growth { old_tokens: range.start, new_tokens: range.end, rows: range.end - range.start, ..live.still(sequence.slot()) });
        }
        let latest = self.open.as_ref().filter(|open| open.grew(sequence)).map(|open| open.recorded.clone());
        let appends = latest.is_some();
        Ok(self.step_of(&growths, (latest.unwrap_or_else(|| Arc::new(Recorded::nothing(self.plan.shape().layers))), appends)))
    }

    /// Refuses a step that is not the latest of this cache, and a layer that does not exist.
    pub(super) fn check(&self, step: &Step, layer: u32) -> Result<()> {
        self.gpu.alive()?;
        self.expect_latest(step)?;
        self.layer(layer).map(|_| ())
    }

    /// Refuses a sequence whose tokens of the open step one of these layers was not given.
    fn expect_appended(&self, call: &'static str, sequence: Sequence, mut layers: Range<u32>) -> Result<()> {
        match self.open.as_ref().filter(|open| open.grew(sequence)) {
            Some(open) => layers.try_for_each(|layer| open.recorded.expect_appended(call, layer)),
            None => Ok(()),
        }
    }

    fn expect_latest(&self, step: &Step) -> Result<()> {
        if step.cache != self.id {
            return Err(Error::Stale { reason: "another cache made it" });
        }
        if step.serial != self.serial {
            return Err(Error::Stale { reason: "a later step was made, or a sequence was ended, forked, cut back or slid" });
        }
        Ok(())
    }

    /// Chooses the planes that decoding reads in another way from the next step on, where the plan
    /// has planes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for an alignment that
    /// [`PlanBuilder::alignment`](crate::PlanBuilder::alignment) would not take, or that the plan's
    /// storage does not serve.
    pub fn align(&mut self, alignment: Alignment) -> Result<()> {
        self.plan.align(alignment)
    }

    /// Waits for all submitted work and returns which keys and values could not be stored as they
    /// came since the last call: those with numbers that were not finite read back as zeros (as the
    /// means, where [`Codec::Centred`](crate::Codec::Centred) takes means off), so that no other
    /// token's codes or output is harmed; those beyond what the format stores were clamped.
    ///
    /// # Errors
    /// [`Error::Readback`], [`Error::Lost`].
    pub fn status(&self) -> impl Future<Output = Result<Status>> + use<> {
        let (gpu, buffer) = (self.gpu.clone(), self.buffers.shared.status.clone());
        async move {
            let words = gpu.read(&buffer, 0, STATUS_WORDS).await?;
            gpu.queue().write_buffer(&buffer, 0, &[0; 16]);
            Ok(Status::from_words(&words))
        }
    }

    /// Checks the invariants of pages and sequences, for tests. Returns the number of live
    /// sequences, or what does not hold.
    #[doc(hidden)]
    pub fn check_pages(&self) -> std::result::Result<u32, String> {
        self.pool.check(&self.plan)
    }
}

/// Makes a step in each of several caches, or in none. For models with layers of different kinds
/// [`LayeredCache`](crate::layers::LayeredCache) does this and more.
///
/// ```no_run
/// use wgkv::{Cache, Chunk, Result, Sequence, Step};
///
/// /// A token in the cache of the layers that see everything, and in that of the others.
/// fn step(global: (&mut Cache, Sequence), local: (&mut Cache, Sequence)) -> Result<Vec<Step>> {
///     let chunks = [global.1, local.1].map(|sequence| [Chunk { sequence, tokens: 1 }]);
///     wgkv::step_together(&mut [(global.0, &chunks[0]), (local.0, &chunks[1])])
/// }
/// ```
///
/// # Errors
/// Those of [`Cache::step`], of the first cache that refuses. Then nothing has changed in any.
pub fn step_together(caches: &mut [(&mut Cache, &[Chunk])]) -> Result<Vec<Step>> {
    for (cache, chunks) in caches.iter() {
        cache.can_append(chunks)?.expect_fits()?;
    }
    let mut caches: Vec<_> = caches.iter_mut().map(|(cache, chunks)| (&mut **cache, *chunks)).collect();
    all_or_none(&mut caches, |cache, chunks| cache.step(chunks))
}

/// Makes a step in each cache that was found to have room for it. A device that is lost meanwhile
/// refuses it nonetheless: then the steps of the others are taken back.
pub(crate) fn all_or_none<C>(caches: &mut [(&mut Cache, C)], step: impl Fn(&mut Cache, &C) -> Result<Step>) -> Result<Vec<Step>> {
    let mut steps = Vec::with_capacity(caches.len());
    for (cache, chunks) in caches.iter_mut() {
        match step(cache, chunks) {
            Ok(made) => steps.push(made),
            Err(error) => {
                caches.iter_mut().take(steps.len()).for_each(|(cache, _)| cache.settle());
                return Err(error);
            }
        }
    }
    Ok(steps)
}
