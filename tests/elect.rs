//! `elect` finds the tokens of a prompt that stay f16 in a layer: those that hold the largest
//! magnitudes of the residual stream, as RotateKV (2501.16383, section 4.3) does: entries are
//! counted, not tokens, and the tokens that hold them are kept once.
//!
//! - Planted entries give exactly the planted tokens, by sequence, wherever in the prompt they are;
//!   kernel and twin agree bit for bit.
//! - Of equal magnitudes the earlier wins; a number that is not finite counts as zero; zeros elect
//!   nobody.
//! - A prompt in chunks keeps one list; a later token takes a free row, and no token loses its row.
//! - A token that decodes elects nobody. What is cut off is void. A plan that elects refuses keys
//!   before the election.
//! - What an elected token is read back as is its f16 row, and no other token's is.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::kernel::elect::ElectParams;
use wgkv::low_level::reference::{self, Constants, cached};
use wgkv_testing::*;

/// Error of a prefill's outputs over f16 rows alone, against f64: f32's, as tests/attend_prefill.rs
/// derives it for rows in f32.
const PREFILL_ERROR: f64 = 2e-4;

/// The same by cooperative matrices, for which queries and weights are rounded to halves: as
/// MATRIX_OUTPUT_ERROR of what prefills is derived, where keys and values are f16 already.
const MATRIX_ERROR: f64 = 3.5e-3;

/// No token has the row.
const NOBODY: u32 = u32::MAX;

fn format() -> Format {
    rotated(Bits::Four, Bits::Four, 64, 1)
}

fn walk(gpu: &Gpu, why: &'static str, sinks: u32, steps: Vec<Vec<(usize, u32)>>) -> Walk {
    Walk::new(gpu, case(why, 64, 1, 1, format()).protection(massive(sinks, 0)).steps(steps))
}

/// Rows of a residual stream of small numbers, `width` wide, with larger ones planted: (row,
/// channel, number).
fn planted(walk: &mut Walk, rows: u32, width: u32, plants: &[(u32, u32, f32)]) -> Vec<f32> {
    let mut numbers: Vec<f32> = (0..rows * width).map(|_| (0.1 * normal(&mut walk.random)).clamp(-0.9, 0.9)).collect();
    for (row, channel, number) in plants {
        numbers[(row * width + channel) as usize] = *number;
    }
    numbers
}

/// Takes a step with this residual stream and compares the marks with the twin's.
fn take(walk: &mut Walk, chunks: &[(usize, u32)], residual: Vec<f32>) -> Taken {
    let rows = walk.draw(chunks.iter().map(|(_, n)| n).sum());
    let taken = walk.take_all(chunks, rows, residual, true);
    let words = taken.step.words();
    let width = taken.residual.numbers.len() as u32 / taken.step.rows();
    let [(blocks_at, blocks), (chunks_at, count)] = words.elect;
    let (mut candidates, mut marks) = (vec![POISON; (2 * blocks * walk.constants.sinks) as usize], taken.before.marks.clone());
    for (merge, items_at, items) in [(false, blocks_at, blocks), (true, chunks_at, count)] {
        let constants = Constants { merge, ..walk.constants };
        let params = ElectParams { items_at, items, width, pad: 0 };
        reference::elect(&params, &constants, &words.tables, &taken.residual.words, &mut candidates, &mut marks);
    }
    assert!(taken.after.marks == marks, "{}: kernel and twin elect others. WGKV_SEED={}", walk.case.why, walk.seed);
    assert!(walk.output(&taken).iter().all(|x| x.is_finite()), "{}: attention is finite", walk.case.why);
    taken
}

/// The tokens that have a row, in ascending order.
fn elected(walk: &Walk, sequence: usize) -> Vec<u32> {
    let marks = walk.state().marks;
    let at = cached::elected(&walk.constants, walk.sequences[sequence].slot());
    let mut tokens: Vec<u32> = marks[at..at + walk.constants.sinks as usize].iter().copied().filter(|t| *t != NOBODY).collect();
    tokens.sort_unstable();
    tokens
}

#[test]
fn planted_entries_elect_exactly_their_tokens() {
    let gpu = gpu();
    for element in [Element::F32, Element::F16, Element::Bf16] {
        // Four entries, of which two are of one token: three sinks. The second sequence has others;
        // 110 is far from the first.
        let mut walk = walk(&gpu, "two sequences", 4, vec![vec![(0, 150), (1, 40)]]);
        if element != Element::F32 {
            let case = walk.case.clone().element(element).why("rows of 16 bits");
            walk = Walk::new(&gpu, case);
        }
        let plants = [(110, 3, 50.0), (110, 7, -60.0), (0, 2, 40.0), (77, 0, -30.0), (150 + 3, 1, 9.0), (150 + 39, 9, 8.0), (150 + 21, 5, -7.0), (150, 0, 6.0)];
        let residual = planted(&mut walk, 190, 10, &plants);
        let taken = take(&mut walk, &[(0, 150), (1, 40)], residual);
        assert_eq!(elected(&walk, 0), [0, 77, 110], "{element:?}");
        assert_eq!(elected(&walk, 1), [0, 3, 21, 39], "{element:?}");
        // Their rows come back as halves of what came, keys and values; the neighbours' as codes.
        let exact = |x: f32, y: f32| (x - y).abs() <= y.abs() / 2048.0 + 1e-5;
        let record = &records(&taken)[0];
        for token in [0, 76, 77, 78, 109, 110, 111] {
            let at = token as usize * 64;
            let kept = f16_row(&walk, &taken.after, record, 0, token);
            assert_eq!(kept.is_some(), [0, 77, 110].contains(&token));
            let [keys, values] = walk.dequantize(0);
            let plain: Vec<f64> = taken.keys.numbers[at..at + 64].iter().map(|x| f64::from(*x)).collect();
            let turned = reference::turn_exact(&walk.case.shape.rope, &plain, token);
            assert_eq!(keys[at..at + 64].iter().zip(&turned).all(|(a, b)| exact(*a, *b as f32)), kept.is_some(), "the key of token {token}");
            if let Some(row) = kept {
                let halves: Vec<f32> = taken.after.protected_rows[row..row + 32].iter().flat_map(|w| reference::half::unpack(*w)).collect();
                assert!(keys[at..at + 64] == halves, "the key of token {token} is its f16 row bit for bit");
                let rotated = reference::rotate_exact(&taken.values.numbers[at..at + 64].iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
                let largest = rotated.iter().fold(0.0_f64, |l, x| l.max(x.abs())) as f32;
                assert!(
                    values[at..at + 64].iter().zip(&taken.values.numbers[at..]).all(|(a, b)| (a - b).abs() <= largest / 256.0),
                    "the value of token {token}"
                );
            }
        }
    }
}

#[test]
fn a_token_is_elected_by_its_numbers_before_any_norm() {
    // The same row, ten times as large, gets on the list; after a norm both would be alike.
    let gpu = gpu();
    let mut walk = walk(&gpu, "a scaled row", 3, vec![vec![(0, 130), (1, 130)]]);
    let plants = [(10, 0, 2.0), (10, 1, 3.0), (64, 2, 1.5), (100, 3, 1.2)];
    let plain = planted(&mut walk, 130, 8, &plants);
    let mut scaled = plain.clone();
    scaled[100 * 8..101 * 8].iter_mut().for_each(|x| *x *= 10.0);
    take(&mut walk, &[(0, 130)], plain);
    take(&mut walk, &[(1, 130)], scaled);
    assert_eq!(elected(&walk, 0), [10, 64]);
    // Token 100 now holds 12 and whatever else of its row comes near; token 10's two are behind it
    // at the most.
    assert!(elected(&walk, 1).contains(&100));
    assert_ne!(elected(&walk, 0), elected(&walk, 1));
}

#[test]
fn of_equal_magnitudes_the_earlier_number_wins_and_those_not_finite_count_as_zero() {
    let gpu = gpu();
    let mut walk = walk(&gpu, "ties", 4, vec![vec![(0, 300)], vec![(1, 100)], vec![(2, 5)]]);
    // Five entries of one magnitude, of either sign: the last of them is left out. Blocks of 5
    // tokens each.
    let plants = [(3, 1, 7.0), (8, 5, -7.0), (9, 0, 7.0), (200, 3, -7.0), (299, 3, 7.0), (5, 0, f32::NAN), (6, 1, f32::INFINITY), (7, 2, f32::NEG_INFINITY)];
    let residual = planted(&mut walk, 300, 6, &plants);
    take(&mut walk, &[(0, 300)], residual);
    assert_eq!(elected(&walk, 0), [3, 8, 9, 200]);
    // All magnitudes alike: the first entries are the first token's.
    take(&mut walk, &[(1, 100)], vec![-2.5; 600]);
    assert_eq!(elected(&walk, 1), [0]);
    // Nothing but zeros and numbers that are not finite: nobody.
    take(&mut walk, &[(2, 5)], [0.0, f32::NAN, -0.0, f32::INFINITY, 0.0, f32::NAN].repeat(5));
    assert_eq!(elected(&walk, 2), [] as [u32; 0]);
}

#[test]
fn a_prompt_in_chunks_keeps_one_list_and_nobody_loses_a_row() {
    let gpu = gpu();
    let mut walk = walk(&gpu, "chunks", 3, vec![vec![(0, 40)], vec![(0, 1)], vec![(0, 70), (1, 2)], vec![(0, 30)], vec![(0, 64)]]);
    let residual = planted(&mut walk, 40, 6, &[(4, 1, 10.0), (4, 2, 11.0), (30, 3, 9.0)]);
    take(&mut walk, &[(0, 40)], residual);
    assert_eq!(elected(&walk, 0), [4, 30]);
    // A token that decodes, however large: nothing to elect, and nothing recorded.
    let rows = walk.draw(1);
    let before = walk.state().marks;
    let decode = walk.take_all(&[(0, 1)], rows, vec![1e9; 6], true);
    assert!(decode.step.words().elect == [(0, 0), (0, 0)] && walk.state().marks == before, "a token that decodes elects nobody");
    // Smaller than the three largest so far: not elected. Larger: the one free row. (Token 41 is
    // the chunk's first.)
    let residual = planted(&mut walk, 72, 6, &[(5, 0, 8.0), (6, 0, 8.5), (70, 0, 5.0), (71, 0, 6.0)]);
    take(&mut walk, &[(0, 70), (1, 2)], residual);
    assert_eq!(elected(&walk, 0), [4, 30]);
    assert_eq!(elected(&walk, 1), [0, 1]);
    let residual = planted(&mut walk, 30, 6, &[(20, 0, 100.0), (21, 0, 90.0), (22, 0, 80.0)]);
    take(&mut walk, &[(0, 30)], residual);
    assert_eq!(elected(&walk, 0), [4, 30, 111 + 20], "the largest takes the free row, and the others find none");
    let residual = planted(&mut walk, 64, 6, &[(1, 0, 1000.0), (2, 0, 2000.0), (3, 0, 3000.0)]);
    take(&mut walk, &[(0, 64)], residual);
    assert_eq!(elected(&walk, 0), [4, 30, 131], "none loses its row");
}

#[test]
fn short_prompts_and_full_ones_work() {
    let gpu = gpu();
    let mut walk = walk(&gpu, "fewer tokens than rows", 20, vec![vec![(0, 7), (1, 1)], vec![(1, 2), (0, 1)], vec![(2, 19)], vec![(2, 1)]]);
    // Seven tokens of four numbers: at most 20 of 28 entries, so every token may be a sink, and no
    // page is needed by attention.
    let residual: Vec<f32> = (0..7).flat_map(|t| [3.0 + t as f32, 2.0, 1.0, 0.01]).chain([9.0; 4]).collect();
    take(&mut walk, &[(0, 7), (1, 1)], residual);
    assert_eq!(elected(&walk, 0), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(elected(&walk, 1), [] as [u32; 0], "a first chunk of one token decodes");
    let residual = planted(&mut walk, 3, 4, &[(0, 0, 3.0)]);
    take(&mut walk, &[(1, 2), (0, 1)], residual);
    assert!(elected(&walk, 1).iter().all(|t| [1, 2].contains(t)) && elected(&walk, 1).contains(&1));
    // All tokens sinks, in two chunks: attention reads nothing but f16 rows until a token decodes.
    let residual: Vec<f32> = (0..19).flat_map(|t| [5.0 + t as f32, 0.0]).collect();
    let taken = take(&mut walk, &[(2, 19)], residual);
    assert_eq!(elected(&walk, 2), (0..19).collect::<Vec<u32>>());
    let want = exact_over_stored(&walk, &taken, 2, 0, 19);
    let worst = walk.output(&taken).iter().zip(&want).fold(0.0, |most, (a, b)| (f64::from(*a) - b).abs().max(most));
    let most = if walk.plan().matrices() { MATRIX_ERROR } else { PREFILL_ERROR };
    assert!(worst < most, "a prompt of sinks alone: an output is off by {worst}. WGKV_SEED={}", walk.seed);
    let taken = walk.take(&[(2, 1)], true);
    let want = exact_over_stored(&walk, &taken, 2, 0, 1);
    let error = relative_rms(&walk.output(&taken), &want);
    assert!(error < DECODE_RMS, "a page of which one token is no sink: relative error {error}. WGKV_SEED={}", walk.seed);
}

#[test]
fn what_is_cut_off_is_void() {
    let gpu = gpu();
    let mut walk = walk(&gpu, "truncation", 3, vec![vec![(0, 200)], vec![(0, 1)], vec![(0, 100)]]);
    let residual = planted(&mut walk, 200, 6, &[(150, 0, 100.0), (20, 0, 50.0), (21, 0, 40.0)]);
    take(&mut walk, &[(0, 200)], residual);
    assert_eq!(elected(&walk, 0), [20, 21, 150]);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    walk.cache.truncate(&mut encoder, walk.sequences[0], 140).unwrap();
    gpu.queue().submit([encoder.finish()]);
    // Decoding past the place of the token that was cut off: the new token 150 is packed, and its
    // f16 row is not taken.
    for _ in 0..12 {
        let taken = walk.take(&[(0, 1)], true);
        let record = &records(&taken)[0];
        assert_eq!(record.limit, 140);
        let row = |token| f16_row(&walk, &taken.after, record, 0, token).is_some();
        assert!(row(20) && row(21) && (record.new_tokens < 151 || !row(150)));
        let want = exact_over_stored(&walk, &taken, 0, 0, 1);
        let error = relative_rms(&walk.output(&taken), &want);
        assert!(error < DECODE_RMS, "relative error {error}. WGKV_SEED={}", walk.seed);
    }
    // The next chunk's election fills the row that is free now; the entry of the token that was cut
    // off counts no more.
    let residual = planted(&mut walk, 40, 6, &[(9, 0, 45.0), (10, 0, 30.0)]);
    take(&mut walk, &[(0, 40)], residual);
    assert_eq!(elected(&walk, 0), [20, 21, 152 + 9]);
}

#[test]
fn keys_before_their_election_are_refused() {
    let gpu = gpu();
    let mut walk =
        Walk::new(&gpu, case("two layers", 64, 1, 1, format()).shape(Shape { layers: 2, ..case("", 64, 1, 1, format()).shape }).protection(massive(5, 0)));
    let step = walk.cache.step(&[Chunk { sequence: walk.sequences[0], tokens: 3 }]).unwrap();
    let [keys, values, _] = walk.draw(3).map(|numbers| upload(&gpu, &numbers));
    let residual = upload(&gpu, &[1.0; 3 * 6]);
    let before = walk.state();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let append = |walk: &Walk, encoder: &mut wgpu::CommandEncoder, layer| walk.cache.append(encoder, &step, layer, Rows::f32(&keys), Rows::f32(&values));
    let unelected = |result: Result<()>, layer| assert_eq!(result, Err(Error::Unelected { layer, sinks: "massive:5".into() }));
    unelected(append(&walk, &mut encoder, 0), 0);
    // Elections that are refused are not held.
    let elect = |walk: &Walk, encoder: &mut wgpu::CommandEncoder, width| walk.cache.elect(encoder, &step, 0, Rows::f32(&residual), width);
    assert!(matches!(elect(&walk, &mut encoder, 0), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "width"));
    assert!(matches!(elect(&walk, &mut encoder, 5), Err(Error::Mismatch { of: Thing::Argument, name, .. }) if name == "width"));
    assert!(matches!(elect(&walk, &mut encoder, 8), Err(Error::Rows { name: "residual", .. })));
    assert!(matches!(walk.cache.elect(&mut encoder, &step, 2, Rows::f32(&residual), 6), Err(Error::Layer { had: 2, layers: 2 })));
    unelected(append(&walk, &mut encoder, 0), 0);
    gpu.queue().submit([encoder.finish()]);
    assert!(walk.state() == before, "nothing was recorded");
    // Each layer's own.
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    elect(&walk, &mut encoder, 6).unwrap();
    append(&walk, &mut encoder, 0).unwrap();
    unelected(append(&walk, &mut encoder, 1), 1);
    walk.cache.elect(&mut encoder, &step, 1, Rows::f32(&residual), 6).unwrap();
    append(&walk, &mut encoder, 1).unwrap();
    gpu.queue().submit([encoder.finish()]);
    assert!(walk.state() != before);
    // A later step makes this one stale; a decode step needs no election, and takes one without
    // recording it.
    let next = walk.cache.step(&[Chunk { sequence: walk.sequences[0], tokens: 1 }]).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    assert!(matches!(walk.cache.elect(&mut encoder, &step, 0, Rows::f32(&residual), 6), Err(Error::Stale { .. })));
    walk.cache.elect(&mut encoder, &next, 0, Rows::f32(&residual), 6).unwrap();
    walk.cache.append(&mut encoder, &next, 0, Rows::f32(&keys), Rows::f32(&values)).unwrap();
    gpu.queue().submit([encoder.finish()]);
}

/// The step of several tokens never got its residual stream; what was void before it must not count
/// again once it is taken back.
#[test]
fn a_step_that_is_taken_back_revives_no_sink() {
    let gpu = gpu();
    let mut walk = walk(&gpu, "taken back before its election", 4, vec![vec![(0, 10)], vec![(0, 8)]]);
    let residual = planted(&mut walk, 10, 64, &[(5, 3, 9.0)]);
    take(&mut walk, &[(0, 10)], residual);
    assert!(elected(&walk, 0).contains(&5));
    let sequence = walk.sequences[0];
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    walk.cache.truncate(&mut encoder, sequence, 4).unwrap();
    // The record's last word: sinks from this token on are void.
    let limit = |step: &Step| step.words().tables[7];
    submit(&gpu, encoder);
    for _ in 4..8 {
        assert_eq!(limit(&walk.take(&[(0, 1)], false).step), 4);
    }
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    _ = walk.cache.step(&[Chunk { sequence, tokens: 5 }]).unwrap();
    walk.cache.truncate(&mut encoder, sequence, 8).unwrap();
    assert_eq!(limit(&walk.cache.step(&[Chunk { sequence, tokens: 1 }]).unwrap()), 4, "token 5 is none of this text's sinks");
}
