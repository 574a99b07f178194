// rows: what the mean of Centred's keys adds to the scores of 32 places of f16 rows. For pair p of
// RoPE and the place l beyond the tile's first,
//
//   A_p cos(l angle_p) + B_p sin(l angle_p)
//
// with A and B of the query (kernel query) turned to the tile's first place: the lanes turn them
// together, and each takes its own 64 or so pairs of cosine and sine, by ROW_TURNS in the order of
// the lanes. Sinks and the tokens after the pages are apart, so each have factors of their own.
// Needs turn and turn_at; reads the kernel's binding `turns` and calls its function query_factor for
// A and B of each pair in turn. A barrier stands between
// rows_turn and rows_mean. Twin: src/kernel/reference/attend_rows.rs.

override ROPE_PAIRS: u32;     // pairs of channels that turn
override POSITION_QUADS: u32; // pairs of those, the last perhaps in part
override MASSIVE: bool;        // whether the sinks are elected
override ROW_TURNS: u32;      // vectors of turns before those by lane: [quad, 32]

// A and B of each pair in turn: for tokens after the pages, then for sinks.
const ROW_FACTORS = 8u * POSITION_QUADS;
var<workgroup> row_factors: array<HeadsF, ROW_FACTORS>;

// The query's factors of pair p, turned to position t, or by as much the other way.
fn rows_turn_pair(p: u32, t: u32, back: bool, at: u32) {
    let a = query_factor(2u * p);
    let b = query_factor(2u * p + 1u);
    // Beyond the last pair stand zeros.
    let pair = min(p, ROPE_PAIRS - 1u);
    var turn = turn_compose(turn_at((128u + t / 128u) * ROPE_PAIRS + pair), turn_at((t % 128u) * ROPE_PAIRS + pair));
    if (back) {
        turn.y = -turn.y;
    }
    row_factors[at + 2u * p] = a * turn.x + b * turn.y;
    row_factors[at + 2u * p + 1u] = b * turn.x - a * turn.y;
}

// Turns the factors to a tile's first place: for tokens after the pages to where that place would be
// if they went on backwards, which lies before position 0 where more sinks are elected than tokens
// packed (of a sequence that was cut back).
fn rows_turn(place: u32, sinks: u32, packed: u32, lane: u32) {
    for (var p = lane; p < 2u * POSITION_QUADS; p += 32u) {
        let back = MASSIVE && packed + place < sinks;
        rows_turn_pair(p, select(packed + place - sinks, sinks - packed - place, back), back, 0u);
        if (place < sinks) {
            rows_turn_pair(p, place, false, 4u * POSITION_QUADS);
        }
    }
}

// Adds the share of the two pairs of quad q.
fn rows_mean(q: u32, lane: u32, sink: bool, s: HeadsF) -> HeadsF {
    var sum = s;
    if (q < POSITION_QUADS) {
        let turn = turns[ROW_TURNS + 32u * q + lane];
        let at = 4u * q + select(0u, 4u * POSITION_QUADS, sink);
        sum += (row_factors[at] * turn.x + row_factors[at + 1u] * turn.y) + (row_factors[at + 2u] * turn.z + row_factors[at + 3u] * turn.w);
    }
    return sum;
}
