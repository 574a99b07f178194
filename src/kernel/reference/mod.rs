//! Plain CPU versions of the kernels, one function each under the kernel's name: slow, in the
//! shader's shape.
//!
//! A twin takes the parameters, the [`Constants`] (the shader's overrides) and one slice for each
//! of the shader's bindings, in their order, and runs all workgroups. Where the shader's parameters
//! do not hold the number of workgroups, the twin takes it after the constants. All arithmetic is
//! f32 in the shader's order of operations, so that a kernel and its twin differ by what a compiler
//! may do (contract a product and a sum, approximate a division or `exp2`) and by nothing else;
//! integers agree exactly. The twins of the shader's parts are modules here: [`half`], [`turn`],
//! [`hadamard`], [`centre`], [`group`], [`fit`], [`scales`], [`cached`], [`positions`], [`cap`],
//! [`grouped`], [`planes`], [`code_planes`], [`trellis`].
//!
//! The functions in f64 ([`rotate_exact`], [`rotate_group_exact`], [`turn_exact`],
//! [`attention_exact`], [`log_sums_exact`]) are what the kernels approximate: they show which error
//! is honest.

pub use crate::format::codes::{aligned, bfloat, code_planes, half, planes};

pub mod cached;
pub mod cap;
pub mod centre;
pub mod factors;
pub mod fit;
pub mod group;
pub mod grouped;
pub mod hadamard;
pub mod positions;
pub mod scales;
pub mod trellis;
pub mod turn;

mod align_plan;
mod align_scores;
mod align_values;
mod append;
mod append_block;
mod append_reordered;
mod attend_direct;
mod attend_matrices;
mod attend_merge;
mod attend_prefill;
mod attend_rows;
mod attend_split;
mod dequantize;
mod elect;
mod exact;
mod gram;
mod measure;
mod position;
mod protect;
mod query;
mod rotate;
mod unpack;

pub use crate::format::hadamard::{rotate_exact, rotate_group_exact};
pub use align_plan::align_plan;
pub use align_scores::align_scores;
pub use align_values::align_values;
pub use append::append;
pub use append_block::append_block;
pub use append_reordered::append_reordered;
pub use attend_direct::attend_direct;
pub use attend_matrices::attend_matrices;
pub use attend_merge::attend_merge;
pub use attend_prefill::attend_prefill;
pub use attend_rows::attend_rows;
pub use attend_split::attend_split;
pub use dequantize::dequantize;
pub use elect::elect;
pub use exact::{Scores, attention_exact, attention_exact_with, log_sums_exact, log_sums_exact_with, turn_exact};
pub use gram::gram;
pub use measure::measure;
pub use position::position;
pub use protect::protect;
pub use query::query;
pub use rotate::rotate;
pub use unpack::unpack;

use crate::format::{Element, Scales};
use crate::gpu::Strides;
use crate::kernel::variants_of;
use crate::plan::{Plan, Slab};
use std::collections::HashMap;

/// The numbers that the shaders' overrides hold, under the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Constants {
    /// Channels of a head.
    pub head_dim: u32,
    /// Order of Hadamard's outer factor.
    pub hadamard_outer: u32,
    /// Order of Hadamard's inner factor.
    pub hadamard_inner: u32,
    /// `1 / sqrt(head_dim)`.
    pub hadamard_scale: f32,
    /// Whether `append` packs keys, too.
    pub keys: bool,
    /// Whether the codec rotates every head's keys after RoPE.
    pub rotate_keys: bool,
    /// Whether it rotates every head's values.
    pub rotate_values: bool,
    /// Whether the codec is Centred, which takes means off and weights keys.
    pub centred: bool,
    /// Quads of channels that carry what the mean of the keys adds to a score; 0 where it adds
    /// nothing.
    pub position_quads: u32,
    /// Entries of the query codes before those for positions.
    pub positions_at: u32,
    /// In `turns`: the turn by 63.5 positions, and after it the tables of `position`.
    pub position_centre: u32,
    /// First channel that has a mean and does not turn; `head_dim` where there is none.
    pub still: u32,
    /// Numbers from one row of `query_rows` to the next.
    pub query_row: u32,
    /// vec4s of `turns` before those that `attend_rows` takes by lane, where means turn.
    pub row_turns: u32,
    /// First pairs of RoPE, which turn too fast for a short polynomial: the query codes have their
    /// factors.
    pub position_waves: u32,
    /// Pages that a sequence can have, where something turns.
    pub position_pages: u32,
    /// Pages of a pass.
    pub position_places: u32,
    /// Whether keys are stored before RoPE, rotated over a group of heads, as RotateKV does.
    pub restore: bool,
    /// KV heads that are rotated together.
    pub group_heads: u32,
    /// `1 / sqrt(group_heads)`.
    pub group_scale: f32,
    /// Groups of a token's whole key row that share a scale.
    pub row_groups: u32,
    /// 0 none, 1 split halves, 2 interleaved pairs.
    pub rope: u32,
    /// Pairs of channels that turn.
    pub rope_pairs: u32,
    /// Whether the caller's keys and queries come turned.
    pub turned: bool,
    /// The type of the caller's rows.
    pub element: Element,
    /// Where the rows of keys lie, which shaders for rows with strides read from `layouts`; dense
    /// where it is none, like the three that follow.
    pub keys_at: Option<Strides>,
    /// Where those of values lie.
    pub values_at: Option<Strides>,
    /// Where those of queries lie.
    pub queries_at: Option<Strides>,
    /// Where those of the output lie.
    pub output_at: Option<Strides>,
    /// `log2(e)` times the plan's score scale.
    pub scale: f32,
    /// What scores are capped to, in log2 units; 0 for none.
    pub soft_cap: f32,
    /// `-2 log2(e) / soft_cap`.
    pub cap_slope: f32,
    /// Whether query heads have sink logits.
    pub sink_logits: bool,
    /// First sink logit in the marks.
    pub logits_at: u32,
    /// Bits of a key's code: 2, 3, 4, 8, or 16 for f16.
    pub key_bits: u32,
    /// Bits of a value's code.
    pub value_bits: u32,
    /// Whether key codes are those of a trellis.
    pub key_trellis: bool,
    /// Whether value codes are.
    pub value_trellis: bool,
    /// Share of a group's range that key codes span.
    pub key_clip: f32,
    /// Share of a group's range that value codes span.
    pub value_clip: f32,
    /// Channels that share a key scale.
    pub key_group: u32,
    /// Channels that share a value scale.
    pub value_group: u32,
    /// How scales and zeros are stored: the parts `scales/half` and `group/half`, or `scales/byte`
    /// and `group/byte`.
    pub scales: Scales,
    /// vec4s from a page's start to its key scales.
    pub key_scales: u32,
    /// vec4s from a page's start to its value codes.
    pub values: u32,
    /// vec4s from a page's start to its value scales.
    pub value_scales: u32,
    /// vec4s of one head's page.
    pub page_vecs: u32,
    /// Whether a half is stored in planes.
    pub planes: bool,
    /// Whether an integer code is stored in planes.
    pub code_planes: bool,
    /// vec4s from a page's start to its channels' largest exponents.
    pub maxima: u32,
    /// Tokens of a block of `append`.
    pub block: u32,
    /// Entries of `scores` before the sums of the items; 0 for codecs without planes, like the four
    /// that follow.
    pub score_sums: u32,
    /// Entries of `scores` before those of four tokens' values together.
    pub score_quads: u32,
    /// vec4s of `partials` before the ledgers.
    pub ledgers: u32,
    /// The inverse of `scale`.
    pub unscale: f32,
    /// Whether loads of planes are counted.
    pub count: bool,
    /// f16 rows of sinks.
    pub sinks: u32,
    /// First tokens that are not packed.
    pub unpacked: u32,
    /// Whether the sinks are elected.
    pub massive: bool,
    /// First elected sink in the marks.
    pub elected_at: u32,
    /// Whether it is the second variant of `elect`, which merges blocks. [`Constants::of`] sets it
    /// where sinks are elected.
    pub merge: bool,
    /// f16 rows of the window, used in turn.
    pub ring: u32,
    /// Query heads that share one reading of the cache.
    pub heads: u32,
    /// Blocks of `heads` query heads a KV head.
    pub blocks: u32,
    /// Entries of the query codes a block of heads.
    pub query_stride: u32,
    /// Words of one token's key codes in the low plane.
    pub key_steps: u32,
    /// Words of one channel's value codes in the low plane.
    pub value_steps: u32,
    /// Groups a head that values are weighed by; 1 for f16.
    pub value_groups: u32,
    /// Whether `measure` adds squares.
    pub squares: bool,
    /// Tokens that a row of a prefill sees, itself the last; all where it is `u32::MAX`.
    pub sliding_window: u32,
    /// Tokens of a chunk that a row of a prefill sees no further back than the first of; 0 for
    /// none.
    pub chunk: u32,
    /// Query heads a KV head.
    pub share: u32,
    /// Runs of `head_dim` invocations of `attend_merge` that share a row's items, for rows of many
    /// items. [`merge_parts_for`](Plan::merge_parts_for) returns how many a pass has.
    pub parts: u32,
    /// Whether `attend_merge` reads partial results of `attend_direct`; [`Constants::of`] says no.
    pub direct: bool,
}

impl Constants {
    /// Returns the constants of the variants that work on one slab of a plan, for rows of the type
    /// that [`PlanBuilder::element`](crate::PlanBuilder::element) set.
    pub fn of(plan: &Plan, slab: &Slab) -> Self {
        let mut numbers: HashMap<&str, f64> = HashMap::new();
        for (name, x) in variants_of(plan, slab).iter().flat_map(crate::kernel::Variant::constants) {
            // Only attend_merge has several variants: more parts are for rows of more items.
            numbers.entry(name).and_modify(|n| *n = n.max(x)).or_insert(x);
        }
        let number = |name| {
            // Planes are attended to without attend_split, the only kernel with some of these
            // overrides.
            debug_assert!(plan.aligns() || numbers.contains_key(name), "no variant has an override {name}");
            numbers.get(name).copied().unwrap_or_default()
        };
        let planes = |name| if plan.aligns() { number(name) } else { 0.0 };
        let whole = |name| number(name) as u32;
        let float = |name| number(name) as f32;
        let flag = |name| number(name) != 0.0;
        Self {
            head_dim: whole("HEAD_DIM"),
            hadamard_outer: whole("HADAMARD_OUTER"),
            hadamard_inner: whole("HADAMARD_INNER"),
            hadamard_scale: float("HADAMARD_SCALE"),
            keys: flag("KEYS"),
            rotate_keys: flag("ROTATE_KEYS"),
            rotate_values: flag("ROTATE_VALUES"),
            centred: flag("CENTRED"),
            position_quads: whole("POSITION_QUADS"),
            positions_at: whole("POSITIONS_AT"),
            position_centre: whole("POSITION_CENTRE"),
            still: whole("STILL"),
            query_row: whole("QUERY_ROW"),
            row_turns: plan.row_turns(),
            position_waves: whole("POSITION_WAVES"),
            position_places: plan.pages(),
            position_pages: if plan.position_quads() == 0 { 0 } else { number("POSITION_PAGES") as u32 },
            restore: flag("RESTORE"),
            group_heads: whole("GROUP_HEADS"),
            group_scale: float("GROUP_SCALE"),
            row_groups: whole("ROW_GROUPS"),
            rope: whole("ROPE"),
            rope_pairs: whole("ROPE_PAIRS"),
            turned: flag("TURNED"),
            element: plan.element(),
            keys_at: None,
            values_at: None,
            queries_at: None,
            output_at: None,
            scale: float("SCALE"),
            soft_cap: float("SOFT_CAP"),
            cap_slope: float("CAP_SLOPE"),
            sink_logits: flag("SINK_LOGITS"),
            logits_at: whole("LOGITS_AT"),
            key_bits: whole("KEY_BITS"),
            value_bits: whole("VALUE_BITS"),
            key_trellis: flag("KEY_TRELLIS"),
            value_trellis: flag("VALUE_TRELLIS"),
            key_clip: float("KEY_CLIP"),
            value_clip: float("VALUE_CLIP"),
            key_group: whole("KEY_GROUP"),
            value_group: whole("VALUE_GROUP"),
            scales: plan.format().scales(),
            key_scales: whole("KEY_SCALES"),
            values: whole("VALUES"),
            value_scales: whole("VALUE_SCALES"),
            page_vecs: whole("PAGE_VECS"),
            planes: flag("PLANES"),
            code_planes: flag("CODE_PLANES"),
            maxima: slab.layout().maxima,
            block: plan.append_block(),
            score_sums: planes("SCORE_SUMS") as u32,
            score_quads: planes("SCORE_QUADS") as u32,
            ledgers: planes("LEDGERS") as u32,
            unscale: planes("UNSCALE") as f32,
            count: planes("COUNT") != 0.0,
            sinks: whole("SINKS"),
            unpacked: whole("UNPACKED"),
            massive: flag("MASSIVE"),
            elected_at: whole("ELECTED_AT"),
            merge: plan.elects(),
            ring: whole("RING"),
            heads: whole("HEADS"),
            blocks: whole("BLOCKS"),
            query_stride: whole("QUERY_STRIDE"),
            key_steps: whole("KEY_STEPS"),
            value_steps: whole("VALUE_STEPS"),
            value_groups: whole("VALUE_GROUPS"),
            squares: false,
            sliding_window: whole("SLIDING_WINDOW"),
            chunk: whole("CHUNK"),
            share: whole("SHARE"),
            parts: whole("PARTS"),
            direct: false,
        }
    }

    /// Returns the constants that `rotate` needs, for a head dimension; all others are zero.
    pub fn rotation(head_dim: u32) -> Self {
        let (hadamard_outer, hadamard_inner) = crate::format::hadamard::factors(head_dim);
        Self { head_dim, hadamard_outer, hadamard_inner, hadamard_scale: (1.0 / f64::from(head_dim).sqrt()) as f32, ..Self::default() }
    }

    /// Returns number `i` of the caller's rows, bit for bit as they lie in memory. Shader:
    /// `shaders/part/shared/element.wgsl`.
    pub(crate) fn input(&self, rows: &[u32], i: u32) -> f32 {
        let i = i as usize;
        match self.element {
            Element::F32 => f32::from_bits(rows[i]),
            Element::F16 => half::unpack(rows[i / 2])[i % 2],
            Element::Bf16 => bfloat::unpack(rows[i / 2])[i % 2],
        }
    }

    /// Returns the first number of the row of a head. Shaders: `shaders/part/layout/`.
    pub(crate) fn row(&self, rows_at: Option<Strides>, row: u32, heads: u32, head: u32) -> u32 {
        rows_at.map_or((row * heads + head) * self.head_dim, |strides| strides.row(row, head))
    }
}

/// Returns cosine and sine of every RoPE pair at positions 0 to 127, then at every multiple of 128
/// that a sequence can reach: `[128 low + high positions, pairs]`, the binding `turns`.
pub fn turns(plan: &Plan) -> Vec<[f32; 2]> {
    crate::plan::tables::turns(plan)
}

/// Returns whether a number is neither infinite nor NaN. Shader: `shaders/part/shared/finite.wgsl`.
pub(crate) fn finite(x: f32) -> bool {
    x.to_bits() & 0x7f80_0000 != 0x7f80_0000
}

/// Returns whether a number can be part of a row that is stored: finite, and below 2^110, so that
/// sums and weights leave it so.
pub(crate) fn storable(x: f32) -> bool {
    x.abs() < 2_f32.powi(110)
}

/// Lists a row that could not be stored as it came: `what` is a sum of 1 for a key that is not
/// finite, 2 for such a value, 4 for a key beyond what is stored, 8 for such a value.
pub(crate) fn report(status: &mut [u32], layer: u32, slot: u32, token: u32, head: u32, what: u32) {
    let n = status[0];
    status[0] += 1;
    let at = 4 + 4 * n as usize;
    if at + 3 < status.len() {
        status[at..at + 4].copy_from_slice(&[layer, slot, token, head * 16 + what]);
    }
}
