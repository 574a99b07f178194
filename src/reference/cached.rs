//! Four consecutive channels of one cached token, wherever it lies. Shader: `shaders/part/cached.wgsl`.

use super::Constants;
use super::half::unpack;

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
}

/// What the tokens are read from: the bindings `tables`, `pages` and `protected_rows`.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    /// The shader's overrides.
    pub constants: &'a Constants,
    /// Lists of physical pages.
    pub tables: &'a [u32],
    /// `[physical page, slab head, 4 * page_vecs]`.
    pub pages: &'a [u32],
    /// `[slot, kv_heads, sinks + ring, head_dim]`.
    pub protected_rows: &'a [u32],
}

/// Where the f16 row of a token lies in `protected_rows`.
pub fn row_at(constants: &Constants, slot: u32, kv_heads: u32, head: u32, t: u32) -> u32 {
    let s = if t < constants.sinks { t } else { constants.sinks + t % constants.ring.max(1) };
    ((slot * kv_heads + head) * (constants.sinks + constants.ring) + s) * constants.head_dim
}

impl Store<'_> {
    fn protected(&self, place: &Place, t: u32) -> bool {
        t < self.constants.sinks || t >= place.packed
    }

    fn halves(&self, at: u32) -> [f32; 4] {
        let [a, b] = unpack(self.protected_rows[at as usize]);
        let [c, d] = unpack(self.protected_rows[at as usize + 1]);
        [a, b, c, d]
    }

    fn page(&self, place: &Place, t: u32) -> u32 {
        (self.tables[(place.list + t / 128) as usize] * place.slab_heads + place.slab_head) * self.constants.page_vecs
    }

    /// Component `corner` of a `vec4<u32>` of the pages.
    fn vec(&self, at: u32, corner: u32) -> u32 {
        self.pages[(4 * at + corner) as usize]
    }

    /// Channels `4 * quad ..` of the key of token `t`.
    pub fn key(&self, place: &Place, t: u32, quad: u32) -> [f32; 4] {
        let c = self.constants;
        if self.protected(place, t) {
            return self.halves(row_at(c, place.slot, place.kv_heads, place.head, t) + 2 * quad);
        }
        let page = self.page(place, t);
        let lane = t % 128 / 4;
        let corner = t % 4;
        if c.key_bits == 16 {
            let at = page + 2 * quad * 32 + lane;
            let ([x, y], [z, w]) = (unpack(self.vec(at, corner)), unpack(self.vec(at + 32, corner)));
            return [x, y, z, w];
        }
        let bits = if c.key_bits == 3 { 2 } else { c.key_bits };
        let shifts = 8 / bits;
        let mut word = (self.vec(page + quad / shifts * 32 + lane, corner) >> (quad % shifts * bits)) & (((1 << bits) - 1) * 0x0101_0101);
        if c.key_bits == 3 {
            let high = self.vec(page + (c.head_dim / 16 + quad / 8) * 32 + lane, corner) >> (quad % 8);
            word |= (high & 0x0101_0101) << 2;
        }
        let [scale, zero] = unpack(self.vec(page + c.key_scales + 4 * quad / c.group * 32 + lane, corner));
        word.to_le_bytes().map(|code| scale * (f32::from(code as i8) - zero))
    }

    /// Channels `4 * quad ..` of the value of token `t`.
    pub fn value(&self, place: &Place, t: u32, quad: u32) -> [f32; 4] {
        let c = self.constants;
        if self.protected(place, t) {
            return self.halves(row_at(c, place.slot, place.kv_heads, place.head, t) + c.head_dim / 2 + 2 * quad);
        }
        let page = self.page(place, t);
        let lane = t % 128 / 4;
        let corner = t % 4;
        let channels = [0, 1, 2, 3];
        if c.value_bits == 16 {
            let at = page + c.values + t % 128 / 2 * (c.head_dim / 4) + quad;
            return channels.map(|e| unpack(self.vec(at, e) >> (16 * (t % 2)))[0]);
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
        let [scale, zero] = unpack(self.vec(page + c.value_scales + 4 * quad / c.group * 32 + lane, corner));
        codes.map(|code| scale * (code as f32 - zero))
    }
}
