//! The twin of `shaders/align_values.wgsl`.

use super::align_plan::{error_of, level_of};
use super::aligned::{exponent, filled, level};
use super::attend_split::reduce_add;
use super::half::unpack;
use super::{Constants, planes};
use crate::kernel::align_plan::{PLAN_BASE, PLAN_FACTOR, PLAN_PEAK, PLAN_VALUES, PLAN_WORDS};
use crate::kernel::align_values::AlignValuesParams;

/// The levels of the tokens of a page, from their weights by head.
fn levels(criterion: u32, heads: u32, weights: &[[f32; 128]], plan: &[u32]) -> [u32; 128] {
    let word = |at: u32, h: usize| plan[at as usize + h];
    std::array::from_fn(|t| {
        let w = (0..heads as usize).map(|h| weights[h][t] * f32::from_bits(word(PLAN_FACTOR, h)));
        match criterion {
            1 => level(w.enumerate().map(|(h, w)| word(PLAN_BASE, h) as i32 - exponent(w) as i32).min().unwrap_or(0)),
            2 => level_of(w.fold(0.0, f32::max), plan[PLAN_VALUES as usize + 3]),
            _ => 0,
        }
    })
}

/// The weighted values of one query row over one slice of the packed pages, for `items` slices. Shader: `shaders/align_values.wgsl`.
///
/// `tables` holds the items (8 words) and lists of physical pages, `scores` is `[page of the pass, kv_heads, blocks, 128, heads]`, `plans`
/// `[row, kv_heads, blocks, 112]`, `pages` `[physical page, slab head, 4 * page_vecs]`, `partials`
/// `[item, kv_heads, blocks, heads, head_dim + 4]`, then ledgers of eight numbers, `[item, kv_heads, blocks, 8]`.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn align_values(
    params: &AlignValuesParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    scores: &[f32],
    plans: &[u32],
    pages: &[u32],
    partials: &mut [f32],
) {
    let c = constants;
    for (x, y) in (0..items).flat_map(|x| (0..params.slab_heads * c.blocks).map(move |y| (x, y))) {
        let item = (params.items_at + 8 * x) as usize;
        let [row, list, first, end, _, _, score_first] = [0, 1, 2, 3, 4, 5, 6].map(|e| tables[item + e]);
        let (slab_head, block) = (y / c.blocks, y % c.blocks);
        let head = tables[(params.heads_at + slab_head) as usize];
        let plan = &plans[(((row * params.kv_heads + head) * c.blocks + block) * PLAN_WORDS) as usize..][..PLAN_WORDS as usize];
        let heads = c.heads.min(c.share - block * c.heads);
        let all = c.heads as usize;
        let (mut sums, mut costs) = (vec![[0.0_f32; 32]; all], vec![[0.0_f32; 32]; all]);
        let mut rows = vec![vec![0.0_f32; c.head_dim as usize]; all];
        let (mut counts, mut loads) = ([0_u32; 3], [0_u32; 2]);
        for n in first..end {
            let page = &pages[((tables[(list + n) as usize] * params.slab_heads + slab_head) * 4 * c.page_vecs) as usize..];
            let at = ((((score_first + n) * params.kv_heads + head) * c.blocks + block) * 128 * c.heads) as usize;
            let weights: Vec<[f32; 128]> =
                (0..all).map(|h| std::array::from_fn(|t| (scores[at + t * all + h] - f32::from_bits(plan[PLAN_PEAK as usize + h])).exp2())).collect();
            let levels = levels(params.criterion, heads, &weights, plan);
            for level in levels {
                counts[level as usize] += 1;
                loads[0] += u32::from(level < 2);
                loads[1] += u32::from(level < 1);
            }
            for (h, p) in weights.iter().enumerate() {
                for lane in 0..32 {
                    let [a, b, d, e] = [0, 1, 2, 3].map(|k| p[4 * lane + k]);
                    let [ea, eb, ed, ee] = [0, 1, 2, 3].map(|k| p[4 * lane + k] * error_of(levels[4 * lane + k]));
                    sums[h][lane] += (a + b) + (d + e);
                    costs[h][lane] += (ea + eb) + (ed + ee);
                }
            }
            for (t, level) in levels.iter().enumerate() {
                for i in 0..c.head_dim {
                    let v = unpack(filled(planes::take(c, &page[4 * c.values as usize..], c.head_dim, t as u32, i), *level).into())[0];
                    rows.iter_mut().zip(&weights).for_each(|(row, p)| row[i as usize] += v * p[t]);
                }
            }
        }
        let reading = (x * params.kv_heads + head) * c.blocks + block;
        for h in 0..all {
            let at = ((reading * c.heads + h as u32) * (c.head_dim + 4)) as usize;
            let d = c.head_dim as usize;
            partials[at..at + d].copy_from_slice(&rows[h]);
            partials[at + d..at + d + 4].copy_from_slice(&[f32::from_bits(plan[PLAN_PEAK as usize + h]), reduce_add(&sums[h]), 0.0, 0.0]);
        }
        // High channels of a head of 256 are loads of their own.
        let turns = if c.head_dim > 128 { 2 } else { 1 };
        let loaded = loads.map(|n| if c.count { (turns * n) as f32 } else { 0.0 });
        let ledger = &mut partials[(4 * (c.ledgers + 2 * reading)) as usize..][..8];
        ledger[..4].iter_mut().enumerate().for_each(|(h, x)| *x = costs.get(h).map_or(0.0, reduce_add));
        ledger[4..].copy_from_slice(&[counts[1] as f32, counts[2] as f32, loaded[0], loaded[1]]);
    }
}
