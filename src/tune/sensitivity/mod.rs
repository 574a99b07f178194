//! What every way of storing every head's keys and values does to the output of attention, measured
//! on sample text.

mod file;
mod probe;

pub use probe::Probe;

use crate::error::{Error, Result, Thing};
use crate::format::{Format, Kind, Learned, Precision, Shape, origin};
use serde::{Deserialize, Serialize};

/// What was measured of one KV head of one layer, as files have it. Pairs are keys, then values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    /// Squared Frobenius norms.
    pub norms: [f64; 2],
    /// By candidate: squared Frobenius norms of what was stored less what came.
    pub code_errors: [Vec<f64>; 2],
    /// By candidate: mean over the sampled queries of the squared change of the block's output.
    pub output_errors: [Vec<f64>; 2],
    /// Mean over the sampled queries of the head's squared share of the block's output.
    pub output: f64,
}

/// How much attention suffers from every candidate precision of every unit of a cache, measured on
/// sample text by a [`Probe`]: what a [`BitRule`](crate::bits::BitRule) decides by.
///
/// The error of a candidate is measured as KV-AdaQuant (2502.15075) does, but of the output instead
/// of the cache: the mean over sampled queries of `|| (o' - o) W_O ||²`, where only this head's
/// keys (or only its values) are stored with that precision. Unlike norms of weights or caches it
/// is the same however a model divides its scale between keys and queries, or between values and
/// the output projection.
///
/// ```no_run
/// use wgkv::{Capacity, Format, Gpu, Plan, Protection, Result, Rows, Shape, Sinks};
/// use wgkv::bits::{BitPlan, BitRule, BitBudget, Sensitivity};
///
/// /// `queries`, `keys` and `values` are one window of one layer, 2048 tokens, before RoPE.
/// async fn choose(gpu: &Gpu, shape: Shape, format: Format, queries: &wgpu::Buffer, keys: &wgpu::Buffer, values: &wgpu::Buffer) -> Result<Plan> {
///     let candidates = Sensitivity::default_candidates(&shape, &format);
///     let mut probe = Sensitivity::probe(gpu, &shape, format, &candidates, None, Sinks::First(4), 2048).await?;
///     probe.begin(2048)?; // and so for every window of the sample
///     for layer in 0..shape.layers {
///         probe.add(layer, Rows::f32(queries), Rows::f32(keys), Rows::f32(values), None).await?;
///     }
///     let sensitivity = probe.finish("my model's hash")?;
///     let bits = BitPlan::choose(&shape, &sensitivity, BitBudget::BitsPerElement(3.0), BitRule::default())?;
///     bits.save("plan.json")?; // later: BitPlan::load
///     Plan::builder(shape, bits).capacity(Capacity::tokens(1, 32_768)).build(gpu.capability())
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    pub(crate) model: String,
    /// The fingerprint of what the codec had learned; empty for nothing.
    pub(crate) learned: String,
    pub(crate) format: Format,
    pub(crate) layers: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) candidates: Vec<Precision>,
    pub(crate) tokens: u64,
    pub(crate) queries: u64,
    /// By layer: Frobenius norms of the projections that make keys and values; none where they were
    /// not given.
    pub(crate) weight_norms: Vec<[f64; 2]>,
    /// By layer: what one unit of output error costs.
    pub(crate) layer_weights: Vec<f64>,
    /// `[layer, kv_head]`.
    pub(crate) heads: Vec<Head>,
}

impl Sensitivity {
    /// Returns the name of the model that was measured.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Refuses a model of another name.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn expect_model(&self, model: &str) -> Result<()> {
        origin::expect_model(Thing::Sensitivity, model, &self.model)
    }

    /// Refuses to stand for a cache whose codec has learned something else, or nothing: Centred has
    /// other errors with means than without.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn expect_learned(&self, learned: Option<&Learned>) -> Result<()> {
        let wanted = learned.map(Learned::fingerprint).unwrap_or_default();
        if self.learned == wanted {
            return Ok(());
        }
        let told = |fingerprint: &str| if fingerprint.is_empty() { "nothing".to_owned() } else { format!("of fingerprint {fingerprint}") };
        wrong("learned data", told(&wanted), told(&self.learned))
    }

    /// Refuses a cache of another shape.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn expect_shape(&self, shape: &Shape) -> Result<()> {
        origin::expect_shape(Thing::Sensitivity, shape, [self.layers, self.kv_heads, self.head_dim])
    }

    /// Returns the codec, clip and scales that were measured.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> u32 {
        self.layers
    }

    /// Returns the KV heads a layer.
    pub fn kv_heads(&self) -> u32 {
        self.kv_heads
    }

    /// Returns the channels a head.
    pub fn head_dim(&self) -> u32 {
        self.head_dim
    }

    /// Returns the precisions that were measured.
    pub fn candidates(&self) -> &[Precision] {
        &self.candidates
    }

    /// Returns the tokens whose keys and values were stored, in each layer.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns the tokens whose queries were sampled, in each layer.
    pub fn queries(&self) -> u64 {
        self.queries
    }

    fn head(&self, layer: u32, head: u32) -> Option<&Head> {
        let at = layer.checked_mul(self.kv_heads)?.checked_add(head)?;
        self.heads.get(at as usize).filter(|_| head < self.kv_heads)
    }

    /// Returns the Frobenius norm of the sample's keys (after RoPE) or values of one KV head; 0 for
    /// a head that does not exist.
    pub fn norm(&self, layer: u32, head: u32, kind: Kind) -> f64 {
        self.head(layer, head).map_or(0.0, |h| h.norms[kind as usize].sqrt())
    }

    /// Returns, by candidate, the squared Frobenius norm of the error of the stored keys or values
    /// of one KV head over their own; none for a head that does not exist.
    pub fn code_errors(&self, layer: u32, head: u32, kind: Kind) -> Vec<f64> {
        let of = |h: &Head| h.code_errors[kind as usize].iter().map(|e| e / h.norms[kind as usize].max(f64::MIN_POSITIVE)).collect();
        self.head(layer, head).map(of).unwrap_or_default()
    }

    /// Returns, by candidate, the mean over the sampled queries of the squared change of the
    /// attention block's output, where only this KV head's keys or values are stored so, added up
    /// over the query heads that share it, as if their changes were orthogonal. None for a head
    /// that does not exist.
    pub fn output_errors(&self, layer: u32, head: u32, kind: Kind) -> &[f64] {
        self.head(layer, head).map_or(&[], |h| &h.output_errors[kind as usize])
    }

    /// Returns the mean over the sampled queries of the squared share of one KV head's query heads
    /// in the block's output.
    pub fn output(&self, layer: u32, head: u32) -> f64 {
        self.head(layer, head).map_or(0.0, |h| h.output)
    }

    /// Returns the Frobenius norms of a layer's key and value projections, if they were given.
    pub fn weight_norms(&self, layer: u32) -> Option<[f64; 2]> {
        self.weight_norms.get(layer as usize).copied()
    }

    /// Returns what one unit of output error costs in a layer.
    pub fn layer_weight(&self, layer: u32) -> f64 {
        self.layer_weights.get(layer as usize).copied().unwrap_or(0.0)
    }

    /// Sets the Frobenius norms of each layer's key and value projections, which the published rule
    /// decides by.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another number of layers, or norms that are negative or not finite.
    pub fn with_weight_norms(mut self, norms: Vec<[f64; 2]>) -> Result<Self> {
        check_numbers("weight norms", self.layers, norms.len(), norms.iter().flatten())?;
        self.weight_norms = norms;
        Ok(self)
    }

    /// Sets the weight of each layer: say, the divergence of the model's predictions that a unit of
    /// the layer's output error causes. Weights below a tenth of the median are raised to it, since
    /// a small divergence is measured badly.
    ///
    /// Without this, [`Probe::finish`] takes 1 over the mean squared output of the layer's
    /// attention.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another number of layers, or weights that are negative or not
    /// finite.
    pub fn with_layer_weights(mut self, mut weights: Vec<f64>) -> Result<Self> {
        check_numbers("layer weights", self.layers, weights.len(), weights.iter())?;
        let mut sorted = weights.clone();
        sorted.sort_by(f64::total_cmp);
        let least = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0) / 10.0;
        for weight in &mut weights {
            *weight = weight.max(least);
        }
        self.layer_weights = weights;
        Ok(self)
    }
}

fn wrong<T>(name: impl Into<std::borrow::Cow<'static, str>>, wanted: impl ToString, had: impl ToString) -> Result<T> {
    Err(Error::mismatch(Thing::Sensitivity, name, wanted, had))
}

/// Refuses another number than one a layer, and numbers that no norm or error can be.
fn check_numbers<'a>(name: &'static str, wanted: u32, had: usize, mut numbers: impl Iterator<Item = &'a f64>) -> Result<()> {
    if wanted as usize != had {
        return wrong(name, format!("{wanted}, one a layer"), had);
    }
    match numbers.find(|x| !(x.is_finite() && **x >= 0.0)) {
        Some(bad) => wrong(name, "finite and 0 or more", bad),
        None => Ok(()),
    }
}
