// layout/strided: rows at the strides that came with the call: heads first, padded, or side by side
// with others, from a place on that no binding could begin at.

struct Layout { // src/gpu/rows.rs
    base: u32,            // the first row, in numbers from the binding's start
    tokens: u32,          // rows of a sequence; beyond all rows where there is one
    sequence_stride: u32, // in numbers, like the others
    token_stride: u32,
    head_stride: u32,
    pad_a: u32,
    pad_b: u32,
    pad_c: u32,
}

@group(3) @binding(0) var<uniform> layouts: array<Layout, 2>; // by tensor

// The first number of the row of a head, in tensor n of the caller's.
fn layout_row(n: u32, row: u32, heads: u32, head: u32) -> u32 {
    let place = layouts[n];
    return place.base + row / place.tokens * place.sequence_stride + row % place.tokens * place.token_stride + head * place.head_stride;
}
