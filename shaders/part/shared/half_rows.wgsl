// half_rows: one decoding query row over the f16 rows of sinks and window, tile by tile of 32 places,
// for attend_rows and attend_direct: first come the rows of the sinks, then the tokens after the
// pages. For the keys a lane owns one token, for the values four channels (eight beyond head_dim 128,
// sixteen at 512).
//
// half_rows_attend has barriers, so the entry point calls it once, outside of loops. The query heads
// lie in the kernel's workgroup array `row`. Needs heads,
// reduce, rows, rows/walk, cap and chunk; reads the kernel's bindings `tables`, `protected_rows` and
// `marks`, its parameter kv_heads, and its constant HIDDEN.

override HEAD_DIM: u32;   // channels a head: 64, 80, 96, 128, 192, 256 or 512
override SINKS: u32;      // f16 rows of sinks
override RING: u32;       // f16 rows of the window, used in turn
override MASSIVE: bool;   // whether the sinks are elected
override ELECTED_AT: u32; // first elected sink in marks

// One number of each head for the lane's four channels.
struct Channels { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF }

// Each lane's token: where its row begins, in vectors, and what it weighs.
var<workgroup> half_rows_at: array<u32, 32>;
var<workgroup> half_rows_weights: array<HeadsF, 32>;

fn half_rows_pair(word: u32, n: u32, s: HeadsF) -> HeadsF {
    let k = unpack2x16float(word);
    return s + (k.x * row[n] + k.y * row[n + 1u]);
}

// Eight channels of the lane's key, vector w of its row.
fn half_rows_key(at: u32, w: u32, s: HeadsF) -> HeadsF {
    var sum = s;
    if (w < HEAD_DIM / 8u) {
        let k = protected_rows[at + w];
        sum = half_rows_pair(k.x, 8u * w, sum);
        sum = half_rows_pair(k.y, 8u * w + 2u, sum);
        sum = half_rows_pair(k.z, 8u * w + 4u, sum);
        sum = half_rows_pair(k.w, 8u * w + 6u, sum);
    }
    return sum;
}

// The weighted value of token t of the tile, in the four channels of a quad.
fn half_rows_value(t: u32, quad: u32, sum: Channels) -> Channels {
    let p = half_rows_weights[t];
    let eight = protected_rows[half_rows_at[t] + HEAD_DIM / 8u + quad / 2u];
    let four = select(eight.xy, eight.zw, vec2<bool>((quad & 1u) == 1u));
    let a = unpack2x16float(four.x);
    let b = unpack2x16float(four.y);
    return Channels(sum.a + a.x * p, sum.b + a.y * p, sum.c + b.x * p, sum.d + b.y * p);
}

fn half_rows_shrunk(row: Channels, by: HeadsF) -> Channels {
    return Channels(row.a * by, row.b * by, row.c * by, row.d * by);
}

// The position that place n keeps, or one beyond all: the first `sinks` places are sinks.
fn half_rows_token(n: u32, sinks: u32, packed: u32, slot: u32, limit: u32) -> u32 {
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
fn half_rows_place(n: u32, sinks: u32, token: u32) -> u32 {
    if (n < sinks) {
        return n;
    }
    // While nothing is packed, sinks that are known beforehand come among the others.
    return select(SINKS + token % max(RING, 1u), token, !MASSIVE && token < SINKS);
}

// What a slice adds up to: weighted values, of the lane's channels, the largest score and the sum of
// the weights.
struct HalfRows { low: Channels, high: Channels, third: Channels, fourth: Channels, peak: HeadsF, sum: HeadsF }

// The tiles of the item that begins here in tables, for one KV head. The kernel has filled `row`,
// and put a barrier after that.
fn half_rows_attend(item: u32, head: u32, lane: u32) -> HalfRows {
    let chunk = tables[item];
    let position = tables[item + 2u];
    let visible = tables[item + 3u];
    let sinks = tables[item + 4u];
    let first = tables[item + 5u];
    let end = tables[item + 6u];
    let slot = chunk_slot(chunk);
    let packed = chunk_new_packed(chunk);
    let places = sinks + chunk_new_tokens(chunk) - packed;
    let rows_at = (slot * params.kv_heads + head) * (SINKS + RING) * (HEAD_DIM / 4u);
    // Lanes beyond the quads of a head repeat the last quad and write nothing.
    let quad = min(lane, HEAD_DIM / 4u - 1u);
    let second = min(lane + 32u, HEAD_DIM / 4u - 1u);
    var peak = HeadsF(HIDDEN);
    var sum = HeadsF(0.0);
    var low = Channels(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var high = Channels(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    // At head_dim 512 alone.
    var third = Channels(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var fourth = Channels(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    for (var tile = first; tile < end; tile++) {
        // A place beyond the last repeats the last and weighs nothing.
        let n = min(32u * tile + lane, places - 1u);
        let token = half_rows_token(n, sinks, packed, slot, chunk_limit(chunk));
        let seen = 32u * tile + lane < places && token >= visible && token <= position;
        let at = rows_at + half_rows_place(n, sinks, token) * (HEAD_DIM / 4u);
        rows_turn(32u * tile, sinks, packed, lane);
        workgroupBarrier();
        half_rows_at[lane] = at;
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
        half_rows_weights[lane] = p;
        workgroupBarrier();
        low = rows_walk_values(quad, half_rows_shrunk(low, shrink));
        if (HEAD_DIM > 128u) {
            high = rows_walk_values(second, half_rows_shrunk(high, shrink));
        }
        if (HEAD_DIM > 256u) {
            third = rows_walk_values(lane + 64u, half_rows_shrunk(third, shrink));
            fourth = rows_walk_values(lane + 96u, half_rows_shrunk(fourth, shrink));
        }
        workgroupBarrier();
    }
    reduce_put(0u, lane, sum);
    if (REDUCE_BARRIER) { workgroupBarrier(); }
    let total = reduce_add(0u, sum);
    return HalfRows(low, high, third, fourth, peak, total);
}
