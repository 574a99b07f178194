// attend_direct: attention of one decoding query row, from the caller's queries, over one slice of the
// packed pages or of the f16 rows.
//
//   partial = (max s, sum 2^(s - max), sum 2^(s - max) v)   with s in log2 units, over the tokens of the slice
//
// What kernels query, position, attend_rows and attend_split do in three dispatches that wait for each
// other, in one: for passes of a few decoding rows, where waiting takes longer than the work. Each
// workgroup of 32 lanes makes the queries of its reading by itself (part made): one KV head and up to
// HEADS query heads that share it. The first row_items items are slices of f16 rows (part half_rows),
// the others slices of pages (part split).
//
// A query head with a number that is not finite has a sum of -1, and weights that do not matter:
// attend_merge makes NaN of it.
//
// Wrapper: src/kernel/attend_direct.rs. Twin: src/kernel/reference/attend_direct.rs.

override HEAD_DIM: u32;    // channels a head: 64, 80, 96, 128 or 256
override HEADS: u32;       // query heads that share one reading: 1, 2 or 4
override BLOCKS: u32;      // blocks of HEADS query heads per KV head
override ROTATE_KEYS: bool; // whether the codec rotates keys after RoPE
override HALF_ROWS: bool;  // whether there are f16 rows at all
override SCALE: f32;       // log2(e) times the scale
override KEY_GROUP: u32;   // channels that share a key scale, or 0 where keys are halves

struct AttendDirectParams { // src/kernel/attend_direct.rs
    items_at: u32,     // first item of pages in tables
    row_items_at: u32, // first item of f16 rows in tables
    row_items: u32,    // how many there are
    slab_heads: u32,   // KV heads whose pages lie in this slab
    heads_at: u32,     // which they are, in tables
    kv_heads: u32,     // KV heads of the layer
    positions_at: u32, // first row's position in tables
    row_first: u32,    // first row in queries
}

@group(1) @binding(0) var<uniform> params: AttendDirectParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;               // items of 9 and of 8 words; chunks of 8; lists of physical pages
@group(0) @binding(0) var<storage, read> turns: array<vec4<f32>>;          // [128 low + high positions, pairs], two a vector
@group(0) @binding(1) var<storage, read> marks: array<u32>;                // [kv_heads, 3, HEAD_DIM] f32, for Centred; sinks
@group(0) @binding(2) var<storage, read> protected_rows: array<vec4<u32>>; // [slot, kv_heads, SINKS + RING, key and value, HEAD_DIM / 8]
@group(0) @binding(3) var<storage, read> pages: array<vec4<u32>>;          // [physical page, slab head, PAGE_VECS]
@group(0) @binding(4) var<storage, read_write> partials: array<vec4<f32>>; // [item, kv_head, block, HEADS, HEAD_DIM / 4 + 1]
@group(2) @binding(0) var<storage, read> queries_in: array<u32>;           // [rows, query_heads, HEAD_DIM] f32, f16 or bf16

const HIDDEN = -1e30;

alias Capped = HeadsF;

// What the mean of the keys adds by, for part rows: A and B of each pair in turn.
fn query_factor(f: u32) -> HeadsF {
    return query_factors[f];
}

@compute @workgroup_size(32)
fn attend_direct(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = workgroup.x < params.row_items;
    let row_item = params.row_items_at + 8u * workgroup.x;
    let item = params.items_at + 9u * (workgroup.x - params.row_items);
    let query_row = tables[select(item, row_item + 1u, rows)];
    let slab_head = workgroup.y / BLOCKS;
    let block = workgroup.y % BLOCKS;
    let head = tables[params.heads_at + slab_head];

    made_turn(made_rows(params.row_first + query_row, params.kv_heads, head, block * HEADS), tables[params.positions_at + query_row], head, lane);
    workgroupBarrier();
    var y = made_get(lane);
    if (ROTATE_KEYS && !SPREAD_SHARED) {
        y = spread_rotate(y, lane);
    }
    if (ROTATE_KEYS && SPREAD_SHARED) {
        y = made_outer(lane);
        workgroupBarrier();
        made_put(lane, y);
        workgroupBarrier();
        y = made_inner(lane);
    }
    let lane_largest = made_largest(y);
    reduce_put(0u, lane, lane_largest);
    workgroupBarrier();
    let largest = reduce_max(0u, lane_largest);
    let broken = largest > HeadsF(1e38);
    made_put(lane, made_scaled(y, largest));
    workgroupBarrier();
    let at = ((workgroup.x * params.kv_heads + head) * BLOCKS + block) * HEADS * (HEAD_DIM / 4u + 1u);
    if (HALF_ROWS && rows) {
        let sums = half_rows_attend(row_item, head, lane);
        let low = Scores(sums.low.a, sums.low.b, sums.low.c, sums.low.d);
        let high = Scores(sums.high.a, sums.high.b, sums.high.c, sums.high.d);
        let none = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
        split_write(at, lane, Split(low, high, none, none, select(sums.peak, HeadsF(HIDDEN), broken), select(sums.sum, HeadsF(-1.0), broken)));
        return;
    }
    made_encode(lane, select(largest * SCALE, HeadsF(0.0), broken));
    if (KEY_GROUP == HEAD_DIM) {
        // A lane reads the quads that it wrote.
        let lane_sum = made_lane_sum(lane);
        reduce_put(0u, lane, lane_sum);
        if (REDUCE_BARRIER) { workgroupBarrier(); }
        let sum = reduce_add(0u, lane_sum);
        if (lane == 0u) {
            queries[HEAD_DIM / 4u + 1u] = bitcast<HeadsU>(sum);
        }
    } else {
        workgroupBarrier();
        made_sum(lane);
    }
    let base = positions_base(0u, lane);
    let stand = Stand(slab_head, head, 0u, 0u);
    workgroupBarrier();
    let split = split_pages(split_slice(item), stand, base, restore_ids(stand, lane), slab_head, lane);
    split_write(at, lane, Split(split.low, split.high, split.third, split.fourth, select(split.peak, HeadsF(HIDDEN), broken), select(split.sum, HeadsF(-1.0), broken)));
}
