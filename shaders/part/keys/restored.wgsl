// keys, RotateKV's: the scores of a page, which the units of the workgroup computed together.
// restore/shuffled, restore/straight or restore/rolled writes them.

override HEADS: u32; // query heads that share one reading
override UNITS: u32; // 1

// Two tokens an entry: [unit, HEADS, 64].
var<workgroup> page_scores: array<vec2<f32>, UNITS * HEADS * 64u>;

fn keys_scores_of(unit: u32, h: u32, lane: u32) -> vec4<f32> {
    let at = (unit * HEADS + h) * 64u + 2u * lane;
    return vec4<f32>(page_scores[at], page_scores[at + 1u]);
}

// Scores in log2 units, tokens 4 * lane to 4 * lane + 3.
fn keys_scores(unit: u32, page: u32, lane: u32) -> Scores {
    let a = keys_scores_of(unit, 0u, lane);
    var b = vec4<f32>(0.0);
    var c = vec4<f32>(0.0);
    var d = vec4<f32>(0.0);
    if (HEADS > 1u) {
        b = keys_scores_of(unit, 1u, lane);
    }
    if (HEADS > 2u) {
        c = keys_scores_of(unit, 2u, lane);
        d = keys_scores_of(unit, 3u, lane);
    }
    return Scores(heads_of(a.x, b.x, c.x, d.x), heads_of(a.y, b.y, c.y, d.y), heads_of(a.z, b.z, c.z, d.z), heads_of(a.w, b.w, c.w, d.w));
}
