// project_matrix: many rows times a matrix of weights, by cooperative matrices.
//
//   y[row, output] = sum over columns of weight[output, column] * x[row, column]
//
// Rows and weights are halves, sums f32. One workgroup makes 32 outputs of ROW_TILES times 16 rows; its four
// subgroups take every fourth step of 32 columns each, whose weights they unpack for all rows, and
// their sums are added at the end. Rows after the last are padding: finite, written and never read.
// Columns after the last have weights of 0.
//
// Every variable of the workgroup is a multiple of 16 bytes, and so are addresses and strides: what
// cooperative matrices ask for, and nobody checks.
//
// Wrapper: src/kernel/project_matrix.rs. Twin: src/reference/project.rs.

override ROW_TILES: u32; // 16 rows each, 1 to 4

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;          // [rows, columns] halves
@group(0) @binding(6) var<storage, read_write> out_halves: array<u32>; // with GATED: [rows, outputs / 2] halves

const STEP = 32u;      // columns
const TILE_QUADS = 10u; // quads of halves from one row to the next in a tile: 8, and 2 against bank conflicts
const SUM_QUADS = 9u;  // quads from one row to the next in a tile of sums: 8, and 1
const LARGEST = 65504.0;

// By subgroup: the rows, and 32 outputs, of 32 columns.
var<workgroup> x_tiles: array<array<vec4<f16>, 640>, 4>;
var<workgroup> weight_tiles: array<array<vec4<f16>, 320>, 4>;
// By subgroup: 16 rows of 32 outputs.
var<workgroup> sum_tiles: array<array<vec4<f32>, 144>, 4>;

// Eight halves: numbers that halves can hold, or that are cut.
struct Halves {
    low: vec4<f16>,
    high: vec4<f16>,
}

fn halves(numbers: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(numbers, vec4<f32>(-LARGEST), vec4<f32>(LARGEST)));
}

fn pair(word: u32) -> vec2<f16> {
    return vec2<f16>(unpack2x16float(word));
}

// Eight columns of a row; of those after the last column anything finite.
fn x_eight(row: u32, eight: u32) -> vec4<u32> {
    let eights = params.columns / 8u;
    return x[row * eights + min(eight, eights - 1u)];
}

// Eight weights of an output: zeros after the last column, and anything after the last output.
fn weight_eight(output: u32, eight: u32) -> Halves {
    let eights = params.columns / 8u;
    let numbers = weights_at(min(output, params.outputs - 1u) * eights + min(eight, eights - 1u));
    let inside = eight < eights;
    return Halves(halves(select(vec4<f32>(0.0), numbers.low, inside)), halves(select(vec4<f32>(0.0), numbers.high, inside)));
}

fn put_x(part: u32, at: u32, words: vec4<u32>) {
    x_tiles[part][at] = vec4<f16>(pair(words.x), pair(words.y));
    x_tiles[part][at + 1u] = vec4<f16>(pair(words.z), pair(words.w));
}

fn put_weights(part: u32, at: u32, eight: Halves) {
    weight_tiles[part][at] = eight.low;
    weight_tiles[part][at + 1u] = eight.high;
}

// The four subgroups' sums of a quad of outputs.
fn sum_at(at: u32) -> vec4<f32> {
    return (sum_tiles[0][at] + sum_tiles[1][at]) + (sum_tiles[2][at] + sum_tiles[3][at]);
}

// Writes a quad of outputs of one row.
fn finish(row: u32, local: u32, sums: vec4<f32>) {
    if (EPILOGUE == GATED) {
        let output = params.first + local;
        // Gated matrices have a multiple of 64 outputs.
        if (local < params.outputs) {
            let low = place_gated(sums.x + place_bias(output), sums.y + place_bias(output + 1u));
            let high = place_gated(sums.z + place_bias(output + 2u), sums.w + place_bias(output + 3u));
            let clamped = clamp(vec2<f32>(low, high), vec2<f32>(-LARGEST), vec2<f32>(LARGEST));
            out_halves[(row * params.total + output) / 4u] = pack2x16float(clamped);
        }
        return;
    }
    if (local < params.outputs) {
        place_pair(row, local, sums.x, sums.y);
    }
    if (local + 2u < params.outputs) {
        place_pair(row, local + 2u, sums.z, sums.w);
    }
}

@compute @workgroup_size(128)
fn project_matrix(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let part = i / 32u;
    let first_row = 16u * ROW_TILES * workgroup.y;
    let first_output = 32u * workgroup.x;
    // What this invocation stages of a step: four neighbours take a row's 32 columns.
    let stage_row = i % 32u / 4u;
    let stage_eight = i % 4u;
    let stage_at = stage_row * TILE_QUADS + 2u * stage_eight;
    // Rows down, outputs across.
    var a0: Sum;
    var a1: Sum;
    var b0: Sum;
    var b1: Sum;
    var c0: Sum;
    var c1: Sum;
    var d0: Sum;
    var d1: Sum;
    // The first step; every other is read while the one before it is multiplied.
    var eight = STEP / 8u * part + stage_eight;
    var a = x_eight(first_row + 0u + stage_row, eight);
    var b = x_eight(first_row + 8u + stage_row, eight);
    var c: vec4<u32>;
    var d: vec4<u32>;
    var e: vec4<u32>;
    var f: vec4<u32>;
    var g: vec4<u32>;
    var h: vec4<u32>;
    var p = weight_eight(first_output + 0u + stage_row, eight);
    var q = weight_eight(first_output + 8u + stage_row, eight);
    var r = weight_eight(first_output + 16u + stage_row, eight);
    var s = weight_eight(first_output + 24u + stage_row, eight);
    if (ROW_TILES >= 2u) {
        c = x_eight(first_row + 16u + stage_row, eight);
        d = x_eight(first_row + 24u + stage_row, eight);
    }
    if (ROW_TILES >= 3u) {
        e = x_eight(first_row + 32u + stage_row, eight);
        f = x_eight(first_row + 40u + stage_row, eight);
    }
    if (ROW_TILES >= 4u) {
        g = x_eight(first_row + 48u + stage_row, eight);
        h = x_eight(first_row + 56u + stage_row, eight);
    }
    for (var step = 0u; step < params.columns; step += 4u * STEP) {
        // Before the tiles of the step before are written over.
        workgroupBarrier();
        put_x(part, stage_at + 0u, a);
        put_x(part, stage_at + 80u, b);
        if (ROW_TILES >= 2u) {
            put_x(part, stage_at + 160u, c);
            put_x(part, stage_at + 240u, d);
        }
        if (ROW_TILES >= 3u) {
            put_x(part, stage_at + 320u, e);
            put_x(part, stage_at + 400u, f);
        }
        if (ROW_TILES >= 4u) {
            put_x(part, stage_at + 480u, g);
            put_x(part, stage_at + 560u, h);
        }
        put_weights(part, stage_at + 0u, p);
        put_weights(part, stage_at + 80u, q);
        put_weights(part, stage_at + 160u, r);
        put_weights(part, stage_at + 240u, s);
        workgroupBarrier();
        eight += STEP / 2u;
        a = x_eight(first_row + 0u + stage_row, eight);
        b = x_eight(first_row + 8u + stage_row, eight);
        if (ROW_TILES >= 2u) {
            c = x_eight(first_row + 16u + stage_row, eight);
            d = x_eight(first_row + 24u + stage_row, eight);
        }
        if (ROW_TILES >= 3u) {
            e = x_eight(first_row + 32u + stage_row, eight);
            f = x_eight(first_row + 40u + stage_row, eight);
        }
        if (ROW_TILES >= 4u) {
            g = x_eight(first_row + 48u + stage_row, eight);
            h = x_eight(first_row + 56u + stage_row, eight);
        }
        p = weight_eight(first_output + 0u + stage_row, eight);
        q = weight_eight(first_output + 8u + stage_row, eight);
        r = weight_eight(first_output + 16u + stage_row, eight);
        s = weight_eight(first_output + 24u + stage_row, eight);
        let w00 = coopLoad<Right>(&weight_tiles[part][0], TILE_QUADS);
        let w01 = coopLoad<Right>(&weight_tiles[part][160], TILE_QUADS);
        let w10 = coopLoad<Right>(&weight_tiles[part][4], TILE_QUADS);
        let w11 = coopLoad<Right>(&weight_tiles[part][164], TILE_QUADS);
        let xa0 = coopLoadT<Left>(&x_tiles[part][0], TILE_QUADS);
        let xa1 = coopLoadT<Left>(&x_tiles[part][4], TILE_QUADS);
        a0 = coopMultiplyAdd(xa0, w00, a0);
        a1 = coopMultiplyAdd(xa0, w01, a1);
        a0 = coopMultiplyAdd(xa1, w10, a0);
        a1 = coopMultiplyAdd(xa1, w11, a1);
        if (ROW_TILES >= 2u) {
            let xb0 = coopLoadT<Left>(&x_tiles[part][160], TILE_QUADS);
            let xb1 = coopLoadT<Left>(&x_tiles[part][164], TILE_QUADS);
            b0 = coopMultiplyAdd(xb0, w00, b0);
            b1 = coopMultiplyAdd(xb0, w01, b1);
            b0 = coopMultiplyAdd(xb1, w10, b0);
            b1 = coopMultiplyAdd(xb1, w11, b1);
        }
        if (ROW_TILES >= 3u) {
            let xc0 = coopLoadT<Left>(&x_tiles[part][320], TILE_QUADS);
            let xc1 = coopLoadT<Left>(&x_tiles[part][324], TILE_QUADS);
            c0 = coopMultiplyAdd(xc0, w00, c0);
            c1 = coopMultiplyAdd(xc0, w01, c1);
            c0 = coopMultiplyAdd(xc1, w10, c0);
            c1 = coopMultiplyAdd(xc1, w11, c1);
        }
        if (ROW_TILES >= 4u) {
            let xd0 = coopLoadT<Left>(&x_tiles[part][480], TILE_QUADS);
            let xd1 = coopLoadT<Left>(&x_tiles[part][484], TILE_QUADS);
            d0 = coopMultiplyAdd(xd0, w00, d0);
            d1 = coopMultiplyAdd(xd0, w01, d1);
            d0 = coopMultiplyAdd(xd1, w10, d0);
            d1 = coopMultiplyAdd(xd1, w11, d1);
        }
    }
    // The sums of the four subgroups, 16 rows at a time, of which an invocation makes a quad of
    // outputs of one.
    let row = i / 8u;
    let quad = i % 8u;
    let at = row * SUM_QUADS + quad;
    coopStoreT(a0, &sum_tiles[part][0], SUM_QUADS);
    coopStoreT(a1, &sum_tiles[part][4], SUM_QUADS);
    workgroupBarrier();
    finish(first_row + 0u + row, first_output + 4u * quad, sum_at(at));
    if (ROW_TILES >= 2u) {
        workgroupBarrier();
        coopStoreT(b0, &sum_tiles[part][0], SUM_QUADS);
        coopStoreT(b1, &sum_tiles[part][4], SUM_QUADS);
        workgroupBarrier();
        finish(first_row + 16u + row, first_output + 4u * quad, sum_at(at));
    }
    if (ROW_TILES >= 3u) {
        workgroupBarrier();
        coopStoreT(c0, &sum_tiles[part][0], SUM_QUADS);
        coopStoreT(c1, &sum_tiles[part][4], SUM_QUADS);
        workgroupBarrier();
        finish(first_row + 32u + row, first_output + 4u * quad, sum_at(at));
    }
    if (ROW_TILES >= 4u) {
        workgroupBarrier();
        coopStoreT(d0, &sum_tiles[part][0], SUM_QUADS);
        coopStoreT(d1, &sum_tiles[part][4], SUM_QUADS);
        workgroupBarrier();
        finish(first_row + 48u + row, first_output + 4u * quad, sum_at(at));
    }
}
