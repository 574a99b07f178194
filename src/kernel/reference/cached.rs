//! Four consecutive channels of one cached token, wherever it lies. Shader:
//! `shaders/part/shared/cached.wgsl`.

use super::half::unpack;
use super::{Constants, code_planes, planes, scales, trellis};

/// Where one sequence's tokens of one KV head lie.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The sequence's place in `protected_rows`.
    pub slot: u32,
    /// Tokens before this one lie in pages (but for the sinks).
    pub packed: u32,
    /// The sequence's list of physical pages, in `tables`.
    pub list: u32,
    /// KV head.
    pub head: u32,
    /// KV heads of the layer.
    pub kv_heads: u32,
    /// The head's place in the slab.
    pub slab_head: u32,
    /// KV heads of the slab.
    pub slab_heads: u32,
    /// Elected sinks from this token on are of a past that was cut off.
    pub limit: u32,
}

/// What the tokens are read from: the bindings `tables`, `marks`, `pages` and `protected_rows`.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    /// The shader's overrides.
    pub constants: &'a Constants,
    /// Lists of physical pages.
    pub tables: &'a [u32],
    /// Groups of key channels, then by slot the elected sinks.
    pub marks: &'a [u32],
    /// `[physical page, slab head, 4 * page_vecs]`.
    pub pages: &'a [u32],
    /// `[slot, kv_heads, sinks + ring, head_dim]`.
    pub protected_rows: &'a [u32],
}

/// Returns where an f16 row begins in `protected_rows`.
pub fn offset(constants: &Constants, slot: u32, kv_heads: u32, head: u32, s: u32) -> u32 {
    ((slot * kv_heads + head) * (constants.sinks + constants.ring) + s) * constants.head_dim
}

/// Returns the f16 row of the window that a token has.
pub fn window_row(constants: &Constants, t: u32) -> u32 {
    constants.sinks + t % constants.ring.max(1)
}

/// Returns where a slot's elected sinks begin in the marks.
pub fn elected(constants: &Constants, slot: u32) -> usize {
    (constants.elected_at + slot * 3 * constants.sinks) as usize
}

impl Store<'_> {
    /// Returns the token that f16 row `s` of the sinks keeps, or one beyond all.
    pub fn sink(&self, place: &Place, s: u32) -> u32 {
        if !self.constants.massive {
            return s;
        }
        let t = self.marks[elected(self.constants, place.slot) + s as usize];
        if t < place.limit { t } else { u32::MAX }
    }

    /// Returns where the f16 row `s` of the place begins.
    pub fn offset(&self, place: &Place, s: u32) -> u32 {
        offset(self.constants, place.slot, place.kv_heads, place.head, s)
    }

    /// Returns where the token's f16 row begins, if it has one.
    pub fn row(&self, place: &Place, t: u32) -> Option<u32> {
        let c = self.constants;
        let mut row = (t >= place.packed).then(|| self.offset(place, window_row(c, t)));
        if c.massive {
            for s in 0..c.sinks {
                if self.sink(place, s) == t {
                    row = Some(self.offset(place, s));
                }
            }
        } else if t < c.sinks {
            row = Some(self.offset(place, t));
        }
        row
    }

    /// Returns whether that row is one of the elected sinks, whose keys keep their mean (Centred).
    pub fn is_elected(&self, place: &Place, row: Option<u32>) -> bool {
        self.constants.massive && row.is_some_and(|row| row < self.offset(place, self.constants.sinks))
    }

    fn halves(&self, at: u32) -> [f32; 4] {
        let [a, b] = unpack(self.protected_rows[at as usize]);
        let [c, d] = unpack(self.protected_rows[at as usize + 1]);
        [a, b, c, d]
    }

    fn page(&self, place: &Place, t: u32) -> u32 {
        (self.tables[place.list.wrapping_add(t / 128) as usize] * place.slab_heads + place.slab_head) * self.constants.page_vecs
    }

    /// Returns component `corner` of a `vec4<u32>` of the pages.
    fn vec(&self, at: u32, corner: u32) -> u32 {
        self.pages[(4 * at + corner) as usize]
    }

    /// Returns channels `4 * quad ..` of the key of token `t`, whose [`Store::row`] is `row`.
    pub fn key(&self, place: &Place, t: u32, row: Option<u32>, quad: u32) -> [f32; 4] {
        let c = self.constants;
        if let Some(row) = row {
            return self.halves(row + 2 * quad);
        }
        let page = self.page(place, t);
        let lane = t % 128 / 4;
        let corner = t % 4;
        if c.planes {
            let words = &self.pages[4 * page as usize..];
            return [0, 1, 2, 3].map(|e| unpack(planes::take(c.head_dim, words, 128, 4 * quad + e, t % 128).into())[0]);
        }
        if c.key_bits == 16 {
            let at = page + 2 * quad * 32 + lane;
            let ([x, y], [z, w]) = (unpack(self.vec(at, corner)), unpack(self.vec(at + 32, corner)));
            return [x, y, z, w];
        }
        let [scale, zero] = scales::key(c, self.pages, page + c.key_scales + 4 * quad / c.key_group * scales::vecs(c.scales), t);
        if c.code_planes {
            let words = &self.pages[4 * page as usize..];
            return [0, 1, 2, 3].map(|e| scale * (f32::from(code_planes::take(c.head_dim, c.key_bits, words, 32, 4 * quad + e, t % 128) as u8 as i8) - zero));
        }
        let bits = if c.key_bits == 3 { 2 } else { c.key_bits };
        let shifts = 8 / bits;
        let mut word = (self.vec(page + quad / shifts * 32 + lane, corner) >> (quad % shifts * bits)) & (((1 << bits) - 1) * 0x0101_0101);
        if c.key_bits == 3 {
            let high = self.vec(page + (c.head_dim / 16 + quad / 8) * 32 + lane, corner) >> (quad % 8);
            word |= (high & 0x0101_0101) << 2;
        }
        if c.key_trellis {
            let words = c.key_group / 16;
            let (w, first) = (quad / 4, quad / 4 / words * words);
            let before = if w == first { first + words - 1 } else { w - 1 };
            let [low, high] = [before, w].map(|w| self.vec(page + w * 32 + lane, corner));
            word = trellis::word_levels(high, low)[quad as usize % 4];
        }
        word.to_le_bytes().map(|code| scale * (f32::from(code as i8) - zero))
    }

    /// Returns channels `4 * quad ..` of the value of token `t`, whose [`Store::row`] is `row`.
    pub fn value(&self, place: &Place, t: u32, row: Option<u32>, quad: u32) -> [f32; 4] {
        let c = self.constants;
        if let Some(row) = row {
            return self.halves(row + c.head_dim / 2 + 2 * quad);
        }
        let page = self.page(place, t);
        let lane = t % 128 / 4;
        let corner = t % 4;
        let channels = [0, 1, 2, 3];
        if c.planes {
            let words = &self.pages[4 * (page + c.values) as usize..];
            return channels.map(|e| unpack(planes::take(c.head_dim, words, c.head_dim, t % 128, 4 * quad + e).into())[0]);
        }
        if c.value_bits == 16 {
            let at = page + c.values + t % 128 / 2 * (c.head_dim / 4) + quad;
            return channels.map(|e| unpack(self.vec(at, e) >> (16 * (t % 2)))[0]);
        }
        let [scale, zero] = scales::value(c, self.pages, page + c.value_scales + 4 * quad / c.value_group * scales::vecs(c.scales), t);
        if c.code_planes {
            let words = &self.pages[4 * (page + c.values) as usize..];
            return channels.map(|e| scale * (code_planes::take(c.head_dim, c.value_bits, words, c.head_dim / 4, t % 128, 4 * quad + e) as f32 - zero));
        }
        let bits = if c.value_bits == 3 { 2 } else { c.value_bits };
        let shifts = 8 / bits;
        let at = page + c.values + lane / shifts * (c.head_dim / 4) + quad;
        let mut codes = channels.map(|e| (self.vec(at, e) >> (lane % shifts * bits + 8 * corner)) & ((1 << bits) - 1));
        if c.value_bits == 3 {
            let at = page + c.values + (8 + lane / 8) * (c.head_dim / 4) + quad;
            for e in channels {
                codes[e as usize] |= ((self.vec(at, e) >> (lane % 8 + 8 * corner)) & 1) << 2;
            }
        }
        if c.value_trellis {
            let quads = c.value_group / 4;
            let first = quad / quads * quads;
            let before = if quad == first { first + quads - 1 } else { quad - 1 };
            let at = page + c.values + lane / shifts * (c.head_dim / 4) + before;
            let two = [2, 3].map(|e| (self.vec(at, e) >> (lane % shifts * bits + 8 * corner)) & 3);
            let symbols = [two[0], two[1], codes[0], codes[1], codes[2], codes[3]];
            codes = [0, 1, 2, 3].map(|e| trellis::level(symbols[e + 2], symbols[e + 1], symbols[e]));
        }
        codes.map(|code| scale * (code as f32 - zero))
    }
}
