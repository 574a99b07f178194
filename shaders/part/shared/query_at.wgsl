// query_at: number i of the caller's queries, f32 or f16 as HALF_ROWS says. Reads the kernel's
// binding `queries`.

override HALF_ROWS: bool; // whether the caller's rows are f16

fn query_at(i: u32) -> f32 {
    if (HALF_ROWS) {
        let pair = unpack2x16float(queries[i / 2u]);
        return select(pair.x, pair.y, (i & 1u) == 1u);
    }
    return bitcast<f32>(queries[i]);
}
