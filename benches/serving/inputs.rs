//! Rows that steps append and attend with, and a second cache in which a sequence is made again,
//! alone.

use crate::options::Options;
use wgkv::{Cache, Chunk, Error, Gpu, Plan, Result, Rows, Sequence};
use wgkv_testing::bench::*;

/// Rows between two places that steps take their rows from: whatever the heads, a row that may be
/// bound.
const PLACE_ROWS: u32 = 64;

/// Places, so that a sequence's tokens differ from one step to the next.
const PLACES: u32 = 16;

/// Steps that are recorded before they are submitted when a sequence is made again.
const REPLAYED: usize = 64;

/// Tokens that are compared at a time.
const COMPARED: u32 = 4096;

/// What was done to a sequence.
#[derive(Clone, Copy, Debug)]
pub enum Done {
    /// Tokens were appended from this row of the keys and values on.
    Appended { row: u32, tokens: u32 },
    /// It was cut back to this number of tokens.
    Cut(u32),
}

/// Uniform random numbers, uploaded once.
pub struct Inputs {
    pub case: Case,
    /// Rows that a step may have.
    pub rows: u32,
    pub keys: wgpu::Buffer,
    pub values: wgpu::Buffer,
    pub queries: wgpu::Buffer,
    pub output: wgpu::Buffer,
}

/// The first row of a step's keys and values.
pub fn place(step: u64) -> u32 {
    PLACE_ROWS * (step % u64::from(PLACES)) as u32
}

impl Inputs {
    pub fn new(gpu: &Gpu, options: &Options) -> Result<Self> {
        let [query_heads, kv_heads, head_dim] = options.heads;
        let case = Case { name: "", query_heads, kv_heads, head_dim, sequences: options.sequences, tokens: options.longest };
        let rows = options.sequences.max(options.longest);
        // Prompts need queries only where they attend.
        let attending = if options.prefill { rows } else { options.sequences };
        let count = [rows + PLACE_ROWS * PLACES, attending].map(|rows| rows as usize * head_dim as usize);
        let [key_count, query_count] = [count[0] * kv_heads as usize, count[1] * query_heads as usize];
        let (need, have) = (4 * key_count.max(query_count) as u64, gpu.capability().binding_bytes);
        if need > have {
            return Err(Error::Limit { what: "max_storage_buffer_binding_size", reason: "rows of a step", need, have });
        }
        let query_numbers = numbers(query_count);
        Ok(Self {
            case,
            rows,
            keys: upload(gpu, &numbers(key_count)),
            values: upload(gpu, &numbers(key_count + 17)[17..]),
            output: upload(gpu, &vec![f32::NAN; query_numbers.len()]),
            queries: upload(gpu, &query_numbers),
        })
    }

    fn row_bytes(&self) -> u64 {
        4 * u64::from(self.case.kv_heads * self.case.head_dim)
    }

    /// Keys and values from a place on.
    pub fn from(&self, row: u32) -> [Rows<'_>; 2] {
        [&self.keys, &self.values].map(|buffer| Rows::f32(buffer).at(u64::from(row) * self.row_bytes()))
    }

    /// Checks what the last step gave for the sequence of one of its rows: against attention in f64
    /// over the cache's rows.
    pub fn check_output(&self, cache: &Cache, sequence: Sequence, row: u32) -> f64 {
        let share = u64::from(self.case.query_heads / self.case.kv_heads * self.case.head_dim);
        let offset = 4 * u64::from(row) * u64::from(self.case.query_heads * self.case.head_dim);
        let read = |buffer| -> Vec<f32> { bytemuck::cast_slice(&pollster::block_on(cache.gpu().read(buffer, offset, share)).unwrap()).to_vec() };
        check(cache.gpu(), cache, self.case, sequence, &read(&self.queries), &read(&self.output))
    }
}

/// A cache of one sequence.
pub struct Alone {
    cache: Cache,
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
}

impl Alone {
    pub fn new(gpu: &Gpu, plan: Plan, inputs: &Inputs) -> Result<Self> {
        let rows = || {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("bench"),
                size: u64::from(inputs.rows) * inputs.row_bytes(),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        Ok(Self { cache: Cache::new(gpu, plan)?, keys: rows(), values: rows() })
    }

    /// Does the same to a sequence of its own, step by step, and compares the two, bit for bit.
    ///
    /// # Panics
    /// If a number of one differs from the other's.
    pub fn assert_same(&mut self, inputs: &Inputs, cache: &Cache, sequence: Sequence, done: &[Done]) {
        let gpu = cache.gpu();
        let alone = self.cache.begin().unwrap();
        for some in done.chunks(REPLAYED) {
            let mut encoder = encoder(gpu);
            some.iter().for_each(|done| self.replay(inputs, &mut encoder, alone, *done));
            submit(gpu, encoder);
        }
        let tokens = cache.tokens(sequence).unwrap();
        assert_eq!(self.cache.tokens(alone), Ok(tokens));
        for first in (0..tokens).step_by(COMPARED as usize) {
            let range = first..tokens.min(first + COMPARED);
            let stored = self::stored(cache, sequence, range.clone(), inputs.row_bytes());
            assert!(stored == self::stored(&self.cache, alone, range, inputs.row_bytes()), "slot {} holds other tokens than it was given", sequence.slot());
        }
        self.cache.end(alone).unwrap();
    }

    fn replay(&mut self, inputs: &Inputs, encoder: &mut wgpu::CommandEncoder, alone: Sequence, done: Done) {
        let (row, tokens) = match done {
            Done::Cut(tokens) => return self.cache.truncate(encoder, alone, tokens).unwrap(),
            Done::Appended { row, tokens } => (row, tokens),
        };
        // Rows that stand anywhere may not be bound where they stand.
        let (from, bytes) = (u64::from(row) * inputs.row_bytes(), u64::from(tokens) * inputs.row_bytes());
        encoder.copy_buffer_to_buffer(&inputs.keys, from, &self.keys, 0, bytes);
        encoder.copy_buffer_to_buffer(&inputs.values, from, &self.values, 0, bytes);
        let step = self.cache.step(&[Chunk { sequence: alone, tokens }]).unwrap();
        self.cache.append(encoder, &step, 0, Rows::f32(&self.keys), Rows::f32(&self.values)).unwrap();
    }
}

/// The bits of some of a sequence's restored keys and values.
fn stored(cache: &Cache, sequence: Sequence, tokens: std::ops::Range<u32>, row_bytes: u64) -> [Vec<u32>; 2] {
    let gpu = cache.gpu();
    let numbers = u64::from(tokens.end - tokens.start) * row_bytes / 4;
    let rows = [0, 1].map(|_| upload(gpu, &vec![f32::NAN; numbers as usize]));
    let mut encoder = encoder(gpu);
    cache.dequantize(&mut encoder, sequence, 0, tokens, Rows::f32(&rows[0]), Rows::f32(&rows[1])).unwrap();
    submit(gpu, encoder);
    rows.map(|rows| pollster::block_on(gpu.read(&rows, 0, numbers)).unwrap())
}
