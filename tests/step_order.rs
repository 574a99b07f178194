//! The order of calls: a step of which nothing was recorded leaves no trace when it is taken back,
//! by `Cache::abandon`, by a call that makes it stale, or since another cache refused its own; each
//! layer is elected and appended once, and attends after that; a step that only some layers were
//! given is never read as if all had it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use pollster::block_on;
use rand::RngExt;
use rand::rngs::StdRng;
use std::sync::LazyLock;
use wgkv_testing::*;

/// One device, so that its kernels are compiled once.
static GPU: LazyLock<Gpu> = LazyLock::new(gpu);

/// Operations of a run on each plan, if `WGKV_SOAK` does not tell how many.
const OPERATIONS: usize = 25;

/// Positions of a text: what a sequence of these tests can reach.
const LONG: usize = 900;

fn shape() -> Shape {
    Shape { layers: 2, query_heads: 2, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

/// A plan of every codec, with and without a window.
fn plans(random: &mut StdRng) -> Vec<Plan> {
    use Bits::{Four, Two};
    let ways = [
        (hadamard(Four, Two, 64), Protection::NONE),
        (hadamard(Two, Four, 32), protect(0, 128)),
        (centred(Four, Four, 64), Protection::NONE),
        (centred(Two, Four, 64), protect(4, 128)),
        (trellis(64), protect(4, 128)),
        (rotated(Four, Two, 64, 2), Protection::NONE),
        (rotated(Two, Four, 64, 2), massive(3, 128)),
        (rtn(Four, Four, 64), protect(2, 40)),
        (Format::f16(), protect(0, 128)),
    ];
    ways.into_iter().map(|(format, protection)| plan(random, format, protection, 4)).collect()
}

fn plan(random: &mut StdRng, format: Format, protection: Protection, sequences: u32) -> Plan {
    let builder = Plan::builder(shape(), format).protection(protection).capacity(Capacity::tokens(sequences, 600)).max_tokens(LONG as u32);
    let order = (format.codec() == Codec::RotateKv).then(|| random_order(&shape(), &format, Reach::Global, random));
    let means = normals(random, 128);
    let builder = if format.codec() == Codec::Centred { builder.learned(random_means(&shape(), &means, random)) } else { builder };
    learning(builder, order.as_ref()).build(GPU.capability()).unwrap()
}

fn name(plan: &Plan) -> String {
    format!("{}, {:?}", plan.format(), plan.protection())
}

fn chunk(sequence: Sequence, tokens: u32) -> Chunk {
    Chunk { sequence, tokens }
}

/// What a sequence holds and where it stands, to the bit.
fn saved(cache: &Cache, sequence: Sequence) -> Parts {
    Parts::of(&block_on(cache.save(sequence)).unwrap())
}

/// Good rows for a step of N tokens, for every argument.
struct Given {
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
    queries: wgpu::Buffer,
    residual: wgpu::Buffer,
    output: wgpu::Buffer,
    log_sums: wgpu::Buffer,
}

impl Given {
    fn of(random: &mut StdRng, tokens: u32) -> Self {
        let [kv, _, q, stream] = Text::widths(&shape()).map(|width| width * tokens as usize);
        let mut rows = |n| upload(&GPU, &normals(random, n));
        let (keys, values, queries, residual) = (rows(kv), rows(kv), rows(q), rows(stream));
        Self { keys, values, queries, residual, output: poisoned(&GPU, q), log_sums: poisoned(&GPU, 2 * tokens as usize) }
    }

    fn elect(&self, cache: &Cache, encoder: &mut wgpu::CommandEncoder, step: &Step, layer: u32) -> Result<()> {
        cache.elect(encoder, step, layer, Rows::f32(&self.residual), STREAM as u32)
    }

    fn append(&self, cache: &Cache, encoder: &mut wgpu::CommandEncoder, step: &Step, layer: u32) -> Result<()> {
        cache.append(encoder, step, layer, Rows::f32(&self.keys), Rows::f32(&self.values))
    }

    fn attend(&self, cache: &Cache, encoder: &mut wgpu::CommandEncoder, step: &Step, layer: u32) -> Result<()> {
        cache.attend(encoder, step, layer, Rows::f32(&self.queries), Rows::f32(&self.output))
    }

    /// Every way to attend, each refused with this error.
    fn attends_in_no_way(&self, cache: &Cache, step: &Step, layer: u32, want: &Error) {
        let [queries, output, log_sums] = [&self.queries, &self.output, &self.log_sums].map(Rows::f32);
        let mut encoder = encoder(&GPU);
        let refused = |result: Result<()>| assert_eq!(result.as_ref(), Err(want));
        refused(cache.attend(&mut encoder, step, layer, queries, output));
        refused(cache.attend_part(&mut encoder, step, layer, queries, output, log_sums));
        let mut pass = encoder.begin_compute_pass(&Default::default());
        refused(cache.attend_in(&mut pass, step, layer, queries, output));
        refused(cache.attend_part_in(&mut pass, step, layer, queries, output, log_sums));
    }
}

fn too_often(call: &'static str, layer: u32) -> Error {
    Error::Order { call, layer, wanted: "once in a step", had: "again" }
}

fn too_early(call: &'static str, layer: u32) -> Error {
    Error::Order { call, layer, wanted: "after Cache::append", had: "before it" }
}

/// A cache some of whose steps are taken back, and one that never made them.
struct Twins {
    used: Reader,
    twin: Reader,
    /// Sequences of both, and which text each goes on with.
    held: Vec<(Sequence, Sequence, usize)>,
    texts: Vec<Text>,
    /// A cache without room.
    full: Reader,
    filled: Sequence,
    name: String,
}

impl Twins {
    fn new(random: &mut StdRng, plan: &Plan) -> Self {
        let [used, twin] = [(); 2].map(|()| Reader::new(&GPU, plan.clone()));
        let mut full = Reader::new(
            &GPU,
            Plan::builder(shape(), Format::f16()).protection(Protection::NONE).capacity(Capacity::tokens(1, 128)).build(GPU.capability()).unwrap(),
        );
        let filled = full.cache.begin().unwrap();
        let texts: Vec<Text> = (0..3).map(|_| Text::normal(random, &shape(), LONG)).collect();
        full.store(filled, &texts[0], 128);
        let mut twins = Self { used, twin, held: Vec::new(), texts, full, filled, name: name(plan) };
        twins.begin(0);
        twins.begin(1);
        twins
    }

    fn begin(&mut self, text: usize) {
        let [used, twin] = [&mut self.used, &mut self.twin].map(|reader| reader.cache.begin().unwrap());
        self.held.push((used, twin, text));
    }

    fn tokens(&self, n: usize) -> u32 {
        self.twin.cache.tokens(self.held[n].1).unwrap()
    }

    /// Both hold the same, to the bit, and give pages out in the same order.
    #[track_caller]
    fn alike(&self, after: &str) {
        assert_eq!(self.used.cache.free_pages(), self.twin.cache.free_pages(), "{after}: {}", self.name);
        self.used.cache.check_pages().unwrap();
        for (used, twin, _) in &self.held {
            assert_eq!(self.used.cache.tokens(*used), self.twin.cache.tokens(*twin), "{after}: {}", self.name);
            let [got, want] = [(&self.used, used), (&self.twin, twin)].map(|(reader, sequence)| saved(&reader.cache, *sequence));
            assert!(got == want, "{after}: {}", self.name);
        }
        for layer in 0..2 {
            let [got, want] = [&self.used, &self.twin].map(|reader| {
                let (pages, rows) = reader.cache.layer_buffers(layer).unwrap();
                pages.iter().chain([rows]).map(|buffer| words(&GPU, buffer)).collect::<Vec<_>>()
            });
            assert!(got == want, "{after}, layer {layer}: {}", self.name);
        }
    }

    /// An operation on both.
    fn turn(&mut self, random: &mut StdRng) {
        let n = random.random_range(0..self.held.len());
        let (used, twin, text) = self.held[n];
        match random.random_range(0..6) {
            0 if self.held.len() < 4 => {
                let forks = [self.used.fork(used), self.twin.fork(twin)];
                if let [Ok(used), Ok(twin)] = forks {
                    self.held.push((used, twin, (text + 1) % 3));
                } else {
                    assert_eq!(forks[0].as_ref().map(drop), forks[1].as_ref().map(drop));
                }
            }
            1 => {
                let tokens = self.tokens(n).saturating_sub(random.random_range(0..150));
                assert_eq!(self.used.truncate(used, tokens), self.twin.truncate(twin, tokens), "{}", self.name);
            }
            _ => {
                let tokens = [1, 1, 2, 60, 128, random.random_range(1..200)][random.random_range(0..6)];
                let fits = self.twin.cache.can_append(&[chunk(twin, tokens)]);
                assert_eq!(self.used.cache.can_append(&[chunk(used, tokens)]), fits, "{}", self.name);
                if fits.is_ok_and(|admission| admission.fits()) {
                    let text = &self.texts[text];
                    let outputs = [(&mut self.used, used), (&mut self.twin, twin)].map(|(reader, sequence)| reader.read(sequence, text, tokens as usize));
                    assert!(outputs[0] == outputs[1], "{tokens} tokens read: {}", self.name);
                }
            }
        }
    }

    /// Chunks of one or all sequences that fit.
    fn chunks(&self, random: &mut StdRng) -> Option<Vec<Chunk>> {
        let one = random.random_range(0..=self.held.len());
        let some = self.held.iter().enumerate().filter(|(n, _)| one == self.held.len() || *n == one);
        let chunks: Vec<Chunk> = some.map(|(_, (used, ..))| chunk(*used, [1, 8, 130, random.random_range(1..200)][random.random_range(0..4)])).collect();
        self.used.cache.can_append(&chunks).is_ok_and(|admission| admission.fits()).then_some(chunks)
    }

    /// A step of the one cache that is taken back, or is not made at all. Returns how.
    fn step_back(&mut self, random: &mut StdRng) -> &'static str {
        let Some(chunks) = self.chunks(random) else { return "no room" };
        let rows: u32 = chunks.iter().map(|chunk| chunk.tokens).sum();
        let held: Vec<u32> = chunks.iter().map(|chunk| self.used.cache.tokens(chunk.sequence).unwrap()).collect();
        match random.random_range(0..7) {
            0 => {
                let filled = [chunk(self.filled, 129)];
                let refused = step_together(&mut [(&mut self.used.cache, &chunks), (&mut self.full.cache, &filled)]).map(drop);
                assert!(matches!(refused, Err(Error::Length { .. } | Error::Pages { .. })), "{refused:?}");
                return "another cache had no room";
            }
            1 => {
                // Recorded in some layers, and never submitted.
                let step = self.used.cache.step(&chunks).unwrap();
                let given = Given::of(random, rows);
                let mut dropped = encoder(&GPU);
                given.elect(&self.used.cache, &mut dropped, &step, 0).unwrap();
                given.append(&self.used.cache, &mut dropped, &step, 0).unwrap();
                assert_eq!(step.recorded(), Some(0));
                step.unrecord();
                assert_eq!(self.used.cache.abandon(step), Ok(()));
                return "recorded, and its encoder dropped";
            }
            2 => {
                // A call that is refused makes no step stale.
                let step = self.used.cache.step(&chunks).unwrap();
                let refused = self.used.cache.step(&[chunks[0], chunks[0]]).map(drop);
                assert!(matches!(refused, Err(Error::RepeatedSequence { .. })));
                let now = self.used.cache.tokens(chunks[0].sequence).unwrap();
                assert_eq!(now, held[0] + chunks[0].tokens);
                let cut = self.used.truncate(chunks[0].sequence, now);
                assert_eq!(cut, Err(Error::Range { first: 0, end: now, have: held[0] }));
                assert_eq!(self.used.cache.abandon(step), Ok(()));
                return "abandoned after refusals";
            }
            3 => {
                _ = self.used.cache.step(&chunks).unwrap();
                // Taking back what it held before is no cut.
                self.used.truncate(chunks[0].sequence, held[0]).unwrap();
                return "cut back";
            }
            4 => {
                // Whatever is next takes it back.
                _ = self.used.cache.step(&chunks).unwrap();
                _ = self.used.cache.step(&[]).unwrap();
                return "another step";
            }
            5 if self.held.len() < 4 => {
                _ = self.used.cache.step(&chunks).unwrap();
                // As many slots and pages as before, in the same order.
                let Ok(forked) = self.used.fork(chunks[0].sequence) else { return self.give_up() };
                assert_eq!(self.used.cache.tokens(forked), Ok(held[0]));
                let twin = self.held.iter().find(|(used, ..)| *used == chunks[0].sequence).unwrap().1;
                let control = self.twin.fork(twin).unwrap();
                self.used.cache.end(forked).unwrap();
                self.twin.cache.end(control).unwrap();
                return "forked";
            }
            _ => {}
        }
        let step = self.used.cache.step(&chunks).unwrap();
        assert_eq!(self.used.cache.abandon(step), Ok(()));
        "abandoned"
    }

    fn give_up(&mut self) -> &'static str {
        self.used.cache.step(&[]).map(drop).unwrap();
        "no room for a fork"
    }
}

#[test]
fn a_step_that_is_taken_back_leaves_no_trace() {
    let operations = std::env::var("WGKV_SOAK").map_or(OPERATIONS, |n| n.parse().expect("WGKV_SOAK must be a number"));
    let random = &mut generator();
    for plan in plans(random) {
        let mut twins = Twins::new(random, &plan);
        for n in 0..2 {
            let (used, twin, text) = twins.held[n];
            for (reader, sequence) in [(&mut twins.used, used), (&mut twins.twin, twin)] {
                reader.store(sequence, &twins.texts[text], 252);
            }
        }
        for _ in 0..operations {
            twins.turn(random);
            let how = twins.step_back(random);
            twins.alike(how);
        }
    }
}

/// The case that was reported: with a window of 128, 124 of 252 tokens were gone.
#[test]
fn tokens_before_a_step_that_was_never_appended_are_there_after_a_cut() {
    let random = &mut generator();
    let text = Text::normal(random, &shape(), LONG);
    for window in [0, 128] {
        let plan = plan(random, hadamard(Bits::Four, Bits::Four, 64), protect(0, window), 1);
        let [mut used, mut twin] = [(); 2].map(|()| Reader::new(&GPU, plan.clone()));
        let [sequence, control] = [&mut used, &mut twin].map(|reader| {
            let sequence = reader.cache.begin().unwrap();
            reader.store(sequence, &text, 252);
            sequence
        });
        _ = used.cache.step(&[chunk(sequence, 8)]).unwrap();
        used.truncate(sequence, 252).unwrap();
        for layer in 0..2 {
            assert!(used.stored(sequence, layer) == twin.stored(control, layer), "window {window}, layer {layer}");
        }
        assert!(used.read_all(sequence, &text, &[1, 140, 1]) == twin.read_all(control, &text, &[1, 140, 1]), "window {window}");
    }
}

#[test]
fn each_layer_is_given_its_part_once_and_in_order() {
    let random = &mut generator();
    for plan in plans(random) {
        let (name, elects) = (name(&plan), plan.elects());
        let [mut used, mut twin] = [(); 2].map(|()| Reader::new(&GPU, plan.clone()));
        let text = Text::normal(random, &shape(), LONG);
        let [sequence, control] = [&mut used, &mut twin].map(|reader| {
            let sequence = reader.cache.begin().unwrap();
            // So that the step packs what leaves a window.
            reader.store(sequence, &text, 250);
            sequence
        });
        let given = Given::of(random, 200);
        let step = used.cache.step(&[chunk(sequence, 200)]).unwrap();
        let same = twin.cache.step(&[chunk(control, 200)]).unwrap();
        let (mut encoder, mut good) = (encoder(&GPU), encoder(&GPU));
        for layer in 0..2 {
            let cache = &used.cache;
            given.attends_in_no_way(cache, &step, layer, &too_early("Cache::attend", layer));
            let [keys, values] = [0, 1].map(|_| upload(&GPU, &[0.0; 128]));
            let read = cache.dequantize(&mut encoder, sequence, layer, 0..1, Rows::f32(&keys), Rows::f32(&values));
            assert_eq!(read, Err(too_early("Cache::dequantize", layer)), "{name}");
            assert_eq!(block_on(cache.save(sequence)), Err(too_early("Cache::save", layer)), "{name}");
            assert_eq!(block_on(cache.save_prefix(sequence, 10)), Err(too_early("Cache::save", layer)), "{name}");
            // What is refused can come again.
            let short = upload(&GPU, &[0.0; 64]);
            if elects {
                let refused = cache.elect(&mut encoder, &step, layer, Rows::f32(&short), STREAM as u32);
                assert!(matches!(refused, Err(Error::Rows { .. })), "{name}: {refused:?}");
                assert!(matches!(given.append(cache, &mut encoder, &step, layer), Err(Error::Unelected { .. })), "{name}");
            }
            given.elect(cache, &mut encoder, &step, layer).unwrap();
            assert_eq!(given.elect(cache, &mut encoder, &step, layer).is_err(), elects, "{name}");
            let refused = cache.append(&mut encoder, &step, layer, Rows::f32(&given.keys), Rows::f32(&short));
            assert!(matches!(refused, Err(Error::Rows { name: "values", .. })), "{name}: {refused:?}");
            given.append(cache, &mut encoder, &step, layer).unwrap();
            assert_eq!(given.append(cache, &mut encoder, &step, layer), Err(too_often("Cache::append", layer)), "{name}");
            if elects {
                assert_eq!(given.elect(cache, &mut encoder, &step, layer), Err(too_often("Cache::elect", layer)), "{name}");
            }
            given.attend(cache, &mut encoder, &step, layer).unwrap();
            given.attend(cache, &mut encoder, &step, layer).unwrap();
            given.elect(&twin.cache, &mut good, &same, layer).unwrap();
            given.append(&twin.cache, &mut good, &same, layer).unwrap();
        }
        submit(&GPU, encoder);
        submit(&GPU, good);
        let [got, want] = [(&used, sequence), (&twin, control)].map(|(reader, sequence)| saved(&reader.cache, sequence));
        assert!(got == want, "{name}");
        assert_eq!(too_often("Cache::append", 3).to_string(), "layer 3: Cache::append must come once in a step, but came again");

        // The next step is another, and what brings no tokens needs no keys.
        let next = used.cache.step(&[chunk(sequence, 1)]).unwrap();
        given.attends_in_no_way(&used.cache, &next, 1, &too_early("Cache::attend", 1));
        if !elects {
            let first = 450;
            let looks = used.cache.step_parts(&[Share { sequence, first, queries: 1, tokens: 0 }]).unwrap();
            let mut encoder = wgkv_testing::encoder(&GPU);
            given.attend(&used.cache, &mut encoder, &looks, 0).unwrap();
            given.append(&used.cache, &mut encoder, &looks, 0).unwrap();
            given.append(&used.cache, &mut encoder, &looks, 0).unwrap();
            assert_eq!(looks.recorded(), None);
            submit(&GPU, encoder);
            assert!(saved(&used.cache, sequence) == want, "{name}: nothing was appended");
        }
    }
}

#[test]
fn a_step_that_was_recorded_is_not_abandoned() {
    let random = &mut generator();
    let plan = plan(random, rotated(Bits::Two, Bits::Four, 64, 2), massive(3, 128), 2);
    let mut reader = Reader::new(&GPU, plan.clone());
    let sequence = reader.cache.begin().unwrap();
    let given = Given::of(random, 20);
    let recorded = |layer| Err(Error::Order { call: "Cache::abandon", layer, wanted: "before anything is recorded", had: "after it" });
    for appends in [false, true] {
        let step = reader.cache.step(&[chunk(sequence, 20)]).unwrap();
        let mut encoder = encoder(&GPU);
        // An election changes what the cache knows of a prompt, too.
        given.elect(&reader.cache, &mut encoder, &step, 1).unwrap();
        if appends {
            given.append(&reader.cache, &mut encoder, &step, 1).unwrap();
        }
        submit(&GPU, encoder);
        let tokens = reader.cache.tokens(sequence);
        assert_eq!(reader.cache.abandon(step), recorded(1));
        assert_eq!(reader.cache.tokens(sequence), tokens, "nothing has changed");
        // What can be had of it is what was there before.
        assert_eq!(reader.truncate(sequence, 20), Err(Error::Torn { slot: 0, layer: 0, whole: 0 }));
        reader.truncate(sequence, 0).unwrap();
    }
    // Steps of others, and of before.
    let mut other = Reader::new(&GPU, plan);
    let foreign = other.cache.begin().unwrap();
    let theirs = other.cache.step(&[chunk(foreign, 3)]).unwrap();
    assert!(matches!(reader.cache.abandon(theirs), Err(Error::Stale { .. })));
    assert_eq!(other.cache.tokens(foreign), Ok(3));
    let old = reader.cache.step(&[chunk(sequence, 3)]).unwrap();
    _ = reader.cache.step(&[chunk(sequence, 5)]).unwrap();
    assert!(matches!(reader.cache.abandon(old), Err(Error::Stale { .. })));
    assert_eq!(reader.cache.tokens(sequence), Ok(5));
}

#[test]
fn what_only_some_layers_were_given_is_never_read() {
    let random = &mut generator();
    for plan in plans(random) {
        let name = name(&plan);
        let [mut used, mut twin] = [(); 2].map(|()| Reader::new(&GPU, plan.clone()));
        let text = Text::normal(random, &shape(), LONG);
        // 300 tokens, of which 128 are packed; 90 more, by which 256 are.
        let [[torn, other], [control, _]] = [&mut used, &mut twin].map(|reader| {
            [(); 2].map(|()| {
                let sequence = reader.cache.begin().unwrap();
                reader.store(sequence, &text, 300);
                sequence
            })
        });
        let given = Given::of(random, 90);
        let step = used.cache.step(&[chunk(torn, 90)]).unwrap();
        let mut encoder = encoder(&GPU);
        given.elect(&used.cache, &mut encoder, &step, 0).unwrap();
        given.append(&used.cache, &mut encoder, &step, 0).unwrap();
        submit(&GPU, encoder);
        let whole = if plan.packed(390) == plan.packed(300) { 300 } else { plan.packed(300) };
        let error = Error::Torn { slot: torn.slot(), layer: 1, whole };
        // No call that reads it builds on it, and a refusal leaves the step as it was.
        assert_eq!(used.cache.step(&[chunk(other, 1), chunk(torn, 1)]).map(drop), Err(error.clone()), "{name}");
        assert_eq!(used.fork(torn), Err(error.clone()), "{name}");
        assert_eq!(used.cache.can_append(&[chunk(torn, 1)]), Err(error.clone()), "{name}");
        assert_eq!(used.cache.slide(torn, 10), Err(error.clone()), "{name}");
        assert_eq!(used.truncate(torn, whole + 1), Err(error.clone()), "{name}");
        assert_eq!(block_on(used.cache.save(torn)), Err(too_early("Cache::save", 1)), "{name}");
        let mut encoder = wgkv_testing::encoder(&GPU);
        assert_eq!(PrefixIndex::new(&plan).remember(&mut used.cache, &mut encoder, torn, &[0; 300]), Err(error.clone()), "{name}");
        // So does the layer that has it.
        let [keys, values] = [0, 1].map(|_| upload(&GPU, &vec![0.0; 390 * 128]));
        used.cache.dequantize(&mut encoder, torn, 0, 0..390, Rows::f32(&keys), Rows::f32(&values)).unwrap();
        assert_eq!(step.recorded(), Some(0));
        assert_eq!(used.cache.tokens(torn), Ok(390), "{name}");

        // Others go on; then it cannot be finished.
        used.read(other, &text, 1);
        let late = given.append(&used.cache, &mut encoder, &step, 1);
        assert!(matches!(late, Err(Error::Stale { .. })), "{name}: {late:?}");
        assert_eq!(used.cache.step(&[chunk(torn, 1)]).map(drop), Err(error.clone()), "{name}");
        assert_eq!(block_on(used.cache.save(torn)), Err(error.clone()), "{name}");
        let read = used.cache.dequantize(&mut encoder, torn, 0, 0..whole + 1, Rows::f32(&keys), Rows::f32(&values));
        assert_eq!(read, Err(error), "{name}");
        drop(encoder);
        // What is whole can be had.
        used.truncate(torn, whole).unwrap();
        twin.truncate(control, whole).unwrap();
        if plan.elects() {
            // An election cannot be unmade: sinks that it took a place from are not known again.
            used.read(torn, &text, 5);
            continue;
        }
        for layer in 0..2 {
            assert!(used.stored(torn, layer) == twin.stored(control, layer), "{name}, layer {layer}");
        }
        assert!(used.read_all(torn, &text, &[1, 140, 1]) == twin.read_all(control, &text, &[1, 140, 1]), "{name}");
    }
}

#[test]
fn caches_step_together_or_not_at_all() {
    let random = &mut generator();
    let text = Text::normal(random, &shape(), LONG);
    let [large, small] = [4, 1].map(|sequences| plan(random, hadamard(Bits::Four, Bits::Two, 64), protect(0, 128), sequences));
    let [mut first, mut twin] = [(); 2].map(|()| Reader::new(&GPU, large.clone()));
    let mut second = Reader::new(&GPU, small);
    let [a, b, control] = [&mut first, &mut second, &mut twin].map(|reader| {
        let sequence = reader.cache.begin().unwrap();
        reader.store(sequence, &text, 252);
        sequence
    });
    // The former step of the first cache can be used on after a refusal.
    let given = Given::of(random, 8);
    let [former, same] = [(&mut first, a), (&mut twin, control)].map(|(reader, sequence)| reader.cache.step(&[chunk(sequence, 8)]).unwrap());
    let (free, tokens) = (first.cache.free_pages(), first.cache.tokens(a));
    let refused = step_together(&mut [(&mut first.cache, &[chunk(a, 3)]), (&mut second.cache, &[chunk(b, LONG as u32)])]).map(drop);
    assert_eq!(refused, Err(Error::Length { slot: 0, need: 252 + LONG as u64, have: LONG as u64 }));
    let most = second.cache.can_append(&[chunk(b, 640)]).unwrap();
    assert!(!most.fits());
    let refused = step_together(&mut [(&mut first.cache, &[chunk(a, 3)]), (&mut second.cache, &[chunk(b, 640)])]).map(drop);
    assert_eq!(refused, Err(Error::Pages { need: most.pages_needed, have: most.pages_free }));
    assert_eq!((first.cache.free_pages(), first.cache.tokens(a)), (free, tokens));
    for (reader, step) in [(&first, &former), (&twin, &same)] {
        let mut encoder = encoder(&GPU);
        (0..2).for_each(|layer| given.append(&reader.cache, &mut encoder, step, layer).unwrap());
        submit(&GPU, encoder);
    }
    assert!(saved(&first.cache, a) == saved(&twin.cache, control));
    let steps = step_together(&mut [(&mut first.cache, &[chunk(a, 3)]), (&mut second.cache, &[chunk(b, 5)])]).unwrap();
    assert_eq!(steps.iter().map(Step::rows).collect::<Vec<_>>(), [3, 5]);
    assert_eq!((first.cache.tokens(a), second.cache.tokens(b)), (Ok(263), Ok(257)));
    assert_eq!(step_together(&mut []).map(|steps| steps.len()), Ok(0));
}

/// Takes a device away; it is told when the device is polled.
fn lose(gpu: &Gpu) {
    gpu.device().destroy();
    wait(gpu);
}

#[test]
fn heads_on_several_devices_step_together_or_not_at_all() {
    let random = &mut generator();
    let plan = plan(random, hadamard(Bits::Four, Bits::Two, 64), protect(0, 128), 2);
    let gpus = devices(2);
    let [mut used, mut twin] = [(); 2].map(|()| HeadParallel::new(&gpus, &plan).unwrap());
    let [sequence, control] = [&mut used, &mut twin].map(|cache| cache.begin().unwrap());
    let numbers = normals(random, 252 * 128);
    let append = |cache: &mut HeadParallel, step: &HeadStep| {
        let rows = cache.scatter_keys(&numbers[..step.steps()[0].rows() as usize * 128]).unwrap();
        let rows: Vec<Rows> = rows.iter().map(Rows::f32).collect();
        let mut encoders = cache.encoders();
        (0..2).for_each(|layer| cache.append(&mut encoders, step, layer, &rows, &rows).unwrap());
        cache.submit(encoders).unwrap();
    };
    let all = |cache: &HeadParallel, sequence: &HeadSequence| {
        cache.shards().iter().zip(sequence.sequences()).map(|(shard, sequence)| saved(shard, *sequence)).collect::<Vec<_>>()
    };
    for (cache, sequence) in [(&mut used, &sequence), (&mut twin, &control)] {
        let step = cache.step(&[(sequence, 252)]).unwrap();
        append(cache, &step);
    }
    let step = used.step(&[(&sequence, 8)]).unwrap();
    used.abandon(step).unwrap();
    assert!(all(&used, &sequence) == all(&twin, &control));
    // The second device's rows are too short: the first has recorded nothing, so both can again.
    let step = used.step(&[(&sequence, 8)]).unwrap();
    let (good, short) = (used.scatter_keys(&numbers[..8 * 128]).unwrap(), upload(&gpus[1], &[0.0; 64]));
    let [good, bad] = [[&good[0], &good[1]], [&good[0], &short]].map(|buffers| buffers.map(Rows::f32));
    let mut encoders = used.encoders();
    assert!(matches!(used.append(&mut encoders, &step, 0, &bad, &good), Err(Error::Rows { .. })));
    assert!(step.steps().iter().all(|step| step.recorded().is_none()));
    used.append(&mut encoders, &step, 0, &good, &good).unwrap();
    assert_eq!(used.append(&mut encoders, &step, 0, &good, &good), Err(too_often("Cache::append", 0)));
    let outputs = used.outputs(8);
    let outputs: Vec<Rows> = outputs.iter().map(Rows::f32).collect();
    assert_eq!(used.attend(&mut encoders, &step, 1, &good, &outputs), Err(too_early("Cache::attend", 1)));
    drop(encoders);
    step.unrecord();
    append(&mut used, &step);
    let step = twin.step(&[(&control, 8)]).unwrap();
    append(&mut twin, &step);
    assert!(all(&used, &sequence) == all(&twin, &control));
    // The second device is gone: the first has grown by nothing.
    let before = (used.shards()[0].free_pages(), used.shards()[0].tokens(sequence.sequences()[0]));
    lose(&gpus[1]);
    assert!(matches!(used.step(&[(&sequence, 200)]), Err(Error::Lost { .. })));
    assert_eq!((used.shards()[0].free_pages(), used.shards()[0].tokens(sequence.sequences()[0])), before);
    let mut encoders = used.encoders();
    assert!(matches!(used.truncate(&mut encoders, &sequence, 100), Err(Error::Lost { .. })));
    assert_eq!((used.shards()[0].free_pages(), used.shards()[0].tokens(sequence.sequences()[0])), before);
}

#[test]
fn tokens_on_several_devices_step_together_or_not_at_all() {
    let random = &mut generator();
    let plan = plan(random, hadamard(Bits::Four, Bits::Two, 64), protect(0, 128), 2).to_builder().max_tokens(256).build(GPU.capability()).unwrap();
    let gpus = devices(2);
    let [mut used, mut twin] = [(); 2].map(|()| ContextParallel::new(&gpus, &plan, 256).unwrap());
    let [sequence, control] = [&mut used, &mut twin].map(|cache| cache.begin().unwrap());
    let numbers = normals(random, 300 * 128);
    let append = |cache: &ContextParallel, step: &ContextStep| {
        let rows = cache.scatter(step, &numbers[..step.rows() as usize * 128]).unwrap();
        let rows: Vec<Rows> = rows.iter().map(Rows::f32).collect();
        let mut encoders = cache.encoders();
        (0..2).for_each(|layer| cache.append(&mut encoders, step, layer, &rows, &rows).unwrap());
        cache.submit(encoders).unwrap();
    };
    let all = |cache: &ContextParallel, sequence: &ContextSequence| {
        cache.parts().iter().zip(sequence.sequences()).map(|(part, sequence)| saved(part, *sequence)).collect::<Vec<_>>()
    };
    for tokens in [250, 1, 180] {
        // Across the end of the first device's span, or within it.
        let step = used.step(&[(&sequence, 60)]).unwrap();
        used.abandon(step).unwrap();
        // A step that is dropped, then one that has no part on the second device.
        _ = used.step(&[(&sequence, 260 - tokens.min(250))]).unwrap();
        for (cache, sequence) in [(&mut used, &sequence), (&mut twin, &control)] {
            let step = cache.step(&[(sequence, tokens)]).unwrap();
            append(cache, &step);
        }
        assert_eq!(used.tokens(&sequence), twin.tokens(&control));
        assert!(all(&used, &sequence) == all(&twin, &control), "{tokens}");
    }
    // A step that was recorded on both is abandoned on neither.
    let step = used.step(&[(&sequence, 1)]).unwrap();
    append(&used, &step);
    assert!(matches!(used.abandon(step), Err(Error::Order { call: "Cache::abandon", .. })));
    assert_eq!(used.tokens(&sequence), Ok(432));
    let free: Vec<u32> = used.parts().iter().map(Cache::free_pages).collect();
    lose(&gpus[1]);
    assert!(matches!(used.step(&[(&sequence, 1)]), Err(Error::Lost { .. })));
    let mut encoders = used.encoders();
    assert!(matches!(used.truncate(&mut encoders, &sequence, 3), Err(Error::Lost { .. })));
    assert_eq!((used.tokens(&sequence), used.parts().iter().map(Cache::free_pages).collect::<Vec<_>>()), (Ok(432), free));
}
