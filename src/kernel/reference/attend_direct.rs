//! The twin of `shaders/attend_direct.wgsl`.

use super::{Constants, attend_rows, attend_split, finite, position, query};
use crate::kernel::attend_direct::AttendDirectParams;
use crate::kernel::attend_rows::AttendRowsParams;
use crate::kernel::attend_split::AttendSplitParams;
use crate::kernel::position::{PAGES, PositionParams, TERMS};
use crate::kernel::query::QueryParams;

const HIDDEN: f32 = -1e30;

/// Attends one query row, from the caller's queries, to one slice of the f16 rows or of the packed
/// pages, for `items` slices: by the twins of the kernels that others take one after another.
/// Shader: `shaders/attend_direct.wgsl`.
///
/// `tables` holds the items (8 words of f16 rows, 9 of pages), chunks, positions of rows, and lists
/// of physical pages, `turns` is as [`turns`](super::turns), `marks` for Centred means and weights,
/// then the elected sinks, `protected_rows` `[slot, kv_heads, sinks + ring, head_dim]`, `pages`
/// `[physical page, slab head, 4 * page_vecs]`, `queries` `[rows, query_heads, head_dim]` in f32,
/// f16 or bf16, `partials` `[item, kv_heads, blocks, heads, head_dim + 4]`. A query head with a
/// number that is not finite has a largest score of -1e30, a sum of -1, and weighted values that
/// mean nothing.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn attend_direct(
    params: &AttendDirectParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    turns: &[[f32; 2]],
    marks: &[u32],
    protected_rows: &[u32],
    pages: &[u32],
    queries: &[u32],
    partials: &mut [f32],
) {
    let c = constants;
    let AttendDirectParams { items_at, row_items_at, row_items, slab_heads, heads_at, kv_heads, positions_at, row_first } = *params;
    let query_heads = kv_heads * c.share;
    let row_item = |x: u32| (row_items_at + 8 * x) as usize;
    let page_item = |x: u32| (items_at + 9 * (x - row_items)) as usize;
    let row_of = |x: u32| if x < row_items { tables[row_item(x) + 1] } else { tables[page_item(x)] };
    let rows = (0..items).map(row_of).max().map_or(0, |row| row + 1);
    // The queries, with the group that their codes' sums are of in the tables.
    let mut listed = tables.to_vec();
    let group = if c.key_bits == 16 { 0 } else { c.key_group };
    let groups_at = listed.len() as u32;
    listed.extend(std::iter::repeat_n(group, kv_heads as usize));
    let mut query_rows = vec![0.0; (rows * query_heads * c.query_row) as usize];
    let mut query_codes = vec![0; (rows * kv_heads * c.blocks * c.query_stride * c.heads) as usize];
    let making = QueryParams { positions_at, row_first, query_heads, kv_heads, groups_at, pad: [0; 3] };
    query(&making, c, rows, &listed, turns, queries, marks, &mut query_rows, &mut query_codes);
    // The terms of each item's pages.
    let mut terms = vec![0.0; if c.position_quads > 0 { (kv_heads * c.blocks * TERMS * c.position_places * c.heads) as usize } else { 0 }];
    let stride = (kv_heads * c.blocks * c.heads * (c.head_dim + 4)) as usize;
    for x in row_items..items {
        let item = page_item(x);
        if c.position_quads > 0 {
            let [row, first, end, place] = [0, 2, 3, 6].map(|e| tables[item + e]);
            let at = listed.len() as u32;
            let starts: Vec<u32> = (first..end).step_by(PAGES as usize).collect();
            starts.iter().for_each(|n| listed.extend([row, *n, end.min(n + PAGES), place]));
            let making = PositionParams { items_at: at, positions_at, row_first, query_heads, kv_heads, pad: [0; 3] };
            position(&making, c, starts.len() as u32, &listed, turns, queries, marks, &mut terms);
        }
        let split = AttendSplitParams { items_at: item as u32, slab_heads, heads_at, kv_heads };
        let partial = &mut partials[x as usize * stride..][..stride];
        attend_split(&split, c, 1, &listed, turns, &query_codes, marks, &[], pages, &terms, partial);
    }
    // The f16 rows, whose partial results others lay out by query head.
    let row_stride = (c.head_dim + 2) as usize;
    let mut row_partials = vec![0.0; (row_items * query_heads) as usize * row_stride];
    let params = AttendRowsParams { items_at: row_items_at, kv_heads, pad: [0; 2] };
    attend_rows(&params, c, row_items, tables, &query_rows, turns, marks, protected_rows, &mut row_partials);
    for (x, slab_head) in (0..items).flat_map(|x| (0..slab_heads).map(move |s| (x, s))) {
        let head = tables[(heads_at + slab_head) as usize];
        for h in 0..c.share {
            let query_head = head * c.share + h;
            let at = x as usize * stride + (((head * c.blocks + h / c.heads) * c.heads + h % c.heads) * (c.head_dim + 4)) as usize;
            let partial = &mut partials[at..][..c.head_dim as usize + 4];
            if x < row_items {
                let from = (tables[row_item(x) + 7] * query_heads + query_head) as usize * row_stride;
                partial[..row_stride].copy_from_slice(&row_partials[from..][..row_stride]);
                partial[row_stride..].fill(0.0);
            }
            let row = &query_rows[((row_of(x) * query_heads + query_head) * c.query_row) as usize..][..c.head_dim as usize];
            if !row.iter().all(|x| finite(*x)) {
                partial[c.head_dim as usize..][..2].copy_from_slice(&[HIDDEN, -1.0]);
            }
        }
    }
}
