//! What one cache will be: every size and every choice, made from shape, format, protection, budget and device.

use crate::alignment::{Alignment, Criterion};
use crate::allocation::Allocation;
use crate::budget::Budget;
use crate::calibration::Calibration;
use crate::centre::Centre;
use crate::error::{Error, Result};
use crate::format::{Bits, Codec, Format};
use crate::gpu::{Capability, Reduce};
use crate::kernel::align_plan::{PLAN_WORDS, SUM_ENTRIES};
use crate::kernel::align_values::LEDGER_VECS;
use crate::kernel::{self, Variant, align_plan, align_scores, align_values, append_block, attend_merge, attend_prefill, attend_split};
use crate::layout::{PAGE_TOKENS, PageLayout};
use crate::position;
use crate::protection::{Protection, Sinks};
use crate::rows::Element;
use crate::shape::{RopeLayout, Shape};
use crate::tensors;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Query rows that one pass of [`Cache::attend`](crate::Cache::attend) works on, unless the plan says otherwise.
const QUERY_ROWS: u32 = 512;

/// Workgroups that a decode pass is split into, at least, as far as there are pages: enough to fill a large GPU.
const SPLIT_WORKGROUPS: u32 = 4096;

/// KV heads of one layer whose pages share a buffer: they are stored alike, and a binding may hold no more.
#[derive(Clone, Debug, PartialEq)]
pub struct Slab {
    heads: Vec<u32>,
    format: Format,
    layout: PageLayout,
}

impl Slab {
    /// The KV heads, ascending.
    pub fn heads(&self) -> &[u32] {
        &self.heads
    }

    /// How many they are.
    pub fn count(&self) -> u32 {
        self.heads.len() as u32
    }

    /// How they are stored.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Where everything lies in a page.
    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    /// Does attend_split take the queries of these heads in f32?
    pub(crate) fn float_queries(&self) -> bool {
        self.format.codec() == Codec::RotateKv || self.format.key().bits == Bits::Sixteen
    }

    /// Entries of one block of these heads among the query codes, but for what their positions are known by.
    pub(crate) fn code_entries(&self, head_dim: u32) -> u32 {
        if self.float_queries() { head_dim } else { head_dim / 4 + 1 + self.layout.key_groups }
    }
}

/// How attend_split restores the keys of [`Codec::RotateKv`]: parts of the shader under the same function names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Restore {
    /// In registers, by subgroup shuffles, in halves.
    Shuffled,
    /// Through workgroup memory, in halves.
    Straight,
    /// Through workgroup memory, in loops and f32.
    Rolled,
}

/// What a cache costs, in bytes. All of it is allocated when the cache is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cost {
    /// Key codes of all pages.
    pub key_codes: u64,
    /// Key scales and zeros of all pages.
    pub key_scales: u64,
    /// Value codes of all pages.
    pub value_codes: u64,
    /// Value scales and zeros of all pages.
    pub value_scales: u64,
    /// f16 rows of sinks and windows.
    pub protected: u64,
    /// For [`Codec::RotateKv`]: which group every key channel is of, and which tokens are sinks. For [`Codec::Centred`]: means and weights.
    pub marks: u64,
    /// Queries and partial results of one pass; shared by all layers.
    pub scratch: u64,
}

impl Cost {
    /// The cache proper: everything but the scratch.
    pub fn cache(&self) -> u64 {
        self.key_codes + self.key_scales + self.value_codes + self.value_scales + self.protected + self.marks
    }
}

/// What one cache will be. A plan is pure: making it touches no GPU, and everything that can be refused is refused here.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    shape: Shape,
    allocation: Allocation,
    protection: Protection,
    sequences: u32,
    pages: u32,
    /// Each way in which a layer's KV heads are spread over slabs.
    arrangements: Vec<Vec<Slab>>,
    /// By layer: which of them.
    arranged: Vec<u32>,
    reduce: Reduce,
    straight: bool,
    lanes: u32,
    element: Element,
    query_rows: u32,
    split_workgroups: u32,
    merge_parts: u32,
    heads: u32,
    calibration: Option<Arc<Calibration>>,
    centre: Option<Arc<Centre>>,
    /// Quads of channels that carry what the mean of the keys adds to a score: asked for with every dispatch.
    position_quads: u32,
    alignment: Alignment,
    /// Tokens that a query sees, itself the last, if not all; and tokens that a sequence can reach, if not as many as there are pages for.
    sliding_window: Option<u32>,
    longest: Option<u32>,
    /// Are integer codes stored in planes?
    code_planes: bool,
    counts_loads: bool,
}

impl Plan {
    /// Plans a cache that stores all layers and heads alike.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Group`], [`Error::Budget`] and [`Error::Limit`], each with the number wanted and had.
    pub fn new(shape: Shape, format: Format, protection: Protection, budget: Budget, capability: &Capability) -> Result<Self> {
        shape.check()?;
        let allocation = Allocation::uniform(&shape, format)?;
        Self::mixed(shape, allocation, protection, budget, capability)
    }

    /// Plans a cache whose layers, KV heads, keys and values have bits of their own.
    ///
    /// # Errors
    /// Those of [`Plan::new`], and [`Error::Allocation`] for an allocation of another shape.
    pub fn mixed(shape: Shape, allocation: Allocation, protection: Protection, budget: Budget, capability: &Capability) -> Result<Self> {
        Self::with_pages(shape, allocation, protection, budget.sequences(), |plan| plan.pages_for(budget), capability)
    }

    fn with_pages(
        shape: Shape,
        allocation: Allocation,
        protection: Protection,
        sequences: u32,
        pages: impl FnOnce(&Self) -> Result<u32>,
        capability: &Capability,
    ) -> Result<Self> {
        shape.check()?;
        allocation.expect_shape(&shape)?;
        let format = *allocation.format();
        protection.check(&format)?;
        if sequences == 0 {
            return Err(Error::Shape { name: "sequences", wanted: "1 or more".into(), had: "0".into() });
        }
        let restores = format.codec() == Codec::RotateKv;
        let mut plan = Self {
            reduce: if restores { capability.reduce_units() } else { capability.reduce() },
            lanes: capability.lanes(),
            straight: capability.straight && (!restores || restores_straight(&shape, &format, capability)),
            heads: match shape.share() {
                1 => 1,
                2 => 2,
                _ => 4,
            },
            calibration: None,
            centre: None,
            position_quads: 0,
            alignment: Alignment::EVERYTHING,
            sliding_window: None,
            longest: None,
            code_planes: false,
            counts_loads: false,
            element: Element::F32,
            query_rows: QUERY_ROWS,
            split_workgroups: SPLIT_WORKGROUPS,
            merge_parts: attend_merge::most_parts(shape.head_dim, capability),
            sequences,
            pages: 0,
            arrangements: Vec::new(),
            arranged: Vec::new(),
            shape,
            allocation,
            protection,
        };
        // Heads that are stored alike, before it is known how many of them a binding holds.
        plan.arrange(|slab| Ok(slab.count()))?;
        // Restoring keys takes workgroup memory for every query head: fewer at once where it is short, then the way that takes least.
        let heads = plan.heads;
        while restores && plan.split_workgroup_bytes() > capability.workgroup_bytes && (plan.heads > 1 || plan.straight) {
            (plan.heads, plan.straight) = if plan.heads > 1 { (plan.heads / 2, plan.straight) } else { (heads, false) };
        }
        plan.pages = pages(&plan)?;
        let (pages, together) = (plan.pages, plan.group_heads());
        plan.arrange(|slab| heads_of_a_slab(slab, pages, together, capability))?;
        plan.check(capability)?;
        Ok(plan)
    }

    /// What is left of the plan for a device that holds only some of every layer's KV heads, with the query heads that share them: as many
    /// sequences and pages, the heads' own bits, means and weights. RotateKV's order is made of the heads' own sums, so it is the same order
    /// only where it reaches no further than the heads that are rotated together ([`Reach::Local`](crate::Reach::Local)).
    ///
    /// # Errors
    /// [`Error::Shape`] for heads that do not exist, for none, and where heads that are rotated together would be parted; those of [`Plan::mixed`].
    pub fn shard(&self, heads: Range<u32>, capability: &Capability) -> Result<Self> {
        let (have, together) = (self.shape.kv_heads, self.group_heads());
        if heads.is_empty() || heads.end > have || [heads.start, heads.end].iter().any(|head| !head.is_multiple_of(together)) {
            let wanted = format!("some of 0..{have}, {together} together");
            return Err(Error::Shape { name: "the KV heads of a shard", wanted, had: format!("{heads:?}") });
        }
        let kv_heads = heads.end - heads.start;
        let shape = Shape { query_heads: kv_heads * self.shape.share(), kv_heads, ..self.shape.clone() };
        let mut format = *self.format();
        if self.restores() {
            format = format.with_heads_per_group(together);
        }
        let allocation = Allocation::new(&shape, format, |layer, head| self.allocation.of(layer, heads.start + head))?;
        let mut shard = Self::with_pages(shape, allocation, self.protection, self.sequences, |_| Ok(self.pages), capability)?
            .with_element(self.element)
            .with_split_workgroups(self.split_workgroups)
            .with_query_rows(self.query_rows);
        if let Some(calibration) = &self.calibration {
            shard = shard.with_calibration(calibration.shard(heads.clone())?)?;
        }
        if let Some(centre) = &self.centre {
            shard = shard.with_centre(centre.shard(heads))?;
        }
        shard.code_planes = self.code_planes;
        shard.alignment = self.alignment;
        (shard.sliding_window, shard.longest) = (self.sliding_window, self.longest);
        Ok(shard)
    }

    /// Spreads every layer's KV heads over slabs: heads of one format together, as many as `most` says, as evenly as can be, so
    /// that no slab's dispatch is a remnant.
    fn arrange(&mut self, most: impl Fn(&Slab) -> Result<u32>) -> Result<()> {
        let together = self.group_heads() as usize;
        let (mut arrangements, mut arranged) = (Vec::<Vec<Slab>>::new(), Vec::new());
        for layer in 0..self.shape.layers {
            let mut alike: Vec<Slab> = Vec::new();
            for head in 0..self.shape.kv_heads {
                let format = self.allocation.format_of(layer, head);
                match alike.iter_mut().find(|slab| slab.format == format) {
                    Some(slab) => slab.heads.push(head),
                    None => alike.push(Slab { heads: vec![head], layout: PageLayout::new(&format, &self.shape), format }),
                }
            }
            let mut slabs = Vec::new();
            for slab in alike {
                // Heads that are rotated together stay together.
                let bunches = slab.heads.len() / together;
                let count = bunches.div_ceil(most(&slab)? as usize / together);
                slabs.extend(slab.heads.chunks(bunches.div_ceil(count) * together).map(|heads| Slab { heads: heads.to_vec(), ..slab.clone() }));
            }
            let known = arrangements.iter().position(|other| *other == slabs).unwrap_or(arrangements.len());
            if known == arrangements.len() {
                arrangements.push(slabs);
            }
            arranged.push(known as u32);
        }
        (self.arrangements, self.arranged) = (arrangements, arranged);
        Ok(())
    }

    /// Can a device do what the plan needs? Asked when the plan is made, and again when a cache is made of it, which may be
    /// on another device.
    pub(crate) fn check(&self, capability: &Capability) -> Result<()> {
        self.check_kernels(capability)?;
        self.check_buffers(capability)?;
        let reduce = if self.restores() { capability.reduce_units() } else { capability.reduce() };
        if self.reduce == Reduce::Subgroup && reduce != Reduce::Subgroup {
            let have = capability.subgroups.map_or(0, |(smallest, _)| smallest.into());
            return Err(Error::Limit { what: "min_subgroup_size", reason: "the plan's reduction by subgroups", need: 32, have });
        }
        let lanes = append_block::lanes(self.shape.head_dim);
        if capability.lanes() < lanes && self.slab_kinds().iter().any(|slab| append_block::suits(self, slab)) {
            return Err(Error::Limit {
                what: "min_subgroup_size",
                reason: "the plan's way of packing blocks",
                need: lanes.into(),
                have: capability.lanes().into(),
            });
        }
        if self.restores() && self.straight && !capability.halves {
            return Err(Error::Limit { what: "shader-f16", reason: "the plan's way of restoring keys", need: 1, have: 0 });
        }
        Ok(())
    }

    /// Bytes of one page of all layers.
    pub(crate) fn page_bytes(&self) -> u64 {
        (0..self.shape.layers).map(|layer| self.layer_page_bytes(layer)).sum()
    }

    /// Bytes of one slab's pages.
    pub(crate) fn slab_bytes(&self, slab: &Slab) -> u64 {
        slab.layout.bytes() * u64::from(self.pages) * u64::from(slab.count())
    }

    /// Every way in which a layer's KV heads are spread over slabs.
    pub(crate) fn arrangements(&self) -> &[Vec<Slab>] {
        &self.arrangements
    }

    /// Which of [`Plan::arrangements`] a layer has.
    pub(crate) fn arrangement(&self, layer: u32) -> usize {
        self.arranged[layer as usize] as usize
    }

    /// All slabs that differ in more than their heads, each once.
    fn slab_kinds(&self) -> Vec<&Slab> {
        let mut kinds: Vec<&Slab> = Vec::new();
        for slab in self.arrangements.iter().flatten() {
            if !kinds.iter().any(|kind| kind.format == slab.format) {
                kinds.push(slab);
            }
        }
        kinds
    }

    /// What a page of all KV heads of one layer takes, in bytes, with the key scales beside it.
    fn layer_page_bytes(&self, layer: u32) -> u64 {
        let slabs = self.slabs(layer);
        slabs.iter().map(|slab| slab.layout.bytes() * u64::from(slab.count())).sum::<u64>() + self.layout_of(layer).row_scale_bytes()
    }

    /// A layout of a layer's, for what all its slabs have in common.
    pub(crate) fn layout_of(&self, layer: u32) -> &PageLayout {
        &self.slabs(layer)[0].layout
    }

    /// The same plan for callers whose rows are of this type: only tells which pipelines [`Gpu::prepare`](crate::Gpu::prepare) compiles.
    pub fn with_element(mut self, element: Element) -> Self {
        self.element = element;
        self
    }

    /// The same plan with the order of key channels that [`Codec::RotateKv`] needs. [`Cache::new`](crate::Cache::new) refuses
    /// such a plan without one.
    ///
    /// # Errors
    /// [`Error::Calibration`] if it is of another shape or rotation.
    pub fn with_calibration(mut self, calibration: Calibration) -> Result<Self> {
        let shape = &self.shape;
        for (name, wanted, had) in [
            ("layers", shape.layers, calibration.layers()),
            ("kv_heads", shape.kv_heads, calibration.kv_heads()),
            ("head_dim", shape.head_dim, calibration.head_dim()),
            ("heads_per_group", self.group_heads(), calibration.heads_per_group()),
        ] {
            if wanted != had {
                return Err(Error::Calibration { name, wanted: wanted.to_string(), had: had.to_string() });
            }
        }
        self.calibration = Some(Arc::new(calibration));
        Ok(self)
    }

    /// The order of key channels, if it was given one.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_deref()
    }

    /// The same plan with the means and weights that [`Codec::Centred`] takes. Without them its means are 0 and its weights 1.
    ///
    /// # Errors
    /// [`Error::Centre`] if they are of another shape, or the codec is another.
    pub fn with_centre(mut self, centre: Centre) -> Result<Self> {
        if self.format().codec() != Codec::Centred {
            return Err(Error::Centre { name: "codec", wanted: Codec::Centred.to_string(), had: self.format().codec().to_string() });
        }
        centre.expect_shape(&self.shape)?;
        let pairs = self.shape.rope.frequencies().len() as u32;
        self.position_quads = if centre.moves(&self.shape) { pairs.div_ceil(2) } else { 0 };
        self.centre = Some(Arc::new(centre));
        Ok(self)
    }

    /// The means and weights, if it was given some.
    pub fn centre(&self) -> Option<&Centre> {
        self.centre.as_deref()
    }

    /// Quads of channels that carry what the mean of the keys adds to a score: none where it adds the same everywhere.
    pub(crate) fn position_quads(&self) -> u32 {
        self.position_quads
    }

    /// The first pairs of RoPE, which turn too fast for a short polynomial.
    pub(crate) fn position_waves(&self) -> u32 {
        if self.position_quads() == 0 { 0 } else { position::waves(&self.shape.rope) as u32 }
    }

    /// Pages that a sequence can have.
    pub(crate) fn position_pages(&self) -> u32 {
        (self.turn_rows() - u64::from(PAGE_TOKENS)) as u32
    }

    /// Do rows of a decode pass have a place for each of their pages: for scores, or for terms of positions?
    pub(crate) fn places_pages(&self) -> bool {
        self.aligns() || self.position_quads() > 0
    }

    /// Bytes of the terms of a pass.
    pub(crate) fn position_terms_bytes(&self) -> u64 {
        if self.position_quads() == 0 { 0 } else { 4 * u64::from(self.pages) * self.readings() * u64::from(self.heads * kernel::position::TERMS) }
    }

    /// Where the tables of part position begin in the table of turns: an even number.
    pub(crate) fn position_centre(&self) -> u32 {
        if self.position_quads() == 0 { 0 } else { (self.turn_rows() as u32 * self.shape.rope.frequencies().len() as u32).next_multiple_of(2) }
    }

    /// How attend_split restores RotateKV's keys.
    pub fn restore(&self) -> Restore {
        let groups = self.slab_kinds().iter().map(|slab| slab.layout.row_groups).max().unwrap_or(0);
        match (self.straight, self.reduce) {
            (false, _) => Restore::Rolled,
            (true, Reduce::Subgroup) if self.shape.head_dim == 128 && self.group_heads() == 4 && groups <= 32 => Restore::Shuffled,
            _ => Restore::Straight,
        }
    }

    /// Are keys stored before RoPE and rotated over several heads, so that attention restores them?
    pub(crate) fn restores(&self) -> bool {
        self.format().codec() == Codec::RotateKv
    }

    /// Are numbers stored in planes, of which attention reads those that matter?
    pub(crate) fn aligns(&self) -> bool {
        self.format().codec() == Codec::AlignedF16 || self.code_planes
    }

    /// Are they integer codes?
    pub(crate) fn aligns_codes(&self) -> bool {
        self.code_planes
    }

    /// The same plan with planes chosen in another way than reading all of them: for [`Codec::AlignedF16`], and for [`Codec::Rtn`],
    /// [`Codec::Hadamard`] and [`Codec::Centred`] with keys and values of 4 or 8 bits, whose codes are then stored in planes of 2 and 2, or
    /// 4, 2 and 2 bits. Those take budgets only, of which 0 reads everything; [`Alignment::EVERYTHING`] leaves their codes as they are
    /// without planes. [`Cache::align`](crate::Cache::align) changes it later.
    ///
    /// # Errors
    /// [`Error::Shape`] for a budget that is negative or not finite, and for a codec, bits or a criterion without planes.
    pub fn with_alignment(mut self, alignment: Alignment) -> Result<Self> {
        alignment.check()?;
        self.code_planes = alignment != Alignment::EVERYTHING && self.format().codec() != Codec::AlignedF16;
        if self.code_planes {
            self.check_code_planes()?;
        }
        self.align(alignment)?;
        Ok(self)
    }

    /// Can these codes be stored in planes?
    fn check_code_planes(&self) -> Result<()> {
        let wrong = |name, wanted: &str, had: String| Err(Error::Shape { name, wanted: wanted.into(), had });
        let codec = self.format().codec();
        if ![Codec::Rtn, Codec::Hadamard, Codec::Centred].contains(&codec) {
            return wrong("the codec of an alignment", "aligned-f16, rtn, hadamard or centred", codec.to_string());
        }
        for slab in self.arrangements.iter().flatten() {
            for (name, precision) in [("key bits", slab.format.key()), ("value bits", slab.format.value())] {
                if ![Bits::Four, Bits::Eight].contains(&precision.bits) {
                    return wrong(name, "4 or 8 with an alignment", precision.bits.get().to_string());
                }
            }
        }
        Ok(())
    }

    pub(crate) fn align(&mut self, alignment: Alignment) -> Result<()> {
        alignment.check()?;
        let wrong = |name, wanted: &str, had: String| Err(Error::Shape { name, wanted: wanted.into(), had });
        if alignment != Alignment::EVERYTHING && !self.aligns() {
            return wrong("the plan of an alignment", "one of planes, by Plan::with_alignment", format!("{} without", self.format().codec()));
        }
        if self.code_planes && [alignment.keys, alignment.values].contains(&Criterion::Published) {
            return wrong("the alignment of integer codes", "a budget", alignment.to_string());
        }
        self.alignment = alignment;
        Ok(())
    }

    /// By what the planes to read are chosen.
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// The same plan with kernels that count their loads of planes, for confirming what [`Cache::traffic`](crate::Cache::traffic) says.
    #[doc(hidden)]
    pub fn with_counted_loads(mut self) -> Self {
        self.counts_loads = true;
        self
    }

    pub(crate) fn counts_loads(&self) -> bool {
        self.counts_loads
    }

    /// Readings of a layer's pages by one query row: one a KV head and block of query heads.
    pub(crate) fn readings(&self) -> u64 {
        u64::from(self.shape.kv_heads * self.blocks())
    }

    /// Entries of the scores of a pass, each of as many numbers as share a reading.
    pub(crate) fn score_sums(&self) -> u64 {
        u64::from(self.pages) * self.readings() * u64::from(PAGE_TOKENS)
    }

    /// Entries before those of four tokens' values together, which integer codes in planes have.
    pub(crate) fn score_quads(&self) -> u64 {
        self.score_sums() + u64::from(SUM_ENTRIES) * self.partial_items() * self.readings()
    }

    /// Bytes of the scores of a pass, of their sums by item, and of the quads.
    pub(crate) fn scores_bytes(&self) -> u64 {
        let quads = if self.code_planes { self.score_sums() / 4 } else { 0 };
        if self.aligns() { 4 * u64::from(self.heads) * (self.score_quads() + quads) } else { 0 }
    }

    /// Bytes of the plans of a pass.
    pub(crate) fn plans_bytes(&self) -> u64 {
        if self.aligns() { 4 * u64::from(self.query_rows) * self.readings() * u64::from(PLAN_WORDS) } else { 0 }
    }

    /// Units of 16 bytes of the partial results, after which the ledgers of align_values lie.
    pub(crate) fn ledgers(&self) -> u64 {
        self.partial_items() * self.readings() * u64::from(self.heads * (self.shape.head_dim / 4 + 1))
    }

    /// Tokens of a block that one workgroup of append packs: a page where it writes what the page's tokens have in common.
    pub(crate) fn append_block(&self) -> u32 {
        if self.aligns() && !self.code_planes { PAGE_TOKENS } else { 32 }
    }

    /// KV heads that are rotated together.
    pub fn group_heads(&self) -> u32 {
        self.format().heads_per_group(self.shape.kv_heads)
    }

    /// Are the sinks elected by the residual stream?
    pub fn elects(&self) -> bool {
        matches!(self.protection.sinks, Sinks::Massive(_)) && self.sinks() > 0
    }

    /// First tokens of a sequence that no page holds, though they have a place there: sinks that are known beforehand.
    pub(crate) fn unpacked(&self) -> u32 {
        if self.elects() { 0 } else { self.sinks() }
    }

    /// First word of the elected sinks in a layer's marks.
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

    /// Words of a layer's marks: the group of every key channel, a byte each (or for Centred, means and weights), then by slot the elected sinks.
    pub(crate) fn marks_words(&self) -> u64 {
        let elected = if self.elects() { 3 * u64::from(self.sinks()) * u64::from(self.sequences) } else { 0 };
        (u64::from(self.elected_at()) + elected).next_multiple_of(4)
    }

    /// Bytes of one layer's plane of key scales.
    pub(crate) fn key_scales_bytes(&self, layer: u32) -> u64 {
        self.layout_of(layer).row_scale_bytes() * u64::from(self.pages)
    }

    /// The same plan with another number of workgroups that a decode pass is split into, as far as there are pages.
    ///
    /// The scratch grows with it; [`Cache::new`](crate::Cache::new) refuses what the device cannot hold.
    pub fn with_split_workgroups(mut self, workgroups: u32) -> Self {
        self.split_workgroups = workgroups.clamp(1, 1 << 14);
        self
    }

    /// The same plan with another number of query rows that are attended to at once, 512 unless told: a step of more takes several passes, one
    /// after another. Who decodes thousands of sequences at once saves passes.
    ///
    /// The scratch grows with it; [`Cache::new`](crate::Cache::new) refuses what the device cannot hold.
    pub fn with_query_rows(mut self, rows: u32) -> Self {
        self.query_rows = rows.clamp(1, 1 << 14);
        self
    }

    /// The same plan with sliding-window attention: every query sees `tokens` tokens, its own the last of them, and no sink beyond.
    /// [`Cache::slide`](crate::Cache::slide) gives back the pages that no query will see any more. Models of which only some layers slide
    /// keep those in a cache of their own.
    ///
    /// # Errors
    /// [`Error::Shape`] for no token.
    pub fn with_sliding_window(mut self, tokens: u32) -> Result<Self> {
        if tokens == 0 {
            return Err(Error::Shape { name: "sliding window", wanted: "1 token or more".into(), had: "0".into() });
        }
        self.sliding_window = Some(tokens);
        Ok(self)
    }

    /// Tokens that every query sees, its own the last, if not all.
    pub fn sliding_window(&self) -> Option<u32> {
        self.sliding_window
    }

    /// Tokens that a query sees, its own the last: the largest number where it sees all.
    pub(crate) fn reach(&self) -> u32 {
        self.sliding_window.unwrap_or(u32::MAX)
    }

    /// The same plan with another length that a sequence can reach, up to 2^30 tokens: more than its pages hold at once, where it
    /// [slides](crate::Cache::slide), or fewer. The tables of positions grow with it; [`Cache::new`](crate::Cache::new) refuses what the device
    /// cannot hold.
    ///
    /// # Errors
    /// [`Error::Shape`] for no token or too many.
    pub fn with_max_tokens(mut self, tokens: u32) -> Result<Self> {
        if !(1..=1 << 30).contains(&tokens) {
            return Err(Error::Shape { name: "max_tokens", wanted: format!("1 to {}", 1 << 30), had: tokens.to_string() });
        }
        self.longest = Some(tokens);
        Ok(self)
    }

    fn pages_for(&self, budget: Budget) -> Result<u32> {
        let pages = match budget {
            Budget::Tokens { sequences, tokens } => {
                if tokens == 0 {
                    return Err(Error::Shape { name: "tokens", wanted: "1 or more".into(), had: "0".into() });
                }
                u64::from(sequences) * u64::from(self.packed(tokens).div_ceil(PAGE_TOKENS)).max(1)
            }
            Budget::Bytes { bytes, .. } => {
                let page = self.page_bytes();
                let protected = self.protected_bytes() * u64::from(self.shape.layers);
                if bytes < protected + page {
                    return Err(Error::Budget { reason: "the bytes of the f16 rows of all sequences and one page", need: protected + page, have: bytes });
                }
                (bytes - protected) / page
            }
        };
        // Positions and page numbers are 32-bit on the GPU.
        u32::try_from(pages).ok().filter(|p| *p <= 1 << 24).ok_or(Error::Limit {
            what: "page number",
            reason: "the budget's pages",
            need: pages,
            have: 1 << 24,
        })
    }

    fn check_kernels(&self, capability: &Capability) -> Result<()> {
        let limit = |what, reason, need: u32, have: u32| {
            if need > have { Err(Error::Limit { what, reason, need: need.into(), have: have.into() }) } else { Ok(()) }
        };
        // What other kernels have, 256 at most, every device must allow.
        let invocations = (self.shape.head_dim * self.merge_parts).max(256);
        limit("max_compute_invocations_per_workgroup", "attend_merge", invocations, capability.invocations)?;
        limit("max_compute_workgroup_size_x", "attend_merge", invocations, capability.workgroup_size_x)?;
        limit("max_storage_buffers_per_shader_stage", "attend_prefill", 8, capability.storage_buffers)?;
        let merge_bytes = attend_merge::workgroup_bytes(self.shape.head_dim, self.merge_parts);
        limit("max_compute_workgroup_storage_size", "attend_merge's parts", merge_bytes, capability.workgroup_bytes)?;
        limit("max_compute_workgroup_storage_size", "attend_prefill's tiles", 4096 + 16 * self.tile_vecs() + 256, capability.workgroup_bytes)?;
        if self.restores() {
            let cells = self.group_heads() * self.shape.head_dim;
            let bytes = 12 * cells + 16 * self.most(|slab| slab.layout.row_groups) + 16;
            limit("max_compute_workgroup_storage_size", "append_reordered's row of a group of heads", bytes, capability.workgroup_bytes)?;
        }
        limit("max_compute_workgroup_storage_size", "attend_split's queries and weights", self.split_workgroup_bytes(), capability.workgroup_bytes)?;
        limit("max_compute_workgroups_per_dimension", "query heads", self.shape.query_heads.max(self.query_rows), capability.workgroups)
    }

    /// Workgroup memory of attend_split: queries, weights, peaks, and the lanes of a reduction; for RotateKV also the keys on
    /// their way and the scores of a page.
    fn split_workgroup_bytes(&self) -> u32 {
        let weights = self.most(|slab| if slab.layout.value_groups == 0 { 128 } else { 32 * slab.layout.value_groups });
        let unit = 4 * self.heads() * (weights + 8 + 32);
        if !self.restores() {
            // Both factors of every wave, and the halves of the sums.
            let positions = if self.position_quads() == 0 { 0 } else { 2 * self.position_waves().max(1) + 128 };
            return unit + 4 * self.heads() * (self.positions_at() + positions);
        }
        let row_groups = self.most(|slab| slab.layout.row_groups);
        let units = self.group_heads();
        let scores = units * self.heads() * 512;
        let keys = match self.restore() {
            // The steps of a page.
            Restore::Shuffled => 8 * 64 * row_groups,
            // Cells of two halves, the steps of a tile, queries as halves.
            Restore::Straight => 4 * 17 * 2 * units * self.restore_cells() + 8 * row_groups * 2 * units + 8 * units * self.shape.head_dim,
            Restore::Rolled => 16 * self.restore_cells(),
        };
        units * unit + scores + keys
    }

    /// Cells of workgroup memory that keys pass through in attend_split; runs of cells in straight-line code.
    pub(crate) fn restore_cells(&self) -> u32 {
        let units = self.group_heads();
        if self.straight {
            // Runs of 17 times 2 * units.
            (units * self.shape.head_dim / 16).max(units * self.heads())
        } else {
            (units * self.shape.head_dim).max(32 * units * self.heads())
        }
    }

    /// Vectors of attend_prefill's tile of keys or values.
    pub(crate) fn tile_vecs(&self) -> u32 {
        if self.restores() { (4 * self.shape.head_dim).max(256) } else { 256 }
    }

    /// The largest of something over all slabs.
    fn most(&self, of: impl Fn(&Slab) -> u32) -> u32 {
        self.arrangements.iter().flatten().map(of).max().unwrap_or(0)
    }

    fn check_buffers(&self, capability: &Capability) -> Result<()> {
        let slab = self.arrangements.iter().flatten().map(|slab| self.slab_bytes(slab)).max().unwrap_or(0);
        let key_scales = (0..self.shape.layers).map(|layer| self.key_scales_bytes(layer)).max().unwrap_or(0);
        for (reason, need) in [
            ("the pages of one slab", slab),
            ("the query rows of a pass", self.query_rows_bytes()),
            ("the query codes of a pass", self.query_codes_bytes()),
            ("the partial results of a pass", self.partials_bytes()),
            ("the partial rows of a pass", self.row_partials_bytes()),
            ("the f16 rows of all sequences", self.protected_bytes()),
            ("the key scales of a layer", key_scales),
            ("the scores of a pass", self.scores_bytes()),
            ("the plans of a pass", self.plans_bytes()),
            ("the terms of positions of a pass", self.position_terms_bytes()),
            ("the table of RoPE's turns", self.turns_bytes()),
        ] {
            for (what, have) in [("max_storage_buffer_binding_size", capability.binding_bytes), ("max_buffer_size", capability.buffer_bytes)] {
                if need > have {
                    return Err(Error::Limit { what, reason, need, have });
                }
            }
        }
        Ok(())
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What all heads have in common of how they are stored, and, unless bits were allocated, how.
    pub fn format(&self) -> &Format {
        self.allocation.format()
    }

    /// The bits of every layer and KV head.
    pub fn allocation(&self) -> &Allocation {
        &self.allocation
    }

    /// Which tokens stay f16.
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// SHA-256, in hex, of what decides how tokens are stored: shape, RoPE, codec, the bits of every layer and head, sinks and
    /// window. Caches whose plans have the same one, and the same [`Calibration::fingerprint`] or [`Centre::fingerprint`], can load each other's
    /// [snapshots](crate::Cache::save), whatever their budgets and devices.
    pub fn fingerprint(&self) -> String {
        let Shape { layers, query_heads, kv_heads, head_dim, rope } = &self.shape;
        let format = self.format();
        let protected = format!("sinks {} of them elected: {}, ring {}", self.sinks(), self.elects(), self.ring());
        let mut text = format!(
            "wgkv-plan 2: {layers} layers, {query_heads} query heads, {kv_heads} KV heads of {head_dim}; {}{}, scales {}, {} heads a group; {protected}; {:?}",
            format.codec(),
            if self.aligns_codes() { " in planes" } else { "" },
            format.scales(),
            self.group_heads(),
            rope.layout(),
        );
        // Numbers by their bits: nothing that stores tokens alike prints differently, and the other way round. Frequencies are powers, of
        // which the last bit of an f64 depends on the platform.
        text.extend(rope.frequencies().iter().map(|frequency| format!(" {:x}", (*frequency as f32).to_bits())));
        for (layer, head) in (0..*layers).flat_map(|layer| (0..*kv_heads).map(move |head| (layer, head))) {
            text.extend(self.allocation.of(layer, head).map(|precision| {
                let (bits, group) = (precision.bits, precision.group(*head_dim));
                format!("; {}/{group}/{:x}", bits.get(), format.clip(bits).to_bits())
            }));
        }
        tensors::hash([text.as_bytes()])
    }

    /// The fingerprint of what the codec learnt from a model, if the plan was given any.
    pub(crate) fn calibration_fingerprint(&self) -> Option<String> {
        self.calibration.as_deref().map(Calibration::fingerprint).or_else(|| self.centre.as_deref().map(Centre::fingerprint))
    }

    /// Sequences that can be live at once.
    pub fn sequences(&self) -> u32 {
        self.sequences
    }

    /// Pages that the sequences share; each spans all KV heads and layers.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// How a layer's KV heads are spread over buffers; none for a layer that does not exist.
    pub fn slabs(&self, layer: u32) -> &[Slab] {
        self.arranged.get(layer as usize).map_or(&[], |n| &self.arrangements[*n as usize])
    }

    /// How attend_split reduces.
    pub fn reduce(&self) -> Reduce {
        self.reduce
    }

    /// Neighbouring lanes that surely share a subgroup, as far as kernels may shuffle between them.
    pub(crate) fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Does attend_split run as straight-line code?
    pub fn straight(&self) -> bool {
        self.straight
    }

    /// Tokens that one sequence can reach: what it can hold if it has all pages, or what [`Plan::with_max_tokens`] says.
    pub fn max_tokens(&self) -> u64 {
        self.longest.map_or_else(|| self.held_tokens(), u64::from)
    }

    /// Tokens that one sequence can hold, if it has all pages.
    fn held_tokens(&self) -> u64 {
        u64::from(self.pages) * u64::from(PAGE_TOKENS) + u64::from(self.ring().saturating_sub(1))
    }

    /// f16 rows kept for sinks.
    pub fn sinks(&self) -> u32 {
        if self.format().codec() == Codec::F16 { 0 } else { self.protection.sinks.rows() }
    }

    /// f16 rows kept for the window: it, and the page that gathers before it is packed. 0 where every token is packed at once.
    pub fn ring(&self) -> u32 {
        if self.format().codec() == Codec::F16 || self.protection.window == 0 { 0 } else { self.protection.window + PAGE_TOKENS }
    }

    /// How many of a sequence's first tokens lie in pages, when it holds `tokens`. (Sinks have a place there too, unused.)
    pub fn packed(&self, tokens: u32) -> u32 {
        if self.ring() == 0 { tokens } else { self.protection.packed(tokens) }
    }

    /// Parts that attend_merge shares a row's items out among, at most.
    pub(crate) fn merge_parts(&self) -> u32 {
        self.merge_parts
    }

    /// Query heads that share one reading of the cache: 1, 2 or 4.
    pub fn heads(&self) -> u32 {
        self.heads
    }

    /// Readings of the cache that one KV head's query heads need.
    pub fn blocks(&self) -> u32 {
        self.shape.share().div_ceil(self.heads())
    }

    /// Entries of one block of heads among the query codes, but for what positions are known by.
    pub(crate) fn positions_at(&self) -> u32 {
        self.most(|slab| slab.code_entries(self.shape.head_dim))
    }

    /// Entries of one block of heads among the query codes.
    pub fn query_stride(&self) -> u32 {
        self.positions_at() + 2 * self.position_waves()
    }

    /// Query rows that one pass works on ([`Plan::with_query_rows`]).
    pub fn query_rows(&self) -> u32 {
        self.query_rows
    }

    /// Items that one decode pass is split into, at least, as far as there are pages.
    pub(crate) fn split_items(&self) -> u32 {
        // A slab's heads run together; further slabs come after it.
        let heads = self.most(Slab::count) / self.group_heads();
        (self.split_workgroups / (heads * self.blocks())).max(1)
    }

    pub(crate) fn query_rows_bytes(&self) -> u64 {
        4 * u64::from(self.query_rows) * u64::from(self.shape.query_heads) * u64::from(self.shape.head_dim + 4 * self.position_quads())
    }

    pub(crate) fn query_codes_bytes(&self) -> u64 {
        4 * u64::from(self.query_rows) * u64::from(self.shape.kv_heads * self.blocks() * self.heads()) * u64::from(self.query_stride())
    }

    /// Items of one decode pass, at most: the target, and one more for each row since a row's pages are split evenly.
    pub(crate) fn partial_items(&self) -> u64 {
        u64::from(self.split_items()) + u64::from(self.query_rows)
    }

    pub(crate) fn partials_bytes(&self) -> u64 {
        16 * self.ledgers() + if self.aligns() { 16 * u64::from(LEDGER_VECS) * self.partial_items() * self.readings() } else { 0 }
    }

    /// One partial result a prefilling row, or those of a decode pass.
    pub(crate) fn row_partials_bytes(&self) -> u64 {
        4 * u64::from(self.query_rows + attend_prefill::DECODE_PARTIALS) * u64::from(self.shape.query_heads) * u64::from(self.shape.head_dim + 2)
    }

    /// Bytes of one layer's f16 rows.
    pub(crate) fn protected_bytes(&self) -> u64 {
        4 * u64::from(self.sequences) * u64::from(self.shape.kv_heads) * u64::from(self.sinks() + self.ring()) * u64::from(self.shape.head_dim)
    }

    /// Rows of the table of turns: 128 low positions, then one for every 128 positions a sequence can reach.
    pub(crate) fn turn_rows(&self) -> u64 {
        u64::from(PAGE_TOKENS) + self.max_tokens() / u64::from(PAGE_TOKENS) + 1
    }

    pub(crate) fn turns_bytes(&self) -> u64 {
        let rows = self.turn_rows()
            + match self.restore() {
                _ if !self.turn_columns() => 0,
                Restore::Shuffled => u64::from(PAGE_TOKENS) / 2,
                _ => u64::from(PAGE_TOKENS),
            };
        let turns = 8 * rows * self.shape.rope.frequencies().len().max(1) as u64;
        if self.position_quads() == 0 {
            turns
        } else {
            turns.next_multiple_of(16) + 8 * position::pairs(&self.shape.rope, self.position_pages() as usize) as u64
        }
    }

    /// Does the table of turns end with the low positions once more, as attend_split takes them?
    pub(crate) fn turn_columns(&self) -> bool {
        self.restores() && self.straight && !self.shape.rope.frequencies().is_empty()
    }

    /// Every pipeline that a cache of this plan can use.
    pub fn variants(&self) -> Vec<Variant> {
        let mut variants = self.common_variants();
        variants.extend(self.slab_kinds().into_iter().flat_map(|slab| self.slab_variants(slab)));
        variants
    }

    /// The pipelines that have to do with one slab: its own, and those that serve all.
    pub(crate) fn variants_of(&self, slab: &Slab) -> Vec<Variant> {
        let mut variants = self.common_variants();
        variants.extend(self.slab_variants(slab));
        variants
    }

    /// The pipelines that know nothing of pages.
    fn common_variants(&self) -> Vec<Variant> {
        let mut variants = vec![kernel::query::variant(self, self.element)];
        for parts in attend_merge::choices(self) {
            variants.extend([false, true].map(|log_sums| attend_merge::variant(self, self.element, parts, log_sums)));
        }
        if self.position_quads() > 0 {
            variants.push(kernel::position::variant(self, self.element));
        }
        if self.sinks() + self.ring() > 0 {
            variants.push(kernel::protect::variant(self, self.element));
        }
        if self.elects() {
            variants.extend([false, true].map(|merge| kernel::elect::variant(self, self.element, merge)));
        }
        variants
    }

    /// The pipelines that work on one slab's pages.
    fn slab_variants(&self, slab: &Slab) -> Vec<Variant> {
        let mut variants =
            vec![kernel::append::variant_of(self, slab, self.element), kernel::dequantize::variant(self, slab), attend_prefill::variant(self, slab)];
        if self.aligns() {
            variants.extend([true, false].map(|keys| align_plan::variant(self, slab, keys)));
            variants.extend([align_scores::variant(self, slab), align_values::variant(self, slab)]);
        } else {
            variants.push(attend_split::variant(self, slab));
        }
        if self.restores() {
            variants.push(kernel::append_reordered::variant(self, slab, self.element));
        }
        variants
    }

    /// What the cache will cost.
    pub fn cost(&self) -> Cost {
        let mut cost = Cost {
            key_codes: 0,
            key_scales: 0,
            value_codes: 0,
            value_scales: 0,
            protected: self.protected_bytes() * u64::from(self.shape.layers),
            marks: 4 * self.marks_words() * u64::from(self.shape.layers),
            scratch: self.query_rows_bytes()
                + self.query_codes_bytes()
                + self.partials_bytes()
                + self.row_partials_bytes()
                + self.turns_bytes()
                + self.scores_bytes()
                + self.plans_bytes()
                + self.position_terms_bytes(),
        };
        for layer in 0..self.shape.layers {
            cost.key_scales += self.key_scales_bytes(layer);
            for slab in self.slabs(layer) {
                let layout = &slab.layout;
                let all = |vecs: u32| 16 * u64::from(self.pages) * u64::from(slab.count()) * u64::from(vecs);
                cost.key_codes += all(32 * layout.key_words);
                cost.key_scales += all(layout.key_groups * layout.scale_vecs);
                cost.value_codes += all(layout.value_words * self.shape.head_dim / 4);
                cost.value_scales += all(layout.value_groups * layout.scale_vecs);
                // The largest exponents of keys and of values.
                let maxima = all(layout.vecs - layout.maxima);
                cost.key_scales += maxima / 2;
                cost.value_scales += maxima / 2;
            }
        }
        cost
    }

    /// Bits that `tokens` tokens of one sequence need: codes, scales and zeros of the packed ones, f16 rows of the others.
    pub fn bits(&self, tokens: u64) -> u64 {
        let packed = u64::from(self.packed(u32::try_from(tokens).unwrap_or(u32::MAX)));
        let token = 8 * self.page_bytes() / u64::from(PAGE_TOKENS);
        let row = 16 * self.shape.elements_per_token();
        // Elected sinks are as many as there are rows, at most.
        let rows = (tokens - packed.min(tokens)) + u64::from(self.sinks()).min(packed);
        packed * token + rows * row
    }

    /// All stored bits of a sequence of `tokens` tokens, divided by the numbers they stand for.
    pub fn bits_per_element(&self, tokens: u64) -> f64 {
        self.bits(tokens) as f64 / (tokens.max(1) * self.shape.elements_per_token()) as f64
    }
}

/// How many of a slab's heads a buffer can hold; heads that are rotated together count together.
fn heads_of_a_slab(slab: &Slab, pages: u32, together: u32, capability: &Capability) -> Result<u32> {
    let head_bytes = slab.layout.bytes() * u64::from(pages);
    let have = capability.binding_bytes.min(capability.buffer_bytes);
    for (reason, need) in [("the pages of one KV head", head_bytes), ("the pages of a group of KV heads", head_bytes * u64::from(together))] {
        if need > have {
            return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason, need, have });
        }
    }
    let bunches = have / (head_bytes * u64::from(together));
    Ok(bunches.min(u64::from(slab.count() / together)) as u32 * together)
}

/// Can RotateKV's keys be restored by straight-line code? It is written for rotations of a power of two, RoPE over whole
/// heads in halves (or none), and packed halves.
fn restores_straight(shape: &Shape, format: &Format, capability: &Capability) -> bool {
    let rope = &shape.rope;
    let whole = rope.layout() == RopeLayout::SplitHalves && 2 * rope.frequencies().len() == shape.head_dim as usize;
    capability.halves
        && capability.workgroup_bytes >= 32_768
        && [64, 128].contains(&shape.head_dim)
        && format.heads_per_group(shape.kv_heads) <= 4
        && (whole || rope.frequencies().is_empty())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { key_codes, key_scales, value_codes, value_scales, protected, marks, scratch } = self.cost();
        let shape = &self.shape;
        writeln!(
            f,
            "{} for {} layers of {} query heads, {} KV heads, head_dim {}",
            self.allocation, shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim
        )?;
        writeln!(
            f,
            "{} sequences, {} pages of {PAGE_TOKENS} tokens, sinks {}, window {}",
            self.sequences, self.pages, self.protection.sinks, self.protection.window
        )?;
        for (name, bytes) in [
            ("key codes", key_codes),
            ("key scales", key_scales),
            ("value codes", value_codes),
            ("value scales", value_scales),
            ("f16 rows", protected),
            ("marks", marks),
            ("scratch", scratch),
        ] {
            writeln!(f, "{name:>14} {bytes:>14} bytes")?;
        }
        write!(f, "{:>14} {:>14.3} at {} tokens", "bits/element", self.bits_per_element(self.max_tokens()), self.max_tokens())
    }
}
