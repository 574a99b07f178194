//! Scales and zeros of keys and values as the kernels take them. Shaders:
//! `shaders/part/scales/half.wgsl`, `shaders/part/scales/byte.wgsl` and
//! `shaders/part/scales/symmetric.wgsl`.

use super::Constants;
use super::trellis::ZERO;
use crate::format::Scales;
pub use crate::format::codes::scales::{pair, put, raw, vecs};

/// Returns scale and zero of a token's group in a plane, where both are stored.
pub fn take(constants: &Constants, plane: &[u32], vec: u32, t: u32) -> [f32; 2] {
    pair(constants.scales, raw(constants.scales, plane, vec, t))
}

/// Returns scale and zero of the keys of a token's group in a plane, for codes as they lie in
/// memory: those of eight bits are signed.
pub fn key(constants: &Constants, plane: &[u32], vec: u32, t: u32) -> [f32; 2] {
    let bits = constants.key_bits;
    symmetric(constants, if bits == 8 { -0.5 } else { middle(bits, constants.key_trellis) }, take(constants, plane, vec, t))
}

/// Returns scale and zero of the values of a token's group in a plane.
pub fn value(constants: &Constants, plane: &[u32], vec: u32, t: u32) -> [f32; 2] {
    symmetric(constants, middle(constants.value_bits, constants.value_trellis), take(constants, plane, vec, t))
}

/// Returns the level between the two middle codes.
fn middle(bits: u32, trellis: bool) -> f32 {
    if trellis { ZERO } else { (1_u32 << (bits - 1)) as f32 - 0.5 }
}

fn symmetric(constants: &Constants, zero: f32, [scale, stored]: [f32; 2]) -> [f32; 2] {
    [scale, if constants.scales == Scales::Symmetric { zero } else { stored }]
}
