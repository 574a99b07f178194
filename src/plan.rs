//! What one cache will be: every size and every choice, made from shape, format, protection, budget and device.

use crate::budget::Budget;
use crate::error::{Error, Result};
use crate::format::{Codec, Format};
use crate::gpu::{Capability, Reduce};
use crate::kernel::{self, Variant, attend_prefill, attend_split};
use crate::layout::{PAGE_TOKENS, PageLayout};
use crate::protection::Protection;
use crate::rows::Element;
use crate::shape::Shape;
use std::fmt;

/// Query rows that one pass of [`Cache::attend`](crate::Cache::attend) works on, unless the plan says otherwise.
const QUERY_ROWS: u32 = 512;

/// Workgroups that a decode pass is split into, at least, as far as there are pages: enough to fill a large GPU.
const SPLIT_WORKGROUPS: u32 = 4096;

/// KV heads of one layer whose pages share a buffer, because a binding holds no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slab {
    /// First KV head.
    pub head_first: u32,
    /// KV heads.
    pub heads: u32,
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
    /// Queries and partial results of one pass; shared by all layers.
    pub scratch: u64,
}

impl Cost {
    /// The cache proper: everything but the scratch.
    pub fn cache(&self) -> u64 {
        self.key_codes + self.key_scales + self.value_codes + self.value_scales + self.protected
    }
}

/// What one cache will be. A plan is pure: making it touches no GPU, and everything that can be refused is refused here.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    shape: Shape,
    format: Format,
    protection: Protection,
    sequences: u32,
    pages: u32,
    slabs: Vec<Slab>,
    layout: PageLayout,
    reduce: Reduce,
    straight: bool,
    element: Element,
    query_rows: u32,
    split_workgroups: u32,
}

impl Plan {
    /// Plans a cache.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Group`], [`Error::Budget`] and [`Error::Limit`], each with the number wanted and had.
    pub fn new(shape: Shape, format: Format, protection: Protection, budget: Budget, capability: &Capability) -> Result<Self> {
        shape.check()?;
        format.check(shape.head_dim)?;
        protection.check()?;
        let sequences = budget.sequences();
        if sequences == 0 {
            return Err(Error::Shape { name: "sequences", wanted: "1 or more".into(), had: "0".into() });
        }
        let layout = PageLayout::new(&format, shape.head_dim);
        let mut plan = Self {
            reduce: capability.reduce(),
            straight: capability.straight,
            element: Element::F32,
            query_rows: QUERY_ROWS,
            split_workgroups: SPLIT_WORKGROUPS,
            sequences,
            pages: 0,
            slabs: Vec::new(),
            shape,
            format,
            protection,
            layout,
        };
        plan.pages = plan.pages_for(budget)?;
        plan.slabs = plan.slabs_for(capability)?;
        plan.check(capability)?;
        Ok(plan)
    }

    /// Can a device do what the plan needs? Asked when the plan is made, and again when a cache is made of it, which may be
    /// on another device.
    pub(crate) fn check(&self, capability: &Capability) -> Result<()> {
        self.check_kernels(capability)?;
        self.check_buffers(capability)?;
        if self.reduce == Reduce::Subgroup && capability.reduce() != Reduce::Subgroup {
            let have = capability.subgroups.map_or(0, |(smallest, _)| smallest.into());
            return Err(Error::Limit { what: "min_subgroup_size", reason: "the plan's reduction by subgroups", need: 32, have });
        }
        Ok(())
    }

    /// Bytes of one slab's pages.
    pub(crate) fn slab_bytes(&self, slab: &Slab) -> u64 {
        self.layout.bytes() * u64::from(self.pages) * u64::from(slab.heads)
    }

    /// The same plan for callers whose rows are of this type: only tells which pipelines [`Gpu::prepare`](crate::Gpu::prepare) compiles.
    pub fn with_element(mut self, element: Element) -> Self {
        self.element = element;
        self
    }

    /// The same plan with another number of workgroups that a decode pass is split into, as far as there are pages.
    ///
    /// The scratch grows with it; [`Cache::new`](crate::Cache::new) refuses what the device cannot hold.
    pub fn with_split_workgroups(mut self, workgroups: u32) -> Self {
        self.split_workgroups = workgroups.clamp(1, 1 << 14);
        self
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
                let page = self.layout.bytes() * u64::from(self.shape.kv_heads) * u64::from(self.shape.layers);
                let protected = self.protected_bytes() * u64::from(self.shape.layers);
                if bytes < protected + page {
                    return Err(Error::Budget { reason: "the f16 rows of all sequences and one page", need: protected + page, have: bytes });
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
        // attend_merge has up to 256, the others one a channel.
        let invocations = 256;
        limit("max_compute_invocations_per_workgroup", "attend_merge", invocations, capability.invocations)?;
        limit("max_compute_workgroup_size_x", "attend_merge", invocations, capability.workgroup_size_x)?;
        limit("max_storage_buffers_per_shader_stage", "append", 7, capability.storage_buffers)?;
        limit("max_compute_workgroup_storage_size", "attend_prefill's tiles", 12_288, capability.workgroup_bytes)?;
        limit("max_compute_workgroup_storage_size", "attend_split's queries and weights", self.split_workgroup_bytes(), capability.workgroup_bytes)?;
        limit("max_compute_workgroups_per_dimension", "query heads", self.shape.query_heads.max(self.query_rows), capability.workgroups)
    }

    /// Workgroup memory of attend_split: queries, weights, peaks, and the lanes of a reduction.
    fn split_workgroup_bytes(&self) -> u32 {
        let weights = if self.format.codec() == Codec::F16 { 128 } else { 32 * self.layout.groups };
        4 * self.heads() * (self.query_stride() + weights + 8 + 32)
    }

    fn check_buffers(&self, capability: &Capability) -> Result<()> {
        let slab = self.slabs.iter().map(|slab| self.slab_bytes(slab)).max().unwrap_or(0);
        for (reason, need) in [
            ("the pages of one slab", slab),
            ("the query rows of a pass", self.query_rows_bytes()),
            ("the query codes of a pass", self.query_codes_bytes()),
            ("the partial results of a pass", self.partials_bytes()),
            ("the partial rows of a pass", self.row_partials_bytes()),
            ("the f16 rows of all sequences", self.protected_bytes()),
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

    fn slabs_for(&self, capability: &Capability) -> Result<Vec<Slab>> {
        let head_bytes = self.layout.bytes() * u64::from(self.pages);
        let room = capability.binding_bytes.min(capability.buffer_bytes);
        if head_bytes > room {
            return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason: "the pages of one KV head", need: head_bytes, have: room });
        }
        // As even as can be, so that no slab's dispatch is a remnant.
        let most = (room / head_bytes).min(u64::from(self.shape.kv_heads)) as u32;
        let count = self.shape.kv_heads.div_ceil(most);
        let heads = self.shape.kv_heads.div_ceil(count);
        Ok((0..self.shape.kv_heads).step_by(heads as usize).map(|first| Slab { head_first: first, heads: heads.min(self.shape.kv_heads - first) }).collect())
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The format.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Which tokens stay f16.
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// Sequences that can be live at once.
    pub fn sequences(&self) -> u32 {
        self.sequences
    }

    /// Pages that the sequences share; each spans all KV heads and layers.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Where everything lies in a page.
    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    /// How a layer's KV heads are spread over buffers.
    pub fn slabs(&self) -> &[Slab] {
        &self.slabs
    }

    /// How attend_split reduces.
    pub fn reduce(&self) -> Reduce {
        self.reduce
    }

    /// Does attend_split run as straight-line code?
    pub fn straight(&self) -> bool {
        self.straight
    }

    /// Tokens that one sequence can hold, if it has all pages.
    pub fn max_tokens(&self) -> u64 {
        u64::from(self.pages) * u64::from(PAGE_TOKENS) + u64::from(self.ring().saturating_sub(1))
    }

    /// f16 rows kept for sinks.
    pub fn sinks(&self) -> u32 {
        if self.format.codec() == Codec::F16 { 0 } else { self.protection.sinks.rows() }
    }

    /// f16 rows kept for the window: it, and the page that gathers before it is packed. 0 where every token is packed at once.
    pub fn ring(&self) -> u32 {
        if self.format.codec() == Codec::F16 || self.protection.window == 0 { 0 } else { self.protection.window + PAGE_TOKENS }
    }

    /// How many of a sequence's first tokens lie in pages, when it holds `tokens`. (Sinks have a place there too, unused.)
    pub fn packed(&self, tokens: u32) -> u32 {
        if self.ring() == 0 { tokens } else { tokens.saturating_sub(self.protection.window) / PAGE_TOKENS * PAGE_TOKENS }
    }

    /// Query heads that share one reading of the cache: 1, 2 or 4.
    pub fn heads(&self) -> u32 {
        match self.shape.share() {
            1 => 1,
            2 => 2,
            _ => 4,
        }
    }

    /// Readings of the cache that one KV head's query heads need.
    pub fn blocks(&self) -> u32 {
        self.shape.share().div_ceil(self.heads())
    }

    /// Entries of one block of heads among the query codes.
    pub fn query_stride(&self) -> u32 {
        if self.format.codec() == Codec::F16 { self.shape.head_dim } else { self.shape.head_dim / 4 + 1 + self.layout.groups }
    }

    /// Query rows that one pass works on.
    pub fn query_rows(&self) -> u32 {
        self.query_rows
    }

    /// Items that one decode pass is split into, at least, as far as there are pages.
    pub(crate) fn split_items(&self) -> u32 {
        // A slab's heads run together; further slabs come after it.
        let heads = self.slabs.iter().map(|s| s.heads).max().unwrap_or(self.shape.kv_heads);
        (self.split_workgroups / (heads * self.blocks())).max(1)
    }

    pub(crate) fn query_rows_bytes(&self) -> u64 {
        4 * u64::from(self.query_rows) * u64::from(self.shape.query_heads) * u64::from(self.shape.head_dim)
    }

    pub(crate) fn query_codes_bytes(&self) -> u64 {
        4 * u64::from(self.query_rows) * u64::from(self.shape.kv_heads * self.blocks() * self.heads()) * u64::from(self.query_stride())
    }

    /// Items of one decode pass, at most: the target, and one more for each row since a row's pages are split evenly.
    pub(crate) fn partial_items(&self) -> u64 {
        u64::from(self.split_items()) + u64::from(self.query_rows)
    }

    pub(crate) fn partials_bytes(&self) -> u64 {
        4 * self.partial_items() * u64::from(self.shape.kv_heads * self.blocks() * self.heads()) * u64::from(self.shape.head_dim + 4)
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
        8 * self.turn_rows() * self.shape.rope.frequencies().len().max(1) as u64
    }

    /// Every pipeline that a cache of this plan can use.
    pub fn variants(&self) -> Vec<Variant> {
        let mut variants = vec![
            kernel::append::variant(self, self.element),
            kernel::dequantize::variant(self),
            kernel::query::variant(self, self.element),
            attend_split::variant(self),
            attend_prefill::variant(self),
            kernel::attend_merge::variant(self, self.element, true),
            kernel::attend_merge::variant(self, self.element, false),
        ];
        if self.sinks() + self.ring() > 0 {
            variants.push(kernel::protect::variant(self, self.element));
        }
        variants
    }

    /// What the cache will cost.
    pub fn cost(&self) -> Cost {
        let heads = u64::from(self.shape.kv_heads) * u64::from(self.shape.layers) * u64::from(self.pages);
        let scales = 16 * heads * 32 * u64::from(self.layout.groups);
        Cost {
            key_codes: 16 * heads * 32 * u64::from(self.layout.key_words),
            key_scales: scales,
            value_codes: 16 * heads * u64::from(self.layout.value_words * self.shape.head_dim / 4),
            value_scales: scales,
            protected: self.protected_bytes() * u64::from(self.shape.layers),
            scratch: self.query_rows_bytes() + self.query_codes_bytes() + self.partials_bytes() + self.row_partials_bytes() + self.turns_bytes(),
        }
    }

    /// Bits that `tokens` tokens of one sequence need: codes, scales and zeros of the packed ones, f16 rows of the others.
    pub fn bits(&self, tokens: u64) -> u64 {
        let packed = u64::from(self.packed(u32::try_from(tokens).unwrap_or(u32::MAX)));
        let head = 8 * self.layout.bytes() / u64::from(PAGE_TOKENS);
        let row = 32 * u64::from(self.shape.head_dim);
        let rows = (tokens - packed.min(tokens)) + u64::from(self.sinks()).min(packed);
        u64::from(self.shape.kv_heads) * u64::from(self.shape.layers) * (packed * head + rows * row)
    }

    /// All stored bits of a sequence of `tokens` tokens, divided by the numbers they stand for.
    pub fn bits_per_element(&self, tokens: u64) -> f64 {
        self.bits(tokens) as f64 / (tokens.max(1) * self.shape.elements_per_token()) as f64
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { key_codes, key_scales, value_codes, value_scales, protected, scratch } = self.cost();
        let shape = &self.shape;
        writeln!(
            f,
            "{} for {} layers of {} query heads, {} KV heads, head_dim {}",
            self.format, shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim
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
            ("scratch", scratch),
        ] {
            writeln!(f, "{name:>14} {bytes:>14} bytes")?;
        }
        write!(f, "{:>14} {:>14.3} at {} tokens", "bits/element", self.bits_per_element(self.max_tokens()), self.max_tokens())
    }
}
