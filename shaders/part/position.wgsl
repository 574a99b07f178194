// position: what the mean of the keys adds to the scores of a page's 128 tokens, from the position alone: for pair p of RoPE and the token
// at u = token - 63.5 from the page's middle,
//
//   A_p cos(u angle_p) + B_p sin(u angle_p)
//
// with A and B of the query (kernel `query` wrote them for a middle at 63.5) turned to the page. The cosines are even in u and the sines
// odd, so lanes 0 to 15 sum the cosines of their four tokens, lanes 16 to 31 the sines, and each takes the other half of its sum from the
// lane mirrored about the middle. The first POSITION_WAVES pairs are summed one by one; the others turn slowly enough that all of them
// together are two polynomials of six terms in u / 64, which lanes 0 to 11 fit, a term each (for every second pair; lanes 16 to 27 for the
// others).
//
// Reads the kernel's bindings `turns`, for the tables that src/position.rs makes, and `queries`; position_straight or position_rolled walks
// them. The kernel puts a barrier before and after position_fit. Twin: src/reference/position.rs.
const POSITIONS = true;

// A and B of every pair at the page, in turn.
var<workgroup> position_pairs: array<HeadsF, 2u * ROPE_PAIRS>;
// The six terms in the even powers and the six of the odd, of every second pair; from 16 on, of the others.
var<workgroup> position_terms: array<HeadsF, 32>;
var<workgroup> position_halves: array<HeadsF, 128>;

// Tables, in vec4s of `turns`: the waves, a lane's four tokens each; then the fits.
fn position_wave_at(p: u32, lane: u32) -> u32 {
    return (POSITION_CENTRE + ROPE_PAIRS + 1u) / 2u + p * 32u + lane;
}

fn position_fit_at(w: u32, lane: u32) -> u32 {
    return (POSITION_CENTRE + ROPE_PAIRS + 1u) / 2u + (POSITION_WAVES + w) * 32u + lane;
}

// A and B of pair p in the page of number n.
fn position_turn_pair(n: u32, p: u32) {
    if (p < ROPE_PAIRS) {
        let turn = turn_at((128u + n) * ROPE_PAIRS + p);
        let a = bitcast<HeadsF>(queries[POSITIONS_AT + 2u * p]);
        let b = bitcast<HeadsF>(queries[POSITIONS_AT + 2u * p + 1u]);
        position_pairs[2u * p] = a * turn.x + b * turn.y;
        position_pairs[2u * p + 1u] = b * turn.x - a * turn.y;
    }
}

fn position_turn(n: u32, lane: u32) {
    position_turn_pair(n, lane);
    if (ROPE_PAIRS > 32u) {
        position_turn_pair(n, lane + 32u);
    }
    if (ROPE_PAIRS > 64u) {
        position_turn_pair(n, lane + 64u);
        position_turn_pair(n, lane + 96u);
    }
}

// Adds four pairs to the lane's term: the pairs beyond the last have factors of 0.
fn position_fit_four(w: u32, lane: u32, sum: HeadsF) -> HeadsF {
    let odd = select(0u, 1u, lane % 16u >= 6u);
    let p = POSITION_WAVES + 8u * w + lane / 16u;
    let factors = turns[position_fit_at(w, lane)];
    let last = ROPE_PAIRS - 1u;
    return sum + ((factors.x * position_pairs[2u * min(p, last) + odd] + factors.y * position_pairs[2u * min(p + 2u, last) + odd])
        + (factors.z * position_pairs[2u * min(p + 4u, last) + odd] + factors.w * position_pairs[2u * min(p + 6u, last) + odd]));
}

fn position_fit(lane: u32) {
    position_terms[lane] = position_fit_walk(lane);
}

fn position_wave(p: u32, lane: u32, half: Scores) -> Scores {
    let factor = position_pairs[2u * p + lane / 16u];
    let wave = turns[position_wave_at(p, lane)];
    return Scores(half.a + factor * wave.x, half.b + factor * wave.y, half.c + factor * wave.z, half.d + factor * wave.w);
}

fn position_term(k: u32, lane: u32) -> HeadsF {
    let at = 6u * (lane / 16u) + k;
    return position_terms[at] + position_terms[at + 16u];
}

// The lane's half: the even part at its tokens in lanes 0 to 15, the odd one in the others.
fn position_half(lane: u32) -> Scores {
    var half = position_waves(lane);
    if (POSITION_FITS > 0u) {
        let u = (vec4<f32>(f32(4u * lane)) + vec4<f32>(-63.5, -62.5, -61.5, -60.5)) * 0.015625;
        let y = u * u;
        let one = select(vec4<f32>(1.0), u, lane >= 16u);
        let last = position_term(5u, lane);
        var p = Scores(last, last, last, last);
        p = position_horner(p, y, position_term(4u, lane));
        p = position_horner(p, y, position_term(3u, lane));
        p = position_horner(p, y, position_term(2u, lane));
        p = position_horner(p, y, position_term(1u, lane));
        p = position_horner(p, y, position_term(0u, lane));
        half = Scores(half.a + one.x * p.a, half.b + one.y * p.b, half.c + one.z * p.c, half.d + one.w * p.d);
    }
    return half;
}

fn position_horner(p: Scores, y: vec4<f32>, term: HeadsF) -> Scores {
    return Scores(p.a * y.x + term, p.b * y.y + term, p.c * y.z + term, p.d * y.w + term);
}

// Hands the lane's half to the mirrored lane, where reductions go through workgroup memory.
fn position_put(lane: u32, half: Scores) {
    if (REDUCE_BARRIER) {
        position_halves[4u * lane] = half.a;
        position_halves[4u * lane + 1u] = half.b;
        position_halves[4u * lane + 2u] = half.c;
        position_halves[4u * lane + 3u] = half.d;
    }
}

// The mirrored lane's half of the lane's token `corner`, whose mirror is the other's token 3 - corner.
fn position_mirror(lane: u32, corner: u32, mirrored: HeadsF) -> HeadsF {
    if (REDUCE_BARRIER) {
        return position_halves[4u * (31u - lane) + 3u - corner];
    }
    return reduce_mirror(mirrored);
}

// Adds both halves to the scores. Query scales are in the halves, as they are in the scores.
fn position_add(lane: u32, half: Scores, s: Scores) -> Scores {
    let sign = select(-1.0, 1.0, lane >= 16u);
    return Scores(s.a + (half.a + sign * position_mirror(lane, 0u, half.d)), s.b + (half.b + sign * position_mirror(lane, 1u, half.c)),
        s.c + (half.c + sign * position_mirror(lane, 2u, half.b)), s.d + (half.d + sign * position_mirror(lane, 3u, half.a)));
}
