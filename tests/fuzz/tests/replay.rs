//! Every target on its kept inputs, and on some that nobody has seen.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rand::RngExt;
use rand::rngs::StdRng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wgkv_fuzz::{SNAPSHOT_TOKENS, Target, snapshot_plan, target};
use wgkv_testing::*;

/// How long fresh inputs are tried.
const TIME: Duration = Duration::from_secs(3);

/// No input takes longer, on any machine.
const LONGEST: Duration = Duration::from_secs(5);

/// What the mutations put in.
const TOKENS: [&str; 16] =
    ["0", "-1", "1e999", "4294967295", "4294967296", "18446744073709551615", "1e-400", "null", "[]", "{}", "\"", "\\u0000", ",", ":", "16/64", "nan"];

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Files of today's format.
fn seeds(name: &str) -> Vec<(&'static str, Vec<u8>)> {
    if name != "snapshot" {
        return wgkv_fuzz::seeds(name).unwrap();
    }
    let plan = snapshot_plan();
    let text = Text::normal(&mut generator(), plan.shape(), SNAPSHOT_TOKENS);
    let mut reader = Reader::new(&gpu(), plan);
    let sequence = reader.cache.begin().unwrap();
    reader.store(sequence, &text, SNAPSHOT_TOKENS);
    vec![("whole", pollster::block_on(reader.cache.save(sequence)).unwrap())]
}

/// The kept inputs, in the order of their names.
fn kept(name: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(corpus(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Another input, a few changes away.
fn mutated(random: &mut StdRng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = inputs[random.random_range(0..inputs.len())].clone();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=bytes.len());
        let end = random.random_range(at..=bytes.len().min(at + 16));
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..end, TOKENS[random.random_range(0..TOKENS.len())].bytes())),
            3 => bytes.insert(at, random.random()),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = random.random_range(0..=bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            _ => {
                let other = &inputs[random.random_range(0..inputs.len())];
                bytes.truncate(at);
                bytes.extend(&other[at.min(other.len())..]);
            }
        }
    }
    bytes
}

/// Reads; what goes wrong is told with the input.
fn read(target: Target, bytes: &[u8], seed: u64) -> bool {
    let started = Instant::now();
    let read = catch_unwind(AssertUnwindSafe(|| (target.read)(bytes)));
    let took = started.elapsed();
    match read {
        Ok(read) if took < LONGEST => read,
        _ => panic!("WGKV_SEED={seed}, {took:?}: {} bytes, b\"{}\"", bytes.len(), bytes.escape_ascii()),
    }
}

fn replay(name: &str) {
    let target = target(name).unwrap();
    let (mut random, seed) = seeded();
    let mut inputs = Vec::new();
    for (seed_name, bytes) in seeds(name) {
        assert!(read(target, &bytes, seed), "{seed_name} is read");
        inputs.push(bytes);
    }
    assert!(!inputs.is_empty());
    inputs.extend(kept(name));
    let readable = inputs.iter().filter(|bytes| read(target, bytes, seed)).count();
    let (started, mut tried, mut fresh) = (Instant::now(), 0, 0);
    while started.elapsed() < TIME {
        tried += 1;
        fresh += u32::from(read(target, &mutated(&mut random, &inputs), seed));
    }
    println!("{name}: {readable} of {} inputs can be read, and {fresh} of {tried} fresh ones", inputs.len());
    assert!(fresh > 0, "changes so large that nothing is read find little");
}

#[test]
fn words() {
    replay("words");
}

#[test]
fn calibrations() {
    replay("calibration");
}

#[test]
fn centres() {
    replay("centre");
}

#[test]
fn snapshots() {
    replay("snapshot");
}

#[test]
fn allocations() {
    replay("allocation");
}

#[test]
fn sensitivities() {
    replay("sensitivity");
}

#[test]
#[ignore = "writes the first inputs anew, after a change of a format"]
fn write_seeds() {
    for target in wgkv_fuzz::TARGETS {
        std::fs::create_dir_all(corpus(target.name)).unwrap();
        for (name, bytes) in seeds(target.name) {
            std::fs::write(corpus(target.name).join(format!("seed-{name}")), bytes).unwrap();
        }
    }
}
