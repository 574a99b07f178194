//! One context over several devices of a host: each holds some of the tokens.

use crate::cache::{Cache, Sequence, Share, Step, all_or_none};
use crate::error::{Error, Result};
use crate::format::PAGE_TOKENS;
use crate::gpu::{Gpu, Rows};
use crate::plan::Plan;
use crate::serve::devices::Devices;
use futures::future::try_join;
use std::ops::Range;

/// A cache for contexts longer than one device holds: the first device has the first `span` tokens
/// of every sequence, the next one the next `span`, and so on, each with all heads. Every device
/// attends to what it has; the outputs are merged as a device merges those of its own slices, by
/// the logarithms of their sums ([`Cache::attend_part`]).
/// [`HeadParallel`](crate::devices::HeadParallel) spreads KV heads instead, which balances devices
/// better where there are enough heads.
///
/// Of a step's rows, a device gets those from the first one that has a position there; devices
/// before it get none. [`ContextParallel::scatter`] and [`ContextParallel::gather`] know which rows
/// those are.
///
/// ```no_run
/// use wgkv::{Bits, Capacity, Codec, Format, Gpu, Plan, Protection, Result, Rope, Rows, Shape};
/// use wgkv::devices::ContextParallel;
///
/// /// `keys` and `values` are `[tokens, 8, 128]` before RoPE, `queries` and the result `[tokens, 32, 128]`.
/// async fn attend(gpus: &[Gpu], tokens: u32, keys: &[f32], values: &[f32], queries: &[f32]) -> Result<Vec<f32>> {
///     let shape = Shape { layers: 1, query_heads: 32, kv_heads: 8, head_dim: 128, rope: Rope::new(500_000.0, 128) };
///     let format = Format::new(Codec::Hadamard, Bits::Four, Bits::Two, 64);
///     let span = 65_536;
///     let plan = Plan::builder(shape, format).capacity(Capacity::tokens(1, span)).build(gpus[0].capability())?;
///     let mut cache = ContextParallel::new(gpus, &plan, span)?;
///     let sequence = cache.begin()?;
///     let step = cache.step(&[(&sequence, tokens)])?;
///     let [keys, values, queries] = [cache.scatter(&step, keys)?, cache.scatter(&step, values)?, cache.scatter(&step, queries)?];
///     let (outputs, log_sums) = (cache.outputs(&step), cache.log_sums(&step));
///     let rows = [&keys, &values, &queries, &outputs, &log_sums].map(|buffers| buffers.iter().map(Rows::f32).collect::<Vec<_>>());
///     let mut encoders = cache.encoders();
///     cache.append(&mut encoders, &step, 0, &rows[0], &rows[1])?;
///     cache.attend(&mut encoders, &step, 0, &rows[2], &rows[3], &rows[4])?;
///     cache.submit(encoders)?;
///     cache.gather(&step, &outputs, &log_sums).await
/// }
/// ```
#[derive(Debug)]
pub struct ContextParallel {
    devices: Devices,
    span: u32,
}

/// A sequence of a [`ContextParallel`] cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContextSequence(Vec<Sequence>);

impl ContextSequence {
    /// Returns the sequence of each device's cache.
    pub fn sequences(&self) -> &[Sequence] {
        &self.0
    }
}

/// A step of every device that has a part in it.
#[derive(Debug)]
#[must_use]
pub struct ContextStep {
    rows: u32,
    /// By device: its step, if it has one, and which of all rows are its own.
    parts: Vec<(Option<Step>, Vec<Range<u32>>)>,
}

impl ContextStep {
    /// Returns the rows of keys, values, queries and output: the tokens of all chunks, in their
    /// order.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Takes your word that nothing that was recorded of this step is submitted, as
    /// [`Step::unrecord`].
    pub fn unrecord(&self) {
        self.steps().flatten().for_each(Step::unrecord);
    }

    /// Returns, by device, its step, if it has one.
    fn steps(&self) -> impl Iterator<Item = Option<&Step>> + Clone {
        self.parts.iter().map(|(step, _)| step.as_ref())
    }

    /// Returns the rows that a device works on, one range for each chunk that has any there.
    pub fn rows_of(&self, device: usize) -> &[Range<u32>] {
        self.parts.get(device).map_or(&[], |(_, rows)| rows)
    }

    /// Returns how many rows a device works on.
    fn count(&self, device: usize) -> u64 {
        self.rows_of(device).iter().map(|rows| u64::from(rows.end - rows.start)).sum()
    }
}

/// Returns how many numbers a row of outputs has.
fn output_width(plan: &Plan) -> u64 {
    u64::from(plan.shape().query_heads * plan.shape().head_dim)
}

impl ContextParallel {
    /// Allocates a cache of this plan on each device, for `span` tokens of every sequence, a
    /// multiple of 128. A device may be named several times. Each device's plan is made anew for
    /// what that device can do: they store tokens alike, though not necessarily by the same kernels.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for no device, another span, and sinks that are elected; those of
    /// [`PlanBuilder::build`](crate::PlanBuilder::build) for all tokens together, and of
    /// [`Cache::new`].
    pub fn new(gpus: &[Gpu], plan: &Plan, span: u32) -> Result<Self> {
        if gpus.is_empty() {
            return Err(Error::argument("devices", "1 or more", "0"));
        }
        if span == 0 || !span.is_multiple_of(PAGE_TOKENS) {
            return Err(Error::argument("span", "a multiple of 128 tokens", span));
        }
        let tokens = u64::from(span) * gpus.len() as u64;
        let builder = plan.to_builder().max_tokens(u32::try_from(tokens).unwrap_or(u32::MAX));
        let caches: Vec<Cache> = gpus.iter().map(|gpu| Cache::new(gpu, builder.clone().build(gpu.capability())?)).collect::<Result<_>>()?;
        caches.iter().try_for_each(Cache::expect_split)?;
        Ok(Self { devices: Devices { caches, label: "wgkv context" }, span })
    }

    /// Compiles the pipelines of all devices.
    ///
    /// # Errors
    /// Those of [`Gpu::prepare`].
    pub async fn prepare(&self) -> Result<()> {
        self.devices.prepare().await
    }

    /// Returns the cache of each device, for calls that change no sequence.
    pub fn parts(&self) -> &[Cache] {
        &self.devices.caches
    }

    /// Returns the tokens of a sequence on each device.
    pub fn span(&self) -> u32 {
        self.span
    }

    /// Begins a sequence of no tokens.
    ///
    /// # Errors
    /// Those of [`Cache::begin`].
    pub fn begin(&mut self) -> Result<ContextSequence> {
        let span = self.span;
        self.devices.begin(|n, part| part.begin_at(n * span)).map(ContextSequence)
    }

    /// Ends a sequence and gives back its pages.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn end(&mut self, sequence: &ContextSequence) -> Result<()> {
        self.devices.end(&sequence.0)
    }

    /// Returns how many tokens a sequence holds.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn tokens(&self, sequence: &ContextSequence) -> Result<u32> {
        self.tokens_by(sequence, Cache::tokens)
    }

    /// Returns how many tokens a sequence holds by what each device has of it.
    fn tokens_by(&self, sequence: &ContextSequence, of: impl Fn(&Cache, Sequence) -> Result<u32>) -> Result<u32> {
        let mut tokens = 0;
        for ((part, sequence), n) in self.parts().iter().zip(&sequence.0).zip(0..) {
            let held = of(part, *sequence)?;
            if held > n * self.span {
                tokens = held;
            }
        }
        Ok(tokens)
    }

    /// Begins a sequence that holds what another holds, as [`Cache::fork`].
    ///
    /// # Errors
    /// Those of [`Cache::fork`], and [`Error::Mismatch`] without an encoder for each device; then
    /// nothing has changed, but what was recorded is of no use: drop all encoders.
    pub fn fork(&mut self, encoders: &mut [wgpu::CommandEncoder], sequence: &ContextSequence) -> Result<ContextSequence> {
        self.devices.fork(encoders, &sequence.0).map(ContextSequence)
    }

    /// Cuts a sequence back to its first `tokens` tokens, as [`Cache::truncate`].
    ///
    /// # Errors
    /// Those of [`Cache::truncate`], and [`Error::Mismatch`] without an encoder for each device;
    /// then nothing has changed.
    pub fn truncate(&mut self, encoders: &mut [wgpu::CommandEncoder], sequence: &ContextSequence, tokens: u32) -> Result<()> {
        self.devices.expect("encoders", encoders.len())?;
        let have = self.tokens_by(sequence, Cache::settled_tokens)?;
        if tokens > have {
            return Err(Error::Range { first: 0, end: tokens, have });
        }
        let span = self.span;
        let mut left = Vec::with_capacity(sequence.0.len());
        for ((part, sequence), n) in self.parts().iter().zip(&sequence.0).zip(0..) {
            let tokens = tokens.max(n * span).min(part.settled_tokens(*sequence)?);
            part.expect_cut(*sequence, tokens)?;
            left.push(tokens);
        }
        let mut parts: Vec<_> = self.devices.caches.iter_mut().zip(encoders).zip(&sequence.0).zip(left).zip(0..).collect();
        // The device that is cut in its middle may lack a page for a copy, and no other: it goes
        // first.
        parts.sort_by_key(|(_, n)| tokens / span != *n);
        for ((((part, encoder), sequence), left), _) in parts {
            part.truncate(encoder, *sequence, left)?;
        }
        Ok(())
    }

    /// Returns the bytes allocated for keys and values, on all devices together.
    pub fn bytes(&self) -> u64 {
        self.devices.bytes()
    }

    /// Grows sequences by new tokens, as [`Cache::step`].
    ///
    /// # Errors
    /// Those of [`Cache::step`]; then nothing has changed on any device.
    pub fn step(&mut self, chunks: &[(&ContextSequence, u32)]) -> Result<ContextStep> {
        let have = u64::from(self.span) * self.parts().len() as u64;
        let mut own: Vec<(Vec<Share>, Vec<Range<u32>>)> = self.parts().iter().map(|_| Default::default()).collect();
        let mut rows = 0;
        for (sequence, tokens) in chunks {
            let old = self.tokens_by(sequence, Cache::settled_tokens)?;
            let slot = sequence.0.first().map_or(0, Sequence::slot);
            if *tokens == 0 {
                return Err(Error::EmptyChunk { slot });
            }
            let length = Error::Length { slot, need: u64::from(old) + u64::from(*tokens), have };
            let end = old.checked_add(*tokens).filter(|end| u64::from(*end) <= have).ok_or(length)?;
            for (((parts, ranges), sequence), n) in own.iter_mut().zip(&sequence.0).zip(0..) {
                let first = old.max(n * self.span);
                if first < end {
                    // Beyond its span a device has queries only.
                    let tokens = end.min((n + 1) * self.span).saturating_sub(first);
                    parts.push(Share { sequence: *sequence, first, queries: end - first, tokens });
                    ranges.push(rows + (first - old)..rows + (end - old));
                }
            }
            rows += tokens;
        }
        for (part, (parts, _)) in self.parts().iter().zip(&own) {
            part.can_append_parts(parts)?.expect_fits()?;
        }
        let (with, without): (Vec<_>, Vec<_>) = self.devices.caches.iter_mut().zip(&own).partition(|(_, (parts, _))| !parts.is_empty());
        let mut with: Vec<_> = with.into_iter().map(|(part, (parts, _))| (part, parts)).collect();
        let mut steps = all_or_none(&mut with, |part, parts| part.step_parts(parts))?.into_iter();
        // The step before is stale on these devices, too.
        without.into_iter().for_each(|(part, _)| part.settle());
        let of_device = |(parts, rows): (Vec<Share>, Vec<Range<u32>>)| (if parts.is_empty() { None } else { steps.next() }, rows);
        let parts = own.into_iter().map(of_device).collect();
        Ok(ContextStep { rows, parts })
    }

    /// Takes a step back of which nothing was recorded, on all devices, as [`Cache::abandon`].
    ///
    /// # Errors
    /// Those of [`Cache::abandon`], of the first device that refuses; then nothing has changed on
    /// any.
    pub fn abandon(&mut self, step: ContextStep) -> Result<()> {
        self.devices.abandon(step.parts.into_iter().map(|(step, _)| step).collect())
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

    /// Records on each device what [`Cache::append`] records, of its rows:
    /// `[its rows, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// Those of [`Cache::append`], and [`Error::Mismatch`] without an encoder and rows for each
    /// device; then nothing was recorded on any.
    pub fn append(&self, encoders: &mut [wgpu::CommandEncoder], step: &ContextStep, layer: u32, keys: &[Rows<'_>], values: &[Rows<'_>]) -> Result<()> {
        self.devices.append(encoders, step.steps(), layer, keys, values)
    }

    /// Records on each device what [`Cache::attend_part`] records, of its rows: queries and outputs
    /// `[its rows, query_heads, head_dim]`, logarithms of sums `[its rows, query_heads]`.
    ///
    /// # Errors
    /// Those of [`Cache::attend_part`], and [`Error::Mismatch`] without an encoder and rows for
    /// each device. Devices before the one that is at fault have recorded: drop all encoders.
    pub fn attend(
        &self,
        encoders: &mut [wgpu::CommandEncoder],
        step: &ContextStep,
        layer: u32,
        queries: &[Rows<'_>],
        outputs: &[Rows<'_>],
        log_sums: &[Rows<'_>],
    ) -> Result<()> {
        let rows = [("queries", queries), ("outputs", outputs), ("log_sums", log_sums)];
        self.devices.record(
            encoders,
            step.steps(),
            rows,
            |_, _, _| Ok(()),
            |part, encoder, step, [queries, output, log_sums]| part.attend_part(encoder, step, layer, queries, output, log_sums),
        )
    }

    /// Uploads keys, values or queries of all rows, `[rows, heads, head_dim]`: to each device those
    /// of its rows.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for numbers that are not as many for each row.
    pub fn scatter(&self, step: &ContextStep, numbers: &[f32]) -> Result<Vec<wgpu::Buffer>> {
        let rows = step.rows as usize;
        if rows == 0 || !numbers.len().is_multiple_of(rows) {
            return Err(Error::argument("numbers of rows", format!("a multiple of {rows}"), numbers.len()));
        }
        let width = numbers.len() / rows;
        let own = |n: usize| step.rows_of(n).iter().flat_map(|rows| &numbers[rows.start as usize * width..rows.end as usize * width]);
        Ok(self.devices.upload(|n| own(n).copied().collect()))
    }

    /// Returns buffers for each device's outputs, `[its rows, query_heads, head_dim]` in f32.
    pub fn outputs(&self, step: &ContextStep) -> Vec<wgpu::Buffer> {
        self.devices.buffers(|n, plan| step.count(n) * output_width(plan))
    }

    /// Returns buffers for each device's logarithms of sums, `[its rows, query_heads]` in f32.
    pub fn log_sums(&self, step: &ContextStep) -> Vec<wgpu::Buffer> {
        self.devices.buffers(|n, plan| step.count(n) * u64::from(plan.shape().query_heads))
    }

    /// Waits for all devices and merges their outputs: `[rows, query_heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] without buffers for each device, [`Error::Rows`] for one that is too
    /// short, [`Error::Readback`].
    pub async fn gather(&self, step: &ContextStep, outputs: &[wgpu::Buffer], log_sums: &[wgpu::Buffer]) -> Result<Vec<f32>> {
        let Some(shape) = self.parts().first().map(|part| part.plan().shape()) else {
            return Ok(Vec::new());
        };
        let (heads, d) = (shape.query_heads as usize, shape.head_dim as usize);
        let (read, log_sums) = try_join(
            self.devices.read("outputs", outputs, |n, plan| step.count(n) * output_width(plan)),
            self.devices.read("log_sums", log_sums, |n, _| step.count(n) * heads as u64),
        )
        .await?;
        // What the parts weigh together, beside the heaviest.
        let rows = step.rows as usize;
        let mut most = vec![f64::NEG_INFINITY; rows * heads];
        let mut all = vec![0.0; rows * heads * d];
        let mut sums = vec![0.0; rows * heads];
        let own = |n: usize| step.rows_of(n).iter().cloned().flatten().enumerate();
        for (n, log_sums) in log_sums.iter().enumerate() {
            for (i, row) in own(n) {
                for (most, log_sum) in most[row as usize * heads..].iter_mut().zip(&log_sums[i * heads..(i + 1) * heads]) {
                    let log_sum = f64::from(*log_sum);
                    // Not a number stays so.
                    *most = if log_sum > *most || log_sum.is_nan() { log_sum } else { *most };
                }
            }
        }
        for (n, (output, log_sums)) in read.iter().zip(&log_sums).enumerate() {
            for (at, head) in own(n).flat_map(|(i, row)| (0..heads).map(move |h| (i * heads + h, row as usize * heads + h))) {
                let weight = (f64::from(log_sums[at]) - most[head]).exp();
                sums[head] += weight;
                for (sum, x) in all[head * d..(head + 1) * d].iter_mut().zip(&output[at * d..(at + 1) * d]) {
                    *sum += weight * f64::from(*x);
                }
            }
        }
        Ok(all.chunks(d).zip(sums).flat_map(|(row, sum)| row.iter().map(move |x| (x / sum) as f32)).collect())
    }
}
