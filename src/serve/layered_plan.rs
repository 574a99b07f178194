//! The plan of a cache whose layers differ: a plan for each kind of layer, and room for all of them
//! together.

use super::layer_map::{LayerMap, Layers};
use crate::error::{Error, Result};
use crate::format::{PAGE_TOKENS, tensors};
use crate::gpu::Capability;
use crate::plan::{Capacity, Cost, Plan, PlanBuilder, Span};
use std::fmt;
use std::sync::Arc;

/// Tokens that a step brings a sequence at most, unless the builder sets another number.
const CHUNK: u32 = 512;

/// Tokens that a sequence can reach at most.
const MOST_TOKENS: u64 = 1 << 30;

/// Collects what a [`LayeredPlan`] is made from; [`LayeredPlanBuilder::build`] checks all of it.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct LayeredPlanBuilder {
    groups: Vec<(Vec<u32>, PlanBuilder)>,
    shared: Vec<(u32, u32)>,
    capacity: Option<Capacity>,
    max_tokens: Option<u32>,
    chunk: Option<u32>,
    keep: u32,
}

/// The plan of a [`LayeredCache`](super::LayeredCache): for models whose layers are not all alike.
/// Layers that are form a group, which has a [`Plan`] of its own: with its RoPE, sliding window,
/// head dimension, KV heads, codec and bits. All groups hold the same sequences.
///
/// A group that has a [sliding window](PlanBuilder::sliding_window) or
/// [chunked attention](PlanBuilder::chunked_attention) slides: it gets the pages that its queries
/// see, and no more however long the sequences are. The [capacity](LayeredPlanBuilder::capacity)
/// decides how many pages the others have.
///
/// ```
/// use wgkv::layers::LayeredPlan;
/// use wgkv::{Bits, Capability, Capacity, Codec, Format, Plan, Rope, Shape};
///
/// // Gemma 3 with 26 layers: every sixth sees everything, the others 512 tokens, by another theta.
/// let format = Format::new(Codec::Hadamard, Bits::Four, Bits::Four, 128);
/// let shape = |layers, theta| Shape { layers, query_heads: 4, kv_heads: 1, head_dim: 256, rope: Rope::new(theta, 256) };
/// let plan = LayeredPlan::builder()
///     .group((0..26).filter(|layer| layer % 6 != 5), Plan::builder(shape(22, 10_000.0), format).sliding_window(512))
///     .group((0..26).filter(|layer| layer % 6 == 5), Plan::builder(shape(4, 1_000_000.0), format))
///     .capacity(Capacity::tokens(2, 32_768))
///     .build(&Capability::webgpu_default())?;
/// println!("{plan}");
/// # assert_eq!((plan.layers(), plan.groups()[0].pages(), plan.groups()[1].pages()), (26, 14, 510));
/// # Ok::<(), wgkv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LayeredPlan {
    plans: Vec<Plan>,
    map: Arc<LayerMap>,
    chunk: u32,
    keep: u32,
}

impl LayeredPlanBuilder {
    /// Adds a group: layers of the model that are alike, by their numbers there, counted from 0,
    /// and what to make their plan from, whose shape has as many layers. The first of these layers
    /// is layer 0 of that plan, of its [`BitPlan`](crate::bits::BitPlan) and of what its codec
    /// learned, and so on. Capacity and `max_tokens` of the builder do not matter.
    pub fn group(mut self, layers: impl IntoIterator<Item = u32>, plan: PlanBuilder) -> Self {
        self.groups.push((layers.into_iter().collect(), plan));
        self
    }

    /// Adds a layer that has queries alone and attends to the keys and values of an earlier one,
    /// `of`, which is in a group (Gemma 3n). Its queries are as that layer's in number, RoPE, scale,
    /// cap and sink logits, and it takes no memory.
    pub fn share(mut self, layer: u32, of: u32) -> Self {
        self.shared.push((layer, of));
        self
    }

    /// Sets how much the cache may hold. The default is one sequence of 4096 tokens. With
    /// [`Capacity::bytes`] all groups take their pages from the same bytes: first those that slide
    /// get theirs, then the others each the same number of pages, so that they are full together.
    pub fn capacity(mut self, capacity: Capacity) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// Sets the length that a sequence can reach, as [`PlanBuilder::max_tokens`], in all groups.
    /// The default is what the groups that do not slide can hold. It must be given where all
    /// groups slide and the capacity is in bytes.
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Sets how many tokens a step may bring a sequence where a group slides. The default is 512.
    /// Layers that slide hold this many tokens beside their window, since the first query of a step
    /// still sees all of the window before it.
    pub fn chunk(mut self, tokens: u32) -> Self {
        self.chunk = Some(tokens);
        self
    }

    /// Sets how many tokens layers that slide keep beside their window. A sequence can always be cut
    /// back to where its latest step began, and by this many tokens more, counted from the greatest
    /// length at which any step began. The default is 0: enough for drafts
    /// that one step brings and the next call cuts back.
    pub fn keep(mut self, tokens: u32) -> Self {
        self.keep = tokens;
        self
    }

    /// Makes the plan for a device.
    ///
    /// # Errors
    /// [`Error::Mismatch`] without groups, for a layer that is in none or in several, for a plan of
    /// another number of layers than its group has, for a layer that shares another than an
    /// earlier one of a group, and for a `chunk` of 0; [`Error::Capacity`] for bytes that do not
    /// hold a page of every group. Those of [`PlanBuilder::build`] for each group, with its layers
    /// where an argument is at fault.
    pub fn build(self, capability: &Capability) -> Result<LayeredPlan> {
        let (layers, builders): (Vec<_>, Vec<_>) = self.groups.into_iter().unzip();
        let map = LayerMap::new(layers, &self.shared)?;
        let capacity = self.capacity.unwrap_or(Capacity::tokens(1, 4096));
        let (chunk, sequences) = (self.chunk.unwrap_or(CHUNK), capacity.sequences());
        if chunk == 0 {
            return Err(Error::argument("chunk", "1 token or more", 0));
        }
        // A plan of the least capacity says what the others are made of.
        let make = |group: usize, builder: PlanBuilder| builder.build(capability).map_err(|error| of_layers(&map.groups[group], error));
        let mut least = Vec::new();
        for (group, builder) in builders.iter().enumerate() {
            let plan = make(group, builder.clone().capacity(Capacity::tokens(sequences, 1)))?;
            let (wanted, had) = (map.groups[group].len(), plan.shape().layers);
            if wanted != had as usize {
                let wanted = format!("{wanted}, for {}", Layers(&map.groups[group]));
                return Err(Error::argument(format!("layers of the shape of group {group}"), wanted, had));
            }
            least.push(plan);
        }
        let sizes = Sizes { capacity, chunk, keep: self.keep, max_tokens: self.max_tokens };
        let (pages, max_tokens) = sizes.of(&least)?;
        let plans = builders.into_iter().zip(pages).enumerate();
        let plans = plans.map(|(group, (builder, pages))| make(group, builder.sized(sequences, pages, max_tokens))).collect::<Result<_>>()?;
        Ok(LayeredPlan { plans, map: Arc::new(map), chunk, keep: self.keep })
    }
}

/// Returns an error with the layers whose plan was refused, where it has a place for them.
pub(super) fn of_layers(layers: &[u32], error: Error) -> Error {
    match error {
        Error::Mismatch { of, name, wanted, had } => Error::Mismatch { of, name: format!("{name} of {}", Layers(layers)).into(), wanted, had },
        error => error,
    }
}

/// What decides how many pages each group has.
struct Sizes {
    capacity: Capacity,
    chunk: u32,
    keep: u32,
    max_tokens: Option<u32>,
}

impl Sizes {
    /// Returns the pages of each group, and the length that a sequence can reach.
    fn of(&self, plans: &[Plan]) -> Result<(Vec<u32>, u32)> {
        let sequences = u64::from(self.capacity.sequences());
        let window = |plan: &Plan, longest: Option<u32>| sequences * u64::from(window_pages(plan, self.chunk, self.keep, longest));
        let fixed = sum(plans.iter().filter(|plan| slides(plan)).map(|plan| plan.page_bytes().saturating_mul(window(plan, self.max_tokens))));
        // How many tokens the sequences have room for, by a plan that does not slide.
        let held = |plan: &Plan, pages: u64| pages * u64::from(PAGE_TOKENS) + u64::from(plan.ring().saturating_sub(1));
        let whole: Box<dyn Fn(&Plan) -> u64> = match self.capacity {
            Capacity::Tokens { tokens: 0, .. } => return Err(Error::argument("tokens", "1 or more", 0)),
            Capacity::Tokens { tokens, .. } => Box::new(move |plan| sequences * u64::from(plan.packed(tokens).div_ceil(PAGE_TOKENS)).max(1)),
            Capacity::Bytes { bytes, .. } => {
                let rows = plans.iter().map(|plan| plan.protected_bytes().saturating_mul(plan.shape().layers.into()));
                let first = sum(rows.chain([fixed]));
                let page = sum(plans.iter().filter(|plan| !slides(plan)).map(Plan::page_bytes));
                let need = first.saturating_add(page);
                if bytes < need {
                    let reason = "the bytes of the f16 rows of all sequences, of the pages of layers that slide, and of one page of the others";
                    return Err(Error::Capacity { reason, need, have: bytes });
                }
                let pages = (bytes - first).checked_div(page).unwrap_or(0);
                Box::new(move |_| pages)
            }
        };
        let longest = plans.iter().filter(|plan| !slides(plan)).map(|plan| held(plan, whole(plan))).min();
        let longest = match (self.max_tokens, longest, self.capacity) {
            (Some(tokens), ..) => tokens,
            (None, Some(tokens), _) => tokens.min(MOST_TOKENS) as u32,
            (None, None, Capacity::Tokens { sequences, tokens }) => (u64::from(sequences) * u64::from(tokens)).min(MOST_TOKENS) as u32,
            (None, None, Capacity::Bytes { .. }) => {
                return Err(Error::argument("max_tokens", "given where all layers slide and the capacity is in bytes", "not given"));
            }
        };
        let pages = plans.iter().map(|plan| if slides(plan) { window(plan, Some(longest)) } else { whole(plan) });
        Ok((pages.map(|pages| u32::try_from(pages).unwrap_or(u32::MAX)).collect(), longest))
    }
}

/// Returns a sum of bytes: the most that u64 has where it is more, which no capacity grants.
fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

/// Returns whether a plan's queries do not see everything.
fn slides(plan: &Plan) -> bool {
    plan.span() != Span::All
}

/// Returns how many pages a sequence holds at most where it slides before every step of at most
/// `chunk` tokens; no more than one of `longest` tokens that does not slide.
fn window_pages(plan: &Plan, chunk: u32, keep: u32, longest: Option<u32>) -> u32 {
    let all = longest.map_or(u32::MAX, |tokens| plan.packed(tokens).div_ceil(PAGE_TOKENS).max(1));
    // Tokens before a step's first that are held at most: those that queries see from there, and
    // those that may be cut off.
    let (kept, aligned) = match plan.span() {
        Span::All => (u32::MAX, false),
        Span::Sliding(tokens) => ((tokens - 1).saturating_add(keep), false),
        // Chunks of whole pages begin with a page; where f16 rows are held back, they do not end so.
        Span::Chunked(tokens) => ((tokens - 1).saturating_add(keep), tokens.is_multiple_of(PAGE_TOKENS) && plan.ring() == 0),
    };
    // Every place in a page that the first of them can have, far from a sequence's first tokens:
    // later ones are like these, and earlier ones hold less.
    let places = if aligned { 1 } else { PAGE_TOKENS };
    let first = kept.checked_add(plan.ring()).and_then(|tokens| (tokens - kept).checked_next_multiple_of(PAGE_TOKENS));
    let held = |first: u32| {
        let tokens = first.checked_add(kept)?;
        let slid = first.min(plan.packed(tokens)) / PAGE_TOKENS;
        Some(plan.packed(tokens.checked_add(chunk)?).div_ceil(PAGE_TOKENS) - slid)
    };
    let most = first.and_then(|first| (first..first + places).map(held).collect::<Option<Vec<_>>>()).and_then(|held| held.into_iter().max());
    most.unwrap_or(u32::MAX).min(all).max(1)
}

impl LayeredPlan {
    /// Begins a plan.
    pub fn builder() -> LayeredPlanBuilder {
        LayeredPlanBuilder::default()
    }

    /// Returns how many layers the model has, those that share another's keys and values among
    /// them.
    pub fn layers(&self) -> u32 {
        self.map.count()
    }

    /// Returns the plan of each group, in the order in which they were added.
    pub fn groups(&self) -> &[Plan] {
        &self.plans
    }

    /// Returns the model's numbers of a group's layers, in their order in its plan; nothing for a
    /// group that does not exist.
    pub fn layers_of(&self, group: usize) -> &[u32] {
        self.map.groups.get(group).map_or(&[], Vec::as_slice)
    }

    /// Returns the group that a layer's keys and values are in, and its number in that group's
    /// plan: for a layer that shares another's, the other's.
    ///
    /// # Errors
    /// [`Error::Layer`].
    pub fn place_of(&self, layer: u32) -> Result<(usize, u32)> {
        self.map.find(layer).map(|place| (place.group, place.index))
    }

    /// Returns the plan that a layer's keys and values are stored by.
    ///
    /// # Errors
    /// [`Error::Layer`].
    pub fn plan_of(&self, layer: u32) -> Result<&Plan> {
        self.map.find(layer).map(|place| &self.plans[place.group])
    }

    /// Returns the layer whose keys and values a layer attends to, if it has none of its own.
    ///
    /// # Errors
    /// [`Error::Layer`].
    pub fn shares(&self, layer: u32) -> Result<Option<u32>> {
        self.map.find(layer).map(|place| place.shares)
    }

    /// Returns how many sequences can be live at once.
    pub fn sequences(&self) -> u32 {
        self.plans.iter().map(Plan::sequences).min().unwrap_or(0)
    }

    /// Returns how many tokens one sequence can reach.
    pub fn max_tokens(&self) -> u64 {
        self.plans.iter().map(Plan::max_tokens).min().unwrap_or(0)
    }

    /// Returns how many tokens a step may bring a sequence; none if no group slides, so that any
    /// number may come.
    pub fn chunk(&self) -> Option<u32> {
        self.plans.iter().any(slides).then_some(self.chunk)
    }

    /// Returns how many pages a sequence holds in a group at most, however long it is; none for a
    /// group that does not slide or does not exist.
    pub fn most_pages(&self, group: usize) -> Option<u32> {
        let plan = self.plans.get(group).filter(|plan| slides(plan))?;
        Some(plan.pages() / plan.sequences())
    }

    /// Returns what the cache will cost, over all groups.
    pub fn cost(&self) -> Cost {
        Cost::sum(self.plans.iter().map(Plan::cost))
    }

    /// Returns the SHA-256, in hex, of everything that decides how tokens are stored: the groups'
    /// [fingerprints](Plan::fingerprint), their layers, and how many tokens they see.
    pub fn fingerprint(&self) -> String {
        let mut text = "wgkv-layered-plan 1".to_owned();
        for (plan, layers) in self.plans.iter().zip(&self.map.groups) {
            text.push_str(&format!("; {} of {layers:?}, seen {:?}", plan.fingerprint(), plan.span()));
        }
        self.map.shared().for_each(|(layer, of)| text.push_str(&format!("; {layer} shares {of}")));
        tensors::hash([text.as_bytes()])
    }

    /// Returns how many tokens layers that slide keep beside those that queries see.
    pub(super) fn keep(&self) -> u32 {
        self.keep
    }

    /// Returns how many of a sequence's `tokens` tokens a group keeps as it slides; none for one that
    /// does not.
    pub(super) fn kept(&self, group: usize, tokens: u32) -> Option<u32> {
        let plan = self.plans.get(group).filter(|plan| slides(plan))?;
        Some(tokens - plan.span().first(tokens.saturating_sub(self.keep)))
    }

    /// Returns which layer is where.
    pub(super) fn map(&self) -> &Arc<LayerMap> {
        &self.map
    }
}

impl fmt::Display for LayeredPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.plans.len();
        writeln!(f, "{} layers in {count} group{}, sequences of {} tokens at most", self.layers(), if count == 1 { "" } else { "s" }, self.max_tokens())?;
        for (group, plan) in self.plans.iter().enumerate() {
            write!(f, "\n{}", Layers(self.layers_of(group)))?;
            write!(f, ": each query sees {}", plan.span())?;
            match self.most_pages(group) {
                Some(pages) => writeln!(f, "; {pages} pages a sequence, however long, for steps of {} tokens at most", self.chunk)?,
                None => writeln!(f)?,
            }
            writeln!(f, "{plan}")?;
        }
        for (layer, of) in self.map.shared() {
            writeln!(f, "\nlayer {layer}: attends to the keys and values of layer {of}")?;
        }
        let cost = self.cost();
        write!(f, "\nall groups: {} bytes, scratch {} bytes", cost.cache(), cost.scratch)
    }
}
