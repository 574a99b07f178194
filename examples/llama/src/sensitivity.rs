//! What every layer, head and precision does to the model's output: the numbers that bits are
//! allocated by.
//!
//! The unmodified model reads windows of sample text; every layer's queries, keys and values are
//! shown to a [`Probe`] on their way. What a layer's error is worth comes from the model's
//! predictions: all of one layer stored as badly as can be, everything else as well as can be, and
//! the divergence that follows.

use wgkv::bits::{BitPlan, Kind, Probe, Sensitivity};
use wgkv::learned::Learned;
use wgkv::{Bits, Capacity, Codec, Format, Precision, Protection, Rows, Sinks};
use wgkv_decoder::{Decoder, LayerRows, Model, Part, Recorder};

use crate::device::upload;
use crate::error::Result;
use crate::options::{open, open_f16, planned};
use crate::perplexity::{Chunks, Score, Window, score_window};
use crate::reading::{Each, Reading, work};

/// What is to be measured, and with what.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model's files.
    pub model: &'a Model,
    /// The model on its device.
    pub decoder: &'a Decoder,
    /// Codec, clip and scales.
    pub format: Format,
    /// What the caches to come will be given: rotate-kv's order of channels, centred's means.
    pub learned: Option<&'a Learned>,
    /// Tokens kept in f16 for good.
    pub sinks: Sinks,
}

impl Subject<'_> {
    /// Measures every candidate on windows of sample text, each read in one piece.
    pub fn probe(&self, candidates: &[Precision], windows: &[Window], mut progress: impl FnMut(usize)) -> Result<Probe> {
        let (config, gpu) = (self.decoder.config(), self.decoder.gpu());
        let context = windows.iter().map(|(input, _)| input.len()).max().unwrap_or(1);
        let shape = config.shape_for(context);
        let probe = Sensitivity::probe(gpu, &shape, self.format, candidates, self.learned, self.sinks, context as u32);
        let mut probe = pollster::block_on(probe)?;
        for layer in 0..config.layers {
            let weights = upload(gpu, "output projection", &self.model.tensor(Part::Output(layer))?.numbers());
            pollster::block_on(probe.output_projection(layer as u32, Rows::f32(&weights), config.hidden as u32))?;
        }
        let elects = matches!(self.sinks, Sinks::Massive(_));
        let mut cache = open_f16(gpu, config, context)?;
        let mut work = work(self.decoder, context)?;
        for (input, _) in windows {
            probe.begin(input.len() as u32)?;
            let mut reading = Reading::begin(self.decoder, &mut work, &mut cache)?;
            let add = |recorder: &mut Recorder, rows: &LayerRows<'_>| {
                recorder.submit();
                let residual = elects.then_some((rows.residual, config.hidden as u32));
                Ok(pollster::block_on(probe.add(rows.layer, rows.queries, rows.keys, rows.values, residual))?)
            };
            reading.read(input, Some(&mut Each(add)))?;
            reading.end()?;
            progress(input.len());
        }
        Ok(probe)
    }

    /// Frobenius norms of each layer's key and value projections.
    pub fn weight_norms(&self) -> Result<Vec<[f64; 2]>> {
        (0..self.model.config().layers)
            .map(|layer| {
                let norm = |part| -> Result<f64> { Ok(norm(&self.model.tensor(part)?.numbers())) };
                Ok([norm(Part::Key(layer))?, norm(Part::Value(layer))?])
            })
            .collect()
    }

    /// Measures what a unit of output error costs in each layer: the divergence of the model's
    /// predictions where that layer has the fewest bits and all others the most, over the layer's
    /// output error then.
    pub fn divergences(&self, sensitivity: &Sensitivity, windows: &[Window], mut progress: impl FnMut(usize)) -> Result<Vec<f64>> {
        let (decoder, config, gpu) = (self.decoder, self.decoder.config(), self.decoder.gpu());
        let (shape, candidates) = (config.shape(), sensitivity.candidates());
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
        let mut reference = open_f16(gpu, config, context)?;
        let [mut its_work, mut work] = [work(decoder, context)?, work(decoder, context)?];
        let mut weights = Vec::new();
        for layer in 0..shape.layers {
            let allocation = BitPlan::new(&shape, self.format, |l, _| if l == layer { [coarse, coarse] } else { [fine, Precision::F16] })?;
            let protection = Protection { sinks: self.sinks, window: 0 };
            let mut cache = open(gpu, planned(config, allocation, self.learned.cloned(), protection, Capacity::tokens(1, context as u32)))?;
            let mut score = Score::default();
            for window in windows {
                let mut reading = Reading::begin(decoder, &mut work, &mut cache)?;
                let mut control = Reading::begin(decoder, &mut its_work, &mut reference)?;
                score += score_window(window, Chunks::of(context), &mut reading, None, Some(&mut control), &mut progress)?;
                reading.end()?;
                control.end()?;
            }
            let heads = (0..shape.kv_heads).flat_map(|head| Kind::BOTH.map(|kind| sensitivity.output_errors(layer, head, kind)[worst]));
            weights.push(score.kl() / heads.sum::<f64>().max(f64::MIN_POSITIVE));
        }
        Ok(weights)
    }
}

/// The root of the sum of squares.
fn norm(numbers: &[f32]) -> f64 {
    numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}
