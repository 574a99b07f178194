// align_values: the weighted values of one query row over one slice of the packed pages, from the planes that a token's softmax weight
// asks for. AlignedKV (2409.16546).
//
//   partial = (max s, sum 2^(s - max), sum 2^(s - max) v)   with the scores of align_scores and the largest of all of them
//
// 32 lanes walk the pages first..end of one sequence for one KV head and up to HEADS query heads that share it. A lane finds the weights
// and the levels of four tokens, then owns four channels (eight at head_dim 256). The level of a token is the same for all channels: a
// plane that is not wanted is not loaded, by a branch.
//
// Parts: heads_<n>, reduce_<method>, planes. Wrapper: src/kernel/align_values.rs. Twin: src/reference/align_values.rs.

override HEAD_DIM: u32;
override SHARE: u32;         // query heads per KV head
override HEADS: u32;         // query heads that share one reading
override BLOCKS: u32;
override PAGE_VECS: u32;
override VALUES: u32;        // vec4s from a page's start to its values
override LEDGERS: u32;       // vec4s of partials before the ledgers
override UNITS: u32;         // 1
override COUNT: bool;        // are loads of planes counted?

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

@group(0) @binding(0) var<uniform> params: AlignValuesParams;
@group(0) @binding(1) var<storage, read> tables: array<u32>;                // items of 8 words; lists of physical pages
@group(0) @binding(2) var<storage, read> scores: array<HeadsF>;             // [page of the pass, kv_head, block, 128], then sums
@group(0) @binding(3) var<storage, read> plans: array<u32>;                 // [row, kv_head, block, PLAN_WORDS]
@group(0) @binding(4) var<storage, read> pages: array<u32>;                 // [physical page, slab head, 4 * PAGE_VECS]
@group(0) @binding(5) var<storage, read_write> partials: array<vec4<f32>>;  // [item, kv_head, block, HEADS, HEAD_DIM / 4 + 1], ledgers

const PLAN_WORDS = 112u;
const PLAN_PEAK = 16u;
const PLAN_FACTOR = 20u;
const PLAN_BASE = 28u;
const PLAN_VALUES = 36u;
const FIRST_KEY = 316u;

struct Scores { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF }

// weights[t]: the weight of token t of the page; levels[t / 4]: the levels of four tokens, two bits each.
var<workgroup> weights: array<HeadsF, 128>;
var<workgroup> levels: array<u32, 32>;
var<private> loads: vec2<u32>;

fn take_heads(at: u32) -> HeadsF {
    return heads_of(bitcast<f32>(plans[at]), bitcast<f32>(plans[at + 1u]), bitcast<f32>(plans[at + 2u]), bitcast<f32>(plans[at + 3u]));
}

// The exponent of a number as a half.
fn exponent(x: f32) -> i32 {
    return max(i32((bitcast<u32>(x) >> 23u) & 255u) - 112, 0);
}

struct Rule { factor: HeadsF, bases: vec4<i32>, threshold: u32 }

// The level of a token of these weights: a level fewer for the strictest of the heads that there are.
fn value_level(p: HeadsF, rule: Rule, block: u32) -> u32 {
    let w = p * rule.factor;
    if (params.criterion == 1u) {
        var spare = rule.bases.x - exponent(heads_at(w, 0u));
        if (HEADS > 1u && block * HEADS + 1u < SHARE) {
            spare = min(spare, rule.bases.y - exponent(heads_at(w, 1u)));
        }
        if (HEADS > 2u && block * HEADS + 2u < SHARE) {
            spare = min(spare, rule.bases.z - exponent(heads_at(w, 2u)));
        }
        if (HEADS > 2u && block * HEADS + 3u < SHARE) {
            spare = min(spare, rule.bases.w - exponent(heads_at(w, 3u)));
        }
        return select(0u, 1u, spare >= 4) + select(0u, 1u, spare >= 8);
    }
    if (params.criterion == 2u) {
        var most = heads_at(w, 0u);
        if (HEADS > 1u && block * HEADS + 1u < SHARE) {
            most = max(most, heads_at(w, 1u));
        }
        if (HEADS > 2u && block * HEADS + 2u < SHARE) {
            most = max(most, heads_at(w, 2u));
        }
        if (HEADS > 2u && block * HEADS + 3u < SHARE) {
            most = max(most, heads_at(w, 3u));
        }
        let key = max(bitcast<u32>(most) >> 21u, select(FIRST_KEY, 0u, most == 0.0));
        return select(0u, 1u, key + 8u <= rule.threshold) + select(0u, 1u, key + 24u <= rule.threshold);
    }
    return 0u;
}

fn error_of(level: u32) -> f32 {
    return select(select(0.0, 8.0, level == 1u), 128.0, level == 2u);
}

// The lane's words of one token.
fn value_planes(first: u32, middle: u32, shift: u32, level: u32) -> vec3<u32> {
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

fn value_add(words: vec3<u32>, t: u32, row: Scores) -> Scores {
    let p = weights[t];
    let halves = planes_halves(words.x, words.y, words.z);
    let v = unpack2x16float(halves.x);
    let w = unpack2x16float(halves.y);
    return Scores(row.a + v.x * p, row.b + v.y * p, row.c + w.x * p, row.d + w.y * p);
}

// Adds eight tokens, all loads first.
fn value_eight(page: u32, t: u32, quad: u32, row: Scores) -> Scores {
    let low = levels[t / 4u];
    let high = levels[t / 4u + 1u];
    let first = page + 4u * VALUES + t * (HEAD_DIM / 4u) + quad;
    let middle = page + 4u * VALUES + 32u * HEAD_DIM + t * (HEAD_DIM / 8u) + quad / 2u;
    let shift = 8u * (quad % 2u);
    let a = value_planes(first, middle, shift, low & 3u);
    let b = value_planes(first + HEAD_DIM / 4u, middle + HEAD_DIM / 8u, shift, (low >> 2u) & 3u);
    let c = value_planes(first + 2u * (HEAD_DIM / 4u), middle + 2u * (HEAD_DIM / 8u), shift, (low >> 4u) & 3u);
    let d = value_planes(first + 3u * (HEAD_DIM / 4u), middle + 3u * (HEAD_DIM / 8u), shift, (low >> 6u) & 3u);
    let e = value_planes(first + 4u * (HEAD_DIM / 4u), middle + 4u * (HEAD_DIM / 8u), shift, high & 3u);
    let f = value_planes(first + 5u * (HEAD_DIM / 4u), middle + 5u * (HEAD_DIM / 8u), shift, (high >> 2u) & 3u);
    let g = value_planes(first + 6u * (HEAD_DIM / 4u), middle + 6u * (HEAD_DIM / 8u), shift, (high >> 4u) & 3u);
    let h = value_planes(first + 7u * (HEAD_DIM / 4u), middle + 7u * (HEAD_DIM / 8u), shift, (high >> 6u) & 3u);
    let half = value_add(d, t + 3u, value_add(c, t + 2u, value_add(b, t + 1u, value_add(a, t, row))));
    return value_add(h, t + 7u, value_add(g, t + 6u, value_add(f, t + 5u, value_add(e, t + 4u, half))));
}

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
    let item = params.items_at + 8u * workgroup.x;
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

    // Lanes beyond the quads of a short head repeat the last quad and write nothing.
    let quads = HEAD_DIM / 4u;
    let quad = min(lane, quads - 1u);
    var sum = HeadsF(0.0);
    var cost = HeadsF(0.0);
    var counted = vec2<u32>(0u);
    loads = vec2<u32>(0u);
    var low = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var high = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    let at = score_at + first * score_stride;
    var s = Scores(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);

    for (var n = first; n < end; n++) {
        let page = (tables[list + n] * params.slab_heads + slab_head) * (4u * PAGE_VECS);
        let p = Scores(exp2(s.a - peak), exp2(s.b - peak), exp2(s.c - peak), exp2(s.d - peak));
        sum += (p.a + p.b) + (p.c + p.d);
        let chosen = vec4<u32>(value_level(p.a, rule, block), value_level(p.b, rule, block), value_level(p.c, rule, block), value_level(p.d, rule, block));
        cost += (p.a * error_of(chosen.x) + p.b * error_of(chosen.y)) + (p.c * error_of(chosen.z) + p.d * error_of(chosen.w));
        let ones = min(chosen, vec4<u32>(1u));
        let all = (ones.x + ones.y) + (ones.z + ones.w);
        let twos = (chosen.x + chosen.y) + (chosen.z + chosen.w) - all;
        counted += vec2<u32>(all - twos, twos);
        // Before this page's weights take the place of the last's.
        workgroupBarrier();
        weights[4u * lane] = p.a;
        weights[4u * lane + 1u] = p.b;
        weights[4u * lane + 2u] = p.c;
        weights[4u * lane + 3u] = p.d;
        levels[lane] = chosen.x | (chosen.y << 2u) | (chosen.z << 4u) | (chosen.w << 6u);
        workgroupBarrier();
        // On their way while this page's values are worked on.
        let next = score_at + min(n + 1u, end - 1u) * score_stride;
        s = Scores(scores[next], scores[next + 1u], scores[next + 2u], scores[next + 3u]);
        for (var t = 0u; t < 128u; t += 8u) {
            low = value_eight(page, t, quad, low);
            if (HEAD_DIM > 128u) {
                high = value_eight(page, t, quad + 32u, high);
            }
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

    // Each head's quads, then its largest score and its sum; and apart from them the ledger.
    let reading = (workgroup.x * params.kv_heads + head) * BLOCKS + block;
    let entry = reading * HEADS * (quads + 1u);
    if (lane < quads) {
        put(entry, lane, low);
    }
    if (HEAD_DIM > 128u) {
        put(entry, lane + 32u, high);
    }
    if (lane == 0u) {
        put(entry, quads, Scores(peak, total, HeadsF(0.0), HeadsF(0.0)));
        // The error of weights times units in the last place, by head; tokens of levels 1 and 2; and how often the lane loaded each of the
        // planes that may stay unread.
        partials[LEDGERS + 2u * reading] = spread(total_cost);
        partials[LEDGERS + 2u * reading + 1u] = vec4<f32>(ones, twos, f32(loads.x), f32(loads.y));
    }
}
