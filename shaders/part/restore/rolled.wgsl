// restore: RotateKV's keys, four tokens (one lane's) at a time, in loops: for software adapters,
// devices without f16 and head dimensions that are no power of two. A unit restores its own KV
// head. Works on `row`; reads the kernel's bindings `turns` and `query_codes`; needs grouped_block,
// grouped, hadamard and turn.

override HEAD_DIM: u32;       // channels of a head
override HEADS: u32;          // query heads that share one reading
override BLOCKS: u32;         // blocks of HEADS query heads per KV head
override QUERY_STRIDE: u32;   // entries of query_codes per block of heads
override ROPE_PAIRS: u32;     // pairs of channels that turn
override HADAMARD_INNER: u32;
override RESTORE_CELLS: u32;  // of workgroup memory that keys pass through

const RESTORE_TILES = 32u;

alias Cell = vec4<f32>;

// The unit's channels after the inner factor, one after another; then each lane's products with the
// queries.
var<workgroup> row: array<vec4<f32>, RESTORE_CELLS>;

struct RestoreIds { nothing: u32 }
// Four tokens' products with each query head.
struct RestoreDots { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }

fn restore_ids(stand: Stand, i: u32) -> RestoreIds {
    return RestoreIds(0u);
}

fn restore_open(physical: u32, i: u32) {}

// Each lane takes whole blocks of HADAMARD_INNER channels, so that the inner factor needs no other
// lane.
fn restore_spread(stand: Stand, physical: u32, tile: u32, ids: RestoreIds, i: u32) {
    let unit = i / 32u;
    for (var first = i % 32u * HADAMARD_INNER; first < HEAD_DIM; first += 32u * HADAMARD_INNER) {
        grouped_block(physical, params.slab_heads, stand.slab_first + unit, stand.head_first + unit, tile, first, unit * HEAD_DIM + first);
    }
}

fn restore_query(stand: Stand, unit: u32, c: u32) -> HeadsF {
    return bitcast<HeadsF>(query_codes[stand.queries_at + unit * BLOCKS * QUERY_STRIDE + c]);
}

// q . RoPE(k) = sum of k_c (q_c cos - s q_p sin), p the channel that shares c's pair and s the sign
// of its share.
fn restore_dots(stand: Stand, physical: u32, n: u32, tile: u32, ids: RestoreIds, i: u32) -> RestoreDots {
    let unit = i / 32u;
    var dots = RestoreDots(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    for (var c = i % 32u; c < HEAD_DIM; c += 32u) {
        let k = hadamard_outer(unit * HEAD_DIM + c);
        let q = restore_query(stand, unit, c);
        let pair = turn_pair(c);
        var other = HeadsF(0.0);
        var cosine = vec4<f32>(1.0);
        var sine = vec4<f32>(0.0);
        if (pair < ROPE_PAIRS) {
            other = restore_query(stand, unit, turn_partner(c));
            let high = turn_at((128u + n) * ROPE_PAIRS + pair);
            let ta = turn_compose(high, turn_at(4u * tile * ROPE_PAIRS + pair));
            let tb = turn_compose(high, turn_at((4u * tile + 1u) * ROPE_PAIRS + pair));
            let tc = turn_compose(high, turn_at((4u * tile + 2u) * ROPE_PAIRS + pair));
            let td = turn_compose(high, turn_at((4u * tile + 3u) * ROPE_PAIRS + pair));
            cosine = vec4<f32>(ta.x, tb.x, tc.x, td.x);
            sine = -turn_sign(c) * vec4<f32>(ta.y, tb.y, tc.y, td.y);
        }
        dots.a += k * (heads_at(q, 0u) * cosine + heads_at(other, 0u) * sine);
        if (HEADS > 1u) {
            dots.b += k * (heads_at(q, 1u) * cosine + heads_at(other, 1u) * sine);
        }
        if (HEADS > 2u) {
            dots.c += k * (heads_at(q, 2u) * cosine + heads_at(other, 2u) * sine);
            dots.d += k * (heads_at(q, 3u) * cosine + heads_at(other, 3u) * sine);
        }
    }
    return dots;
}

fn restore_put(dots: RestoreDots, i: u32) {
    row[i * HEADS] = dots.a;
    if (HEADS > 1u) {
        row[i * HEADS + 1u] = dots.b;
    }
    if (HEADS > 2u) {
        row[i * HEADS + 2u] = dots.c;
        row[i * HEADS + 3u] = dots.d;
    }
}

fn restore_sum(physical: u32, tile: u32, i: u32) {
    let unit = i / 32u;
    let h = i % 32u;
    if (h < HEADS) {
        var sum = vec4<f32>(0.0);
        for (var lane = 0u; lane < 32u; lane++) {
            sum += row[(32u * unit + lane) * HEADS + h];
        }
        page_scores[(unit * HEADS + h) * 64u + 2u * tile] = sum.xy;
        page_scores[(unit * HEADS + h) * 64u + 2u * tile + 1u] = sum.zw;
    }
}
