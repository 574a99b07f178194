// positions: what the mean of the keys adds to the scores of a page's 128 tokens, from the position
// alone: for pair p of RoPE and the token at u = token - 63.5 from the page's middle,
//
//   A_p cos(u angle_p) + B_p sin(u angle_p)
//
// with A and B of the query (kernel `query` wrote them for the middle of page 0) turned to the
// page. The cosines are even in u and the sines odd, so lanes 0 to 15 sum the cosines of their four
// tokens, lanes 16 to 31 the sines, and each takes the other half of its sum from the lane mirrored
// about the middle. The first POSITION_WAVES pairs are summed one by one; the others turn slowly
// enough that all of them together are two polynomials of six terms, which kernel `position` made.
//
// Reads the kernel's bindings `turns`, for the tables that src/plan/position.rs makes,
// `query_codes` and `position_terms`; positions/walk/straight or positions/walk/rolled walks the
// waves, and mirror/<method> exchanges halves. The kernel puts a barrier between positions_turn and
// positions_half. Twin: src/kernel/reference/positions.rs.

override POSITIONS_AT: u32;    // entries of query_codes before those that positions are known by
override POSITION_CENTRE: u32; // in turns, the turn by 63.5 positions; after it follow the tables of part positions
override POSITION_WAVES: u32;  // first pairs of RoPE, which turn too fast for a short polynomial
override POSITION_PLACES: u32; // pages of a pass
override ROPE_PAIRS: u32;      // pairs of channels that turn

const POSITIONS = true;

// A and B of the waves at the page, in turn.
const POSITION_FACTORS = max(2u * POSITION_WAVES, 1u);
var<workgroup> position_pairs: array<HeadsF, POSITION_FACTORS>;

// The query's factors of the waves that the lane turns.
struct PositionBase { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF, e: HeadsF, f: HeadsF, g: HeadsF, h: HeadsF }

fn positions_factor(at: u32, p: u32, which: u32) -> HeadsF {
    return bitcast<HeadsF>(query_codes[at + POSITIONS_AT + 2u * min(p, max(POSITION_WAVES, 1u) - 1u) + which]);
}

fn positions_base(at: u32, lane: u32) -> PositionBase {
    var base: PositionBase;
    if (POSITION_WAVES > 0u) {
        base.a = positions_factor(at, lane, 0u);
        base.b = positions_factor(at, lane, 1u);
    }
    if (POSITION_WAVES > 32u) {
        base.c = positions_factor(at, lane + 32u, 0u);
        base.d = positions_factor(at, lane + 32u, 1u);
    }
    if (POSITION_WAVES > 64u) {
        base.e = positions_factor(at, lane + 64u, 0u);
        base.f = positions_factor(at, lane + 64u, 1u);
        base.g = positions_factor(at, lane + 96u, 0u);
        base.h = positions_factor(at, lane + 96u, 1u);
    }
    return base;
}

// A and B of wave p in the page of number n.
fn positions_turn_pair(n: u32, p: u32, a: HeadsF, b: HeadsF) {
    if (p < POSITION_WAVES) {
        let turn = turn_at((128u + n) * ROPE_PAIRS + p);
        position_pairs[2u * p] = a * turn.x + b * turn.y;
        position_pairs[2u * p + 1u] = b * turn.x - a * turn.y;
    }
}

fn positions_turn(base: PositionBase, n: u32, lane: u32) {
    positions_turn_pair(n, lane, base.a, base.b);
    if (POSITION_WAVES > 32u) {
        positions_turn_pair(n, lane + 32u, base.c, base.d);
    }
    if (POSITION_WAVES > 64u) {
        positions_turn_pair(n, lane + 64u, base.e, base.f);
        positions_turn_pair(n, lane + 96u, base.g, base.h);
    }
}

fn positions_wave(p: u32, lane: u32, half: Scores) -> Scores {
    let factor = position_pairs[2u * p + lane / 16u];
    let wave = turns[(POSITION_CENTRE + ROPE_PAIRS + 1u) / 2u + p * 32u + lane];
    return Scores(half.a + factor * wave.x, half.b + factor * wave.y, half.c + factor * wave.z, half.d + factor * wave.w);
}

fn positions_horner(p: Scores, y: vec4<f32>, term: HeadsF) -> Scores {
    return Scores(p.a * y.x + term, p.b * y.y + term, p.c * y.z + term, p.d * y.w + term);
}

// The lane's half: the even part at its tokens in lanes 0 to 15, the odd one in the others.
// `terms_at` is where the page's first term lies.
fn positions_half(terms_at: u32, lane: u32) -> Scores {
    var half = positions_waves(lane);
    if (POSITION_WAVES < ROPE_PAIRS) {
        let at = terms_at + 6u * (lane / 16u) * POSITION_PLACES;
        let u = (vec4<f32>(f32(4u * lane)) + vec4<f32>(-63.5, -62.5, -61.5, -60.5)) * 0.015625;
        let y = u * u;
        let one = select(vec4<f32>(1.0), u, lane >= 16u);
        let last = position_terms[at + 5u * POSITION_PLACES];
        var p = Scores(last, last, last, last);
        p = positions_horner(p, y, position_terms[at + 4u * POSITION_PLACES]);
        p = positions_horner(p, y, position_terms[at + 3u * POSITION_PLACES]);
        p = positions_horner(p, y, position_terms[at + 2u * POSITION_PLACES]);
        p = positions_horner(p, y, position_terms[at + 1u * POSITION_PLACES]);
        p = positions_horner(p, y, position_terms[at]);
        half = Scores(half.a + one.x * p.a, half.b + one.y * p.b, half.c + one.z * p.c, half.d + one.w * p.d);
    }
    return half;
}

// Hands the lane's half to the mirrored lane.
fn positions_put(lane: u32, half: Scores) {
    mirror_put(lane, half);
}

// Adds both halves to the scores. Query scales are in the halves, as they are in the scores.
fn positions_add(lane: u32, half: Scores, s: Scores) -> Scores {
    let sign = select(-1.0, 1.0, lane >= 16u);
    let other = mirror_take(lane, half);
    return Scores(s.a + (half.a + sign * other.a), s.b + (half.b + sign * other.b), s.c + (half.c + sign * other.c), s.d + (half.d + sign * other.d));
}
