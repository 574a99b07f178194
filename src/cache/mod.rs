//! The cache: packed pages, f16 rows, and who holds which.

mod pool;
mod sequence;
mod snapshot;
mod status;
mod step;
mod traffic;

pub use sequence::{Admission, Chunk, Sequence, Share};
#[cfg(feature = "store")]
pub(crate) use snapshot::check_snapshot;
pub use status::{Flag, Status};
pub use step::{Step, Words};
pub use traffic::{AlignmentReport, Certificate, Traffic};

use crate::error::{Error, Result};
use crate::format::{Alignment, Codec, Element, PAGE_TOKENS};
use crate::gpu::trace::{event, span};
use crate::gpu::{Gpu, Rows, enough, fold};
use crate::kernel::align_plan::AlignPlanParams;
use crate::kernel::align_scores::AlignScoresParams;
use crate::kernel::align_values::AlignValuesParams;
use crate::kernel::append::AppendParams;
use crate::kernel::append_reordered::AppendReorderedParams;
use crate::kernel::attend_merge::AttendMergeParams;
use crate::kernel::attend_prefill::AttendPrefillParams;
use crate::kernel::attend_split::AttendSplitParams;
use crate::kernel::dequantize::DequantizeParams;
use crate::kernel::elect::ElectParams;
use crate::kernel::position::PositionParams;
use crate::kernel::protect::ProtectParams;
use crate::kernel::query::QueryParams;
use crate::kernel::{
    align_plan, align_scores, align_values, append_reordered, attend_merge, attend_prefill, attend_split, dequantize, elect, packing_variant, position,
    protect, query,
};
use crate::plan::tables::{marks, turns};
use crate::plan::{Plan, Slab};
use futures::FutureExt;
use pool::{PageCopy, Pool};
use sequence::Growth;
use status::STATUS_WORDS;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use step::{Align, Dispatch, list_heads};

/// Bytes that a cache has allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Memory {
    /// Packed pages, over all layers.
    pub pages: u64,
    /// f16 rows of sinks and windows, over all layers.
    pub protected: u64,
    /// For RotateKV: key scales, which group every key channel is of, and which tokens are sinks; for Centred: means and weights. Over all
    /// layers.
    pub reordered: u64,
    /// Queries and partial results of one pass, and the table of RoPE's turns.
    pub scratch: u64,
}

/// The buffers of one layer.
#[derive(Debug)]
struct Layer {
    /// By slab: `[physical page, slab head, page]`.
    pages: Vec<wgpu::Buffer>,
    /// `[slot, kv_heads, sinks + ring, head_dim]` words.
    protected_rows: wgpu::Buffer,
    /// For RotateKV: `[physical page, row_groups, scale_vecs]`.
    key_scales: wgpu::Buffer,
    /// For RotateKV: the group of each key channel, a byte each (or for Centred, `[kv_heads, 3, head_dim]` means of keys, weights, means of
    /// values); then `[slot, 3 * sinks]` words of elected sinks.
    marks: wgpu::Buffer,
}

impl Layer {
    /// All of them, in the order of their fields.
    fn buffers(&self) -> impl Iterator<Item = &wgpu::Buffer> {
        self.pages.iter().chain([&self.protected_rows, &self.key_scales, &self.marks])
    }
}

/// What all layers share.
#[derive(Debug)]
struct Scratch {
    turns: wgpu::Buffer,
    query_rows: wgpu::Buffer,
    query_codes: wgpu::Buffer,
    partials: wgpu::Buffer,
    row_partials: wgpu::Buffer,
    /// For codecs with planes: the scores of a pass and their sums by item, and what to read.
    scores: wgpu::Buffer,
    plans: wgpu::Buffer,
    /// For Centred: terms of what the mean of the keys adds to the scores of a pass's pages.
    position_terms: wgpu::Buffer,
    /// In the place of logarithms that nobody asked for.
    no_log_sums: wgpu::Buffer,
}

/// Identities of caches, so that a handle of one is not taken by another.
static CACHES: AtomicU64 = AtomicU64::new(1);

/// Keys and values of many sequences, packed, on one device.
///
/// Every step of the model goes: [`Cache::step`] once, then for each layer [`Cache::append`] and [`Cache::attend`] on the
/// caller's encoder (and before them [`Cache::elect`], where the plan's sinks are massive activations). Nothing here submits, waits or maps, but [`Cache::status`] and
/// [`Cache::save`].
#[derive(Debug)]
pub struct Cache {
    id: u64,
    gpu: Gpu,
    plan: Plan,
    layers: Vec<Layer>,
    scratch: Scratch,
    status: wgpu::Buffer,
    pool: Pool,
    serial: u64,
}

impl Cache {
    /// Allocates everything that the plan says. In browsers, which answer later, a device that has no memory for it is found by
    /// [`Cache::request`] only.
    ///
    /// # Errors
    /// [`Error::Limit`] if the plan was made for a device that can do more than this one, [`Error::Mismatch`] if its codec
    /// needs a calibration and it has none, [`Error::Memory`], [`Error::Lost`].
    pub fn new(gpu: &Gpu, plan: Plan) -> Result<Self> {
        let (cache, answer) = Self::make(gpu, plan)?;
        answer.now_or_never().unwrap_or(Ok(()))?;
        Ok(cache)
    }

    /// [`Cache::new`] that waits for the device's answer.
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

    /// Makes its buffers.
    fn on(gpu: &Gpu, plan: Plan) -> Self {
        let device = gpu.device();
        let buffer = |label, bytes: u64| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes.max(16).next_multiple_of(16),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        // A buffer that there was no memory for cannot be written, which is no fault of its own: the refusal tells.
        let write = |buffer: &wgpu::Buffer, contents: &[u8]| {
            let _scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
            gpu.queue().write_buffer(buffer, 0, contents);
        };
        let layers = (0..plan.shape().layers)
            .map(|layer| {
                let words = buffer("wgkv marks", 4 * plan.marks_words());
                write(&words, bytemuck::cast_slice(&marks(&plan, layer)));
                Layer {
                    pages: plan.slabs(layer).iter().map(|slab| buffer("wgkv pages", plan.slab_bytes(slab))).collect(),
                    protected_rows: buffer("wgkv protected_rows", plan.protected_bytes()),
                    key_scales: buffer("wgkv key_scales", plan.key_scales_bytes(layer)),
                    marks: words,
                }
            })
            .collect();
        let turn_table = turns(&plan);
        let scratch = Scratch {
            turns: buffer("wgkv turns", 8 * turn_table.len() as u64),
            query_rows: buffer("wgkv query_rows", plan.query_rows_bytes()),
            query_codes: buffer("wgkv query_codes", plan.query_codes_bytes()),
            partials: buffer("wgkv partials", plan.partials_bytes()),
            row_partials: buffer("wgkv row_partials", plan.row_partials_bytes()),
            scores: buffer("wgkv scores", plan.scores_bytes()),
            plans: buffer("wgkv plans", plan.plans_bytes()),
            position_terms: buffer("wgkv position_terms", plan.position_terms_bytes()),
            no_log_sums: buffer("wgkv no_log_sums", 0),
        };
        write(&scratch.turns, bytemuck::cast_slice(&turn_table));
        let status = buffer("wgkv status", 4 * STATUS_WORDS);
        let id = CACHES.fetch_add(1, Ordering::Relaxed);
        Self { id, gpu: gpu.clone(), pool: Pool::new(id, &plan), plan, layers, scratch, status, serial: 0 }
    }

    /// Gives the memory back at once; work that is recorded but not submitted may not refer to the cache any more. Dropping it is
    /// enough natively, but leaves the buffers to the garbage collector in a browser.
    pub fn destroy(self) {
        for layer in &self.layers {
            layer.pages.iter().chain([&layer.protected_rows, &layer.key_scales, &layer.marks]).for_each(wgpu::Buffer::destroy);
        }
        let Scratch { turns, query_rows, query_codes, partials, row_partials, scores, plans, position_terms, no_log_sums } = &self.scratch;
        [turns, query_rows, query_codes, partials, row_partials, scores, plans, position_terms, no_log_sums, &self.status]
            .into_iter()
            .for_each(wgpu::Buffer::destroy);
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The device it lives on.
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

    /// Begins a sequence of which the tokens before `position` lie in other caches, on other devices or hosts: the part of a context that is
    /// split by tokens. It goes on with [`Cache::step_parts`] and is attended to with [`Cache::attend_part`]; its sinks are in the cache that
    /// has the first tokens. [`ContextParallel`](crate::ContextParallel) does all that for several devices of a host.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a position that is not a multiple of 128 and for sinks that are elected, [`Error::Length`] for one beyond the
    /// plan's [`max_tokens`](Plan::max_tokens), [`Error::Sequences`].
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

    /// Refuses sinks that are elected among all tokens of a prompt, which no cache of some of them can hold an election of.
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
        self.pool.end(sequence)?;
        event!(DEBUG, slot = sequence.slot(), pages_free = self.free_pages(), "freed");
        // A step made before may name the sequence: its tables point at pages that now belong to nobody.
        self.serial += 1;
        Ok(())
    }

    /// Begins a sequence that holds what another holds: it shares the other's full pages and has a copy, recorded on
    /// `encoder`, of the last page where that is not full, of the f16 rows and of the elected sinks. Both grow on their own.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Sequences`], [`Error::Pages`], [`Error::Lost`]; then nothing has changed.
    pub fn fork(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence) -> Result<Sequence> {
        let tokens = self.tokens(sequence)?;
        self.fork_prefix(encoder, sequence, tokens)
    }

    /// [`Cache::fork`] of a sequence's first `tokens` tokens, as if the other had been [cut back](Cache::truncate) to them: pages
    /// beyond are not shared, and none is needed where they end with a page.
    ///
    /// # Errors
    /// As [`Cache::fork`], [`Error::Range`] and [`Error::Dropped`].
    pub fn fork_prefix(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<Sequence> {
        let _span = span!("fork", slot = sequence.slot(), tokens);
        self.gpu.alive()?;
        let (forked, copy) = self.pool.fork(sequence, tokens)?;
        self.copy_page(encoder, copy);
        let plan = &self.plan;
        let [from, to] = [sequence.slot(), forked.slot()].map(u64::from);
        let rows = plan.protected_bytes() / u64::from(plan.sequences());
        let sinks = if plan.elects() { 12 * u64::from(plan.sinks()) } else { 0 };
        let first_sink = 4 * u64::from(plan.elected_at());
        for layer in &self.layers {
            self.copy_within(encoder, &layer.protected_rows, from * rows, to * rows, rows);
            self.copy_within(encoder, &layer.marks, first_sink + from * sinks, first_sink + to * sinks, sinks);
        }
        self.serial += 1;
        Ok(forked)
    }

    /// Cuts a sequence back to its first `tokens` tokens, as speculative decoding does with tokens it takes back. Pages and
    /// sinks beyond are given back. A page that other sequences hold too, and that ends inside, is copied on `encoder`.
    ///
    /// With a window, tokens of the pages stay packed even where they are recent now. The last step must have been appended
    /// in every layer before: what it was to pack cannot be had otherwise.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Range`], [`Error::Dropped`] for a length before what it [slid](Cache::slide) beyond,
    /// [`Error::Pages`] where a shared page must be copied and none is free, [`Error::Lost`]; then nothing has changed.
    pub fn truncate(&mut self, encoder: &mut wgpu::CommandEncoder, sequence: Sequence, tokens: u32) -> Result<()> {
        let _span = span!("truncate", slot = sequence.slot(), tokens);
        self.gpu.alive()?;
        let copy = self.pool.truncate(sequence, tokens)?;
        self.copy_page(encoder, copy);
        self.serial += 1;
        Ok(())
    }

    /// Lets a sequence go of old tokens, as attention over a sliding window or an endless stream does (StreamingLLM, 2309.17453): the pages
    /// that all its tokens but the last `keep` fill are given back. Its sinks stay, and so do the tokens in a page with others that are kept:
    /// up to 127 more than `keep`. All keep their positions, so a stream ends with the plan's [`max_tokens`](Plan::max_tokens). Answers the
    /// first token that is still held.
    ///
    /// Under [`Plan::with_sliding_window`] of W tokens no query misses a token if `keep` is W, or more by the tokens that may be cut off again.
    /// Without it, queries see all that is held. `F16` keeps no sinks.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn slide(&mut self, sequence: Sequence, keep: u32) -> Result<u32> {
        if self.pool.slide(sequence, keep)? > 0 {
            event!(DEBUG, slot = sequence.slot(), pages_free = self.free_pages(), "slid");
            // A step made before may name the pages.
            self.serial += 1;
        }
        Ok(self.pool.find(sequence)?.at.first())
    }

    /// Copies what a page holds in all layers.
    fn copy_page(&self, encoder: &mut wgpu::CommandEncoder, copy: PageCopy) {
        let Some((from, to)) = copy else { return };
        let [from, to] = [from, to].map(u64::from);
        for (layer, n) in self.layers.iter().zip(0..) {
            let scales = self.plan.layout_of(n).row_scale_bytes();
            for (slab, pages) in self.plan.slabs(n).iter().zip(&layer.pages) {
                let bytes = slab.layout().bytes() * u64::from(slab.count());
                self.copy_within(encoder, pages, from * bytes, to * bytes, bytes);
            }
            self.copy_within(encoder, &layer.key_scales, from * scales, to * scales, scales);
        }
    }

    /// Copies bytes inside a buffer, by way of another, since WebGPU refuses a copy from a buffer to itself.
    fn copy_within(&self, encoder: &mut wgpu::CommandEncoder, buffer: &wgpu::Buffer, from: u64, to: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let between = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgkv copy"),
            size: bytes,
            usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        encoder.copy_buffer_to_buffer(buffer, from, &between, 0, bytes);
        encoder.copy_buffer_to_buffer(&between, 0, buffer, to, bytes);
    }

    /// How many tokens a sequence holds.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn tokens(&self, sequence: Sequence) -> Result<u32> {
        Ok(self.pool.find(sequence)?.at.tokens)
    }

    /// Bytes allocated for keys and values: pages, f16 rows, scales.
    pub fn bytes(&self) -> u64 {
        let memory = self.memory();
        memory.pages + memory.protected + memory.reordered
    }

    /// Bytes that the tokens of all live sequences need: codes, scales, zeros, and f16 rows in use. Pages that sequences share
    /// count for each.
    pub fn bytes_used(&self) -> u64 {
        let page = self.plan.page_bytes();
        self.pool.sequences().map(|live| self.plan.bits(u64::from(live.at.tokens)).div_ceil(8) - page * u64::from(live.at.dropped)).sum()
    }

    /// Pages that no sequence holds.
    pub fn free_pages(&self) -> u32 {
        self.pool.free_pages()
    }

    /// Bytes allocated, by what for.
    pub fn memory(&self) -> Memory {
        Memory {
            pages: self.layers.iter().flat_map(|l| &l.pages).map(wgpu::Buffer::size).sum(),
            // A buffer of nothing has a few bytes, which are not the cache's.
            protected: if self.plan.protected_bytes() > 0 { self.layers.iter().map(|l| l.protected_rows.size()).sum() } else { 0 },
            reordered: match self.plan.format().codec() {
                Codec::RotateKv => self.layers.iter().map(|l| l.key_scales.size() + l.marks.size()).sum(),
                Codec::Centred => self.layers.iter().map(|l| l.marks.size()).sum(),
                _ => 0,
            },
            scratch: [&self.scratch.turns, &self.scratch.query_rows, &self.scratch.query_codes, &self.scratch.partials, &self.scratch.row_partials]
                .map(wgpu::Buffer::size)
                .iter()
                .sum::<u64>()
                + if self.plan.aligns() { self.scratch.scores.size() + self.scratch.plans.size() } else { 0 }
                + if self.plan.position_quads() > 0 { self.scratch.position_terms.size() } else { 0 },
        }
    }

    /// What a [step](Cache::step) of these chunks would take of the cache's pages, and what is there. Nothing changes. A step made
    /// next succeeds if [it fits](Admission::fits), and fails with [`Error::Pages`] of the same numbers if not.
    ///
    /// # Errors
    /// Those of [`Cache::step`] that freeing other sequences would not help: all but [`Error::Pages`].
    pub fn can_append(&self, chunks: &[Chunk]) -> Result<Admission> {
        self.gpu.alive()?;
        self.pool.admit(&self.plan, chunks)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Grows sequences by new tokens: takes the pages they need and makes the tables that all layers read. The new tokens
    /// count from here on, so every layer must be given their keys and values by [`Cache::append`], with this step, before
    /// the next step is made or the sequence is cut back.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::RepeatedSequence`], [`Error::EmptyChunk`], [`Error::Length`],
    /// [`Error::Pages`], [`Error::Lost`]. After an error no sequence has grown.
    pub fn step(&mut self, chunks: &[Chunk]) -> Result<Step> {
        let _span = span!("step", chunks = chunks.len());
        self.gpu.alive()?;
        let growths = self.pool.grow(&self.plan, chunks)?;
        self.serial += 1;
        let step = self.step_of(&growths);
        event!(DEBUG, tokens = step.rows, pages = growths.iter().map(Growth::pages_taken).sum::<u32>(), pages_free = self.free_pages(), "grown");
        Ok(step)
    }

    /// [`Cache::can_append`] of a step of parts.
    ///
    /// # Errors
    /// Those of [`Cache::step_parts`] but [`Error::Pages`].
    pub fn can_append_parts(&self, parts: &[Share]) -> Result<Admission> {
        self.gpu.alive()?;
        self.expect_split()?;
        self.pool.admit_parts(&self.plan, parts)
    }

    /// [`Cache::step`] where other caches hold tokens of the sequences, too: queries attend, from positions of their own, to what lies here,
    /// and only some of their tokens are appended here, if any. Rows of keys and values are as many as queries; those of tokens that are not
    /// appended here are not read.
    ///
    /// # Errors
    /// As [`Cache::step`], and [`Error::Share`]. After an error no sequence has grown.
    pub fn step_parts(&mut self, parts: &[Share]) -> Result<Step> {
        let _span = span!("step", chunks = parts.len());
        self.gpu.alive()?;
        self.expect_split()?;
        let growths = self.pool.grow_parts(&self.plan, parts)?;
        self.serial += 1;
        Ok(self.step_of(&growths))
    }

    fn step_of(&self, growths: &[Growth]) -> Step {
        Step::new(&self.gpu, &self.plan, growths, self.id, self.serial)
    }

    /// A step that attends once more from positions whose tokens a sequence holds already, each range of two or more. It appends
    /// nothing, and is the latest step's equal until the next is made. The ranges must lie in the pages.
    pub(crate) fn revisit(&self, sequence: Sequence, ranges: &[Range<u32>]) -> Result<Step> {
        self.gpu.alive()?;
        let live = self.pool.find(sequence)?;
        let mut growths = Vec::with_capacity(ranges.len());
        for range in ranges {
            if range.end > live.at.packed || range.start + 1 >= range.end {
                return Err(Error::Range { first: range.start, end: range.end, have: live.at.packed });
            }
            live.expect_held(range.start)?;
            growths.push(Growth { old_tokens: range.start, new_tokens: range.end, rows: range.end - range.start, ..live.still(sequence.slot()) });
        }
        Ok(self.step_of(&growths))
    }

    fn check(&self, step: &Step, layer: u32) -> Result<&Layer> {
        self.gpu.alive()?;
        if step.cache != self.id {
            return Err(Error::Stale { reason: "another cache made it" });
        }
        if step.serial != self.serial {
            return Err(Error::Stale { reason: "a later step was made, or a sequence was freed, forked, cut back or slid" });
        }
        self.layers.get(layer as usize).ok_or(Error::Layer { had: layer, layers: self.plan.shape().layers })
    }

    pub(crate) fn check_step(&self, step: &Step, layer: u32) -> Result<()> {
        self.check(step, layer).map(|_| ())
    }

    /// Records the election of one layer's sinks from the residual stream that enters the layer, before its norm (for the first
    /// layer: the embeddings): `[rows, width]` in f32 or f16, the chunks of the step one after another. RotateKV (2501.16383)
    /// section 4.3.
    ///
    /// To be called before [`Cache::append`] where the plan's sinks are [`Sinks::Massive`](crate::Sinks::Massive) and a chunk has
    /// more than one token. A chunk of one token decodes: nothing is elected, and without other chunks nothing is recorded.
    ///
    /// Any chunk of several tokens counts as a prompt's, also one of drafted tokens that may be taken back.
    ///
    /// A prompt that comes in several chunks keeps a list of the largest magnitudes so far. A token of a later chunk that gets
    /// on it gets a row while one is free; tokens of earlier chunks are packed by then; none loses its row.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Lost`], [`Error::Layer`], [`Error::Mismatch`] for a width of 0 or an odd one, [`Error::Rows`], [`Error::Offset`],
    /// [`Error::Usage`], [`Error::Limit`] for more rows than one binding holds; then nothing was recorded.
    pub fn elect(&self, encoder: &mut wgpu::CommandEncoder, step: &Step, layer: u32, residual: Rows<'_>, width: u32) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv elect"), timestamp_writes: None });
        self.elect_in(&mut pass, step, layer, residual, width)
    }

    /// [`Cache::elect`] within a compute pass of the caller's.
    ///
    /// # Errors
    /// As [`Cache::elect`].
    pub fn elect_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Step, layer: u32, residual: Rows<'_>, width: u32) -> Result<()> {
        let _span = span!("elect", layer, rows = step.rows);
        let buffers = self.check(step, layer)?;
        let Some(election) = &step.election else {
            return Ok(());
        };
        if width == 0 || !width.is_multiple_of(2) {
            return Err(Error::argument("width", "even and not 0", width));
        }
        let rows = residual.binding("residual", u64::from(step.rows) * u64::from(width), self.gpu.capability())?;
        for (merge, (items_at, items)) in [(false, election.blocks), (true, election.chunks)] {
            let params = self.gpu.uniform(bytemuck::bytes_of(&ElectParams { items_at, items, width, pad: 0 }));
            let [x, y] = fold(items, self.gpu.capability().workgroups);
            self.gpu.pipeline(&elect::variant(&self.plan, residual.element, merge)).dispatch(
                &self.gpu,
                pass,
                &[
                    params.as_entire_binding(),
                    step.tables.as_entire_binding(),
                    rows.clone(),
                    election.candidates.as_entire_binding(),
                    buffers.marks.as_entire_binding(),
                ],
                [x, y, 1],
            );
        }
        if let Some(held) = election.held.get(layer as usize) {
            held.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Records the new tokens' keys and values of one layer: `[rows, kv_heads, head_dim]` each, keys before RoPE, the
    /// chunks of the step one after another. Both may be f32 or f16, alike.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Lost`], [`Error::Layer`], [`Error::Mismatch`], [`Error::Rows`], [`Error::Offset`], [`Error::Usage`],
    /// [`Error::Limit`] for more rows than one binding holds, and [`Error::Unelected`] where [`Cache::elect`] had to come first; then nothing was recorded.
    pub fn append(&self, encoder: &mut wgpu::CommandEncoder, step: &Step, layer: u32, keys: Rows<'_>, values: Rows<'_>) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv append"), timestamp_writes: None });
        self.append_in(&mut pass, step, layer, keys, values)
    }

    /// [`Cache::append`] within a compute pass of the caller's: cheaper where many dispatches follow each other.
    ///
    /// # Errors
    /// As [`Cache::append`].
    pub fn append_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Step, layer: u32, keys: Rows<'_>, values: Rows<'_>) -> Result<()> {
        let _span = span!("append", layer, rows = step.rows);
        let buffers = self.check(step, layer)?;
        let shape = self.plan.shape();
        let elements = u64::from(step.rows) * u64::from(shape.kv_heads * shape.head_dim);
        if keys.element != values.element {
            return Err(Error::argument("values", keys.element.name(), values.element.name()));
        }
        let capability = self.gpu.capability();
        let key_rows = keys.binding("keys", elements, capability)?;
        let value_rows = values.binding("values", elements, capability)?;
        let most = self.gpu.capability().workgroups;
        let held = step.election.as_ref().and_then(|election| election.held.get(layer as usize));
        if held.is_some_and(|held| !held.load(Ordering::Relaxed)) {
            return Err(Error::Unelected { layer, sinks: self.plan.protection().sinks.to_string() });
        }

        // Pages first: they take what leaves the window, before its rows are overwritten.
        let slabs = self.plan.slabs(layer);
        for ((slab, dispatch), pages) in slabs.iter().zip(&step.append[layer as usize]).zip(&buffers.pages) {
            if dispatch.items > 0 {
                let [x, y] = fold(dispatch.items, most);
                self.gpu.pipeline(&packing_variant(&self.plan, slab, keys.element)).dispatch(
                    &self.gpu,
                    pass,
                    &[
                        params::<AppendParams>(step, dispatch.params),
                        step.tables.as_entire_binding(),
                        self.scratch.turns.as_entire_binding(),
                        key_rows.clone(),
                        value_rows.clone(),
                        buffers.protected_rows.as_entire_binding(),
                        buffers.marks.as_entire_binding(),
                        pages.as_entire_binding(),
                        self.status.as_entire_binding(),
                    ],
                    [x, y, slab.count()],
                );
            }
        }
        let reordered = step.append_reordered.get(layer as usize).map_or(&[][..], Vec::as_slice);
        for ((slab, dispatch), pages) in slabs.iter().zip(reordered).zip(&buffers.pages) {
            if dispatch.items > 0 {
                let [x, y] = fold(dispatch.items, most);
                self.gpu.pipeline(&append_reordered::variant(&self.plan, slab, keys.element)).dispatch(
                    &self.gpu,
                    pass,
                    &[
                        params::<AppendReorderedParams>(step, dispatch.params),
                        step.tables.as_entire_binding(),
                        self.scratch.turns.as_entire_binding(),
                        key_rows.clone(),
                        buffers.protected_rows.as_entire_binding(),
                        buffers.marks.as_entire_binding(),
                        pages.as_entire_binding(),
                        buffers.key_scales.as_entire_binding(),
                        self.status.as_entire_binding(),
                    ],
                    [x, y, 1],
                );
            }
        }
        let dispatch = step.protect[layer as usize];
        if dispatch.items > 0 {
            let [x, y] = fold(dispatch.items, most);
            self.gpu.pipeline(&protect::variant(&self.plan, keys.element)).dispatch(
                &self.gpu,
                pass,
                &[
                    params::<ProtectParams>(step, dispatch.params),
                    step.tables.as_entire_binding(),
                    self.scratch.turns.as_entire_binding(),
                    key_rows,
                    value_rows,
                    buffers.marks.as_entire_binding(),
                    buffers.protected_rows.as_entire_binding(),
                    self.status.as_entire_binding(),
                ],
                [x, y, shape.kv_heads],
            );
        }
        Ok(())
    }

    /// Records causal attention of the step's tokens over everything their sequences hold in one layer, themselves
    /// included: `queries` and `output` are `[rows, query_heads, head_dim]`, queries before RoPE, scores times
    /// `1 / sqrt(head_dim)`. Both may be f32 or f16, alike.
    ///
    /// # Errors
    /// As [`Cache::append`].
    pub fn attend(&self, encoder: &mut wgpu::CommandEncoder, step: &Step, layer: u32, queries: Rows<'_>, output: Rows<'_>) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv attend"), timestamp_writes: None });
        self.attend_in(&mut pass, step, layer, queries, output)
    }

    /// [`Cache::attend`] within a compute pass of the caller's: cheaper where many dispatches follow each other.
    ///
    /// # Errors
    /// As [`Cache::attend`].
    pub fn attend_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Step, layer: u32, queries: Rows<'_>, output: Rows<'_>) -> Result<()> {
        self.attend_to(pass, step, layer, queries, output, None)
    }

    /// [`Cache::attend`] that also writes how much each output weighs beside those of other caches, over other tokens: the logarithm of the
    /// sum of `exp(score)`, in f32, `[rows, query_heads]`; -1e30 where a query saw no token, whose output is 0. Outputs over all tokens are the
    /// mean of the parts' by `exp` of that. (Of `Centred` it lacks what is the same for all tokens of a query, so all parts must be of one
    /// plan.)
    ///
    /// # Errors
    /// As [`Cache::append`].
    pub fn attend_part(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        step: &Step,
        layer: u32,
        queries: Rows<'_>,
        output: Rows<'_>,
        log_sums: Rows<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv attend"), timestamp_writes: None });
        self.attend_to(&mut pass, step, layer, queries, output, Some(log_sums))
    }

    fn attend_to(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        step: &Step,
        layer: u32,
        queries: Rows<'_>,
        output: Rows<'_>,
        log_sums: Option<Rows<'_>>,
    ) -> Result<()> {
        let _span = span!("attend", layer, rows = step.rows);
        let buffers = self.check(step, layer)?;
        let plan = &self.plan;
        let shape = plan.shape();
        let elements = u64::from(step.rows) * u64::from(shape.query_heads * shape.head_dim);
        if queries.element != output.element {
            return Err(Error::argument("output", queries.element.name(), output.element.name()));
        }
        let capability = self.gpu.capability();
        let query_rows = queries.binding("queries", elements, capability)?;
        let output_rows = output.binding("output", elements, capability)?;
        let scratch = &self.scratch;
        let log_sum_rows = match log_sums {
            Some(rows) if rows.element != Element::F32 => {
                return Err(Error::argument("log_sums", "f32", rows.element.name()));
            }
            Some(rows) => rows.binding("log_sums", u64::from(step.rows) * u64::from(shape.query_heads), capability)?,
            // Bound and not written.
            None => scratch.no_log_sums.as_entire_binding(),
        };
        let (slabs, arrangement) = (plan.slabs(layer), plan.arrangement(layer));
        for pass_of_rows in &step.passes {
            let Some(part) = pass_of_rows.arranged.get(arrangement) else {
                continue;
            };
            self.gpu.pipeline(&query::variant(plan, queries.element)).dispatch(
                &self.gpu,
                pass,
                &[
                    params::<QueryParams>(step, part.query),
                    step.tables.as_entire_binding(),
                    scratch.turns.as_entire_binding(),
                    query_rows.clone(),
                    buffers.marks.as_entire_binding(),
                    scratch.query_rows.as_entire_binding(),
                    scratch.query_codes.as_entire_binding(),
                ],
                [pass_of_rows.rows, shape.query_heads, 1],
            );
            // It reads nothing that `query` writes, and so need not wait for it, unless the compute pass has used the terms before.
            if part.position.items > 0 {
                self.gpu.pipeline(&position::variant(plan, queries.element)).dispatch(
                    &self.gpu,
                    pass,
                    &[
                        params::<PositionParams>(step, part.position.params),
                        step.tables.as_entire_binding(),
                        scratch.turns.as_entire_binding(),
                        query_rows.clone(),
                        buffers.marks.as_entire_binding(),
                        scratch.position_terms.as_entire_binding(),
                    ],
                    [part.position.items, plan.readings() as u32, 1],
                );
            }
            for ((slab, dispatch), pages) in slabs.iter().zip(&part.split).zip(&buffers.pages) {
                if dispatch.items > 0 {
                    self.gpu.pipeline(&attend_split::variant(plan, slab)).dispatch(
                        &self.gpu,
                        pass,
                        &[
                            params::<AttendSplitParams>(step, dispatch.params),
                            step.tables.as_entire_binding(),
                            scratch.turns.as_entire_binding(),
                            scratch.query_codes.as_entire_binding(),
                            buffers.marks.as_entire_binding(),
                            buffers.key_scales.as_entire_binding(),
                            pages.as_entire_binding(),
                            scratch.position_terms.as_entire_binding(),
                            scratch.partials.as_entire_binding(),
                        ],
                        [dispatch.items, slab.count() / plan.group_heads() * plan.blocks(), 1],
                    );
                }
            }
            for ((slab, dispatch), pages) in slabs.iter().zip(&part.prefill).zip(&buffers.pages) {
                if dispatch.items > 0 {
                    self.gpu.pipeline(&attend_prefill::variant(plan, slab)).dispatch(
                        &self.gpu,
                        pass,
                        &[
                            params::<AttendPrefillParams>(step, dispatch.params),
                            step.tables.as_entire_binding(),
                            scratch.query_rows.as_entire_binding(),
                            scratch.turns.as_entire_binding(),
                            buffers.marks.as_entire_binding(),
                            buffers.key_scales.as_entire_binding(),
                            pages.as_entire_binding(),
                            buffers.protected_rows.as_entire_binding(),
                            scratch.row_partials.as_entire_binding(),
                        ],
                        [dispatch.items, slab.count(), 1],
                    );
                }
            }
            // Not before the f16 tokens were attended to: their weights count in the softmax.
            self.align_in(pass, step, buffers, slabs, &part.align);
            self.gpu.pipeline(&attend_merge::variant(plan, output.element, pass_of_rows.merge_parts, log_sums.is_some())).dispatch(
                &self.gpu,
                pass,
                &[
                    params::<AttendMergeParams>(step, pass_of_rows.merge),
                    step.tables.as_entire_binding(),
                    scratch.partials.as_entire_binding(),
                    scratch.row_partials.as_entire_binding(),
                    buffers.marks.as_entire_binding(),
                    output_rows.clone(),
                    log_sum_rows.clone(),
                ],
                [pass_of_rows.rows, shape.query_heads, 1],
            );
        }
        Ok(())
    }

    /// Decoding from planes: what to read of the keys, their scores, what to read of the values, their weighted sums.
    fn align_in(&self, pass: &mut wgpu::ComputePass<'_>, step: &Step, buffers: &Layer, slabs: &[Slab], align: &[Align]) {
        let (plan, scratch) = (&self.plan, &self.scratch);
        for ((slab, align), pages) in slabs.iter().zip(align).zip(&buffers.pages) {
            let readings = slab.count() * plan.blocks();
            let choose = |pass: &mut wgpu::ComputePass<'_>, dispatch: Dispatch, keys: bool| {
                self.gpu.pipeline(&align_plan::variant(plan, slab, keys)).dispatch(
                    &self.gpu,
                    pass,
                    &[
                        params::<AlignPlanParams>(step, dispatch.params),
                        step.tables.as_entire_binding(),
                        scratch.query_codes.as_entire_binding(),
                        scratch.scores.as_entire_binding(),
                        scratch.row_partials.as_entire_binding(),
                        pages.as_entire_binding(),
                        scratch.plans.as_entire_binding(),
                    ],
                    [dispatch.items, readings, 1],
                );
            };
            choose(pass, align.keys, true);
            self.gpu.pipeline(&align_scores::variant(plan, slab)).dispatch(
                &self.gpu,
                pass,
                &[
                    params::<AlignScoresParams>(step, align.scores.params),
                    step.tables.as_entire_binding(),
                    scratch.turns.as_entire_binding(),
                    scratch.query_codes.as_entire_binding(),
                    scratch.plans.as_entire_binding(),
                    pages.as_entire_binding(),
                    scratch.position_terms.as_entire_binding(),
                    scratch.scores.as_entire_binding(),
                ],
                [align.scores.items, readings, 1],
            );
            choose(pass, align.values, false);
            self.gpu.pipeline(&align_values::variant(plan, slab)).dispatch(
                &self.gpu,
                pass,
                &[
                    params::<AlignValuesParams>(step, align.rows.params),
                    step.tables.as_entire_binding(),
                    scratch.scores.as_entire_binding(),
                    scratch.plans.as_entire_binding(),
                    pages.as_entire_binding(),
                    scratch.partials.as_entire_binding(),
                ],
                [align.rows.items, readings, 1],
            );
        }
    }

    /// Chooses the planes that decoding reads in another way from the next step on, where the plan has planes.
    ///
    /// # Errors
    /// As [`Plan::with_alignment`].
    pub fn align(&mut self, alignment: Alignment) -> Result<()> {
        self.plan.align(alignment)
    }

    /// Records the restoring of cached tokens of one layer to f32 rows `[tokens, kv_heads, head_dim]`: keys as they were
    /// after RoPE, values as they came, both with the error of their codes.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::Range`], [`Error::Dropped`], [`Error::Layer`], [`Error::Mismatch`], [`Error::Rows`],
    /// [`Error::Offset`], [`Error::Usage`], [`Error::Lost`].
    pub fn dequantize(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sequence: Sequence,
        layer: u32,
        tokens: Range<u32>,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) -> Result<()> {
        let _span = span!("dequantize", layer, slot = sequence.slot());
        self.gpu.alive()?;
        let live = self.pool.find(sequence)?;
        let shape = self.plan.shape();
        if tokens.start > tokens.end || tokens.end > live.at.tokens {
            return Err(Error::Range { first: tokens.start, end: tokens.end, have: live.at.tokens });
        }
        live.expect_held(tokens.start)?;
        let buffers = self.layers.get(layer as usize).ok_or(Error::Layer { had: layer, layers: shape.layers })?;
        for (name, rows) in [("keys", keys), ("values", values)] {
            if rows.element != Element::F32 {
                return Err(Error::argument(name, "f32", rows.element.name()));
            }
        }
        let count = tokens.end - tokens.start;
        if count == 0 {
            return Ok(());
        }
        let elements = u64::from(count) * u64::from(shape.kv_heads * shape.head_dim);
        let capability = self.gpu.capability();
        let key_rows = keys.binding("keys", elements, capability)?;
        let value_rows = values.binding("values", elements, capability)?;
        let mut words = Vec::new();
        let chunk = live.still(sequence.slot()).record(&mut words, 0);
        let slabs = self.plan.slabs(layer);
        let heads_at: Vec<u32> = slabs.iter().map(|slab| list_heads(&self.plan, slab, &mut words)).collect();
        let table = self.gpu.tables(&words);
        let [x, y] = fold(count, self.gpu.capability().workgroups);
        let pass = &mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("wgkv dequantize"), timestamp_writes: None });
        for ((slab, heads_at), pages) in slabs.iter().zip(heads_at).zip(&buffers.pages) {
            let p = DequantizeParams {
                chunk,
                first: tokens.start,
                tokens: count,
                slab_heads: slab.count(),
                heads_at,
                kv_heads: shape.kv_heads,
                limit: live.at.limit,
                pad: 0,
            };
            self.gpu.pipeline(&dequantize::variant(&self.plan, slab)).dispatch(
                &self.gpu,
                pass,
                &[
                    self.gpu.uniform(bytemuck::bytes_of(&p)).as_entire_binding(),
                    table.as_entire_binding(),
                    self.scratch.turns.as_entire_binding(),
                    buffers.marks.as_entire_binding(),
                    buffers.key_scales.as_entire_binding(),
                    pages.as_entire_binding(),
                    buffers.protected_rows.as_entire_binding(),
                    key_rows.clone(),
                    value_rows.clone(),
                ],
                [x, y, slab.count()],
            );
        }
        Ok(())
    }

    /// Waits for all submitted work and tells which keys and values had numbers that were not finite since the last call.
    /// Those were stored as zeros, so that no other token's codes or output is harmed.
    ///
    /// # Errors
    /// [`Error::Readback`], [`Error::Lost`].
    pub async fn status(&self) -> Result<Status> {
        let words = self.gpu.read(&self.status, 0, STATUS_WORDS).await?;
        self.gpu.queue().write_buffer(&self.status, 0, &[0; 16]);
        Ok(Status::from_words(&words))
    }

    /// The buffers of one layer, for snapshots and for comparing kernels with their [twins](crate::kernel::reference): the pages by
    /// slab, and the f16 rows. All have usage `COPY_SRC` and `COPY_DST`.
    ///
    /// # Errors
    /// [`Error::Layer`].
    pub fn layer_buffers(&self, layer: u32) -> Result<(&[wgpu::Buffer], &wgpu::Buffer)> {
        let buffers = self.layers.get(layer as usize).ok_or(Error::Layer { had: layer, layers: self.plan.shape().layers })?;
        Ok((&buffers.pages, &buffers.protected_rows))
    }

    /// Checks what must hold of pages and sequences at any time; answers what does not, or how many sequences are live. For tests.
    #[doc(hidden)]
    pub fn check_pages(&self) -> std::result::Result<u32, String> {
        self.pool.check(&self.plan)
    }

    /// A layer's key scales and marks, for comparing kernels with their [twins](crate::kernel::reference).
    #[doc(hidden)]
    pub fn reordered_buffers(&self, layer: u32) -> Result<[&wgpu::Buffer; 2]> {
        let buffers = self.layers.get(layer as usize).ok_or(Error::Layer { had: layer, layers: self.plan.shape().layers })?;
        Ok([&buffers.key_scales, &buffers.marks])
    }

    /// The terms of positions, for comparing kernels with their [twins](crate::kernel::reference).
    #[doc(hidden)]
    pub fn position_terms(&self) -> &wgpu::Buffer {
        &self.scratch.position_terms
    }

    /// What the kernels of planes hand each other: scores, plans. For comparing kernels with their [twins](crate::kernel::reference).
    #[doc(hidden)]
    pub fn align_buffers(&self) -> [&wgpu::Buffer; 2] {
        [&self.scratch.scores, &self.scratch.plans]
    }

    /// The buffers that the attention kernels hand each other: query_rows, query_codes, partials, row_partials, of the last
    /// pass recorded. For comparing kernels with their [twins](crate::kernel::reference).
    #[doc(hidden)]
    pub fn scratch_buffers(&self) -> [&wgpu::Buffer; 4] {
        [&self.scratch.query_rows, &self.scratch.query_codes, &self.scratch.partials, &self.scratch.row_partials]
    }
}

/// The binding of one kernel's parameters.
fn params<T>(step: &Step, offset: u64) -> wgpu::BindingResource<'_> {
    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &step.params, offset, size: NonZeroU64::new(size_of::<T>() as u64) })
}
