//! What is reported to `tracing` agrees with the cache's own numbers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use wgkv_testing::*;

/// Sums of the numbers in events, as `event.field`, and how often each span was entered.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<BTreeMap<String, u64>>>);

impl Told {
    fn add(&self, name: String, number: u64) {
        *self.0.lock().unwrap().entry(name).or_default() += number;
    }

    fn of(&self, name: &str) -> u64 {
        self.0.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

/// An event's message and numbers.
#[derive(Default)]
struct Fields(String, Vec<(&'static str, u64)>);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }

    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        self.1.push((field.name(), value));
    }

    fn record_bool(&mut self, field: &tracing::field::Field, value: bool) {
        self.1.push((field.name(), value.into()));
    }
}

impl<S: tracing::Subscriber> Layer<S> for Told {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "wgkv" {
            let mut fields = Fields::default();
            event.record(&mut fields);
            self.add(fields.0.clone(), 1);
            fields.1.iter().for_each(|(name, number)| self.add(format!("{}.{name}", fields.0), *number));
        }
    }

    fn on_new_span(&self, attributes: &tracing::span::Attributes<'_>, _: &tracing::span::Id, _: Context<'_, S>) {
        if attributes.metadata().target() == "wgkv" {
            self.add(format!("span {}", attributes.metadata().name()), 1);
        }
    }
}

#[test]
fn spans_and_events_count_what_was_done() {
    let told = Told::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(told.clone()));
    let gpu = gpu();
    let shape = Shape { layers: 2, query_heads: 2, kv_heads: 1, head_dim: 64, rope: Rope::new(10_000.0, 64) };
    let plan = Plan::builder(shape.clone(), hadamard(Bits::Four, Bits::Four, 64))
        .protection(Protection::NONE)
        .capacity(Capacity::tokens(3, 384))
        .build(gpu.capability())
        .unwrap();
    let text = Text::normal(&mut generator(), &shape, 400);
    let (mut reader, mut prefixes) = (Reader::new(&gpu, plan.clone()), PrefixIndex::new(&plan));
    let tokens: Vec<u32> = (0..300).collect();
    for _ in 0..3 {
        let begun = reader.recorded(|cache, encoder| prefixes.begin(cache, encoder, &tokens));
        reader.read(begun.sequence, &text, 300 - begun.tokens as usize);
        reader.recorded(|cache, encoder| prefixes.remember(cache, encoder, begun.sequence, &tokens));
        reader.cache.end(begun.sequence).unwrap();
    }
    let sequence = reader.cache.begin().unwrap();
    reader.store(sequence, &text, 200);
    let bytes = pollster::block_on(reader.cache.save(sequence)).unwrap();
    reader.recorded(|cache, encoder| cache.load(encoder, &bytes));
    // All places are taken, so the prefix goes.
    reader.recorded(|cache, encoder| prefixes.begin(cache, encoder, &[1]));

    let counters = prefixes.counters();
    assert_eq!(counters, PrefixCounters { begun: 4, hits: 2, tokens: 901, tokens_saved: 512, evictions: 1 });
    let numbers = [
        ("cache", 1),
        ("cache.pages", plan.pages().into()),
        ("cache.bytes", plan.cost().cache() + plan.cost().scratch),
        ("begun", counters.begun),
        ("begun.hit", counters.hits),
        ("begun.tokens", counters.tokens),
        ("begun.tokens_saved", counters.tokens_saved),
        ("evicted", counters.evictions),
        ("grown.tokens", 300 + 44 + 44 + 200),
        ("grown.pages", 3 + 1 + 1 + 2),
        ("saved.tokens", 200),
        ("saved.bytes", bytes.len() as u64),
        ("loaded.bytes", bytes.len() as u64),
        ("loaded.pages", 2),
        ("span step", 4),
        ("span append", 2 * 4),
        ("span attend", 2 * 3),
        ("span fork", 3),
        ("lost", 0),
    ];
    for (name, number) in numbers {
        assert_eq!(told.of(name), number, "{name}");
    }
    gpu.report_loss("gone");
    gpu.report_loss("again");
    assert_eq!(told.of("lost"), 1);
}
