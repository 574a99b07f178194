//! What models add to attention, alone and in pairs, in every codec: a scale of their own, capped
//! scores, sink logits, sliding windows and chunks, rows that come turned, elected sinks.
//!
//! - Outputs of prompts, of decoded tokens and of the chunks after them are attention in f64 over
//!   what is stored, with the same features; so are the logarithms of the sums.
//! - Rows that come turned are stored as those that are turned by the cache, up to f32's rounding.
//! - A context that is split over caches counts sink logits once.
//! - What cannot be served is refused with the number that was had.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use wgkv_testing::*;

/// Of each codec, what is drawn.
const DRAWS: usize = 3;

/// What models add.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Feature {
    Scale,
    Cap,
    SinkLogits,
    Sliding,
    Chunked,
    Turned,
    Elected,
    Interleaved,
}

use Feature::*;

const FEATURES: [Feature; 8] = [Scale, Cap, SinkLogits, Sliding, Chunked, Turned, Elected, Interleaved];

/// Gives a case a feature, with numbers drawn.
fn with(case: Case, feature: Feature, random: &mut StdRng) -> Case {
    match feature {
        Scale => case.score_scale(random.random_range(0.3..1.0)),
        Cap => case.soft_cap(random.random_range(0.5..5.0)),
        SinkLogits => case.sink_logits(),
        Sliding => case.sliding_window(random.random_range(1..200)),
        Chunked => case.chunked(random.random_range(1..200)),
        Turned => case.turned(),
        Elected => case.protection(massive(random.random_range(1..40), *[0, 16, 128].choose(random).unwrap())),
        Interleaved => {
            let rope = case.shape.rope.clone().interleaved();
            case.rope(rope)
        }
    }
}

/// Returns whether a codec serves a feature.
fn serves(codec: Codec, feature: Feature) -> bool {
    codec != Codec::AlignedF16 || ![Cap, Elected].contains(&feature)
}

/// Takes the steps of a case, and compares every output, and the logarithms of the sums, with f64.
fn check(gpu: &Gpu, case: Case) {
    let mut walk = Walk::new(gpu, case);
    let row = (walk.case.shape.query_heads * walk.case.shape.head_dim) as usize;
    for chunks in walk.case.steps.clone() {
        let taken = walk.take(&chunks, true);
        check_prefilled(&walk, &taken);
        let got = walk.output(&taken);
        let mut first = 0;
        for (sequence, tokens) in &taken.chunks {
            if *tokens == 1 {
                let want = exact_over_stored(&walk, &taken, *sequence, first, 1);
                let error = relative_rms(&got[first as usize * row..], &want);
                let most = if walk.case.format.codec() == Codec::Centred { CENTRED_RMS } else { DECODE_RMS };
                // A NaN compares false, so it fails too.
                assert!(error <= most, "{}: sequence {sequence}, relative error {error}. WGKV_SEED={}", walk.case.why, walk.seed);
            }
            first += tokens;
        }
    }
}

fn steps() -> Vec<Vec<(usize, u32)>> {
    vec![vec![(0, 150), (1, 30)], vec![(1, 1), (0, 1)], vec![(0, 40), (1, 1)], vec![(0, 1), (1, 1)]]
}

fn formats() -> [(&'static str, Format); 6] {
    use Bits::*;
    [
        ("f16", Format::f16()),
        ("aligned-f16", Format::aligned_f16()),
        ("rtn", rtn(Eight, Four, 32)),
        ("hadamard", hadamard(Three, Four, 64)),
        ("centred", centred(Four, Two, 64)),
        ("rotate-kv", rotated(Four, Two, 64, 2)),
    ]
}

#[test]
fn features_alone_and_in_pairs_are_those_of_f64() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for (why, format) in formats() {
        for _ in 0..DRAWS {
            let served: Vec<Feature> = FEATURES.into_iter().filter(|feature| serves(format.codec(), *feature)).collect();
            let features: Vec<Feature> = served.sample(&mut random, 2).copied().collect();
            let (share, protection) = (random.random_range(1..=4), *[protect(0, 0), protect(4, 16), protect(0, 128)].choose(&mut random).unwrap());
            println!("{why}: {features:?}, a share of {share}. WGKV_SEED={seed}");
            let plain = case(why, 64, 2 * share, 2, format).steps(steps()).protection(protection);
            check(&gpu, features.iter().fold(plain, |case, feature| with(case, *feature, &mut random)));
        }
    }
}

#[test]
fn elected_sinks_of_centred_keep_their_means_wherever_they_lie() {
    use Bits::*;
    let gpu = gpu();
    let of = |why, format| case(why, 64, 4, 2, format).steps(steps());
    check(&gpu, of("a part of the head turns", centred(Eight, Eight, 64)).rope(Rope::new(10_000.0, 32)).protection(massive(7, 16)));
    check(&gpu, of("no RoPE", centred(Eight, Eight, 64)).rope(Rope::none()).protection(massive(7, 0)));
    check(&gpu, of("f16 rows, slabs", centred(Eight, Four, 32)).element(Element::F16).slabs().protection(massive(20, 128)));
    check(&gpu, of("sequences that slid", centred(Eight, Eight, 64)).keep(20).protection(massive(20, 0)));
    check(&gpu, of("rows that come turned, no subgroups", centred(Eight, Eight, 64)).turned().no_subgroups().protection(massive(20, 16)));
}

#[test]
fn pairs_may_have_frequencies_of_zero() {
    use Bits::*;
    let gpu = gpu();
    let frequencies: Vec<f64> = Rope::new(1_000_000.0, 64).frequencies().iter().zip(0..).map(|(f, pair)| if pair < 8 { *f } else { 0.0 }).collect();
    let rope = Rope::none().with_frequencies(frequencies);
    for format in [centred(Eight, Eight, 64), hadamard(Eight, Eight, 64)] {
        check(&gpu, case("frequencies of zero", 64, 4, 2, format).steps(steps()).rope(rope.clone()).protection(protect(4, 16)));
    }
}

#[test]
fn sink_logits_come_to_a_row_that_means_keep_still() {
    use Bits::*;
    let gpu = gpu();
    for rope in [Rope::new(10_000.0, 32), Rope::none(), Rope::new(10_000.0, 64)] {
        check(&gpu, case("Centred", 64, 4, 2, centred(Eight, Eight, 64)).steps(steps()).rope(rope).sink_logits().protection(protect(4, 16)));
    }
}

/// Difference of a key or value that came turned from one that the cache turned, of an 8-bit code:
/// a step of its group, which spans the group's numbers of up to 8 deviations and means by 255.
const TURNED_ERROR: f32 = 0.15;

#[test]
fn rows_that_come_turned_are_stored_as_those_that_the_cache_turns() {
    use Bits::*;
    let gpu = gpu();
    for (why, format) in
        [("f16", Format::f16()), ("hadamard", hadamard(Eight, Eight, 64)), ("centred", centred(Eight, Eight, 64)), ("rotate-kv", rotated(Eight, Eight, 64, 2))]
    {
        let of = |turned: bool| {
            let case = case(why, 64, 4, 2, format).protection(protect(4, 16)).steps(steps());
            if turned { case.turned() } else { case }
        };
        let mut plain = Walk::new(&gpu, of(false));
        let mut turned = of(true);
        // As the first learned.
        (turned.means, turned.channel_order) = (plain.case.means.clone(), plain.case.channel_order.clone());
        let mut turned = Walk::new(&gpu, turned);
        for chunks in steps() {
            let rows = plain.draw(chunks.iter().map(|(_, n)| n).sum());
            plain.take_rows(&chunks, rows.clone(), true);
            turned.take_rows(&chunks, rows, true);
        }
        for sequence in 0..2 {
            for (want, got) in plain.dequantize(sequence).iter().zip(turned.dequantize(sequence)) {
                close(why, &got, want, TURNED_ERROR, 0.0, plain.seed);
            }
        }
    }
}

#[test]
fn a_context_split_over_caches_counts_sink_logits_once() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let shape = Shape { layers: 1, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let logits: Vec<f32> = normals(&mut random, 4);
    let plan = Plan::builder(shape.clone(), Format::f16()).protection(Protection::NONE).capacity(Capacity::tokens(1, 256)).sink_logits(logits.clone());
    let mut cache = Cache::new(&gpu, plan.build(gpu.capability()).unwrap()).unwrap();
    let [keys, values, queries] = [2, 2, 4].map(|heads| normals(&mut random, 20 * heads * 64));
    let [k, v, q] = [&keys, &values, &queries].map(|rows| upload(&gpu, bytemuck::cast_slice(rows)));
    let mut log_sums = Vec::new();
    for position in [0, 128] {
        let sequence = cache.begin_at(position).unwrap();
        let step = cache.step(&[Chunk { sequence, tokens: 20 }]).unwrap();
        let (out, sums) = (poisoned(&gpu, queries.len()), poisoned(&gpu, 80));
        let mut encoder = encoder(&gpu);
        cache.append(&mut encoder, &step, 0, Rows::f32(&k), Rows::f32(&v)).unwrap();
        cache.attend_part(&mut encoder, &step, 0, Rows::f32(&q), Rows::f32(&out), Rows::f32(&sums)).unwrap();
        submit(&gpu, encoder);
        log_sums.push(download(&gpu, &sums, 80));
        cache.end(sequence).unwrap();
    }
    // Only differences of positions count, so the scores are the same.
    for (n, (first, later)) in log_sums[0].iter().zip(&log_sums[1]).enumerate() {
        let want = (f64::from(*later).exp() + f64::from(logits[n % 4]).exp()).ln();
        assert!((f64::from(*first) - want).abs() < 0.02, "row {n}: {first}, not {want}. WGKV_SEED={seed}");
    }
}

#[test]
fn what_scores_cannot_be_is_refused() {
    let gpu = gpu();
    let shape = Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 32) };
    let plan = |format| Plan::builder(shape.clone(), format);
    let refused = |builder: PlanBuilder, name: &str, had: &str| {
        let error = builder.build(gpu.capability()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(had), "{error}");
    };
    let four = hadamard(Bits::Four, Bits::Four, 64);
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, 3e38, 1e-39] {
        refused(plan(four).score_scale(bad), "score scale", &bad.to_string());
        refused(plan(four).soft_cap(bad), "soft cap", &bad.to_string());
    }
    refused(plan(four).sink_logits(vec![0.0; 7]), "sink logits", "7");
    refused(plan(four).sink_logits([vec![0.0; 7], vec![f32::NAN]].concat()), "sink logit", "NaN");
    refused(plan(four).sink_logits([vec![0.0; 7], vec![3e38]].concat()), "sink logit", "3000");
    refused(plan(four).chunked_attention(0), "attention chunk", "0");
    refused(plan(Format::aligned_f16()).soft_cap(50.0), "capped scores", "aligned-f16");
    refused(plan(four).alignment(Alignment::budget(0.1, 0.1)).soft_cap(50.0), "capped scores", "hadamard");
    let means = Means::natural(&shape);
    refused(plan(centred(Bits::Four, Bits::Four, 64)).learned(means).soft_cap(50.0), "do not turn", "32");
    refused(plan(Format::aligned_f16()).protection(massive(4, 0)), "massive sinks", "aligned-f16");
    refused(plan(four).alignment(Alignment::budget(0.1, 0.1)).protection(massive(4, 0)), "massive sinks", "hadamard");
}

#[test]
fn a_cut_leaves_fewer_tokens_than_there_are_elected_sinks() {
    use Bits::*;
    let gpu = gpu();
    let steps = vec![vec![(0, 300)], vec![(0, 1)], vec![(0, 3)], vec![(0, 1)]];
    let case = case("cut to 5", 64, 4, 2, centred(Eight, Eight, 64)).protection(massive(20, 16)).steps(steps.clone());
    let mut walk = Walk::new(&gpu, case);
    walk.take(&steps[0], false);
    let mut recorder = encoder(&gpu);
    walk.cache.truncate(&mut recorder, walk.sequences[0], 5).unwrap();
    submit(&gpu, recorder);
    for chunks in &steps[1..] {
        let taken = walk.take(chunks, true);
        let tokens = chunks[0].1;
        let error = relative_rms(&walk.output(&taken), &exact_over_stored(&walk, &taken, 0, 0, tokens));
        println!("  {tokens} tokens: {error:.5}");
        assert!(error <= CENTRED_RMS, "{tokens} tokens after the cut: {error}. WGKV_SEED={}", walk.seed);
    }
}
