//! Continuous batching: decode steps of many sequences of different lengths, which end and begin
//! all the time, against the same number of cached tokens in sequences of one length.
//!
//! ```text
//! cargo bench --bench serving -- [--sequences 4096] [--shortest 16] [--longest 8192] [--steps 10000] [--codec hadamard] [--bits 2,2] ...
//! cargo bench --bench serving -- --minutes 30 --sequences 1000
//! ```
//! `--help` lists all options. Lengths are drawn log-uniformly between the shortest and the
//! longest, and a part of each, drawn uniformly, is the prompt. Long sequences live longer, so
//! those that live at one time are longer than those drawn: the first ones are drawn as they would
//! be found in a batch that has run for ever, whose number of cached tokens stays about the same.
//!
//! A step of the ragged batch first ends the sequences that have reached their length and begins as
//! many others, whose prompts are appended whole in a separate step (or more). Then every sequence
//! decodes a token: one `Cache::step`, one `append`, one `attend`, one submission. The two are
//! timed apart, and the decode steps alone are compared with those of the equal batch: as many
//! sequences, in another cache, all of the mean length. Blocks of steps of the two batches
//! alternate; after each, the equal batch is cut back or grows to the ragged one's mean. GPU times
//! are of a step's whole compute pass, with the prompts' apart; wall times include everything.
//! Gtok/s = cached tokens x kv_heads / time of the decode steps. A step appends and attends in one
//! layer.
//!
//! Every few steps the pages are checked, a sequence is compared bit for bit with the same alone in
//! another cache, and its output with attention in f64. Memory may not grow. With `--minutes`,
//! random operations are checked in the same way instead, and nothing is timed.
#![allow(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]
#![allow(missing_docs, reason = "a bench has no readers")]

#[path = "serving/batch.rs"]
mod batch;
#[path = "serving/inputs.rs"]
mod inputs;
#[path = "serving/memory.rs"]
mod memory;
#[path = "serving/options.rs"]
mod options;
#[path = "serving/soak.rs"]
mod soak;

use batch::{Batch, Sums};
use inputs::{Alone, Done, Inputs, place};
use memory::Memory;
use options::{Options, USAGE, Words};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::process::ExitCode;
use std::time::Instant;
use wgkv::{Cache, Chunk, Gpu, Plan, Result};
use wgkv_testing::bench::{self, Case, gpu, submit, wait};

/// Blocks of either batch before anything is measured.
const WARM_UP: u32 = 4;

/// By how many standard deviations the cached tokens may exceed their mean before pages run out.
const DEVIATIONS: f64 = 6.0;

/// Makes a plan of one layer, for `tokens` tokens a sequence.
fn plan(gpu: &Gpu, options: &Options, sequences: u32, tokens: u32) -> Result<Plan> {
    let [query_heads, kv_heads, head_dim] = options.heads;
    let plan = bench::plan(gpu, Case { name: "", query_heads, kv_heads, head_dim, sequences, tokens }, options.format, options.protection, 0)?;
    plan.to_builder().query_rows(options.rows).build(gpu.capability())
}

/// Draws a length from the shortest to the longest, log-uniformly.
fn length(random: &mut StdRng, options: &Options) -> u32 {
    let [shortest, longest] = [options.shortest, options.longest].map(|tokens| f64::from(tokens).ln());
    let drawn = shortest + (longest - shortest) * random.random::<f64>();
    (drawn.exp().round() as u32).clamp(options.shortest, options.longest)
}

/// One sequence of the ragged batch.
#[derive(Clone, Copy)]
struct Life {
    /// Tokens that it ends with.
    target: u32,
    prompt: u32,
    /// The row at which its prompt began.
    row: u32,
    /// The batch's steps when it began.
    begun: u64,
}

impl Life {
    /// Draws one that begins now.
    fn begin(random: &mut StdRng, options: &Options, steps: u64) -> Self {
        let target = length(random, options);
        Self { target, prompt: random.random_range(1..target), row: 0, begun: steps }
    }

    /// Draws one as it is found in a batch that has run for ever. A sequence is found the more
    /// often the longer it lives, which makes log-uniform lengths uniform; of its length, the share
    /// that it has reached is the root of a uniform number.
    fn found(random: &mut StdRng, options: &Options) -> Self {
        let target = random.random_range(options.shortest..=options.longest);
        let reached = (f64::from(target) * random.random::<f64>().sqrt()) as u32;
        Self { target, prompt: reached.clamp(1, target - 1), row: 0, begun: 0 }
    }

    fn tokens(&self, steps: u64) -> u32 {
        self.prompt + (steps - self.begun) as u32
    }
}

/// Returns the tokens a sequence that the ragged batch has pages for by default: the mean of what
/// is found, and the margin above it.
fn pool_tokens(options: &Options) -> u32 {
    let [shortest, longest] = [options.shortest, options.longest].map(f64::from);
    // Two thirds of a uniform length; a single sequence's tokens deviate from that by a quarter of
    // the longest.
    let most = (shortest + longest) / 3.0 + DEVIATIONS * longest / 4.0 / f64::from(options.sequences).sqrt();
    // Each may have a page that is not full yet.
    (most.min(longest) as u32).next_multiple_of(128) + 128
}

struct Ragged {
    batch: Batch,
    lives: Vec<Life>,
    random: StdRng,
}

impl Ragged {
    fn new(gpu: &Gpu, inputs: &Inputs, options: &Options, plan: Plan, mut random: StdRng) -> Result<Self> {
        let mut batch = Batch::new(Cache::new(gpu, plan)?, options.depth, options.prefill);
        let mut lives: Vec<Life> = (0..options.sequences).map(|_| Life::found(&mut random, options)).collect();
        batch.sequences = lives.iter().map(|_| batch.cache.begin()).collect::<Result<_>>()?;
        let chunks: Vec<Chunk> = batch.sequences.iter().zip(&lives).map(|(sequence, life)| Chunk { sequence: *sequence, tokens: life.prompt }).collect();
        let rows = batch.append(inputs, &chunks)?;
        lives.iter_mut().zip(rows).for_each(|(life, row)| life.row = row);
        Ok(Self { batch, lives, random })
    }

    /// Ends the sequences that have reached their length, and begins others in their places.
    fn turn_over(&mut self, inputs: &Inputs, options: &Options) -> Result<()> {
        let start = Instant::now();
        let steps = self.batch.steps;
        let batch = &mut self.batch;
        let ended: Vec<usize> = (0..self.lives.len()).filter(|n| self.lives[*n].tokens(steps) >= self.lives[*n].target).collect();
        for n in &ended {
            batch.cache.end(batch.sequences[*n])?;
            batch.cached -= u64::from(self.lives[*n].tokens(steps));
        }
        let mut chunks = Vec::with_capacity(ended.len());
        for n in &ended {
            self.lives[*n] = Life::begin(&mut self.random, options, steps);
            batch.sequences[*n] = batch.cache.begin()?;
            chunks.push(Chunk { sequence: batch.sequences[*n], tokens: self.lives[*n].prompt });
        }
        batch.sums.begun += chunks.len() as u64;
        batch.sums.turn_over += start.elapsed().as_secs_f64();
        let rows = batch.append(inputs, &chunks)?;
        ended.iter().zip(rows).for_each(|(n, row)| self.lives[*n].row = row);
        Ok(())
    }

    fn block(&mut self, inputs: &Inputs, options: &Options, steps: u32) -> Result<Sums> {
        self.batch.start();
        for _ in 0..steps {
            self.turn_over(inputs, options)?;
            self.batch.decode(inputs)?;
        }
        Ok(self.batch.stop())
    }

    /// Checks the pages, the length of every sequence, and all of one sequence, drawn at random;
    /// returns its output's error.
    fn check(&mut self, inputs: &Inputs, alone: &mut Alone, bytes: u64) -> f64 {
        let (batch, steps) = (&self.batch, self.batch.steps);
        assert_eq!(batch.cache.check_pages(), Ok(self.lives.len() as u32));
        assert_eq!(batch.cache.bytes(), bytes);
        for (sequence, life) in batch.sequences.iter().zip(&self.lives) {
            assert_eq!(batch.cache.tokens(*sequence), Ok(life.tokens(steps)));
        }
        let n = self.random.random_range(0..self.lives.len());
        let life = self.lives[n];
        let mut done = vec![Done::Appended { row: life.row, tokens: life.prompt }];
        done.extend((life.begun..steps).map(|step| Done::Appended { row: place(step) + n as u32, tokens: 1 }));
        alone.assert_same(inputs, &batch.cache, batch.sequences[n], &done);
        inputs.check_output(&batch.cache, batch.sequences[n], n as u32)
    }

    /// Ends all sequences, after which all pages are there again.
    fn end(mut self) {
        for sequence in self.batch.sequences.drain(..) {
            self.batch.cache.end(sequence).unwrap();
        }
        assert_eq!(self.batch.cache.check_pages(), Ok(0));
        assert_eq!(self.batch.cache.free_pages(), self.batch.cache.plan().pages());
    }
}

/// Brings all sequences of the equal batch to `length` tokens.
fn level(gpu: &Gpu, inputs: &Inputs, batch: &mut Batch, length: u32) -> Result<()> {
    let mut encoder = wgkv_testing::encoder(gpu);
    let mut chunks = Vec::new();
    for sequence in batch.sequences.clone() {
        let tokens = batch.cache.tokens(sequence)?;
        if tokens < length {
            chunks.push(Chunk { sequence, tokens: length - tokens });
        } else {
            batch.cache.truncate(&mut encoder, sequence, length)?;
            batch.cached -= u64::from(tokens - length);
        }
    }
    submit(gpu, encoder);
    batch.append(inputs, &chunks)?;
    Ok(())
}

/// Runs a block of the equal batch, brought to as many tokens on average as the ragged one holds
/// now.
fn equal_block(gpu: &Gpu, inputs: &Inputs, batch: &mut Batch, steps: u32, mean: u32) -> Result<Sums> {
    level(gpu, inputs, batch, mean.saturating_sub(steps / 2).max(1))?;
    batch.start();
    for _ in 0..steps {
        batch.decode(inputs)?;
    }
    Ok(batch.stop())
}

/// Prints a line of the report: the ragged batch, then the equal one.
fn line(what: &str, of: [Option<f64>; 2], decimals: usize) {
    let [ragged, equal] = of.map(|number| number.map_or("-".into(), |number| format!("{number:.decimals$}")));
    println!("{what:>44} {ragged:>12} {equal:>12}");
}

fn report(sums: &[Sums; 2], kv_heads: u32) {
    let a_step = |what, of: fn(&Sums) -> f64, decimals| line(what, sums.each_ref().map(|sums| Some(of(sums) / sums.steps as f64)), decimals);
    let micros = |what, of: fn(&Sums) -> Option<f64>| line(what, sums.each_ref().map(|sums| of(sums).map(|seconds| seconds * 1e6 / sums.steps as f64)), 1);
    println!("{:>44} {:>12} {:>12}", "a step", "ragged", "equal");
    a_step("cached tokens", |sums| sums.tokens as f64, 0);
    micros("decoding, GPU us", |sums| sums.gpu);
    line("Gtok/s", sums.each_ref().map(|sums| Some(sums.throughput() * f64::from(kv_heads) * 1e-9)), 2);
    micros("wall us, prompts and all", |sums| Some(sums.wall));
    micros("decoding, host us in Cache::step", |sums| Some(sums.step));
    micros("host us in append and attend", |sums| Some(sums.record));
    micros("host us in finish and submit", |sums| Some(sums.submit));
    a_step("tables, kB", |sums| sums.table_bytes as f64 * 1e-3, 1);
    a_step("sequences begun", |sums| sums.begun as f64, 2);
    micros("host us in end and begin", |sums| Some(sums.turn_over));
    a_step("prompt tokens", |sums| sums.prompt_tokens as f64, 1);
    micros("prompts, GPU us", |sums| sums.prompt_gpu);
    micros("prompts, host us", |sums| Some(sums.prompt_host));
}

fn throughput(gpu: &Gpu, options: &Options, random: StdRng) -> Result<()> {
    let pool = options.pool.unwrap_or_else(|| pool_tokens(options));
    let ragged_plan = plan(gpu, options, options.sequences, pool)?;
    // Leaves room for a block's own tokens.
    let equal_plan = plan(gpu, options, options.sequences, pool + options.block)?;
    let alone_plan = plan(gpu, options, 1, options.longest)?;
    for plan in [&ragged_plan, &equal_plan, &alone_plan] {
        pollster::block_on(gpu.prepare(plan))?;
    }
    let inputs = Inputs::new(gpu, options)?;
    let mut alone = Alone::new(gpu, alone_plan, &inputs)?;
    let mut ragged = Ragged::new(gpu, &inputs, options, ragged_plan, random)?;
    let mut equal = Batch::new(Cache::new(gpu, equal_plan)?, options.depth, false);
    equal.sequences = ragged.lives.iter().map(|_| equal.cache.begin()).collect::<Result<_>>()?;
    let (bytes, equal_bytes) = (ragged.batch.cache.bytes(), equal.cache.bytes());
    println!("pool of {pool} tokens a sequence, {} pages, {:.1} MB", ragged.batch.cache.plan().pages(), bytes as f64 * 1e-6);

    let mean = |ragged: &Ragged| (ragged.batch.cached / u64::from(options.sequences)) as u32;
    for _ in 0..WARM_UP {
        ragged.block(&inputs, options, options.block)?;
        ragged.check(&inputs, &mut alone, bytes);
        equal_block(gpu, &inputs, &mut equal, options.block, mean(&ragged))?;
        inputs.check_output(&equal.cache, equal.sequences[0], 0);
    }
    let before = Memory::now(gpu);
    println!("memory at first: {before}");
    let mut sums = [Sums::default(); 2];
    let mut ratios = Vec::new();
    let mut done = 0;
    while done < options.steps {
        let steps = options.block.min(options.steps - done);
        let of_ragged = ragged.block(&inputs, options, steps)?;
        let checked = (done + steps) / options.check > done / options.check || done + steps == options.steps;
        let error = checked.then(|| ragged.check(&inputs, &mut alone, bytes));
        let of_equal = equal_block(gpu, &inputs, &mut equal, steps, mean(&ragged))?;
        ratios.push(of_ragged.throughput() / of_equal.throughput());
        sums[0].add(&of_ragged);
        sums[1].add(&of_equal);
        done += steps;
        if let Some(error) = error {
            let equal_error = inputs.check_output(&equal.cache, equal.sequences[0], 0);
            let (cached, free) = (ragged.batch.cached, ragged.batch.cache.free_pages());
            println!("{done:>10} steps: {cached} tokens, {free} pages free, error {error:.5} (equal batch {equal_error:.5}); {}", Memory::now(gpu));
            Memory::now(gpu).assert_not_above(&before);
        }
    }
    println!("memory at last: {}", Memory::now(gpu));

    report(&sums, options.heads[1]);
    ratios.sort_by(f64::total_cmp);
    let clock = if sums[0].gpu.is_some() { "by the GPU's clock" } else { "by the wall's clock, with the prompts" };
    println!(
        "throughput of ragged against equal: {:.3} {clock} (by block: lowest {:.3}, median {:.3}, highest {:.3})",
        sums[0].throughput() / sums[1].throughput(),
        ratios[0],
        ratios[ratios.len() / 2],
        ratios[ratios.len() - 1]
    );
    ragged.end();
    assert_eq!(equal.cache.bytes(), equal_bytes);
    assert_eq!(equal.cache.check_pages(), Ok(options.sequences));
    println!("all sequences ended: no page is lost");
    Ok(())
}

fn run() -> std::result::Result<(), String> {
    let words = Words::new(std::env::args().skip(1))?;
    if words.has("--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let gpu = gpu();
    let options = Options::new(&words, !gpu.capability().straight)?;
    let gpu = if words.has("--workgroup") { gpu.pretend(gpu.capability().without_subgroups()) } else { gpu };
    let seed = options.seed.unwrap_or_else(|| rand::rng().next_u64());
    let [query_heads, kv_heads, head_dim] = options.heads;
    println!("{}: {}, heads {query_heads}/{kv_heads}/{head_dim}, --seed {seed}", gpu.adapter_name(), options.format);
    println!("{} sequences of {} to {} tokens", options.sequences, options.shortest, options.longest);
    let random = StdRng::seed_from_u64(seed);
    let result = match options.minutes {
        Some(minutes) => soak::run(&gpu, &options, minutes, random),
        None => throughput(&gpu, &options, random),
    };
    wait(&gpu);
    result.map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serving: {error} (--help lists all options)");
            ExitCode::from(2)
        }
    }
}
