// made: queries, made by the workgroup that attends with them, from the caller's rows, for attend_direct:
// what kernel `query` writes for others, by the same steps.
//
//   y = log2(e) * scale * H * RoPE_position(x)    (H only where the codec rotates keys after RoPE)
//
// Leaves the query heads of a reading in f32 in `row` and their codes in `queries`, as queries/stored
// has them; and where keys have means that turn, A and B of every pair in query_factors. Numbers that
// are not finite become 0, since partial results say which heads had some. Reads the kernel's bindings
// `queries_in`, `turns` and `marks`; needs hadamard, turn, turn_at, factors, query_factors, centre,
// layout and element.

override HEAD_DIM: u32;       // channels of a head
override ROPE_PAIRS: u32;     // pairs of channels that turn
override POSITION_QUADS: u32; // quads of channels that carry what the mean of the keys adds to a score
override POSITIONS_AT: u32;   // entries of a block of heads' codes
override SCALE: f32;          // log2(e) times the scale
override SHARE: u32;          // query heads per KV head
override TURNED: bool;        // whether the caller's rows come turned
override KEY_GROUP: u32;      // channels that share a key scale, or 0 where keys are halves

alias Cell = HeadsF;

const QUERY_QUADS = HEAD_DIM / 4u;

var<workgroup> queries: array<HeadsU, POSITIONS_AT>;
var<workgroup> row: array<HeadsF, HEAD_DIM>;
var<workgroup> quad_sums: array<HeadsI, QUERY_QUADS>;

// Where the rows of a reading's query heads begin among the caller's numbers.
struct MadeRows { a: u32, b: u32, c: u32, d: u32 }

// One number of each head for the lane's channels: lane, lane + 32 and so on.
struct MadeChannels { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF, e: HeadsF, f: HeadsF, g: HeadsF, h: HeadsF }

// The rows of the heads from number `first` of a KV head's. Places beyond them hold the last one again.
fn made_rows(row_index: u32, kv_heads: u32, head: u32, first: u32) -> MadeRows {
    let heads = kv_heads * SHARE;
    let at = head * SHARE;
    return MadeRows(layout_row(0u, row_index, heads, at + min(first, SHARE - 1u)), layout_row(0u, row_index, heads, at + min(first + 1u, SHARE - 1u)),
        layout_row(0u, row_index, heads, at + min(first + 2u, SHARE - 1u)), layout_row(0u, row_index, heads, at + min(first + 3u, SHARE - 1u)));
}

fn made_number(i: u32) -> f32 {
    return element_of(queries_in[element_word(i)], i);
}

fn made_channel(rows: MadeRows, c: u32) -> HeadsF {
    return heads_of(made_number(rows.a + c), made_number(rows.b + c), made_number(rows.c + c), made_number(rows.d + c));
}

// Turns the queries and divides them by the weights of the keys.
fn made_turn(rows: MadeRows, position: u32, head: u32, lane: u32) {
    for (var p = lane; p < ROPE_PAIRS; p += 32u) {
        let channels = factors_channels(p);
        let x = Factors(made_channel(rows, channels.x), made_channel(rows, channels.y));
        let turn = select(turn_compose(turn_at((128u + position / 128u) * ROPE_PAIRS + p), turn_at((position % 128u) * ROPE_PAIRS + p)), vec2<f32>(1.0, 0.0), TURNED);
        row[channels.x] = (x.a * turn.x - x.b * turn.y) / centre_weights(head, channels.x).x;
        row[channels.y] = (x.b * turn.x + x.a * turn.y) / centre_weights(head, channels.y).x;
        if (POSITION_QUADS > 0u) {
            let factors = factors_of(head, channels, x, turn);
            query_factors[2u * p] = factors.a;
            query_factors[2u * p + 1u] = factors.b;
        }
    }
    // Beyond the last pair stand zeros.
    for (var p = ROPE_PAIRS + lane; p < 2u * POSITION_QUADS; p += 32u) {
        query_factors[2u * p] = HeadsF(0.0);
        query_factors[2u * p + 1u] = HeadsF(0.0);
    }
    for (var c = 2u * ROPE_PAIRS + lane; c < HEAD_DIM; c += 32u) {
        row[c] = made_channel(rows, c) / centre_weights(head, c).x;
    }
}

fn made_get(lane: u32) -> MadeChannels {
    var y: MadeChannels;
    y.a = row[lane];
    y.b = row[lane + 32u];
    if (HEAD_DIM > 64u) { y.c = row[min(lane + 64u, HEAD_DIM - 1u)]; }
    if (HEAD_DIM > 96u) { y.d = row[lane + 96u]; }
    if (HEAD_DIM > 128u) { y.e = row[lane + 128u]; y.f = row[lane + 160u]; y.g = row[lane + 192u]; y.h = row[lane + 224u]; }
    return y;
}

fn made_outer(lane: u32) -> MadeChannels {
    var y: MadeChannels;
    y.a = hadamard_outer(lane);
    y.b = hadamard_outer(lane + 32u);
    if (HEAD_DIM > 64u) { y.c = hadamard_outer(min(lane + 64u, HEAD_DIM - 1u)); }
    if (HEAD_DIM > 96u) { y.d = hadamard_outer(lane + 96u); }
    if (HEAD_DIM > 128u) { y.e = hadamard_outer(lane + 128u); y.f = hadamard_outer(lane + 160u); y.g = hadamard_outer(lane + 192u); y.h = hadamard_outer(lane + 224u); }
    return y;
}

fn made_inner(lane: u32) -> MadeChannels {
    var y: MadeChannels;
    y.a = hadamard_inner(lane);
    y.b = hadamard_inner(lane + 32u);
    if (HEAD_DIM > 64u) { y.c = hadamard_inner(min(lane + 64u, HEAD_DIM - 1u)); }
    if (HEAD_DIM > 96u) { y.d = hadamard_inner(lane + 96u); }
    if (HEAD_DIM > 128u) { y.e = hadamard_inner(lane + 128u); y.f = hadamard_inner(lane + 160u); y.g = hadamard_inner(lane + 192u); y.h = hadamard_inner(lane + 224u); }
    return y;
}

fn made_put(lane: u32, y: MadeChannels) {
    row[lane] = y.a;
    row[lane + 32u] = y.b;
    if (HEAD_DIM > 64u && lane + 64u < HEAD_DIM) { row[lane + 64u] = y.c; }
    if (HEAD_DIM > 96u) { row[lane + 96u] = y.d; }
    if (HEAD_DIM > 128u) { row[lane + 128u] = y.e; row[lane + 160u] = y.f; row[lane + 192u] = y.g; row[lane + 224u] = y.h; }
}

// By their bits, since compilers may assume that no NaN exists.
fn made_size(x: HeadsF) -> HeadsF {
    return select(HeadsF(3e38), abs(x), (bitcast<HeadsU>(x) & HeadsU(0x7f800000u)) != HeadsU(0x7f800000u));
}

// The largest magnitude of the lane's channels: 3e38 for a head with a number that is not finite.
fn made_largest(y: MadeChannels) -> HeadsF {
    var size = max(made_size(y.a), made_size(y.b));
    if (HEAD_DIM > 64u) { size = max(size, made_size(y.c)); }
    if (HEAD_DIM > 96u) { size = max(size, made_size(y.d)); }
    if (HEAD_DIM > 128u) { size = max(max(max(size, made_size(y.e)), max(made_size(y.f), made_size(y.g))), made_size(y.h)); }
    return size;
}

fn made_finite(x: HeadsF, broken: HeadsF) -> HeadsF {
    return select(x * SCALE, HeadsF(0.0), broken > HeadsF(1e38));
}

// The lane's channels times the scale of scores; zeros for heads of which a number is not finite.
fn made_scaled(y: MadeChannels, largest: HeadsF) -> MadeChannels {
    return MadeChannels(made_finite(y.a, largest), made_finite(y.b, largest), made_finite(y.c, largest), made_finite(y.d, largest),
        made_finite(y.e, largest), made_finite(y.f, largest), made_finite(y.g, largest), made_finite(y.h, largest));
}

fn made_code(x: HeadsF, scale: HeadsF) -> HeadsI {
    return HeadsI(clamp(round(x / max(scale, HeadsF(1e-30))), HeadsF(-127.0), HeadsF(127.0)));
}

fn made_byte(code: HeadsI) -> HeadsU {
    return bitcast<HeadsU>(code) & HeadsU(255u);
}

// Codes of four channels each, and the scale; every channel in f32 where keys are halves. `largest` is
// the largest magnitude in `row`.
fn made_encode(lane: u32, largest: HeadsF) {
    if (KEY_GROUP == 0u) {
        for (var c = lane; c < HEAD_DIM; c += 32u) {
            queries[c] = bitcast<HeadsU>(row[c]);
        }
        return;
    }
    let scale = largest / 127.0;
    for (var q = lane; q < QUERY_QUADS; q += 32u) {
        let a = made_code(row[4u * q], scale);
        let b = made_code(row[4u * q + 1u], scale);
        let c = made_code(row[4u * q + 2u], scale);
        let d = made_code(row[4u * q + 3u], scale);
        queries[q] = made_byte(a) | (made_byte(b) << HeadsU(8u)) | (made_byte(c) << HeadsU(16u)) | (made_byte(d) << HeadsU(24u));
        quad_sums[q] = (a + b) + (c + d);
    }
    if (lane == 0u) {
        queries[QUERY_QUADS] = bitcast<HeadsU>(scale);
    }
}

// The sum of the lane's codes, where all channels of a head are one group.
fn made_lane_sum(lane: u32) -> HeadsF {
    var sum = HeadsI(0);
    if (lane < QUERY_QUADS) {
        sum = quad_sums[lane];
    }
    if (QUERY_QUADS > 32u) {
        sum += quad_sums[lane + 32u];
    }
    return HeadsF(sum);
}

// Each group's sum of codes, where there are several.
fn made_sum(lane: u32) {
    if (KEY_GROUP > 0u && lane < HEAD_DIM / max(KEY_GROUP, 1u)) {
        var sum = HeadsI(0);
        for (var q = lane * KEY_GROUP / 4u; q < (lane + 1u) * KEY_GROUP / 4u; q++) {
            sum += quad_sums[q];
        }
        queries[QUERY_QUADS + 1u + lane] = bitcast<HeadsU>(HeadsF(sum));
    }
}
