//! The twin of `shaders/align_scores.wgsl`.

use super::aligned::{Planes, filled};
use super::attend_split::reduce_add;
use super::half::unpack;
use super::positions::positions;
use super::{Constants, code_planes, planes, scales};
use crate::kernel::align_plan::{PLAN_ERRORS, PLAN_FILLS, PLAN_WORDS, SUM_ENTRIES};
use crate::kernel::align_scores::AlignScoresParams;
use crate::kernel::position::TERMS;

const HIDDEN: f32 = -1e30;

/// What one query head and one page are to a token's score.
struct Reading<'a> {
    c: &'a Constants,
    page: &'a [u32],
    plan: &'a [u32],
    /// One head's query, as words.
    query: &'a dyn Fn(u32) -> u32,
    h: u32,
}

/// Returns the level of a channel, or of a quad of channels.
fn level(plan: &[u32], i: u32) -> u32 {
    plan[(i / 16) as usize] >> (2 * (i % 16)) & 3
}

impl Reading<'_> {
    fn half(&self, t: u32) -> f32 {
        let key = |i: u32| unpack(filled(planes::take(self.c.head_dim, self.page, 128, i, t), level(self.plan, i)).into())[0];
        (0..self.c.head_dim).fold(0.0, |s, i| s + key(i) * f32::from_bits((self.query)(i)))
    }

    /// Returns the score, and the bound on its error in nats.
    fn code(&self, t: u32) -> [f32; 2] {
        let (c, planes) = (self.c, Planes::of(self.c.key_bits));
        let quads = c.head_dim / 4;
        let (mut score, mut error) = (0.0, 0.0);
        for g in 0..c.head_dim / c.key_group {
            let product = |i: u32| {
                let unread = planes.dropped(level(self.plan, i / 4));
                // Where nothing is read, nothing is added: the middle of all bits is in the fill.
                let code = if unread == c.key_bits { 0 } else { code_planes::take(c.head_dim, c.key_bits, self.page, 32, i, t) >> unread << unread };
                i32::from(code as u8 as i8) * i32::from((self.query)(i / 4).to_le_bytes()[i as usize % 4] as i8)
            };
            let dot: i32 = (g * c.key_group..(g + 1) * c.key_group).map(product).sum();
            let [scale, zero] = scales::key(c, self.page, c.key_scales + g * scales::vecs(c.scales), t);
            let planned = |at: u32| f32::from_bits(self.plan[(at + 4 * g + self.h) as usize]);
            score += scale * ((dot as f32 + planned(PLAN_FILLS)) - zero * f32::from_bits((self.query)(quads + 1 + g)));
            error += scale * planned(PLAN_ERRORS);
        }
        [score * f32::from_bits((self.query)(quads)), error]
    }
}

/// Returns the largest scale of a token's value.
pub(super) fn step(c: &Constants, page: &[u32], t: u32) -> f32 {
    (0..c.head_dim / c.value_group).map(|g| scales::take(c, page, c.value_scales + g * scales::vecs(c.scales), t)[0]).fold(0.0, f32::max)
}

/// Computes the scores of one query row against one slice of the packed pages, for `items` slices.
/// Shader: `shaders/align_scores.wgsl`.
///
/// `tables` holds the items (8 words) and lists of physical pages, `turns` is as
/// [`turns`](super::turns), `query_codes` `[row, kv_heads, blocks, query_stride, heads]`, `plans`
/// `[row, kv_heads, blocks, 112]`, `pages` `[physical page, slab head, 4 * page_vecs]`,
/// `position_terms` `[kv_heads, blocks, 12, page of the pass, heads]` for Centred, `scores`
/// `[page of the pass, kv_heads, blocks, 128, heads]`, then seven entries an item, then (of integer
/// codes) `[page of the pass, kv_heads, blocks, 32, heads]`.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn align_scores(
    params: &AlignScoresParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    turns: &[[f32; 2]],
    query_codes: &[u32],
    plans: &[u32],
    pages: &[u32],
    position_terms: &[f32],
    scores: &mut [f32],
) {
    let c = constants;
    for (x, y) in (0..items).flat_map(|x| (0..params.slab_heads * c.blocks).map(move |y| (x, y))) {
        let item = (params.items_at + 9 * x) as usize;
        let [row, list, first, end, visible_first, visible_end, score_first] = [0, 1, 2, 3, 4, 5, 6].map(|e| tables[item + e]);
        let (slab_head, block) = (y / c.blocks, y % c.blocks);
        let head = tables[(params.heads_at + slab_head) as usize];
        let reading = (row * params.kv_heads + head) * c.blocks + block;
        let plan = &plans[(reading * PLAN_WORDS) as usize..];
        for h in 0..c.heads {
            let query = |i: u32| query_codes[((reading * c.query_stride + i) * c.heads + h) as usize];
            let (mut peaks, mut sums, mut weighted, mut errors) = ([HIDDEN; 32], [0.0_f32; 32], [0.0_f32; 32], [0.0_f32; 32]);
            for n in first..end {
                let page = &pages[((tables[list.wrapping_add(n) as usize] * params.slab_heads + slab_head) * 4 * c.page_vecs) as usize..];
                let entry = (score_first.wrapping_add(n) * params.kv_heads + head) * c.blocks + block;
                let at = (entry * 128 * c.heads + h) as usize;
                let of = Reading { c, page, plan, query: &query, h };
                let more = if c.position_quads == 0 {
                    [0.0; 128]
                } else {
                    let terms = (head * c.blocks + block) * TERMS;
                    let term = |k: usize| position_terms[(((terms + k as u32) * c.position_places + score_first.wrapping_add(n)) * c.heads + h) as usize];
                    positions(c, turns, n, |entry| f32::from_bits(query(entry)), term)
                };
                let s: [[f32; 2]; 128] = std::array::from_fn(|t| match 128 * n + t as u32 {
                    token if token < visible_first || token >= visible_end => [HIDDEN, 0.0],
                    _ if c.code_planes => {
                        let [score, error] = of.code(t as u32);
                        [score + more[t], error]
                    }
                    _ => [of.half(t as u32), 0.0],
                });
                for (t, [s, _]) in s.iter().enumerate() {
                    scores[at + t * c.heads as usize] = *s;
                }
                for (lane, four) in s.chunks_exact(4).enumerate() {
                    let lane_peak = four[0][0].max(four[1][0]).max(four[2][0].max(four[3][0]));
                    let peak = peaks[lane].max(lane_peak);
                    let shrink = (peaks[lane] - peak).exp2();
                    let [a, b, d, e] = [0, 1, 2, 3].map(|k| (four[k][0] - peak).exp2());
                    sums[lane] = sums[lane] * shrink + ((a + b) + (d + e));
                    if c.code_planes {
                        let [a, b, d, e] = [0, 1, 2, 3].map(|k| (four[k][0] - lane_peak).exp2() * step(c, page, (4 * lane + k) as u32));
                        let together = (a + b) + (d + e);
                        scores[((c.score_quads + entry * 32 + lane as u32) * c.heads + h) as usize] = lane_peak + together.max(1e-30).log2();
                        weighted[lane] = weighted[lane] * shrink + (lane_peak - peak).exp2() * together;
                        errors[lane] = four.iter().fold(errors[lane], |most, [_, error]| most.max(*error));
                    }
                    peaks[lane] = peak;
                }
            }
            let largest = peaks.iter().copied().fold(HIDDEN, f32::max);
            let share = |sums: [f32; 32]| reduce_add(&std::array::from_fn(|lane| sums[lane] * (peaks[lane] - largest).exp2()));
            let entry = c.score_sums + ((x * params.kv_heads + head) * c.blocks + block) * SUM_ENTRIES;
            let mut put = |e: u32, x: f32| scores[((entry + e) * c.heads + h) as usize] = x;
            put(0, largest);
            put(1, share(sums));
            put(2, share(weighted));
            put(3, errors.into_iter().fold(0.0, f32::max));
            // Loads of the planes that may stay unread, where the kernel counts them.
            let planes = Planes::of(c.key_bits);
            let items = if c.code_planes { c.head_dim / 4 } else { c.head_dim };
            for plane in 0..3 {
                let counted = c.count && plane < planes.count() && (c.code_planes || plane > 0);
                let loads = if counted { (end - first) * (0..items).filter(|i| level(plan, *i) + plane < planes.count()).count() as u32 } else { 0 };
                put(4 + plane, loads as f32);
            }
        }
    }
}
