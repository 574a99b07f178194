//! Rows as engines have them: heads first, padded, batched, side by side in one buffer, from an
//! offset that no binding could begin at, in f32, f16 and bf16.
//!
//! - Every layout gives what dense rows of the same numbers give, bit for bit: pages, f16 rows,
//!   scales, marks and the output, in prefill and decode, for every kernel that reads or writes the
//!   caller's rows; and so do the twins.
//! - Buffers are as short as they may be, all that lies between rows is poison, and what lies
//!   between rows of the output stays.
//! - Layouts that cannot be are refused in tests/errors.rs.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use rand::RngExt;
use rand::rngs::StdRng;
use wgkv::low_level::kernel::{append_block, append_reordered, position, protect};
use wgkv::low_level::reference::{self, Constants};
use wgkv_testing::*;

/// Where a tensor's rows lie, counted in numbers.
#[derive(Clone, Copy, Debug)]
struct Spot {
    layout: RowLayout,
    base: u32,
    /// Rows of a sequence, and the strides of sequences, tokens and heads.
    tokens: u32,
    strides: [u32; 3],
}

impl Spot {
    /// Returns the first number of a row.
    fn row(&self, row: u32, head: u32) -> usize {
        let [sequence, token, of_head] = self.strides;
        (self.base + row / self.tokens * sequence + row % self.tokens * token + head * of_head) as usize
    }

    /// Returns the same for the twins, which take a whole buffer.
    fn twin(&self) -> Option<Strides> {
        let [sequence_stride, token_stride, head_stride] = self.strides;
        Some(Strides { base: self.base, tokens: self.tokens, sequence_stride, token_stride, head_stride, pad: [0; 3] })
    }
}

/// A tensor: rows, heads, numbers of a head.
type Dims = [u32; 3];

/// Draws a spot. `chunk` is the number of tokens of every chunk, where they are alike; `step` is 2
/// where numbers come in words that must not be shared, else 1.
fn draw(random: &mut StdRng, [rows, heads, d]: Dims, chunk: Option<u32>, step: u32) -> Spot {
    let mut pad = |most: u32| step * random.random_range(0..=most / step);
    let base = pad(150);
    let (a, b, c) = (pad(9), pad(9), pad(40));
    let tokens = chunk.unwrap_or(rows);
    let (layout, tokens, strides) = match random.random_range(0..7) {
        0 => (RowLayout::Dense, rows, [0, heads * d, d]),
        1 => (RowLayout::HeadsFirst { tokens: rows }, rows, [0, d, rows * d]),
        2 => (RowLayout::HeadsFirst { tokens }, tokens, [heads * tokens * d, d, tokens * d]),
        3 => (RowLayout::Strided { token_stride: heads * (d + a) + c, head_stride: d + a }, rows, [0, heads * (d + a) + c, d + a]),
        // Heads first, with room for more tokens.
        4 => {
            let (token_stride, head_stride) = (d + b, (rows + a) * (d + b) + c);
            (RowLayout::Strided { token_stride, head_stride }, rows, [0, token_stride, head_stride])
        }
        5 => {
            let (token_stride, head_stride) = (heads * (d + b) + a, d + b);
            let sequence_stride = tokens * token_stride + c;
            (RowLayout::Batched { tokens, sequence_stride, token_stride, head_stride }, tokens, [sequence_stride, token_stride, head_stride])
        }
        _ => {
            let (token_stride, head_stride) = (d + a, tokens * (d + a) + b);
            let sequence_stride = heads * head_stride + c;
            (RowLayout::Batched { tokens, sequence_stride, token_stride, head_stride }, tokens, [sequence_stride, token_stride, head_stride])
        }
    };
    Spot { layout, base, tokens, strides }
}

/// A buffer of poison, as long as a tensor at a spot needs it to be.
fn room([rows, heads, _]: Dims, d: u32, spot: &Spot, element: Element) -> Vec<u8> {
    let bytes = element.bytes() as usize;
    let end = (0..rows).flat_map(|r| (0..heads).map(move |h| (r, h))).map(|(r, h)| spot.row(r, h) + d as usize).max().unwrap() * bytes;
    POISON.to_le_bytes().repeat(end.div_ceil(4))
}

/// Writes dense rows to a spot.
fn lay(buffer: &mut [u8], dense: &[u32], [rows, heads, d]: Dims, spot: &Spot, element: Element) {
    let (dense, bytes): (&[u8], usize) = (bytemuck::cast_slice(dense), element.bytes() as usize);
    let row_bytes = d as usize * bytes;
    for (n, (r, h)) in (0..rows).flat_map(|r| (0..heads).map(move |h| (r, h))).enumerate() {
        buffer[spot.row(r, h) * bytes..][..row_bytes].copy_from_slice(&dense[n * row_bytes..][..row_bytes]);
    }
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(bytes)
}

fn of<'a>(buffer: &'a wgpu::Buffer, spot: &Spot, element: Element) -> Rows<'a> {
    Rows { layout: spot.layout, ..Rows::new(buffer, element) }.at(u64::from(spot.base) * element.bytes())
}

fn cases() -> Vec<Case> {
    use wgkv::Bits::*;
    let steps = vec![vec![(0, 5), (1, 5)], vec![(0, 1), (1, 1)], vec![(0, 131), (1, 131)], vec![(1, 7), (0, 1)], vec![(0, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, format| case(why, head_dim, query_heads, kv_heads, format).steps(steps.clone());
    vec![
        of("blocks of integer codes", 64, 6, 2, rtn(Four, Three, 32)),
        of("the same in f16, sinks and a window", 128, 4, 2, hadamard(Two, Four, 128)).element(Element::F16).protection(protect(4, 16)),
        of("the same in bf16, the largest head", 256, 2, 1, hadamard(Four, Two, 64)).element(Element::Bf16).protection(protect(4, 16)),
        of("token by token; 20 x 4; an odd number of heads", 80, 3, 3, hadamard(Three, Four, 128)).protection(protect(4, 16)),
        of("without subgroups, in bf16", 64, 4, 2, rtn(Eight, Four, 64)).element(Element::Bf16).no_subgroups(),
        of("f16 pages and rows", 64, 4, 2, Format::f16()).element(Element::F16),
        of("planes, in bf16, sinks and a window", 64, 4, 2, Format::aligned_f16()).element(Element::Bf16).protection(protect(4, 16)),
        of("Centred: positions, turned rows, sinks and a window", 128, 8, 2, centred(Two, Three, 128)).protection(protect(4, 16)).turned(),
        of("Centred in bf16; interleaved pairs; a share of 3", 64, 6, 2, centred(Four, Two, 32))
            .element(Element::Bf16)
            .rope(Rope::new(10_000.0, 64).interleaved()),
        of("Centred in f16, elected sinks, heads in slabs of their own; 12 x 8", 96, 4, 2, centred(Three, Four, 32))
            .element(Element::F16)
            .protection(massive(5, 16))
            .slabs(),
        of("RotateKV in bf16, elected sinks and a window", 64, 4, 2, rotated(Two, Two, 64, 2)).element(Element::Bf16).protection(massive(5, 16)),
        of("RotateKV in f16, turned rows", 80, 4, 4, rotated(Four, Three, 128, 2)).element(Element::F16).turned(),
    ]
}

/// Tensors of a step, as they are laid: keys, values, queries, and room for the output.
struct Laid {
    dims: [Dims; 4],
    spots: [Spot; 4],
    bytes: [Vec<u8>; 4],
}

/// Takes a step as [`Walk::take_all`] did, with every tensor where it is laid; returns the output's
/// buffer.
fn take(walk: &mut Walk, taken: &Taken, laid: &Laid) -> Vec<u32> {
    let (gpu, element) = (walk.gpu.clone(), walk.case.element);
    let named: Vec<Chunk> = taken.chunks.iter().map(|(s, tokens)| Chunk { sequence: walk.sequences[*s], tokens: *tokens }).collect();
    let step = walk.cache.step(&named).unwrap();
    let buffers = laid.bytes.each_ref().map(|bytes| upload(&gpu, floats(&words_of(bytes))));
    let [keys, values, queries, output] = [0, 1, 2, 3].map(|n| of(&buffers[n], &laid.spots[n], element));
    let mut encoder = encoder(&gpu);
    if !taken.residual.words.is_empty() {
        let residual = upload(&gpu, floats(&taken.residual.words));
        walk.cache.elect(&mut encoder, &step, 0, Rows::new(&residual, element), RESIDUAL_WIDTH).unwrap();
    }
    walk.cache.append(&mut encoder, &step, 0, keys, values).unwrap();
    walk.cache.attend(&mut encoder, &step, 0, queries, output).unwrap();
    submit(&gpu, encoder);
    words(&gpu, &buffers[3])
}

/// Runs the twins of all kernels that take the caller's rows, and returns all that they write.
fn twins(walk: &Walk, taken: &Taken, at: [Option<Strides>; 4], [keys, values, queries, output]: [&[u32]; 4]) -> Vec<Vec<u32>> {
    let [keys_at, values_at, queries_at, output_at] = at;
    let (step, turns) = (taken.step.words(), &walk.turns);
    let mut written = Vec::new();
    for (n, constants) in walk.slab_constants.iter().enumerate() {
        let c = Constants { keys_at, values_at, queries_at, output_at, ..*constants };
        let (before, mut pages, mut status) = (&taken.before, taken.before.pages[n].clone(), vec![0; 64]);
        let packs = if walk.plan().packs_blocks(&walk.plan().slabs(0)[n]) { reference::append_block } else { reference::append };
        packs(&step.append[n], &c, &step.tables, turns, keys, values, &before.protected_rows, &before.marks, &mut pages, &mut status);
        if let Some(params) = step.append_reordered.get(n) {
            let mut scales = before.key_scales.clone();
            let (rows, marks) = (&before.protected_rows, &before.marks);
            reference::append_reordered(params, &c, &step.tables, turns, keys, rows, marks, &mut pages, &mut scales, &mut status);
            written.push(scales);
        }
        written.extend([pages, status]);
    }
    let c = Constants { keys_at, values_at, queries_at, output_at, ..walk.constants };
    let (mut protected_rows, mut status) = (taken.before.protected_rows.clone(), vec![0; 64]);
    reference::protect(&step.protect[0], &c, &step.tables, turns, keys, values, &taken.after.marks, &mut protected_rows, &mut status);
    let [query_rows, query_codes, partials, row_partials] = &taken.scratch;
    let (mut rows, mut codes, marks) = (vec![0.0; query_rows.len()], query_codes.clone(), &taken.after.marks);
    reference::query(&step.query[0], &c, taken.step.rows(), &step.tables, turns, queries, marks, &mut rows, &mut codes);
    let mut terms = vec![0.0; taken.positions.len()];
    let (params, items) = &step.position[0];
    if *items > 0 {
        reference::position(params, &c, *items, &step.tables, turns, queries, marks, &mut terms);
    }
    let mut merged = output.to_vec();
    let (params, count) = &step.attend_merge[0];
    let [partials, row_partials, given] = [partials, row_partials, query_rows].map(|words| floats(words));
    reference::attend_merge(params, &c, *count, &step.tables, partials, row_partials, marks, given, &mut merged, None);
    written.extend([protected_rows, status, bytemuck::cast_vec(rows), codes, bytemuck::cast_vec(terms)]);
    // Last, since it lies where the output does.
    written.push(merged);
    written
}

#[test]
fn every_layout_gives_what_dense_rows_give() {
    let gpu = gpu();
    let mut kernels = std::collections::HashSet::new();
    for case in cases() {
        let mut dense = Walk::new(&gpu, case);
        let mut strided = Walk::new(&gpu, dense.case.clone());
        let (element, shape, seed) = (dense.case.element, dense.case.shape.clone(), dense.seed);
        kernels.extend(wgkv::low_level::kernel::variants(dense.plan()).iter().map(|variant| variant.kernel.name));
        let written = if element.bytes() == 2 { 2 } else { 1 };
        for chunks in dense.case.steps.clone() {
            let want = dense.take(&chunks, true);
            let (rows, d) = (want.step.rows(), shape.head_dim);
            let chunk = chunks.iter().all(|(_, tokens)| *tokens == chunks[0].1).then_some(chunks[0].1);
            let dims = [shape.kv_heads, shape.kv_heads, shape.query_heads, shape.query_heads].map(|heads| [rows, heads, d]);
            let spots = [0, 1, 2, 3].map(|n| draw(&mut dense.random, dims[n], chunk, if n == 3 { written } else { 1 }));
            let mut laid = Laid { dims, spots, bytes: [0, 1, 2, 3].map(|n| room(dims[n], d, &spots[n], element)) };
            for (n, input) in [&want.keys, &want.values, &want.queries].into_iter().enumerate() {
                lay(&mut laid.bytes[n], &input.words, dims[n], &spots[n], element);
            }
            let output = take(&mut strided, &want, &laid);
            let name = format!("{}, {chunks:?}, {spots:?}. WGKV_SEED={seed}", dense.case.why);
            let state = strided.state();
            assert!(state == want.after, "other pages, f16 rows, scales or marks: {name}");
            // Poison between the rows.
            let expected = |dense: &[u32]| {
                let mut expected = laid.bytes[3].clone();
                lay(&mut expected, dense, laid.dims[3], &spots[3], element);
                words_of(&expected)
            };
            assert!(output == expected(&want.output), "another output, or something written beside it: {name}");
            let given = laid.bytes.each_ref().map(|bytes| words_of(bytes));
            let mut plain = twins(&dense, &want, [None; 4], [&want.keys.words, &want.values.words, &want.queries.words, &vec![POISON; want.output.len()]]);
            let twin = twins(&dense, &want, spots.map(|spot| spot.twin()), given.each_ref().map(|words| &words[..]));
            let last = plain.pop().unwrap();
            plain.push(expected(&last));
            assert!(twin == plain, "the twins give something else: {name}");
        }
    }
    let all = [append_block::KERNEL.name, append_reordered::KERNEL.name, position::KERNEL.name, protect::KERNEL.name, "append", "query", "attend_merge"];
    assert!(all.iter().all(|kernel| kernels.contains(kernel)), "{kernels:?}");
}

#[test]
fn queries_keys_values_and_output_may_share_the_rows_of_one_buffer() {
    let gpu = gpu();
    for case in [
        case("f32", 64, 6, 2, rtn(Bits::Four, Bits::Four, 64)),
        case("bf16", 64, 6, 2, centred(Bits::Four, Bits::Four, 64)).element(Element::Bf16).protection(protect(4, 16)),
        case("bf16, decoded from the caller's rows at once", 64, 6, 2, centred(Bits::Four, Bits::Two, 64))
            .element(Element::Bf16)
            .protection(protect(4, 16))
            .direct(),
        case("f16", 80, 6, 2, rotated(Bits::Four, Bits::Four, 128, 2)).element(Element::F16),
    ] {
        let steps = vec![vec![(0, 40), (1, 40)], vec![(0, 1), (1, 1)], vec![(1, 3), (0, 140)], vec![(1, 1)]];
        let mut dense = Walk::new(&gpu, case.steps(steps.clone()));
        // By sections, and by KV head: its queries, its key, its value.
        for grouped in [false, true] {
            let mut apart = Walk::new(&gpu, dense.case.clone());
            let mut fused = Walk::new(&gpu, dense.case.clone());
            let (element, shape, seed) = (dense.case.element, dense.case.shape.clone(), dense.seed);
            let (hq, hk, d) = (shape.query_heads, shape.kv_heads, shape.head_dim);
            for chunks in &steps {
                let numbers = dense.draw(chunks.iter().map(|(_, tokens)| tokens).sum());
                let want = apart.take_rows(chunks, numbers, true);
                let rows = want.step.rows();
                let pad = 2 * dense.random.random_range(0..20);
                let base = 2 * dense.random.random_range(0..60);
                let token = (2 * hq + 2 * hk) * d + pad;
                let spot = |first: u32| Spot {
                    layout: RowLayout::Strided { token_stride: token, head_stride: d },
                    base: base + first * d,
                    tokens: rows,
                    strides: [0, token, d],
                };
                let dims = [hk, hk, hq, hq].map(|heads| [rows, heads, d]);
                let [keys, values, queries, output] = [hq, hq + hk, 0, hq + 2 * hk].map(spot);
                // Where KV heads take turns, a key is followed by the other head's value.
                let turn = |spot: Spot, first: u32| Spot {
                    layout: RowLayout::Strided { token_stride: token, head_stride: 2 * d },
                    base: base + (hq + first) * d,
                    strides: [0, token, 2 * d],
                    ..spot
                };
                let (keys, values) = if grouped { (turn(keys, 0), turn(values, 1)) } else { (keys, values) };
                let mut bytes = POISON.to_le_bytes().repeat((((base + rows * token) * element.bytes() as u32) as usize).div_ceil(4));
                for (spot, dims, input) in [(&keys, dims[0], &want.keys), (&values, dims[1], &want.values), (&queries, dims[2], &want.queries)] {
                    lay(&mut bytes, &input.words, dims, spot, element);
                }
                let buffer = upload(&fused.gpu, floats(&words_of(&bytes)));
                let named: Vec<Chunk> = chunks.iter().map(|(s, tokens)| Chunk { sequence: fused.sequences[*s], tokens: *tokens }).collect();
                let step = fused.cache.step(&named).unwrap();
                let [keys, values, queries, out] = [keys, values, queries, output].map(|spot| of(&buffer, &spot, element));
                let mut encoder = self::encoder(&fused.gpu);
                fused.cache.append(&mut encoder, &step, 0, keys, values).unwrap();
                fused.cache.attend(&mut encoder, &step, 0, queries, out).unwrap();
                submit(&fused.gpu, encoder);
                assert!(fused.state() == want.after, "{}, {chunks:?}: other pages. WGKV_SEED={seed}", fused.case.why);
                lay(&mut bytes, &want.output, dims[3], &output, element);
                assert!(words(&fused.gpu, &buffer) == words_of(&bytes), "{}, {chunks:?}: another output. WGKV_SEED={seed}", fused.case.why);
                // In place of the queries.
                let mut encoder = self::encoder(&fused.gpu);
                fused.cache.attend(&mut encoder, &step, 0, queries, queries).unwrap();
                submit(&fused.gpu, encoder);
                lay(&mut bytes, &want.output, dims[2], &spot(0), element);
                assert!(words(&fused.gpu, &buffer) == words_of(&bytes), "{}, {chunks:?}: another in place. WGKV_SEED={seed}", fused.case.why);
            }
        }
    }
}

#[test]
fn bf16_rows_are_f32_rows_of_the_same_numbers_and_the_output_is_rounded() {
    let gpu = gpu();
    for case in [case("rounded", 64, 4, 2, hadamard(Bits::Four, Bits::Four, 64)), case("not rotated", 96, 4, 2, Format::f16())] {
        let mut brief = Walk::new(&gpu, case.protection(protect(4, 16)).element(Element::Bf16));
        let mut long = Walk::new(&gpu, brief.case.clone().element(Element::F32));
        for chunks in [vec![(0, 150)], vec![(0, 1)], vec![(0, 3)]] {
            let mut rows = brief.draw(chunks[0].1);
            // A query that is not finite has an output of NaN.
            rows[2][5] = f32::NAN;
            let got = brief.take_rows(&chunks, rows, true);
            let want = long.take_rows(&chunks, [&got.keys, &got.values, &got.queries].map(|input| input.numbers.clone()), true);
            assert!(got.after == want.after, "WGKV_SEED={}", brief.seed);
            for (got, want) in brief.output(&got).iter().zip(long.output(&want)) {
                let rounded = half::bf16::from_f32(want).to_f32();
                assert!(got.to_bits() == rounded.to_bits() || (got.is_nan() && rounded.is_nan()), "{got:e} of {want:e}. WGKV_SEED={}", brief.seed);
            }
            assert!(brief.output(&got)[..brief.case.shape.head_dim as usize].iter().all(|x| x.is_nan()));
        }
    }
}
