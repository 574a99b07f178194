// project_tiles: many rows times a matrix of weights, on any device.
//
//   y[row, output] = sum over columns of weight[output, column] * x[row, column]
//
// One workgroup makes 64 outputs of 64 rows, of which each of its 128 invocations makes 4 outputs of
// 8 rows. It walks over 32 columns at a time, whose weights it unpacks once for all rows. Rows after
// the last are padding, which is written and never read.
//
// Wrapper: src/kernel/project_tiles.rs. Twin: src/reference/project.rs.

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>; // [rows, columns]

const STEP = 32u; // columns

// Four rows, and four outputs, of each column of a step: [column, quad of rows] and [column, quad of
// outputs].
var<workgroup> x_tile: array<array<vec4<f32>, 16>, STEP>;
var<workgroup> weight_tile: array<array<vec4<f32>, 16>, STEP>;

// Four columns of one row.
fn x_quad(row: u32, quad: u32) -> vec4<f32> {
    return x[row * (params.columns / 4u) + quad];
}

// Weights of an output, or of the last where there are no more: what it makes is not written.
fn output_weights(output: u32, eight: u32) -> Eight {
    return weights_at(min(output, params.outputs - 1u) * (params.columns / 8u) + eight);
}

// Writes a quad of outputs of one row.
fn finish(row: u32, output: u32, sums: vec4<f32>) {
    if (output < params.outputs) {
        place_pair(row, output, sums.x, sums.y);
    }
    if (output + 2u < params.outputs) {
        place_pair(row, output + 2u, sums.z, sums.w);
    }
}

@compute @workgroup_size(128)
fn project_tiles(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let first_row = 64u * workgroup.y;
    let first_output = 64u * workgroup.x;
    // What this invocation stages: four rows of a quad of columns, and four outputs of a group of
    // eight columns, each a quarter of the tile or half of it.
    let stage_rows = i % 16u;
    let stage_quad = i / 16u;
    let stage_outputs = i % 16u;
    let stage_eight = i / 16u % 4u;
    let stages_low = i < 64u;
    // What it makes.
    let quad = i % 16u;
    let octet = i / 16u;

    var sum_a = vec4<f32>(0.0);
    var sum_b = vec4<f32>(0.0);
    var sum_c = vec4<f32>(0.0);
    var sum_d = vec4<f32>(0.0);
    var sum_e = vec4<f32>(0.0);
    var sum_f = vec4<f32>(0.0);
    var sum_g = vec4<f32>(0.0);
    var sum_h = vec4<f32>(0.0);
    for (var column = 0u; column < params.columns; column += STEP) {
        let row = first_row + 4u * stage_rows;
        let at = column / 4u + stage_quad;
        let a = x_quad(row, at);
        let b = x_quad(row + 1u, at);
        let c = x_quad(row + 2u, at);
        let d = x_quad(row + 3u, at);
        let output = first_output + 4u * stage_outputs;
        let eight = column / 8u + stage_eight;
        let p = output_weights(output, eight);
        let q = output_weights(output + 1u, eight);
        let r = output_weights(output + 2u, eight);
        let s = output_weights(output + 3u, eight);
        // Before the tiles of the step before are written over.
        workgroupBarrier();
        x_tile[4u * stage_quad][stage_rows] = vec4<f32>(a.x, b.x, c.x, d.x);
        x_tile[4u * stage_quad + 1u][stage_rows] = vec4<f32>(a.y, b.y, c.y, d.y);
        x_tile[4u * stage_quad + 2u][stage_rows] = vec4<f32>(a.z, b.z, c.z, d.z);
        x_tile[4u * stage_quad + 3u][stage_rows] = vec4<f32>(a.w, b.w, c.w, d.w);
        if (stages_low) {
            weight_tile[8u * stage_eight][stage_outputs] = vec4<f32>(p.low.x, q.low.x, r.low.x, s.low.x);
            weight_tile[8u * stage_eight + 1u][stage_outputs] = vec4<f32>(p.low.y, q.low.y, r.low.y, s.low.y);
            weight_tile[8u * stage_eight + 2u][stage_outputs] = vec4<f32>(p.low.z, q.low.z, r.low.z, s.low.z);
            weight_tile[8u * stage_eight + 3u][stage_outputs] = vec4<f32>(p.low.w, q.low.w, r.low.w, s.low.w);
        } else {
            weight_tile[8u * stage_eight + 4u][stage_outputs] = vec4<f32>(p.high.x, q.high.x, r.high.x, s.high.x);
            weight_tile[8u * stage_eight + 5u][stage_outputs] = vec4<f32>(p.high.y, q.high.y, r.high.y, s.high.y);
            weight_tile[8u * stage_eight + 6u][stage_outputs] = vec4<f32>(p.high.z, q.high.z, r.high.z, s.high.z);
            weight_tile[8u * stage_eight + 7u][stage_outputs] = vec4<f32>(p.high.w, q.high.w, r.high.w, s.high.w);
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
            let w = weight_tile[k][quad];
            let low = x_tile[k][2u * octet];
            let high = x_tile[k][2u * octet + 1u];
            sum_a += low.x * w;
            sum_b += low.y * w;
            sum_c += low.z * w;
            sum_d += low.w * w;
            sum_e += high.x * w;
            sum_f += high.y * w;
            sum_g += high.z * w;
            sum_h += high.w * w;
        }
    }
    let row = first_row + 8u * octet;
    let output = first_output + 4u * quad;
    finish(row, output, sum_a);
    finish(row + 1u, output, sum_b);
    finish(row + 2u, output, sum_c);
    finish(row + 3u, output, sum_d);
    finish(row + 4u, output, sum_e);
    finish(row + 5u, output, sum_f);
    finish(row + 6u, output, sum_g);
    finish(row + 7u, output, sum_h);
}
