// waves: what positions/added and positions/made have in common: the pairs of RoPE that turn too fast
// for a polynomial, one by one, the polynomials of the others, and the exchange of halves. Reads the
// kernel's binding `turns`; needs turn_at.

override POSITION_CENTRE: u32; // in turns, the turn by 63.5 positions; after it follow the tables of part positions
override POSITION_WAVES: u32;  // first pairs of RoPE, which turn too fast for a short polynomial
override ROPE_PAIRS: u32;      // pairs of channels that turn

// A and B of the waves at the page, in turn.
const POSITION_FACTORS = max(2u * POSITION_WAVES, 1u);
var<workgroup> position_pairs: array<HeadsF, POSITION_FACTORS>;

// The query's factors of the waves that the lane turns.
struct PositionBase { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF, e: HeadsF, f: HeadsF, g: HeadsF, h: HeadsF }

// A and B of wave p in the page of number n.
fn waves_turn_pair(n: u32, p: u32, a: HeadsF, b: HeadsF) {
    if (p < POSITION_WAVES) {
        let turn = turn_at((128u + n) * ROPE_PAIRS + p);
        position_pairs[2u * p] = a * turn.x + b * turn.y;
        position_pairs[2u * p + 1u] = b * turn.x - a * turn.y;
    }
}

fn waves_turn(base: PositionBase, n: u32, lane: u32) {
    waves_turn_pair(n, lane, base.a, base.b);
    if (POSITION_WAVES > 32u) {
        waves_turn_pair(n, lane + 32u, base.c, base.d);
    }
    if (POSITION_WAVES > 64u) {
        waves_turn_pair(n, lane + 64u, base.e, base.f);
        waves_turn_pair(n, lane + 96u, base.g, base.h);
    }
}

fn waves_add(p: u32, lane: u32, half: Scores) -> Scores {
    let factor = position_pairs[2u * p + lane / 16u];
    let wave = turns[(POSITION_CENTRE + ROPE_PAIRS + 1u) / 2u + p * 32u + lane];
    return Scores(half.a + factor * wave.x, half.b + factor * wave.y, half.c + factor * wave.z, half.d + factor * wave.w);
}

fn waves_horner(p: Scores, y: vec4<f32>, term: HeadsF) -> Scores {
    return Scores(p.a * y.x + term, p.b * y.y + term, p.c * y.z + term, p.d * y.w + term);
}

// Adds the polynomial of these six terms at the lane's four tokens.
fn waves_slow(lane: u32, half: Scores, zero: HeadsF, first: HeadsF, two: HeadsF, three: HeadsF, four: HeadsF, five: HeadsF) -> Scores {
    let u = (vec4<f32>(f32(4u * lane)) + vec4<f32>(-63.5, -62.5, -61.5, -60.5)) * 0.015625;
    let y = u * u;
    let one = select(vec4<f32>(1.0), u, lane >= 16u);
    var p = Scores(five, five, five, five);
    p = waves_horner(p, y, four);
    p = waves_horner(p, y, three);
    p = waves_horner(p, y, two);
    p = waves_horner(p, y, first);
    p = waves_horner(p, y, zero);
    return Scores(half.a + one.x * p.a, half.b + one.y * p.b, half.c + one.z * p.c, half.d + one.w * p.d);
}

// Hands the lane's half to the mirrored lane.
fn waves_put(lane: u32, half: Scores) {
    mirror_put(lane, half);
}

// Adds both halves to the scores. Query scales are in the halves, as they are in the scores.
fn waves_both(lane: u32, half: Scores, s: Scores) -> Scores {
    let sign = select(-1.0, 1.0, lane >= 16u);
    let other = mirror_take(lane, half);
    return Scores(s.a + (half.a + sign * other.a), s.b + (half.b + sign * other.b), s.c + (half.c + sign * other.c), s.d + (half.d + sign * other.d));
}
