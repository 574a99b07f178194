//! Prefixes of one cache: found by their tokens, shared at the cost of their pages once, read as if
//! each sequence had been appended by itself, and given back when room is wanted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rand::RngExt;
use rand::rngs::StdRng;
use std::sync::LazyLock;
use wgkv_testing::*;

/// One device, so that its kernels are compiled once.
static GPU: LazyLock<Gpu> = LazyLock::new(gpu);

fn shape() -> Shape {
    Shape { layers: 2, query_heads: 4, kv_heads: 2, head_dim: 64, rope: Rope::new(10_000.0, 64) }
}

fn planned(random: &mut StdRng, format: Format, protection: Protection, budget: Capacity) -> Plan {
    let order = (format.codec() == Codec::RotateKv).then(|| random_order(&shape(), &format, Reach::Global, random));
    learning(Plan::builder(shape(), format).protection(protection).capacity(budget), order.as_ref()).build(GPU.capability()).unwrap()
}

fn strict(random: &mut StdRng, budget: Capacity) -> Plan {
    planned(random, hadamard(Bits::Four, Bits::Two, 64), Protection::NONE, budget)
}

/// A reader of texts with an index of what it has read.
struct Sharing {
    reader: Reader,
    prefixes: PrefixIndex,
}

impl Sharing {
    fn new(plan: Plan) -> Self {
        Self { prefixes: PrefixIndex::new(&plan), reader: Reader::new(&GPU, plan) }
    }

    fn begin(&mut self, tokens: &[u32]) -> Begun {
        let prefixes = &mut self.prefixes;
        self.reader.recorded(|cache, encoder| prefixes.begin(cache, encoder, tokens))
    }

    fn remember(&mut self, sequence: Sequence, tokens: &[u32]) -> u32 {
        let prefixes = &mut self.prefixes;
        self.reader.recorded(|cache, encoder| prefixes.remember(cache, encoder, sequence, tokens))
    }

    fn make_room(&mut self, sequence: Sequence, tokens: u32) -> Admission {
        self.prefixes.make_room(&mut self.reader.cache, &[Chunk { sequence, tokens }]).unwrap()
    }

    fn end(&mut self, sequence: Sequence) {
        self.reader.cache.end(sequence).unwrap();
    }

    /// Makes a sequence that holds a text, not through the index.
    fn fresh(&mut self, text: &Text, tokens: usize) -> Sequence {
        let sequence = self.reader.cache.begin().unwrap();
        self.reader.store(sequence, text, tokens);
        sequence
    }

    fn free_pages(&self) -> u32 {
        self.reader.cache.check_pages().unwrap();
        self.reader.cache.free_pages()
    }
}

/// Returns the tokens of a text, or of one that differs from it from a place on.
fn tokens(count: u32, from: u32, other: u32) -> Vec<u32> {
    (0..count).map(|t| if t < from { t * 7 % 1000 } else { 1000 * other + t }).collect()
}

#[test]
fn shared_prefixes_cost_their_pages_once_and_read_as_ones_own() {
    use Bits::{Eight, Four, Three, Two};
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 420);
    // (format, protection, how the first text is read, how many of its tokens are remembered, and
    // how a control reads what is found)
    let cases = [
        (hadamard(Four, Two, 64), Protection::NONE, vec![300], 300, vec![100, 156]),
        (Format::f16(), Protection::default(), vec![100, 1, 155, 1], 257, vec![256]),
        (Format::aligned_f16(), Protection::NONE, vec![300], 300, vec![100, 156]),
        (rtn(Eight, Three, 32), protect(5, 0), vec![300], 300, vec![1, 255]),
        (centred(Four, Four, 64), protect(4, 128), vec![200, 56, 44], 300, vec![200, 56]),
        (hadamard(Four, Four, 64), protect(2, 40), vec![256, 1, 30], 256, vec![256]),
        (rotated(Two, Two, 64, 2), Protection::NONE, vec![300], 300, vec![100, 156]),
        (rotated(Four, Four, 64, 2), massive(4, 128), vec![128, 128, 20], 256, vec![128, 128]),
    ];
    for (format, protection, begin, remembered, alone) in cases {
        let found = alone.iter().sum::<usize>() as u32;
        let name = format!("{format}, {protection:?}");
        let plan = planned(random, format, protection, Capacity::tokens(7, 400));
        let (mut sharing, mut plain) = (Sharing::new(plan.clone()), Reader::new(&GPU, plan));
        let all = sharing.free_pages();
        let prompt = tokens(400, 400, 0);
        let begun = sharing.begin(&prompt);
        assert_eq!(begun.tokens, 0, "{name}: nothing is known yet");
        let mut read = 0;
        for chunk in begin {
            sharing.reader.store(begun.sequence, &text, chunk);
            read += chunk as u32;
            // Only what is held can be remembered.
            if read == remembered {
                assert_eq!(sharing.remember(begun.sequence, &prompt[..read as usize]), found, "{name}");
            }
        }
        sharing.end(begun.sequence);
        let kept = sharing.reader.cache.plan().packed(found) / 128;
        assert_eq!(all - sharing.free_pages(), kept, "{name}: what is kept has its pages");

        // Several at once, each with an end of its own.
        let mut sequences = Vec::new();
        for other in 1..=4 {
            let begun = sharing.begin(&tokens(300 + other, 270, other));
            assert_eq!(begun.tokens, found, "{name}");
            assert_eq!(sharing.reader.cache.tokens(begun.sequence), Ok(found));
            assert_eq!(all - sharing.free_pages(), kept, "{name}: {other} share it at the cost of one");
            sequences.push((begun.sequence, text.branch(random, &shape(), found as usize)));
        }
        let controls: Vec<_> = sequences
            .iter()
            .map(|(_, text)| {
                let control = plain.cache.begin().unwrap();
                // With a window, the way tokens arrive decides whether codes are made of a step's
                // own rows or of those kept in f16.
                alone.iter().for_each(|chunk| plain.store(control, text, *chunk));
                control
            })
            .collect();
        for chunk in [1, 90, 1] {
            for ((sequence, text), control) in sequences.iter().zip(&controls) {
                assert!(sharing.reader.read(*sequence, text, chunk) == plain.read(*control, text, chunk), "{name}: {chunk} more");
            }
        }
        // Every one took pages of its own beyond the shared ones, and gives them back.
        let own = sharing.reader.cache.plan().packed(found + 92).div_ceil(128) - kept;
        assert_eq!(all - sharing.free_pages(), kept + 4 * own, "{name}");
        sequences.iter().for_each(|(sequence, _)| sharing.end(*sequence));
        assert_eq!(all - sharing.free_pages(), kept, "{name}");
        let counters = PrefixCounters { begun: 5, hits: 4, tokens: 400 + 4 * 300 + 10, tokens_saved: 4 * u64::from(found), evictions: 0 };
        assert_eq!(sharing.prefixes.counters(), counters, "{name}");
        sharing.prefixes.clear(&mut sharing.reader.cache).unwrap();
        assert_eq!((sharing.free_pages(), sharing.prefixes.kept()), (all, 0), "{name}");
    }
}

#[test]
fn the_longest_prefix_is_found_and_none_that_differs() {
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 700);
    let mut sharing = Sharing::new(strict(random, Capacity::tokens(8, 640)));
    let long = tokens(640, 640, 0);
    let first = sharing.fresh(&text, 640);
    assert_eq!(sharing.remember(first, &long[..127]), 0, "less than a page");
    assert_eq!(sharing.prefixes.kept(), 0);
    assert_eq!(sharing.remember(first, &long[..300]), 256);
    // Another text, alike up to the middle of the second page.
    let other = tokens(400, 200, 1);
    let second = sharing.fresh(&text, 400);
    assert_eq!(sharing.remember(second, &other), 384);
    assert_eq!(sharing.prefixes.kept(), 2);
    let mut found = |tokens: &[u32]| {
        let begun = sharing.begin(tokens);
        sharing.end(begun.sequence);
        begun.tokens
    };
    let mut flipped = |at: usize| {
        let mut flipped = long.clone();
        flipped[at] ^= 1 << random.random_range(0..32);
        flipped
    };
    assert_eq!(
        [&long[..], &long[..300], &long[..257], &long[..256], &long[..129], &long[..128], &long[..1], &[]].map(&mut found),
        [256, 256, 256, 128, 128, 0, 0, 0]
    );
    assert_eq!([other.as_slice(), &other[..385], &other[..384]].map(&mut found), [384, 384, 256]);
    assert_eq!([flipped(0), flipped(127), flipped(128), flipped(255), flipped(256)].map(|tokens| found(&tokens)), [0, 0, 128, 128, 256]);
    assert_eq!(found(&[&long[128..256], &long[..300]].concat()), 0, "pages in another order");
    assert_eq!(found(&[&long[..128], &long[..300]].concat()), 128);

    // More of the same takes the place of less, and what is known is not kept twice.
    assert_eq!(sharing.remember(first, &long), 640);
    assert_eq!(sharing.remember(first, &long[..400]), 384);
    assert_eq!(sharing.prefixes.kept(), 2);
    let begun = sharing.begin(&long);
    assert_eq!(begun.tokens, 512, "the last token is left to be appended");
    sharing.free_pages();
}

#[test]
fn what_is_packed_by_now_is_not_found_as_what_it_was() {
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 700);
    let long = tokens(640, 640, 0);
    // (protection, tokens held, of which remembered, kept): with a window, one end of a page keeps
    // what was f16 then.
    for (format, protection, held, given, kept) in [
        (hadamard(Bits::Four, Bits::Four, 64), protect(4, 128), 600, 600, 512),
        (hadamard(Bits::Four, Bits::Four, 64), protect(4, 128), 600, 511, 0),
        (hadamard(Bits::Four, Bits::Four, 64), protect(4, 40), 300, 300, 0),
        (hadamard(Bits::Four, Bits::Four, 64), protect(4, 40), 384, 384, 384),
        (hadamard(Bits::Four, Bits::Four, 64), protect(4, 300), 290, 290, 256),
        (rotated(Bits::Four, Bits::Four, 64, 2), massive(4, 0), 384, 384, 384),
        (rotated(Bits::Four, Bits::Four, 64, 2), massive(4, 0), 385, 384, 0),
    ] {
        let mut sharing = Sharing::new(planned(random, format, protection, Capacity::tokens(4, 640)));
        let name = format!("{format}, {protection:?}: {given} of {held}");
        let sequence = sharing.fresh(&text, held);
        assert_eq!(sharing.remember(sequence, &long[..given]), kept, "{name}");
        assert_eq!(sharing.begin(&long).tokens, kept, "{name}");
        if kept > 0 && protection.window != 300 {
            assert_eq!(sharing.begin(&long[..kept as usize]).tokens, 0, "{name}: a page less is not had");
        }
        // A sequence that was cut back keeps packed what was f16 when it was as long for the first
        // time.
        sharing.reader.recorded(|cache, encoder| cache.truncate(encoder, sequence, 200));
        assert_eq!(sharing.remember(sequence, &tokens(200, 0, 1)), if protection.window == 300 { 128 } else { 0 }, "{name}");
        sharing.free_pages();
    }
}

#[test]
fn the_least_recently_used_are_given_back_when_room_is_wanted() {
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 700);
    // Eight pages, four sequences.
    let mut sharing = Sharing::new(strict(random, Capacity::tokens(4, 256)));
    let texts: Vec<Vec<u32>> = (0..4).map(|other| tokens(300, 0, other + 1)).collect();
    for tokens in &texts[..3] {
        let begun = sharing.begin(tokens);
        sharing.reader.store(begun.sequence, &text, 256);
        assert_eq!(sharing.remember(begun.sequence, &tokens[..256]), 256);
        sharing.end(begun.sequence);
    }
    assert_eq!((sharing.prefixes.kept(), sharing.free_pages()), (3, 2));

    // The first is used again and grows; the place after it is the last.
    let first = sharing.begin(&texts[0]);
    assert_eq!(first.tokens, 256);
    sharing.reader.store(first.sequence, &text, 10);
    // A place is wanted: the second goes, as it was used before the others.
    let fourth = sharing.begin(&texts[3]);
    assert_eq!((fourth.tokens, sharing.prefixes.kept(), sharing.prefixes.counters().evictions), (0, 2, 1));
    assert_eq!(sharing.free_pages(), 3);
    // Room that is there already costs nothing; room that cannot be had neither.
    assert_eq!(sharing.make_room(fourth.sequence, 384), Admission { pages_needed: 3, pages_free: 3 });
    assert_eq!(sharing.make_room(fourth.sequence, 5 * 128 + 1), Admission { pages_needed: 6, pages_free: 3 });
    assert_eq!(sharing.prefixes.kept(), 2);
    // Of the first's pages none would be free, since the sequence holds them, so the third goes.
    assert_eq!(sharing.make_room(fourth.sequence, 5 * 128), Admission { pages_needed: 5, pages_free: 5 });
    assert_eq!((sharing.prefixes.kept(), sharing.prefixes.counters().evictions), (1, 2));
    sharing.reader.store(fourth.sequence, &text, 640);
    assert!(!sharing.make_room(first.sequence, 128).fits());
    sharing.end(fourth.sequence);

    // All places in use by others but the kept one's: it becomes the sequence that was asked for.
    let others: Vec<Sequence> = (0..2).map(|_| sharing.reader.cache.begin().unwrap()).collect();
    let mut plain = Reader::new(&GPU, sharing.reader.cache.plan().clone());
    let control = plain.cache.begin().unwrap();
    plain.store(control, &text, 128);
    let begun = sharing.begin(&texts[0][..200]);
    assert_eq!((begun.tokens, sharing.prefixes.kept(), sharing.prefixes.counters().evictions), (128, 0, 3));
    assert!(sharing.reader.read(begun.sequence, &text, 30) == plain.read(control, &text, 30));
    // Then there is no place to keep anything in, and none to begin in.
    assert_eq!(sharing.remember(begun.sequence, &texts[0][..150]), 0);
    let mut encoder = GPU.device().create_command_encoder(&Default::default());
    let before = sharing.prefixes.counters();
    let refused = sharing.prefixes.begin(&mut sharing.reader.cache, &mut encoder, &texts[1]);
    assert_eq!((refused, sharing.prefixes.counters()), (Err(Error::Sequences { have: 4 }), before));
    // What the sequence that is left holds is what it was.
    others.into_iter().chain([begun.sequence]).for_each(|sequence| sharing.end(sequence));
    let control = plain.cache.begin().unwrap();
    plain.store(control, &text, 256);
    plain.store(control, &text, 10);
    assert!(sharing.reader.read(first.sequence, &text, 30) == plain.read(control, &text, 30));
}

#[test]
fn what_does_not_fit_the_cache_is_refused_and_nothing_changes() {
    let random = &mut generator();
    let text = Text::normal(random, &shape(), 300);
    let plan = strict(random, Capacity::tokens(3, 256));
    let mut sharing = Sharing::new(plan.clone());
    let long = tokens(300, 300, 0);
    let sequence = sharing.fresh(&text, 200);
    let mut encoder = GPU.device().create_command_encoder(&Default::default());
    let refused = sharing.prefixes.remember(&mut sharing.reader.cache, &mut encoder, sequence, &long[..201]);
    assert_eq!(refused, Err(Error::Range { first: 0, end: 201, have: 200 }));
    assert_eq!(sharing.remember(sequence, &long[..200]), 128);
    // Another cache, and a sequence that ended.
    let mut foreign = Cache::new(&GPU, plan).unwrap();
    let there = foreign.begin().unwrap();
    let unknown = |sequence: Sequence| Error::UnknownSequence { slot: sequence.slot() };
    assert_eq!(sharing.prefixes.begin(&mut foreign, &mut encoder, &long), Err(Error::UnknownSequence { slot: 1 }));
    assert_eq!(sharing.prefixes.remember(&mut sharing.reader.cache, &mut encoder, there, &[]), Err(unknown(there)));
    sharing.end(sequence);
    assert_eq!(sharing.prefixes.remember(&mut sharing.reader.cache, &mut encoder, sequence, &long[..128]), Err(unknown(sequence)));
    assert_eq!(sharing.prefixes.make_room(&mut sharing.reader.cache, &[Chunk { sequence, tokens: 1 }]), Err(unknown(sequence)));
    assert_eq!((foreign.tokens(there), foreign.free_pages(), sharing.prefixes.kept()), (Ok(0), 6, 1));
    assert_eq!(sharing.begin(&long).tokens, 128);
}
