//! Bytes of what a pass writes and reads again, and of the workgroup memory that kernels take.

use super::sizes::{DECODE_PARTIALS, LEDGER_VECS, MOST_SPLITS, PLAN_WORDS, POSITION_TERMS, PREFILL_PARTIALS, SUM_ENTRIES, UNPACKED_BYTES};
use super::{Plan, Restore};
use crate::format::PAGE_TOKENS;
use crate::gpu::{Capability, Reduce};

impl Plan {
    /// Returns the bytes of the terms of a pass.
    pub(crate) fn position_terms_bytes(&self) -> u64 {
        if self.position_quads() == 0 { 0 } else { 4 * u64::from(self.pages) * self.readings() * u64::from(self.heads * POSITION_TERMS) }
    }

    /// Returns the entries of the scores of a pass, each of as many numbers as there are heads that
    /// share a reading.
    pub(crate) fn score_sums(&self) -> u64 {
        u64::from(self.pages) * self.readings() * u64::from(PAGE_TOKENS)
    }

    /// Returns the entries before those of four tokens' values together, which integer codes in
    /// planes have.
    pub(crate) fn score_quads(&self) -> u64 {
        self.score_sums() + u64::from(SUM_ENTRIES) * self.partial_items() * self.readings()
    }

    /// Returns the bytes of the scores of a pass, of their sums by item, and of the quads.
    pub(crate) fn scores_bytes(&self) -> u64 {
        let quads = if self.code_planes { self.score_sums() / 4 } else { 0 };
        if self.aligns() { 4 * u64::from(self.heads) * (self.score_quads() + quads) } else { 0 }
    }

    /// Returns the bytes of the plans of a pass.
    pub(crate) fn plans_bytes(&self) -> u64 {
        if self.aligns() { 4 * u64::from(self.query_rows) * self.readings() * u64::from(PLAN_WORDS) } else { 0 }
    }

    /// Returns the size of the partial results in units of 16 bytes, after which the ledgers of
    /// align_values lie.
    pub(crate) fn ledgers(&self) -> u64 {
        self.partial_items() * self.readings() * u64::from(self.heads * (self.shape.head_dim / 4 + 1))
    }

    /// Returns the numbers from one row of `query_rows` to the next: a head's, and the factors of the
    /// means.
    pub(crate) fn query_row(&self) -> u32 {
        self.shape.head_dim + 4 * self.position_quads()
    }

    pub(crate) fn query_rows_bytes(&self) -> u64 {
        4 * u64::from(self.query_rows) * u64::from(self.shape.query_heads) * u64::from(self.query_row())
    }

    pub(crate) fn query_codes_bytes(&self) -> u64 {
        4 * u64::from(self.query_rows) * u64::from(self.shape.kv_heads * self.blocks() * self.heads_per_reading()) * u64::from(self.query_stride())
    }

    /// Returns the items of one decode pass, at most: the target, and one more for each row since a
    /// row's pages are split evenly.
    pub(crate) fn partial_items(&self) -> u64 {
        // Those of f16 rows lie among them where attend_direct makes them.
        let rows = if self.direct_rows() > 0 { self.row_items() + self.direct_rows() } else { 0 };
        u64::from(self.split_items()) + u64::from(self.query_rows) + u64::from(rows)
    }

    pub(crate) fn partials_bytes(&self) -> u64 {
        16 * self.ledgers() + if self.aligns() { 16 * u64::from(LEDGER_VECS) * self.partial_items() * self.readings() } else { 0 }
    }

    /// Returns how many partial results the query tokens of a pass may have: one or a few for each
    /// that prefills, and those of the f16 tokens of all that decode. There is room for one token
    /// however many rounds it takes.
    pub(crate) fn row_partials(&self) -> u32 {
        let tokens = self.held_tokens() + u64::from(self.sinks());
        let rounds = (tokens / 32 + 3).div_ceil(u64::from(self.unpacked_tiles.max(1)));
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX - DECODE_PARTIALS);
        (self.query_rows.max(rounds) + DECODE_PARTIALS).max(self.spread_partials)
    }

    /// Returns how many of them are worth having, so that a prefill of few rows is split among enough
    /// workgroups: no more than a binding holds.
    pub(super) fn fitting_partials(&self, capability: &Capability) -> u32 {
        let most = capability.binding_bytes.min(capability.buffer_bytes) / self.row_partial_bytes();
        (PREFILL_PARTIALS / self.shape.query_heads).min(MOST_SPLITS * self.query_rows).min(u32::try_from(most).unwrap_or(u32::MAX))
    }

    /// Returns the bytes of one query token's partial result.
    fn row_partial_bytes(&self) -> u64 {
        4 * u64::from(self.shape.query_heads) * u64::from(self.shape.head_dim + 2)
    }

    /// Returns the bytes of one tile of all KV heads, unpacked: 32 keys and values in halves.
    fn tile_bytes(&self) -> u64 {
        128 * u64::from(self.shape.head_dim * self.shape.kv_heads)
    }

    /// Returns the bytes of the tiles that a round of a prefill unpacks.
    pub(crate) fn unpacked_bytes(&self) -> u64 {
        u64::from(self.unpacked_tiles) * self.tile_bytes()
    }

    /// Returns how many tiles to unpack in a round: no more than the cache has, nor than a binding
    /// holds.
    pub(super) fn fitting_tiles(&self, capability: &Capability) -> u32 {
        let f16_tokens = self.ring() + self.sinks();
        let all = u64::from(self.pages) * u64::from(PAGE_TOKENS / 32) + u64::from(self.sequences) * u64::from(f16_tokens.div_ceil(32) + 1);
        let most = capability.binding_bytes.min(capability.buffer_bytes) / self.tile_bytes();
        let tiles = all.min((UNPACKED_BYTES / self.tile_bytes()).max(all / 8)).min(most).min(65_535);
        u32::try_from(tiles.max(1)).unwrap_or(u32::MAX)
    }

    /// Returns the bytes of row partials.
    pub(crate) fn row_partials_bytes(&self) -> u64 {
        u64::from(self.row_partials()) * self.row_partial_bytes()
    }

    pub(crate) fn turns_bytes(&self) -> u64 {
        let rows = self.turn_rows()
            + match self.restore() {
                _ if !self.turn_columns() => 0,
                Restore::Shuffled => u64::from(PAGE_TOKENS) / 2,
                _ => u64::from(PAGE_TOKENS),
            };
        let turns = 8 * rows * self.shape.rope.frequencies().len().max(1) as u64;
        if self.position_quads() == 0 { turns } else { 16 * u64::from(self.row_turns()) + 16 * 32 * u64::from(self.row_turn_quads()) }
    }

    /// Returns the workgroup memory of attend_direct: that of attend_split, the query heads in f32
    /// and the sums of their codes, the factors of the means, what lanes add to terms of positions,
    /// and what each lane has of f16 rows.
    pub(crate) fn direct_workgroup_bytes(&self) -> u32 {
        let quads = self.position_quads();
        let terms = if self.reduce() == Reduce::Subgroup { 12 } else { 12 * 33 + 24 };
        let positions = if quads == 0 { 1 } else { 4 * quads + terms };
        // Factors turned to a tile of f16 rows, and for its sinks.
        let rows = 32 + 8 * quads;
        let queries = self.shape.head_dim + self.shape.head_dim / 4;
        self.split_workgroup_bytes() + 4 * self.heads_per_reading() * (positions + rows + queries) + 4 * 32
    }

    /// Returns the workgroup memory of the kernels in which query heads share a reading.
    pub(super) fn reading_bytes(&self) -> [(&'static str, u32); 4] {
        let head = 4 * self.heads_per_reading();
        // Queries, factors of tokens and of sinks, weights, and the lanes of a reduction; where rows lie.
        let rows = head * (self.shape.head_dim + 8 * self.position_quads() + 64) + 128;
        // Both factors of every slow pair, and the sums of three parts of sixteen pages.
        let slow = (self.shape.rope.frequencies().len() as u32).saturating_sub(self.position_waves()).max(1);
        let terms = head * (2 * slow + 3 * 16 * POSITION_TERMS);
        [
            ("attend_split's queries and weights", self.split_workgroup_bytes()),
            ("attend_direct's queries and factors", if self.direct_rows() > 0 { self.direct_workgroup_bytes() } else { 0 }),
            ("attend_rows' queries and factors", if self.sinks() + self.ring() > 0 { rows } else { 0 }),
            ("position's factors and terms", if self.position_quads() > 0 { terms } else { 0 }),
        ]
    }

    /// Returns the workgroup memory of attend_split: queries, weights, peaks, and the lanes of a
    /// reduction; for RotateKV also the keys on their way and the scores of a page.
    pub(crate) fn split_workgroup_bytes(&self) -> u32 {
        let weights = self.most(|slab| if slab.layout.value_groups == 0 { 128 } else { 32 * slab.layout.value_groups });
        let unit = 4 * self.heads_per_reading() * (weights + 8 + 32);
        if !self.restores() {
            // Both factors of every wave, and the halves of the sums.
            let positions = if self.position_quads() == 0 { 0 } else { 2 * self.position_waves().max(1) + 128 };
            return unit + 4 * self.heads_per_reading() * (self.positions_at() + positions);
        }
        let row_groups = self.most(|slab| slab.layout.row_groups);
        let units = self.group_heads();
        let scores = units * self.heads_per_reading() * 512;
        let keys = match self.restore() {
            // The steps of a page.
            Restore::Shuffled => 8 * 64 * row_groups,
            // Cells of two halves, the steps of a tile, queries as halves.
            Restore::Straight => 4 * 17 * 2 * units * self.restore_cells() + 8 * row_groups * 2 * units + 8 * units * self.shape.head_dim,
            Restore::Rolled => 16 * self.restore_cells(),
        };
        units * unit + scores + keys
    }
}
