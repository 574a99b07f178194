//! The means and weights that [`Codec::Centred`](crate::Codec::Centred) takes, by layer and KV
//! head.

mod file;

use crate::error::{Error, Result, Thing};
use crate::format::hadamard::channel_sign;
use crate::format::{RopeLayout, Shape, origin};
use std::ops::Range;

/// The means of key and value channels, and a weight for every pair of key channels that RoPE turns
/// together.
///
/// A key is stored as `H (weight * RoPE_t(k - mean))`, a value as `H (v - mean)`. The weight is
/// `(E q^2 / E (k - mean)^2)^(1/4)`, both taken over the two channels of the pair, so that it
/// commutes with RoPE: it moves the codes' error to where queries look least.
#[derive(Clone, Debug, PartialEq)]
pub struct Means {
    model: String,
    tokens: u64,
    skipped: u64,
    kv_heads: u32,
    head_dim: u32,
    layers: Vec<Layer>,
}

/// One layer's, `[kv_heads, head_dim]` each.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    key_means: Vec<f32>,
    weights: Vec<f32>,
    value_means: Vec<f32>,
}

fn wrong<T>(name: &'static str, wanted: impl ToString, had: impl ToString) -> Result<T> {
    Err(Error::mismatch(Thing::Means, name, wanted, had))
}

impl Means {
    /// Returns means of 0 and weights of 1: what the codec takes where nothing was learned.
    pub fn natural(shape: &Shape) -> Self {
        let channels = (shape.kv_heads * shape.head_dim) as usize;
        let layer = Layer { key_means: vec![0.0; channels], weights: vec![1.0; channels], value_means: vec![0.0; channels] };
        Self { model: String::new(), tokens: 0, skipped: 0, kv_heads: shape.kv_heads, head_dim: shape.head_dim, layers: vec![layer; shape.layers as usize] }
    }

    /// Takes means and weights as they are, by layer `[kv_heads, head_dim]` each: means of the keys
    /// before RoPE, weights of their channels, means of the values.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a shape that is not served, other lengths, means that are not
    /// finite, weights that are not finite and above 0, and weights that differ within a pair of
    /// RoPE.
    pub fn new(shape: &Shape, model: &str, layers: Vec<[Vec<f32>; 3]>) -> Result<Self> {
        shape.check()?;
        let layers = layers.into_iter().map(|[key_means, weights, value_means]| Layer { key_means, weights, value_means }).collect();
        let means = Self { model: model.to_owned(), tokens: 0, skipped: 0, kv_heads: shape.kv_heads, head_dim: shape.head_dim, layers };
        means.check()?;
        means.expect_shape(shape)?;
        Ok(means)
    }

    /// Refuses numbers that cannot be used.
    fn check(&self) -> Result<()> {
        let channels = (self.kv_heads * self.head_dim) as usize;
        for (layer, n) in self.layers.iter().zip(0..) {
            for (name, numbers) in [("key means", &layer.key_means), ("weights", &layer.weights), ("value means", &layer.value_means)] {
                if numbers.len() != channels {
                    return wrong(name, format!("{channels} in layer {n}"), numbers.len());
                }
                if let Some(bad) = numbers.iter().find(|x| !x.is_finite() || (name == "weights" && **x <= 0.0)) {
                    return wrong(name, format!("finite{} in layer {n}", if name == "weights" { " and above 0" } else { "" }), bad);
                }
            }
        }
        Ok(())
    }

    /// Refuses another shape, and weights that the shape's RoPE would mix.
    pub(crate) fn expect_shape(&self, shape: &Shape) -> Result<()> {
        origin::expect_shape(Thing::Means, shape, [self.layers(), self.kv_heads, self.head_dim])?;
        for (layer, n) in self.layers.iter().zip(0..) {
            for (i, weight) in layer.weights.iter().enumerate() {
                let (head, channel) = (i / shape.head_dim as usize, i % shape.head_dim as usize);
                let other = partner(shape, channel).map_or(*weight, |p| layer.weights[head * shape.head_dim as usize + p]);
                if *weight != other {
                    return wrong("weights", format!("alike within a pair of RoPE, as {other} of channel {channel} in layer {n}, head {head}"), weight);
                }
            }
        }
        Ok(())
    }

    /// Returns the means as made from `tokens` tokens, of which `skipped` rows were left out.
    pub(crate) fn counted(self, tokens: u64, skipped: u64) -> Self {
        Self { tokens, skipped, ..self }
    }

    /// Returns whether any mean of the keys turns, so that it adds to the scores of some tokens
    /// more than to others'.
    pub(crate) fn moves(&self, shape: &Shape) -> bool {
        let turns = |i: usize| partner(shape, i % shape.head_dim as usize).is_some();
        self.layers.iter().any(|layer| layer.key_means.iter().enumerate().any(|(i, mean)| *mean != 0.0 && turns(i)))
    }

    /// Returns those of some of the KV heads.
    pub(crate) fn shard(&self, heads: Range<u32>) -> Self {
        let [first, end] = [heads.start, heads.end].map(|head| (head * self.head_dim) as usize);
        let of = |layer: &Layer| Layer {
            key_means: layer.key_means[first..end].to_vec(),
            weights: layer.weights[first..end].to_vec(),
            value_means: layer.value_means[first..end].to_vec(),
        };
        Self { kv_heads: heads.end - heads.start, layers: self.layers.iter().map(of).collect(), ..self.clone() }
    }

    /// Returns the words of a layer of [`Means::natural`].
    pub(crate) fn natural_words(shape: &Shape) -> Vec<u32> {
        Self::natural(&Shape { layers: 1, ..shape.clone() }).words(0)
    }

    /// Returns a layer as the kernels read it: `[kv_heads, 3, head_dim]`, means of keys, weights
    /// with the sign of their channel, means of values, the bits of f32.
    pub(crate) fn words(&self, layer: u32) -> Vec<u32> {
        let (layer, d) = (&self.layers[layer as usize], self.head_dim as usize);
        let signed: Vec<f32> = layer.weights.iter().enumerate().map(|(i, weight)| weight * channel_sign((i % d) as u32)).collect();
        let rows = (0..self.kv_heads as usize).flat_map(|head| [&layer.key_means, &signed, &layer.value_means].map(|numbers| &numbers[head * d..][..d]));
        rows.flatten().map(|x| x.to_bits()).collect()
    }

    /// Returns the name of the model that the means were made for; empty for [`Means::natural`].
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Refuses a model of another name. [`Means::natural`] names no model and serves all.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn expect_model(&self, model: &str) -> Result<()> {
        if self.model.is_empty() { Ok(()) } else { origin::expect_model(Thing::Means, model, &self.model) }
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> u32 {
        self.layers.len() as u32
    }

    /// Returns the tokens that the means were made from, in each layer.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns how many of these tokens' rows were left out because they were not finite, added up
    /// over the layers.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Returns a layer's means of the keys before RoPE, `[kv_heads, head_dim]`.
    pub fn key_means(&self, layer: u32) -> &[f32] {
        self.layers.get(layer as usize).map_or(&[], |layer| &layer.key_means)
    }

    /// Returns a layer's weights of the key channels, `[kv_heads, head_dim]`.
    pub fn weights(&self, layer: u32) -> &[f32] {
        self.layers.get(layer as usize).map_or(&[], |layer| &layer.weights)
    }

    /// Returns a layer's means of the values, `[kv_heads, head_dim]`.
    pub fn value_means(&self, layer: u32) -> &[f32] {
        self.layers.get(layer as usize).map_or(&[], |layer| &layer.value_means)
    }
}

/// Returns the channel that RoPE turns together with channel `i` of a head, if it turns it.
pub(crate) fn partner(shape: &Shape, i: usize) -> Option<usize> {
    let pairs = shape.rope.frequencies().len();
    if i >= 2 * pairs {
        return None;
    }
    Some(match shape.rope.layout() {
        RopeLayout::SplitHalves => (i + pairs) % (2 * pairs),
        RopeLayout::Interleaved => i ^ 1,
    })
}
