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
// Reads the kernel's bindings `query_codes` and `position_terms`; positions/walk/straight or
// positions/walk/rolled walks the waves, and mirror/<method> exchanges halves. The kernel puts a
// barrier between positions_turn and positions_gather, and where POSITIONS_GATHERED says so another
// before positions_half. Needs waves. Twin: src/kernel/reference/positions.rs.

override POSITIONS_AT: u32;    // entries of query_codes before those that positions are known by
override POSITION_WAVES: u32;  // first pairs of RoPE, which turn too fast for a short polynomial
override POSITION_PLACES: u32; // pages of a pass
override ROPE_PAIRS: u32;      // pairs of channels that turn

const POSITIONS = true;
const POSITIONS_GATHERED = false;

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

fn positions_turn(base: PositionBase, n: u32, lane: u32) {
    waves_turn(base, n, lane);
}

fn positions_gather(lane: u32) {}

// The lane's half: the even part at its tokens in lanes 0 to 15, the odd one in the others.
// `terms_at` is where the page's first term lies.
fn positions_half(terms_at: u32, lane: u32) -> Scores {
    let half = positions_waves(lane);
    if (POSITION_WAVES == ROPE_PAIRS) {
        return half;
    }
    let at = terms_at + 6u * (lane / 16u) * POSITION_PLACES;
    return waves_slow(lane, half, position_terms[at], position_terms[at + POSITION_PLACES], position_terms[at + 2u * POSITION_PLACES],
        position_terms[at + 3u * POSITION_PLACES], position_terms[at + 4u * POSITION_PLACES], position_terms[at + 5u * POSITION_PLACES]);
}

fn positions_put(lane: u32, half: Scores) {
    waves_put(lane, half);
}

fn positions_add(lane: u32, half: Scores, s: Scores) -> Scores {
    return waves_both(lane, half, s);
}
