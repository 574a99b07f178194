//! Contexts split by tokens over devices: each device stores what one device would of its tokens,
//! and outputs merged are attention over everything that is stored. On a host with several GPUs
//! each has its own, otherwise they are logical devices of one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rand::rngs::StdRng;
use wgkv_testing::*;

/// Relative RMS of a prefill's output in f32 against f64 attention over the stored rows: roundings
/// only, but of keys and values that are not stored in f16 to halves, and by cooperative matrices of
/// queries and weights.
const PREFILL_RMS: f64 = 1e-4;
const UNPACKED_RMS: f64 = 2.5e-3;

/// Tokens on each device.
const SPAN: u32 = 256;

fn shape() -> Shape {
    Shape { layers: 1, query_heads: 8, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

fn plans(gpu: &Gpu, random: &mut StdRng) -> Vec<Plan> {
    use Bits::{Eight, Four};
    let plan = |format, protection| Plan::builder(shape(), format).protection(protection).capacity(Capacity::tokens(3, SPAN));
    let means = normals(random, 128);
    let rotate = rotated(Four, Four, 64, 2);
    [
        plan(Format::f16(), Protection::NONE),
        plan(rtn(Eight, Four, 32), protect(40, 0)),
        plan(hadamard(Four, Four, 64), protect(4, 128)),
        plan(centred(Four, Four, 64), protect(4, 40)).learned(random_means(&shape(), &means, random)),
        plan(rotate, Protection::NONE).learned(random_order(&shape(), &rotate, Reach::Local, random)),
        plan(hadamard(Four, Eight, 64), protect(0, 16)).alignment(Alignment::budget(0.0, 0.0)),
        plan(hadamard(Four, Four, 64), protect(4, 16)).sliding_window(150),
    ]
    .into_iter()
    .map(|builder| builder.build(gpu.capability()).unwrap())
    .collect()
}

/// Grows sequences, and compares what their queries find with attention over what all devices
/// store.
fn grow(cache: &mut ContextParallel, random: &mut StdRng, chunks: &[(&ContextSequence, u32)]) {
    let shape = shape();
    let total: u32 = chunks.iter().map(|(_, tokens)| tokens).sum();
    let step = cache.step(chunks).unwrap();
    assert_eq!(step.rows(), total);
    let [keys, values, queries] = [shape.kv_heads, shape.kv_heads, shape.query_heads].map(|heads| normals(random, (total * heads * shape.head_dim) as usize));
    let [k, v, q] = [&keys, &values, &queries].map(|numbers| cache.scatter(&step, numbers).unwrap());
    let (outputs, log_sums) = (cache.outputs(&step), cache.log_sums(&step));
    let rows = [&k, &v, &q, &outputs, &log_sums].map(|buffers| buffers.iter().map(Rows::f32).collect::<Vec<_>>());
    let mut encoders = cache.encoders();
    cache.append(&mut encoders, &step, 0, &rows[0], &rows[1]).unwrap();
    cache.attend(&mut encoders, &step, 0, &rows[2], &rows[3], &rows[4]).unwrap();
    cache.submit(encoders).unwrap();
    let got = pollster::block_on(cache.gather(&step, &outputs, &log_sums)).unwrap();

    let plan = cache.parts()[0].plan();
    let (codec, reach) = (plan.format().codec(), plan.sliding_window().unwrap_or(u32::MAX));
    let width = (shape.query_heads * shape.head_dim) as usize;
    let mut row = 0;
    for (sequence, tokens) in chunks {
        let [keys, values] = stored(cache, sequence);
        let held = cache.tokens(sequence).unwrap();
        for n in 0..*tokens {
            let position = held - tokens + n;
            let first = (position + 1).saturating_sub(reach);
            let seen = |numbers: &[f32]| {
                let width = (shape.kv_heads * shape.head_dim) as usize;
                numbers[first as usize * width..(position as usize + 1) * width].to_vec()
            };
            let want = attention_seen(&shape, [&seen(&keys), &seen(&values)], &queries[row * width..], position);
            let error = relative_rms(&got[row * width..(row + 1) * width], &want);
            // A device that has one query of a chunk decodes it.
            let most = match codec {
                Codec::Centred => CENTRED_RMS,
                Codec::F16 | Codec::AlignedF16 => PREFILL_RMS,
                _ => DECODE_RMS,
            };
            // By cooperative matrices f16 is rounded no less than codes that are unpacked.
            let most = match codec {
                Codec::F16 | Codec::AlignedF16 if plan.matrices() && *tokens > 1 => UNPACKED_RMS,
                _ if *tokens == 1 || n + 1 == *tokens => most,
                Codec::F16 | Codec::AlignedF16 => PREFILL_RMS,
                _ => UNPACKED_RMS,
            };
            // A NaN compares false, so it fails too.
            assert!(error <= most, "{}, position {position} of a chunk of {tokens}: {error}", plan.format());
            row += 1;
        }
    }
}

/// Returns the keys (after RoPE) and values that all devices store of a sequence, one after
/// another.
fn stored(cache: &ContextParallel, sequence: &ContextSequence) -> [Vec<f32>; 2] {
    let width = (shape().kv_heads * shape().head_dim) as usize;
    let mut stored = [Vec::new(), Vec::new()];
    for ((part, sequence), n) in cache.parts().iter().zip(sequence.sequences()).zip(0..) {
        let (first, end) = (n * SPAN, part.tokens(*sequence).unwrap());
        let numbers = (end - first) as usize * width;
        let rows = [poisoned(part.gpu(), numbers.max(4)), poisoned(part.gpu(), numbers.max(4))];
        let mut encoder = part.gpu().device().create_command_encoder(&Default::default());
        part.dequantize(&mut encoder, *sequence, 0, first..end, Rows::f32(&rows[0]), Rows::f32(&rows[1])).unwrap();
        part.gpu().queue().submit([encoder.finish()]);
        for (stored, rows) in stored.iter_mut().zip(&rows) {
            stored.extend(download(part.gpu(), rows, numbers));
        }
    }
    stored
}

#[test]
fn outputs_of_all_parts_are_attention_over_everything() {
    let random = &mut generator();
    let gpus = devices(3);
    for plan in plans(&gpus[0], random) {
        println!("{}, {:?}", plan.format(), plan.protection());
        let mut cache = ContextParallel::new(&gpus, &plan, SPAN).unwrap();
        let [first, second] = [(); 2].map(|()| cache.begin().unwrap());
        // Chunks within a device, over the border of two and of three, that end at one, and single
        // tokens on each.
        grow(&mut cache, random, &[(&first, 100), (&second, 3)]);
        grow(&mut cache, random, &[(&first, 1), (&second, 1)]);
        grow(&mut cache, random, &[(&second, 253), (&first, 154)]);
        grow(&mut cache, random, &[(&first, 1), (&second, 1)]);
        grow(&mut cache, random, &[(&second, 500)]);
        assert_eq!((cache.tokens(&first), cache.tokens(&second)), (Ok(256), Ok(758)));
        grow(&mut cache, random, &[(&second, 1), (&first, 1)]);
        grow(&mut cache, random, &[(&first, 1), (&second, 1)]);
        // A fork goes on as the sequence would, and one that is cut back goes on from there.
        let mut encoders = cache.encoders();
        let forked = cache.fork(&mut encoders, &second).unwrap();
        cache.truncate(&mut encoders, &forked, 300).unwrap();
        cache.truncate(&mut encoders, &first, 256).unwrap();
        cache.submit(encoders).unwrap();
        assert_eq!((cache.tokens(&first), cache.tokens(&forked)), (Ok(256), Ok(300)));
        grow(&mut cache, random, &[(&forked, 1), (&second, 2), (&first, 2)]);
        for part in cache.parts() {
            assert_eq!(part.check_pages(), Ok(3));
            assert!(pollster::block_on(part.status()).unwrap().is_clean());
        }
        [first, second, forked].iter().for_each(|sequence| cache.end(sequence).unwrap());
        assert!(cache.parts().iter().all(|part| part.free_pages() == part.plan().pages()));
    }
}

#[test]
fn a_part_is_saved_and_loaded_without_what_it_never_had() {
    let random = &mut generator();
    let gpus = devices(2);
    let plan = Plan::builder(shape(), hadamard(Bits::Four, Bits::Four, 64))
        .protection(protect(4, 16))
        .capacity(Capacity::tokens(2, SPAN))
        .build(gpus[0].capability())
        .unwrap();
    let mut cache = ContextParallel::new(&gpus, &plan, SPAN).unwrap();
    let sequence = cache.begin().unwrap();
    grow(&mut cache, random, &[(&sequence, 450)]);
    let bytes = pollster::block_on(cache.parts()[1].save(sequence.sequences()[1])).unwrap();
    let mut other = Cache::new(&gpus[0], plan.to_builder().max_tokens(2 * SPAN).build(gpus[0].capability()).unwrap()).unwrap();
    let mut encoder = gpus[0].device().create_command_encoder(&Default::default());
    let loaded = other.load(&mut encoder, &bytes).unwrap();
    gpus[0].queue().submit([encoder.finish()]);
    assert_eq!((other.tokens(loaded), other.free_pages()), (Ok(450), other.plan().pages() - 1));
    // Without the first tokens there are no sinks: a query far out sees what the part's own
    // sequence shows.
    let width = (shape().query_heads * shape().head_dim) as usize;
    let queries = normals(random, width);
    let attend = |cache: &mut Cache, sequence: Sequence| {
        let step = cache.step_parts(&[Share { sequence, first: 500, queries: 1, tokens: 0 }]).unwrap();
        let gpu = cache.gpu();
        let (queries, output, log_sums) = (upload(gpu, &queries), poisoned(gpu, width), poisoned(gpu, 8));
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.attend_part(&mut encoder, &step, 0, Rows::f32(&queries), Rows::f32(&output), Rows::f32(&log_sums)).unwrap();
        gpu.queue().submit([encoder.finish()]);
        (words(gpu, &output), words(gpu, &log_sums))
    };
    let read = attend(&mut other, loaded);
    let mut part = Cache::new(&gpus[1], other.plan().clone()).unwrap();
    let mut encoder = gpus[1].device().create_command_encoder(&Default::default());
    let again = part.load(&mut encoder, &bytes).unwrap();
    gpus[1].queue().submit([encoder.finish()]);
    assert!(attend(&mut part, again) == read);
    // A part that holds nothing has log-sums that show it.
    let empty = other.begin_at(256).unwrap();
    let (output, log_sums) = attend(&mut other, empty);
    assert!(output.iter().all(|word| f32::from_bits(*word) == 0.0) && log_sums.iter().all(|word| f32::from_bits(*word) == -1e30));
}

/// Grows sequences by tokens of zeros.
fn store(cache: &mut ContextParallel, chunks: &[(&ContextSequence, u32)]) {
    let step = cache.step(chunks).unwrap();
    let rows = cache.scatter(&step, &vec![0.0; (step.rows() * shape().kv_heads * shape().head_dim) as usize]).unwrap();
    let rows: Vec<Rows> = rows.iter().map(Rows::f32).collect();
    let mut encoders = cache.encoders();
    (0..shape().layers).for_each(|layer| cache.append(&mut encoders, &step, layer, &rows, &rows).unwrap());
    cache.submit(encoders).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_changes() {
    let gpus = devices(2);
    let of = |format, protection| Plan::builder(shape(), format).protection(protection).capacity(Capacity::tokens(1, SPAN));
    let plan = of(Format::f16(), Protection::NONE).build(gpus[0].capability()).unwrap();
    let refused = |result: Result<ContextParallel>, name: &str| {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::Mismatch { of: Thing::Argument, name: is, .. } if *is == name), "{error}");
    };
    refused(ContextParallel::new(&[], &plan, SPAN), "devices");
    refused(ContextParallel::new(&gpus, &plan, 0), "span");
    refused(ContextParallel::new(&gpus, &plan, 100), "span");
    refused(ContextParallel::new(&gpus, &plan, 1 << 30), "max_tokens");
    let format = rotated(Bits::Two, Bits::Two, 64, 2);
    let elects = of(format, massive(4, 0)).learned(random_order(&shape(), &format, Reach::Local, &mut generator()));
    let elects = elects.build(gpus[0].capability()).unwrap();
    refused(ContextParallel::new(&gpus, &elects, SPAN), "sinks");

    let mut cache = ContextParallel::new(&gpus, &plan, SPAN).unwrap();
    let sequence = cache.begin().unwrap();
    assert_eq!(cache.begin().map(|_| ()), Err(Error::Sequences { have: 1 }));
    let stepped = |cache: &mut ContextParallel, chunks: &[(&ContextSequence, u32)]| cache.step(chunks).map(|_| ());
    assert_eq!(stepped(&mut cache, &[(&sequence, 513)]), Err(Error::Length { slot: 0, need: 513, have: 512 }));
    assert_eq!(stepped(&mut cache, &[(&sequence, 0)]), Err(Error::EmptyChunk { slot: 0 }));
    assert_eq!(stepped(&mut cache, &[(&sequence, 1), (&sequence, 1)]), Err(Error::RepeatedSequence { slot: 0 }));
    assert_eq!(cache.tokens(&sequence), Ok(0));
    store(&mut cache, &[(&sequence, 300)]);
    let mut encoders = cache.encoders();
    assert_eq!(cache.truncate(&mut encoders, &sequence, 301), Err(Error::Range { first: 0, end: 301, have: 300 }));
    assert!(matches!(cache.truncate(&mut encoders[..1], &sequence, 3), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "encoders"));
    assert_eq!(cache.fork(&mut encoders, &sequence), Err(Error::Sequences { have: 1 }));
    drop(encoders);
    // The first device has a page for the new sequence, the second none for the last fork: no
    // device has grown.
    let page = 2 * 2 * 2 * 64 * 128;
    let few = Plan::builder(shape(), Format::f16()).protection(Protection::NONE).capacity(Capacity::bytes(4, 3 * page)).build(gpus[0].capability()).unwrap();
    let mut few = ContextParallel::new(&gpus, &few, SPAN).unwrap();
    let first = few.begin().unwrap();
    store(&mut few, &[(&first, 384)]);
    let mut encoders = few.encoders();
    let [second, third] = [(); 2].map(|()| few.fork(&mut encoders, &first).unwrap());
    drop(encoders);
    let new = few.begin().unwrap();
    store(&mut few, &[(&first, 1), (&second, 1)]);
    let free = |few: &ContextParallel| few.parts().iter().map(Cache::free_pages).collect::<Vec<_>>();
    assert_eq!(free(&few), [1, 0]);
    assert_eq!(stepped(&mut few, &[(&new, 5), (&third, 1)]), Err(Error::Pages { need: 1, have: 0 }));
    assert_eq!((few.tokens(&new), few.tokens(&third), free(&few)), (Ok(0), Ok(384), vec![1, 0]));

    // Parts by hand.
    let mut part = Cache::new(&gpus[0], plan.to_builder().max_tokens(1000).build(gpus[0].capability()).unwrap()).unwrap();
    assert!(matches!(part.begin_at(100), Err(Error::Mismatch { of: Thing::Argument, .. })));
    assert!(matches!(part.begin_at(1024), Err(Error::Length { need: 1024, have: 1000, .. })));
    let sequence = part.begin_at(256).unwrap();
    let of = |first, queries, tokens| Share { sequence, first, queries, tokens };
    let mut step = |one| part.step_parts(&[one]).map(|_| ());
    assert_eq!(step(of(255, 1, 0)), Err(Error::Share { slot: 0, first: 255, tokens: 0, have: 256, most: 0 }));
    assert_eq!(step(of(257, 3, 1)), Err(Error::Share { slot: 0, first: 257, tokens: 1, have: 256, most: 0 }));
    assert_eq!(step(of(256, 3, 4)), Err(Error::Share { slot: 0, first: 256, tokens: 4, have: 256, most: 3 }));
    assert_eq!(step(of(256, 0, 0)), Err(Error::EmptyChunk { slot: 0 }));
    assert_eq!(step(of(256, 745, 10)), Err(Error::Length { slot: 0, need: 1001, have: 1000 }));
    // A step that brings no tokens takes the one before back, of which nothing was recorded.
    assert_eq!(step(of(256, 3, 2)), Ok(()));
    assert_eq!(step(of(990, 1, 0)), Ok(()));
    assert_eq!(part.tokens(sequence), Ok(256));
}
