//! Random operations on a cache of few pages and on a plain model of it: after each, no page is
//! lost or held twice and every sequence holds what it must; what it holds reads bit for bit as in
//! a cache where it is alone. The pool's bookkeeping by itself is soaked in `src/cache/pool.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::LazyLock;
use wgkv_testing::*;

/// One device, so that its kernels are compiled once.
static GPU: LazyLock<Gpu> = LazyLock::new(gpu);

/// Operations of a run on each plan, unless `WGKV_SOAK` sets how many.
const OPERATIONS: usize = 1500;

/// Seeds that once failed, which run besides the fresh one.
const FAILED: [u64; 0] = [];

/// Tokens that there are.
const VOCABULARY: u32 = 300;

/// What was done to a sequence.
#[derive(Clone)]
enum Done {
    Appended(Vec<u32>),
    Cut(u32),
    /// Slid to keep this number of tokens.
    Slid(u32),
}

impl std::fmt::Debug for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Appended(tokens) => write!(f, "+{}", tokens.len()),
            Self::Cut(tokens) => write!(f, "cut to {tokens}"),
            Self::Slid(keep) => write!(f, "slid to {keep}"),
        }
    }
}

/// What a sequence must hold, and how it came to.
#[derive(Clone, Debug, Default)]
struct Held {
    tokens: Vec<u32>,
    /// Its first token that is not gone.
    first: u32,
    done: Vec<Done>,
}

impl Held {
    fn append(&mut self, tokens: &[u32]) {
        self.tokens.extend(tokens);
        self.done.push(Done::Appended(tokens.to_vec()));
    }

    fn cut(&mut self, tokens: u32) {
        self.tokens.truncate(tokens as usize);
        self.done.push(Done::Cut(tokens));
    }
}

/// A cache that reads tokens, each with keys, values and queries of its own.
struct Tokens {
    cache: Cache,
    /// `[token, width]` keys, values and queries.
    table: [Vec<f32>; 3],
}

impl Tokens {
    fn new(plan: Plan, table: &[Vec<f32>; 3]) -> Self {
        Self { cache: Cache::new(&GPU, plan).unwrap(), table: table.clone() }
    }

    /// Grows sequences by tokens; returns what their queries find if `attend`, bit for bit.
    fn grow(&mut self, chunks: &[(Sequence, Vec<u32>)], attend: bool) -> Result<Vec<u32>> {
        let named: Vec<Chunk> = chunks.iter().map(|(sequence, tokens)| Chunk { sequence: *sequence, tokens: tokens.len() as u32 }).collect();
        let step = self.cache.step(&named)?;
        let rows = self.table.each_ref().map(|table| {
            let width = table.len() / VOCABULARY as usize;
            let tokens = chunks.iter().flat_map(|(_, tokens)| tokens);
            tokens.flat_map(|token| table[*token as usize * width..][..width].iter().copied()).collect::<Vec<f32>>()
        });
        let [keys, values, queries] = rows.each_ref().map(|rows| upload(&GPU, rows));
        let output = poisoned(&GPU, rows[2].len());
        let mut encoder = GPU.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.cache.append(&mut encoder, &step, 0, Rows::f32(&keys), Rows::f32(&values))?;
        if attend {
            self.cache.attend(&mut encoder, &step, 0, Rows::f32(&queries), Rows::f32(&output))?;
        }
        GPU.queue().submit([encoder.finish()]);
        Ok(if attend { words(&GPU, &output) } else { Vec::new() })
    }

    fn recorded<T>(&mut self, record: impl FnOnce(&mut Cache, &mut wgpu::CommandEncoder) -> Result<T>) -> Result<T> {
        let mut encoder = GPU.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let answer = record(&mut self.cache, &mut encoder);
        GPU.queue().submit([encoder.finish()]);
        answer
    }
}

/// Checks that a cut is refused exactly where the sequence slid beyond.
fn gone<T>(held: &Held, tokens: u32, result: &Result<T>) {
    let refused = match result {
        Err(Error::Dropped { token, first }) => Some((*token, *first)),
        _ => None,
    };
    assert_eq!(refused, (tokens < held.first).then_some((tokens, held.first)));
}

struct Soak {
    random: StdRng,
    soaked: Tokens,
    prefixes: PrefixIndex,
    /// Each sequence by itself, when it is needed.
    alone: Tokens,
    held: Vec<(Sequence, Held)>,
    snapshots: Vec<(Vec<u8>, Held)>,
    /// Texts that may be found as prefixes.
    texts: Vec<Vec<u32>>,
    gone: Option<Sequence>,
    /// By operation: how often it did something.
    count: [u32; 12],
}

impl Soak {
    fn new(plan: &Plan, alone: Plan, mut random: StdRng) -> Self {
        // Halves: neither turned nor rotated they are the same whether a window keeps them first or
        // not.
        let width = (plan.shape().kv_heads * plan.shape().head_dim) as usize;
        let mut table = || normals(&mut random, VOCABULARY as usize * width).iter().map(|x| half::f16::from_f32(*x).to_f32()).collect::<Vec<f32>>();
        let table = [table(), table(), table()];
        Self {
            soaked: Tokens::new(plan.clone(), &table),
            prefixes: PrefixIndex::new(plan),
            alone: Tokens::new(alone, &table),
            random,
            held: Vec::new(),
            snapshots: Vec::new(),
            texts: Vec::new(),
            gone: None,
            count: [0; 12],
        }
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    fn draw(&mut self, tokens: usize) -> Vec<u32> {
        (0..tokens).map(|_| self.random.random_range(0..VOCABULARY)).collect()
    }

    /// Returns the result of an operation, or nothing where sequences or pages are short, or where
    /// the sequence no longer holds what was wanted. Other errors are failures.
    fn short<T>(&self, result: Result<T>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(Error::Pages { need, have }) if need > have && have == self.soaked.cache.free_pages() => None,
            Err(Error::Sequences { have }) if have as usize == self.held.len() + self.prefixes.kept() => None,
            Err(Error::Dropped { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Draws one operation and carries it out.
    fn turn(&mut self) {
        let operation = [0, 1, 1, 1, 1, 1, 2, 3, 4, 4, 4, 5, 6, 7, 7, 7, 8, 8, 8, 9, 10, 11][self.below(22)];
        let live = self.held.len();
        let n = if live > 0 { self.below(live) } else { 0 };
        let done = match operation {
            0 => {
                let begun = self.soaked.cache.begin();
                self.short(begun).map(|sequence| self.held.push((sequence, Held::default())))
            }
            7 => self.begin(),
            6 => self.load(),
            9 => {
                self.refuse();
                Some(())
            }
            _ if live == 0 => None,
            1 => self.grow(),
            2 => self.fork(n),
            3 => {
                let (sequence, held) = &mut self.held[n];
                let tokens = self.random.random_range(0..=held.tokens.len() as u32);
                let cut = self.soaked.recorded(|cache, encoder| cache.truncate(encoder, *sequence, tokens));
                let held = held.clone();
                gone(&held, tokens, &cut);
                self.short(cut).map(|()| {
                    self.held[n].1 = held;
                    self.held[n].1.cut(tokens);
                })
            }
            4 => {
                let (sequence, _) = self.held.swap_remove(n);
                self.gone = Some(sequence);
                self.soaked.cache.end(sequence).unwrap();
                Some(())
            }
            5 => {
                let (sequence, held) = self.held[n].clone();
                let tokens = self.below(held.tokens.len() + 1) as u32;
                let bytes = pollster::block_on(self.soaked.cache.save_prefix(sequence, tokens));
                gone(&held, tokens, &bytes);
                self.short(bytes).map(|bytes| {
                    self.snapshots.truncate(2);
                    self.snapshots.insert(0, (bytes, held));
                    self.snapshots[0].1.cut(tokens);
                })
            }
            8 => self.remember(n),
            11 => {
                let keep = [0, 50, 128, 200][self.below(4)];
                let (sequence, held) = &mut self.held[n];
                let first = self.soaked.cache.slide(*sequence, keep).unwrap();
                // By whole pages that a window of f16 rows does not hold back, which `read` finds
                // out.
                assert!(first >= held.first && first.is_multiple_of(128) && first <= (held.tokens.len() as u32).saturating_sub(keep).max(held.first));
                let further = first > held.first;
                held.first = first;
                held.done.push(Done::Slid(keep));
                further.then_some(())
            }
            _ => self.read(n),
        };
        self.count[operation] += u32::from(done.is_some());
    }

    fn grow(&mut self) -> Option<()> {
        let mut order: Vec<usize> = (0..self.held.len()).collect();
        let chunks: Vec<(usize, Vec<u32>)> = (0..1 + self.below(3).min(order.len() - 1))
            .map(|_| {
                let n = self.below(order.len());
                let n = order.swap_remove(n);
                let to_page_end = 128 - self.held[n].1.tokens.len() % 128;
                let tokens = [1, 2, 90, to_page_end, to_page_end, 1 + self.below(200)][self.below(6)];
                (n, self.draw(tokens))
            })
            .collect();
        let named: Vec<(Sequence, Vec<u32>)> = chunks.iter().map(|(n, tokens)| (self.held[*n].0, tokens.clone())).collect();
        let asked: Vec<Chunk> = named.iter().map(|(sequence, tokens)| Chunk { sequence: *sequence, tokens: tokens.len() as u32 }).collect();
        let mut admission = self.soaked.cache.can_append(&asked);
        if self.below(2) == 0 && admission.is_ok() {
            admission = self.prefixes.make_room(&mut self.soaked.cache, &asked);
        }
        let free = self.soaked.cache.free_pages();
        let grown = self.soaked.grow(&named, false);
        match admission {
            Ok(admission) if admission.fits() => {
                assert_eq!((grown, free - self.soaked.cache.free_pages()), (Ok(Vec::new()), admission.pages_needed));
                chunks.iter().for_each(|(n, tokens)| self.held[*n].1.append(tokens));
                Some(())
            }
            Ok(Admission { pages_needed: need, pages_free: have }) => {
                assert_eq!(grown, Err(Error::Pages { need, have }));
                None
            }
            Err(error) => {
                assert!(matches!(error, Error::Length { .. }), "{error}");
                assert_eq!(grown, Err(error));
                None
            }
        }
    }

    fn fork(&mut self, n: usize) -> Option<()> {
        let (sequence, mut held) = self.held[n].clone();
        let tokens = if self.below(2) == 0 { held.tokens.len() } else { self.below(held.tokens.len() + 1) } as u32;
        let forked = self.soaked.recorded(|cache, encoder| cache.fork_prefix(encoder, sequence, tokens));
        gone(&held, tokens, &forked);
        held.cut(tokens);
        self.short(forked).map(|sequence| self.held.push((sequence, held)))
    }

    fn load(&mut self) -> Option<()> {
        let n = self.below(3);
        let (bytes, held) = self.snapshots.get(n)?.clone();
        let loaded = self.soaked.recorded(|cache, encoder| cache.load(encoder, &bytes));
        self.short(loaded).map(|sequence| self.held.push((sequence, held)))
    }

    /// Begins a text that shares some of another.
    fn begin(&mut self) -> Option<()> {
        let n = self.below(3);
        let mut text = self.texts.get(n).cloned().unwrap_or_default();
        let shared = self.below(text.len() + 1);
        text.truncate(if self.below(4) == 0 { shared } else { text.len() });
        let more = 1 + self.below(50);
        let more = self.draw(more);
        text.extend(&more);
        let prefixes = &mut self.prefixes;
        let begun = self.soaked.recorded(|cache, encoder| prefixes.begin(cache, encoder, &text));
        let begun = self.short(begun)?;
        let mut held = Held::default();
        held.append(&text[..begun.tokens as usize]);
        self.held.push((begun.sequence, held));
        Some(())
    }

    fn remember(&mut self, n: usize) -> Option<()> {
        let (sequence, held) = self.held[n].clone();
        let prefixes = &mut self.prefixes;
        let kept = self.soaked.recorded(|cache, encoder| prefixes.remember(cache, encoder, sequence, &held.tokens)).unwrap();
        (kept > 0).then(|| {
            self.texts.truncate(2);
            self.texts.insert(0, held.tokens[..kept as usize].to_vec());
        })
    }

    /// Makes calls that must be refused, and change nothing.
    fn refuse(&mut self) {
        let unknown = |sequence: Sequence| Error::UnknownSequence { slot: sequence.slot() };
        if let Some(gone) = self.gone {
            let step = self.soaked.cache.step(&[Chunk { sequence: gone, tokens: 1 }]);
            assert_eq!(step.map(|_| ()), Err(unknown(gone)));
            assert_eq!(self.soaked.cache.end(gone), Err(unknown(gone)));
            assert_eq!(self.soaked.recorded(|cache, encoder| cache.fork(encoder, gone)), Err(unknown(gone)));
        }
        let foreign = self.alone.cache.begin().unwrap();
        assert_eq!(self.soaked.cache.tokens(foreign), Err(unknown(foreign)));
        self.alone.cache.end(foreign).unwrap();
        if let Some((sequence, held)) = self.held.first().cloned() {
            let (slot, have) = (sequence.slot(), held.tokens.len() as u32);
            let mut step = |tokens: &[u32]| {
                let chunks: Vec<Chunk> = tokens.iter().map(|tokens| Chunk { sequence, tokens: *tokens }).collect();
                self.soaked.cache.step(&chunks).map(|_| ()).unwrap_err()
            };
            assert_eq!(step(&[0]), Error::EmptyChunk { slot });
            assert!(matches!(step(&[100_000]), Error::Length { .. }));
            assert!(matches!(step(&[1, 1]), Error::RepeatedSequence { .. } | Error::Length { .. }));
            let cut = self.soaked.recorded(|cache, encoder| cache.truncate(encoder, sequence, have + 1));
            assert_eq!(cut, Err(Error::Range { first: 0, end: have + 1, have }));
        }
        if let Some((bytes, _)) = self.snapshots.first() {
            let mut damaged = bytes.clone();
            let bit = self.random.random_range(0..8 * damaged.len());
            damaged[bit / 8] ^= 1 << (bit % 8);
            let loaded = self.soaked.recorded(|cache, encoder| cache.load(encoder, &damaged));
            assert!(matches!(loaded, Err(Error::Mismatch { of: Thing::Snapshot, .. })), "{loaded:?}");
        }
    }

    /// Reads on in a sequence, and in one that is alone and came to the same.
    fn read(&mut self, n: usize) -> Option<()> {
        let more = 1 + self.below(4);
        let (sequence, more) = (self.held[n].0, self.draw(more));
        let output = self.soaked.grow(&[(sequence, more.clone())], true);
        if let Err(Error::Length { .. }) = output {
            return None;
        }
        let output = self.short(output)?;
        let held = &mut self.held[n].1;
        let alone = self.alone.cache.begin().unwrap();
        for done in &held.done {
            match done {
                Done::Appended(tokens) if tokens.is_empty() => {}
                Done::Appended(tokens) => drop(self.alone.grow(&[(alone, tokens.clone())], false).unwrap()),
                Done::Cut(tokens) => self.alone.recorded(|cache, encoder| cache.truncate(encoder, alone, *tokens)).unwrap(),
                Done::Slid(keep) => assert!(self.alone.cache.slide(alone, *keep).unwrap() <= held.first),
            }
        }
        assert_eq!(self.alone.cache.slide(alone, u32::MAX), Ok(held.first));
        let control = self.alone.grow(&[(alone, more.clone())], true).unwrap();
        self.alone.cache.end(alone).unwrap();
        assert!(output == control, "{} tokens in slot {}, after {:?}", held.tokens.len(), sequence.slot(), held.done);
        held.append(&more);
        Some(())
    }

    fn check(&self) {
        let live = self.soaked.cache.check_pages().unwrap();
        assert_eq!(live as usize, self.held.len() + self.prefixes.kept(), "sequences that nobody has a handle of");
        for (sequence, held) in &self.held {
            assert_eq!(self.soaked.cache.tokens(*sequence), Ok(held.tokens.len() as u32));
        }
    }
}

#[test]
fn random_operations_keep_every_sequence_what_it_is() {
    let operations = std::env::var("WGKV_SOAK").map_or(OPERATIONS, |n| n.parse().expect("WGKV_SOAK must be a number"));
    let (_, fresh) = seeded();
    let shape = |rope| Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope };
    let ways = [
        (shape(Rope::new(10_000.0, 64)), hadamard(Bits::Four, Bits::Two, 64), Protection::NONE),
        // With a window tokens are packed from its f16 rows or a step's own, as they come; these
        // are alike.
        (shape(Rope::none()), rtn(Bits::Four, Bits::Four, 64), protect(2, 40)),
    ];
    for seed in FAILED.into_iter().chain([fresh]) {
        for (shape, format, protection) in &ways {
            println!("{format}, {protection:?}, seed {seed}");
            let plan = |budget| Plan::builder(shape.clone(), *format).protection(*protection).capacity(budget).build(GPU.capability()).unwrap();
            let few = plan(Capacity::tokens(8, 192));
            let mut soak = Soak::new(&few, plan(Capacity::tokens(1, 2048)), StdRng::seed_from_u64(seed));
            for _ in 0..operations {
                soak.turn();
                soak.check();
            }
            // Everything was tried with success, and all of it comes back.
            println!("{:?}, {:?}", soak.count, soak.prefixes.counters());
            assert!(operations < OPERATIONS || soak.count.iter().all(|count| *count > 0));
            assert!(operations < OPERATIONS || soak.prefixes.counters().hits > 0);
            soak.prefixes.clear(&mut soak.soaked.cache).unwrap();
            soak.held.iter().for_each(|(sequence, _)| soak.soaked.cache.end(*sequence).unwrap());
            assert_eq!(soak.soaked.cache.check_pages(), Ok(0));
            assert_eq!(soak.soaked.cache.free_pages(), few.pages());
        }
    }
}
