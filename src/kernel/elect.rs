//! Elects the tokens of a prompt that stay f16 in a layer: those with the largest magnitudes of the
//! residual stream (RotateKV's sinks).
//!
//! Two variants run one after the other: the first finds the largest of each block of rows, the
//! second the largest among a chunk's blocks and those that its sequence had before. Shader:
//! `shaders/elect.wgsl`. Twin: [`reference::elect`](crate::low_level::reference::elect).

use super::parts::shared;
use super::{Binding, Kernel, STEP, Variant, element_constant, flag};
use crate::format::Element;
use crate::plan::Plan;

/// `ElectParams` of `shaders/elect.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ElectParams {
    /// First item in tables.
    pub items_at: u32,
    /// Items: blocks of rows; or chunks, when merging.
    pub items: u32,
    /// Numbers of a row of the residual stream.
    pub width: u32,
    /// Unused.
    pub pad: u32,
}

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "elect",
    source: include_str!("../../shaders/elect.wgsl"),
    groups: &[&[("marks", Binding::Write)], STEP, &[("residual", Binding::Read), ("candidates", Binding::Write)]],
    params_bytes: size_of::<ElectParams>(),
    zeroed: false,
};

/// Rows of the residual stream that one workgroup searches. Few, because after each of the largest
/// one invocation alone looks through its share again.
pub const BLOCK_ROWS: u32 = 4;

/// Returns the variant for a plan, the type of the caller's rows and the stage.
pub fn variant(plan: &Plan, element: Element, merge: bool) -> Variant {
    let constants = [flag("MERGE", merge), element_constant(element), ("SINKS", plan.sinks().into()), ("ELECTED_AT", plan.elected_at().into())];
    Variant::new(&KERNEL, &[shared::PLACE, shared::ELEMENT], &constants)
}
