//! One case of a table, walked step by step: a cache, its inputs, and what every kernel read and
//! wrote.

use crate::{Case, POISON, download, encoder, floats, normal, poisoned, random_means, random_order, seeded, submit, upload, words};
use rand::rngs::StdRng;
use wgkv::low_level::reference::{self, Constants, turns};
use wgkv::{Cache, Capability, Chunk, Codec, Element, Gpu, Plan, Rows, Sequence, Step};

/// What one layer holds.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// By slab.
    pub pages: Vec<Vec<u32>>,
    /// The f16 rows of all sequences.
    pub protected_rows: Vec<u32>,
    /// For RotateKV: `[physical page, row_groups, scale_vecs]` vec4s.
    pub key_scales: Vec<u32>,
    /// For RotateKV: the group of each key channel, a byte each; then the elected sinks by slot.
    pub marks: Vec<u32>,
}

/// Rows of a step: as numbers, and as the words that were uploaded. Rows of 16 bits hold only
/// numbers that have them.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// As numbers.
    pub numbers: Vec<f32>,
    /// As they were uploaded.
    pub words: Vec<u32>,
}

/// One step that was taken.
pub struct Taken {
    /// The step.
    pub step: Step,
    /// (sequence, new tokens).
    pub chunks: Vec<(usize, u32)>,
    /// `[rows, kv_heads, head_dim]`.
    pub keys: Input,
    /// `[rows, kv_heads, head_dim]`.
    pub values: Input,
    /// `[rows, query_heads, head_dim]`.
    pub queries: Input,
    /// `[rows, width]`, what the sinks were elected by; empty if none were.
    pub residual: Input,
    /// What the layer held before the step.
    pub before: State,
    /// What it holds after it.
    pub after: State,
    /// `[rows, query_heads, head_dim]`; empty unless attended.
    pub output: Vec<u32>,
    /// query_rows, query_codes, partials, row_partials; poisoned before. Empty unless attended.
    pub scratch: [Vec<u32>; 4],
    /// What the last round of a prefill unpacked; poisoned before.
    pub unpacked: Vec<u32>,
    /// For AlignedF16: scores, plans; poisoned before.
    pub aligned: [Vec<u32>; 2],
    /// For Centred: terms of positions; poisoned before.
    pub positions: Vec<u32>,
}

/// A case on its way.
pub struct Walk {
    /// The device, as the case pretends it.
    pub gpu: Gpu,
    /// The cache.
    pub cache: Cache,
    /// The case, with what its codec learned.
    pub case: Case,
    /// Of the first slab; what the slabs have in common.
    pub constants: Constants,
    /// By slab.
    pub slab_constants: Vec<Constants>,
    /// The table of RoPE's turns.
    pub turns: Vec<[f32; 2]>,
    /// By number in the case's steps.
    pub sequences: Vec<Sequence>,
    /// Where fresh numbers come from.
    pub random: StdRng,
    /// Its seed, for messages.
    pub seed: u64,
    /// What keys have in common, by KV head and channel: it pushes zeros outside the codes.
    means: Vec<f32>,
    /// By sequence, the keys and values that it slid beyond, as they were stored.
    gone: Vec<[Vec<f32>; 2]>,
}

/// Numbers of a row of the residual stream: few, so that several of the largest are of one token.
pub const RESIDUAL_WIDTH: u32 = 6;

/// Returns first tokens of a sequence that no page holds.
pub fn unpacked(plan: &Plan) -> u32 {
    if plan.elects() { 0 } else { plan.sinks() }
}

/// What pages and f16 rows hold before anything is written: a finite half, since a token that is
/// not visible is weighed by 0 times its scale, and so large that it shows wherever it leaks in.
const STALE: u32 = 0x7b5a_7b5a;

impl Walk {
    /// Makes the cache of a case, filled with halves that are no token's.
    pub fn new(gpu: &Gpu, mut case: Case) -> Self {
        let (mut random, seed) = seeded();
        println!("{}", case.why);
        if case.format.codec() == Codec::RotateKv && case.channel_order.is_none() {
            case.channel_order = Some(random_order(&case.shape, &case.format, case.reach, &mut random));
        }
        let means: Vec<f32> = (0..case.shape.kv_heads * case.shape.head_dim).map(|_| 1.5 * normal(&mut random)).collect();
        if case.format.codec() == Codec::Centred && case.means.is_none() {
            case.means = Some(random_means(&case.shape, &means, &mut random));
        }
        if let Some(logits) = &mut case.sink_logits {
            *logits = (0..case.shape.query_heads * case.shape.layers).map(|_| 2.0 * normal(&mut random)).collect();
        }
        let (sequences, tokens) = case.size();
        let mut gpu = case.pretend(gpu);
        let mut plan = case.plan(sequences, tokens, gpu.capability());
        if case.slabs {
            // Scratch must fit the same bindings, so one head's pages must be larger than it (which
            // grows with them a little).
            let scratch = |pages: u32| case.plan(sequences, pages / sequences * 128, gpu.capability()).cost().scratch;
            // Heads that are rotated together share a slab.
            let page_bytes = plan.slabs(0)[0].layout().bytes() * u64::from(plan.group_heads());
            let mut pages = sequences;
            while u64::from(pages) * page_bytes < scratch(pages) + scratch(pages) / 4 {
                pages += 64 * sequences;
            }
            // Fewer heads a slab are more splits, and those more scratch; a slab with a little room
            // left is still one head's.
            let binding_bytes = u64::from(pages) * page_bytes * 3 / 2;
            gpu = gpu.pretend(Capability { binding_bytes, ..*gpu.capability() });
            plan = case.plan(sequences, pages / sequences * 128, gpu.capability());
            assert_eq!(plan.slabs(0).len() as u32, case.shape.kv_heads / plan.group_heads());
        }
        let mut cache = Cache::new(&gpu, plan).expect("the device has room for the case");
        let sequences: Vec<Sequence> = (0..sequences).map(|_| cache.begin().expect("room for the case's sequences")).collect();
        let gone = sequences.iter().map(|_| Default::default()).collect();
        let (pages, protected_rows) = cache.layer_buffers(0).expect("layer 0");
        let [key_scales, _] = cache.reordered_buffers(0).expect("layer 0");
        for buffer in pages.iter().chain([protected_rows, key_scales]) {
            gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&vec![STALE; buffer.size() as usize / 4]));
        }
        let slab_constants: Vec<Constants> = cache.plan().slabs(0).iter().map(|slab| Constants::of(cache.plan(), slab)).collect();
        Self { constants: slab_constants[0], slab_constants, turns: turns(cache.plan()), gpu, cache, case, sequences, random, seed, means, gone }
    }

    /// Returns the cache's plan.
    pub fn plan(&self) -> &Plan {
        self.cache.plan()
    }

    /// Returns what the layer holds now.
    pub fn state(&self) -> State {
        let (pages, protected_rows) = self.cache.layer_buffers(0).expect("layer 0");
        let [key_scales, marks] = self.cache.reordered_buffers(0).expect("layer 0").map(|b| words(&self.gpu, b));
        State { pages: pages.iter().map(|b| words(&self.gpu, b)).collect(), protected_rows: words(&self.gpu, protected_rows), key_scales, marks }
    }

    /// Returns numbers as the caller's rows.
    pub fn input(&self, numbers: Vec<f32>) -> Input {
        match self.case.element {
            Element::F32 => Input { words: numbers.iter().map(|x| x.to_bits()).collect(), numbers },
            Element::F16 => {
                let halves: Vec<half::f16> = numbers.iter().map(|x| half::f16::from_f32(*x)).collect();
                let words = halves.chunks_exact(2).map(|p| u32::from(p[0].to_bits()) | u32::from(p[1].to_bits()) << 16).collect();
                Input { numbers: halves.iter().map(|x| x.to_f32()).collect(), words }
            }
            Element::Bf16 => {
                let upper: Vec<half::bf16> = numbers.iter().map(|x| half::bf16::from_f32(*x)).collect();
                let words = upper.chunks_exact(2).map(|p| u32::from(p[0].to_bits()) | u32::from(p[1].to_bits()) << 16).collect();
                Input { numbers: upper.iter().map(|x| x.to_f32()).collect(), words }
            }
            other => panic!("rows of {other:?} are unknown here"),
        }
    }

    /// Draws fresh keys, values and queries for `tokens` tokens.
    pub fn draw(&mut self, tokens: u32) -> [Vec<f32>; 3] {
        let shape = &self.case.shape;
        let (row, queries) = (self.means.len(), (shape.query_heads * shape.head_dim) as usize);
        let mut take = |n: usize| -> Vec<f32> { (0..n * tokens as usize).map(|_| normal(&mut self.random)).collect() };
        let (mut keys, values, queries) = (take(row), take(row), take(queries));
        for (x, mean) in keys.iter_mut().zip(self.means.iter().cycle()) {
            *x += mean;
        }
        [keys, values, queries]
    }

    /// Takes a step on fresh numbers.
    pub fn take(&mut self, chunks: &[(usize, u32)], attend: bool) -> Taken {
        let rows = self.draw(chunks.iter().map(|(_, n)| n).sum());
        self.take_rows(chunks, rows, attend)
    }

    /// Takes a step on these keys, values and queries, and on a fresh residual stream.
    pub fn take_rows(&mut self, chunks: &[(usize, u32)], rows: [Vec<f32>; 3], attend: bool) -> Taken {
        let elects = self.plan().elects() && chunks.iter().any(|(_, n)| *n > 1);
        let tokens: u32 = chunks.iter().map(|(_, n)| n).sum();
        let residual = if elects { (0..tokens * RESIDUAL_WIDTH).map(|_| normal(&mut self.random)).collect() } else { Vec::new() };
        self.take_all(chunks, rows, residual, attend)
    }

    /// Takes a step on these keys, values, queries, and rows of the residual stream (none if
    /// nothing is to be elected).
    pub fn take_all(&mut self, chunks: &[(usize, u32)], rows: [Vec<f32>; 3], residual: Vec<f32>, attend: bool) -> Taken {
        let [mut keys, values, mut queries] = rows;
        if self.case.turned {
            self.turn(chunks, &mut keys);
            self.turn(chunks, &mut queries);
        }
        let [keys, values, queries] = [keys, values, queries].map(|numbers| self.input(numbers));
        let residual = self.input(residual);
        if let Some(keep) = self.case.keep {
            self.slide(keep);
        }
        let before = self.state();
        let named: Vec<Chunk> = chunks.iter().map(|(s, n)| Chunk { sequence: self.sequences[*s], tokens: *n }).collect();
        let step = self.cache.step(&named).expect("the step is as the case says");
        let element = self.case.element;
        let rows = |buffer| Rows::new(buffer, element);
        let [k, v, q, out] =
            [&keys.words, &values.words, &queries.words, &vec![POISON; queries.words.len()]].map(|words| upload(&self.gpu, bytemuck::cast_slice(words)));
        let mut encoder = encoder(&self.gpu);
        if !residual.words.is_empty() {
            let width = residual.numbers.len() as u32 / step.rows();
            let buffer = upload(&self.gpu, bytemuck::cast_slice(&residual.words));
            self.cache.elect(&mut encoder, &step, 0, Rows::new(&buffer, element), width).expect("rows of the right length");
        }
        self.cache.append(&mut encoder, &step, 0, rows(&k), rows(&v)).expect("rows of the right length");
        if attend {
            for buffer in
                self.cache.scratch_buffers().into_iter().chain(self.cache.align_buffers()).chain([self.cache.position_terms(), self.cache.unpacked_rows()])
            {
                self.gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&vec![POISON; buffer.size() as usize / 4]));
            }
            self.cache.attend(&mut encoder, &step, 0, rows(&q), rows(&out)).expect("rows of the right length");
        }
        submit(&self.gpu, encoder);
        let (output, scratch, aligned) = if attend {
            (words(&self.gpu, &out), self.cache.scratch_buffers().map(|b| words(&self.gpu, b)), self.cache.align_buffers().map(|b| words(&self.gpu, b)))
        } else {
            Default::default()
        };
        let positions = if attend { words(&self.gpu, self.cache.position_terms()) } else { Vec::new() };
        let unpacked = if attend { words(&self.gpu, self.cache.unpacked_rows()) } else { Vec::new() };
        Taken { unpacked, step, chunks: chunks.to_vec(), keys, values, queries, residual, before, after: self.state(), output, scratch, aligned, positions }
    }

    /// Turns the rows of a step to their positions.
    fn turn(&self, chunks: &[(usize, u32)], rows: &mut [f32]) {
        let tokens: u32 = chunks.iter().map(|(_, n)| n).sum();
        let width = rows.len() / tokens as usize;
        let first = |sequence: usize| self.cache.tokens(self.sequences[sequence]).expect("a live sequence");
        let positions = chunks.iter().flat_map(|(sequence, n)| (0..*n).map(move |t| first(*sequence) + t));
        for (row, position) in rows.chunks_exact_mut(width).zip(positions) {
            for head in row.chunks_exact_mut(self.case.shape.head_dim as usize) {
                let plain: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
                let turned = reference::turn_exact(&self.case.shape.rope, &plain, position);
                head.iter_mut().zip(turned).for_each(|(x, turned)| *x = turned as f32);
            }
        }
    }

    /// Lets all sequences slide; remembers what is gone.
    fn slide(&mut self, keep: u32) {
        let width = (self.case.shape.kv_heads * self.case.shape.head_dim) as usize;
        for (n, sequence) in self.sequences.clone().into_iter().enumerate() {
            let stored = self.dequantize(n);
            let first = self.cache.slide(sequence, keep).expect("a live sequence");
            self.gone[n] = stored.map(|rows| rows[..first as usize * width].to_vec());
        }
    }

    /// Returns the first token that a sequence did not slide beyond.
    pub fn first(&self, sequence: usize) -> u32 {
        self.gone[sequence][0].len() as u32 / (self.case.shape.kv_heads * self.case.shape.head_dim)
    }

    /// Returns the numbers of an output.
    pub fn output(&self, taken: &Taken) -> Vec<f32> {
        match self.case.element {
            Element::F32 => floats(&taken.output).to_vec(),
            Element::F16 => taken.output.iter().flat_map(|w| reference::half::unpack(*w)).collect(),
            Element::Bf16 => taken.output.iter().flat_map(|w| reference::bfloat::unpack(*w)).collect(),
            other => panic!("rows of {other:?} are unknown here"),
        }
    }

    /// Returns keys (after RoPE) and values that a sequence holds, or held before it slid, in f32:
    /// `[tokens, kv_heads, head_dim]`.
    pub fn dequantize(&self, sequence: usize) -> [Vec<f32>; 2] {
        let (first, tokens) = (self.first(sequence), self.cache.tokens(self.sequences[sequence]).expect("a live sequence"));
        let n = ((tokens - first) * self.case.shape.kv_heads * self.case.shape.head_dim) as usize;
        let buffers = [poisoned(&self.gpu, n), poisoned(&self.gpu, n)];
        let mut encoder = encoder(&self.gpu);
        self.cache
            .dequantize(&mut encoder, self.sequences[sequence], 0, first..tokens, Rows::f32(&buffers[0]), Rows::f32(&buffers[1]))
            .expect("tokens that are held");
        submit(&self.gpu, encoder);
        let [keys, values] = buffers.map(|b| download(&self.gpu, &b, n));
        let [gone_keys, gone_values] = &self.gone[sequence];
        [[&gone_keys[..], &keys].concat(), [&gone_values[..], &values].concat()]
    }
}

/// The record of one chunk of a step, as the kernels read it.
#[derive(Clone, Debug)]
pub struct Record {
    /// The sequence's place.
    pub slot: u32,
    /// Tokens before the step.
    pub old_tokens: u32,
    /// Tokens after it.
    pub new_tokens: u32,
    /// Tokens in pages before the step.
    pub old_packed: u32,
    /// Tokens in pages after it.
    pub new_packed: u32,
    /// The physical pages that the sequence still has, in its order.
    pub pages: Vec<u32>,
    /// The chunk's first row among the step's.
    pub row_first: u32,
    /// The first token that the sequence did not slide beyond.
    pub limit: u32,
}

/// Returns the records of a step's chunks.
pub fn records(taken: &Taken) -> Vec<Record> {
    let tables = &taken.step.words().tables;
    let mut at = 0;
    taken
        .chunks
        .iter()
        .map(|_| {
            let w = &tables[at..];
            // The list has no pages that are gone.
            let dropped = (at as u32 + 8).wrapping_sub(w[5]);
            let pages = (w[4].div_ceil(128) - dropped) as usize;
            at += 8 + pages;
            Record {
                slot: w[0],
                old_tokens: w[1],
                new_tokens: w[2],
                old_packed: w[3],
                new_packed: w[4],
                pages: w[8..8 + pages].to_vec(),
                row_first: w[6],
                limit: w[7],
            }
        })
        .collect()
}

/// Returns where the f16 row of a token of one head lies among the words of `protected_rows`, if it
/// has one.
pub fn f16_row(walk: &Walk, state: &State, record: &Record, head: u32, token: u32) -> Option<usize> {
    use reference::cached::{Place, Store};
    let store = Store { constants: &walk.constants, tables: &[], marks: &state.marks, pages: &[], protected_rows: &[] };
    let kv_heads = walk.case.shape.kv_heads;
    let place = Place { slot: record.slot, packed: record.new_packed, list: 0, head, kv_heads, slab_head: 0, slab_heads: 0, limit: record.limit };
    store.row(&place, token).map(|at| at as usize)
}

/// Returns where the f16 row of the window that a token has (or had) lies.
pub fn window_row(walk: &Walk, slot: u32, head: u32, token: u32) -> usize {
    use reference::cached::{offset, window_row};
    offset(&walk.constants, slot, walk.case.shape.kv_heads, head, window_row(&walk.constants, token)) as usize
}
