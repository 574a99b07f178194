//! The symbols of a trellis code ([`Code::Trellis`](crate::Code::Trellis)) for numbers that share a
//! scale. Shader: `shaders/part/shared/trellis.wgsl`.
//!
//! The numbers become integers first, so that every device compares the same errors and finds the
//! same symbols. Then the Viterbi algorithm runs twice, from both ends of the group at once: first
//! without an end, over the group turned by half of it, to find the two symbols that stand before
//! the first number; then beginning and ending with these.
//!
//! A state is the two symbols before a number. Both directions number the states so that a step is
//! the same for both: `[p][q]` is, on the way up, newer symbol p and older symbol `swap(q)`; on the
//! way down, newer symbol q and older symbol `swap(p)`. A step takes `[b][m]` to `[n][swap(b)]`.

pub use crate::format::codes::trellis::{ZERO, channel, channel_levels, level, levels, word_levels};

use super::fit::{Fit, Order};
use crate::format::codes::scales::symmetric_bits;

/// The step between decoded numbers in the root mean square of their group.
pub const STEP: f32 = 0.44;

/// Numbers are compared with levels in such shares of a step.
pub const SHARES: f32 = 16.0;

/// What a path costs that must not be taken.
const FAR: i32 = 1 << 18;

/// Errors of the paths to the states.
type Paths = [[i32; 4]; 4];

/// Exchanges 2 and 3: what the older symbol is in a level.
fn swap(symbol: usize) -> usize {
    symbol ^ symbol >> 1
}

/// Returns the paths after one more number, and the m that each came from.
fn step(paths: &Paths, y: i32, down: bool) -> (Paths, [[u8; 4]; 4]) {
    // The squared error of level v, in shares of a step, without what all levels have in common.
    let error = |v: usize| {
        let twice = 2 * v as i32 - 9;
        twice * (4 * twice - y)
    };
    let (mut next, mut links) = ([[0; 4]; 4], [[0; 4]; 4]);
    for (n, b) in (0..4).flat_map(|n| (0..4).map(move |b| (n, b))) {
        let symbol = if down { swap(b) } else { b };
        let reached = |m: usize| paths[b][m] + error(symbol + 2 * (n ^ m ^ (symbol & 1) << 1));
        // Of equals the first.
        let least = (0..4).min_by_key(|m| reached(*m)).unwrap_or(0);
        (next[n][swap(b)], links[n][swap(b)]) = (reached(least), least as u8);
    }
    (next, links)
}

/// Returns the state of least error where both ways meet, as the way up numbers it. Of equals the
/// first.
fn meet(up: &Paths, down: &Paths) -> [usize; 2] {
    (0..16).map(|i| [i / 4, i % 4]).min_by_key(|[p, q]| up[*p][*q] + down[*q][*p]).unwrap_or([0; 2])
}

/// Returns the symbols whose levels are nearest to these numbers, which are in sixteenths of a step
/// and from -127 to 127: a multiple of 8 of them.
pub fn symbols(numbers: &[i32]) -> Vec<u32> {
    let half = numbers.len() / 2;
    // The numbers of a way in the order in which it comes to them.
    let way = |down: bool| -> Vec<usize> { if down { (0..numbers.len()).rev().collect() } else { (0..numbers.len()).collect() } };
    let open = |down: bool| way(down)[half..].iter().fold([[0; 4]; 4], |paths, i| step(&paths, numbers[*i], down).0);
    let [p, q] = meet(&open(false), &open(true));
    let walk = |down: bool| {
        let mut paths = [[FAR; 4]; 4];
        let [first, second] = if down { [q, p] } else { [p, q] };
        paths[first][second] = 0;
        let mut links = Vec::new();
        for i in &way(down)[..half] {
            let (next, from) = step(&paths, numbers[*i], down);
            links.push(from);
            paths = next;
        }
        (paths, links)
    };
    let ((up, up_links), (down, down_links)) = (walk(false), walk(true));
    let [p, q] = meet(&up, &down);
    let mut symbols = vec![0; numbers.len()];
    for (is_down, links, mut state) in [(false, up_links, [p, q]), (true, down_links, [q, p])] {
        for (i, from) in way(is_down).iter().zip(&links).rev() {
            let [p, q] = state;
            let m = from[p][q] as usize;
            symbols[*i] = if is_down { m } else { p } as u32;
            state = [swap(q), m];
        }
    }
    symbols
}

/// Steps below have scales that are stored as 0.
const SMALLEST: f32 = 1.0 / (1_u64 << 40) as f32;

/// Sums of squares beyond would make steps that are no numbers.
const LARGEST: f32 = 1e38;

/// Returns the inverse of a step, in [`SHARES`], of numbers with this sum of squares.
pub fn inverse(squares: f32, count: usize) -> f32 {
    SHARES / (STEP * (squares.min(LARGEST) / count as f32).sqrt()).max(SMALLEST)
}

/// Returns a number as an integer in shares of a step.
pub fn share(x: f32, inverse: f32) -> i32 {
    (x * inverse).clamp(-127.0, 127.0).round_ties_even() as i32
}

/// Fits the numbers of a group, by channel, with codes of two bits.
pub fn fit(order: Order, key: bool, numbers: &[f32]) -> Fit {
    let squares = order.sum(numbers, &|x| x * x).min(LARGEST);
    let inverse = inverse(squares, numbers.len());
    let shares: Vec<i32> = (0..numbers.len()).map(|i| share(numbers[channel(key, i)], inverse)).collect();
    let mut codes = vec![0; numbers.len()];
    symbols(&shares).into_iter().enumerate().for_each(|(i, symbol)| codes[channel(key, i)] = symbol);
    let products: Vec<f32> = numbers.iter().zip(channel_levels(key, &codes)).map(|(x, level)| x * (level as f32 - ZERO)).collect();
    let scale = scale(squares, order.sum(&products, &|x| x), inverse);
    Fit { codes, pair: symmetric_bits(scale), beyond: scale > 8_585_740_288.0 }
}

/// Returns the scale that keeps inner products their size, near the step.
fn scale(squares: f32, products: f32, inverse: f32) -> f32 {
    let step = SHARES / inverse;
    (squares / products.max(1e-30)).max(0.9 * step).min(1.3 * step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same numbers over and over.
    fn numbers(seed: u32, n: usize) -> Vec<i32> {
        let mut state = seed.wrapping_mul(2_654_435_769) | 1;
        (0..n)
            .map(|_| {
                // A sum of uniform numbers is nearly normal.
                let sum: i32 = (0..6)
                    .map(|_| {
                        state ^= state << 13;
                        state ^= state >> 17;
                        state ^= state << 5;
                        (state % 51) as i32 - 25
                    })
                    .sum();
                sum.clamp(-127, 127)
            })
            .collect()
    }

    fn cost(numbers: &[i32], symbols: &[u32]) -> i32 {
        let error = |(y, v): (&i32, u32)| (2 * v as i32 - 9) * (4 * (2 * v as i32 - 9) - y);
        numbers.iter().zip(levels(symbols)).map(error).sum()
    }

    /// The least error of symbols that are led in by a state, `[newer, older]`, and lead out to one
    /// where `out` is not none, by the plain recursion.
    fn least(numbers: &[i32], state: Option<[u32; 2]>, out: Option<[u32; 2]>) -> i32 {
        let mut paths = [[state.map_or(0, |_| 1 << 24); 4]; 4];
        if let Some([b, c]) = state {
            paths[b as usize][c as usize] = 0;
        }
        for y in numbers {
            let mut next = [[i32::MAX; 4]; 4];
            for (a, b, c) in (0..64_u32).map(|i| (i / 16, i / 4 % 4, i % 4)) {
                let twice = 2 * level(a, b, c) as i32 - 9;
                let reached = paths[b as usize][c as usize] + twice * (4 * twice - y);
                let to = &mut next[a as usize][b as usize];
                *to = (*to).min(reached);
            }
            paths = next;
        }
        out.map_or_else(|| paths.as_flattened().iter().copied().min().unwrap_or(0), |[b, c]| paths[b as usize][c as usize])
    }

    #[test]
    fn no_symbols_between_the_same_ends_are_nearer() {
        for (seed, n) in (0..60).flat_map(|seed| [64, 80, 96, 128].map(|n| (seed, n))) {
            let numbers = numbers(seed + 1, n);
            let symbols = symbols(&numbers);
            let ends = [symbols[n - 1], symbols[n - 2]];
            assert_eq!(cost(&numbers, &symbols), least(&numbers, Some(ends), Some(ends)), "{numbers:?}");
        }
    }

    #[test]
    fn the_ends_are_those_of_the_turned_group() {
        for seed in 0..60 {
            let numbers = numbers(seed + 1, 64);
            let symbols = symbols(&numbers);
            let [low, high] = [&numbers[..32], &numbers[32..]];
            let best = least(&[high, low].concat(), None, None);
            // With these two symbols before the first number, the turned group costs no more.
            let ends = Some([symbols[63], symbols[62]]);
            assert_eq!(least(high, None, ends) + least(low, ends, None), best);
        }
    }

    #[test]
    fn a_code_s_own_levels_come_back() {
        let symbols: Vec<u32> = numbers(5, 128).iter().map(|x| (x & 3) as u32).collect();
        let exact: Vec<i32> = levels(&symbols).iter().map(|v| 16 * *v as i32 - 72).collect();
        assert_eq!(super::symbols(&exact), symbols);
    }
}
