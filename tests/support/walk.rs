//! One case of a table, walked step by step: a cache, its inputs, and what every kernel read and wrote.

use super::*;
use super::{POISON, attention_over, attention_seen, normal, seeded, upload, words};
use rand::rngs::StdRng;
use wgkv::Capability;
use wgkv::low_level::reference::{Constants, turns};

/// One row of a test's table.
#[derive(Clone, Debug)]
pub struct Case {
    /// Why it is in the table.
    pub why: &'static str,
    pub shape: Shape,
    pub format: Format,
    /// Precisions of keys and values by KV head, if they are not the format's.
    pub precisions: Vec<[Precision; 2]>,
    pub protection: Protection,
    /// The type of the caller's rows.
    pub element: Element,
    /// Pretend bindings so small that every KV head has a slab of its own.
    pub slabs: bool,
    /// Pretend a device that prefers straight-line code, or one that does not.
    pub straight: Option<bool>,
    /// Pretend a device whose shaders have no subgroup operations: attend_split then reduces through workgroup memory.
    pub no_subgroups: bool,
    /// Pretend a device that allows no more invocations of a workgroup.
    pub invocations: Option<u32>,
    /// Workgroups that a decode pass is split into, if not the plan's own number.
    pub split_workgroups: Option<u32>,
    /// For RotateKV: how far the order of channels reaches.
    pub reach: Reach,
    /// For RotateKV: the calibration, drawn by [`Walk::new`] if there is none.
    pub calibration: Option<ChannelOrder>,
    /// For Centred: means and weights, drawn by [`Walk::new`] if there are none. The means of the keys are then what keys have in common.
    pub centre: Option<Means>,
    /// For AlignedF16, and where integer codes are stored in planes: the planes that decoding reads.
    pub alignment: Alignment,
    /// For planes: with kernels that count their loads.
    pub counted: bool,
    /// Tokens that a query sees, if not all.
    pub sliding_window: Option<u32>,
    /// Before every step all sequences slide so that they hold so many tokens, or up to 127 more.
    pub keep: Option<u32>,
    /// (sequence, new tokens), by step.
    pub steps: Vec<Vec<(usize, u32)>>,
}

/// A case of f32 rows with full RoPE in split halves, nothing protected, and two sequences whose chunks begin inside a block
/// of 32 and inside a page, with a decode step between.
pub fn case(why: &'static str, head_dim: u32, query_heads: u32, kv_heads: u32, format: Format) -> Case {
    Case {
        why,
        shape: Shape { layers: 1, query_heads, kv_heads, head_dim, rope: Rope::new(10_000.0, head_dim) },
        format,
        precisions: Vec::new(),
        protection: Protection::NONE,
        element: Element::F32,
        slabs: false,
        straight: None,
        no_subgroups: false,
        invocations: None,
        split_workgroups: None,
        reach: Reach::Global,
        calibration: None,
        centre: None,
        alignment: Alignment::EVERYTHING,
        counted: false,
        sliding_window: None,
        keep: None,
        steps: vec![vec![(0, 45), (1, 131)], vec![(1, 1), (0, 1)], vec![(0, 90), (1, 3)]],
    }
}

/// Shorthands for the tables.
pub fn rtn(key: Bits, value: Bits, group: u32) -> Format {
    Format::new(Codec::Rtn, key, value, group)
}

/// Shorthands for the tables.
pub fn hadamard(key: Bits, value: Bits, group: u32) -> Format {
    Format::new(Codec::Hadamard, key, value, group)
}

/// Shorthands for the tables.
pub fn centred(key: Bits, value: Bits, group: u32) -> Format {
    Format::new(Codec::Centred, key, value, group)
}

/// Shorthands for the tables: RotateKV with so many KV heads rotated together.
pub fn rotated(key: Bits, value: Bits, group: u32, heads: u32) -> Format {
    Format::new(Codec::RotateKv, key, value, group).with_heads_per_group(heads)
}

/// Shorthands for the tables: four KV heads whose keys and values are stored in three ways, the first and the last alike. Half of
/// the keys and a fourth of the values are not codes but halves.
pub fn three_ways(case: Case) -> Case {
    let alike = [Precision::new(Bits::Two, 32), Precision::new(Bits::Eight, 64)];
    let precisions = vec![alike, [Precision::F16, Precision::new(Bits::Three, 32)], [Precision::new(Bits::Four, 128), Precision::F16], alike];
    Case { precisions, ..case }
}

/// Shorthands for the tables: RotateKV, whose four KV heads, rotated in pairs, differ in their values.
pub fn two_ways(case: Case) -> Case {
    let key = case.format.key();
    let [first, second] = [Precision::new(Bits::Two, 32), Precision::F16].map(|value| [key, value]);
    Case { precisions: vec![first, first, second, second], ..case }
}

/// Shorthands for the tables: integer codes in planes, all of which are read.
pub fn in_planes(case: Case) -> Case {
    Case { alignment: Alignment::budget(0.0, 0.0), ..case }
}

/// Shorthands for the tables: sinks that are elected.
pub fn massive(sinks: u32, window: u32) -> Protection {
    Protection { sinks: Sinks::Massive(sinks), window }
}

/// Shorthands for the tables.
pub fn protect(sinks: u32, window: u32) -> Protection {
    Protection { sinks: if sinks == 0 { Sinks::None } else { Sinks::First(sinks) }, window }
}

/// What one layer holds.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// By slab.
    pub pages: Vec<Vec<u32>>,
    pub protected_rows: Vec<u32>,
    /// For RotateKV: `[physical page, row_groups, scale_vecs]` vec4s.
    pub key_scales: Vec<u32>,
    /// For RotateKV: the group of each key channel, a byte each; then the elected sinks by slot.
    pub marks: Vec<u32>,
}

/// Rows of a step: as numbers, and as the words that were uploaded. f16 rows hold only numbers that are halves.
#[derive(Clone, Debug, Default)]
pub struct Input {
    pub numbers: Vec<f32>,
    pub words: Vec<u32>,
}

/// One step that was taken.
pub struct Taken {
    pub step: Step,
    pub chunks: Vec<(usize, u32)>,
    pub keys: Input,
    pub values: Input,
    pub queries: Input,
    /// `[rows, width]`, what the sinks were elected by; empty if none were.
    pub residual: Input,
    pub before: State,
    pub after: State,
    /// Empty unless attended.
    pub output: Vec<u32>,
    /// query_rows, query_codes, partials, row_partials; poisoned before. Empty unless attended.
    pub scratch: [Vec<u32>; 4],
    /// For AlignedF16: scores, plans; poisoned before.
    pub aligned: [Vec<u32>; 2],
    /// For Centred: terms of positions; poisoned before.
    pub positions: Vec<u32>,
}

pub struct Walk {
    pub gpu: Gpu,
    pub cache: Cache,
    pub case: Case,
    /// Of the first slab; what the slabs have in common.
    pub constants: Constants,
    /// By slab.
    pub slab_constants: Vec<Constants>,
    pub turns: Vec<[f32; 2]>,
    pub sequences: Vec<Sequence>,
    pub random: StdRng,
    pub seed: u64,
    /// What keys have in common, by KV head and channel: it pushes zeros outside the codes.
    means: Vec<f32>,
    /// By sequence, the keys and values that it slid beyond, as they were stored.
    gone: Vec<[Vec<f32>; 2]>,
}

/// Numbers of a row of the residual stream: few, so that several of the largest are of one token.
pub const RESIDUAL_WIDTH: u32 = 6;

/// Gives a plan what its codec learned, if anything.
pub fn learning<T: Clone + Into<Learned>>(builder: PlanBuilder, learned: Option<&T>) -> PlanBuilder {
    match learned {
        Some(learned) => builder.learned(learned.clone()),
        None => builder,
    }
}

/// A calibration whose order is a random permutation.
pub fn calibration(shape: &Shape, format: &Format, reach: Reach, random: &mut StdRng) -> ChannelOrder {
    let sums = (0..shape.layers).map(|_| (0..shape.kv_heads * shape.head_dim).map(|_| f64::from(normal(random))).collect()).collect();
    ChannelOrder::from_sums(shape, format.heads_per_group(shape.kv_heads), reach, "random", 1, sums).expect("sums of the shape")
}

/// Means of the keys as told, near enough; random weights, alike within a pair of RoPE, and means of values.
pub fn centre(shape: &Shape, means: &[f32], random: &mut StdRng) -> Means {
    let d = shape.head_dim as usize;
    let pairs = shape.rope.frequencies().len();
    let layers = (0..shape.layers)
        .map(|_| {
            let mut weights: Vec<f32> = means.iter().map(|_| normal(random).exp().clamp(0.3, 3.0)).collect();
            for head in weights.chunks_mut(d) {
                for pair in 0..pairs {
                    let [a, b] = if shape.rope.layout() == RopeLayout::SplitHalves { [pair, pair + pairs] } else { [2 * pair, 2 * pair + 1] };
                    head[b] = head[a];
                }
            }
            let keys = means.iter().map(|x| x + 0.1 * normal(random)).collect();
            [keys, weights, means.iter().map(|_| normal(random)).collect()]
        })
        .collect();
    Means::new(shape, "random", layers).expect("a centre of the shape")
}

/// A token's key or value as the codec stores it, before it is rounded, in f64.
pub fn basis(walk: &Walk, row: &[f32], head: u32, token: u32, key: bool) -> Vec<f64> {
    use wgkv::low_level::reference::{rotate_exact, turn_exact};
    let (shape, codec) = (&walk.case.shape, walk.case.format.codec());
    let d = shape.head_dim as usize;
    let part = |numbers: &[f32], i: usize| f64::from(numbers[head as usize * d + i]);
    let mut row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
    if let Some(centre) = &walk.case.centre {
        let means = if key { centre.key_means(0) } else { centre.value_means(0) };
        row = row.iter().enumerate().map(|(i, x)| x - part(means, i)).collect();
    }
    if key {
        row = turn_exact(&shape.rope, &row, token);
        if let Some(centre) = &walk.case.centre {
            row = row.iter().enumerate().map(|(i, x)| x * part(centre.weights(0), i)).collect();
        }
    }
    let rotates = if key { codec.rotates_keys() } else { codec.rotates_values() };
    if rotates { rotate_exact(&row) } else { row }
}

/// The length that f32's errors in the same are relative to: that of the row and of its mean, times the largest weight.
pub fn basis_length(walk: &Walk, row: &[f32], head: u32, key: bool) -> f64 {
    let length = f64::from(super::norm(row));
    let Some(centre) = &walk.case.centre else {
        return length;
    };
    let part = |numbers: &[f32]| numbers[(head * walk.case.shape.head_dim) as usize..][..row.len()].to_vec();
    let means = part(if key { centre.key_means(0) } else { centre.value_means(0) });
    let weight = if key { part(centre.weights(0)).into_iter().fold(0.0, f32::max) } else { 1.0 };
    (length + f64::from(super::norm(&means))) * f64::from(weight)
}

/// First tokens of a sequence that no page holds.
pub fn unpacked(plan: &Plan) -> u32 {
    if plan.elects() { 0 } else { plan.sinks() }
}

/// What pages and f16 rows hold before anything is written: a finite half, since a token that is not visible is weighed by
/// 0 times its scale, and so large that it shows wherever it leaks in.
const STALE: u32 = 0x7b5a_7b5a;

impl Walk {
    pub fn new(gpu: &Gpu, mut case: Case) -> Self {
        let (mut random, seed) = seeded();
        println!("{}", case.why);
        let sequences = 1 + case.steps.iter().flatten().map(|(s, _)| *s as u32).max().expect("a step");
        let tokens =
            (0..sequences as usize).map(|s| case.steps.iter().flatten().filter(|(t, _)| *t == s).map(|(_, n)| n).sum::<u32>()).max().expect("a sequence");
        if case.format.codec() == Codec::RotateKv && case.calibration.is_none() {
            case.calibration = Some(calibration(&case.shape, &case.format, case.reach, &mut random));
        }
        let means: Vec<f32> = (0..case.shape.kv_heads * case.shape.head_dim).map(|_| 1.5 * normal(&mut random)).collect();
        if case.format.codec() == Codec::Centred && case.centre.is_none() {
            case.centre = Some(centre(&case.shape, &means, &mut random));
        }
        let plan = |tokens, capability: &Capability| {
            let precisions = |_: u32, head: u32| case.precisions.get(head as usize).copied().unwrap_or([case.format.key(), case.format.value()]);
            let allocation = BitPlan::new(&case.shape, case.format, precisions).expect("the case's precisions fit");
            let mut builder = Plan::builder(case.shape.clone(), allocation)
                .protection(case.protection)
                .capacity(Capacity::tokens(sequences, tokens))
                .element(case.element)
                .alignment(case.alignment);
            if case.counted {
                builder = builder.counted_loads();
            }
            if let Some(window) = case.sliding_window {
                builder = builder.sliding_window(window);
            }
            if let Some(workgroups) = case.split_workgroups {
                builder = builder.split_workgroups(workgroups);
            }
            let builder = learning(learning(builder, case.centre.as_ref()), case.calibration.as_ref());
            builder.build(capability).expect("the case's plan can be made")
        };
        let mut gpu = gpu.clone();
        if let Some(straight) = case.straight {
            gpu = gpu.pretend(Capability { straight, ..*gpu.capability() });
        }
        if case.no_subgroups {
            gpu = gpu.pretend(gpu.capability().without_subgroups());
        }
        if let Some(invocations) = case.invocations {
            gpu = gpu.pretend(Capability { invocations, ..*gpu.capability() });
        }
        let mut planned = plan(tokens, gpu.capability());
        if case.slabs {
            // Scratch must fit the same bindings, so one head's pages must be larger than it (which grows with them a little).
            let scratch = |pages: u32| plan(pages / sequences * 128, gpu.capability()).cost().scratch;
            // Heads that are rotated together share a slab.
            let page_bytes = planned.slabs(0)[0].layout().bytes() * u64::from(planned.group_heads());
            let mut pages = sequences;
            while u64::from(pages) * page_bytes < scratch(pages) + scratch(pages) / 4 {
                pages += 64 * sequences;
            }
            // Fewer heads a slab are more splits, and those more scratch; a slab with a little room left is still one head's.
            let tokens = pages / sequences * 128;
            let binding_bytes = u64::from(pages) * page_bytes * 3 / 2;
            gpu = gpu.pretend(Capability { binding_bytes, ..*gpu.capability() });
            planned = plan(tokens, gpu.capability());
            assert_eq!(planned.slabs(0).len() as u32, case.shape.kv_heads / planned.group_heads());
        }
        let mut cache = Cache::new(&gpu, planned).expect("the case can be allocated");
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

    pub fn plan(&self) -> &Plan {
        self.cache.plan()
    }

    pub fn state(&self) -> State {
        let (pages, protected_rows) = self.cache.layer_buffers(0).expect("layer 0");
        let [key_scales, marks] = self.cache.reordered_buffers(0).expect("layer 0").map(|b| words(&self.gpu, b));
        State { pages: pages.iter().map(|b| words(&self.gpu, b)).collect(), protected_rows: words(&self.gpu, protected_rows), key_scales, marks }
    }

    /// Numbers as the caller's rows.
    pub fn input(&self, numbers: Vec<f32>) -> Input {
        match self.case.element {
            Element::F32 => Input { words: numbers.iter().map(|x| x.to_bits()).collect(), numbers },
            Element::F16 => {
                let halves: Vec<half::f16> = numbers.iter().map(|x| half::f16::from_f32(*x)).collect();
                let words = halves.chunks_exact(2).map(|p| u32::from(p[0].to_bits()) | u32::from(p[1].to_bits()) << 16).collect();
                Input { numbers: halves.iter().map(|x| x.to_f32()).collect(), words }
            }
        }
    }

    /// Fresh keys, values and queries for so many tokens.
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

    /// Takes a step on these keys, values, queries, and rows of the residual stream (none if nothing is to be elected).
    pub fn take_all(&mut self, chunks: &[(usize, u32)], rows: [Vec<f32>; 3], residual: Vec<f32>, attend: bool) -> Taken {
        let [keys, values, queries] = rows.map(|numbers| self.input(numbers));
        let residual = self.input(residual);
        if let Some(keep) = self.case.keep {
            self.slide(keep);
        }
        let before = self.state();
        let named: Vec<Chunk> = chunks.iter().map(|(s, n)| Chunk { sequence: self.sequences[*s], tokens: *n }).collect();
        let step = self.cache.step(&named).expect("the step is as the case says");
        let element = self.case.element;
        let rows = |buffer| Rows { buffer, offset: 0, element };
        let [k, v, q, out] =
            [&keys.words, &values.words, &queries.words, &vec![POISON; queries.words.len()]].map(|words| upload(&self.gpu, bytemuck::cast_slice(words)));
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        if !residual.words.is_empty() {
            let width = residual.numbers.len() as u32 / step.rows();
            let buffer = upload(&self.gpu, bytemuck::cast_slice(&residual.words));
            self.cache.elect(&mut encoder, &step, 0, Rows { buffer: &buffer, offset: 0, element }, width).expect("rows of the right length");
        }
        self.cache.append(&mut encoder, &step, 0, rows(&k), rows(&v)).expect("rows of the right length");
        if attend {
            for buffer in self.cache.scratch_buffers().into_iter().chain(self.cache.align_buffers()).chain([self.cache.position_terms()]) {
                self.gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&vec![POISON; buffer.size() as usize / 4]));
            }
            self.cache.attend(&mut encoder, &step, 0, rows(&q), rows(&out)).expect("rows of the right length");
        }
        self.gpu.queue().submit([encoder.finish()]);
        let (output, scratch, aligned) = if attend {
            (words(&self.gpu, &out), self.cache.scratch_buffers().map(|b| words(&self.gpu, b)), self.cache.align_buffers().map(|b| words(&self.gpu, b)))
        } else {
            Default::default()
        };
        let positions = if attend { words(&self.gpu, self.cache.position_terms()) } else { Vec::new() };
        Taken { step, chunks: chunks.to_vec(), keys, values, queries, residual, before, after: self.state(), output, scratch, aligned, positions }
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

    /// The first token that a sequence did not slide beyond.
    pub fn first(&self, sequence: usize) -> u32 {
        self.gone[sequence][0].len() as u32 / (self.case.shape.kv_heads * self.case.shape.head_dim)
    }

    /// The numbers of an output.
    pub fn output(&self, taken: &Taken) -> Vec<f32> {
        match self.case.element {
            Element::F32 => super::floats(&taken.output).to_vec(),
            Element::F16 => taken.output.iter().flat_map(|w| wgkv::low_level::reference::half::unpack(*w)).collect(),
        }
    }

    /// Keys (after RoPE) and values that a sequence holds, or held before it slid, in f32: `[tokens, kv_heads, head_dim]`.
    pub fn dequantize(&self, sequence: usize) -> [Vec<f32>; 2] {
        let (first, tokens) = (self.first(sequence), self.cache.tokens(self.sequences[sequence]).expect("a live sequence"));
        let n = ((tokens - first) * self.case.shape.kv_heads * self.case.shape.head_dim) as usize;
        let buffers = [super::poisoned(&self.gpu, n), super::poisoned(&self.gpu, n)];
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.cache
            .dequantize(&mut encoder, self.sequences[sequence], 0, first..tokens, Rows::f32(&buffers[0]), Rows::f32(&buffers[1]))
            .expect("tokens that are held");
        self.gpu.queue().submit([encoder.finish()]);
        let [keys, values] = buffers.map(|b| super::download(&self.gpu, &b, n));
        let [gone_keys, gone_values] = &self.gone[sequence];
        [[&gone_keys[..], &keys].concat(), [&gone_values[..], &values].concat()]
    }
}

/// The record of one chunk of a step, as the kernels read it.
#[derive(Clone, Debug)]
pub struct Record {
    pub slot: u32,
    pub old_tokens: u32,
    pub new_tokens: u32,
    pub old_packed: u32,
    pub new_packed: u32,
    pub pages: Vec<u32>,
    pub row_first: u32,
    pub limit: u32,
}

/// The records of a step's chunks.
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

/// Where the f16 row of a token of one head lies among the words of `protected_rows`, if it has one.
pub fn f16_row(walk: &Walk, state: &State, record: &Record, head: u32, token: u32) -> Option<usize> {
    use wgkv::low_level::reference::cached::{Place, Store};
    let store = Store { constants: &walk.constants, tables: &[], marks: &state.marks, pages: &[], protected_rows: &[] };
    let kv_heads = walk.case.shape.kv_heads;
    let place = Place { slot: record.slot, packed: record.new_packed, list: 0, head, kv_heads, slab_head: 0, slab_heads: 0, limit: record.limit };
    store.row(&place, token).map(|at| at as usize)
}

/// Where the f16 row of the window that a token has (or had) lies.
pub fn window_row(walk: &Walk, slot: u32, head: u32, token: u32) -> usize {
    use wgkv::low_level::reference::cached::{offset, window_row};
    offset(&walk.constants, slot, walk.case.shape.kv_heads, head, window_row(&walk.constants, token)) as usize
}

/// Attention in f64 of `rows` rows of a step, from row `first`, over what their sequence has stored: `[rows, query_heads, head_dim]`.
/// The rows must be the sequence's last tokens. Stored keys are turned already, so the queries are, too.
pub fn exact_over_stored(walk: &Walk, taken: &Taken, sequence: usize, first: u32, rows: u32) -> Vec<f64> {
    let shape = &walk.case.shape;
    let [keys, values] = walk.dequantize(sequence);
    let tokens = walk.cache.tokens(walk.sequences[sequence]).expect("a live sequence");
    let width = (shape.query_heads * shape.head_dim) as usize;
    let queries = &taken.queries.numbers[first as usize * width..];
    let held = walk.first(sequence);
    let reach = walk.case.sliding_window.unwrap_or(u32::MAX);
    if held == 0 && reach >= tokens {
        return attention_over(shape, [&keys, &values], queries, tokens - rows, rows);
    }
    let slot = walk.sequences[sequence].slot();
    let record = records(taken).into_iter().find(|record| record.slot == slot).expect("a chunk of the step");
    let held: Vec<bool> = (0..tokens).map(|t| t >= held || f16_row(walk, &taken.after, &record, 0, t).is_some()).collect();
    let row = |n: u32| {
        let position = tokens - rows + n;
        let seen: Vec<usize> = (0..=position).filter(|t| held[*t as usize] && position - t < reach).map(|t| t as usize).collect();
        let kept = |numbers: &[f32]| -> Vec<f32> {
            let width = (shape.kv_heads * shape.head_dim) as usize;
            seen.iter().flat_map(|t| &numbers[t * width..][..width]).copied().collect()
        };
        attention_seen(shape, [&kept(&keys), &kept(&values)], &queries[n as usize * width..], position)
    };
    (0..rows).flat_map(row).collect()
}
