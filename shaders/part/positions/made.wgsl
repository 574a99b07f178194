// positions: as positions/added says, made by the workgroup itself from the query's factors of every
// pair (part query_factors), for attend_direct: for each page the lanes share the slow pairs out, and
// add up what each adds to the twelve terms of the polynomials.
//
// Needs waves, slow, terms, factors and query_factors. Twin: src/kernel/reference/attend_direct.rs.

override POSITION_CENTRE: u32; // in turns, the turn by 63.5 positions
override POSITION_WAVES: u32;  // first pairs of RoPE, which turn too fast for a short polynomial
override ROPE_PAIRS: u32;      // pairs of channels that turn

const POSITIONS = true;
const POSITIONS_GATHERED = TERMS_SHARED && POSITION_WAVES < ROPE_PAIRS;

// The query's factors of pair p for the middle of page 0.
fn positions_middle(p: u32) -> Factors {
    return factors_turn(Factors(query_factors[2u * p], query_factors[2u * p + 1u]), turn_at(POSITION_CENTRE + p));
}

fn positions_wave(p: u32) -> Factors {
    return positions_middle(min(p, max(POSITION_WAVES, 1u) - 1u));
}

fn positions_base(at: u32, lane: u32) -> PositionBase {
    var base: PositionBase;
    if (POSITION_WAVES > 0u) {
        let one = positions_wave(lane);
        base.a = one.a;
        base.b = one.b;
    }
    if (POSITION_WAVES > 32u) {
        let two = positions_wave(lane + 32u);
        base.c = two.a;
        base.d = two.b;
    }
    if (POSITION_WAVES > 64u) {
        let three = positions_wave(lane + 64u);
        base.e = three.a;
        base.f = three.b;
        let four = positions_wave(lane + 96u);
        base.g = four.a;
        base.h = four.b;
    }
    return base;
}

fn positions_turn(base: PositionBase, n: u32, lane: u32) {
    waves_turn(base, n, lane);
    if (POSITION_WAVES < ROPE_PAIRS) {
        var sums = SlowSums();
        for (var p = POSITION_WAVES + lane; p < ROPE_PAIRS; p += 32u) {
            sums = slow_add(sums, slow_take(p, n, positions_middle(p)));
        }
        terms_put(lane, sums);
    }
}

fn positions_gather(lane: u32) {
    if (POSITION_WAVES < ROPE_PAIRS) {
        terms_gather(lane);
    }
}

// The lane's half: the even part at its tokens in lanes 0 to 15, the odd one in the others.
fn positions_half(terms_at: u32, lane: u32) -> Scores {
    let half = positions_waves(lane);
    if (POSITION_WAVES == ROPE_PAIRS) {
        return half;
    }
    return terms_add(lane, half);
}

fn positions_put(lane: u32, half: Scores) {
    waves_put(lane, half);
}

fn positions_add(lane: u32, half: Scores, s: Scores) -> Scores {
    return waves_both(lane, half, s);
}
