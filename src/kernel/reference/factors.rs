//! The factors that a query gives to the mean of the keys. Shader:
//! `shaders/part/shared/factors.wgsl`.

use super::{Constants, turn};

/// Returns the factors of `cos(t angle)` and `sin(t angle)` in what pair `p` of the mean key,
/// turned to position t, adds to the score of a query that was turned to its own position.
pub fn factors(constants: &Constants, turned: &[f32], means: &[f32], p: u32) -> [f32; 2] {
    let a = if constants.rope == 1 { p } else { 2 * p };
    let channels = [a, turn::partner(constants, a)].map(|i| i as usize);
    turn::divided(channels.map(|i| constants.scale * means[i]), channels.map(|i| turned[i]))
}
