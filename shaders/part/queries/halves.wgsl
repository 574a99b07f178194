// queries, of restore/straight: halves in workgroup memory, four query heads together. Reads the
// kernel's binding `query_codes`; needs lanes.

override HEAD_DIM: u32; // channels of a head
override UNITS: u32;    // 1

// Four query heads of channel 16 * span + worker of a unit's head: [unit, span, worker].
var<workgroup> queries: array<array<array<vec4<f16>, 16>, SPANS>, UNITS>;

fn queries_take(at: u32, unit: u32, lane: u32) {
    for (var c = lane; c < HEAD_DIM; c += 32u) {
        queries[unit][c / 16u][c % 16u] = vec4<f16>(lane_heads(bitcast<HeadsF>(query_codes[at + c])));
    }
}
