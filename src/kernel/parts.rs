//! The parts that kernels link, by slot.
//!
//! A slot is a choice: its folder in `shaders/part/` holds the alternatives, which define the same
//! functions, and a variant links one of them. Parts without an alternative lie in
//! `shaders/part/shared/`. `shaders/PARTS.md` lists what each kernel links.

use crate::format::{Bits, Scales};
use crate::gpu::{Reduce, Source};
use crate::plan::Restore;

macro_rules! part {
    ($($name:tt)+) => {
        Source { path: concat!("part/", $($name)+, ".wgsl"), source: include_str!(concat!("../../shaders/part/", $($name)+, ".wgsl")) }
    };
}

/// Parts without an alternative.
pub(super) mod shared {
    use crate::gpu::Source;

    pub(in crate::kernel) const BFLOAT: Source = part!("shared/bfloat");
    pub(in crate::kernel) const BUTTERFLY: Source = part!("shared/butterfly");
    pub(in crate::kernel) const CACHED: Source = part!("shared/cached");
    pub(in crate::kernel) const CAP: Source = part!("shared/cap");
    pub(in crate::kernel) const CENTRE: Source = part!("shared/centre");
    pub(in crate::kernel) const CHUNK: Source = part!("shared/chunk");
    pub(in crate::kernel) const CODE_PLANES: Source = part!("shared/code_planes");
    pub(in crate::kernel) const ELEMENT: Source = part!("shared/element");
    pub(in crate::kernel) const FACTORS: Source = part!("shared/factors");
    pub(in crate::kernel) const FINITE: Source = part!("shared/finite");
    pub(in crate::kernel) const GROUP: Source = part!("shared/group");
    pub(in crate::kernel) const GROUPED: Source = part!("shared/grouped");
    pub(in crate::kernel) const GROUPED_BLOCK: Source = part!("shared/grouped_block");
    pub(in crate::kernel) const HADAMARD: Source = part!("shared/hadamard");
    pub(in crate::kernel) const HALF_ROWS: Source = part!("shared/half_rows");
    pub(in crate::kernel) const HALF: Source = part!("shared/half");
    pub(in crate::kernel) const INPUT: Source = part!("shared/input");
    pub(in crate::kernel) const KEY_WORDS: Source = part!("shared/key_words");
    pub(in crate::kernel) const LANES: Source = part!("shared/lanes");
    pub(in crate::kernel) const LEVELS: Source = part!("shared/levels");
    pub(in crate::kernel) const MADE: Source = part!("shared/made");
    pub(in crate::kernel) const MEAN: Source = part!("shared/mean");
    pub(in crate::kernel) const PAGE_SCALES: Source = part!("shared/page_scales");
    pub(in crate::kernel) const PLACE: Source = part!("shared/place");
    pub(in crate::kernel) const PLANES: Source = part!("shared/planes");
    pub(in crate::kernel) const PREFILL: Source = part!("shared/prefill");
    pub(in crate::kernel) const QUERY_FACTORS: Source = part!("shared/query_factors");
    pub(in crate::kernel) const QUERY_AT: Source = part!("shared/query_at");
    pub(in crate::kernel) const REPORT: Source = part!("shared/report");
    pub(in crate::kernel) const SIGN: Source = part!("shared/sign");
    pub(in crate::kernel) const SLOW: Source = part!("shared/slow");
    pub(in crate::kernel) const SPLIT: Source = part!("shared/split");
    pub(in crate::kernel) const TRELLIS: Source = part!("shared/trellis");
    pub(in crate::kernel) const TRELLIS_WORDS: Source = part!("shared/trellis_words");
    pub(in crate::kernel) const TURN: Source = part!("shared/turn");
    pub(in crate::kernel) const TURN_AT: Source = part!("shared/turn_at");
    pub(in crate::kernel) const WAVES: Source = part!("shared/waves");

    /// What brings the caller's new rows into the codec's basis, a channel an invocation.
    pub(in crate::kernel) const NEW_ROWS: [Source; 12] = [HALF, FINITE, PLACE, CHUNK, TURN, CENTRE, MEAN, SIGN, HADAMARD, ELEMENT, INPUT, REPORT];
}

/// Declares slots that are filled by name alone, `SLOT.alternative`, each as a struct of its
/// alternatives.
macro_rules! slots {
    ($($(#[$doc:meta])* $slot:ident: $kind:ident { $($name:ident: $path:literal),+ $(,)? })+) => {
        $(
            pub(super) struct $kind {
                $(pub(super) $name: Source,)+
            }

            $(#[$doc])*
            pub(super) const $slot: $kind = $kind { $($name: part!($path)),+ };
        )+
    };
}

slots! {
    /// How many query heads share one reading.
    HEADS: Heads { one: "heads/1", two: "heads/2", four: "heads/4" }
    /// How scales and zeros are read.
    SCALES: ScaleForms { half: "scales/half", byte: "scales/byte", symmetric: "scales/symmetric" }
    /// How scales and zeros of asymmetric codes are rounded and written.
    GROUP: GroupForms { half: "group/half", byte: "group/byte" }
    /// How many tokens' scales a word of a group's plane holds.
    GROUP_PLANE: GroupPlanes { one: "group/plane/1", two: "group/plane/2" }
    /// How a group becomes a scale and codes.
    FIT: Fits { extent: "fit/extent", symmetric: "fit/symmetric" }
    /// What holds a workgroup's queries.
    QUERIES: Queries { stored: "queries/stored", halves: "queries/halves", none: "queries/none" }
    /// What makes scores of keys.
    KEYS: Keys { integer: "keys/integer", f16: "keys/f16", restored: "keys/restored" }
    /// What adds weighted values.
    VALUES: Values { integer: "values/integer", f16: "values/f16" }
    /// What undoes the rotation of RotateKV's keys.
    RESTORE: Restores { none: "restore/none", shuffled: "restore/shuffled", straight: "restore/straight", rolled: "restore/rolled" }
    /// What the mean of Centred's keys adds to a score.
    POSITIONS: Positions { none: "positions/none", added: "positions/added", made: "positions/made" }
    /// What the mean of Centred's keys adds to the scores of f16 rows.
    ROWS: HalfRows { plain: "rows/plain", centred: "rows/centred" }
    /// What makes keys of the codes of a tile.
    TILE: Tiles { stored: "tile/stored", centred: "tile/centred", restored: "tile/restored" }
    /// How many planes of a number stay unread.
    LEVELS: Levels { half: "levels/half", four: "levels/4", eight: "levels/8" }
    /// Integer codes from the planes that a level reads.
    PLANES: Planes { four: "planes/4", eight: "planes/8" }
    /// Scores from planes of keys.
    ALIGN_KEYS: AlignKeys { half: "align_keys/half", code: "align_keys/code" }
    /// Weighted values from their planes.
    ALIGN_VALUES: AlignValues { half: "align_values/half", code: "align_values/code" }
    /// Hadamard's matrix by its order.
    ROTATE: Rotations { butterfly: "rotate/butterfly", dense: "rotate/dense" }
}

/// A slot filled by how lanes exchange numbers.
pub(super) struct ByReduce {
    pub(super) subgroup: Source,
    pub(super) workgroup: Source,
}

/// How the lanes of a unit come to a common maximum or sum.
pub(super) const REDUCE: ByReduce = ByReduce { subgroup: part!("reduce/subgroup"), workgroup: part!("reduce/workgroup") };
/// How lanes rotate the query heads that they hold.
pub(super) const SPREAD: ByReduce = ByReduce { subgroup: part!("spread/subgroup"), workgroup: part!("spread/workgroup") };
/// How lanes come to a page's terms of positions.
pub(super) const TERMS: ByReduce = ByReduce { subgroup: part!("terms/subgroup"), workgroup: part!("terms/workgroup") };
/// How a lane gets what the lane mirrored about the unit's middle has.
pub(super) const MIRROR: ByReduce = ByReduce { subgroup: part!("mirror/subgroup"), workgroup: part!("mirror/workgroup") };

/// Where a trellis of values gets the words of the channels before a quad's.
pub(super) const BEFORE: ByReduce = ByReduce { subgroup: part!("before/subgroup"), workgroup: part!("before/loaded") };

/// A slot filled by the bits of an integer code.
pub(super) struct ByBits {
    two: Source,
    three: Source,
    four: Source,
    eight: Source,
}

macro_rules! by_bits {
    ($folder:literal) => {
        ByBits {
            two: part!(concat!($folder, "/2")),
            three: part!(concat!($folder, "/3")),
            four: part!(concat!($folder, "/4")),
            eight: part!(concat!($folder, "/8")),
        }
    };
}

/// How words of key codes unpack.
pub(super) const KEYS_BITS: ByBits = by_bits!("keys/bits");
/// How words of value codes unpack.
pub(super) const VALUES_BITS: ByBits = by_bits!("values/bits");
/// How words of key codes by a trellis unpack.
pub(super) const KEYS_TRELLIS: Source = part!("keys/bits/trellis");
/// How words of value codes by a trellis unpack.
pub(super) const VALUES_TRELLIS: Source = part!("values/bits/trellis");
/// How codes of RotateKV's keys become packed halves, sixteen consecutive channels at a time.
pub(super) const RESTORE_CODES: ByBits = by_bits!("restore/codes");
/// The same for lanes that hold words of their own and shuffle.
pub(super) const RESTORE_WORDS: ByBits = by_bits!("restore/words");

/// A slot filled by how loops are written: as straight-line code for GPUs, or rolled for software
/// adapters.
pub(super) struct ByWalk {
    pub(super) straight: Source,
    pub(super) rolled: Source,
}

/// A slot filled by whether the caller's rows have strides.
pub(super) struct ByLayout {
    dense: Source,
    strided: Source,
}

/// Where a row of the caller's lies.
pub(super) const LAYOUT: ByLayout = ByLayout { dense: part!("layout/dense"), strided: part!("layout/strided") };
/// How append_block reads eight numbers of a row.
pub(super) const EIGHTS: ByLayout = ByLayout { dense: part!("eights/dense"), strided: part!("eights/strided") };

/// The walk over a lane's words of keys.
pub(super) const KEYS_WALK: ByWalk = ByWalk { straight: part!("keys/walk/straight"), rolled: part!("keys/walk/rolled") };
/// The walk over a channel's words of values.
pub(super) const VALUES_WALK: ByWalk = ByWalk { straight: part!("values/walk/straight"), rolled: part!("values/walk/rolled") };
/// The walk over a slice of 32 channels of scores in attend_prefill.
pub(super) const WALK: ByWalk = ByWalk { straight: part!("walk/straight"), rolled: part!("walk/rolled") };
/// The walks over a tile of f16 rows.
pub(super) const ROWS_WALK: ByWalk = ByWalk { straight: part!("rows/walk/straight"), rolled: part!("rows/walk/rolled") };
/// The walk over the waves of positions.
pub(super) const POSITIONS_WALK: ByWalk = ByWalk { straight: part!("positions/walk/straight"), rolled: part!("positions/walk/rolled") };

impl Heads {
    pub(super) const fn of(&self, heads: u32) -> Source {
        match heads {
            1 => self.one,
            2 => self.two,
            _ => self.four,
        }
    }
}

impl ScaleForms {
    pub(super) const fn of(&self, scales: Scales) -> Source {
        match scales {
            Scales::Half => self.half,
            Scales::Byte => self.byte,
            Scales::Symmetric => self.symmetric,
        }
    }
}

impl GroupForms {
    pub(super) const fn of(&self, scales: Scales) -> Source {
        match scales {
            Scales::Byte => self.byte,
            Scales::Half | Scales::Symmetric => self.half,
        }
    }
}

impl GroupPlanes {
    pub(super) const fn of(&self, scales: Scales) -> Source {
        match scales {
            Scales::Half => self.one,
            Scales::Byte | Scales::Symmetric => self.two,
        }
    }
}

impl Restores {
    pub(super) const fn of(&self, restore: Restore) -> Source {
        match restore {
            Restore::Shuffled => self.shuffled,
            Restore::Straight => self.straight,
            Restore::Rolled => self.rolled,
        }
    }
}

impl Levels {
    pub(super) const fn of(&self, bits: Bits) -> Source {
        match bits {
            Bits::Four => self.four,
            Bits::Eight => self.eight,
            _ => self.half,
        }
    }
}

impl ByReduce {
    pub(super) const fn of(&self, reduce: Reduce) -> Source {
        match reduce {
            Reduce::Subgroup => self.subgroup,
            Reduce::Workgroup => self.workgroup,
        }
    }
}

impl ByBits {
    pub(super) const fn of(&self, bits: Bits) -> Source {
        match bits {
            Bits::Two => self.two,
            Bits::Three => self.three,
            Bits::Four => self.four,
            _ => self.eight,
        }
    }
}

impl ByLayout {
    pub(super) const fn of(&self, strided: bool) -> Source {
        if strided { self.strided } else { self.dense }
    }
}

impl ByWalk {
    pub(super) const fn of(&self, straight: bool) -> Source {
        if straight { self.straight } else { self.rolled }
    }
}
