//! The parts of WGSL that kernels choose from, and which of them read a layout of weights.

use wgkv::low_level::Source;

use crate::layout::{Codes, Layout, Scales};

macro_rules! part {
    ($path:literal) => {
        Source { path: concat!("part/", $path, ".wgsl"), source: include_str!(concat!("../../shaders/part/", $path, ".wgsl")) }
    };
}

pub const PLACE: Source = part!("place");
pub const WEIGHTS: Source = part!("weights");
pub const ROWS_ONE: Source = part!("rows/one");
pub const ROWS_FOUR: Source = part!("rows/four");
pub const REDUCE_SUBGROUP: Source = part!("reduce/subgroup");
pub const REDUCE_WORKGROUP: Source = part!("reduce/workgroup");

/// Returns the parts that read codes and their scales.
pub fn of(layout: Layout) -> [Source; 2] {
    let codes = match layout.codes() {
        Codes::Halves => part!("codes/halves"),
        Codes::Nibbles => part!("codes/nibbles"),
        Codes::Fives => part!("codes/fives"),
        Codes::Sixes => part!("codes/sixes"),
        Codes::Bytes => part!("codes/bytes"),
    };
    let scales = match layout.scales() {
        Scales::None => part!("scales/none"),
        Scales::Half { .. } => part!("scales/half"),
        Scales::Pair => part!("scales/pair"),
        Scales::Super => part!("scales/super"),
        Scales::Signed => part!("scales/signed"),
    };
    [codes, scales]
}

/// Returns the constants that they need.
pub fn constants(layout: Layout) -> Vec<(&'static str, f64)> {
    match layout.scales() {
        Scales::Half { centre } => vec![("CENTRE", f64::from(centre))],
        _ => Vec::new(),
    }
}
