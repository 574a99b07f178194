// attend_merge: the partial results of one query row into its output row, with the value rotation undone.
//
//   output = H (sum_s 2^(m_s - m) row_s) / (sum_s 2^(m_s - m) sum_s),   m = max m_s    (H only where the codec rotates)
//
// One workgroup merges one row of one query head; invocation i holds channel i. Partials come from attend_split (one a
// slice of the pages, 256 at most) and from attend_prefill (one at most).
//
// Parts: half, finite, hadamard. Wrapper: src/kernel/attend_merge.rs. Twin: src/reference/attend_merge.rs.

override HEAD_DIM: u32;
override HADAMARD_OUTER: u32;
override HADAMARD_INNER: u32;
override HADAMARD_SCALE: f32;
override ROTATE: bool;
override HALF_ROWS: bool;
override HEADS: u32;
override BLOCKS: u32;
override EIGHTHS: u32;

struct AttendMergeParams { // src/kernel/attend_merge.rs
    records_at: u32,  // first row's record in tables
    row_first: u32,   // first row in output
    query_heads: u32,
    kv_heads: u32,
}

alias Cell = f32;

@group(0) @binding(0) var<uniform> params: AttendMergeParams;
@group(0) @binding(1) var<storage, read> tables: array<u32>;            // records of 4 words: first item, items, rows?, -
@group(0) @binding(2) var<storage, read> partials: array<f32>;          // [item, kv_heads, BLOCKS, HEAD_DIM + 2, HEADS]
@group(0) @binding(3) var<storage, read> row_partials: array<f32>;      // [row, query_heads, HEAD_DIM + 2]
@group(0) @binding(4) var<storage, read_write> output: array<u32>;      // [rows, query_heads, HEAD_DIM] f32 or f16

var<workgroup> row: array<f32, HEAD_DIM>;
var<workgroup> extents: array<f32, EIGHTHS>;
var<workgroup> weights: array<f32, 256>; // first each item's largest score, then its weight in the output

const HIDDEN = -1e30;

fn half_or_nan(x: f32) -> u32 {
    return select(0x7e00u, half_bits(x), finite(x));
}

@compute @workgroup_size(HEAD_DIM)
fn attend_merge(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let r = workgroup.x;
    let query_head = workgroup.y;
    let record = params.records_at + 4u * r;
    let first = tables[record];
    let count = min(tables[record + 1u], 256u);
    let with_rows = tables[record + 2u] != 0u;
    let share = params.query_heads / params.kv_heads;
    let block = query_head % share / HEADS;
    let stride = params.kv_heads * BLOCKS * (HEAD_DIM + 2u) * HEADS;
    let at = first * stride + (query_head / share * BLOCKS + block) * (HEAD_DIM + 2u) * HEADS + query_head % share % HEADS;
    let row_at = (r * params.query_heads + query_head) * (HEAD_DIM + 2u);

    var peak = HIDDEN;
    if (with_rows) {
        peak = row_partials[row_at + HEAD_DIM];
    }
    for (var s = i; s < count; s += HEAD_DIM) {
        let item_peak = partials[at + s * stride + HEAD_DIM * HEADS];
        weights[s] = item_peak;
        peak = max(peak, item_peak);
    }
    row[i] = peak;
    workgroupBarrier();
    if (i < EIGHTHS) {
        let e = 8u * i;
        extents[i] = max(max(max(row[e], row[e + 1u]), max(row[e + 2u], row[e + 3u])), max(max(row[e + 4u], row[e + 5u]), max(row[e + 6u], row[e + 7u])));
    }
    workgroupBarrier();
    for (var e = 0u; e < EIGHTHS; e++) {
        peak = max(peak, extents[e]);
    }
    for (var s = i; s < count; s += HEAD_DIM) {
        weights[s] = exp2(weights[s] - peak);
    }
    workgroupBarrier();

    var x = 0.0;
    var total = 0.0;
    if (with_rows) {
        let weight = exp2(row_partials[row_at + HEAD_DIM] - peak);
        x = weight * row_partials[row_at + i];
        total = weight * row_partials[row_at + HEAD_DIM + 1u];
    }
    // Eight items a turn, so that their loads are in flight together; surplus places repeat the last item at weight zero.
    for (var s = 0u; s < count; s += 8u) {
        let b = min(s + 1u, count - 1u);
        let c = min(s + 2u, count - 1u);
        let d = min(s + 3u, count - 1u);
        let e = min(s + 4u, count - 1u);
        let f = min(s + 5u, count - 1u);
        let g = min(s + 6u, count - 1u);
        let h = min(s + 7u, count - 1u);
        let low = vec4<f32>(weights[s], select(0.0, weights[b], b == s + 1u), select(0.0, weights[c], c == s + 2u), select(0.0, weights[d], d == s + 3u));
        let high = vec4<f32>(select(0.0, weights[e], e == s + 4u), select(0.0, weights[f], f == s + 5u), select(0.0, weights[g], g == s + 6u), select(0.0, weights[h], h == s + 7u));
        let channel = at + i * HEADS;
        x += dot(low, vec4<f32>(partials[channel + s * stride], partials[channel + b * stride], partials[channel + c * stride], partials[channel + d * stride]))
            + dot(high, vec4<f32>(partials[channel + e * stride], partials[channel + f * stride], partials[channel + g * stride], partials[channel + h * stride]));
        let sums = at + (HEAD_DIM + 1u) * HEADS;
        total += dot(low, vec4<f32>(partials[sums + s * stride], partials[sums + b * stride], partials[sums + c * stride], partials[sums + d * stride]))
            + dot(high, vec4<f32>(partials[sums + e * stride], partials[sums + f * stride], partials[sums + g * stride], partials[sums + h * stride]));
    }
    x = x / total;
    if (ROTATE) {
        row[i] = x;
        workgroupBarrier();
        x = hadamard_outer(i);
        workgroupBarrier();
        row[i] = x;
        workgroupBarrier();
        x = hadamard_inner(i);
    }
    let output_at = ((params.row_first + r) * params.query_heads + query_head) * HEAD_DIM + i;
    if (HALF_ROWS) {
        workgroupBarrier();
        row[i] = x;
        workgroupBarrier();
        if (i % 2u == 0u) {
            output[output_at / 2u] = half_or_nan(row[i]) | (half_or_nan(row[i + 1u]) << 16u);
        }
    } else {
        output[output_at] = bitcast<u32>(x);
    }
}
