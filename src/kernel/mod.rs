//! The kernels: each has one file here, in `shaders/`, in
//! [`reference`](crate::low_level::reference) and in `tests/`, under the same name.
//!
//! A [`Kernel`] is data: its source, its bindings, the size of its parameters. A [`Variant`] is a
//! kernel with the parts and the constants that one plan needs; it is the key of a pipeline.

pub mod align_plan;
pub mod align_scores;
pub mod align_values;
pub mod append;
pub mod append_block;
pub mod append_reordered;
pub mod attend_direct;
pub mod attend_matrices;
pub mod attend_merge;
pub mod attend_prefill;
pub mod attend_rows;
pub mod attend_split;
pub mod dequantize;
pub mod elect;
pub mod gram;
pub mod measure;
pub mod position;
pub mod protect;
pub mod query;
pub mod rotate;
pub mod unpack;

mod parts;
mod prepare;
pub mod reference;
mod variants;

pub use variants::variants;
pub(crate) use variants::{packing_variant, variants_of};

use crate::format::{Codec, Element, RopeLayout, Scales};
pub use crate::gpu::{Binding, Bindings, Kernel, Variant};
use crate::gpu::{RowForm, Source};
use crate::plan::{Plan, Slab};
use parts::shared;

/// What each dispatch of a step reads: its parameters, of [`PARAMS_BYTES`] at most, and the step's
/// tables. One bind group a step.
pub(crate) const STEP: Bindings = &[("params", Binding::Dynamic), ("tables", Binding::Read)];

/// Bytes of a dispatch's parameters, as they are bound.
pub(crate) const PARAMS_BYTES: u64 = 32;

/// All kernels.
pub const ALL: [&Kernel; 21] = [
    &align_plan::KERNEL,
    &align_scores::KERNEL,
    &align_values::KERNEL,
    &append::KERNEL,
    &append_block::KERNEL,
    &append_reordered::KERNEL,
    &attend_direct::KERNEL,
    &attend_matrices::KERNEL,
    &attend_merge::KERNEL,
    &attend_prefill::KERNEL,
    &attend_rows::KERNEL,
    &attend_split::KERNEL,
    &dequantize::KERNEL,
    &elect::KERNEL,
    &gram::KERNEL,
    &measure::KERNEL,
    &position::KERNEL,
    &protect::KERNEL,
    &query::KERNEL,
    &rotate::KERNEL,
    &unpack::KERNEL,
];

type Constants = Vec<(&'static str, f64)>;

pub(crate) fn hadamard_constants(head_dim: u32) -> Constants {
    let (outer, inner) = crate::format::hadamard::factors(head_dim);
    vec![
        ("HEAD_DIM", head_dim.into()),
        ("HADAMARD_OUTER", outer.into()),
        ("HADAMARD_INNER", inner.into()),
        ("HADAMARD_SCALE", (1.0 / f64::from(head_dim).sqrt()) as f32 as f64),
    ]
}

/// Returns ROPE and ROPE_PAIRS.
pub(crate) fn rope_constants(plan: &Plan) -> Constants {
    let rope = &plan.shape().rope;
    let kind = match (rope.frequencies().is_empty(), rope.layout()) {
        (true, _) => 0,
        (false, RopeLayout::SplitHalves) => 1,
        (false, RopeLayout::Interleaved) => 2,
    };
    vec![("ROPE", kind.into()), ("ROPE_PAIRS", rope.frequencies().len() as f64)]
}

/// Returns TURNED.
pub(crate) fn turned(plan: &Plan) -> (&'static str, f64) {
    flag("TURNED", plan.turned_rows())
}

/// Returns where everything lies in a page of a slab.
pub(crate) fn page_constants(plan: &Plan, slab: &Slab) -> Constants {
    let layout = slab.layout();
    let mut constants = trellis_constants(slab);
    constants.extend([
        ("KEY_BITS", slab.format().key().bits.get().into()),
        ("VALUE_BITS", slab.format().value().bits.get().into()),
        ("KEY_GROUP", layout.key_group.into()),
        ("VALUE_GROUP", layout.value_group.into()),
        ("KEY_SCALES", layout.key_scales.into()),
        ("VALUES", layout.values.into()),
        ("VALUE_SCALES", layout.value_scales.into()),
        ("PAGE_VECS", layout.vecs.into()),
        flag("PLANES", plan.aligns() && !plan.aligns_codes()),
        flag("CODE_PLANES", plan.aligns_codes()),
        ("SINKS", plan.sinks().into()),
        ("RING", plan.ring().into()),
    ]);
    constants
}

/// Returns KEY_TRELLIS and VALUE_TRELLIS.
pub(crate) fn trellis_constants(slab: &Slab) -> Constants {
    vec![flag("KEY_TRELLIS", slab.format().key().is_trellis()), flag("VALUE_TRELLIS", slab.format().value().is_trellis())]
}

/// Returns what RotateKV's keys need: the rotation over a group of heads, and the groups of the
/// whole row.
pub(crate) fn group_constants(plan: &Plan, slab: &Slab) -> Constants {
    let heads = plan.group_heads();
    vec![("GROUP_HEADS", heads.into()), ("GROUP_SCALE", (1.0 / f64::from(heads).sqrt()) as f32 as f64), ("ROW_GROUPS", slab.layout().row_groups.max(1).into())]
}

/// Returns MASSIVE and ELECTED_AT.
pub(crate) fn elected_constants(plan: &Plan) -> Constants {
    vec![flag("MASSIVE", plan.elects()), ("ELECTED_AT", plan.elected_at().into())]
}

/// Returns the parts that turn a group into a scale and codes.
pub(crate) fn fit_parts(plan: &Plan) -> Vec<Source> {
    let scales = plan.format().scales();
    let mut parts = vec![parts::GROUP_PLANE.of(scales)];
    match scales {
        Scales::Symmetric => parts.push(parts::FIT.symmetric),
        Scales::Half | Scales::Byte => parts.extend([parts::FIT.extent, shared::GROUP, parts::GROUP.of(scales)]),
    }
    parts
}

/// Returns SOFT_CAP and CAP_SLOPE, in log2 units.
pub(crate) fn cap_constants(plan: &Plan) -> Constants {
    let cap = plan.soft_cap().map_or(0.0, |cap| std::f64::consts::LOG2_E * f64::from(cap));
    let slope = if cap == 0.0 { 0.0 } else { -2.0 * std::f64::consts::LOG2_E / cap };
    vec![("SOFT_CAP", f64::from(cap as f32)), ("CAP_SLOPE", f64::from(slope as f32))]
}

/// Returns SCALE: the factor that makes scores in log2 units of products.
pub(crate) fn score_scale(plan: &Plan) -> (&'static str, f64) {
    ("SCALE", f64::from(plan.log2_scale() as f32))
}

/// Returns CENTRED.
pub(crate) fn centred(plan: &Plan) -> (&'static str, f64) {
    flag("CENTRED", plan.format().codec() == Codec::Centred)
}

/// Returns the parts for what the mean of the keys adds to the scores of a page: nothing, or the
/// walk and the exchange that suit the plan.
pub(crate) fn position_parts(plan: &Plan) -> Vec<Source> {
    if plan.position_quads() == 0 {
        return vec![parts::POSITIONS.none];
    }
    vec![parts::POSITIONS.added, shared::WAVES, parts::POSITIONS_WALK.of(plan.straight()), parts::MIRROR.of(plan.reduce())]
}

/// Returns where the tables of positions and the terms lie.
pub(crate) fn position_constants(plan: &Plan) -> Constants {
    vec![("POSITION_CENTRE", plan.position_centre().into()), ("POSITION_WAVES", plan.position_waves().into()), ("POSITION_PLACES", plan.pages().into())]
}

/// Returns POSITION_QUADS.
pub(crate) fn position_quads(plan: &Plan) -> (&'static str, f64) {
    ("POSITION_QUADS", plan.position_quads().into())
}

pub(crate) fn flag(name: &'static str, on: bool) -> (&'static str, f64) {
    (name, f64::from(u8::from(on)))
}

/// Returns ELEMENT.
pub(crate) fn element_constant(element: Element) -> (&'static str, f64) {
    let number = match element {
        Element::F32 => 0.0,
        Element::F16 => 1.0,
        Element::Bf16 => 2.0,
    };
    ("ELEMENT", number)
}

/// Adds to a variant what says where the caller's rows lie.
pub(crate) fn laid_out(mut variant: Variant, rows: RowForm) -> Variant {
    variant.parts.push(parts::LAYOUT.of(rows.strided));
    variant.strided = rows.strided;
    variant
}
