//! `dequantize` restores any range of a sequence's tokens, wherever they lie, to f32: it agrees with its twin exactly where nothing
//! is rotated (a difference that is exact and one product) and up to the rounding of the rotation's sums where it is; it comes back
//! within half a step of what was stored; it writes no other rows.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod support;

use support::*;
use wgkv::kernel::dequantize::DequantizeParams;
use wgkv::reference::{self, rotate_exact, turn_exact};
use wgkv::*;

/// Relative to the length of the row; see tests/rotate.rs.
const ROTATE_ERROR: f32 = 22.0 / 16_777_216.0;

fn cases() -> Vec<Case> {
    use Bits::*;
    let mut cases = vec![
        case("2-bit keys, 8-bit values, four groups", 128, 1, 1, rtn(Two, Eight, 32)),
        case("signed key bytes, 2-bit values", 64, 2, 2, hadamard(Eight, Two, 64)),
        Case {
            protection: protect(4, 32),
            steps: vec![vec![(0, 150), (1, 7)], vec![(0, 200), (1, 1)]],
            ..case("sinks, pages and window in one range; two planes", 64, 2, 2, hadamard(Three, Four, 32))
        },
        Case {
            protection: protect(127, 0),
            ..case("20 x 4: the high plane's last word is half full; both of two planes", 80, 1, 1, hadamard(Three, Three, 128))
        },
        Case { slabs: true, ..case("every KV head in a slab of its own", 96, 3, 3, hadamard(Four, Three, 128)) },
        Case { protection: protect(4, 128), ..case("the largest head", 256, 1, 1, hadamard(Two, Two, 64)) },
        case("f16", 64, 2, 2, Format::f16()),
    ];
    cases[1].shape.rope = Rope::new(10_000.0, 32);
    cases[4].shape.rope = Rope::new(10_000.0, 96).interleaved();
    cases[5].shape.rope = Rope::none();
    cases
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

                let mut tables = vec![record.slot, tokens, tokens, record.new_packed, record.new_packed, 8, 0, 0];
                tables.extend(&record.pages);
                let mut want = [vec![f32::NAN; count * row], vec![f32::NAN; count * row]];
                let [keys, values] = &mut want;
                for (slab, pages) in walk.plan().slabs().iter().zip(&taken.after.pages) {
                    let params = DequantizeParams {
                        chunk: 0,
                        first: range.start,
                        tokens: count as u32,
                        slab_heads: slab.heads,
                        head_first: slab.head_first,
                        kv_heads: shape.kv_heads,
                        pad: [0; 2],
                    };
                    reference::dequantize(&params, &walk.constants, &tables, pages, &taken.after.protected_rows, keys, values);
                }
                for (which, (got, want)) in got.iter().zip(&want).enumerate() {
                    let name = format!("{}: {} of slot {}, tokens {range:?}", walk.case.why, ["keys", "values"][which], record.slot);
                    let (got, beyond) = got.split_at(count * row);
                    assert!(beyond.iter().all(|x| x.to_bits() == POISON), "{name}: a row beyond the last was written");
                    for (got, want) in got.chunks_exact(shape.head_dim as usize).zip(want.chunks_exact(shape.head_dim as usize)) {
                        close(&name, got, want, if rotates { ROTATE_ERROR * norm(want) } else { 0.0 }, 0.0, walk.seed);
                    }
                }
                if range.start == 0 {
                    check_plain(&walk, record, &got, &plain[*s], &taken.after.pages);
                }
            }
        }
    }
}

/// In the codec's basis, every number of a packed token is within half a step of what came (and within a step and a half of it
/// where a clip cuts the range short, or the half nearest the step is smaller than it).
fn check_plain(walk: &Walk, record: &Record, got: &[Vec<f32>; 2], plain: &[Vec<f32>; 2], pages: &[Vec<u32>]) {
    let (plan, shape) = (walk.plan(), &walk.case.shape);
    let d = shape.head_dim as usize;
    let basis = |row: &[f32], token: Option<u32>| {
        let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        let row = token.map_or(row.clone(), |t| turn_exact(&shape.rope, &row, t));
        if plan.format().codec().rotates_values() { rotate_exact(&row) } else { row }
    };
    for (token, head) in (0..record.new_tokens).flat_map(|t| (0..shape.kv_heads).map(move |h| (t, h))) {
        let at = (token * shape.kv_heads + head) as usize * d;
        for (which, (got, plain)) in got.iter().zip(plain).enumerate() {
            let (back, came) = (basis(&got[at..at + d], None), basis(&plain[at..at + d], (which == 0).then_some(token)));
            let packed = token >= plan.sinks() && token < record.new_packed && plan.format().codec() != Codec::F16;
            let clip = [plan.format().key_clip(), plan.format().value_clip()][which];
            for i in 0..d {
                let allowed = if packed {
                    let page = page(plan, pages, record.pages[token as usize / 128], head);
                    let stored = if which == 0 { key(plan, page, token % 128) } else { value(plan, page, token % 128) };
                    let group = i / plan.layout().group as usize;
                    // Each end loses a tenth of the range, 0.4 steps of 4 - 1, at clip 0.8; the zero is rounded once more.
                    let steps = if clip < 1.0 { f64::from(3_u8).mul_add((1.0 / f64::from(clip) - 1.0) * 2.0, 1.0) } else { 1.0 };
                    (steps + 0.2) * f64::from(stored.scales[group])
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
