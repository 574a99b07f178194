//! `align_values` weighs the values of decoding rows, reading the planes that each token's weight
//! asks for; and with it the whole way of decoding from planes.
//!
//! - It agrees with its twin on the same scores, plans and pages up to the rounding of f32 sums;
//!   partial results of no item are not written; its count of tokens by level, and of loads, is
//!   that of the twin.
//! - Planes that stay unread may hold anything: the output is the same, bit for bit.
//! - Budgets of nothing give the output of reading everything, bit for bit, and that is attention
//!   over what is stored; its scores are those of the stored keys, for Centred with their mean,
//!   which is not stored.
//! - No score and no output is further from reading everything than the certificate says; loads
//!   that were counted are those reported.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use wgkv::aligned::{Alignment, AlignmentReport, Criterion};
use wgkv::low_level::kernel::align_plan::*;
use wgkv::low_level::reference::aligned::{Planes, quarter};
use wgkv::low_level::reference::{self, Constants};
use wgkv::{Bits, Format, Rows};
use wgkv_testing::*;

/// Error of a weight: `exp2`'s own, 2^-22 near zero and more for arguments that are large.
const WEIGHT_ERROR: f32 = 4e-5;

/// Rows of a case in which a token's weight is so near the edge of a level that the twin reads
/// other planes of it: of the 20 000 weights that a case has at most, each within [`WEIGHT_ERROR`]
/// of one of three edges in levels a factor of 4 apart, that is of one or two, and of more than
/// four in one run of a hundred.
const EDGES: usize = 4;

/// Relative error of the output against f64 over the same halves: f32's in scores of some ten, and
/// weights'.
const EXACT_ERROR: f64 = 1e-4;

/// The same for codes, whose queries are rounded to 8 bits: by 1/254 of the largest channel at
/// most, which moves scores of some ten by as much as a few hundredths where channels differ in
/// size.
const CODED_ERROR: f64 = 0.05;

/// What f32 adds to an output beside the certificate, for outputs of unit scale.
const SLACK: f64 = 1e-4;

#[test]
fn align_values_agrees_with_its_reference() {
    let gpu = gpu();
    for case in aligned_cases(&gpu) {
        let (walk, taken) = decoded(&gpu, case);
        let words = taken.step.words();
        let [scores, plans] = &taken.aligned;
        let partials = &taken.scratch[2];
        let mut twin = vec![f32::from_bits(POISON); partials.len()];
        for (((params, items), c), pages) in words.align_values.iter().zip(&walk.slab_constants).zip(&taken.after.pages) {
            reference::align_values(params, c, *items, &words.tables, floats(scores), plans, pages, &mut twin);
        }
        let c = &walk.constants;
        let (shape, d) = (&walk.case.shape, c.head_dim as usize);
        let (ledgers, stride) = (4 * c.ledgers as usize, c.head_dim as usize + 4);
        let mut otherwise = 0;
        let largest = taken.values.numbers.iter().fold(1.0_f32, |l, x| l.max(x.abs())).max(8.0);
        for (n, (got, want)) in floats(&partials[..ledgers]).chunks_exact(stride).zip(twin[..ledgers].chunks_exact(stride)).enumerate() {
            let name = format!("{}: row {n}", walk.case.why);
            let (h, block) = (n as u32 % c.heads, n as u32 / c.heads % c.blocks);
            // A place of a block that has no head holds anything.
            if block * c.heads + h >= shape.share() {
                continue;
            }
            if want[0].to_bits() == POISON {
                assert!(got.iter().all(|x| x.to_bits() == POISON), "{name} was written, but is of no item");
                continue;
            }
            close(&format!("{name}: sum"), &got[d + 1..d + 2], &want[d + 1..d + 2], 1e-30, WEIGHT_ERROR, walk.seed);
            assert_eq!(got[d], want[d], "{name}: the largest score");
            // A token whose weight is at the edge of a level may be read otherwise. Of codes whole
            // steps are at stake, so those are compared where as many tokens were read alike.
            let ledger = |partials: &[f32]| partials[ledgers + 12 * (n / c.heads as usize) + 4..][..4].to_vec();
            if c.code_planes && ledger(floats(partials)) != ledger(&twin) {
                otherwise += 1;
                continue;
            }
            let edge = if c.code_planes || walk.case.alignment.values == Criterion::Everything { 0.0 } else { 1.0 / 1024.0 };
            let allowed = (WEIGHT_ERROR + edge) * largest * want[d + 1];
            close(&format!("{name}: values"), &got[..d], &want[..d], allowed.max(1e-30), 0.0, walk.seed);
        }
        assert!(otherwise <= EDGES, "{otherwise} rows of which tokens were read otherwise. WGKV_SEED={}", walk.seed);
        for (n, (got, want)) in floats(&partials[ledgers..]).chunks_exact(12).zip(twin[ledgers..].chunks_exact(12)).enumerate() {
            let name = format!("{}: ledger {n}", walk.case.why);
            if want[0].to_bits() == POISON {
                assert!(got.iter().all(|x| x.to_bits() == POISON), "{name} was written, but is of no item");
                continue;
            }
            for (got, want) in got[4..].iter().zip(&want[4..]) {
                // As above: one token, of two loads at head_dim 256.
                assert!((got - want).abs() <= 2.0, "{name}: {got} tokens or loads, wanted {want}. WGKV_SEED={}", walk.seed);
            }
        }
    }
}

/// Attends once more with the last step.
fn again(walk: &Walk, taken: &Taken) -> Vec<u32> {
    let element = walk.case.element;
    let queries = upload(&walk.gpu, bytemuck::cast_slice(&taken.queries.words));
    let output = poisoned(&walk.gpu, taken.queries.words.len());
    let mut encoder = walk.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let rows = |buffer| Rows::new(buffer, element);
    walk.cache.attend(&mut encoder, &taken.step, 0, rows(&queries), rows(&output)).unwrap();
    walk.gpu.queue().submit([encoder.finish()]);
    words(&walk.gpu, &output)
}

fn report(walk: &Walk, taken: &Taken) -> AlignmentReport {
    pollster::block_on(walk.cache.traffic(&taken.step, 0)).unwrap()
}

#[test]
fn planes_that_stay_unread_may_hold_anything() {
    // 5: two sequences whose heads each have one reading.
    let gpu = gpu();
    let (half, code) = (Format::aligned_f16(), rtn(Bits::Four, Bits::Eight, 32));
    for (format, alignment) in [
        (half, Alignment::PUBLISHED),
        (half, Alignment::budget(128.0, 1024.0)),
        (code, Alignment::budget(0.5, 4.0)),
        (hadamard(Bits::Eight, Bits::Four, 64), Alignment::budget(8.0, 1.0)),
        (centred(Bits::Four, Bits::Eight, 32), Alignment::budget(0.5, 4.0)),
        (centred(Bits::Eight, Bits::Four, 64), Alignment::budget(8.0, 1.0)),
        (code, Alignment::budget(1e9, 1e9)),
    ] {
        let steps = vec![vec![(0, 300), (1, 140)], vec![(0, 1), (1, 1)]];
        let (mut walk, taken) = decoded(&gpu, case("unread planes", 64, 8, 2, format).alignment(alignment).steps(steps));
        assert_eq!(again(&walk, &taken), taken.output, "the same work has the same result, bit for bit");
        let (plan, c) = (walk.plan().clone(), walk.constants);
        let slab = &plan.slabs(0)[0];
        let mut pages = taken.after.pages[0].clone();
        let (mut poisoned, mut spared) = (0, 0);
        for (row, record) in records(&taken).iter().enumerate() {
            for head in 0..2 {
                let at = (row * 2 + head) * PLAN_WORDS as usize;
                let plan_words = &taken.aligned[1][at..][..PLAN_WORDS as usize];
                let float = |e: u32, h: u32| f32::from_bits(plan_words[(e + h) as usize]);
                for (n, physical) in record.pages.iter().enumerate() {
                    let first = (*physical * slab.count() + head as u32) as usize * 4 * slab.layout().vecs as usize;
                    let page = &mut pages[first..][..4 * slab.layout().vecs as usize];
                    for i in 0..64 {
                        let item = if c.code_planes { i / 4 } else { i };
                        let level = plan_words[item as usize / 16] >> (2 * (item % 16)) & 3;
                        for t in 0..128 {
                            if c.code_planes {
                                poisoned += poison_code(&c, page, c.key_bits, 32, i, t, level, &mut walk.random);
                                continue;
                            }
                            poisoned += poison(&c, page, 128, i, t, level, &mut walk.random);
                        }
                    }
                    for t in 0..128_u32 {
                        let page_of_pass = if row == 0 { n } else { records(&taken)[0].pages.len() + n };
                        let z = |h: u32| floats(&taken.aligned[0])[((page_of_pass * 2 + head) * 128 + t as usize) * 4 + h as usize];
                        // Of codes four tokens weigh together.
                        let weight = |h: u32| {
                            let of = |t: u32| {
                                let z = floats(&taken.aligned[0])[((page_of_pass * 2 + head) * 128 + t as usize) * 4 + h as usize];
                                (z - float(PLAN_PEAK, h)).exp2() * value_step(&c, page, t)
                            };
                            if c.code_planes { (0..4).map(|k| of(t / 4 * 4 + k)).sum() } else { (z(h) - float(PLAN_PEAK, h)).exp2() }
                        };
                        let weights: Vec<f32> = (0..4).map(|h| weight(h) * float(PLAN_FACTOR, h)).collect();
                        // A level less where this `exp2` may differ from the GPU's at an edge.
                        let planes = if c.code_planes { Planes::of(c.value_bits) } else { Planes::HALF };
                        let levels = [1.0 - 1e-4, 1.0 + 1e-4].map(|by| value_level(planes, alignment.values, plan_words, &weights, by));
                        spared += usize::from(levels[0] != levels[1]);
                        let values = &mut page[4 * slab.layout().values as usize..];
                        for i in 0..64 {
                            if c.code_planes {
                                poisoned += poison_code(&c, values, c.value_bits, 16, t, i, levels[0].min(levels[1]), &mut walk.random);
                                continue;
                            }
                            poisoned += poison(&c, values, 64, t, i, levels[0].min(levels[1]), &mut walk.random);
                        }
                    }
                }
            }
        }
        assert!(poisoned > 10_000 && spared < 200, "{poisoned} planes poisoned, {spared} tokens spared");
        println!("{format}, {alignment}: {poisoned} planes of numbers poisoned, {spared} tokens spared");
        let (buffers, _) = walk.cache.layer_buffers(0).unwrap();
        walk.gpu.queue().write_buffer(&buffers[0], 0, bytemuck::cast_slice(&pages));
        assert_eq!(again(&walk, &taken), taken.output, "{alignment}: a plane that should stay unread was read. WGKV_SEED={}", walk.seed);
    }
}

/// Overwrites the planes of a number that stay unread at a level; returns how many there are.
fn poison(c: &Constants, planes: &mut [u32], length: u32, row: u32, n: u32, level: u32, random: &mut rand::rngs::StdRng) -> usize {
    let places = reference::planes::places(c.head_dim, length, row, n);
    for (word, shift) in &places[3 - level as usize..] {
        planes[*word] = (planes[*word] & !(15 << shift)) | (random.random_range(0..16) << shift);
    }
    level as usize
}

/// The same of a code.
#[expect(clippy::too_many_arguments, reason = "as many as the code's place has")]
fn poison_code(c: &Constants, planes: &mut [u32], bits: u32, quads: u32, unit: u32, n: u32, level: u32, random: &mut rand::rngs::StdRng) -> usize {
    let places = reference::code_planes::places(c.head_dim, bits, quads, unit, n);
    let widths = reference::code_planes::widths(bits);
    for ((word, shift), width) in places.iter().zip(widths).skip(widths.len() - level as usize) {
        let mask = (1 << width) - 1;
        planes[*word] = (planes[*word] & !(mask << shift)) | (random.random_range(0..=mask) << shift);
    }
    level as usize
}

/// What a token's value weighs beside its softmax weight: the largest scale of its groups.
fn value_step(c: &Constants, page: &[u32], t: u32) -> f32 {
    let groups = 0..c.head_dim / c.value_group;
    groups.map(|g| reference::scales::take(c, page, c.value_scales + g * reference::scales::vecs(c.scales), t)[0]).fold(0.0, f32::max)
}

fn value_level(planes: Planes, criterion: Criterion, plan: &[u32], weights: &[f32], by: f32) -> u32 {
    if criterion == Criterion::Published {
        let spare = weights.iter().enumerate().map(|(h, w)| plan[PLAN_BASE as usize + h] as i32 - reference::aligned::exponent(w * by) as i32).min();
        return reference::aligned::level(spare.unwrap());
    }
    let w = weights.iter().copied().fold(0.0, f32::max) * by;
    let key = if w == 0.0 { 0 } else { quarter(w).max(316) } as u32;
    let threshold = plan[PLAN_VALUES as usize + 3];
    planes.drops.iter().filter(|drop| key + 4 * (**drop - 2) <= threshold).count() as u32
}

/// A row's and query head's scores of the tokens that lie in pages, in log2 units.
fn scores(walk: &Walk, taken: &Taken, row: u32, query_head: u32) -> Vec<f32> {
    let (c, shape, records) = (&walk.constants, &walk.case.shape, records(taken));
    let first: usize = records[..row as usize].iter().map(|record| record.pages.len()).sum();
    let (head, h) = (query_head / shape.share(), query_head % shape.share());
    let entry = |t: usize| (((first + t / 128) as u32 * shape.kv_heads + head) * c.blocks + h / c.heads) as usize * 128 + t % 128;
    let tokens = unpacked(walk.plan()) as usize..records[row as usize].new_packed as usize;
    tokens.map(|t| floats(&taken.aligned[0])[entry(t) * c.heads as usize + (h % c.heads) as usize]).collect()
}

/// The same in f64 over what is stored.
fn exact_scores(walk: &Walk, taken: &Taken, row: u32, sequence: usize, query_head: u32) -> Vec<f64> {
    let (shape, record) = (&walk.case.shape, &records(taken)[row as usize]);
    let d = shape.head_dim as usize;
    let query: Vec<f64> = taken.queries.numbers[(row * shape.query_heads + query_head) as usize * d..][..d].iter().map(|x| f64::from(*x)).collect();
    let query = reference::turn_exact(&shape.rope, &query, record.new_tokens - 1);
    let [keys, _] = walk.dequantize(sequence);
    let key = |t: u32| &keys[(t * shape.kv_heads + query_head / shape.share()) as usize * d..][..d];
    let dot = |t: u32| query.iter().zip(key(t)).map(|(q, k)| q * f64::from(*k)).sum::<f64>();
    (unpacked(walk.plan())..record.new_packed).map(|t| dot(t) * std::f64::consts::LOG2_E / (d as f64).sqrt()).collect()
}

#[test]
fn budgets_of_nothing_are_reading_everything_and_errors_stay_within_certificates() {
    // 6, 7, 13 to 16, 20, 23, 26
    let gpu = gpu();
    let (half, halves) = (Format::aligned_f16(), [(4.0, 16.0), (32.0, 128.0), (512.0, 4096.0)]);
    // The same budgets in whole powers of two, so that a larger one is sure to read no more.
    let codes = [(0.25, 1.0), (1.0, 4.0), (4.0, 16.0), (1024.0, 1024.0)];
    for (head_dim, query_heads, kv_heads, protection, format, budgets) in [
        (64, 4, 1, protect(0, 0), half, &halves[..]),
        (128, 3, 3, protect(4, 16), half, &halves),
        (96, 14, 2, protect(0, 0), half, &halves),
        (64, 4, 1, protect(0, 0), rtn(Bits::Four, Bits::Four, 64), &codes),
        (128, 3, 3, protect(4, 16), hadamard(Bits::Eight, Bits::Eight, 128), &codes),
        (96, 14, 2, protect(0, 0), hadamard(Bits::Eight, Bits::Four, 32), &codes),
        (256, 2, 1, protect(0, 0), rtn(Bits::Four, Bits::Eight, 64), &codes),
        (64, 4, 1, protect(0, 0), centred(Bits::Four, Bits::Four, 64), &codes),
        (128, 3, 3, protect(4, 16), centred(Bits::Eight, Bits::Eight, 128), &codes),
        (96, 14, 2, protect(0, 0), centred(Bits::Four, Bits::Eight, 32), &codes),
    ] {
        let coded = format != half;
        let steps = vec![vec![(0, 400), (1, 140)], vec![(1, 1), (0, 1)]];
        let base = case("everything", head_dim, query_heads, kv_heads, format).protection(protection).steps(steps.clone()).counted();
        // Codes lie in planes where the plan says so, whatever is read of them.
        let mut walk = Walk::new(&gpu, if coded { base.clone().in_planes() } else { base.clone() });
        walk.cache.align(Alignment::EVERYTHING).unwrap();
        let first = spread(&mut walk, &steps[0]);
        let second = spread(&mut walk, &steps[1]);
        walk.take_rows(&steps[0], first.clone(), false);
        let everything = walk.take_rows(&steps[1], second.clone(), true);
        let d = head_dim as usize;
        let output = |taken: &Taken| floats(&taken.output).iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        // Attention in f64 over what is stored: the chunk's rows are sequence 1's, then sequence
        // 0's.
        for (row, sequence) in [(0, 1), (1, 0)] {
            let want = exact_over_stored(&walk, &everything, sequence, row, 1);
            let got = &output(&everything)[row as usize * query_heads as usize * d..][..query_heads as usize * d];
            let relative = |what: &str, got: &[f64], want: &[f64]| {
                let (error, length) = got.iter().zip(want).fold((0.0, 0.0), |(e, l), (a, b)| (e + (a - b).powi(2), l + b * b));
                let (error, allowed) = (error.sqrt(), if coded { CODED_ERROR } else { EXACT_ERROR } * length.sqrt());
                println!("  {what} are off by {error:.5} of {:.5}", length.sqrt());
                assert!(error <= allowed, "{format}: {what} are off by {error}, allowed are {allowed}. WGKV_SEED={}", walk.seed);
            };
            relative("outputs", got, &want);
            let all = |of: &dyn Fn(u32) -> Vec<f64>| (0..query_heads).flat_map(of).collect::<Vec<f64>>();
            let got = all(&|head| scores(&walk, &everything, row, head).iter().map(|x| f64::from(*x)).collect());
            relative("scores", &got, &all(&|head| exact_scores(&walk, &everything, row, sequence, head)));
        }
        let whole = report(&walk, &everything).traffic;
        let bits = [format.key(), format.value()].map(|precision| f64::from(precision.bits.get()));
        assert_eq!((whole.read(), whole.key_bits(), whole.value_bits(), whole.saved()), (whole.full, bits[0], bits[1], 0.0));
        let values: Vec<Vec<f32>> = [0, 1].map(|s| walk.dequantize(s)[1].clone()).into();
        let mut read = [u64::MAX; 2];
        let budgets = std::iter::once(&(0.0, 0.0)).chain(budgets).map(|(k, v)| Alignment::budget(*k, *v));
        for alignment in budgets.chain((!coded).then_some(Alignment::PUBLISHED)) {
            let mut other = Walk::new(&gpu, base.clone().alignment(alignment).means(walk.case.means.clone()));
            other.take_rows(&steps[0], first.clone(), false);
            let taken = other.take_rows(&steps[1], second.clone(), true);
            let name = format!("{format}, {alignment}, {query_heads} heads of {head_dim}. WGKV_SEED={}", walk.seed);
            let report = report(&other, &taken);
            let traffic = report.traffic;
            assert_eq!(traffic.full, whole.full, "{name}");
            // What the kernels counted is what the plan says; the first planes of halves are not
            // counted, since they are always read.
            let skipped = usize::from(!coded);
            assert_eq!(report.counted.map(|n| n[skipped..].to_vec()), [traffic.keys, traffic.values].map(|n| n[skipped..].to_vec()), "{name}");
            println!("{alignment}: {:.2} bits of a key, {:.2} of a value", traffic.key_bits(), traffic.value_bits());
            if alignment == Alignment::budget(0.0, 0.0) {
                assert_eq!(taken.output, everything.output, "{name}");
                // Places of pages that no token has yet weigh nothing.
                assert_eq!(traffic.keys, whole.keys, "{name}");
            } else if alignment != Alignment::PUBLISHED {
                // 7
                let now = [traffic.keys, traffic.values].map(|planes| planes.iter().sum());
                assert!(now[0] <= read[0] && now[1] <= read[1], "{name}: a larger budget reads more");
                read = now;
            }
            let (got, want) = (output(&taken), output(&everything));
            let (mut worst, mut worst_score) = (0.0_f64, 0.0_f64);
            let with_pages = records(&taken).iter().filter(|record| record.new_packed > unpacked(other.plan())).count();
            assert_eq!(report.certificates.len(), with_pages * query_heads as usize, "{name}");
            for certificate in &report.certificates {
                let sequence = [1, 0][certificate.row as usize];
                let head = certificate.head / (query_heads / kv_heads);
                let [got_scores, want_scores] = [&taken, &everything].map(|taken| scores(&other, taken, certificate.row, certificate.head));
                for (a, b) in got_scores.iter().zip(&want_scores) {
                    let off = f64::from((a - b).abs()) * std::f64::consts::LN_2;
                    assert!(off <= certificate.score_error + SLACK, "{name}: a score is off by {off}, certified were {}", certificate.score_error);
                    worst_score = worst_score.max(off / (certificate.score_error + SLACK));
                }
                for i in 0..d {
                    let channel = values[sequence].iter().skip(head as usize * d + i).step_by(kv_heads as usize * d);
                    let (low, high) = channel.fold((f32::MAX, f32::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
                    let at = (certificate.row * query_heads + certificate.head) as usize * d + i;
                    let allowed = certificate.variation * f64::from(high - low) + certificate.value_error;
                    let off = (got[at] - want[at]).abs();
                    assert!(off <= allowed + SLACK, "{name}: an output is off by {off}, certified were {allowed}");
                    worst = worst.max(off / (allowed + SLACK));
                }
            }
            println!("  scores are off by {worst_score:.3} of what is certified, outputs by {worst:.3}");
        }
        assert!(read.iter().sum::<u64>() < whole.read(), "the largest budget reads less than everything");
    }
}

#[test]
fn adversarial_codes_meet_the_bounds() {
    // 22: keys whose unread bits all push a score the same way, and a channel of values whose
    // unread bits all do.
    let gpu = gpu();
    let plain = case("adversarial codes", 64, 1, 1, rtn(Bits::Four, Bits::Four, 64)).rope(wgkv::Rope::none());
    let rows = |first: u32, n: u32| -> [Vec<f32>; 3] {
        let each = |of: &dyn Fn(u32, u32) -> f32| (first..first + n).flat_map(|t| (0..64).map(move |i| of(t, i))).collect();
        // Codes 0 and 15, of scales that differ by token.
        let key = |t: u32, i: u32| if i.is_multiple_of(2) { 0.0 } else { 0.0075 * 2_f32.powi((t % 3) as i32) };
        [each(&key), each(&key), each(&|_, i| if i.is_multiple_of(2) { 1.0 } else { -1.0 })]
    };
    meets_the_bounds(&gpu, plain, &rows, &[4.0, 1e9]);

    let moved = case("adversarial codes about means that move", 64, 1, 1, centred(Bits::Four, Bits::Four, 64));
    let (mut random, _) = seeded();
    let means = normals(&mut random, 64);
    let learned = random_means(&moved.shape, &means, &mut random);
    let moved = moved.means(learned.clone());
    let rope = &moved.shape.rope;
    let back = rope.clone().with_frequencies(rope.frequencies().iter().map(|frequency| -frequency).collect());
    let rows = |first: u32, n: u32| -> [Vec<f32>; 3] {
        let part = |numbers: &[f32], i: usize| f64::from(numbers[i]);
        // What is stored, in the codec's basis: levels of which the largest is where the first step
        // that the fit tries ends, so that it finds the step they are made with. The low bits of the codes are 00 where the query is positive and
        // 11 elsewhere, and 00 everywhere in values, which the rotation's first channel adds up.
        let level = |i: usize| [0.5, 4.5, -7.5 / 0.97, -3.5][i / 2 % 4];
        let stored = |t: u32, of: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..64).map(|i| 0.03 * 2_f64.powi((t % 3) as i32) * of(i)).collect() };
        let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
        let (mut keys, mut values, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        for t in first..first + n {
            // Signs before the rotation: -1 by an odd number of neighbouring ones in the channel's number.
            let channel_sign = |i: usize| if (i & (i >> 1)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let signed = |row: Vec<f64>| row.iter().enumerate().map(|(i, x)| x * channel_sign(i)).collect::<Vec<f64>>();
            let weighted =
                |row: Vec<f64>, power: i32| signed(row).iter().enumerate().map(|(i, x)| x * part(learned.weights(0), i).powi(power)).collect::<Vec<f64>>();
            let key = weighted(reference::rotate_exact(&stored(t, &|i| sign(i) * level(i))), -1);
            let value = signed(reference::rotate_exact(&stored(t, &level)));
            // So small that all tokens weigh about the same: values are then read alike.
            let query = weighted(reference::rotate_exact(&(0..64).map(|i| 0.01 * sign(i)).collect::<Vec<f64>>()), 1);
            keys.extend(reference::turn_exact(&back, &key, t).iter().enumerate().map(|(i, x)| (x + part(learned.key_means(0), i)) as f32));
            values.extend(value.iter().enumerate().map(|(i, x)| (x + part(learned.value_means(0), i)) as f32));
            queries.extend(reference::turn_exact(&back, &query, t).iter().map(|x| *x as f32));
        }
        [keys, values, queries]
    };
    meets_the_bounds(&gpu, moved, &rows, &[4.0]);
}

/// Of 201 tokens' rows, the errors of scores and of outputs are nine tenths of what is certified,
/// and no more than that.
fn meets_the_bounds(gpu: &wgkv::Gpu, base: Case, rows: &dyn Fn(u32, u32) -> [Vec<f32>; 3], phis: &[f32]) {
    let steps = [(0, 200), (0, 1)];
    let of = |alignment| {
        let mut walk = Walk::new(gpu, base.clone().alignment(alignment).steps(steps.iter().map(|step| vec![*step]).collect()));
        walk.take_rows(&[steps[0]], rows(0, 200), false);
        let taken = walk.take_rows(&[steps[1]], rows(200, 1), true);
        let report = report(&walk, &taken);
        (taken, report)
    };
    let (all, _) = of(Alignment::budget(0.0, 0.0));
    for phi in phis {
        let (taken, report) = of(Alignment::budget(*phi, 0.0));
        let scores = [&taken, &all].map(|taken| floats(&taken.aligned[0])[..201].to_vec());
        let off = scores[0].iter().zip(&scores[1]).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max) * std::f64::consts::LN_2;
        let bound = report.certificates[0].score_error;
        assert!(off <= bound * (1.0 + EXACT_ERROR) && off > 0.9 * bound, "phi-k {phi}: a score is off by {off} of {bound}");
        let (taken, report) = of(Alignment::budget(0.0, *phi));
        let off = floats(&taken.output).iter().zip(floats(&all.output)).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        let bound = report.certificates[0].value_error;
        assert!(off <= bound * (1.0 + EXACT_ERROR) && off > 0.9 * bound, "phi-v {phi}: an output is off by {off} of {bound}");
    }
}

#[test]
fn a_cache_can_be_aligned_in_another_way_between_steps() {
    let gpu = gpu();
    let (mut walk, taken) = decoded(&gpu, case("aligned later", 64, 2, 1, Format::aligned_f16()).steps(vec![vec![(0, 300)], vec![(0, 1)]]));
    assert_eq!(report(&walk, &taken).traffic.saved(), 0.0);
    // Two bytes a number, and a byte for each channel's largest exponent in a page.
    assert_eq!(walk.plan().bits_per_element(256), 16.0 + 8.0 / 128.0);
    walk.cache.align(Alignment::budget(1e9, 1e9)).unwrap();
    let rows = spread(&mut walk, &[(0, 1)]);
    let taken = walk.take_rows(&[(0, 1)], rows, true);
    assert_eq!(report(&walk, &taken).traffic.saved(), 0.5);
    assert!(walk.cache.align(Alignment::budget(-1.0, 0.0)).is_err());
}

#[test]
fn forks_that_share_more_pages_than_there_are_attend_in_several_passes() {
    let gpu = gpu();
    let shape = wgkv::Shape { layers: 1, query_heads: 2, kv_heads: 1, head_dim: 64, rope: wgkv::Rope::new(10_000.0, 64) };
    let plan = wgkv::Plan::builder(shape, Format::aligned_f16())
        .protection(protect(0, 16))
        .capacity(wgkv::Capacity::tokens(3, 100))
        .alignment(Alignment::budget(64.0, 64.0))
        .build(gpu.capability())
        .unwrap();
    assert_eq!(plan.pages(), 3);
    let mut cache = wgkv::Cache::new(&gpu, plan).unwrap();
    let (mut random, seed) = seeded();
    let append = |cache: &mut wgkv::Cache, chunks: &[wgkv::Chunk], rows: usize, random: &mut rand::rngs::StdRng| {
        // All rows alike.
        let [keys, values, queries] = [rows * 64, rows * 64, rows * 128].map(|n| {
            let of_a_row = normals(random, n / chunks.len());
            upload(&gpu, &of_a_row.repeat(chunks.len()))
        });
        let output = poisoned(&gpu, rows * 128);
        let step = cache.step(chunks).unwrap();
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        cache.append(&mut encoder, &step, 0, Rows::f32(&keys), Rows::f32(&values)).unwrap();
        cache.attend(&mut encoder, &step, 0, Rows::f32(&queries), Rows::f32(&output)).unwrap();
        gpu.queue().submit([encoder.finish()]);
        download(&gpu, &output, rows * 128)
    };
    let first = cache.begin().unwrap();
    append(&mut cache, &[wgkv::Chunk { sequence: first, tokens: 410 }], 410, &mut random);
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let forks = [(); 2].map(|()| cache.fork(&mut encoder, first).unwrap());
    gpu.queue().submit([encoder.finish()]);
    let chunks = [first, forks[0], forks[1]].map(|sequence| wgkv::Chunk { sequence, tokens: 1 });
    let output = append(&mut cache, &chunks, 3, &mut random);
    assert!(output.iter().all(|x| x.is_finite()), "WGKV_SEED={seed}");
    assert!(output[..128] == output[128..256] && output[..128] == output[256..], "three sequences that are alike. WGKV_SEED={seed}");
}
