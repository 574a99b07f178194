// align_scores: the scores of one query row against one slice of the packed pages, from the planes of the keys that align_plan chose.
// AlignedKV (2409.16546).
//
//   s_t = sum_i q_i k_ti   in log2 units, with the bits of unread planes as 100..0
//
// 32 lanes walk the pages first..end of one sequence for one KV head and up to HEADS query heads that share it; a lane owns four
// tokens. The level of a channel is the same for all of them: a plane that is not wanted is not loaded, by a branch.
//
// Parts: heads_<n>, reduce_<method>, queries, planes. Wrapper: src/kernel/align_scores.rs. Twin: src/reference/align_scores.rs.

override HEAD_DIM: u32;
override HEADS: u32;         // query heads that share one reading
override BLOCKS: u32;
override QUERY_STRIDE: u32;
override POSITIONS_AT: u32;   // entries of a block of heads
override PAGE_VECS: u32;
override SCORE_SUMS: u32;    // entries of scores before the sums of the items
override UNITS: u32;         // 1
override COUNT: bool;        // are loads of planes counted?

struct AlignScoresParams { // src/kernel/align_scores.rs
    items_at: u32,    // first item in tables
    slab_heads: u32,  // KV heads whose pages lie in this slab
    heads_at: u32,    // which they are, in tables
    kv_heads: u32,    // KV heads of the layer
}

@group(0) @binding(0) var<uniform> params: AlignScoresParams;
@group(0) @binding(1) var<storage, read> tables: array<u32>;            // items of 8 words; lists of physical pages
@group(0) @binding(2) var<storage, read> query_codes: array<HeadsU>;    // [row, kv_head, block, QUERY_STRIDE] f32
@group(0) @binding(3) var<storage, read> plans: array<u32>;             // [row, kv_head, block, PLAN_WORDS]
@group(0) @binding(4) var<storage, read> pages: array<u32>;             // [physical page, slab head, 4 * PAGE_VECS]
@group(0) @binding(5) var<storage, read_write> scores: array<HeadsF>;   // [page of the pass, kv_head, block, 128], then sums

const HIDDEN = -1e30;
const PLAN_WORDS = 112u;

struct Scores { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF }

var<workgroup> key_levels: array<u32, 16>;
var<private> loads: vec2<u32>;

// The lane's words of one channel.
fn key_planes(first: u32, middle: u32, shift: u32, level: u32) -> vec3<u32> {
    var words = vec3<u32>(pages[first], 0x00880088u, select(0u, 0x00880088u, level == 1u));
    if (level < 2u) {
        words.y = pages[middle] >> shift;
        if (COUNT) { loads.x += 1u; }
    }
    if (level < 1u) {
        words.z = pages[middle + 16u * HEAD_DIM] >> shift;
        if (COUNT) { loads.y += 1u; }
    }
    return words;
}

fn key_add(words: vec3<u32>, channel: u32, s: Scores) -> Scores {
    let q = bitcast<HeadsF>(queries[channel]);
    let halves = planes_halves(words.x, words.y, words.z);
    let k = unpack2x16float(halves.x);
    let l = unpack2x16float(halves.y);
    return Scores(s.a + k.x * q, s.b + k.y * q, s.c + l.x * q, s.d + l.y * q);
}

// Adds eight channels, all loads first.
fn key_eight(page: u32, channel: u32, lane: u32, s: Scores) -> Scores {
    let levels = key_levels[channel / 16u] >> (2u * (channel % 16u));
    let first = page + 32u * channel + lane;
    let middle = page + 32u * HEAD_DIM + 16u * channel + lane / 2u;
    let shift = 8u * (lane % 2u);
    let a = key_planes(first, middle, shift, levels & 3u);
    let b = key_planes(first + 32u, middle + 16u, shift, (levels >> 2u) & 3u);
    let c = key_planes(first + 64u, middle + 32u, shift, (levels >> 4u) & 3u);
    let d = key_planes(first + 96u, middle + 48u, shift, (levels >> 6u) & 3u);
    let e = key_planes(first + 128u, middle + 64u, shift, (levels >> 8u) & 3u);
    let f = key_planes(first + 160u, middle + 80u, shift, (levels >> 10u) & 3u);
    let g = key_planes(first + 192u, middle + 96u, shift, (levels >> 12u) & 3u);
    let h = key_planes(first + 224u, middle + 112u, shift, (levels >> 14u) & 3u);
    let low = key_add(d, channel + 3u, key_add(c, channel + 2u, key_add(b, channel + 1u, key_add(a, channel, s))));
    return key_add(h, channel + 7u, key_add(g, channel + 6u, key_add(f, channel + 5u, key_add(e, channel + 4u, low))));
}

@compute @workgroup_size(32)
fn align_scores(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = params.items_at + 8u * workgroup.x;
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
    if (lane < 16u) {
        key_levels[lane] = plans[reading * PLAN_WORDS + lane];
    }
    loads = vec2<u32>(0u);
    workgroupBarrier();

    var peak = HeadsF(HIDDEN);
    var sum = HeadsF(0.0);
    for (var n = first; n < end; n++) {
        let page = (tables[list + n] * params.slab_heads + slab_head) * (4u * PAGE_VECS);
        var s = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
        for (var c = 0u; c < HEAD_DIM; c += 8u) {
            s = key_eight(page, c, lane, s);
        }
        let token = n * 128u + lane * 4u;
        s.a = select(HeadsF(HIDDEN), s.a, token >= visible_first && token < visible_end);
        s.b = select(HeadsF(HIDDEN), s.b, token + 1u >= visible_first && token + 1u < visible_end);
        s.c = select(HeadsF(HIDDEN), s.c, token + 2u >= visible_first && token + 2u < visible_end);
        s.d = select(HeadsF(HIDDEN), s.d, token + 3u >= visible_first && token + 3u < visible_end);
        let at = (((score_first + n) * params.kv_heads + head) * BLOCKS + block) * 128u + 4u * lane;
        scores[at] = s.a;
        scores[at + 1u] = s.b;
        scores[at + 2u] = s.c;
        scores[at + 3u] = s.d;
        let new_peak = max(peak, max(max(s.a, s.b), max(s.c, s.d)));
        sum = sum * exp2(peak - new_peak) + ((exp2(s.a - new_peak) + exp2(s.b - new_peak)) + (exp2(s.c - new_peak) + exp2(s.d - new_peak)));
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
    if (lane == 0u) {
        // The largest score and the sum of weights; and how often the lane loaded each of the planes that may stay unread.
        let at = SCORE_SUMS + ((workgroup.x * params.kv_heads + head) * BLOCKS + block) * 4u;
        scores[at] = largest;
        scores[at + 1u] = total;
        scores[at + 2u] = HeadsF(f32(loads.x));
        scores[at + 3u] = HeadsF(f32(loads.y));
    }
}
