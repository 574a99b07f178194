//! RoPE by a table of turns. Shader: `shaders/part/shared/turn.wgsl`.

use super::Constants;

/// Returns cosine and sine at `128 * high + low`, from those of the two positions.
pub fn compose(high: [f32; 2], low: [f32; 2]) -> [f32; 2] {
    [high[0] * low[0] - high[1] * low[1], high[1] * low[0] + high[0] * low[1]]
}

/// Turns the factors of the cosine and the sine of an angle into those of the angle beyond a turn.
pub fn divided(turn: [f32; 2], factors: [f32; 2]) -> [f32; 2] {
    [factors[0] * turn[0] + factors[1] * turn[1], factors[1] * turn[0] - factors[0] * turn[1]]
}

/// Returns which pair turns channel `i`; `rope_pairs` where none does.
pub fn pair(constants: &Constants, i: u32) -> u32 {
    let pairs = constants.rope_pairs;
    if constants.rope == 0 || i >= 2 * pairs {
        return pairs;
    }
    if constants.rope == 1 { i % pairs } else { i / 2 }
}

/// Returns the channel that shares channel `i`'s pair.
pub fn partner(constants: &Constants, i: u32) -> u32 {
    if constants.rope == 1 {
        return if i < constants.rope_pairs { i + constants.rope_pairs } else { i - constants.rope_pairs };
    }
    i ^ 1
}

/// Returns the sign of the partner's share: the first channel of a pair loses it, the second gains
/// it.
pub fn sign(constants: &Constants, i: u32) -> f32 {
    let first = if constants.rope == 1 { i < constants.rope_pairs } else { i & 1 == 0 };
    if first { -1.0 } else { 1.0 }
}

/// Returns a row of `head_dim` numbers, turned to its position.
pub fn row(constants: &Constants, turns: &[[f32; 2]], row: &[f32], position: u32) -> Vec<f32> {
    turned(constants, turns, row, position, |turn, x, sign, partner| x * turn[0] + sign * partner * turn[1])
}

/// Returns the caller's query as it is at its position: turned, unless it comes so.
pub fn query(constants: &Constants, turns: &[[f32; 2]], query: Vec<f32>, position: u32) -> Vec<f32> {
    if constants.turned { query } else { row(constants, turns, &query, position) }
}

/// Returns a row that was turned to its position, turned back.
pub fn back(constants: &Constants, turns: &[[f32; 2]], row: &[f32], position: u32) -> Vec<f32> {
    turned(constants, turns, row, position, |turn, x, sign, partner| x * turn[0] - sign * partner * turn[1])
}

fn turned(constants: &Constants, turns: &[[f32; 2]], row: &[f32], position: u32, by: impl Fn([f32; 2], f32, f32, f32) -> f32) -> Vec<f32> {
    let pairs = constants.rope_pairs;
    (0..constants.head_dim)
        .map(|i| {
            let x = row[i as usize];
            let pair = pair(constants, i);
            if pair >= pairs {
                return x;
            }
            by(at(constants, turns, pair, position), x, sign(constants, i), row[partner(constants, i) as usize])
        })
        .collect()
}

/// Returns cosine and sine of one pair at a position, from the table.
pub fn at(constants: &Constants, turns: &[[f32; 2]], pair: u32, position: u32) -> [f32; 2] {
    let entry = |row: u32| turns[(row * constants.rope_pairs + pair) as usize];
    compose(entry(128 + position / 128), entry(position % 128))
}
