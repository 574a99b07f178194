// position: what the mean of the keys adds to the scores of each page, as far as it turns slowly:
// two polynomials, in closed form.
//
//   sum_p A_p cos(u angle_p) + B_p sin(u angle_p)  =  sum_k even_k y^k + x sum_k odd_k y^k,   x = u / 64, y = x^2
//
// over the pairs p from POSITION_WAVES on, for u positions from the page's middle. A and B are the
// query's factors (part factors) turned to the page, and the sums on the right have six terms each:
// a polynomial of every wave, times A or B, added up. attend_split (or align_scores) evaluates
// them, and adds the faster pairs one by one (part positions).
//
// One workgroup serves one reading: one KV head and up to HEADS query heads that share it. It makes
// the factors of the caller's queries, so that it need not wait for kernel `query`. Then PARTS
// invocations make the terms of one page, each of every PARTS-th pair: what takes time is to wait
// for the turns.
//
// Wrapper: src/kernel/position.rs. Twin: src/kernel/reference/position.rs.

override HEADS: u32;
override BLOCKS: u32;          // blocks of HEADS query heads per KV head
override ROPE_PAIRS: u32;
override POSITION_CENTRE: u32; // in turns, the turn by 63.5 positions; after it follow the waves, the polynomials, and the slow pairs' turns by pages
override POSITION_WAVES: u32;  // first pairs, which turn too fast
override POSITION_PLACES: u32; // pages of a pass
override TURNED: bool; // whether the caller's rows come turned

struct PositionParams { // src/kernel/position.rs
    items_at: u32,     // first item in tables
    positions_at: u32, // first row's position in tables
    row_first: u32,    // first row in queries
    query_heads: u32,
    kv_heads: u32,
    pad_a: u32,
    pad_b: u32,
    pad_c: u32,
}

@group(1) @binding(0) var<uniform> params: PositionParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;                       // items of 4 words
@group(0) @binding(0) var<storage, read> turns: array<vec4<f32>>;                  // two pairs (cosine, sine) a vector: tables of src/plan/position.rs
@group(2) @binding(0) var<storage, read> queries: array<u32>;                      // [rows, query_heads, HEAD_DIM] f32, f16 or bf16
@group(0) @binding(1) var<storage, read> marks: array<u32>;                        // [kv_heads, 3, HEAD_DIM] f32
@group(0) @binding(2) var<storage, read_write> position_terms: array<HeadsF>;      // [kv_heads, BLOCKS, 12, page of the pass]

const SLOW = max(ROPE_PAIRS - POSITION_WAVES, 1u);
const PAGES = 16u;
const PARTS = 4u;
const GATHERED = 12u * PAGES * (PARTS - 1u);

var<workgroup> factors: array<Factors, SLOW>; // of the pairs from POSITION_WAVES on, for the middle of page 0
var<workgroup> gathered: array<HeadsF, GATHERED>; // [part from 1 on, term, page]

// A channel of the queries that share the reading, of which the first is number `first` of the KV
// head's `share`, whose first is query head `head`. Places beyond them hold the last one again.
fn position_query(row: u32, head: u32, first: u32, share: u32, channel: u32) -> HeadsF {
    let a = query_at(layout_row(0u, row, params.query_heads, head + min(first, share - 1u)) + channel);
    let b = query_at(layout_row(0u, row, params.query_heads, head + min(first + 1u, share - 1u)) + channel);
    let c = query_at(layout_row(0u, row, params.query_heads, head + min(first + 2u, share - 1u)) + channel);
    let d = query_at(layout_row(0u, row, params.query_heads, head + min(first + 3u, share - 1u)) + channel);
    return heads_of(a, b, c, d);
}

fn position_slow(p: u32, n: u32) -> Slow {
    return slow_take(p, n, factors[min(p, ROPE_PAIRS - 1u) - POSITION_WAVES]);
}

// Leaves a part's sums to the invocation that writes the page's.
fn sums_put(sums: SlowSums, at: u32) {
    gathered[at] = sums.even_0;
    gathered[at + PAGES] = sums.even_1;
    gathered[at + 2u * PAGES] = sums.even_2;
    gathered[at + 3u * PAGES] = sums.even_3;
    gathered[at + 4u * PAGES] = sums.even_4;
    gathered[at + 5u * PAGES] = sums.even_5;
    gathered[at + 6u * PAGES] = sums.odd_0;
    gathered[at + 7u * PAGES] = sums.odd_1;
    gathered[at + 8u * PAGES] = sums.odd_2;
    gathered[at + 9u * PAGES] = sums.odd_3;
    gathered[at + 10u * PAGES] = sums.odd_4;
    gathered[at + 11u * PAGES] = sums.odd_5;
}

fn sums_gather(sums: SlowSums, at: u32) -> SlowSums {
    return SlowSums(
        sums.even_0 + gathered[at], sums.even_1 + gathered[at + PAGES], sums.even_2 + gathered[at + 2u * PAGES],
        sums.even_3 + gathered[at + 3u * PAGES], sums.even_4 + gathered[at + 4u * PAGES], sums.even_5 + gathered[at + 5u * PAGES],
        sums.odd_0 + gathered[at + 6u * PAGES], sums.odd_1 + gathered[at + 7u * PAGES], sums.odd_2 + gathered[at + 8u * PAGES],
        sums.odd_3 + gathered[at + 9u * PAGES], sums.odd_4 + gathered[at + 10u * PAGES], sums.odd_5 + gathered[at + 11u * PAGES]);
}

@compute @workgroup_size(64)
fn position(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let item = params.items_at + 4u * workgroup.x;
    let query_row = tables[item];
    let lane = i % PAGES;
    let part = i / PAGES;
    let n = tables[item + 1u] + lane;
    let end = tables[item + 2u];
    let page = tables[item + 3u] + n;
    let head = workgroup.y / BLOCKS;
    let first = workgroup.y % BLOCKS * HEADS;
    let share = params.query_heads / params.kv_heads;
    let row = params.row_first + query_row;
    let position = tables[params.positions_at + query_row];
    for (var p = POSITION_WAVES + i; p < ROPE_PAIRS; p += 64u) {
        let channels = factors_channels(p);
        let query = Factors(position_query(row, head * share, first, share, channels.x), position_query(row, head * share, first, share, channels.y));
        let turn = turn_compose(turn_at((128u + position / 128u) * ROPE_PAIRS + p), turn_at((position % 128u) * ROPE_PAIRS + p));
        let own = factors_of(head, channels, query, select(turn, vec2<f32>(1.0, 0.0), TURNED));
        factors[p - POSITION_WAVES] = factors_turn(own, turn_at(POSITION_CENTRE + p));
    }
    workgroupBarrier();
    var sums = SlowSums();
    let here = min(n, end - 1u);
    // Four at a time, so that their loads are in flight together.
    for (var p = POSITION_WAVES + part; p < ROPE_PAIRS; p += 4u * PARTS) {
        let one = position_slow(p, here);
        let two = position_slow(p + PARTS, here);
        let three = position_slow(p + 2u * PARTS, here);
        let four = position_slow(p + 3u * PARTS, here);
        sums = slow_add(slow_add(slow_add(slow_add(sums, one), two), three), four);
    }
    if (part > 0u) {
        sums_put(sums, 12u * PAGES * (part - 1u) + lane);
    }
    workgroupBarrier();
    if (part > 0u || n >= end) {
        return;
    }
    sums = sums_gather(sums_gather(sums_gather(sums, lane), 12u * PAGES + lane), 24u * PAGES + lane);
    let terms = workgroup.y * 12u * POSITION_PLACES + page;
    position_terms[terms] = sums.even_0;
    position_terms[terms + 1u * POSITION_PLACES] = sums.even_1;
    position_terms[terms + 2u * POSITION_PLACES] = sums.even_2;
    position_terms[terms + 3u * POSITION_PLACES] = sums.even_3;
    position_terms[terms + 4u * POSITION_PLACES] = sums.even_4;
    position_terms[terms + 5u * POSITION_PLACES] = sums.even_5;
    position_terms[terms + 6u * POSITION_PLACES] = sums.odd_0;
    position_terms[terms + 7u * POSITION_PLACES] = sums.odd_1;
    position_terms[terms + 8u * POSITION_PLACES] = sums.odd_2;
    position_terms[terms + 9u * POSITION_PLACES] = sums.odd_3;
    position_terms[terms + 10u * POSITION_PLACES] = sums.odd_4;
    position_terms[terms + 11u * POSITION_PLACES] = sums.odd_5;
}
