//! The two factors of the orthonormal Hadamard matrix of order `head_dim`, on rows of one or more heads. Shader: `shaders/part/hadamard.wgsl`.

use super::Constants;

/// Signs of the symmetric matrices of order 12 and 20, as in the shader: bit `j` of word `r` is set where entry `(r, j)` is -1.
const HADAMARD_12: [u32; 12] = [0x40, 0x698, 0xd30, 0xaa2, 0x586, 0xb0c, 0xfc1, 0x9da, 0x3f4, 0x76a, 0xe56, 0xcec];
const HADAMARD_20: [u32; 20] = [
    0x400, 0xd8b60, 0xb52d0, 0x6e1b0, 0xc730c, 0xaaa8a, 0x71986, 0x3b06c, 0x5685a, 0x8d836, 0xffc01, 0x27f62, 0x4bed4, 0x93db8, 0x3cf1c, 0x5d6aa, 0x9e5c6,
    0xe4cec, 0xe955a, 0xf2636,
];

/// The same for row `r` of the Sylvester matrix of order 16, whose corners are those of order 4 and 8.
fn sylvester(r: u32) -> u32 {
    (0xaaaa * (r & 1)) ^ (0x6666 * (r & 2)) ^ (0x3c3c * (r & 4)) ^ (0x1fe0 * (r & 8))
}

/// Row `r` of the factor of this order, as signs.
pub fn mask(order: u32, r: u32) -> u32 {
    match order {
        12 => HADAMARD_12[r as usize],
        20 => HADAMARD_20[r as usize],
        _ => sylvester(r),
    }
}

/// 1 or -1.
pub fn sign(mask: u32, j: u32) -> f32 {
    f32::from_bits(0x3f80_0000 | (((mask >> j) & 1) << 31))
}

fn four(row: &[f32], mask: u32, j: u32, base: u32, stride: u32) -> f32 {
    let term = |j: u32| sign(mask, j) * row[(base + j * stride) as usize];
    (term(j) + term(j + 1)) + (term(j + 2) + term(j + 3))
}

/// The factor over blocks: element `i` gathers the same place of every block of `hadamard_inner` elements.
pub fn outer(constants: &Constants, row: &[f32], i: u32) -> f32 {
    let (order, inner) = (constants.hadamard_outer, constants.hadamard_inner);
    let mask = mask(order, i % constants.head_dim / inner);
    let base = i - i % constants.head_dim + i % inner;
    let four = |j| four(row, mask, j, base, inner);
    let sum = four(0) + four(4);
    match order {
        8 => sum,
        12 => sum + four(8),
        16 => sum + (four(8) + four(12)),
        _ => sum + four(8) + (four(12) + four(16)),
    }
}

/// The factor within a block, and the scale that makes the whole orthonormal.
pub fn inner(constants: &Constants, row: &[f32], i: u32) -> f32 {
    let order = constants.hadamard_inner;
    let mask = mask(16, i % order);
    let base = i - i % order;
    let mut sum = four(row, mask, 0, base, 1);
    if order > 4 {
        sum += four(row, mask, 4, base, 1);
    }
    if order > 8 {
        sum += four(row, mask, 8, base, 1) + four(row, mask, 12, base, 1);
    }
    sum * constants.hadamard_scale
}

/// Both factors on every head of a row.
pub fn row(constants: &Constants, row: &[f32]) -> Vec<f32> {
    let half_way: Vec<f32> = (0..row.len() as u32).map(|i| outer(constants, row, i)).collect();
    (0..row.len() as u32).map(|i| inner(constants, &half_way, i)).collect()
}

#[cfg(test)]
mod tests {
    use super::{mask, sign};

    #[test]
    fn every_factor_is_symmetric_and_its_own_inverse() {
        for order in [4, 8, 12, 16, 20] {
            for r in 0..order {
                for c in 0..order {
                    assert_eq!(sign(mask(order, r), c), sign(mask(order, c), r), "{order}: ({r}, {c})");
                    let dot: f32 = (0..order).map(|j| sign(mask(order, r), j) * sign(mask(order, c), j)).sum();
                    assert_eq!(dot, if r == c { order as f32 } else { 0.0 }, "{order}: rows {r} and {c}");
                }
            }
        }
    }

    #[test]
    fn the_matrices_of_a_power_of_two_are_sylvesters() {
        for (r, c) in (0..16_u32).flat_map(|r| (0..16_u32).map(move |c| (r, c))) {
            assert_eq!(mask(16, r) >> c & 1, (r & c).count_ones() % 2);
        }
    }
}
