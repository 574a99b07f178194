// rows/four: four rows at a time. After the last row come rows of padding.

const ROWS = 4u;
const REDUCE_SLOTS = 3u;

// Products of four rows with two outputs' weights, and the sums of their squares.
struct Sums {
    a: vec4<f32>,
    b: vec4<f32>,
    squares: vec4<f32>,
}

fn rows_none() -> Sums {
    return Sums(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
}

fn rows_one(row: u32, eight: u32, a: Eight, b: Eight) -> vec3<f32> {
    let low = row_quad(row, 2u * eight);
    let high = row_quad(row, 2u * eight + 1u);
    let scaled = normed(Eight(low, high), eight);
    return vec3<f32>(product(a, scaled), product(b, scaled), dot(low, low) + dot(high, high));
}

// The sums with eight more columns, of which these are the weights.
fn rows_add(sums: Sums, first: u32, eight: u32, a: Eight, b: Eight) -> Sums {
    let x = rows_one(first, eight, a, b);
    let y = rows_one(first + 1u, eight, a, b);
    let z = rows_one(first + 2u, eight, a, b);
    let w = rows_one(first + 3u, eight, a, b);
    return Sums(sums.a + vec4<f32>(x.x, y.x, z.x, w.x), sums.b + vec4<f32>(x.y, y.y, z.y, w.y), sums.squares + vec4<f32>(x.z, y.z, z.z, w.z));
}

fn rows_put(sums: Sums, i: u32) {
    reduce_put(0u, i, sums.a);
    reduce_put(1u, i, sums.b);
    reduce_put(2u, i, sums.squares);
}

fn rows_total(sums: Sums, i: u32) -> Sums {
    return Sums(reduce_add(0u, i, sums.a), reduce_add(1u, i, sums.b), reduce_add(2u, i, sums.squares));
}

// Writes the outputs of all rows.
fn rows_finish(sums: Sums, first: u32, pair: u32) {
    finish(first, pair, sums.a.x, sums.b.x, sums.squares.x);
    finish(first + 1u, pair, sums.a.y, sums.b.y, sums.squares.y);
    finish(first + 2u, pair, sums.a.z, sums.b.z, sums.squares.z);
    finish(first + 3u, pair, sums.a.w, sums.b.w, sums.squares.w);
}
