// attend_split: attention of one query row over one slice of the packed pages, straight from the
// codes.
//
//   partial = (max s, sum 2^(s - max), sum 2^(s - max) v)   with s in log2 units, over the tokens of the slice
//
// A unit of 32 lanes walks the pages first..end of one sequence for one KV head and up to HEADS
// query heads that share it (part split).
//
// A workgroup is one unit, except for RotateKV, whose keys are rotated over several KV heads: there
// the units of such a group of heads restore the keys together, a tile of tokens at a time, before
// each goes on with its own head. RotateKV (2501.16383) section 4: k = B P^-1 y, then RoPE at the
// key's own position; the queries were turned only.
//
// For Centred, what the mean of the keys adds to a score follows from the position and the query
// (part positions).
//
// Wrapper: src/kernel/attend_split.rs. Twin: src/kernel/reference/attend_split.rs.

override HEAD_DIM: u32;        // channels a head: 64, 80, 96, 128, 192, 256 or 512
override HEADS: u32;           // query heads that share one reading: 1, 2 or 4
override BLOCKS: u32;          // blocks of HEADS query heads per KV head
override QUERY_STRIDE: u32;    // entries of query_codes per block of heads
override UNITS: u32;           // KV heads that a workgroup serves
override POSITION_PLACES: u32; // pages of a pass

struct AttendSplitParams { // src/kernel/attend_split.rs
    items_at: u32,    // first item in tables
    slab_heads: u32,  // KV heads whose pages lie in this slab
    heads_at: u32,    // which they are, in tables
    kv_heads: u32,    // KV heads of the layer
}

@group(1) @binding(0) var<uniform> params: AttendSplitParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;               // items of 9 words; lists of physical pages
@group(0) @binding(0) var<storage, read> turns: array<vec4<f32>>;          // [128 low + high positions, pairs], two a vector
@group(0) @binding(1) var<storage, read> query_codes: array<HeadsU>;       // [row, kv_head, block, QUERY_STRIDE]
@group(0) @binding(2) var<storage, read> marks: array<u32>;                // [kv_heads, HEAD_DIM] groups a byte; sinks
@group(0) @binding(3) var<storage, read> key_scales: array<vec4<u32>>;     // [physical page, group of the row, SCALE_VECS]
@group(0) @binding(4) var<storage, read> pages: array<vec4<u32>>;          // [physical page, slab head, PAGE_VECS]
@group(0) @binding(5) var<storage, read> position_terms: array<HeadsF>;    // [kv_heads, BLOCKS, 12, page of the pass], for Centred
@group(0) @binding(6) var<storage, read_write> partials: array<vec4<f32>>; // [item, kv_head, block, HEADS, HEAD_DIM / 4 + 1]

const HIDDEN = -1e30;

alias Capped = HeadsF;

@compute @workgroup_size(32u * UNITS)
fn attend_split(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let unit = invocation / 32u;
    let lane = invocation % 32u;
    let item = params.items_at + workgroup.x * 9u;
    let query_row = tables[item];
    let slice = split_slice(item);
    let slab_first = workgroup.y / BLOCKS * UNITS;
    let slab_head = slab_first + unit;
    let block = workgroup.y % BLOCKS;
    let head = tables[params.heads_at + slab_head];

    let queries_at = ((query_row * params.kv_heads + head - unit) * BLOCKS + block) * QUERY_STRIDE;
    let stand = Stand(slab_first, head - unit, queries_at, (head * BLOCKS + block) * 12u * POSITION_PLACES);
    queries_take(queries_at + unit * BLOCKS * QUERY_STRIDE, unit, lane);
    let base = positions_base(queries_at + unit * BLOCKS * QUERY_STRIDE, lane);
    let ids = restore_ids(stand, invocation);
    workgroupBarrier();
    let split = split_pages(slice, stand, base, ids, slab_head, invocation);
    split_write(((workgroup.x * params.kv_heads + head) * BLOCKS + block) * HEADS * (HEAD_DIM / 4u + 1u), lane, split);
}
