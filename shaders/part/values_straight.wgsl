// values, the walk over a channel's words as straight-line code, for GPUs (see keys_straight.wgsl).
fn values_eight(w: u32, at: u32, n: u32, sums: ptr<function, Sums>) {
    values_word(w, at, n, sums);
    values_word(w + 1u, at, n, sums);
    values_word(w + 2u, at, n, sums);
    values_word(w + 3u, at, n, sums);
    values_word(w + 4u, at, n, sums);
    values_word(w + 5u, at, n, sums);
    values_word(w + 6u, at, n, sums);
    values_word(w + 7u, at, n, sums);
}

fn values_walk(at: u32, n: u32, sums: ptr<function, Sums>) {
    values_eight(0u, at, n, sums);
    if (VALUE_STEPS > 8u) {
        values_eight(8u, at, n, sums);
    }
    if (VALUE_STEPS > 16u) {
        values_eight(16u, at, n, sums);
    }
    if (VALUE_STEPS > 24u) {
        values_eight(24u, at, n, sums);
    }
}
