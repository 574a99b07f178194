// rows/one: one row at a time.

const ROWS = 1u;
const REDUCE_SLOTS = 1u;

// Products of a row with two outputs' weights, and the sum of its squares.
struct Sums {
    all: vec4<f32>,
}

fn rows_none() -> Sums {
    return Sums(vec4<f32>(0.0));
}

// The sums with eight more columns, of which these are the weights.
fn rows_add(sums: Sums, first: u32, eight: u32, a: Eight, b: Eight) -> Sums {
    let low = row_quad(first, 2u * eight);
    let high = row_quad(first, 2u * eight + 1u);
    let scaled = normed(Eight(low, high), eight);
    return Sums(sums.all + vec4<f32>(product(a, scaled), product(b, scaled), dot(low, low) + dot(high, high), 0.0));
}

fn rows_put(sums: Sums, i: u32) {
    reduce_put(0u, i, sums.all);
}

fn rows_total(sums: Sums, i: u32) -> Sums {
    return Sums(reduce_add(0u, i, sums.all));
}

// Writes the outputs of all rows.
fn rows_finish(sums: Sums, first: u32, pair: u32) {
    finish(first, pair, sums.all.x, sums.all.y, sums.all.z);
}
