//! The twin of `shaders/attend_matrices.wgsl`.

use super::Constants;
use super::attend_prefill::{Way, attend};
use crate::kernel::attend_matrices::AttendMatricesParams;

/// Attends a block of query rows to unpacked tokens, causally, for `items` blocks, with queries and
/// weights as halves. Shader: `shaders/attend_matrices.wgsl`. Everything is as
/// [`attend_prefill`](super::attend_prefill()) has it.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn attend_matrices(
    params: &AttendMatricesParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    query_rows: &[f32],
    unpacked_rows: &[u32],
    marks: &[u32],
    row_partials: &mut [f32],
) {
    let way = Way { growth: 8.0, halves: true };
    attend(&way, [params.items_at, params.kv_heads, items], constants, tables, query_rows, unpacked_rows, marks, row_partials);
}
