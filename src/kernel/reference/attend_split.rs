//! The twin of `shaders/attend_split.wgsl`.

use super::cached::elected;
use super::cap::cap;
use super::grouped::{Grouped, Spot};
use super::half::unpack;
use super::positions::positions;
use super::{Constants, hadamard, scales, trellis, turn};
use crate::kernel::attend_split::AttendSplitParams;
use crate::kernel::position::TERMS;

const HIDDEN: f32 = -1e30;

/// One KV head's page and one query head's codes, as the functions below read them.
struct Reading<'a> {
    c: &'a Constants,
    /// One head's page.
    page: &'a [u32],
    /// One block's query codes: `[query_stride, heads]`.
    queries: &'a [u32],
    /// The query head among `heads`.
    h: usize,
    /// For RotateKV: the keys of the page's 128 tokens without the rotation, before RoPE; and the
    /// page's number in the sequence.
    restored: &'a [Vec<f32>],
    n: u32,
}

/// Attends one query row to one slice of the packed pages, for `items` slices. Shader:
/// `shaders/attend_split.wgsl`.
///
/// `tables` holds the items (9 words) and lists of physical pages, `turns` is as
/// [`turns`](super::turns), `query_codes` `[row, kv_heads, blocks, query_stride, heads]`, `marks`
/// the groups of key channels and the elected sinks, `key_scales`
/// `[physical page, row_groups, scale_vecs]` vec4s, `pages`
/// `[physical page, slab head, 4 * page_vecs]`, `position_terms`
/// `[kv_heads, blocks, 12, page of the pass, heads]` for Centred, `partials`
/// `[item, kv_heads, blocks, heads, head_dim + 4]`.
///
/// RotateKV's keys are restored in f32 as `shaders/part/restore/rolled.wgsl` does it;
/// `restore/straight` does it in halves.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn attend_split(
    params: &AttendSplitParams,
    constants: &Constants,
    items: u32,
    tables: &[u32],
    turns: &[[f32; 2]],
    query_codes: &[u32],
    marks: &[u32],
    key_scales: &[u32],
    pages: &[u32],
    position_terms: &[f32],
    partials: &mut [f32],
) {
    let c = constants;
    let grouped = Grouped { constants, marks, key_scales, pages };
    for (x, y) in (0..items).flat_map(|x| (0..params.slab_heads * c.blocks).map(move |y| (x, y))) {
        let item = (params.items_at + x * 9) as usize;
        let [query_row, list, first, end, visible_first, visible_end, pages_at, limit, slot] = [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|e| tables[item + e]);
        let (slab_head, block) = (y / c.blocks, y % c.blocks);
        let head = tables[(params.heads_at + slab_head) as usize];
        let queries_at = (((query_row * params.kv_heads + head) * c.blocks + block) * c.query_stride * c.heads) as usize;
        let queries = &query_codes[queries_at..queries_at + (c.query_stride * c.heads) as usize];
        let at = ((x * params.kv_heads + head) * c.blocks + block) * c.heads * (c.head_dim + 4);
        let sinks: Vec<u32> =
            if c.massive { marks[elected(c, slot)..][..c.sinks as usize].iter().copied().filter(|t| *t < limit).collect() } else { Vec::new() };
        // Restored once for all query heads.
        let restored: Vec<Vec<Vec<f32>>> = (first..end)
            .filter(|_| c.restore)
            .map(|n| {
                let spot = Spot { physical: tables[list.wrapping_add(n) as usize], slab_heads: params.slab_heads, slab_head, head };
                (0..128)
                    .map(|t| {
                        let spread = grouped.spread(&spot, t);
                        (0..c.head_dim).map(|i| hadamard::outer(c, &spread, i)).collect()
                    })
                    .collect()
            })
            .collect();
        // The shader's vectors over query heads are a loop here.
        for h in 0..c.heads {
            let mut peak = HIDDEN;
            let mut sums = [0.0; 32];
            let mut zeros = vec![[0.0; 32]; c.value_groups as usize];
            let mut row = vec![0.0; c.head_dim as usize];
            for n in first..end {
                let page_at = ((tables[list.wrapping_add(n) as usize] * params.slab_heads + slab_head) * c.page_vecs * 4) as usize;
                let page = &pages[page_at..page_at + 4 * c.page_vecs as usize];
                let restored = restored.get((n - first) as usize).map_or(&[][..], Vec::as_slice);
                let reading = Reading { c, page, queries, h: h as usize, restored, n };
                let mut s = reading.scores(turns);
                if c.position_quads > 0 {
                    let first = (head * c.blocks + block) * TERMS;
                    let term = |k: usize| position_terms[(((first + k as u32) * c.position_places + pages_at.wrapping_add(n)) * c.heads + h) as usize];
                    let more = positions(c, turns, n, |entry| f32::from_bits(reading.query(entry)), term);
                    for (s, more) in s.iter_mut().zip(more) {
                        *s += more;
                    }
                }
                for (t, s) in s.iter_mut().enumerate() {
                    *s = cap(c, *s);
                    let token = n * 128 + t as u32;
                    if token < visible_first || token >= visible_end || sinks.contains(&token) {
                        *s = HIDDEN;
                    }
                }
                let new_peak = s.iter().copied().fold(peak, f32::max);
                let shrink = (peak - new_peak).exp2();
                peak = new_peak;
                let p = s.map(|s| (s - peak).exp2());
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|e| p[4 * lane + e]);
                    *sum = *sum * shrink + ((a + b) + (c + d));
                }
                for x in &mut row {
                    *x *= shrink;
                }
                if c.value_bits == 16 {
                    reading.values_f16(&p, &mut row);
                } else {
                    for (g, zeros) in zeros.iter_mut().enumerate() {
                        reading.values_integer(g, &p, shrink, zeros, &mut row);
                    }
                }
            }
            let zeros: Vec<f32> = zeros.iter().map(reduce_add).collect();
            let mut put = |entry: u32, x: f32| partials[(at + h * (c.head_dim + 4) + entry) as usize] = x;
            for (i, x) in row.iter().enumerate() {
                put(i as u32, x - zeros[i / c.value_group as usize]);
            }
            put(c.head_dim, peak);
            put(c.head_dim + 1, reduce_add(&sums));
            put(c.head_dim + 2, 0.0);
            put(c.head_dim + 3, 0.0);
        }
    }
}

/// Returns the sum over the lanes, in the order of `shaders/part/reduce/workgroup.wgsl`.
pub(super) fn reduce_add(lanes: &[f32; 32]) -> f32 {
    let eight = |n: usize| ((lanes[n] + lanes[n + 1]) + (lanes[n + 2] + lanes[n + 3])) + ((lanes[n + 4] + lanes[n + 5]) + (lanes[n + 6] + lanes[n + 7]));
    (eight(0) + eight(8)) + (eight(16) + eight(24))
}

/// Returns what WGSL's `dot4I8Packed` does.
fn dot_i8(a: u32, b: u32) -> i32 {
    a.to_le_bytes().iter().zip(b.to_le_bytes()).map(|(a, b)| i32::from(*a as i8) * i32::from(b as i8)).sum()
}

impl Reading<'_> {
    fn query(&self, entry: u32) -> u32 {
        self.queries[(entry * self.c.heads) as usize + self.h]
    }

    /// Returns the scores of the page's 128 tokens, in log2 units.
    fn scores(&self, turns: &[[f32; 2]]) -> [f32; 128] {
        std::array::from_fn(|t| match self.c.key_bits {
            _ if self.c.restore => self.score_restored(turns, t),
            16 => self.score_f16(t),
            _ => self.score_integer(t),
        })
    }

    /// Returns `q . RoPE(k)` as the sum of `k_c (q_c cos - s q_p sin)`, by lanes.
    fn score_restored(&self, turns: &[[f32; 2]], t: usize) -> f32 {
        let c = self.c;
        let key = &self.restored[t];
        let query = |channel: u32| f32::from_bits(self.query(channel));
        let mut score = 0.0;
        for lane in 0..32 {
            let mut dot = 0.0;
            for i in (lane..c.head_dim).step_by(32) {
                let pair = turn::pair(c, i);
                let (mut other, mut cosine, mut sine) = (0.0, 1.0, 0.0);
                if pair < c.rope_pairs {
                    other = query(turn::partner(c, i));
                    let turn = turn::at(c, turns, pair, 128 * self.n + t as u32);
                    (cosine, sine) = (turn[0], -turn::sign(c, i) * turn[1]);
                }
                dot += key[i as usize] * (query(i) * cosine + other * sine);
            }
            score += dot;
        }
        score
    }

    /// Returns word `w` of the keys of token `t`.
    fn key(&self, w: u32, t: usize) -> u32 {
        self.page[w as usize * 128 + t]
    }

    fn score_f16(&self, t: usize) -> f32 {
        let mut score = 0.0;
        for w in 0..self.c.key_steps {
            let [a, b] = unpack(self.key(w, t));
            score += a * f32::from_bits(self.query(2 * w)) + b * f32::from_bits(self.query(2 * w + 1));
        }
        score
    }

    fn score_integer(&self, t: usize) -> f32 {
        let c = self.c;
        let bits = if c.key_bits == 3 { 2 } else { c.key_bits };
        let shifts = 8 / bits;
        let mask = if bits == 8 { u32::MAX } else { ((1 << bits) - 1) * 0x0101_0101 };
        let (mut dot, mut score) = (0, 0.0);
        for quad in 0..c.head_dim / 4 {
            let mut codes = (self.key(quad / shifts, t) >> (quad % shifts * bits)) & mask;
            if c.key_bits == 3 {
                codes |= ((self.key(c.head_dim / 16 + quad / 8, t) >> (quad % 8)) & 0x0101_0101) << 2;
            }
            if c.key_trellis {
                codes = self.key_levels(quad, t);
            }
            dot += dot_i8(codes, self.query(quad));
            // The last quad of a group: its integer dot becomes a score through the token's scale
            // and zero.
            if 4 * (quad + 1) % c.key_group == 0 {
                let g = 4 * quad / c.key_group;
                let [scale, zero] = scales::key(c, self.page, c.key_scales + g * scales::vecs(c.scales), t as u32);
                score += scale * (dot as f32 - zero * f32::from_bits(self.query(c.head_dim / 4 + 1 + g)));
                dot = 0;
            }
        }
        score * f32::from_bits(self.query(c.head_dim / 4))
    }

    /// Returns the levels of a quad of a trellis, a byte each.
    fn key_levels(&self, quad: u32, t: usize) -> u32 {
        let words = self.c.key_group / 16;
        let (w, first) = (quad / 4, quad / 4 / words * words);
        let before = self.key(if w == first { first + words - 1 } else { w - 1 }, t);
        trellis::word_levels(self.key(w, t), before)[quad as usize % 4]
    }

    fn values_f16(&self, p: &[f32; 128], row: &mut [f32]) {
        let c = self.c;
        for w in 0..64 {
            for (i, x) in row.iter_mut().enumerate() {
                let [a, b] = unpack(self.page[(4 * c.values) as usize + w * c.head_dim as usize + i]);
                *x += a * p[2 * w] + b * p[2 * w + 1];
            }
        }
    }

    /// Quantizes the group's weights to u8, then sums its channels over the page's tokens, all in
    /// integers.
    fn values_integer(&self, g: usize, p: &[f32; 128], shrink: f32, zeros: &mut [f32; 32], row: &mut [f32]) {
        let c = self.c;
        const UNIT: f32 = (1.0 / 255.0_f64) as f32;
        let pairs: [[f32; 2]; 128] = std::array::from_fn(|t| scales::value(c, self.page, c.value_scales + g as u32 * scales::vecs(c.scales), t as u32));
        let weights: [f32; 128] = std::array::from_fn(|t| p[t] * pairs[t][0]);
        let peak = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max).max(1e-30);
        let inverse = 255.0 / peak;
        let codes: [u32; 128] = weights.map(|w| (w * inverse + 0.5) as u32);
        for (lane, zero) in zeros.iter_mut().enumerate() {
            let [a, b, c, d] = [0, 1, 2, 3].map(|e| codes[4 * lane + e] as f32 * pairs[4 * lane + e][1]);
            *zero = *zero * shrink + peak * UNIT * ((a + b) + (c + d));
        }
        let bits = if c.value_bits == 3 { 2 } else { c.value_bits };
        let shifts = 8 / bits;
        let scale = peak * UNIT;
        let first = g * c.value_group as usize;
        for (i, x) in row.iter_mut().enumerate().skip(first).take(c.value_group as usize) {
            let word = |w: u32| self.page[(4 * c.values + w * c.head_dim) as usize + i];
            let mut sum = 0;
            // The two channels before, round the group.
            let before = |by: usize| first + (i - first + c.value_group as usize - by) % c.value_group as usize;
            let symbol = |i: usize, t: u32| (self.page[(4 * c.values + t / 16 * c.head_dim) as usize + i] >> (t / 4 % 4 * 2 + 8 * (t % 4))) & 3;
            for (t, weight) in (0..).zip(codes) {
                let (lane, corner) = (t / 4, t % 4);
                let mut code = (word(lane / shifts) >> (lane % shifts * bits + 8 * corner)) & ((1 << bits) - 1);
                if c.value_bits == 3 {
                    code |= ((word(8 + lane / 8) >> (lane % 8 + 8 * corner)) & 1) << 2;
                }
                if c.value_trellis {
                    code = trellis::level(symbol(i, t), symbol(before(1), t), symbol(before(2), t));
                }
                sum += weight * code;
            }
            *x += sum as f32 * scale;
        }
    }
}
