// attend_matrices: what attend_prefill computes, by cooperative matrices: 16 x 16 halves, sums in f32.
//
//   partial = (peak, sum 2^(s - peak), sum 2^(s - peak) v)   with s in log2 units, over the item's tokens that the row may see
//
// A workgroup of 256 invocations, eight subgroups of 32, takes 128 query rows of one KV head, as many
// tokens as fit, each with all the query heads that share the KV head. Two barriers a tile of 32
// tokens:
//
//   products    scores = queries keys        every subgroup 32 rows x 16 tokens; queries stay in registers as matrices
//   - barrier -
//   by numbers  weights = 2^(scores - peak)  every invocation 4 rows x 4 tokens; before that, this tile's values and the next
//                                            tile's keys are put where products find them, from registers, and those after them
//                                            fetched
//   - barrier -
//   products    outputs += weights values    every subgroup 64 rows (32 where HEAD_DIM is 64) x 32 channels
//
// No invocation can see an element of a cooperative matrix, so scores go through workgroup memory, and
// outputs cannot be multiplied by a number for each row. Hence no running maximum: a row's peak is a
// reference that stays until a score exceeds it by 8, that is until a weight exceeds 2^8. Only then
// the weights are made again and the outputs shrunk, through workgroup memory; it takes about as long
// as one more tile, happens at a row's first tile, and hardly ever later unless scores grow with the
// position.
//
// Cooperative loads and stores: coopLoad and coopStore are column-major, ...T row-major; strides count
// elements of the array pointed into; every pointer leads to a multiple of 16 bytes. Inner indices of
// the nested arrays are constants or clamped once, so that checks of bounds cost nothing.
//
// Wrapper: src/kernel/attend_matrices.rs. Twin: src/kernel/reference/attend_matrices.rs.

override HEAD_DIM: u32;       // 64 or 128
override SHARE: u32;          // query heads per KV head
override QUERY_ROW: u32;      // numbers from one row of query_rows to the next

struct AttendMatricesParams { // src/kernel/attend_matrices.rs
    items_at: u32,    // first item in tables
    kv_heads: u32,
    pad_a: u32,
    pad_b: u32,
}

@group(1) @binding(0) var<uniform> params: AttendMatricesParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;                // items of 12 words; chunks of 8
@group(0) @binding(0) var<storage, read> query_rows: array<vec4<f32>>;      // [row, query_heads, QUERY_ROW / 4]
// [tile, kv_heads], each [HEAD_DIM / 8, 32 tokens] of eight channels, then [4, HEAD_DIM] of eight tokens.
@group(0) @binding(1) var<storage, read> unpacked_rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> marks: array<u32>;                 // what the codec learned; sinks
@group(0) @binding(3) var<storage, read_write> row_partials: array<f32>;    // [partial, query_heads, HEAD_DIM + 2]

alias MatA = coop_mat16x16<f16, A>;
alias MatB = coop_mat16x16<f16, B>;
alias MatC = coop_mat16x16<f32, C>;

const KEY_STRIDE = HEAD_DIM / 4u + 2u; // vectors from one token's key to the next
const CHANNEL_QUADS = HEAD_DIM / 4u;

// Every array is a multiple of 16 bytes, so that each begins at one: cooperative loads need that, and
// WGSL has no way to ask.
var<workgroup> keys: array<array<array<vec4<f16>, KEY_STRIDE>, 4>, 8>;             // [token, quad of channels]
var<workgroup> values: array<array<array<vec4<f16>, 10>, 4>, CHANNEL_QUADS>;       // [channel, quad of tokens]
var<workgroup> scores: array<array<array<vec4<f32>, 33>, 4>, 8>;                   // [token, quad of rows]
var<workgroup> weights: array<array<array<vec4<f16>, 10>, 4>, 32>;                 // [row, quad of tokens]
var<workgroup> tops: array<vec4<f32>, 32>;
var<workgroup> grown: array<u32, 4>;

const HIDDEN = -1e30;

alias Capped = vec4<f32>;
const GROWTH = 8.0;

struct Four { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }

fn halves(x: u32, y: u32) -> vec4<f16> {
    return vec4<f16>(vec2<f16>(unpack2x16float(x)), vec2<f16>(unpack2x16float(y)));
}

// Four channels of a query as halves. Beyond the largest half they saturate, unless they are not
// finite.
fn query_quad(x: vec4<f32>) -> vec4<f16> {
    let broken = (bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u);
    return vec4<f16>(select(clamp(x, vec4<f32>(-65504.0), vec4<f32>(65504.0)), x, broken));
}

// Four rows' queries, 32 rows apart, at one quad of a slice of 32 channels.
fn read_queries(from_rows: vec4<u32>, slice: u32) -> Four {
    return Four(query_rows[from_rows.x + 8u * slice], query_rows[from_rows.y + 8u * slice], query_rows[from_rows.z + 8u * slice], query_rows[from_rows.w + 8u * slice]);
}

// The slice's 128 rows, where the weights will be.
fn stage_queries(x: Four, i: u32) {
    let q = i / 32u;
    let r = i / 8u % 4u;
    weights[q][r][i % 8u] = query_quad(x.a);
    weights[q + 8u][r][i % 8u] = query_quad(x.b);
    weights[q + 16u][r][i % 8u] = query_quad(x.c);
    weights[q + 24u][r][i % 8u] = query_quad(x.d);
}

// Unit u of a tile's keys: eight channels of one token. Every other eight invocations store their
// second half first, so that no bank is met twice.
fn put_key(u: u32, x: vec4<u32>) {
    let n = u % 32u;
    let at = 2u * (u / 32u);
    let swapped = (n >> 3u) & 1u;
    let y = select(x, x.zwxy, swapped == 1u);
    keys[n / 4u][n % 4u][at + swapped] = halves(y.x, y.y);
    keys[n / 4u][n % 4u][at + 1u - swapped] = halves(y.z, y.w);
}

// Unit u of a tile's values: eight tokens of one channel.
fn put_value(u: u32, x: vec4<u32>) {
    let c = u % HEAD_DIM;
    let at = 2u * (u / HEAD_DIM);
    let swapped = (c >> 3u) & 1u;
    let y = select(x, x.zwxy, swapped == 1u);
    values[c / 4u][c % 4u][at + swapped] = halves(y.x, y.y);
    values[c / 4u][c % 4u][at + 1u - swapped] = halves(y.z, y.w);
}

// What decides which tokens of a tile a row sees.
struct Rows {
    open: vec2<u32>, // tiles that every row sees: the first, and the end
    query_first: u32,
    after: u32,
    before_tiles: u32,
    tokens: u32,
}

// Four rows' scores against the token at t, but for those that do not see it.
fn hide(t: u32, seen: array<vec4<u32>, 2>, x: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(HIDDEN), x, (vec4<u32>(t) >= seen[0]) & (vec4<u32>(t) < seen[1]));
}

// Where a tile is of sinks the item is read again, since it would take registers all along.
fn read_scores(rows: Rows, record: u32, head: u32, tile: u32, kq: u32, rq: u32) -> Four {
    let x = Four(cap_scores(scores[kq][0][rq]), cap_scores(scores[kq][1][rq]), cap_scores(scores[kq][2][rq]), cap_scores(scores[kq][3][rq]));
    if (tile >= rows.open.x && tile < rows.open.y) {
        return x;
    }
    if (tile >= rows.before_tiles) {
        let end = vec4<u32>(rows.query_first + 1u) + (vec4<u32>(4u * rq) + vec4<u32>(0u, 1u, 2u, 3u)) / vec4<u32>(SHARE);
        let seen = array<vec4<u32>, 2>(prefill_first(end), min(end, vec4<u32>(rows.tokens)));
        let t = rows.after + 32u * (tile - rows.before_tiles) + 4u * kq;
        return Four(hide(t, seen, x.a), hide(t + 1u, seen, x.b), hide(t + 2u, seen, x.c), hide(t + 3u, seen, x.d));
    }
    let item = prefill_item(record, head, params.kv_heads);
    let seen = prefill_seen(item, 4u * rq);
    let n = 4u * kq;
    return Four(hide(prefill_position(item, tile, n), seen, x.a), hide(prefill_position(item, tile, n + 1u), seen, x.b),
        hide(prefill_position(item, tile, n + 2u), seen, x.c), hide(prefill_position(item, tile, n + 3u), seen, x.d));
}

// The weights of four rows for four tokens, into workgroup memory; returns each row's sum.
fn weigh(x: Four, peak: vec4<f32>, kq: u32, rq: u32) -> vec4<f32> {
    // Hidden tokens weigh nothing, also in a row that has seen none yet.
    let base = max(peak, vec4<f32>(0.1 * HIDDEN));
    let p = Four(exp2(x.a - base), exp2(x.b - base), exp2(x.c - base), exp2(x.d - base));
    weights[rq][0][kq] = vec4<f16>(vec4<f32>(p.a.x, p.b.x, p.c.x, p.d.x));
    weights[rq][1][kq] = vec4<f16>(vec4<f32>(p.a.y, p.b.y, p.c.y, p.d.y));
    weights[rq][2][kq] = vec4<f16>(vec4<f32>(p.a.z, p.b.z, p.c.z, p.d.z));
    weights[rq][3][kq] = vec4<f16>(vec4<f32>(p.a.w, p.b.w, p.c.w, p.d.w));
    return (p.a + p.b) + (p.c + p.d);
}

// Two output tiles of a subgroup (w) lie in its own 16 columns of `scores`, the second 16 rows below
// the first. What each row is multiplied by.
fn shrink_two(w: u32, lane: u32, row: u32) {
    let m = lane / 4u;
    let at = 4u * w + lane % 4u;
    scores[m / 4u][m % 4u][at] *= tops[(row + m) / 4u][m % 4u];
    scores[m / 4u + 2u][m % 4u][at] *= tops[(row + m + 8u) / 4u][m % 4u];
    scores[m / 4u + 4u][m % 4u][at] *= tops[(row + m + 16u) / 4u][m % 4u];
    scores[m / 4u + 6u][m % 4u][at] *= tops[(row + m + 24u) / 4u][m % 4u];
}

fn store_four(item: PrefillItem, r: u32, channel: u32, x: vec4<f32>) {
    if (r < item.rows) {
        let at = prefill_partial(item, r) * (HEAD_DIM + 2u) + channel;
        row_partials[at] = x.x;
        row_partials[at + 1u] = x.y;
        row_partials[at + 2u] = x.z;
        row_partials[at + 3u] = x.w;
    }
}

// The same two tiles, to the partial results.
fn store_two(item: PrefillItem, w: u32, lane: u32, row: u32, channel: u32) {
    let m = lane / 4u;
    let at = 4u * w + lane % 4u;
    let c = channel + lane % 4u * 4u;
    store_four(item, row + m, c, scores[m / 4u][m % 4u][at]);
    store_four(item, row + m + 8u, c, scores[m / 4u + 2u][m % 4u][at]);
    store_four(item, row + m + 16u, c, scores[m / 4u + 4u][m % 4u][at]);
    store_four(item, row + m + 24u, c, scores[m / 4u + 6u][m % 4u][at]);
}

fn store_sums(item: PrefillItem, r: u32, peak: f32, sum: f32) {
    if (r < item.rows) {
        let at = prefill_partial(item, r) * (HEAD_DIM + 2u) + HEAD_DIM;
        row_partials[at] = peak;
        row_partials[at + 1u] = sum;
    }
}

@compute @workgroup_size(256)
fn attend_matrices(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let record = params.items_at + 12u * workgroup.x;
    let item = prefill_item(record, workgroup.y, params.kv_heads);
    let rows = Rows(prefill_open(item), item.query_first, item.after, item.before_tiles, item.tokens);
    let w = i / 32u; // subgroup
    let lane = i % 32u;
    let tile_vecs = params.kv_heads * (8u * HEAD_DIM);
    let key_at = (item.unpacked * params.kv_heads + item.head) * (8u * HEAD_DIM) + i;
    let value_at = key_at + 4u * HEAD_DIM;
    let tiles = item.tile_end - item.tile_first;

    // Scores: the subgroup's 32 rows against its 16 tokens. Queries stay in registers.
    let score_row = 8u * (w / 2u); // a quad of rows
    let score_key = 4u * (w % 2u); // a quad of tokens
    var q00: MatA;
    var q01: MatA;
    var q02: MatA;
    var q03: MatA;
    var q04: MatA;
    var q05: MatA;
    var q06: MatA;
    var q07: MatA;
    var q10: MatA;
    var q11: MatA;
    var q12: MatA;
    var q13: MatA;
    var q14: MatA;
    var q15: MatA;
    var q16: MatA;
    var q17: MatA;
    let from_rows = vec4<u32>(prefill_row(item, i / 8u), prefill_row(item, i / 8u + 32u), prefill_row(item, i / 8u + 64u), prefill_row(item, i / 8u + 96u))
        * (QUERY_ROW / 4u) + vec4<u32>(i % 8u);
    var staged = read_queries(from_rows, 0u);
    stage_queries(staged, i);
    staged = read_queries(from_rows, 1u);
    workgroupBarrier();
    q00 = coopLoadT<MatA>(&weights[score_row][0][0], 10u);
    q10 = coopLoadT<MatA>(&weights[score_row + 4u][0][0], 10u);
    q01 = coopLoadT<MatA>(&weights[score_row][0][4], 10u);
    q11 = coopLoadT<MatA>(&weights[score_row + 4u][0][4], 10u);
    workgroupBarrier();
    stage_queries(staged, i);
    if (HEAD_DIM > 64u) {
        staged = read_queries(from_rows, 2u);
    }
    workgroupBarrier();
    q02 = coopLoadT<MatA>(&weights[score_row][0][0], 10u);
    q12 = coopLoadT<MatA>(&weights[score_row + 4u][0][0], 10u);
    q03 = coopLoadT<MatA>(&weights[score_row][0][4], 10u);
    q13 = coopLoadT<MatA>(&weights[score_row + 4u][0][4], 10u);
    workgroupBarrier();
    if (HEAD_DIM > 64u) {
        stage_queries(staged, i);
        staged = read_queries(from_rows, 3u);
        workgroupBarrier();
        q04 = coopLoadT<MatA>(&weights[score_row][0][0], 10u);
        q14 = coopLoadT<MatA>(&weights[score_row + 4u][0][0], 10u);
        q05 = coopLoadT<MatA>(&weights[score_row][0][4], 10u);
        q15 = coopLoadT<MatA>(&weights[score_row + 4u][0][4], 10u);
        workgroupBarrier();
        stage_queries(staged, i);
        workgroupBarrier();
        q06 = coopLoadT<MatA>(&weights[score_row][0][0], 10u);
        q16 = coopLoadT<MatA>(&weights[score_row + 4u][0][0], 10u);
        q07 = coopLoadT<MatA>(&weights[score_row][0][4], 10u);
        q17 = coopLoadT<MatA>(&weights[score_row + 4u][0][4], 10u);
        workgroupBarrier();
    }
    // Outputs: the subgroup's rows at its 32 channels.
    let out_row = select(64u * (w / 4u), 32u * (w / 2u), HEAD_DIM == 64u);
    let out_channel = select(32u * (w % 4u), 32u * (w % 2u), HEAD_DIM == 64u);
    var o00: MatC;
    var o01: MatC;
    var o10: MatC;
    var o11: MatC;
    var o20: MatC;
    var o21: MatC;
    var o30: MatC;
    var o31: MatC;

    // Softmax: four rows at four tokens. In a subgroup 4 quads of rows x 8 quads of tokens, so that
    // neither loads of scores nor stores of weights meet a bank often.
    let rq = (i & 3u) | ((i / 32u) << 2u);
    let kq = (i >> 2u) & 7u;
    var peak = vec4<f32>(HIDDEN);
    var sum = vec4<f32>(0.0);
    if (i == 0u) {
        grown[0] = 0u;
    }

    // The first tile of keys; then the units of its values and of the next tile's keys, which wait in
    // registers.
    put_key(i, unpacked_rows[key_at]);
    var next_key = unpacked_rows[key_at + min(1u, tiles - 1u) * tile_vecs];
    var next_value = unpacked_rows[value_at];
    var next_key_b = vec4<u32>(0u);
    var next_value_b = vec4<u32>(0u);
    if (HEAD_DIM > 64u) {
        put_key(i + 256u, unpacked_rows[key_at + 256u]);
        next_key_b = unpacked_rows[key_at + 256u + min(1u, tiles - 1u) * tile_vecs];
        next_value_b = unpacked_rows[value_at + 256u];
    }
    workgroupBarrier();

    for (var n = 0u; n < tiles; n++) {
        let tile = item.tile_first + n;
        // A straight row of products: in loops, checks and guards stay.
        var s0: MatC;
        var s1: MatC;
        let b0 = coopLoad<MatB>(&keys[score_key][0][0], KEY_STRIDE);
        s0 = coopMultiplyAdd(q00, b0, s0);
        s1 = coopMultiplyAdd(q10, b0, s1);
        let b1 = coopLoad<MatB>(&keys[score_key][0][4], KEY_STRIDE);
        s0 = coopMultiplyAdd(q01, b1, s0);
        s1 = coopMultiplyAdd(q11, b1, s1);
        let b2 = coopLoad<MatB>(&keys[score_key][0][8], KEY_STRIDE);
        s0 = coopMultiplyAdd(q02, b2, s0);
        s1 = coopMultiplyAdd(q12, b2, s1);
        let b3 = coopLoad<MatB>(&keys[score_key][0][12], KEY_STRIDE);
        s0 = coopMultiplyAdd(q03, b3, s0);
        s1 = coopMultiplyAdd(q13, b3, s1);
        if (HEAD_DIM > 64u) {
            let b4 = coopLoad<MatB>(&keys[score_key][0][HEAD_DIM / 8u], KEY_STRIDE);
            s0 = coopMultiplyAdd(q04, b4, s0);
            s1 = coopMultiplyAdd(q14, b4, s1);
            let b5 = coopLoad<MatB>(&keys[score_key][0][HEAD_DIM * 5u / 32u], KEY_STRIDE);
            s0 = coopMultiplyAdd(q05, b5, s0);
            s1 = coopMultiplyAdd(q15, b5, s1);
            let b6 = coopLoad<MatB>(&keys[score_key][0][HEAD_DIM * 3u / 16u], KEY_STRIDE);
            s0 = coopMultiplyAdd(q06, b6, s0);
            s1 = coopMultiplyAdd(q16, b6, s1);
            let b7 = coopLoad<MatB>(&keys[score_key][0][HEAD_DIM * 7u / 32u], KEY_STRIDE);
            s0 = coopMultiplyAdd(q07, b7, s0);
            s1 = coopMultiplyAdd(q17, b7, s1);
        }
        coopStore(s0, &scores[score_key][0][score_row], 33u);
        coopStore(s1, &scores[score_key][0][score_row + 4u], 33u);
        workgroupBarrier();

        // This tile's values and the next tile's keys go where nobody reads before the next barrier. What
        // comes after them is fetched into the same registers, to arrive while the products run.
        put_value(i, next_value);
        put_key(i, next_key);
        let value_next = value_at + min(n + 1u, tiles - 1u) * tile_vecs;
        let key_next = key_at + min(n + 2u, tiles - 1u) * tile_vecs;
        next_value = unpacked_rows[value_next];
        next_key = unpacked_rows[key_next];
        if (HEAD_DIM > 64u) {
            put_value(i + 256u, next_value_b);
            put_key(i + 256u, next_key_b);
            next_value_b = unpacked_rows[value_next + 256u];
            next_key_b = unpacked_rows[key_next + 256u];
        }
        // Weights, against the peak as it is.
        let x = read_scores(rows, record, workgroup.y, tile, kq, rq);
        let top = max(max(x.a, x.b), max(x.c, x.d));
        if (any(top > peak + vec4<f32>(GROWTH))) {
            grown[0] = 1u;
        }
        var more = weigh(x, peak, kq, rq);
        workgroupBarrier();

        // Rare: some row's peak grew. (naga takes this condition for uniform, because it is of workgroup
        // memory.)
        if (grown[0] == 1u) {
            let y = read_scores(rows, record, workgroup.y, tile, kq, rq);
            workgroupBarrier();
            if (i == 0u) {
                grown[0] = 0u;
            }
            scores[kq][0][rq] = max(max(y.a, y.b), max(y.c, y.d));
            workgroupBarrier();
            let highest = max(max(max(scores[0][0][rq], scores[1][0][rq]), max(scores[2][0][rq], scores[3][0][rq])),
                max(max(scores[4][0][rq], scores[5][0][rq]), max(scores[6][0][rq], scores[7][0][rq])));
            let new_peak = select(peak, highest, highest > peak + vec4<f32>(GROWTH));
            let shrink = exp2(peak - new_peak);
            peak = new_peak;
            sum *= shrink;
            tops[rq] = shrink;
            more = weigh(y, peak, kq, rq);
            workgroupBarrier();
            coopStoreT(o00, &scores[0][0][4u * w], 33u);
            coopStoreT(o10, &scores[4][0][4u * w], 33u);
            workgroupBarrier();
            shrink_two(w, lane, out_row);
            workgroupBarrier();
            o00 = coopLoadT<MatC>(&scores[0][0][4u * w], 33u);
            o10 = coopLoadT<MatC>(&scores[4][0][4u * w], 33u);
            workgroupBarrier();
            coopStoreT(o01, &scores[0][0][4u * w], 33u);
            coopStoreT(o11, &scores[4][0][4u * w], 33u);
            workgroupBarrier();
            shrink_two(w, lane, out_row);
            workgroupBarrier();
            o01 = coopLoadT<MatC>(&scores[0][0][4u * w], 33u);
            o11 = coopLoadT<MatC>(&scores[4][0][4u * w], 33u);
            workgroupBarrier();
            if (HEAD_DIM > 64u) {
                coopStoreT(o20, &scores[0][0][4u * w], 33u);
                coopStoreT(o30, &scores[4][0][4u * w], 33u);
                workgroupBarrier();
                shrink_two(w, lane, out_row + 32u);
                workgroupBarrier();
                o20 = coopLoadT<MatC>(&scores[0][0][4u * w], 33u);
                o30 = coopLoadT<MatC>(&scores[4][0][4u * w], 33u);
                workgroupBarrier();
                coopStoreT(o21, &scores[0][0][4u * w], 33u);
                coopStoreT(o31, &scores[4][0][4u * w], 33u);
                workgroupBarrier();
                shrink_two(w, lane, out_row + 32u);
                workgroupBarrier();
                o21 = coopLoadT<MatC>(&scores[0][0][4u * w], 33u);
                o31 = coopLoadT<MatC>(&scores[4][0][4u * w], 33u);
                workgroupBarrier();
            }
        }
        sum += more;

        let v00 = coopLoad<MatB>(&values[out_channel / 4u][0][0], 10u);
        let v01 = coopLoad<MatB>(&values[out_channel / 4u + 4u][0][0], 10u);
        let p00 = coopLoadT<MatA>(&weights[out_row / 4u][0][0], 10u);
        o00 = coopMultiplyAdd(p00, v00, o00);
        o01 = coopMultiplyAdd(p00, v01, o01);
        let p01 = coopLoadT<MatA>(&weights[out_row / 4u + 4u][0][0], 10u);
        o10 = coopMultiplyAdd(p01, v00, o10);
        o11 = coopMultiplyAdd(p01, v01, o11);
        if (HEAD_DIM > 64u) {
            let p02 = coopLoadT<MatA>(&weights[out_row / 4u + 8u][0][0], 10u);
            o20 = coopMultiplyAdd(p02, v00, o20);
            o21 = coopMultiplyAdd(p02, v01, o21);
            let p03 = coopLoadT<MatA>(&weights[out_row / 4u + 12u][0][0], 10u);
            o30 = coopMultiplyAdd(p03, v00, o30);
            o31 = coopMultiplyAdd(p03, v01, o31);
        }
        let v10 = coopLoad<MatB>(&values[out_channel / 4u][0][4], 10u);
        let v11 = coopLoad<MatB>(&values[out_channel / 4u + 4u][0][4], 10u);
        let p10 = coopLoadT<MatA>(&weights[out_row / 4u][0][4], 10u);
        o00 = coopMultiplyAdd(p10, v10, o00);
        o01 = coopMultiplyAdd(p10, v11, o01);
        let p11 = coopLoadT<MatA>(&weights[out_row / 4u + 4u][0][4], 10u);
        o10 = coopMultiplyAdd(p11, v10, o10);
        o11 = coopMultiplyAdd(p11, v11, o11);
        if (HEAD_DIM > 64u) {
            let p12 = coopLoadT<MatA>(&weights[out_row / 4u + 8u][0][4], 10u);
            o20 = coopMultiplyAdd(p12, v10, o20);
            o21 = coopMultiplyAdd(p12, v11, o21);
            let p13 = coopLoadT<MatA>(&weights[out_row / 4u + 12u][0][4], 10u);
            o30 = coopMultiplyAdd(p13, v10, o30);
            o31 = coopMultiplyAdd(p13, v11, o31);
        }
    }

    // The rows' sums, then the outputs through workgroup memory.
    workgroupBarrier();
    scores[kq][0][rq] = sum;
    workgroupBarrier();
    if (kq == 0u) {
        let whole = ((scores[0][0][rq] + scores[1][0][rq]) + (scores[2][0][rq] + scores[3][0][rq]))
            + ((scores[4][0][rq] + scores[5][0][rq]) + (scores[6][0][rq] + scores[7][0][rq]));
        store_sums(item, 4u * rq, peak.x, whole.x);
        store_sums(item, 4u * rq + 1u, peak.y, whole.y);
        store_sums(item, 4u * rq + 2u, peak.z, whole.z);
        store_sums(item, 4u * rq + 3u, peak.w, whole.w);
    }
    workgroupBarrier();
    coopStoreT(o00, &scores[0][0][4u * w], 33u);
    coopStoreT(o10, &scores[4][0][4u * w], 33u);
    workgroupBarrier();
    store_two(item, w, lane, out_row, out_channel);
    workgroupBarrier();
    coopStoreT(o01, &scores[0][0][4u * w], 33u);
    coopStoreT(o11, &scores[4][0][4u * w], 33u);
    workgroupBarrier();
    store_two(item, w, lane, out_row, out_channel + 16u);
    workgroupBarrier();
    if (HEAD_DIM > 64u) {
        coopStoreT(o20, &scores[0][0][4u * w], 33u);
        coopStoreT(o30, &scores[4][0][4u * w], 33u);
        workgroupBarrier();
        store_two(item, w, lane, out_row + 32u, out_channel);
        workgroupBarrier();
        coopStoreT(o21, &scores[0][0][4u * w], 33u);
        coopStoreT(o31, &scores[4][0][4u * w], 33u);
        workgroupBarrier();
        store_two(item, w, lane, out_row + 32u, out_channel + 16u);
        workgroupBarrier();
    }
}
