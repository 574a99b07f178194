//! Random operations for minutes on a cache that is too small for them.

use crate::batch::InFlight;
use crate::inputs::{Alone, Done, Inputs, place};
use crate::memory::Memory;
use crate::options::Options;
use rand::RngExt;
use rand::rngs::StdRng;
use std::time::{Duration, Instant};
use wgkv::{Cache, Chunk, Error, Gpu, Result, Rows, Sequence};
use wgkv_testing::encoder;

/// Operations between two sequences that are compared with the same alone.
const CHECKED: u64 = 100;

/// Operations after which a sequence is not forked: it would take ever longer to make its forks'
/// forks again.
const HISTORY: usize = 256;

/// Sequences of a step that grows some.
const GROWN: usize = 64;

/// One of this number of sequences is ended where a step found no pages.
const PREEMPTED: usize = 16;

/// One live sequence, and how it came to what it holds.
#[derive(Clone)]
struct Held {
    sequence: Sequence,
    tokens: u32,
    done: Vec<Done>,
}

/// Operations that were carried out, and refusals.
#[derive(Debug, Default)]
struct Count {
    begun: u64,
    grown: u64,
    decoded: u64,
    forked: u64,
    cut: u64,
    freed: u64,
    compared: u64,
    no_pages: u64,
    no_sequence: u64,
}

struct Soak<'a> {
    options: &'a Options,
    inputs: Inputs,
    cache: Cache,
    alone: Alone,
    held: Vec<Held>,
    random: StdRng,
    in_flight: InFlight,
    count: Count,
}

impl Soak<'_> {
    fn submit(&mut self, encoder: wgpu::CommandEncoder) {
        self.in_flight.submit(self.cache.gpu(), encoder);
        self.in_flight.wait(self.cache.gpu());
    }

    /// Returns the result of an operation, or nothing if it was refused because sequences or pages
    /// are short. Other errors are failures.
    fn short<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(done) => return Some(done),
            Err(Error::Pages { need, have }) if need > have && have == self.cache.free_pages() => self.count.no_pages += 1,
            Err(Error::Sequences { have }) if have as usize == self.held.len() => self.count.no_sequence += 1,
            Err(error) => panic!("{error}"),
        }
        None
    }

    /// Draws one operation and carries it out.
    fn turn(&mut self) {
        let operation = self.random.random_range(0..20);
        if self.held.is_empty() || operation < 6 {
            return self.begin();
        }
        let n = self.random.random_range(0..self.held.len());
        match operation {
            6..11 => self.grow(),
            11..13 => self.decode(),
            13..15 if self.held[n].done.len() <= HISTORY => self.fork(n),
            15..17 => self.cut(n),
            _ => self.end(n),
        }
    }

    /// Admits a prompt, if there is room.
    fn begin(&mut self) {
        let begun = self.cache.begin();
        let Some(sequence) = self.short(begun) else { return };
        self.held.push(Held { sequence, tokens: 0, done: Vec::new() });
        let (n, prompt) = (self.held.len() - 1, crate::length(&mut self.random, self.options));
        if self.step(&[(n, prompt)], false) {
            self.count.begun += 1;
        } else {
            self.end(n);
        }
    }

    /// Grows some sequences, by one token or many.
    fn grow(&mut self) {
        let most = GROWN.min(self.held.len());
        let count = self.random.random_range(1..=most);
        let first = self.random.random_range(0..self.held.len());
        let mut left = self.inputs.rows;
        let mut chunks = Vec::new();
        for n in (0..count).map(|n| (first + n) % self.held.len()) {
            let room = left.min(self.options.longest.saturating_sub(self.held[n].tokens));
            let tokens = if self.random.random_range(0..2) == 0 { 1 } else { self.random.random_range(1..=200) }.min(room);
            if tokens > 0 {
                chunks.push((n, tokens));
                left -= tokens;
            }
        }
        if self.step(&chunks, self.options.prefill) {
            self.count.grown += 1;
        } else {
            self.preempt();
        }
    }

    /// Decodes a token of every sequence.
    fn decode(&mut self) {
        let chunks: Vec<(usize, u32)> = (0..self.held.len()).filter(|n| self.held[*n].tokens < self.options.longest).map(|n| (n, 1)).collect();
        if !self.step(&chunks, true) {
            return self.preempt();
        }
        self.count.decoded += 1;
        // The last attention is compared with f64 now and then.
        if self.count.decoded % CHECKED == 1 && !chunks.is_empty() {
            let row = self.random.random_range(0..chunks.len());
            self.inputs.check_output(&self.cache, self.held[chunks[row].0].sequence, row as u32);
        }
    }

    /// Ends some sequences, so that the others can go on.
    fn preempt(&mut self) {
        for _ in 0..self.held.len().div_ceil(PREEMPTED) {
            let n = self.random.random_range(0..self.held.len());
            self.end(n);
        }
    }

    /// Takes a step of these sequences, each by its tokens; returns whether there was room.
    fn step(&mut self, chunks: &[(usize, u32)], attend: bool) -> bool {
        if chunks.is_empty() {
            return false;
        }
        let named: Vec<Chunk> = chunks.iter().map(|(n, tokens)| Chunk { sequence: self.held[*n].sequence, tokens: *tokens }).collect();
        let (admission, free) = (self.cache.can_append(&named).unwrap(), self.cache.free_pages());
        let stepped = self.cache.step(&named);
        assert_eq!(stepped.is_ok(), admission.fits());
        let Some(step) = self.short(stepped) else { return false };
        assert_eq!(free - self.cache.free_pages(), admission.pages_needed);
        let mut row = place(self.random.random());
        let [keys, values] = self.inputs.from(row);
        let mut encoder = encoder(self.cache.gpu());
        self.cache.append(&mut encoder, &step, 0, keys, values).unwrap();
        if attend {
            self.cache.attend(&mut encoder, &step, 0, Rows::f32(&self.inputs.queries), Rows::f32(&self.inputs.output)).unwrap();
        }
        for (n, tokens) in chunks {
            self.held[*n].done.push(Done::Appended { row, tokens: *tokens });
            self.held[*n].tokens += tokens;
            row += tokens;
        }
        self.submit(encoder);
        true
    }

    fn fork(&mut self, n: usize) {
        let mut encoder = encoder(self.cache.gpu());
        let forked = self.cache.fork(&mut encoder, self.held[n].sequence);
        self.submit(encoder);
        let Some(sequence) = self.short(forked) else { return };
        let held = Held { sequence, ..self.held[n].clone() };
        self.held.push(held);
        self.count.forked += 1;
    }

    fn cut(&mut self, n: usize) {
        let tokens = self.random.random_range(0..=self.held[n].tokens);
        let mut encoder = encoder(self.cache.gpu());
        let cut = self.cache.truncate(&mut encoder, self.held[n].sequence, tokens);
        self.submit(encoder);
        if self.short(cut).is_some() {
            self.held[n].tokens = tokens;
            self.held[n].done.push(Done::Cut(tokens));
            self.count.cut += 1;
        }
    }

    fn end(&mut self, n: usize) {
        let held = self.held.swap_remove(n);
        self.cache.end(held.sequence).unwrap();
        self.count.freed += 1;
    }

    fn check(&mut self, operations: u64) {
        assert_eq!(self.cache.check_pages(), Ok(self.held.len() as u32));
        if !operations.is_multiple_of(CHECKED) || self.held.is_empty() {
            return;
        }
        for held in &self.held {
            assert_eq!(self.cache.tokens(held.sequence), Ok(held.tokens));
        }
        let n = self.random.random_range(0..self.held.len());
        self.alone.assert_same(&self.inputs, &self.cache, self.held[n].sequence, &self.held[n].done);
        self.count.compared += 1;
    }
}

pub fn run(gpu: &Gpu, options: &Options, minutes: f64, random: StdRng) -> Result<()> {
    // A third of the tokens that sequences of these lengths would hold on average, or the longest
    // one's: pages run out again and again.
    let pool = options.pool.unwrap_or((options.shortest + options.longest) / 12).max(options.longest.div_ceil(options.sequences));
    let plan = crate::plan(gpu, options, options.sequences, pool)?;
    let alone = crate::plan(gpu, options, 1, options.longest)?;
    pollster::block_on(gpu.prepare(&plan))?;
    pollster::block_on(gpu.prepare(&alone))?;
    let inputs = Inputs::new(gpu, options)?;
    let alone = Alone::new(gpu, alone, &inputs)?;
    let cache = Cache::new(gpu, plan)?;
    let in_flight = InFlight::new(options.depth);
    let mut soak = Soak { options, inputs, cache, alone, held: Vec::new(), random, in_flight, count: Count::default() };
    let bytes = soak.cache.bytes();
    println!("pool of {pool} tokens a sequence, {} pages, {:.1} MB", soak.cache.plan().pages(), bytes as f64 * 1e-6);

    // The first report is after the warm-up, and every later one must have no more memory.
    let whole = Duration::from_secs_f64(60.0 * minutes);
    let interval = Duration::from_secs(60).min(whole / 5);
    let start = Instant::now();
    let (mut operations, mut reports, mut before) = (0, 0, None);
    while start.elapsed() < whole {
        soak.turn();
        operations += 1;
        soak.check(operations);
        if start.elapsed() >= interval * (reports + 1) {
            reports += 1;
            let memory = Memory::now(gpu);
            let (live, free) = (soak.held.len(), soak.cache.free_pages());
            println!("{:>8.1} min: {operations} operations, {live} sequences, {free} pages free; {memory}", start.elapsed().as_secs_f64() / 60.0);
            memory.assert_not_above(before.get_or_insert(memory));
            assert_eq!(soak.cache.bytes(), bytes);
        }
    }
    println!("{:?}", soak.count);
    while !soak.held.is_empty() {
        soak.end(0);
    }
    assert_eq!(soak.cache.check_pages(), Ok(0));
    assert_eq!(soak.cache.free_pages(), soak.cache.plan().pages());
    println!("all sequences ended: no page is lost");
    Ok(())
}
