//! The twin of `shaders/align_scores.wgsl`.

use super::aligned::filled;
use super::half::unpack;
use super::{Constants, planes};
use crate::kernel::align_plan::PLAN_WORDS;
use crate::kernel::align_scores::AlignScoresParams;

const HIDDEN: f32 = -1e30;

/// The scores of one query row against one slice of the packed pages, for `items` slices. Shader: `shaders/align_scores.wgsl`.
///
/// `tables` holds the items (8 words) and lists of physical pages, `query_codes` is `[row, kv_heads, blocks, query_stride, heads]`, `plans`
/// `[row, kv_heads, blocks, 112]`, `pages` `[physical page, slab head, 4 * page_vecs]`, `scores` `[page of the pass, kv_heads, blocks, 128,
/// heads]`, then four entries an item.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn align_scores(
    params: &AlignScoresParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    query_codes: &[u32],
    plans: &[u32],
    pages: &[u32],
    scores: &mut [f32],
) {
    let c = constants;
    for (x, y) in (0..items).flat_map(|x| (0..params.slab_heads * c.blocks).map(move |y| (x, y))) {
        let item = (params.items_at + 8 * x) as usize;
        let [row, list, first, end, visible_first, visible_end, score_first] = [0, 1, 2, 3, 4, 5, 6].map(|e| tables[item + e]);
        let (slab_head, block) = (y / c.blocks, y % c.blocks);
        let head = tables[(params.heads_at + slab_head) as usize];
        let reading = (row * params.kv_heads + head) * c.blocks + block;
        let plan = &plans[(reading * PLAN_WORDS) as usize..];
        let level = |i: u32| plan[(i / 16) as usize] >> (2 * (i % 16)) & 3;
        for h in 0..c.heads {
            let query = |i: u32| f32::from_bits(query_codes[((reading * c.query_stride + i) * c.heads + h) as usize]);
            let (mut peaks, mut sums) = ([HIDDEN; 32], [0.0_f32; 32]);
            for n in first..end {
                let page = &pages[((tables[(list + n) as usize] * params.slab_heads + slab_head) * 4 * c.page_vecs) as usize..];
                let at = ((((score_first + n) * params.kv_heads + head) * c.blocks + block) * 128 * c.heads + h) as usize;
                let s: [f32; 128] = std::array::from_fn(|t| {
                    let token = 128 * n + t as u32;
                    if token < visible_first || token >= visible_end {
                        return HIDDEN;
                    }
                    let key = |i: u32| unpack(filled(planes::take(c, page, 128, i, t as u32), level(i)).into())[0];
                    (0..c.head_dim).fold(0.0, |s, i| s + key(i) * query(i))
                });
                for (t, s) in s.iter().enumerate() {
                    scores[at + t * c.heads as usize] = *s;
                }
                for (lane, four) in s.chunks_exact(4).enumerate() {
                    let peak = peaks[lane].max(four[0].max(four[1]).max(four[2].max(four[3])));
                    let [a, b, d, e] = [0, 1, 2, 3].map(|k| (four[k] - peak).exp2());
                    sums[lane] = sums[lane] * (peaks[lane] - peak).exp2() + ((a + b) + (d + e));
                    peaks[lane] = peak;
                }
            }
            let largest = peaks.iter().copied().fold(HIDDEN, f32::max);
            let shares = std::array::from_fn(|lane| sums[lane] * (peaks[lane] - largest).exp2());
            let entry = c.score_sums + ((x * params.kv_heads + head) * c.blocks + block) * 4;
            let mut put = |e: u32, x: f32| scores[((entry + e) * c.heads + h) as usize] = x;
            put(0, largest);
            put(1, super::attend_split::reduce_add(&shares));
            // Loads of the planes that may stay unread, where the kernel counts them.
            let loads = |most: u32| if c.count { (end - first) * (0..c.head_dim).filter(|i| level(*i) < most).count() as u32 } else { 0 };
            put(2, loads(2) as f32);
            put(3, loads(1) as f32);
        }
    }
}
