// layout/dense: rows of all heads of a token one after another, the caller's usual form.

override HEAD_DIM: u32; // channels of a head

// The first number of the row of a head, in tensor n of the caller's.
fn layout_row(n: u32, row: u32, heads: u32, head: u32) -> u32 {
    return (row * heads + head) * HEAD_DIM;
}
