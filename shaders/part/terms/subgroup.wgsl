// terms: what the lanes add to the terms of a page's polynomials (part slow), summed by shuffles,
// since the lanes are one subgroup. In each of the first two steps a lane hands half of its terms over
// and keeps the others, so that lanes 0 to 15 end with the even ones, as they evaluate them, and the
// others with the odd ones. The kernel puts a barrier between terms_put and terms_add.

const TERMS_SHARED = false;

var<workgroup> terms_all: array<HeadsF, 12>;

// What the lane has of the term that it keeps, and what its neighbour by `bit` has of it.
fn terms_halved(kept: HeadsF, given: HeadsF, bit: u32) -> HeadsF {
    return kept + subgroupShuffleXor(given, bit);
}

fn terms_four(x: HeadsF) -> HeadsF {
    let y = x + subgroupShuffleXor(x, 4u);
    let z = y + subgroupShuffleXor(y, 2u);
    return z + subgroupShuffleXor(z, 1u);
}

fn terms_put(lane: u32, sums: SlowSums) {
    let odd = lane >= 16u;
    let a = terms_halved(select(sums.even_0, sums.odd_0, odd), select(sums.odd_0, sums.even_0, odd), 16u);
    let b = terms_halved(select(sums.even_1, sums.odd_1, odd), select(sums.odd_1, sums.even_1, odd), 16u);
    let c = terms_halved(select(sums.even_2, sums.odd_2, odd), select(sums.odd_2, sums.even_2, odd), 16u);
    let d = terms_halved(select(sums.even_3, sums.odd_3, odd), select(sums.odd_3, sums.even_3, odd), 16u);
    let e = terms_halved(select(sums.even_4, sums.odd_4, odd), select(sums.odd_4, sums.even_4, odd), 16u);
    let f = terms_halved(select(sums.even_5, sums.odd_5, odd), select(sums.odd_5, sums.even_5, odd), 16u);
    let last = (lane & 8u) != 0u;
    let one = terms_four(terms_halved(select(a, d, last), select(d, a, last), 8u));
    let two = terms_four(terms_halved(select(b, e, last), select(e, b, last), 8u));
    let three = terms_four(terms_halved(select(c, f, last), select(f, c, last), 8u));
    if (lane % 8u == 0u) {
        let at = 3u * (lane / 8u);
        terms_all[at] = one;
        terms_all[at + 1u] = two;
        terms_all[at + 2u] = three;
    }
}

fn terms_gather(lane: u32) {}

// Adds the polynomial of the even terms in lanes 0 to 15, of the odd ones in the others.
fn terms_add(lane: u32, half: Scores) -> Scores {
    let t = 6u * (lane / 16u);
    return waves_slow(lane, half, terms_all[t], terms_all[t + 1u], terms_all[t + 2u], terms_all[t + 3u], terms_all[t + 4u], terms_all[t + 5u]);
}
