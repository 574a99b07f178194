//! `SnapshotStore` against a server that speaks S3: whole or not at all, whoever dies; errors that
//! say what is wrong, in bounded time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod server;
use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use pollster::block_on;
use server::*;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use wgkv::*;
use wgkv_testing::*;

/// One device, so that its kernels are compiled once.
static GPU: LazyLock<Gpu> = LazyLock::new(gpu);

/// The client's runtime.
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());

/// What the client would encrypt with.
static CRYPTOGRAPHY: LazyLock<()> = LazyLock::new(|| rustls::crypto::ring::default_provider().install_default().expect("the first to be installed"));

const TOKENS: u32 = 300;

/// What the client may do: how many requests, and how long for each.
const RETRIES: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(2);

/// All requests of a call, and the pauses between them, of 100 ms at most. The rest is for a slow
/// machine.
const PATIENCE: Duration = Duration::from_secs(4 * 2 + 5);

fn shape() -> Shape {
    Shape { layers: 2, query_heads: 2, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

fn builder(port: u16) -> AmazonS3Builder {
    let pause = BackoffConfig { init_backoff: Duration::from_millis(20), max_backoff: Duration::from_millis(100), base: 2.0 };
    AmazonS3Builder::new()
        .with_endpoint(format!("http://127.0.0.1:{port}"))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(BUCKET)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout(TIMEOUT).with_connect_timeout(TIMEOUT))
        .with_retry(RetryConfig { backoff: pause, max_retries: RETRIES, retry_timeout: Duration::from_secs(20) })
}

fn store_of(builder: AmazonS3Builder) -> SnapshotStore {
    *CRYPTOGRAPHY;
    SnapshotStore::new(Arc::new(builder.build().unwrap()), "a folder/of theirs", "a model")
}

fn store(port: u16) -> SnapshotStore {
    store_of(builder(port))
}

/// What a call to a store comes to, in the client's runtime.
fn wait<T>(call: impl Future<Output = T>) -> T {
    RUNTIME.block_on(call)
}

/// A text, a cache that has read it, and the snapshot of that.
struct Saved {
    text: Text,
    reader: Reader,
    sequence: Sequence,
    bytes: Vec<u8>,
}

impl Saved {
    fn new() -> Self {
        let text = Text::normal(&mut generator(), &shape(), TOKENS as usize + 10);
        let plan = Plan::builder(shape(), Format::f16()).capacity(Capacity::tokens(2, TOKENS + 10)).build(GPU.capability()).unwrap();
        let mut reader = Reader::new(&GPU, plan);
        let sequence = reader.cache.begin().unwrap();
        reader.store(sequence, &text, TOKENS as usize);
        let bytes = block_on(reader.cache.save(sequence)).unwrap();
        Self { text, reader, sequence, bytes }
    }

    fn plan(&self) -> &Plan {
        self.reader.cache.plan()
    }

    /// The bytes, loaded beside the sequence that they are of, go on as it does, which is what it
    /// was.
    fn loads(&mut self, bytes: &[u8]) {
        assert!(Parts::of(&block_on(self.reader.cache.save(self.sequence)).unwrap()) == Parts::of(&self.bytes));
        let loaded = self.reader.recorded(|cache, encoder| cache.load(encoder, bytes));
        assert!(self.reader.read(loaded, &self.text, 3) == self.reader.read(self.sequence, &self.text, 3));
        self.reader.cache.end(loaded).unwrap();
        let first = self.sequence;
        self.sequence = self.reader.recorded(|cache, encoder| cache.load(encoder, bytes));
        self.reader.cache.end(first).unwrap();
    }
}

/// Tokens that are of one number.
fn tokens(of: u32) -> Vec<u32> {
    vec![of; TOKENS as usize]
}

/// The message of a call that failed to do this, within the time that a client has.
#[track_caller]
fn failed<T>(wanted: &str, started: Instant, result: Result<T>) -> String {
    let took = started.elapsed();
    assert!(took < PATIENCE, "took {took:?}");
    match result {
        Err(Error::Store { doing, message, .. }) if doing == wanted => message,
        Err(other) => panic!("{wanted} must fail, but {other}"),
        Ok(_) => panic!("{wanted} must fail"),
    }
}

#[test]
fn prefixes_are_found_and_damage_is_refused() {
    let server = Server::start("found");
    let mut saved = Saved::new();
    let (store, plan) = (store(server.port), saved.plan().clone());
    assert_eq!(wait(store.get(&plan, &tokens(1))), Ok(None));
    assert_eq!(wait(store.has(&plan, &tokens(1))), Ok(false));
    wait(store.put(&plan, &tokens(1), saved.bytes.clone())).unwrap();
    assert_eq!(wait(store.has(&plan, &tokens(1))), Ok(true));
    assert_eq!(wait(store.get(&plan, &tokens(2))), Ok(None));
    let found = wait(store.get(&plan, &tokens(1))).unwrap().unwrap();
    assert!(found == saved.bytes);
    saved.loads(&found);

    let file = server.file(store.place(&plan, &tokens(1)).as_ref());
    let whole = std::fs::read(&file).unwrap();
    assert!(whole == saved.bytes, "stored as it is");
    for at in [8, 20, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        for damaged in [&damaged[..], &whole[..at], &[]] {
            std::fs::write(&file, damaged).unwrap();
            assert!(matches!(wait(store.get(&plan, &tokens(1))), Err(Error::Mismatch { of: Thing::Snapshot, .. })));
            let mut encoder = encoder(&GPU);
            assert!(matches!(saved.reader.cache.load(&mut encoder, damaged), Err(Error::Mismatch { of: Thing::Snapshot, .. })));
        }
    }
    wait(store.put(&plan, &tokens(1), whole)).unwrap();
    let repaired = wait(store.get(&plan, &tokens(1))).unwrap().unwrap();
    saved.loads(&repaired);
}

#[test]
fn many_write_at_once_and_nobody_sees_a_part() {
    const PREFIXES: u32 = 3;
    let server = Server::start("at once");
    // Each prefix has a snapshot of its own, and the order of the metadata differs from save to
    // save.
    let saved: Vec<Saved> = (0..PREFIXES).map(|_| Saved::new()).collect();
    let plan = saved[0].plan();
    let (writing, seen) = (AtomicBool::new(true), [const { AtomicU32::new(0) }; PREFIXES as usize]);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2 * PREFIXES)
            .map(|n| {
                // Two to a prefix, and each writes all of them in the end.
                let (store, saved) = (store(server.port), &saved);
                scope.spawn(move || {
                    for prefix in (0..15).map(|round| if round < 10 { n } else { n + round } % PREFIXES) {
                        let Saved { reader, sequence, .. } = &saved[prefix as usize];
                        let bytes = block_on(reader.cache.save(*sequence)).unwrap();
                        wait(store.put(plan, &tokens(prefix), bytes)).unwrap();
                    }
                })
            })
            .collect();
        for n in 0..PREFIXES {
            let (store, saved, writing, seen) = (store(server.port), &saved, &writing, &seen);
            scope.spawn(move || {
                for prefix in (n..).map(|round| round % PREFIXES).take_while(|_| writing.load(Ordering::Relaxed)) {
                    if let Some(bytes) = wait(store.get(plan, &tokens(prefix))).unwrap() {
                        assert!(Parts::of(&bytes) == Parts::of(&saved[prefix as usize].bytes));
                        seen[prefix as usize].fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let written = writers.into_iter().map(|writer| writer.join()).collect::<Vec<_>>();
        writing.store(false, Ordering::Relaxed);
        written.into_iter().for_each(|result| result.unwrap());
    });
    println!("seen while it was written: {seen:?}");
    assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) > 0));
    let store = store(server.port);
    for (prefix, mut saved) in (0..).zip(saved) {
        let bytes = wait(store.get(saved.plan(), &tokens(prefix))).unwrap().unwrap();
        saved.loads(&bytes);
    }
}

#[test]
fn a_server_that_dies_in_a_put_shows_no_part_of_it() {
    let mut server = Server::start("put");
    let line = Line::to(server.port);
    let mut saved = Saved::new();
    let (put, direct, plan) = (store(line.port), store(server.port), saved.plan().clone());
    let before = Saved::new();
    wait(direct.put(&plan, &tokens(1), before.bytes.clone())).unwrap();
    // Where there was nothing, and where there was a snapshot before.
    for prefix in [0, 1] {
        let tokens = tokens(prefix);
        let old = (prefix == 1).then_some(&before.bytes);
        line.hold_after(Way::ToServer, saved.bytes.len() / 2);
        let (started, result) = std::thread::scope(|scope| {
            let started = Instant::now();
            let putting = scope.spawn(|| wait(put.put(&plan, &tokens, saved.bytes.clone())));
            line.wait_until_held();
            assert!(wait(direct.get(&plan, &tokens)).unwrap().as_ref() == old, "half of it is there, and nobody sees it");
            server.kill();
            line.cut();
            (started, putting.join().unwrap())
        });
        failed("writing", started, result);
        // Once more from the beginning, where nobody answers: no more requests than were allowed.
        line.connections();
        let started = Instant::now();
        failed("writing", started, wait(put.put(&plan, &tokens, saved.bytes.clone())));
        let connections = line.connections();
        assert!((1..=1 + RETRIES).contains(&connections), "{connections}");
        // The same where the port is closed.
        let started = Instant::now();
        let message = failed("writing", started, wait(direct.put(&plan, &tokens, saved.bytes.clone())));
        assert!(message.contains(&format!("after {RETRIES} retries")), "{message}");
        let started = Instant::now();
        failed("reading", started, wait(direct.get(&plan, &tokens)));
        let started = Instant::now();
        failed("looking for", started, wait(direct.has(&plan, &tokens)));

        server.restart();
        assert_eq!(wait(direct.has(&plan, &tokens)), Ok(old.is_some()));
        assert!(wait(direct.get(&plan, &tokens)).unwrap().as_ref() == old);
        wait(put.put(&plan, &tokens, saved.bytes.clone())).unwrap();
        let found = wait(direct.get(&plan, &tokens)).unwrap().unwrap();
        saved.loads(&found);
    }
}

#[test]
fn a_server_that_dies_in_a_get_gives_no_part_of_it() {
    let mut server = Server::start("get");
    let line = Line::to(server.port);
    let mut saved = Saved::new();
    let (get, plan, tokens) = (store(line.port), saved.plan().clone(), tokens(1));
    wait(get.put(&plan, &tokens, saved.bytes.clone())).unwrap();
    for comes_back in [false, true] {
        line.hold_after(Way::ToClient, saved.bytes.len() / 2);
        let (started, result) = std::thread::scope(|scope| {
            let started = Instant::now();
            let getting = scope.spawn(|| wait(get.get(&plan, &tokens)));
            line.wait_until_held();
            server.kill();
            if comes_back {
                server.restart();
            }
            line.cut();
            (started, getting.join().unwrap())
        });
        let found = if comes_back {
            // The client asks for the rest.
            result
        } else {
            failed("reading", started, result);
            server.restart();
            wait(get.get(&plan, &tokens))
        };
        saved.loads(&found.unwrap().unwrap());
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let server = Server::start("silent");
    let line = Line::to(server.port);
    let mut saved = Saved::new();
    let (store, plan, tokens) = (store(line.port), saved.plan().clone(), tokens(1));
    line.hold_after(Way::ToServer, 1);
    let started = Instant::now();
    failed("writing", started, wait(store.put(&plan, &tokens, saved.bytes.clone())));
    let started = Instant::now();
    failed("reading", started, wait(store.get(&plan, &tokens)));
    line.cut();
    wait(store.put(&plan, &tokens, saved.bytes.clone())).unwrap();
    let found = wait(store.get(&plan, &tokens)).unwrap().unwrap();
    saved.loads(&found);
}

#[test]
fn what_is_wrong_with_an_account_is_told() {
    let server = Server::start("wrong");
    let saved = Saved::new();
    let (plan, tokens) = (saved.plan(), tokens(1));
    for (builder, codes) in [
        (builder(server.port).with_access_key_id("somebody else"), ["403 Forbidden", "NotSignedUp"]),
        (builder(server.port).with_secret_access_key("a guess"), ["403 Forbidden", "SignatureDoesNotMatch"]),
        (builder(server.port).with_bucket_name("nowhere"), ["404 Not Found", "NoSuchBucket"]),
    ] {
        let store = store_of(builder);
        let started = Instant::now();
        let put = failed("writing", started, wait(store.put(plan, &tokens, saved.bytes.clone())));
        let get = failed("reading", started, wait(store.get(plan, &tokens)));
        assert!(codes.iter().all(|code| put.contains(code) && get.contains(code)), "{put}\n{get}");
        // No text comes with the answer to this, so that a bucket that is not there is one that has
        // nothing.
        match wait(store.has(plan, &tokens)) {
            Ok(false) => assert_eq!(codes[1], "NoSuchBucket"),
            has => assert!(failed("looking for", started, has).contains(codes[0])),
        }
    }
}
