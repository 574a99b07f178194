//! What a step makes on the device: buffers and bind groups, however long the context is.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv_testing::*;

/// Bind groups of a step: parameters and tables; keys with values; queries; output.
const STEP_GROUPS: u64 = 4;

/// Layers enough that a group made anew for each of them shows.
const LAYERS: u32 = 5;

/// Makes and records one decoded token in every layer; returns the buffers and bind groups made for it.
fn decoded(cache: &mut Cache, sequence: Sequence, rows: [Rows<'_>; 4]) -> [u64; 2] {
    let gpu = cache.gpu().clone();
    let before = gpu.made();
    let step = cache.step(&[Chunk { sequence, tokens: 1 }]).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let [keys, values, queries, output] = rows;
    for layer in 0..LAYERS {
        cache.append(&mut encoder, &step, layer, keys, values).unwrap();
        cache.attend(&mut encoder, &step, layer, queries, output).unwrap();
    }
    gpu.queue().submit([encoder.finish()]);
    let after = gpu.made();
    [after[0] - before[0], after[1] - before[1]]
}

#[test]
fn a_steps_buffers_and_bind_groups_do_not_grow_with_the_context() {
    let gpu = pollster::block_on(Gpu::request()).unwrap();
    let (mut random, _) = seeded();
    let shape = Shape { layers: LAYERS, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let row = (shape.kv_heads * shape.head_dim) as usize;
    for format in [Format::f16(), hadamard(Bits::Four, Bits::Four, 64), centred(Bits::Two, Bits::Two, 64)] {
        let builder = Plan::builder(shape.clone(), format).capacity(Capacity::tokens(1, 8400));
        let builder = match format.codec() {
            Codec::Centred => {
                let mut layer = || [normals(&mut random, row), vec![1.0; row], normals(&mut random, row)];
                builder.learned(Means::new(&shape, "", vec![layer(); LAYERS as usize]).unwrap())
            }
            _ => builder,
        };
        let mut cache = Cache::new(&gpu, builder.build(gpu.capability()).unwrap()).unwrap();
        let sequence = cache.begin().unwrap();
        let wide = upload(&gpu, &vec![0.5; 1024 * row]);
        let rows = [1, 2, 3, 4].map(|seed| upload(&gpu, &vec![seed as f32; 5 * 64]));
        let mut counts = Vec::new();
        for context in [1024, 8192] {
            while cache.tokens(sequence).unwrap() < context {
                let step = cache.step(&[Chunk { sequence, tokens: 1024.min(context - cache.tokens(sequence).unwrap()) }]).unwrap();
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                (0..LAYERS).for_each(|layer| cache.append(&mut encoder, &step, layer, Rows::f32(&wide), Rows::f32(&wide)).unwrap());
                gpu.queue().submit([encoder.finish()]);
            }
            // The first token makes what is made once a cache. So it is where keys and values begin
            // where no binding can: 12 bytes on.
            for offset in [0, 12] {
                let rows = rows.each_ref().map(|buffer| Rows::f32(buffer).at(offset));
                decoded(&mut cache, sequence, rows);
                counts.push(decoded(&mut cache, sequence, rows));
            }
        }
        assert!(counts.iter().all(|count| *count == counts[0]), "{format}: buffers and bind groups of a step at 1024 and at 8192 tokens: {counts:?}");
        assert!(counts[0][0] == 1 && counts[0][1] <= STEP_GROUPS, "{format}: {counts:?}");
    }
}
