//! What the mean of the keys adds to the scores of a page, from the position alone. Shader: `shaders/part/position.wgsl`.

use super::{Constants, turn};

/// What it adds to the scores of the page of number `n` for one query head, whose factors `query(entry)` tells: by the token's place.
pub fn position(constants: &Constants, turns: &[[f32; 2]], n: u32, query: impl Fn(u32) -> f32) -> [f32; 128] {
    let c = constants;
    let tables = (c.position_centre + c.rope_pairs).next_multiple_of(2) as usize;
    let number = |i: usize| turns[tables + i / 2][i % 2];
    let pairs: Vec<[f32; 2]> = (0..c.rope_pairs)
        .map(|p| {
            let turn = turns[((128 + n) * c.rope_pairs + p) as usize];
            turn::divided(turn, [query(c.positions_at + 2 * p), query(c.positions_at + 2 * p + 1)])
        })
        .collect();
    // The terms of even and of odd powers.
    let waves = c.position_waves as usize;
    let term = |lane: usize| {
        let odd = usize::from(lane % 16 >= 6);
        (0..c.position_fits as usize).fold(0.0, |sum, w| {
            let share = |n: usize| {
                let p = (waves + 8 * w + lane / 16 + 2 * n).min(pairs.len() - 1);
                number(4 * ((waves + w) * 32 + lane) + n) * pairs[p][odd]
            };
            sum + ((share(0) + share(1)) + (share(2) + share(3)))
        })
    };
    let terms: [f32; 12] = std::array::from_fn(|k| term(k) + term(k + 16));
    let half = |token: usize| {
        let odd = usize::from(token >= 64);
        let sum = (0..waves).fold(0.0, |sum, p| sum + pairs[p][odd] * number(128 * p + token));
        if c.position_fits == 0 {
            return sum;
        }
        let u = (token as f32 - 63.5) * (1.0 / 64.0);
        let polynomial = terms[6 * odd..][..5].iter().rev().fold(terms[6 * odd + 5], |p, term| p * (u * u) + term);
        sum + if odd == 1 { u } else { 1.0 } * polynomial
    };
    let halves: [f32; 128] = std::array::from_fn(half);
    std::array::from_fn(|t| halves[t] + if t >= 64 { halves[127 - t] } else { -halves[127 - t] })
}
