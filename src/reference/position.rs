//! The twin of `shaders/position.wgsl`.

use super::{Constants, turn};
use crate::kernel::position::{PAGES, PositionParams, TERMS};

/// What the mean of the keys adds to the scores of each page, as far as it turns slowly, for `items` items. Shader: `shaders/position.wgsl`.
///
/// `tables` holds the items (4 words), `turns` is as [`turns`](super::turns), `query_codes` `[row, kv_heads, blocks, query_stride, heads]`,
/// `position_terms` `[kv_heads, blocks, 12, page of the pass, heads]`.
pub fn position(
    params: &PositionParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    turns: &[[f32; 2]],
    query_codes: &[u32],
    position_terms: &mut [f32],
) {
    let c = constants;
    let readings = params.kv_heads * c.blocks;
    let table = polynomials(c);
    let by_page = table + (TERMS / 2 * (c.rope_pairs - c.position_waves)) as usize;
    for (x, reading) in (0..items).flat_map(|x| (0..readings).map(move |y| (x, y))) {
        let item = (params.items_at + 4 * x) as usize;
        let [row, first, end, place] = [0, 1, 2, 3].map(|e| tables[item + e]);
        let at = (row * readings + reading) * c.query_stride + c.positions_at;
        for n in first..end.min(first + PAGES) {
            for h in 0..c.heads {
                let mut terms = [0.0; TERMS as usize];
                for p in c.position_waves..c.rope_pairs {
                    let factor = |which| f32::from_bits(query_codes[((at + 2 * p + which) * c.heads + h) as usize]);
                    let turned = turn::divided(turns[by_page + ((p - c.position_waves) * c.position_pages + n) as usize], [factor(0), factor(1)]);
                    for (k, term) in terms.iter_mut().enumerate() {
                        let i = (TERMS * (p - c.position_waves)) as usize + k;
                        *term += turns[table + i / 2][i % 2] * turned[usize::from(k >= 6)];
                    }
                }
                for (k, term) in (0..).zip(terms) {
                    position_terms[(((reading * TERMS + k) * c.position_places + place.wrapping_add(n)) * c.heads + h) as usize] = term;
                }
            }
        }
    }
}

/// Where the tables of waves begin in `turns`.
pub(super) fn waves(c: &Constants) -> usize {
    (c.position_centre + c.rope_pairs).next_multiple_of(2) as usize
}

/// Where the polynomials begin.
fn polynomials(c: &Constants) -> usize {
    waves(c) + 64 * c.position_waves as usize
}
