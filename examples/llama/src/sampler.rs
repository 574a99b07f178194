//! From scores to a token: greedy, or nucleus sampling.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Picks tokens; the same seed picks the same ones.
pub struct Sampler {
    temperature: f32,
    top_p: f32,
    random: StdRng,
}

impl Sampler {
    /// Temperature 0 is greedy. `top_p` keeps the likeliest tokens until their probabilities sum to it.
    pub fn new(temperature: f32, top_p: f32, seed: u64) -> Self {
        Self { temperature, top_p, random: StdRng::seed_from_u64(seed) }
    }

    /// The next token for these scores.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token);
        if self.temperature <= 0.0 {
            return best as u32;
        }
        let top = logits[best];
        let mut candidates: Vec<(u32, f32)> =
            logits.iter().enumerate().map(|(token, &logit)| (token as u32, ((logit - top) / self.temperature).exp())).collect();
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f32 = candidates.iter().map(|candidate| candidate.1).sum();
        let mut kept = 0.0;
        let count = candidates
            .iter()
            .take_while(|candidate| {
                let wanted = kept < self.top_p * total;
                kept += candidate.1;
                wanted
            })
            .count();
        candidates.truncate(count.max(1));
        let mass: f32 = candidates.iter().map(|candidate| candidate.1).sum();
        let mut left = self.random.random::<f32>() * mass;
        for &(token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        candidates[candidates.len() - 1].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_temperature_takes_the_largest_score() {
        assert_eq!(Sampler::new(0.0, 1.0, 0).pick(&[0.1, 3.0, -2.0]), 1);
    }

    #[test]
    fn a_small_nucleus_takes_the_largest_score() {
        let mut sampler = Sampler::new(1.0, 0.1, 7);
        assert!((0..50).all(|_| sampler.pick(&[0.0, 2.0, 1.0]) == 1));
    }

    #[test]
    fn equal_seeds_pick_equal_tokens_and_all_tokens_are_reached() {
        let picks = |seed| {
            let mut sampler = Sampler::new(1.0, 1.0, seed);
            (0..200).map(|_| sampler.pick(&[0.0, 0.5, 0.2])).collect::<Vec<_>>()
        };
        assert_eq!(picks(3), picks(3));
        assert!((0..3).all(|token| picks(3).contains(&token)));
    }
}
