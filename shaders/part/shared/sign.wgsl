// sign: by what Centred multiplies a channel before the rotation. Twin: src/format/hadamard.rs.

// The sign of channel i before the rotation, by the sequence of Golay, Rudin and Shapiro: -1 where
// an odd number of neighbouring bits of i are both set. No row of the Hadamard matrix has many signs
// in common with it, so an offset that all channels share spreads over all coefficients instead of
// making one of them large.
fn sign_of(i: u32) -> f32 {
    return bitcast<f32>(0x3f800000u | (countOneBits(i & (i >> 1u)) << 31u));
}
