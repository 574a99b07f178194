// slow: what the pairs of RoPE that turn slowly add to the scores of a page, as terms of two
// polynomials, for kernel `position` and positions/made. Reads the kernel's binding `turns`, for the
// tables that src/plan/position.rs makes. Needs turn_at and factors.

override ROPE_PAIRS: u32;
override POSITION_CENTRE: u32; // in turns, the turn by 63.5 positions; after it follow the waves, the polynomials, and the slow pairs' turns by pages
override POSITION_WAVES: u32;  // first pairs, which turn too fast
override POSITION_PAGES: u32;  // pages that a sequence can have

// A pair that turns slowly: its factors for the middle of a page, and the polynomials that stand
// for its waves there.
struct Slow { here: Factors, f: vec4<f32>, g: vec4<f32>, h: vec4<f32> }

struct SlowSums {
    even_0: HeadsF, even_1: HeadsF, even_2: HeadsF, even_3: HeadsF, even_4: HeadsF, even_5: HeadsF,
    odd_0: HeadsF, odd_1: HeadsF, odd_2: HeadsF, odd_3: HeadsF, odd_4: HeadsF, odd_5: HeadsF,
}

// Pair p at page n, from its factors for the middle of page 0; beyond the last pair, one whose
// factors are 0.
fn slow_take(p: u32, n: u32, middle: Factors) -> Slow {
    let pair = min(p, ROPE_PAIRS - 1u) - POSITION_WAVES;
    let table = (POSITION_CENTRE + ROPE_PAIRS + 1u) / 2u + 32u * POSITION_WAVES;
    // By pair, then by page: consecutive invocations read consecutive numbers.
    let turn = turn_at(2u * (table + 3u * (ROPE_PAIRS - POSITION_WAVES)) + pair * POSITION_PAGES + n);
    let here = factors_turn(middle, select(vec2<f32>(0.0), turn, p < ROPE_PAIRS));
    return Slow(here, turns[table + 3u * pair], turns[table + 3u * pair + 1u], turns[table + 3u * pair + 2u]);
}

fn slow_add(sums: SlowSums, slow: Slow) -> SlowSums {
    let a = slow.here.a;
    let b = slow.here.b;
    return SlowSums(
        sums.even_0 + slow.f.x * a, sums.even_1 + slow.f.y * a, sums.even_2 + slow.f.z * a,
        sums.even_3 + slow.f.w * a, sums.even_4 + slow.g.x * a, sums.even_5 + slow.g.y * a,
        sums.odd_0 + slow.g.z * b, sums.odd_1 + slow.g.w * b, sums.odd_2 + slow.h.x * b,
        sums.odd_3 + slow.h.y * b, sums.odd_4 + slow.h.z * b, sums.odd_5 + slow.h.w * b);
}
