// gram: Gram matrices of rows, head by head, or of the difference of two buffers of rows.
//
//   grams[chunk, h] = sum over the chunk's rows r of x x^T   with x = rows[r, h] - minus[r, h], or x = rows[r, h]
//
// One workgroup is one tile of 16 x 16 numbers of one head's matrix, over one chunk of CHUNK rows.
// The matrix is symmetric, so only tiles on and below the diagonal have a workgroup, which writes
// every number to both of its places. Every number of `grams` is written and none is read: the host
// adds up the chunks, in f64.
//
// Blocks of 32 rows are summed as a tree and then added to the running sum, so that an error grows
// with the number of blocks of a chunk, not with that of rows.
//
// Nothing is left out: a number that is not finite in a row, or a product beyond f32, gives a
// matrix that is not finite, and the host refuses it.
//
// Wrapper: src/kernel/gram.rs. Twin: src/kernel/reference/gram.rs.

override HEAD_DIM: u32;
override DIFFERENCE: bool; // whether `minus` is taken away; otherwise it is never read

struct GramParams { // src/kernel/gram.rs
    rows: u32,
    heads: u32,
    pad_a: u32,
    pad_b: u32,
}

@group(0) @binding(0) var<uniform> params: GramParams;
@group(0) @binding(1) var<storage, read> rows: array<f32>;        // [row, heads, HEAD_DIM]
@group(0) @binding(2) var<storage, read> minus: array<f32>;       // [row, heads, HEAD_DIM]
@group(0) @binding(3) var<storage, read_write> grams: array<f32>; // [chunk, heads, HEAD_DIM, HEAD_DIM]

const CHUNK = 512u; // rows
const BLOCK = 32u;  // rows
const TILE = 16u;   // channels
const STRIP = 128u; // entries of a strip: eight quads of rows by TILE channels

// A block's two strips of channels, those down the tile and those across it: [strip, quad of rows,
// channel]. An entry is one channel in four rows.
var<workgroup> strips: array<vec4<f32>, 256>;

// Row and column of tile n, counted row by row up to the diagonal.
fn tile_of(n: u32) -> vec2<u32> {
    var tile = vec2<u32>(0u, n);
    while (tile.y > tile.x) {
        tile.x += 1u;
        tile.y -= tile.x;
    }
    return tile;
}

// A head's channel in row r, or 0 after the chunk's last row. It is the last row that is read then:
// a branch would hold up the other reads of a quad.
fn number_at(r: u32, end: u32, head: u32, channel: u32) -> f32 {
    let at = (min(r, end - 1u) * params.heads + head) * HEAD_DIM + channel;
    var x = rows[at];
    if (DIFFERENCE) {
        x -= minus[at];
    }
    return select(0.0, x, r < end);
}

fn quad_at(r: u32, end: u32, head: u32, channel: u32) -> vec4<f32> {
    return vec4<f32>(number_at(r, end, head, channel), number_at(r + 1u, end, head, channel), number_at(r + 2u, end, head, channel),
        number_at(r + 3u, end, head, channel));
}

// Products of the two channels in a quad of rows.
fn products(quad: u32, down: u32, across: u32) -> vec4<f32> {
    return strips[TILE * quad + down] * strips[STRIP + TILE * quad + across];
}

// The sum of a block's products.
fn block_sum(down: u32, across: u32) -> f32 {
    let sums = ((products(0u, down, across) + products(1u, down, across)) + (products(2u, down, across) + products(3u, down, across)))
        + ((products(4u, down, across) + products(5u, down, across)) + (products(6u, down, across) + products(7u, down, across)));
    return (sums.x + sums.y) + (sums.z + sums.w);
}

@compute @workgroup_size(256)
fn gram(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let tile = tile_of(workgroup.x);
    let head = workgroup.y;
    let first = workgroup.z * CHUNK;
    let end = min(first + CHUNK, params.rows);
    let down = i / TILE;
    let across = i % TILE;
    // What this invocation stages: entry i of the strips.
    let channel = TILE * select(tile.x, tile.y, i >= STRIP) + across;
    let quad = 4u * (i % STRIP / TILE);

    var sum = 0.0;
    var staged = quad_at(first + quad, end, head, channel);
    for (var block = first; block < end; block += BLOCK) {
        strips[i] = staged;
        workgroupBarrier();
        // On their way while this block is summed.
        staged = quad_at(block + BLOCK + quad, end, head, channel);
        sum += block_sum(down, across);
        // Before the next block takes the place of this.
        workgroupBarrier();
    }

    let row = TILE * tile.x + down;
    let column = TILE * tile.y + across;
    // Above the diagonal of a tile on the diagonal lies what another invocation writes.
    if (row >= column) {
        let matrix = (workgroup.z * params.heads + head) * HEAD_DIM;
        grams[(matrix + row) * HEAD_DIM + column] = sum;
        grams[(matrix + column) * HEAD_DIM + row] = sum;
    }
}
