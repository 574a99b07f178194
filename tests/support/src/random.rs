//! Numbers from a seed that is printed, and what codecs might have learned.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use wgkv::learned::{Learned, Reach};
use wgkv::{ChannelOrder, Codec, Format, Means, PlanBuilder, RopeLayout, Shape};

/// Returns a generator from a fresh seed, printed so that a failure can be repeated with
/// `WGKV_SEED`.
pub fn generator() -> StdRng {
    seeded().0
}

/// Returns the same with its seed, for messages.
pub fn seeded() -> (StdRng, u64) {
    let seed = match std::env::var("WGKV_SEED") {
        Ok(seed) => seed.parse().expect("WGKV_SEED must be a number"),
        Err(_) => rand::rng().next_u64(),
    };
    println!("WGKV_SEED={seed}");
    (StdRng::seed_from_u64(seed), seed)
}

/// Returns a number of the standard normal distribution (Box and Muller).
pub fn normal(random: &mut StdRng) -> f32 {
    let (u, v): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// Draws `n` numbers of the standard normal distribution.
pub fn normals(random: &mut StdRng, n: usize) -> Vec<f32> {
    (0..n).map(|_| normal(random)).collect()
}

/// Gives a plan what its codec learned, if anything.
pub fn learning<T: Clone + Into<Option<Learned>>>(builder: PlanBuilder, learned: Option<&T>) -> PlanBuilder {
    match learned {
        Some(learned) => builder.learned(learned.clone()),
        None => builder,
    }
}

/// Returns the channels in their natural order, which a plan of RotateKV needs; nothing for other
/// codecs, and for heads that cannot be rotated together.
pub fn natural_order(shape: &Shape, format: &Format) -> Option<ChannelOrder> {
    let order = (format.codec() == Codec::RotateKv).then(|| ChannelOrder::natural(shape, format.heads_per_group(shape.kv_heads)));
    order.and_then(Result::ok)
}

/// Draws an order of channels.
pub fn random_order(shape: &Shape, format: &Format, reach: Reach, random: &mut StdRng) -> ChannelOrder {
    let sums = (0..shape.layers).map(|_| (0..shape.kv_heads * shape.head_dim).map(|_| f64::from(normal(random))).collect()).collect();
    ChannelOrder::from_sums(shape, format.heads_per_group(shape.kv_heads), reach, "random", 1, sums).expect("sums of the shape")
}

/// Returns means near those given, for the keys; random weights, alike within a pair of RoPE, and
/// means of values.
pub fn random_means(shape: &Shape, means: &[f32], random: &mut StdRng) -> Means {
    let d = shape.head_dim as usize;
    let pairs = shape.rope.frequencies().len();
    let layers = (0..shape.layers)
        .map(|_| {
            let mut weights: Vec<f32> = means.iter().map(|_| normal(random).exp().clamp(0.3, 3.0)).collect();
            for head in weights.chunks_mut(d) {
                for pair in 0..pairs {
                    let [a, b] = if shape.rope.layout() == RopeLayout::SplitHalves { [pair, pair + pairs] } else { [2 * pair, 2 * pair + 1] };
                    head[b] = head[a];
                }
            }
            let keys = means.iter().map(|x| x + 0.1 * normal(random)).collect();
            [keys, weights, means.iter().map(|_| normal(random)).collect()]
        })
        .collect();
    Means::new(shape, "random", layers).expect("means of the shape")
}
