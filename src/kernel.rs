//! The kernels: one file each here, in `shaders/`, in [`reference`](crate::reference) and in `tests/`, under one name.
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

use crate::format::{Codec, Scales};
use crate::gpu::{Dialect, Linked, Part, Reduce};
use crate::plan::{Plan, Slab};
use crate::rows::Element;
use crate::shape::RopeLayout;
use std::fmt;
use std::hash::{Hash, Hasher};

/// What a binding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binding {
    /// The parameters.
    Uniform,
    /// A storage buffer that is only read.
    Read,
    /// A storage buffer that is read and written.
    Write,
}

/// A kernel: what its shader file declares.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The one word: shader file, entry point, module, twin, test.
    pub name: &'static str,
    /// The shader file's text.
    pub source: &'static str,
    /// Name and kind of each binding of group 0, in order.
    pub bindings: &'static [(&'static str, Binding)],
    /// Bytes of the parameters.
    pub params_bytes: usize,
    /// Does it rely on workgroup memory being zero at the start?
    pub zeroed: bool,
}

/// By the name alone, which no two have.
impl Hash for Kernel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

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

/// A kernel with the parts and constants that one plan needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The parts joined to its source.
    pub parts: Vec<Part>,
    /// Override constants, by name; the numbers as the bits of f64, so that variants can be compared and hashed.
    constants: Vec<(&'static str, u64)>,
    /// Does it use subgroup operations?
    pub subgroups: bool,
    /// Does it compute in halves (the feature `shader-f16`)?
    pub halves: bool,
}

impl Variant {
    pub(crate) fn new(kernel: &'static Kernel, parts: &[Part], constants: &[(&'static str, f64)]) -> Self {
        Self { kernel, parts: parts.to_vec(), constants: constants.iter().map(|(n, x)| (*n, x.to_bits())).collect(), subgroups: false, halves: false }
    }

    /// Override constants by name.
    pub fn constants(&self) -> Vec<(&'static str, f64)> {
        self.constants.iter().map(|(n, x)| (*n, f64::from_bits(*x))).collect()
    }

    /// The whole WGSL module, for a compiler that reads this dialect.
    pub fn link(&self, dialect: Dialect) -> Linked {
        let subgroups = if self.subgroups && dialect == Dialect::Standard { "enable subgroups;\n" } else { "" };
        let halves = if self.halves { "enable f16;\n" } else { "" };
        let mut parts = vec![Part { path: self.kernel.name, source: self.kernel.source }];
        parts.extend_from_slice(&self.parts);
        let mut linked = Linked::new(&format!("{halves}{subgroups}requires packed_4x8_integer_dot_product;\n"), &parts);
        linked.source = linked.source.lines().map(|line| self.fix(line) + "\n").collect();
        linked
    }

    /// Turns the declaration of an override into one of a constant. naga's handling of overrides as array sizes is not to
    /// be relied on (it can lose the order of types), drivers fold constants sooner, and a variant has a module of its own
    /// anyway, since its parts differ.
    fn fix(&self, line: &str) -> String {
        let declared = line.strip_prefix("override ").and_then(|rest| rest.split_once(';'));
        let Some((name, kind)) = declared.and_then(|(declaration, _)| declaration.split_once(": ")) else {
            return line.to_owned();
        };
        match (self.constants().iter().find(|(n, _)| *n == name), kind) {
            (Some((_, x)), "bool") => format!("const {name} = {};", *x != 0.0),
            (Some((_, x)), "u32") => format!("const {name} = {}u;", *x as u32),
            (Some((_, x)), _) => format!("const {name} = {:?}f;", *x as f32),
            (None, _) => line.to_owned(),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kernel.name)?;
        for part in &self.parts {
            write!(f, "+{}", part.path.trim_start_matches("part/").trim_end_matches(".wgsl"))?;
        }
        for (name, x) in self.constants() {
            write!(f, "/{name}={x}")?;
        }
        Ok(())
    }
}

macro_rules! part {
    ($name:literal) => {
        Part { path: concat!("part/", $name, ".wgsl"), source: include_str!(concat!("../shaders/part/", $name, ".wgsl")) }
    };
}

pub(crate) const ALIGN_KEYS_CODE: Part = part!("align_keys_code");
pub(crate) const ALIGN_KEYS_HALF: Part = part!("align_keys_half");
pub(crate) const ALIGN_VALUES_CODE: Part = part!("align_values_code");
pub(crate) const ALIGN_VALUES_HALF: Part = part!("align_values_half");
pub(crate) const BUTTERFLY: Part = part!("butterfly");
pub(crate) const CACHED: Part = part!("cached");
pub(crate) const CENTRE: Part = part!("centre");
pub(crate) const CODE_PLANES: Part = part!("code_planes");
pub(crate) const CODES_2: Part = part!("codes_2");
pub(crate) const CODES_3: Part = part!("codes_3");
pub(crate) const CODES_4: Part = part!("codes_4");
pub(crate) const CODES_8: Part = part!("codes_8");
pub(crate) const FACTORS: Part = part!("factors");
pub(crate) const FINITE: Part = part!("finite");
pub(crate) const FIT_EXTENT: Part = part!("fit_extent");
pub(crate) const FIT_SYMMETRIC: Part = part!("fit_symmetric");
pub(crate) const GROUP: Part = part!("group");
pub(crate) const GROUP_BYTE: Part = part!("group_byte");
pub(crate) const GROUP_HALF: Part = part!("group_half");
pub(crate) const GROUPED: Part = part!("grouped");
pub(crate) const GROUPED_BLOCK: Part = part!("grouped_block");
pub(crate) const HADAMARD: Part = part!("hadamard");
pub(crate) const HALF: Part = part!("half");
pub(crate) const HEADS_1: Part = part!("heads_1");
pub(crate) const HEADS_2: Part = part!("heads_2");
pub(crate) const HEADS_4: Part = part!("heads_4");
pub(crate) const INPUT: Part = part!("input");
pub(crate) const KEY_WORDS: Part = part!("key_words");
pub(crate) const KEYS_2: Part = part!("keys_2");
pub(crate) const KEYS_3: Part = part!("keys_3");
pub(crate) const KEYS_4: Part = part!("keys_4");
pub(crate) const KEYS_8: Part = part!("keys_8");
pub(crate) const KEYS_F16: Part = part!("keys_f16");
pub(crate) const KEYS_INTEGER: Part = part!("keys_integer");
pub(crate) const KEYS_RESTORED: Part = part!("keys_restored");
pub(crate) const KEYS_ROLLED: Part = part!("keys_rolled");
pub(crate) const KEYS_STRAIGHT: Part = part!("keys_straight");
pub(crate) const LANES: Part = part!("lanes");
pub(crate) const LEVELS: Part = part!("levels");
pub(crate) const LEVELS_4: Part = part!("levels_4");
pub(crate) const LEVELS_8: Part = part!("levels_8");
pub(crate) const LEVELS_HALF: Part = part!("levels_half");
pub(crate) const MIRROR_SUBGROUP: Part = part!("mirror_subgroup");
pub(crate) const MIRROR_WORKGROUP: Part = part!("mirror_workgroup");
pub(crate) const PAGE_SCALES: Part = part!("page_scales");
pub(crate) const PLACE: Part = part!("place");
pub(crate) const PLANES: Part = part!("planes");
pub(crate) const PLANES_4: Part = part!("planes_4");
pub(crate) const PLANES_8: Part = part!("planes_8");
pub(crate) const POSITIONS: Part = part!("positions");
pub(crate) const POSITIONS_NONE: Part = part!("positions_none");
pub(crate) const POSITIONS_ROLLED: Part = part!("positions_rolled");
pub(crate) const POSITIONS_STRAIGHT: Part = part!("positions_straight");
pub(crate) const QUERIES: Part = part!("queries");
pub(crate) const QUERY_AT: Part = part!("query_at");
pub(crate) const REDUCE_SUBGROUP: Part = part!("reduce_subgroup");
pub(crate) const REDUCE_WORKGROUP: Part = part!("reduce_workgroup");
pub(crate) const ROTATE_BUTTERFLY: Part = part!("rotate_butterfly");
pub(crate) const ROTATE_DENSE: Part = part!("rotate_dense");
pub(crate) const REPORT: Part = part!("report");
pub(crate) const RESTORE_NONE: Part = part!("restore_none");
pub(crate) const RESTORE_ROLLED: Part = part!("restore_rolled");
pub(crate) const RESTORE_SHUFFLED: Part = part!("restore_shuffled");
pub(crate) const RESTORE_STRAIGHT: Part = part!("restore_straight");
pub(crate) const SCALES_BYTE: Part = part!("scales_byte");
pub(crate) const SCALES_HALF: Part = part!("scales_half");
pub(crate) const SCALES_SYMMETRIC: Part = part!("scales_symmetric");
pub(crate) const TILE_RESTORED: Part = part!("tile_restored");
pub(crate) const TILE_STORED: Part = part!("tile_stored");
pub(crate) const TURN: Part = part!("turn");
pub(crate) const TURN_AT: Part = part!("turn_at");
pub(crate) const WORDS_2: Part = part!("words_2");
pub(crate) const WORDS_3: Part = part!("words_3");
pub(crate) const WORDS_4: Part = part!("words_4");
pub(crate) const WORDS_8: Part = part!("words_8");
pub(crate) const VALUES_2: Part = part!("values_2");
pub(crate) const VALUES_3: Part = part!("values_3");
pub(crate) const VALUES_4: Part = part!("values_4");
pub(crate) const VALUES_8: Part = part!("values_8");
pub(crate) const VALUES_F16: Part = part!("values_f16");
pub(crate) const VALUES_INTEGER: Part = part!("values_integer");
pub(crate) const VALUES_ROLLED: Part = part!("values_rolled");
pub(crate) const VALUES_STRAIGHT: Part = part!("values_straight");

type Constants = Vec<(&'static str, f64)>;

/// Hadamard's factors (outer, inner) of a head dimension, as in `shaders/part/hadamard.wgsl`.
pub fn hadamard_factors(head_dim: u32) -> (u32, u32) {
    match head_dim {
        80 => (20, 4),
        96 => (12, 8),
        256 => (16, 16),
        _ => (head_dim / 8, 8),
    }
}

pub(crate) fn hadamard_constants(head_dim: u32) -> Constants {
    let (outer, inner) = hadamard_factors(head_dim);
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
pub(crate) fn heads_part(plan: &Plan) -> Part {
    match plan.heads() {
        1 => HEADS_1,
        2 => HEADS_2,
        _ => HEADS_4,
    }
}

/// How scales and zeros are read.
pub(crate) fn scales_part(plan: &Plan) -> Part {
    match plan.format().scales() {
        Scales::Half => SCALES_HALF,
        Scales::Byte => SCALES_BYTE,
        Scales::Symmetric => SCALES_SYMMETRIC,
    }
}

/// How scales and zeros of asymmetric codes are rounded and written.
pub(crate) fn group_part(plan: &Plan) -> Part {
    if plan.format().scales() == Scales::Byte { GROUP_BYTE } else { GROUP_HALF }
}

/// How a group becomes a scale and codes.
pub(crate) fn fit_parts(plan: &Plan) -> Vec<Part> {
    if plan.format().scales() == Scales::Symmetric { vec![FIT_SYMMETRIC] } else { vec![FIT_EXTENT, GROUP, group_part(plan)] }
}

/// CENTRED.
pub(crate) fn centred(plan: &Plan) -> (&'static str, f64) {
    flag("CENTRED", plan.format().codec() == Codec::Centred)
}

/// What the mean of the keys adds to the scores of a page: nothing, or by the walk and the exchange that suit the plan.
pub(crate) fn position_parts(plan: &Plan) -> Vec<Part> {
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
