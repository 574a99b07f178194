//! The twin of `shaders/append.wgsl`.

use super::cached::{offset, window_row};
use super::centre::Centred;
use super::fit::{Order, fit};
use super::half::{half_bits, half_pair, half_saturates, unpack};
use super::protect::fresh;
use super::{Constants, code_planes, finite, planes, report, scales, trellis};
use crate::kernel::append::AppendParams;

/// Packs new keys and values into pages; for RotateKV the values only. Shader:
/// `shaders/append.wgsl`.
///
/// `turns` is as [`turns`](super::turns), `keys` and `values` `[rows, kv_heads, head_dim]` in f32,
/// f16 or bf16, `protected_rows` `[slot, kv_heads, sinks + ring, head_dim]`, `marks` for Centred means
/// and weights, `pages` `[physical page, slab head, 4 * page_vecs]`, `status` the count, three
/// words of padding, then entries of four words.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub fn append(
    params: &AppendParams,
    constants: &Constants,
    tables: &[u32],
    turns: &[[f32; 2]],
    keys: &[u32],
    values: &[u32],
    protected_rows: &[u32],
    marks: &[u32],
    pages: &mut [u32],
    status: &mut [u32],
) {
    pack(Order::Eights, params, constants, tables, turns, keys, values, protected_rows, marks, pages, status);
}

/// Packs as either kernel does. The two add up a group's numbers in different orders.
#[expect(clippy::too_many_arguments, reason = "the shader's bindings, in their order")]
pub(super) fn pack(
    order: Order,
    params: &AppendParams,
    constants: &Constants,
    tables: &[u32],
    turns: &[[f32; 2]],
    keys: &[u32],
    values: &[u32],
    protected_rows: &[u32],
    marks: &[u32],
    pages: &mut [u32],
    status: &mut [u32],
) {
    let c = constants;
    for (n, slab_head) in (0..params.items).flat_map(|n| (0..params.slab_heads).map(move |z| (n, z))) {
        let item = (params.items_at + 2 * n) as usize;
        let (chunk, block) = (tables[item] as usize, tables[item + 1]);
        let slot = tables[chunk];
        let old_tokens = tables[chunk + 1];
        let old_packed = tables[chunk + 3];
        let new_packed = tables[chunk + 4];
        let page = tables[tables[chunk + 5].wrapping_add(block * c.block / 128) as usize];
        let row_first = tables[chunk + 6];
        let head = tables[(params.heads_at + slab_head) as usize];
        let at = ((page * params.slab_heads + slab_head) * (4 * c.page_vecs)) as usize;
        let page = &mut pages[at..at + 4 * c.page_vecs as usize];
        let first = (c.block * block).max(old_packed.max(c.unpacked));
        let mut largest = Largest::of(c, page, first != (c.block * block).max(c.unpacked));
        for t in first..(c.block * block + c.block).min(new_packed) {
            let (key, value, mut what) = if t >= old_tokens {
                fresh(c, turns, keys, values, &Centred::of(c, marks, head), [row_first + t - old_tokens, params.kv_heads, head], t, false)
            } else {
                kept(c, protected_rows, offset(c, slot, params.kv_heads, head, window_row(c, t)))
            };
            if !c.keys {
                what &= 2;
            }
            let saturate = |row: &[f32]| row.iter().any(|x| half_saturates(*x));
            let [key_beyond, value_beyond] = if c.planes {
                largest.pack(c, page, t, &key, &value);
                [saturate(&key), saturate(&value)]
            } else {
                [c.keys && pack_key(c, order, page, t, &key), pack_value(c, order, page, t, &value)]
            };
            what |= u32::from(key_beyond) << 2 | u32::from(value_beyond) << 3;
            if what != 0 {
                report(status, params.layer, slot, t, head, what);
            }
        }
    }
}

/// The largest exponents of a page's keys, then of its values, by channel.
struct Largest {
    exponents: Vec<u8>,
}

impl Largest {
    fn words(c: &Constants) -> std::ops::Range<usize> {
        let first = 4 * c.maxima as usize;
        first..first + c.head_dim as usize / 2
    }

    /// Returns the exponents of the page's earlier tokens, or none.
    fn of(c: &Constants, page: &[u32], continued: bool) -> Self {
        let exponents =
            if c.planes && continued { page[Self::words(c)].iter().flat_map(|word| word.to_le_bytes()).collect() } else { vec![0; 2 * c.head_dim as usize] };
        Self { exponents }
    }

    /// Packs one token's key and value in planes.
    fn pack(&mut self, c: &Constants, page: &mut [u32], t: u32, key: &[f32], value: &[f32]) {
        for (i, (x, largest)) in key.iter().chain(value).zip(&mut self.exponents).enumerate() {
            let half = half_bits(*x) as u16;
            *largest = (*largest).max((half >> 10 & 31) as u8);
            match (i as u32).checked_sub(c.head_dim) {
                None => planes::put(c.head_dim, page, 128, i as u32, t % 128, half),
                Some(i) => planes::put(c.head_dim, &mut page[4 * c.values as usize..], c.head_dim, t % 128, i, half),
            }
        }
        for (word, four) in page[Self::words(c)].iter_mut().zip(self.exponents.chunks_exact(4)) {
            *word = four.iter().rev().fold(0, |word, exponent| word << 8 | u32::from(*exponent));
        }
    }
}

/// Returns the key and value of a token that leaves the window, which were turned and rotated when
/// it entered.
fn kept(c: &Constants, protected_rows: &[u32], at: u32) -> (Vec<f32>, Vec<f32>, u32) {
    let take = |first: u32| -> Vec<f32> {
        let row: Vec<f32> = (0..c.head_dim / 2).flat_map(|i| unpack(protected_rows[(first + i) as usize])).collect();
        row
    };
    let (key, value) = (take(at), take(at + c.head_dim / 2));
    let broken = |row: &[f32]| !row.iter().all(|x| finite(*x));
    let what = u32::from(broken(&key)) | (u32::from(broken(&value)) << 1);
    let zeros = |row: Vec<f32>| if broken(&row) { vec![0.0; row.len()] } else { row };
    (zeros(key), zeros(value), what)
}

/// Packs one token's key; returns whether it saturates.
fn pack_key(c: &Constants, order: Order, page: &mut [u32], t: u32, key: &[f32]) -> bool {
    if c.key_bits == 16 {
        for (i, pair) in key.chunks_exact(2).enumerate() {
            page[128 * i + (t % 128) as usize] = half_pair(pair[0], pair[1]);
        }
        return key.iter().any(|x| half_saturates(*x));
    }
    // Codes of eight bits lie in memory as signed bytes, so that one signed dot product serves
    // every width.
    let (flip, less) = if c.key_bits == 8 { (128, 128.0) } else { (0, 0.0) };
    let mut codes = Vec::new();
    let mut beyond = false;
    for (g, group) in key.chunks_exact(c.key_group as usize).enumerate() {
        let fitted = if c.key_trellis { trellis::fit(order, true, group) } else { fit(c.scales, order, group, c.key_bits, c.key_clip, less) };
        beyond |= fitted.beyond;
        codes.extend(fitted.codes.iter().map(|code| code ^ flip));
        scales::put(c.scales, page, c.key_scales + g as u32 * scales::vecs(c.scales), t, fitted.pair);
    }
    key_words(c, page, t, &codes);
    beyond
}

/// Writes the words of one token's key codes into its head's page. Shader:
/// `shaders/part/shared/key_words.wgsl`.
pub(super) fn key_words(c: &Constants, page: &mut [u32], t: u32, codes: &[u32]) {
    if c.code_planes {
        (0..).zip(codes).for_each(|(i, code)| code_planes::put(c.head_dim, c.key_bits, page, 32, i, t % 128, *code));
        return;
    }
    let key_at = |word: u32| (128 * word + t % 128) as usize;
    let bits = if c.key_bits == 3 { 2 } else { c.key_bits };
    let shifts = 8 / bits as usize;
    // A byte lane holds four consecutive channels, at multiples of `bits`.
    for (w, channels) in codes.chunks(4 * shifts).enumerate() {
        let quad = |quad: &[u32]| quad.iter().rev().fold(0, |word, code| word << 8 | (code & ((1 << bits) - 1)));
        page[key_at(w as u32)] = channels.chunks_exact(4).enumerate().fold(0, |word, (j, channels)| word | quad(channels) << (j as u32 * bits));
    }
    if c.key_bits == 3 {
        for (w, channels) in codes.chunks(32).enumerate() {
            let quad = |quad: &[u32]| quad.iter().rev().fold(0, |word, code| word << 8 | code >> 2);
            page[key_at(c.head_dim / 16 + w as u32)] = channels.chunks_exact(4).enumerate().fold(0, |word, (j, channels)| word | quad(channels) << j);
        }
    }
}

/// Replaces the bits of one code in a word.
fn put(word: &mut u32, mask: u32, shift: u32, code: u32) {
    *word = (*word & !(mask << shift)) | (code << shift);
}

/// Packs one token's value; returns whether it saturates.
fn pack_value(c: &Constants, order: Order, page: &mut [u32], t: u32, value: &[f32]) -> bool {
    let (lane, corner) = (t % 128 / 4, t % 4);
    let value_at = |word: u32, i: usize| (4 * c.values + word * c.head_dim) as usize + i;
    if c.value_bits == 16 {
        for (i, x) in value.iter().enumerate() {
            put(&mut page[value_at(t % 128 / 2, i)], 0xffff, 16 * (t % 2), half_bits(*x));
        }
        return value.iter().any(|x| half_saturates(*x));
    }
    let bits = if c.value_bits == 3 { 2 } else { c.value_bits };
    let shifts = 8 / bits;
    let mask = (1 << bits) - 1;
    let mut beyond = false;
    for (g, group) in value.chunks_exact(c.value_group as usize).enumerate() {
        let fitted = if c.value_trellis { trellis::fit(order, false, group) } else { fit(c.scales, order, group, c.value_bits, c.value_clip, 0.0) };
        beyond |= fitted.beyond;
        for (e, code) in fitted.codes.iter().enumerate() {
            let i = g * c.value_group as usize + e;
            if c.code_planes {
                code_planes::put(c.head_dim, c.value_bits, &mut page[4 * c.values as usize..], c.head_dim / 4, t % 128, i as u32, *code);
                continue;
            }
            put(&mut page[value_at(lane / shifts, i)], mask, lane % shifts * bits + 8 * corner, code & mask);
            if c.value_bits == 3 {
                put(&mut page[value_at(8 + lane / 8, i)], 1, lane % 8 + 8 * corner, code >> 2);
            }
        }
        scales::put(c.scales, page, c.value_scales + g as u32 * scales::vecs(c.scales), t, fitted.pair);
    }
    beyond
}
