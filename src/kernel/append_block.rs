//! What [`append`](super::append) does, a whole block at once, with the rows of its tokens in registers: where a head has 64, 128 or 256
//! channels of which RoPE turns all or none, for integer codes that are not in planes, on GPUs with subgroups.
//!
//! Shader: `shaders/append_block.wgsl`. Twin: [`reference::append_block`](crate::reference::append_block()).

use super::append::packing_constants;
use super::{FINITE, HALF, Kernel, PLACE, REPORT, TURN, Variant, fit_parts, hadamard_constants, scales_part};
use crate::format::Bits;
use crate::plan::{Plan, Slab};
use crate::rows::Element;

/// `AppendBlockParams` of `shaders/append_block.wgsl`: those of `append`.
pub type AppendBlockParams = super::append::AppendParams;

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "append_block",
    source: include_str!("../../shaders/append_block.wgsl"),
    bindings: super::append::KERNEL.bindings,
    params_bytes: size_of::<AppendBlockParams>(),
    zeroed: false,
};

/// Lanes that hold a token's row.
pub(crate) fn lanes(head_dim: u32) -> u32 {
    head_dim / 32
}

/// Does it pack this slab's pages, in place of [`append`](super::append)?
pub fn suits(plan: &Plan, slab: &Slab) -> bool {
    let shape = plan.shape();
    let [key, value] = [slab.format().key().bits, slab.format().value().bits];
    [64, 128, 256].contains(&shape.head_dim)
        && plan.lanes() >= lanes(shape.head_dim)
        && (plan.restores() || shape.rope.frequencies().is_empty() || 2 * shape.rope.frequencies().len() as u32 == shape.head_dim)
        && !plan.aligns()
        && key != Bits::Sixteen
        && value != Bits::Sixteen
}

/// The variant for a slab of a plan and the type of the caller's rows.
pub fn variant(plan: &Plan, slab: &Slab, element: Element) -> Variant {
    let head_dim = plan.shape().head_dim;
    let mut constants = packing_constants(plan, slab, element);
    constants.retain(|(name, _)| !["PLANES", "CODE_PLANES"].contains(name));
    constants.extend(hadamard_constants(head_dim).into_iter().filter(|(name, _)| ["HEAD_DIM", "HADAMARD_SCALE"].contains(name)));
    constants.push(("LANES", lanes(head_dim).into()));
    let mut parts = vec![HALF, FINITE, PLACE, TURN, scales_part(plan), REPORT];
    parts.extend(fit_parts(plan));
    let mut variant = Variant::new(&KERNEL, &parts, &constants);
    variant.subgroups = true;
    variant
}
