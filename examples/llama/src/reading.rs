//! A text that a model reads through a cache, step by step, and what it predicts.

use std::ops::Range;

use wgkv::aligned::{Alignment, Traffic};
use wgkv::{Cache, Chunk, Rows, Sequence};
use wgkv_decoder::{Decoder, KvCache, LayerRows, Recorder, Scored, Tap, Work};

use crate::device;
use crate::error::Result;

/// Rows of scores that are read back at once: 2048 rows of a large vocabulary would be a gigabyte.
pub const ROWS: usize = 128;

/// Steps of which one is asked what it read from planes: asking waits for the GPU.
const ASKED: usize = 32;

/// One sequence of a cache, and the model that reads into it.
#[derive(Debug)]
pub struct Reading<'a, C = Cache> {
    decoder: &'a Decoder,
    work: &'a mut Work,
    cache: &'a mut C,
    sequence: Sequence,
    /// Steps taken, and by layer what some of them read from planes.
    steps: usize,
    traffic: Vec<Traffic>,
}

/// A tap that is a closure.
pub struct Each<F>(pub F);

impl<F: FnMut(&mut Recorder, &LayerRows<'_>) -> wgkv_decoder::Result<()>> Tap for Each<F> {
    fn layer(&mut self, recorder: &mut Recorder, rows: &LayerRows<'_>) -> wgkv_decoder::Result<()> {
        self.0(recorder, rows)
    }
}

/// Makes the buffers for steps of at most `rows` tokens.
///
/// # Errors
/// Those of [`Decoder::work`].
pub fn work(decoder: &Decoder, rows: usize) -> Result<Work> {
    Ok(pollster::block_on(decoder.work(rows as u32, rows.min(ROWS) as u32))?)
}

/// Asks after each layer what attention read from planes.
struct Asking<'a, C: KvCache> {
    cache: &'a C,
    step: &'a C::Step,
    traffic: &'a mut Vec<Traffic>,
}

impl<C: KvCache> Asking<'_, C> {
    /// Adds what a layer read that was submitted last.
    fn ask(&mut self, layer: u32) -> wgkv::Result<()> {
        let report = pollster::block_on(self.cache.traffic(self.step, layer))?;
        let least = self.traffic.len().max(layer as usize + 1);
        self.traffic.resize(least, Traffic::default());
        self.traffic[layer as usize].add(&report.traffic);
        Ok(())
    }
}

impl<C: KvCache> Tap for Asking<'_, C> {
    /// All layers use the same scratch, so each is asked about before the next one attends.
    fn layer(&mut self, recorder: &mut Recorder, rows: &LayerRows<'_>) -> wgkv_decoder::Result<()> {
        if let Some(before) = rows.layer.checked_sub(1) {
            recorder.submit();
            self.ask(before)?;
        }
        Ok(())
    }
}

impl<'a, C: KvCache> Reading<'a, C> {
    /// Begins an empty sequence of the cache.
    ///
    /// # Errors
    /// [`wgkv::Error::Sequences`].
    pub fn begin(decoder: &'a Decoder, work: &'a mut Work, cache: &'a mut C) -> Result<Self> {
        let sequence = cache.begin()?;
        Ok(Self { decoder, work, cache, sequence, steps: 0, traffic: Vec::new() })
    }

    /// Reads tokens in one step; a tap sees their rows, and may change them.
    ///
    /// # Errors
    /// Those of [`Decoder::step`], [`Decoder::forward`] and the tap; an id outside the vocabulary.
    pub fn read(&mut self, ids: &[u32], tap: Option<&mut dyn Tap>) -> Result<()> {
        self.work.write_ids(ids)?;
        let step = self.decoder.step(self.work, self.cache, &[Chunk { sequence: self.sequence, tokens: ids.len() as u32 }])?;
        let mut recorder = Recorder::new(self.decoder.gpu(), "read");
        self.steps += 1;
        if tap.is_none() && self.cache.plan_of(0)?.alignment() != Alignment::EVERYTHING && self.steps.is_multiple_of(ASKED) {
            let mut asking = Asking { cache: self.cache, step: &step, traffic: &mut self.traffic };
            self.decoder.forward(&mut recorder, self.work, self.cache, &step, Some(&mut asking))?;
            recorder.submit();
            asking.ask(self.decoder.config().layers as u32 - 1)?;
        } else {
            self.decoder.forward(&mut recorder, self.work, self.cache, &step, tap)?;
            recorder.submit();
        }
        Ok(())
    }

    /// Returns the scores of every token of the vocabulary that follow rows of the last step,
    /// [`ROWS`] at most, row after row.
    ///
    /// # Errors
    /// Those of [`Decoder::score`] and of reading back.
    pub fn scores(&mut self, rows: Range<usize>) -> Result<Vec<f32>> {
        let numbers = rows.len() * self.decoder.config().vocabulary;
        let mut recorder = Recorder::new(self.decoder.gpu(), "scores");
        self.decoder.score(&mut recorder, self.work, Scored::Rows(rows.start as u32..rows.end as u32))?;
        recorder.submit();
        Ok(device::read(self.decoder.gpu(), Rows::f32(self.work.scores()), numbers)?)
    }

    /// Returns by layer what decoding read from planes in some of the steps; nothing where it reads
    /// everything.
    pub fn traffic(&self) -> &[Traffic] {
        &self.traffic
    }

    /// Ends the sequence and gives its pages back.
    ///
    /// # Errors
    /// None while the cache lives.
    pub fn end(self) -> Result<()> {
        Ok(self.cache.end(self.sequence)?)
    }
}
