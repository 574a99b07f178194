// attend_merge: the partial results of one query row into its output row, with the value rotation
// undone.
//
//   output = H (sum_s 2^(m_s - m) row_s) / (sum_s 2^(m_s - m) sum_s) + mean,   m = max m_s
//                                             (H only where the codec rotates, the mean of the values only for Centred)
//   log_sums = ln 2 (c + m + log2 sum_s 2^(m_s - m) sum_s)    where other caches have outputs of the same query over other tokens
//
// A query head may have a sink logit (gpt-oss): a score without a value that takes its share of the
// weights, once for each sequence, whose row says so where the sequence has its first token here.
//
// c is what the means of the channels that do not turn add to every score of the query alike
// (Centred): the output does not depend on it, and no other kernel adds it. A query that saw no
// token has an output of 0, without the mean, and a log-sum of -1e30. A query that is not finite
// has weights of 0, too (or a sum below 0, by attend_direct), and NaN for both.
//
// One workgroup merges one row of one query head; invocation i of each part holds channel i.
// Partials of a decoding row come from attend_split (one a slice of the pages) and attend_rows (one a
// few tiles of the f16 rows), or all from attend_direct, those of others from attend_prefill or attend_matrices (one or a few),
// shared out among the parts: as many as the device allows where a row has many, since a part that
// takes turn after turn waits for memory every time.
//
// Wrapper: src/kernel/attend_merge.rs. Twin: src/kernel/reference/attend_merge.rs.

override HEAD_DIM: u32;
override ROTATE_VALUES: bool;
override ELEMENT: u32;  // type of the output: 0 f32, 1 f16, 2 bf16
override LOG_SUMS: bool;
override DIRECT: bool;  // whether attend_direct made the partial results, all of them in partials
override SINK_LOGITS: bool;
override LOGITS_AT: u32; // first sink logit in marks, one a query head
override STILL: u32;    // first channel that has a mean and does not turn; HEAD_DIM where none
override QUERY_ROW: u32; // numbers from one row of query_rows to the next
override HEADS: u32;
override BLOCKS: u32;
override PARTS: u32;    // runs of HEAD_DIM invocations that share a row's items
override THREADS: u32;  // HEAD_DIM * PARTS

struct AttendMergeParams { // src/kernel/attend_merge.rs
    records_at: u32,  // first row's record in tables
    row_first: u32,   // first row in output
    query_heads: u32,
    kv_heads: u32,
}

alias Cell = f32;

@group(1) @binding(0) var<uniform> params: AttendMergeParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;            // records of 5 words: first and count in both lists, and whether sink logits count
@group(0) @binding(0) var<storage, read> partials: array<f32>;          // [item, kv_heads, BLOCKS, HEADS, HEAD_DIM + 4]
@group(0) @binding(1) var<storage, read> row_partials: array<f32>;      // [partial, query_heads, HEAD_DIM + 2]
@group(0) @binding(2) var<storage, read> marks: array<u32>;             // [kv_heads, 3, HEAD_DIM] f32, for Centred; sink logits
@group(0) @binding(3) var<storage, read> query_rows: array<f32>;        // [row, query_heads, QUERY_ROW]: log2(e) scale H (q / weight)
@group(2) @binding(0) var<storage, read_write> output: array<u32>;      // [rows, query_heads, HEAD_DIM] f32, f16 or bf16
@group(2) @binding(1) var<storage, read_write> log_sums: array<f32>;    // [rows, query_heads]

var<workgroup> row: array<f32, HEAD_DIM>;
var<workgroup> gathered: array<vec3<f32>, THREADS>; // each part's largest score, sum and channel

const HIDDEN = -1e30;
const LN_2 = 0.6931471805599453;
const LOG2_E = 1.4426950408889634;

// A variable, since a constant may not be NaN.
fn nan() -> f32 {
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}

// A number of the output in 16 bits.
fn output_bits(x: f32) -> u32 {
    if (ELEMENT == 2u) {
        return bfloat_bits(x);
    }
    return select(0x7e00u, half_bits(x), finite(x));
}

// Some items merged: largest score, sum of weights, one channel of the weighted rows.
fn merge_two(a: vec3<f32>, b: vec3<f32>) -> vec3<f32> {
    let peak = max(a.x, b.x);
    return vec3<f32>(peak, exp2(a.x - peak) * a.yz + exp2(b.x - peak) * b.yz);
}

fn partial_at(rows: bool, at: u32) -> f32 {
    if (rows && !DIRECT) {
        return row_partials[at];
    }
    return partials[at];
}

// Four items from s on, of either list, those beyond the last left out. Every invocation merges the
// scores for itself: the loads are the same for all and need no barrier.
fn merge_four(rows: bool, s: u32, at: u32, i: u32, stride: u32, count: u32) -> vec3<f32> {
    let a = at + min(s, count - 1u) * stride;
    let b = at + min(s + 1u, count - 1u) * stride;
    let c = at + min(s + 2u, count - 1u) * stride;
    let d = at + min(s + 3u, count - 1u) * stride;
    let there = vec4<u32>(s, s + 1u, s + 2u, s + 3u) < vec4<u32>(count);
    let found = vec4<f32>(partial_at(rows, a + HEAD_DIM), partial_at(rows, b + HEAD_DIM), partial_at(rows, c + HEAD_DIM), partial_at(rows, d + HEAD_DIM));
    let peaks = select(vec4<f32>(HIDDEN), found, there);
    let peak = max(max(peaks.x, peaks.y), max(peaks.z, peaks.w));
    let weights = select(vec4<f32>(0.0), exp2(peaks - vec4<f32>(peak)), there);
    let e = HEAD_DIM + 1u;
    let sums = vec4<f32>(partial_at(rows, a + e), partial_at(rows, b + e), partial_at(rows, c + e), partial_at(rows, d + e));
    let channels = vec4<f32>(partial_at(rows, a + i), partial_at(rows, b + i), partial_at(rows, c + i), partial_at(rows, d + i));
    return vec3<f32>(peak, dot(weights, sums), dot(weights, channels));
}

@compute @workgroup_size(THREADS)
fn attend_merge(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let r = workgroup.x;
    let query_head = workgroup.y;
    let i = thread % HEAD_DIM;
    let part = thread / HEAD_DIM;
    let record = params.records_at + 5u * r;
    let first = tables[record];
    let count = tables[record + 1u];
    let row_count = tables[record + 3u];
    let share = params.query_heads / params.kv_heads;
    let block = query_head % share / HEADS;
    let stride = params.kv_heads * BLOCKS * HEADS * (HEAD_DIM + 4u);
    let at = first * stride + ((query_head / share * BLOCKS + block) * HEADS + query_head % share % HEADS) * (HEAD_DIM + 4u);
    var row_stride = params.query_heads * (HEAD_DIM + 2u);
    var row_at = tables[record + 2u] * row_stride + query_head * (HEAD_DIM + 2u);
    if (DIRECT) {
        row_stride = stride;
        row_at = at + (tables[record + 2u] - first) * stride;
    }

    var merged = vec3<f32>(HIDDEN, 0.0, 0.0);
    for (var s = 4u * part; s < row_count; s += 4u * PARTS) {
        merged = merge_two(merged, merge_four(true, s, row_at, i, row_stride, row_count));
    }
    // Sixteen items a turn, so that their loads are in flight together.
    for (var s = 16u * part; s < count; s += 16u * PARTS) {
        let low = merge_two(merge_four(false, s, at, i, stride, count), merge_four(false, s + 4u, at, i, stride, count));
        let high = merge_two(merge_four(false, s + 8u, at, i, stride, count), merge_four(false, s + 12u, at, i, stride, count));
        merged = merge_two(merged, merge_two(low, high));
    }
    if (PARTS > 1u) {
        gathered[thread] = merged;
        workgroupBarrier();
        // From here on only the first part's numbers count.
        if (part == 0u) {
            for (var p = 1u; p < PARTS; p++) {
                merged = merge_two(merged, gathered[p * HEAD_DIM + i]);
            }
        }
    }
    // A query may have seen nothing here, or have weighed nothing, since it is not finite.
    let query_at = (r * params.query_heads + query_head) * QUERY_ROW;
    var nothing = merged.y == 0.0;
    // attend_direct says so by the sums of its weights, and writes no query_rows.
    var broken = DIRECT && merged.y < 0.0;
    if (!DIRECT && nothing && part == 0u) {
        for (var e = 0u; e < HEAD_DIM; e++) {
            broken = broken || !finite(query_rows[query_at + e]);
        }
        nothing = !broken;
    }
    // The share of the weights that tokens have, and the logarithm of the weights' sum.
    var share_of_tokens = 1.0;
    if (LOG_SUMS || SINK_LOGITS) {
        var still = 0.0;
        if (STILL < HEAD_DIM) {
            // The query's rotation is undone, and its weights go with those of the mean.
            if (part == 0u) {
                row[i] = query_rows[query_at + i];
            }
            workgroupBarrier();
            var q = 0.0;
            if (part == 0u) {
                q = hadamard_outer(i);
            }
            workgroupBarrier();
            if (part == 0u) {
                row[i] = q;
            }
            workgroupBarrier();
            if (part == 0u) {
                q = hadamard_inner(i);
            }
            workgroupBarrier();
            if (part == 0u) {
                row[i] = select(0.0, q * centre_weights(query_head / share, i).x * centre_means(query_head / share, i).x, i >= STILL);
            }
            workgroupBarrier();
            if (thread < 16u) {
                for (var e = thread; e < HEAD_DIM; e += 16u) {
                    still += row[e];
                }
            }
            workgroupBarrier();
            if (thread < 16u) {
                row[i] = still;
            }
            workgroupBarrier();
            still = 0.0;
            for (var e = 0u; e < 16u; e++) {
                still += row[e];
            }
            workgroupBarrier();
        }
        var log_sum = select(LN_2 * (still + merged.x + log2(merged.y)), HIDDEN, nothing);
        if (SINK_LOGITS && tables[record + 4u] == 1u) {
            let logit = LOG2_E * bitcast<f32>(marks[LOGITS_AT + query_head]) - still;
            let peak = max(logit, merged.x);
            let tokens = merged.y * exp2(merged.x - peak);
            let all = tokens + exp2(logit - peak);
            share_of_tokens = tokens / all;
            log_sum = LN_2 * (still + peak + log2(all));
        }
        if (LOG_SUMS && thread == 0u) {
            log_sums[(params.row_first + r) * params.query_heads + query_head] = select(log_sum, nan(), broken);
        }
    }
    var x = select(select(merged.z / merged.y, 0.0, nothing) * share_of_tokens, nan(), broken);
    if (ROTATE_VALUES) {
        if (part == 0u) {
            row[i] = x;
        }
        workgroupBarrier();
        if (part == 0u) {
            x = hadamard_outer(i);
        }
        workgroupBarrier();
        if (part == 0u) {
            row[i] = x;
        }
        workgroupBarrier();
        if (part == 0u) {
            x = hadamard_inner(i);
        }
    }
    x *= centre_weights(query_head / share, i).y;
    x += select(share_of_tokens * centre_means(query_head / share, i).y, 0.0, nothing);
    let output_at = layout_row(0u, params.row_first + r, params.query_heads, query_head) + i;
    if (ELEMENT != 0u) {
        workgroupBarrier();
        if (part == 0u) {
            row[i] = x;
        }
        workgroupBarrier();
        if (part == 0u && i % 2u == 0u) {
            output[output_at / 2u] = output_bits(row[i]) | (output_bits(row[i + 1u]) << 16u);
        }
    } else if (part == 0u) {
        output[output_at] = bitcast<u32>(x);
    }
}
