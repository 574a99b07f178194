// attend_rows: attention of one decoding query row over the tokens that no page holds: sinks and
// window, whose keys and values are rows of halves.
//
//   partial = (max s, sum 2^(s - max), sum 2^(s - max) v)   with s in log2 units, over the tokens of the slice
//
// One workgroup of 32 lanes serves one KV head and up to HEADS query heads that share it. It walks
// tiles of 32 places: first come the rows of the sinks, then the tokens after the pages. For the
// keys a lane owns one token, for the values four channels (eight at head_dim 256). What a tile
// takes is straight-line code on GPUs (part rows/walk), as in attend_split, beside which it runs:
// neither reads what the other writes. wgpu puts a barrier before the first dispatch that reads what
// another wrote, so this kernel binds all that attend_split reads of `query` and `position`: that one
// needs no further barrier then, which would wait for this one.
//
// For Centred, what the mean of the keys adds to a score comes from the query's factors (kernel
// query), turned to the tile's first place (part rows/centred).
//
// Wrapper: src/kernel/attend_rows.rs. Twin: src/kernel/reference/attend_rows.rs.

override HEAD_DIM: u32;  // channels a head: 64, 80, 96, 128 or 256
override HEADS: u32;     // query heads that share one reading: 1, 2 or 4
override BLOCKS: u32;    // blocks of HEADS query heads per KV head
override SHARE: u32;     // query heads per KV head
override QUERY_ROW: u32; // numbers from one row of query_rows to the next
override SINKS: u32;     // f16 rows of sinks
override RING: u32;      // f16 rows of the window, used in turn
override MASSIVE: bool;  // whether the sinks are elected
override ELECTED_AT: u32; // first elected sink in marks

struct AttendRowsParams { // src/kernel/attend_rows.rs
    items_at: u32, // first item in tables
    kv_heads: u32, // KV heads of the layer
    pad_a: u32,
    pad_b: u32,
}

@group(1) @binding(0) var<uniform> params: AttendRowsParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;               // items of 8 words; chunks of 8
@group(0) @binding(0) var<storage, read> query_rows: array<f32>;           // [row, query_heads, QUERY_ROW]
@group(0) @binding(1) var<storage, read> turns: array<vec4<f32>>;          // [128 low + high positions, pairs], two a vector
@group(0) @binding(2) var<storage, read> marks: array<u32>;                // elected sinks by slot, from ELECTED_AT
@group(0) @binding(3) var<storage, read> protected_rows: array<vec4<u32>>; // [slot, kv_heads, SINKS + RING, key and value, HEAD_DIM / 8]
@group(0) @binding(4) var<storage, read> query_codes: array<HeadsU>;       // not read here, but by attend_split
@group(0) @binding(5) var<storage, read> position_terms: array<HeadsF>;    // the same
@group(0) @binding(6) var<storage, read_write> row_partials: array<f32>;   // [partial, query_heads, HEAD_DIM + 2]

const HIDDEN = -1e30;

alias Capped = HeadsF;

// One number of each head for the lane's four channels.
struct Channels { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF }

// The query heads in f32, by channel.
var<workgroup> queries: array<HeadsF, HEAD_DIM>;
// Each lane's token: where its row begins, in vectors, and what it weighs.
var<workgroup> token_rows: array<u32, 32>;
var<workgroup> weights: array<HeadsF, 32>;

// Number c of the rows of the query heads that share the reading: `at` is where the row of the KV
// head's first begins, `first` the reading's first. Places beyond them hold the last one again.
fn row_query(at: u32, first: u32, c: u32) -> HeadsF {
    let a = query_rows[at + min(first, SHARE - 1u) * QUERY_ROW + c];
    let b = query_rows[at + min(first + 1u, SHARE - 1u) * QUERY_ROW + c];
    let d = query_rows[at + min(first + 2u, SHARE - 1u) * QUERY_ROW + c];
    let e = query_rows[at + min(first + 3u, SHARE - 1u) * QUERY_ROW + c];
    return heads_of(a, b, d, e);
}

fn row_pair(word: u32, n: u32, s: HeadsF) -> HeadsF {
    let k = unpack2x16float(word);
    return s + (k.x * queries[n] + k.y * queries[n + 1u]);
}

// Eight channels of the lane's key, vector w of its row.
fn row_key(at: u32, w: u32, s: HeadsF) -> HeadsF {
    var sum = s;
    if (w < HEAD_DIM / 8u) {
        let k = protected_rows[at + w];
        sum = row_pair(k.x, 8u * w, sum);
        sum = row_pair(k.y, 8u * w + 2u, sum);
        sum = row_pair(k.z, 8u * w + 4u, sum);
        sum = row_pair(k.w, 8u * w + 6u, sum);
    }
    return sum;
}

// The weighted value of token t of the tile, in the four channels of a quad.
fn row_value(t: u32, quad: u32, sum: Channels) -> Channels {
    let p = weights[t];
    let eight = protected_rows[token_rows[t] + HEAD_DIM / 8u + quad / 2u];
    let four = select(eight.xy, eight.zw, vec2<bool>((quad & 1u) == 1u));
    let a = unpack2x16float(four.x);
    let b = unpack2x16float(four.y);
    return Channels(sum.a + a.x * p, sum.b + a.y * p, sum.c + b.x * p, sum.d + b.y * p);
}

fn shrunk(row: Channels, by: HeadsF) -> Channels {
    return Channels(row.a * by, row.b * by, row.c * by, row.d * by);
}

// The position that place n keeps, or one beyond all: the first `sinks` places are sinks.
fn place_token(n: u32, sinks: u32, packed: u32, slot: u32, limit: u32) -> u32 {
    if (n >= sinks) {
        return packed + n - sinks;
    }
    if (MASSIVE) {
        // A later sink is met among the tokens after the pages.
        let t = marks[ELECTED_AT + slot * 3u * SINKS + n];
        return select(0xffffffffu, t, t < min(limit, packed));
    }
    return n;
}

// Which of the f16 rows place n lies in.
fn place_row(n: u32, sinks: u32, token: u32) -> u32 {
    if (n < sinks) {
        return n;
    }
    // While nothing is packed, sinks that are known beforehand come among the others.
    return select(SINKS + token % max(RING, 1u), token, !MASSIVE && token < SINKS);
}

// One head's four channels of a quad; `at` is where its partial result begins.
fn put_quad(at: u32, h: u32, quad: u32, row: Channels) {
    row_partials[at + 4u * quad] = heads_at(row.a, h);
    row_partials[at + 4u * quad + 1u] = heads_at(row.b, h);
    row_partials[at + 4u * quad + 2u] = heads_at(row.c, h);
    row_partials[at + 4u * quad + 3u] = heads_at(row.d, h);
}

// One head's channels, largest score and sum. Of the reading's heads, those below `heads` exist.
fn put_head(first_at: u32, h: u32, heads: u32, lane: u32, low: Channels, high: Channels, peak: HeadsF, sum: HeadsF) {
    if (h < heads) {
        let at = first_at + h * (HEAD_DIM + 2u);
        if (lane < HEAD_DIM / 4u) {
            put_quad(at, h, lane, low);
        }
        if (HEAD_DIM > 128u) {
            put_quad(at, h, lane + 32u, high);
        }
        if (lane == 0u) {
            row_partials[at + HEAD_DIM] = heads_at(peak, h);
            row_partials[at + HEAD_DIM + 1u] = heads_at(sum, h);
        }
    }
}

@compute @workgroup_size(32)
fn attend_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = params.items_at + workgroup.x * 8u;
    let chunk = tables[item];
    let position = tables[item + 2u];
    let visible = tables[item + 3u];
    let sinks = tables[item + 4u];
    let first = tables[item + 5u];
    let end = tables[item + 6u];
    let partial = tables[item + 7u];
    let slot = chunk_slot(chunk);
    let packed = chunk_new_packed(chunk);
    let places = sinks + chunk_new_tokens(chunk) - packed;
    let head = workgroup.y / BLOCKS;
    let head_first = workgroup.y % BLOCKS * HEADS;
    let rows_at = (slot * params.kv_heads + head) * (SINKS + RING) * (HEAD_DIM / 4u);
    let queries_at = (tables[item + 1u] * params.kv_heads + head) * SHARE * QUERY_ROW;
    for (var c = lane; c < HEAD_DIM; c += 32u) {
        queries[c] = row_query(queries_at, head_first, c);
    }

    // Lanes beyond the quads of a short head repeat the last quad and write nothing.
    let quad = min(lane, HEAD_DIM / 4u - 1u);
    var peak = HeadsF(HIDDEN);
    var sum = HeadsF(0.0);
    var low = Channels(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var high = Channels(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    for (var tile = first; tile < end; tile++) {
        // A place beyond the last repeats the last and weighs nothing.
        let n = min(32u * tile + lane, places - 1u);
        let token = place_token(n, sinks, packed, slot, chunk_limit(chunk));
        let seen = 32u * tile + lane < places && token >= visible && token <= position;
        let at = rows_at + place_row(n, sinks, token) * (HEAD_DIM / 4u);
        rows_turn(queries_at, head_first, 32u * tile, sinks, packed, lane);
        workgroupBarrier();
        token_rows[lane] = at;
        var s = rows_walk_keys(at);
        // Elected sinks keep their mean.
        s = cap_scores(select(rows_walk_means(lane, n < sinks, s), s, MASSIVE && n < sinks));
        s = select(HeadsF(HIDDEN), s, seen);
        reduce_put(0u, lane, s);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        let new_peak = max(peak, reduce_max(0u, s));
        let shrink = exp2(peak - new_peak);
        peak = new_peak;
        // Hidden tokens weigh nothing, also where none has been seen yet.
        let p = select(HeadsF(0.0), exp2(s - peak), seen);
        sum = sum * shrink + p;
        weights[lane] = p;
        workgroupBarrier();
        low = rows_walk_values(quad, shrunk(low, shrink));
        if (HEAD_DIM > 128u) {
            high = rows_walk_values(quad + 32u, shrunk(high, shrink));
        }
        workgroupBarrier();
    }
    reduce_put(0u, lane, sum);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let total = reduce_add(0u, sum);

    let heads = SHARE - head_first;
    let at = (partial * params.kv_heads * SHARE + head * SHARE + head_first) * (HEAD_DIM + 2u);
    put_head(at, 0u, heads, lane, low, high, peak, total);
    if (HEADS > 1u) {
        put_head(at, 1u, heads, lane, low, high, peak, total);
    }
    if (HEADS > 2u) {
        put_head(at, 2u, heads, lane, low, high, peak, total);
        put_head(at, 3u, heads, lane, low, high, peak, total);
    }
}
