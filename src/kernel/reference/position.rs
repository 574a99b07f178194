//! The twin of `shaders/position.wgsl`.

use super::centre::Centred;
use super::factors::factors;
use super::{Constants, turn};
use crate::kernel::position::{PAGES, PositionParams, TERMS};

/// Partial sums among which the pairs alternate, and which are added up at the end.
const PARTS: usize = 4;

/// Computes what the mean of the keys adds to the scores of each page, as far as it turns slowly,
/// for `items` items. Shader: `shaders/position.wgsl`.
///
/// `tables` holds the items (4 words) and the rows' positions, `turns` is as
/// [`turns`](super::turns), `queries` `[rows, query_heads, head_dim]` in f32, f16 or bf16, `marks` means
/// and weights, `position_terms` `[kv_heads, blocks, 12, page of the pass, heads]`.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn position(
    params: &PositionParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    turns: &[[f32; 2]],
    queries: &[u32],
    marks: &[u32],
    position_terms: &mut [f32],
) {
    let c = constants;
    let readings = params.kv_heads * c.blocks;
    let share = params.query_heads / params.kv_heads;
    let table = polynomials(c);
    let by_page = table + (TERMS / 2 * (c.rope_pairs - c.position_waves)) as usize;
    for (x, reading) in (0..items).flat_map(|x| (0..readings).map(move |y| (x, y))) {
        let item = (params.items_at + 4 * x) as usize;
        let [row, first, end, place] = [0, 1, 2, 3].map(|e| tables[item + e]);
        let head = reading / c.blocks;
        let means = Centred::of(c, marks, head).key_means;
        for h in 0..c.heads {
            // Places beyond the share repeat the last head.
            let query_head = head * share + (reading % c.blocks * c.heads + h).min(share - 1);
            let at = c.row(c.queries_at, params.row_first + row, params.query_heads, query_head);
            let query: Vec<f32> = (0..c.head_dim).map(|i| c.input(queries, at + i)).collect();
            let turned = turn::query(c, turns, query, tables[(params.positions_at + row) as usize]);
            for n in first..end.min(first + PAGES) {
                let mut parts = [[0.0; TERMS as usize]; PARTS];
                for p in c.position_waves..c.rope_pairs {
                    let middle = turn::divided(turns[(c.position_centre + p) as usize], factors(c, &turned, &means, p));
                    let here = turn::divided(turns[by_page + ((p - c.position_waves) * c.position_pages + n) as usize], middle);
                    for (k, term) in parts[(p - c.position_waves) as usize % PARTS].iter_mut().enumerate() {
                        let i = (TERMS * (p - c.position_waves)) as usize + k;
                        *term += turns[table + i / 2][i % 2] * here[usize::from(k >= 6)];
                    }
                }
                for k in 0..TERMS {
                    let term = parts.iter().map(|part| part[k as usize]).reduce(|a, b| a + b).unwrap_or(0.0);
                    position_terms[(((reading * TERMS + k) * c.position_places + place.wrapping_add(n)) * c.heads + h) as usize] = term;
                }
            }
        }
    }
}

/// Returns where the tables of waves begin in `turns`.
pub(super) fn waves(c: &Constants) -> usize {
    (c.position_centre + c.rope_pairs).next_multiple_of(2) as usize
}

/// Returns where the polynomials begin.
fn polynomials(c: &Constants) -> usize {
    waves(c) + 64 * c.position_waves as usize
}
