//! A text as a model would show it to a cache, and a cache that reads it, layer by layer.

use crate::{download, encoder, normals, poisoned, submit, upload, words};
use rand::rngs::StdRng;
use wgkv::{Cache, Chunk, Gpu, Plan, Result, Rows, Sequence, Shape};

/// Numbers of a row of the residual stream.
pub const STREAM: usize = 8;

/// Keys, values, queries and the residual stream of every token.
#[derive(Clone, Debug)]
pub struct Text {
    /// By layer.
    pub layers: Vec<[Vec<f32>; 4]>,
}

impl Text {
    /// Returns numbers that are normal.
    pub fn normal(random: &mut StdRng, shape: &Shape, tokens: usize) -> Self {
        let widths = Self::widths(shape);
        Self { layers: (0..shape.layers).map(|_| widths.map(|width| normals(random, tokens * width))).collect() }
    }

    /// Returns numbers of one token's keys, values, queries and residual stream.
    pub fn widths(shape: &Shape) -> [usize; 4] {
        let [kv, q] = [shape.kv_heads, shape.query_heads].map(|heads| (heads * shape.head_dim) as usize);
        [kv, kv, q, STREAM]
    }

    /// Returns how many tokens it has.
    pub fn tokens(&self) -> usize {
        self.layers[0][3].len() / STREAM
    }

    /// Draws another text that begins with this one's first tokens.
    pub fn branch(&self, random: &mut StdRng, shape: &Shape, tokens: usize) -> Self {
        let mut other = Self::normal(random, shape, self.tokens());
        for (other, own) in other.layers.iter_mut().flatten().zip(self.layers.iter().flatten()) {
            let width = own.len() / self.tokens();
            other[..tokens * width].copy_from_slice(&own[..tokens * width]);
        }
        other
    }
}

/// A cache that reads texts.
pub struct Reader {
    /// The cache's device.
    pub gpu: Gpu,
    /// The cache.
    pub cache: Cache,
}

impl Reader {
    /// Makes the cache.
    pub fn new(gpu: &Gpu, plan: Plan) -> Self {
        Self { gpu: gpu.clone(), cache: Cache::new(gpu, plan).expect("the device has room for the plan") }
    }

    /// Reads `tokens` tokens on in a text; returns each layer's output, bit for bit.
    pub fn read(&mut self, sequence: Sequence, text: &Text, tokens: usize) -> Vec<Vec<u32>> {
        self.take(sequence, text, tokens, true)
    }

    /// Reads on in chunks; returns the outputs of every chunk's layers.
    pub fn read_all(&mut self, sequence: Sequence, text: &Text, chunks: &[usize]) -> Vec<Vec<u32>> {
        chunks.iter().flat_map(|tokens| self.read(sequence, text, *tokens)).collect()
    }

    /// Reads on without attending.
    pub fn store(&mut self, sequence: Sequence, text: &Text, tokens: usize) {
        self.take(sequence, text, tokens, false);
    }

    fn take(&mut self, sequence: Sequence, text: &Text, tokens: usize, attend: bool) -> Vec<Vec<u32>> {
        let [kv, _, q, _] = Text::widths(self.cache.plan().shape());
        let at = self.cache.tokens(sequence).expect("a live sequence") as usize;
        let step = self.cache.step(&[Chunk { sequence, tokens: tokens as u32 }]).expect("room for the text");
        let mut encoder = encoder(&self.gpu);
        let mut outputs = Vec::new();
        for (layer, [keys, values, queries, residual]) in (0..).zip(&text.layers) {
            let rows = |numbers: &[f32], width: usize| upload(&self.gpu, &numbers[at * width..(at + tokens) * width]);
            let (k, v, stream) = (rows(keys, kv), rows(values, kv), rows(residual, STREAM));
            self.cache.elect(&mut encoder, &step, layer, Rows::f32(&stream), STREAM as u32).expect("rows of the right length");
            self.cache.append(&mut encoder, &step, layer, Rows::f32(&k), Rows::f32(&v)).expect("rows of the right length");
            if attend {
                let (asked, out) = (rows(queries, q), poisoned(&self.gpu, tokens * q));
                self.cache.attend(&mut encoder, &step, layer, Rows::f32(&asked), Rows::f32(&out)).expect("rows of the right length");
                outputs.push(out);
            }
        }
        submit(&self.gpu, encoder);
        outputs.iter().map(|out| words(&self.gpu, out)).collect()
    }

    /// Returns keys (after RoPE) and values of one layer, as they are stored: `[tokens, kv_heads,
    /// head_dim]`.
    pub fn stored(&self, sequence: Sequence, layer: u32) -> [Vec<f32>; 2] {
        let tokens = self.cache.tokens(sequence).expect("a live sequence");
        let shape = self.cache.plan().shape();
        let n = (tokens * shape.kv_heads * shape.head_dim) as usize;
        let buffers = [poisoned(&self.gpu, n), poisoned(&self.gpu, n)];
        let mut encoder = encoder(&self.gpu);
        self.cache.dequantize(&mut encoder, sequence, layer, 0..tokens, Rows::f32(&buffers[0]), Rows::f32(&buffers[1])).expect("tokens that are held");
        submit(&self.gpu, encoder);
        buffers.map(|buffer| download(&self.gpu, &buffer, n))
    }

    /// Submits what a call records, and returns what it returns.
    pub fn recorded<T>(&mut self, record: impl FnOnce(&mut Cache, &mut wgpu::CommandEncoder) -> Result<T>) -> T {
        self.tried(record).expect("the test's call is allowed")
    }

    /// Does the same with a call that may be refused.
    pub fn tried<T>(&mut self, record: impl FnOnce(&mut Cache, &mut wgpu::CommandEncoder) -> Result<T>) -> Result<T> {
        let mut encoder = encoder(&self.gpu);
        let answer = record(&mut self.cache, &mut encoder);
        submit(&self.gpu, encoder);
        answer
    }

    /// Forks a sequence.
    pub fn fork(&mut self, sequence: Sequence) -> Result<Sequence> {
        self.tried(|cache, encoder| cache.fork(encoder, sequence))
    }

    /// Cuts a sequence.
    pub fn truncate(&mut self, sequence: Sequence, tokens: u32) -> Result<()> {
        self.tried(|cache, encoder| cache.truncate(encoder, sequence, tokens))
    }
}
