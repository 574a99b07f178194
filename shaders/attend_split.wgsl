// attend_split: attention of one query row over one slice of the packed pages, straight from the
// codes.
//
//   partial = (max s, sum 2^(s - max), sum 2^(s - max) v)   with s in log2 units, over the tokens of the slice
//
// A unit of 32 lanes walks the pages first..end of one sequence for one KV head and up to HEADS
// query heads that share it. For the keys a lane owns four tokens, for the values four channels
// (eight at head_dim 256). The whole body of the loop is straight-line: naga's bounds checks cost
// nothing there, and a factor of four around indexed locals.
//
// A workgroup is one unit, except for RotateKV, whose keys are rotated over several KV heads: there
// the units of such a group of heads restore the keys together, a tile of tokens at a time, before
// each goes on with its own head. RotateKV (2501.16383) section 4: k = B P^-1 y, then RoPE at the
// key's own position; the queries were turned only.
//
// For Centred, what the mean of the keys adds to a score follows from the position and the query
// (part positions).
//
// Wrapper: src/kernel/attend_split.rs. Twin: src/kernel/reference/attend_split.rs.

override HEAD_DIM: u32;        // channels a head: 64, 80, 96, 128 or 256
override VALUE_GROUP: u32;     // channels that share a value scale; divides HEAD_DIM
override HEADS: u32;           // query heads that share one reading: 1, 2 or 4
override BLOCKS: u32;          // blocks of HEADS query heads per KV head
override QUERY_STRIDE: u32;    // entries of query_codes per block of heads
override VALUE_GROUPS: u32;    // value groups a head (1 for f16)
override PAGE_VECS: u32;       // vec4s of one head's page
override UNITS: u32;           // KV heads that a workgroup serves
override MASSIVE: bool;        // whether the sinks are elected
override SINKS: u32;           // f16 rows of sinks
override ELECTED_AT: u32;      // first elected sink in marks
override POSITION_PLACES: u32; // pages of a pass

struct AttendSplitParams { // src/kernel/attend_split.rs
    items_at: u32,    // first item in tables
    slab_heads: u32,  // KV heads whose pages lie in this slab
    heads_at: u32,    // which they are, in tables
    kv_heads: u32,    // KV heads of the layer
}

@group(1) @binding(0) var<uniform> params: AttendSplitParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;               // items of 9 words; lists of physical pages
@group(0) @binding(0) var<storage, read> turns: array<vec4<f32>>;          // [128 low + high positions, pairs], two a vector
@group(0) @binding(1) var<storage, read> query_codes: array<HeadsU>;       // [row, kv_head, block, QUERY_STRIDE]
@group(0) @binding(2) var<storage, read> marks: array<u32>;                // [kv_heads, HEAD_DIM] groups a byte; sinks
@group(0) @binding(3) var<storage, read> key_scales: array<vec4<u32>>;     // [physical page, group of the row, SCALE_VECS]
@group(0) @binding(4) var<storage, read> pages: array<vec4<u32>>;          // [physical page, slab head, PAGE_VECS]
@group(0) @binding(5) var<storage, read> position_terms: array<HeadsF>;    // [kv_heads, BLOCKS, 12, page of the pass], for Centred
@group(0) @binding(6) var<storage, read_write> partials: array<vec4<f32>>; // [item, kv_head, block, HEADS, HEAD_DIM / 4 + 1]

const HIDDEN = -1e30;

alias Capped = HeadsF;

// One number of each head for the lane's four tokens or four channels.
struct Scores { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF }

// Where the units of a workgroup find their keys and queries.
struct Stand {
    slab_first: u32, // the first unit's KV head, counted in the slab
    head_first: u32, // and in the layer
    queries_at: u32, // the first unit's queries
}

struct Zeros { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF, e: HeadsF, f: HeadsF, g: HeadsF, h: HeadsF }

fn zero_of(zeros: Zeros, g: u32) -> HeadsF {
    var zero = zeros.a;
    if (VALUE_GROUPS > 1u) { zero = select(zero, zeros.b, g == 1u); }
    if (VALUE_GROUPS > 2u) { zero = select(select(zero, zeros.c, g == 2u), zeros.d, g == 3u); }
    if (VALUE_GROUPS > 4u) { zero = select(select(zero, zeros.e, g == 4u), zeros.f, g == 5u); }
    if (VALUE_GROUPS > 6u) { zero = select(select(zero, zeros.g, g == 6u), zeros.h, g == 7u); }
    return zero;
}

// One head's four channels of a quad.
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

fn lowered(row: Scores, by: HeadsF) -> Scores {
    return Scores(row.a - by, row.b - by, row.c - by, row.d - by);
}

fn shrunk(row: Scores, by: HeadsF) -> Scores {
    return Scores(row.a * by, row.b * by, row.c * by, row.d * by);
}

// Hides the lane's tokens that are elected sinks: attend_rows takes them from their f16 rows.
fn hide_sinks(s: Scores, slot: u32, limit: u32, token: u32) -> Scores {
    var shown = s;
    for (var r = 0u; r < SINKS; r++) {
        let sink = marks[ELECTED_AT + slot * 3u * SINKS + r];
        if (sink < limit) {
            shown.a = select(shown.a, HeadsF(HIDDEN), sink == token);
            shown.b = select(shown.b, HeadsF(HIDDEN), sink == token + 1u);
            shown.c = select(shown.c, HeadsF(HIDDEN), sink == token + 2u);
            shown.d = select(shown.d, HeadsF(HIDDEN), sink == token + 3u);
        }
    }
    return shown;
}

@compute @workgroup_size(32u * UNITS)
fn attend_split(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let unit = invocation / 32u;
    let lane = invocation % 32u;
    let item = params.items_at + workgroup.x * 9u;
    let query_row = tables[item];
    let list = tables[item + 1u];
    let first = tables[item + 2u];
    let end = tables[item + 3u];
    let visible_first = tables[item + 4u];
    let visible_end = tables[item + 5u];
    let place = tables[item + 6u];
    let limit = tables[item + 7u];
    let slot = tables[item + 8u];
    let slab_first = workgroup.y / BLOCKS * UNITS;
    let slab_head = slab_first + unit;
    let block = workgroup.y % BLOCKS;
    let head = tables[params.heads_at + slab_head];

    let queries_at = ((query_row * params.kv_heads + head - unit) * BLOCKS + block) * QUERY_STRIDE;
    let stand = Stand(slab_first, head - unit, queries_at);
    queries_take(queries_at + unit * BLOCKS * QUERY_STRIDE, unit, lane);
    let base = positions_base(queries_at + unit * BLOCKS * QUERY_STRIDE, lane);
    let ids = restore_ids(stand, invocation);
    workgroupBarrier();

    // Lanes beyond the quads of a short head repeat the last quad and write nothing.
    let quads = HEAD_DIM / 4u;
    let quad = min(lane, quads - 1u);
    var peak = HeadsF(HIDDEN);
    var sum = HeadsF(0.0);
    var low = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var high = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var zeros = Zeros(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));

    for (var n = first; n < end; n++) {
        let physical = tables[list + n];
        let page = (physical * params.slab_heads + slab_head) * PAGE_VECS;
        positions_turn(base, n, lane);
        // Values are on their way while the keys are worked on, unless those need all registers.
        var fetched: Fetched;
        if (RESTORE_TILES == 0u) {
            fetched = values_fetch(page, quad);
        }
        if (RESTORE_TILES > 0u) {
            restore_open(physical, invocation);
            for (var tile = 0u; tile < RESTORE_TILES; tile++) {
                workgroupBarrier();
                restore_spread(stand, physical, tile, ids, invocation);
                workgroupBarrier();
                let dots = restore_dots(stand, physical, n, tile, ids, invocation);
                workgroupBarrier();
                restore_put(dots, invocation);
                workgroupBarrier();
                restore_sum(physical, tile, invocation);
            }
            workgroupBarrier();
            fetched = values_fetch(page, quad);
        }
        if (POSITIONS) {
            workgroupBarrier();
        }
        var s = keys_scores(unit, page, lane);
        if (POSITIONS) {
            let half = positions_half((head * BLOCKS + block) * 12u * POSITION_PLACES + place + n, lane);
            positions_put(lane, half);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            s = positions_add(lane, half, s);
        }
        s = Scores(cap_scores(s.a), cap_scores(s.b), cap_scores(s.c), cap_scores(s.d));
        let token = n * 128u + lane * 4u;
        s.a = select(HeadsF(HIDDEN), s.a, token >= visible_first && token < visible_end);
        s.b = select(HeadsF(HIDDEN), s.b, token + 1u >= visible_first && token + 1u < visible_end);
        s.c = select(HeadsF(HIDDEN), s.c, token + 2u >= visible_first && token + 2u < visible_end);
        s.d = select(HeadsF(HIDDEN), s.d, token + 3u >= visible_first && token + 3u < visible_end);
        if (MASSIVE) {
            s = hide_sinks(s, slot, limit, token);
        }
        let lane_peak = max(max(s.a, s.b), max(s.c, s.d));
        reduce_put(unit, lane, lane_peak);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        let new_peak = max(peak, reduce_max(unit, lane_peak));
        let shrink = exp2(peak - new_peak);
        peak = new_peak;
        let p = Scores(exp2(s.a - peak), exp2(s.b - peak), exp2(s.c - peak), exp2(s.d - peak));
        sum = sum * shrink + ((p.a + p.b) + (p.c + p.d));

        // The weights of each value group. The barriers also keep the last page's readers ahead of
        // this page's writers.
        let wa = values_weigh(0u, page, lane, p);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, values_largest(wa));
        workgroupBarrier();
        zeros.a = zeros.a * shrink + values_pack(unit, 0u, lane, wa, reduce_max(unit, values_largest(wa)));
        if (VALUE_GROUPS > 1u) {
            let wb = values_weigh(1u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wb));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.b = zeros.b * shrink + values_pack(unit, 1u, lane, wb, reduce_max(unit, values_largest(wb)));
        }
        if (VALUE_GROUPS > 2u) {
            let wc = values_weigh(2u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wc));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.c = zeros.c * shrink + values_pack(unit, 2u, lane, wc, reduce_max(unit, values_largest(wc)));
            if (VALUE_GROUPS > 3u) {
                let wd = values_weigh(3u, page, lane, p);
                if (REDUCE_BARRIER) { workgroupBarrier(); }
                reduce_put(unit, lane, values_largest(wd));
                if (REDUCE_BARRIER) { workgroupBarrier(); }
                zeros.d = zeros.d * shrink + values_pack(unit, 3u, lane, wd, reduce_max(unit, values_largest(wd)));
            }
        }
        if (VALUE_GROUPS > 4u) {
            let we = values_weigh(4u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(we));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.e = zeros.e * shrink + values_pack(unit, 4u, lane, we, reduce_max(unit, values_largest(we)));
            let wf = values_weigh(5u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wf));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.f = zeros.f * shrink + values_pack(unit, 5u, lane, wf, reduce_max(unit, values_largest(wf)));
            let wg = values_weigh(6u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wg));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.g = zeros.g * shrink + values_pack(unit, 6u, lane, wg, reduce_max(unit, values_largest(wg)));
            let wh = values_weigh(7u, page, lane, p);
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            reduce_put(unit, lane, values_largest(wh));
            if (REDUCE_BARRIER) { workgroupBarrier(); }
            zeros.h = zeros.h * shrink + values_pack(unit, 7u, lane, wh, reduce_max(unit, values_largest(wh)));
        }
        workgroupBarrier();

        low = shrunk(low, shrink);
        values_add(unit, page, quad, fetched, &low);
        if (HEAD_DIM > 128u) {
            high = shrunk(high, shrink);
            values_add(unit, page, quad + 32u, values_fetch(page, quad + 32u), &high);
        }
    }

    workgroupBarrier();
    reduce_put(unit, lane, sum);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let total = reduce_add(unit, sum);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    reduce_put(unit, lane, zeros.a);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    zeros.a = reduce_add(unit, zeros.a);
    if (VALUE_GROUPS > 1u) {
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.b);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.b = reduce_add(unit, zeros.b);
    }
    if (VALUE_GROUPS > 2u) {
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.c);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.c = reduce_add(unit, zeros.c);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.d);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.d = reduce_add(unit, zeros.d);
    }
    if (VALUE_GROUPS > 4u) {
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.e);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.e = reduce_add(unit, zeros.e);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.f);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.f = reduce_add(unit, zeros.f);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.g);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.g = reduce_add(unit, zeros.g);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        reduce_put(unit, lane, zeros.h);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        zeros.h = reduce_add(unit, zeros.h);
    }

    // Each head's quads, then its largest score and its sum.
    let at = ((workgroup.x * params.kv_heads + head) * BLOCKS + block) * HEADS * (quads + 1u);
    if (lane < quads) {
        put(at, lane, lowered(low, zero_of(zeros, 4u * lane / VALUE_GROUP)));
    }
    if (HEAD_DIM > 128u) {
        put(at, lane + 32u, lowered(high, zero_of(zeros, 4u * (lane + 32u) / VALUE_GROUP)));
    }
    if (lane == 0u) {
        put(at, quads, Scores(peak, total, HeadsF(0.0), HeadsF(0.0)));
    }
}
