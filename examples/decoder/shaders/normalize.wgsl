// normalize: rows divided by their root mean square and multiplied by weights, as RMSNorm does; or
// only gathered, or only turned into halves; or added to other rows.
//
//   y[row] = x[source] / sqrt(mean(x[source]^2) + epsilon) * norm     with NORM
//   y[row] = x[source]                                                without
//
// With SELECT, source = sources[row], otherwise it is the row itself. With HALF, y are halves, and
// what is beyond their range becomes the largest of them; with ADD, y are f32 and grow by as much.
// One workgroup makes one row.
//
// Wrapper: src/kernel/normalize.rs. Twin: src/reference/normalize.rs.

override NORM: bool;
override SELECT: bool;
override HALF: bool;
override ADD: bool;  // without HALF

struct NormalizeParams { // src/kernel/normalize.rs
    columns: u32, // a multiple of 32
    epsilon: f32,
    pad_a: u32,
    pad_b: u32,
}

@group(0) @binding(0) var<uniform> params: NormalizeParams;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;       // [rows, columns]
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;    // [columns], or anything without NORM
@group(0) @binding(3) var<storage, read> sources: array<u32>;       // [rows], or anything without SELECT
@group(0) @binding(4) var<storage, read_write> y: array<vec2<u32>>; // [rows, columns], f32 or f16

const LARGEST = 65504.0;

var<workgroup> places: array<f32, 64>;

fn put(quad: u32, numbers: vec4<f32>) {
    if (HALF) {
        let clamped = clamp(numbers, vec4<f32>(-LARGEST), vec4<f32>(LARGEST));
        y[quad] = vec2<u32>(pack2x16float(clamped.xy), pack2x16float(clamped.zw));
    } else if (ADD) {
        let low = bitcast<vec2<f32>>(y[2u * quad]) + numbers.xy;
        let high = bitcast<vec2<f32>>(y[2u * quad + 1u]) + numbers.zw;
        y[2u * quad] = bitcast<vec2<u32>>(low);
        y[2u * quad + 1u] = bitcast<vec2<u32>>(high);
    } else {
        y[2u * quad] = bitcast<vec2<u32>>(numbers.xy);
        y[2u * quad + 1u] = bitcast<vec2<u32>>(numbers.zw);
    }
}

@compute @workgroup_size(64)
fn normalize(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let quads = params.columns / 4u;
    var source = workgroup.x;
    if (SELECT) {
        source = sources[workgroup.x];
    }
    var root = 1.0;
    if (NORM) {
        var squares = 0.0;
        for (var quad = i; quad < quads; quad += 64u) {
            let numbers = x[source * quads + quad];
            squares += dot(numbers, numbers);
        }
        places[i] = squares;
        workgroupBarrier();
        for (var half = 32u; half > 0u; half /= 2u) {
            if (i < half) {
                places[i] += places[i + half];
            }
            workgroupBarrier();
        }
        root = inverseSqrt(places[0] / f32(params.columns) + params.epsilon);
    }
    for (var quad = i; quad < quads; quad += 64u) {
        var numbers = x[source * quads + quad];
        if (NORM) {
            numbers = numbers * root * norm[quad];
        }
        put(workgroup.x * quads + quad, numbers);
    }
}
