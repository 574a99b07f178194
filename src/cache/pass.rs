//! The passes of a step: query rows that are attended together, because scratch holds no more, and
//! the tables of each.

use super::records::{AlignRow, MergeRow, PositionItem, PrefillItem, RowsItem, SplitItem};
use super::sequence::Growth;
use super::step::{Align, Dispatch, StepMaker};
use crate::format::PAGE_TOKENS;
use crate::kernel::align_plan::AlignPlanParams;
use crate::kernel::align_scores::AlignScoresParams;
use crate::kernel::align_values::AlignValuesParams;
use crate::kernel::attend_merge::{AttendMergeParams, MERGE_ITEMS};
use crate::kernel::attend_prefill::{AttendPrefillParams, TILE_ROWS, TILE_TOKENS};
use crate::kernel::attend_rows::{AttendRowsParams, TILE_PLACES};
use crate::kernel::attend_split::AttendSplitParams;
use crate::kernel::position::{self, PositionParams};
use crate::kernel::query::QueryParams;
use crate::plan::Plan;
use std::cmp::Reverse;
use std::ops::Range;

/// Query rows that are attended together.
#[derive(Clone, Debug, Default)]
pub(super) struct Pass {
    pub rows: u32,
    /// Dynamic offset of attend_merge's parameters.
    pub merge: u32,
    /// Which of [`Plan::merge_choices`] merges.
    pub merge_choice: usize,
    /// The f16 rows of decoding rows, in the layers of every arrangement alike.
    pub attend_rows: Dispatch,
    /// By arrangement of the plan.
    pub arranged: Vec<Arranged>,
}

/// What a pass does with the layers that spread their KV heads over slabs in one way.
#[derive(Clone, Debug, Default)]
pub(super) struct Arranged {
    /// Dynamic offset of query's parameters.
    pub query: u32,
    /// Chunks of the pages of decoding rows, for Centred.
    pub position: Dispatch,
    /// By slab.
    pub split: Vec<Dispatch>,
    /// By slab.
    pub prefill: Vec<Dispatch>,
    /// By slab, for codecs with planes.
    pub align: Vec<Align>,
}

/// A run of one chunk's query rows that falls within one pass.
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
    /// Returns whether the run decodes: then its pages are split. Several queries are a prefill.
    fn decodes(&self) -> bool {
        self.growth.rows == 1
    }

    /// Returns the first token that a query at this position may see, apart from sinks.
    fn visible(&self, plan: &Plan, position: u32) -> u32 {
        (position + 1).saturating_sub(plan.reach()).max(self.growth.first())
    }

    /// Returns the first token in pages that its decoding row sees.
    fn visible_packed(&self, plan: &Plan) -> u32 {
        self.visible(plan, self.growth.old_tokens).max(plan.unpacked())
    }

    /// Returns the pages in which its decoding row sees tokens: none where it does not decode.
    fn pages(&self, plan: &Plan) -> Range<u32> {
        let first = self.visible_packed(plan);
        if self.decodes() && first < self.growth.new_packed { first / PAGE_TOKENS..self.growth.new_packed.div_ceil(PAGE_TOKENS) } else { 0..0 }
    }

    /// Returns where the tiles of tokens begin again after those of the sinks, for its queries from
    /// `first` on; 0 where the tiles are those of all tokens.
    fn after(&self, plan: &Plan, first: u32) -> u32 {
        self.visible(plan, self.growth.old_tokens + first) / PAGE_TOKENS * PAGE_TOKENS
    }

    /// Returns the tiles of sinks before `after`, then those of all tokens from there on that are
    /// seen before `end`. A sequence that never had its sinks skips their tiles.
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

    /// Returns how many sinks its decoding row finds among the f16 rows that would lie in pages
    /// otherwise. A sequence that never had its sinks has none.
    fn sinks(&self, plan: &Plan) -> u32 {
        match self.growth.new_packed {
            0 => 0,
            _ if self.growth.headless => 0,
            _ if plan.elects() => plan.sinks(),
            packed => plan.sinks().min(packed),
        }
    }

    /// Returns the tiles of its decoding row's f16 rows: of those sinks, then of all tokens that no
    /// page holds yet. None where it does not decode.
    fn row_tiles(&self, plan: &Plan) -> u32 {
        // Rows that attend once more may have later tokens in pages, but do not decode.
        if !self.decodes() {
            return 0;
        }
        (self.sinks(plan) + self.growth.new_tokens - self.growth.new_packed).div_ceil(TILE_PLACES)
    }
}

/// Distributes the rows of a step over passes.
pub(super) fn passes(maker: &mut StepMaker<'_>) -> Vec<Pass> {
    let (plan, growths, records) = (maker.plan, maker.growths, maker.records.clone());
    let most = plan.query_rows();
    let mut passes = Vec::new();
    let mut runs: Vec<Run<'_>> = Vec::new();
    let (mut rows, mut row_first, mut pages) = (0, 0, 0);
    let mut close = |maker: &mut StepMaker<'_>, runs: &mut Vec<Run<'_>>, rows: &mut u32| {
        passes.push(PassTables { maker, runs, rows: *rows, row_first }.pass());
        runs.clear();
        row_first += *rows;
        *rows = 0;
    };
    for (growth, record) in growths.iter().zip(records) {
        // There is scratch for the scores (or terms of positions) of as many pages as the cache
        // has; sequences that share pages may have more between them.
        pages += growth.pages.len() as u32;
        if plan.places_pages() && pages > plan.pages() && rows > 0 {
            close(maker, &mut runs, &mut rows);
            pages = growth.pages.len() as u32;
        }
        let mut first = 0;
        while first < growth.rows {
            let tokens = (growth.rows - first).min(most - rows);
            runs.push(Run { growth, record, first, tokens, row: rows });
            first += tokens;
            rows += tokens;
            if rows == most {
                close(maker, &mut runs, &mut rows);
            }
        }
    }
    if rows > 0 {
        close(maker, &mut runs, &mut rows);
    }
    passes
}

/// A list in the tables: where it begins, and which part belongs to each run.
struct Listed {
    at: u32,
    count: u32,
    by_run: Vec<Range<u32>>,
}

/// Items whose partial results lie together: where they are listed, and how many they are.
struct RowPartials {
    rows: (u32, u32),
    prefills: (u32, u32),
    /// By run, its partial results.
    by_run: Vec<Range<u32>>,
}

/// A pass being made.
struct PassTables<'m, 's, 'r> {
    maker: &'m mut StepMaker<'s>,
    runs: &'r [Run<'r>],
    rows: u32,
    /// First row of the step.
    row_first: u32,
}

impl PassTables<'_, '_, '_> {
    fn plan(&self) -> &Plan {
        self.maker.plan
    }

    fn pass(mut self) -> Pass {
        let positions_at = self.positions();
        let places = self.page_places();
        let splits = self.splits(&places);
        let RowPartials { rows, prefills, by_run } = self.row_partials();
        let position = self.position_items(&places);
        let align = self.align_rows(&places, &splits, &by_run);
        let mut pass = self.merge(&splits, &by_run);
        pass.attend_rows = self.attend_rows(rows);
        for arrangement in 0..self.plan().arrangements().len() {
            pass.arranged.push(self.arranged(arrangement, positions_at, position, &splits, prefills, align));
        }
        pass
    }

    /// Lists the position of every row.
    fn positions(&mut self) -> u32 {
        let positions: Vec<u32> = self.runs.iter().flat_map(|run| (0..run.tokens).map(|t| run.growth.old_tokens + run.first + t)).collect();
        self.maker.words.list(&positions)
    }

    /// Returns, by run, the place of its first page among those of all runs, for scores or terms.
    fn page_places(&self) -> Vec<u32> {
        let mut pages = 0;
        let place = |run: &Run<'_>| {
            let place = pages;
            pages += run.pages(self.plan()).len() as u32;
            place
        };
        self.runs.iter().map(place).collect()
    }

    /// Lists the pages of decoding rows in slices of about equal size, 256 a row at most. Slices
    /// with the most pages come first, so that shorter ones fill the gaps at the end when there are
    /// more items than run at once.
    fn splits(&mut self, places: &[u32]) -> Listed {
        let plan = self.maker.plan;
        let all: u32 = self.runs.iter().map(|run| run.pages(plan).len() as u32).sum();
        let slice = all.div_ceil(plan.split_items()).max(1);
        let mut by_pages: Vec<usize> = (0..self.runs.len()).collect();
        by_pages.sort_by_cached_key(|n| Reverse(self.runs[*n].pages(plan).len()));
        let mut items = Vec::new();
        let mut by_run = vec![0..0; self.runs.len()];
        for n in by_pages {
            let run = &self.runs[n];
            let first = items.len() as u32;
            let pages = run.pages(plan);
            let place = if plan.places_pages() { places[n].wrapping_sub(pages.start) } else { run.growth.slot };
            let slice = slice.max((pages.len() as u32).div_ceil(MERGE_ITEMS));
            for first_page in pages.clone().step_by(slice as usize) {
                items.push(SplitItem {
                    row: run.row,
                    list: run.growth.list(run.record),
                    first_page,
                    end_page: (first_page + slice).min(pages.end),
                    visible: run.visible_packed(plan),
                    packed: run.growth.new_packed,
                    place,
                    limit: run.growth.limit_now(),
                });
            }
            by_run[n] = first..items.len() as u32;
        }
        Listed { at: self.maker.words.list(&items), count: items.len() as u32, by_run }
    }

    /// Lists the items of `attend_rows` and `attend_prefill`, whose partial results lie together.
    /// Prefilling rows come a tile of rows at a time, over everything they see. The f16 rows of a
    /// decoding row come a tile or a few an item, since one workgroup would walk them one after
    /// another.
    fn row_partials(&mut self) -> RowPartials {
        let plan = self.maker.plan;
        let most = TILE_ROWS / plan.shape().share();
        let slice = self.runs.iter().map(|run| run.row_tiles(plan)).sum::<u32>().div_ceil(plan.row_items()).max(1);
        let (mut rows, mut prefills) = (Vec::new(), Vec::new());
        let mut partial = 0;
        let mut by_run = Vec::with_capacity(self.runs.len());
        for run in self.runs {
            let (first_partial, record) = (partial, run.record);
            if run.decodes() {
                let (position, tiles) = (run.growth.old_tokens, run.row_tiles(plan));
                for first_tile in (0..tiles).step_by(slice as usize) {
                    // Sinks are seen though the pages that follow them are gone.
                    let (visible, end_tile) = ((position + 1).saturating_sub(plan.reach()), tiles.min(first_tile + slice));
                    rows.push(RowsItem { record, row: run.row, position, visible, sinks: run.sinks(plan), first_tile, end_tile, partial });
                    partial += 1;
                }
            } else {
                for first in (0..run.tokens).step_by(most as usize) {
                    let tokens = most.min(run.tokens - first);
                    let seen = run.growth.old_tokens + run.first + first + tokens;
                    let after = run.after(plan, run.first + first);
                    let tiles = run.tiles(plan, after, seen);
                    let (first_query, row) = (run.first + first, run.row + first);
                    prefills.push(PrefillItem { record, first: first_query, tokens, row, after, first_tile: tiles.start, end_tile: tiles.end, partial });
                    partial += tokens;
                }
            }
            by_run.push(first_partial..partial);
        }
        let words = &mut self.maker.words;
        RowPartials { rows: (words.list(&rows), rows.len() as u32), prefills: (words.list(&prefills), prefills.len() as u32), by_run }
    }

    /// Makes the parameters of `attend_rows`.
    fn attend_rows(&mut self, (items_at, items): (u32, u32)) -> Dispatch {
        let params = AttendRowsParams { items_at, kv_heads: self.plan().shape().kv_heads, pad: [0; 2] };
        self.maker.words.attend_rows.push((params, items));
        Dispatch { params: self.maker.params.push(&params), items }
    }

    /// Lists the pages of decoding rows for `position`, where keys have means that turn.
    fn position_items(&mut self, places: &[u32]) -> (u32, u32) {
        let plan = self.maker.plan;
        let mut items = Vec::new();
        if plan.position_quads() > 0 {
            for (run, place) in self.runs.iter().zip(places) {
                let pages = run.pages(plan);
                items.extend(pages.clone().step_by(position::PAGES as usize).map(|first_page| PositionItem {
                    row: run.row,
                    first_page,
                    end_page: pages.end.min(first_page + position::PAGES),
                    place: place.wrapping_sub(pages.start),
                }));
            }
        }
        (self.maker.words.list(&items), items.len() as u32)
    }

    /// Lists the decoding rows whose planes are chosen.
    fn align_rows(&mut self, places: &[u32], splits: &Listed, partials: &[Range<u32>]) -> (u32, u32) {
        let plan = self.maker.plan;
        let mut rows = Vec::new();
        if plan.aligns() {
            for (n, run) in self.runs.iter().enumerate().filter(|(_, run)| !run.pages(plan).is_empty()) {
                let (splits, partials, pages) = (&splits.by_run[n], &partials[n], run.pages(plan));
                rows.push(AlignRow {
                    row: run.row,
                    list: run.growth.list(run.record).wrapping_add(pages.start),
                    pages: pages.len() as u32,
                    place: places[n],
                    first_split: splits.start,
                    splits: splits.end - splits.start,
                    first_partial: partials.start,
                    partials: partials.end - partials.start,
                });
            }
        }
        (self.maker.words.list(&rows), rows.len() as u32)
    }

    /// Lists the partial results of every row, and begins the pass.
    fn merge(&mut self, splits: &Listed, partials: &[Range<u32>]) -> Pass {
        let plan = self.maker.plan;
        let mut rows = Vec::with_capacity(self.rows as usize);
        for ((run, splits), partials) in self.runs.iter().zip(&splits.by_run).zip(partials) {
            let (first_split, splits) = (splits.start, splits.end - splits.start);
            // A prefilling row has one partial result, a decoding row all of its run.
            rows.extend((0..run.tokens).map(|token| {
                let (first_partial, partials) = if run.decodes() { (partials.start, partials.end - partials.start) } else { (partials.start + token, 1) };
                MergeRow { first_split, splits, first_partial, partials }
            }));
        }
        let most = rows.iter().map(|row| row.splits).max().unwrap_or(0);
        let (query_heads, kv_heads) = (plan.shape().query_heads, plan.shape().kv_heads);
        let merge = AttendMergeParams { records_at: self.maker.words.list(&rows), row_first: self.row_first, query_heads, kv_heads };
        self.maker.words.attend_merge.push((merge, self.rows));
        Pass { rows: self.rows, merge: self.maker.params.push(&merge), merge_choice: plan.merge_choice(most), ..Pass::default() }
    }

    /// Makes the parameters of the kernels that work on the slabs of one arrangement.
    fn arranged(
        &mut self,
        arrangement: usize,
        positions_at: u32,
        (position_at, positions): (u32, u32),
        splits: &Listed,
        (prefill_at, prefills): (u32, u32),
        align: (u32, u32),
    ) -> Arranged {
        let (plan, row_first) = (self.maker.plan, self.row_first);
        let (query_heads, kv_heads) = (plan.shape().query_heads, plan.shape().kv_heads);
        let groups_at = self.maker.arrangements[arrangement].groups_at;
        let query = QueryParams { positions_at, row_first, query_heads, kv_heads, groups_at, pad: [0; 3] };
        let position = PositionParams { items_at: position_at, positions_at, row_first, query_heads, kv_heads, pad: [0; 3] };
        let StepMaker { words, params, arrangements, .. } = &mut *self.maker;
        words.query.push(query);
        words.position.push((position, positions));
        let mut arranged =
            Arranged { query: params.push(&query), position: Dispatch { params: params.push(&position), items: positions }, ..Arranged::default() };
        for (slab, heads_at) in plan.arrangements()[arrangement].iter().zip(&arrangements[arrangement].heads_at) {
            let (slab_heads, heads_at, splits_at) = (slab.count(), *heads_at, splits.at);
            if plan.aligns() {
                let [keys, values] = [plan.alignment().keys, plan.alignment().values].map(|criterion| {
                    let [criterion, phi] = criterion.words();
                    AlignPlanParams { rows_at: align.0, slab_heads, heads_at, kv_heads, criterion, phi, pad: [0; 2] }
                });
                let scores = AlignScoresParams { items_at: splits_at, slab_heads, heads_at, kv_heads };
                let rows = AlignValuesParams { items_at: splits_at, slab_heads, heads_at, kv_heads, criterion: values.criterion, pad: [0; 3] };
                arranged.align.push(Align {
                    keys: Dispatch { params: params.push(&keys), items: align.1 },
                    scores: Dispatch { params: params.push(&scores), items: splits.count },
                    values: Dispatch { params: params.push(&values), items: align.1 },
                    rows: Dispatch { params: params.push(&rows), items: splits.count },
                });
                words.align_plan.push(([keys, values], align.1));
                words.align_scores.push((scores, splits.count));
                words.align_values.push((rows, splits.count));
            }
            let split = AttendSplitParams { items_at: splits_at, slab_heads, heads_at, kv_heads };
            let prefill = AttendPrefillParams { items_at: prefill_at, slab_heads, heads_at, kv_heads };
            arranged.split.push(Dispatch { params: params.push(&split), items: if plan.aligns() { 0 } else { splits.count } });
            arranged.prefill.push(Dispatch { params: params.push(&prefill), items: prefills });
            words.attend_split.push((split, splits.count));
            words.attend_prefill.push((prefill, prefills));
        }
        arranged
    }
}
