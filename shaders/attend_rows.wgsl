// attend_rows: attention of one decoding query row over the tokens that no page holds: sinks and
// window, whose keys and values are rows of halves.
//
//   partial = (max s, sum 2^(s - max), sum 2^(s - max) v)   with s in log2 units, over the tokens of the slice
//
// One workgroup of 32 lanes serves one KV head and up to HEADS query heads that share it, and walks
// tiles of 32 places (part half_rows). It runs beside attend_split: neither reads what the other
// writes. wgpu puts a barrier before the first dispatch that reads what
// another wrote, so this kernel binds all that attend_split reads of `query` and `position`: that one
// needs no further barrier then, which would wait for this one.
//
// For Centred, what the mean of the keys adds to a score comes from the query's factors (kernel
// query), turned to the tile's first place (part rows/centred).
//
// Wrapper: src/kernel/attend_rows.rs. Twin: src/kernel/reference/attend_rows.rs.

override HEAD_DIM: u32;  // channels a head: 64, 80, 96, 128, 192, 256 or 512
override HEADS: u32;     // query heads that share one reading: 1, 2 or 4
override BLOCKS: u32;    // blocks of HEADS query heads per KV head
override SHARE: u32;     // query heads per KV head
override QUERY_ROW: u32; // numbers from one row of query_rows to the next

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

// The query heads in f32, by channel.
var<workgroup> row: array<HeadsF, HEAD_DIM>;

// Where the row of the KV head's first query head begins, and which of them is the reading's first.
var<private> query_at: u32;
var<private> query_first: u32;

// Number c of the rows of the query heads that share the reading. Places beyond them hold the last one
// again.
fn query_number(c: u32) -> HeadsF {
    let a = query_rows[query_at + min(query_first, SHARE - 1u) * QUERY_ROW + c];
    let b = query_rows[query_at + min(query_first + 1u, SHARE - 1u) * QUERY_ROW + c];
    let d = query_rows[query_at + min(query_first + 2u, SHARE - 1u) * QUERY_ROW + c];
    let e = query_rows[query_at + min(query_first + 3u, SHARE - 1u) * QUERY_ROW + c];
    return heads_of(a, b, d, e);
}

// What the mean of the keys adds by, for part rows: A and B of each pair in turn.
fn query_factor(f: u32) -> HeadsF {
    return query_number(HEAD_DIM + f);
}

// One head's four channels of a quad; `at` is where its partial result begins.
fn put_quad(at: u32, h: u32, quad: u32, row: Channels) {
    row_partials[at + 4u * quad] = heads_at(row.a, h);
    row_partials[at + 4u * quad + 1u] = heads_at(row.b, h);
    row_partials[at + 4u * quad + 2u] = heads_at(row.c, h);
    row_partials[at + 4u * quad + 3u] = heads_at(row.d, h);
}

// One head's channels, largest score and sum. Of the reading's heads, those below `heads` exist.
fn put_head(first_at: u32, h: u32, heads: u32, lane: u32, sums: HalfRows) {
    if (h < heads) {
        let at = first_at + h * (HEAD_DIM + 2u);
        if (lane < HEAD_DIM / 4u) {
            put_quad(at, h, lane, sums.low);
        }
        if (HEAD_DIM > 128u && lane + 32u < HEAD_DIM / 4u) {
            put_quad(at, h, lane + 32u, sums.high);
        }
        if (HEAD_DIM > 256u) {
            put_quad(at, h, lane + 64u, sums.third);
            put_quad(at, h, lane + 96u, sums.fourth);
        }
        if (lane == 0u) {
            row_partials[at + HEAD_DIM] = heads_at(sums.peak, h);
            row_partials[at + HEAD_DIM + 1u] = heads_at(sums.sum, h);
        }
    }
}

@compute @workgroup_size(32)
fn attend_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = params.items_at + workgroup.x * 8u;
    let partial = tables[item + 7u];
    let head = workgroup.y / BLOCKS;
    let head_first = workgroup.y % BLOCKS * HEADS;
    query_at = (tables[item + 1u] * params.kv_heads + head) * SHARE * QUERY_ROW;
    query_first = head_first;
    for (var c = lane; c < HEAD_DIM; c += 32u) {
        row[c] = query_number(c);
    }
    workgroupBarrier();
    let sums = half_rows_attend(item, head, lane);

    let heads = SHARE - head_first;
    let at = (partial * params.kv_heads * SHARE + head * SHARE + head_first) * (HEAD_DIM + 2u);
    put_head(at, 0u, heads, lane, sums);
    if (HEADS > 1u) {
        put_head(at, 1u, heads, lane, sums);
    }
    if (HEADS > 2u) {
        put_head(at, 2u, heads, lane, sums);
        put_head(at, 3u, heads, lane, sums);
    }
}
