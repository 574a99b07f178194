//! Sequences that let go of old tokens: under a sliding window nothing that a query sees changes,
//! and an endless stream needs few pages. (That what is seen is what should be, sinks and windows
//! of any length: `tests/attend_merge.rs`, `tests/attend_prefill.rs`.)
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rand::rngs::StdRng;
use wgkv_testing::*;

/// Two layers of four KV heads: heads can be apart and rotated together.
fn shape() -> Shape {
    Shape { layers: 2, query_heads: 4, kv_heads: 4, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

/// A plan of every codec, protection and kind of planes.
fn plans(gpu: &Gpu, random: &mut StdRng, budget: Capacity) -> Vec<Plan> {
    use Bits::{Eight, Four, Two};
    let nothing = Alignment::EVERYTHING;
    let ways = [
        (Format::f16(), Protection::NONE, nothing),
        (Format::aligned_f16(), protect(5, 128), nothing),
        (rtn(Eight, Two, 32), protect(3, 0), nothing),
        (hadamard(Four, Four, 64), Protection::default(), nothing),
        (centred(Two, Four, 64), protect(4, 40), nothing),
        (trellis(64), protect(4, 40), nothing),
        (centred(Four, Eight, 64), Protection::NONE, Alignment::budget(0.25, 1.0)),
        (rotated(Two, Two, 64, 2), Protection::NONE, nothing),
        (rotated(Four, Four, 64, 4), massive(8, 128), nothing),
    ];
    let plan = |(format, protection, alignment): (Format, Protection, Alignment)| {
        let order = (format.codec() == Codec::RotateKv).then(|| random_order(&shape(), &format, Reach::Global, random));
        let builder = Plan::builder(shape(), format).protection(protection).capacity(budget).alignment(alignment).max_tokens(4000);
        learning(builder, order.as_ref()).build(gpu.capability()).unwrap()
    };
    ways.into_iter().map(plan).collect()
}

fn name(plan: &Plan) -> String {
    format!("{}, {:?}", plan.format(), plan.protection())
}

#[test]
fn what_no_query_sees_any_more_makes_no_difference() {
    const WINDOW: u32 = 200;
    let gpu = gpu();
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 1200);
    for (few, many) in plans(&gpu, random, Capacity::tokens(1, 600)).into_iter().zip(plans(&gpu, random, Capacity::tokens(1, 1300))) {
        let name = name(&few);
        // The order of channels is drawn anew with each plan.
        let order = few.channel_order().cloned();
        let windowed = |plan: Plan| learning(plan.to_builder().sliding_window(WINDOW), order.as_ref()).build(gpu.capability()).unwrap();
        let [mut slides, mut stays] = [few, many].map(|plan| Reader::new(&gpu, windowed(plan)));
        let [slid, stayed] = [&mut slides, &mut stays].map(|reader| reader.cache.begin().unwrap());
        for tokens in [330, 1, 150, 1, 1, 129, 2, 260, 1, 127, 1, 1] {
            assert!(slides.read(slid, &text, tokens) == stays.read(stayed, &text, tokens), "{name}: {tokens} tokens on");
            let held = slides.cache.tokens(slid).unwrap();
            let packed = slides.cache.plan().packed(held);
            let first = (held.saturating_sub(WINDOW)).min(packed) / 128 * 128;
            assert_eq!(slides.cache.slide(slid, WINDOW), Ok(first), "{name}");
            // Of a window that begins inside a page, and ends in one.
            let pages = slides.cache.plan().pages() - slides.cache.free_pages();
            assert_eq!(pages, packed.div_ceil(128) - first / 128, "{name}");
            slides.cache.check_pages().unwrap();
        }
        assert!(slides.cache.tokens(slid).unwrap() > 128 * slides.cache.plan().pages(), "{name}: the stream is longer than its pages");
        assert!(slides.cache.bytes_used() < stays.cache.bytes_used());
        assert!(pollster::block_on(slides.cache.status()).unwrap().is_clean());
        let room = stays.cache.free_pages();
        stays.cache.slide(stayed, 0).unwrap();
        assert!(stays.cache.free_pages() > room);
    }
}

#[test]
fn a_sequence_that_slid_is_forked_cut_saved_and_loaded() {
    let gpu = gpu();
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 800);
    for plan in plans(&gpu, random, Capacity::tokens(4, 700)) {
        let name = name(&plan);
        let [mut reader, mut control] = [(); 2].map(|()| Reader::new(&gpu, plan.clone()));
        let begin = |reader: &mut Reader| {
            let sequence = reader.cache.begin().unwrap();
            reader.read(sequence, &text, 600);
            assert_eq!(reader.cache.slide(sequence, 300), Ok(256), "{name}");
            sequence
        };
        let (sequence, alone) = (begin(&mut reader), begin(&mut control));
        let pages = |reader: &Reader| reader.cache.plan().pages() - reader.cache.free_pages();
        let full = reader.cache.plan().packed(600) / 128 - 2;
        assert_eq!(pages(&reader), reader.cache.plan().packed(600).div_ceil(128) - 2);

        // A fork shares what is left, and goes on as the sequence would.
        let before = pages(&reader);
        let forked = reader.recorded(|cache, encoder| cache.fork(encoder, sequence));
        assert_eq!(pages(&reader), 2 * before - full, "{name}: full pages are shared");
        let want = control.read(alone, &text, 3);
        assert!(reader.read(forked, &text, 3) == want, "{name}: the fork");
        // So does what is loaded of it, on the same pages or others.
        let bytes = pollster::block_on(reader.cache.save(sequence)).unwrap();
        let loaded = reader.recorded(|cache, encoder| cache.load(encoder, &bytes));
        assert!(reader.read(loaded, &text, 3) == want, "{name}: what was loaded");
        assert!(reader.read(sequence, &text, 3) == want, "{name}: the sequence itself");
        // Nothing of what is gone is in the bytes, nor counted.
        let whole = reader.cache.begin().unwrap();
        reader.store(whole, &text, 600);
        let long = pollster::block_on(reader.cache.save(whole)).unwrap();
        let gone = (long.len() - bytes.len()) as u64;
        let per_page: u64 = (0..2).flat_map(|layer| reader.cache.plan().slabs(layer)).map(|slab| slab.layout().bytes() * u64::from(slab.count())).sum();
        // The headers differ by a few bytes.
        assert!(gone + 100 >= 2 * per_page, "{name}: two pages are {per_page} bytes each, and {gone} are gone");
        reader.cache.end(whole).unwrap();

        // Cut back to what is left, both go on alike; beyond it they cannot be.
        for (reader, sequence) in [(&mut reader, loaded), (&mut control, alone)] {
            reader.recorded(|cache, encoder| cache.truncate(encoder, sequence, 520));
        }
        assert!(reader.read(loaded, &text, 40) == control.read(alone, &text, 40), "{name}: what was cut back");
        let gone = |token| Error::Dropped { token, first: 256 };
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        assert_eq!(reader.cache.truncate(&mut encoder, loaded, 255), Err(gone(255)));
        assert_eq!(reader.cache.fork_prefix(&mut encoder, loaded, 10), Err(gone(10)));
        assert_eq!(pollster::block_on(reader.cache.save_prefix(loaded, 0)), Err(gone(0)));
        let rows = upload(&gpu, &[0.0]);
        assert_eq!(reader.cache.dequantize(&mut encoder, loaded, 0, 200..300, Rows::f32(&rows), Rows::f32(&rows)), Err(gone(200)));
        assert_eq!(gone(255).to_string(), "token 255 is gone: the sequence slid beyond it, and holds tokens from 256 on");
        // No prefix is found in it.
        let ids: Vec<u32> = (0..560).collect();
        let mut prefixes = PrefixIndex::new(reader.cache.plan());
        assert_eq!(prefixes.remember(&mut reader.cache, &mut encoder, loaded, &ids), Ok(0));
        drop(encoder);

        // Sliding no further changes nothing; further, steps of before name pages that are given
        // back.
        let step = reader.cache.step(&[Chunk { sequence: loaded, tokens: 1 }]).unwrap();
        let free = reader.cache.free_pages();
        assert_eq!(reader.cache.slide(loaded, 400), Ok(256));
        assert_eq!(reader.cache.free_pages(), free);
        let rows = upload(&gpu, &normals(random, 256));
        reader.recorded(|cache, encoder| (0..2).try_for_each(|layer| cache.append(encoder, &step, layer, Rows::f32(&rows), Rows::f32(&rows))));
        assert_eq!(reader.cache.slide(loaded, 0), Ok(reader.cache.plan().packed(561) / 128 * 128));
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let stale = reader.cache.append(&mut encoder, &step, 0, Rows::f32(&rows), Rows::f32(&rows));
        assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
        // All comes back.
        [sequence, forked, loaded].into_iter().for_each(|sequence| reader.cache.end(sequence).unwrap());
        assert_eq!(reader.cache.free_pages(), reader.cache.plan().pages());
        assert!(matches!(reader.cache.slide(loaded, 0), Err(Error::UnknownSequence { .. })));
    }
}

#[test]
fn windows_and_lengths_that_cannot_be_are_refused() {
    let gpu = gpu();
    let plan = || Plan::builder(shape(), Format::f16()).protection(Protection::NONE).capacity(Capacity::tokens(1, 256));
    let built = |builder: PlanBuilder| builder.build(gpu.capability()).unwrap();
    let refused = |builder: PlanBuilder, name: &str, had: &str| {
        let error = builder.build(gpu.capability()).unwrap_err();
        assert!(matches!(&error, Error::Mismatch { of: Thing::Argument, name: is, had: was, .. } if *is == name && was == had), "{error}");
    };
    refused(plan().sliding_window(0), "sliding window", "0");
    refused(plan().max_tokens(0), "max_tokens", "0");
    refused(plan().max_tokens((1 << 30) + 1), "max_tokens", "1073741825");
    assert_eq!(built(plan()).max_tokens(), 256);
    assert_eq!(built(plan().sliding_window(u32::MAX)).sliding_window(), Some(u32::MAX));
    // Fewer tokens than the pages hold, or more positions than a device's bindings do.
    let mut cache = Cache::new(&gpu, built(plan().max_tokens(100))).unwrap();
    let sequence = cache.begin().unwrap();
    assert!(matches!(cache.step(&[Chunk { sequence, tokens: 101 }]), Err(Error::Length { need: 101, have: 100, .. })));
    assert!(cache.step(&[Chunk { sequence, tokens: 100 }]).is_ok());
    let weak = gpu.pretend(Capability { binding_bytes: 1 << 27, ..*gpu.capability() });
    let error = plan().max_tokens(1 << 30).build(weak.capability()).unwrap_err();
    assert!(matches!(error, Error::Limit { .. }), "{error}");
}
