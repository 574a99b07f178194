// align_scores: the scores of one query row against one slice of the packed pages, from the planes
// of the keys that align_plan chose. AlignedKV (2409.16546).
//
//   s_t = sum_i q_i k_ti   in log2 units, with the bits of unread planes as 100..0 (halves) or their middle (integer codes)
//
// For Centred what the mean of the keys adds follows from the position and the query (part
// positions): no plane is read for it, so it is in full in every score, and the bound on a score's
// error knows nothing of it.
//
// 32 lanes walk the pages first..end of one sequence for one KV head and up to HEADS query heads
// that share it; a lane owns four tokens. The level of a channel (or of four of them) is the same
// for all tokens: a plane that is not wanted is not loaded, by a branch.
//
// Wrapper: src/kernel/align_scores.rs. Twin: src/kernel/reference/align_scores.rs.

override BLOCKS: u32;
override QUERY_STRIDE: u32;
override POSITION_PLACES: u32; // pages of a pass
override PAGE_VECS: u32;
override CODES: bool;        // whether the planes are of integer codes
override SCORE_SUMS: u32;    // entries of scores before the sums of the items
override SCORE_QUADS: u32;   // entries of scores before those of four tokens' values together

struct AlignScoresParams { // src/kernel/align_scores.rs
    items_at: u32,    // first item in tables
    slab_heads: u32,  // KV heads whose pages lie in this slab
    heads_at: u32,    // which they are, in tables
    kv_heads: u32,    // KV heads of the layer
}

@group(1) @binding(0) var<uniform> params: AlignScoresParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;            // items of 8 words; lists of physical pages
@group(0) @binding(0) var<storage, read> turns: array<vec4<f32>>;       // [128 low + high positions, pairs], two a vector
@group(0) @binding(1) var<storage, read> query_codes: array<HeadsU>;    // [row, kv_head, block, QUERY_STRIDE] f32
@group(0) @binding(2) var<storage, read> plans: array<u32>;             // [row, kv_head, block, PLAN_WORDS]
@group(0) @binding(3) var<storage, read> pages: array<u32>;             // [physical page, slab head, 4 * PAGE_VECS]
@group(0) @binding(4) var<storage, read> position_terms: array<HeadsF>; // [kv_head, block, 12, page of the pass], for Centred
@group(0) @binding(5) var<storage, read_write> scores: array<HeadsF>;   // [page of the pass, kv_head, block, 128], then sums, then quads

const HIDDEN = -1e30;
const PLAN_WORDS = 112u;
const SUM_ENTRIES = 7u;

struct Scores { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF }

// What the part for the keys finds: the scores, and (of integer codes) what each may be off by.
struct Keyed { s: Scores, error: Scores }

// How often the lane loaded words of each plane, as far as a plane may stay unread.
var<private> loads: vec3<u32>;

fn shown(s: Scores, hidden: f32, visible: vec4<bool>) -> Scores {
    let none = HeadsF(hidden);
    return Scores(select(none, s.a, visible.x), select(none, s.b, visible.y), select(none, s.c, visible.z), select(none, s.d, visible.w));
}

@compute @workgroup_size(32)
fn align_scores(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = params.items_at + 9u * workgroup.x;
    let row = tables[item];
    let list = tables[item + 1u];
    let first = tables[item + 2u];
    let end = tables[item + 3u];
    let visible_first = tables[item + 4u];
    let visible_end = tables[item + 5u];
    let score_first = tables[item + 6u];
    let slab_head = workgroup.y / BLOCKS;
    let block = workgroup.y % BLOCKS;
    let head = tables[params.heads_at + slab_head];
    let reading = (row * params.kv_heads + head) * BLOCKS + block;
    queries_take(reading * QUERY_STRIDE, 0u, lane);
    let base = positions_base(reading * QUERY_STRIDE, lane);
    keys_open(reading * PLAN_WORDS, lane);
    loads = vec3<u32>(0u);
    workgroupBarrier();

    var peak = HeadsF(HIDDEN);
    var sum = HeadsF(0.0);
    var weighted = HeadsF(0.0);
    var error = HeadsF(0.0);
    for (var n = first; n < end; n++) {
        let page = (tables[list + n] * params.slab_heads + slab_head) * (4u * PAGE_VECS);
        positions_turn(base, n, lane);
        if (POSITIONS) {
            workgroupBarrier();
        }
        var keyed = keys_scores(page, lane);
        if (POSITIONS) {
            // Where the row's pages begin among the scores they begin among the terms, too.
            let half = positions_half((head * BLOCKS + block) * 12u * POSITION_PLACES + score_first + n, lane);
            positions_put(lane, half);
            // It also keeps this page's readers of what was turned ahead of the next page's
            // writers.
            workgroupBarrier();
            keyed.s = positions_add(lane, half, keyed.s);
        }
        let tokens = vec4<u32>(n * 128u + lane * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
        let visible = (tokens >= vec4<u32>(visible_first)) & (tokens < vec4<u32>(visible_end));
        let s = shown(keyed.s, HIDDEN, visible);
        let entry = ((score_first + n) * params.kv_heads + head) * BLOCKS + block;
        let at = entry * 128u + 4u * lane;
        scores[at] = s.a;
        scores[at + 1u] = s.b;
        scores[at + 2u] = s.c;
        scores[at + 3u] = s.d;
        let lane_peak = max(max(s.a, s.b), max(s.c, s.d));
        let new_peak = max(peak, lane_peak);
        let shrink = exp2(peak - new_peak);
        sum = sum * shrink + ((exp2(s.a - new_peak) + exp2(s.b - new_peak)) + (exp2(s.c - new_peak) + exp2(s.d - new_peak)));
        if (CODES) {
            // The four tokens' values are read alike: they weigh together what they weigh times
            // their scales.
            let steps = keys_steps(page, lane);
            let four = (exp2(s.a - lane_peak) * steps.x + exp2(s.b - lane_peak) * steps.y) + (exp2(s.c - lane_peak) * steps.z + exp2(s.d - lane_peak) * steps.w);
            scores[SCORE_QUADS + entry * 32u + lane] = lane_peak + log2(max(four, HeadsF(1e-30)));
            weighted = weighted * shrink + exp2(lane_peak - new_peak) * four;
            let errors = shown(keyed.error, 0.0, visible);
            error = max(error, max(max(errors.a, errors.b), max(errors.c, errors.d)));
        }
        peak = new_peak;
    }

    reduce_put(0u, lane, peak);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let largest = reduce_max(0u, peak);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let share = sum * exp2(peak - largest);
    reduce_put(0u, lane, share);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let total = reduce_add(0u, share);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let weighted_share = weighted * exp2(peak - largest);
    reduce_put(0u, lane, weighted_share);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let weighted_total = reduce_add(0u, weighted_share);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    reduce_put(0u, lane, error);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let largest_error = reduce_max(0u, error);
    if (lane == 0u) {
        // The largest score, the sum of weights and of weights times scales, the largest bound on
        // the error of a score in nats; and how often the lane loaded words of each of the planes
        // that may stay unread.
        let at = SCORE_SUMS + ((workgroup.x * params.kv_heads + head) * BLOCKS + block) * SUM_ENTRIES;
        scores[at] = largest;
        scores[at + 1u] = total;
        scores[at + 2u] = weighted_total;
        scores[at + 3u] = largest_error;
        scores[at + 4u] = HeadsF(f32(loads.x));
        scores[at + 5u] = HeadsF(f32(loads.y));
        scores[at + 6u] = HeadsF(f32(loads.z));
    }
}
