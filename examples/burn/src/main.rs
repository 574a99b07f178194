//! One attention layer of a burn model on wgkv's cache: `cargo run --release -p wgkv-burn`.
//!
//! A prompt and then single tokens go through burn's linear layers and a cache, in f16 and in 4
//! bits, on one device. Every token's output is compared with burn's own attention over the same
//! rows. `bridge.rs` shares the device, `attention.rs` is the model.

mod attention;
mod bridge;

use attention::{Attention, HIDDEN};
use bridge::Bridge;
use burn::tensor::{Distribution, Tensor};
use std::error::Error;
use wgkv::{Bits, Cache, Capacity, Chunk, Codec, Format, Plan};

const PROMPT: usize = 1000;
const TOKENS: usize = 1032;

/// What any token's output may be off by with an f16 cache, as a share of its size. Rounding moves
/// a number by 2^-11 of it at most: so much comes from values, and no more from keys.
const ALLOWED_F16: f32 = 1.0 / 1024.0;

/// The same with 4 bits. 64 normal numbers span some 4.7 deviations, or 15 steps, so rounding moves
/// one by 9 % of a deviation (a step / sqrt(12)), and the scores that keys make add 3 %. Values
/// average out as their errors do: 9.5 % remain, and for the worst token half as much again.
const ALLOWED_4_BITS: f32 = 0.15;

fn main() -> Result<(), Box<dyn Error>> {
    let bridge = Bridge::open()?;
    let (gpu, device) = (&bridge.gpu, &bridge.device);
    device.seed(1);
    let layer = Attention::random(TOKENS, device);
    let stream = Tensor::random([TOKENS, HIDDEN], Distribution::Normal(0.0, 1.0), device);
    let exact = layer.forward_plain(stream.clone());

    println!("burn and wgkv on {}", gpu.adapter_name());
    for (format, allowed) in [(Format::f16(), ALLOWED_F16), (Format::new(Codec::Hadamard, Bits::Four, Bits::Four, 64), ALLOWED_4_BITS)] {
        let capacity = Capacity::tokens(1, TOKENS as u32);
        let plan = Plan::builder(attention::shape(), format).capacity(capacity).build(gpu.capability())?;
        pollster::block_on(gpu.prepare(&plan))?;
        let mut cache = Cache::new(gpu, plan)?;
        let output = decode(&bridge, &layer, &mut cache, stream.clone())?;

        let errors = errors(output, exact.clone())?;
        let worst = errors.iter().copied().fold(0.0, f32::max);
        let (bytes, bits) = (cache.bytes_used(), cache.plan().bits_per_element(TOKENS as u64));
        println!("{}: {TOKENS} tokens in {bytes} bytes, {bits:.3} bits per element, error {worst:.5}", cache.plan().bit_plan());
        assert!(errors.iter().all(|error| *error < allowed), "the error is {worst}, but less than {allowed} is right");
    }
    Ok(())
}

/// Runs the prompt in one step and each other token in its own. Returns the outputs of all.
fn decode(bridge: &Bridge, layer: &Attention, cache: &mut Cache, stream: Tensor<2>) -> Result<Tensor<2>, Box<dyn Error>> {
    let sequence = cache.begin()?;
    let mut outputs = Vec::new();
    let mut first = 0;
    while first < TOKENS {
        let tokens = if first == 0 { PROMPT } else { 1 };
        // One step for all layers of a model.
        let step = cache.step(&[Chunk { sequence, tokens: tokens as u32 }])?;
        outputs.push(layer.forward(stream.clone().narrow(0, first, tokens), bridge, cache, &step, 0)?);
        first += tokens;
    }
    Ok(Tensor::cat(outputs, 0))
}

/// Returns the error of each token's output, as a share of the output's size (root mean square).
fn errors(output: Tensor<2>, exact: Tensor<2>) -> Result<Vec<f32>, Box<dyn Error>> {
    let squares = (output - exact.clone()).square().sum_dim(1) / exact.square().sum_dim(1);
    Ok(squares.sqrt().into_data().try_to_vec::<f32>()?)
}
