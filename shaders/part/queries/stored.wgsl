// queries: the query heads that a workgroup of attend_split serves. Reads the kernel's binding
// `query_codes`.

override POSITIONS_AT: u32; // entries of query_codes before those that positions are known by

// What the kernel `query` wrote for these heads. For integer keys: codes of four channels each,
// then the scale, then each group's sum of codes. For f16 keys: every channel in f32. Both are
// already times log2(e) and the scale of scores.
var<workgroup> queries: array<HeadsU, POSITIONS_AT>;

fn queries_take(at: u32, unit: u32, lane: u32) {
    for (var i = lane; i < POSITIONS_AT; i += 32u) {
        queries[i] = query_codes[at + i];
    }
}
