//! Rotary frequencies, as Hugging Face's LLaMA computes them.

use std::f64::consts::TAU;

use crate::config::Config;

/// Radians a position for each pair of channels, `head_dim / 2` of them.
pub fn frequencies(config: &Config) -> Vec<f64> {
    let dim = config.head_dim as f64;
    (0..config.head_dim / 2)
        .map(|pair| {
            let frequency = config.rope_theta.powf(-2.0 * pair as f64 / dim);
            let Some(scaling) = config.rope_scaling else {
                return frequency;
            };
            // How often this pair turns within the context that the model first saw.
            let turns = f64::from(scaling.original_max_tokens) * frequency / TAU;
            if turns < scaling.low_freq_factor {
                frequency / scaling.factor
            } else if turns > scaling.high_freq_factor {
                frequency
            } else {
                let kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
                (1.0 - kept) * frequency / scaling.factor + kept * frequency
            }
        })
        .collect()
}

/// The same rotation as the cache is asked for.
pub fn rope(config: &Config) -> wgkv::Rope {
    let dim = config.head_dim as u32;
    match config.rope_scaling {
        None => wgkv::Rope::new(config.rope_theta, dim),
        Some(scaling) => {
            wgkv::Rope::llama3(config.rope_theta, dim, scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_tokens)
        }
    }
}
