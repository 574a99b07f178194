//! Snapshots in a folder: a cache with the same tokens, plan, channel order and model finds them,
//! whole or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use pollster::block_on;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use wgkv_testing::*;

fn shape() -> Shape {
    Shape { layers: 2, query_heads: 2, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

fn plan(gpu: &Gpu, format: Format) -> Plan {
    Plan::builder(shape(), format).capacity(Capacity::tokens(2, 300)).build(gpu.capability()).unwrap()
}

/// Makes an empty folder for the test.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("prefixes").join(name);
    match std::fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{e}"),
        _ => folder,
    }
}

/// Makes a cache that has read a text, and the snapshot of it.
fn read(gpu: &Gpu, plan: Plan, text: &Text, tokens: usize) -> (Reader, Sequence, Vec<u8>) {
    let mut reader = Reader::new(gpu, plan);
    let sequence = reader.cache.begin().unwrap();
    reader.store(sequence, text, tokens);
    let bytes = block_on(reader.cache.save(sequence)).unwrap();
    (reader, sequence, bytes)
}

#[test]
fn prefixes_are_found_by_what_they_are_of() {
    let gpu = gpu();
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 300);
    let folder = folder("found");
    let tokens: Vec<u32> = (0..270).map(|t| t * 7 % 100).collect();
    let (mut reader, sequence, bytes) = read(&gpu, plan(&gpu, hadamard(Bits::Four, Bits::Four, 64)), &text, 270);
    let store = SnapshotStore::local(&folder, "a model").unwrap();
    let here = reader.cache.plan().clone();
    assert_eq!(block_on(store.get(&here, &tokens)), Ok(None));
    assert_eq!(block_on(store.has(&here, &tokens)), Ok(false));
    block_on(store.put(&here, &tokens, bytes.clone())).unwrap();

    // Another program, with room for more, on a folder that is there already.
    let there = Plan::builder(shape(), *here.format()).capacity(Capacity::tokens(3, 900)).build(gpu.capability()).unwrap();
    let again = SnapshotStore::local(&folder, "a model").unwrap();
    assert_eq!(block_on(again.has(&there, &tokens)), Ok(true));
    let found = block_on(again.get(&there, &tokens)).unwrap().unwrap();
    assert!(found == bytes);
    let mut other = Reader::new(&gpu, there.clone());
    let loaded = other.recorded(|cache, encoder| cache.load(encoder, &found));
    assert!(other.read(loaded, &text, 3) == reader.read(sequence, &text, 3));

    // Whatever differs is another prefix.
    assert_eq!(block_on(SnapshotStore::local(&folder, "another").unwrap().get(&there, &tokens)), Ok(None));
    assert_eq!(block_on(again.get(&plan(&gpu, hadamard(Bits::Four, Bits::Two, 64)), &tokens)), Ok(None));
    let mut changed = tokens.clone();
    changed[269] ^= 1;
    for tokens in [&changed[..], &tokens[..269], &tokens[1..], &[]] {
        assert_eq!(block_on(again.get(&there, tokens)), Ok(None));
    }
    let rotating = |order: &ChannelOrder| {
        let builder = Plan::builder(shape(), rotated(Bits::Two, Bits::Two, 64, 2)).capacity(Capacity::tokens(2, 300));
        builder.learned(order.clone()).build(gpu.capability()).unwrap()
    };
    let orders = [(); 2].map(|()| rotating(&random_order(&shape(), &rotated(Bits::Two, Bits::Two, 64, 2), Reach::Global, random)));
    let places = orders.map(|plan| again.place(&plan, &tokens));
    assert_ne!(places[0], places[1]);

    // What no cache of the plan would load is not stored.
    let refused = |plan: &Plan, tokens: &[u32], bytes: &[u8]| match block_on(again.put(plan, tokens, bytes.to_vec())) {
        Err(Error::Mismatch { of: Thing::Snapshot, name, .. }) => name,
        other => panic!("must be refused, but is {other:?}"),
    };
    assert_eq!(refused(&there, &tokens[..269], &bytes), "tokens");
    assert_eq!(refused(&plan(&gpu, hadamard(Bits::Four, Bits::Two, 64)), &tokens, &bytes), "plan");
    assert_eq!(refused(&there, &tokens, &bytes[..bytes.len() - 1]), "file");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing that was refused is there");

    // Damage is reported, and repaired by a cache that has the prefix.
    let file = folder.join(again.place(&there, &tokens).as_ref());
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for damaged in [&damaged[..], &bytes[..100], &[]] {
        std::fs::write(&file, damaged).unwrap();
        assert!(matches!(block_on(again.get(&there, &tokens)), Err(Error::Mismatch { of: Thing::Snapshot, .. })));
    }
    block_on(again.put(&there, &tokens, bytes.clone())).unwrap();
    assert!(block_on(store.get(&there, &tokens)).unwrap().unwrap() == bytes);
}

#[test]
fn many_write_at_once_and_nobody_sees_a_part() {
    let gpu = gpu();
    let text = Text::normal(&mut generator(), &shape(), 300);
    let folder = folder("at once");
    let tokens: Vec<u32> = (0..300).collect();
    // Several writers of one prefix, each with a snapshot of its own (the order of the metadata
    // differs), and readers.
    let (reader, sequence, _) = read(&gpu, plan(&gpu, Format::f16()), &text, 300);
    let snapshots: Vec<Vec<u8>> = (0..3).map(|_| block_on(reader.cache.save(sequence)).unwrap()).collect();
    let (plan, parts) = (reader.cache.plan(), Parts::of(&snapshots[0]));
    let writing = AtomicBool::new(true);
    let seen = std::thread::scope(|scope| {
        let writers: Vec<_> = snapshots
            .iter()
            .map(|bytes| {
                let store = SnapshotStore::local(&folder, "a model").unwrap();
                let tokens = &tokens;
                scope.spawn(move || (0..20).for_each(|_| block_on(store.put(plan, tokens, bytes.clone())).unwrap()))
            })
            .collect();
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let store = SnapshotStore::local(&folder, "a model").unwrap();
                let (tokens, parts, writing) = (&tokens, &parts, &writing);
                scope.spawn(move || {
                    let mut seen = 0;
                    while writing.load(Ordering::Relaxed) {
                        if let Some(bytes) = block_on(store.get(plan, tokens)).unwrap() {
                            assert!(Parts::of(&bytes) == *parts);
                            seen += 1;
                        }
                    }
                    seen
                })
            })
            .collect();
        let written = writers.into_iter().map(|writer| writer.join()).collect::<Vec<_>>();
        writing.store(false, Ordering::Relaxed);
        written.into_iter().for_each(|result| result.unwrap());
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u32>()
    });
    assert!(seen > 0);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing half written is left");
}

#[test]
fn a_store_that_cannot_be_used_is_told() {
    let gpu = gpu();
    let text = Text::normal(&mut generator(), &shape(), 300);
    let folder = folder("a file");
    std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
    std::fs::write(&folder, "no folder").unwrap();
    assert!(matches!(SnapshotStore::local(&folder, "a model"), Err(Error::Store { doing: "opening", place, .. }) if place.contains("a file")));
    std::fs::remove_file(&folder).unwrap();
    let store = SnapshotStore::local(&folder, "a model").unwrap();
    let (reader, _, bytes) = read(&gpu, plan(&gpu, Format::f16()), &text, 5);
    // A folder stands where the object would.
    let place = store.place(reader.cache.plan(), &[1; 5]);
    std::fs::create_dir_all(folder.join(place.as_ref()).join("in the way")).unwrap();
    let failed = block_on(store.put(reader.cache.plan(), &[1; 5], bytes)).unwrap_err();
    assert!(matches!(&failed, Error::Store { doing: "writing", place: at, .. } if *at == place.to_string()), "{failed}");
    std::fs::remove_dir_all(&folder).unwrap();
}
