// restore: RotateKV's keys as straight-line code in packed halves, for GPUs: two tokens a Lane, 4 *
// UNITS tokens a tile.
//
// The rotation over a group of heads is H_16 (x) H_rest: a worker (16 a workgroup) first takes 16
// consecutive channels, whose codes are a word or a few, and undoes H_16; then the one channel in
// 16 that it owns of all heads, undoes the rest, turns them (the same angles serve every head), and
// multiplies with the queries. Halves keep 11 bits, of numbers that were stored with 2 to 4;
// products of eight channels are summed in halves, their sums in f32. Reads the kernel's bindings
// `turns`, `query_codes`, `marks`, `key_scales`; needs lanes, restore/codes/<bits>, scales/<form>.
// Twin: src/kernel/reference/attend_split.rs computes the same in f32, in the shape of
// restore/rolled.

override HEAD_DIM: u32;      // channels of a head
override HEADS: u32;         // query heads that share one reading
override PAGE_VECS: u32;     // vec4s of one head's page
override KEY_BITS: u32;      // 2, 3, 4, 8, or 16 for f16
override UNITS: u32;         // 1
override ROPE: u32;          // 0 none, 1 split halves, 2 interleaved pairs
override ROW_GROUPS: u32;    // groups of a token's whole key row that share a scale
override RESTORE_CELLS: u32; // of workgroup memory that keys pass through
override RESTORE_SCALE: f32; // 1 / sqrt(GROUP_HEADS * HEAD_DIM)

const PAIRS = 2u * UNITS;            // of tokens, a tile
const RESTORE_TILES = 64u / PAIRS;   // a page
const SPANS = HEAD_DIM / 16u;        // runs of 16 channels a head

// The keys between the factors: [run of 16 channels, 16 and one to spare against bank conflicts,
// PAIRS]. Then the products: [unit * HEADS, 16 workers and one to spare, PAIRS]. An array of
// arrays, so that constant indices need no bounds check.
var<workgroup> cells: array<array<array<vec2<f16>, PAIRS>, 17>, RESTORE_CELLS>;
// Step (xy) and base (zw) of each group's two tokens: x = step * code + base.
var<workgroup> restore_steps: array<array<vec4<f16>, PAIRS>, ROW_GROUPS>;

// One channel of each run of 16 of a head. Where a head has four runs, two are in each half.
struct Span { low: Quad, high: Quad }
struct Turns { cosine: Quad, sine: Quad }
// Which groups the worker's first and second sixteen channels are of, a byte each.
struct RestoreIds { a: vec4<u32>, b: vec4<u32> }
// Two tokens' products with four query heads, by unit.
struct RestoreDots { a: Quad, b: Quad, c: Quad, d: Quad }

fn span_sum(x: Span, y: Span) -> Span {
    return Span(quad_sum(x.low, y.low), quad_sum(x.high, y.high));
}

fn span_difference(x: Span, y: Span) -> Span {
    return Span(quad_difference(x.low, y.low), quad_difference(x.high, y.high));
}

// H_8, or H_4 on the four that are there.
fn span_mixed(x: Span) -> Span {
    if (SPANS == 8u) {
        let low = quad_mixed(x.low);
        let high = quad_mixed(x.high);
        return Span(quad_sum(low, high), quad_difference(low, high));
    }
    let low = Quad(x.low.a + x.low.b, x.low.a - x.low.b, x.low.c, x.low.d);
    let high = Quad(x.high.a + x.high.b, x.high.a - x.high.b, x.high.c, x.high.d);
    return Span(quad_sum(low, high), quad_difference(low, high));
}

fn span_take(run: u32, within: u32, pair: u32) -> Span {
    let a = cells[run][within][pair];
    let b = cells[run + 1u][within][pair];
    let c = cells[run + 2u][within][pair];
    let d = cells[run + 3u][within][pair];
    if (SPANS == 8u) {
        return Span(Quad(a, b, c, d), Quad(cells[run + 4u][within][pair], cells[run + 5u][within][pair], cells[run + 6u][within][pair],
            cells[run + 7u][within][pair]));
    }
    return Span(Quad(a, b, Lane(0.0h), Lane(0.0h)), Quad(c, d, Lane(0.0h), Lane(0.0h)));
}

fn span_turned(x: Span, by: Turns) -> Span {
    return Span(
        Quad(x.low.a * by.cosine.a - x.high.a * by.sine.a, x.low.b * by.cosine.b - x.high.b * by.sine.b,
            x.low.c * by.cosine.c - x.high.c * by.sine.c, x.low.d * by.cosine.d - x.high.d * by.sine.d),
        Quad(x.high.a * by.cosine.a + x.low.a * by.sine.a, x.high.b * by.cosine.b + x.low.b * by.sine.b,
            x.high.c * by.cosine.c + x.low.c * by.sine.c, x.high.d * by.cosine.d + x.low.d * by.sine.d));
}

// Cosine and sine of one pair at two tokens: the page's turn composed with the token's. The columns
// of the low positions are the table's end, so that neighbouring tokens are neighbours there.
fn turn_lanes(pair: u32, n: u32, t: u32) -> vec4<f32> {
    let high = turn_at((128u + n) * (HEAD_DIM / 2u) + pair);
    let both = turns[arrayLength(&turns) - 32u * HEAD_DIM + 64u * pair + t / 2u];
    let a = both.xy;
    let b = both.zw;
    return vec4<f32>(high.x * a.x - high.y * a.y, high.x * b.x - high.y * b.y, high.y * a.x + high.x * a.y, high.y * b.x + high.x * b.y);
}

fn turns_take(within: u32, n: u32, t: u32) -> Turns {
    let a = turn_lanes(within, n, t);
    let b = turn_lanes(16u + within, n, t);
    var c = vec4<f32>(0.0);
    var d = vec4<f32>(0.0);
    if (SPANS == 8u) {
        c = turn_lanes(32u + within, n, t);
        d = turn_lanes(48u + within, n, t);
    }
    return Turns(Quad(Lane(a.xy), Lane(b.xy), Lane(c.xy), Lane(d.xy)), Quad(Lane(a.zw), Lane(b.zw), Lane(c.zw), Lane(d.zw)));
}

fn dots_add(dots: Quad, k: Lane, unit: u32, span: u32, within: u32) -> Quad {
    return lane_dots(dots, k, queries[unit][span][within]);
}

fn span_dots(x: Span, unit: u32, within: u32) -> Quad {
    var dots = Quad(Lane(0.0h), Lane(0.0h), Lane(0.0h), Lane(0.0h));
    dots = dots_add(dots, x.low.a, unit, 0u, within);
    dots = dots_add(dots, x.low.b, unit, 1u, within);
    if (SPANS == 8u) {
        dots = dots_add(dots, x.low.c, unit, 2u, within);
        dots = dots_add(dots, x.low.d, unit, 3u, within);
    }
    dots = dots_add(dots, x.high.a, unit, SPANS / 2u, within);
    dots = dots_add(dots, x.high.b, unit, SPANS / 2u + 1u, within);
    if (SPANS == 8u) {
        dots = dots_add(dots, x.high.c, unit, 6u, within);
        dots = dots_add(dots, x.high.d, unit, 7u, within);
    }
    return dots;
}

fn ids_take(stand: Stand, run: u32) -> vec4<u32> {
    let at = (stand.head_first * HEAD_DIM + 16u * run) / 4u;
    return vec4<u32>(marks[at], marks[at + 1u], marks[at + 2u], marks[at + 3u]);
}

fn restore_ids(stand: Stand, i: u32) -> RestoreIds {
    let worker = i / PAIRS;
    // A worker beyond the runs repeats the last, and writes nothing.
    let a = ids_take(stand, min(worker, UNITS * SPANS - 1u));
    if (UNITS * SPANS > 16u) {
        return RestoreIds(a, ids_take(stand, worker + 16u));
    }
    return RestoreIds(a, a);
}

// Steps and bases of a tile: the scale, with the rotation's factor, and less the zero times it.
fn restore_stage(physical: u32, tile: u32, i: u32) {
    for (var e = i; e < ROW_GROUPS * PAIRS; e += 32u * UNITS) {
        let pair = tile * PAIRS + e % PAIRS;
        let raw = scales_of(key_scales[(physical * ROW_GROUPS + e / PAIRS) * SCALE_VECS + scales_vec(pair / 2u)], pair / 2u);
        let two = select(raw.xy, raw.zw, (pair & 1u) == 1u);
        let a = scales_pair(two.x);
        let b = scales_pair(two.y);
        let step = vec2<f32>(a.x, b.x) * RESTORE_SCALE;
        let zero = vec2<f32>(a.y, b.y) + select(0.0, 128.0, KEY_BITS == 8u);
        restore_steps[e / PAIRS][e % PAIRS] = vec4<f16>(vec4<f32>(step, -step * zero));
    }
}

fn restore_open(physical: u32, i: u32) {
    restore_stage(physical, 0u, i);
}

fn lane_restored(code: Lane, ids: u32, shift: u32, pair: u32) -> Lane {
    let step = restore_steps[(ids >> shift) & 0xffu][pair];
    return fma(code, step.xy, step.zw);
}

fn quad_restored(codes: Quad, ids: u32, pair: u32) -> Quad {
    return Quad(lane_restored(codes.a, ids, 0u, pair), lane_restored(codes.b, ids, 8u, pair), lane_restored(codes.c, ids, 16u, pair),
        lane_restored(codes.d, ids, 24u, pair));
}

fn quad_put(x: Quad, run: u32, within: u32, pair: u32) {
    cells[run][within][pair] = x.a;
    cells[run][within + 1u][pair] = x.b;
    cells[run][within + 2u][pair] = x.c;
    cells[run][within + 3u][pair] = x.d;
}

fn restore_run(stand: Stand, physical: u32, tile: u32, run: u32, ids: vec4<u32>, pair: u32) {
    let page = (physical * params.slab_heads + stand.slab_first + run / SPANS) * PAGE_VECS;
    let two = tile * PAIRS + pair;
    let codes = codes_sixteen(page, run % SPANS, two / 2u, (two & 1u) == 1u);
    let x = sixteen_mixed(Sixteen(quad_restored(codes.a, ids.x, pair), quad_restored(codes.b, ids.y, pair), quad_restored(codes.c, ids.z, pair),
        quad_restored(codes.d, ids.w, pair)));
    quad_put(x.a, run, 0u, pair);
    quad_put(x.b, run, 4u, pair);
    quad_put(x.c, run, 8u, pair);
    quad_put(x.d, run, 12u, pair);
}

fn restore_spread(stand: Stand, physical: u32, tile: u32, ids: RestoreIds, i: u32) {
    let worker = i / PAIRS;
    let pair = i % PAIRS;
    if (UNITS * SPANS >= 16u || worker < UNITS * SPANS) {
        restore_run(stand, physical, tile, worker, ids.a, pair);
    }
    if (UNITS * SPANS > 16u) {
        restore_run(stand, physical, tile, worker + 16u, ids.b, pair);
    }
}

fn restore_dots(stand: Stand, physical: u32, n: u32, tile: u32, ids: RestoreIds, i: u32) -> RestoreDots {
    let worker = i / PAIRS;
    let pair = i % PAIRS;
    var a = span_mixed(span_take(0u, worker, pair));
    var b = a;
    var c = a;
    var d = a;
    if (UNITS > 1u) {
        let p = a;
        let q = span_mixed(span_take(SPANS, worker, pair));
        a = span_sum(p, q);
        b = span_difference(p, q);
    }
    if (UNITS > 2u) {
        let p = span_mixed(span_take(2u * SPANS, worker, pair));
        let q = span_mixed(span_take(3u * SPANS, worker, pair));
        let r = span_sum(p, q);
        let s = span_difference(p, q);
        c = span_difference(a, r);
        d = span_difference(b, s);
        a = span_sum(a, r);
        b = span_sum(b, s);
    }
    if (ROPE > 0u) {
        let by = turns_take(worker, n, 2u * (tile * PAIRS + pair));
        a = span_turned(a, by);
        if (UNITS > 1u) {
            b = span_turned(b, by);
        }
        if (UNITS > 2u) {
            c = span_turned(c, by);
            d = span_turned(d, by);
        }
    }
    var dots: RestoreDots;
    dots.a = span_dots(a, 0u, worker);
    if (UNITS > 1u) {
        dots.b = span_dots(b, 1u, worker);
    }
    if (UNITS > 2u) {
        dots.c = span_dots(c, 2u, worker);
        dots.d = span_dots(d, 3u, worker);
    }
    return dots;
}

fn dots_put(dots: Quad, unit: u32, worker: u32, pair: u32) {
    cells[unit * HEADS][worker][pair] = dots.a;
    if (HEADS > 1u) {
        cells[unit * HEADS + 1u][worker][pair] = dots.b;
    }
    if (HEADS > 2u) {
        cells[unit * HEADS + 2u][worker][pair] = dots.c;
        cells[unit * HEADS + 3u][worker][pair] = dots.d;
    }
}

fn restore_put(dots: RestoreDots, i: u32) {
    let worker = i / PAIRS;
    let pair = i % PAIRS;
    dots_put(dots.a, 0u, worker, pair);
    if (UNITS > 1u) {
        dots_put(dots.b, 1u, worker, pair);
    }
    if (UNITS > 2u) {
        dots_put(dots.c, 2u, worker, pair);
        dots_put(dots.d, 3u, worker, pair);
    }
}

fn cells_four(run: u32, within: u32, pair: u32) -> vec2<f32> {
    return (vec2<f32>(cells[run][within][pair]) + vec2<f32>(cells[run][within + 1u][pair]))
        + (vec2<f32>(cells[run][within + 2u][pair]) + vec2<f32>(cells[run][within + 3u][pair]));
}

fn restore_sum(physical: u32, tile: u32, i: u32) {
    let run = i / PAIRS;
    let pair = i % PAIRS;
    if (run < UNITS * HEADS) {
        let sum = (cells_four(run, 0u, pair) + cells_four(run, 4u, pair)) + (cells_four(run, 8u, pair) + cells_four(run, 12u, pair));
        page_scores[run * 64u + tile * PAIRS + pair] = sum;
    }
    if (tile + 1u < RESTORE_TILES) {
        restore_stage(physical, tile + 1u, i);
    }
}
