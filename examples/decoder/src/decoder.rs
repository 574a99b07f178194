//! A model on the GPU.

use std::sync::Arc;

use wgkv::low_level::Variant;
use wgkv::{Chunk, Gpu, Plan, PlanBuilder, Rows, Storage};

use crate::config::{Config, LayerGroup};
use crate::error::Result;
use crate::format::Stored;
use crate::kernel::normalize::Output;
use crate::kernel::project::{Epilogue, Lanes, ProjectParams, lanes};
use crate::kernel::{embed, heads, normalize, project, project_matrix, project_tiles, sample};
use crate::kv_cache::KvCache;
use crate::layout::Layout;
use crate::matrix::{Matrix, filled, widened};
use crate::model::{Model, Part};
use crate::recorder::Recorder;
use crate::work::Work;

/// Standard deviation of random weights: what models are initialised with.
const SPREAD: f32 = 0.02;

/// A model whose weights are on the GPU, as they are stored. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub gpu: Gpu,
    pub config: Config,
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    /// Logits of the sinks, `[layers, query_heads]`, where the model has them.
    pub sinks: Option<Vec<f32>>,
    /// The frequencies that layers rotate by, each set once, where layers differ in them.
    pub frequencies: Vec<Vec<f64>>,
    pub head: Product,
    pub lanes: Lanes,
}

#[derive(Debug)]
pub(crate) struct Layer {
    /// What makes queries, keys and values: together where they are stored alike.
    pub rows: Vec<Product>,
    /// RMSNorm of queries and keys by head: weights of both.
    pub head_norm: Option<wgpu::Buffer>,
    /// Which of the sets of frequencies turns its queries and keys, where layers differ in that and
    /// the cache does not do it.
    pub turn: Option<usize>,
    pub output: Product,
    /// RMSNorm of the attention's projected output, which is then added to the stream by itself.
    pub output_norm: Option<wgpu::Buffer>,
    pub gate_up: Product,
    pub down: Product,
    /// The same of the MLP's output.
    pub down_norm: Option<wgpu::Buffer>,
}

/// A matrix, and what comes before and after the product with it.
#[derive(Debug)]
pub(crate) struct Product {
    /// None for a head that is the embedding.
    pub matrix: Option<Matrix>,
    pub epilogue: Epilogue,
    pub norm: Option<wgpu::Buffer>,
    pub bias: Option<wgpu::Buffer>,
    /// Which of queries, keys and values its outputs are, if they are that.
    pub kinds: Vec<Kind>,
}

/// What rows of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Query,
    Key,
    Value,
}

/// Rows of one layer on their way into the cache: queries, keys and values before RoPE, all f32.
#[derive(Debug)]
pub struct LayerRows<'a> {
    /// The layer.
    pub layer: u32,
    /// Rows: the new tokens of all sequences, one sequence after another.
    pub rows: u32,
    /// The residual stream that enters the layer, `[rows, hidden]`.
    pub residual: Rows<'a>,
    /// `[rows, query_heads, head_dim]`.
    pub queries: Rows<'a>,
    /// `[rows, kv_heads, head_dim]`.
    pub keys: Rows<'a>,
    /// `[rows, kv_heads, head_dim]`.
    pub values: Rows<'a>,
}

/// What sees the rows of every layer before the cache does, and may change them.
pub trait Tap {
    /// Records on the encoder or pass of `recorder`, or submits what is recorded and reads.
    ///
    /// # Errors
    /// Its own, which end the step.
    fn layer(&mut self, recorder: &mut Recorder, rows: &LayerRows<'_>) -> Result<()>;
}

/// Finds whether the device had the memory for what is made.
pub(crate) struct Watch {
    memory: wgpu::ErrorScopeGuard,
    // Writing to a buffer that was refused is an error of its own, which nobody needs to see. The
    // scope that was opened last closes first.
    validation: wgpu::ErrorScopeGuard,
}

impl Watch {
    pub fn new(gpu: &Gpu) -> Self {
        let memory = gpu.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        Self { memory, validation: gpu.device().push_error_scope(wgpu::ErrorFilter::Validation) }
    }

    /// Whether all of it was given.
    pub async fn fits(self) -> bool {
        let invalid = self.validation.pop().await;
        self.memory.pop().await.is_none() && invalid.is_none()
    }
}

/// Loads the parts of a model.
struct Loader<'a> {
    gpu: &'a Gpu,
    model: &'a Model,
}

impl Loader<'_> {
    fn vector(&self, part: Part) -> Result<wgpu::Buffer> {
        let numbers = self.model.tensor(part)?.numbers();
        Ok(filled(self.gpu, "vector", bytemuck::cast_slice(&numbers), wgpu::BufferUsages::STORAGE))
    }

    /// The biases of parts, one after another, if the model has them.
    fn bias(&self, parts: &[Part]) -> Result<Option<wgpu::Buffer>> {
        if !parts.iter().any(|part| self.model.has(*part)) {
            return Ok(None);
        }
        let mut numbers = Vec::new();
        for part in parts {
            numbers.extend(self.model.tensor(*part)?.numbers());
        }
        Ok(Some(filled(self.gpu, "bias", bytemuck::cast_slice(&numbers), wgpu::BufferUsages::STORAGE)))
    }

    /// Uploads matrices whose rows are stacked.
    fn stacked(&self, matrices: &[Stored]) -> Result<Matrix> {
        let rows: Vec<(&Stored, usize)> = matrices.iter().flat_map(|matrix| (0..matrix.rows).map(move |row| (matrix, row))).collect();
        Matrix::upload(self.gpu, Layout::of(matrices[0].format), matrices[0].columns, &rows)
    }

    /// Uploads two matrices whose rows come in turn.
    fn paired(&self, [mut a, mut b]: [Stored; 2]) -> Result<Matrix> {
        if Layout::of(a.format) != Layout::of(b.format) {
            (a, b) = (widened(&a), widened(&b));
        }
        let rows: Vec<(&Stored, usize)> = (0..a.rows).flat_map(|row| [(&a, row), (&b, row)]).collect();
        Matrix::upload(self.gpu, Layout::of(a.format), a.columns, &rows)
    }

    fn layer(&self, config: &Config, n: usize) -> Result<Layer> {
        let parts =
            [(Kind::Query, Part::Query(n), Part::QueryBias(n)), (Kind::Key, Part::Key(n), Part::KeyBias(n)), (Kind::Value, Part::Value(n), Part::ValueBias(n))];
        // Those stored alike are one product.
        let mut groups: Vec<(Vec<Stored>, Vec<Kind>, Vec<Part>)> = Vec::new();
        for (kind, part, bias) in parts {
            let stored = self.model.tensor(part)?;
            let layout = Layout::of(stored.format);
            match groups.last_mut().filter(|(matrices, ..)| Layout::of(matrices[0].format) == layout) {
                Some((matrices, kinds, biases)) => {
                    matrices.push(stored);
                    kinds.push(kind);
                    biases.push(bias);
                }
                None => groups.push((vec![stored], vec![kind], vec![bias])),
            }
        }
        let rows = groups
            .into_iter()
            .map(|(matrices, kinds, biases)| {
                let (matrix, norm, bias) = (Some(self.stacked(&matrices)?), Some(self.vector(Part::AttentionNorm(n))?), self.bias(&biases)?);
                Ok(Product { matrix, epilogue: Epilogue::Store, norm, bias, kinds })
            })
            .collect::<Result<_>>()?;
        let head_norm = match config.head_norm {
            true => {
                // Before the norm a factor of queries would be lost.
                let factor = config.query_factor() as f32;
                let mut numbers: Vec<f32> = self.model.tensor(Part::QueryNorm(n))?.numbers().iter().map(|x| factor * x).collect();
                numbers.extend(self.model.tensor(Part::KeyNorm(n))?.numbers());
                Some(filled(self.gpu, "head norm", bytemuck::cast_slice(&numbers), wgpu::BufferUsages::STORAGE))
            }
            false => None,
        };
        let add = |part: Part, bias: Part| -> Result<Product> {
            Ok(Product {
                matrix: Some(self.stacked(&[self.model.tensor(part)?])?),
                epilogue: branch_epilogue(config),
                norm: None,
                bias: self.bias(&[bias])?,
                kinds: Vec::new(),
            })
        };
        let own_norm = |part: Part| self.model.has(part).then(|| self.vector(part)).transpose();
        let gate_up = self.paired([self.model.tensor(Part::Gate(n))?, self.model.tensor(Part::Up(n))?])?;
        let gate_bias = match self.model.has(Part::GateBias(n)) {
            true => {
                let [gate, up] = [self.model.tensor(Part::GateBias(n))?.numbers(), self.model.tensor(Part::UpBias(n))?.numbers()];
                let numbers: Vec<f32> = gate.into_iter().zip(up).flat_map(|(gate, up)| [gate, up]).collect();
                Some(filled(self.gpu, "bias", bytemuck::cast_slice(&numbers), wgpu::BufferUsages::STORAGE))
            }
            false => None,
        };
        Ok(Layer {
            rows,
            head_norm,
            turn: turn(config, &frequency_sets(config), n),
            output: add(Part::Output(n), Part::OutputBias(n))?,
            output_norm: own_norm(Part::AttentionOutNorm(n))?,
            gate_up: Product {
                matrix: Some(gate_up),
                epilogue: Epilogue::Gated(config.activation),
                norm: Some(self.vector(Part::MlpNorm(n))?),
                bias: gate_bias,
                kinds: Vec::new(),
            },
            down: add(Part::Down(n), Part::DownBias(n))?,
            down_norm: own_norm(Part::MlpOutNorm(n))?,
        })
    }

    /// Logits of all layers' sinks.
    fn sinks(&self, config: &Config) -> Result<Option<Vec<f32>>> {
        if !config.sinks {
            return Ok(None);
        }
        let layers = (0..config.layers).map(|n| Ok(self.model.tensor(Part::Sinks(n))?.numbers())).collect::<Result<Vec<_>>>()?;
        Ok(Some(layers.concat()))
    }
}

/// The frequencies that layers rotate by, each set once; nothing where all layers rotate alike.
fn frequency_sets(config: &Config) -> Vec<Vec<f64>> {
    let mut sets: Vec<Vec<f64>> = Vec::new();
    if config.rotates_by_layer() {
        for layer in 0..config.layers {
            let frequencies = config.layer_frequencies(layer, 0);
            if !frequencies.is_empty() && !sets.contains(&frequencies) {
                sets.push(frequencies);
            }
        }
    }
    sets
}

/// Which set a layer rotates by.
fn turn(config: &Config, sets: &[Vec<f64>], layer: usize) -> Option<usize> {
    if sets.is_empty() {
        return None;
    }
    let frequencies = config.layer_frequencies(layer, 0);
    sets.iter().position(|set| *set == frequencies)
}

/// What is done with the outputs of attention and MLP: added to the stream, unless a norm comes
/// between.
fn branch_epilogue(config: &Config) -> Epilogue {
    if config.branch_norms { Epilogue::Store } else { Epilogue::Add }
}

/// What is done with the scores of the vocabulary.
fn head_epilogue(config: &Config) -> Epilogue {
    if config.logit_cap.is_some() { Epilogue::Capped } else { Epilogue::Store }
}

/// Refuses shapes that the kernels do not serve.
fn check(config: &Config) -> Result<()> {
    for (name, found) in
        [("hidden_size", config.hidden), ("intermediate_size", config.intermediate), ("query heads times head_dim", config.query_heads * config.head_dim)]
    {
        if !found.is_multiple_of(32) {
            return Err(wgkv::Error::argument(name, "a multiple of 32", found).into());
        }
    }
    if !config.vocabulary.is_multiple_of(2) {
        return Err(wgkv::Error::argument("vocab_size", "an even number", config.vocabulary).into());
    }
    if config.attention_factor != 1.0 && config.rotary != config.head_dim {
        return Err(wgkv::Error::argument("rotary channels with an attention factor", format!("{}, all of a head", config.head_dim), config.rotary).into());
    }
    if config.head_dim > heads::HEAD_DIM_LIMIT as usize {
        return Err(wgkv::Error::argument("head_dim", "512 at most", config.head_dim).into());
    }
    Ok(())
}

impl Decoder {
    /// Uploads a model's weights, tensor by tensor, and compiles the kernels that multiply by them.
    ///
    /// # Errors
    /// Those of [`Model::tensor`]; [`wgkv::Error::Memory`] for a device that has no memory for them,
    /// [`wgkv::Error::Mismatch`] for sizes that no kernel serves, [`wgkv::Error::Shader`],
    /// [`wgkv::Error::Lost`].
    pub async fn load(gpu: &Gpu, model: &Model) -> Result<Self> {
        let config = model.config();
        check(config)?;
        let watch = Watch::new(gpu);
        let loaded = (|| -> Result<Inner> {
            let loader = Loader { gpu, model };
            let embedding = loader.stacked(&[model.tensor(Part::Embedding)?])?;
            let layers = (0..config.layers).map(|n| loader.layer(config, n)).collect::<Result<Vec<_>>>()?;
            let matrix = if config.tied { None } else { Some(loader.stacked(&[model.tensor(Part::Head)?])?) };
            let head = Product { matrix, epilogue: head_epilogue(config), norm: Some(loader.vector(Part::Norm)?), bias: None, kinds: Vec::new() };
            let sinks = loader.sinks(config)?;
            let (gpu, config, frequencies, lanes) = (gpu.clone(), config.clone(), frequency_sets(config), lanes(gpu.capability().subgroups));
            Ok(Inner { gpu, config, embedding, layers, sinks, frequencies, head, lanes })
        })();
        let fits = watch.fits().await;
        Self::made(loaded?, fits).await
    }

    /// Makes a model of random f16 weights, of one block that is repeated: for measuring memory and
    /// time.
    ///
    /// # Errors
    /// Those of [`Decoder::load`] that do not concern files.
    pub async fn random(gpu: &Gpu, config: &Config) -> Result<Self> {
        check(config)?;
        let watch = Watch::new(gpu);
        let (hidden, wide, vocabulary) = (config.hidden, config.intermediate, config.vocabulary);
        let [queries, keys] = [config.query_heads, config.kv_heads].map(|heads| heads * config.head_dim);
        let matrix = |rows, columns| Some(Matrix::random(gpu, rows, columns, SPREAD));
        let ones = |count: usize| Some(filled(gpu, "vector", bytemuck::cast_slice(&vec![1.0_f32; count]), wgpu::BufferUsages::STORAGE));
        let product = |matrix, epilogue, norm, kinds: &[Kind]| Product { matrix, epilogue, norm, bias: None, kinds: kinds.to_vec() };
        let frequencies = frequency_sets(config);
        let layer = |n: usize| Layer {
            rows: vec![product(matrix(queries + 2 * keys, hidden), Epilogue::Store, ones(hidden), &[Kind::Query, Kind::Key, Kind::Value])],
            head_norm: config.head_norm.then(|| ones(2 * config.head_dim)).flatten(),
            turn: turn(config, &frequencies, n),
            output: product(matrix(hidden, queries), branch_epilogue(config), None, &[]),
            output_norm: config.branch_norms.then(|| ones(hidden)).flatten(),
            gate_up: product(matrix(2 * wide, hidden), Epilogue::Gated(config.activation), ones(hidden), &[]),
            down: product(matrix(hidden, wide), branch_epilogue(config), None, &[]),
            down_norm: config.branch_norms.then(|| ones(hidden)).flatten(),
        };
        let inner = Inner {
            gpu: gpu.clone(),
            config: config.clone(),
            embedding: Matrix::random(gpu, vocabulary, hidden, SPREAD),
            layers: (0..config.layers).map(layer).collect(),
            frequencies,
            sinks: config.sinks.then(|| vec![0.0; config.layers * config.query_heads]),
            head: product(if config.tied { None } else { matrix(vocabulary, hidden) }, head_epilogue(config), ones(hidden), &[]),
            lanes: lanes(gpu.capability().subgroups),
        };
        let fits = watch.fits().await;
        Self::made(inner, fits).await
    }

    async fn made(inner: Inner, fits: bool) -> Result<Self> {
        let decoder = Self { inner: Arc::new(inner) };
        if !fits {
            return Err(wgkv::Error::Memory { need: decoder.weight_bytes() }.into());
        }
        decoder.inner.gpu.prepare_variants(decoder.inner.variants()).await?;
        Ok(decoder)
    }

    /// Returns the model's numbers.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Returns the device.
    pub fn gpu(&self) -> &Gpu {
        &self.inner.gpu
    }

    /// Returns the bytes of the weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        let inner = &*self.inner;
        let layer = |layer: &Layer| {
            let products = layer.rows.iter().chain([&layer.output, &layer.gate_up, &layer.down]);
            products.filter_map(|product| product.matrix.as_ref()).map(Matrix::bytes).sum::<u64>()
        };
        inner.embedding.bytes() + inner.head.matrix.as_ref().map_or(0, Matrix::bytes) + inner.layers.iter().map(layer).sum::<u64>()
    }

    /// Begins the plan of a cache for layers that are alike, of [`Config::groups_for`], with what
    /// they ask of attention: their shape and window, the cap of scores and the sinks' logits.
    pub fn planned(&self, group: &LayerGroup, storage: impl Into<Storage>) -> PlanBuilder {
        let Inner { config, sinks, .. } = &*self.inner;
        let mut builder = Plan::builder(group.shape.clone(), storage);
        if let Some(window) = group.sliding_window {
            builder = builder.sliding_window(window);
        }
        if let Some(cap) = config.score_cap {
            builder = builder.soft_cap(cap as f32);
        }
        if let Some(sinks) = sinks {
            let of_layer = |layer: &u32| sinks.iter().skip(*layer as usize * config.query_heads).take(config.query_heads);
            builder = builder.sink_logits(group.layers.iter().flat_map(of_layer).copied().collect::<Vec<f32>>());
        }
        builder
    }

    /// Makes the buffers of steps of at most `rows` tokens, of which at most `scored` are scored at
    /// once.
    ///
    /// # Errors
    /// [`wgkv::Error::Limit`] for rows that a binding does not hold, [`wgkv::Error::Memory`].
    pub async fn work(&self, rows: u32, scored: u32) -> Result<Work> {
        Work::new(self, rows, scored).await
    }

    /// Begins a step of the cache in which these sequences grow, for [`Decoder::forward`].
    ///
    /// # Errors
    /// [`wgkv::Error::Mismatch`] for more tokens than the work has rows and for a cache whose plan
    /// does not do what a layer asks for, and those of [`wgkv::Cache::step`].
    pub fn step<C: KvCache>(&self, work: &mut Work, cache: &mut C, chunks: &[Chunk]) -> Result<C::Step> {
        let inner = &*self.inner;
        if inner.is_particular() {
            (0..inner.layers.len()).try_for_each(|layer| inner.expect(cache.plan_of(layer as u32)?, layer))?;
        }
        work.begin(inner, cache, chunks)
    }

    /// Records the whole model for a step: embedding, all layers with their part of the cache.
    /// Tokens are those of [`Work::write_ids`], or what [`Decoder::sample`] chose last. The last
    /// layer's residual stream is left for [`Decoder::score`].
    ///
    /// # Errors
    /// Those of the cache and of the tap.
    pub fn forward<C: KvCache>(&self, recorder: &mut Recorder, work: &mut Work, cache: &C, step: &C::Step, mut tap: Option<&mut dyn Tap>) -> Result<()> {
        let inner = &*self.inner;
        let rows = C::rows(step);
        work.embed(recorder, rows);
        for layer in 0..inner.layers.len() {
            work.attention_rows(recorder, layer, rows, inner.turns(cache, layer)?);
            let number = layer as u32;
            let rows_of = work.layer_rows(number, rows);
            if let Some(tap) = tap.as_deref_mut() {
                tap.layer(recorder, &rows_of)?;
            }
            let pass = recorder.pass();
            cache.elect_in(pass, step, number, rows_of.residual, inner.config.hidden as u32)?;
            cache.append_in(pass, step, number, rows_of.keys, rows_of.values)?;
            cache.attend_in(pass, step, number, rows_of.queries, work.attention_output())?;
            work.rest(recorder, layer, rows);
        }
        Ok(())
    }

    /// Records the scores of all tokens of the vocabulary for what follows rows of the last step:
    /// of the last row of each of its chunks, or of a range of rows.
    ///
    /// # Errors
    /// [`wgkv::Error::Mismatch`] for more rows than the work scores at once.
    pub fn score(&self, recorder: &mut Recorder, work: &mut Work, of: Scored) -> Result<()> {
        work.score(recorder, of)
    }

    /// Records the choice of a token for every row that was scored. It takes the place of that row's
    /// token among the ids, for the next step.
    pub fn sample(&self, recorder: &mut Recorder, work: &mut Work) {
        work.sample(recorder);
    }
}

/// Which rows of a step are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scored {
    /// The last of each chunk.
    Last,
    /// These.
    Rows(std::ops::Range<u32>),
}

impl Product {
    /// The matrix, which for a tied head is the embedding.
    pub fn matrix<'a>(&'a self, inner: &'a Inner) -> &'a Matrix {
        self.matrix.as_ref().unwrap_or(&inner.embedding)
    }

    /// The variants for one row, a few rows and many, of which there are at most `rows`.
    pub fn variants(&self, inner: &Inner, rows: u32) -> [Variant; 3] {
        let layout = self.matrix(inner).layout;
        let (bias, norm) = (self.bias.is_some(), self.norm.is_some());
        let few = |one| project::variant(layout, self.epilogue, bias, norm, one, inner.lanes);
        let many = match inner.gpu.capability().matrices {
            true => project_matrix::variant(layout, self.epilogue, bias, project_matrix::tiles(rows)),
            false => project_tiles::variant(layout, self.epilogue, bias),
        };
        [few(true), few(false), many]
    }

    /// The parameters of the product with each block of the matrix; `at` is where rows of queries,
    /// keys and values lie.
    pub fn params(&self, inner: &Inner, at: impl Fn(Kind) -> u32) -> Vec<ProjectParams> {
        let config = &inner.config;
        let matrix = self.matrix(inner);
        let width = |kind: Kind| (config.head_dim * if kind == Kind::Query { config.query_heads } else { config.kv_heads }) as u32;
        let scales = self.kinds.first() == Some(&Kind::Query) && !config.head_norm;
        let factor = match (self.epilogue, config.logit_cap) {
            (Epilogue::Capped, Some(cap)) => cap as f32,
            _ if scales => config.query_factor() as f32,
            _ => 1.0,
        };
        let mut params = ProjectParams {
            columns: matrix.columns,
            total: matrix.rows,
            split_b: matrix.rows,
            split_c: matrix.rows,
            epsilon: config.norm_epsilon as f32,
            factor,
            ..ProjectParams::default()
        };
        if let [first, rest @ ..] = self.kinds.as_slice() {
            (params.at_a, params.split_b) = (at(*first), width(*first));
            if let Some(second) = rest.first() {
                params.at_b = at(*second);
                params.split_c = params.split_b + width(*second);
            }
            if let Some(third) = rest.get(1) {
                params.at_c = at(*third);
            }
        }
        let block = |block: &crate::matrix::Block| ProjectParams {
            outputs: block.rows,
            first: block.first,
            high_at: block.high_at,
            scales_at: block.scales_at,
            ..params
        };
        matrix.blocks.iter().map(block).collect()
    }
}

impl Inner {
    /// Whether a cache leaves rows of a layer for the decoder to turn.
    pub fn turns<C: KvCache>(&self, cache: &C, layer: usize) -> Result<bool> {
        Ok(self.layers[layer].turn.is_some() && cache.plan_of(layer as u32)?.shape().rope.frequencies().is_empty())
    }

    /// Whether layers differ in what the cache does, or it does more than is usual.
    fn is_particular(&self) -> bool {
        !self.frequencies.is_empty() || !self.config.layers_are_alike()
    }

    /// Refuses a cache whose plan is not what a layer asks for.
    fn expect(&self, plan: &Plan, layer: usize) -> Result<()> {
        let config = &self.config;
        let number = |number: Option<u32>| number.map_or("none".to_owned(), |number| number.to_string());
        let (wanted, had) = (config.layer_window(layer), plan.sliding_window());
        if wanted != had {
            return Err(wgkv::Error::argument(format!("sliding window of layer {layer}"), number(wanted), number(had)).into());
        }
        let (wanted, had) = (config.score_cap.map(|cap| cap as f32), plan.soft_cap());
        if wanted != had {
            let cap = |cap: Option<f32>| cap.map_or("none".to_owned(), |cap| cap.to_string());
            return Err(wgkv::Error::argument(format!("soft cap of layer {layer}"), cap(wanted), cap(had)).into());
        }
        if self.sinks.is_some() && plan.sink_logits(0).is_none() {
            return Err(wgkv::Error::argument(format!("sink logits of layer {layer}"), format!("{}, one a query head", config.query_heads), "none").into());
        }
        let had = plan.shape().rope.frequencies();
        let known = |context: usize| had == config.layer_frequencies(layer, context);
        if !had.is_empty() && !self.frequencies.is_empty() && !known(0) && !known(usize::MAX) {
            let wanted = "the model's, as in LayerGroup, or none, so that the decoder turns rows itself";
            return Err(wgkv::Error::argument(format!("rotary frequencies of layer {layer}"), wanted, format!("{} others", had.len())).into());
        }
        Ok(())
    }

    /// Whether embeddings are multiplied by a number.
    pub fn scales_embedding(&self) -> bool {
        self.config.embedding_scale != 1.0
    }

    /// What many rows of a product are prepared as.
    pub fn rows_output(&self) -> Output {
        if self.gpu.capability().matrices { Output::Halves } else { Output::Numbers }
    }

    /// All products.
    fn products(&self) -> impl Iterator<Item = &Product> {
        let layers = self.layers.iter().flat_map(|layer| layer.rows.iter().chain([&layer.output, &layer.gate_up, &layer.down]));
        layers.chain([&self.head])
    }

    /// Every pipeline that steps of many rows take.
    fn variants(&self) -> Vec<Variant> {
        let mut all = vec![embed::variant(self.embedding.layout, self.scales_embedding()), sample::variant()];
        let rows = self.rows_output();
        all.extend([normalize::variant(true, false, rows), normalize::variant(true, true, rows), normalize::variant(false, true, Output::Numbers)]);
        if rows == Output::Halves {
            all.push(normalize::variant(false, false, rows));
        }
        if self.config.branch_norms {
            all.push(normalize::variant(true, false, Output::Added));
        }
        for product in self.products() {
            all.extend(product.variants(self, u32::MAX));
        }
        for layer in &self.layers {
            let norms = layer.head_norm.is_some();
            if norms {
                all.push(heads::variant(norms, false));
            }
            if layer.turn.is_some() {
                all.push(heads::variant(norms, true));
            }
        }
        all
    }
}
