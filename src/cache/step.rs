//! One step of the model: which sequences grow by how many tokens, and the tables from which the
//! kernels read it.

use super::open::Recorded;
use super::params::{Params, Tables};
use super::pass::{Pass, passes};
use super::records::{ElectChunk, ElectRows, PackItem, ProtectItem, SINK_ROW};
use super::sequence::Growth;
use crate::gpu::{Gpu, RowShape};
use crate::kernel::align_plan::AlignPlanParams;
use crate::kernel::align_scores::AlignScoresParams;
use crate::kernel::align_values::AlignValuesParams;
use crate::kernel::append::AppendParams;
use crate::kernel::append_reordered::AppendReorderedParams;
use crate::kernel::attend_direct::AttendDirectParams;
use crate::kernel::attend_merge::AttendMergeParams;
use crate::kernel::attend_prefill::AttendPrefillParams;
use crate::kernel::attend_rows::AttendRowsParams;
use crate::kernel::attend_split::AttendSplitParams;
use crate::kernel::elect;
use crate::kernel::position::PositionParams;
use crate::kernel::protect::ProtectParams;
use crate::kernel::query::QueryParams;
use crate::kernel::unpack::UnpackParams;
use crate::plan::{Plan, Slab};
use std::sync::Arc;

/// What one dispatch reads and how large it is: the place of its parameters, and its items.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dispatch {
    /// Dynamic offset of the parameters.
    pub params: u32,
    /// Items, each a workgroup for every head.
    pub items: u32,
}

/// What decoding from planes dispatches in place of attend_split.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Align {
    pub keys: Dispatch,
    pub scores: Dispatch,
    pub values: Dispatch,
    pub rows: Dispatch,
}

/// Where the tables list the heads of a plan's arrangement.
#[derive(Clone, Debug)]
pub(super) struct Arrangement {
    /// By KV head: channels that share a key scale, or 0 where attend_split takes the queries in
    /// f32.
    pub groups_at: u32,
    /// By slab: its heads; and after them, for RotateKV, by KV head its place in the slab.
    pub heads_at: Vec<u32>,
}

/// Lists the heads of a slab, and for RotateKV the place of every head in it; returns where they
/// lie.
pub(super) fn list_heads(plan: &Plan, slab: &Slab, tables: &mut Vec<u32>) -> u32 {
    let at = tables.len() as u32;
    tables.extend(slab.heads());
    if plan.restores() {
        let place = |head| slab.heads().iter().position(|h| *h == head).map_or(u32::MAX, |n| n as u32);
        tables.extend((0..plan.shape().kv_heads).map(place));
    }
    at
}

/// A step being taken: made by [`Cache::step`](crate::Cache::step), used for every layer. Any
/// [end](crate::Cache::end), [fork](crate::Cache::fork), [truncate](crate::Cache::truncate) or
/// [slide](crate::Cache::slide) of any sequence makes it stale, and so does the next step. If
/// nothing was recorded of it by then, it is taken back, as by
/// [`Cache::abandon`](crate::Cache::abandon); dropping it alone changes nothing.
#[derive(Debug)]
#[must_use]
pub struct Step {
    pub(super) cache: u64,
    pub(super) serial: u64,
    /// Which layers were given their part.
    pub(super) recorded: Arc<Recorded>,
    /// Whether it brings tokens.
    pub(super) appends: bool,
    pub(super) rows: u32,
    /// Rows of every chunk; 0 where they differ.
    chunk: u32,
    /// Parameters and tables.
    pub(super) group: wgpu::BindGroup,
    pub(super) tables: Tables,
    /// By layer and slab.
    pub(super) append: Vec<Vec<Dispatch>>,
    /// By layer and slab, for RotateKV.
    pub(super) append_reordered: Vec<Vec<Dispatch>>,
    /// Where sinks are to be elected.
    pub(super) election: Option<Election>,
    /// By layer.
    pub(super) protect: Vec<Dispatch>,
    pub(super) passes: Vec<Pass>,
    words: Words,
}

/// The election of a step's sinks, the same for every layer.
#[derive(Debug)]
pub(super) struct Election {
    /// First item in the tables and items, of the blocks of rows and of the chunks.
    pub blocks: (u32, u32),
    pub chunks: (u32, u32),
    pub candidates: wgpu::Buffer,
}

/// The tables and parameters of a step, as the kernels read them.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Words {
    /// The tables.
    pub tables: Vec<u32>,
    /// Parameters of `append`, by layer and slab.
    pub append: Vec<AppendParams>,
    /// Parameters of `append_reordered`, by layer and slab; empty unless the codec is RotateKV.
    pub append_reordered: Vec<AppendReorderedParams>,
    /// First item in the tables and items of `elect`: the blocks of rows, then the chunks.
    pub elect: [(u32, u32); 2],
    /// Parameters of `protect`, by layer.
    pub protect: Vec<ProtectParams>,
    /// Parameters of `query`, by pass and arrangement: each way in which a layer's heads are spread
    /// over slabs, of which a plan that stores all heads alike has one.
    pub query: Vec<QueryParams>,
    /// Parameters of `position` and its items, by pass and arrangement; no items unless the codec
    /// is Centred.
    pub position: Vec<(PositionParams, u32)>,
    /// Parameters of `attend_direct` and its items, by pass, arrangement and slab, of the passes
    /// that it takes.
    pub attend_direct: Vec<(AttendDirectParams, u32)>,
    /// Parameters of `attend_split` and its items, by pass, arrangement and slab.
    pub attend_split: Vec<(AttendSplitParams, u32)>,
    /// Parameters of `attend_rows` and its items, by pass.
    pub attend_rows: Vec<(AttendRowsParams, u32)>,
    /// Parameters of `unpack` and its items, by pass, arrangement, round and slab.
    pub unpack: Vec<(UnpackParams, u32)>,
    /// Rounds of each pass.
    pub rounds: Vec<u32>,
    /// Parameters of `attend_prefill` (or `attend_matrices`, which are the same) and its items, by
    /// pass, round and dispatch.
    pub attend_prefill: Vec<(AttendPrefillParams, u32)>,
    /// Parameters of `align_plan` and its rows, by pass, arrangement and slab: for keys, then for
    /// values. Empty for codecs without planes, like the two that follow.
    pub align_plan: Vec<([AlignPlanParams; 2], u32)>,
    /// Parameters of `align_scores` and its items.
    pub align_scores: Vec<(AlignScoresParams, u32)>,
    /// Parameters of `align_values` and its items.
    pub align_values: Vec<(AlignValuesParams, u32)>,
    /// Parameters of `attend_merge` and its rows, by pass.
    pub attend_merge: Vec<(AttendMergeParams, u32)>,
}

impl Words {
    /// Adds records to the tables; returns where the first lies.
    pub(super) fn list<T: bytemuck::Pod>(&mut self, records: &[T]) -> u32 {
        let at = self.tables.len() as u32;
        self.tables.extend_from_slice(bytemuck::cast_slice(records));
        at
    }
}

impl Step {
    /// Returns the number of rows of keys, values, queries and output: the tokens of all chunks, in
    /// their order.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Returns the first layer of which [`Cache::elect`](crate::Cache::elect) or
    /// [`Cache::append`](crate::Cache::append) was recorded; none while the step can be
    /// [abandoned](crate::Cache::abandon).
    pub fn recorded(&self) -> Option<u32> {
        self.recorded.first()
    }

    /// Returns whether anything was recorded of a layer.
    pub(crate) fn has_recorded(&self, layer: u32) -> bool {
        self.recorded.elected(layer) || self.recorded.appended(layer)
    }

    /// Takes your word that nothing that was recorded of this step is submitted, now or later: its
    /// encoders were dropped. All layers can then be recorded anew, or the step
    /// [abandoned](crate::Cache::abandon). If something is submitted after all, the sequences hold
    /// wrong keys and values.
    pub fn unrecord(&self) {
        self.recorded.clear();
    }

    /// Lets a layer be elected and appended once more, though it was before. Without a window the
    /// new rows take the place of all that the former left.
    pub(crate) fn give_again(&self, layer: u32) {
        self.recorded.clear_layer(layer);
    }

    /// Returns what the caller's rows are of.
    pub(super) fn row_shape(&self, heads: u32, head_dim: u32) -> RowShape {
        RowShape { rows: self.rows, heads, head_dim, chunk: Some(self.chunk) }
    }

    /// Returns what the kernels read, for comparing a kernel with its
    /// [twin](crate::low_level::reference).
    #[doc(hidden)]
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// Makes a step for the cache of this number.
    pub(super) fn new(
        gpu: &Gpu,
        plan: &Plan,
        layout: &wgpu::BindGroupLayout,
        growths: &[Growth],
        (cache, serial): (u64, u64),
        (recorded, appends): (Arc<Recorded>, bool),
    ) -> Self {
        let mut maker = StepMaker::new(gpu, plan, growths);
        let append = maker.append();
        let append_reordered = maker.append_reordered();
        let election = maker.election(gpu);
        let protect = maker.protect();
        let passes = passes(&mut maker);
        let StepMaker { words, params, rows, .. } = maker;
        let (group, tables) = params.bind_with(gpu, layout, &words.tables);
        let chunk = growths.first().map_or(0, |growth| growth.rows);
        let chunk = if growths.iter().all(|growth| growth.rows == chunk) { chunk } else { 0 };
        Self { cache, serial, recorded, appends, rows, chunk, group, tables, append, append_reordered, election, protect, passes, words }
    }
}

/// A step being made: what it is made from, and what it has so far.
pub(super) struct StepMaker<'a> {
    pub plan: &'a Plan,
    pub growths: &'a [Growth],
    /// By growth: where its record lies in the tables.
    pub records: Vec<u32>,
    pub arrangements: Vec<Arrangement>,
    pub words: Words,
    pub params: Params,
    rows: u32,
}

impl<'a> StepMaker<'a> {
    fn new(gpu: &Gpu, plan: &'a Plan, growths: &'a [Growth]) -> Self {
        let mut words = Words::default();
        let mut records = Vec::with_capacity(growths.len());
        let mut rows = 0;
        for growth in growths {
            records.push(growth.record(&mut words.tables, rows));
            rows += growth.rows;
        }
        let mut maker = Self { plan, growths, records, arrangements: Vec::new(), words, params: Params::new(gpu), rows };
        maker.arrangements = plan.arrangements().iter().map(|slabs| maker.list_arrangement(slabs)).collect();
        maker
    }

    fn list_arrangement(&mut self, slabs: &[Slab]) -> Arrangement {
        let group = |slab: &Slab| if slab.float_queries() { 0 } else { slab.layout().key_group };
        let groups: Vec<u32> = (0..self.plan.shape().kv_heads).map(|head| slabs.iter().find(|slab| slab.heads().contains(&head)).map_or(0, group)).collect();
        let groups_at = self.words.list(&groups);
        Arrangement { groups_at, heads_at: slabs.iter().map(|slab| list_heads(self.plan, slab, &mut self.words.tables)).collect() }
    }

    /// Lists the blocks of `block` tokens that new tokens of the pages lie in; returns where, and
    /// how many there are.
    fn packed_blocks(&mut self, block: u32) -> (u32, u32) {
        let mut items = Vec::new();
        for (growth, record) in self.growths.iter().zip(&self.records) {
            let first = growth.old_packed.max(self.plan.unpacked());
            if first < growth.new_packed {
                items.extend((first / block..growth.new_packed.div_ceil(block)).map(|block| PackItem { record: *record, block }));
            }
        }
        (self.words.list(&items), items.len() as u32)
    }

    /// Makes a dispatch of every layer's every slab, given the place of its heads in the tables.
    fn by_slab(&mut self, mut of: impl FnMut(&mut Self, u32, &Slab, u32) -> Dispatch) -> Vec<Vec<Dispatch>> {
        let plan = self.plan;
        let mut layers = Vec::with_capacity(plan.shape().layers as usize);
        for layer in 0..plan.shape().layers {
            let slabs = plan.slabs(layer);
            let arrangement = plan.arrangement(layer);
            layers.push((0..slabs.len()).map(|n| of(self, layer, &slabs[n], self.arrangements[arrangement].heads_at[n])).collect());
        }
        layers
    }

    fn append(&mut self) -> Vec<Vec<Dispatch>> {
        let (items_at, items) = self.packed_blocks(self.plan.append_block());
        let kv_heads = self.plan.shape().kv_heads;
        self.by_slab(|maker, layer, slab, heads_at| {
            let params = AppendParams { items_at, items, layer, slab_heads: slab.count(), heads_at, kv_heads, pad: [0; 2] };
            maker.words.append.push(params);
            Dispatch { params: maker.params.push(&params), items }
        })
    }

    fn append_reordered(&mut self) -> Vec<Vec<Dispatch>> {
        if !self.plan.restores() {
            return Vec::new();
        }
        let (items_at, items) = self.packed_blocks(4);
        let kv_heads = self.plan.shape().kv_heads;
        self.by_slab(|maker, layer, slab, heads_at| {
            let params = AppendReorderedParams {
                items_at,
                items,
                layer,
                slab_heads: slab.count(),
                heads_at,
                kv_heads,
                places_at: heads_at + slab.count(),
                // Every slab's keys have the same scales, so they are written with the slab of head
                // 0.
                scales: u32::from(slab.heads().contains(&0)),
            };
            maker.words.append_reordered.push(params);
            Dispatch { params: maker.params.push(&params), items }
        })
    }

    /// Lists the blocks of the prefilling chunks' rows, and the chunks.
    fn election(&mut self, gpu: &Gpu) -> Option<Election> {
        if !self.plan.elects() || !self.growths.iter().any(Growth::prefills) {
            return None;
        }
        let (mut blocks, mut chunks) = (Vec::new(), Vec::new());
        let mut row = 0;
        for growth in self.growths {
            let tokens = growth.new_tokens - growth.old_tokens;
            if growth.prefills() {
                let first_block = blocks.len() as u32;
                for first in (0..tokens).step_by(elect::BLOCK_ROWS as usize) {
                    let rows = elect::BLOCK_ROWS.min(tokens - first);
                    blocks.push(ElectRows { first: row + first, rows, token: growth.old_tokens + first, pad: 0 });
                }
                let count = blocks.len() as u32 - first_block;
                let Growth { slot, limit, old_tokens, new_tokens, .. } = *growth;
                chunks.push(ElectChunk { slot, first_block, blocks: count, limit, old_tokens, new_tokens, pad: [0; 2] });
            }
            row += tokens;
        }
        let (blocks, count) = ((self.words.list(&blocks), blocks.len() as u32), chunks.len() as u32);
        let chunks = (self.words.list(&chunks), count);
        self.words.elect = [blocks, chunks];
        let candidates = gpu.create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgkv candidates"),
            size: 8 * u64::from(blocks.1) * u64::from(self.plan.sinks()),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Some(Election { blocks, chunks, candidates })
    }

    fn protect(&mut self) -> Vec<Dispatch> {
        let plan = self.plan;
        let mut list = Vec::new();
        for (growth, record) in self.growths.iter().zip(&self.records) {
            let sinks = growth.old_tokens..growth.new_tokens.min(plan.unpacked());
            let elected = if plan.elects() && growth.prefills() { SINK_ROW..SINK_ROW + plan.sinks() } else { 0..0 };
            let window = growth.new_packed.max(growth.old_tokens).max(plan.unpacked())..growth.new_tokens;
            list.extend(sinks.chain(elected).chain(window).map(|token| ProtectItem { record: *record, token }));
        }
        let (items_at, items, kv_heads) = (self.words.list(&list), list.len() as u32, plan.shape().kv_heads);
        let mut dispatch = |layer| {
            let params = ProtectParams { items_at, items, layer, kv_heads };
            self.words.protect.push(params);
            Dispatch { params: self.params.push(&params), items }
        };
        (0..plan.shape().layers).map(&mut dispatch).collect()
    }
}
