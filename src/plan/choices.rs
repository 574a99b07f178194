//! What a plan chooses for the kernels: which parts, how many heads and rows at once, and where
//! things lie.

use super::sizes::DECODE_PARTIALS;
use super::{Plan, Slab, Span, position};
use crate::format::{Bits, Codec, Format, PAGE_TOKENS, RopeLayout, Shape, Sinks};
use crate::gpu::{Capability, Reduce};

/// How attend_split restores the keys of [`Codec::RotateKv`]: each way is a part of the shader,
/// with the same function names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Restore {
    /// In registers, by subgroup shuffles, in halves.
    Shuffled,
    /// Through workgroup memory, in halves.
    Straight,
    /// Through workgroup memory, in loops and f32.
    Rolled,
}

impl Plan {
    /// Returns how many quads of channels carry what the mean of the keys adds to a score: none
    /// where it adds the same everywhere.
    pub(crate) fn position_quads(&self) -> u32 {
        self.position_quads
    }

    /// Returns the first channel that does not turn and whose keys have a mean: what it adds to the
    /// scores of a query is the same for all tokens, and only log-sums need it. The head dimension
    /// where there is none.
    pub(crate) fn still_channels(&self) -> u32 {
        let turning = 2 * self.shape.rope.frequencies().len() as u32;
        if self.means().is_some() { turning } else { self.shape.head_dim }
    }

    /// Returns how many of RoPE's first pairs turn too fast for a short polynomial.
    pub(crate) fn position_waves(&self) -> u32 {
        if self.position_quads() == 0 { 0 } else { position::waves(&self.shape.rope) as u32 }
    }

    /// Returns how many pages a sequence can have.
    pub(crate) fn position_pages(&self) -> u32 {
        (self.turn_rows() - u64::from(PAGE_TOKENS)) as u32
    }

    /// Returns where the tables of the part `positions` begin in the table of turns: an even
    /// number.
    pub(crate) fn position_centre(&self) -> u32 {
        if self.position_quads() == 0 { 0 } else { (self.turn_rows() as u32 * self.shape.rope.frequencies().len() as u32).next_multiple_of(2) }
    }

    /// Returns where the turns by lane of attend_rows begin in the table of turns, in vectors of two.
    pub(crate) fn row_turns(&self) -> u32 {
        if self.position_quads() == 0 {
            return 0;
        }
        let pairs = position::pairs(&self.shape.rope, self.position_pages() as usize) as u32;
        (self.position_centre() + pairs).div_ceil(2)
    }

    /// Returns how many quads of channels those are for: none without f16 rows.
    pub(crate) fn row_turn_quads(&self) -> u32 {
        if self.sinks() + self.ring() > 0 { self.position_quads() } else { 0 }
    }

    /// Returns whether rows of a decode pass have a place for each of their pages: for scores, or
    /// for terms of positions.
    pub(crate) fn places_pages(&self) -> bool {
        self.aligns() || self.position_quads() > 0
    }

    /// Returns how attend_split restores RotateKV's keys.
    pub fn restore(&self) -> Restore {
        let groups = self.slab_kinds().iter().map(|slab| slab.layout.row_groups).max().unwrap_or(0);
        match (self.straight, self.reduce) {
            (false, _) => Restore::Rolled,
            (true, Reduce::Subgroup) if self.shape.head_dim == 128 && self.group_heads() == 4 && groups <= 32 => Restore::Shuffled,
            _ => Restore::Straight,
        }
    }

    /// Returns whether keys are stored before RoPE and rotated over several heads, so that
    /// attention restores them.
    pub(crate) fn restores(&self) -> bool {
        self.format().codec() == Codec::RotateKv
    }

    /// Returns whether numbers are stored in planes, of which attention reads those that matter.
    pub(crate) fn aligns(&self) -> bool {
        self.format().codec() == Codec::AlignedF16 || self.code_planes
    }

    /// Returns whether those numbers are integer codes.
    pub(crate) fn aligns_codes(&self) -> bool {
        self.code_planes
    }

    /// Returns how many tokens of a block one workgroup of append packs: a page where it writes
    /// what the page's tokens have in common.
    pub(crate) fn append_block(&self) -> u32 {
        if self.aligns() && !self.code_planes { PAGE_TOKENS } else { 32 }
    }

    /// Returns how many KV heads are rotated together.
    pub fn group_heads(&self) -> u32 {
        self.format().heads_per_group(self.shape.kv_heads)
    }

    /// Returns whether the sinks are elected by the residual stream.
    pub fn elects(&self) -> bool {
        matches!(self.protection.sinks, Sinks::Massive(_)) && self.sinks() > 0
    }

    /// Returns how many of a sequence's first tokens no page holds, though they have a place there:
    /// sinks that are known beforehand.
    pub(crate) fn unpacked(&self) -> u32 {
        if self.elects() { 0 } else { self.sinks() }
    }

    /// Returns the first word of the elected sinks in a layer's marks.
    pub(crate) fn elected_at(&self) -> u32 {
        let channels = self.shape.kv_heads * self.shape.head_dim;
        match self.format().codec() {
            // A byte each.
            Codec::RotateKv => channels.div_ceil(4),
            // The means of keys, the weights, the means of values.
            Codec::Centred => 3 * channels,
            _ => 0,
        }
    }

    /// Returns how attend_split reduces.
    pub fn reduce(&self) -> Reduce {
        self.reduce
    }

    /// Returns how many neighbouring lanes are certain to share a subgroup, as far as kernels may
    /// shuffle between them.
    pub(crate) fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Returns whether attend_split runs as straight-line code.
    pub fn straight(&self) -> bool {
        self.straight
    }

    /// Returns among how many parts attend_merge distributes a row's items, at most.
    pub(crate) fn merge_parts(&self) -> u32 {
        self.merge_parts
    }

    /// Returns how many query heads share one reading of the cache: 1, 2 or 4.
    pub fn heads_per_reading(&self) -> u32 {
        self.heads
    }

    /// Returns how many readings of the cache one KV head's query heads need.
    pub fn blocks(&self) -> u32 {
        self.shape.share().div_ceil(self.heads_per_reading())
    }

    /// Returns the entries of one block of heads among the query codes, without those for
    /// positions.
    pub(crate) fn positions_at(&self) -> u32 {
        self.most(|slab| slab.code_entries(self.shape.head_dim))
    }

    /// Returns the entries of one block of heads among the query codes.
    pub fn query_stride(&self) -> u32 {
        self.positions_at() + 2 * self.position_waves()
    }

    /// Returns how many query rows one pass works on
    /// ([`PlanBuilder::query_rows`](crate::PlanBuilder::query_rows)).
    pub fn query_rows(&self) -> u32 {
        self.query_rows
    }

    /// Returns how many items one decode pass is split into, at least, as far as there are pages.
    pub(crate) fn split_items(&self) -> u32 {
        // A slab's heads run together; further slabs come after it.
        let heads = self.most(Slab::count) / self.group_heads();
        (self.split_workgroups / (heads * self.blocks())).max(1)
    }

    /// Returns over how many pages, of all rows together, attend_direct takes a pass at most: with
    /// more to read, what each of its workgroups does first costs more than the dispatches that it
    /// saves.
    pub(crate) fn direct_pages(&self) -> u32 {
        let few = self.format().codec() == Codec::F16 || self.reduce == Reduce::Workgroup;
        let readings = if few { DIRECT_READINGS / 4 } else { DIRECT_READINGS };
        readings / self.readings().max(1) as u32
    }

    /// Returns how many items of pages a pass of attend_direct is split into, at least, as far as
    /// there are pages: fewer than others, since each makes its queries, but for f16 pages, which
    /// take longer to read.
    pub(crate) fn direct_items(&self) -> u32 {
        if self.format().codec() == Codec::F16 {
            return self.split_items();
        }
        (self.split_workgroups.min(DIRECT_WORKGROUPS) / (self.most(Slab::count) * self.blocks())).max(1)
    }

    /// Returns how many items the f16 rows of a decode pass are split into, at least, as far as there
    /// are tiles of them: enough to fill a large GPU, and few enough that partial results are few.
    pub(crate) fn row_items(&self) -> u32 {
        (self.split_workgroups / 2 / self.readings() as u32).clamp(1, DECODE_PARTIALS)
    }

    /// Returns up to how many rows a decoding pass is attended by attend_direct; 0 where it never
    /// is.
    pub(crate) fn direct_rows(&self) -> u32 {
        self.direct_rows
    }

    /// Returns whether attend_direct can take passes of the plan: keys are stored as attention
    /// reads them, log-sums need no query that another kernel wrote, and the workgroup memory
    /// suffices.
    pub(super) fn attends_directly(&self, capability: &Capability) -> bool {
        !self.restores()
            && !self.aligns()
            // Its lanes hold two, three, four or eight channels each.
            && [64, 80, 96, 128, 256].contains(&self.shape.head_dim)
            && self.still_channels() == self.shape.head_dim
            && self.direct_workgroup_bytes() <= capability.workgroup_bytes
    }

    pub(crate) fn counts_loads(&self) -> bool {
        self.counts_loads
    }

    /// Returns how many readings of a layer's pages one query row needs: one for each KV head and
    /// block of query heads.
    pub(crate) fn readings(&self) -> u64 {
        u64::from(self.shape.kv_heads * self.blocks())
    }

    /// Returns the cells of workgroup memory that keys pass through in attend_split; runs of cells
    /// in straight-line code.
    pub(crate) fn restore_cells(&self) -> u32 {
        let units = self.group_heads();
        if self.straight {
            // Runs of 17 times 2 * units.
            (units * self.shape.head_dim / 16).max(units * self.heads_per_reading())
        } else {
            (units * self.shape.head_dim).max(32 * units * self.heads_per_reading())
        }
    }

    /// Returns whether the device prefers straight-line code.
    pub(crate) fn unrolls(&self) -> bool {
        self.unrolls
    }

    /// Returns whether prefilling rows are attended by cooperative matrices.
    pub fn matrices(&self) -> bool {
        self.matrices
    }

    /// Returns the query rows, of one KV head, that a workgroup of a prefill takes.
    pub(crate) fn prefill_rows(&self) -> u32 {
        if self.matrices { MATRIX_ROWS } else { PORTABLE_ROWS }
    }

    /// Returns how many workgroups share the channels of values in a prefill.
    pub(crate) fn column_blocks(&self) -> u32 {
        if self.matrices { 1 } else { self.shape.head_dim.div_ceil(128) }
    }

    /// Returns the tiles of 32 tokens, of all KV heads, that a round of a prefill unpacks at most.
    pub(crate) fn unpacked_tiles(&self) -> u32 {
        self.unpacked_tiles
    }

    /// Returns how much a dispatch of a prefill may compute, in products and sums: what takes
    /// [`DISPATCH_SECONDS`] at a rate that is assumed, a tenth of what has been measured. Software
    /// adapters have no driver that ends a dispatch.
    pub(crate) fn dispatch_work(&self) -> f64 {
        match (self.matrices, self.unrolls) {
            (true, _) => DISPATCH_SECONDS * 15e12,
            (false, true) => DISPATCH_SECONDS * 2.5e12,
            (false, false) => f64::INFINITY,
        }
    }

    /// Returns whether the table of turns ends with the low positions once more, in the form that
    /// attend_split takes.
    pub(crate) fn turn_columns(&self) -> bool {
        self.restores() && self.straight && !self.shape.rope.frequencies().is_empty()
    }

    /// Returns how many tokens a query sees, its own the last: the largest number where its
    /// position does not limit it.
    pub(crate) fn reach(&self) -> u32 {
        self.sliding_window().unwrap_or(u32::MAX)
    }

    /// Returns the tokens of a chunk that attention stays within; 0 for none.
    pub(crate) fn chunk(&self) -> u32 {
        match self.span {
            Span::Chunked(tokens) => tokens,
            Span::All | Span::Sliding(_) => 0,
        }
    }

    /// Returns how many f16 rows are kept for the window: the window itself, and the page that
    /// gathers before it is packed. 0 where every token is packed at once.
    pub fn ring(&self) -> u32 {
        if self.format().codec() == Codec::F16 || self.protection.window == 0 { 0 } else { self.protection.window + PAGE_TOKENS }
    }

    /// Returns how many f16 rows are kept for sinks.
    pub fn sinks(&self) -> u32 {
        if self.format().codec() == Codec::F16 { 0 } else { self.protection.sinks.rows() }
    }

    /// Returns how many of a sequence's first tokens lie in pages when it holds `tokens`. (Sinks
    /// have a place there too, unused.)
    pub fn packed(&self, tokens: u32) -> u32 {
        if self.ring() == 0 { tokens } else { self.protection.packed(tokens) }
    }

    /// Returns the rows of the table of turns: 128 low positions, then one for every 128 positions
    /// that a sequence can reach.
    pub(crate) fn turn_rows(&self) -> u64 {
        u64::from(PAGE_TOKENS) + self.max_tokens() / u64::from(PAGE_TOKENS) + 1
    }

    /// Returns the first word of the query heads' sink logits in a layer's marks.
    pub(crate) fn logits_at(&self) -> u64 {
        let elected = if self.elects() { 3 * u64::from(self.sinks()) * u64::from(self.sequences) } else { 0 };
        u64::from(self.elected_at()) + elected
    }

    /// Returns the words of a layer's marks: the group of every key channel, a byte each (or for
    /// Centred, means and weights), then by slot the elected sinks, then the sink logits.
    pub(crate) fn marks_words(&self) -> u64 {
        let logits = self.sink_logits(0).map_or(0, <[f32]>::len) as u64;
        (self.logits_at() + logits).next_multiple_of(4)
    }
}

/// Readings of pages that attend_direct takes in a pass at most: as many as still gain, measured on
/// an H200 (docs/performance.md); a quarter of f16, and where queries are rotated through workgroup
/// memory.
const DIRECT_READINGS: u32 = 2048;

/// Workgroups that attend_direct's pages are split into, at least.
const DIRECT_WORKGROUPS: u32 = 1024;

/// Rows of a workgroup of attend_prefill, and of attend_matrices.
const PORTABLE_ROWS: u32 = 64;
const MATRIX_ROWS: u32 = 128;

/// Seconds that a dispatch of a prefill may take: drivers end one after about two.
const DISPATCH_SECONDS: f64 = 0.2;

/// Workgroup memory of attend_matrices with heads of 128 channels: keys, values, scores, weights,
/// and what rows are multiplied by.
const MATRIX_BYTES: u32 = 32 * 272 + 128 * 80 + 32 * 528 + 128 * 80 + 512 + 16;

/// Returns whether prefilling rows of a shape are attended by cooperative matrices on a device.
pub(super) fn multiplies_matrices(shape: &Shape, capability: &Capability) -> bool {
    capability.matrices && capability.workgroup_bytes >= MATRIX_BYTES && MATRIX_HEADS.contains(&shape.head_dim)
}

/// Head dimensions that attend_matrices is written for.
pub(super) const MATRIX_HEADS: [u32; 2] = [64, 128];

/// Invocations of a workgroup of attend_merge, at most.
const MERGE_THREADS: u32 = 1024;

/// Items whose loads a part of attend_merge has in flight together.
const TURN_ITEMS: u32 = 16;

/// Returns among how many parts attend_merge distributes a row's items, at most: as many as a
/// device allows.
pub(super) fn most_merge_parts(head_dim: u32, capability: &Capability) -> u32 {
    let threads = MERGE_THREADS.min(capability.invocations).min(capability.workgroup_size_x);
    let room = capability.workgroup_bytes.saturating_sub(4 * head_dim) / (16 * head_dim);
    (threads / head_dim).min(room).max(1)
}

/// Returns the workgroup memory of attend_merge: the output row, and three numbers for every
/// invocation, which lie as four.
pub(super) fn merge_workgroup_bytes(head_dim: u32, parts: u32) -> u32 {
    4 * head_dim + 16 * head_dim * parts
}

/// Returns how many lanes of append_block hold a token's row.
pub(crate) fn block_lanes(head_dim: u32) -> u32 {
    head_dim / 32
}

impl Plan {
    /// Returns the numbers of parts that the plan has pipelines of attend_merge for, ascending:
    /// few, since each takes time to compile.
    pub(crate) fn merge_choices(&self) -> Vec<u32> {
        let most = self.merge_parts();
        let mut choices = vec![1, most.min(4), most];
        choices.dedup();
        choices
    }

    /// Returns among how many parts a row's items are distributed in a pass whose rows have at most
    /// `items` items from attend_split: enough for one turn each, if the plan has as many.
    #[doc(hidden)]
    pub fn merge_parts_for(&self, items: u32) -> u32 {
        self.merge_choices()[self.merge_choice(items)]
    }

    /// Returns which of the [`Plan::merge_choices`] that number of parts is.
    pub(crate) fn merge_choice(&self, items: u32) -> usize {
        let choices = self.merge_choices();
        choices.iter().position(|parts| parts * TURN_ITEMS >= items).unwrap_or(choices.len() - 1)
    }

    /// Returns whether append_block packs this slab's pages, in place of append.
    #[doc(hidden)]
    pub fn packs_blocks(&self, slab: &Slab) -> bool {
        let shape = self.shape();
        let [key, value] = [slab.format().key().bits, slab.format().value().bits];
        [64, 128, 256].contains(&shape.head_dim)
            && self.lanes() >= block_lanes(shape.head_dim)
            && (self.restores() || shape.rope.frequencies().is_empty() || 2 * shape.rope.frequencies().len() as u32 == shape.head_dim)
            && !self.aligns()
            // Two rows of 32 tokens would take more workgroup memory than every device has.
            && !(shape.head_dim > 128 && slab.format().key().is_trellis())
            && key != Bits::Sixteen
            && value != Bits::Sixteen
    }
}

/// Returns whether straight-line code can restore RotateKV's keys. It is written for rotations of a
/// power of two, RoPE over whole heads in halves (or none), and packed halves.
pub(super) fn restores_straight(shape: &Shape, format: &Format, capability: &Capability) -> bool {
    let rope = &shape.rope;
    let whole = rope.layout() == RopeLayout::SplitHalves && 2 * rope.frequencies().len() == shape.head_dim as usize;
    capability.halves
        && capability.workgroup_bytes >= 32_768
        && [64, 128].contains(&shape.head_dim)
        && format.heads_per_group(shape.kv_heads) <= 4
        && (whole || rope.frequencies().is_empty())
}
