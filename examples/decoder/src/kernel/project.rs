//! A few rows times a matrix of weights. Shader: `shaders/project.wgsl`.
//!
//! The weights stay as they are stored and are unpacked in the product. The norm before, the bias
//! and what follows the product are done on the way, so that a layer has few dispatches.

use wgkv::low_level::{Binding, Kernel, Variant};

use super::{flag, parts};
use crate::config::Activation;
use crate::layout::Layout;

/// Rows up to which this kernel is the fastest: more share the reading and unpacking of weights.
pub const ROWS: u32 = 8;

/// Invocations of a workgroup.
const INVOCATIONS: u32 = 256;

/// What is done with a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Written, into a range of rows for each matrix of those stacked.
    Store,
    /// Added to what is there.
    Add,
    /// `activation(even output) * odd output`: gate and up projection, their rows in turn.
    Gated(Activation),
    /// `factor * tanh(output / factor)`: scores that stay below a cap.
    Capped,
}

impl Epilogue {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Store, Self::Add, Self::Gated(Activation::Silu), Self::Gated(Activation::GeluTanh), Self::Capped];

    /// Returns whether it makes one number of two outputs.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::Gated(_))
    }
}

/// `ProjectParams` of `shaders/part/place.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ProjectParams {
    /// Numbers of a row of x, a multiple of 32.
    pub columns: u32,
    /// Rows of the matrix that the buffer of weights has, an even number.
    pub outputs: u32,
    /// Output that its first row makes, an even number.
    pub first: u32,
    /// Outputs of the whole matrix.
    pub total: u32,
    /// Where the second plane of codes lies, in words.
    pub high_at: u32,
    /// Where the scales lie, in words.
    pub scales_at: u32,
    /// First output of the second matrix of those stacked; `total` if there is none.
    pub split_b: u32,
    /// First output of the third.
    pub split_c: u32,
    /// Where the rows of the first lie, in numbers.
    pub at_a: u32,
    /// Where the rows of the second lie.
    pub at_b: u32,
    /// Where the rows of the third lie.
    pub at_c: u32,
    /// Added to the mean square of a row before the root.
    pub epsilon: f32,
    /// Factor of the first matrix's outputs; with [`Epilogue::Capped`], the cap.
    pub factor: f32,
    /// Unused.
    pub pad: [u32; 3],
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "project",
    source: include_str!("../../shaders/project.wgsl"),
    groups: &[&[
        ("params", Binding::Uniform),
        ("weights", Binding::Read),
        ("x", Binding::Read),
        ("norm", Binding::Read),
        ("bias", Binding::Read),
        ("out", Binding::Write),
    ]],
    params_bytes: size_of::<ProjectParams>(),
    zeroed: false,
};

/// Lanes that share two outputs, and whether they are a subgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    /// How many.
    pub count: u32,
    /// Whether they are exactly one subgroup.
    pub subgroup: bool,
}

/// Returns the lanes for a device with subgroups of these sizes.
pub fn lanes(subgroups: Option<(u32, u32)>) -> Lanes {
    match subgroups {
        Some((least, most)) if least == most && (4..=64).contains(&least) && least.is_power_of_two() => Lanes { count: least, subgroup: true },
        _ => Lanes { count: 16, subgroup: false },
    }
}

/// Returns the constants and parts that all kernels called project have.
pub(super) fn common(layout: Layout, epilogue: Epilogue, bias: bool) -> (Vec<wgkv::low_level::Source>, Vec<(&'static str, f64)>) {
    let mut sources = parts::of(layout).to_vec();
    sources.extend([parts::PLACE, parts::WEIGHTS]);
    let mut constants = parts::constants(layout);
    let number = match epilogue {
        Epilogue::Store => 0,
        Epilogue::Add => 1,
        Epilogue::Gated(_) => 2,
        Epilogue::Capped => 3,
    };
    constants.extend([("EPILOGUE", f64::from(number)), flag("BIAS", bias), flag("GELU", epilogue == Epilogue::Gated(Activation::GeluTanh))]);
    (sources, constants)
}

/// Returns the variant for one row at a time, or four.
pub fn variant(layout: Layout, epilogue: Epilogue, bias: bool, norm: bool, one: bool, lanes: Lanes) -> Variant {
    let (mut sources, mut constants) = common(layout, epilogue, bias);
    sources.push(if one { parts::ROWS_ONE } else { parts::ROWS_FOUR });
    sources.push(if lanes.subgroup { parts::REDUCE_SUBGROUP } else { parts::REDUCE_WORKGROUP });
    constants.extend([("LANES", f64::from(lanes.count)), flag("NORM", norm)]);
    let mut variant = Variant::new(&KERNEL, &sources, &constants);
    variant.subgroups = lanes.subgroup;
    variant
}

/// Returns the workgroups for a product with these outputs and rows, where one dimension of a grid
/// holds `most`.
pub fn grid(outputs: u32, rows: u32, one: bool, lanes: Lanes, most: u32) -> [u32; 3] {
    let units = INVOCATIONS / lanes.count;
    let groups = (outputs / 2).div_ceil(units);
    let down = groups.div_ceil(most);
    [groups.div_ceil(down), if one { rows } else { rows.div_ceil(4) }, down]
}
