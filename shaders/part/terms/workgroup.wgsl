// terms: what the lanes add to the terms of a page's polynomials (part slow), through workgroup
// memory: the kernel puts a barrier between terms_put and terms_gather, and one before terms_add.

const TERMS_SHARED = true;

// What each lane adds to each term: [term, lane], in rows of 33 so that lanes that read different
// terms meet different banks. Then each term in two halves: [half, term].
var<workgroup> terms_shares: array<HeadsF, 396>;
var<workgroup> terms_halves: array<HeadsF, 24>;

fn terms_put(lane: u32, sums: SlowSums) {
    terms_shares[lane] = sums.even_0;
    terms_shares[33u + lane] = sums.even_1;
    terms_shares[66u + lane] = sums.even_2;
    terms_shares[99u + lane] = sums.even_3;
    terms_shares[132u + lane] = sums.even_4;
    terms_shares[165u + lane] = sums.even_5;
    terms_shares[198u + lane] = sums.odd_0;
    terms_shares[231u + lane] = sums.odd_1;
    terms_shares[264u + lane] = sums.odd_2;
    terms_shares[297u + lane] = sums.odd_3;
    terms_shares[330u + lane] = sums.odd_4;
    terms_shares[363u + lane] = sums.odd_5;
}

fn terms_lanes(at: u32) -> HeadsF {
    return (terms_shares[at] + terms_shares[at + 1u]) + (terms_shares[at + 2u] + terms_shares[at + 3u]);
}

fn terms_gather(lane: u32) {
    if (lane < 24u) {
        let at = 33u * (lane % 12u) + 16u * (lane / 12u);
        terms_halves[lane] = (terms_lanes(at) + terms_lanes(at + 4u)) + (terms_lanes(at + 8u) + terms_lanes(at + 12u));
    }
}

// Adds the polynomial of the even terms in lanes 0 to 15, of the odd ones in the others.
fn terms_add(lane: u32, half: Scores) -> Scores {
    let t = 6u * (lane / 16u);
    return waves_slow(lane, half, terms_halves[t] + terms_halves[12u + t], terms_halves[t + 1u] + terms_halves[13u + t],
        terms_halves[t + 2u] + terms_halves[14u + t], terms_halves[t + 3u] + terms_halves[15u + t],
        terms_halves[t + 4u] + terms_halves[16u + t], terms_halves[t + 5u] + terms_halves[17u + t]);
}
