//! One cache of layers that differ: what it stores and attends is what a cache for each kind of
//! layer would, layers that slide hold the same pages however long the context, and every call
//! happens in all groups of layers or in none.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rand::RngExt;
use rand::rngs::StdRng;
use wgkv::layers::*;
use wgkv::prefix::PrefixIndex;
use wgkv_testing::*;

/// Relative RMS of an output in f32 against f64 attention over the stored rows: roundings only, but
/// in a chunk of several tokens of keys and values that are not stored in f16 to halves, and by
/// cooperative matrices of queries and weights.
const FLOAT_RMS: f64 = 1e-4;
const UNPACKED_RMS: f64 = 2.5e-3;

/// Tokens that layers of the first group see.
const WINDOW: u32 = 150;

/// Tokens of a step at most.
const CHUNK: u32 = 200;

/// Layers as Gemma 3 has them: five that see a window to one that sees everything, each kind with
/// its theta and its KV heads; and two that have no keys and values of their own, as in Gemma 3n.
const LAYERS: u32 = 8;
const GLOBAL: u32 = 5;
const SHARED: [(u32, u32); 2] = [(6, 4), (7, 5)];

fn local_shape(layers: u32) -> Shape {
    Shape { layers, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

fn global_shape(layers: u32) -> Shape {
    Shape { layers, query_heads: 2, kv_heads: 1, head_dim: 128, rope: Rope::new(1_000_000.0, 128) }
}

/// Returns what the plans of both groups are made from.
fn builders(random: &mut StdRng, way: usize) -> [PlanBuilder; 2] {
    use Bits::{Eight, Four, Three, Two};
    let (local, global) = (local_shape(5), global_shape(1));
    let means = random_means(&global, &normals(random, 128), random);
    let rotate = rotated(Two, Four, 64, 2);
    let order = random_order(&local, &rotate, Reach::Global, random);
    let [local, global] = match way {
        0 => [Plan::builder(local, Format::f16()).protection(Protection::NONE), Plan::builder(global, Format::f16()).protection(Protection::NONE)],
        1 => [Plan::builder(local, hadamard(Four, Four, 64)), Plan::builder(global, centred(Three, Four, 128)).protection(protect(4, 40)).learned(means)],
        2 => [Plan::builder(local, rotate).protection(massive(8, 0)).learned(order), Plan::builder(global, hadamard(Eight, Four, 32))],
        _ => [Plan::builder(local, centred(Four, Two, 64)).protection(protect(3, 256)), Plan::builder(global, rtn(Four, Eight, 64)).protection(protect(0, 0))],
    };
    [local.sliding_window(WINDOW), global]
}

fn layered([local, global]: [PlanBuilder; 2]) -> LayeredPlanBuilder {
    let plan = LayeredPlan::builder().group([0, 1, 2, 3, 4], local).group([GLOBAL], global).chunk(CHUNK);
    SHARED.iter().fold(plan, |plan, (layer, of)| plan.share(*layer, *of))
}

/// Returns the group of a layer and its number there.
fn place(layer: u32) -> (usize, u32) {
    let layer = SHARED.iter().find(|(shared, _)| *shared == layer).map_or(layer, |(_, of)| *of);
    if layer == GLOBAL { (1, 0) } else { (0, layer) }
}

/// A layered cache, beside a cache for each group, which does not slide.
struct Pair {
    gpu: Gpu,
    one: LayeredCache,
    apart: Vec<Cache>,
}

/// A sequence in both.
#[derive(Clone, PartialEq)]
struct Both {
    one: Sequence,
    apart: Vec<Sequence>,
    /// Its tokens where the latest step began, or one before that began farther on.
    began: u32,
}

impl Pair {
    fn new(gpu: &Gpu, plan: LayeredPlan, builders: [PlanBuilder; 2], room: Capacity) -> Self {
        let apart = builders.map(|builder| Cache::new(gpu, builder.capacity(room).build(gpu.capability()).unwrap()).unwrap());
        Self { gpu: gpu.clone(), one: LayeredCache::new(gpu, plan).unwrap(), apart: apart.into() }
    }

    fn begin(&mut self) -> Both {
        Both { one: self.one.begin().unwrap(), apart: self.apart.iter_mut().map(|cache| cache.begin().unwrap()).collect(), began: 0 }
    }

    fn end(&mut self, both: &Both) {
        self.one.end(both.one).unwrap();
        self.apart.iter_mut().zip(&both.apart).for_each(|(cache, sequence)| cache.end(*sequence).unwrap());
    }

    fn tokens(&self, both: &Both) -> u32 {
        let tokens = self.one.tokens(both.one).unwrap();
        self.apart.iter().zip(&both.apart).for_each(|(cache, sequence)| assert_eq!(cache.tokens(*sequence), Ok(tokens)));
        tokens
    }

    /// Gives both the same tokens, asserts that outputs are the same, bit for bit, and that the last
    /// row of each chunk is attention in f64 over what is stored, in a layer that is drawn.
    fn grow(&mut self, random: &mut StdRng, chunks: &mut [(&mut Both, u32)], name: &str) {
        let all: Vec<Chunk> = chunks.iter().map(|(both, tokens)| Chunk { sequence: both.one, tokens: *tokens }).collect();
        let admission = self.one.can_append(&all).unwrap();
        assert!(admission.fits(), "{name}: {admission:?}");
        chunks.iter_mut().for_each(|(both, _)| both.began = both.began.max(self.one.tokens(both.one).unwrap()));
        let step = self.one.step(&all).unwrap();
        let of_group = |group: usize| -> Vec<Chunk> { chunks.iter().map(|(both, tokens)| Chunk { sequence: both.apart[group], tokens: *tokens }).collect() };
        let steps: Vec<Step> = self.apart.iter_mut().zip(0..).map(|(cache, group)| cache.step(&of_group(group)).unwrap()).collect();
        let rows: u32 = chunks.iter().map(|(_, tokens)| tokens).sum();
        assert_eq!(step.rows(), rows);
        let mut encoder = encoder(&self.gpu);
        let mut attended = Vec::new();
        for layer in 0..LAYERS {
            let (group, index) = place(layer);
            let cache = &self.apart[group];
            let [kv, _, q, stream] = Text::widths(cache.plan().shape()).map(|width| width * rows as usize);
            let queries = normals(random, q);
            let [keys, values, residual, asked] =
                [&normals(random, kv), &normals(random, kv), &normals(random, stream), &queries].map(|numbers| upload(&self.gpu, numbers));
            let outputs = [poisoned(&self.gpu, q), poisoned(&self.gpu, q)];
            if !SHARED.iter().any(|(shared, _)| *shared == layer) {
                self.one.elect(&mut encoder, &step, layer, Rows::f32(&residual), STREAM as u32).unwrap();
                self.one.append(&mut encoder, &step, layer, Rows::f32(&keys), Rows::f32(&values)).unwrap();
                cache.elect(&mut encoder, &steps[group], index, Rows::f32(&residual), STREAM as u32).unwrap();
                cache.append(&mut encoder, &steps[group], index, Rows::f32(&keys), Rows::f32(&values)).unwrap();
            }
            self.one.attend(&mut encoder, &step, layer, Rows::f32(&asked), Rows::f32(&outputs[0])).unwrap();
            cache.attend(&mut encoder, &steps[group], index, Rows::f32(&asked), Rows::f32(&outputs[1])).unwrap();
            attended.push((queries, outputs));
        }
        submit(&self.gpu, encoder);
        let exact = random.random_range(0..LAYERS);
        for (layer, (queries, outputs)) in (0..).zip(attended) {
            let [got, want] = outputs.map(|output| words(&self.gpu, &output));
            assert!(got == want, "{name}: layer {layer} of a step of {:?}", all.iter().map(|chunk| chunk.tokens).collect::<Vec<_>>());
            let shape = self.one.plan().plan_of(layer).unwrap().shape();
            let width = (shape.query_heads * shape.head_dim) as usize;
            let mut row = 0;
            for (both, tokens) in chunks.iter().filter(|_| layer == exact) {
                row += *tokens as usize;
                let last = (row - 1) * width..row * width;
                self.exact(both, layer, *tokens, &queries[last.clone()], &floats(&got)[last], name);
            }
        }
    }

    /// Asserts that the output of a sequence's last token is attention over what the layer stores.
    fn exact(&self, both: &Both, layer: u32, chunk: u32, query: &[f32], got: &[f32], name: &str) {
        let plan = self.one.plan().plan_of(layer).unwrap();
        let (shape, end) = (plan.shape(), self.one.tokens(both.one).unwrap());
        let first = plan.span().first(end - 1);
        let numbers = ((end - first) * shape.kv_heads * shape.head_dim) as usize;
        let rows = [poisoned(&self.gpu, numbers), poisoned(&self.gpu, numbers)];
        let mut encoder = encoder(&self.gpu);
        self.one.dequantize(&mut encoder, both.one, layer, first..end, Rows::f32(&rows[0]), Rows::f32(&rows[1])).unwrap();
        submit(&self.gpu, encoder);
        let [keys, values] = rows.map(|rows| download(&self.gpu, &rows, numbers));
        let error = relative_rms(got, &attention_seen(shape, [&keys, &values], query, end - 1));
        let most = match plan.format().codec() {
            Codec::F16 if chunk == 1 || !plan.matrices() => FLOAT_RMS,
            _ if chunk > 1 => UNPACKED_RMS,
            Codec::Centred => CENTRED_RMS,
            _ => DECODE_RMS,
        };
        // A NaN compares false, so it fails too.
        assert!(error <= most, "{name}: layer {layer}, token {end} of a chunk of {chunk} is off by {error}");
    }

    /// Does the same in both, which both must allow.
    fn fork(&mut self, both: &Both, tokens: u32) -> Both {
        let mut encoder = encoder(&self.gpu);
        let one = self.one.fork_prefix(&mut encoder, both.one, tokens).unwrap();
        let apart = self.apart.iter_mut().zip(&both.apart).map(|(cache, sequence)| cache.fork_prefix(&mut encoder, *sequence, tokens).unwrap()).collect();
        submit(&self.gpu, encoder);
        Both { one, apart, began: both.began }
    }

    /// Cuts both, unless the layered cache refuses because tokens are gone; returns whether it cut.
    fn cut(&mut self, both: &Both, tokens: u32) -> bool {
        let mut encoder = encoder(&self.gpu);
        let cut = self.one.truncate(&mut encoder, both.one, tokens);
        if let Err(Error::Dropped { token, first }) = cut {
            assert!(token < first && token == self.one.groups()[0].plan().span().first(tokens));
            return false;
        }
        cut.unwrap();
        self.apart.iter_mut().zip(&both.apart).for_each(|(cache, sequence)| cache.truncate(&mut encoder, *sequence, tokens).unwrap());
        submit(&self.gpu, encoder);
        true
    }

    /// Checks the pages of all groups.
    fn check(&self, live: &[Both]) {
        assert_eq!(self.one.check_pages(), Ok(live.len() as u32));
        let (local, global) = (&self.one.groups()[0], &self.one.groups()[1]);
        // What slides never lacks a page.
        let most = self.one.plan().most_pages(0).unwrap();
        assert!(local.plan().pages() - local.free_pages() <= most * live.len() as u32);
        assert_eq!(global.free_pages(), self.apart[1].free_pages());
    }
}

#[test]
fn halves_are_as_in_caches_of_their_own() {
    as_in_caches_of_their_own(0);
}

#[test]
fn hadamard_and_centred_are_as_in_caches_of_their_own() {
    as_in_caches_of_their_own(1);
}

#[test]
fn rotate_kv_and_hadamard_are_as_in_caches_of_their_own() {
    as_in_caches_of_their_own(2);
}

#[test]
fn chunks_of_centred_are_as_in_caches_of_their_own() {
    as_in_caches_of_their_own(3);
}

#[test]
fn chunks_of_whole_pages_are_as_in_caches_of_their_own() {
    as_in_caches_of_their_own(4);
}

fn as_in_caches_of_their_own(way: usize) {
    // Tokens that can be cut off beyond those of the latest step.
    let keep = [0, 30, 0, 1, 2][way];
    let gpu = gpu();
    let random = &mut generator();
    let builders = builders(random, way);
    let room = Capacity::tokens(3, 1500);
    let plan = layered(builders.clone()).capacity(room).keep(keep).build(gpu.capability()).unwrap();
    let name = plan.groups().iter().map(|plan| format!("{}, {:?}", plan.format(), plan.protection())).collect::<Vec<_>>().join(" and ");
    let mut pair = Pair::new(&gpu, plan, builders, room);
    let mut live = vec![pair.begin()];
    // Over the ends of pages and of the window, in large chunks and by single tokens.
    for tokens in [CHUNK, 55, 1, 1, 128, 1, CHUNK, 54, 1] {
        pair.grow(random, &mut [(&mut live[0], tokens)], &name);
        pair.check(&live);
    }
    // A step that begins where the last token it keeps is the last of a page, the first of the
    // next, or the second; then one that begins as far before as can be cut.
    for place in [127, 0, 1] {
        let held = pair.tokens(&live[0]);
        let edge = (held + 2..).find(|tokens| (tokens - (WINDOW - 1) - keep) % 128 == place).unwrap();
        pair.grow(random, &mut [(&mut live[0], edge - held)], &name);
        pair.grow(random, &mut [(&mut live[0], 1)], &name);
        let both = live[0].clone();
        assert!(pair.cut(&both, edge - keep));
        pair.grow(random, &mut [(&mut live[0], 1)], &name);
    }
    let (mut cuts, mut refused) = (0, 0);
    for _ in 0..10 {
        let n = random.random_range(0..live.len());
        match random.random_range(0..7) {
            0 if live.len() < 3 => {
                let tokens = pair.tokens(&live[n]);
                let first = live[n].began.saturating_sub(keep).min(tokens);
                let forked = pair.fork(&live[n], random.random_range(first..=tokens));
                live.push(forked);
            }
            1 if live.len() > 1 => {
                let ended = live.swap_remove(n);
                pair.end(&ended);
            }
            2..4 => {
                let (tokens, both) = (pair.tokens(&live[n]), live[n].clone());
                // What came since the step that began last, and as many as the plan keeps, can
                // always go.
                let sure = both.began.saturating_sub(keep).min(tokens);
                let to = if random.random() { random.random_range(sure..=tokens) } else { random.random_range(sure.saturating_sub(200)..=sure) };
                if pair.cut(&both, to) {
                    cuts += 1;
                } else {
                    assert!(to < sure, "{name}: a cut from {tokens} to {to}, of which {} were there when a step began", both.began);
                    refused += 1;
                }
            }
            _ => {
                // One of them for sure, and the others as it comes, in steps of decoding or not.
                let mut chunks = Vec::new();
                for (i, both) in live.iter_mut().enumerate() {
                    if i == n || random.random() {
                        chunks.push((both, [1, 1, 1, 2, 60, CHUNK][random.random_range(0..6)]));
                    }
                }
                pair.grow(random, &mut chunks, &name);
            }
        }
        pair.check(&live);
    }
    println!("{name}: {cuts} cuts, {refused} refused");
    // A draft of five is taken back to each of its lengths, and goes on as if it had not been.
    for kept in 0..=5 {
        pair.grow(random, &mut [(&mut live[0], 5)], &name);
        let (both, tokens) = (live[0].clone(), pair.tokens(&live[0]));
        assert!(pair.cut(&both, tokens - 5 + kept));
        pair.grow(random, &mut [(&mut live[0], 1)], &name);
    }
    assert!(pollster::block_on(pair.one.status()).unwrap().is_clean());
    for both in &live {
        pair.end(both);
    }
    pair.check(&[]);
    assert_eq!(pair.one.free_pages(), pair.one.groups().iter().map(|cache| cache.plan().pages()).collect::<Vec<_>>());
}

/// Tokens of a text, and of others that differ from it from a place on.
fn tokens(count: u32, from: u32, other: u32) -> Vec<u32> {
    (0..count).map(|t| if t < from { t * 7 % 1000 } else { 1000 * other + t }).collect()
}

#[test]
fn prefixes_are_found_as_far_as_every_group_has_them() {
    let gpu = gpu();
    let random = &mut generator();
    for way in 0..4 {
        let builders = builders(random, way);
        let room = Capacity::tokens(4, 900);
        let plan = layered(builders.clone()).capacity(room).build(gpu.capability()).unwrap();
        let name = plan.groups().iter().map(|plan| format!("{}, {:?}", plan.format(), plan.protection())).collect::<Vec<_>>().join(" and ");
        // Where nothing is f16 for a while and no sinks are elected: from the first end of a page whose
        // next query sees none of the page that the layers slid beyond before the last 128 tokens.
        let shortest = if way == 0 { (128 + WINDOW - 1).next_multiple_of(128) } else { 512 };
        let mut prefixes = PrefixIndex::new(&plan);
        let mut pair = Pair::new(&gpu, plan, builders, room);
        let mut first = pair.begin();
        for _ in 0..4 {
            pair.grow(random, &mut [(&mut first, 128)], &name);
        }
        // What others will share, for the caches apart, too.
        let mut recorder = encoder(&gpu);
        assert_eq!(prefixes.remember(&mut pair.one, &mut recorder, first.one, &tokens(512, 600, 0)), Ok(512), "{name}");
        let kept: Vec<Sequence> = pair.apart.iter_mut().zip(&first.apart).map(|(cache, own)| cache.fork_prefix(&mut recorder, *own, 512).unwrap()).collect();
        submit(&gpu, recorder);
        pair.grow(random, &mut [(&mut first, 60)], &name);
        for (other, shared) in [(1, 600), (2, 513), (3, 512), (4, 470), (5, shortest), (6, shortest - 1), (7, 100)] {
            let mut recorder = encoder(&gpu);
            let begun = prefixes.begin(&mut pair.one, &mut recorder, &tokens(620, shared, other)).unwrap();
            let found = shared.min(512) / 128 * 128;
            let found = if found < shortest { 0 } else { found };
            assert_eq!(begun.tokens, found, "{name}: {shared} tokens are the same");
            assert_eq!(pair.one.tokens(begun.sequence), Ok(found), "{name}");
            let apart = pair
                .apart
                .iter_mut()
                .zip(&kept)
                .map(|(cache, kept)| if found == 0 { cache.begin().unwrap() } else { cache.fork_prefix(&mut recorder, *kept, found).unwrap() });
            let mut both = Both { one: begun.sequence, apart: apart.collect(), began: found };
            submit(&gpu, recorder);
            // Bit for bit as a sequence of its own; the first goes on beside it.
            pair.grow(random, &mut [(&mut both, 1)], &name);
            pair.grow(random, &mut [(&mut both, 90), (&mut first, 1)], &name);
            pair.grow(random, &mut [(&mut both, 1)], &name);
            pair.end(&both);
        }
        let counters = prefixes.counters();
        assert_eq!((counters.begun, counters.hits, counters.evictions), (7, if way == 0 { 5 } else { 4 }, 0), "{name}");
        assert_eq!(pair.one.check_pages(), Ok(2));
        pair.end(&first);
        prefixes.clear(&mut pair.one).unwrap();
        assert_eq!(pair.one.check_pages(), Ok(0));
        assert_eq!(pair.one.free_pages(), pair.one.groups().iter().map(|cache| cache.plan().pages()).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn prefixes_make_room_in_the_group_that_lacks_it() {
    let gpu = gpu();
    // 15 pages for all sequences of the layers that see everything; the windowed never lack one.
    let halves = |layers, builder: fn(PlanBuilder) -> PlanBuilder| {
        let shape = Shape { layers, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::new(10_000.0, 64) };
        builder(Plan::builder(shape, Format::f16()).protection(Protection::NONE))
    };
    let plan = LayeredPlan::builder()
        .group([0], halves(1, |builder| builder.sliding_window(100)))
        .group([1], halves(1, |builder| builder))
        .capacity(Capacity::tokens(5, 384))
        .chunk(1920)
        .build(gpu.capability())
        .unwrap();
    let mut prefixes = PrefixIndex::new(&plan);
    let mut cache = LayeredCache::new(&gpu, plan).unwrap();
    let read = |cache: &mut LayeredCache, sequence, tokens| {
        let step = cache.step(&[Chunk { sequence, tokens }]).unwrap();
        append(cache, &step, &[0, 1]).unwrap();
    };
    for other in 1..=3 {
        let sequence = cache.begin().unwrap();
        read(&mut cache, sequence, 384);
        let mut recorder = encoder(&gpu);
        assert_eq!(prefixes.remember(&mut cache, &mut recorder, sequence, &tokens(384, 0, other)), Ok(384));
        submit(&gpu, recorder);
        cache.end(sequence).unwrap();
    }
    let other = cache.begin().unwrap();
    read(&mut cache, other, 100);
    assert_eq!((prefixes.kept(), cache.free_pages()[1]), (3, 5));
    let sequence = cache.begin().unwrap();
    let wants = |tokens| [Chunk { sequence, tokens }];
    // As it is; by the oldest; by the next; more than all could give, for which none goes; by all.
    for (tokens, kept) in [(640, 3), (641, 2), (1025, 1), (1920, 1), (1792, 0)] {
        let admission = prefixes.make_room(&mut cache, &wants(tokens)).unwrap();
        assert_eq!((admission.fits(), prefixes.kept()), (tokens < 1920, kept), "{tokens} tokens: {admission:?}");
    }
    assert_eq!(cache.check_pages(), Ok(2));
}

#[cfg(feature = "store")]
#[test]
fn snapshots_of_all_groups_are_stored_by_their_tokens() {
    use pollster::block_on;
    use wgkv::prefix::SnapshotStore;
    let gpu = gpu();
    let random = &mut generator();
    let builders = builders(random, 1);
    let room = Capacity::tokens(2, 900);
    let plan = layered(builders.clone()).capacity(room).build(gpu.capability()).unwrap();
    let other = layered(builders.clone()).capacity(Capacity::tokens(3, 1500)).build(gpu.capability()).unwrap();
    let mut pair = Pair::new(&gpu, plan.clone(), builders.clone(), room);
    let mut both = pair.begin();
    for chunk in [CHUNK, 190, 1] {
        pair.grow(random, &mut [(&mut both, chunk)], "before");
    }
    let text = tokens(391, 391, 0);
    let folder = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("layered-prefixes");
    let _ = std::fs::remove_dir_all(&folder);
    let stored = SnapshotStore::local(&folder, "a model").unwrap();
    let bytes = block_on(pair.one.save(both.one)).unwrap();
    assert_eq!(block_on(stored.get(&plan, &text)), Ok(None));
    // Of other tokens, or of one group alone, it is refused.
    let short = block_on(stored.put(&plan, &text[..390], bytes.clone())).unwrap_err().to_string();
    assert!(short.contains("390") && short.contains("391"), "{short}");
    let own = pair.one.sequences_of(both.one).unwrap()[0];
    let part = block_on(pair.one.groups()[0].save(own)).unwrap();
    assert!(matches!(block_on(stored.put(&plan, &text, part)), Err(Error::Mismatch { of: Thing::Snapshot, .. })));
    assert!(matches!(block_on(stored.put(&plan.groups()[0].clone(), &text, bytes.clone())), Err(Error::Mismatch { of: Thing::Snapshot, .. })));
    block_on(stored.put(&plan, &text, bytes.clone())).unwrap();
    // A cache of another capacity finds it, and goes on as the first does.
    let found = block_on(stored.get(&other, &text)).unwrap().unwrap();
    assert!(found == bytes);
    assert_eq!(block_on(stored.get(&other, &text[1..])), Ok(None));
    assert_eq!(block_on(stored.get(&other.groups()[1].clone(), &text)), Ok(None));
    let mut there = Pair { gpu: gpu.clone(), one: LayeredCache::new(&gpu, other).unwrap(), apart: pair.apart };
    let mut recorder = encoder(&gpu);
    let one = there.one.load(&mut recorder, &found).unwrap();
    submit(&gpu, recorder);
    let mut both = Both { one, ..both };
    for chunk in [1, 100, 1] {
        there.grow(random, &mut [(&mut both, chunk)], "after");
    }
}

/// A layer that stores halves, one that packs what leaves a window of 128, and one that slides: each
/// lacks pages at another time than the others.
fn unlike(gpu: &Gpu) -> LayeredPlan {
    let shape = || Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    LayeredPlan::builder()
        .group([0], Plan::builder(shape(), Format::f16()).protection(Protection::NONE))
        .group([2], Plan::builder(shape(), hadamard(Bits::Four, Bits::Four, 64)))
        .group([1], Plan::builder(shape(), Format::f16()).protection(Protection::NONE).sliding_window(100))
        .capacity(Capacity::tokens(2, 256))
        .build(gpu.capability())
        .unwrap()
}

/// Everything that a call which is refused must leave as it was.
fn state(cache: &LayeredCache, live: &[Sequence]) -> (Vec<u32>, u64, Vec<u32>, Vec<Vec<u8>>) {
    assert_eq!(cache.check_pages(), Ok(live.len() as u32));
    let saved = live.iter().flat_map(|sequence| {
        let own = cache.sequences_of(*sequence).unwrap();
        cache.groups().iter().zip(own).map(|(group, sequence)| pollster::block_on(group.save(*sequence)).unwrap())
    });
    (cache.free_pages(), cache.bytes_used(), live.iter().map(|sequence| cache.tokens(*sequence).unwrap()).collect(), saved.collect())
}

/// Gives some layers of a step the same rows for every token.
fn append(cache: &LayeredCache, step: &LayeredStep, layers: &[u32]) -> Result<()> {
    let gpu = cache.gpu();
    let rows = upload(gpu, &vec![0.5; 64 * step.rows() as usize]);
    let mut encoder = encoder(gpu);
    let answer = layers.iter().try_for_each(|layer| cache.append(&mut encoder, step, *layer, Rows::f32(&rows), Rows::f32(&rows)));
    submit(gpu, encoder);
    answer
}

fn store(cache: &mut LayeredCache, sequence: Sequence, tokens: u32) {
    let step = cache.step(&[Chunk { sequence, tokens }]).unwrap();
    append(cache, &step, &[0, 1, 2]).unwrap();
}

fn cut(cache: &mut LayeredCache, sequence: Sequence, tokens: u32) -> Result<()> {
    let mut encoder = encoder(cache.gpu());
    let answer = cache.truncate(&mut encoder, sequence, tokens);
    submit(cache.gpu(), encoder);
    answer
}

#[test]
fn what_one_group_refuses_changes_none() {
    let gpu = gpu();
    let mut cache = LayeredCache::new(&gpu, unlike(&gpu)).unwrap();
    assert_eq!((cache.free_pages(), cache.plan().max_tokens()), (vec![4, 2, 2 * cache.plan().most_pages(2).unwrap()], 511));
    let [a, b] = [(); 2].map(|()| cache.begin().unwrap());
    let chunk = |sequence, tokens| Chunk { sequence, tokens };

    // The second group packed more of `a` than its length needs, and lacks a page for `b`.
    store(&mut cache, a, 384);
    cut(&mut cache, a, 130).unwrap();
    store(&mut cache, b, 128);
    let before = state(&cache, &[a, b]);
    assert_eq!(before.0[..2], [1, 0]);
    assert_eq!(cache.begin(), Err(Error::Sequences { have: 2 }));
    let lacks = Admission { pages_needed: 1, pages_free: 0 };
    assert_eq!(cache.can_append(&[chunk(b, 128)]), Ok(lacks));
    assert!(cache.step(&[chunk(b, 128)]).is_err_and(|error| error == Error::Pages { need: 1, have: 0 }));
    assert_eq!(state(&cache, &[a, b]), before);

    // A step that is open can be used after all that was refused.
    let step = cache.step(&[chunk(b, 1), chunk(a, 1)]).unwrap();
    append(&cache, &step, &[2]).unwrap();
    assert_eq!(step.recorded(), Some(2));
    let own = cache.sequences_of(a).unwrap()[1];
    let stranger = LayeredCache::new(&gpu, unlike(&gpu)).unwrap().begin().unwrap();
    let free = cache.free_pages();
    let long = Error::argument(format!("the chunk of sequence {}", a.slot()), "512 tokens at most, as planned", 513);
    for (chunks, want) in [
        (vec![chunk(a, 513)], long),
        // `b` is torn by now, which comes first where both are at fault.
        (vec![chunk(own, 1)], Error::UnknownSequence { slot: own.slot() }),
        (vec![chunk(stranger, 1)], Error::UnknownSequence { slot: stranger.slot() }),
        (vec![chunk(b, 1)], Error::Torn { slot: b.slot(), layer: 0, whole: 128 }),
    ] {
        assert_eq!(cache.can_append(&chunks), Err(want.clone()));
        assert!(cache.step(&chunks).is_err_and(|error| error == want));
        assert_eq!(cache.free_pages(), free);
    }
    let mut commands = encoder(&gpu);
    assert_eq!(cache.fork(&mut commands, b), Err(Error::Torn { slot: b.slot(), layer: 0, whole: 128 }));
    assert_eq!(cache.truncate(&mut commands, a, 132), Err(Error::Range { first: 0, end: 132, have: 131 }));
    assert_eq!(cache.fork_prefix(&mut commands, stranger, 1), Err(Error::UnknownSequence { slot: stranger.slot() }));
    assert_eq!(cache.slide(stranger, 1), Err(Error::UnknownSequence { slot: stranger.slot() }));
    assert_eq!(cache.end(own), Err(Error::UnknownSequence { slot: own.slot() }));
    drop(commands);
    let again = append(&cache, &step, &[2]).unwrap_err();
    assert_eq!(again, Error::Order { call: "Cache::append", layer: 2, wanted: "once in a step", had: "again" });
    append(&cache, &step, &[0, 1]).unwrap();
    for (chunks, want) in [
        (vec![chunk(a, 381)], Error::Length { slot: a.slot(), need: 512, have: 511 }),
        (vec![chunk(a, 1), chunk(b, 0)], Error::EmptyChunk { slot: b.slot() }),
        (vec![chunk(a, 1), chunk(a, 1)], Error::RepeatedSequence { slot: a.slot() }),
    ] {
        let before = state(&cache, &[a, b]);
        assert_eq!(cache.can_append(&chunks), Err(want.clone()));
        assert!(cache.step(&chunks).is_err_and(|error| error == want));
        assert_eq!(state(&cache, &[a, b]), before);
    }

    // A step of which one group was given a layer is not abandoned, nor another cache's.
    let step = cache.step(&[chunk(a, 1)]).unwrap();
    append(&cache, &step, &[1]).unwrap();
    let refused = cache.abandon(step).unwrap_err();
    assert!(matches!(refused, Error::Order { call: "Cache::abandon", layer: 1, .. }), "{refused}");
    let mut other = LayeredCache::new(&gpu, unlike(&gpu)).unwrap();
    let step = cache.step(&[chunk(b, 1)]).unwrap();
    assert!(matches!(other.abandon(step), Err(Error::Stale { .. })));
    [a, b].into_iter().for_each(|sequence| cache.end(sequence).unwrap());

    // The first group lacks a page for another's first token beyond a page.
    let [a, b] = [(); 2].map(|()| cache.begin().unwrap());
    store(&mut cache, a, 384);
    store(&mut cache, b, 128);
    let before = state(&cache, &[a, b]);
    assert_eq!(cache.can_append(&[chunk(b, 1)]), Ok(lacks));
    assert!(cache.step(&[chunk(b, 1)]).is_err_and(|error| error == Error::Pages { need: 1, have: 0 }));
    assert_eq!(state(&cache, &[a, b]), before);
    let mut commands = encoder(&gpu);
    assert_eq!(cache.fork(&mut commands, a), Err(Error::Sequences { have: 2 }));
    drop(commands);
    cache.end(b).unwrap();

    // It alone must copy a page for a fork, and has none.
    store(&mut cache, a, 16);
    let before = state(&cache, &[a]);
    assert_eq!(before.0[0], 0);
    let mut commands = encoder(&gpu);
    assert_eq!(cache.fork(&mut commands, a), Err(Error::Pages { need: 1, have: 0 }));
    drop(commands);
    assert_eq!(state(&cache, &[a]), before);
    cache.end(a).unwrap();

    // And for a cut inside a page that a fork holds too.
    let a = cache.begin().unwrap();
    store(&mut cache, a, 256);
    let mut commands = encoder(&gpu);
    let b = cache.fork(&mut commands, a).unwrap();
    submit(&gpu, commands);
    store(&mut cache, b, 255);
    let before = state(&cache, &[a, b]);
    assert_eq!(cut(&mut cache, a, 200), Err(Error::Pages { need: 1, have: 0 }));
    assert_eq!(state(&cache, &[a, b]), before);
    cache.end(b).unwrap();
    cut(&mut cache, a, 200).unwrap();
    // Tokens that a window slid beyond are missed by no query.
    store(&mut cache, a, 100);
    store(&mut cache, a, 1);
    let before = state(&cache, &[a]);
    assert_eq!(cut(&mut cache, a, 226), Err(Error::Dropped { token: 127, first: 128 }));
    assert_eq!(state(&cache, &[a]), before);
    cut(&mut cache, a, 227).unwrap();
}

#[test]
fn what_is_saved_goes_on_in_another_cache() {
    let gpu = gpu();
    let random = &mut generator();
    let builders = builders(random, 1);
    let room = Capacity::tokens(2, 900);
    let plan = |room, chunk| layered(builders.clone()).capacity(room).chunk(chunk).build(gpu.capability()).unwrap();
    let name = "saved and loaded";
    let mut pair = Pair::new(&gpu, plan(room, CHUNK), builders.clone(), room);
    let mut both = pair.begin();
    pair.grow(random, &mut [(&mut both, CHUNK)], name);
    let start = pollster::block_on(pair.one.save(both.one)).unwrap();
    for tokens in [CHUNK, 3, 1] {
        pair.grow(random, &mut [(&mut both, tokens)], name);
    }
    let bytes = pollster::block_on(pair.one.save(both.one)).unwrap();
    assert!(bytes == pollster::block_on(pair.one.save_prefix(both.one, 404)).unwrap());
    let prefix = pollster::block_on(pair.one.save_prefix(both.one, 403)).unwrap();
    // Into a cache of other pages, where another sequence is first, for steps of another length.
    pair.one = LayeredCache::new(&gpu, plan(Capacity::tokens(3, 700), 60)).unwrap();
    let other = pair.one.begin().unwrap();
    let mut commands = encoder(&gpu);
    let loaded = pair.one.load(&mut commands, &bytes).unwrap();
    submit(&gpu, commands);
    assert_eq!((pair.one.tokens(loaded), pair.one.check_pages()), (Ok(404), Ok(2)));
    assert!(bytes == pollster::block_on(pair.one.save(loaded)).unwrap());
    both.one = loaded;
    let mut commands = encoder(&gpu);
    let shorter = pair.apart.iter_mut().zip(&both.apart).map(|(cache, sequence)| cache.fork_prefix(&mut commands, *sequence, 403).unwrap()).collect();
    submit(&gpu, commands);
    for tokens in [1, 60, 1] {
        pair.grow(random, &mut [(&mut both, tokens)], name);
    }
    pair.one.end(other).unwrap();
    let mut commands = encoder(&gpu);
    let loaded = pair.one.load(&mut commands, &prefix).unwrap();
    submit(&gpu, commands);
    let mut both = Both { one: loaded, apart: shorter, began: 403 };
    pair.grow(random, &mut [(&mut both, 1)], name);

    // What is damaged, of another plan or too much is refused, and changes nothing.
    let before = (pair.one.free_pages(), pair.one.check_pages());
    let mut commands = encoder(&gpu);
    let mut refused = |cache: &mut LayeredCache, bytes: &[u8]| cache.load(&mut commands, bytes).unwrap_err();
    for _ in 0..60 {
        let mut harmed = bytes.clone();
        let most = if random.random() { 2000 } else { harmed.len() };
        let at = random.random_range(0..most);
        harmed[at] ^= 1 << random.random_range(0..8);
        let error = refused(&mut pair.one, &harmed);
        assert!(matches!(error, Error::Mismatch { of: Thing::Snapshot, .. }), "byte {at}: {error}");
        let error = refused(&mut pair.one, &bytes[..at]);
        assert!(matches!(error, Error::Mismatch { of: Thing::Snapshot, .. }), "{at} bytes: {error}");
    }
    let wider = [builders[0].clone().sliding_window(WINDOW + 1), builders[1].clone()];
    let mut wider = LayeredCache::new(&gpu, layered(wider).capacity(room).build(gpu.capability()).unwrap()).unwrap();
    assert!(refused(&mut wider, &bytes).wanted_of(Thing::Snapshot, "plan").is_some());
    let mut small = LayeredCache::new(&gpu, plan(Capacity::tokens(1, 200), 60)).unwrap();
    assert!(matches!(refused(&mut small, &bytes), Error::Length { need: 404, .. }));
    assert_eq!(small.free_pages(), small.groups().iter().map(|cache| cache.plan().pages()).collect::<Vec<_>>());
    // Room for two of 200 tokens is room for one of 404, if the other has none.
    let mut narrow = LayeredCache::new(&gpu, plan(Capacity::tokens(2, 200), 60)).unwrap();
    let mut loading = encoder(&gpu);
    narrow.load(&mut loading, &start).unwrap();
    drop(loading);
    let free = narrow.free_pages();
    assert_eq!(refused(&mut narrow, &bytes), Error::Pages { need: 2, have: 1 });
    assert_eq!((narrow.free_pages(), narrow.check_pages()), (free, Ok(1)));
    assert_eq!((pair.one.free_pages(), pair.one.check_pages()), before);
    drop(commands);

    // Nothing is saved of a step that some layers lack.
    let step = pair.one.step(&[Chunk { sequence: both.one, tokens: 1 }]).unwrap();
    let early = pollster::block_on(pair.one.save(both.one)).unwrap_err();
    assert!(matches!(early, Error::Order { call: "Cache::save", layer: 0, .. }), "{early}");
    pair.one.abandon(step).unwrap();
    assert_eq!(pollster::block_on(pair.one.save_prefix(both.one, 405)), Err(Error::Range { first: 0, end: 405, have: 404 }));
    assert!(matches!(pollster::block_on(pair.one.save_prefix(both.one, 200)), Err(Error::Dropped { .. })));
}

#[test]
fn a_step_that_some_groups_lack_tears_its_sequences() {
    let gpu = gpu();
    for given in [&[0][..], &[2], &[1], &[0, 1], &[2, 1]] {
        let [mut cache, mut control] = [(); 2].map(|()| LayeredCache::new(&gpu, unlike(&gpu)).unwrap());
        let [a, b] = [(); 2].map(|()| cache.begin().unwrap());
        let alone = control.begin().unwrap();
        store(&mut cache, a, 100);
        store(&mut control, alone, 100);
        let step = cache.step(&[Chunk { sequence: a, tokens: 20 }]).unwrap();
        append(&cache, &step, given).unwrap();
        // The next step makes it stale in all groups.
        store(&mut cache, b, 3);
        let missing = *[0, 2, 1].iter().find(|layer| !given.contains(layer)).unwrap();
        let torn = Error::Torn { slot: a.slot(), layer: missing, whole: 100 };
        assert!(matches!(append(&cache, &step, &[missing]), Err(Error::Stale { .. })));
        let before = (cache.free_pages(), cache.tokens(b));
        assert!(cache.step(&[Chunk { sequence: a, tokens: 1 }]).is_err_and(|error| error == torn));
        assert_eq!(cache.can_append(&[Chunk { sequence: a, tokens: 1 }]), Err(torn.clone()));
        assert_eq!(cache.slide(a, 0), Err(torn.clone()));
        let mut commands = encoder(&gpu);
        assert_eq!(cache.fork(&mut commands, a), Err(torn.clone()));
        assert_eq!(cache.truncate(&mut commands, a, 101), Err(torn));
        assert_eq!((cache.free_pages(), cache.tokens(b)), before);
        cache.truncate(&mut commands, a, 100).unwrap();
        submit(&gpu, commands);
        // It is as if the step had never been made.
        [5, 1].into_iter().for_each(|tokens| {
            store(&mut cache, a, tokens);
            store(&mut control, alone, tokens);
        });
        assert!(state(&cache, &[a, b]).3[..3] == state(&control, &[alone]).3, "given to layers {given:?}");
        cache.end(a).unwrap();
    }
    // One of which nothing was recorded is taken back in all groups, and so is one that is
    // abandoned; what was recorded of encoders that were dropped does not count.
    let mut cache = LayeredCache::new(&gpu, unlike(&gpu)).unwrap();
    let a = cache.begin().unwrap();
    store(&mut cache, a, 100);
    let before = state(&cache, &[a]);
    let step = cache.step(&[Chunk { sequence: a, tokens: 100 }]).unwrap();
    assert_eq!((step.recorded(), cache.tokens(a)), (None, Ok(200)));
    cache.abandon(step).unwrap();
    assert_eq!(state(&cache, &[a]), before);
    let step = cache.step(&[Chunk { sequence: a, tokens: 100 }]).unwrap();
    append(&cache, &step, &[1, 2]).unwrap();
    assert_eq!(step.recorded(), Some(1));
    step.unrecord();
    cache.abandon(step).unwrap();
    assert_eq!((cache.free_pages(), cache.tokens(a)), (before.0, Ok(100)));
    // Pages that one group gives back make the step of every group stale.
    store(&mut cache, a, 149);
    let step = cache.step(&[Chunk { sequence: a, tokens: 1 }]).unwrap();
    append(&cache, &step, &[0, 1, 2]).unwrap();
    let free = cache.free_pages();
    assert_eq!(cache.slide(a, 100), Ok(128));
    assert_eq!(cache.free_pages(), [free[0] + 1, free[1], free[2]], "the second group has packed nothing yet, the third slides by itself");
    let rows = upload(&gpu, &[0.5; 64]);
    let mut commands = encoder(&gpu);
    for layer in 0..3 {
        let stale = cache.attend(&mut commands, &step, layer, Rows::f32(&rows), Rows::f32(&rows));
        assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    }
}

#[test]
fn a_window_takes_the_same_pages_however_long_the_context() {
    const TOKENS: u32 = 131_072;
    const WINDOW: u32 = 1024;
    let gpu = gpu();
    let random = &mut generator();
    let shape = |layers, theta| Shape { layers, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::new(theta, 64) };
    let plan = |tokens: u32| {
        LayeredPlan::builder()
            .group([0, 2], Plan::builder(shape(2, 10_000.0), hadamard(Bits::Four, Bits::Four, 64)).sliding_window(WINDOW))
            .group([1], Plan::builder(shape(1, 1_000_000.0), hadamard(Bits::Two, Bits::Two, 64)))
            .capacity(Capacity::tokens(1, tokens))
            .build(gpu.capability())
            .unwrap()
    };
    let (short, long) = (LayeredCache::new(&gpu, plan(4096)).unwrap(), plan(TOKENS + 1));
    let mut cache = LayeredCache::new(&gpu, long).unwrap();
    assert_eq!(cache.groups()[0].bytes(), short.groups()[0].bytes());
    assert!(cache.groups()[1].bytes() > 20 * short.groups()[1].bytes());
    drop(short);

    let sequence = cache.begin().unwrap();
    // The same rows again and again, but for their positions.
    let rows: Vec<wgpu::Buffer> = (0..6).map(|_| upload(&gpu, &normals(random, 512 * 64))).collect();
    let (mut most, mut bytes) = (0, 0);
    let mut read = |cache: &mut LayeredCache, tokens: u32| {
        let step = cache.step(&[Chunk { sequence, tokens }]).unwrap();
        let mut encoder = encoder(&gpu);
        for (layer, rows) in (0..).zip(rows.chunks(2)) {
            cache.append(&mut encoder, &step, layer, Rows::f32(&rows[0]), Rows::f32(&rows[1])).unwrap();
        }
        submit(&gpu, encoder);
        let local = &cache.groups()[0];
        let held = local.plan().pages() - local.free_pages();
        (most, bytes) = (most.max(held), bytes.max(local.bytes_used()));
        assert!(local.bytes_used() <= local.bytes());
        step
    };
    while cache.tokens(sequence).unwrap() < TOKENS {
        let left = TOKENS - cache.tokens(sequence).unwrap();
        // Chunks that begin and end anywhere in a page.
        let tokens = if random.random() { 512 } else { random.random_range(300..=512) }.min(left);
        let _step = read(&mut cache, tokens);
    }
    let step = read(&mut cache, 1);
    assert_eq!(most, cache.plan().most_pages(0).unwrap(), "the pages are all needed");
    assert_eq!(cache.free_pages()[1], 0);
    // What is attended to at the end is the window.
    let query = normals(random, 64);
    let asked = upload(&gpu, &query);
    for layer in [0, 2] {
        let output = poisoned(&gpu, 64);
        let [keys, values] = [(); 2].map(|()| poisoned(&gpu, 64 * WINDOW as usize));
        let mut encoder = encoder(&gpu);
        cache.attend(&mut encoder, &step, layer, Rows::f32(&asked), Rows::f32(&output)).unwrap();
        cache.dequantize(&mut encoder, sequence, layer, TOKENS + 1 - WINDOW..TOKENS + 1, Rows::f32(&keys), Rows::f32(&values)).unwrap();
        submit(&gpu, encoder);
        let [keys, values] = [&keys, &values].map(|rows| download(&gpu, rows, 64 * WINDOW as usize));
        let want = attention_seen(cache.groups()[0].plan().shape(), [&keys, &values], &query, TOKENS);
        let error = relative_rms(&download(&gpu, &output, 64), &want);
        assert!(error <= DECODE_RMS, "layer {layer} is off by {error}");
    }
    assert!(pollster::block_on(cache.status()).unwrap().is_clean());
}

#[test]
fn layers_that_slide_never_lack_a_page() {
    let gpu = gpu();
    let random = &mut generator();
    let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope: Rope::none() };
    for _ in 0..24 {
        let (span, chunk, keep) = (random.random_range(1..500), random.random_range(1..400), random.random_range(0..200));
        let window = [0, 0, 40, 128, 300][random.random_range(0..5)];
        let local = Plan::builder(shape.clone(), hadamard(Bits::Four, Bits::Four, 64)).protection(protect(0, window));
        let local = match random.random_range(0..3) {
            0 => local.chunked_attention(span),
            1 => local.chunked_attention(span.next_multiple_of(128)),
            _ => local.sliding_window(span),
        };
        let plan = LayeredPlan::builder().group([0], local).capacity(Capacity::tokens(2, 100_000)).chunk(chunk).keep(keep).build(gpu.capability()).unwrap();
        let (most, seen) = (plan.most_pages(0).unwrap(), plan.groups()[0].span());
        let name = format!("{seen}, steps of {chunk}, keeping {keep}, window {window}");
        let mut cache = LayeredCache::new(&gpu, plan).unwrap();
        let mut live = vec![cache.begin().unwrap()];
        for _ in 0..40 {
            let n = random.random_range(0..live.len());
            match random.random_range(0..8) {
                0 if live.len() < 2 => {
                    let mut commands = encoder(&gpu);
                    live.push(cache.fork(&mut commands, live[n]).unwrap());
                    submit(&gpu, commands);
                }
                1 if live.len() > 1 => cache.end(live.swap_remove(n)).unwrap(),
                2 => {
                    let tokens = cache.tokens(live[n]).unwrap();
                    let to = random.random_range(tokens.saturating_sub(chunk + keep)..=tokens);
                    assert!(matches!(cut(&mut cache, live[n], to), Ok(()) | Err(Error::Dropped { .. })), "{name}");
                }
                _ => {
                    let tokens = if random.random() { chunk } else { random.random_range(1..=chunk) };
                    let step = cache.step(&[Chunk { sequence: live[n], tokens }]).unwrap_or_else(|error| panic!("{name}: {error}"));
                    append(&cache, &step, &[0]).unwrap();
                }
            }
            let group = &cache.groups()[0];
            assert!(group.plan().pages() - group.free_pages() <= most * live.len() as u32, "{name}: more than {most} pages a sequence");
            assert_eq!(cache.check_pages(), Ok(live.len() as u32));
        }
    }
}

#[test]
fn layers_that_are_not_planned_soundly_are_refused_by_name() {
    let gpu = gpu();
    let plan = |layers: u32| Plan::builder(local_shape(layers), Format::f16()).protection(Protection::NONE);
    let sliding = |layers: u32| plan(layers).sliding_window(100);
    let builder = LayeredPlan::builder;
    for (builder, want) in [
        (builder(), "groups of layers must be 1 or more, but is 0"),
        (builder().group([], plan(1)), "layers of group 0 must be 1 or more, but is 0"),
        (builder().group([0, 1], plan(2)).group([1, 2], plan(2)), "layer 1 must be in one group, but is in groups 0 and 1"),
        (builder().group([0, 1, 1], plan(3)), "layer 1 must be in one group, but is twice in group 0"),
        (builder().group([0, 1], plan(2)).group([3, 4], plan(2)), "layer 2 must be in one group, but is in none, though there is a layer 4"),
        (builder().group([u32::MAX], plan(1)), "layer 0 must be in one group, but is in none, though there is a layer 4294967295"),
        (builder().group([0, 2, 1], plan(2)), "layers of the shape of group 0 must be 3, for layers 0, 2, 1, but is 2"),
        (builder().group([0, 2], plan(2)).share(1, 2), "the layer that layer 1 shares must be an earlier one, which is in a group, but is 2"),
        (builder().group([0], plan(1)).share(1, 0).share(2, 1), "the layer that layer 2 shares must be an earlier one, which is in a group, but is 1"),
        (builder().group([0, 1], plan(2)).share(1, 0), "layer 1 must be in one group, but is in group 0 and sharing layer 0"),
        (builder().group([0, 1], plan(2)).share(2, 0).share(2, 1), "layer 2 must be in one group, but is sharing layers 0 and 1"),
        (builder().group([0], plan(1)).share(2, 0), "layer 1 must be in one group, but is in none, though there is a layer 2"),
        (builder().group([0], plan(1)).chunk(0), "chunk must be 1 token or more, but is 0"),
        (builder().group([0, 1, 3], plan(3)).group([2], sliding(1).sliding_window(0)), "sliding window of layer 2 must be 1 token or more, but is 0"),
        (builder().group([0], plan(1)).capacity(Capacity::tokens(0, 100)), "sequences of layer 0 must be 1 or more, but is 0"),
        (builder().group([0], plan(1)).capacity(Capacity::tokens(1, 0)), "tokens must be 1 or more, but is 0"),
        (
            builder().group([0], sliding(1)).capacity(Capacity::bytes(1, 1 << 20)),
            "max_tokens must be given where all layers slide and the capacity is in bytes, but is not given",
        ),
    ] {
        let error = builder.build(gpu.capability()).unwrap_err();
        assert_eq!(error.to_string(), want);
    }
    // Bytes that do not hold a page of each group.
    let two = || builder().group([0, 1], sliding(2)).group([2], plan(1)).chunk(128).max_tokens(4096);
    // A page of two KV heads of 64 halves, keys and values, and two or three of them in a window.
    let page = 128 * 2 * 64 * 2 * 2;
    let need = 3 * 2 * page + page;
    let error = two().capacity(Capacity::bytes(1, need - 1)).build(gpu.capability()).unwrap_err();
    assert!(matches!(error, Error::Capacity { need: wanted, have, .. } if (wanted, have) == (need, need - 1)), "{error}");
    for pages in 1..4 {
        let plan = two().capacity(Capacity::bytes(1, need + (pages - 1) * page + page / 2)).build(gpu.capability()).unwrap();
        assert_eq!([plan.groups()[0].pages(), plan.groups()[1].pages()], [3, pages as u32]);
        assert_eq!(plan.cost().cache(), LayeredCache::new(&gpu, plan.clone()).unwrap().bytes());
    }
    let most = two().capacity(Capacity::bytes(1, u64::MAX)).build(gpu.capability()).unwrap_err();
    assert!(matches!(most, Error::Limit { .. }), "{most}");
    // A window of all tokens takes what a plan without one would.
    let whole = builder().group([0], sliding(1).sliding_window(u32::MAX)).group([1], plan(1)).keep(u32::MAX).capacity(Capacity::tokens(2, 300));
    let whole = whole.build(gpu.capability()).unwrap();
    assert_eq!([whole.groups()[0].pages(), whole.groups()[1].pages()], [12, 6]);

    // A plan says what it is made of.
    let plan = layered(builders(&mut generator(), 1)).capacity(Capacity::tokens(1, 700)).build(gpu.capability()).unwrap();
    let text = plan.to_string();
    for part in [
        "8 layers in 2 groups, sequences of",
        "layers 0-4: each query sees the last 150 tokens; 2 pages a sequence, however long, for steps of 200 tokens at most",
        "layer 5: each query sees all tokens",
        "layer 6: attends to the keys and values of layer 4",
        "all groups: ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(plan.layers_of(0), [0, 1, 2, 3, 4]);
    assert_eq!((plan.place_of(7), plan.shares(7), plan.shares(5)), (Ok((1, 0)), Ok(Some(5)), Ok(None)));
    assert_eq!(plan.plan_of(8).unwrap_err(), Error::Layer { had: 8, layers: 8 });

    // Layers without keys and values of their own are given none.
    let mut cache = LayeredCache::new(&gpu, plan).unwrap();
    let sequence = cache.begin().unwrap();
    let step = cache.step(&[Chunk { sequence, tokens: 1 }]).unwrap();
    let rows = upload(&gpu, &[0.5; 256]);
    let mut commands = encoder(&gpu);
    let given = cache.append(&mut commands, &step, 6, Rows::f32(&rows), Rows::f32(&rows)).unwrap_err();
    assert_eq!(given.to_string(), "layer 6 must be one with keys and values of its own, but is one that shares those of layer 4");
    assert_eq!(cache.elect(&mut commands, &step, 6, Rows::f32(&rows), 8), Err(given));
    let early = cache.attend(&mut commands, &step, 7, Rows::f32(&rows), Rows::f32(&rows)).unwrap_err();
    assert_eq!(early, Error::Order { call: "Cache::attend", layer: 5, wanted: "after Cache::append", had: "before it" });
    assert_eq!(cache.append(&mut commands, &step, 8, Rows::f32(&rows), Rows::f32(&rows)), Err(Error::Layer { had: 8, layers: 8 }));
    assert!(matches!(cache.align(Alignment::budget(0.1, 0.1)), Err(Error::Mismatch { .. })));
}
