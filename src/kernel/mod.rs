//! The kernels: one file each here, in `shaders/`, in [`reference`](crate::kernel::reference) and in `tests/`, under one name.
//!
//! A [`Kernel`] is data: its source, its bindings, the size of its parameters. A [`Variant`] is a kernel with the parts and
//! the constants that one plan needs; it is the key of a pipeline.

pub mod align_plan;
pub mod align_scores;
pub mod align_values;
pub mod append;
pub mod append_block;
pub mod append_reordered;
pub mod attend_merge;
pub mod attend_prefill;
pub mod attend_split;
pub mod dequantize;
pub mod elect;
pub mod gram;
pub mod measure;
pub mod position;
pub mod protect;
pub mod query;
pub mod rotate;

mod prepare;
pub mod reference;
mod variants;

pub use variants::variants;
pub(crate) use variants::{packing_variant, variants_of};

use crate::format::{Codec, Element, RopeLayout, Scales};
pub use crate::gpu::{Binding, Group, Kernel, Variant};

/// What each dispatch of a step reads: its parameters, of [`PARAMS_BYTES`] at most, and the step's tables. One bind group a step.
pub(crate) const STEP: Group = &[("params", Binding::Dynamic), ("tables", Binding::Read)];

/// Bytes of a dispatch's parameters, as they are bound.
pub(crate) const PARAMS_BYTES: u64 = 32;
use crate::gpu::{Reduce, Source};
use crate::plan::{Plan, Slab};

/// All kernels.
pub const ALL: [&Kernel; 17] = [
    &align_plan::KERNEL,
    &align_scores::KERNEL,
    &align_values::KERNEL,
    &append::KERNEL,
    &append_block::KERNEL,
    &append_reordered::KERNEL,
    &attend_merge::KERNEL,
    &attend_prefill::KERNEL,
    &attend_split::KERNEL,
    &dequantize::KERNEL,
    &elect::KERNEL,
    &gram::KERNEL,
    &measure::KERNEL,
    &position::KERNEL,
    &protect::KERNEL,
    &query::KERNEL,
    &rotate::KERNEL,
];

macro_rules! part {
    ($name:literal) => {
        Source { path: concat!("part/", $name, ".wgsl"), source: include_str!(concat!("../../shaders/part/", $name, ".wgsl")) }
    };
}

pub(crate) const ALIGN_KEYS_CODE: Source = part!("align_keys_code");
pub(crate) const ALIGN_KEYS_HALF: Source = part!("align_keys_half");
pub(crate) const ALIGN_VALUES_CODE: Source = part!("align_values_code");
pub(crate) const ALIGN_VALUES_HALF: Source = part!("align_values_half");
pub(crate) const BUTTERFLY: Source = part!("butterfly");
pub(crate) const CACHED: Source = part!("cached");
pub(crate) const CENTRE: Source = part!("centre");
pub(crate) const CODE_PLANES: Source = part!("code_planes");
pub(crate) const CODES_2: Source = part!("codes_2");
pub(crate) const CODES_3: Source = part!("codes_3");
pub(crate) const CODES_4: Source = part!("codes_4");
pub(crate) const CODES_8: Source = part!("codes_8");
pub(crate) const FACTORS: Source = part!("factors");
pub(crate) const FINITE: Source = part!("finite");
pub(crate) const FIT_EXTENT: Source = part!("fit_extent");
pub(crate) const FIT_SYMMETRIC: Source = part!("fit_symmetric");
pub(crate) const GROUP: Source = part!("group");
pub(crate) const GROUP_BYTE: Source = part!("group_byte");
pub(crate) const GROUP_HALF: Source = part!("group_half");
pub(crate) const GROUPED: Source = part!("grouped");
pub(crate) const GROUPED_BLOCK: Source = part!("grouped_block");
pub(crate) const HADAMARD: Source = part!("hadamard");
pub(crate) const HALF: Source = part!("half");
pub(crate) const HEADS_1: Source = part!("heads_1");
pub(crate) const HEADS_2: Source = part!("heads_2");
pub(crate) const HEADS_4: Source = part!("heads_4");
pub(crate) const INPUT: Source = part!("input");
pub(crate) const KEY_WORDS: Source = part!("key_words");
pub(crate) const KEYS_2: Source = part!("keys_2");
pub(crate) const KEYS_3: Source = part!("keys_3");
pub(crate) const KEYS_4: Source = part!("keys_4");
pub(crate) const KEYS_8: Source = part!("keys_8");
pub(crate) const KEYS_F16: Source = part!("keys_f16");
pub(crate) const KEYS_INTEGER: Source = part!("keys_integer");
pub(crate) const KEYS_RESTORED: Source = part!("keys_restored");
pub(crate) const KEYS_ROLLED: Source = part!("keys_rolled");
pub(crate) const KEYS_STRAIGHT: Source = part!("keys_straight");
pub(crate) const LANES: Source = part!("lanes");
pub(crate) const LEVELS: Source = part!("levels");
pub(crate) const LEVELS_4: Source = part!("levels_4");
pub(crate) const LEVELS_8: Source = part!("levels_8");
pub(crate) const LEVELS_HALF: Source = part!("levels_half");
pub(crate) const MIRROR_SUBGROUP: Source = part!("mirror_subgroup");
pub(crate) const MIRROR_WORKGROUP: Source = part!("mirror_workgroup");
pub(crate) const PAGE_SCALES: Source = part!("page_scales");
pub(crate) const PLACE: Source = part!("place");
pub(crate) const PLANES: Source = part!("planes");
pub(crate) const PLANES_4: Source = part!("planes_4");
pub(crate) const PLANES_8: Source = part!("planes_8");
pub(crate) const POSITIONS: Source = part!("positions");
pub(crate) const POSITIONS_NONE: Source = part!("positions_none");
pub(crate) const POSITIONS_ROLLED: Source = part!("positions_rolled");
pub(crate) const POSITIONS_STRAIGHT: Source = part!("positions_straight");
pub(crate) const QUERIES: Source = part!("queries");
pub(crate) const QUERY_AT: Source = part!("query_at");
pub(crate) const REDUCE_SUBGROUP: Source = part!("reduce_subgroup");
pub(crate) const REDUCE_WORKGROUP: Source = part!("reduce_workgroup");
pub(crate) const ROTATE_BUTTERFLY: Source = part!("rotate_butterfly");
pub(crate) const ROTATE_DENSE: Source = part!("rotate_dense");
pub(crate) const REPORT: Source = part!("report");
pub(crate) const RESTORE_NONE: Source = part!("restore_none");
pub(crate) const RESTORE_ROLLED: Source = part!("restore_rolled");
pub(crate) const RESTORE_SHUFFLED: Source = part!("restore_shuffled");
pub(crate) const RESTORE_STRAIGHT: Source = part!("restore_straight");
pub(crate) const SCALES_BYTE: Source = part!("scales_byte");
pub(crate) const SCALES_HALF: Source = part!("scales_half");
pub(crate) const SCALES_SYMMETRIC: Source = part!("scales_symmetric");
pub(crate) const TILE_RESTORED: Source = part!("tile_restored");
pub(crate) const TILE_STORED: Source = part!("tile_stored");
pub(crate) const TURN: Source = part!("turn");
pub(crate) const TURN_AT: Source = part!("turn_at");
pub(crate) const WORDS_2: Source = part!("words_2");
pub(crate) const WORDS_3: Source = part!("words_3");
pub(crate) const WORDS_4: Source = part!("words_4");
pub(crate) const WORDS_8: Source = part!("words_8");
pub(crate) const VALUES_2: Source = part!("values_2");
pub(crate) const VALUES_3: Source = part!("values_3");
pub(crate) const VALUES_4: Source = part!("values_4");
pub(crate) const VALUES_8: Source = part!("values_8");
pub(crate) const VALUES_F16: Source = part!("values_f16");
pub(crate) const VALUES_INTEGER: Source = part!("values_integer");
pub(crate) const VALUES_ROLLED: Source = part!("values_rolled");
pub(crate) const VALUES_STRAIGHT: Source = part!("values_straight");

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

/// ROPE and ROPE_PAIRS.
pub(crate) fn rope_constants(plan: &Plan) -> Constants {
    let rope = &plan.shape().rope;
    let kind = match (rope.frequencies().is_empty(), rope.layout()) {
        (true, _) => 0,
        (false, RopeLayout::SplitHalves) => 1,
        (false, RopeLayout::Interleaved) => 2,
    };
    vec![("ROPE", kind.into()), ("ROPE_PAIRS", rope.frequencies().len() as f64)]
}

/// Where everything lies in a page of a slab.
pub(crate) fn page_constants(plan: &Plan, slab: &Slab) -> Constants {
    let layout = slab.layout();
    vec![
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
    ]
}

/// What RotateKV's keys need: the rotation over a group of heads, and the groups of the whole row.
pub(crate) fn group_constants(plan: &Plan, slab: &Slab) -> Constants {
    let heads = plan.group_heads();
    vec![("GROUP_HEADS", heads.into()), ("GROUP_SCALE", (1.0 / f64::from(heads).sqrt()) as f32 as f64), ("ROW_GROUPS", slab.layout().row_groups.max(1).into())]
}

/// MASSIVE and ELECTED_AT.
pub(crate) fn elected_constants(plan: &Plan) -> Constants {
    vec![flag("MASSIVE", plan.elects()), ("ELECTED_AT", plan.elected_at().into())]
}

/// How many query heads share one reading.
pub(crate) fn heads_part(plan: &Plan) -> Source {
    match plan.heads_per_reading() {
        1 => HEADS_1,
        2 => HEADS_2,
        _ => HEADS_4,
    }
}

/// How scales and zeros are read.
pub(crate) fn scales_part(plan: &Plan) -> Source {
    match plan.format().scales() {
        Scales::Half => SCALES_HALF,
        Scales::Byte => SCALES_BYTE,
        Scales::Symmetric => SCALES_SYMMETRIC,
    }
}

/// How scales and zeros of asymmetric codes are rounded and written.
pub(crate) fn group_part(plan: &Plan) -> Source {
    if plan.format().scales() == Scales::Byte { GROUP_BYTE } else { GROUP_HALF }
}

/// How a group becomes a scale and codes.
pub(crate) fn fit_parts(plan: &Plan) -> Vec<Source> {
    if plan.format().scales() == Scales::Symmetric { vec![FIT_SYMMETRIC] } else { vec![FIT_EXTENT, GROUP, group_part(plan)] }
}

/// CENTRED.
pub(crate) fn centred(plan: &Plan) -> (&'static str, f64) {
    flag("CENTRED", plan.format().codec() == Codec::Centred)
}

/// What the mean of the keys adds to the scores of a page: nothing, or by the walk and the exchange that suit the plan.
pub(crate) fn position_parts(plan: &Plan) -> Vec<Source> {
    if plan.position_quads() == 0 {
        return vec![POSITIONS_NONE];
    }
    let walk = if plan.straight() { POSITIONS_STRAIGHT } else { POSITIONS_ROLLED };
    vec![POSITIONS, walk, if plan.reduce() == Reduce::Subgroup { MIRROR_SUBGROUP } else { MIRROR_WORKGROUP }]
}

/// Where the tables of positions and the terms lie.
pub(crate) fn position_constants(plan: &Plan) -> Constants {
    vec![("POSITION_CENTRE", plan.position_centre().into()), ("POSITION_WAVES", plan.position_waves().into()), ("POSITION_PLACES", plan.pages().into())]
}

/// POSITION_QUADS.
pub(crate) fn position_quads(plan: &Plan) -> (&'static str, f64) {
    ("POSITION_QUADS", plan.position_quads().into())
}

pub(crate) fn flag(name: &'static str, on: bool) -> (&'static str, f64) {
    (name, f64::from(u8::from(on)))
}

pub(crate) fn half_rows(element: Element) -> (&'static str, f64) {
    flag("HALF_ROWS", element == Element::F16)
}
