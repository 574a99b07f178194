//! `dequantize` restores any range of a sequence's tokens, wherever they lie, to f32: it agrees
//! with its twin exactly where nothing is rotated (a difference that is exact and one product) and
//! up to the rounding of the rotation's sums where it is; it comes back within half a step of what
//! was stored; it writes no other rows.
//!
//! Rows that were not finite come back as zeros, or as Centred's means, and attention reads the
//! same.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use wgkv::low_level::kernel::dequantize::DequantizeParams;
use wgkv::low_level::reference::{self, rotate_group_exact, turn_exact};
use wgkv_testing::*;

/// Relative to the length of the row; see tests/rotate.rs.
const ROTATE_ERROR: f32 = 22.0 / 16_777_216.0;

/// The same for RotateKV's keys, relative to the length of their group of heads: 11 roundings in
/// the rotation of a head, 9 in the sum over eight heads and its factor, 5 in the turn, and as many
/// in the twin.
const RESTORE_ERROR: f32 = 50.0 / 16_777_216.0;

/// The same for Centred's keys: divided by weights that differ up to ten times, and turned means
/// added.
const CENTRED_ERROR: f32 = 10.0 * (22.0 + 8.0) / 16_777_216.0;

/// Centred's keys brought back into its basis by f64 arithmetic on f32 rows, as CENTRED_ERROR
/// counts; means as long as the rows are added and taken off again.
const LEVEL_ERROR: f64 = 10.0 * CENTRED_ERROR as f64;

/// Of the energy of a group of normal numbers, what symmetric codes may lose: Max's uniform
/// quantizers lose 0.119, 0.037, 0.012 and 0.0001 of it, the unbiased scale a little more, and a
/// group of 32 may be unlike the distribution: four times that, and ten times at 8 bits.
const SHARES: [(Bits, f64); 4] = [(Bits::Two, 0.5), (Bits::Three, 0.15), (Bits::Four, 0.05), (Bits::Eight, 0.001)];

/// The same of a trellis, whose groups are larger: 0.0895 of it, four times.
const TRELLIS_SHARE: f64 = 0.36;

fn cases() -> Vec<Case> {
    use Bits::*;
    vec![
        case("2-bit keys, 8-bit values, four groups", 128, 1, 1, rtn(Two, Eight, 32)),
        case("signed key bytes, 2-bit values", 64, 2, 2, hadamard(Eight, Two, 64)).rope(Rope::new(10_000.0, 32)),
        case("sinks, pages and window in one range; two planes", 64, 2, 2, hadamard(Three, Four, 32))
            .protection(protect(4, 32))
            .steps(vec![vec![(0, 150), (1, 7)], vec![(0, 200), (1, 1)]]),
        case("20 x 4: the high plane's last word is half full; both of two planes", 80, 1, 1, hadamard(Three, Three, 128)).protection(protect(127, 0)),
        case("every KV head in a slab of its own", 96, 3, 3, hadamard(Four, Three, 128)).slabs().rope(Rope::new(10_000.0, 96).interleaved()),
        case("the largest head", 256, 1, 1, hadamard(Two, Two, 64)).protection(protect(4, 128)).rope(Rope::none()),
        case("a head of 192: 12 x 16, six groups", 192, 2, 2, hadamard(Three, Four, 32)).protection(protect(4, 32)),
        case("a head of 512: 32 x 16", 512, 1, 1, hadamard(Two, Eight, 64)).protection(protect(4, 32)),
        case("f16", 64, 2, 2, Format::f16()),
        case("bytes for scales", 64, 2, 2, hadamard(Three, Two, 32).with_scales(Scales::Byte)),
        case("RotateKV: 4 heads of 128, 2 bits", 128, 4, 4, rotated(Two, Two, 128, 4)),
        case("RotateKV: sinks, pages and window in one range; signed bytes; a head of two in a group", 64, 6, 6, rotated(Eight, Four, 32, 2))
            .protection(protect(4, 32))
            .steps(vec![vec![(0, 150), (1, 7)], vec![(0, 200), (1, 1)]])
            .rope(Rope::new(10_000.0, 64).interleaved()),
        case("RotateKV: elected sinks among the packed tokens", 64, 2, 2, rotated(Three, Two, 128, 2).with_scales(Scales::Byte))
            .protection(massive(20, 16))
            .steps(vec![vec![(0, 150), (1, 7)], vec![(0, 200), (1, 1)]]),
        case("RotateKV: slabs of two heads of 96; 12 x 8", 96, 4, 4, rotated(Four, Four, 128, 2)).slabs().rope(Rope::new(10_000.0, 48)),
        case("RotateKV: 8 heads of 80 at once; 20 x 4; f16 rows", 80, 8, 8, rotated(Four, Three, 128, 8)).reach(Reach::Local).element(Element::F16),
        case("RotateKV: the largest head, alone", 256, 1, 1, rotated(Two, Eight, 128, 1)),
        case("RotateKV without RoPE, three heads in groups of their own", 64, 3, 3, rotated(Four, Four, 64, 1)).rope(Rope::none()),
        case("heads stored in three ways", 128, 4, 4, hadamard(Two, Two, 128)).three_ways(),
        case("RotateKV: values in two ways", 64, 4, 4, rotated(Four, Two, 64, 2)).two_ways().protection(protect(4, 16)),
        case("planes, sinks and a window", 96, 2, 2, Format::aligned_f16())
            .protection(protect(4, 32))
            .steps(vec![vec![(0, 150), (1, 7)], vec![(0, 200), (1, 1)]]),
        case("planes in slabs", 128, 2, 2, Format::aligned_f16()).slabs(),
        case("Centred: sinks, pages and window in one range", 128, 2, 2, centred(Two, Three, 64))
            .protection(protect(4, 32))
            .steps(vec![vec![(0, 150), (1, 7)], vec![(0, 200), (1, 1)]]),
        case("Centred: a head of 192", 192, 2, 2, centred(Two, Four, 64)),
        case("Centred: a head of 512; half of it turns", 512, 1, 1, centred(Four, Two, 128)).rope(Rope::new(1_000_000.0, 256)),
        case("RotateKV: two heads of 192", 192, 2, 2, rotated(Four, Two, 64, 2)),
        case("Centred: elected sinks", 64, 2, 2, centred(Four, Four, 64)).protection(massive(20, 16)),
        case("Centred: 12 x 8, signed key bytes, f16 rows", 96, 2, 2, centred(Eight, Four, 32)).element(Element::F16),
        case("Centred: heads stored in three ways", 64, 4, 4, centred(Two, Two, 32)).three_ways(),
        case("a trellis of both, sinks, pages and window in one range", 128, 2, 2, trellis(128))
            .protection(protect(4, 32))
            .steps(vec![vec![(0, 150), (1, 7)], vec![(0, 200), (1, 1)]]),
        case("a trellis of both; six words", 96, 2, 2, trellis(128)),
        case("a trellis of keys in the largest head, elected sinks", 256, 1, 1, trellis_beside(true, Eight)).protection(massive(20, 16)),
        case("heads of which some have a trellis", 64, 4, 4, trellis(64)).some_trellis(),
        case("planes of 8-bit keys and 4-bit values, sinks and a window", 96, 2, 2, hadamard(Eight, Four, 32))
            .protection(protect(4, 32))
            .steps(vec![vec![(0, 150), (1, 7)], vec![(0, 200), (1, 1)]])
            .in_planes(),
        case("planes of 4-bit keys and 8-bit values", 80, 2, 2, rtn(Four, Eight, 128)).in_planes(),
        case("planes of Centred's 8-bit keys and 4-bit values, sinks and a window", 128, 2, 2, centred(Eight, Four, 64))
            .protection(protect(4, 32))
            .steps(vec![vec![(0, 150), (1, 7)], vec![(0, 200), (1, 1)]])
            .in_planes(),
        case("planes of Centred's 4-bit keys and 8-bit values", 96, 2, 2, centred(Four, Eight, 32)).in_planes(),
    ]
}

#[test]
fn dequantize_agrees_with_its_reference() {
    let gpu = gpu();
    for case in cases() {
        let steps = case.steps.clone();
        let rotates = case.format.codec().rotates_values();
        let mut walk = Walk::new(&gpu, case);
        let (shape, row) = (walk.case.shape.clone(), (walk.case.shape.kv_heads * walk.case.shape.head_dim) as usize);
        let mut plain: Vec<[Vec<f32>; 2]> = walk.sequences.iter().map(|_| Default::default()).collect();
        let mut taken = None;
        for chunks in &steps {
            let step = walk.take(chunks, false);
            let mut at = 0;
            for (s, n) in chunks {
                let end = at + *n as usize * row;
                plain[*s][0].extend(&step.keys.numbers[at..end]);
                plain[*s][1].extend(&step.values.numbers[at..end]);
                at = end;
            }
            taken = Some(step);
        }
        let taken = taken.unwrap();
        for (record, (s, _)) in records(&taken).iter().zip(&taken.chunks) {
            // Everything; the last token; a range from inside a page.
            let tokens = record.new_tokens;
            for range in [0..tokens, tokens - 1..tokens, tokens / 3..tokens / 2] {
                let count = range.len();
                // A row of poison more than is asked for.
                let buffers = [poisoned(&gpu, (count + 1) * row), poisoned(&gpu, (count + 1) * row)];
                let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                walk.cache.dequantize(&mut encoder, walk.sequences[*s], 0, range.clone(), Rows::f32(&buffers[0]), Rows::f32(&buffers[1])).unwrap();
                gpu.queue().submit([encoder.finish()]);
                let got = buffers.map(|b| download(&gpu, &b, (count + 1) * row));

                let mut tables = vec![record.slot, tokens, tokens, record.new_packed, record.new_packed, 8, 0, record.limit];
                tables.extend(&record.pages);
                let mut want = [vec![f32::NAN; count * row], vec![f32::NAN; count * row]];
                let [keys, values] = &mut want;
                for ((slab, constants), pages) in walk.plan().slabs(0).iter().zip(&walk.slab_constants).zip(&taken.after.pages) {
                    let heads_at = tables.len() as u32;
                    let tables = [&tables[..], slab.heads()].concat();
                    let params = DequantizeParams {
                        chunk: 0,
                        first: range.start,
                        tokens: count as u32,
                        slab_heads: slab.count(),
                        heads_at,
                        kv_heads: shape.kv_heads,
                        limit: record.limit,
                        pad: 0,
                    };
                    let State { marks, key_scales, protected_rows, .. } = &taken.after;
                    reference::dequantize(&params, constants, &tables, &walk.turns, marks, key_scales, pages, protected_rows, keys, values);
                }
                for (which, (got, want)) in got.iter().zip(&want).enumerate() {
                    let name = format!("{}: {} of slot {}, tokens {range:?}", walk.case.why, ["keys", "values"][which], record.slot);
                    let (got, beyond) = got.split_at(count * row);
                    assert!(beyond.iter().all(|x| x.to_bits() == POISON), "{name}: a row beyond the last was written");
                    // What is rotated together.
                    let (together, error) = match (which, walk.case.format.codec()) {
                        (0, Codec::RotateKv) => (walk.plan().group_heads() * shape.head_dim, RESTORE_ERROR),
                        (0, Codec::Centred) => (shape.head_dim, CENTRED_ERROR),
                        _ => (shape.head_dim, if rotates { ROTATE_ERROR } else { 0.0 }),
                    };
                    for (got, want) in got.chunks_exact(together as usize).zip(want.chunks_exact(together as usize)) {
                        close(&name, got, want, error * norm(want), 0.0, walk.seed);
                    }
                }
                if range.start == 0 {
                    check_plain(&walk, record, &got, &plain[*s], &taken.after);
                    if walk.case.format.codec() == Codec::RotateKv {
                        check_restored(&walk, record, &got[0], &plain[*s][0], &taken.after);
                    }
                }
            }
        }
    }
}

/// In the codec's basis, every number of a packed token is within half a step of what came (and
/// within a step and a half of it where a clip cuts the range short, or the half nearest the step
/// is smaller than it).
fn check_plain(walk: &Walk, record: &Record, got: &[Vec<f32>; 2], plain: &[Vec<f32>; 2], state: &State) {
    let (plan, shape) = (walk.plan(), &walk.case.shape);
    let d = shape.head_dim as usize;
    // A key comes back turned; turned back, it is as it came.
    let turned_back: Rope = shape.rope.clone().with_frequencies(shape.rope.frequencies().iter().map(|f| -f).collect());
    let plain_row = |row: &[f32], token: u32, key: bool| -> Vec<f32> {
        let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        if key { turn_exact(&turned_back, &row, token) } else { row }.into_iter().map(|x| x as f32).collect()
    };
    for (token, head) in (0..record.new_tokens).flat_map(|t| (0..shape.kv_heads).map(move |h| (t, h))) {
        let at = (token * shape.kv_heads + head) as usize * d;
        // RotateKV's keys are looked at below.
        let keys = plan.format().codec() == Codec::RotateKv;
        for (which, (got, plain)) in got.iter().zip(plain).enumerate().skip(usize::from(keys)) {
            let is_key = which == 0;
            let row = f16_row(walk, state, record, head, token);
            // An elected sink is stored with its mean, so that is what rounding is relative to.
            let sinks_end = reference::cached::offset(&walk.constants, record.slot, shape.kv_heads, head, plan.sinks()) as usize;
            let elected = plan.elects() && row.is_some_and(|row| row < sinks_end);
            let basis = |row: &[f32]| basis_of(walk, row, head, token, is_key, elected);
            let (back, came) = (basis(&plain_row(&got[at..at + d], token, is_key)), basis(&plain[at..at + d]));
            let format = plan.bit_plan().format_of(0, head);
            let precision = [format.key(), format.value()][which];
            let packed = row.is_none() && precision.bits != Bits::Sixteen;
            if packed && format.codec() == Codec::Centred {
                // What comes back is the level of the stored code times the stored scale, whatever
                // came.
                let page = page(plan, &state.pages, record.pages[token as usize / 128], head);
                let stored = if is_key { key(page, token % 128) } else { value(page, token % 128) };
                let (group, half) = (precision.group(shape.head_dim) as usize, 2_f64.powi(precision.bits.get() as i32 - 1));
                let trellis = precision.code == Code::Trellis;
                let levels: Vec<f64> = if trellis {
                    stored.codes.chunks(group).flat_map(|codes| reference::trellis::channel_levels(is_key, codes)).map(|v| f64::from(v) - 4.5).collect()
                } else {
                    stored.codes.iter().map(|code| f64::from(*code) - half + 0.5).collect()
                };
                let length = back.iter().map(|x| x * x).sum::<f64>().sqrt();
                for (i, x) in back.iter().enumerate() {
                    let want = f64::from(stored.scales[i / group]) * levels[i];
                    assert!((x - want).abs() <= LEVEL_ERROR * length, "{}: channel {i} of token {token} is {x}, stored as {want}", walk.case.why);
                }
                // What is left out where the codes end has no bound but the number's own; the error
                // of the rest has.
                for (g, (back, came)) in back.chunks(group).zip(came.chunks(group)).enumerate() {
                    let inner = |i: usize| precision.bits != Bits::Eight || ![0, 255].contains(&stored.codes[g * group + i]);
                    let error: f64 = back.iter().zip(came).enumerate().filter(|(i, _)| inner(*i)).map(|(_, (a, b))| (a - b).powi(2)).sum();
                    let share = error / came.iter().map(|x| x * x).sum::<f64>();
                    let allowed = if trellis { TRELLIS_SHARE } else { SHARES.into_iter().find(|(bits, _)| *bits == precision.bits).unwrap().1 };
                    assert!(share < allowed, "{}: {share} of the energy of token {token} is error. WGKV_SEED={}", walk.case.why, walk.seed);
                }
                continue;
            }
            for i in 0..d {
                let allowed = if packed {
                    let page = page(plan, &state.pages, record.pages[token as usize / 128], head);
                    let stored = if which == 0 { key(page, token % 128) } else { value(page, token % 128) };
                    let group = i / precision.group(shape.head_dim) as usize;
                    (steps(plan, format.clip(precision.bits)) + 0.2) * f64::from(stored.scales[group])
                } else {
                    came[i].abs() / 2048.0 + 1e-5
                };
                assert!(
                    (back[i] - came[i]).abs() <= allowed,
                    "{}: channel {i} of token {token} came as {}, is {}, allowed {allowed}. WGKV_SEED={}",
                    walk.case.why,
                    came[i],
                    back[i],
                    walk.seed
                );
            }
        }
    }
}

/// How many steps a number of a group may be off: half a step; another half where the scale is
/// rounded down, by a byte's sixteenth of the range at most. Each end loses a tenth of the range,
/// 0.4 steps of 4 - 1, at clip 0.8.
fn steps(plan: &Plan, clip: f32) -> f64 {
    let steps = if clip < 1.0 { 3.0_f64.mul_add((1.0 / f64::from(clip) - 1.0) * 2.0, 1.0) } else { 1.0 };
    steps + if plan.format().scales() == Scales::Byte { 1.0 } else { 0.0 }
}

/// RotateKV's keys: turned back and rotated over their group of heads, every number of a packed
/// token is within half a step of what came (as above); those with an f16 row are the turned keys,
/// to the half.
fn check_restored(walk: &Walk, record: &Record, got: &[f32], plain: &[f32], state: &State) {
    let (plan, shape) = (walk.plan(), &walk.case.shape);
    let d = shape.head_dim as usize;
    let group = plan.group_heads() as usize;
    let places = plan.channel_order().unwrap().places(0);
    let turned_back = shape.rope.clone().with_frequencies(shape.rope.frequencies().iter().map(|f| -f).collect());
    let exact = |row: &[f32]| -> Vec<f64> { row.iter().map(|x| f64::from(*x)).collect() };
    for token in 0..record.new_tokens {
        let row = shape.kv_heads as usize * d;
        let at = token as usize * row;
        let (back, came) = (exact(&got[at..at + row]), exact(&plain[at..at + row]));
        let name = format!("{}: token {token} of slot {}. WGKV_SEED={}", walk.case.why, record.slot, walk.seed);
        if f16_row(walk, state, record, 0, token).is_some() {
            let want: Vec<f64> = came.chunks_exact(d).flat_map(|head| turn_exact(&shape.rope, head, token)).collect();
            for (i, (a, b)) in back.iter().zip(&want).enumerate() {
                assert!((a - b).abs() <= b.abs() / 2048.0 + 1e-5, "channel {i} is {a}, should be {b} in f16: {name}");
            }
            continue;
        }
        let plain: Vec<f64> = back.chunks_exact(d).flat_map(|head| turn_exact(&turned_back, head, token)).collect();
        let basis = |row: &[f64]| -> Vec<f64> { row.chunks_exact(group * d).flat_map(|heads| rotate_group_exact(heads, shape.head_dim)).collect() };
        let (scales, _) = row_scales(plan, &state.key_scales, record.pages[token as usize / 128], token % 128);
        for (i, (a, b)) in basis(&plain).iter().zip(&basis(&came)).enumerate() {
            let allowed = (steps(plan, plan.format().clip(plan.format().key().bits)) + 0.2)
                * f64::from(scales[(u32::from(places[i]) / plan.slabs(0)[0].layout().row_group) as usize]);
            assert!((a - b).abs() <= allowed, "rotated channel {i} is {a}, came as {b}, allowed {allowed}: {name}");
        }
    }
}

/// What a group of zeros may come back as: where codes have no code for zero, half of the smallest
/// step, of which [`flat_group_error`] has the size; rotated back, a sum of as many signs over the
/// root of their number, as long as the row. Weights divide it by 0.3 at most.
const ZERO_ERROR: f32 = 16.0 * 0.501 / 16_384.0 / 0.3;

#[test]
fn tokens_that_are_not_finite_read_back_as_zeros_or_as_the_means() {
    use Bits::*;
    let gpu = gpu();
    // Once in pages alone, once in sinks, pages and a window that leaves.
    let steps = vec![vec![(0, 140)], vec![(0, 1)], vec![(0, 30)], vec![(0, 1)]];
    let broken = [1, 40, 130, 139, 140, 150];
    let of = |why, format| case(why, 64, 4, 2, format).steps(steps.clone());
    let formats = [
        of("f16", Format::f16()),
        of("planes", Format::aligned_f16()),
        of("integers", rtn(Two, Four, 32)),
        of("integers, rotated", hadamard(Four, Eight, 32)),
        of("bytes for scales", hadamard(Three, Two, 64).with_scales(Scales::Byte)),
        of("planes of codes", hadamard(Four, Four, 32)).in_planes(),
        of("RotateKV", rotated(Four, Four, 64, 2)),
        of("Centred", centred(Two, Two, 32)),
        of("Centred, half of each head turns", centred(Four, Three, 64)).rope(Rope::new(10_000.0, 32)),
        of("Centred, portable", centred(Eight, Four, 64)).rope(Rope::none()).no_subgroups(),
        of("Centred, planes of codes", centred(Four, Eight, 32)).in_planes(),
    ];
    let protections = [Protection::NONE, protect(4, 16)];
    for (case, protection) in formats.iter().flat_map(|case| protections.map(|protection| (case, protection))) {
        if case.format == Format::f16() && protection != Protection::NONE {
            continue;
        }
        let mut walk = Walk::new(&gpu, case.clone().protection(protection));
        let (shape, width) = (walk.case.shape.clone(), 2 * 64);
        let mut first = 0;
        for chunks in &steps {
            let tokens = chunks[0].1;
            let [mut keys, mut values, queries] = walk.draw(tokens);
            for token in broken.into_iter().filter(|token| (first..first + tokens).contains(token)) {
                // Of both heads, since RotateKV rotates them together.
                for head in 0..2 {
                    let at = (token - first) as usize * width + head * 64;
                    keys[at + 9] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][token as usize % 3];
                    values[at + 63] = [f32::INFINITY, f32::NAN][head];
                }
            }
            let taken = walk.take_rows(chunks, [keys, values, queries], true);
            first += tokens;
            let [keys, values] = walk.dequantize(0);
            for token in broken.into_iter().filter(|token| *token < first) {
                for head in 0..2 {
                    let row = token as usize * width + head * 64..token as usize * width + head * 64 + 64;
                    let means = |of: fn(&Means, u32) -> &[f32]| match &walk.case.means {
                        Some(means) => of(means, 0)[head * 64..head * 64 + 64].iter().map(|x| f64::from(*x)).collect(),
                        None => vec![0.0; 64],
                    };
                    let key: Vec<f64> = turn_exact(&shape.rope, &means(Means::key_means), token);
                    let name = |of| format!("{}, {protection:?}: the {of} of token {token} of {first}, head {head}", walk.case.why);
                    let f32s = |row: Vec<f64>| row.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
                    close(&name("key"), &keys[row.clone()], &f32s(key), ZERO_ERROR, 1e-5, walk.seed);
                    close(&name("value"), &values[row], &f32s(means(Means::value_means)), ZERO_ERROR, 1e-5, walk.seed);
                }
            }
            // Attention reads them as dequantize does, in a prompt and in decoding.
            let error = relative_rms(&walk.output(&taken), &exact_over_stored(&walk, &taken, 0, 0, tokens));
            let most = if walk.case.means.is_some() { CENTRED_RMS } else { DECODE_RMS };
            // A NaN compares false, so it fails too.
            assert!(error <= most, "{}, {protection:?}: {tokens} to {first}: {error}. WGKV_SEED={}", walk.case.why, walk.seed);
        }
        let status = pollster::block_on(walk.cache.status()).unwrap();
        assert!(status.flags.iter().all(|flag| [flag.key, flag.value].iter().flatten().all(|defect| *defect == Defect::NotFinite)), "{status:?}");
        let listed: std::collections::BTreeSet<u32> = status.flags.iter().map(|flag| flag.token).collect();
        assert!(listed.into_iter().eq(broken), "{}: {status:?}", walk.case.why);
    }
}
