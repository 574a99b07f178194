//! Compares what a GPU computes with what the kernels' CPU twins compute, for a page's button and for the tests of browsers.

use crate::codecs;
use crate::error::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use wgkv::learned::Reach;
use wgkv::low_level::Restore;
use wgkv::low_level::kernel::attend_matrices::AttendMatricesParams;
use wgkv::low_level::reference::{self, Constants};
use wgkv::{Cache, Capacity, ChannelOrder, Chunk, Codec, Gpu, Means, Plan, Protection, Rope, Rows, Sequence, Shape, Sinks, Step};
use wgpu::util::DeviceExt;

/// Share of the words that `append` writes which may differ from the twin's: where a quotient lies so near a half that the twin rounds it
/// otherwise. The kernels' own tests allow one code or scale in 1000, one half in 100; a word holds up to 16 codes, or two halves.
pub const APPEND_TIES: f64 = 0.02;

/// Relative root mean square by which attention may differ from the twin's on the same pages. The scores are exact sums of integers, but a
/// query's code or a weight's (1/255 of the largest) may be rounded otherwise, which is rare, and `exp2` is approximate.
pub const ATTEND_ERROR: f64 = 0.002;

/// The same where RotateKV's keys are restored in halves, which a GPU does and the twin does not: a score is then off by up to 12/2048 of
/// `|q| |k| / sqrt(head_dim)` (some 14 here), by a sixth of it in the root mean square, and so are the weights.
pub const RESTORED_ERROR: f64 = 0.03;

/// How one codec did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The codec and its bits.
    pub format: String,
    /// Words that `append` wrote otherwise than the twin, and all that it wrote.
    pub words: [usize; 2],
    /// Relative root mean square between attention and the twin's: the prompt's rows, then a decoding row.
    pub errors: [f64; 2],
    /// Whether all are within their limits.
    pub agrees: bool,
}

/// What a layer holds.
#[derive(Clone, PartialEq)]
struct Held {
    /// By slab.
    pages: Vec<Vec<u32>>,
    protected_rows: Vec<u32>,
    key_scales: Vec<u32>,
    marks: Vec<u32>,
}

impl Held {
    async fn read(gpu: &Gpu, cache: &Cache) -> Result<Self> {
        let all = |buffer: &wgpu::Buffer| (buffer.clone(), buffer.size() / 4);
        let (slabs, protected_rows) = cache.layer_buffers(0)?;
        let [key_scales, marks] = cache.reordered_buffers(0)?;
        let mut pages = Vec::new();
        for (buffer, words) in slabs.iter().map(all) {
            pages.push(gpu.read(&buffer, 0, words).await?);
        }
        let read = async |buffer| {
            let (buffer, words) = all(buffer);
            gpu.read(&buffer, 0, words).await
        };
        Ok(Self { pages, protected_rows: read(protected_rows).await?, key_scales: read(key_scales).await?, marks: read(marks).await? })
    }

    /// (words that differ from another's, words that differ from what was before).
    fn compare(&self, other: &Self, before: &Self) -> [usize; 2] {
        let count = |a: &Self, b: &Self| {
            let differ = |a: &[u32], b: &[u32]| a.iter().zip(b).filter(|(a, b)| a != b).count();
            a.pages.iter().zip(&b.pages).map(|(a, b)| differ(a, b)).sum::<usize>()
                + differ(&a.protected_rows, &b.protected_rows)
                + differ(&a.key_scales, &b.key_scales)
        };
        [count(self, other), count(self, before)]
    }
}

/// A step's rows.
struct Input {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

/// A number of the standard normal distribution (Box and Muller).
fn normal(random: &mut StdRng) -> f32 {
    let (u, v): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

impl Input {
    /// Keys have means of their own by channel, as those of models do.
    fn new(random: &mut StdRng, means: &[f32], tokens: u32) -> Self {
        let mut take = |n: usize| -> Vec<f32> { (0..n * tokens as usize).map(|_| normal(random)).collect() };
        // There are two query heads a KV head.
        let (mut keys, values, queries) = (take(means.len()), take(means.len()), take(2 * means.len()));
        keys.iter_mut().zip(means.iter().cycle()).for_each(|(x, mean)| *x += mean);
        Self { keys, values, queries }
    }
}

/// The twins of `append`, `append_reordered` and `protect`, in the cache's order.
fn append(plan: &Plan, step: &Step, input: &Input, held: &mut Held) {
    let (words, turns) = (step.words(), reference::turns(plan));
    let [keys, values] = [&input.keys, &input.values].map(|rows| bytemuck::cast_slice::<f32, u32>(rows));
    let mut status = vec![0; 16];
    let before = held.protected_rows.clone();
    for ((slab, params), pages) in plan.slabs(0).iter().zip(&words.append).zip(&mut held.pages) {
        reference::append(params, &Constants::of(plan, slab), &words.tables, &turns, keys, values, &before, &held.marks, pages, &mut status);
    }
    for ((slab, params), pages) in plan.slabs(0).iter().zip(&words.append_reordered).zip(&mut held.pages) {
        let (constants, scales) = (Constants::of(plan, slab), &mut held.key_scales);
        reference::append_reordered(params, &constants, &words.tables, &turns, keys, &before, &held.marks, pages, scales, &mut status);
    }
    if let (Some(params), Some(slab)) = (words.protect.first(), plan.slabs(0).first()) {
        let (constants, rows) = (Constants::of(plan, slab), &mut held.protected_rows);
        reference::protect(params, &constants, &words.tables, &turns, keys, values, &held.marks, rows, &mut status);
    }
}

/// The twins of the kernels that attend, in the cache's order, on what a layer holds.
fn attend(cache: &Cache, step: &Step, input: &Input, held: &Held) -> Vec<f32> {
    let (plan, words) = (cache.plan(), step.words());
    let (tables, turns) = (&words.tables, reference::turns(plan));
    let Held { pages, protected_rows, key_scales, marks } = held;
    let lengths = cache.scratch_buffers().map(|buffer| buffer.size() as usize / 4);
    let (mut query_rows, mut query_codes) = (vec![0.0; lengths[0]], vec![0; lengths[1]]);
    let (mut partials, mut row_partials) = (vec![0.0; lengths[2]], vec![0.0; lengths[3]]);
    let [mut scores, plans] = cache.align_buffers().map(|buffer| vec![0.0; buffer.size() as usize / 4]);
    let mut plans: Vec<u32> = bytemuck::allocation::cast_vec(plans);
    let mut terms = vec![0.0; cache.position_terms().size() as usize / 4];
    let mut unpacked = vec![0; cache.unpacked_rows().size() as usize / 4];
    let mut output = vec![0; input.queries.len()];
    let queries = bytemuck::cast_slice(&input.queries);
    let (merge, rows) = &words.attend_merge[0];
    let slabs: Vec<_> = plan.slabs(0).iter().map(|slab| Constants::of(plan, slab)).zip(pages).collect();
    let constants = slabs[0].0;

    // A pass of a few decoding rows has one kernel in the place of those that follow.
    let direct = !words.attend_direct.is_empty();
    for ((params, items), (c, pages)) in words.attend_direct.iter().zip(&slabs) {
        reference::attend_direct(params, c, *items, tables, &turns, marks, protected_rows, pages, queries, &mut partials);
    }
    reference::query(&words.query[0], &constants, *rows, tables, &turns, queries, marks, &mut query_rows, &mut query_codes);
    for (params, items) in words.position.iter().filter(|(_, items)| *items > 0) {
        reference::position(params, &constants, *items, tables, &turns, queries, marks, &mut terms);
    }
    let splits = |items: u32| items > 0 && words.align_plan.is_empty() && !direct;
    for ((params, items), (c, pages)) in words.attend_split.iter().zip(&slabs).filter(|((_, items), _)| splits(*items)) {
        reference::attend_split(params, c, *items, tables, &turns, &query_codes, marks, key_scales, pages, &terms, &mut partials);
    }
    for (params, items) in &words.attend_rows {
        reference::attend_rows(params, &constants, *items, tables, &query_rows, &turns, marks, protected_rows, &mut row_partials);
    }
    // Scratch holds all tokens of so small a cache unpacked, so that one round attends to them.
    for ((params, items), (c, pages)) in words.unpack.iter().zip(&slabs) {
        reference::unpack(params, c, *items, tables, &turns, marks, key_scales, pages, protected_rows, &mut unpacked);
    }
    for (params, items) in &words.attend_prefill {
        if plan.matrices() {
            let params = AttendMatricesParams { items_at: params.items_at, kv_heads: params.kv_heads, pad: [0; 2] };
            reference::attend_matrices(&params, &constants, *items, tables, &query_rows, &unpacked, marks, &mut row_partials);
        } else {
            reference::attend_prefill(params, &constants, *items, tables, &query_rows, &unpacked, marks, &mut row_partials);
        }
    }
    for (n, (c, pages)) in slabs.iter().enumerate().take(words.align_plan.len()) {
        let (([keys, values], decoding), (score, score_items), (row, row_items)) = (&words.align_plan[n], &words.align_scores[n], &words.align_values[n]);
        reference::align_plan(keys, c, *decoding, true, tables, &query_codes, &scores, &row_partials, pages, &mut plans);
        reference::align_scores(score, c, *score_items, tables, &turns, &query_codes, &plans, pages, &terms, &mut scores);
        reference::align_plan(values, c, *decoding, false, tables, &query_codes, &scores, &row_partials, pages, &mut plans);
        reference::align_values(row, c, *row_items, tables, &scores, &plans, pages, &mut partials);
    }
    let constants = Constants { direct, ..constants };
    reference::attend_merge(merge, &constants, *rows, tables, &partials, &row_partials, marks, &query_rows, &mut output, None);
    bytemuck::allocation::cast_vec(output)
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    let (error, length) = got.iter().zip(want).fold((0.0, 0.0), |(error, length), (a, b)| {
        let (a, b) = (f64::from(*a), f64::from(*b));
        (error + (a - b).powi(2), length + b * b)
    });
    (error / length).sqrt()
}

/// One layer's cache, step by step.
struct Walk<'a> {
    gpu: &'a Gpu,
    cache: Cache,
    sequence: Sequence,
    words: [usize; 2],
}

impl Walk<'_> {
    /// Takes a step on the GPU and with the twins. Returns the relative error of attention.
    async fn take(&mut self, input: &Input, tokens: u32) -> Result<f64> {
        let device = self.gpu.device();
        let before = Held::read(self.gpu, &self.cache).await?;
        let step = self.cache.step(&[Chunk { sequence: self.sequence, tokens }])?;
        let zeros = vec![0.0; input.queries.len()];
        let buffers = [&input.keys, &input.values, &input.queries, &zeros].map(|rows| {
            device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: Some("check"),
                contents: bytemuck::cast_slice(rows),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            })
        });
        let [keys, values, queries, output] = buffers.each_ref().map(Rows::f32);
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("check") });
        self.cache.append(&mut encoder, &step, 0, keys, values)?;
        self.cache.attend(&mut encoder, &step, 0, queries, output)?;
        self.gpu.queue().submit([encoder.finish()]);
        let got: Vec<f32> = bytemuck::allocation::cast_vec(self.gpu.read(&buffers[3], 0, zeros.len() as u64).await?);
        buffers.iter().for_each(wgpu::Buffer::destroy);
        let after = Held::read(self.gpu, &self.cache).await?;

        let mut twin = before.clone();
        append(self.cache.plan(), &step, input, &mut twin);
        let [differ, written] = after.compare(&twin, &before);
        self.words = [self.words[0] + differ, self.words[1] + written];
        Ok(relative(&got, &attend(&self.cache, &step, input, &after)))
    }
}

/// Tokens of the prompt, which ends beyond a page, in two chunks.
const PROMPT: [u32; 2] = [40, 130];

/// A cache of one codec, with sinks and a window, and what is drawn for it: the means of the keys, and everything after. The same seed gives
/// the same numbers everywhere.
async fn drawn(gpu: &Gpu, codec: Codec, bits: u32, seed: u64) -> Result<(Cache, Vec<f32>, StdRng)> {
    let mut random = StdRng::seed_from_u64(seed);
    let shape = Shape { layers: 1, query_heads: 8, kv_heads: 4, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let key_width = 256;
    let means: Vec<f32> = (0..key_width).map(|_| 1.5 * normal(&mut random)).collect();
    let format = codecs::format(codec, bits)?;
    let protection = Protection { sinks: Sinks::First(4), window: 16 };
    let mut builder = Plan::builder(shape.clone(), format).protection(protection).capacity(Capacity::tokens(1, 256));
    match codec {
        Codec::RotateKv => {
            let sums = vec![means.iter().map(|mean| f64::from(*mean)).collect()];
            builder = builder.learned(ChannelOrder::from_sums(&shape, format.heads_per_group(shape.kv_heads), Reach::Global, "check", 1, sums)?);
        }
        Codec::Centred => {
            // Weights are alike within a pair of RoPE: of channels i and i + 32.
            let weights = (0..key_width).map(|i| 1.0 + (i % 32) as f32 / 32.0).collect();
            let values = means.iter().map(|mean| 0.5 * mean).collect();
            builder = builder.learned(Means::new(&shape, "check", vec![[means.clone(), weights, values]])?);
        }
        _ => {}
    }
    let plan = builder.build(gpu.capability())?;
    gpu.prepare(&plan).await?;
    Ok((Cache::new(gpu, plan)?, means, random))
}

/// By how much attention may differ from the twin's.
fn allowed(plan: &Plan) -> f64 {
    let halves = plan.format().codec() == Codec::RotateKv && plan.restore() != Restore::Rolled;
    if halves { RESTORED_ERROR } else { ATTEND_ERROR }
}

/// Appends and attends with one codec on random numbers, on the GPU and with the twins: a prompt and a decoding step.
///
/// # Errors
/// Those of the library; a disagreement is none.
pub async fn check(gpu: &Gpu, codec: Codec, bits: u32, seed: u64) -> Result<Report> {
    let (mut cache, means, mut random) = drawn(gpu, codec, bits, seed).await?;
    let sequence = cache.begin()?;
    let mut walk = Walk { gpu, cache, sequence, words: [0; 2] };
    let mut errors = [0.0; 2];
    for (tokens, error) in [(PROMPT[0], 0), (PROMPT[1], 0), (1, 1)] {
        errors[error] = walk.take(&Input::new(&mut random, &means, tokens), tokens).await?;
    }
    let [differ, written] = walk.words;
    let (most, format) = (allowed(walk.cache.plan()), walk.cache.plan().format().to_string());
    walk.cache.destroy();
    // A NaN is not below its limit.
    let agrees = differ as f64 <= APPEND_TIES * written as f64 && written > 0 && errors.iter().all(|error| *error < most);
    Ok(Report { format, words: [differ, written], errors, agrees })
}

/// What [`check`]'s prompt leaves in the cache, as a snapshot for [`exchange`] on another device.
///
/// # Errors
/// Those of the library.
pub async fn snapshot(gpu: &Gpu, codec: Codec, bits: u32, seed: u64) -> Result<Vec<u8>> {
    let (mut cache, means, mut random) = drawn(gpu, codec, bits, seed).await?;
    let sequence = cache.begin()?;
    let mut walk = Walk { gpu, cache, sequence, words: [0; 2] };
    for tokens in PROMPT {
        walk.take(&Input::new(&mut random, &means, tokens), tokens).await?;
    }
    let bytes = walk.cache.save(sequence).await?;
    walk.cache.destroy();
    Ok(bytes)
}

/// How a snapshot of another device did here.
#[derive(Clone, Debug, Serialize)]
pub struct Exchange {
    /// The codec and its bits.
    pub format: String,
    /// Whether what was loaded, saved again, is the same in every bit.
    pub same: bool,
    /// Relative root mean square between a decoding row's attention over it and the twin's.
    pub error: f64,
    /// Whether it is the same, and the error within its limit.
    pub agrees: bool,
}

/// The tensors of a safetensors file, which lie alike in all files of the same names and shapes.
fn data(bytes: &[u8]) -> &[u8] {
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize);
    bytes.get(8 + length..).unwrap_or_default()
}

/// Loads a [`snapshot`] that another device made, saves it again, and decodes a token after it.
///
/// # Errors
/// Those of the library; a disagreement is none.
pub async fn exchange(gpu: &Gpu, codec: Codec, bits: u32, seed: u64, bytes: &[u8]) -> Result<Exchange> {
    let (mut cache, means, mut random) = drawn(gpu, codec, bits, seed).await?;
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("exchange") });
    let sequence = cache.load(&mut encoder, bytes)?;
    gpu.queue().submit([encoder.finish()]);
    let again = cache.save(sequence).await?;
    let same = !data(bytes).is_empty() && data(bytes) == data(&again);
    // The numbers of the prompt come first.
    PROMPT.iter().for_each(|tokens| drop(Input::new(&mut random, &means, *tokens)));
    let mut walk = Walk { gpu, cache, sequence, words: [0; 2] };
    let error = walk.take(&Input::new(&mut random, &means, 1), 1).await?;
    let (most, format) = (allowed(walk.cache.plan()), walk.cache.plan().format().to_string());
    walk.cache.destroy();
    // A NaN is not below its limit.
    Ok(Exchange { format, same, error, agrees: same && error < most })
}
