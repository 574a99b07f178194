//! What every layer, head and precision does to the model's output: the numbers that bits are allocated by.
//!
//! The unmodified model reads windows of sample text; every layer's queries, keys and values are shown to a [`Probe`] on their way.
//! What a layer's error is worth comes from the model's predictions: all of one layer stored as badly as can be, everything else as
//! well as can be, and the divergence that follows.

use burn::tensor::Tensor;
use wgkv::bits::{BitPlan, Kind, Probe, Sensitivity};
use wgkv::learned::Learned;
use wgkv::{Bits, Capacity, Codec, Format, Precision, Protection, Sinks};

use crate::attention::Attention;
use crate::bridge::{Bridge, View};
use crate::compressed::CompressedAttention;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::options::{open, open_f16, planned, shape};
use crate::perplexity::{Score, score_window};

/// A window's input and targets.
pub type Window = (Vec<u32>, Vec<u32>);

/// What is to be measured, and with what.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its device.
    pub bridge: &'a Bridge,
    /// Codec, clip and scales.
    pub format: Format,
    /// What the caches to come will be given: rotate-kv's order of channels, centred's means.
    pub learned: Option<&'a Learned>,
    /// Tokens kept in f16 for good.
    pub sinks: Sinks,
}

/// Attention through an f16 cache that shows everything to a probe first.
struct Probing<'a, A> {
    bridge: &'a Bridge,
    probe: &'a mut Probe,
    attention: A,
    /// The residual stream that enters the next layer, and its width, where sinks are looked for in it.
    residual: Option<(View, u32)>,
    elects: bool,
}

impl<A: Attention> Attention for Probing<'_, A> {
    fn begin(&mut self, tokens: usize) -> Result<()> {
        self.probe.begin(tokens as u32)?;
        self.attention.begin(tokens)
    }

    fn enter(&mut self, layer: usize, residual: &Tensor<2>) -> Result<()> {
        if self.elects {
            let [_, width] = residual.dims();
            self.residual = Some((self.bridge.view(residual.clone())?, width as u32));
        }
        self.attention.enter(layer, residual)
    }

    fn attend(&mut self, layer: usize, queries: Tensor<2>, keys: Tensor<2>, values: Tensor<2>) -> Result<Tensor<2>> {
        let [q, k, v] = [&queries, &keys, &values].map(|tensor| self.bridge.view(tensor.clone()));
        let (q, k, v) = (q?, k?, v?);
        self.bridge.flush()?;
        let residual = self.residual.take();
        let residual = residual.as_ref().map(|(view, width)| (view.rows(), *width));
        pollster::block_on(self.probe.add(layer as u32, q.rows(), k.rows(), v.rows(), residual))?;
        self.attention.attend(layer, queries, keys, values)
    }
}

impl Subject<'_> {
    /// Measures every candidate on windows of sample text, each read in one piece.
    pub fn probe(&self, candidates: &[Precision], windows: &[Window], mut progress: impl FnMut(usize)) -> Result<Probe> {
        let (config, bridge) = (self.model.config(), self.bridge);
        let context = windows.iter().map(|(input, _)| input.len()).max().unwrap_or(1);
        let mut probe =
            pollster::block_on(Sensitivity::probe(bridge.gpu(), &shape(config), self.format, candidates, self.learned, self.sinks, context as u32))?;
        for layer in 0..config.layers {
            if let Some([_, _, output]) = self.model.projections(layer) {
                let view = bridge.view(output)?;
                bridge.flush()?;
                pollster::block_on(probe.output_projection(layer as u32, view.rows(), config.hidden as u32))?;
            }
        }
        let elects = matches!(self.sinks, Sinks::Massive(_));
        let mut cache = open_f16(bridge, config, context)?;
        for (input, _) in windows {
            let attention = CompressedAttention::new(bridge, &mut cache)?;
            let mut probing = Probing { bridge, probe: &mut probe, attention, residual: None, elects };
            self.model.forward(input, &mut probing)?;
            probing.attention.end()?;
            progress(input.len());
        }
        Ok(probe)
    }

    /// Frobenius norms of each layer's key and value projections.
    pub fn weight_norms(&self) -> Result<Vec<[f64; 2]>> {
        (0..self.model.config().layers)
            .filter_map(|layer| self.model.projections(layer))
            .map(|[key, value, _]| Ok([norm(&numbers(key)?), norm(&numbers(value)?)]))
            .collect()
    }

    /// Measures what a unit of output error costs in each layer: the divergence of the model's predictions where that layer has the fewest bits
    /// and all others the most, over the layer's output error then.
    pub fn divergences(&self, sensitivity: &Sensitivity, windows: &[Window], mut progress: impl FnMut(usize)) -> Result<Vec<f64>> {
        let (config, bridge) = (self.model.config(), self.bridge);
        let (shape, candidates) = (shape(config), sensitivity.candidates());
        let context = windows.iter().map(|(input, _)| input.len()).max().unwrap_or(1);
        let Some((worst, coarse)) = candidates.iter().copied().enumerate().min_by_key(|(_, c)| (c.bits, std::cmp::Reverse(c.group))) else {
            return Ok(Vec::new());
        };
        // Keys of rotate-kv are always codes.
        let fine = match (self.format.codec(), self.format.scales()) {
            (Codec::RotateKv, wgkv::Scales::Half) => Precision { bits: Bits::Eight, ..coarse },
            (Codec::RotateKv, wgkv::Scales::Byte) => Precision { bits: Bits::Four, ..coarse },
            _ => Precision::F16,
        };
        let mut reference = open_f16(bridge, config, context)?;
        let mut weights = Vec::new();
        for layer in 0..shape.layers {
            let allocation = BitPlan::new(&shape, self.format, |l, _| if l == layer { [coarse, coarse] } else { [fine, Precision::F16] })?;
            let protection = Protection { sinks: self.sinks, window: 0 };
            let mut cache = open(bridge, planned(config, allocation, self.learned.cloned(), protection, Capacity::tokens(1, context as u32)))?;
            let mut score = Score::default();
            for window in windows {
                let mut attention = CompressedAttention::new(bridge, &mut cache)?;
                let mut control = CompressedAttention::new(bridge, &mut reference)?;
                score += score_window(self.model, window, context, &mut attention, Some(&mut control), &mut progress)?;
                attention.end()?;
                control.end()?;
            }
            let heads = (0..shape.kv_heads).flat_map(|head| Kind::BOTH.map(|kind| sensitivity.output_errors(layer, head, kind)[worst]));
            weights.push(score.kl() / heads.sum::<f64>().max(f64::MIN_POSITIVE));
        }
        Ok(weights)
    }
}

/// The numbers of a tensor, row by row.
pub fn numbers(tensor: Tensor<2>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as::<f32>().map_err(|error| Error::Burn(error.to_string()))
}

/// The root of the sum of squares.
fn norm(numbers: &[f32]) -> f64 {
    numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}
