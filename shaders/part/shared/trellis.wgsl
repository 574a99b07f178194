// trellis: the symbols of a trellis code (see trellis_words) for the numbers of a group, by the Viterbi
// algorithm from both ends of the group at once. Works on `row_codes`: words of four numbers in the
// order of the trellis, a signed byte each, in sixteenths of a step; symbols take their place. Two
// invocations serve a group, one of which goes `down`. They do, each for itself unless it says
// otherwise:
//
//   paths = trellis_open(at, down)               over the far half, from any state
//   state = trellis_meet(paths, of the other)    the two symbols before the group's first number
//   paths = trellis_walk(at, down, state, links) over the near half, from there
//   state = trellis_meet(paths, of the other)    those before its middle number
//   trellis_trace(at, down, state, links)
//
// A state is the two symbols before a number, and numbered so that a step is the same both ways: [p][q]
// (of `Paths` the row p and the component q; one number, 4 p + q) is, on the way up, newer symbol p and
// older symbol swap(q); on the way down, newer symbol q and older symbol swap(p); swap exchanges 2 and
// 3. A step takes [b][m] to [n][swap(b)].
//
// Errors are integers, four times those of the twin, and lie as floats between 2^23 and 2^24, whose
// low bits are those of the integers: m in the lowest two, so that the least of four sums says where
// it came from. Nothing rounds. Twin: src/kernel/reference/trellis.rs.

override TRELLIS_STEPS: u32; // half of a group's numbers

alias TrellisLinks = array<u32, TRELLIS_STEPS>;

// Errors of the paths to the states.
struct TrellisPaths { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }

const TRELLIS_NONE = 12582912.0; // 2^23 and 2^22: no error
const TRELLIS_FAR = 13631488.0;  // 2^20 more: of a path that must not be taken

// Shares of a step in 1: 16 / (0.44 of the root mean square).
fn trellis_inverse(squares: f32, channels: u32) -> f32 {
    return 16.0 / max(0.44 * sqrt(squares / f32(channels)), 9.094947e-13);
}

// The scale that keeps inner products their size, near the step.
fn trellis_scale(squares: f32, products: f32, inverse: f32) -> f32 {
    let step = 16.0 / inverse;
    return clamp(squares / max(products, 1e-30), 0.9 * step, 1.3 * step);
}

// Four numbers in shares of a step, a byte each.
fn trellis_shares(x: vec4<f32>, inverse: f32) -> u32 {
    return pack4xI8(vec4<i32>(round(clamp(x * inverse, vec4<f32>(-127.0), vec4<f32>(127.0)))));
}

fn trellis_least(paths: vec4<f32>, errors: vec4<f32>) -> f32 {
    let sums = paths + errors;
    return min(min(sums.x, sums.y), min(sums.z, sums.w));
}

fn trellis_step(paths: TrellisPaths, y: f32, down: bool) -> TrellisPaths {
    // The squared error of a level u halves of a step from the middle, less the number's square.
    let z = 4.0 * y;
    let even = vec4<f32>(1296.0, 400.0, 16.0, 144.0) + z * vec4<f32>(9.0, 5.0, 1.0, -3.0);  // levels 0, 2, 4 and 6
    let odd = vec4<f32>(784.0, 144.0, 16.0, 400.0) + z * vec4<f32>(7.0, 3.0, -1.0, -5.0);   // 1, 3, 5 and 7
    let top = vec2<f32>(784.0, 1296.0) - z * vec2<f32>(7.0, 9.0);                           // 8 and 9
    let two = vec4<f32>(even.y, even.z, even.w, top.x);
    let three = vec4<f32>(odd.w, top.y, odd.y, odd.z);
    // By n ^ m, for each b.
    let a = even;
    let b = vec4<f32>(odd.z, odd.w, odd.x, odd.y);
    let c = select(two, three, down);
    let d = select(three, two, down);
    return TrellisPaths(
        vec4<f32>(trellis_least(paths.a, a), trellis_least(paths.b, b), trellis_least(paths.d, d), trellis_least(paths.c, c)),
        vec4<f32>(trellis_least(paths.a, a.yxwz), trellis_least(paths.b, b.yxwz), trellis_least(paths.d, d.yxwz), trellis_least(paths.c, c.yxwz)),
        vec4<f32>(trellis_least(paths.a, a.zwxy), trellis_least(paths.b, b.zwxy), trellis_least(paths.d, d.zwxy), trellis_least(paths.c, c.zwxy)),
        vec4<f32>(trellis_least(paths.a, a.wzyx), trellis_least(paths.b, b.wzyx), trellis_least(paths.d, d.wzyx), trellis_least(paths.c, c.wzyx)));
}

// Word k of the group in the way's order.
fn trellis_word(at: u32, k: u32, down: bool) -> u32 {
    return at + select(k, TRELLIS_STEPS / 2u - 1u - k, down);
}

// Its numbers.
fn trellis_numbers(at: u32, k: u32, down: bool) -> vec4<f32> {
    let y = vec4<f32>(unpack4xI8(row_codes[trellis_word(at, k, down)]));
    return select(y, y.wzyx, down);
}

fn trellis_open(at: u32, down: bool) -> TrellisPaths {
    let none = vec4<f32>(TRELLIS_NONE);
    var paths = TrellisPaths(none, none, none, none);
    for (var k = TRELLIS_STEPS / 4u; k < TRELLIS_STEPS / 2u; k++) {
        let y = trellis_numbers(at, k, down);
        paths = trellis_step(paths, y.x, down);
        paths = trellis_step(paths, y.y, down);
        paths = trellis_step(paths, y.z, down);
        paths = trellis_step(paths, y.w, down);
    }
    return paths;
}

// The errors of two halves of paths, without what marks them.
fn trellis_sums(mine: vec4<f32>, others: vec4<f32>) -> vec4<u32> {
    return ((bitcast<vec4<u32>>(mine) - vec4<u32>(0x4b000000u)) >> vec4<u32>(2u)) + ((bitcast<vec4<u32>>(others) - vec4<u32>(0x4b000000u)) >> vec4<u32>(2u));
}

// The state of least error where both ways meet, as this way numbers it; of equals the first as the way
// up numbers them.
fn trellis_meet(mine: TrellisPaths, others: TrellisPaths, down: bool) -> u32 {
    let row = select(vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(0u, 4u, 8u, 12u), down);
    let column = select(4u, 1u, down);
    let shift = vec4<u32>(4u);
    let a = (trellis_sums(mine.a, vec4<f32>(others.a.x, others.b.x, others.c.x, others.d.x)) << shift) | row;
    let b = (trellis_sums(mine.b, vec4<f32>(others.a.y, others.b.y, others.c.y, others.d.y)) << shift) | (row + column);
    let c = (trellis_sums(mine.c, vec4<f32>(others.a.z, others.b.z, others.c.z, others.d.z)) << shift) | (row + 2u * column);
    let d = (trellis_sums(mine.d, vec4<f32>(others.a.w, others.b.w, others.c.w, others.d.w)) << shift) | (row + 3u * column);
    let least = min(min(a, b), min(c, d));
    let state = min(min(least.x, least.y), min(least.z, least.w)) & 15u;
    return select(state, 4u * (state & 3u) + state / 4u, down);
}

// The same paths, marked by m.
fn trellis_mark(errors: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((bitcast<vec4<u32>>(errors) & vec4<u32>(0xfffffffcu)) | vec4<u32>(0u, 1u, 2u, 3u));
}

// A step of marked paths, which it marks anew.
fn trellis_next(paths: TrellisPaths, y: f32, down: bool, link: ptr<function, u32>) -> TrellisPaths {
    let next = trellis_step(paths, y, down);
    let three = vec4<u32>(3u);
    *link = pack4xU8((bitcast<vec4<u32>>(next.a) & three) | ((bitcast<vec4<u32>>(next.b) & three) << vec4<u32>(2u))
        | ((bitcast<vec4<u32>>(next.c) & three) << vec4<u32>(4u)) | ((bitcast<vec4<u32>>(next.d) & three) << vec4<u32>(6u)));
    return TrellisPaths(trellis_mark(next.a), trellis_mark(next.b), trellis_mark(next.c), trellis_mark(next.d));
}

fn trellis_begin(state: u32, first: u32) -> vec4<f32> {
    return trellis_mark(select(vec4<f32>(TRELLIS_FAR), vec4<f32>(TRELLIS_NONE), vec4<u32>(first, first + 1u, first + 2u, first + 3u) == vec4<u32>(state)));
}

// links: of each step, where the best path to [p][q] came from: m, at bit 8 q + 2 p.
fn trellis_walk(at: u32, down: bool, state: u32, links: ptr<function, TrellisLinks>) -> TrellisPaths {
    var paths = TrellisPaths(trellis_begin(state, 0u), trellis_begin(state, 4u), trellis_begin(state, 8u), trellis_begin(state, 12u));
    var link = 0u;
    for (var k = 0u; k < TRELLIS_STEPS / 4u; k++) {
        let y = trellis_numbers(at, k, down);
        paths = trellis_next(paths, y.x, down, &link);
        (*links)[4u * k] = link;
        paths = trellis_next(paths, y.y, down, &link);
        (*links)[4u * k + 1u] = link;
        paths = trellis_next(paths, y.z, down, &link);
        (*links)[4u * k + 2u] = link;
        paths = trellis_next(paths, y.w, down, &link);
        (*links)[4u * k + 3u] = link;
    }
    return paths;
}

// Follows the links back, and leaves symbols where the numbers were.
fn trellis_trace(at: u32, down: bool, state: u32, links: ptr<function, TrellisLinks>) {
    var p = state / 4u;
    var q = state & 3u;
    for (var k = TRELLIS_STEPS / 4u; k > 0u; k--) {
        var word = 0u;
        for (var n = 4u; n > 0u; n--) {
            let m = ((*links)[4u * k - 4u + n - 1u] >> (8u * q + 2u * p)) & 3u;
            word |= select(p, m, down) << (8u * select(n - 1u, 4u - n, down));
            p = q ^ (q >> 1u);
            q = m;
        }
        row_codes[trellis_word(at, k - 1u, down)] = word;
    }
}

// The levels of four symbols, a byte each, which follow four others.
fn trellis_levels(symbols: u32, before: u32) -> u32 {
    let f = (symbols << 8u) | (before >> 24u);
    let q = (symbols << 16u) | (before >> 16u);
    let g = symbols ^ q ^ (((f & 0x01010101u) << 1u) | ((q >> 1u) & 0x01010101u));
    return f + (g << 1u);
}
