//! What one cache will be: every size and every choice, made from shape, format, protection,
//! capacity and device.

mod builder;
mod capacity;
mod checks;
mod choices;
mod cost;
mod fingerprint;
mod kernels;
pub(crate) mod position;
mod scoring;
mod scratch;
pub(crate) mod sizes;
mod slabs;
pub(crate) mod tables;

pub use builder::{PlanBuilder, Storage};
pub use capacity::Capacity;
pub use choices::Restore;
pub(crate) use choices::block_lanes;
pub use cost::Cost;
pub use scoring::Span;
pub use slabs::Slab;
pub(crate) use tables::turn_table;

use crate::error::{Error, Result};
use crate::format::{Alignment, BitPlan, ChannelOrder, Criterion, Element, Format, Learned, Means, PAGE_TOKENS, Protection, Shape};
use crate::gpu::{Capability, Reduce};
use scoring::Scoring;
use std::ops::Range;
use std::sync::Arc;

/// What one cache will be. A plan is pure: making it touches no GPU, and everything that can be
/// refused is refused when [`PlanBuilder::build`] makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    shape: Shape,
    bit_plan: BitPlan,
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
    strided_rows: bool,
    query_rows: u32,
    split_workgroups: u32,
    /// Rows of a decoding pass up to which attend_direct takes it, as the builder was told.
    direct_wanted: u32,
    /// And as the plan can: none where something forbids it.
    direct_rows: u32,
    merge_parts: u32,
    /// Query heads that share one reading of the cache.
    heads: u32,
    learned: Option<Arc<Learned>>,
    /// Quads of channels that carry what the mean of the keys adds to a score; read for every
    /// dispatch.
    position_quads: u32,
    alignment: Alignment,
    span: Span,
    scoring: Scoring,
    /// Tokens that a sequence can reach, if not as many as there are pages for.
    longest: Option<u32>,
    /// Whether integer codes are stored in planes.
    code_planes: bool,
    counts_loads: bool,
    /// Whether the device prefers straight-line code, whatever restoring keys needs.
    unrolls: bool,
    /// Whether prefilling rows are attended by cooperative matrices.
    matrices: bool,
    /// Tiles of 32 tokens, of all KV heads, that scratch has room for unpacked.
    unpacked_tiles: u32,
    /// Partial results of query tokens that are worth having, beyond those that a pass must have.
    spread_partials: u32,
}

impl Plan {
    /// Begins a plan of a cache that stores tokens as a [`Format`] says, or, where layers and heads
    /// differ, as a [`BitPlan`] says. [`PlanBuilder::build`] checks it.
    pub fn builder(shape: Shape, storage: impl Into<Storage>) -> PlanBuilder {
        PlanBuilder::new(shape, storage.into())
    }

    /// Returns a builder that makes this plan, with as many pages, so that some of it can be
    /// changed, or the device.
    pub fn to_builder(&self) -> PlanBuilder {
        PlanBuilder::of(self)
    }

    /// Returns the plan for a device that holds only some of every layer's KV heads, with the query
    /// heads that share them: as many sequences and pages, and these heads' own bits, means and
    /// weights. RotateKV's channel order is made from these heads' own sums, so it is the same
    /// order only where it reaches no further than the heads that are rotated together
    /// ([`Reach::Local`](crate::learned::Reach::Local)).
    ///
    /// # Errors
    /// [`Error::Mismatch`] for heads that do not exist, for none, and where heads that are rotated
    /// together would be parted; those of [`PlanBuilder::build`].
    pub fn shard(&self, heads: Range<u32>, capability: &Capability) -> Result<Self> {
        let (have, together) = (self.shape.kv_heads, self.group_heads());
        if heads.is_empty() || heads.end > have || [heads.start, heads.end].iter().any(|head| !head.is_multiple_of(together)) {
            let wanted = format!("some of 0..{have}, {together} together");
            return Err(Error::argument("the KV heads of a shard", wanted, format!("{heads:?}")));
        }
        let kv_heads = heads.end - heads.start;
        let shape = Shape { query_heads: kv_heads * self.shape.share(), kv_heads, ..self.shape.clone() };
        let mut format = *self.format();
        if self.restores() {
            format = format.with_heads_per_group(together);
        }
        let bits = BitPlan::new(&shape, format, |layer, head| self.bit_plan.of(layer, heads.start + head))?;
        let mut builder = self.to_builder().stores(shape, bits);
        if let Some(logits) = &self.scoring.sink_logits {
            let (all, share) = (self.shape.query_heads as usize, self.shape.share());
            let of = (heads.start * share) as usize..(heads.end * share) as usize;
            builder = builder.sink_logits(logits.chunks_exact(all).flat_map(|layer| layer[of.clone()].to_vec()).collect::<Vec<_>>());
        }
        builder = match self.learned() {
            Some(Learned::ChannelOrder(order)) => builder.learned(order.shard(heads)?),
            Some(Learned::Means(means)) => builder.learned(means.shard(heads)),
            None => builder,
        };
        builder.build(capability)
    }

    pub(crate) fn align(&mut self, alignment: Alignment) -> Result<()> {
        alignment.check()?;
        let wrong = |name: &'static str, wanted: &str, had: String| Err(Error::argument(name, wanted, had));
        if alignment != Alignment::EVERYTHING && !self.aligns() {
            return wrong("the plan of an alignment", "one of planes, by PlanBuilder::alignment", format!("{} without", self.format().codec()));
        }
        if self.code_planes && [alignment.keys, alignment.values].contains(&Criterion::Published) {
            return wrong("the alignment of integer codes", "a budget", alignment.to_string());
        }
        self.alignment = alignment;
        Ok(())
    }

    /// Returns the shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Returns the format that all heads share: all of how they are stored, unless a [`BitPlan`]
    /// gave them different bits.
    pub fn format(&self) -> &Format {
        self.bit_plan.format()
    }

    /// Returns the bits of every layer and KV head.
    pub fn bit_plan(&self) -> &BitPlan {
        &self.bit_plan
    }

    /// Returns which tokens stay f16.
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// Returns what the codec learned, if the plan was given any.
    pub fn learned(&self) -> Option<&Learned> {
        self.learned.as_deref()
    }

    /// Returns the order of key channels, if the plan was given one.
    pub fn channel_order(&self) -> Option<&ChannelOrder> {
        self.learned()?.channel_order()
    }

    /// Returns the means and weights, if the plan was given some.
    pub fn means(&self) -> Option<&Means> {
        self.learned()?.means()
    }

    /// Returns how the planes to read are chosen.
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// Returns how many tokens every query sees, its own the last, if not all.
    pub fn sliding_window(&self) -> Option<u32> {
        match self.span {
            Span::Sliding(tokens) => Some(tokens),
            Span::All | Span::Chunked(_) => None,
        }
    }

    /// Returns the type of the caller's rows that [`Gpu::prepare`](crate::Gpu::prepare) compiles
    /// for.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Returns whether [`Gpu::prepare`](crate::Gpu::prepare) compiles pipelines for rows with
    /// strides, too.
    pub fn strided_rows(&self) -> bool {
        self.strided_rows
    }

    /// Returns how many sequences can be live at once.
    pub fn sequences(&self) -> u32 {
        self.sequences
    }

    /// Returns how many pages the sequences share; each spans all KV heads and layers.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Returns how many tokens one sequence can reach: what it can hold if it has all pages, or
    /// what [`PlanBuilder::max_tokens`] says.
    pub fn max_tokens(&self) -> u64 {
        self.longest.map_or_else(|| self.held_tokens(), u64::from)
    }

    /// Returns how many tokens one sequence can hold, if it has all pages.
    fn held_tokens(&self) -> u64 {
        u64::from(self.pages) * u64::from(PAGE_TOKENS) + u64::from(self.ring().saturating_sub(1))
    }
}
