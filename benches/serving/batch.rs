//! A batch of which every step decodes one token of each sequence, and what its steps cost.

use crate::inputs::{Inputs, place};
use std::collections::VecDeque;
use std::time::Instant;
use wgkv::{Cache, Chunk, Gpu, Result, Rows, Sequence};

/// Compute passes that are timed: WebGPU lets a set hold 4096 timestamps at most.
const PASSES: u32 = 2048;

/// The GPU's clock around compute passes.
struct Clock {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    used: u32,
}

impl Clock {
    /// Makes the clock; none without the feature.
    fn new(gpu: &Gpu) -> Option<Self> {
        let device = gpu.device();
        device.features().contains(wgpu::Features::TIMESTAMP_QUERY).then(|| Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor { label: Some("bench"), ty: wgpu::QueryType::Timestamp, count: 2 * PASSES }),
            resolved: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("bench"),
                size: 16 * u64::from(PASSES),
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            used: 0,
        })
    }

    /// Returns where the next pass writes its timestamps.
    fn next(&mut self) -> wgpu::ComputePassTimestampWrites<'_> {
        let first = 2 * self.used;
        assert!(self.used < PASSES, "a block has more than {PASSES} passes: choose a smaller --block");
        self.used += 1;
        wgpu::ComputePassTimestampWrites { query_set: &self.queries, beginning_of_pass_write_index: Some(first), end_of_pass_write_index: Some(first + 1) }
    }

    /// Waits, and returns the seconds of all passes since the last time.
    fn take(&mut self, gpu: &Gpu) -> f64 {
        let used = std::mem::take(&mut self.used);
        if used == 0 {
            return 0.0;
        }
        let mut encoder = wgkv_testing::encoder(gpu);
        encoder.resolve_query_set(&self.queries, 0..2 * used, &self.resolved, 0);
        wgkv_testing::submit(gpu, encoder);
        let words = pollster::block_on(gpu.read(&self.resolved, 0, 4 * u64::from(used))).unwrap();
        let ticks: Vec<u64> = words.chunks_exact(2).map(|w| u64::from(w[0]) | u64::from(w[1]) << 32).collect();
        let passes = ticks.chunks_exact(2).map(|t| t[1].saturating_sub(t[0]));
        passes.sum::<u64>() as f64 * f64::from(gpu.queue().get_timestamp_period()) * 1e-9
    }
}

/// Submissions that the GPU has not finished. The host waits for the oldest when there are too
/// many.
pub struct InFlight {
    depth: usize,
    submissions: VecDeque<wgpu::SubmissionIndex>,
}

impl InFlight {
    pub fn new(depth: usize) -> Self {
        Self { depth, submissions: VecDeque::new() }
    }

    pub fn submit(&mut self, gpu: &Gpu, encoder: wgpu::CommandEncoder) {
        self.submissions.push_back(gpu.queue().submit([encoder.finish()]));
    }

    pub fn wait(&mut self, gpu: &Gpu) {
        while self.submissions.len() > self.depth {
            let oldest = self.submissions.pop_front();
            gpu.device().poll(wgpu::PollType::Wait { submission_index: oldest, timeout: None }).unwrap();
        }
    }
}

/// What decode steps took, in seconds all together.
#[derive(Clone, Copy, Default)]
pub struct Sums {
    pub steps: u64,
    /// Cached tokens that were attended to.
    pub tokens: u64,
    /// From the first step's beginning to the last's end, prompts and all.
    pub wall: f64,
    /// By the GPU's clock: append and attend of decode steps, and the same of prompts.
    pub gpu: Option<f64>,
    pub prompt_gpu: Option<f64>,
    /// Of the host: `Cache::step`, recording, finishing and submitting.
    pub step: f64,
    pub record: f64,
    pub submit: f64,
    pub table_bytes: u64,
    /// Sequences that began, and their prompts' tokens.
    pub begun: u64,
    pub prompt_tokens: u64,
    /// Of the host: ending sequences and beginning others, and their prompts' steps, recording and
    /// submitting.
    pub turn_over: f64,
    pub prompt_host: f64,
}

impl Sums {
    pub fn add(&mut self, more: &Self) {
        let both = |a: Option<f64>, b: Option<f64>| Some(a.unwrap_or(0.0) + b?);
        self.steps += more.steps;
        self.tokens += more.tokens;
        self.wall += more.wall;
        self.gpu = both(self.gpu, more.gpu);
        self.prompt_gpu = both(self.prompt_gpu, more.prompt_gpu);
        self.step += more.step;
        self.record += more.record;
        self.submit += more.submit;
        self.table_bytes += more.table_bytes;
        self.begun += more.begun;
        self.prompt_tokens += more.prompt_tokens;
        self.turn_over += more.turn_over;
        self.prompt_host += more.prompt_host;
    }

    /// Returns the cached tokens attended to a second: by the GPU's clock, or by the wall clock
    /// where there is none.
    pub fn throughput(&self) -> f64 {
        self.tokens as f64 / self.gpu.unwrap_or(self.wall)
    }
}

pub struct Batch {
    pub cache: Cache,
    pub sequences: Vec<Sequence>,
    /// Decode steps so far.
    pub steps: u64,
    /// Cached tokens of all sequences.
    pub cached: u64,
    pub sums: Sums,
    in_flight: InFlight,
    decode_clock: Option<Clock>,
    prompt_clock: Option<Clock>,
    /// Since when steps are timed, if they are.
    started: Option<Instant>,
    /// Whether prompts attend.
    prefill: bool,
}

impl Batch {
    pub fn new(cache: Cache, depth: usize, prefill: bool) -> Self {
        let gpu = cache.gpu();
        Self {
            sequences: Vec::new(),
            steps: 0,
            cached: 0,
            sums: Sums::default(),
            in_flight: InFlight::new(depth),
            decode_clock: Clock::new(gpu),
            prompt_clock: Clock::new(gpu),
            started: None,
            prefill,
            cache,
        }
    }

    /// Appends prompts whole, as many in a step as its rows allow; returns the row that each begins
    /// at.
    pub fn append(&mut self, inputs: &Inputs, chunks: &[Chunk]) -> Result<Vec<u32>> {
        let mut first_rows = Vec::with_capacity(chunks.len());
        let mut from = 0;
        while from < chunks.len() {
            let (mut end, mut rows) = (from, 0);
            while end < chunks.len() && rows + chunks[end].tokens <= inputs.rows {
                first_rows.push(rows);
                rows += chunks[end].tokens;
                end += 1;
            }
            assert!(end > from, "a prompt of {} tokens, in steps of {} rows", chunks[from].tokens, inputs.rows);
            self.append_step(inputs, &chunks[from..end])?;
            self.sums.prompt_tokens += u64::from(rows);
            self.cached += u64::from(rows);
            from = end;
        }
        Ok(first_rows)
    }

    fn append_step(&mut self, inputs: &Inputs, chunks: &[Chunk]) -> Result<()> {
        let start = Instant::now();
        let step = self.cache.step(chunks)?;
        let mut encoder = wgkv_testing::encoder(self.cache.gpu());
        let timestamp_writes = self.prompt_clock.as_mut().filter(|_| self.started.is_some()).map(Clock::next);
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("prompts"), timestamp_writes });
        let [keys, values] = inputs.from(0);
        self.cache.append_in(&mut pass, &step, 0, keys, values)?;
        if self.prefill && self.started.is_some() {
            self.cache.attend_in(&mut pass, &step, 0, Rows::f32(&inputs.queries), Rows::f32(&inputs.output))?;
        }
        drop(pass);
        self.in_flight.submit(self.cache.gpu(), encoder);
        self.sums.prompt_host += start.elapsed().as_secs_f64();
        self.in_flight.wait(self.cache.gpu());
        Ok(())
    }

    /// Decodes one more token of every sequence: one step, one append, one attend, one submission.
    pub fn decode(&mut self, inputs: &Inputs) -> Result<()> {
        let chunks: Vec<Chunk> = self.sequences.iter().map(|sequence| Chunk { sequence: *sequence, tokens: 1 }).collect();
        let start = Instant::now();
        let step = self.cache.step(&chunks)?;
        let stepped = Instant::now();
        let gpu = self.cache.gpu();
        let mut encoder = wgkv_testing::encoder(gpu);
        let timestamp_writes = self.decode_clock.as_mut().filter(|_| self.started.is_some()).map(Clock::next);
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("decode"), timestamp_writes });
        let [keys, values] = inputs.from(place(self.steps));
        self.cache.append_in(&mut pass, &step, 0, keys, values)?;
        self.cache.attend_in(&mut pass, &step, 0, Rows::f32(&inputs.queries), Rows::f32(&inputs.output))?;
        drop(pass);
        let recorded = Instant::now();
        self.in_flight.submit(gpu, encoder);
        let submitted = Instant::now();
        self.in_flight.wait(gpu);
        self.steps += 1;
        self.cached += chunks.len() as u64;
        let sums = &mut self.sums;
        sums.steps += 1;
        sums.tokens += self.cached;
        sums.step += (stepped - start).as_secs_f64();
        sums.record += (recorded - stepped).as_secs_f64();
        sums.submit += (submitted - recorded).as_secs_f64();
        sums.table_bytes += 4 * step.words().tables.len() as u64;
        Ok(())
    }

    /// Starts the timing of steps, until [`Batch::stop`].
    pub fn start(&mut self) {
        wgkv_testing::wait(self.cache.gpu());
        // What ran before is not counted.
        self.sums = Sums::default();
        self.started = Some(Instant::now());
    }

    /// Waits for the steps since [`Batch::start`], and returns what they took.
    pub fn stop(&mut self) -> Sums {
        let gpu = self.cache.gpu();
        wgkv_testing::wait(gpu);
        self.sums.wall = self.started.take().map_or(0.0, |start| start.elapsed().as_secs_f64());
        self.sums.gpu = self.decode_clock.as_mut().map(|clock| clock.take(gpu));
        self.sums.prompt_gpu = self.prompt_clock.as_mut().map(|clock| clock.take(gpu));
        self.sums
    }
}
