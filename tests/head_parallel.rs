//! KV heads spread over devices: every device stores what one device would, and outputs put
//! together are those of one device. On a host with several GPUs each has its own, otherwise they
//! are logical devices of one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use wgkv_testing::*;

/// Partial results of a row are merged in another order where fewer heads share the machine: 2^-24
/// for each of some 20 additions, and as much again for the sums that are divided by, of numbers of
/// the size of 1.
const MERGE_ERROR: f32 = 40.0 / 16_777_216.0;

fn shape() -> Shape {
    Shape { layers: 2, query_heads: 8, kv_heads: 4, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

/// Makes a plan of every kind of codec, with what it learns from sample text, and plans with bits
/// by layer and head.
fn plans(gpu: &Gpu, random: &mut rand::rngs::StdRng) -> Vec<Plan> {
    use Bits::{Eight, Four, Sixteen, Three, Two};
    let (shape, budget) = (shape(), Capacity::tokens(3, 400));
    let plan = |format, protection| Plan::builder(shape.clone(), format).protection(protection).capacity(budget);
    let channels = (shape.kv_heads * shape.head_dim) as usize;
    let layer = |random: &mut _| [normals(random, channels), vec![0.5; channels], normals(random, channels)];
    let learned = Means::new(&shape, "test", vec![layer(random), layer(random)]).unwrap();
    let rotate = rotated(Two, Four, 64, 2);
    let order = random_order(&shape, &rotate, Reach::Local, random);
    let of = |bits| [Precision::new(bits, 64), Precision::new(Four, 32)];
    let mixed = BitPlan::new(&shape, hadamard(Four, Four, 64), |layer, head| of([Two, Three, Eight, Sixteen][(layer + head) as usize % 4])).unwrap();
    [
        plan(Format::f16(), Protection::NONE),
        plan(rtn(Four, Two, 32), protect(4, 0)),
        plan(hadamard(Two, Three, 64), protect(4, 128)),
        plan(centred(Three, Two, 64), protect(4, 64)).learned(learned),
        plan(rotate, massive(4, 0)).learned(order),
        plan(hadamard(Four, Four, 64), Protection::NONE).alignment(Alignment::budget(0.5, 0.5)),
        Plan::builder(shape.clone(), mixed).protection(protect(0, 40)).capacity(budget),
    ]
    .into_iter()
    .map(|builder| builder.build(gpu.capability()).unwrap())
    .collect()
}

/// One device with all heads, beside several with some each.
struct Pair {
    one: Cache,
    many: HeadParallel,
}

impl Pair {
    /// Appends and attends the same on both, and compares.
    fn grow(&mut self, random: &mut rand::rngs::StdRng, chunks: &[(&(Sequence, HeadSequence), u32)], name: &str) {
        let shape = shape();
        let count: u32 = chunks.iter().map(|(_, tokens)| tokens).sum();
        let one: Vec<Chunk> = chunks.iter().map(|((sequence, _), tokens)| Chunk { sequence: *sequence, tokens: *tokens }).collect();
        let many: Vec<(&HeadSequence, u32)> = chunks.iter().map(|((_, sequence), tokens)| (sequence, *tokens)).collect();
        let (step, steps) = (self.one.step(&one).unwrap(), self.many.step(&many).unwrap());
        let elects = matches!(self.one.plan().protection().sinks, Sinks::Massive(_));
        for layer in 0..shape.layers {
            let width = |heads: u32| (count * heads * shape.head_dim) as usize;
            let [keys, values, queries] = [shape.kv_heads, shape.kv_heads, shape.query_heads].map(|heads| normals(random, width(heads)));
            let residual = normals(random, count as usize * 16);
            let gpu = self.one.gpu();
            let buffers = [&keys, &values, &queries, &residual].map(|numbers| upload(gpu, numbers));
            let output = poisoned(gpu, queries.len());
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            if elects {
                self.one.elect(&mut encoder, &step, layer, Rows::f32(&buffers[3]), 16).unwrap();
            }
            self.one.append(&mut encoder, &step, layer, Rows::f32(&buffers[0]), Rows::f32(&buffers[1])).unwrap();
            self.one.attend(&mut encoder, &step, layer, Rows::f32(&buffers[2]), Rows::f32(&output)).unwrap();
            gpu.queue().submit([encoder.finish()]);
            let words = pollster::block_on(gpu.read(&output, 0, queries.len() as u64)).unwrap();
            let want = floats(&words);

            let (keys, values) = (self.many.scatter_keys(&keys).unwrap(), self.many.scatter_keys(&values).unwrap());
            let (queries, outputs) = (self.many.scatter_queries(&queries).unwrap(), self.many.outputs(count));
            let residuals: Vec<wgpu::Buffer> = self.many.shards().iter().map(|shard| upload(shard.gpu(), &residual)).collect();
            let rows = [&keys, &values, &queries, &outputs, &residuals].map(|buffers| buffers.iter().map(Rows::f32).collect::<Vec<_>>());
            let mut encoders = self.many.encoders();
            if elects {
                self.many.elect(&mut encoders, &steps, layer, &rows[4], 16).unwrap();
            }
            self.many.append(&mut encoders, &steps, layer, &rows[0], &rows[1]).unwrap();
            self.many.attend(&mut encoders, &steps, layer, &rows[2], &rows[3]).unwrap();
            self.many.submit(encoders).unwrap();
            let got = pollster::block_on(self.many.gather(&outputs, count)).unwrap();
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                assert!((got - want).abs() <= MERGE_ERROR * (1.0 + want.abs()), "{name}, layer {layer}: number {i} is {got}, of one device {want}");
            }
        }
    }

    /// Asserts that all hold the same, bit for bit.
    fn stored(&self, (one, many): &(Sequence, HeadSequence), name: &str) {
        let tokens = self.one.tokens(*one).unwrap();
        assert_eq!(self.many.tokens(many).unwrap(), tokens);
        for layer in 0..shape().layers {
            let want = stored(&self.one, *one, layer, tokens);
            for (n, (shard, heads)) in self.many.shards().iter().zip(self.many.heads()).enumerate() {
                let got = stored(shard, many.sequences()[n], layer, tokens);
                for (got, want) in got.iter().zip(&want) {
                    let d = shape().head_dim as usize;
                    let row = d * shape().kv_heads as usize;
                    let want: Vec<u32> = want.chunks(row).flat_map(|row| &row[heads.start as usize * d..heads.end as usize * d]).copied().collect();
                    assert!(*got == want, "{name}: what device {n} holds of layer {layer}");
                }
            }
        }
    }
}

/// Returns the bits of the restored keys and values.
fn stored(cache: &Cache, sequence: Sequence, layer: u32, tokens: u32) -> [Vec<u32>; 2] {
    let gpu = cache.gpu();
    let n = (tokens * cache.plan().shape().kv_heads * cache.plan().shape().head_dim) as usize;
    let rows = [poisoned(gpu, n), poisoned(gpu, n)];
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    cache.dequantize(&mut encoder, sequence, layer, 0..tokens, Rows::f32(&rows[0]), Rows::f32(&rows[1])).unwrap();
    gpu.queue().submit([encoder.finish()]);
    rows.map(|rows| pollster::block_on(gpu.read(&rows, 0, n as u64)).unwrap())
}

#[test]
fn heads_on_several_devices_are_those_of_one() {
    let random = &mut generator();
    // Three devices have 1, 1 and 2 of four heads; heads that are rotated together go round for
    // two.
    let gpus = devices(3);
    for plan in plans(&gpus[0], random) {
        let count = if plan.group_heads() == 2 { 2 } else { 3 };
        let many = HeadParallel::new(&gpus[..count], &plan).unwrap();
        if plan.format().codec() == Codec::F16 {
            // The others compile what they need: less than could be needed.
            pollster::block_on(many.prepare()).unwrap();
        }
        let spread: Vec<u32> = many.heads().iter().map(|heads| heads.end - heads.start).collect();
        assert_eq!(spread, if count == 2 { vec![2, 2] } else { vec![1, 1, 2] });
        let name = plan.format().to_string();
        let mut pair = Pair { one: Cache::new(&gpus[0], plan).unwrap(), many };
        let mut begin = || (pair.one.begin().unwrap(), pair.many.begin().unwrap());
        let (first, second) = (begin(), begin());
        pair.grow(random, &[(&first, 290), (&second, 3)], &name);
        pair.grow(random, &[(&second, 1), (&first, 1)], &name);
        pair.stored(&first, &name);

        let mut encoder = gpus[0].device().create_command_encoder(&Default::default());
        let mut encoders = pair.many.encoders();
        let forked = (pair.one.fork(&mut encoder, first.0).unwrap(), pair.many.fork(&mut encoders, &first.1).unwrap());
        pair.one.truncate(&mut encoder, forked.0, 250).unwrap();
        pair.many.truncate(&mut encoders, &forked.1, 250).unwrap();
        gpus[0].queue().submit([encoder.finish()]);
        pair.many.submit(encoders).unwrap();
        pair.grow(random, &[(&forked, 2), (&first, 1)], &name);
        pair.stored(&forked, &name);
        assert_eq!(pair.many.free_pages(), pair.one.free_pages());
        assert_eq!(pair.many.slide(&forked.1, 100), pair.one.slide(forked.0, 100));
        pair.grow(random, &[(&forked, 1)], &name);
        assert_eq!(pair.many.free_pages(), pair.one.free_pages());
        pair.one.end(first.0).unwrap();
        pair.many.end(&first.1).unwrap();
        assert_eq!(pair.many.free_pages(), pair.one.free_pages());
        assert!(matches!(pair.many.tokens(&first.1), Err(Error::UnknownSequence { .. })));
    }
}

#[test]
fn what_does_not_fit_the_devices_is_refused() {
    let gpus = devices(3);
    let plan = |format| {
        let builder = Plan::builder(shape(), format).protection(Protection::NONE).capacity(Capacity::tokens(2, 128));
        learning(builder, natural_order(&shape(), &format).as_ref()).build(gpus[0].capability()).unwrap()
    };
    let (four, two) = (plan(Format::f16()), plan(rotated(Bits::Two, Bits::Two, 64, 2)));
    let refused = |result: Result<()>, wanted: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Mismatch { of: Thing::Argument, .. }) && error.to_string().contains(wanted), "{error}");
    };
    refused(HeadParallel::new(&[], &four).map(drop), "1 to 4");
    refused(HeadParallel::new(&gpus, &two).map(drop), "1 to 2");
    for heads in [0..0, 3..5, 5..6] {
        refused(four.shard(heads, gpus[0].capability()).map(drop), "some of 0..4");
    }
    refused(two.shard(1..2, gpus[0].capability()).map(drop), "2 together");

    let mut sharded = HeadParallel::new(&gpus, &four).unwrap();
    let sequence = sharded.begin().unwrap();
    let stranger = HeadParallel::new(&gpus, &four).unwrap().begin().unwrap();
    assert!(matches!(sharded.step(&[(&stranger, 1)]), Err(Error::UnknownSequence { .. })));
    assert!(matches!(sharded.step(&[(&sequence, 1000)]), Err(Error::Length { need: 1000, have: 256, .. })));
    assert_eq!(sharded.tokens(&sequence).unwrap(), 0);
    assert!(matches!(sharded.can_append(&[(&sequence, 1000)]), Err(Error::Length { need: 1000, have: 256, .. })));
    assert_eq!(sharded.can_append(&[(&sequence, 200)]), Ok(Admission { pages_needed: 2, pages_free: 2 }));
    let step = sharded.step(&[(&sequence, 1)]).unwrap();
    refused(sharded.scatter_keys(&[0.0; 255]).map(drop), "a multiple of 256");
    refused(sharded.scatter_queries(&[0.0; 256]).map(drop), "a multiple of 512");
    let keys = sharded.scatter_keys(&[0.5; 256]).unwrap();
    let rows: Vec<Rows> = keys.iter().map(Rows::f32).collect();
    let mut encoders = sharded.encoders();
    refused(sharded.append(&mut encoders[..2], &step, 0, &rows, &rows), "3, one for each device");
    refused(sharded.append(&mut encoders, &step, 0, &rows[1..], &rows), "3, one for each device");
    refused(sharded.attend(&mut encoders, &step, 0, &rows, &rows[1..]), "3, one for each device");
    refused(sharded.fork(&mut encoders[1..], &sequence).map(drop), "3, one for each device");
    refused(sharded.submit(Vec::new()), "3, one for each device");
    let outputs = sharded.outputs(1);
    assert!(matches!(pollster::block_on(sharded.gather(&outputs, 2)), Err(Error::Rows { name: "output", .. })));
    // The third device's rows are too short.
    let short = [&keys[0], &keys[1], &keys[0]].map(Rows::f32);
    assert!(matches!(sharded.append(&mut encoders, &step, 0, &short, &rows), Err(Error::Rows { .. })));
}
