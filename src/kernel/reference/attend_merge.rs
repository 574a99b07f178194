//! The twin of `shaders/attend_merge.wgsl`.

use super::bfloat::bfloat_bits;
use super::centre::Centred;
use super::half::half_bits;
use super::{Constants, finite, hadamard};
use crate::format::Element;
use crate::kernel::attend_merge::AttendMergeParams;
use std::f32::consts::{LN_2, LOG2_E};

const HIDDEN: f32 = -1e30;

/// Merges the partial results of `rows` query rows into their output rows. Shader:
/// `shaders/attend_merge.wgsl`.
///
/// `tables` holds the records (5 words), `partials` is
/// `[item, kv_heads, blocks, heads, head_dim + 4]`, `row_partials`
/// `[partial, query_heads, head_dim + 2]`, `marks` for Centred means and weights, and the sink
/// logits, `query_rows` what `query` wrote, `output` `[rows, query_heads, head_dim]` in f32, f16 or
/// bf16, `log_sums`
/// `[rows, query_heads]`, if they are wanted.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn attend_merge(
    params: &AttendMergeParams,
    constants: &Constants,
    rows: u32,
    tables: &[u32],
    partials: &[f32],
    row_partials: &[f32],
    marks: &[u32],
    query_rows: &[f32],
    output: &mut [u32],
    log_sums: Option<&mut [f32]>,
) {
    let c = constants;
    let mut log_sums = log_sums;
    let share = params.query_heads / params.kv_heads;
    let head_dim = c.head_dim as usize;
    for (r, query_head) in (0..rows).flat_map(|r| (0..params.query_heads).map(move |h| (r, h))) {
        let record = (params.records_at + 5 * r) as usize;
        let [first, count, row_first, row_count] = [0, 1, 2, 3].map(|e| tables[record + e] as usize);
        let has_first = tables[record + 4] == 1;
        let block = query_head % share / c.heads;
        let stride = (params.kv_heads * c.blocks * c.heads * (c.head_dim + 4)) as usize;
        let at = first * stride + (((query_head / share * c.blocks + block) * c.heads + query_head % share % c.heads) * (c.head_dim + 4)) as usize;
        let row_stride = (params.query_heads * (c.head_dim + 2)) as usize;
        let row_at = row_first * row_stride + (query_head * (c.head_dim + 2)) as usize;
        let pages = List { partials, at, stride, count, head_dim };
        // attend_direct leaves all of them in one list.
        let rows = if c.direct {
            List { partials, at: at + row_first * stride - first * stride, stride, count: row_count, head_dim }
        } else {
            List { partials: row_partials, at: row_at, stride: row_stride, count: row_count, head_dim }
        };
        let parts = c.parts as usize;
        let part = |part: usize, i: usize| {
            let mut merged = [HIDDEN, 0.0, 0.0];
            for s in (4 * part..row_count).step_by(4 * parts) {
                merged = merge_two(merged, rows.four(s, i));
            }
            for s in (16 * part..count).step_by(16 * parts) {
                let low = merge_two(pages.four(s, i), pages.four(s + 4, i));
                let high = merge_two(pages.four(s + 8, i), pages.four(s + 12, i));
                merged = merge_two(merged, merge_two(low, high));
            }
            merged
        };
        let merged = |i: usize| (1..parts).fold(part(0, i), |merged, p| merge_two(merged, part(p, i)));
        let [peak, total, _] = merged(0);
        // A query may have seen nothing here.
        let query = &query_rows[((r * params.query_heads + query_head) * c.query_row) as usize..][..head_dim];
        // Or have weighed nothing, since it is not finite: attend_direct says so by a sum below 0.
        let broken = if c.direct { total < 0.0 } else { total == 0.0 && !query.iter().all(|x| finite(*x)) };
        let nothing = total == 0.0 && !broken;
        let centred = Centred::of(c, marks, query_head / share);
        let still = still(c, &centred, query);
        let mut log_sum = if nothing { HIDDEN } else { LN_2 * (still + peak + total.log2()) };
        // The share of the weights that tokens have.
        let mut share_of_tokens = 1.0;
        if c.sink_logits && has_first {
            let logit = LOG2_E * f32::from_bits(marks[(c.logits_at + query_head) as usize]) - still;
            let top = logit.max(peak);
            let tokens = total * (peak - top).exp2();
            let all = tokens + (logit - top).exp2();
            share_of_tokens = tokens / all;
            log_sum = LN_2 * (still + top + all.log2());
        }
        if let Some(log_sums) = &mut log_sums {
            let at = (params.row_first + r) * params.query_heads + query_head;
            log_sums[at as usize] = if broken { f32::NAN } else { log_sum };
        }
        let mut row: Vec<f32> = (0..head_dim).map(merged).map(|[_, total, x]| if nothing { 0.0 } else { x / total * share_of_tokens }).collect();
        if c.rotate_values {
            row = hadamard::row(c, &row);
        }
        for ((x, sign), mean) in row.iter_mut().zip(&centred.value_signs).zip(&centred.value_means) {
            *x = *x * sign + if nothing { 0.0 } else { share_of_tokens * *mean };
        }
        let output_at = c.row(c.output_at, params.row_first + r, params.query_heads, query_head) as usize;
        let bits = |x: f32| match c.element {
            Element::F32 => x.to_bits(),
            Element::F16 if !finite(x) => 0x7e00,
            Element::F16 => half_bits(x),
            Element::Bf16 => bfloat_bits(x),
        };
        if c.element == Element::F32 {
            for (i, x) in row.iter().enumerate() {
                output[output_at + i] = bits(*x);
            }
        } else {
            for (i, pair) in row.chunks_exact(2).enumerate() {
                output[output_at / 2 + i] = bits(pair[0]) | (bits(pair[1]) << 16);
            }
        }
    }
}

/// Returns what the means of the channels that do not turn add to every score of a query.
fn still(c: &Constants, centred: &Centred, query: &[f32]) -> f32 {
    if c.still == c.head_dim {
        return 0.0;
    }
    let query = hadamard::row(c, query);
    let share = |i: usize| if i < c.still as usize { 0.0 } else { query[i] * centred.weights[i] * centred.key_means[i] };
    (0..16).map(|i| (i..query.len()).step_by(16).map(share).sum::<f32>()).sum()
}

/// Merges two partial results: largest score, sum of weights, one channel of the weighted rows.
fn merge_two(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    let peak = a[0].max(b[0]);
    let (x, y) = ((a[0] - peak).exp2(), (b[0] - peak).exp2());
    [peak, x * a[1] + y * b[1], x * a[2] + y * b[2]]
}

/// One list of partial results of one query head.
struct List<'a> {
    partials: &'a [f32],
    at: usize,
    stride: usize,
    count: usize,
    head_dim: usize,
}

impl List<'_> {
    /// Returns channel `i` of the four items from `s` on, without those beyond the last.
    fn four(&self, s: usize, i: usize) -> [f32; 3] {
        let entry = |k: usize, e: usize| self.partials[self.at + (s + k).min(self.count - 1) * self.stride + e];
        let there = |k: usize| s + k < self.count;
        let peaks: [f32; 4] = std::array::from_fn(|k| if there(k) { entry(k, self.head_dim) } else { HIDDEN });
        let peak = peaks[0].max(peaks[1]).max(peaks[2].max(peaks[3]));
        let weights: [f32; 4] = std::array::from_fn(|k| if there(k) { (peaks[k] - peak).exp2() } else { 0.0 });
        let dot = |e: usize| (weights[0] * entry(0, e) + weights[1] * entry(1, e)) + (weights[2] * entry(2, e) + weights[3] * entry(3, e));
        [peak, dot(self.head_dim + 1), dot(i)]
    }
}
