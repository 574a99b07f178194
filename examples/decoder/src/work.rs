//! The buffers of a step, and the dispatches between them.

use wgkv::low_level::{Pipeline, Variant};
use wgkv::{Chunk, Gpu, Rows};

use crate::decoder::{Decoder, Inner, Kind, LayerRows, Product, Scored, Watch};
use crate::error::{Error, Result};
use crate::kernel::embed::EmbedParams;
use crate::kernel::heads::HeadsParams;
use crate::kernel::normalize::{NormalizeParams, Output};
use crate::kernel::sample::{SampleParams, SampleRow};
use crate::kernel::{embed, heads, normalize, project, project_matrix, project_tiles, sample};
use crate::kv_cache::KvCache;
use crate::matrix::filled;
use crate::recorder::Recorder;

/// Rows come in tiles of this many: buffers have room for whole ones, since kernels write them.
const TILE: u32 = 64;

/// Buffers for steps of some number of tokens, and bind groups that join them with a model's
/// weights. One step uses them at a time.
#[derive(Debug)]
pub struct Work {
    device: Device,
    vocabulary: u32,
    hidden: u32,
    query_heads: u32,
    kv_heads: u32,
    rows: u32,
    scored_rows: u32,
    buffers: Buffers,
    embed: Vec<Call>,
    layers: Vec<LayerCalls>,
    head: Scoring,
    sample: Call,
    /// Rows whose scores were recorded last.
    scored: u32,
    /// Whether the last rows of a step's chunks are all of its rows.
    singles: bool,
    chunks: u32,
    /// The frequencies of layers that the decoder may have to turn, each set once.
    frequencies: Vec<Vec<f64>>,
}

#[derive(Debug)]
struct Buffers {
    ids: wgpu::Buffer,
    x: wgpu::Buffer,
    /// Rows that a product of many rows reads.
    normed: wgpu::Buffer,
    /// Rows that are scored.
    selected: wgpu::Buffer,
    sources: wgpu::Buffer,
    /// Queries, then keys, then values.
    rows: wgpu::Buffer,
    at: [u32; 3],
    attended: wgpu::Buffer,
    gated: wgpu::Buffer,
    /// What attention or MLP puts out, where a norm comes before the stream.
    branch: wgpu::Buffer,
    scores: wgpu::Buffer,
    sampling: wgpu::Buffer,
    waves: wgpu::Buffer,
    /// Rows of a step, at most.
    most: u32,
    /// Bound where a kernel reads or writes nothing.
    nothing: wgpu::Buffer,
    nowhere: wgpu::Buffer,
}

/// A dispatch whose bindings are known.
#[derive(Clone, Debug)]
struct Call {
    pipeline: Pipeline,
    group: wgpu::BindGroup,
}

/// A product with one block of a matrix.
#[derive(Debug)]
struct BlockCalls {
    outputs: u32,
    one: Call,
    few: Call,
    many: Call,
}

/// A product, and what brings many rows into the form that it reads.
#[derive(Debug)]
struct ProductCalls {
    blocks: Vec<BlockCalls>,
    /// None where many rows are read as they are.
    prepare: Option<Call>,
}

#[derive(Debug)]
struct LayerCalls {
    rows: Vec<ProductCalls>,
    heads: Option<Call>,
    /// The same where the cache does not turn the heads.
    heads_turned: Option<Call>,
    output: ProductCalls,
    /// Norms the output and adds it to the stream.
    output_norm: Option<Call>,
    gate_up: ProductCalls,
    down: ProductCalls,
    /// The same of the MLP's output.
    down_norm: Option<Call>,
}

/// The head: from the stream itself where every row is scored, else from selected rows.
#[derive(Debug)]
struct Scoring {
    all: ProductCalls,
    select: Call,
    selected: ProductCalls,
}

/// Where a product reads and writes.
struct Route<'a> {
    /// A few rows, f32, before the norm.
    few: &'a wgpu::Buffer,
    /// Many rows, as `prepare` leaves them.
    many: &'a wgpu::Buffer,
    out: &'a wgpu::Buffer,
}

impl Call {
    fn new(gpu: &Gpu, variant: &Variant, buffers: &[&wgpu::Buffer]) -> Self {
        let pipeline = gpu.pipeline(variant);
        let bindings: Vec<wgpu::BufferBinding<'_>> = buffers.iter().map(|buffer| buffer.as_entire_buffer_binding()).collect();
        let group = pipeline.bind_in_order(gpu, 0, &bindings);
        Self { pipeline, group }
    }

    fn run(&self, gpu: &Gpu, recorder: &mut Recorder, grid: [u32; 3]) {
        self.pipeline.dispatch(gpu, recorder.pass(), &[(&self.group, &[])], grid);
    }
}

fn uniform(gpu: &Gpu, params: &impl bytemuck::Pod) -> wgpu::Buffer {
    filled(gpu, "params", bytemuck::bytes_of(params), wgpu::BufferUsages::UNIFORM)
}

impl Product {
    /// The product's dispatches. Many rows are first normed or made halves by `prepare` from
    /// `route.few`, where that is needed.
    fn calls(&self, inner: &Inner, buffers: &Buffers, route: &Route<'_>, at: impl Fn(Kind) -> u32) -> ProductCalls {
        let gpu = &inner.gpu;
        let nothing = &buffers.nothing;
        let [one, few, many] = self.variants(inner, buffers.most);
        let (norm, bias) = (self.norm.as_ref().unwrap_or(nothing), self.bias.as_ref().unwrap_or(nothing));
        let matrix = self.matrix(inner);
        let halves = gpu.capability().matrices;
        let block = |(block, params): (&crate::matrix::Block, _)| {
            let params = uniform(gpu, &params);
            let bound = |variant: &Variant, x: &wgpu::Buffer| Call::new(gpu, variant, &[&params, &block.buffer, x, norm, bias, route.out]);
            let many = match (halves, self.epilogue.is_gated()) {
                (true, true) => Call::new(gpu, &many, &[&params, &block.buffer, route.many, norm, bias, &buffers.nowhere, route.out]),
                (true, false) => Call::new(gpu, &many, &[&params, &block.buffer, route.many, norm, bias, route.out, &buffers.nowhere]),
                (false, _) => bound(&many, route.many),
            };
            BlockCalls { outputs: block.rows, one: bound(&one, route.few), few: bound(&few, route.few), many }
        };
        let prepare = (route.few != route.many).then(|| {
            let params = uniform(gpu, &NormalizeParams { columns: matrix.columns, epsilon: inner.config.norm_epsilon as f32, pad: [0; 2] });
            let variant = normalize::variant(self.norm.is_some(), false, inner.rows_output());
            Call::new(gpu, &variant, &[&params, route.few, norm, nothing, route.many])
        });
        ProductCalls { blocks: matrix.blocks.iter().zip(self.params(inner, at)).map(block).collect(), prepare }
    }
}

impl ProductCalls {
    /// Records it. Many rows are prepared unless a product before did the same.
    fn run(&self, device: &Device, recorder: &mut Recorder, rows: u32, prepares: bool) {
        if rows <= project::ROWS {
            for block in &self.blocks {
                let call = if rows == 1 { &block.one } else { &block.few };
                call.run(&device.gpu, recorder, project::grid(block.outputs, rows, rows == 1, device.lanes, device.gpu.capability().workgroups));
            }
            return;
        }
        if let Some(prepare) = self.prepare.as_ref().filter(|_| prepares) {
            prepare.run(&device.gpu, recorder, [rows, 1, 1]);
        }
        for block in &self.blocks {
            let grid = match device.gpu.capability().matrices {
                true => project_matrix::grid(block.outputs, rows, device.tiles),
                false => project_tiles::grid(block.outputs, rows),
            };
            block.many.run(&device.gpu, recorder, grid);
        }
    }
}

/// What dispatches need of the device.
#[derive(Debug)]
struct Device {
    gpu: Gpu,
    lanes: project::Lanes,
    /// Tiles of rows that a workgroup of `project_matrix` has.
    tiles: u32,
}

impl Buffers {
    fn new(inner: &Inner, rows: u32, scored: u32) -> Result<Self> {
        let (gpu, config) = (&inner.gpu, &inner.config);
        let padded = u64::from(rows.next_multiple_of(TILE));
        let scored_padded = u64::from(if scored <= project::ROWS { scored.next_multiple_of(4) } else { scored.next_multiple_of(TILE) });
        let hidden = config.hidden as u64;
        let [queries, keys] = [config.query_heads, config.kv_heads].map(|heads| (heads * config.head_dim) as u64);
        let pairs: u64 = inner.frequencies.iter().map(|set| set.len() as u64).sum();
        let limit = gpu.capability().binding_bytes.min(gpu.capability().buffer_bytes);
        let make = |label: &'static str, numbers: u64| -> Result<wgpu::Buffer> {
            let size = (4 * numbers).max(16);
            if size > limit {
                return Err(wgkv::Error::Limit { what: "max_storage_buffer_binding_size", reason: label, need: size, have: limit }.into());
            }
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            Ok(gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false }))
        };
        Ok(Self {
            most: rows,
            ids: make("tokens of a step", padded)?,
            x: make("residual stream of a step", padded * hidden)?,
            normed: make("normed rows of a step", padded * hidden.max(queries))?,
            selected: make("rows that are scored", scored_padded * hidden)?,
            sources: make("numbers of the rows that are scored", scored_padded)?,
            rows: make("queries, keys and values of a step", padded * (queries + 2 * keys))?,
            at: [0, padded * queries, padded * (queries + keys)].map(|at| at as u32),
            attended: make("outputs of attention of a step", padded * queries)?,
            gated: make("gated rows of a step", padded * config.intermediate as u64)?,
            branch: make("outputs of a branch before its norm", if config.branch_norms { padded * hidden } else { 0 })?,
            scores: make("scores of the vocabulary", scored_padded * config.vocabulary as u64)?,
            sampling: make("sampling", scored_padded * (size_of::<SampleRow>() / 4) as u64)?,
            waves: make("turns of a step's rows", 2 * padded * pairs)?,
            nothing: make("nothing", 4)?,
            nowhere: make("nowhere", 4)?,
        })
    }

    /// Where the waves of a set of frequencies lie, which turn `rotary` channels.
    fn waves_at(&self, set: usize, rotary: usize) -> u32 {
        set as u32 * self.most.next_multiple_of(TILE) * (rotary as u32 / 2)
    }

    fn at(&self, kind: Kind) -> u32 {
        self.at[kind as usize]
    }
}

impl Work {
    pub(crate) async fn new(decoder: &Decoder, rows: u32, scored: u32) -> Result<Self> {
        let inner = &*decoder.inner;
        if rows == 0 || scored == 0 || scored > rows {
            return Err(wgkv::Error::argument("rows that are scored at once", format!("1 to {rows}, the rows of a step"), scored).into());
        }
        let watch = Watch::new(&inner.gpu);
        let made = Self::on(inner, rows, scored);
        if !watch.fits().await {
            let bytes = made.as_ref().map_or(0, Self::bytes);
            return Err(wgkv::Error::Memory { need: bytes }.into());
        }
        made
    }

    fn on(inner: &Inner, rows: u32, scored: u32) -> Result<Self> {
        let (gpu, config) = (&inner.gpu, &inner.config);
        let buffers = Buffers::new(inner, rows, scored)?;
        let b = &buffers;
        let halves = gpu.capability().matrices;
        let zero = |_| 0;
        let embedding = &inner.embedding;
        let embed = embedding.blocks.iter().map(|block| {
            let params = EmbedParams {
                columns: embedding.columns,
                rows,
                high_at: block.high_at,
                scales_at: block.scales_at,
                first: block.first,
                count: block.rows,
                factor: config.embedding_scale as f32,
                pad: 0,
            };
            Call::new(gpu, &embed::variant(embedding.layout, inner.scales_embedding()), &[&uniform(gpu, &params), &block.buffer, &b.ids, &b.x])
        });
        let from_stream = |out| Route { few: &b.x, many: &b.normed, out };
        let layer = |layer: &crate::decoder::Layer| {
            let norms = layer.head_norm.is_some();
            let heads = |turn: Option<usize>| {
                let params = HeadsParams {
                    head_dim: config.head_dim as u32,
                    query_heads: config.query_heads as u32,
                    kv_heads: config.kv_heads as u32,
                    keys_at: b.at(Kind::Key),
                    pairs: config.rotary as u32 / 2,
                    epsilon: config.norm_epsilon as f32,
                    waves_at: turn.map_or(0, |set| b.waves_at(set, config.rotary)),
                    pad: 0,
                };
                let norm = layer.head_norm.as_ref().unwrap_or(&b.nothing);
                Call::new(gpu, &heads::variant(norms, turn.is_some()), &[&uniform(gpu, &params), &b.rows, norm, &b.waves])
            };
            let branch = if config.branch_norms { &b.branch } else { &b.x };
            let attended = Route { few: &b.attended, many: if halves { &b.normed } else { &b.attended }, out: branch };
            let added = |norm: &Option<wgpu::Buffer>| {
                norm.as_ref().map(|norm| {
                    let params = NormalizeParams { columns: config.hidden as u32, epsilon: config.norm_epsilon as f32, pad: [0; 2] };
                    Call::new(gpu, &normalize::variant(true, false, Output::Added), &[&uniform(gpu, &params), branch, norm, &b.nothing, &b.x])
                })
            };
            LayerCalls {
                rows: layer.rows.iter().map(|product| product.calls(inner, b, &from_stream(&b.rows), |kind| b.at(kind))).collect(),
                heads: norms.then(|| heads(None)),
                heads_turned: layer.turn.map(|turn| heads(Some(turn))),
                output: layer.output.calls(inner, b, &attended, zero),
                output_norm: added(&layer.output_norm),
                gate_up: layer.gate_up.calls(inner, b, &from_stream(&b.gated), zero),
                down: layer.down.calls(inner, b, &Route { few: &b.gated, many: &b.gated, out: branch }, zero),
                down_norm: added(&layer.down_norm),
            }
        };
        let params = NormalizeParams { columns: config.hidden as u32, epsilon: 0.0, pad: [0; 2] };
        let select = Call::new(gpu, &normalize::variant(false, true, Output::Numbers), &[&uniform(gpu, &params), &b.x, &b.nothing, &b.sources, &b.selected]);
        let head = Scoring {
            all: inner.head.calls(inner, b, &from_stream(&b.scores), zero),
            select,
            selected: inner.head.calls(inner, b, &Route { few: &b.selected, many: &b.normed, out: &b.scores }, zero),
        };
        let params = SampleParams { vocabulary: config.vocabulary as u32, first: 0, pad: [0; 2] };
        let sample = Call::new(gpu, &sample::variant(), &[&uniform(gpu, &params), &b.scores, &b.sampling, &b.ids]);
        Ok(Self {
            device: Device { gpu: gpu.clone(), lanes: inner.lanes, tiles: project_matrix::tiles(rows) },
            vocabulary: config.vocabulary as u32,
            hidden: config.hidden as u32,
            query_heads: config.query_heads as u32,
            kv_heads: config.kv_heads as u32,
            rows,
            scored_rows: scored,
            embed: embed.collect(),
            layers: inner.layers.iter().map(layer).collect(),
            head,
            sample,
            scored: 0,
            singles: false,
            chunks: 0,
            frequencies: inner.frequencies.clone(),
            buffers,
        })
    }

    /// Returns the most tokens that a step may have.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Returns the bytes of the buffers on the device.
    pub fn bytes(&self) -> u64 {
        let b = &self.buffers;
        let all = [&b.ids, &b.x, &b.normed, &b.selected, &b.sources, &b.rows, &b.attended, &b.gated, &b.branch, &b.scores, &b.sampling, &b.waves];
        all.into_iter().map(wgpu::Buffer::size).sum()
    }

    /// Sets the tokens of the next step, those of all its chunks one after another.
    ///
    /// # Errors
    /// [`Error::Token`], and [`wgkv::Error::Mismatch`] for more tokens than rows.
    pub fn write_ids(&self, ids: &[u32]) -> Result<()> {
        self.expect_rows(ids.len())?;
        if let Some(&id) = ids.iter().find(|id| **id >= self.vocabulary) {
            return Err(Error::Token { id, vocabulary: self.vocabulary as usize });
        }
        self.device.gpu.queue().write_buffer(&self.buffers.ids, 0, bytemuck::cast_slice(ids));
        Ok(())
    }

    fn expect_rows(&self, rows: usize) -> Result<()> {
        if rows > self.rows as usize {
            return Err(wgkv::Error::argument("tokens of a step", format!("{} at most", self.rows), rows).into());
        }
        Ok(())
    }

    /// Sets how the tokens of scored rows are chosen, in their order.
    ///
    /// # Errors
    /// [`wgkv::Error::Mismatch`] for more than are scored at once.
    pub fn write_sampling(&self, rows: &[SampleRow]) -> Result<()> {
        if rows.len() > self.scored_rows as usize {
            return Err(wgkv::Error::argument("rows that are scored", format!("{} at most", self.scored_rows), rows.len()).into());
        }
        self.device.gpu.queue().write_buffer(&self.buffers.sampling, 0, bytemuck::cast_slice(rows));
        Ok(())
    }

    /// Returns the buffer of tokens, u32, in which the chosen ones are the first.
    pub fn ids(&self) -> &wgpu::Buffer {
        &self.buffers.ids
    }

    /// Returns the buffer of scores, f32 `[scored rows, vocabulary]`.
    pub fn scores(&self) -> &wgpu::Buffer {
        &self.buffers.scores
    }

    /// Returns the residual stream, f32 `[rows, hidden]`: of the last layer after a step.
    pub fn stream(&self) -> &wgpu::Buffer {
        &self.buffers.x
    }

    /// Begins a step, and writes which rows are the last of their chunks.
    pub(crate) fn begin<C: KvCache>(&mut self, inner: &Inner, cache: &mut C, chunks: &[Chunk]) -> Result<C::Step> {
        let rows: usize = chunks.iter().map(|chunk| chunk.tokens as usize).sum();
        self.expect_rows(rows)?;
        let firsts = chunks.iter().map(|chunk| cache.tokens(chunk.sequence)).collect::<wgkv::Result<Vec<u32>>>()?;
        let step = cache.step(chunks)?;
        self.singles = chunks.iter().all(|chunk| chunk.tokens == 1);
        self.chunks = chunks.len() as u32;
        let queue = self.device.gpu.queue();
        if !self.singles && chunks.len() <= self.scored_rows as usize {
            let mut last = 0;
            let sources: Vec<u32> = chunks
                .iter()
                .map(|chunk| {
                    last += chunk.tokens;
                    last.saturating_sub(1)
                })
                .collect();
            queue.write_buffer(&self.buffers.sources, 0, bytemuck::cast_slice(&sources));
        }
        for (set, frequencies) in self.frequencies.iter().enumerate() {
            let mut of_set = (0..inner.layers.len()).filter(|layer| inner.layers[*layer].turn == Some(set));
            if !of_set.try_fold(false, |turns, layer| Ok::<bool, Error>(turns || inner.turns(cache, layer)?))? {
                continue;
            }
            let positions = firsts.iter().zip(chunks).flat_map(|(first, chunk)| *first..*first + chunk.tokens);
            let waves: Vec<[f32; 2]> = positions
                .flat_map(|position| frequencies.iter().map(move |frequency| (f64::from(position) * frequency).sin_cos()))
                .map(|(sin, cos)| [cos as f32, sin as f32])
                .collect();
            let at = 8 * u64::from(self.buffers.waves_at(set, 2 * frequencies.len()));
            queue.write_buffer(&self.buffers.waves, at, bytemuck::cast_slice(&waves));
        }
        Ok(step)
    }

    pub(crate) fn embed(&self, recorder: &mut Recorder, rows: u32) {
        for call in &self.embed {
            call.run(&self.device.gpu, recorder, embed::grid(self.hidden, rows));
        }
    }

    /// Queries, keys and values of a layer, turned or left for the cache to turn.
    pub(crate) fn attention_rows(&self, recorder: &mut Recorder, layer: usize, rows: u32, turned: bool) {
        let calls = &self.layers[layer];
        for (n, product) in calls.rows.iter().enumerate() {
            // Products that were split have the same norm before them.
            product.run(&self.device, recorder, rows, n == 0);
        }
        if let Some(heads) = if turned { &calls.heads_turned } else { &calls.heads } {
            heads.run(&self.device.gpu, recorder, [self.query_heads + self.kv_heads, rows, 1]);
        }
    }

    pub(crate) fn layer_rows(&self, layer: u32, rows: u32) -> LayerRows<'_> {
        let b = &self.buffers;
        let of = |kind| Rows::f32(&b.rows).at(4 * u64::from(b.at(kind)));
        LayerRows { layer, rows, residual: Rows::f32(&b.x), queries: of(Kind::Query), keys: of(Kind::Key), values: of(Kind::Value) }
    }

    pub(crate) fn attention_output(&self) -> Rows<'_> {
        Rows::f32(&self.buffers.attended)
    }

    /// What follows a layer's attention.
    pub(crate) fn rest(&self, recorder: &mut Recorder, layer: usize, rows: u32) {
        let calls = &self.layers[layer];
        calls.output.run(&self.device, recorder, rows, true);
        if let Some(norm) = &calls.output_norm {
            norm.run(&self.device.gpu, recorder, [rows, 1, 1]);
        }
        calls.gate_up.run(&self.device, recorder, rows, true);
        calls.down.run(&self.device, recorder, rows, true);
        if let Some(norm) = &calls.down_norm {
            norm.run(&self.device.gpu, recorder, [rows, 1, 1]);
        }
    }

    pub(crate) fn score(&mut self, recorder: &mut Recorder, of: Scored) -> Result<()> {
        let count = match &of {
            Scored::Last => self.chunks,
            Scored::Rows(rows) => rows.len() as u32,
        };
        if count > self.scored_rows {
            return Err(wgkv::Error::argument("rows that are scored", format!("{} at most", self.scored_rows), count).into());
        }
        self.scored = count;
        if of == Scored::Last && self.singles {
            self.head.all.run(&self.device, recorder, count, true);
            return Ok(());
        }
        if let Scored::Rows(rows) = of {
            let sources: Vec<u32> = rows.collect();
            // A buffer that is written by the queue changes before what is recorded runs, so what
            // was recorded with other rows goes first.
            recorder.submit();
            self.device.gpu.queue().write_buffer(&self.buffers.sources, 0, bytemuck::cast_slice(&sources));
        }
        self.head.select.run(&self.device.gpu, recorder, [count, 1, 1]);
        self.head.selected.run(&self.device, recorder, count, true);
        Ok(())
    }

    pub(crate) fn sample(&self, recorder: &mut Recorder) {
        self.sample.run(&self.device.gpu, recorder, [self.scored, 1, 1]);
    }
}
