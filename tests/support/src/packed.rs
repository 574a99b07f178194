//! What lies in a page and in RotateKV's plane of key scales, read from the description of
//! [`PageLayout`](wgkv::low_level::PageLayout), not from the kernels.

use wgkv::aligned::Alignment;
use wgkv::low_level::Slab;
use wgkv::low_level::reference::half::unpack;
use wgkv::{Bits, Codec, Plan, Scales};

/// One token's key or value of one head as it lies in a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// One a channel; for f16 the bits of the half.
    pub codes: Vec<u32>,
    /// Stored scale of each group; none for RotateKV's keys, which share scales over heads.
    pub scales: Vec<f32>,
    /// Zero of each group, as codes count: the 128 that signed key bytes lack is added again.
    pub zeros: Vec<f32>,
}

/// One head's page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Page<'a> {
    /// The slab that it lies in.
    pub slab: &'a Slab,
    /// Channels of the head.
    pub head_dim: u32,
    /// Whether integer codes are stored in planes.
    pub code_planes: bool,
    /// What lies there.
    pub words: &'a [u32],
}

/// Returns one head's page of layer 0.
pub fn page<'a>(plan: &'a Plan, slabs: &'a [Vec<u32>], physical: u32, head: u32) -> Page<'a> {
    page_of(plan, 0, slabs, physical, head)
}

/// Returns one head's page of a layer.
pub fn page_of<'a>(plan: &'a Plan, layer: u32, slabs: &'a [Vec<u32>], physical: u32, head: u32) -> Page<'a> {
    let (slab, words) = plan.slabs(layer).iter().zip(slabs).find(|(slab, _)| slab.heads().contains(&head)).expect("a slab has every head");
    let vecs = slab.layout().vecs as usize;
    let place = slab.heads().iter().position(|h| *h == head).expect("it has") as u32;
    let at = (physical * slab.count() + place) as usize * 4 * vecs;
    let code_planes = plan.alignment() != Alignment::EVERYTHING && slab.format().codec() != Codec::AlignedF16;
    Page { slab, head_dim: plan.shape().head_dim, code_planes, words: &words[at..at + 4 * vecs] }
}

/// Returns an E4M3 float: four bits of exponent, biased by 7, three of fraction; no infinity.
fn float8(bits: u32) -> f32 {
    let (exponent, fraction) = ((bits >> 3 & 15) as i32, (bits & 7) as f32);
    if exponent == 0 { fraction * 2_f32.powi(-9) } else { (8.0 + fraction) * 2_f32.powi(exponent - 10) }
}

/// Returns the scale and zero of a token (0 to 127) in a group's plane, which begins with these words.
fn scale(slab: &Slab, plane: &[u32], token: u32) -> (f32, f32) {
    match slab.format().scales() {
        Scales::Half => {
            let [scale, zero] = unpack(plane[token as usize]);
            (scale, zero)
        }
        Scales::Symmetric => {
            let two = plane[token as usize / 2] >> (16 * (token % 2));
            (f32::from_bits((two & 0xffff) << 13) * 2_f32.powi(96), 0.0)
        }
        Scales::Byte => {
            let two = plane[token as usize / 2] >> (16 * (token % 2));
            (float8(two & 0xff), f32::from((two >> 8) as u8 as i8))
        }
        other => panic!("scales {other} are unknown here"),
    }
}

fn scales(slab: &Slab, page: &[u32], plane: u32, groups: u32, token: u32, offset: f32) -> (Vec<f32>, Vec<f32>) {
    (0..groups)
        .map(|g| {
            let (scale, zero) = scale(slab, &page[4 * (plane + g * slab.layout().scale_vecs) as usize..], token);
            (scale, zero + offset)
        })
        .unzip()
}

/// Returns the scales and zeros of RotateKV's keys of one token (0 to 127 in its page), by group of its
/// whole row.
pub fn row_scales(plan: &Plan, key_scales: &[u32], physical: u32, token: u32) -> (Vec<f32>, Vec<f32>) {
    let slab = &plan.slabs(0)[0];
    let layout = slab.layout();
    scales(slab, key_scales, physical * layout.row_groups * layout.scale_vecs, layout.row_groups, token, signed(slab.format().key().bits))
}

/// Returns what is taken from zeros of keys, whose bytes are signed.
fn signed(bits: Bits) -> f32 {
    if bits == Bits::Eight { 128.0 } else { 0.0 }
}

/// Returns a half of AlignedF16's planes, which begin with these words: number `n` of a row of
/// `length`.
fn planes(words: &[u32], head_dim: u32, length: u32, row: u32, n: u32) -> u32 {
    let byte = [0, 2, 1, 3].iter().position(|of| *of == n % 4).expect("one of four");
    let nibble = [0, 2, 4, 6, 1, 3, 5, 7].iter().position(|of| *of == n % 8).expect("one of eight");
    let first = words[(row * length / 4 + n / 4) as usize] >> (8 * byte) & 255;
    let [middle, last] = [32, 48].map(|plane| words[(plane * head_dim + row * length / 8 + n / 8) as usize] >> (4 * nibble) & 15);
    first << 8 | middle << 4 | last
}

/// Returns a code of planes, which begin with these words: of channel (or token) `unit`, among
/// `quads` times four tokens (channels) number `n`.
fn code_planes(words: &[u32], head_dim: u32, bits: u32, quads: u32, unit: u32, n: u32) -> u32 {
    let take = |at: u32, shift: u32, width: u32| words[at as usize] >> (8 * (unit % 4) + shift) & ((1 << width) - 1);
    let row = unit / 4 * quads + n / 4;
    let two = |plane: u32| take(plane + row, 2 * (n % 4), 2);
    if bits == 4 {
        return two(0) << 2 | two(8 * head_dim);
    }
    let first = take((2 * (unit / 4) + n % 2) * quads + n / 4, 4 * (n % 4 / 2), 4);
    first << 4 | two(16 * head_dim) << 2 | two(24 * head_dim)
}

/// Returns the largest exponent of each channel's keys, then of its values, of AlignedF16's page.
pub fn maxima(page: Page<'_>) -> Vec<u32> {
    let words = &page.words[4 * page.slab.layout().maxima as usize..];
    (0..2 * page.head_dim as usize).map(|i| words[i / 4] >> (8 * (i % 4)) & 255).collect()
}

/// Returns the key of a token (0 to 127 in its page).
pub fn key(page: Page<'_>, token: u32) -> Packed {
    let (layout, bits) = (page.slab.layout(), page.slab.format().key().bits.get());
    let word = |w: u32| page.words[(4 * (w * 32 + token / 4) + token % 4) as usize];
    let aligned = page.slab.format().codec() == Codec::AlignedF16;
    let code = |channel: u32| {
        let (quad, byte) = (channel / 4, channel % 4);
        match bits {
            _ if page.code_planes => code_planes(page.words, page.head_dim, bits, 32, channel, token) ^ if bits == 8 { 128 } else { 0 },
            16 if aligned => planes(page.words, page.head_dim, 128, channel, token),
            16 => word(channel / 2) >> (16 * (channel % 2)) & 0xffff,
            3 => (word(quad / 4) >> (2 * (quad % 4) + 8 * byte) & 3) | (word(layout.key_steps + quad / 8) >> (quad % 8 + 8 * byte) & 1) << 2,
            _ => {
                let shifts = 8 / bits;
                let code = word(quad / shifts) >> (bits * (quad % shifts) + 8 * byte) & ((1 << bits) - 1);
                if bits == 8 { code ^ 128 } else { code }
            }
        }
    };
    let (scales, zeros) = scales(page.slab, page.words, layout.key_scales, layout.key_groups, token, signed(page.slab.format().key().bits));
    Packed { codes: (0..page.head_dim).map(code).collect(), scales, zeros }
}

/// Returns the value of a token (0 to 127 in its page).
pub fn value(page: Page<'_>, token: u32) -> Packed {
    let (layout, bits, head_dim) = (page.slab.layout(), page.slab.format().value().bits.get(), page.head_dim);
    let (quad, byte) = (token / 4, token % 4);
    let aligned = page.slab.format().codec() == Codec::AlignedF16;
    let code = |channel: u32| {
        let word = |w: u32| page.words[(4 * (layout.values + w * head_dim / 4 + channel / 4) + channel % 4) as usize];
        match bits {
            _ if page.code_planes => code_planes(&page.words[4 * layout.values as usize..], head_dim, bits, head_dim / 4, token, channel),
            16 if aligned => planes(&page.words[4 * layout.values as usize..], head_dim, head_dim, token, channel),
            16 => word(token / 2) >> (16 * (token % 2)) & 0xffff,
            3 => (word(quad / 4) >> (2 * (quad % 4) + 8 * byte) & 3) | (word(layout.value_steps + quad / 8) >> (quad % 8 + 8 * byte) & 1) << 2,
            _ => {
                let shifts = 8 / bits;
                word(quad / shifts) >> (bits * (quad % shifts) + 8 * byte) & ((1 << bits) - 1)
            }
        }
    };
    let (scales, zeros) = scales(page.slab, page.words, layout.value_scales, layout.value_groups, token, 0.0);
    Packed { codes: (0..head_dim).map(code).collect(), scales, zeros }
}
