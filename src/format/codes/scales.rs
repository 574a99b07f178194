//! The pairs (scale, zero) of a group, as they lie in a plane. Shaders:
//! `shaders/part/scales/half.wgsl`, `shaders/part/scales/byte.wgsl` and
//! `shaders/part/scales/symmetric.wgsl`.

use super::half::unpack;
use crate::format::Scales;

/// Returns the units of 16 bytes that a group's plane takes in a page.
pub fn vecs(scales: Scales) -> u32 {
    if scales == Scales::Half { 32 } else { 16 }
}

/// What the float of a symmetric scale is multiplied by, 2^96.
const SYMMETRIC_UNIT: f32 = f32::from_bits(0x6f80_0000);

/// Returns a scale as symmetric codes store it: rounded to ten bits of fraction, ties to even, from
/// 2^-30 to below 2^33; smaller ones are 0.
pub fn symmetric_bits(scale: f32) -> u32 {
    let bits = scale.to_bits();
    let rounded = (bits + 0xfff + ((bits >> 13) & 1)) >> 13;
    if rounded < 0x1_8400 { 0 } else { (rounded - 0x1_8000).min(0xffff) }
}

/// Returns the stored pair of a token's group: `plane` holds vec4s, and the group's begin at `vec`.
pub fn raw(scales: Scales, plane: &[u32], vec: u32, t: u32) -> u32 {
    let (lane, corner) = (t % 128 / 4, t % 4);
    match scales {
        Scales::Half => plane[(4 * (vec + lane) + corner) as usize],
        Scales::Byte | Scales::Symmetric => {
            // A vec4 serves two lanes, a word two tokens.
            let word = plane[(4 * (vec + lane / 2) + 2 * (lane % 2) + corner / 2) as usize];
            (word >> (16 * (corner % 2))) & 0xffff
        }
    }
}

/// Returns the scale and zero of a stored pair; the zero is 0 where none is stored.
pub fn pair(scales: Scales, raw: u32) -> [f32; 2] {
    match scales {
        Scales::Half => unpack(raw),
        // A float of six bits of exponent, biased by 31, and ten of fraction: the upper bits of a
        // small f32, brought to its size.
        Scales::Symmetric => [f32::from_bits((raw & 0xffff) << 13) * SYMMETRIC_UNIT, 0.0],
        Scales::Byte => {
            // Below the exponent 1 the steps stay those of exponent 1, 2^-9.
            let scale = if raw & 0x78 == 0 { (raw & 7) as f32 * (1.0 / 512.0) } else { f32::from_bits((((raw >> 3) & 15) + 120) << 23 | (raw & 7) << 20) };
            [scale, f32::from((raw >> 8) as u8 as i8)]
        }
    }
}

/// Writes the stored pair of a token's group: all other tokens' stay.
pub fn put(scales: Scales, plane: &mut [u32], vec: u32, t: u32, pair: u32) {
    let first = 4 * vec as usize;
    match scales {
        Scales::Half => plane[first + (t % 128) as usize] = pair,
        Scales::Byte | Scales::Symmetric => {
            let word = &mut plane[first + (t % 128 / 2) as usize];
            let shift = 16 * (t % 2);
            *word = (*word & !(0xffff << shift)) | (pair << shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{pair, put, raw, symmetric_bits};
    use crate::format::Scales;

    #[test]
    fn what_is_put_is_taken_and_nothing_else_changes() {
        for (scales, words, mask) in [(Scales::Half, 128, u32::MAX), (Scales::Byte, 64, 0xffff)] {
            let number = |t: u32| (t + 1).wrapping_mul(0x9e37_79b9) & mask;
            let mut plane = vec![u32::MAX; 4 + words + 4];
            (0..128).for_each(|t| put(scales, &mut plane, 1, 256 + t, number(t)));
            assert!((0..128).all(|t| raw(scales, &plane, 1, t) == number(t)), "{scales}");
            assert!(plane[..4].iter().chain(&plane[4 + words..]).all(|w| *w == u32::MAX), "{scales}");
        }
    }

    #[test]
    fn symmetric_scales_keep_their_place_and_round_to_the_nearest() {
        let float = |bits: u32| pair(Scales::Symmetric, bits)[0];
        assert_eq!((float(0), float(0x400), float(0xffff)), (0.0, 2_f32.powi(-30), 2_f32.powi(33) - 2_f32.powi(22)));
        for bits in 0x400..0xffff {
            let (x, next) = (float(bits), float(bits + 1));
            let tie = f32::midpoint(x, next);
            assert_eq!((symmetric_bits(x), symmetric_bits(tie)), (bits, bits + bits % 2), "{x} and the tie {tie}");
            assert_eq!((symmetric_bits(tie.next_down()), symmetric_bits(tie.next_up())), (bits, bits + 1), "beside the tie {tie}");
        }
        assert_eq!([0.0, 1e-30, 2_f32.powi(-31)].map(symmetric_bits), [0; 3]);
        assert_eq!([1e10, 1e30, f32::MAX].map(symmetric_bits), [0xffff; 3]);
    }

    #[test]
    fn bytes_are_e4m3_floats_and_signed_integers() {
        for (raw, wanted) in [(0x7e, 448.0), (0x38, 1.0), (0x01, 1.0 / 512.0), (0x07, 7.0 / 512.0), (0x08, 1.0 / 64.0), (0x3d, 1.625), (0, 0.0)] {
            assert_eq!(pair(Scales::Byte, raw), [wanted, 0.0]);
        }
        assert_eq!(pair(Scales::Byte, 0x8038), [1.0, -128.0]);
        assert_eq!(pair(Scales::Byte, 0x7f38), [1.0, 127.0]);
    }
}
