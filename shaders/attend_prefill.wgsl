// attend_prefill: a block of query rows against cached tokens, causal, in f32: flash attention over
// tiles of 32 tokens.
//
//   partial = (max s, sum 2^(s - max), sum 2^(s - max) v)   with s in log2 units, over the tokens the row may see
//
// One workgroup of 64 invocations takes 32 query rows of one KV head: as many tokens as fit, each
// with all the query heads that share the KV head. Invocation (down, across) holds rows 4 * down..
// against tokens 4 * across.., then the same rows against channels 4 * across.. of each slice of 32
// channels. Where an item says `after`, it covers just the sinks before that token, and all tokens
// from it on: what a sliding window leaves. Decoding rows are attend_split's and attend_rows's.
//
// RotateKV's keys are restored for a whole tile, all channels, before its scores. For Centred, what
// the mean of the keys adds to a score are further channels: the query's factors times the cosines
// and sines of the token's position.
//
// Wrapper: src/kernel/attend_prefill.rs. Twin: src/kernel/reference/attend_prefill.rs.

override HEAD_DIM: u32;
override SHARE: u32;          // query heads per KV head
override SINKS: u32;
override SLIDING_WINDOW: u32;  // tokens that a row sees, itself the last; all where it is the largest number
override POSITION_QUADS: u32; // quads of channels that carry what the mean of the keys adds; 0 where nothing
override KEY_SLICES: u32;     // slices of 32 channels of keys, those quads among them
override SLICES: u32;         // slices of 32 channels, the last perhaps in part
override MASSIVE: bool;       // whether the sinks are elected
override ROPE_PAIRS: u32;
override TILE_VECS: u32;      // of a tile of keys or values

struct AttendPrefillParams { // src/kernel/attend_prefill.rs
    items_at: u32,    // first item in tables
    slab_heads: u32,
    heads_at: u32,    // which they are, in tables
    kv_heads: u32,
}

@group(1) @binding(0) var<uniform> params: AttendPrefillParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;                // items of 8 words; chunks of 8; pages
@group(0) @binding(0) var<storage, read> query_rows: array<vec4<f32>>;      // [row, query_heads, HEAD_DIM / 4 + POSITION_QUADS]
@group(0) @binding(1) var<storage, read> turns: array<vec2<f32>>;           // [128 low + high positions, ROPE_PAIRS]
@group(0) @binding(2) var<storage, read> marks: array<u32>;                 // [kv_heads, HEAD_DIM] groups a byte; sinks
@group(0) @binding(3) var<storage, read> key_scales: array<vec4<u32>>;      // [physical page, group of the row, SCALE_VECS]
@group(0) @binding(4) var<storage, read> pages: array<vec4<u32>>;           // [physical page, slab head, PAGE_VECS]
@group(0) @binding(5) var<storage, read> protected_rows: array<u32>;        // [slot, kv_heads, SINKS + RING, HEAD_DIM]
@group(0) @binding(6) var<storage, read_write> row_partials: array<f32>;    // [partial, query_heads, HEAD_DIM + 2]

alias Cell = vec4<f32>;

// In turn: four tokens of all channels while keys are restored, the queries [32 rows, 8 quads of
// the slice] while keys are worked on, and the scores [32 rows, 8 quads of tokens].
var<workgroup> row: array<vec4<f32>, 256>;
// [32 tokens, 8 quads of the slice] as f32, values or keys; or restored keys, [32 tokens, HEAD_DIM
// / 8] as halves.
var<workgroup> token_tile: array<vec4<u32>, TILE_VECS>;
// Where each token's f16 row begins, or CACHED_PACKED; and its position, or NOWHERE for a place
// without a token.
var<workgroup> token_rows: array<u32, 32>;
var<workgroup> token_positions: array<u32, 32>;

const HIDDEN = -1e30;
const NOWHERE = 0xffffffffu;

struct Item {
    row_first: u32,     // first row of query_rows
    partial_first: u32, // first of row_partials, one a query token
    rows: u32,          // query tokens times SHARE, 32 at most
    head: u32,
}

// Four rows of four columns.
struct Block { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }

// Which row of [token, query_heads] row r of the item is, where its tokens begin at `first`.
fn item_row(item: Item, first: u32, r: u32) -> u32 {
    return (first + r / SHARE) * (params.kv_heads * SHARE) + item.head * SHARE + r % SHARE;
}

fn stage_queries(item: Item, slice: u32, i: u32) {
    for (var e = i; e < 256u; e += 64u) {
        let quad = 8u * slice + e % 8u;
        var x = vec4<f32>(0.0);
        if (quad < HEAD_DIM / 4u + POSITION_QUADS && e / 8u < item.rows) {
            x = query_rows[item_row(item, item.row_first, e / 8u) * (HEAD_DIM / 4u + POSITION_QUADS) + quad];
        }
        row[e] = x;
    }
}

// Cosine and sine of a pair at a position; where there is no such pair, of another, which the query
// has zeros for.
fn position_turn(pair: u32, t: u32) -> vec2<f32> {
    let p = min(pair, max(ROPE_PAIRS, 1u) - 1u);
    return turn_compose(turns[(128u + t / 128u) * ROPE_PAIRS + p], turns[(t % 128u) * ROPE_PAIRS + p]);
}

fn stage_keys(place: Place, slice: u32, i: u32) {
    for (var e = i; e < 256u; e += 64u) {
        let quad = 8u * slice + e % 8u;
        let t = token_positions[e / 8u];
        var x = vec4<f32>(0.0);
        if (quad < HEAD_DIM / 4u && t != NOWHERE) {
            x = cached_key(place, t, token_rows[e / 8u], quad);
        } else if (POSITION_QUADS > 0u && t != NOWHERE && quad < HEAD_DIM / 4u + POSITION_QUADS) {
            let pair = 2u * (quad - HEAD_DIM / 4u);
            x = vec4<f32>(position_turn(pair, t), position_turn(pair + 1u, t));
        }
        token_tile[e] = bitcast<vec4<u32>>(x);
    }
}

fn stage_values(place: Place, slice: u32, i: u32) {
    for (var e = i; e < 256u; e += 64u) {
        let quad = 8u * slice + e % 8u;
        let t = token_positions[e / 8u];
        var x = vec4<f32>(0.0);
        if (quad < HEAD_DIM / 4u && t != NOWHERE) {
            x = cached_value(place, t, token_rows[e / 8u], quad);
        }
        token_tile[e] = bitcast<vec4<u32>>(x);
    }
}

// The tile's token n (0 to 31): its position, and the place of its f16 row if it has one. `sinks`:
// whether the tile is one of those before token `after`
fn stage_token(place: Place, sinks: bool, after: u32, first: u32, end: u32, n: u32) {
    var t = first + n;
    var at = CACHED_PACKED;
    if (t >= end) {
        t = NOWHERE;
    } else if (MASSIVE && sinks) {
        // Here the places are those of the sinks' rows. A later sink is met among the other tokens.
        at = cached_offset(place, first + n);
        t = cached_sink(place, first + n);
        t = select(NOWHERE, t, t < after);
    } else {
        at = cached_row(place, t);
    }
    token_positions[n] = t;
    token_rows[n] = at;
}

fn tile_value(e: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(token_tile[e]);
}

fn block_score_step(n: u32, slice: u32, at: u32, rows: u32, s: Block) -> Block {
    let a = tile_key(n, slice, at);
    let b = tile_key(n + 1u, slice, at);
    let c = tile_key(n + 2u, slice, at);
    let d = tile_key(n + 3u, slice, at);
    let p = row[rows];
    let q = row[rows + 8u];
    let r = row[rows + 16u];
    let t = row[rows + 24u];
    return Block(s.a + vec4<f32>(dot(p, a), dot(p, b), dot(p, c), dot(p, d)), s.b + vec4<f32>(dot(q, a), dot(q, b), dot(q, c), dot(q, d)),
        s.c + vec4<f32>(dot(r, a), dot(r, b), dot(r, c), dot(r, d)), s.d + vec4<f32>(dot(t, a), dot(t, b), dot(t, c), dot(t, d)));
}

// The slice's share of the scores of four rows against four tokens.
fn block_scores(across: u32, down: u32, slice: u32, s: Block) -> Block {
    var next = s;
    for (var q = 0u; q < 8u; q++) {
        next = block_score_step(4u * across, slice, q, 32u * down + q, next);
    }
    return next;
}

fn block_value_step(n: u32, across: u32, down: u32, o: Block) -> Block {
    let a = tile_value(32u * n + across);
    let b = tile_value(32u * n + 8u + across);
    let c = tile_value(32u * n + 16u + across);
    let d = tile_value(32u * n + 24u + across);
    let p = row[32u * down + n];
    let q = row[32u * down + 8u + n];
    let r = row[32u * down + 16u + n];
    let t = row[32u * down + 24u + n];
    return Block(o.a + ((p.x * a + p.y * b) + (p.z * c + p.w * d)), o.b + ((q.x * a + q.y * b) + (q.z * c + q.w * d)),
        o.c + ((r.x * a + r.y * b) + (r.z * c + r.w * d)), o.d + ((t.x * a + t.y * b) + (t.z * c + t.w * d)));
}

// The tile's share of the outputs of four rows at four channels of the slice.
fn block_values(across: u32, down: u32) -> Block {
    var next = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    for (var n = 0u; n < 8u; n++) {
        next = block_value_step(n, across, down, next);
    }
    return next;
}

fn block_grown(o: Block, by: vec4<f32>, more: Block) -> Block {
    return Block(o.a * by.x + more.a, o.b * by.y + more.b, o.c * by.z + more.c, o.d * by.w + more.d);
}

fn largest(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

fn row_largest(r: u32) -> f32 {
    let at = 8u * r;
    return largest(max(max(max(row[at], row[at + 1u]), max(row[at + 2u], row[at + 3u])),
        max(max(row[at + 4u], row[at + 5u]), max(row[at + 6u], row[at + 7u]))));
}

// Hides the tokens that row r may not see: those after it, those before its window, and places
// without a token.
fn row_hide(s: vec4<f32>, r: u32, query_first: u32, positions: vec4<u32>) -> vec4<f32> {
    let end = query_first + r / SHARE + 1u;
    let first = max(end, SLIDING_WINDOW) - SLIDING_WINDOW;
    return select(vec4<f32>(HIDDEN), s, (positions < vec4<u32>(end)) & (positions >= vec4<u32>(first)));
}

// Hidden tokens weigh nothing, also in a row that has seen none yet.
fn row_weights(s: vec4<f32>, peak: f32) -> vec4<f32> {
    return select(vec4<f32>(0.0), exp2(s - vec4<f32>(peak)), s != vec4<f32>(HIDDEN));
}

fn store_row(item: Item, r: u32, quad: u32, x: vec4<f32>) {
    if (r < item.rows && quad < HEAD_DIM / 4u) {
        let at = item_row(item, item.partial_first, r) * (HEAD_DIM + 2u) + 4u * quad;
        row_partials[at] = x.x;
        row_partials[at + 1u] = x.y;
        row_partials[at + 2u] = x.z;
        row_partials[at + 3u] = x.w;
    }
}

fn store_block(item: Item, down: u32, quad: u32, o: Block) {
    store_row(item, 4u * down, quad, o.a);
    store_row(item, 4u * down + 1u, quad, o.b);
    store_row(item, 4u * down + 2u, quad, o.c);
    store_row(item, 4u * down + 3u, quad, o.d);
}

fn store_sums(item: Item, r: u32, peak: f32, sum: f32) {
    if (r < item.rows) {
        let at = item_row(item, item.partial_first, r) * (HEAD_DIM + 2u) + HEAD_DIM;
        row_partials[at] = peak;
        row_partials[at + 1u] = sum;
    }
}

@compute @workgroup_size(64)
fn attend_prefill(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let record = params.items_at + 8u * workgroup.x;
    let chunk = tables[record];
    let token_first = tables[record + 1u];
    let tokens = tables[record + 2u];
    let after = tables[record + 4u];
    let head = tables[params.heads_at + workgroup.y];
    let item = Item(tables[record + 3u], tables[record + 7u], tokens * SHARE, head);
    let packed = chunk_new_packed(chunk);
    let place = Place(chunk_slot(chunk), packed, chunk_list(chunk), head, params.kv_heads, workgroup.y, params.slab_heads, chunk_limit(chunk));
    let query_first = chunk_old_tokens(chunk) + token_first;
    let across = i % 8u;
    let down = i / 8u;

    // Two ranges of tokens, those of sinks and after..seen_end (just this when everything is
    // covered), in tiles.
    let seen_end = min(query_first + tokens, chunk_new_tokens(chunk));
    let before_end = select(min(SINKS, after), select(0u, SINKS, after > 0u), MASSIVE);
    let before_tiles = (before_end + 31u) / 32u;
    let tile_first = tables[record + 5u];
    let tile_end = tables[record + 6u];

    var peak = vec4<f32>(HIDDEN);
    var sum = vec4<f32>(0.0);
    var o0 = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    var o1 = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    var o2 = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    var o3 = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    var o4 = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    var o5 = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    var o6 = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    var o7 = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));

    for (var tile = tile_first; tile < tile_end; tile++) {
        let first = select(after + 32u * (tile - before_tiles), 32u * tile, tile < before_tiles);
        let end = min(first + 32u, select(seen_end, before_end, tile < before_tiles));
        if (i < 32u) {
            stage_token(place, tile < before_tiles, after, first, end, i);
        }
        workgroupBarrier();
        if (TILE_RESTORES) {
            for (var four = 0u; four < 32u; four += 4u) {
                let t = first + four;
                if (t < packed && tile >= before_tiles) {
                    tile_spread(place, t, i);
                }
                workgroupBarrier();
                var held: array<vec4<f32>, 4>;
                for (var c = i; c < HEAD_DIM; c += 64u) {
                    held[c / 64u] = tile_channel(c, t);
                }
                workgroupBarrier();
                for (var c = i; c < HEAD_DIM; c += 64u) {
                    row[c] = held[c / 64u];
                }
                workgroupBarrier();
                for (var e = i; e < HEAD_DIM / 2u; e += 64u) {
                    tile_pack(four + e % 4u, e / 4u);
                }
                workgroupBarrier();
            }
        }
        var s = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
        for (var slice = 0u; slice < KEY_SLICES; slice++) {
            stage_queries(item, slice, i);
            if (!TILE_RESTORES) {
                stage_keys(place, slice, i);
            }
            workgroupBarrier();
            s = block_scores(across, down, slice, s);
            workgroupBarrier();
        }

        let n = 4u * across;
        let positions = vec4<u32>(token_positions[n], token_positions[n + 1u], token_positions[n + 2u], token_positions[n + 3u]);
        s.a = row_hide(s.a, 4u * down, query_first, positions);
        s.b = row_hide(s.b, 4u * down + 1u, query_first, positions);
        s.c = row_hide(s.c, 4u * down + 2u, query_first, positions);
        s.d = row_hide(s.d, 4u * down + 3u, query_first, positions);
        row[32u * down + across] = s.a;
        row[32u * down + 8u + across] = s.b;
        row[32u * down + 16u + across] = s.c;
        row[32u * down + 24u + across] = s.d;
        workgroupBarrier();
        let new_peak = max(peak, vec4<f32>(row_largest(4u * down), row_largest(4u * down + 1u), row_largest(4u * down + 2u), row_largest(4u * down + 3u)));
        let shrink = exp2(peak - new_peak);
        peak = new_peak;
        workgroupBarrier();
        s = Block(row_weights(s.a, peak.x), row_weights(s.b, peak.y), row_weights(s.c, peak.z), row_weights(s.d, peak.w));
        let ones = vec4<f32>(1.0);
        sum = sum * shrink + vec4<f32>(dot(s.a, ones), dot(s.b, ones), dot(s.c, ones), dot(s.d, ones));
        row[32u * down + across] = s.a;
        row[32u * down + 8u + across] = s.b;
        row[32u * down + 16u + across] = s.c;
        row[32u * down + 24u + across] = s.d;
        for (var slice = 0u; slice < SLICES; slice++) {
            stage_values(place, slice, i);
            workgroupBarrier();
            let more = block_values(across, down);
            if (slice == 0u) {
                o0 = block_grown(o0, shrink, more);
            } else if (HEAD_DIM > 32u && slice == 1u) {
                o1 = block_grown(o1, shrink, more);
            } else if (HEAD_DIM > 64u && slice == 2u) {
                o2 = block_grown(o2, shrink, more);
            } else if (HEAD_DIM > 96u && slice == 3u) {
                o3 = block_grown(o3, shrink, more);
            } else if (HEAD_DIM > 128u && slice == 4u) {
                o4 = block_grown(o4, shrink, more);
            } else if (HEAD_DIM > 160u && slice == 5u) {
                o5 = block_grown(o5, shrink, more);
            } else if (HEAD_DIM > 192u && slice == 6u) {
                o6 = block_grown(o6, shrink, more);
            } else if (HEAD_DIM > 224u && slice == 7u) {
                o7 = block_grown(o7, shrink, more);
            }
            workgroupBarrier();
        }
    }

    row[8u * down + across] = sum;
    workgroupBarrier();
    let total = ((row[8u * down] + row[8u * down + 1u]) + (row[8u * down + 2u] + row[8u * down + 3u]))
        + ((row[8u * down + 4u] + row[8u * down + 5u]) + (row[8u * down + 6u] + row[8u * down + 7u]));
    store_block(item, down, 8u * 0u + across, o0);
    if (HEAD_DIM > 32u) {
        store_block(item, down, 8u * 1u + across, o1);
    }
    if (HEAD_DIM > 64u) {
        store_block(item, down, 8u * 2u + across, o2);
    }
    if (HEAD_DIM > 96u) {
        store_block(item, down, 8u * 3u + across, o3);
    }
    if (HEAD_DIM > 128u) {
        store_block(item, down, 8u * 4u + across, o4);
    }
    if (HEAD_DIM > 160u) {
        store_block(item, down, 8u * 5u + across, o5);
    }
    if (HEAD_DIM > 192u) {
        store_block(item, down, 8u * 6u + across, o6);
    }
    if (HEAD_DIM > 224u) {
        store_block(item, down, 8u * 7u + across, o7);
    }
    if (across == 0u) {
        store_sums(item, 4u * down, peak.x, total.x);
        store_sums(item, 4u * down + 1u, peak.y, total.y);
        store_sums(item, 4u * down + 2u, peak.z, total.z);
        store_sums(item, 4u * down + 3u, peak.w, total.w);
    }
}
