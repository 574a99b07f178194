//! Which planes of the packed keys, and then of the packed values, one query row has to read:
//! AlignedKV (2409.16546).
//!
//! Shader: `shaders/align_plan.wgsl`. Twin:
//! [`reference::align_plan`](crate::low_level::reference::align_plan).

use super::parts::{self, shared};
use super::{Binding, Kernel, STEP, Variant, flag};
pub use crate::plan::sizes::{PLAN_WORDS, SUM_ENTRIES};
use crate::plan::{Plan, Slab};

/// `AlignPlanParams` of `shaders/align_plan.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AlignPlanParams {
    /// First row's record in tables.
    pub rows_at: u32,
    /// KV heads whose pages lie in the slab.
    pub slab_heads: u32,
    /// Which they are, in tables.
    pub heads_at: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// 0 everything is read, 1 the published rule, 2 under a budget.
    pub criterion: u32,
    /// The budget: the bits of an f32.
    pub phi: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "align_plan",
    source: include_str!("../../shaders/align_plan.wgsl"),
    groups: &[
        &[("query_codes", Binding::Read), ("scores", Binding::Read), ("row_partials", Binding::Read), ("pages", Binding::Read), ("plans", Binding::Write)],
        STEP,
    ],
    params_bytes: size_of::<AlignPlanParams>(),
    zeroed: false,
};

/// Where it holds, by head, the largest score of the pages.
pub const PLAN_PEAK: u32 = 16;
/// The factor on a token's weight that gives what the level is found by.
pub const PLAN_FACTOR: u32 = 20;
/// The bound on the error of a score, in nats.
pub const PLAN_BOUND: u32 = 24;
/// The published rule's exponent.
pub const PLAN_BASE: u32 = 28;
/// How many channels have each level, and the threshold; of integer codes how many quads of
/// channels have each of four levels.
pub const PLAN_KEYS: u32 = 32;
/// The threshold of values is its fourth word.
pub const PLAN_VALUES: u32 = 36;
/// One over the sum of all weights, by head.
pub const PLAN_NORM: u32 = 40;
/// The largest exponents of values, a byte a channel.
pub const PLAN_MAXIMA: u32 = 48;
/// Of integer codes, by group and head: what the middles of unread bits add to the dot products.
pub const PLAN_FILLS: u32 = 48;
/// Of integer codes, by group and head: what a key's scale times it bounds the error of its score
/// by, in nats.
pub const PLAN_ERRORS: u32 = 80;

/// Returns the variant for a slab of a plan, for its keys or for its values.
pub fn variant(plan: &Plan, slab: &Slab, keys: bool) -> Variant {
    let head_dim = plan.shape().head_dim;
    let layout = slab.layout();
    let (codes, key, value) = (plan.aligns_codes(), slab.format().key().bits, slab.format().value().bits);
    let bits = if keys { key } else { value };
    Variant::new(
        &KERNEL,
        &[parts::HEADS.of(plan.heads_per_reading()), shared::LEVELS, parts::LEVELS.of(bits)],
        &[
            flag("FOR_KEYS", keys),
            ("HEAD_DIM", head_dim.into()),
            ("SHARE", plan.shape().share().into()),
            ("HEADS", plan.heads_per_reading().into()),
            ("BLOCKS", plan.blocks().into()),
            ("QUERY_STRIDE", plan.query_stride().into()),
            ("PAGE_VECS", layout.vecs.into()),
            ("VALUES", layout.values.into()),
            ("MAXIMA", layout.maxima.into()),
            ("WORDS", (head_dim / 2).into()),
            ("GATHERERS", (256 / (head_dim / 2)).into()),
            ("SAMPLERS", (256 / (head_dim / 4)).into()),
            flag("CODES", codes),
            ("KEY_BITS", key.get().into()),
            ("KEY_GROUPS", layout.key_groups.into()),
            ("KEY_GROUP_QUADS", (layout.key_group / 4).into()),
            ("SCORE_SUMS", plan.score_sums() as f64),
            ("WEIGHTS_AT", if codes { plan.score_quads() as f64 } else { 0.0 }),
            ("WEIGHTS", if codes { 32.0 } else { 128.0 }),
            ("UNSCALE", unscale(plan).into()),
        ],
    )
}

/// Returns the factor that takes the softmax's from a query.
fn unscale(plan: &Plan) -> f32 {
    (1.0 / plan.log2_scale()) as f32
}
