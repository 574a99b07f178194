//! The passes of a step: query rows that are attended together, because scratch holds no more, and
//! the tables of each.

use super::records::{AlignRow, MergeRow, PositionItem, PrefillItem, RowsItem, SplitItem, UnpackItem};
use super::sequence::Growth;
use super::step::{Align, Dispatch, StepMaker};
use crate::format::PAGE_TOKENS;
use crate::kernel::align_plan::AlignPlanParams;
use crate::kernel::align_scores::AlignScoresParams;
use crate::kernel::align_values::AlignValuesParams;
use crate::kernel::attend_direct::AttendDirectParams;
use crate::kernel::attend_merge::{AttendMergeParams, MERGE_ITEMS};
use crate::kernel::attend_prefill::AttendPrefillParams;
use crate::kernel::attend_rows::{AttendRowsParams, DECODE_PARTIALS, TILE_PLACES};
use crate::kernel::attend_split::AttendSplitParams;
use crate::kernel::position::{self, PositionParams};
use crate::kernel::query::QueryParams;
use crate::kernel::unpack::{TILE_TOKENS, UnpackParams};
use crate::plan::Plan;
use crate::plan::sizes::PREFILL_WORKGROUPS;
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
    /// Whether attend_direct takes it.
    pub direct: bool,
    /// The f16 rows of decoding rows, in the layers of every arrangement alike.
    pub attend_rows: Dispatch,
    /// By round, what attends to the tokens that the round unpacks.
    pub rounds: Vec<Vec<Dispatch>>,
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
    pub direct: Vec<Dispatch>,
    pub split: Vec<Dispatch>,
    /// By round and slab.
    pub unpack: Vec<Vec<Dispatch>>,
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
        plan.span().first(position).max(self.growth.first())
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

    /// Returns where the tiles of tokens begin again after those of the sinks, for its prefilling
    /// queries; 0 where the tiles are those of all tokens.
    fn after(&self, plan: &Plan) -> u32 {
        self.visible(plan, self.growth.old_tokens + self.first) / PAGE_TOKENS * PAGE_TOKENS
    }

    /// Returns how many tiles of sinks come before those of the tokens from `after` on.
    fn sink_tiles(&self, plan: &Plan) -> u32 {
        let sinks = match self.after(plan) {
            0 => 0,
            _ if plan.elects() => plan.sinks(),
            after => plan.sinks().min(after),
        };
        sinks.div_ceil(TILE_TOKENS)
    }

    /// Returns the tiles of sinks, then those of all tokens from `after` on that are seen before
    /// `end`. A sequence that never had its sinks skips their tiles.
    fn tiles(&self, plan: &Plan, end: u32) -> Range<u32> {
        let sinks = self.sink_tiles(plan);
        let tokens = end.min(self.growth.new_tokens).saturating_sub(self.after(plan));
        (if self.growth.headless { sinks } else { 0 })..sinks + tokens.div_ceil(TILE_TOKENS)
    }

    /// Returns the tiles in which some of these of its prefilling queries sees a token. Where a
    /// window hides whole tiles, it hides all sinks before them.
    fn prefill_tiles(&self, plan: &Plan, queries: Range<u32>) -> Range<u32> {
        let position = self.growth.old_tokens + self.first;
        let tiles = self.tiles(plan, position + queries.end);
        let hidden = (self.visible(plan, position + queries.start) - self.after(plan)) / TILE_TOKENS;
        let start = if hidden > 0 { self.sink_tiles(plan) + hidden } else { tiles.start };
        start.min(tiles.end)..tiles.end
    }

    /// Returns how many rounds unpack what its queries see.
    fn pieces(&self, plan: &Plan) -> u32 {
        (self.prefill_tiles(plan, 0..self.tokens).len() as u32).div_ceil(plan.unpacked_tiles()).max(1)
    }

    /// Returns how many partial results of query rows it has, at least.
    fn partials(&self, plan: &Plan) -> u32 {
        if self.decodes() { 1 } else { self.tokens * self.pieces(plan) }
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
    let (mut rows, mut row_first, mut pages, mut partials) = (0, 0, 0, 0);
    let mut close = |maker: &mut StepMaker<'_>, runs: &mut Vec<Run<'_>>, rows: &mut u32, partials: &mut u32| {
        passes.push(PassTables { maker, runs, rows: *rows, row_first }.pass());
        runs.clear();
        row_first += *rows;
        (*rows, *partials) = (0, 0);
    };
    // Decoding rows may have this many more.
    let room = plan.row_partials() - DECODE_PARTIALS;
    for (growth, record) in growths.iter().zip(records) {
        // There is scratch for the scores (or terms of positions) of as many pages as the cache
        // has; sequences that share pages may have more between them.
        pages += growth.pages.len() as u32;
        if plan.places_pages() && pages > plan.pages() && rows > 0 {
            close(maker, &mut runs, &mut rows, &mut partials);
            pages = growth.pages.len() as u32;
        }
        let mut first = 0;
        while first < growth.rows {
            let mut run = Run { growth, record, first, tokens: (growth.rows - first).min(most - rows), row: rows };
            // Keys that are unpacked in many rounds leave room for fewer rows.
            let each = run.partials(plan) / run.tokens;
            if each > room - partials && rows > 0 {
                close(maker, &mut runs, &mut rows, &mut partials);
                continue;
            }
            run.tokens = run.tokens.min(((room - partials) / each).max(1));
            first += run.tokens;
            rows += run.tokens;
            partials += run.partials(plan);
            runs.push(run);
            if rows == most {
                close(maker, &mut runs, &mut rows, &mut partials);
            }
        }
    }
    if rows > 0 {
        close(maker, &mut runs, &mut rows, &mut partials);
    }
    passes
}

/// The partial results of a run's query tokens: the first token's first, and how many each has.
#[derive(Clone, Copy, Debug, Default)]
struct Partials {
    first: u32,
    each: u32,
}

/// Tokens that are unpacked together, and the rows that are held against them.
#[derive(Debug, Default)]
struct Round {
    unpack: Vec<UnpackItem>,
    attend: Vec<PrefillItem>,
}

/// A round in the tables.
#[derive(Clone, Debug)]
struct ListedRound {
    unpack_at: u32,
    tiles: u32,
    /// First item and items of each dispatch.
    attend: Vec<(u32, u32)>,
}

/// A list in the tables: where it begins, and which part belongs to each run.
struct Listed {
    at: u32,
    count: u32,
    by_run: Vec<Range<u32>>,
}

/// Tiles of tokens that a tile of rows is held against at least, where tokens are split.
const LEAST_TILES: u32 = 8;

/// Words of an item of `attend_prefill`.
const ITEM_WORDS: u32 = size_of::<PrefillItem>() as u32 / 4;

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
        let direct = self.is_direct();
        let splits = self.splits(&places, if direct { self.plan().direct_items() } else { self.plan().split_items() });
        let (rows, mut partials) = self.rows();
        let rounds = self.rounds(&mut partials);
        let rounds = self.list_rounds(&rounds);
        let position = self.position_items(&places);
        let align = self.align_rows(&places, &splits, &partials);
        let mut pass = self.merge(&splits, &partials, if direct { rows.1 } else { 0 });
        pass.direct = direct;
        pass.attend_rows = self.attend_rows(rows);
        for arrangement in 0..self.plan().arrangements().len() {
            let mut arranged = self.arranged(arrangement, positions_at, position, &splits, align);
            if direct {
                arranged.direct = self.directs(arrangement, positions_at, rows, &splits);
            }
            arranged.unpack = self.unpacks(arrangement, &rounds);
            pass.arranged.push(arranged);
        }
        pass.rounds = self.attends(&rounds);
        pass
    }

    /// Returns whether attend_direct takes the pass: all of its few rows decode, over few pages, and
    /// each has an item, by which attend_merge knows of queries that are not finite.
    fn is_direct(&self) -> bool {
        let plan = self.plan();
        let pages: u32 = self.runs.iter().map(|run| run.pages(plan).len() as u32).sum();
        self.rows <= plan.direct_rows()
            && pages <= plan.direct_pages()
            && self.runs.iter().all(|run| run.decodes() && (!run.pages(plan).is_empty() || run.row_tiles(plan) > 0))
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

    /// Lists the pages of decoding rows in slices of about equal size, `target` in all and 256 a
    /// row at most. Slices with the most pages come first, so that shorter ones fill the gaps at
    /// the end when there are more items than run at once.
    fn splits(&mut self, places: &[u32], target: u32) -> Listed {
        let plan = self.maker.plan;
        let all: u32 = self.runs.iter().map(|run| run.pages(plan).len() as u32).sum();
        let slice = all.div_ceil(target).max(1);
        let mut by_pages: Vec<usize> = (0..self.runs.len()).collect();
        by_pages.sort_by_cached_key(|n| Reverse(self.runs[*n].pages(plan).len()));
        let mut items = Vec::new();
        let mut by_run = vec![0..0; self.runs.len()];
        for n in by_pages {
            let run = &self.runs[n];
            let first = items.len() as u32;
            let pages = run.pages(plan);
            let place = if plan.places_pages() { places[n].wrapping_sub(pages.start) } else { 0 };
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
                    slot: run.growth.slot,
                });
            }
            by_run[n] = first..items.len() as u32;
        }
        Listed { at: self.maker.words.list(&items), count: items.len() as u32, by_run }
    }

    /// Lists the items of `attend_rows`: the f16 rows of a decoding row, a tile or a few an item,
    /// since one workgroup would walk them one after another. Returns the items, and by run the
    /// partial results.
    fn rows(&mut self) -> ((u32, u32), Vec<Partials>) {
        let plan = self.maker.plan;
        let slice = self.runs.iter().map(|run| run.row_tiles(plan)).sum::<u32>().div_ceil(plan.row_items()).max(1);
        let mut items = Vec::new();
        let mut by_run = vec![Partials::default(); self.runs.len()];
        for (run, partials) in self.runs.iter().zip(&mut by_run).filter(|(run, _)| run.decodes()) {
            let (record, row, position, sinks, tiles) = (run.record, run.row, run.growth.old_tokens, run.sinks(plan), run.row_tiles(plan));
            // Sinks are seen though the pages that follow them are gone.
            let visible = plan.span().first(position);
            partials.first = items.len() as u32;
            items.extend((0..tiles).step_by(slice as usize).zip(partials.first..).map(|(first_tile, partial)| RowsItem {
                record,
                row,
                position,
                visible,
                sinks,
                first_tile,
                end_tile: tiles.min(first_tile + slice),
                partial,
            }));
            partials.each = items.len() as u32 - partials.first;
        }
        ((self.maker.words.list(&items), items.len() as u32), by_run)
    }

    /// Makes the parameters of `attend_rows`.
    fn attend_rows(&mut self, (items_at, items): (u32, u32)) -> Dispatch {
        let params = AttendRowsParams { items_at, kv_heads: self.plan().shape().kv_heads, pad: [0; 2] };
        self.maker.words.attend_rows.push((params, items));
        Dispatch { params: self.maker.params.push(&params), items }
    }

    /// Returns the rounds in which prefilling rows are attended: each unpacks tiles of tokens, as
    /// many as scratch holds, and then holds all rows that see them against them, a tile of rows an
    /// item. Where that makes few items, the tokens of each are split among several. `partials` are
    /// those of the decoding rows, after which the others lie.
    fn rounds(&self, partials: &mut [Partials]) -> Vec<Round> {
        let plan = self.maker.plan;
        let most = plan.prefill_rows() / plan.shape().share();
        let prefilling = || self.runs.iter().filter(|run| !run.decodes());
        let items: u32 = prefilling().map(|run| run.tokens.div_ceil(most)).sum();
        let need: u32 = prefilling().map(|run| run.partials(plan)).sum();
        if need == 0 {
            return Vec::new();
        }
        let workgroups = items * plan.shape().kv_heads * plan.column_blocks();
        let mut partial = partials.iter().map(|partials| partials.first + partials.each).max().unwrap_or(0);
        let room = (plan.row_partials() - partial) / need;
        let wanted = ((PREFILL_WORKGROUPS + workgroups / 2) / workgroups).min(room);
        let mut rounds = vec![Round::default()];
        for (run, partials) in self.runs.iter().zip(partials).filter(|(run, _)| !run.decodes()) {
            let (tiles, pieces, after) = (run.prefill_tiles(plan, 0..run.tokens), run.pieces(plan), run.after(plan));
            let piece_tiles = (tiles.len() as u32).div_ceil(pieces);
            let splits = wanted.min(piece_tiles / LEAST_TILES).max(1);
            *partials = Partials { first: partial, each: pieces * splits };
            partial += run.tokens * partials.each;
            for n in 0..pieces {
                let start = (tiles.start + n * piece_tiles).min(tiles.end);
                let piece = start..(start + piece_tiles).min(tiles.end);
                let mut place = rounds.last().map_or(0, |round| round.unpack.len() as u32);
                if place > 0 && place + piece.len() as u32 > plan.unpacked_tiles() {
                    rounds.push(Round::default());
                    place = 0;
                }
                let Some(round) = rounds.last_mut() else { continue };
                round.unpack.extend(piece.clone().zip(place..).map(|(tile, place)| UnpackItem { record: run.record, tile, after, place }));
                // The last rows see most, and shorter items fill the gaps at the end.
                for first in (0..run.tokens).step_by(most as usize).rev() {
                    let tokens = most.min(run.tokens - first);
                    let seen = run.prefill_tiles(plan, first..first + tokens);
                    let [start, end] = [seen.start, seen.end].map(|tile| tile.clamp(piece.start, piece.end));
                    let slice = (end - start).div_ceil(splits);
                    round.attend.extend((0..splits).map(|split| {
                        let first_tile = (start + split * slice).min(end);
                        PrefillItem {
                            record: run.record,
                            first: run.first + first,
                            tokens,
                            row: run.row + first,
                            after,
                            first_tile,
                            end_tile: (first_tile + slice).min(end),
                            unpacked: place + first_tile - piece.start,
                            partial: partials.first + first * partials.each + n * splits + split,
                            partials: partials.each,
                            pad: [0; 2],
                        }
                    }));
                }
            }
        }
        rounds
    }

    /// Lists the rounds, their items in dispatches of no more work than one may hold.
    fn list_rounds(&mut self, rounds: &[Round]) -> Vec<ListedRound> {
        let plan = self.maker.plan;
        let shape = plan.shape();
        // A product and a sum for every channel of a query head, for scores and for outputs.
        let work = |item: &PrefillItem| {
            let pairs = f64::from(item.tokens * shape.query_heads) * f64::from(TILE_TOKENS * (item.end_tile - item.first_tile));
            4.0 * f64::from(shape.head_dim) * pairs
        };
        let mut listed = Vec::with_capacity(rounds.len());
        for round in rounds {
            let unpack_at = self.maker.words.list(&round.unpack);
            let items_at = self.maker.words.list(&round.attend);
            let (mut attend, mut done): (Vec<(u32, u32)>, _) = (Vec::new(), f64::INFINITY);
            for (item, n) in round.attend.iter().zip(0..) {
                done += work(item);
                match attend.last_mut() {
                    Some((_, items)) if done <= plan.dispatch_work() => *items += 1,
                    _ => {
                        attend.push((items_at + n * ITEM_WORDS, 1));
                        done = work(item);
                    }
                }
            }
            listed.push(ListedRound { unpack_at, tiles: round.unpack.len() as u32, attend });
        }
        listed
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
    fn align_rows(&mut self, places: &[u32], splits: &Listed, partials: &[Partials]) -> (u32, u32) {
        let plan = self.maker.plan;
        let mut rows = Vec::new();
        if plan.aligns() {
            for (n, run) in self.runs.iter().enumerate().filter(|(_, run)| !run.pages(plan).is_empty()) {
                let (splits, partials, pages) = (&splits.by_run[n], partials[n], run.pages(plan));
                rows.push(AlignRow {
                    row: run.row,
                    list: run.growth.list(run.record).wrapping_add(pages.start),
                    pages: pages.len() as u32,
                    place: places[n],
                    first_split: splits.start,
                    splits: splits.end - splits.start,
                    first_partial: partials.first,
                    partials: partials.each,
                });
            }
        }
        (self.maker.words.list(&rows), rows.len() as u32)
    }

    /// Lists the partial results of every row, and begins the pass. Those of pages come after
    /// `row_items` others.
    fn merge(&mut self, splits: &Listed, partials: &[Partials], row_items: u32) -> Pass {
        let plan = self.maker.plan;
        let mut rows = Vec::with_capacity(self.rows as usize);
        for ((run, splits), partials) in self.runs.iter().zip(&splits.by_run).zip(partials) {
            let (first_split, splits) = (splits.start + row_items, splits.end - splits.start);
            let Partials { first, each } = *partials;
            let has_first = u32::from(!run.growth.headless);
            rows.extend((0..run.tokens).map(|token| MergeRow { first_split, splits, first_partial: first + token * each, partials: each, first: has_first }));
        }
        let most = rows.iter().map(|row| row.splits).max().unwrap_or(0);
        let (query_heads, kv_heads) = (plan.shape().query_heads, plan.shape().kv_heads);
        let merge = AttendMergeParams { records_at: self.maker.words.list(&rows), row_first: self.row_first, query_heads, kv_heads };
        self.maker.words.attend_merge.push((merge, self.rows));
        Pass { rows: self.rows, merge: self.maker.params.push(&merge), merge_choice: plan.merge_choice(most), ..Pass::default() }
    }

    /// Makes the parameters of the kernels that work on the slabs of one arrangement.
    fn arranged(&mut self, arrangement: usize, positions_at: u32, (position_at, positions): (u32, u32), splits: &Listed, align: (u32, u32)) -> Arranged {
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
            arranged.split.push(Dispatch { params: params.push(&split), items: if plan.aligns() { 0 } else { splits.count } });
            words.attend_split.push((split, splits.count));
        }
        arranged
    }

    /// Makes the parameters of `attend_direct` for the slabs of one arrangement.
    fn directs(&mut self, arrangement: usize, positions_at: u32, (row_items_at, row_items): (u32, u32), splits: &Listed) -> Vec<Dispatch> {
        let (plan, row_first) = (self.maker.plan, self.row_first);
        let StepMaker { words, params, arrangements, .. } = &mut *self.maker;
        let slabs = plan.arrangements()[arrangement].iter().zip(&arrangements[arrangement].heads_at);
        slabs
            .map(|(slab, heads_at)| {
                let direct = AttendDirectParams {
                    items_at: splits.at,
                    row_items_at,
                    row_items,
                    slab_heads: slab.count(),
                    heads_at: *heads_at,
                    kv_heads: plan.shape().kv_heads,
                    positions_at,
                    row_first,
                };
                let items = row_items + splits.count;
                words.attend_direct.push((direct, items));
                Dispatch { params: params.push(&direct), items }
            })
            .collect()
    }

    /// Makes the parameters of the kernels that unpack the slabs of one arrangement, by round.
    fn unpacks(&mut self, arrangement: usize, rounds: &[ListedRound]) -> Vec<Vec<Dispatch>> {
        let plan = self.maker.plan;
        let StepMaker { words, params, arrangements, .. } = &mut *self.maker;
        let slabs = &plan.arrangements()[arrangement];
        let mut by_round = Vec::with_capacity(rounds.len());
        for ListedRound { unpack_at, tiles, .. } in rounds {
            let mut by_slab = Vec::with_capacity(slabs.len());
            for (slab, heads_at) in slabs.iter().zip(&arrangements[arrangement].heads_at) {
                let unpack = UnpackParams { items_at: *unpack_at, slab_heads: slab.count(), heads_at: *heads_at, kv_heads: plan.shape().kv_heads };
                words.unpack.push((unpack, *tiles));
                by_slab.push(Dispatch { params: params.push(&unpack), items: *tiles });
            }
            by_round.push(by_slab);
        }
        by_round
    }

    /// Makes the parameters of what attends to the tokens of each round.
    fn attends(&mut self, rounds: &[ListedRound]) -> Vec<Vec<Dispatch>> {
        let kv_heads = self.maker.plan.shape().kv_heads;
        let StepMaker { words, params, .. } = &mut *self.maker;
        words.rounds.push(rounds.len() as u32);
        let mut attend = |(items_at, items): &(u32, u32)| {
            let attend = AttendPrefillParams { items_at: *items_at, kv_heads, pad: [0; 2] };
            words.attend_prefill.push((attend, *items));
            Dispatch { params: params.push(&attend), items: *items }
        };
        rounds.iter().map(|round| round.attend.iter().map(&mut attend).collect()).collect()
    }
}
