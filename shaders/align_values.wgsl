// align_values: the weighted values of one query row over one slice of the packed pages, from the
// planes that a token's softmax weight asks for. AlignedKV (2409.16546).
//
//   partial = (max s, sum 2^(s - max), sum 2^(s - max) v)   with the scores of align_scores and the largest of all of them
//
// 32 lanes walk the pages first..end of one sequence for one KV head and up to HEADS query heads
// that share it. A lane finds the weights and the levels of four tokens (of integer codes one level
// for the four), then owns four channels (eight beyond head_dim 128). The level of a token is the
// same for all channels: a plane that is not wanted is not loaded, by a branch.
//
// Wrapper: src/kernel/align_values.rs. Twin: src/kernel/reference/align_values.rs.

override HEAD_DIM: u32;
override HEADS: u32;         // query heads that share one reading
override BLOCKS: u32;
override PAGE_VECS: u32;
override LEDGERS: u32;       // vec4s of partials before the ledgers

struct AlignValuesParams { // src/kernel/align_values.rs
    items_at: u32,    // first item in tables
    slab_heads: u32,  // KV heads whose pages lie in this slab
    heads_at: u32,    // which they are, in tables
    kv_heads: u32,    // KV heads of the layer
    criterion: u32,   // 0 everything is read, 1 the published rule, 2 under a budget
    pad_a: u32,
    pad_b: u32,
    pad_c: u32,
}

@group(1) @binding(0) var<uniform> params: AlignValuesParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;                // items of 8 words; lists of physical pages
@group(0) @binding(0) var<storage, read> scores: array<HeadsF>;             // [page of the pass, kv_head, block, 128], ..
@group(0) @binding(1) var<storage, read> plans: array<u32>;                 // [row, kv_head, block, PLAN_WORDS]
@group(0) @binding(2) var<storage, read> pages: array<u32>;                 // [physical page, slab head, 4 * PAGE_VECS]
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;  // [item, kv_head, block, HEADS, HEAD_DIM / 4 + 1], ledgers

const LEDGER_VECS = 3u;
const PLAN_WORDS = 112u;
const PLAN_PEAK = 16u;
const PLAN_FACTOR = 20u;
const PLAN_BASE = 28u;
const PLAN_VALUES = 36u;

struct Scores { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF }

// What a lane adds to the ledger for a page: error of weights, by head; tokens of levels 1, 2 and
// 3.
struct Weighed { cost: HeadsF, counted: vec3<u32> }

// How often the lane loaded words of each plane, as far as a plane may stay unread.
var<private> loads: vec3<u32>;

fn take_heads(at: u32) -> HeadsF {
    return heads_of(bitcast<f32>(plans[at]), bitcast<f32>(plans[at + 1u]), bitcast<f32>(plans[at + 2u]), bitcast<f32>(plans[at + 3u]));
}

// The exponent of a number as a half.
fn exponent(x: f32) -> i32 {
    return max(i32((bitcast<u32>(x) >> 23u) & 255u) - 112, 0);
}

struct Rule { factor: HeadsF, bases: vec4<i32>, threshold: u32 }

fn put_head(at: u32, h: u32, quad: u32, row: Scores) {
    partials[at + h * (HEAD_DIM / 4u + 1u) + quad] = vec4<f32>(heads_at(row.a, h), heads_at(row.b, h), heads_at(row.c, h), heads_at(row.d, h));
}

fn put(at: u32, quad: u32, row: Scores) {
    put_head(at, 0u, quad, row);
    if (HEADS > 1u) {
        put_head(at, 1u, quad, row);
    }
    if (HEADS > 2u) {
        put_head(at, 2u, quad, row);
        put_head(at, 3u, quad, row);
    }
}

fn spread(x: HeadsF) -> vec4<f32> {
    if (HEADS == 1u) {
        return vec4<f32>(heads_at(x, 0u), 0.0, 0.0, 0.0);
    }
    if (HEADS == 2u) {
        return vec4<f32>(heads_at(x, 0u), heads_at(x, 1u), 0.0, 0.0);
    }
    return vec4<f32>(heads_at(x, 0u), heads_at(x, 1u), heads_at(x, 2u), heads_at(x, 3u));
}

@compute @workgroup_size(32)
fn align_values(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = params.items_at + 9u * workgroup.x;
    let row_of = tables[item];
    let list = tables[item + 1u];
    let first = tables[item + 2u];
    let end = tables[item + 3u];
    let score_first = tables[item + 6u];
    let slab_head = workgroup.y / BLOCKS;
    let block = workgroup.y % BLOCKS;
    let head = tables[params.heads_at + slab_head];
    let plan = ((row_of * params.kv_heads + head) * BLOCKS + block) * PLAN_WORDS;
    let peak = take_heads(plan + PLAN_PEAK);
    let bases = vec4<i32>(i32(plans[plan + PLAN_BASE]), i32(plans[plan + PLAN_BASE + 1u]), i32(plans[plan + PLAN_BASE + 2u]), i32(plans[plan + PLAN_BASE + 3u]));
    let rule = Rule(take_heads(plan + PLAN_FACTOR), bases, plans[plan + PLAN_VALUES + 3u]);
    let score_stride = params.kv_heads * BLOCKS * 128u;
    let score_at = ((score_first * params.kv_heads + head) * BLOCKS + block) * 128u + 4u * lane;

    // Lanes beyond the quads of a head repeat the last quad and write nothing.
    let quads = HEAD_DIM / 4u;
    let quad = min(lane, quads - 1u);
    let second = min(lane + 32u, quads - 1u);
    var sum = HeadsF(0.0);
    var cost = HeadsF(0.0);
    var counted = vec3<u32>(0u);
    loads = vec3<u32>(0u);
    var low = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var high = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    let at = score_at + first * score_stride;
    var s = Scores(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);

    for (var n = first; n < end; n++) {
        let page = (tables[list + n] * params.slab_heads + slab_head) * (4u * PAGE_VECS);
        let p = Scores(exp2(s.a - peak), exp2(s.b - peak), exp2(s.c - peak), exp2(s.d - peak));
        sum += (p.a + p.b) + (p.c + p.d);
        // Before this page's weights take the place of the last's.
        workgroupBarrier();
        let weighed = values_weigh(page, lane, p, rule, block);
        cost += weighed.cost;
        counted += weighed.counted;
        workgroupBarrier();
        // On their way while this page's values are worked on.
        let next = score_at + min(n + 1u, end - 1u) * score_stride;
        s = Scores(scores[next], scores[next + 1u], scores[next + 2u], scores[next + 3u]);
        low = values_add(page, quad, low);
        if (HEAD_DIM > 128u) {
            high = values_add(page, second, high);
        }
    }

    reduce_put(0u, lane, sum);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let total = reduce_add(0u, sum);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    reduce_put(0u, lane, cost);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let total_cost = reduce_add(0u, cost);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let count_one = HeadsF(f32(counted.x));
    reduce_put(0u, lane, count_one);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let ones = heads_at(reduce_add(0u, count_one), 0u);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let count_two = HeadsF(f32(counted.y));
    reduce_put(0u, lane, count_two);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let twos = heads_at(reduce_add(0u, count_two), 0u);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let count_three = HeadsF(f32(counted.z));
    reduce_put(0u, lane, count_three);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let threes = heads_at(reduce_add(0u, count_three), 0u);

    // Each head's quads, then its largest score and its sum; and apart from them the ledger.
    let reading = (workgroup.x * params.kv_heads + head) * BLOCKS + block;
    let entry = reading * HEADS * (quads + 1u);
    if (lane < quads) {
        put(entry, lane, low);
    }
    if (HEAD_DIM > 128u && lane + 32u < quads) {
        put(entry, lane + 32u, high);
    }
    if (lane == 0u) {
        put(entry, quads, Scores(peak, total, HeadsF(0.0), HeadsF(0.0)));
        // The error of weights times units in the last place (of integer codes, times scales), by
        // head; tokens (or fours of them) of levels 1, 2 and 3; and how often the lane loaded words
        // of each of the planes that may stay unread.
        let ledger = LEDGERS + LEDGER_VECS * reading;
        partials[ledger] = spread(total_cost);
        partials[ledger + 1u] = vec4<f32>(ones, twos, threes, 0.0);
        partials[ledger + 2u] = vec4<f32>(f32(loads.x), f32(loads.y), f32(loads.z), 0.0);
    }
}
