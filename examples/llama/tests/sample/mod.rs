//! Analyses that no model gave: keys larger than values, few channels that carry most, and errors that fall as they should.

use wgkv_llama::pictures::{Analysis, BitsError, HeadAnalysis, LayerAnalysis, WeightAnalysis};

/// Returns an analysis with the numbers of layers, heads and channels given.
pub fn analysis(layers: u32, heads: u32, channels: u32) -> Analysis {
    let mut noise = Noise(layers);
    let layers = (0..layers)
        .map(|layer| {
            let depth = f64::from(layer + 1) / f64::from(layers);
            let mut side = |scale: f64, decay: f64, harm: f64| -> Vec<HeadAnalysis> {
                (0..heads)
                    .map(|number| {
                        let scale = scale * noise.around(0.35);
                        head(number, scale, decay * noise.around(0.2), channels, harm * noise.around(0.8))
                    })
                    .collect()
            };
            let keys = side(500.0 + 700.0 * depth, 1.2, 0.25 * (1.2 - depth));
            let values = side(4.0 + 90.0 * depth * depth, 0.55, 0.06 * (0.4 + depth));
            let key_weights = weights(44.0 + 12.0 * noise.around(0.2), channels);
            let value_weights = weights(15.0 + 20.0 * depth * noise.around(0.2), channels);
            LayerAnalysis { layer, keys, values, key_weights: Some(key_weights), value_weights: Some(value_weights) }
        })
        .collect();
    Analysis { model: "sample-1b-instruct".to_owned(), text: "wikitext-2 test".to_owned(), tokens: 4096, codec: "rotate-kv".to_owned(), group: 64, layers }
}

fn head(head: u32, scale: f64, decay: f64, channels: u32, harm: f64) -> HeadAnalysis {
    let singular_values: Vec<f64> =
        (0..channels).map(|rank| scale / f64::from(rank + 1).powf(decay) * (1.02 - f64::from(rank) / f64::from(channels))).collect();
    let frobenius = singular_values.iter().map(|value| value * value).sum::<f64>().sqrt();
    let errors = [2, 3, 4, 8].map(|bits: u32| {
        let relative = 0.45 * (0.6 + harm) / (2_f64.powi(bits as i32) - 1.0).powi(2);
        let mse = relative * frobenius * frobenius / (4096.0 * f64::from(channels));
        BitsError { bits, group: 64, relative, mse, attention: harm * 1.3 / 3_f64.powi(bits as i32 - 2) }
    });
    HeadAnalysis {
        head,
        frobenius,
        spectral: singular_values.first().copied().unwrap_or(0.0),
        singular_values,
        errors: errors.to_vec(),
        direction_gain: 1.2 + harm,
    }
}

fn weights(frobenius: f64, channels: u32) -> WeightAnalysis {
    let singular_values: Vec<f64> = (0..channels).map(|rank| frobenius / 6.0 / f64::from(rank + 1).sqrt()).collect();
    WeightAnalysis { frobenius, spectral: singular_values.first().copied().unwrap_or(0.0), singular_values }
}

/// Numbers that look random and are the same on every run.
struct Noise(u32);

impl Noise {
    /// A factor around 1, log-uniform with this spread.
    fn around(&mut self, spread: f64) -> f64 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((f64::from(self.0 >> 8) / f64::from(1 << 24) - 0.5) * 2.0 * spread).exp()
    }
}
