// align_plan: which planes of the packed keys, and then of the packed values, one query row has to
// read. AlignedKV (2409.16546).
//
// Halves. Keys, before anything is read: channel i weighs a_i = |q_i| 2^(largest exponent of the
// channel). Values, once the scores are known: token t weighs its softmax weight. Either by the
// published rule, which aligns exponents with those of the largest addend or of the estimated
// output; or under a budget, phi halves of the sum of all weights: the largest threshold T is
// searched at which
//
//   sum w error(level(w, T)) <= 1,   w = max over heads of weight / budget
//
// with weights counted by quarters of binades, so that their order does not matter.
//
// Integer codes, under a budget only. Four channels, a quad, weigh their sum of |q_i|, and the
// budget is of each group that shares a scale: so the bound holds for every token, whatever its
// scales are. Four tokens weigh their sum of softmax weight times scale (the largest of a token's
// groups).
//
// Query heads that share a reading share its levels:
// the strictest head's.
//
// One workgroup plans for one row and one reading (a KV head and up to HEADS query heads). The
// first variant (FOR_KEYS) writes a level for every channel, the second what align_values needs to
// find the level of a token.
//
// Wrapper: src/kernel/align_plan.rs. Twin: src/kernel/reference/align_plan.rs.

override FOR_KEYS: bool;
override HEAD_DIM: u32;
override SHARE: u32;          // query heads per KV head
override HEADS: u32;          // query heads that share one reading
override BLOCKS: u32;
override QUERY_STRIDE: u32;
override PAGE_VECS: u32;
override VALUES: u32;         // vec4s from a page's start to its values
override MAXIMA: u32;         // and to its channels' largest exponents
override WORDS: u32;          // words of those: HEAD_DIM / 2
override GATHERERS: u32;      // pages whose exponents are read at once: 256 / WORDS
override SAMPLERS: u32;       // rows of values that are read at once: 256 / (HEAD_DIM / 4)
override CODES: bool;         // whether the planes are of integer codes
override KEY_BITS: u32;
override KEY_GROUPS: u32;     // groups of keys that have their scales in the page
override KEY_GROUP_QUADS: u32; // quads of channels that share a key scale
override SCORE_SUMS: u32;     // entries of scores before the sums of the items
override WEIGHTS_AT: u32;     // entries of scores before those that make the weights of values
override WEIGHTS: u32;        // of those a page: 128 tokens, or 32 quads of them
override UNSCALE: f32;        // the inverse of what query multiplies by

struct AlignPlanParams { // src/kernel/align_plan.rs
    rows_at: u32,     // first row's record in tables
    slab_heads: u32,  // KV heads whose pages lie in this slab
    heads_at: u32,    // which they are, in tables
    kv_heads: u32,    // KV heads of the layer
    criterion: u32,   // 0 everything is read, 1 the published rule, 2 under a budget
    phi: u32,         // the budget, an f32
    pad_a: u32,
    pad_b: u32,
}

@group(1) @binding(0) var<uniform> params: AlignPlanParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;          // records of 8 words; lists of physical pages
@group(0) @binding(0) var<storage, read> query_codes: array<HeadsU>;  // [row, kv_head, block, QUERY_STRIDE] f32
@group(0) @binding(1) var<storage, read> scores: array<HeadsF>;       // [page of the pass, kv_head, block, 128], then sums, then quads
@group(0) @binding(2) var<storage, read> row_partials: array<f32>;    // [partial, query_heads, HEAD_DIM + 2]
@group(0) @binding(3) var<storage, read> pages: array<u32>;           // [physical page, slab head, 4 * PAGE_VECS]
@group(0) @binding(4) var<storage, read_write> plans: array<u32>;     // [row, kv_head, block, PLAN_WORDS]

const HIDDEN = -1e30;

// Words of a plan, and where in it: two bits for each channel; by head the largest score, the
// factor on its weights, the bound on the error of its scores and the rule's base; how many
// channels have each level, and the threshold, for keys and for values; the largest exponents of
// values, a byte a channel. Of integer codes two bits for each quad of channels, and no bound here.
const PLAN_WORDS = 112u;
const PLAN_PEAK = 16u;
const PLAN_FACTOR = 20u;
const PLAN_BOUND = 24u;
const PLAN_BASE = 28u;
const PLAN_KEYS = 32u;
const PLAN_VALUES = 36u;
const PLAN_NORM = 40u;
const PLAN_MAXIMA = 48u;

// Integer codes have in the place of those by group and head what the middles of unread bits add to
// the dot products; and in nats what a token's scale times it bounds the error of its score by.
const PLAN_FILLS = 48u;
const PLAN_ERRORS = 80u;

const SUM_ENTRIES = 7u;

// Threshold n cuts 2 bits of weights of the n lightest keys, 4 of those 8 below, 8 of those 24
// below.
const THRESHOLDS = 280u;

var<workgroup> gathered: array<u32, 256>;
var<workgroup> maxima: array<u32, 128>;
var<workgroup> cells: array<HeadsF, 256>;
var<workgroup> tokens: array<HeadsF, 256>;
var<workgroup> sums: array<vec4<f32>, 256>;
var<workgroup> counts: array<atomic<u32>, 256>;
var<workgroup> best: atomic<u32>;
var<workgroup> bases: array<atomic<i32>, 4>;
var<workgroup> levels: array<u32, 256>;
var<workgroup> found: array<atomic<u32>, 4>;

// The exponent of a number as a half: 5 bits, biased by 15; 0 for zero and subnormal numbers.
fn exponent(x: f32) -> i32 {
    return max(i32((bitcast<u32>(x) >> 23u) & 255u) - 112, 0);
}

fn heads_exponents(x: HeadsF) -> HeadsF {
    if (HEADS == 1u) {
        return HeadsF(f32(exponent(heads_at(x, 0u))));
    }
    if (HEADS == 2u) {
        return heads_of(f32(exponent(heads_at(x, 0u))), f32(exponent(heads_at(x, 1u))), 0.0, 0.0);
    }
    return heads_of(f32(exponent(heads_at(x, 0u))), f32(exponent(heads_at(x, 1u))), f32(exponent(heads_at(x, 2u))), f32(exponent(heads_at(x, 3u))));
}

// The budget's inverse for weights of this sum; where there is none, one by which every weight is
// too heavy.
fn inverse(sum: HeadsF, phi: f32) -> HeadsF {
    let share = phi * sum;
    return select(HeadsF(3e38), HeadsF(2.0) / max(share, HeadsF(1e-37)), (share > HeadsF(1e-37)) & (sum < HeadsF(1e37)));
}

// A weight's quarter of a binade among those that are counted.
fn quarter(w: f32) -> u32 {
    return clamp(bitcast<u32>(w) >> 21u, FIRST_KEY, FIRST_KEY + 255u) - FIRST_KEY;
}

// The level of a difference of exponents.
fn level_by(spare: f32) -> u32 {
    return select(0u, 1u, spare >= 4.0) + select(0u, 1u, spare >= 8.0);
}

// The sum of four codes' magnitudes, signed bytes of 127 at most.
fn heads_magnitudes(codes: HeadsU) -> HeadsF {
    let negative = (codes >> HeadsU(7u)) & HeadsU(0x01010101u);
    let magnitudes = (codes ^ (negative * 255u)) + negative;
    let pairs = (magnitudes & HeadsU(0x00ff00ffu)) + ((magnitudes >> HeadsU(8u)) & HeadsU(0x00ff00ffu));
    return HeadsF((pairs & HeadsU(0xffffu)) + (pairs >> HeadsU(16u)));
}

// What a group's quads cost at a threshold, by the upper edges of their weights.
fn group_cost(g: u32, threshold: u32) -> f32 {
    var cost = 0.0;
    for (var e = g * KEY_GROUP_QUADS; e < (g + 1u) * KEY_GROUP_QUADS; e++) {
        cost += bitcast<f32>((gathered[e] + 1u) << 21u) * level_error(level_at(gathered[e], threshold));
    }
    return cost;
}

fn bytes(word: u32) -> vec4<u32> {
    return vec4<u32>(word & 255u, (word >> 8u) & 255u, (word >> 16u) & 255u, word >> 24u);
}

fn maxima_byte(channel: u32) -> u32 {
    return (maxima[channel / 4u] >> (8u * (channel % 4u))) & 255u;
}

// The words of the exponents of page n of the row, or again of its last.
fn page_word(list: u32, n: u32, count: u32, slab_head: u32, w: u32) -> u32 {
    return pages[(tables[list + min(n, count - 1u)] * params.slab_heads + slab_head) * (4u * PAGE_VECS) + 4u * MAXIMA + w];
}

// A token of a residue modulo 32 and its score: token / 32, which f32 holds exactly up to 2^24.
struct Best { z: HeadsF, token: HeadsF }

fn better(held: Best, z: HeadsF, token: HeadsF) -> Best {
    let more = (z > held.z) | ((z == held.z) & (token < held.token));
    return Best(select(held.z, z, more), select(held.token, token, more));
}

// What makes the weight of value t (a token's score) of the row; hidden if it has none.
fn score_at(at: u32, stride: u32, t: u32, count: u32) -> HeadsF {
    let last = min(t, count - 1u);
    return select(HeadsF(HIDDEN), scores[at + last / WEIGHTS * stride + last % WEIGHTS], t < count);
}

// What makes one weight of a token's scores by head.
struct Scale { peak: HeadsF, factor: HeadsF, block: u32 }

fn weight_of(z: HeadsF, scale: Scale) -> f32 {
    return level_largest(exp2(z - scale.peak) * scale.factor, scale.block);
}

fn count_weight(w: f32) {
    if (w > 0.0) {
        atomicAdd(&counts[quarter(w)], 1u);
    }
}

// Counts the weights of eight tokens from t on, 256 apart. All loads are on their way before the
// first is used.
fn count_eight(at: u32, stride: u32, t: u32, count: u32, scale: Scale) {
    let a = score_at(at, stride, t, count);
    let b = score_at(at, stride, t + 256u, count);
    let c = score_at(at, stride, t + 512u, count);
    let d = score_at(at, stride, t + 768u, count);
    let e = score_at(at, stride, t + 1024u, count);
    let f = score_at(at, stride, t + 1280u, count);
    let g = score_at(at, stride, t + 1536u, count);
    let h = score_at(at, stride, t + 1792u, count);
    count_weight(weight_of(a, scale));
    count_weight(weight_of(b, scale));
    count_weight(weight_of(c, scale));
    count_weight(weight_of(d, scale));
    count_weight(weight_of(e, scale));
    count_weight(weight_of(f, scale));
    count_weight(weight_of(g, scale));
    count_weight(weight_of(h, scale));
}

fn better_eight(at: u32, stride: u32, t: u32, count: u32, held: Best) -> Best {
    let a = score_at(at, stride, t, count);
    let b = score_at(at, stride, t + 256u, count);
    let c = score_at(at, stride, t + 512u, count);
    let d = score_at(at, stride, t + 768u, count);
    let e = score_at(at, stride, t + 1024u, count);
    let f = score_at(at, stride, t + 1280u, count);
    let g = score_at(at, stride, t + 1536u, count);
    let h = score_at(at, stride, t + 1792u, count);
    let n = HeadsF(f32(t / 32u));
    let first = better(better(better(better(held, a, n), b, n + HeadsF(8.0)), c, n + HeadsF(16.0)), d, n + HeadsF(24.0));
    return better(better(better(better(first, e, n + HeadsF(32.0)), f, n + HeadsF(40.0)), g, n + HeadsF(48.0)), h, n + HeadsF(56.0));
}

// The magnitudes of four channels of one token's value, from its first plane only.
fn magnitudes(list: u32, slab_head: u32, token: u32, quad: u32) -> vec4<f32> {
    let page = (tables[list + token / 128u] * params.slab_heads + slab_head) * (4u * PAGE_VECS);
    let word = pages[page + 4u * VALUES + token % 128u * (HEAD_DIM / 4u) + quad] & 0x7f7f7f7fu;
    return vec4<f32>(unpack2x16float(((word & 0x00ff00ffu) << 8u) | 0x00800080u), unpack2x16float((word & 0x7f007f00u) | 0x00800080u));
}

// What token s of the sample has to do with four channels of the output of head h; nothing beyond
// the last.
fn sampled(list: u32, slab_head: u32, s: u32, h: u32, quad: u32) -> vec4<f32> {
    let n = min(s, 31u);
    let weight = select(0.0, heads_at(cells[n], h), s < 32u);
    return weight * magnitudes(list, slab_head, 32u * u32(heads_at(tokens[n], h)) + n, quad);
}

fn put_heads(at: u32, x: HeadsF) {
    plans[at] = bitcast<u32>(heads_at(x, 0u));
    if (HEADS > 1u) {
        plans[at + 1u] = bitcast<u32>(heads_at(x, 1u));
    }
    if (HEADS > 2u) {
        plans[at + 2u] = bitcast<u32>(heads_at(x, 2u));
        plans[at + 3u] = bitcast<u32>(heads_at(x, 3u));
    }
}

// A partial result of the f16 tokens of the reading's heads: entry e.
fn partial_of(partial: u32, head: u32, block: u32, e: u32) -> HeadsF {
    let first = block * HEADS;
    let at = (partial * params.kv_heads * SHARE + head * SHARE) * (HEAD_DIM + 2u) + e;
    let step = HEAD_DIM + 2u;
    return heads_of(row_partials[at + first * step], row_partials[at + min(first + 1u, SHARE - 1u) * step],
        row_partials[at + min(first + 2u, SHARE - 1u) * step], row_partials[at + min(first + 3u, SHARE - 1u) * step]);
}

@compute @workgroup_size(256)
fn align_plan(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let record = params.rows_at + 8u * workgroup.x;
    let row = tables[record];
    let list = tables[record + 1u];
    let page_count = tables[record + 2u];
    let score_first = tables[record + 3u];
    let split_first = tables[record + 4u];
    let split_count = tables[record + 5u];
    let partial_first = tables[record + 6u];
    let partial_count = tables[record + 7u];
    let slab_head = workgroup.y / BLOCKS;
    let block = workgroup.y % BLOCKS;
    let head = tables[params.heads_at + slab_head];
    let reading = (row * params.kv_heads + head) * BLOCKS + block;
    let plan = reading * PLAN_WORDS;
    let phi = bitcast<f32>(params.phi);

    atomicStore(&counts[i], 0u);
    if (i == 0u) {
        atomicStore(&best, 0u);
    }
    if (i < 4u) {
        atomicStore(&bases[i], 1000);
    }
    if (i < 4u) {
        atomicStore(&found[i], 0u);
    }

    // What keys or values weigh: a number of each head for the channel, or factors on the weights
    // of all tokens.
    var products = HeadsF(0.0);
    var weight = 0.0;
    var spare = 0.0;
    var peak = HeadsF(HIDDEN);
    var factor = HeadsF(0.0);
    var norm = HeadsF(0.0);
    let score_at_first = WEIGHTS_AT + ((score_first * params.kv_heads + head) * BLOCKS + block) * WEIGHTS;
    let score_stride = params.kv_heads * BLOCKS * WEIGHTS;
    // Of integer keys: a query head's scale, and the middles of what is not read of its codes.
    let raw_scale = query_codes[reading * QUERY_STRIDE + HEAD_DIM / 4u];
    let quads = HEAD_DIM / 4u;

    if (FOR_KEYS && CODES) {
        let word = query_codes[reading * QUERY_STRIDE + min(i, quads - 1u)];
        products = select(HeadsF(0.0), heads_magnitudes(word), i < quads);
        cells[i] = products;
        workgroupBarrier();
        if (i < quads) {
            let g = i / KEY_GROUP_QUADS;
            var total = HeadsF(0.0);
            for (var e = g * KEY_GROUP_QUADS; e < (g + 1u) * KEY_GROUP_QUADS; e++) {
                total += cells[e];
            }
            // Where a query is not finite, everything is heavy.
            let broken = select(HeadsF(0.0), HeadsF(3e38), (raw_scale & HeadsU(0x7f800000u)) == HeadsU(0x7f800000u));
            weight = level_largest(max(products * inverse(total, phi), broken), block);
            gathered[i] = select(FIRST_KEY + quarter(weight), 0u, weight == 0.0);
        }
        workgroupBarrier();
        // By group the largest threshold that its budget allows.
        for (var n = i; n < THRESHOLDS; n += 256u) {
            for (var g = 0u; g < KEY_GROUPS; g++) {
                if (group_cost(g, FIRST_KEY - 1u + n) * 1.00001 <= 1.0) {
                    atomicMax(&counts[g], n);
                }
            }
        }
        workgroupBarrier();
    } else if (FOR_KEYS) {
        // The largest exponents of all pages.
        var most = vec4<u32>(0u);
        let w = i % WORDS;
        if (i < WORDS * GATHERERS) {
            for (var n = i / WORDS; n < page_count; n += 8u * GATHERERS) {
                let a = page_word(list, n, page_count, slab_head, w);
                let b = page_word(list, n + GATHERERS, page_count, slab_head, w);
                let c = page_word(list, n + 2u * GATHERERS, page_count, slab_head, w);
                let d = page_word(list, n + 3u * GATHERERS, page_count, slab_head, w);
                let e = page_word(list, n + 4u * GATHERERS, page_count, slab_head, w);
                let f = page_word(list, n + 5u * GATHERERS, page_count, slab_head, w);
                let g = page_word(list, n + 6u * GATHERERS, page_count, slab_head, w);
                let h = page_word(list, n + 7u * GATHERERS, page_count, slab_head, w);
                most = max(most, max(max(max(bytes(a), bytes(b)), max(bytes(c), bytes(d))), max(max(bytes(e), bytes(f)), max(bytes(g), bytes(h)))));
            }
        }
        gathered[i] = most.x | (most.y << 8u) | (most.z << 16u) | (most.w << 24u);
        workgroupBarrier();
        if (i < WORDS) {
            var word = bytes(gathered[i]);
            for (var g = 1u; g < GATHERERS; g++) {
                word = max(word, bytes(gathered[g * WORDS + i]));
            }
            maxima[i] = word.x | (word.y << 8u) | (word.z << 16u) | (word.w << 24u);
            if (i >= HEAD_DIM / 4u) {
                plans[plan + PLAN_MAXIMA + i - HEAD_DIM / 4u] = maxima[i];
            }
        }
        workgroupBarrier();

        var exponents = HeadsF(0.0);
        if (i < HEAD_DIM) {
            let query = bitcast<HeadsF>(query_codes[reading * QUERY_STRIDE + i]);
            let largest = maxima_byte(i);
            products = abs(query) * bitcast<f32>((max(largest, 1u) + 112u) << 23u);
            exponents = heads_exponents(query * UNSCALE) + HeadsF(f32(largest));
        }
        cells[i] = exponents;
        workgroupBarrier();
        for (var reach = 128u; reach > 0u; reach /= 2u) {
            if (i < reach) {
                cells[i] = max(cells[i], cells[i + reach]);
            }
            workgroupBarrier();
        }
        // The least over heads; nothing to spare where a query is not finite.
        spare = select(-level_largest(exponents - cells[0], block), 0.0, level_largest(cells[0], block) >= 143.0);
        workgroupBarrier();
        cells[i] = products;
        workgroupBarrier();
        for (var reach = 128u; reach > 0u; reach /= 2u) {
            if (i < reach) {
                cells[i] += cells[i + reach];
            }
            workgroupBarrier();
        }
        factor = inverse(cells[0], phi);
        weight = level_largest(products * factor, block);
        if (i < HEAD_DIM) {
            count_weight(weight);
        }
        workgroupBarrier();
    } else {
        // The largest score and the sum of weights of the pages, from those of the items; then of
        // the f16 tokens.
        var lane_peak = HeadsF(HIDDEN);
        var lane_sum = HeadsF(0.0);
        var lane_weighted = HeadsF(0.0);
        for (var n = i; n < split_count; n += 256u) {
            let at = SCORE_SUMS + (((split_first + n) * params.kv_heads + head) * BLOCKS + block) * SUM_ENTRIES;
            let next = max(lane_peak, scores[at]);
            lane_sum = lane_sum * exp2(lane_peak - next) + scores[at + 1u] * exp2(scores[at] - next);
            lane_weighted = lane_weighted * exp2(lane_peak - next) + scores[at + 2u] * exp2(scores[at] - next);
            lane_peak = next;
        }
        cells[i] = lane_peak;
        workgroupBarrier();
        for (var reach = 128u; reach > 0u; reach /= 2u) {
            if (i < reach) {
                cells[i] = max(cells[i], cells[i + reach]);
            }
            workgroupBarrier();
        }
        peak = cells[0];
        workgroupBarrier();
        cells[i] = lane_sum * exp2(lane_peak - peak);
        workgroupBarrier();
        for (var reach = 128u; reach > 0u; reach /= 2u) {
            if (i < reach) {
                cells[i] += cells[i + reach];
            }
            workgroupBarrier();
        }
        let page_sum = cells[0];
        workgroupBarrier();
        // Weights of the f16 tokens against the pages' peak; where that overflows the pages weigh
        // nothing.
        lane_sum = HeadsF(0.0);
        for (var n = i; n < partial_count; n += 256u) {
            let there = partial_of(partial_first + n, head, block, HEAD_DIM);
            lane_sum += partial_of(partial_first + n, head, block, HEAD_DIM + 1u) * exp2(min(there - peak, HeadsF(100.0)));
        }
        cells[i] = lane_sum;
        workgroupBarrier();
        for (var reach = 128u; reach > 0u; reach /= 2u) {
            if (i < reach) {
                cells[i] += cells[i + reach];
            }
            workgroupBarrier();
        }
        norm = HeadsF(1.0) / (page_sum + cells[0]);
        workgroupBarrier();
        // Budgets are shares of the sum of all weights, of integer codes times scales.
        var whole = page_sum;
        if (CODES) {
            cells[i] = lane_weighted * exp2(lane_peak - peak);
            workgroupBarrier();
            for (var reach = 128u; reach > 0u; reach /= 2u) {
                if (i < reach) {
                    cells[i] += cells[i + reach];
                }
                workgroupBarrier();
            }
            whole = cells[0];
            workgroupBarrier();
        }
        factor = inverse(whole, phi);

        let count = WEIGHTS * page_count;
        if (params.criterion == 2u) {
            for (var t = i; t < count; t += 4096u) {
                count_eight(score_at_first, score_stride, t, count, Scale(peak, factor, block));
                count_eight(score_at_first, score_stride, t + 2048u, count, Scale(peak, factor, block));
            }
        }
        if (!CODES && params.criterion == 1u) {
            factor = norm;
            // Of each residue modulo 32 the token of the largest weight, by head.
            var held = Best(HeadsF(HIDDEN), HeadsF(0.0));
            for (var t = i; t < count; t += 4096u) {
                held = better_eight(score_at_first, score_stride, t, count, held);
                held = better_eight(score_at_first, score_stride, t + 2048u, count, held);
            }
            cells[i] = held.z;
            tokens[i] = held.token;
            workgroupBarrier();
            if (i < 32u) {
                for (var n = 1u; n < 8u; n++) {
                    held = better(held, cells[32u * n + i], tokens[32u * n + i]);
                }
                cells[i] = exp2(held.z - peak) * norm;
                tokens[i] = held.token;
            }
            workgroupBarrier();
            // The output of those tokens, of magnitudes: four channels of some of the tokens each,
            // by head.
            let quad = i % quads;
            let last = SAMPLERS * quads;
            let limit = bytes(plans[plan + PLAN_MAXIMA + quad]);
            for (var h = 0u; h < HEADS; h++) {
                var sum = vec4<f32>(0.0);
                if (i < last) {
                    for (var s = i / quads; s < 32u; s += 4u * SAMPLERS) {
                        let a = sampled(list, slab_head, s, h, quad);
                        let b = sampled(list, slab_head, s + SAMPLERS, h, quad);
                        let c = sampled(list, slab_head, s + 2u * SAMPLERS, h, quad);
                        let d = sampled(list, slab_head, s + 3u * SAMPLERS, h, quad);
                        sum = (((sum + a) + b) + c) + d;
                    }
                }
                workgroupBarrier();
                sums[i] = sum;
                workgroupBarrier();
                if (i < quads) {
                    for (var s = 1u; s < SAMPLERS; s++) {
                        sum += sums[s * quads + i];
                    }
                    let base = vec4<i32>(exponent(sum.x), exponent(sum.y), exponent(sum.z), exponent(sum.w)) + vec4<i32>(15) - vec4<i32>(limit);
                    atomicMin(&bases[h], min(min(base.x, base.y), min(base.z, base.w)));
                }
            }
        }
        workgroupBarrier();
    }

    var threshold = 0u;
    if (FOR_KEYS && CODES) {
        threshold = FIRST_KEY - 1u + atomicLoad(&counts[min(i, quads - 1u) / KEY_GROUP_QUADS]);
    } else {
        // The sums of the upper edges of the weights counted, up to every key.
        var running = f32(atomicLoad(&counts[i])) * bitcast<f32>((FIRST_KEY + i + 1u) << 21u);
        sums[i] = vec4<f32>(running, 0.0, 0.0, 0.0);
        workgroupBarrier();
        for (var reach = 1u; reach < 256u; reach *= 2u) {
            if (i >= reach) {
                running += sums[i - reach].x;
            }
            workgroupBarrier();
            sums[i].x = running;
            workgroupBarrier();
        }
        // The largest threshold that the budget allows.
        for (var n = i; n < THRESHOLDS; n += 256u) {
            var cost = 0.0;
            if (n > 0u) {
                cost = LEVEL_COSTS.x * sums[min(n, 256u) - 1u].x;
            }
            if (n > 8u) {
                cost += LEVEL_COSTS.y * sums[min(n - 8u, 256u) - 1u].x;
            }
            if (n > 24u) {
                cost += LEVEL_COSTS.z * sums[n - 25u].x;
            }
            if (cost * 1.00001 <= 1.0) {
                atomicMax(&best, n);
            }
        }
        workgroupBarrier();
        threshold = FIRST_KEY - 1u + atomicLoad(&best);
    }

    if (FOR_KEYS) {
        var level = 0u;
        if (params.criterion == 1u) {
            level = level_by(spare);
        }
        if (params.criterion == 2u) {
            level = level_of(weight, threshold);
        }
        let items = select(HEAD_DIM, quads, CODES);
        level = select(0u, level, i < items);
        levels[i] = level;
        if (i < items) {
            atomicAdd(&found[level], 1u);
        }
        cells[i] = products * level_error(level);
        if (CODES) {
            // The middle of what is not read; signed bytes are read as -128 where nothing is.
            let middle = level_error(level) - select(0.0, 128.0, KEY_BITS == 8u && level == 3u);
            let word = query_codes[reading * QUERY_STRIDE + min(i, quads - 1u)];
            tokens[i] = middle * HeadsF(heads_dot_i8(0x01010101u, word));
        }
        workgroupBarrier();
        if (CODES && i < KEY_GROUPS) {
            var error = HeadsF(0.0);
            var fill = HeadsF(0.0);
            for (var e = i * KEY_GROUP_QUADS; e < (i + 1u) * KEY_GROUP_QUADS; e++) {
                error += cells[e];
                fill += tokens[e];
            }
            put_heads(plan + PLAN_FILLS + 4u * i, fill);
            put_heads(plan + PLAN_ERRORS + 4u * i, error * bitcast<HeadsF>(raw_scale) * 0.6931472);
        }
        workgroupBarrier();
        for (var reach = 128u; reach > 0u; reach /= 2u) {
            if (i < reach) {
                cells[i] += cells[i + reach];
            }
            workgroupBarrier();
        }
        if (i < 16u) {
            var word = 0u;
            for (var c = 0u; c < 16u; c++) {
                word |= levels[16u * i + c] << (2u * c);
            }
            plans[plan + i] = word;
        }
        if (i == 0u) {
            plans[plan + PLAN_KEYS] = atomicLoad(&found[0]);
            plans[plan + PLAN_KEYS + 1u] = atomicLoad(&found[1]);
            plans[plan + PLAN_KEYS + 2u] = atomicLoad(&found[2]);
            plans[plan + PLAN_KEYS + 3u] = select(threshold, atomicLoad(&found[3]), CODES);
            if (!CODES) {
                // In nats: products are of scores in log2 units, and their exponents biased by 10
                // less than the unit in the last place.
                put_heads(plan + PLAN_BOUND, cells[0] * (0.6931472 / 1024.0));
            }
        }
    } else if (i == 0u) {
        put_heads(plan + PLAN_PEAK, peak);
        put_heads(plan + PLAN_FACTOR, factor);
        put_heads(plan + PLAN_NORM, norm);
        plans[plan + PLAN_BASE] = bitcast<u32>(atomicLoad(&bases[0]));
        plans[plan + PLAN_BASE + 1u] = bitcast<u32>(atomicLoad(&bases[1]));
        plans[plan + PLAN_BASE + 2u] = bitcast<u32>(atomicLoad(&bases[2]));
        plans[plan + PLAN_BASE + 3u] = bitcast<u32>(atomicLoad(&bases[3]));
        plans[plan + PLAN_VALUES + 3u] = threshold;
    }
}
