//! Snapshots: what is loaded is what was saved and goes on as it would have, in a cache of other
//! pages, other slots and other buffers; nothing else gets into the bytes; damaged and foreign ones
//! are refused, and change nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rand::RngExt;
use rand::rngs::StdRng;
use safetensors::Dtype;
use std::sync::LazyLock;
use wgkv_testing::*;

/// One device, so that its kernels are compiled once.
static GPU: LazyLock<Gpu> = LazyLock::new(gpu);

/// Two layers of four KV heads: heads can be apart and rotated together.
fn shape() -> Shape {
    Shape { layers: 2, query_heads: 4, kv_heads: 4, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

/// How tokens are stored.
type Way = (BitPlan, Protection, Option<ChannelOrder>, Alignment);

/// Every codec, protection and form of scales, widths that differ by layer and head, and codes in
/// planes.
fn ways(random: &mut StdRng) -> Vec<Way> {
    use Bits::{Eight, Four, Sixteen, Three, Two};
    let shape = shape();
    let uniform = |format| BitPlan::uniform(&shape, format).unwrap();
    let strict = Protection::NONE;
    let mut ways = vec![
        (uniform(Format::f16()), strict),
        (uniform(Format::aligned_f16()), strict),
        (uniform(Format::aligned_f16()), protect(5, 128)),
        (uniform(rtn(Eight, Two, 32)), strict),
        (uniform(rtn(Three, Three, 64).with_scales(Scales::Byte)), protect(3, 0)),
        (uniform(hadamard(Four, Three, 64)), protect(4, 40)),
        (uniform(hadamard(Two, Eight, 32)), protect(0, 300)),
        (uniform(centred(Three, Two, 64)), protect(5, 128)),
        (uniform(trellis(64)), protect(4, 40)),
        (uniform(rotated(Two, Two, 64, 2)), strict),
        (uniform(rotated(Three, Four, 128, 1).with_scales(Scales::Byte)), protect(4, 128)),
        (uniform(rotated(Four, Sixteen, 32, 4)), massive(20, 0)),
        (uniform(rotated(Four, Four, 64, 2)), massive(8, 128)),
    ];
    let of = |bits, group| Precision::new(bits, group);
    let mixed = |layer, head| match (layer + head) % 4 {
        0 => [of(Two, 32), of(Four, 64)],
        1 => [of(Sixteen, 128), of(Three, 32)],
        2 => [of(Eight, 64), of(Sixteen, 128)],
        _ => [of(Two, 32), of(Four, 64)],
    };
    ways.push((BitPlan::new(&shape, hadamard(Four, Four, 64), mixed).unwrap(), protect(4, 128)));
    let coded = |layer, head| match (layer + head) % 3 {
        0 => [Precision::TRELLIS, of(Four, 64)],
        1 => [of(Three, 32), Precision::TRELLIS],
        _ => [Precision::TRELLIS; 2],
    };
    ways.push((BitPlan::new(&shape, centred(Two, Two, 64), coded).unwrap(), protect(3, 0)));
    let values = |layer, head| [of(if layer == 0 { Three } else { Two }, 64), of([Two, Four][head as usize / 2], 64)];
    ways.push((BitPlan::new(&shape, rotated(Two, Two, 64, 2), values).unwrap(), massive(6, 0)));
    let order = |format: &Format, random: &mut StdRng| random_order(&shape, format, Reach::Global, random);
    let rotates = |bit_plan: &BitPlan| bit_plan.format().codec() == Codec::RotateKv;
    let mut ways: Vec<Way> = ways.into_iter().map(|(a, p)| (a.clone(), p, rotates(&a).then(|| order(a.format(), random)), Alignment::EVERYTHING)).collect();
    let planes = Alignment::budget(0.25, 1.0);
    ways.push((uniform(rtn(Eight, Four, 32)), protect(3, 0), None, planes));
    ways.push((uniform(centred(Four, Eight, 64)), protect(5, 128), None, planes));
    ways
}

fn plan(gpu: &Gpu, (bit_plan, protection, channel_order, alignment): &Way, budget: Capacity) -> Plan {
    let builder = Plan::builder(shape(), bit_plan.clone()).protection(*protection).capacity(budget).alignment(*alignment);
    learning(builder, channel_order.as_ref()).build(gpu.capability()).unwrap()
}

/// A cache whose memory is full of what others left there: finite halves.
fn stale(gpu: &Gpu, plan: Plan, what: u32) -> Reader {
    let reader = Reader::new(gpu, plan);
    let plan = reader.cache.plan();
    let channels = u64::from(plan.shape().kv_heads * plan.shape().head_dim);
    // The groups of channels, or their means and weights, are the cache's own; elected sinks of
    // another sequence follow.
    let own = match plan.format().codec() {
        Codec::RotateKv => channels,
        Codec::Centred => 12 * channels,
        _ => 0,
    };
    for layer in 0..plan.shape().layers {
        let (pages, rows) = reader.cache.layer_buffers(layer).unwrap();
        let [key_scales, marks] = reader.cache.reordered_buffers(layer).unwrap();
        for buffer in pages.iter().chain([rows, key_scales]) {
            gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&vec![what; buffer.size() as usize / 4]));
        }
        gpu.queue().write_buffer(marks, own, bytemuck::cast_slice(&vec![what % 100; (marks.size() - own) as usize / 4]));
    }
    reader
}

const STALE: [u32; 2] = [0x7b5a_7b5a, 0x3a41_7a11];

fn save(reader: &Reader, sequence: Sequence) -> Vec<u8> {
    pollster::block_on(reader.cache.save(sequence)).unwrap()
}

fn load(reader: &mut Reader, bytes: &[u8]) -> Sequence {
    reader.recorded(|cache, encoder| cache.load(encoder, bytes))
}

#[test]
fn what_is_loaded_goes_on_as_what_was_saved() {
    let gpu = &*GPU;
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 900);
    // One token; fewer than the sinks; a whole page; the middle of a page; a window that has gone
    // round.
    let begins: [&[usize]; 6] = [&[1], &[3], &[128], &[140, 1, 1], &[200, 1, 130, 1], &[100, 1, 90, 400]];
    for (w, way) in ways(random).iter().enumerate() {
        let mut saved = stale(gpu, plan(gpu, way, Capacity::tokens(2, 900)), STALE[0]);
        // Others hold the first slot and some of the pages.
        let mut loaded = stale(gpu, plan(gpu, way, Capacity::tokens(4, 1100)), STALE[1]);
        let others = [50, 300].map(|tokens| {
            let other = loaded.cache.begin().unwrap();
            loaded.store(other, &text, tokens);
            other
        });
        loaded.cache.end(others[0]).unwrap();
        let filler = loaded.cache.begin().unwrap();
        for begin in [begins[w % 6], begins[(w + 3) % 6]] {
            let name = format!("{} {:?}, {begin:?}", way.0, way.1);
            let first = saved.cache.begin().unwrap();
            begin.iter().for_each(|tokens| saved.store(first, &text, *tokens));
            let bytes = save(&saved, first);
            assert!(save(&saved, first) == bytes, "{name}: saved once more");
            let (free, second) = (loaded.cache.free_pages(), load(&mut loaded, &bytes));
            assert!(save(&loaded, second) == bytes, "{name}: saved where it was loaded");
            let tokens = saved.cache.tokens(first).unwrap();
            assert_eq!(loaded.cache.tokens(second).unwrap(), tokens, "{name}");
            assert_eq!(free - loaded.cache.free_pages(), saved.cache.plan().packed(tokens).div_ceil(128), "{name}");
            // Nothing of the cache's past, and nothing lost on the way.
            assert!(Parts::of(&save(&loaded, second)) == Parts::of(&bytes), "{name}: saved again");
            for layer in 0..2 {
                let stored = [&saved.stored(first, layer), &loaded.stored(second, layer)]
                    .map(|rows| rows.each_ref().map(|r| bytemuck::cast_slice::<f32, u32>(r).to_vec()));
                assert!(stored[0] == stored[1], "{name}: what is stored in layer {layer}");
            }
            for (chunks, unseen) in [(&[1][..], 0), (&[1, 5], 130), (&[1], 0)] {
                assert!(saved.read_all(first, &text, chunks) == loaded.read_all(second, &text, chunks), "{name}: then {chunks:?}");
                if unseen > 0 {
                    saved.store(first, &text, unseen);
                    loaded.store(second, &text, unseen);
                }
            }
            assert!(Parts::of(&save(&loaded, second)) == Parts::of(&save(&saved, first)), "{name}: saved after more tokens");
            saved.cache.end(first).unwrap();
            loaded.cache.end(second).unwrap();
        }
        assert_eq!(loaded.cache.tokens(filler).unwrap(), 0);
        // Who was there before is unharmed.
        let control = saved.cache.begin().unwrap();
        saved.store(control, &text, 300);
        assert!(loaded.read_all(others[1], &text, &[1, 5]) == saved.read_all(control, &text, &[1, 5]), "{} {:?}: the other sequence", way.0, way.1);
    }
}

#[test]
fn heads_of_192_and_512_are_saved_as_others_are() {
    use Bits::{Four, Three, Two};
    let gpu = &*GPU;
    let random = &mut generator();
    let cases = [
        (192, centred(Three, Four, 64), protect(4, 128)),
        (192, rotated(Four, Two, 64, 2), protect(4, 0)),
        (192, Format::aligned_f16(), protect(5, 128)),
        (512, hadamard(Two, Three, 64), protect(4, 40)),
        (512, Format::f16(), Protection::NONE),
    ];
    for (head_dim, format, protection) in cases {
        let shape = Shape { layers: 1, query_heads: 2, kv_heads: 2, head_dim, rope: Rope::new(10_000.0, head_dim) };
        let order = (format.codec() == Codec::RotateKv).then(|| random_order(&shape, &format, Reach::Global, random));
        let plan = |tokens| {
            let builder = Plan::builder(shape.clone(), format).protection(protection).capacity(Capacity::tokens(2, tokens));
            learning(builder, order.as_ref()).build(gpu.capability()).unwrap()
        };
        let text = Text::normal(random, &shape, 400);
        let mut saved = stale(gpu, plan(400), STALE[0]);
        let sequence = saved.cache.begin().unwrap();
        saved.read_all(sequence, &text, &[200, 1, 100]);
        let bytes = save(&saved, sequence);
        let mut other = stale(gpu, plan(700), STALE[1]);
        let loaded = load(&mut other, &bytes);
        assert!(save(&other, loaded) == bytes, "{head_dim}, {format}");
        assert!(other.read_all(loaded, &text, &[1, 90, 1]) == saved.read_all(sequence, &text, &[1, 90, 1]), "{head_dim}, {format}");
    }
}

#[test]
fn buffers_that_hold_other_heads_load_the_same() {
    let gpu = &*GPU;
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 400);
    for way in &ways(random) {
        let mut saved = stale(gpu, plan(gpu, way, Capacity::tokens(1, 400)), STALE[0]);
        // As many pages as leave a buffer no more heads than are rotated together.
        let small = gpu.pretend(Capability { binding_bytes: 9 << 20, ..*gpu.capability() });
        let slabs = || (0..2).flat_map(|layer| saved.cache.plan().slabs(layer));
        let bunch = slabs().map(|slab| slab.layout().bytes()).max().unwrap() * u64::from(saved.cache.plan().group_heads());
        let plan = plan(&small, way, Capacity::tokens(1, ((6 << 20) / bunch * 128) as u32));
        let split: usize = (0..2).map(|layer| plan.slabs(layer).len()).sum();
        let mut loaded = stale(&small, plan, STALE[1]);
        let first = saved.cache.begin().unwrap();
        saved.store(first, &text, 300);
        let bytes = save(&saved, first);
        let second = load(&mut loaded, &bytes);
        assert!(Parts::of(&save(&loaded, second)) == Parts::of(&bytes), "{} {:?} in {split} buffers", way.0, way.1);
        saved.store(first, &text, 99);
        loaded.store(second, &text, 99);
        assert!(Parts::of(&save(&loaded, second)) == Parts::of(&save(&saved, first)), "{} {:?} in {split} buffers, later", way.0, way.1);
        assert!(split > 2 || saved.cache.plan().group_heads() == 4, "{} {:?}: {split} buffers", way.0, way.1);
    }
}

#[test]
fn prefixes_are_what_was_cut_back() {
    let gpu = &*GPU;
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 700);
    for (w, way) in ways(random).iter().enumerate() {
        let mut reader = stale(gpu, plan(gpu, way, Capacity::tokens(5, 700)), STALE[0]);
        let mut loaded = stale(gpu, plan(gpu, way, Capacity::tokens(2, 700)), STALE[1]);
        let whole = reader.cache.begin().unwrap();
        [330, 1, 60].into_iter().for_each(|tokens| reader.store(whole, &text, tokens));
        let all = save(&reader, whole);
        for tokens in [[391, 331, 200, 0], [390, 256, 130, 2]][w % 2] {
            let name = format!("{} {:?}, {tokens}", way.0, way.1);
            let bytes = pollster::block_on(reader.cache.save_prefix(whole, tokens)).unwrap();
            let cut = reader.recorded(|cache, encoder| cache.fork(encoder, whole));
            reader.recorded(|cache, encoder| cache.truncate(encoder, cut, tokens));
            assert!(Parts::of(&save(&reader, cut)) == Parts::of(&bytes), "{name}: cut back and saved");
            let second = load(&mut loaded, &bytes);
            let other = text.branch(random, &shape(), tokens as usize);
            for chunks in [&[1][..], &[5]] {
                assert!(reader.read_all(cut, &other, chunks) == loaded.read_all(second, &other, chunks), "{name}: then {chunks:?}");
            }
            // A loaded sequence is cut back like any other, and shared like any other.
            let third = loaded.recorded(|cache, encoder| cache.fork(encoder, second));
            loaded.recorded(|cache, encoder| cache.truncate(encoder, third, tokens));
            reader.recorded(|cache, encoder| cache.truncate(encoder, cut, tokens));
            assert!(reader.read_all(cut, &text, &[3]) == loaded.read_all(third, &text, &[3]), "{name}: cut back again");
            reader.cache.end(cut).unwrap();
            loaded.cache.end(second).unwrap();
            loaded.cache.end(third).unwrap();
        }
        assert!(Parts::of(&save(&reader, whole)) == Parts::of(&all), "the whole is what it was");
    }
}

#[test]
fn a_snapshot_is_of_what_was_submitted_before() {
    let gpu = &*GPU;
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 700);
    for way in &ways(random) {
        let mut reader = stale(gpu, plan(gpu, way, Capacity::tokens(2, 500)), STALE[0]);
        let sequence = reader.cache.begin().unwrap();
        reader.store(sequence, &text, 260);
        let early = reader.cache.save(sequence);
        reader.store(sequence, &text, 150);
        let late = reader.cache.save(sequence);
        reader.cache.end(sequence).unwrap();
        let next = reader.cache.begin().unwrap();
        reader.store(next, &text, 260);
        let want = save(&reader, next);
        assert!(Parts::of(&pollster::block_on(early).unwrap()) == Parts::of(&want), "{} {:?}", way.0, way.1);
        assert_eq!(Parts::of(&pollster::block_on(late).unwrap()).metadata["tokens"], "410");
        let gone = pollster::block_on(reader.cache.save(sequence)).unwrap_err();
        assert_eq!(gone, Error::UnknownSequence { slot: sequence.slot() });
        let beyond = pollster::block_on(reader.cache.save_prefix(next, 261)).unwrap_err();
        assert_eq!(beyond, Error::Range { first: 0, end: 261, have: 260 });
    }
}

#[test]
fn loading_takes_its_turn_among_what_is_recorded() {
    let gpu = &*GPU;
    let random = &mut generator();
    let [text, other] = [(); 2].map(|()| Text::normal(random, &shape(), 300));
    let way = &ways(random)[0];
    let mut reader = Reader::new(gpu, plan(gpu, way, Capacity::tokens(1, 256)));
    let mut plain = Reader::new(gpu, plan(gpu, way, Capacity::tokens(1, 256)));
    let [first, control] = [&mut reader, &mut plain].map(|reader| {
        let sequence = reader.cache.begin().unwrap();
        reader.store(sequence, &text, 250);
        sequence
    });
    let want = plain.read_all(control, &text, &[1]);
    plain.cache.end(control).unwrap();
    let control = plain.cache.begin().unwrap();
    plain.store(control, &other, 200);
    let bytes = save(&plain, control);

    // The first sequence appends and attends, ends, and its pages and slot are the loaded one's;
    // all in one submission.
    let [kv, _, q, _] = Text::widths(&shape());
    let step = reader.cache.step(&[Chunk { sequence: first, tokens: 1 }]).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let outputs: Vec<wgpu::Buffer> = (0..)
        .zip(&text.layers)
        .map(|(layer, [keys, values, queries, _])| {
            let rows = |numbers: &[f32], width: usize| upload(gpu, &numbers[250 * width..251 * width]);
            let (k, v, asked, out) = (rows(keys, kv), rows(values, kv), rows(queries, q), poisoned(gpu, q));
            reader.cache.append(&mut encoder, &step, layer, Rows::f32(&k), Rows::f32(&v)).unwrap();
            reader.cache.attend(&mut encoder, &step, layer, Rows::f32(&asked), Rows::f32(&out)).unwrap();
            out
        })
        .collect();
    reader.cache.end(first).unwrap();
    let second = reader.cache.load(&mut encoder, &bytes).unwrap();
    gpu.queue().submit([encoder.finish()]);
    assert!(outputs.iter().map(|out| words(gpu, out)).collect::<Vec<_>>() == want, "what came before");
    assert!(reader.read_all(second, &other, &[1, 5]) == plain.read_all(control, &other, &[1, 5]), "what was loaded");
}

/// A small cache with one sequence, its snapshot, and a cache to refuse others in.
struct Refusing {
    reader: Reader,
    sequence: Sequence,
    bytes: Vec<u8>,
    text: Text,
}

impl Refusing {
    fn new(way: &Way, budget: Capacity) -> Self {
        let gpu = &*GPU;
        let text = Text::normal(&mut generator(), &shape(), 300);
        let mut reader = Reader::new(gpu, plan(gpu, way, budget));
        let sequence = reader.cache.begin().unwrap();
        reader.store(sequence, &text, 140);
        let bytes = save(&reader, sequence);
        Self { reader, sequence, bytes, text }
    }

    fn load(&mut self, bytes: &[u8]) -> Result<Sequence> {
        let mut encoder = self.reader.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let loaded = self.reader.cache.load(&mut encoder, bytes);
        self.reader.gpu.queue().submit([encoder.finish()]);
        loaded
    }

    /// The name of what a refused snapshot's error is about.
    #[track_caller]
    fn refuse(&mut self, bytes: &[u8]) -> String {
        let free = self.reader.cache.free_pages();
        let refused = self.load(bytes);
        assert_eq!(self.reader.cache.free_pages(), free);
        match refused {
            Err(Error::Mismatch { of: Thing::Snapshot, name, .. }) => name.into_owned(),
            other => panic!("must be refused, but is {other:?}"),
        }
    }

    /// Nothing that was refused left a trace: the sequence is what it was, and all room is there.
    fn unharmed(mut self) {
        assert!(Parts::of(&save(&self.reader, self.sequence)) == Parts::of(&self.bytes));
        let again = self.load(&self.bytes.clone()).unwrap();
        assert!(self.reader.read_all(again, &self.text, &[1, 30]) == self.reader.read_all(self.sequence, &self.text, &[1, 30]));
    }
}

/// As one would write it who means harm, with all the hashes that the content has.
fn forged(parts: Parts) -> Vec<u8> {
    let checksums: Vec<_> = parts.tensors.iter().map(|t| (format!("sha256.{}", t.0), checksum(&t.3))).collect();
    let parts = checksums.into_iter().fold(parts, |parts, (key, value)| if parts.metadata.contains_key(&key) { parts.with(&key, &value) } else { parts });
    let hash = hash(parts.texts());
    parts.with("hash", &hash).write()
}

/// The way whose snapshot has every kind of tensor.
fn every_tensor() -> Way {
    let format = rotated(Bits::Two, Bits::Two, 64, 2);
    let order = random_order(&shape(), &format, Reach::Global, &mut generator());
    (BitPlan::uniform(&shape(), format).unwrap(), massive(3, 0), Some(order), Alignment::EVERYTHING)
}

#[test]
fn snapshots_have_the_tensors_that_are_written_down() {
    let case = Refusing::new(&every_tensor(), Capacity::tokens(3, 300));
    let parts = Parts::of(&case.bytes);
    assert_eq!(forged(parts.clone()).len(), case.bytes.len());
    assert_eq!(Parts::of(&forged(parts.clone())), parts, "the hashes are those that are written down");
    // Two pages. Of codes 128 * 64 of 2 bits in each head's keys and values, and its values'
    // scales; scales of 4 groups of keys.
    let shapes: Vec<_> = parts.tensors.iter().map(|(name, dtype, shape, _)| (name.as_str(), *dtype, shape.clone())).collect();
    let layer = |n| {
        [
            (["key_scales.0", "key_scales.1"][n], Dtype::U32, vec![2, 4 * 128]),
            (["pages.0", "pages.1"][n], Dtype::U32, vec![2, 4 * (512 + 512 + 128)]),
            (["rows.0", "rows.1"][n], Dtype::F16, vec![4, 3, 2, 64]),
            (["sinks.0", "sinks.1"][n], Dtype::U32, vec![9]),
        ]
    };
    let mut wanted = [layer(0), layer(1)].concat();
    wanted.sort_by_key(|t| t.0);
    assert_eq!(shapes, wanted);
    for (key, value) in [("format", "wgkv-snapshot"), ("version", "1"), ("tokens", "140"), ("packed", "140"), ("before_tokens", "0")] {
        assert_eq!(parts.metadata[key], value);
    }
    let plan = case.reader.cache.plan();
    assert_eq!(parts.metadata["plan"], plan.fingerprint());
    assert_eq!(parts.metadata["calibration"], plan.channel_order().unwrap().fingerprint());
    assert_eq!(parts.metadata.len(), 10 + parts.tensors.len());
    case.unharmed();

    // A tensor without elements is left out.
    let strict = (BitPlan::uniform(&shape(), rtn(Bits::Two, Bits::Two, 64)).unwrap(), Protection::NONE, None, Alignment::EVERYTHING);
    let parts = Parts::of(&Refusing::new(&strict, Capacity::tokens(1, 300)).bytes);
    assert_eq!(parts.tensors.iter().map(|t| t.0.as_str()).collect::<Vec<_>>(), ["pages.0", "pages.1"]);
    assert_eq!(parts.metadata["calibration"], "none");
}

#[test]
fn damage_is_found() {
    let random = &mut generator();
    let mut case = Refusing::new(&every_tensor(), Capacity::tokens(3, 300));
    let bytes = case.bytes.clone();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // Every bit of the header, and some of what follows it.
    let bits = (0..8 * header).chain((0..2000).map(|_| random.random_range(8 * header..8 * bytes.len())));
    for bit in bits {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // Two kinds of white space after the header's end are one bit apart nowhere in JSON: every
        // flip is found.
        case.refuse(&flipped);
    }
    for length in (0..header + 9).chain((0..200).map(|_| random.random_range(0..bytes.len()))).chain([bytes.len() - 1]) {
        case.refuse(&bytes[..length]);
    }
    case.refuse(&[&bytes[..], &[0]].concat());
    case.refuse(&[&bytes[..], &bytes].concat());
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 40, 100_000_001, 99_999_999] {
        assert_eq!(case.refuse(&[&length.to_le_bytes(), &bytes[8..]].concat()), "header");
        assert_eq!(case.refuse(&length.to_le_bytes()), "header");
    }
    case.unharmed();
}

#[test]
fn forgeries_that_fit_nothing_are_refused() {
    let mut case = Refusing::new(&every_tensor(), Capacity::tokens(3, 300));
    let parts = || Parts::of(&case.bytes);
    let mut forgeries: Vec<(Vec<u8>, String)> = Vec::new();
    for key in parts().metadata.keys() {
        let without = parts().without(key);
        forgeries.push((if key == "hash" { without.write() } else { forged(without) }, if key.starts_with("sha256") { "sha256" } else { key }.to_owned()));
    }
    for (key, values) in [
        ("format", &["wgkv-calibration", ""][..]),
        ("version", &["2", "0", "", "1.0"]),
        ("plan", &["", "0"]),
        ("calibration", &["none", ""]),
        ("tokens", &["", "-1", "4294967296", "1e2", " 140", "139"]),
        ("packed", &["", "139", "141", "0", "4294967295"]),
        ("dropped", &["", "-1", "2", "33554432", "4294967295"]),
        ("limit", &["x", "4294967296"]),
        ("before_tokens", &["x"]),
        ("before_limit", &["x"]),
    ] {
        let name = |value| if (key, value) == ("tokens", "139") { "packed" } else { key };
        forgeries.extend(values.iter().map(|value| (forged(parts().with(key, value)), name(*value).to_owned())));
    }
    // Fewer tokens, or more than there is room for: the shapes are others.
    for tokens in ["100", "4294967295"] {
        forgeries.push((forged(parts().with("tokens", tokens).with("packed", tokens)), "pages.0".to_owned()));
    }
    for name in parts().tensors.iter().map(|t| t.0.clone()) {
        let mut change = |change: &dyn Fn(&mut Tensor)| forgeries.push((forged(parts().tensor(&name, change)), name.clone()));
        change(&|t| t.1 = if t.1 == Dtype::U32 { Dtype::F32 } else { Dtype::BF16 });
        change(&|t| t.1 = if t.1 == Dtype::U32 { Dtype::I32 } else { Dtype::I16 });
        change(&|t| t.2.push(1));
        change(&|t| t.2.insert(0, 1));
        change(&|t| t.2 = vec![t.2.iter().product()]);
        change(&|t| (t.2, t.3) = (vec![0], vec![]));
        change(&|t| t.0.push('0'));
        // Another's place, of another content: only the checksum of the tensor tells.
        let swapped = parts().tensor(&name, |t| t.3[0] ^= 1);
        let hash = hash(swapped.texts());
        forgeries.push((swapped.with("hash", &hash).write(), "sha256".to_owned()));
        let mut missing = parts();
        missing.tensors.retain(|t| t.0 != name);
        forgeries.push((forged(missing), name.clone()));
    }
    // The whole tensor is one dimension already.
    forgeries.retain(|(bytes, _)| *bytes != case.bytes && Parts::of(bytes) != parts());
    let mut more = parts();
    more.tensors.push(("more".to_owned(), Dtype::U8, vec![1], vec![0]));
    forgeries.push((forged(more.clone()), "tensors".to_owned()));
    more.tensors.last_mut().unwrap().2 = vec![0];
    more.tensors.last_mut().unwrap().3.clear();
    forgeries.push((forged(more), "tensors".to_owned()));
    for (bytes, name) in forgeries {
        let had = case.refuse(&bytes);
        assert!(had.starts_with(&name), "{had:?}, but {name:?} is wrong");
    }
    for bytes in hostile(["pages.0", "pages.1"]) {
        case.refuse(&bytes);
    }
    case.unharmed();
}

#[test]
fn a_plan_is_the_same_where_powers_are_rounded_otherwise() {
    let fingerprint = |off: f64| {
        let rope = Rope::none().with_frequencies((0..32).map(|pair| 10_000_f64.powf(f64::from(pair) / -32.0) * (1.0 + off)).collect());
        let shape = Shape { layers: 1, query_heads: 1, kv_heads: 1, head_dim: 64, rope };
        Plan::builder(shape, Format::f16())
            .protection(Protection::NONE)
            .capacity(Capacity::tokens(1, 1))
            .build(&Capability::webgpu_default())
            .unwrap()
            .fingerprint()
    };
    assert_eq!(fingerprint(0.0), fingerprint(f64::EPSILON));
    assert_ne!(fingerprint(0.0), fingerprint(1e-6));
}

#[test]
fn snapshots_of_other_plans_are_refused() {
    use Bits::{Four, Two};
    let gpu = &*GPU;
    let of = |shape: Shape, format: Format, protection: Protection| {
        Plan::builder(shape, format).protection(protection).capacity(Capacity::tokens(2, 300)).build(gpu.capability()).unwrap()
    };
    let base = || of(shape(), hadamard(Four, Two, 64), protect(4, 128));
    let mut case = Refusing::new(&(base().bit_plan().clone(), protect(4, 128), None, Alignment::EVERYTHING), Capacity::tokens(2, 300));
    let mixed = BitPlan::new(&shape(), hadamard(Four, Two, 64), |layer, head| {
        [Precision::new(if (layer, head) == (1, 3) { Two } else { Four }, 64), Precision::new(Two, 64)]
    });
    let others = [
        of(Shape { layers: 1, ..shape() }, hadamard(Four, Two, 64), protect(4, 128)),
        of(Shape { query_heads: 8, ..shape() }, hadamard(Four, Two, 64), protect(4, 128)),
        of(Shape { kv_heads: 2, ..shape() }, hadamard(Four, Two, 64), protect(4, 128)),
        of(Shape { rope: Rope::new(10_001.0, 64), ..shape() }, hadamard(Four, Two, 64), protect(4, 128)),
        of(Shape { rope: Rope::new(10_000.0, 64).interleaved(), ..shape() }, hadamard(Four, Two, 64), protect(4, 128)),
        of(Shape { rope: Rope::none(), ..shape() }, hadamard(Four, Two, 64), protect(4, 128)),
        of(shape(), rtn(Four, Two, 64), protect(4, 128)),
        of(shape(), hadamard(Two, Four, 64), protect(4, 128)),
        of(shape(), hadamard(Four, Four, 64), protect(4, 128)),
        of(shape(), hadamard(Four, Two, 32), protect(4, 128)),
        of(shape(), hadamard(Four, Two, 64).with_scales(Scales::Byte), protect(4, 128)),
        of(shape(), hadamard(Four, Two, 64).with_clip(0.9), protect(4, 128)),
        of(shape(), hadamard(Four, Two, 64), protect(3, 128)),
        of(shape(), hadamard(Four, Two, 64), protect(4, 129)),
        of(shape(), hadamard(Four, Two, 64), Protection::NONE),
        of(shape(), Format::f16(), protect(4, 128)),
        of(shape(), Format::aligned_f16(), protect(4, 128)),
        Plan::builder(shape(), mixed.unwrap()).protection(protect(4, 128)).capacity(Capacity::tokens(2, 300)).build(gpu.capability()).unwrap(),
    ];
    let mut fingerprints: Vec<String> = others.iter().chain([&base()]).map(Plan::fingerprint).collect();
    for plan in others {
        let mut reader = Reader::new(gpu, plan);
        let sequence = reader.cache.begin().unwrap();
        assert_eq!(case.refuse(&save(&reader, sequence)), "plan");
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        assert!(matches!(reader.cache.load(&mut encoder, &case.bytes), Err(Error::Mismatch { of: Thing::Snapshot, name, .. }) if name == "plan"));
    }
    fingerprints.sort_unstable();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 19, "no two are alike");
    // What does not change how tokens are stored is no other plan.
    let alike = [
        Plan::builder(shape(), hadamard(Four, Two, 64))
            .protection(protect(4, 128))
            .capacity(Capacity::tokens(7, 999))
            .build(&Capability::webgpu_default())
            .unwrap(),
        Plan::builder(shape(), hadamard(Four, Two, 64).with_clip(1.0))
            .protection(protect(4, 128))
            .capacity(Capacity::tokens(1, 1))
            .split_workgroups(7)
            .build(gpu.capability())
            .unwrap(),
        base().to_builder().element(Element::F16).build(gpu.capability()).unwrap(),
    ];
    // At 2 bits the clip is 0.8 unless told.
    assert!(alike.map(|plan| plan.fingerprint() == base().fingerprint()) == [true, false, true]);
    case.unharmed();

    let (bit_plan, protection, _, alignment) = every_tensor();
    let [one, other] = [(); 2].map(|()| every_tensor().2);
    let mut case = Refusing::new(&(bit_plan.clone(), protection, one, alignment), Capacity::tokens(2, 300));
    let foreign = Refusing::new(&(bit_plan, protection, other, alignment), Capacity::tokens(2, 300));
    assert_eq!(case.refuse(&foreign.bytes), "calibration");
    case.unharmed();
}

#[test]
fn where_there_is_no_room_nothing_changes() {
    let way = (BitPlan::uniform(&shape(), hadamard(Bits::Four, Bits::Two, 64)).unwrap(), Protection::NONE, None, Alignment::EVERYTHING);
    // Room for three sequences, and for three pages of which two are held.
    let mut case = Refusing::new(&way, Capacity::tokens(3, 128));
    let bytes = case.bytes.clone();
    assert_eq!(case.load(&bytes), Err(Error::Pages { need: 2, have: 1 }));
    let mut long = Refusing::new(&way, Capacity::tokens(1, 1000));
    assert_eq!(long.load(&bytes), Err(Error::Sequences { have: 1 }));
    long.reader.store(long.sequence, &long.text, 150);
    let more = save(&long.reader, long.sequence);
    let mut small = Refusing::new(&way, Capacity::tokens(2, 128));
    small.reader.cache.end(small.sequence).unwrap();
    assert_eq!(small.load(&more), Err(Error::Length { slot: 0, need: 290, have: 256 }));
    let all: Vec<Sequence> = (0..2).map(|_| case.reader.cache.begin().unwrap()).collect();
    assert_eq!(case.load(&bytes), Err(Error::Sequences { have: 3 }));
    all.into_iter().for_each(|sequence| case.reader.cache.end(sequence).unwrap());
    // With its own pages given back there is room.
    case.reader.cache.end(case.sequence).unwrap();
    case.sequence = case.load(&bytes).unwrap();
    assert!(Parts::of(&save(&case.reader, case.sequence)) == Parts::of(&bytes));
}
