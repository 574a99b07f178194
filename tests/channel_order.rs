//! Orders of channels: what is collected on the GPU, the order that follows from it, and files of
//! it. The numbers are those of docs/testing.md's table of RotateKV (2501.16383): 6 the order is a
//! permutation and its inverse, 7 sorted means, 8 the score is taken on rotated keys before RoPE.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use wgkv::learned::{OrderCollector, Reach};
use wgkv::low_level::reference::{rotate_group_exact, turn_exact};
use wgkv::{ChannelOrder, Element, Error, Gpu, Result, Rope, Rows, Shape};
use wgkv_testing::*;

fn shape(layers: u32, kv_heads: u32, head_dim: u32) -> Shape {
    Shape { layers, query_heads: kv_heads, kv_heads, head_dim, rope: Rope::new(10_000.0, head_dim) }
}

/// Rows times `B`: the rotation over groups of KV heads.
fn rotated(row: &[f64], head_dim: u32, heads_per_group: u32) -> Vec<f64> {
    row.chunks_exact((heads_per_group * head_dim) as usize).flat_map(|block| rotate_group_exact(block, head_dim)).collect()
}

/// Multiples of 1/8 up to 8 with signed means by channel: sums of them are exact in any order, as
/// halves and as floats.
fn keys(random: &mut StdRng, tokens: usize, width: usize) -> Vec<f32> {
    (0..tokens * width).map(|i| f32::from(random.random_range(-32_i8..32) + (i % width % 11) as i8 * 3 - 15) / 8.0).collect()
}

fn sums(keys: &[f32], width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    keys.iter().enumerate().for_each(|(i, x)| sums[i % width] += f64::from(*x));
    sums
}

fn f16(numbers: &[f32]) -> Vec<f32> {
    let halves: Vec<u16> = numbers.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
    bytemuck::pod_collect_to_vec(&halves)
}

fn add(gpu: &Gpu, collector: &OrderCollector, layer: u32, keys: &[f32], width: usize, element: Element) {
    let rows = (keys.len() / width) as u32;
    let buffer = upload(gpu, &if element == Element::F16 { f16(keys) } else { keys.to_vec() });
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    collector.add(&mut encoder, layer, Rows::new(&buffer, element), rows).unwrap();
    gpu.queue().submit([encoder.finish()]);
}

fn finish(collector: &OrderCollector, reach: Reach) -> Result<ChannelOrder> {
    pollster::block_on(collector.finish("a model", reach))
}

/// What is refused, by the name of the thing.
#[track_caller]
fn refused(result: Result<ChannelOrder>, what: &str) {
    match result {
        Err(Error::Mismatch { of: Thing::ChannelOrder, name, .. } | Error::Mismatch { of: Thing::Argument, name, .. }) => assert_eq!(name, what),
        other => panic!("{what} should be refused, but the answer is {other:?}"),
    }
}

// Collecting.

#[test]
fn what_the_gpu_collects_is_what_f64_sums_give_in_any_order_and_batches() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    for (kv_heads, head_dim, heads_per_group) in [(8, 64, 4), (2, 80, 2), (4, 128, 1), (4, 192, 2), (1, 256, 1), (8, 96, 8)] {
        let shape = shape(2, kv_heads, head_dim);
        let width = (kv_heads * head_dim) as usize;
        let layers: Vec<Vec<f32>> = (0..2).map(|_| keys(&mut random, 150, width)).collect();
        for reach in [Reach::Global, Reach::Local] {
            let wanted = ChannelOrder::from_sums(&shape, heads_per_group, reach, "a model", 150, layers.iter().map(|k| sums(k, width)).collect()).unwrap();
            for (batches, element) in [(vec![150], Element::F32), (vec![1, 33, 0, 116], Element::F16), (vec![64, 86], Element::F32)] {
                let collector = OrderCollector::new(&gpu, &shape, heads_per_group).unwrap();
                for (layer, keys) in layers.iter().zip(0..).map(|(k, l)| (l, k)) {
                    // Tokens in another order, which the sums do not tell.
                    let mut tokens: Vec<&[f32]> = keys.chunks_exact(width).collect();
                    tokens.shuffle(&mut random);
                    let mut tokens = tokens.into_iter();
                    for rows in &batches {
                        let batch: Vec<f32> = tokens.by_ref().take(*rows).flatten().copied().collect();
                        if *rows > 0 {
                            add(&gpu, &collector, layer, &batch, width, element);
                        }
                    }
                }
                let got = finish(&collector, reach).unwrap();
                assert!(got == wanted, "{kv_heads} heads of {head_dim}, batches of {batches:?} in {element:?}. WGKV_SEED={seed}");
                assert_eq!(got.skipped(), 0);
            }
        }
    }
}

#[test]
fn keys_that_come_turned_give_the_sums_of_those_before() {
    let gpu = gpu();
    let (mut random, seed) = seeded();
    let shape = shape(1, 2, 64);
    let keys = keys(&mut random, 200, 128);
    let heads = Shape { query_heads: 2, ..shape.clone() };
    let turned = turned_to(&heads, &keys, 0, 200);
    let collector = OrderCollector::new(&gpu, &shape, 2).unwrap().turned_rows(200).unwrap();
    for range in [0..70, 70..200] {
        let buffer = upload(&gpu, &turned[range.start * 128..range.end * 128]);
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        collector.add_from(&mut encoder, 0, range.start as u32, Rows::f32(&buffer), range.len() as u32).unwrap();
        gpu.queue().submit([encoder.finish()]);
    }
    let got = finish(&collector, Reach::Global).unwrap();
    for (c, (got, want)) in got.sums(0).iter().zip(sums(&keys, 128)).enumerate() {
        // Eight roundings of 2^-24 on each number of the pair.
        let magnitude: f64 = keys.chunks_exact(128).map(|row| f64::from(norm(&row[c / 64 * 64..][..64]))).sum();
        assert!((got - want).abs() <= 8.0 / 16_777_216.0 * magnitude, "channel {c}: {got}, not {want}. WGKV_SEED={seed}");
    }
}

#[test]
fn a_token_that_is_not_finite_is_left_out_and_told() {
    let gpu = gpu();
    let (mut random, _) = seeded();
    let shape = shape(2, 2, 64);
    let clean = keys(&mut random, 40, 128);
    let mut broken = clean.clone();
    broken[7 * 128 + 5] = f32::NAN;
    broken[9 * 128..][..128].fill(f32::INFINITY);
    let collector = OrderCollector::new(&gpu, &shape, 2).unwrap();
    add(&gpu, &collector, 0, &broken, 128, Element::F32);
    add(&gpu, &collector, 1, &clean, 128, Element::F32);
    let got = finish(&collector, Reach::Global).unwrap();
    assert_eq!((got.tokens(), got.skipped()), (40, 2));
    let kept: Vec<f32> = clean.chunks_exact(128).enumerate().filter(|(t, _)| ![7, 9].contains(t)).flat_map(|(_, row)| row.to_vec()).collect();
    assert_eq!(got.sums(0), sums(&kept, 128));
    assert_eq!(got.sums(1), sums(&clean, 128));
    assert_eq!(ChannelOrder::from_bytes(&got.to_bytes().unwrap()).unwrap(), got, "the number is kept in files");
}

#[test]
fn what_cannot_be_finished_is_refused() {
    let gpu = gpu();
    let (mut random, _) = seeded();
    let shape = shape(2, 1, 64);
    let rows = keys(&mut random, 5, 64);
    let collector = OrderCollector::new(&gpu, &shape, 1).unwrap();
    refused(finish(&collector, Reach::Global), "tokens");
    add(&gpu, &collector, 0, &rows, 64, Element::F32);
    refused(finish(&collector, Reach::Global), "tokens");
    add(&gpu, &collector, 1, &rows[..4 * 64], 64, Element::F32);
    refused(finish(&collector, Reach::Global), "tokens");
    add(&gpu, &collector, 1, &rows[4 * 64..], 64, Element::F32);
    finish(&collector, Reach::Global).unwrap();
    let buffer = upload(&gpu, &rows);
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    assert_eq!(collector.add(&mut encoder, 2, Rows::f32(&buffer), 5), Err(Error::Layer { had: 2, layers: 2 }));
    assert!(matches!(collector.add(&mut encoder, 1, Rows::f32(&buffer), 6), Err(Error::Rows { name: "keys", .. })));
    // A recording that is thrown away was never added.
    collector.add(&mut encoder, 0, Rows::f32(&buffer), 5).unwrap();
    drop(encoder);
    assert_eq!(finish(&collector, Reach::Global).unwrap().tokens(), 5);

    let collector = OrderCollector::new(&gpu, &shape, 1).unwrap();
    add(&gpu, &collector, 0, &rows, 64, Element::F32);
    add(&gpu, &collector, 1, &[f32::NAN; 5 * 64], 64, Element::F32);
    refused(finish(&collector, Reach::Global), "keys");

    let collector = OrderCollector::new(&gpu, &shape, 1).unwrap();
    for layer in 0..2 {
        add(&gpu, &collector, layer, &[f32::MAX; 5 * 64], 64, Element::F32);
    }
    refused(finish(&collector, Reach::Global), "sums");
}

#[test]
fn shapes_that_are_not_served_are_refused_before_anything_is_allocated() {
    let gpu = gpu();
    for (shape, heads_per_group) in [
        (shape(1, 4, 72), 4),
        (shape(0, 4, 64), 4),
        (shape(1, 6, 64), 4),
        (shape(1, 4, 64), 3),
        (shape(1, 16, 64), 16),
        (shape(1, 4, 64), 0),
        (shape(u32::MAX, 1 << 31, 64), 4),
        (shape(u32::MAX, 4000, 256), 4),
    ] {
        for error in [ChannelOrder::natural(&shape, heads_per_group).unwrap_err(), OrderCollector::new(&gpu, &shape, heads_per_group).map(drop).unwrap_err()] {
            assert!(matches!(error, Error::Mismatch { of: Thing::Argument, .. }) || error.wanted_of(Thing::ChannelOrder, "channels").is_some(), "{error:?}");
        }
    }
    let shape = shape(1, 1, 64);
    let from = |sums| ChannelOrder::from_sums(&shape, 1, Reach::Global, "", 1, sums);
    refused(from(vec![]), "layers");
    refused(from(vec![vec![0.0; 63]]), "channels");
    refused(from(vec![vec![f64::NAN; 64]]), "sums");
    refused(ChannelOrder::from_sums(&shape, 1, Reach::Global, &"m".repeat(4097), 1, vec![vec![0.0; 64]]), "model");
}

// The order.

#[test]
fn item_6_the_order_is_a_permutation_and_places_are_its_inverse() {
    let (mut random, _) = seeded();
    let shape = shape(3, 8, 64);
    let layers: Vec<Vec<f64>> = (0..3).map(|_| normals(&mut random, 512).into_iter().map(f64::from).collect()).collect();
    for reach in [Reach::Global, Reach::Local] {
        let channel_order = ChannelOrder::from_sums(&shape, 4, reach, "", 1, layers.clone()).unwrap();
        for layer in 0..3 {
            let (order, places) = (channel_order.order(layer), channel_order.places(layer));
            let mut sorted = order.to_vec();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..512), "every channel once");
            let row: Vec<u32> = (0..512).map(|_| random.random()).collect();
            let gather = |row: &[u32], by: &[u16]| -> Vec<u32> { by.iter().map(|c| row[usize::from(*c)]).collect() };
            assert_eq!(gather(&gather(&row, order), &places), row);
            assert_ne!(gather(&gather(&row, order), order), row, "an order that is its own inverse would hide a swap");
        }
        assert_ne!(channel_order.order(0), channel_order.order(1));
        assert_eq!((channel_order.order(3), channel_order.places(3)), (&[][..], vec![]), "no such layer");
    }
}

#[test]
fn item_7_means_along_the_order_do_not_decrease() {
    let (mut random, _) = seeded();
    for (kv_heads, head_dim, heads_per_group) in [(8, 64, 4), (4, 80, 2), (2, 96, 2), (8, 128, 8), (2, 256, 1)] {
        let shape = shape(1, kv_heads, head_dim);
        let sums: Vec<f64> = normals(&mut random, (kv_heads * head_dim) as usize).into_iter().map(f64::from).collect();
        let score = rotated(&sums, head_dim, heads_per_group);
        let global = ChannelOrder::from_sums(&shape, heads_per_group, Reach::Global, "", 1, vec![sums.clone()]).unwrap();
        assert!(global.order(0).is_sorted_by_key(|c| score[usize::from(*c)]));
        let local = ChannelOrder::from_sums(&shape, heads_per_group, Reach::Local, "", 1, vec![sums]).unwrap();
        let block = (heads_per_group * head_dim) as usize;
        for (b, order) in local.order(0).chunks_exact(block).enumerate() {
            assert!(order.iter().all(|c| usize::from(*c) / block == b), "a local order leaves its rotation group");
            assert!(order.is_sorted_by_key(|c| score[usize::from(*c)]));
        }
        assert_eq!(global == local, kv_heads == heads_per_group && global.reach() == local.reach());
        assert_eq!(global.order(0) == local.order(0), kv_heads == heads_per_group, "one group is the whole row");
    }
}

#[test]
fn item_7_ties_keep_the_lower_channel_first() {
    let shape = shape(2, 2, 64);
    // All equal: the natural order. Negative zeros are zeros.
    for zero in [0.0, -0.0] {
        let channel_order = ChannelOrder::from_sums(&shape, 2, Reach::Global, "", 1, vec![vec![zero; 128]; 2]).unwrap();
        assert!(channel_order.order(1).iter().copied().eq(0..128));
    }
    assert!(ChannelOrder::natural(&shape, 2).unwrap().order(0).iter().copied().eq(0..128));
    // One key channel of 1 rotates to 1 / sqrt(128) with the signs of Sylvester's column 3:
    // channels whose lowest two bits have one bit set go first, and among equals the lower index.
    let mut sums = vec![0.0; 128];
    sums[3] = 1.0;
    let channel_order = ChannelOrder::from_sums(&shape, 2, Reach::Global, "", 1, vec![sums; 2]).unwrap();
    let negative = |c: &u16| (c & 3).count_ones() == 1;
    let wanted: Vec<u16> = (0..128).filter(negative).chain((0..128).filter(|c| !negative(c))).collect();
    assert_eq!(channel_order.order(0), wanted);
}

#[test]
fn a_small_order_by_hand() {
    // Sums that rotate to 0, 1, 2, .. in an order of our own: B is its own inverse.
    let shape = shape(1, 1, 64);
    let wanted: Vec<u16> = (0..64).map(|place| place * 37 % 64).collect();
    let mut score = vec![0.0; 64];
    wanted.iter().zip(0..).for_each(|(c, place)| score[usize::from(*c)] = f64::from(place) - 20.0);
    let channel_order = ChannelOrder::from_sums(&shape, 1, Reach::Global, "", 1, vec![rotate_group_exact(&score, 64)]).unwrap();
    assert_eq!(channel_order.order(0), wanted);
    assert_eq!(channel_order.order(0)[..4], [0, 37, 10, 47]);
    assert_eq!(channel_order.places(0)[..3], [0, 45, 26]);
}

#[test]
fn item_8_the_score_is_taken_on_rotated_keys_before_rope() {
    let gpu = gpu();
    let (mut random, _) = seeded();
    let shape = shape(1, 4, 64);
    let keys = keys(&mut random, 96, 256);
    let collector = OrderCollector::new(&gpu, &shape, 4).unwrap();
    add(&gpu, &collector, 0, &keys, 256, Element::F32);
    let channel_order = finish(&collector, Reach::Global).unwrap();
    // Rotating every token and adding up, as the paper does, gives the same: the rotation is
    // linear.
    let argsort = |score: &[f64]| {
        let mut order: Vec<u16> = (0..256).collect();
        order.sort_by(|a, b| score[usize::from(*a)].total_cmp(&score[usize::from(*b)]));
        order
    };
    let turn = |by: u32, of: fn(&[f64], u32, u32) -> Vec<f64>| {
        let mut score = vec![0.0; 256];
        for (t, row) in keys.chunks_exact(256).enumerate() {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let turned: Vec<f64> = if by == 0 { row } else { row.chunks_exact(64).flat_map(|head| turn_exact(&shape.rope, head, t as u32 + by - 1)).collect() };
            score.iter_mut().zip(of(&turned, 64, 4)).for_each(|(s, x)| *s += x);
        }
        // Sums of tokens in f64 carry roundings of 1e-13, sums of sums do not; scores are apart by
        // more, or equal.
        score.iter_mut().for_each(|s| *s = (*s * 1e6).round());
        score
    };
    let rotated_score = turn(0, rotated);
    assert!(channel_order.order(0).is_sorted_by_key(|c| rotated_score[usize::from(*c)]));
    // Other scores give other orders: of keys that are not rotated, and of keys after RoPE, where
    // positions matter.
    assert_ne!(channel_order.order(0), argsort(&turn(0, |row, _, _| row.to_vec())));
    let turned = [1, 1001].map(|by| argsort(&turn(by, rotated)));
    assert!(turned[0] != turned[1] && turned.iter().all(|order| channel_order.order(0) != order));
}

// Files.

/// An order whose file is small.
fn small() -> ChannelOrder {
    let sums: Vec<f64> = (0..64).map(|i| f64::from(i * i % 23) - 7.25).collect();
    ChannelOrder::from_sums(&shape(1, 1, 64), 1, Reach::Global, "a \"small\" model [1]", 12, vec![sums]).unwrap()
}

/// A file as one would write it who means harm, with the hash that its content has.
fn forged(parts: &Parts) -> Vec<u8> {
    let hash = hash(parts.texts().chain(parts.tensors.iter().take(2).map(|t| t.3.as_slice())));
    if parts.metadata.contains_key("hash") { parts.clone().with("hash", &hash).write() } else { parts.write() }
}

fn read(parts: Parts) -> Result<ChannelOrder> {
    ChannelOrder::from_bytes(&forged(&parts))
}

#[test]
fn a_file_returns_what_was_written() {
    let (mut random, _) = seeded();
    for (layers, kv_heads, head_dim, heads_per_group, reach) in [(1, 1, 64, 1, Reach::Global), (3, 8, 128, 4, Reach::Global), (2, 8, 80, 2, Reach::Local)] {
        let shape = shape(layers, kv_heads, head_dim);
        let sums = (0..layers).map(|_| normals(&mut random, (kv_heads * head_dim) as usize).into_iter().map(|x| f64::from(x) * 1e3).collect()).collect();
        let channel_order = ChannelOrder::from_sums(&shape, heads_per_group, reach, "org/model \u{e9}\n\"[[", u64::MAX, sums).unwrap();
        let bytes = channel_order.to_bytes().unwrap();
        let back = ChannelOrder::from_bytes(&bytes).unwrap();
        assert_eq!(back, channel_order);
        // The bytes are a function of the content.
        assert!((0..9).all(|_| channel_order.to_bytes().unwrap() == bytes) && back.to_bytes().unwrap() == bytes);
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("channel-order-{kv_heads}-{head_dim}.safetensors"));
        channel_order.save(&path).unwrap();
        assert_eq!(ChannelOrder::load(&path).unwrap(), channel_order);
    }
    let natural = ChannelOrder::natural(&shape(2, 2, 64), 2).unwrap();
    assert_eq!(ChannelOrder::from_bytes(&natural.to_bytes().unwrap()).unwrap(), natural);
    // Other programs find what the documentation says, and our own writing of the parts is read.
    let parts = Parts::of(&small().to_bytes().unwrap());
    let keys: Vec<&str> = parts.metadata.keys().map(String::as_str).collect();
    let wanted = ["codec", "format", "hash", "head_dim", "heads_per_group", "kv_heads", "layers", "model", "reach", "skipped", "tokens", "version"];
    assert_eq!(keys, wanted);
    let tensors: Vec<_> = parts.tensors.iter().map(|(name, dtype, shape, _)| (name.as_str(), *dtype, shape.clone())).collect();
    assert_eq!(tensors, [("key_sums", safetensors::Dtype::F64, vec![1, 64]), ("orders", safetensors::Dtype::U16, vec![1, 64])]);
    assert_eq!(read(parts.clone()).unwrap(), small());
}

#[test]
fn another_model_is_refused() {
    let channel_order = small();
    assert_eq!(channel_order.expect_model("a \"small\" model [1]"), Ok(()));
    for other in ["", "a model", "A \"small\" model [1]"] {
        assert!(matches!(channel_order.expect_model(other), Err(Error::Mismatch { of: Thing::ChannelOrder, name, .. }) if name == "model"), "{other}");
    }
    assert_eq!(ChannelOrder::natural(&shape(1, 1, 64), 1).unwrap().expect_model("any"), Ok(()), "no sample, no model");
    let unnamed = ChannelOrder::from_sums(&shape(1, 1, 64), 1, Reach::Global, "", 3, vec![vec![0.0; 64]]).unwrap();
    assert!(unnamed.expect_model("any").is_err(), "a sample of an unnamed model is no other model's");
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let channel_order = small();
    let bytes = channel_order.to_bytes().unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let read = ChannelOrder::from_bytes(&flipped);
            assert!(read.is_err(), "bit {bit} of byte {at} ({:?}) may be flipped", char::from(bytes[at]));
        }
        assert!(ChannelOrder::from_bytes(&bytes[..at]).is_err(), "{at} bytes are enough");
    }
    for more in [&[0_u8][..], b"{}"] {
        assert!(ChannelOrder::from_bytes(&[&bytes, more].concat()).is_err(), "bytes after the end");
    }
}

#[test]
fn random_bytes_are_refused_without_panic() {
    let (mut random, _) = seeded();
    let bytes = small().to_bytes().unwrap();
    for _ in 0..20_000 {
        let mut harmed = bytes.clone();
        for _ in 0..random.random_range(1..12) {
            let at = random.random_range(0..harmed.len());
            harmed[at] = random.random();
        }
        if random.random() {
            harmed.truncate(random.random_range(0..harmed.len()));
        }
        assert!(harmed == bytes || ChannelOrder::from_bytes(&harmed).is_err());
    }
}

#[test]
fn files_that_are_not_orders_are_refused_by_name() {
    let parts = || Parts::of(&small().to_bytes().unwrap());
    // Each key must be there, and say what is served.
    for key in parts().metadata.keys() {
        let mut without = parts();
        without.metadata.remove(key);
        let name = read(without).unwrap_err().to_string();
        assert!(name.contains(key.as_str()), "without {key}: {name}");
    }
    for (key, value) in [
        ("format", "wgkv-cache"),
        ("version", "2"),
        ("codec", "hadamard"),
        ("reach", "all"),
        ("layers", "-1"),
        ("layers", "0"),
        ("layers", "4294967296"),
        ("kv_heads", "x"),
        ("kv_heads", "4294967295"),
        ("head_dim", "63"),
        ("heads_per_group", "2"),
        ("heads_per_group", "0"),
        ("tokens", "1e3"),
        ("skipped", ""),
    ] {
        refused(read(parts().with(key, value)), key);
    }
    let long = "m".repeat(4097);
    refused(read(parts().with("model", &long)), "model");
    // More layers, heads or channels than the tensors have.
    refused(read(parts().with("layers", "2")), "key_sums");
    refused(read(parts().with("layers", "4000000000")), "key_sums");
    refused(read(parts().with("kv_heads", "2")), "key_sums");
    refused(read(parts().with("kv_heads", "4000").with("head_dim", "256")), "channels");
    // Another hash, and content that the hash does not tell.
    let mut other = forged(&parts());
    let key = b"\"tokens\":\"12\"";
    let at = other.windows(key.len()).position(|text| text == key).unwrap();
    other[at + key.len() - 2] = b'3';
    refused(ChannelOrder::from_bytes(&other), "hash");
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let parts = || Parts::of(&small().to_bytes().unwrap());
    let halves = |t: &mut (String, safetensors::Dtype, Vec<usize>, Vec<u8>)| (t.1, t.3) = (safetensors::Dtype::F32, t.3[..256].to_vec());
    refused(read(parts().tensor("key_sums", halves)), "key_sums");
    refused(read(parts().tensor("key_sums", |t| t.1 = safetensors::Dtype::I64)), "key_sums");
    refused(read(parts().tensor("key_sums", |t| t.2 = vec![64, 1])), "key_sums");
    refused(read(parts().tensor("key_sums", |t| t.2 = vec![64])), "key_sums");
    refused(read(parts().tensor("key_sums", |t| (t.2, t.3) = (vec![1, 0], vec![]))), "key_sums");
    refused(read(parts().tensor("orders", |t| t.1 = safetensors::Dtype::I16)), "orders");
    refused(read(parts().tensor("orders", |t| t.0 = "order".to_owned())), "orders");
    let mut more = parts();
    more.tensors.push(("more".to_owned(), safetensors::Dtype::U8, vec![0], vec![]));
    refused(read(more), "tensors");
    // Sums and orders of the right form, but wrong.
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        refused(read(parts().tensor("key_sums", |t| t.3[16..24].copy_from_slice(&bad.to_le_bytes()))), "sums");
    }
    refused(read(parts().tensor("orders", |t| t.3.copy_within(0..2, 2))), "order");
    refused(read(parts().tensor("orders", |t| t.3[..2].copy_from_slice(&64_u16.to_le_bytes()))), "order");
    refused(read(parts().tensor("orders", |t| t.3[..2].copy_from_slice(&u16::MAX.to_le_bytes()))), "order");
    let swapped = read(parts().tensor("orders", |t| t.3[..4].rotate_left(2)));
    assert!(
        matches!(&swapped, Err(Error::Mismatch { of: Thing::ChannelOrder, name, wanted, .. }) if name == "order" && wanted.contains("that of its sums")),
        "{swapped:?}"
    );
    // The same sums with a local reach, over one group: the same order.
    assert!(read(parts().with("reach", "local")).is_ok());
}

/// A file of this header and some bytes of data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn hostile_headers_are_refused_without_panic() {
    refused(ChannelOrder::from_bytes(&[]), "file");
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 40, 100_000_001, 99_999_999, 30_000] {
        refused(ChannelOrder::from_bytes(&length.to_le_bytes()), "header");
    }
    for length in [1_u64, 20_000] {
        refused(ChannelOrder::from_bytes(&length.to_le_bytes()), "file");
    }
    refused(ChannelOrder::from_bytes(&vec![0; (1 << 28) + 1]), "file");
    for text in ["", "{", "null", "[]", "{}", "{\"__metadata__\":{}}", "{\"__metadata__\":3}", "\u{7f}\u{e9}", "{\"key_sums\":[]}"] {
        assert!(matches!(ChannelOrder::from_bytes(&raw(text, 0)), Err(Error::Mismatch { of: Thing::ChannelOrder, .. })), "{text}");
    }
    refused(ChannelOrder::from_bytes(&raw(&"[".repeat(20_000), 0)), "file");
    refused(ChannelOrder::from_bytes(&raw(&"{\"a\":".repeat(3_000), 0)), "file");
    let tensor = |name: &str, shape: &str, first: u64, end: u64| format!("\"{name}\":{{\"dtype\":\"F64\",\"shape\":{shape},\"data_offsets\":[{first},{end}]}}");
    for (shape, first, end) in [
        ("[4294967295,4294967295]", 0, 8),
        ("[18446744073709551615]", 0, 8),
        ("[2305843009213693951]", 0, u64::MAX),
        ("[1,64]", 0, u64::MAX),
        ("[1,64]", 8, 520),
        ("[1,64]", u64::MAX, 0),
        ("[]", 0, 8),
        ("[-1]", 0, 8),
        ("[1e3]", 0, 8),
    ] {
        for data in [0, 8, 512] {
            assert!(matches!(
                ChannelOrder::from_bytes(&raw(&format!("{{{}}}", tensor("key_sums", shape, first, end)), data)),
                Err(Error::Mismatch { of: Thing::ChannelOrder, .. })
            ));
        }
    }
    // Sizes that add up beyond 64 bits: the safetensors crate adds them without looking.
    let most = (1_u64 << 61) - 1;
    let tensor =
        |name: String, n: u64, bytes: u64| format!("\"{name}\":{{\"dtype\":\"U8\",\"shape\":[{bytes}],\"data_offsets\":[{},{}]}}", n * most, n * most + bytes);
    for count in [1, 7, 8] {
        let tensors: Vec<String> = (0..count).map(|n| tensor(format!("t{n}"), n, most)).chain([tensor("last".to_owned(), count, 7)]).collect();
        refused(ChannelOrder::from_bytes(&raw(&format!("{{{}}}", tensors.join(",")), 64)), if count == 1 { "file" } else { "header" });
    }
    // A name is no number and no tensor, whatever it looks like.
    for name in ["[".repeat(12), "18446744073709551616".to_owned(), "\"\\\"18446744073709551616".to_owned()] {
        let named = ChannelOrder::from_sums(&shape(1, 1, 64), 1, Reach::Global, &name, 1, vec![vec![0.0; 64]]).unwrap();
        assert_eq!(ChannelOrder::from_bytes(&named.to_bytes().unwrap()).unwrap(), named);
    }
    // The longest name that is allowed, of characters that JSON writes in six.
    let longest = ChannelOrder::from_sums(&shape(1, 1, 64), 1, Reach::Global, &"\u{1}".repeat(4096), 1, vec![vec![0.0; 64]]).unwrap();
    assert_eq!(ChannelOrder::from_bytes(&longest.to_bytes().unwrap()).unwrap(), longest);
}

#[test]
fn files_that_cannot_be_read_or_written_are_told() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let failed = |result: Result<()>, what: &str, file: &std::path::Path| {
        assert!(matches!(&result, Err(Error::Io { doing, path, .. }) if *doing == what && *path == file.display().to_string()), "{result:?}");
    };
    let file = folder.join("no such file");
    failed(ChannelOrder::load(&file).map(drop), "reading", &file);
    let file = folder.join("no such folder").join("file");
    failed(small().save(&file), "writing", &file);
    failed(ChannelOrder::load(folder).map(drop), "reading", folder);
}
