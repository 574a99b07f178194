//! The orthonormal Hadamard matrices that the codecs rotate by: their factors as signs, and the
//! exact products in f64. Orders of key channels that files hold come from these.

/// Returns Hadamard's factors (outer, inner) of a head dimension, as in
/// `shaders/part/shared/hadamard.wgsl`.
pub fn factors(head_dim: u32) -> (u32, u32) {
    match head_dim {
        80 => (20, 4),
        96 => (12, 8),
        192 => (12, 16),
        256 => (16, 16),
        512 => (32, 16),
        _ => (head_dim / 8, 8),
    }
}

/// Signs of the symmetric matrices of order 12 and 20, as in the shader: bit `j` of word `r` is set
/// where entry `(r, j)` is -1.
const HADAMARD_12: [u32; 12] = [0x40, 0x698, 0xd30, 0xaa2, 0x586, 0xb0c, 0xfc1, 0x9da, 0x3f4, 0x76a, 0xe56, 0xcec];
const HADAMARD_20: [u32; 20] = [
    0x400, 0xd8b60, 0xb52d0, 0x6e1b0, 0xc730c, 0xaaa8a, 0x71986, 0x3b06c, 0x5685a, 0x8d836, 0xffc01, 0x27f62, 0x4bed4, 0x93db8, 0x3cf1c, 0x5d6aa, 0x9e5c6,
    0xe4cec, 0xe955a, 0xf2636,
];

/// Returns the same for row `r` of the Sylvester matrix of order 16, whose corners are those of
/// order 4 and 8.
fn sylvester(r: u32) -> u32 {
    (0xaaaa * (r & 1)) ^ (0x6666 * (r & 2)) ^ (0x3c3c * (r & 4)) ^ (0x1fe0 * (r & 8))
}

/// Returns row `r` of the factor of this order, as signs.
pub fn mask(order: u32, r: u32) -> u32 {
    match order {
        12 => HADAMARD_12[r as usize],
        20 => HADAMARD_20[r as usize],
        // Four of order 16, the last of the other sign.
        32 => (sylvester(r) * 0x10001) ^ (0x0fff_f000 * (r & 16)),
        _ => sylvester(r),
    }
}

/// Returns the sign by which `Centred` multiplies a channel before the rotation: that of the
/// sequence of Golay, Rudin and Shapiro, -1 where an odd number of neighbouring bits of the channel
/// are both set. Few rows of the matrix have many signs in common with it, so an offset that all
/// channels share spreads over all coefficients. Shader:
/// `shaders/part/shared/sign.wgsl`.
pub fn channel_sign(channel: u32) -> f32 {
    sign((channel & (channel >> 1)).count_ones(), 0)
}

/// Returns 1 or -1: entry `j` of a row of signs.
pub fn sign(mask: u32, j: u32) -> f32 {
    f32::from_bits(0x3f80_0000 | (((mask >> j) & 1) << 31))
}

/// Returns a row times the orthonormal Hadamard matrix of order `row.len()`, as the dense product:
/// entry `(i, j)` is the product of the factors' entries over the square root of the order. For a
/// power of two, whatever the factors, that is Sylvester's matrix: the sign says whether `i` and
/// `j` have an odd number of bits in common.
pub fn rotate_exact(row: &[f64]) -> Vec<f64> {
    let n = row.len() as u32;
    let (outer, inner) = factors(n);
    let entry = |i: u32, j: u32| {
        if n.is_power_of_two() {
            return if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        }
        f64::from(sign(mask(outer, i / inner), j / inner) * sign(mask(16, i % inner), j % inner))
    };
    (0..n).map(|i| (0..n).map(|j| entry(i, j) * row[j as usize]).sum::<f64>() / f64::from(n).sqrt()).collect()
}

/// Returns the keys of one token of the KV heads that are rotated together, times
/// `H_heads (x) H_head_dim`, the orthonormal matrix of order `row.len()`: RotateKV's rotation over
/// a group of heads. Applied twice, it gives the row back.
pub fn rotate_group_exact(row: &[f64], head_dim: u32) -> Vec<f64> {
    let heads = row.len() as u32 / head_dim;
    let rotated: Vec<Vec<f64>> = row.chunks_exact(head_dim as usize).map(rotate_exact).collect();
    let mix = |head: u32, i: usize| rotated.iter().zip(0..).map(|(other, j)| f64::from(sign(mask(16, head), j)) * other[i]).sum::<f64>();
    (0..heads).flat_map(|head| (0..head_dim as usize).map(move |i| (head, i))).map(|(head, i)| mix(head, i) / f64::from(heads).sqrt()).collect()
}

#[cfg(test)]
mod tests {
    use super::{channel_sign, factors, mask, rotate_exact, sign};

    #[test]
    fn signs_make_no_coefficient_large() {
        // Of equal numbers without signs one coefficient is the root of the channels.
        for (head_dim, most) in [(64, 1.0), (80, 1.79), (96, 2.45), (128, 1.42), (192, 2.31), (256, 1.0), (512, 1.42)] {
            let row: Vec<f64> = (0..head_dim).map(|i| f64::from(channel_sign(i))).collect();
            let largest = rotate_exact(&row).into_iter().map(f64::abs).fold(0.0, f64::max);
            assert!(largest <= most + 1e-9, "{head_dim}: {largest}");
        }
    }

    #[test]
    fn every_factor_is_symmetric_and_its_own_inverse() {
        for order in [4, 8, 12, 16, 20, 32] {
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

    #[test]
    fn rotating_twice_returns_the_row() {
        for n in [64, 80, 96, 128, 192, 256, 512, 1024] {
            let row: Vec<f64> = (0..n).map(|i| f64::from(i * i % 17) - 8.0).collect();
            let twice = rotate_exact(&rotate_exact(&row));
            assert!(row.iter().zip(&twice).all(|(a, b)| (a - b).abs() < 1e-12));
        }
    }

    #[test]
    fn the_factors_of_a_head_give_sylvesters_matrix() {
        for n in [64, 128, 256, 512] {
            let (outer, inner) = factors(n);
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let entry = sign(mask(outer, i / inner), j / inner) * sign(mask(16, i % inner), j % inner);
                assert_eq!(entry, if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }, "{n}: ({i}, {j})");
            }
        }
    }
}
