//! The means and weights of a KV head, as the codec Centred takes them. Shader:
//! `shaders/part/shared/centre.wgsl`.

use super::Constants;
use crate::format::hadamard::channel_sign;

/// The means of a head's key and value channels, and what they are multiplied by before the rotation.
#[derive(Clone, Debug, PartialEq)]
pub struct Centred {
    /// Means of the keys, before RoPE.
    pub key_means: Vec<f32>,
    /// Weights of the keys, after RoPE, each with the sign of its channel.
    pub weights: Vec<f32>,
    /// Means of the values.
    pub value_means: Vec<f32>,
    /// Signs of the value channels.
    pub value_signs: Vec<f32>,
}

impl Centred {
    /// Reads those of a head from the marks; other codecs have means of 0 and weights of 1.
    pub fn of(constants: &Constants, marks: &[u32], head: u32) -> Self {
        let d = constants.head_dim as usize;
        if !constants.centred {
            return Self { key_means: vec![0.0; d], weights: vec![1.0; d], value_means: vec![0.0; d], value_signs: vec![1.0; d] };
        }
        let row = |what: usize| marks[(3 * head as usize + what) * d..][..d].iter().map(|word| f32::from_bits(*word)).collect();
        Self { key_means: row(0), weights: row(1), value_means: row(2), value_signs: (0..constants.head_dim).map(channel_sign).collect() }
    }
}
