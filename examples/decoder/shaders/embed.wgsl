// embed: the rows of the embedding for tokens.
//
//   x[row] = weight[ids[row]]
//   x[row] = factor * weight[ids[row]]    with SCALED
//
// The matrix may be cut between rows into several buffers. A token that lies in another leaves its
// row as it is. One invocation makes eight columns.
//
// Wrapper: src/kernel/embed.rs. Twin: src/reference/embed.rs.

override SCALED: bool;

struct EmbedParams { // src/kernel/embed.rs
    columns: u32,   // a multiple of 32
    rows: u32,      // tokens
    high_at: u32,   // where the second plane of codes lies in weights, in words
    scales_at: u32, // where the scales lie
    first: u32,     // row of the embedding that is the buffer's first
    count: u32,     // rows that the buffer has
    factor: f32,    // of every number, with SCALED
    pad_a: u32,
}

@group(0) @binding(0) var<uniform> params: EmbedParams;
@group(0) @binding(2) var<storage, read> ids: array<u32>;              // [rows]
@group(0) @binding(3) var<storage, read_write> x: array<vec4<f32>>;    // [rows, columns]

@compute @workgroup_size(64)
fn embed(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let eights = params.columns / 8u;
    let column = 64u * workgroup.x + i;
    let id = ids[workgroup.y] - params.first;
    if (column < eights && id < params.count) {
        let eight = id * eights + column;
        let codes = codes_at(eight);
        var scale = scale_at(eight);
        if (SCALED) {
            scale *= params.factor;
        }
        let at = 2u * (workgroup.y * eights + column);
        x[at] = scale.x * codes.low + scale.y;
        x[at + 1u] = scale.x * codes.high + scale.y;
    }
}
