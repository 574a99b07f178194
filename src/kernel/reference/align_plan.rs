//! The twin of `shaders/align_plan.wgsl`.

use super::aligned::{Planes, exponent, filled, level, quarter};
use super::half::unpack;
use super::{Constants, finite, planes};
use crate::kernel::align_plan::{
    AlignPlanParams, PLAN_BASE, PLAN_BOUND, PLAN_ERRORS, PLAN_FACTOR, PLAN_FILLS, PLAN_KEYS, PLAN_MAXIMA, PLAN_NORM, PLAN_PEAK, PLAN_VALUES, PLAN_WORDS,
    SUM_ENTRIES,
};

const HIDDEN: f32 = -1e30;

/// The key of the lightest weight that has a key of its own, 2^-48.
const FIRST_KEY: i32 = 316;

/// Returns the largest error of a number at a level, in units of the last place or in steps.
pub(super) fn error_of(planes: Planes, level: u32) -> f32 {
    planes.error(planes.dropped(level)) as f32
}

/// Returns the level of a weight's key at a threshold.
fn level_at(planes: Planes, key: u32, threshold: u32) -> u32 {
    planes.drops.iter().filter(|drop| key + 4 * (**drop - 2) <= threshold).count() as u32
}

/// Returns the level of a weight at a threshold.
pub(super) fn level_of(planes: Planes, w: f32, threshold: u32) -> u32 {
    level_at(planes, if w == 0.0 { 0 } else { quarter(w).max(FIRST_KEY) } as u32, threshold)
}

/// Reduces as the shader does: 256 cells, halved again and again.
fn tree(cells: &[f32], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut cells: Vec<f32> = cells.to_vec();
    while cells.len() > 1 {
        let (low, high) = cells.split_at(cells.len() / 2);
        cells = low.iter().zip(high).map(|(a, b)| of(*a, *b)).collect();
    }
    cells[0]
}

fn added(cells: &[f32]) -> f32 {
    tree(cells, |a, b| a + b)
}

fn inverse(sum: f32, phi: f32) -> f32 {
    let share = phi * sum;
    if share > 1e-37 && sum < 1e37 { 2.0 / share.max(1e-37) } else { 3e38 }
}

/// Returns the largest threshold that a budget of 1 allows, given the cost of each.
fn largest_threshold(cost: impl Fn(usize) -> f32) -> u32 {
    let best = (0..280).filter(|n| cost(*n) * 1.00001_f32 <= 1.0).max().unwrap_or(0);
    FIRST_KEY as u32 - 1 + best as u32
}

/// Returns the largest threshold that the budget allows for these weights.
fn threshold(planes: Planes, weights: impl Iterator<Item = f32>) -> u32 {
    let mut counts = [0_u32; 256];
    for w in weights.filter(|w| *w > 0.0) {
        counts[(quarter(w).clamp(FIRST_KEY, FIRST_KEY + 255) - FIRST_KEY) as usize] += 1;
    }
    let mut sums: Vec<f32> = (0..256).map(|i| counts[i] as f32 * f32::from_bits((FIRST_KEY as u32 + i as u32 + 1) << 21)).collect();
    let mut reach = 1;
    while reach < 256 {
        sums = (0..256).map(|i| if i >= reach { sums[i] + sums[i - reach] } else { sums[i] }).collect();
        reach *= 2;
    }
    largest_threshold(|n| {
        let (mut cost, mut before) = (0.0, 0.0);
        for drop in planes.drops {
            let error = planes.error(*drop) as f32;
            let reach = n.saturating_sub(4 * (*drop as usize - 2)).min(256);
            if reach > 0 {
                cost += (error - before) * sums[reach - 1];
            }
            before = error;
        }
        cost
    })
}

/// Chooses which planes one query row has to read, for `rows` rows: of the keys, or of the values.
/// Shader: `shaders/align_plan.wgsl`.
///
/// `tables` holds the rows' records (8 words) and lists of physical pages, `query_codes` is
/// `[row, kv_heads, blocks, query_stride, heads]`, `scores`
/// `[page of the pass, kv_heads, blocks, 128, heads]`, the items' sums and the quads,
/// `row_partials` `[partial, query_heads, head_dim + 2]`, `pages`
/// `[physical page, slab head, 4 * page_vecs]`, `plans` `[row, kv_heads, blocks, 112]`.
#[expect(clippy::too_many_arguments, reason = "the shader's variant and bindings, in their order")]
pub fn align_plan(
    params: &AlignPlanParams,
    constants: &Constants,
    rows: u32,
    keys: bool,
    tables: &[u32],
    query_codes: &[u32],
    scores: &[f32],
    row_partials: &[f32],
    pages: &[u32],
    plans: &mut [u32],
) {
    let c = constants;
    for (x, y) in (0..rows).flat_map(|x| (0..params.slab_heads * c.blocks).map(move |y| (x, y))) {
        let record = (params.rows_at + 8 * x) as usize;
        let [row, list, page_count, score_first, split_first, split_count, partial_first, partial_count] = [0, 1, 2, 3, 4, 5, 6, 7].map(|e| tables[record + e]);
        let (slab_head, block) = (y / c.blocks, y % c.blocks);
        let head = tables[(params.heads_at + slab_head) as usize];
        let reading = (row * params.kv_heads + head) * c.blocks + block;
        let plan = &mut plans[(reading * PLAN_WORDS) as usize..][..PLAN_WORDS as usize];
        let page = |n: u32| &pages[((tables[list.wrapping_add(n) as usize] * params.slab_heads + slab_head) * 4 * c.page_vecs) as usize..];
        // Heads that there are.
        let heads = c.heads.min(c.share - block * c.heads);
        let phi = f32::from_bits(params.phi);
        if keys {
            let queries = &query_codes[(reading * c.query_stride * c.heads) as usize..];
            if c.code_planes {
                code_key_plan(c, params.criterion, phi, heads, queries, plan);
                continue;
            }
            key_plan(c, params.criterion, phi, heads, queries, (0..page_count).map(page), plan);
            continue;
        }
        let at = |n: u32| (((n * params.kv_heads + head) * c.blocks + block) * 128 * c.heads) as usize;
        let tokens = 128 * page_count as usize;
        let score = |t: usize, h: u32| scores[at(score_first + t as u32 / 128) + (t % 128) * c.heads as usize + h as usize];
        let sums = |n: u32, e: u32, h: u32| {
            let entry = c.score_sums + (((split_first + n) * params.kv_heads + head) * c.blocks + block) * SUM_ENTRIES + e;
            scores[(entry * c.heads + h) as usize]
        };
        let mut weights: Vec<Vec<f32>> = Vec::new();
        let (mut peaks, mut factors, mut norms) = (Vec::new(), Vec::new(), Vec::new());
        for h in 0..c.heads {
            let item = |e: u32| (0..split_count).map(move |n| sums(n, e, h));
            let padded = |mut cells: Vec<f32>, with: f32| {
                cells.resize(256, with);
                cells
            };
            let peak = tree(&padded(item(0).collect(), HIDDEN), f32::max);
            let whole = |e: u32| added(&padded(item(0).zip(item(e)).map(|(p, s)| s * (p - peak).exp2()).collect(), 0.0));
            let page_sum = whole(1);
            let query_head = head * c.share + (block * c.heads + h).min(c.share - 1);
            let partial = |n: u32, e: u32| row_partials[(((partial_first + n) * params.kv_heads * c.share + query_head) * (c.head_dim + 2) + e) as usize];
            let mut tail = [0.0; 256];
            for n in 0..partial_count {
                tail[n as usize % 256] += partial(n, c.head_dim + 1) * (partial(n, c.head_dim) - peak).min(100.0).exp2();
            }
            let norm = 1.0 / (page_sum + added(&tail));
            factors.push(if params.criterion == 1 { norm } else { inverse(whole(if c.code_planes { 2 } else { 1 }), phi) });
            peaks.push(peak);
            norms.push(norm);
            let of_quads = |n: usize| {
                let at = ((score_first + n as u32 / 32) * params.kv_heads + head) * c.blocks + block;
                scores[((c.score_quads + 32 * at + n as u32 % 32) * c.heads + h) as usize]
            };
            let items = if c.code_planes { tokens / 4 } else { tokens };
            weights.push((0..items).map(|t| (if c.code_planes { of_quads(t) } else { score(t, h) } - peak).exp2()).collect());
        }
        let threshold = threshold(
            Planes::of(c.value_bits),
            (0..if params.criterion == 2 { weights[0].len() } else { 0 }).map(|t| (0..heads as usize).map(|h| weights[h][t] * factors[h]).fold(0.0, f32::max)),
        );
        let mut bases = [1000_i32; 4];
        if params.criterion == 1 {
            for h in 0..heads as usize {
                let scores: Vec<f32> = (0..tokens).map(|t| score(t, h as u32)).collect();
                bases[h] = base(c, &scores, &weights[h], norms[h], &|t| page(t as u32 / 128), plan);
            }
        }
        for h in 0..c.heads as usize {
            plan[PLAN_PEAK as usize + h] = peaks[h].to_bits();
            plan[PLAN_FACTOR as usize + h] = factors[h].to_bits();
            plan[PLAN_NORM as usize + h] = norms[h].to_bits();
        }
        for (word, base) in plan[PLAN_BASE as usize..].iter_mut().zip(bases) {
            *word = base as u32;
        }
        plan[PLAN_VALUES as usize + 3] = threshold;
    }
}

/// Returns the exponent that the published rule aligns values with, for one head.
fn base<'a>(c: &Constants, scores: &[f32], weights: &[f32], norm: f32, page: &dyn Fn(usize) -> &'a [u32], plan: &[u32]) -> i32 {
    let sample = super::aligned::sample(scores);
    let groups = 256 / (c.head_dim / 4) as usize;
    (0..c.head_dim)
        .map(|i| {
            // Each group of invocations takes some of the tokens; then the groups are added up.
            let mut parts = vec![0.0_f32; groups];
            for (s, t) in sample.iter().enumerate() {
                let half = planes::take(c.head_dim, &page(*t)[4 * c.values as usize..], c.head_dim, *t as u32 % 128, i);
                parts[s % groups] += weights[*t] * norm * unpack(u32::from(filled(half, 2) & 0x7fff))[0];
            }
            let sum = parts.into_iter().reduce(|a, b| a + b).unwrap_or(0.0);
            let largest = plan[(PLAN_MAXIMA + i / 4) as usize].to_le_bytes()[i as usize % 4];
            exponent(sum) as i32 + 15 - i32::from(largest)
        })
        .min()
        .unwrap_or(0)
}

/// Writes the levels, two bits each.
fn put_levels(levels: &[u32], plan: &mut [u32]) {
    for (i, word) in plan[..16].iter_mut().enumerate() {
        *word = levels.iter().skip(16 * i).take(16).rev().fold(0, |word, level| word << 2 | level);
    }
}

/// Makes the plan for keys of integer codes: by group of channels, four at a time.
fn code_key_plan(c: &Constants, criterion: u32, phi: f32, heads: u32, queries: &[u32], plan: &mut [u32]) {
    let planes = Planes::of(c.key_bits);
    let (quads, group) = (c.head_dim as usize / 4, c.key_group as usize / 4);
    let word = |i: usize, h: usize| queries[i * c.heads as usize + h];
    let codes = |i: usize, h: usize| word(i, h).to_le_bytes().map(|code| f32::from(code as i8));
    let products = |i: usize, h: usize| codes(i, h).iter().map(|q| q.abs()).sum::<f32>();
    let first = |i: usize| i / group * group;
    let weights: Vec<f32> = (0..quads)
        .map(|i| {
            let of_head = |h: usize| {
                let total: f32 = (first(i)..first(i) + group).map(|e| products(e, h)).sum();
                (products(i, h) * inverse(total, phi)).max(if finite(f32::from_bits(word(quads, h))) { 0.0 } else { 3e38 })
            };
            (0..heads as usize).map(of_head).fold(0.0, f32::max)
        })
        .collect();
    let keys: Vec<u32> = weights.iter().map(|w| if *w == 0.0 { 0 } else { quarter(*w).clamp(FIRST_KEY, FIRST_KEY + 255) as u32 }).collect();
    let levels: Vec<u32> = (0..quads)
        .map(|i| {
            let cost = |n: usize| {
                let threshold = FIRST_KEY as u32 - 1 + n as u32;
                keys[first(i)..first(i) + group].iter().map(|key| f32::from_bits((key + 1) << 21) * error_of(planes, level_at(planes, *key, threshold))).sum()
            };
            if criterion == 2 { level_of(planes, weights[i], largest_threshold(cost)) } else { 0 }
        })
        .collect();
    put_levels(&levels, plan);
    for level in 0..4 {
        plan[(PLAN_KEYS + level) as usize] = levels.iter().filter(|l| **l == level).count() as u32;
    }
    for (g, h) in (0..quads / group).flat_map(|g| (0..c.heads as usize).map(move |h| (g, h))) {
        let sum = |of: &dyn Fn(usize) -> f32| (g * group..(g + 1) * group).map(of).sum::<f32>();
        // Where nothing is read, signed bytes are read as -128.
        let middle = |level: u32| error_of(planes, level) - if c.key_bits == 8 && level == planes.count() { 128.0 } else { 0.0 };
        plan[PLAN_FILLS as usize + 4 * g + h] = sum(&|i| middle(levels[i]) * codes(i, h).iter().sum::<f32>()).to_bits();
        let error = sum(&|i| products(i, h) * error_of(planes, levels[i]));
        plan[PLAN_ERRORS as usize + 4 * g + h] = (error * f32::from_bits(word(quads, h)) * std::f32::consts::LN_2).to_bits();
    }
}

fn key_plan<'a>(c: &Constants, criterion: u32, phi: f32, heads: u32, queries: &[u32], pages: impl Iterator<Item = &'a [u32]>, plan: &mut [u32]) {
    let d = c.head_dim as usize;
    let mut maxima = vec![0_u8; 2 * d];
    for page in pages {
        let bytes = page[4 * c.maxima as usize..][..d / 2].iter().flat_map(|word| word.to_le_bytes());
        maxima.iter_mut().zip(bytes).for_each(|(largest, byte)| *largest = (*largest).max(byte));
    }
    for (word, four) in plan[PLAN_MAXIMA as usize..].iter_mut().zip(maxima[d..].chunks_exact(4)) {
        *word = four.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    let query = |i: usize, h: u32| f32::from_bits(queries[i * c.heads as usize + h as usize]);
    let mut weights = vec![0.0_f32; d];
    let mut spares = vec![i32::MAX; d];
    let mut finite = true;
    let mut products = Vec::new();
    for h in 0..c.heads {
        let mut cells = vec![0.0; 256];
        for (i, cell) in cells.iter_mut().enumerate().take(d) {
            *cell = query(i, h).abs() * f32::from_bits((u32::from(maxima[i]).max(1) + 112) << 23);
        }
        if h < heads {
            let exponents: Vec<i32> = (0..d).map(|i| (exponent(query(i, h) * c.unscale) + u32::from(maxima[i])) as i32).collect();
            let largest = exponents.iter().copied().max().unwrap_or(0);
            finite &= largest < 143;
            let factor = inverse(added(&cells), phi);
            for i in 0..d {
                weights[i] = weights[i].max(cells[i] * factor);
                spares[i] = spares[i].min(largest - exponents[i]);
            }
        }
        products.push(cells);
    }
    let threshold = threshold(Planes::HALF, weights.iter().copied());
    let levels: Vec<u32> = (0..d)
        .map(|i| match criterion {
            1 => level(if finite { spares[i] } else { 0 }),
            2 => level_of(Planes::HALF, weights[i], threshold),
            _ => 0,
        })
        .collect();
    put_levels(&levels, plan);
    for level in 0..3 {
        plan[(PLAN_KEYS + level) as usize] = levels.iter().filter(|l| **l == level).count() as u32;
    }
    plan[PLAN_KEYS as usize + 3] = threshold;
    for (h, mut cells) in products.into_iter().enumerate() {
        cells.iter_mut().zip(levels.iter().chain(std::iter::repeat(&0))).for_each(|(cell, level)| *cell *= error_of(Planes::HALF, *level));
        plan[PLAN_BOUND as usize + h] = (added(&cells) * (std::f32::consts::LN_2 / 1024.0)).to_bits();
    }
}
