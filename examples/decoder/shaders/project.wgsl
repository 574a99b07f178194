// project: a few rows times a matrix of weights, which stay as they are stored.
//
//   y[row, output] = sum over columns of weight[output, column] * x[row, column]
//
// With NORM, x is first divided by its root mean square and multiplied by `norm`, as RMSNorm does:
// the sum of squares is made on the way, and divides the product.
//
// A unit of LANES neighbouring invocations makes two outputs of ROWS rows. Each lane takes every
// LANES-th group of eight columns. Rows after the last are padding, which is written and never read.
//
// Wrapper: src/kernel/project.rs. Twin: src/reference/project.rs.

override LANES: u32;
override NORM: bool;

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;    // [rows, columns]
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>; // [columns], or anything without NORM

fn row_quad(row: u32, quad: u32) -> vec4<f32> {
    return x[row * (params.columns / 4u) + quad];
}

fn normed(numbers: Eight, eight: u32) -> Eight {
    if (NORM) {
        return Eight(numbers.low * norm[2u * eight], numbers.high * norm[2u * eight + 1u]);
    }
    return numbers;
}

fn product(a: Eight, b: Eight) -> f32 {
    return dot(a.low, b.low) + dot(a.high, b.high);
}

fn finish(row: u32, pair: u32, a: f32, b: f32, squares: f32) {
    var root = 1.0;
    if (NORM) {
        root = inverseSqrt(squares / f32(params.columns) + params.epsilon);
    }
    place_pair(row, 2u * pair, a * root, b * root);
}

@compute @workgroup_size(256)
fn project(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let wanted = (workgroup.z * grid.x + workgroup.x) * (256u / LANES) + i / LANES;
    // Units without a pair make the last one again, and write nothing.
    let pair = min(wanted, params.outputs / 2u - 1u);
    let first = ROWS * workgroup.y;
    let eights = params.columns / 8u;
    let at = 2u * pair * eights;
    var sums = rows_none();
    for (var eight = i % LANES; eight < eights; eight += LANES) {
        sums = rows_add(sums, first, eight, weights_at(at + eight), weights_at(at + eights + eight));
    }
    rows_put(sums, i);
    if (REDUCE_BARRIER) {
        workgroupBarrier();
    }
    let total = rows_total(sums, i);
    if (i % LANES == 0u && wanted == pair) {
        rows_finish(total, first, pair);
    }
}
