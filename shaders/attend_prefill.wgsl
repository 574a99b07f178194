// attend_prefill: a block of query rows against tokens that `unpack` has unpacked, causal, in f32:
// flash attention over tiles of 32 tokens.
//
//   partial = (peak, sum 2^(s - peak), sum 2^(s - peak) v)   with s in log2 units, over the item's tokens that the row may see
//
// One workgroup of 128 invocations takes 64 query rows of one KV head, as many tokens as fit, each
// with all the query heads that share the KV head, and COLUMNS of the values' channels:
//   scores   invocation (down, across): 4 rows x 4 tokens, by slices of 32 channels
//   weights  two invocations a row
//   outputs  invocation (out_down, out_across): 8 rows x channels out_across + 16 n, by slices of 8 tokens
//
// A row's peak is a reference, not its largest score: it stays until a score exceeds it by 40, since
// f32 bears a weight of 2^40. So maxima are exchanged, and outputs shrunk, at a row's first tile and
// hardly ever again.
//
// Wrapper: src/kernel/attend_prefill.rs. Twin: src/kernel/reference/attend_prefill.rs.

override HEAD_DIM: u32;
override SHARE: u32;          // query heads per KV head
override QUERY_ROW: u32;      // numbers from one row of query_rows to the next
override SLICES: u32;         // slices of 32 channels of keys, the last perhaps in part
override COLUMNS: u32;        // channels of values that a workgroup takes: HEAD_DIM, or a half or fourth of it, 128 at most

struct AttendPrefillParams { // src/kernel/attend_prefill.rs
    items_at: u32,    // first item in tables
    kv_heads: u32,
    pad_a: u32,
    pad_b: u32,
}

@group(1) @binding(0) var<uniform> params: AttendPrefillParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;                // items of 12 words; chunks of 8
@group(0) @binding(0) var<storage, read> query_rows: array<vec4<f32>>;      // [row, query_heads, QUERY_ROW / 4]
// [tile, kv_heads], each [HEAD_DIM / 8, 32 tokens] of eight channels, then [4, HEAD_DIM] of eight tokens.
@group(0) @binding(1) var<storage, read> unpacked_rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> marks: array<u32>;                 // what the codec learned; sinks
@group(0) @binding(3) var<storage, read_write> row_partials: array<f32>;    // [partial, query_heads, HEAD_DIM + 2]

// A slice of the queries [64 rows, 8 quads of channels, 1 of nothing], then scores and weights [64
// rows, 8 quads of tokens, 1 of nothing]: with the odd stride, eight rows meet eight banks.
var<workgroup> rows_tile: array<vec4<f32>, 576>;
// A slice of the keys [32 tokens, 8 quads of channels, 1 of nothing], then of the values [2 quads of
// tokens, COLUMNS].
var<workgroup> token_tile: array<vec4<f32>, 288>;
var<workgroup> tops: array<f32, 128>;
var<workgroup> grown: u32;

const HIDDEN = -1e30;

alias Capped = vec4<f32>;
const STRIDE = 9u;
const GROWTH = 40.0;

struct Four { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }
// Eight rows of one channel.
struct Column { a: vec4<f32>, b: vec4<f32> }
// The weights of eight rows for four tokens, by token.
struct Weights { a: Column, b: Column, c: Column, d: Column }

fn stage_query(to: u32, from_row: u32, quad: u32) {
    var x = vec4<f32>(0.0);
    if (quad < HEAD_DIM / 4u) {
        x = query_rows[from_row + quad];
    }
    rows_tile[to] = x;
}

fn first_four(x: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y));
}

fn last_four(x: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(x.z), unpack2x16float(x.w));
}

// Eight channels of one token.
fn stage_keys(tile_at: u32, slice: u32, i: u32) {
    let octet = 4u * slice + i / 32u;
    var x = vec4<u32>(0u);
    if (octet < HEAD_DIM / 8u) {
        x = unpacked_rows[tile_at + octet * 32u + i % 32u];
    }
    let to = i % 32u * STRIDE + 2u * (i / 32u);
    token_tile[to] = first_four(x);
    token_tile[to + 1u] = last_four(x);
}

// Eight tokens of one channel.
fn stage_values(tile_at: u32, slice: u32, column_first: u32, i: u32) {
    if (i < COLUMNS) {
        let x = unpacked_rows[tile_at + (4u + slice) * HEAD_DIM + column_first + i];
        token_tile[i] = first_four(x);
        token_tile[COLUMNS + i] = last_four(x);
    }
}

// A row's scores against four tokens, by four more channels; a chain, so that it becomes fma.
fn row_scores(s: vec4<f32>, q: vec4<f32>, k: Four) -> vec4<f32> {
    return (((s + q.x * vec4<f32>(k.a.x, k.b.x, k.c.x, k.d.x)) + q.y * vec4<f32>(k.a.y, k.b.y, k.c.y, k.d.y))
        + q.z * vec4<f32>(k.a.z, k.b.z, k.c.z, k.d.z)) + q.w * vec4<f32>(k.a.w, k.b.w, k.c.w, k.d.w);
}

// Four rows from 4 * down on against tokens across + 8 n, by one more quad of channels.
fn score_step(s: Four, down: u32, across: u32, quad: u32) -> Four {
    let at = across * STRIDE + quad;
    let k = Four(token_tile[at], token_tile[at + 8u * STRIDE], token_tile[at + 16u * STRIDE], token_tile[at + 24u * STRIDE]);
    let r = 4u * down * STRIDE + quad;
    return Four(row_scores(s.a, rows_tile[r], k), row_scores(s.b, rows_tile[r + STRIDE], k),
        row_scores(s.c, rows_tile[r + 2u * STRIDE], k), row_scores(s.d, rows_tile[r + 3u * STRIDE], k));
}

fn put_scores(at: u32, c: u32, s: vec4<f32>) {
    rows_tile[at][c] = s.x;
    rows_tile[at + 2u][c] = s.y;
    rows_tile[at + 4u][c] = s.z;
    rows_tile[at + 6u][c] = s.w;
}

fn largest(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

fn total(x: vec4<f32>) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}

// Hides what a row does not see of the tile's tokens n to n + 3.
fn hide(item: PrefillItem, tile: u32, n: u32, seen: vec2<u32>, x: vec4<f32>) -> vec4<f32> {
    let t = vec4<u32>(prefill_position(item, tile, n), prefill_position(item, tile, n + 1u), prefill_position(item, tile, n + 2u),
        prefill_position(item, tile, n + 3u));
    return select(vec4<f32>(HIDDEN), x, (t >= vec4<u32>(seen.x)) & (t < vec4<u32>(seen.y)));
}

// Hidden tokens weigh nothing, also in a row that has seen none yet.
fn four_weights(x: vec4<f32>, peak: f32) -> vec4<f32> {
    return select(vec4<f32>(0.0), exp2(x - vec4<f32>(peak)), x != vec4<f32>(HIDDEN));
}

// A row's weights of 16 tokens, into workgroup memory; returns their sum.
fn weigh(x: Four, peak: f32, at: u32) -> f32 {
    let p = Four(four_weights(x.a, peak), four_weights(x.b, peak), four_weights(x.c, peak), four_weights(x.d, peak));
    rows_tile[at] = p.a;
    rows_tile[at + 1u] = p.b;
    rows_tile[at + 2u] = p.c;
    rows_tile[at + 3u] = p.d;
    return total((p.a + p.b) + (p.c + p.d));
}

fn four_rows(at: u32) -> Four {
    return Four(rows_tile[at], rows_tile[at + STRIDE], rows_tile[at + 2u * STRIDE], rows_tile[at + 3u * STRIDE]);
}

// The weights of rows 8 * down.. for quad n of the tile's tokens.
fn eight_rows(down: u32, n: u32) -> Weights {
    let p = four_rows(8u * down * STRIDE + n);
    let q = four_rows((8u * down + 4u) * STRIDE + n);
    return Weights(Column(vec4<f32>(p.a.x, p.b.x, p.c.x, p.d.x), vec4<f32>(q.a.x, q.b.x, q.c.x, q.d.x)),
        Column(vec4<f32>(p.a.y, p.b.y, p.c.y, p.d.y), vec4<f32>(q.a.y, q.b.y, q.c.y, q.d.y)),
        Column(vec4<f32>(p.a.z, p.b.z, p.c.z, p.d.z), vec4<f32>(q.a.z, q.b.z, q.c.z, q.d.z)),
        Column(vec4<f32>(p.a.w, p.b.w, p.c.w, p.d.w), vec4<f32>(q.a.w, q.b.w, q.c.w, q.d.w)));
}

// Eight rows of a channel and four more tokens of it.
fn column_step(o: Column, p: Weights, v: vec4<f32>) -> Column {
    return Column((((o.a + v.x * p.a.a) + v.y * p.b.a) + v.z * p.c.a) + v.w * p.d.a, (((o.b + v.x * p.a.b) + v.y * p.b.b) + v.z * p.c.b) + v.w * p.d.b);
}

fn shrunk(o: Column, r: u32) -> Column {
    return Column(o.a * vec4<f32>(tops[r], tops[r + 1u], tops[r + 2u], tops[r + 3u]),
        o.b * vec4<f32>(tops[r + 4u], tops[r + 5u], tops[r + 6u], tops[r + 7u]));
}

fn store(item: PrefillItem, r: u32, channel: u32, x: f32) {
    if (r < item.rows) {
        row_partials[prefill_partial(item, r) * (HEAD_DIM + 2u) + channel] = x;
    }
}

fn store_column(item: PrefillItem, r: u32, channel: u32, o: Column) {
    store(item, r, channel, o.a.x);
    store(item, r + 1u, channel, o.a.y);
    store(item, r + 2u, channel, o.a.z);
    store(item, r + 3u, channel, o.a.w);
    store(item, r + 4u, channel, o.b.x);
    store(item, r + 5u, channel, o.b.y);
    store(item, r + 6u, channel, o.b.z);
    store(item, r + 7u, channel, o.b.w);
}

@compute @workgroup_size(128)
fn attend_prefill(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let item = prefill_item(params.items_at + 12u * workgroup.x, workgroup.y, params.kv_heads);
    let open = prefill_open(item);
    let column_first = workgroup.z * COLUMNS;
    let across = i % 8u;
    let down = i / 8u;
    let out_across = i % 16u;
    let out_down = i / 16u;
    let r = i / 2u;
    let half_row = i % 2u;
    let end = item.query_first + r / SHARE + 1u;
    let seen = vec2<u32>(prefill_first(vec4<u32>(end)).x, end);
    // Queries are staged four rows an invocation, 16 apart.
    let staged = vec4<u32>(prefill_row(item, down), prefill_row(item, down + 16u), prefill_row(item, down + 32u), prefill_row(item, down + 48u)) * (QUERY_ROW / 4u);

    var peak = HIDDEN;
    var sum = 0.0;
    let none = Column(vec4<f32>(0.0), vec4<f32>(0.0));
    var o0 = none;
    var o1 = none;
    var o2 = none;
    var o3 = none;
    var o4 = none;
    var o5 = none;
    var o6 = none;
    var o7 = none;
    if (i == 0u) {
        grown = 0u;
    }

    for (var tile = item.tile_first; tile < item.tile_end; tile++) {
        let tile_at = ((item.unpacked + tile - item.tile_first) * params.kv_heads + item.head) * (8u * HEAD_DIM);
        var s = Four(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
        for (var slice = 0u; slice < SLICES; slice++) {
            let quad = 8u * slice + across;
            stage_query(down * STRIDE + across, staged.x, quad);
            stage_query((down + 16u) * STRIDE + across, staged.y, quad);
            stage_query((down + 32u) * STRIDE + across, staged.z, quad);
            stage_query((down + 48u) * STRIDE + across, staged.w, quad);
            stage_keys(tile_at, slice, i);
            workgroupBarrier();
            s = walk_scores(s, down, across);
            workgroupBarrier();
        }

        // To those who weigh them: token across + 8 n is component across % 4 of quad across / 4 + 2 n.
        let to = 4u * down * STRIDE + across / 4u;
        put_scores(to, across % 4u, s.a);
        put_scores(to + STRIDE, across % 4u, s.b);
        put_scores(to + 2u * STRIDE, across % 4u, s.c);
        put_scores(to + 3u * STRIDE, across % 4u, s.d);
        workgroupBarrier();
        let own = r * STRIDE + 4u * half_row;
        var x = Four(cap_scores(rows_tile[own]), cap_scores(rows_tile[own + 1u]), cap_scores(rows_tile[own + 2u]), cap_scores(rows_tile[own + 3u]));
        if (tile < open.x || tile >= open.y) {
            let n = 16u * half_row;
            x = Four(hide(item, tile, n, seen, x.a), hide(item, tile, n + 4u, seen, x.b), hide(item, tile, n + 8u, seen, x.c),
                hide(item, tile, n + 12u, seen, x.d));
        }
        let top = largest(max(max(x.a, x.b), max(x.c, x.d)));
        if (top > peak + GROWTH) {
            grown = 1u;
        }
        var more = weigh(x, peak, own);
        stage_values(tile_at, 0u, column_first, i);
        // Barriers as well; and only what comes so is uniform to Chromium's compiler.
        if (workgroupUniformLoad(&grown) == 1u) {
            tops[i] = top;
            workgroupBarrier();
            grown = 0u;
            let highest = max(tops[i], tops[i ^ 1u]);
            let new_peak = select(peak, highest, highest > peak + GROWTH);
            let shrink = exp2(peak - new_peak);
            peak = new_peak;
            sum *= shrink;
            workgroupBarrier();
            tops[r] = shrink;
            more = weigh(x, peak, own);
            workgroupBarrier();
            o0 = shrunk(o0, 8u * out_down);
            o1 = shrunk(o1, 8u * out_down);
            o2 = shrunk(o2, 8u * out_down);
            o3 = shrunk(o3, 8u * out_down);
            if (COLUMNS > 64u) {
                o4 = shrunk(o4, 8u * out_down);
            }
            if (COLUMNS > 80u) {
                o5 = shrunk(o5, 8u * out_down);
            }
            if (COLUMNS > 96u) {
                o6 = shrunk(o6, 8u * out_down);
                o7 = shrunk(o7, 8u * out_down);
            }
        }
        sum += more;
        for (var slice = 0u; slice < 4u; slice++) {
            if (slice > 0u) {
                workgroupBarrier();
                stage_values(tile_at, slice, column_first, i);
                workgroupBarrier();
            }
            let p = eight_rows(out_down, 2u * slice);
            o0 = column_step(o0, p, token_tile[out_across]);
            o1 = column_step(o1, p, token_tile[out_across + 16u]);
            o2 = column_step(o2, p, token_tile[out_across + 32u]);
            o3 = column_step(o3, p, token_tile[out_across + 48u]);
            if (COLUMNS > 64u) {
                o4 = column_step(o4, p, token_tile[out_across + 64u]);
            }
            if (COLUMNS > 80u) {
                o5 = column_step(o5, p, token_tile[out_across + 80u]);
            }
            if (COLUMNS > 96u) {
                o6 = column_step(o6, p, token_tile[out_across + 96u]);
                o7 = column_step(o7, p, token_tile[out_across + 112u]);
            }
            let q = eight_rows(out_down, 2u * slice + 1u);
            o0 = column_step(o0, q, token_tile[COLUMNS + out_across]);
            o1 = column_step(o1, q, token_tile[COLUMNS + out_across + 16u]);
            o2 = column_step(o2, q, token_tile[COLUMNS + out_across + 32u]);
            o3 = column_step(o3, q, token_tile[COLUMNS + out_across + 48u]);
            if (COLUMNS > 64u) {
                o4 = column_step(o4, q, token_tile[COLUMNS + out_across + 64u]);
            }
            if (COLUMNS > 80u) {
                o5 = column_step(o5, q, token_tile[COLUMNS + out_across + 80u]);
            }
            if (COLUMNS > 96u) {
                o6 = column_step(o6, q, token_tile[COLUMNS + out_across + 96u]);
                o7 = column_step(o7, q, token_tile[COLUMNS + out_across + 112u]);
            }
        }
        workgroupBarrier();
    }

    tops[i] = sum;
    workgroupBarrier();
    if (half_row == 0u && workgroup.z == 0u) {
        store(item, r, HEAD_DIM, peak);
        store(item, r, HEAD_DIM + 1u, tops[i] + tops[i + 1u]);
    }
    let out = column_first + out_across;
    store_column(item, 8u * out_down, out, o0);
    store_column(item, 8u * out_down, out + 16u, o1);
    store_column(item, 8u * out_down, out + 32u, o2);
    store_column(item, 8u * out_down, out + 48u, o3);
    if (COLUMNS > 64u) {
        store_column(item, 8u * out_down, out + 64u, o4);
    }
    if (COLUMNS > 80u) {
        store_column(item, 8u * out_down, out + 80u, o5);
    }
    if (COLUMNS > 96u) {
        store_column(item, 8u * out_down, out + 96u, o6);
        store_column(item, 8u * out_down, out + 112u, o7);
    }
}
