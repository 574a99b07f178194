//! The same as [`append`](super::append), a whole block at once, with the rows of its tokens in
//! registers: where a head has 64, 128 or 256 channels of which RoPE turns all or none, for integer
//! codes that are not in planes, on GPUs with subgroups.
//!
//! Shader: `shaders/append_block.wgsl`. Twin:
//! [`reference::append_block`](crate::low_level::reference::append_block()).

use super::append::{packing_constants, symbol_constants};
use super::parts::{self, shared};
use super::{Kernel, Variant, fit_parts, hadamard_constants, laid_out};
use crate::gpu::RowForm;
use crate::plan::{Plan, Slab, block_lanes};

/// `AppendBlockParams` of `shaders/append_block.wgsl`: those of `append`.
pub type AppendBlockParams = super::append::AppendParams;

/// The kernel.
pub static KERNEL: Kernel = Kernel {
    name: "append_block",
    source: include_str!("../../shaders/append_block.wgsl"),
    groups: super::append::KERNEL.groups,
    params_bytes: size_of::<AppendBlockParams>(),
    zeroed: false,
};

/// Returns the variant for a slab of a plan and the caller's rows.
pub fn variant(plan: &Plan, slab: &Slab, rows: RowForm) -> Variant {
    let head_dim = plan.shape().head_dim;
    let mut constants = packing_constants(plan, slab, rows.element);
    constants.retain(|(name, _)| !["PLANES", "CODE_PLANES"].contains(name));
    constants.extend(hadamard_constants(head_dim).into_iter().filter(|(name, _)| ["HEAD_DIM", "HADAMARD_SCALE"].contains(name)));
    constants.extend(symbol_constants(slab, if slab.format().key().is_trellis() { 2 } else { 1 }));
    constants.push(("LANES", block_lanes(head_dim).into()));
    let mut parts =
        vec![shared::HALF, shared::FINITE, shared::PLACE, shared::CHUNK, shared::TURN, shared::SIGN, parts::SCALES.of(plan.format().scales()), shared::REPORT];
    parts.extend([shared::TRELLIS, shared::ELEMENT, parts::EIGHTS.of(rows.strided)]);
    parts.extend(fit_parts(plan));
    let mut variant = Variant::new(&KERNEL, &parts, &constants);
    variant.subgroups = true;
    laid_out(variant, rows)
}
