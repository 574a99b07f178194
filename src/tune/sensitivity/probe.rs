//! Measuring a [`Sensitivity`] on the GPU: real caches, one for every candidate, and the same
//! queries for all.

use super::{Head, Sensitivity, wrong};
use crate::cache::{Cache, Chunk, Defect, Sequence, Step};
use crate::error::{Error, Result};
use crate::format::{Alignment, BitPlan, Bits, Codec, Element, Format, FormatWords, Kind, Learned, Precision, Protection, Scales, Shape, Sinks};
use crate::gpu::{Gpu, Rows};
use crate::kernel::gram;
use crate::plan::{Capacity, Plan, PlanBuilder};
use std::ops::Range;

/// Tokens at the end of a window whose queries are sampled.
const LAST: u32 = 32;

/// Runs of queries before them, their places spread evenly over the logarithm of the position.
const RUNS: u32 = 8;

/// Tokens of such a run. More than one, since past positions are served by attention over a block
/// of queries.
const RUN: u32 = 8;

/// First position that is sampled: attention over a few tokens says little.
const FIRST: u32 = 64;

/// A cache with one candidate for the keys, or for the values, and everything else as exact as the
/// codec has it.
#[derive(Debug)]
struct Run {
    kind: Kind,
    /// Which candidate; none for a cache that others are compared with.
    candidate: Option<usize>,
    cache: Cache,
    /// While a window is read: the sequence, the step that stores it, and the step that attends
    /// again.
    window: Option<(Sequence, Step, Step)>,
}

impl Run {
    /// Begins a window.
    fn begin(&mut self, tokens: u32, ranges: &[Range<u32>]) -> Result<()> {
        let sequence = self.cache.begin()?;
        let step = self.cache.step(&[Chunk { sequence, tokens }])?;
        let again = self.cache.revisit(sequence, ranges)?;
        self.window = Some((sequence, step, again));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        match self.window.take() {
            Some((sequence, ..)) => self.cache.end(sequence),
            None => Ok(()),
        }
    }
}

/// What one window needs on the GPU.
#[derive(Debug)]
struct Buffers {
    tokens: u32,
    ranges: Vec<Range<u32>>,
    queries: wgpu::Buffer,
    /// By run, and of the exact cache: `[sampled, query_heads, head_dim]`.
    outputs: Vec<wgpu::Buffer>,
    /// By run: Gram matrices of the output's change; of the exact cache, of its output.
    output_grams: Vec<wgpu::Buffer>,
    /// By run, and of the exact cache: keys and values as stored, `[tokens, kv_heads, head_dim]`.
    stored: Vec<[wgpu::Buffer; 2]>,
    /// Of the exact cache's keys and values.
    stored_grams: [wgpu::Buffer; 2],
}

/// Measures how much attention suffers from every candidate precision of every head. Made by
/// [`Sensitivity::probe`].
///
/// For every window of sample text: [`Probe::begin`], then [`Probe::add`] for each layer with the
/// numbers that the unmodified model's layer has. At the end [`Probe::finish`].
#[derive(Debug)]
pub struct Probe {
    gpu: Gpu,
    shape: Shape,
    format: Format,
    /// The fingerprint of what the codec had learned.
    learned: String,
    candidates: Vec<Precision>,
    /// Tokens of a window at most.
    most: u32,
    exact: Run,
    runs: Vec<Run>,
    /// Which run the values' runs are compared with: they share its keys.
    value_control: Option<usize>,
    buffers: Option<Buffers>,
    /// By layer and query head: `W_O W_O^T` of the head, `head_dim` squared; empty where it was not
    /// given.
    projections: Vec<Vec<Vec<f64>>>,
    heads: Vec<Head>,
    /// `[layer][kv_head]`, keys and values: sums of outer products.
    grams: Vec<[Vec<f64>; 2]>,
    /// By layer: tokens, and sampled queries.
    counts: Vec<(u64, u64)>,
}

impl Sensitivity {
    /// Returns the precisions that are worth measuring for a shape and format: 2, 3 and 4 bits in
    /// every group that fits, and 8 bits in the largest.
    pub fn default_candidates(shape: &Shape, format: &Format) -> Vec<Precision> {
        let groups: Vec<u32> = [32, 64, 128].into_iter().filter(|g| shape.head_dim.is_multiple_of(*g)).collect();
        let groups = if groups.is_empty() { vec![128] } else { groups };
        let large = groups.iter().copied().max().unwrap_or(128);
        let mut candidates: Vec<Precision> =
            [Bits::Two, Bits::Three, Bits::Four].into_iter().flat_map(|bits| groups.iter().rev().map(move |group| Precision::new(bits, *group))).collect();
        if format.scales() == Scales::Half {
            candidates.push(Precision::new(Bits::Eight, large));
        }
        candidates
    }

    /// Begins to measure. Every candidate has two caches of `tokens` tokens on the GPU, one for
    /// keys and one for values, in which everything else is half precision (RotateKV's keys, which
    /// are always codes, have 8 bits).
    ///
    /// `learned` is what the caches to come will be given: Centred has other errors with means than
    /// without.
    ///
    /// Sinks are kept as the cache will keep them; [`Sinks::Massive`] are elected from the residual
    /// stream that [`Probe::add`] is given. There is no window: every other token is as stored.
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::Group`] and [`Error::Limit`] where a candidate does not fit,
    /// for no candidates, for codecs that store halves alone, and where what the codec learned is
    /// of another codec or shape, or RotateKV's is missing.
    pub async fn probe(
        gpu: &Gpu,
        shape: &Shape,
        format: Format,
        candidates: &[Precision],
        learned: Option<&Learned>,
        sinks: Sinks,
        tokens: u32,
    ) -> Result<Probe> {
        let builder = Plan::builder(shape.clone(), format);
        Self::probe_of(gpu, builder, shape, format, candidates, learned, sinks, tokens).await
    }

    /// Begins to measure for caches of a plan, as [`Sensitivity::probe`] with the plan's shape,
    /// codec, learned data and sinks: scores are the plan's, with its
    /// [scale](crate::PlanBuilder::score_scale), [cap](crate::PlanBuilder::soft_cap) and
    /// [sink logits](crate::PlanBuilder::sink_logits), queries see what they see by its
    /// [span](Plan::span), and keys and queries come turned if
    /// [the plan's do](Plan::turned_rows). Its bits, capacity and window do not count.
    ///
    /// # Errors
    /// Those of [`Sensitivity::probe`].
    pub async fn probe_plan(gpu: &Gpu, plan: &Plan, candidates: &[Precision], tokens: u32) -> Result<Probe> {
        let builder = plan.to_builder().alignment(Alignment::EVERYTHING).max_tokens(tokens.max(1));
        Self::probe_of(gpu, builder, plan.shape(), *plan.format(), candidates, plan.learned(), plan.protection().sinks, tokens).await
    }

    /// Begins to measure with what a builder says of scores and rows.
    #[expect(clippy::too_many_arguments, reason = "what both ways of saying it come to")]
    async fn probe_of(
        gpu: &Gpu,
        builder: PlanBuilder,
        shape: &Shape,
        format: Format,
        candidates: &[Precision],
        learned: Option<&Learned>,
        sinks: Sinks,
        tokens: u32,
    ) -> Result<Probe> {
        if candidates.is_empty() {
            return wrong("candidates", "1 or more", 0);
        }
        if format.codec().is_f16() {
            return wrong("codec", "one that has codes", format.codec());
        }
        let restores = format.codec() == Codec::RotateKv;
        // Values do not depend on how keys are stored, but RotateKV's keys cannot be exact.
        let key = if restores { Precision::new(Bits::Eight, format.key().group) } else { Precision::F16 };
        let mut wanted = vec![];
        for (n, candidate) in candidates.iter().enumerate() {
            wanted.push((Kind::Key, Some(n), [*candidate, Precision::F16]));
            wanted.push((Kind::Value, Some(n), [key, *candidate]));
        }
        if restores {
            // Bytes for scales have no eight bits: then values are compared under four.
            let bits = if format.scales() == Scales::Byte { Bits::Four } else { Bits::Eight };
            for (kind, _, precisions) in &mut wanted {
                if *kind == Kind::Value {
                    precisions[0].bits = bits;
                }
            }
            wanted.push((Kind::Key, None, [Precision { bits, ..key }, Precision::F16]));
        }
        let run = async |kind, candidate, format: Format, precisions: [Precision; 2], protection| {
            let builder = builder.clone().stores(shape.clone(), BitPlan::new(shape, format, |_, _| precisions)?);
            let builder = builder.learned(learned.filter(|_| !format.codec().is_f16()).cloned());
            let plan = builder.protection(protection).capacity(Capacity::tokens(1, tokens)).build(gpu.capability())?;
            gpu.prepare(&plan).await?;
            Ok::<_, Error>(Run { kind, candidate, cache: Cache::new(gpu, plan)?, window: None })
        };
        let exact = run(Kind::Key, None, Format::f16(), [Precision::F16; 2], Protection::NONE).await?;
        let mut runs = Vec::with_capacity(wanted.len());
        for (kind, candidate, precisions) in wanted {
            runs.push(run(kind, candidate, format, precisions, Protection { sinks, window: 0 }).await?);
        }
        let count = (shape.layers * shape.kv_heads) as usize;
        let none = vec![0.0; candidates.len()];
        let head = Head { code_errors: [none.clone(), none.clone()], output_errors: [none.clone(), none], ..Head::default() };
        let square = vec![0.0; (shape.head_dim * shape.head_dim) as usize];
        Ok(Probe {
            gpu: gpu.clone(),
            shape: shape.clone(),
            format,
            learned: learned.map(Learned::fingerprint).unwrap_or_default(),
            candidates: candidates.to_vec(),
            most: tokens,
            value_control: restores.then(|| runs.len() - 1),
            exact,
            runs,
            buffers: None,
            projections: vec![Vec::new(); shape.layers as usize],
            heads: vec![head; count],
            grams: vec![[square.clone(), square]; count],
            counts: vec![(0, 0); shape.layers as usize],
        })
    }
}

impl Probe {
    /// Returns the positions whose queries are sampled in a window of `tokens` tokens.
    #[doc(hidden)]
    pub fn sampled(tokens: u32) -> Vec<Range<u32>> {
        sample(tokens)
    }
}

/// Returns the tokens of a window whose queries are sampled: the last ones, and runs before them.
fn sample(tokens: u32) -> Vec<Range<u32>> {
    // A run of one token would be a decode step, which sees everything.
    if tokens < FIRST + 2 * LAST {
        return std::iter::once(0..tokens).collect();
    }
    let end = tokens - LAST;
    let places = f64::from(end) / f64::from(FIRST);
    let run = |n: u32| (f64::from(FIRST) * places.powf(f64::from(n) / f64::from(RUNS))) as u32;
    let mut ranges: Vec<Range<u32>> = (0..RUNS).map(run).map(|first| first..(first + RUN).min(end)).collect();
    ranges.dedup_by(|next, before| next.start < before.end);
    ranges.push(end..tokens);
    ranges
}

impl Probe {
    /// Sets a layer's output projection, so that errors are weighed by what they do to the block's
    /// output: `[hidden, query_heads, head_dim]` in f32, row `o` the weights that make output `o`
    /// of the heads' outputs (as `o_proj.weight` lies in a checkpoint). Without it every channel of
    /// a head's output counts alike.
    ///
    /// # Errors
    /// [`Error::Layer`], and those of [`gram::record`](crate::low_level::kernel::gram::record) and
    /// [`gram::sum`](crate::low_level::kernel::gram::sum).
    pub async fn output_projection(&mut self, layer: u32, weights: Rows<'_>, hidden: u32) -> Result<()> {
        let Shape { layers, query_heads, head_dim, .. } = self.shape;
        let slot = self.projections.get_mut(layer as usize).ok_or(Error::Layer { had: layer, layers })?;
        let grams = storage(&self.gpu, u64::from(gram::chunks(hidden)) * u64::from(query_heads * head_dim * head_dim));
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv probe") });
        gram::record(&self.gpu, &mut encoder, weights, None, hidden, query_heads, head_dim, &grams)?;
        self.gpu.queue().submit([encoder.finish()]);
        *slot = gram::sum(&self.gpu, &grams, hidden, query_heads, head_dim).await?;
        Ok(())
    }

    /// Begins a window of sample text, and ends the one before.
    ///
    /// # Errors
    /// [`Error::Length`] for more tokens than [`Sensitivity::probe`] was given, [`Error::Mismatch`]
    /// for fewer than two.
    pub fn begin(&mut self, tokens: u32) -> Result<()> {
        if tokens < 2 {
            return Err(Error::argument("tokens of a window", "2 or more", tokens));
        }
        if tokens > self.most {
            return Err(Error::Length { slot: 0, need: tokens.into(), have: self.most.into() });
        }
        let ranges = sample(tokens);
        for run in std::iter::once(&mut self.exact).chain(&mut self.runs) {
            run.end()?;
            run.begin(tokens, &ranges)?;
        }
        if self.buffers.as_ref().is_none_or(|buffers| buffers.tokens != tokens) {
            let Shape { query_heads, kv_heads, head_dim, .. } = self.shape;
            let sampled: u32 = ranges.iter().map(|range| range.end - range.start).sum();
            let gpu = &self.gpu;
            let rows = |heads: u32, count: u32| storage(gpu, u64::from(count) * u64::from(heads * head_dim));
            let matrices = |heads: u32, count: u32| storage(gpu, u64::from(gram::chunks(count)) * u64::from(heads * head_dim * head_dim));
            let all = 0..=self.runs.len();
            self.buffers = Some(Buffers {
                tokens,
                queries: rows(query_heads, sampled),
                outputs: all.clone().map(|_| rows(query_heads, sampled)).collect(),
                output_grams: all.clone().map(|_| matrices(query_heads, sampled)).collect(),
                stored: all.map(|_| [rows(kv_heads, tokens), rows(kv_heads, tokens)]).collect(),
                stored_grams: [matrices(kv_heads, tokens), matrices(kv_heads, tokens)],
                ranges,
            });
        }
        Ok(())
    }

    /// Measures one layer of the window, and waits for the result: `queries`
    /// `[tokens, query_heads, head_dim]`, `keys` and `values` `[tokens, kv_heads, head_dim]`, all
    /// before RoPE, unless [the plan's rows come turned](Sensitivity::probe_plan); queries in dense
    /// f32. The buffer of queries needs the usage `COPY_SRC`. `residual` is
    /// the stream that enters the layer and its width, for sinks that are elected.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where no window was begun, queries are not f32, or a number was not
    /// finite; [`Error::Layer`], [`Error::Rows`], [`Error::Offset`], [`Error::Usage`],
    /// [`Error::Unelected`] and [`Error::Readback`].
    pub async fn add(&mut self, layer: u32, queries: Rows<'_>, keys: Rows<'_>, values: Rows<'_>, residual: Option<(Rows<'_>, u32)>) -> Result<()> {
        let Shape { layers, query_heads, kv_heads, head_dim, .. } = self.shape;
        let Some(buffers) = &self.buffers else {
            return wrong("window", "begun before a layer is added", "not");
        };
        if layer >= layers {
            return Err(Error::Layer { had: layer, layers });
        }
        // Outputs are of the queries' type, and are compared in f32.
        if queries.element != Element::F32 {
            return Err(Error::argument("queries", "f32", queries.element.name()));
        }
        let row_bytes = u64::from(query_heads * head_dim) * queries.element.bytes();
        queries.binding("queries", u64::from(buffers.tokens) * u64::from(query_heads * head_dim), self.gpu.capability())?;
        if !queries.buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            return Err(Error::Usage { name: "queries", need: "COPY_SRC" });
        }
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv probe") });
        let mut sampled = 0;
        for range in &buffers.ranges {
            let count = range.end - range.start;
            let from = queries.offset + u64::from(range.start) * row_bytes;
            encoder.copy_buffer_to_buffer(queries.buffer, from, &buffers.queries, u64::from(sampled) * row_bytes, u64::from(count) * row_bytes);
            sampled += count;
        }
        let queries = Rows::f32(&buffers.queries);
        let exact = self.runs.len();
        for (n, run) in self.runs.iter().chain([&self.exact]).enumerate() {
            let Some((sequence, step, again)) = &run.window else {
                return wrong("window", "begun before a layer is added", "not");
            };
            // A layer whose numbers were refused is added once more. No cache has a window.
            step.give_again(layer);
            if let (true, Some((rows, width))) = (run.cache.plan().elects(), residual) {
                run.cache.elect(&mut encoder, step, layer, rows, width)?;
            }
            run.cache.append(&mut encoder, step, layer, keys, values)?;
            run.cache.attend(&mut encoder, again, layer, queries, Rows::f32(&buffers.outputs[n]))?;
            let [stored_keys, stored_values] = &buffers.stored[n];
            run.cache.dequantize(&mut encoder, *sequence, layer, 0..buffers.tokens, Rows::f32(stored_keys), Rows::f32(stored_values))?;
        }
        for n in 0..=exact {
            let control = match self.runs.get(n).map(|run| run.kind) {
                None => None,
                Some(Kind::Key) => Some(exact),
                Some(Kind::Value) => Some(self.value_control.unwrap_or(exact)),
            };
            let minus = control.map(|control| Rows::f32(&buffers.outputs[control]));
            gram::record(&self.gpu, &mut encoder, Rows::f32(&buffers.outputs[n]), minus, sampled, query_heads, head_dim, &buffers.output_grams[n])?;
        }
        for (rows, grams) in buffers.stored[exact].iter().zip(&buffers.stored_grams) {
            gram::record(&self.gpu, &mut encoder, Rows::f32(rows), None, buffers.tokens, kv_heads, head_dim, grams)?;
        }
        self.gpu.queue().submit([encoder.finish()]);
        self.gather(layer, sampled).await
    }

    /// Reads back what a layer's passes have written, and adds it up.
    async fn gather(&mut self, layer: u32, sampled: u32) -> Result<()> {
        let Shape { query_heads, kv_heads, head_dim, .. } = self.shape;
        let Some(buffers) = &self.buffers else { return Ok(()) };
        let exact = self.runs.len();
        let share = self.shape.share() as usize;
        let status = self.exact.cache.status().await?;
        if let Some(flag) = status.flags.first() {
            let kinds = [flag.key.map(|_| "key"), flag.value.map(|_| "value")].into_iter().flatten().collect::<Vec<_>>().join(" and ");
            let wanted = if [flag.key, flag.value].contains(&Some(Defect::NotFinite)) { "finite" } else { "within f16's range" };
            return wrong("keys and values", wanted, format!("not in layer {layer}: the {kinds} of token {}, head {}", flag.token, flag.head));
        }
        let first = (layer * kv_heads) as usize;
        // A layer counts as a whole or not at all.
        let mut heads = self.heads[first..first + kv_heads as usize].to_vec();
        let mut all_grams = self.grams[first..first + kv_heads as usize].to_vec();
        let projections = &self.projections[layer as usize];
        let width = u64::from(buffers.tokens) * u64::from(kv_heads * head_dim);
        let mut plain = Vec::new();
        for kind in Kind::BOTH {
            plain.push(self.gpu.read(&buffers.stored[exact][kind as usize], 0, width).await?);
            let sums = gram::sum(&self.gpu, &buffers.stored_grams[kind as usize], buffers.tokens, kv_heads, head_dim).await?;
            for ((head, grams), sum) in heads.iter_mut().zip(&mut all_grams).zip(sums) {
                head.norms[kind as usize] += trace(&sum, head_dim);
                grams[kind as usize].iter_mut().zip(sum).for_each(|(total, x)| *total += x);
            }
        }
        for (n, run) in self.runs.iter().chain([&self.exact]).enumerate() {
            if n != exact && run.candidate.is_none() {
                continue;
            }
            let grams = gram::sum(&self.gpu, &buffers.output_grams[n], sampled, query_heads, head_dim).await?;
            let weighed: Vec<f64> = grams.iter().enumerate().map(|(head, gram)| weigh(gram, projections.get(head), head_dim)).collect();
            for (head, shares) in heads.iter_mut().zip(weighed.chunks_exact(share)) {
                let error: f64 = shares.iter().sum();
                match run.candidate {
                    Some(candidate) => head.output_errors[run.kind as usize][candidate] += error,
                    None => head.output += error,
                }
            }
            let Some(candidate) = run.candidate else { continue };
            let stored = self.gpu.read(&buffers.stored[n][run.kind as usize], 0, width).await?;
            let (stored, plain): (&[f32], &[f32]) = (bytemuck::cast_slice(&stored), bytemuck::cast_slice(&plain[run.kind as usize]));
            for (at, (a, b)) in stored.chunks_exact(head_dim as usize).zip(plain.chunks_exact(head_dim as usize)).enumerate() {
                let error: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                heads[at % kv_heads as usize].code_errors[run.kind as usize][candidate] += error;
            }
        }
        self.heads[first..first + kv_heads as usize].clone_from_slice(&heads);
        self.grams[first..first + kv_heads as usize].clone_from_slice(&all_grams);
        let (tokens, queries) = &mut self.counts[layer as usize];
        *tokens += u64::from(buffers.tokens);
        *queries += u64::from(sampled);
        Ok(())
    }

    /// Returns the sum over the sample's tokens of the outer product of one KV head's keys (after
    /// RoPE), or values, with themselves: `head_dim` squared numbers, from which singular values
    /// follow. Empty for a head that does not exist.
    pub fn gram(&self, layer: u32, head: u32, kind: Kind) -> &[f64] {
        let known = layer < self.shape.layers && head < self.shape.kv_heads;
        if known { &self.grams[(layer * self.shape.kv_heads + head) as usize][kind as usize] } else { &[] }
    }

    /// Returns what was measured, for a model of this name.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a layer was given no tokens, or other numbers of them than the
    /// first.
    pub fn finish(&self, model: &str) -> Result<Sensitivity> {
        let (tokens, queries) = self.counts[0];
        for (count, layer) in self.counts.iter().zip(0..) {
            if count.0 == 0 || *count != self.counts[0] {
                return wrong(format!("tokens of layer {layer}"), format!("{}, as in layer 0, and not 0", tokens.max(1)), count.0);
            }
        }
        let mut heads = self.heads.clone();
        for head in &mut heads {
            head.output /= queries as f64;
            head.output_errors.iter_mut().flatten().for_each(|error| *error /= queries as f64);
        }
        let outputs: Vec<f64> = heads.chunks(self.shape.kv_heads as usize).map(|heads| heads.iter().map(|head| head.output).sum()).collect();
        Ok(Sensitivity {
            model: model.to_owned(),
            learned: self.learned.clone(),
            // As a file has it: its own precisions were never measured.
            format: FormatWords::of(&self.format).format()?,
            layers: self.shape.layers,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            candidates: self.candidates.clone(),
            tokens,
            queries,
            weight_norms: Vec::new(),
            layer_weights: outputs.iter().map(|output| 1.0 / output.max(f64::MIN_POSITIVE)).collect(),
            heads,
        })
    }
}

fn trace(square: &[f64], head_dim: u32) -> f64 {
    square.iter().step_by(head_dim as usize + 1).sum()
}

/// Returns the sum of two matrices' products, number by number: the squared length of what the rows
/// of a Gram matrix become under the projection. Without a projection, their own.
fn weigh(gram: &[f64], projection: Option<&Vec<f64>>, head_dim: u32) -> f64 {
    // Rounding may leave a sum of squares a little below zero.
    projection.map_or_else(|| trace(gram, head_dim), |weights| gram.iter().zip(weights).map(|(a, b)| a * b).sum::<f64>()).max(0.0)
}

/// Returns a buffer of `words` words.
fn storage(gpu: &Gpu, words: u64) -> wgpu::Buffer {
    gpu.create_buffer(&wgpu::BufferDescriptor {
        label: Some("wgkv probe"),
        size: 4 * words.max(4),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}
