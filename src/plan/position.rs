//! What the mean of the keys adds to a score, in closed form: tables for the parts `slow` and
//! `waves` of `shaders/part/shared/`.
//!
//! A key is stored without its mean `m`. What is missing in the score of query `q` at token `t` is
//! `q . RoPE_t(m)`, which is `sum_p a_p cos(t angle_p) + b_p sin(t angle_p)` over the pairs of
//! RoPE: no memory is read for it, only the query's `a` and `b`.

use crate::format::{PAGE_TOKENS, Rope};

/// Positions from the middle of a page to its ends, and half of one more.
const REACH: f64 = 64.0;

/// Pairs that turn by no more than this between the middle of a page and its ends are polynomials
/// of [`TERMS`] terms, even and odd: the error is 4^12 / 12! / 2^11, 2e-5 of the pair's share, at
/// most.
const SLOW: f64 = 4.0;

/// Terms of a polynomial in the square of the place.
const TERMS: usize = 6;

/// Lanes of a unit.
const LANES: usize = 32;

/// Returns how many of a RoPE's first pairs are summed one by one: all that turn fast are among
/// them.
pub(crate) fn waves(rope: &Rope) -> usize {
    rope.frequencies().iter().rposition(|f| f.abs() * REACH > SLOW).map_or(0, |last| last + 1)
}

/// Returns how many pairs of f32 the tables have: the turns by 63.5 positions (an even number of
/// them, the last perhaps unused), then the waves, the polynomials, and the turns of the slow pairs
/// by each number of pages.
pub(crate) fn pairs(rope: &Rope, pages: usize) -> usize {
    let (pairs, waves) = (rope.frequencies().len(), waves(rope));
    pairs.next_multiple_of(2) + 2 * LANES * waves + (TERMS + pages) * (pairs - waves)
}

/// Returns the terms of the polynomial in y, 0 to 1, that meets a function at Chebyshev's nodes.
fn fit(of: impl Fn(f64) -> f64) -> [f64; TERMS] {
    let node = |k: usize| 0.5 + 0.5 * (std::f64::consts::PI * (k as f64 + 0.5) / TERMS as f64).cos();
    // Newton's divided differences, then from Newton's form to powers.
    let nodes: [f64; TERMS] = std::array::from_fn(node);
    let mut differences = nodes.map(of);
    for order in 1..TERMS {
        for k in (order..TERMS).rev() {
            differences[k] = (differences[k] - differences[k - 1]) / (nodes[k] - nodes[k - order]);
        }
    }
    let mut terms = [0.0; TERMS];
    for k in (0..TERMS).rev() {
        for power in (1..TERMS).rev() {
            terms[power] = terms[power - 1] - nodes[k] * terms[power];
        }
        terms[0] = differences[k] - nodes[k] * terms[0];
    }
    terms
}

/// Returns the tables, [`pairs`] pairs.
pub(crate) fn tables(rope: &Rope, pages: usize) -> Vec<[f32; 2]> {
    let frequencies = rope.frequencies();
    let waves = waves(rope);
    let place = |token: usize| token as f64 - 63.5;
    let mut centre: Vec<[f32; 2]> = frequencies.iter().map(|f| (f * 63.5).sin_cos()).map(|(sin, cos)| [cos as f32, sin as f32]).collect();
    centre.resize(centre.len().next_multiple_of(2), [1.0, 0.0]);
    let mut numbers = Vec::new();
    for frequency in &frequencies[..waves] {
        // Four tokens a lane: cosines before the middle, sines after it.
        numbers.extend((0..4 * LANES).map(|token| {
            let angle = frequency * place(token);
            if token < 64 { angle.cos() } else { angle.sin() }
        }));
    }
    for frequency in &frequencies[waves..] {
        let angle = |y: f64| frequency * REACH * y.sqrt();
        numbers.extend(fit(|y| angle(y).cos()));
        // The sine is divided by the place, which is safe since no node is at 0.
        numbers.extend(fit(|y| angle(y).sin() / y.sqrt()));
    }
    for frequency in &frequencies[waves..] {
        let turns = (0..pages).map(|n| (PAGE_TOKENS as usize * n) as f64 * frequency);
        numbers.extend(turns.map(f64::sin_cos).flat_map(|(sin, cos)| [cos, sin]));
    }
    centre.extend(numbers.chunks_exact(2).map(|two| [two[0] as f32, two[1] as f32]));
    centre
}

#[cfg(test)]
mod tests {
    use super::{REACH, TERMS, fit, pairs, tables, waves};
    use crate::format::Rope;

    #[test]
    fn polynomials_meet_the_waves_they_stand_for() {
        for turn in [4.0_f64, 2.5, 1.0, 0.1, 1e-4] {
            let (even, odd) = (fit(|y| (turn * y.sqrt()).cos()), fit(|y| (turn * y.sqrt()).sin() / y.sqrt()));
            let at = |terms: [f64; TERMS], y: f64| terms.iter().rev().fold(0.0, |sum, term| sum * y + term);
            for token in 64..128 {
                let x = (f64::from(token) - 63.5) / REACH;
                assert!((at(even, x * x) - (turn * x).cos()).abs() < 2e-5);
                assert!((x * at(odd, x * x) - (turn * x).sin()).abs() < 2e-5);
            }
        }
    }

    #[test]
    fn tables_are_as_long_as_they_say() {
        let ropes = [
            Rope::new(1e4, 128),
            Rope::new(5e5, 128),
            Rope::new(1e4, 64),
            Rope::new(1e4, 6),
            Rope::new(500.0, 256),
            Rope::llama3(5e5, 128, 8.0, 1.0, 4.0, 8192),
        ];
        for rope in ropes {
            assert_eq!(tables(&rope, 7).len(), pairs(&rope, 7), "{rope:?}");
        }
        assert_eq!(waves(&Rope::new(1e4, 128)), 20);
        assert_eq!(waves(&Rope::new(5e5, 128)), 14);
    }
}
