//! The twin of `shaders/align_values.wgsl`.

use super::align_plan::{error_of, level_of};
use super::align_scores::step;
use super::aligned::{Planes, exponent, filled, level};
use super::attend_split::reduce_add;
use super::half::unpack;
use super::{Constants, code_planes, planes, scales};
use crate::kernel::align_plan::{PLAN_BASE, PLAN_FACTOR, PLAN_PEAK, PLAN_VALUES, PLAN_WORDS};
use crate::kernel::align_values::{AlignValuesParams, LEDGER_VECS};

/// Returns the levels of the tokens of a page, from their weights by head.
fn levels(criterion: u32, heads: u32, weights: &[[f32; 128]], plan: &[u32]) -> [u32; 128] {
    let word = |at: u32, h: usize| plan[at as usize + h];
    std::array::from_fn(|t| {
        let w = (0..heads as usize).map(|h| weights[h][t] * f32::from_bits(word(PLAN_FACTOR, h)));
        match criterion {
            1 => level(w.enumerate().map(|(h, w)| word(PLAN_BASE, h) as i32 - exponent(w) as i32).min().unwrap_or(0)),
            2 => level_of(Planes::HALF, w.fold(0.0, f32::max), plan[PLAN_VALUES as usize + 3]),
            _ => 0,
        }
    })
}

/// What a page adds to one reading: rows by head, and by lane sums, errors, and tokens by level.
struct Sums {
    rows: Vec<Vec<f32>>,
    sums: Vec<[f32; 32]>,
    costs: Vec<[f32; 32]>,
    counts: [u32; 4],
}

impl Sums {
    /// Adds a page of halves.
    fn add_halves(&mut self, c: &Constants, page: &[u32], weights: &[[f32; 128]], levels: &[u32; 128]) {
        for level in levels {
            self.counts[*level as usize] += 1;
        }
        for (h, p) in weights.iter().enumerate() {
            for lane in 0..32 {
                let [ea, eb, ed, ee] = [0, 1, 2, 3].map(|k| p[4 * lane + k] * error_of(Planes::HALF, levels[4 * lane + k]));
                self.costs[h][lane] += (ea + eb) + (ed + ee);
            }
        }
        for (t, level) in levels.iter().enumerate() {
            for i in 0..c.head_dim {
                let v = unpack(filled(planes::take(c.head_dim, &page[4 * c.values as usize..], c.head_dim, t as u32, i), *level).into())[0];
                self.rows.iter_mut().zip(weights).for_each(|(row, p)| row[i as usize] += v * p[t]);
            }
        }
    }

    /// Adds a page of integer codes, of which four tokens are read alike.
    fn add_codes(&mut self, c: &Constants, page: &[u32], weights: &[[f32; 128]], params: &AlignValuesParams, plan: &[u32], heads: u32) {
        let planes = Planes::of(c.value_bits);
        let levels: [u32; 32] = std::array::from_fn(|lane| {
            let steps = [0, 1, 2, 3].map(|k| step(c, page, (4 * lane + k) as u32));
            let weigh = |p: &[f32; 128]| (p[4 * lane] * steps[0] + p[4 * lane + 1] * steps[1]) + (p[4 * lane + 2] * steps[2] + p[4 * lane + 3] * steps[3]);
            let most = (0..heads as usize).map(|h| weigh(&weights[h]) * f32::from_bits(plan[PLAN_FACTOR as usize + h])).fold(0.0, f32::max);
            let level = if params.criterion == 2 { level_of(planes, most, plan[PLAN_VALUES as usize + 3]) } else { 0 };
            for (costs, p) in self.costs.iter_mut().zip(weights) {
                costs[lane] += weigh(p) * error_of(planes, level);
            }
            self.counts[level as usize] += 1;
            level
        });
        let pair = |g: u32, t: usize| scales::value(c, page, c.value_scales + g * scales::vecs(c.scales), t as u32);
        for (row, p) in self.rows.iter_mut().zip(weights) {
            for (i, x) in (0..).zip(row.iter_mut()) {
                let g = i / c.value_group;
                let (mut sum, mut offset) = (0.0, 0.0);
                for (lane, level) in levels.iter().enumerate() {
                    let unread = planes.dropped(*level);
                    let code =
                        |t: usize| code_planes::take(c.head_dim, c.value_bits, &page[4 * c.values as usize..], c.head_dim / 4, t as u32, i) >> unread << unread;
                    let [a, b, d, e] = [0, 1, 2, 3].map(|k| code(4 * lane + k) as f32 * (p[4 * lane + k] * pair(g, 4 * lane + k)[0]));
                    sum += (a + b) + (d + e);
                    let [a, b, d, e] = [0, 1, 2, 3].map(|k| {
                        let [scale, zero] = pair(g, 4 * lane + k);
                        p[4 * lane + k] * (scale * (error_of(planes, *level) - zero))
                    });
                    offset += (a + b) + (d + e);
                }
                *x += sum + offset;
            }
        }
    }
}

/// Adds up the weighted values of one query row over one slice of the packed pages, for `items`
/// slices. Shader: `shaders/align_values.wgsl`.
///
/// `tables` holds the items (8 words) and lists of physical pages, `scores` is
/// `[page of the pass, kv_heads, blocks, 128, heads]`, `plans` `[row, kv_heads, blocks, 112]`,
/// `pages` `[physical page, slab head, 4 * page_vecs]`, `partials`
/// `[item, kv_heads, blocks, heads, head_dim + 4]`, then ledgers of twelve numbers,
/// `[item, kv_heads, blocks, 12]`.
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
        let item = (params.items_at + 9 * x) as usize;
        let [row, list, first, end, _, _, score_first] = [0, 1, 2, 3, 4, 5, 6].map(|e| tables[item + e]);
        let (slab_head, block) = (y / c.blocks, y % c.blocks);
        let head = tables[(params.heads_at + slab_head) as usize];
        let plan = &plans[(((row * params.kv_heads + head) * c.blocks + block) * PLAN_WORDS) as usize..][..PLAN_WORDS as usize];
        let heads = c.heads.min(c.share - block * c.heads);
        let all = c.heads as usize;
        let mut all_sums = Sums { rows: vec![vec![0.0; c.head_dim as usize]; all], sums: vec![[0.0; 32]; all], costs: vec![[0.0; 32]; all], counts: [0; 4] };
        for n in first..end {
            let page = &pages[((tables[list.wrapping_add(n) as usize] * params.slab_heads + slab_head) * 4 * c.page_vecs) as usize..];
            let at = (((score_first.wrapping_add(n) * params.kv_heads + head) * c.blocks + block) * 128 * c.heads) as usize;
            let weights: Vec<[f32; 128]> =
                (0..all).map(|h| std::array::from_fn(|t| (scores[at + t * all + h] - f32::from_bits(plan[PLAN_PEAK as usize + h])).exp2())).collect();
            for (sums, p) in all_sums.sums.iter_mut().zip(&weights) {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let [a, b, d, e] = [0, 1, 2, 3].map(|k| p[4 * lane + k]);
                    *sum += (a + b) + (d + e);
                }
            }
            if c.code_planes {
                all_sums.add_codes(c, page, &weights, params, plan, heads);
            } else {
                all_sums.add_halves(c, page, &weights, &levels(params.criterion, heads, &weights, plan));
            }
        }
        let Sums { rows, sums, costs, counts } = all_sums;
        let reading = (x * params.kv_heads + head) * c.blocks + block;
        for h in 0..all {
            let at = ((reading * c.heads + h as u32) * (c.head_dim + 4)) as usize;
            let d = c.head_dim as usize;
            partials[at..at + d].copy_from_slice(&rows[h]);
            partials[at + d..at + d + 4].copy_from_slice(&[f32::from_bits(plan[PLAN_PEAK as usize + h]), reduce_add(&sums[h]), 0.0, 0.0]);
        }
        // Channels from 128 on are loads of their own.
        let turns = if c.head_dim > 128 { 2 } else { 1 };
        let planes = Planes::of(c.value_bits);
        let loads = [0, 1, 2].map(|plane| {
            let counted = c.count && plane < planes.count() && (c.code_planes || plane > 0);
            let items = counts.iter().zip(0..).filter(|(_, level)| level + plane < planes.count()).map(|(n, _)| n).sum::<u32>();
            if counted { (turns * items) as f32 } else { 0.0 }
        });
        let ledger = &mut partials[(4 * (c.ledgers + LEDGER_VECS * reading)) as usize..][..12];
        ledger[..4].iter_mut().enumerate().for_each(|(h, x)| *x = costs.get(h).map_or(0.0, reduce_add));
        ledger[4..8].copy_from_slice(&[counts[1] as f32, counts[2] as f32, counts[3] as f32, 0.0]);
        ledger[8..].copy_from_slice(&[loads[0], loads[1], loads[2], 0.0]);
    }
}
