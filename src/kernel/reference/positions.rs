//! What the mean of the keys adds to the scores of a page, from the position alone. Shader:
//! `shaders/part/positions/added.wgsl`.

use super::position::waves;
use super::{Constants, turn};

/// Returns what it adds to the scores of page number `n` for one query head, by the token's place.
/// `query(entry)` returns the head's entries of the query codes, `term(k)` the page's terms of the
/// pairs that turn slowly.
pub fn positions(constants: &Constants, turns: &[[f32; 2]], n: u32, query: impl Fn(u32) -> f32, term: impl Fn(usize) -> f32) -> [f32; 128] {
    let c = constants;
    let pairs: Vec<[f32; 2]> = (0..c.position_waves)
        .map(|p| {
            let turn = turns[((128 + n) * c.rope_pairs + p) as usize];
            turn::divided(turn, [query(c.positions_at + 2 * p), query(c.positions_at + 2 * p + 1)])
        })
        .collect();
    let first = waves(c);
    let half = |token: usize| {
        let odd = usize::from(token >= 64);
        let wave = |p: usize| turns[first + (128 * p + token) / 2][token % 2];
        let sum = pairs.iter().enumerate().fold(0.0, |sum, (p, pair)| sum + pair[odd] * wave(p));
        if c.position_waves == c.rope_pairs {
            return sum;
        }
        let u = (token as f32 - 63.5) * (1.0 / 64.0);
        let polynomial = (0..5).rev().fold(term(6 * odd + 5), |p, k| p * (u * u) + term(6 * odd + k));
        sum + if odd == 1 { u } else { 1.0 } * polynomial
    };
    let halves: [f32; 128] = std::array::from_fn(half);
    std::array::from_fn(|t| halves[t] + if t >= 64 { halves[127 - t] } else { -halves[127 - t] })
}
