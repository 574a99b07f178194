//! One step of the model: which sequences grow by how many tokens, and the tables that tell the kernels so.

use super::sequence::Growth;
use crate::format::PAGE_TOKENS;
use crate::gpu::Gpu;
use crate::kernel::align_plan::AlignPlanParams;
use crate::kernel::align_scores::AlignScoresParams;
use crate::kernel::align_values::AlignValuesParams;
use crate::kernel::append::AppendParams;
use crate::kernel::append_reordered::AppendReorderedParams;
use crate::kernel::attend_merge::{AttendMergeParams, MERGE_ITEMS};
use crate::kernel::attend_prefill::{AttendPrefillParams, DECODE_PARTIALS, TILE_ROWS, TILE_TOKENS};
use crate::kernel::attend_split::AttendSplitParams;
use crate::kernel::elect;
use crate::kernel::position::{self, PositionParams};
use crate::kernel::protect::ProtectParams;
use crate::kernel::query::QueryParams;
use crate::plan::{Plan, Slab};
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// What an item of `protect` names a row of the elected sinks by.
const SINK_ROW: u32 = 1 << 31;

/// What one dispatch reads: its parameters' place, and how many workgroups it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dispatch {
    /// Bytes from the start of the parameters.
    pub params: u64,
    /// Items, each a workgroup for every head.
    pub items: u32,
}

/// Query rows that are attended together, because scratch holds no more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pass {
    pub rows: u32,
    pub merge: u64,
    /// Parts that a row's items are shared out among to be merged.
    pub merge_parts: u32,
    /// By arrangement of the plan.
    pub arranged: Vec<Arranged>,
}

/// What a pass does with the layers that spread their KV heads over slabs in one way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arranged {
    pub query: u64,
    /// Chunks of the pages of decoding rows, for Centred.
    pub position: Dispatch,
    /// By slab.
    pub split: Vec<Dispatch>,
    /// By slab.
    pub prefill: Vec<Dispatch>,
    /// By slab, for codecs with planes.
    pub align: Vec<Align>,
}

/// What decoding from planes dispatches in the place of attend_split.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Align {
    pub keys: Dispatch,
    pub scores: Dispatch,
    pub values: Dispatch,
    pub rows: Dispatch,
}

/// Where the tables tell of a plan's arrangements.
#[derive(Clone, Debug)]
pub(crate) struct Arrangement {
    /// By KV head: channels that share a key scale, or 0 where attend_split takes the queries in f32.
    groups_at: u32,
    /// By slab: its heads; and after them, for RotateKV, by KV head its place in the slab.
    heads_at: Vec<u32>,
}

/// Lists the heads of a slab, and for RotateKV the place of every head in it; answers where.
pub(crate) fn list_heads(plan: &Plan, slab: &Slab, tables: &mut Vec<u32>) -> u32 {
    let at = tables.len() as u32;
    tables.extend(slab.heads());
    if plan.restores() {
        let place = |head| slab.heads().iter().position(|h| *h == head).map_or(u32::MAX, |n| n as u32);
        tables.extend((0..plan.shape().kv_heads).map(place));
    }
    at
}

fn arrangements(plan: &Plan, tables: &mut Vec<u32>) -> Vec<Arrangement> {
    plan.arrangements()
        .iter()
        .map(|slabs| {
            let groups_at = tables.len() as u32;
            let group = |slab: &Slab| if slab.float_queries() { 0 } else { slab.layout().key_group };
            tables.extend((0..plan.shape().kv_heads).map(|head| slabs.iter().find(|slab| slab.heads().contains(&head)).map_or(0, group)));
            Arrangement { groups_at, heads_at: slabs.iter().map(|slab| list_heads(plan, slab, tables)).collect() }
        })
        .collect()
}

/// A step on its way: made by [`Cache::step`](crate::Cache::step), used for every layer.
#[derive(Debug)]
pub struct Step {
    pub(crate) cache: u64,
    pub(crate) serial: u64,
    pub(crate) rows: u32,
    pub(crate) tables: wgpu::Buffer,
    pub(crate) params: wgpu::Buffer,
    /// By layer and slab.
    pub(crate) append: Vec<Vec<Dispatch>>,
    /// By layer and slab, for RotateKV.
    pub(crate) append_reordered: Vec<Vec<Dispatch>>,
    /// Where sinks are to be elected.
    pub(crate) election: Option<Election>,
    /// By layer.
    pub(crate) protect: Vec<Dispatch>,
    pub(crate) passes: Vec<Pass>,
    pub(crate) words: Words,
}

impl Step {
    /// Rows of keys, values, queries and output: the tokens of all chunks, in their order.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// What the kernels read, for comparing a kernel with its [twin](crate::kernel::reference).
    pub fn words(&self) -> &Words {
        &self.words
    }
}

/// The election of a step's sinks, the same for every layer.
#[derive(Debug)]
pub(crate) struct Election {
    /// First item in the tables and items, of the blocks of rows and of the chunks.
    pub blocks: (u32, u32),
    pub chunks: (u32, u32),
    pub candidates: wgpu::Buffer,
    /// By layer: was it held?
    pub held: Vec<AtomicBool>,
}

/// The tables and parameters of a step, as the kernels read them.
#[derive(Clone, Debug, Default)]
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
    /// Parameters of `query`, by pass and arrangement: each way in which a layer's heads are spread over slabs, of which a plan
    /// without an allocation has one.
    pub query: Vec<QueryParams>,
    /// Parameters of `position` and its items, by pass and arrangement; no items unless the codec is Centred.
    pub position: Vec<(PositionParams, u32)>,
    /// Parameters of `attend_split` and its items, by pass, arrangement and slab.
    pub attend_split: Vec<(AttendSplitParams, u32)>,
    /// Parameters of `attend_prefill` and its items, by pass, arrangement and slab.
    pub attend_prefill: Vec<(AttendPrefillParams, u32)>,
    /// Parameters of `align_plan` and its rows, by pass, arrangement and slab: for keys, then for values. Empty for codecs without planes,
    /// like the two that follow.
    pub align_plan: Vec<([AlignPlanParams; 2], u32)>,
    /// Parameters of `align_scores` and its items.
    pub align_scores: Vec<(AlignScoresParams, u32)>,
    /// Parameters of `align_values` and its items.
    pub align_values: Vec<(AlignValuesParams, u32)>,
    /// Parameters of `attend_merge` and its rows, by pass.
    pub attend_merge: Vec<(AttendMergeParams, u32)>,
}

/// Parameters one after another, each where a uniform binding may begin.
#[derive(Default)]
struct Params {
    bytes: Vec<u8>,
}

impl Params {
    fn push<T: bytemuck::Pod>(&mut self, params: &T, alignment: u32) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment as usize), 0);
        let at = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytemuck::bytes_of(params));
        at
    }
}

impl Step {
    pub(crate) fn new(gpu: &Gpu, plan: &Plan, growths: &[Growth], cache: u64, serial: u64) -> Self {
        let alignment = gpu.capability().uniform_alignment;
        let mut words = Words::default();
        let mut params = Params::default();
        let mut records = Vec::new();
        let mut rows = 0;
        for growth in growths {
            records.push(growth.record(&mut words.tables, rows));
            rows += growth.rows;
        }
        let arrangements = arrangements(plan, &mut words.tables);
        let append = append_dispatches(plan, growths, &records, &arrangements, &mut words, &mut params, alignment);
        let append_reordered = append_reordered_dispatches(plan, growths, &records, &arrangements, &mut words, &mut params, alignment);
        let election = election(gpu.device(), plan, growths, &mut words);
        let protect = protect_dispatches(plan, growths, &records, &mut words, &mut params, alignment);
        let passes = passes(plan, growths, &records, &arrangements, &mut words, &mut params, alignment);
        Self {
            cache,
            serial,
            rows,
            tables: gpu.tables(&words.tables),
            params: gpu.uniform(&params.bytes),
            append,
            append_reordered,
            election,
            protect,
            passes,
            words,
        }
    }
}

fn append_dispatches(
    plan: &Plan,
    growths: &[Growth],
    records: &[u32],
    arrangements: &[Arrangement],
    words: &mut Words,
    params: &mut Params,
    alignment: u32,
) -> Vec<Vec<Dispatch>> {
    let items_at = words.tables.len() as u32;
    let mut items = 0;
    for (growth, record) in growths.iter().zip(records) {
        let first = growth.old_packed.max(plan.unpacked());
        if first < growth.new_packed {
            for block in first / plan.append_block()..growth.new_packed.div_ceil(plan.append_block()) {
                words.tables.extend([*record, block]);
                items += 1;
            }
        }
    }
    let mut slab_dispatch = |layer: u32, slab: &Slab, heads_at: &u32| {
        let p = AppendParams { items_at, items, layer, slab_heads: slab.count(), heads_at: *heads_at, kv_heads: plan.shape().kv_heads, pad: [0; 2] };
        words.append.push(p);
        Dispatch { params: params.push(&p, alignment), items }
    };
    by_slab(plan, arrangements, &mut slab_dispatch)
}

/// Makes something of every layer's every slab and the place of its heads in the tables.
fn by_slab<T>(plan: &Plan, arrangements: &[Arrangement], of: &mut impl FnMut(u32, &Slab, &u32) -> T) -> Vec<Vec<T>> {
    (0..plan.shape().layers)
        .map(|layer| plan.slabs(layer).iter().zip(&arrangements[plan.arrangement(layer)].heads_at).map(|(slab, heads_at)| of(layer, slab, heads_at)).collect())
        .collect()
}

fn append_reordered_dispatches(
    plan: &Plan,
    growths: &[Growth],
    records: &[u32],
    arrangements: &[Arrangement],
    words: &mut Words,
    params: &mut Params,
    alignment: u32,
) -> Vec<Vec<Dispatch>> {
    if !plan.restores() {
        return Vec::new();
    }
    let items_at = words.tables.len() as u32;
    let mut items = 0;
    for (growth, record) in growths.iter().zip(records) {
        let first = growth.old_packed.max(plan.unpacked());
        if first < growth.new_packed {
            for lane in first / 4..growth.new_packed.div_ceil(4) {
                words.tables.extend([*record, lane]);
                items += 1;
            }
        }
    }
    let mut slab_dispatch = |layer: u32, slab: &Slab, heads_at: &u32| {
        let p = AppendReorderedParams {
            items_at,
            items,
            layer,
            slab_heads: slab.count(),
            heads_at: *heads_at,
            kv_heads: plan.shape().kv_heads,
            places_at: heads_at + slab.count(),
            // Every slab's keys have the same scales: they go with the slab of head 0.
            scales: u32::from(slab.heads().contains(&0)),
        };
        words.append_reordered.push(p);
        Dispatch { params: params.push(&p, alignment), items }
    };
    by_slab(plan, arrangements, &mut slab_dispatch)
}

/// Blocks of the prefilling chunks' rows, and the chunks.
fn election(device: &wgpu::Device, plan: &Plan, growths: &[Growth], words: &mut Words) -> Option<Election> {
    if !plan.elects() || !growths.iter().any(Growth::prefills) {
        return None;
    }
    let blocks_at = words.tables.len() as u32;
    let mut blocks = 0;
    let mut chunks = Vec::new();
    let mut row = 0;
    for growth in growths {
        let tokens = growth.new_tokens - growth.old_tokens;
        if growth.prefills() {
            let first_block = blocks;
            for first in (0..tokens).step_by(elect::BLOCK_ROWS as usize) {
                words.tables.extend([row + first, elect::BLOCK_ROWS.min(tokens - first), growth.old_tokens + first, 0]);
                blocks += 1;
            }
            chunks.extend([growth.slot, first_block, blocks - first_block, growth.limit, growth.old_tokens, growth.new_tokens, 0, 0]);
        }
        row += tokens;
    }
    let chunks_at = words.tables.len() as u32;
    words.tables.extend(&chunks);
    let count = chunks.len() as u32 / 8;
    words.elect = [(blocks_at, blocks), (chunks_at, count)];
    let candidates = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("wgkv candidates"),
        size: 8 * u64::from(blocks) * u64::from(plan.sinks()),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    let held = (0..plan.shape().layers).map(|_| AtomicBool::new(false)).collect();
    Some(Election { blocks: (blocks_at, blocks), chunks: (chunks_at, count), candidates, held })
}

fn protect_dispatches(plan: &Plan, growths: &[Growth], records: &[u32], words: &mut Words, params: &mut Params, alignment: u32) -> Vec<Dispatch> {
    let items_at = words.tables.len() as u32;
    let mut items = 0;
    for (growth, record) in growths.iter().zip(records) {
        let sinks = growth.old_tokens..growth.new_tokens.min(plan.unpacked());
        let elected = if plan.elects() && growth.prefills() { SINK_ROW..SINK_ROW + plan.sinks() } else { 0..0 };
        let window = growth.new_packed.max(growth.old_tokens).max(plan.unpacked())..growth.new_tokens;
        for token in sinks.chain(elected).chain(window) {
            words.tables.extend([*record, token]);
            items += 1;
        }
    }
    let kv_heads = plan.shape().kv_heads;
    (0..plan.shape().layers)
        .map(|layer| {
            let p = ProtectParams { items_at, items, layer, kv_heads };
            words.protect.push(p);
            Dispatch { params: params.push(&p, alignment), items }
        })
        .collect()
}

/// A run of one chunk's query rows that falls into one pass.
struct Run<'a> {
    growth: &'a Growth,
    record: u32,
    /// First query among the chunk's new tokens.
    first: u32,
    tokens: u32,
    /// First row among the pass's rows.
    row: u32,
}

impl Run<'_> {
    /// A single query decodes: its pages are split. Several are a prefill.
    fn decodes(&self) -> bool {
        self.growth.rows == 1
    }

    /// The first token that a query at this position may see, but for sinks.
    fn visible(&self, plan: &Plan, position: u32) -> u32 {
        (position + 1).saturating_sub(plan.reach()).max(self.growth.first())
    }

    /// The first token that its decoding row sees in pages.
    fn visible_packed(&self, plan: &Plan) -> u32 {
        self.visible(plan, self.growth.old_tokens).max(plan.unpacked())
    }

    /// Its pages that its decoding row sees tokens of: none where it does not decode.
    fn pages(&self, plan: &Plan) -> Range<u32> {
        let first = self.visible_packed(plan);
        if self.decodes() && first < self.growth.new_packed { first / PAGE_TOKENS..self.growth.new_packed.div_ceil(PAGE_TOKENS) } else { 0..0 }
    }

    /// Where the tiles of tokens that so many of its queries, from `first` on, look at begin again after those of the sinks; 0 where they are
    /// those of all tokens.
    fn after(&self, plan: &Plan, first: u32) -> u32 {
        if self.decodes() { self.growth.new_packed } else { self.visible(plan, self.growth.old_tokens + first) / PAGE_TOKENS * PAGE_TOKENS }
    }

    /// Tiles of sinks that lie before `after`, then of all tokens from there on that are seen before `end`. Without sinks theirs are passed by.
    fn tiles(&self, plan: &Plan, after: u32, end: u32) -> Range<u32> {
        let sinks = match after {
            0 => 0,
            _ if plan.elects() => plan.sinks(),
            _ => plan.sinks().min(after),
        };
        let sinks = sinks.div_ceil(TILE_TOKENS);
        let tokens = end.min(self.growth.new_tokens).saturating_sub(after);
        (if self.growth.headless { sinks } else { 0 })..sinks + tokens.div_ceil(TILE_TOKENS)
    }

    /// Tiles of the tokens that are f16: sinks that would lie in pages, then all that no page holds yet.
    fn protected_tiles(&self, plan: &Plan) -> Range<u32> {
        self.tiles(plan, self.growth.new_packed, self.growth.new_tokens)
    }
}

fn passes(plan: &Plan, growths: &[Growth], records: &[u32], arrangements: &[Arrangement], words: &mut Words, params: &mut Params, alignment: u32) -> Vec<Pass> {
    let most = plan.query_rows();
    let mut passes = Vec::new();
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut rows = 0;
    let mut row_first = 0;
    let mut pages = 0;
    for (growth, record) in growths.iter().zip(records) {
        let tokens = growth.rows;
        let mut first = 0;
        // Scores (or terms of positions) are kept of as many pages as there are; sequences that share pages may together have more.
        pages += growth.pages.len() as u32;
        if plan.places_pages() && pages > plan.pages() && rows > 0 {
            passes.push(pass(plan, &runs, rows, row_first, arrangements, words, params, alignment));
            runs.clear();
            row_first += rows;
            (rows, pages) = (0, growth.pages.len() as u32);
        }
        while first < tokens {
            let taken = (tokens - first).min(most - rows);
            runs.push(Run { growth, record: *record, first, tokens: taken, row: rows });
            first += taken;
            rows += taken;
            if rows == most {
                passes.push(pass(plan, &runs, rows, row_first, arrangements, words, params, alignment));
                runs.clear();
                row_first += rows;
                rows = 0;
            }
        }
    }
    if rows > 0 {
        passes.push(pass(plan, &runs, rows, row_first, arrangements, words, params, alignment));
    }
    passes
}

#[expect(clippy::too_many_arguments, reason = "what it reads, then what it writes to")]
fn pass(
    plan: &Plan,
    runs: &[Run<'_>],
    rows: u32,
    row_first: u32,
    arrangements: &[Arrangement],
    words: &mut Words,
    params: &mut Params,
    alignment: u32,
) -> Pass {
    let shape = plan.shape();
    let tables = &mut words.tables;

    let positions_at = tables.len() as u32;
    for run in runs {
        tables.extend((0..run.tokens).map(|t| run.growth.old_tokens + run.first + t));
    }

    // Decoding rows: their pages in slices of about equal size, 256 a row at most. Those with the most pages first: the others fill
    // what is left at the end, when there are more items than run at once.
    let mut all_pages = 0;
    let mut score_pages = Vec::with_capacity(runs.len());
    for run in runs {
        score_pages.push(all_pages);
        all_pages += run.pages(plan).len() as u32;
    }
    let mut by_pages: Vec<usize> = (0..runs.len()).collect();
    by_pages.sort_by_cached_key(|n| Reverse(runs[*n].pages(plan).len()));
    let slice = all_pages.div_ceil(plan.split_items()).max(1);
    let split_at = tables.len() as u32;
    let mut splits = 0;
    let mut split_runs = vec![0..0; runs.len()];
    for n in by_pages {
        let run = &runs[n];
        let first_split = splits;
        let pages = run.pages(plan);
        // What is found in the place of the slot where pages have places of their own: that of page 0 among the scores or terms.
        let place = if plan.places_pages() { score_pages[n].wrapping_sub(pages.start) } else { run.growth.slot };
        let slice = slice.max((pages.len() as u32).div_ceil(MERGE_ITEMS));
        let (list, visible) = (run.growth.list(run.record), run.visible_packed(plan));
        for first in pages.clone().step_by(slice as usize) {
            let end = (first + slice).min(pages.end);
            tables.extend([run.row, list, first, end, visible, run.growth.new_packed, place, run.growth.limit_now()]);
            splits += 1;
        }
        split_runs[n] = first_split..splits;
    }

    // Prefilling rows: as many tokens as make a tile of rows, over everything they see. Decoding rows: their f16 tokens,
    // a tile or a few an item, since one row alone would walk the tiles one after another.
    let prefill_at = tables.len() as u32;
    let most = TILE_ROWS / shape.share();
    let slice = runs.iter().filter(|r| r.decodes()).map(|r| r.protected_tiles(plan).len() as u32).sum::<u32>().div_ceil(DECODE_PARTIALS).max(1);
    let mut prefills = 0;
    let mut partials = 0;
    let mut partial_runs = Vec::new();
    for run in runs {
        let first_partial = partials;
        let mut item = |first, tokens, after, tiles: Range<u32>| {
            tables.extend([run.record, run.first + first, tokens, run.row + first, after, tiles.start, tiles.end, partials]);
            prefills += 1;
            partials += tokens;
        };
        if run.decodes() {
            let tiles = run.protected_tiles(plan);
            for tile in tiles.clone().step_by(slice as usize) {
                item(0, 1, run.after(plan, 0), tile..(tile + slice).min(tiles.end));
            }
        } else {
            for first in (0..run.tokens).step_by(most as usize) {
                let tokens = most.min(run.tokens - first);
                let seen = run.growth.old_tokens + run.first + first + tokens;
                let after = run.after(plan, run.first + first);
                item(first, tokens, after, run.tiles(plan, after, seen));
            }
        }
        partial_runs.push(first_partial..partials);
    }

    let position_at = tables.len() as u32;
    let mut positions = 0;
    if plan.position_quads() > 0 {
        for (run, place) in runs.iter().zip(&score_pages) {
            let pages = run.pages(plan);
            for first in pages.clone().step_by(position::PAGES as usize) {
                tables.extend([run.row, first, pages.end.min(first + position::PAGES), place.wrapping_sub(pages.start)]);
                positions += 1;
            }
        }
    }

    let align_at = tables.len() as u32;
    let mut align_rows = 0;
    if plan.aligns() {
        for (n, run) in runs.iter().enumerate().filter(|(_, run)| !run.pages(plan).is_empty()) {
            let (splits, partials, pages) = (&split_runs[n], &partial_runs[n], run.pages(plan));
            let lists = [splits, partials].map(|range| [range.start, range.end - range.start]);
            // Of these pages only, counted from their first.
            tables.extend([run.row, run.growth.list(run.record).wrapping_add(pages.start), pages.len() as u32, score_pages[n]]);
            tables.extend(lists.as_flattened());
            align_rows += 1;
        }
    }

    let records_at = tables.len() as u32;
    let mut most_items = 0;
    for ((run, splits), partials) in runs.iter().zip(split_runs).zip(partial_runs) {
        let (split_count, partial_count) = (splits.end - splits.start, partials.end - partials.start);
        most_items = most_items.max(split_count);
        for token in 0..run.tokens {
            // A prefilling row has one partial result, a decoding row all of its run.
            let (first, count) = if run.decodes() { (partials.start, partial_count) } else { (partials.start + token, 1) };
            tables.extend([splits.start, split_count, first, count]);
        }
    }
    let merge = AttendMergeParams { records_at, row_first, query_heads: shape.query_heads, kv_heads: shape.kv_heads };

    words.attend_merge.push((merge, rows));
    let mut pass = Pass { rows, merge: params.push(&merge, alignment), merge_parts: plan.merge_parts_for(most_items), arranged: Vec::new() };
    for (slabs, at) in plan.arrangements().iter().zip(arrangements) {
        let query = QueryParams { positions_at, row_first, query_heads: shape.query_heads, kv_heads: shape.kv_heads, groups_at: at.groups_at, pad: [0; 3] };
        let position = PositionParams { items_at: position_at, positions_at, row_first, query_heads: shape.query_heads, kv_heads: shape.kv_heads, pad: [0; 3] };
        let mut arranged = Arranged {
            query: params.push(&query, alignment),
            position: Dispatch { params: params.push(&position, alignment), items: positions },
            ..Arranged::default()
        };
        words.query.push(query);
        words.position.push((position, positions));
        for (slab, heads_at) in slabs.iter().zip(&at.heads_at) {
            let (slab_heads, heads_at, kv_heads) = (slab.count(), *heads_at, shape.kv_heads);
            let split = AttendSplitParams { items_at: split_at, slab_heads, heads_at, kv_heads };
            let prefill = AttendPrefillParams { items_at: prefill_at, slab_heads, heads_at, kv_heads };
            if plan.aligns() {
                let [keys, values] = [plan.alignment().keys, plan.alignment().values].map(|criterion| {
                    let [criterion, phi] = criterion.words();
                    AlignPlanParams { rows_at: align_at, slab_heads, heads_at, kv_heads, criterion, phi, pad: [0; 2] }
                });
                let scores = AlignScoresParams { items_at: split_at, slab_heads, heads_at, kv_heads };
                let rows = AlignValuesParams { items_at: split_at, slab_heads, heads_at, kv_heads, criterion: values.criterion, pad: [0; 3] };
                arranged.align.push(Align {
                    keys: Dispatch { params: params.push(&keys, alignment), items: align_rows },
                    scores: Dispatch { params: params.push(&scores, alignment), items: splits },
                    values: Dispatch { params: params.push(&values, alignment), items: align_rows },
                    rows: Dispatch { params: params.push(&rows, alignment), items: splits },
                });
                words.align_plan.push(([keys, values], align_rows));
                words.align_scores.push((scores, splits));
                words.align_values.push((rows, splits));
            }
            arranged.split.push(Dispatch { params: params.push(&split, alignment), items: if plan.aligns() { 0 } else { splits } });
            arranged.prefill.push(Dispatch { params: params.push(&prefill, alignment), items: prefills });
            words.attend_split.push((split, splits));
            words.attend_prefill.push((prefill, prefills));
        }
        pass.arranged.push(arranged);
    }
    pass
}
