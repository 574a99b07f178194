//! One cache over several devices of a host: each holds some of the KV heads.

use crate::cache::{Admission, Cache, Chunk, Sequence, Step, step_together};
use crate::error::{Error, Result};
use crate::format::Shape;
use crate::gpu::{Gpu, Rows};
use crate::plan::Plan;
use crate::serve::devices::Devices;
use std::ops::Range;

/// A cache whose KV heads are spread over devices, each with the query heads that share them. Heads
/// do not depend on each other, so devices exchange nothing: each gets its heads' keys, values and
/// queries and makes its heads' outputs.
///
/// All devices do the same at the same time. What is recorded goes to an encoder for each of them,
/// in the order of the devices.
///
/// ```no_run
/// use wgkv::{Bits, Capacity, Codec, Format, Gpu, Plan, Protection, Result, Rope, Rows, Shape};
/// use wgkv::devices::HeadParallel;
///
/// /// `keys` and `values` are `[tokens, 8, 128]` before RoPE, `queries` and the result `[tokens, 32, 128]`.
/// async fn attend(gpus: &[Gpu], tokens: u32, keys: &[f32], values: &[f32], queries: &[f32]) -> Result<Vec<f32>> {
///     let shape = Shape { layers: 1, query_heads: 32, kv_heads: 8, head_dim: 128, rope: Rope::new(500_000.0, 128) };
///     let format = Format::new(Codec::Hadamard, Bits::Four, Bits::Two, 64);
///     let plan = Plan::builder(shape, format).capacity(Capacity::tokens(1, 4096)).build(gpus[0].capability())?;
///     let mut cache = HeadParallel::new(gpus, &plan)?;
///     let sequence = cache.begin()?;
///     let step = cache.step(&[(&sequence, tokens)])?;
///     let (keys, values) = (cache.scatter_keys(keys)?, cache.scatter_keys(values)?);
///     let (queries, outputs) = (cache.scatter_queries(queries)?, cache.outputs(tokens));
///     let rows = [&keys, &values, &queries, &outputs].map(|buffers| buffers.iter().map(Rows::f32).collect::<Vec<_>>());
///     let mut encoders = cache.encoders();
///     cache.append(&mut encoders, &step, 0, &rows[0], &rows[1])?;
///     cache.attend(&mut encoders, &step, 0, &rows[2], &rows[3])?;
///     cache.submit(encoders)?;
///     cache.gather(&outputs, tokens).await
/// }
/// ```
#[derive(Debug)]
pub struct HeadParallel {
    shape: Shape,
    devices: Devices,
    heads: Vec<Range<u32>>,
}

/// A sequence of a [`HeadParallel`] cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeadSequence(Vec<Sequence>);

impl HeadSequence {
    /// Returns the sequence of each shard's cache.
    pub fn sequences(&self) -> &[Sequence] {
        &self.0
    }
}

/// A [`Step`] of every shard.
#[derive(Debug)]
#[must_use]
pub struct HeadStep(Vec<Step>);

impl HeadStep {
    /// Returns the step of each shard's cache.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Takes your word that nothing that was recorded of this step is submitted, as
    /// [`Step::unrecord`].
    pub fn unrecord(&self) {
        self.0.iter().for_each(Step::unrecord);
    }

    /// Returns the steps, of which every device has one.
    fn all(&self) -> impl Iterator<Item = Option<&Step>> + Clone {
        self.0.iter().map(Some)
    }
}

impl HeadParallel {
    /// Allocates a cache on each device, with its share of the plan's KV heads: as equal as can be,
    /// heads that are rotated together on one device ([`Plan::shard`]). A device may be named
    /// several times.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for no device, and for more devices than there are heads to go round;
    /// those of [`Plan::shard`] and [`Cache::new`].
    pub fn new(gpus: &[Gpu], plan: &Plan) -> Result<Self> {
        let (count, together) = (gpus.len() as u32, plan.group_heads());
        let bunches = plan.shape().kv_heads / together;
        if count == 0 || count > bunches {
            let wanted = format!("1 to {bunches}: {} KV heads, {together} together", plan.shape().kv_heads);
            return Err(Error::argument("devices", wanted, count));
        }
        let first = |n: u32| bunches * n / count * together;
        let heads: Vec<Range<u32>> = (0..count).map(|n| first(n)..first(n + 1)).collect();
        let shard = |(gpu, heads): (&Gpu, &Range<u32>)| Cache::new(gpu, plan.shard(heads.clone(), gpu.capability())?);
        let caches = gpus.iter().zip(&heads).map(shard).collect::<Result<_>>()?;
        Ok(Self { shape: plan.shape().clone(), devices: Devices { caches, label: "wgkv shard" }, heads })
    }

    /// Compiles the pipelines of all shards.
    ///
    /// # Errors
    /// Those of [`Gpu::prepare`].
    pub async fn prepare(&self) -> Result<()> {
        self.devices.prepare().await
    }

    /// Returns the cache of each device, for calls that change no sequence.
    pub fn shards(&self) -> &[Cache] {
        &self.devices.caches
    }

    /// Returns the KV heads of each device.
    pub fn heads(&self) -> &[Range<u32>] {
        &self.heads
    }

    /// Begins a sequence of no tokens.
    ///
    /// # Errors
    /// Those of [`Cache::begin`].
    pub fn begin(&mut self) -> Result<HeadSequence> {
        self.devices.begin(|_, shard| shard.begin()).map(HeadSequence)
    }

    /// Ends a sequence and gives back its pages.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn end(&mut self, sequence: &HeadSequence) -> Result<()> {
        self.devices.end(&sequence.0)
    }

    /// Begins a sequence that holds what another holds, as [`Cache::fork`].
    ///
    /// # Errors
    /// Those of [`Cache::fork`], and [`Error::Mismatch`] without an encoder for each device; then
    /// nothing has changed.
    pub fn fork(&mut self, encoders: &mut [wgpu::CommandEncoder], sequence: &HeadSequence) -> Result<HeadSequence> {
        self.devices.fork(encoders, &sequence.0).map(HeadSequence)
    }

    /// Cuts a sequence back to its first `tokens` tokens, as [`Cache::truncate`].
    ///
    /// # Errors
    /// Those of [`Cache::truncate`], and [`Error::Mismatch`] without an encoder for each device;
    /// then nothing has changed.
    pub fn truncate(&mut self, encoders: &mut [wgpu::CommandEncoder], sequence: &HeadSequence, tokens: u32) -> Result<()> {
        self.devices.expect("encoders", encoders.len())?;
        self.shards().iter().zip(&sequence.0).try_for_each(|(shard, sequence)| shard.expect_cut(*sequence, tokens))?;
        let mut shards = self.devices.caches.iter_mut().zip(encoders).zip(&sequence.0);
        shards.try_for_each(|((shard, encoder), sequence)| shard.truncate(encoder, *sequence, tokens))
    }

    /// Drops a sequence's old tokens, as [`Cache::slide`].
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn slide(&mut self, sequence: &HeadSequence, keep: u32) -> Result<u32> {
        let mut first = 0;
        for (shard, sequence) in self.devices.caches.iter_mut().zip(&sequence.0) {
            first = shard.slide(*sequence, keep)?;
        }
        Ok(first)
    }

    /// Returns how many tokens a sequence holds.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn tokens(&self, sequence: &HeadSequence) -> Result<u32> {
        let first = self.shards().iter().zip(&sequence.0).next();
        first.map_or(Ok(0), |(shard, sequence)| shard.tokens(*sequence))
    }

    /// Returns the bytes allocated for keys and values, on all devices together.
    pub fn bytes(&self) -> u64 {
        self.devices.bytes()
    }

    /// Returns the pages that no sequence holds, of each device: all have the same.
    pub fn free_pages(&self) -> u32 {
        self.shards().first().map_or(0, Cache::free_pages)
    }

    /// Returns the chunks of shard `n`.
    fn chunks(n: usize, chunks: &[(&HeadSequence, u32)]) -> Result<Vec<Chunk>> {
        let of = |(sequence, tokens): &(&HeadSequence, u32)| {
            let sequence = sequence.0.get(n).copied().ok_or(Error::UnknownSequence { slot: n as u32 })?;
            Ok(Chunk { sequence, tokens: *tokens })
        };
        chunks.iter().map(of).collect()
    }

    /// Returns what a step of these chunks would take of each device's pages, and what is free, as
    /// [`Cache::can_append`].
    ///
    /// # Errors
    /// Those of [`Cache::can_append`].
    pub fn can_append(&self, chunks: &[(&HeadSequence, u32)]) -> Result<Admission> {
        // All shards have the same pages free.
        let nothing = Admission { pages_needed: 0, pages_free: 0 };
        self.shards().first().map_or(Ok(nothing), |shard| shard.can_append(&Self::chunks(0, chunks)?))
    }

    /// Grows sequences by new tokens, as [`Cache::step`].
    ///
    /// # Errors
    /// Those of [`Cache::step`], of the first device that refuses; then nothing has changed on any.
    pub fn step(&mut self, chunks: &[(&HeadSequence, u32)]) -> Result<HeadStep> {
        let chunks: Vec<Vec<Chunk>> = (0..self.shards().len()).map(|n| Self::chunks(n, chunks)).collect::<Result<_>>()?;
        let mut shards: Vec<(&mut Cache, &[Chunk])> = self.devices.caches.iter_mut().zip(chunks.iter().map(Vec::as_slice)).collect();
        step_together(&mut shards).map(HeadStep)
    }

    /// Takes a step back of which nothing was recorded, on all devices, as [`Cache::abandon`].
    ///
    /// # Errors
    /// Those of [`Cache::abandon`], of the first device that refuses; then nothing has changed on
    /// any.
    pub fn abandon(&mut self, step: HeadStep) -> Result<()> {
        self.devices.abandon(step.0.into_iter().map(Some).collect())
    }

    /// Returns a new encoder for each device.
    pub fn encoders(&self) -> Vec<wgpu::CommandEncoder> {
        self.devices.encoders()
    }

    /// Submits what was recorded, to each device its own.
    ///
    /// # Errors
    /// [`Error::Mismatch`] without an encoder for each device; then nothing was submitted.
    pub fn submit(&self, encoders: Vec<wgpu::CommandEncoder>) -> Result<()> {
        self.devices.submit(encoders)
    }

    /// Records on each device what [`Cache::elect`] records, the same residual stream on all:
    /// `[rows, width]`.
    ///
    /// # Errors
    /// Those of [`Cache::elect`], and [`Error::Mismatch`] without an encoder and rows for each
    /// device; then nothing was recorded on any.
    pub fn elect(&self, encoders: &mut [wgpu::CommandEncoder], step: &HeadStep, layer: u32, residuals: &[Rows<'_>], width: u32) -> Result<()> {
        self.devices.record(
            encoders,
            step.all(),
            [("residuals", residuals)],
            |shard, step, [residual]| shard.check_elect(step, layer, residual, width).map(|_| ()),
            |shard, encoder, step, [residual]| shard.elect(encoder, step, layer, residual, width),
        )
    }

    /// Records on each device what [`Cache::append`] records: its heads' keys and values,
    /// `[rows, its KV heads, head_dim]`.
    ///
    /// # Errors
    /// Those of [`Cache::append`], and [`Error::Mismatch`] without an encoder and rows for each
    /// device; then nothing was recorded on any.
    pub fn append(&self, encoders: &mut [wgpu::CommandEncoder], step: &HeadStep, layer: u32, keys: &[Rows<'_>], values: &[Rows<'_>]) -> Result<()> {
        self.devices.append(encoders, step.all(), layer, keys, values)
    }

    /// Records on each device what [`Cache::attend`] records: its heads' queries and outputs,
    /// `[rows, its query heads, head_dim]`.
    ///
    /// # Errors
    /// Those of [`Cache::attend`], and [`Error::Mismatch`] without an encoder and rows for each
    /// device. Devices before the one that is at fault have recorded: drop all encoders.
    pub fn attend(&self, encoders: &mut [wgpu::CommandEncoder], step: &HeadStep, layer: u32, queries: &[Rows<'_>], outputs: &[Rows<'_>]) -> Result<()> {
        let rows = [("queries", queries), ("outputs", outputs)];
        self.devices.record(
            encoders,
            step.all(),
            rows,
            |_, _, _| Ok(()),
            |shard, encoder, step, [queries, outputs]| shard.attend(encoder, step, layer, queries, outputs),
        )
    }

    /// Uploads keys or values of all KV heads, `[rows, kv_heads, head_dim]`: to each device those
    /// of its heads.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for numbers that are not whole rows.
    pub fn scatter_keys(&self, numbers: &[f32]) -> Result<Vec<wgpu::Buffer>> {
        self.scatter("numbers of keys or values", numbers, self.shape.head_dim)
    }

    /// Uploads queries of all query heads, `[rows, query_heads, head_dim]`: to each device those of
    /// its heads.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for numbers that are not whole rows.
    pub fn scatter_queries(&self, numbers: &[f32]) -> Result<Vec<wgpu::Buffer>> {
        self.scatter("numbers of queries", numbers, self.shape.head_dim * self.shape.share())
    }

    /// Uploads rows of `width` numbers a KV head.
    fn scatter(&self, name: &'static str, numbers: &[f32], width: u32) -> Result<Vec<wgpu::Buffer>> {
        let row = (self.shape.kv_heads * width) as usize;
        if !numbers.len().is_multiple_of(row) {
            return Err(Error::argument(name, format!("a multiple of {row}"), numbers.len()));
        }
        let own = |n: usize| {
            let [first, end] = [self.heads[n].start, self.heads[n].end].map(|head| (head * width) as usize);
            numbers.chunks(row).flat_map(|row| &row[first..end]).copied().collect()
        };
        Ok(self.devices.upload(own))
    }

    /// Returns how many numbers a device's outputs of `rows` rows are.
    fn output_words(rows: u32, plan: &Plan) -> u64 {
        u64::from(rows) * u64::from(plan.shape().query_heads * plan.shape().head_dim)
    }

    /// Returns buffers for each device's outputs of `rows` rows,
    /// `[rows, its query heads, head_dim]` in f32.
    pub fn outputs(&self, rows: u32) -> Vec<wgpu::Buffer> {
        self.devices.buffers(|_, plan| Self::output_words(rows, plan))
    }

    /// Waits for all devices and puts their outputs together: `[rows, query_heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] without a buffer for each device, [`Error::Rows`] for one that is too
    /// short, [`Error::Readback`].
    pub async fn gather(&self, outputs: &[wgpu::Buffer], rows: u32) -> Result<Vec<f32>> {
        self.devices.expect("outputs", outputs.len())?;
        let parts = self.devices.read("output", outputs, |_, plan| Self::output_words(rows, plan)).await?;
        let width = (self.shape.query_heads * self.shape.head_dim) as usize;
        let mut all = Vec::with_capacity(rows as usize * width);
        for row in 0..rows as usize {
            for part in &parts {
                let width = part.len() / rows as usize;
                all.extend_from_slice(&part[row * width..][..width]);
            }
        }
        Ok(all)
    }
}
