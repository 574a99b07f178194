//! The twin of `shaders/append_block.wgsl`.

use super::Constants;
use super::append::pack;
use super::fit::Order;
use crate::kernel::append_block::AppendBlockParams;

/// Packs as [`append`](super::append()) does, with a group's numbers added up in another order.
/// Shader: `shaders/append_block.wgsl`.
///
/// The slices are those of `append`.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn append_block(
    params: &AppendBlockParams,
    constants: &Constants,
    tables: &[u32],
    turns: &[[f32; 2]],
    keys: &[u32],
    values: &[u32],
    protected_rows: &[u32],
    marks: &[u32],
    pages: &mut [u32],
    status: &mut [u32],
) {
    pack(Order::Sixteens, params, constants, tables, turns, keys, values, protected_rows, marks, pages, status);
}
