// values, the walk over a channel's words as a loop, for software adapters (see keys_rolled.wgsl).
fn values_walk(at: u32, n: u32, sums: ptr<function, Sums>) {
    for (var w = 0u; w < VALUE_STEPS; w++) {
        values_word(w, at, n, sums);
    }
}
