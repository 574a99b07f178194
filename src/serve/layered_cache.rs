//! One cache for a model whose layers differ: a cache for each group of layers that are alike, all
//! of which hold the same sequences.

use super::layer_map::{LayerMap, Place};
use super::layered_plan::LayeredPlan;
use super::together;
use crate::cache::{Admission, AlignmentReport, Cache, Chunk, Memory, Sequence, Status, Step, all_or_none};
use crate::error::{Error, Result};
use crate::format::Alignment;
use crate::gpu::{Gpu, Rows};
use crate::plan::Span;
use std::ops::Range;
use std::sync::Arc;

/// Keys and values of many sequences, for a model whose layers are of several kinds: the calls of a
/// [`Cache`], with the model's numbers of layers. [`LayeredPlan`] says which layers are alike.
///
/// A sequence is in all groups of layers or in none, and whatever is done to it is done in all or,
/// after an error, in none. Handles are [`Sequence`]s, as of a `Cache`.
///
/// Layers with a [sliding window](crate::PlanBuilder::sliding_window) or
/// [chunked attention](crate::PlanBuilder::chunked_attention) slide by themselves: each step first
/// gives back the pages of its sequences that none of their queries will see.
///
/// ```no_run
/// use wgkv::layers::{LayeredCache, LayeredPlan};
/// use wgkv::{Chunk, Gpu, Result, Rows};
///
/// /// Reads a prompt of 512 tokens. Rows are `[tokens, heads, head_dim]`, keys and queries before RoPE.
/// fn read(gpu: &Gpu, plan: LayeredPlan, [keys, values, queries, output]: [&wgpu::Buffer; 4]) -> Result<LayeredCache> {
///     let mut cache = LayeredCache::new(gpu, plan)?;
///     let sequence = cache.begin()?;
///     let step = cache.step(&[Chunk { sequence, tokens: 512 }])?; // then 1 at a time
///     let mut encoder = gpu.device().create_command_encoder(&Default::default());
///     for layer in 0..cache.plan().layers() {
///         // your passes that make this layer's rows, then:
///         cache.append(&mut encoder, &step, layer, Rows::f32(keys), Rows::f32(values))?;
///         cache.attend(&mut encoder, &step, layer, Rows::f32(queries), Rows::f32(output))?;
///     }
///     gpu.queue().submit([encoder.finish()]);
///     Ok(cache)
/// }
/// ```
#[derive(Debug)]
pub struct LayeredCache {
    plan: LayeredPlan,
    /// By group.
    caches: Vec<Cache>,
    /// By place: of a live sequence, the handles of all groups. The first is the caller's.
    live: Vec<Option<Vec<Sequence>>>,
}

/// A [`Step`] of every group of layers. It becomes stale as a `Step` does.
#[derive(Debug)]
#[must_use]
pub struct LayeredStep {
    /// By group.
    steps: Vec<Step>,
    map: Arc<LayerMap>,
}

impl LayeredStep {
    /// Returns the number of rows of keys, values, queries and output: the tokens of all chunks, in
    /// their order.
    pub fn rows(&self) -> u32 {
        self.steps.first().map_or(0, Step::rows)
    }

    /// Returns the first layer of which [`LayeredCache::elect`] or [`LayeredCache::append`] was
    /// recorded; none while the step can be [abandoned](LayeredCache::abandon).
    pub fn recorded(&self) -> Option<u32> {
        (0..self.map.count()).find(|layer| self.map.find(*layer).is_ok_and(|Place { group, index, shares }| shares.is_none() && self.has(group, index)))
    }

    /// Returns whether anything was recorded of a group's layer.
    fn has(&self, group: usize, index: u32) -> bool {
        self.steps.get(group).is_some_and(|step| step.has_recorded(index))
    }

    /// Takes your word that nothing that was recorded of this step is submitted, as
    /// [`Step::unrecord`].
    pub fn unrecord(&self) {
        self.steps.iter().for_each(Step::unrecord);
    }
}

/// How far a sequence reaches in all groups.
struct Reach {
    /// Its tokens, in the layers that have most.
    tokens: u32,
    /// Those of them that all layers have.
    whole: u32,
    /// A layer that lacks the others, if there are any.
    missing: u32,
}

impl Reach {
    /// Refuses tokens that some layers lack.
    fn expect_whole(&self, sequence: Sequence, tokens: u32) -> Result<()> {
        if tokens <= self.whole { Ok(()) } else { Err(Error::Torn { slot: sequence.slot(), layer: self.missing, whole: self.whole }) }
    }
}

impl LayeredCache {
    /// Makes a cache and allocates everything that the plan lists, as [`Cache::new`].
    ///
    /// # Errors
    /// Those of [`Cache::new`]; then nothing stays allocated.
    pub fn new(gpu: &Gpu, plan: LayeredPlan) -> Result<Self> {
        let caches = plan.groups().iter().map(|plan| Cache::new(gpu, plan.clone())).collect::<Result<_>>()?;
        Ok(Self::of(plan, caches))
    }

    /// Makes a cache as [`LayeredCache::new`] does, and waits until the device has reported whether
    /// it had the memory.
    ///
    /// # Errors
    /// As [`LayeredCache::new`].
    pub async fn request(gpu: &Gpu, plan: LayeredPlan) -> Result<Self> {
        let mut caches = Vec::with_capacity(plan.groups().len());
        for group in plan.groups() {
            match Cache::request(gpu, group.clone()).await {
                Ok(cache) => caches.push(cache),
                Err(error) => {
                    caches.into_iter().for_each(Cache::destroy);
                    return Err(error);
                }
            }
        }
        Ok(Self::of(plan, caches))
    }

    fn of(plan: LayeredPlan, caches: Vec<Cache>) -> Self {
        let live = vec![None; plan.sequences() as usize];
        Self { plan, caches, live }
    }

    /// Gives the memory back at once, as [`Cache::destroy`].
    pub fn destroy(self) {
        self.caches.into_iter().for_each(Cache::destroy);
    }

    /// Compiles the pipelines of all groups.
    ///
    /// # Errors
    /// Those of [`Gpu::prepare`].
    pub async fn prepare(&self) -> Result<()> {
        together::prepare(&self.caches).await
    }

    /// Returns the plan.
    pub fn plan(&self) -> &LayeredPlan {
        &self.plan
    }

    /// Returns the device that the cache lives on.
    pub fn gpu(&self) -> &Gpu {
        // A plan has a group, so there is a first.
        self.caches[0].gpu()
    }

    /// Returns the cache of each group, for calls that change no sequence.
    pub fn groups(&self) -> &[Cache] {
        &self.caches
    }

    /// Returns a sequence's handle in each group's cache, in the order of the groups.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn sequences_of(&self, sequence: Sequence) -> Result<&[Sequence]> {
        let own = self.live.get(sequence.slot() as usize).and_then(Option::as_deref);
        own.filter(|own| own.first() == Some(&sequence)).ok_or(Error::UnknownSequence { slot: sequence.slot() })
    }

    /// Returns the caches of all groups, to change them alike.
    pub(super) fn caches(&mut self) -> &mut [Cache] {
        &mut self.caches
    }

    /// Calls each group's cache with the group's number and a sequence's handle there.
    pub(super) fn each<T>(&self, own: &[Sequence], call: impl Fn(&Cache, usize, Sequence) -> Result<T>) -> Result<Vec<T>> {
        let groups = self.caches.iter().zip(own).enumerate();
        groups.map(|(group, (cache, sequence))| self.of_model(group, call(cache, group, *sequence))).collect()
    }

    /// Keeps the handles of a sequence that all groups have begun; returns the caller's.
    pub(super) fn keep(&mut self, own: Vec<Sequence>) -> Sequence {
        let first = own[0];
        self.live[first.slot() as usize] = Some(own);
        first
    }

    /// Begins a sequence of no tokens.
    ///
    /// # Errors
    /// [`Error::Sequences`] if the plan's sequences are all live.
    pub fn begin(&mut self) -> Result<Sequence> {
        let own = together::begin(&mut self.caches, |_, cache| cache.begin())?;
        Ok(self.keep(own))
    }

    /// Ends a sequence and gives back its pages.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn end(&mut self, sequence: Sequence) -> Result<()> {
        let own = self.sequences_of(sequence)?.to_vec();
        self.live[sequence.slot() as usize] = None;
        together::end(&mut self.caches, &own)
    }

    /// Returns how far a sequence reaches once the open step is stale. A step that some groups were
    /// given and others were not leaves them with different numbers of tokens.
    fn reach(&self, own: &[Sequence]) -> Result<Reach> {
        let mut reach = Reach { tokens: 0, whole: u32::MAX, missing: 0 };
        for (group, (cache, sequence)) in self.caches.iter().zip(own).enumerate() {
            let extent = cache.extent(*sequence)?;
            reach.tokens = reach.tokens.max(extent.tokens);
            if extent.whole < reach.whole {
                reach.whole = extent.whole;
                reach.missing = self.plan.map().layer(group, extent.missing.unwrap_or(0));
            }
        }
        Ok(reach)
    }

    /// Refuses to go on after a sequence's first `tokens` tokens: where it holds fewer, where some
    /// layers lack some of them, and where a query that comes next would see tokens that are gone.
    pub(super) fn expect_cut(&self, sequence: Sequence, tokens: u32) -> Result<()> {
        let own = self.sequences_of(sequence)?;
        let reach = self.reach(own)?;
        if tokens > reach.tokens {
            return Err(Error::Range { first: 0, end: tokens, have: reach.tokens });
        }
        reach.expect_whole(sequence, tokens)?;
        for (cache, sequence) in self.caches.iter().zip(own) {
            let (span, first) = (cache.plan().span(), cache.extent(*sequence)?.first);
            // Where queries see everything, they see what is left.
            if span != Span::All && span.first(tokens) < first {
                return Err(Error::Dropped { token: span.first(tokens), first });
            }
        }
        Ok(())
    }

    /// Begins a sequence that holds what another holds, as [`Cache::fork`].
    ///
    /// # Errors
    /// Those of [`Cache::fork`]; then nothing has changed in any group.
    pub fn fork(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence) -> Result<Sequence> {
        let tokens = self.reach(self.sequences_of(sequence)?)?.tokens;
        self.fork_prefix(encoder, sequence, tokens)
    }

    /// Does what [`LayeredCache::fork`] does with a sequence's first `tokens` tokens, as
    /// [`Cache::fork_prefix`].
    ///
    /// # Errors
    /// Those of [`Cache::fork_prefix`]; [`Error::Dropped`] also where the next query would see a
    /// token that its layer slid beyond. Then nothing has changed in any group.
    pub fn fork_prefix(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<Sequence> {
        self.expect_cut(sequence, tokens)?;
        let own = self.sequences_of(sequence)?.to_vec();
        self.caches.iter().zip(&own).try_for_each(|(cache, sequence)| cache.expect_fork(*sequence, tokens))?;
        let mut sequences = own.iter();
        let forked = together::begin(&mut self.caches, |_, cache| match sequences.next() {
            Some(sequence) => cache.fork_prefix(encoder, *sequence, tokens),
            None => Err(Error::UnknownSequence { slot: sequence.slot() }),
        })?;
        Ok(self.keep(forked))
    }

    /// Cuts a sequence back to its first `tokens` tokens, as [`Cache::truncate`]. The tokens of the
    /// latest step can always be cut off, and before them what
    /// [`keep`](crate::layers::LayeredPlanBuilder::keep) says.
    ///
    /// # Errors
    /// Those of [`Cache::truncate`]; [`Error::Dropped`] also where the next query would see a token
    /// that its layer slid beyond. Then nothing has changed in any group.
    pub fn truncate(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<()> {
        self.expect_cut(sequence, tokens)?;
        let own = self.sequences_of(sequence)?.to_vec();
        self.caches.iter().zip(&own).try_for_each(|(cache, sequence)| cache.expect_cut(*sequence, tokens))?;
        self.caches.iter_mut().zip(&own).try_for_each(|(cache, sequence)| cache.truncate(encoder, *sequence, tokens))
    }

    /// Drops old tokens of a sequence in the groups that do not slide by themselves, as
    /// [`Cache::slide`], and returns the first token that all of these still hold. The other groups give
    /// back what their windows do not need, whatever `keep` is.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Torn`]; then nothing has changed in any group.
    pub fn slide(&mut self, sequence: Sequence, keep: u32) -> Result<u32> {
        let own = self.sequences_of(sequence)?.to_vec();
        let reach = self.reach(&own)?;
        reach.expect_whole(sequence, reach.tokens)?;
        let mut first = 0;
        let mut slid = false;
        for (group, (cache, sequence)) in self.caches.iter_mut().zip(&own).enumerate() {
            let before = cache.extent(*sequence)?.first;
            let kept = self.plan.kept(group, reach.tokens);
            let now = cache.slide(*sequence, kept.unwrap_or(keep))?;
            slid |= now > before;
            if kept.is_none() {
                first = now.max(first);
            }
        }
        if slid {
            // In a group that gave nothing back its step would not be stale.
            self.caches.iter_mut().for_each(Cache::retire);
        }
        Ok(first)
    }

    /// Returns how many tokens a sequence holds.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn tokens(&self, sequence: Sequence) -> Result<u32> {
        let own = self.sequences_of(sequence)?;
        self.caches.iter().zip(own).try_fold(0, |tokens, (cache, sequence)| Ok(cache.tokens(*sequence)?.max(tokens)))
    }

    /// Returns the bytes allocated for keys and values, in all groups.
    pub fn bytes(&self) -> u64 {
        together::bytes(&self.caches)
    }

    /// Returns the bytes that the tokens of all live sequences need, in all groups, as
    /// [`Cache::bytes_used`].
    pub fn bytes_used(&self) -> u64 {
        self.caches.iter().map(Cache::bytes_used).sum()
    }

    /// Returns the number of pages that no sequence holds, by group.
    pub fn free_pages(&self) -> Vec<u32> {
        self.caches.iter().map(Cache::free_pages).collect()
    }

    /// Returns the bytes that the cache has allocated, over all groups.
    pub fn memory(&self) -> Memory {
        Memory::sum(self.caches.iter().map(Cache::memory))
    }

    /// Returns the chunks of each group, if each is one that a step may have.
    fn chunks(&self, chunks: &[Chunk]) -> Result<Vec<Vec<Chunk>>> {
        let mut by_group: Vec<Vec<Chunk>> = self.caches.iter().map(|_| Vec::with_capacity(chunks.len())).collect();
        for chunk in chunks {
            let (slot, own) = (chunk.sequence.slot(), self.sequences_of(chunk.sequence)?);
            if let Some(most) = self.plan.chunk().filter(|most| chunk.tokens > *most) {
                return Err(Error::argument(format!("the chunk of sequence {slot}"), format!("{most} tokens at most, as planned"), chunk.tokens));
            }
            by_group.iter_mut().zip(own).for_each(|(group, sequence)| group.push(Chunk { sequence: *sequence, tokens: chunk.tokens }));
        }
        for chunk in chunks {
            let reach = self.reach(self.sequences_of(chunk.sequence)?)?;
            reach.expect_whole(chunk.sequence, reach.tokens)?;
        }
        Ok(by_group)
    }

    /// Returns what a [step](LayeredCache::step) of these chunks would take of the pages of one
    /// group, and what is free there, without changing anything: of the group in which most pages
    /// are missing, or fewest would be left. Pages that a group gives back as it slides count as
    /// free. A step made next succeeds if [it fits](Admission::fits), and fails with
    /// [`Error::Pages`] and the same numbers if not.
    ///
    /// # Errors
    /// Those of [`LayeredCache::step`] that ending other sequences would not help with: all but
    /// [`Error::Pages`].
    pub fn can_append(&self, chunks: &[Chunk]) -> Result<Admission> {
        self.admit(&self.chunks(chunks)?)
    }

    /// Returns what a step takes in each group.
    pub(super) fn admissions(&self, chunks: &[Chunk]) -> Result<Vec<Admission>> {
        self.admit_all(&self.chunks(chunks)?)
    }

    fn admit_all(&self, chunks: &[Vec<Chunk>]) -> Result<Vec<Admission>> {
        let groups = self.caches.iter().zip(chunks).enumerate();
        groups.map(|(group, (cache, chunks))| self.of_model(group, cache.can_append_slid(chunks, Some(self.plan.keep())))).collect()
    }

    /// Returns what a step takes where it is scarcest.
    fn admit(&self, chunks: &[Vec<Chunk>]) -> Result<Admission> {
        let none = Admission { pages_needed: 0, pages_free: u32::MAX };
        let left = |admission: &Admission| i64::from(admission.pages_free) - i64::from(admission.pages_needed);
        Ok(self.admit_all(chunks)?.into_iter().fold(none, |scarcest, admission| if left(&admission) < left(&scarcest) { admission } else { scarcest }))
    }

    /// Grows sequences by new tokens in all groups, as [`Cache::step`]. Before, layers that
    /// slide give back the pages of these sequences that no query will see.
    ///
    /// # Errors
    /// Those of [`Cache::step`], and [`Error::Mismatch`] for a chunk of more tokens than the plan's
    /// [`chunk`](LayeredPlan::chunk). After an error nothing has changed in any group, and the step
    /// before can still be used.
    pub fn step(&mut self, chunks: &[Chunk]) -> Result<LayeredStep> {
        let chunks = self.chunks(chunks)?;
        self.admit(&chunks)?.expect_fits()?;
        let mut caches: Vec<_> = self.caches.iter_mut().zip(chunks).collect();
        let steps = all_or_none(&mut caches, |cache, chunks| cache.step_slid(chunks, Some(self.plan.keep())))?;
        Ok(LayeredStep { steps, map: self.plan.map().clone() })
    }

    /// Takes a step back of which nothing was recorded, in all groups, as [`Cache::abandon`]. What
    /// slid stays so.
    ///
    /// # Errors
    /// Those of [`Cache::abandon`]; then nothing has changed in any group.
    pub fn abandon(&mut self, step: LayeredStep) -> Result<()> {
        let LayeredStep { steps, map } = step;
        if steps.len() != self.caches.len() {
            return Err(Error::Stale { reason: "another cache made it" });
        }
        for (group, (cache, step)) in self.caches.iter().zip(&steps).enumerate() {
            cache.expect_abandoned(step).map_err(|error| map.named(group, error))?;
        }
        together::abandon(&mut self.caches, steps.into_iter().map(Some).collect())
    }

    /// Returns a group's answer with the model's numbers of layers.
    fn of_model<T>(&self, group: usize, answer: Result<T>) -> Result<T> {
        answer.map_err(|error| self.plan.map().named(group, error))
    }

    /// Calls a group's cache with its number of a layer.
    fn of_layer<T>(&self, layer: u32, call: impl FnOnce(&Cache, u32) -> Result<T>) -> Result<T> {
        let Place { group, index, .. } = self.plan.map().find(layer)?;
        self.of_model(group, call(&self.caches[group], index))
    }

    /// Calls a group's cache with its step and its number of a layer.
    fn in_step<T>(&self, step: &LayeredStep, layer: u32, call: impl FnOnce(&Cache, &Step, u32) -> Result<T>) -> Result<T> {
        let group = self.plan.map().find(layer)?.group;
        let own = step.steps.get(group).ok_or(Error::Stale { reason: "another cache made it" })?;
        self.of_layer(layer, |cache, index| call(cache, own, index))
    }

    /// Refuses a layer without keys and values of its own.
    fn expect_own(&self, layer: u32) -> Result<()> {
        match self.plan.shares(layer)? {
            Some(of) => Err(Error::argument(format!("layer {layer}"), "one with keys and values of its own", format!("one that shares those of layer {of}"))),
            None => Ok(()),
        }
    }

    /// Records the election of one layer's sinks, as [`Cache::elect`].
    ///
    /// # Errors
    /// Those of [`Cache::elect`], and [`Error::Mismatch`] for a layer that shares another's keys
    /// and values.
    pub fn elect(&self, encoder: &mut wgpu::CommandEncoder, step: &LayeredStep, layer: u32, residual: Rows<'_>, width: u32) -> Result<()> {
        self.expect_own(layer)?;
        self.in_step(step, layer, |cache, step, layer| cache.elect(encoder, step, layer, residual, width))
    }

    /// Records the election as [`LayeredCache::elect`] does, within a compute pass of the caller's.
    ///
    /// # Errors
    /// Those of [`LayeredCache::elect`].
    pub fn elect_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &LayeredStep, layer: u32, residual: Rows<'_>, width: u32) -> Result<()> {
        self.expect_own(layer)?;
        self.in_step(step, layer, |cache, step, layer| cache.elect_in(pass, step, layer, residual, width))
    }

    /// Records the new tokens' keys and values of one layer, as [`Cache::append`]:
    /// `[rows, kv_heads, head_dim]` each, of this layer's shape. A layer that shares another's has
    /// none to be given.
    ///
    /// # Errors
    /// Those of [`Cache::append`], and [`Error::Mismatch`] for a layer that shares another's keys
    /// and values.
    pub fn append(&self, encoder: &mut wgpu::CommandEncoder, step: &LayeredStep, layer: u32, keys: Rows<'_>, values: Rows<'_>) -> Result<()> {
        self.expect_own(layer)?;
        self.in_step(step, layer, |cache, step, layer| cache.append(encoder, step, layer, keys, values))
    }

    /// Records what [`LayeredCache::append`] does, within a compute pass of the caller's.
    ///
    /// # Errors
    /// Those of [`LayeredCache::append`].
    pub fn append_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &LayeredStep, layer: u32, keys: Rows<'_>, values: Rows<'_>) -> Result<()> {
        self.expect_own(layer)?;
        self.in_step(step, layer, |cache, step, layer| cache.append_in(pass, step, layer, keys, values))
    }

    /// Records causal attention of the step's tokens in one layer, as [`Cache::attend`]: `queries`
    /// and `output` are `[rows, query_heads, head_dim]`, of this layer's shape. A layer that shares
    /// another's keys and values attends after the other was appended, by the other's scale, cap
    /// and sink logits.
    ///
    /// # Errors
    /// Those of [`Cache::attend`].
    pub fn attend(&self, encoder: &mut wgpu::CommandEncoder, step: &LayeredStep, layer: u32, queries: Rows<'_>, output: Rows<'_>) -> Result<()> {
        self.in_step(step, layer, |cache, step, layer| cache.attend(encoder, step, layer, queries, output))
    }

    /// Records what [`LayeredCache::attend`] does, within a compute pass of the caller's.
    ///
    /// # Errors
    /// Those of [`LayeredCache::attend`].
    pub fn attend_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &LayeredStep, layer: u32, queries: Rows<'_>, output: Rows<'_>) -> Result<()> {
        self.in_step(step, layer, |cache, step, layer| cache.attend_in(pass, step, layer, queries, output))
    }

    /// Records what [`LayeredCache::attend`] does, and the weight of each output, as
    /// [`Cache::attend_part`]: `log_sums` is `[rows, query_heads]` in f32.
    ///
    /// # Errors
    /// Those of [`Cache::attend_part`].
    pub fn attend_part(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        step: &LayeredStep,
        layer: u32,
        queries: Rows<'_>,
        output: Rows<'_>,
        log_sums: Rows<'_>,
    ) -> Result<()> {
        self.in_step(step, layer, |cache, step, layer| cache.attend_part(encoder, step, layer, queries, output, log_sums))
    }

    /// Records what [`LayeredCache::attend_part`] does, within a compute pass of the caller's.
    ///
    /// # Errors
    /// Those of [`LayeredCache::attend_part`].
    pub fn attend_part_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        step: &LayeredStep,
        layer: u32,
        queries: Rows<'_>,
        output: Rows<'_>,
        log_sums: Rows<'_>,
    ) -> Result<()> {
        self.in_step(step, layer, |cache, step, layer| cache.attend_part_in(pass, step, layer, queries, output, log_sums))
    }

    /// Records the restoring of cached tokens of one layer, as [`Cache::dequantize`]; of a layer
    /// that shares another's, those of the other.
    ///
    /// # Errors
    /// Those of [`Cache::dequantize`].
    pub fn dequantize(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sequence: Sequence,
        layer: u32,
        tokens: Range<u32>,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) -> Result<()> {
        let group = self.plan.place_of(layer)?.0;
        let sequence = self.sequences_of(sequence)?[group];
        self.of_layer(layer, |cache, layer| cache.dequantize(encoder, sequence, layer, tokens, keys, values))
    }

    /// Records what [`LayeredCache::dequantize`] does, within a compute pass of the caller's.
    ///
    /// # Errors
    /// Those of [`LayeredCache::dequantize`].
    pub fn dequantize_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        sequence: Sequence,
        layer: u32,
        tokens: Range<u32>,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) -> Result<()> {
        let group = self.plan.place_of(layer)?.0;
        let sequence = self.sequences_of(sequence)?[group];
        self.of_layer(layer, |cache, layer| cache.dequantize_in(pass, sequence, layer, tokens, keys, values))
    }

    /// Chooses the planes that decoding reads in another way, as [`Cache::align`], in all groups.
    ///
    /// # Errors
    /// Those of [`Cache::align`], of the first group that refuses; then nothing has changed in any.
    pub fn align(&mut self, alignment: Alignment) -> Result<()> {
        self.caches.iter().try_for_each(|cache| cache.plan().clone().align(alignment))?;
        self.caches.iter_mut().try_for_each(|cache| cache.align(alignment))
    }

    /// Waits for all submitted work and returns what the last attend of a layer read from planes,
    /// as [`Cache::traffic`].
    ///
    /// # Errors
    /// Those of [`Cache::traffic`].
    pub async fn traffic(&self, step: &LayeredStep, layer: u32) -> Result<AlignmentReport> {
        let Place { group, index, .. } = self.plan.map().find(layer)?;
        let step = step.steps.get(group).ok_or(Error::Stale { reason: "another cache made it" })?;
        self.of_model(group, self.caches[group].traffic(step, index).await)
    }

    /// Waits for all submitted work and returns which keys and values could not be stored as they
    /// came since the last call, as [`Cache::status`]; each group lists 256 at most.
    ///
    /// # Errors
    /// Those of [`Cache::status`]; what the groups read before had listed is then gone.
    pub async fn status(&self) -> Result<Status> {
        let mut all = Status::default();
        for (group, cache) in self.caches.iter().enumerate() {
            let mut status = cache.status().await?;
            status.flags.iter_mut().for_each(|flag| flag.layer = self.plan.map().layer(group, flag.layer));
            all.rows = all.rows.saturating_add(status.rows);
            all.flags.append(&mut status.flags);
        }
        all.flags.sort_unstable();
        Ok(all)
    }

    /// Checks the invariants of pages and sequences, for tests. Returns the number of live
    /// sequences, or what does not hold.
    #[doc(hidden)]
    pub fn check_pages(&self) -> std::result::Result<u32, String> {
        let live = self.live.iter().flatten().count() as u32;
        for cache in &self.caches {
            let held = cache.check_pages()?;
            if held != live {
                return Err(format!("{live} sequences are live, but a group has {held}"));
            }
        }
        Ok(live)
    }
}
