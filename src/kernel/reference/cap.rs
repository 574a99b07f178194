//! Soft-capping of scores. Shader: `shaders/part/shared/cap.wgsl`.

use super::Constants;

/// Returns a score capped, both in log2 units.
pub fn cap(constants: &Constants, score: f32) -> f32 {
    if constants.soft_cap == 0.0 || score.abs() > 3e38 {
        return score;
    }
    let e = (constants.cap_slope * score.abs()).exp2();
    constants.soft_cap * score.signum() * ((1.0 - e) / (1.0 + e))
}
