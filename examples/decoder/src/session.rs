//! A text that goes on, token after token.

use std::collections::VecDeque;

use futures::channel::oneshot;
use wgkv::{Cache, Chunk, Sequence};

use crate::decoder::{Decoder, Scored, Tap};
use crate::error::Result;
use crate::kernel::sample::SampleRow;
use crate::kv_cache::KvCache;
use crate::recorder::Recorder;
use crate::work::Work;

/// How tokens are chosen. Equal seeds choose equal tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; larger is more varied.
    pub temperature: f32,
    /// Share of the probability to draw from, 1 for all of it.
    pub top_p: f32,
    /// Likeliest tokens to draw from, 0 for all.
    pub top_k: u32,
    /// Seed of what is drawn.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };

    /// Returns what the kernel reads for the token of this number.
    pub fn row(&self, draw: u32) -> SampleRow {
        let inverse_temperature = if self.temperature > 0.0 { 1.0 / self.temperature } else { 0.0 };
        let seed = (self.seed ^ (self.seed >> 32)) as u32;
        // No share at all would leave no token: the likeliest one is the smallest share.
        SampleRow { inverse_temperature, top_p: self.top_p.max(f32::MIN_POSITIVE), top_k: self.top_k, seed, draw, pad: [0; 3] }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// One sequence of a cache of its own, and the tokens that follow it.
///
/// The cache is a [`wgkv::layers::LayeredCache`] for models whose layers differ.
///
/// A chosen token stays on the GPU, where the next step takes it; the host learns of it later. So
/// [`Session::next`] can record the step that follows before it waits for the token itself.
#[derive(Debug)]
pub struct Session<C = Cache> {
    decoder: Decoder,
    cache: C,
    work: Work,
    sequence: Sequence,
    sampling: Sampling,
    drawn: u32,
    /// Tokens that were chosen and not fetched.
    waiting: VecDeque<Waiting>,
    /// Buffers that were fetched from.
    idle: Vec<wgpu::Buffer>,
}

/// A token on its way to the host.
#[derive(Debug)]
struct Waiting {
    staging: wgpu::Buffer,
    mapped: oneshot::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
    submission: wgpu::SubmissionIndex,
}

impl<C: KvCache> Session<C> {
    /// Begins a text in a cache, whose first free sequence it takes. A step reads at most `chunk`
    /// tokens.
    ///
    /// # Errors
    /// Those of [`Decoder::work`], and [`wgkv::Error::Sequences`].
    pub async fn new(decoder: &Decoder, mut cache: C, chunk: u32, sampling: Sampling) -> Result<Self> {
        let work = decoder.work(chunk, 1).await?;
        let sequence = cache.begin()?;
        work.write_sampling(&[sampling.row(0)])?;
        Ok(Self { decoder: decoder.clone(), cache, work, sequence, sampling, drawn: 0, waiting: VecDeque::new(), idle: Vec::new() })
    }

    /// Returns the cache.
    pub fn cache(&self) -> &C {
        &self.cache
    }

    /// Returns the text's sequence of the cache.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Returns the tokens that the cache holds.
    ///
    /// # Errors
    /// None while the session lives.
    pub fn tokens(&self) -> Result<u32> {
        Ok(self.cache.tokens(self.sequence)?)
    }

    /// Returns the most tokens that [`Session::read`] takes.
    pub fn chunk(&self) -> u32 {
        self.work.rows()
    }

    /// Reads tokens of a prompt in one submission, and if `last` has the token chosen that follows
    /// them.
    ///
    /// # Errors
    /// [`Error::Token`](crate::Error::Token), [`wgkv::Error::Mismatch`] for more than a chunk, and
    /// those of [`Decoder::step`] and [`Decoder::forward`].
    pub fn read(&mut self, ids: &[u32], last: bool, tap: Option<&mut dyn Tap>) -> Result<()> {
        self.work.write_ids(ids)?;
        self.step(ids.len() as u32, last, tap)
    }

    /// Reads a whole prompt, a chunk at a time, and has the token chosen that follows.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn prompt(&mut self, ids: &[u32]) -> Result<()> {
        let chunks: Vec<&[u32]> = ids.chunks(self.chunk() as usize).collect();
        for (n, chunk) in chunks.iter().enumerate() {
            self.read(chunk, n + 1 == chunks.len(), None)?;
        }
        Ok(())
    }

    /// Returns the next token. With `ahead`, the step that takes it is submitted first, so that the
    /// GPU goes on while the host waits, and the cache then holds the token.
    ///
    /// # Errors
    /// Those of [`Decoder::step`] and [`Decoder::forward`], and of reading back;
    /// [`wgkv::Error::Mismatch`] where no token was chosen, since nothing was read.
    pub async fn next(&mut self, ahead: bool) -> Result<u32> {
        self.next_with(ahead, None).await
    }

    /// Does the same as [`Session::next`], with a tap on the step that is submitted ahead.
    ///
    /// # Errors
    /// As [`Session::next`], and those of the tap.
    pub async fn next_with(&mut self, ahead: bool, tap: Option<&mut dyn Tap>) -> Result<u32> {
        if self.waiting.is_empty() {
            return Err(wgkv::Error::argument("tokens read before the next", "1 or more", 0).into());
        }
        if ahead {
            self.step(1, true, tap)?;
        }
        self.fetch().await
    }

    /// Takes back what [`Session::next`] submitted ahead: the cache no longer holds the token that
    /// was returned last, and the one after it is forgotten.
    ///
    /// # Errors
    /// Those of [`Cache::truncate`].
    pub fn take_back(&mut self) -> Result<()> {
        let tokens = self.tokens()?;
        self.truncate(tokens.saturating_sub(1))
    }

    /// Cuts the text back to its first `tokens` tokens. What was chosen to follow is forgotten.
    ///
    /// # Errors
    /// Those of [`Cache::truncate`].
    pub fn truncate(&mut self, tokens: u32) -> Result<()> {
        // They are unmapped or never read: the next of each is a new one.
        self.waiting.clear();
        let mut recorder = Recorder::new(self.decoder.gpu(), "truncate");
        self.cache.truncate(recorder.encoder(), self.sequence, tokens)?;
        recorder.submit();
        Ok(())
    }

    /// Forgets everything that was read.
    ///
    /// # Errors
    /// None while the session lives.
    pub fn reset(&mut self) -> Result<()> {
        self.waiting.clear();
        self.cache.end(self.sequence)?;
        self.sequence = self.cache.begin()?;
        Ok(())
    }

    /// Gives the cache's memory back at once.
    pub fn destroy(self) {
        self.cache.destroy();
    }

    fn step(&mut self, tokens: u32, choose: bool, tap: Option<&mut dyn Tap>) -> Result<()> {
        let step = self.decoder.step(&mut self.work, &mut self.cache, &[Chunk { sequence: self.sequence, tokens }])?;
        let mut recorder = Recorder::new(self.decoder.gpu(), "step");
        self.decoder.forward(&mut recorder, &mut self.work, &self.cache, &step, tap)?;
        if !choose {
            recorder.submit();
            return Ok(());
        }
        if self.sampling.temperature > 0.0 {
            self.work.write_sampling(&[self.sampling.row(self.drawn)])?;
        }
        self.drawn += 1;
        self.decoder.score(&mut recorder, &mut self.work, Scored::Last)?;
        self.decoder.sample(&mut recorder, &mut self.work);
        let staging = self.idle.pop().unwrap_or_else(|| {
            self.decoder.gpu().device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("token"),
                size: 4,
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
                mapped_at_creation: false,
            })
        });
        recorder.encoder().copy_buffer_to_buffer(self.work.ids(), 0, &staging, 0, 4);
        let submission = recorder.submit();
        let (sender, mapped) = oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // Nobody waits for a token that was taken back.
            let _ = sender.send(result);
        });
        self.waiting.push_back(Waiting { staging, mapped, submission });
        Ok(())
    }

    async fn fetch(&mut self) -> Result<u32> {
        let gpu = self.decoder.gpu().clone();
        let Some(Waiting { staging, mapped, submission }) = self.waiting.pop_front() else {
            return Err(wgkv::Error::Readback("no token was chosen".into()).into());
        };
        let failed = |error: &dyn std::error::Error| match gpu.lost() {
            Some(reason) => wgkv::Error::Lost { reason: reason.to_owned() },
            None => wgkv::Error::Readback(error.to_string()),
        };
        gpu.device().poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout: None }).map_err(|error| failed(&error))?;
        mapped.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        let token = {
            let view = staging.get_mapped_range(..).map_err(|error| failed(&error))?;
            u32::from_le_bytes([view[0], view[1], view[2], view[3]])
        };
        staging.unmap();
        self.idle.push(staging);
        Ok(token)
    }
}
