//! Making a plan: what it is given, and the order in which its sizes follow from one another.

use super::scoring::{Scoring, Span};
use super::slabs::heads_of_a_slab;
use super::{Capacity, Plan, choices};
use crate::error::{Error, Result, Thing};
use crate::format::{Alignment, BitPlan, Codec, Element, Format, Learned, PAGE_TOKENS, Protection, Shape, origin};
use crate::gpu::Capability;
use std::sync::Arc;

/// Query rows that one pass of [`Cache::attend`](crate::Cache::attend) works on, unless the builder
/// sets another number.
const QUERY_ROWS: u32 = 512;

/// Rows of a pass up to which attend_direct takes it, by default.
const DIRECT_ROWS: u32 = 4;

/// Workgroups that a decode pass is split into, at least, as far as there are pages: enough to fill
/// a large GPU.
const SPLIT_WORKGROUPS: u32 = 4096;

/// How a plan's layers and heads are stored.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Storage {
    /// All alike.
    Uniform(Format),
    /// Different bits for layers, KV heads, keys and values.
    Mixed(BitPlan),
}

impl From<Format> for Storage {
    fn from(format: Format) -> Self {
        Self::Uniform(format)
    }
}

impl From<BitPlan> for Storage {
    fn from(bits: BitPlan) -> Self {
        Self::Mixed(bits)
    }
}

/// How many pages there are to be.
#[derive(Clone, Copy, Debug)]
enum Pages {
    Of(Capacity),
    /// This many.
    Count {
        sequences: u32,
        pages: u32,
    },
}

/// Collects what a plan is made from; [`PlanBuilder::build`] checks all of it and makes the
/// [`Plan`].
///
/// ```
/// use wgkv::{Bits, Capability, Capacity, Codec, Format, Plan, Rope, Shape};
///
/// let shape = Shape { layers: 32, query_heads: 32, kv_heads: 8, head_dim: 128, rope: Rope::new(10_000.0, 128) };
/// let format = Format::new(Codec::Hadamard, Bits::Four, Bits::Two, 128);
/// let plan = Plan::builder(shape, format).capacity(Capacity::tokens(8, 32_768)).build(&Capability::webgpu_default());
/// // 131 MB a layer are more than one binding holds by default: a slab then holds fewer heads.
/// println!("{}", plan?);
/// # Ok::<(), wgkv::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PlanBuilder {
    shape: Shape,
    storage: Storage,
    protection: Protection,
    pages: Pages,
    learned: Option<Arc<Learned>>,
    alignment: Alignment,
    /// Whether codes lie in planes whatever the alignment says, as in the plan that this one is
    /// made from.
    keeps_planes: bool,
    element: Element,
    strided_rows: bool,
    query_rows: u32,
    split_workgroups: u32,
    direct_rows: u32,
    span: Span,
    scoring: Scoring,
    max_tokens: Option<u32>,
    counts_loads: bool,
    unpacked_tiles: Option<u32>,
}

fn argument<T>(name: &'static str, wanted: impl ToString, had: impl ToString) -> Result<T> {
    Err(Error::argument(name, wanted, had))
}

impl PlanBuilder {
    pub(super) fn new(shape: Shape, storage: Storage) -> Self {
        Self {
            shape,
            storage,
            protection: Protection::default(),
            pages: Pages::Of(Capacity::tokens(1, 4096)),
            learned: None,
            alignment: Alignment::EVERYTHING,
            keeps_planes: false,
            element: Element::F32,
            strided_rows: false,
            query_rows: QUERY_ROWS,
            split_workgroups: SPLIT_WORKGROUPS,
            direct_rows: DIRECT_ROWS,
            span: Span::All,
            scoring: Scoring::default(),
            max_tokens: None,
            counts_loads: false,
            unpacked_tiles: None,
        }
    }

    pub(super) fn of(plan: &Plan) -> Self {
        Self {
            shape: plan.shape.clone(),
            storage: Storage::Mixed(plan.bit_plan.clone()),
            protection: plan.protection,
            pages: Pages::Count { sequences: plan.sequences, pages: plan.pages },
            learned: plan.learned.clone(),
            alignment: plan.alignment,
            keeps_planes: plan.code_planes,
            element: plan.element,
            strided_rows: plan.strided_rows,
            query_rows: plan.query_rows,
            split_workgroups: plan.split_workgroups,
            direct_rows: plan.direct_wanted,
            span: plan.span,
            scoring: plan.scoring.clone(),
            max_tokens: plan.longest,
            counts_loads: plan.counts_loads,
            unpacked_tiles: None,
        }
    }

    /// Replaces the shape and the way it is stored.
    pub(crate) fn stores(mut self, shape: Shape, storage: impl Into<Storage>) -> Self {
        (self.shape, self.storage) = (shape, storage.into());
        self
    }

    /// Sets which tokens stay f16. The default is 4 sinks and a window of 128.
    pub fn protection(mut self, protection: Protection) -> Self {
        self.protection = protection;
        self
    }

    /// Sets how much the cache may hold. The default is one sequence of 4096 tokens.
    pub fn capacity(mut self, capacity: Capacity) -> Self {
        self.pages = Pages::Of(capacity);
        self
    }

    /// Gives the plan what its codec learned: the [`ChannelOrder`](crate::ChannelOrder) that
    /// [`Codec::RotateKv`] needs, or the [`Means`](crate::Means) of [`Codec::Centred`]. Without
    /// them Centred takes means of 0 and weights of 1, which costs most of what it gains.
    pub fn learned(mut self, learned: impl Into<Option<Learned>>) -> Self {
        self.learned = learned.into().map(Arc::new);
        self
    }

    /// Sets which planes decoding reads; the default is all of them. This is for
    /// [`Codec::AlignedF16`], and for [`Codec::Rtn`], [`Codec::Hadamard`] and [`Codec::Centred`]
    /// with keys and values of 4 or 8 bits, whose codes are then stored in planes of 2 and 2, or 4,
    /// 2 and 2 bits. The latter take budgets only, and a budget of 0 reads everything;
    /// [`Alignment::EVERYTHING`] leaves their codes without planes.
    /// [`Cache::align`](crate::Cache::align) changes it later.
    pub fn alignment(mut self, alignment: Alignment) -> Self {
        (self.alignment, self.keeps_planes) = (alignment, false);
        self
    }

    /// Sets the type of the caller's rows. The default is f32. It only decides which pipelines
    /// [`Gpu::prepare`](crate::Gpu::prepare) compiles.
    pub fn element(mut self, element: Element) -> Self {
        self.element = element;
        self
    }

    /// Also compiles, in [`Gpu::prepare`](crate::Gpu::prepare), the pipelines for rows that are not
    /// dense or begin where no binding can ([`RowLayout`](crate::RowLayout)). Otherwise such a
    /// pipeline is compiled when the first rows need it.
    pub fn strided_rows(mut self) -> Self {
        self.strided_rows = true;
        self
    }

    /// Sets how many query rows are attended at once, 1 to 16384. The default is 512. A step of
    /// more takes several passes, one after another, so decoding thousands of sequences at once
    /// takes fewer passes with a larger number. The scratch grows with it. On slow adapters, whose
    /// drivers end a dispatch after some seconds, make it smaller:
    /// [serving](crate::guide::serving) has numbers to choose it by.
    pub fn query_rows(mut self, rows: u32) -> Self {
        self.query_rows = rows.clamp(1, 1 << 14);
        self
    }

    /// Sets how many workgroups a decode pass is split into, as far as there are pages: 1 to 16384.
    /// The default is 4096. The scratch grows with it.
    pub fn split_workgroups(mut self, workgroups: u32) -> Self {
        self.split_workgroups = workgroups.clamp(1, 1 << 14);
        self
    }

    /// Sets up to how many rows a pass of decoding rows is attended in two dispatches,
    /// `attend_direct` and `attend_merge`: 0 to 16384. The default is 4. Passes of more rows, or
    /// over more than some 2048 pages, counted for each KV head (512 of f16, or without subgroups),
    /// make their queries once instead of in every workgroup, in a dispatch before, which a few
    /// rows would wait for longer than it works. Codecs whose keys are restored or stored in planes
    /// have no `attend_direct`, nor have heads of 192 and 512, nor Centred where some channels have
    /// a mean and do not turn; the plan's text names the kernels.
    pub fn direct_rows(mut self, rows: u32) -> Self {
        self.direct_rows = rows.min(1 << 14);
        self
    }

    /// Sets sliding-window attention: every query sees `tokens` tokens, its own the last of them,
    /// and no sink beyond. [`Cache::slide`](crate::Cache::slide) gives back the pages that no query
    /// will see any more. Models in which only some layers slide take a
    /// [`LayeredCache`](crate::layers::LayeredCache), which does it by itself.
    pub fn sliding_window(mut self, tokens: u32) -> Self {
        self.span = Span::Sliding(tokens);
        self
    }

    /// Sets chunked attention: every query sees the tokens of its own chunk, and chunks begin at
    /// multiples of `tokens` (Llama 4). No sink beyond is seen. It takes the place of a
    /// [`sliding_window`](Self::sliding_window). [`Cache::slide`](crate::Cache::slide) gives back
    /// the pages of former chunks, if it keeps the tokens since the chunk began:
    /// [`Span::first`] has where that is.
    pub fn chunked_attention(mut self, tokens: u32) -> Self {
        self.span = Span::Chunked(tokens);
        self
    }

    /// Sets the factor on the product of key and query, above 0, for models that have another than
    /// `1 / sqrt(head_dim)` (Gemma's `query_pre_attn_scalar`, Granite's `attention_multiplier`),
    /// and for heads that are padded with zeros: theirs is that of the head without.
    pub fn score_scale(mut self, scale: f32) -> Self {
        self.scoring.scale = Some(scale);
        self
    }

    /// Caps scores softly: a score s becomes `cap tanh(s / cap)` before the softmax (Gemma 2).
    /// Planes are read by bounds on uncapped scores, so an [`alignment`](Self::alignment) refuses
    /// it, and so do means of channels that RoPE does not turn, which are left out of scores.
    pub fn soft_cap(mut self, cap: f32) -> Self {
        self.scoring.soft_cap = Some(cap);
        self
    }

    /// Gives every query head of every layer a logit that takes part in the softmax and has no
    /// value, `[layers, query_heads]` (the learned sinks of gpt-oss). Where a context is split, the
    /// part with a sequence's first token counts it.
    pub fn sink_logits(mut self, logits: impl Into<Arc<[f32]>>) -> Self {
        self.scoring.sink_logits = Some(logits.into());
        self
    }

    /// Says that keys and queries come turned by RoPE already. The shape's [`Rope`](crate::Rope)
    /// must be the one they were turned by: [`Codec::Centred`] turns its means by it, and
    /// [`Codec::RotateKv`] turns keys back, which are stored before RoPE.
    ///
    /// Both do so by a token's place in its sequence. Rows that were turned by other positions
    /// (M-RoPE) are attended to rightly all the same, but may lose more to these codecs than
    /// without RoPE: say [`Rope::none`](crate::Rope::none) instead. There are no positions by
    /// token, since what means add to the scores of a page is known from the page's place alone
    /// ([serving](crate::guide::serving)).
    pub fn turned_rows(mut self, turned: bool) -> Self {
        self.scoring.turned = turned;
        self
    }

    /// Sets the length that a sequence can reach, 1 to 2^30 tokens: more than its pages hold at
    /// once, where it [slides](crate::Cache::slide), or fewer. The tables of positions grow with
    /// it.
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Sets how many pages there are, and the length that a sequence can reach.
    pub(crate) fn sized(mut self, sequences: u32, pages: u32, max_tokens: u32) -> Self {
        (self.pages, self.max_tokens) = (Pages::Count { sequences, pages }, Some(max_tokens));
        self
    }

    /// Makes kernels count their loads of planes, to confirm what
    /// [`Cache::traffic`](crate::Cache::traffic) reports.
    #[doc(hidden)]
    pub fn counted_loads(mut self) -> Self {
        self.counts_loads = true;
        self
    }

    /// Sets how many tiles of 32 tokens, of all KV heads, scratch has room for unpacked, 1 or more:
    /// tests make it small, so that a prefill takes several rounds.
    #[doc(hidden)]
    pub fn unpacked_tiles(mut self, tiles: u32) -> Self {
        self.unpacked_tiles = Some(tiles.max(1));
        self
    }

    /// Makes the plan for a device.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for numbers that are not served, for a bit plan, channel order or means
    /// of another shape or codec, and for [`Codec::RotateKv`] without a channel order;
    /// [`Error::Group`], [`Error::Capacity`] and [`Error::Limit`], each with the number wanted and
    /// the number there is.
    pub fn build(self, capability: &Capability) -> Result<Plan> {
        self.shape.check()?;
        let bit_plan = match self.storage.clone() {
            Storage::Uniform(format) => BitPlan::uniform(&self.shape, format)?,
            Storage::Mixed(bits) => bits,
        };
        bit_plan.expect_shape(&self.shape)?;
        let format = *bit_plan.format();
        self.protection.check(&format)?;
        let sequences = match self.pages {
            Pages::Of(capacity) => capacity.sequences(),
            Pages::Count { sequences, .. } => sequences,
        };
        if sequences == 0 {
            return argument("sequences", "1 or more", 0);
        }
        self.span.check()?;
        self.scoring.check(&self.shape)?;
        if let Some(tokens) = self.max_tokens.filter(|tokens| !(1..=1 << 30).contains(tokens)) {
            return argument("max_tokens", format!("1 to {}", 1 << 30), tokens);
        }
        self.check_learned(&format)?;
        let pairs = self.shape.rope.frequencies().len() as u32;
        let moves = self.learned.as_deref().and_then(Learned::means).is_some_and(|means| means.moves(&self.shape));
        let restores = format.codec() == Codec::RotateKv;
        let mut plan = Plan {
            reduce: if restores { capability.reduce_units() } else { capability.reduce() },
            lanes: capability.lanes(),
            straight: capability.straight && (!restores || choices::restores_straight(&self.shape, &format, capability)),
            heads: match self.shape.share() {
                1 => 1,
                2 => 2,
                _ => 4,
            },
            learned: self.learned,
            position_quads: if moves { pairs.div_ceil(2) } else { 0 },
            alignment: Alignment::EVERYTHING,
            span: self.span,
            scoring: self.scoring,
            longest: self.max_tokens,
            code_planes: false,
            counts_loads: self.counts_loads,
            unrolls: capability.straight,
            matrices: choices::multiplies_matrices(&self.shape, capability),
            unpacked_tiles: 0,
            spread_partials: 0,
            element: self.element,
            strided_rows: self.strided_rows,
            query_rows: self.query_rows,
            split_workgroups: self.split_workgroups,
            direct_wanted: self.direct_rows,
            direct_rows: 0,
            merge_parts: choices::most_merge_parts(self.shape.head_dim, capability),
            sequences,
            pages: 0,
            arrangements: Vec::new(),
            arranged: Vec::new(),
            shape: self.shape,
            bit_plan,
            protection: self.protection,
        };
        // Groups heads that are stored alike, before it is known how many of them a binding holds.
        plan.arrange(|slab| Ok(slab.count()))?;
        plan.set_alignment(self.alignment, self.keeps_planes)?;
        plan.check_planes()?;
        plan.check_soft_cap()?;
        plan.check_wide_head()?;
        plan.fit_workgroup_memory(capability);
        plan.direct_rows = if plan.attends_directly(capability) { plan.direct_wanted.min(plan.query_rows) } else { 0 };
        plan.pages = match self.pages {
            Pages::Of(capacity) => plan.pages_for(capacity)?,
            Pages::Count { pages, .. } => page_count(pages.into())?,
        };
        plan.unpacked_tiles = self.unpacked_tiles.unwrap_or_else(|| plan.fitting_tiles(capability));
        plan.spread_partials = plan.fitting_partials(capability);
        let (pages, together) = (plan.pages, plan.group_heads());
        plan.arrange(|slab| heads_of_a_slab(slab, pages, together, capability))?;
        plan.check(capability)?;
        Ok(plan)
    }

    /// Checks what the codec learned against codec and shape.
    fn check_learned(&self, format: &Format) -> Result<()> {
        let (shape, codec) = (&self.shape, format.codec());
        match self.learned.as_deref() {
            None if codec == Codec::RotateKv => {
                let wanted = "given by PlanBuilder::learned, as rotate-kv needs one";
                Err(Error::mismatch(Thing::ChannelOrder, "presence", wanted, "none"))
            }
            None => Ok(()),
            Some(Learned::ChannelOrder(order)) => {
                if codec != Codec::RotateKv {
                    return Err(Error::mismatch(Thing::ChannelOrder, "codec", Codec::RotateKv, codec));
                }
                origin::expect_shape(Thing::ChannelOrder, shape, [order.layers(), order.kv_heads(), order.head_dim()])?;
                let wanted = format.heads_per_group(shape.kv_heads);
                if order.heads_per_group() != wanted {
                    return Err(Error::mismatch(Thing::ChannelOrder, "heads_per_group", wanted, order.heads_per_group()));
                }
                Ok(())
            }
            Some(Learned::Means(means)) => {
                if codec != Codec::Centred {
                    return Err(Error::mismatch(Thing::Means, "codec", Codec::Centred, codec));
                }
                means.expect_shape(shape)
            }
        }
    }
}

impl Plan {
    /// Stores codes in planes where an alignment needs them, or where they must stay there.
    fn set_alignment(&mut self, alignment: Alignment, keeps_planes: bool) -> Result<()> {
        alignment.check()?;
        self.code_planes = (keeps_planes || alignment != Alignment::EVERYTHING) && self.format().codec() != Codec::AlignedF16;
        if self.code_planes {
            self.check_code_planes()?;
        }
        self.align(alignment)
    }

    /// Makes readings fit into workgroup memory, of which they take some for every query head:
    /// where that is short (to restore keys, or for heads of 512), fewer heads share a reading, and
    /// where that is not enough, keys are restored in the way that takes least.
    fn fit_workgroup_memory(&mut self, capability: &Capability) {
        let fits = |plan: &Self| plan.reading_bytes().iter().all(|(_, bytes)| *bytes <= capability.workgroup_bytes);
        let most = self.heads;
        for straight in [true, false] {
            self.straight &= straight || !self.restores();
            self.heads = most;
            while !fits(self) && self.heads > 1 {
                self.heads /= 2;
            }
            if fits(self) || !self.restores() {
                return;
            }
        }
    }

    /// Returns how many pages a capacity comes to.
    fn pages_for(&self, capacity: Capacity) -> Result<u32> {
        let pages = match capacity {
            Capacity::Tokens { sequences, tokens } => {
                if tokens == 0 {
                    return argument("tokens", "1 or more", 0);
                }
                u64::from(sequences) * u64::from(self.packed(tokens).div_ceil(PAGE_TOKENS)).max(1)
            }
            Capacity::Bytes { bytes, .. } => {
                let page = self.page_bytes();
                let protected = self.protected_bytes().saturating_mul(u64::from(self.shape.layers));
                let need = protected.saturating_add(page);
                if bytes < need {
                    return Err(Error::Capacity { reason: "the bytes of the f16 rows of all sequences and one page", need, have: bytes });
                }
                (bytes - protected) / page
            }
        };
        page_count(pages)
    }
}

/// Refuses more pages than there can be: positions and page numbers are 32-bit on the GPU.
fn page_count(pages: u64) -> Result<u32> {
    let limit = Error::Limit { what: "page number", reason: "the capacity's pages", need: pages, have: 1 << 24 };
    u32::try_from(pages).ok().filter(|pages| *pages <= 1 << 24).ok_or(limit)
}
