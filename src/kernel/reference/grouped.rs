//! RotateKV's keys from their codes, with the factor of the rotation over the KV heads of a group
//! undone. Shader: `shaders/part/shared/grouped.wgsl`, which takes four tokens at a time.

use super::hadamard::{mask, sign};
use super::{Constants, scales};

/// What keys are read from: the bindings `marks`, `key_scales` and `pages`.
#[derive(Clone, Copy, Debug)]
pub struct Grouped<'a> {
    /// The shader's overrides.
    pub constants: &'a Constants,
    /// `[kv_heads, head_dim]` groups, a byte each.
    pub marks: &'a [u32],
    /// `[physical page, row_groups, scale_vecs]` vec4s.
    pub key_scales: &'a [u32],
    /// `[physical page, slab head, 4 * page_vecs]`.
    pub pages: &'a [u32],
}

/// Where a KV head's page is: its place in the slab, and in the layer.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// Physical page.
    pub physical: u32,
    /// KV heads of the slab.
    pub slab_heads: u32,
    /// The head, counted in the slab.
    pub slab_head: u32,
    /// The head, counted in the layer.
    pub head: u32,
}

/// Returns the group that a channel of a token's whole key row belongs to.
pub fn group_of(marks: &[u32], channel: u32) -> u32 {
    (marks[channel as usize / 4] >> (8 * (channel % 4))) & 0xff
}

impl Grouped<'_> {
    fn code(&self, spot: &Spot, t: u32, channel: u32) -> f32 {
        let c = self.constants;
        let (quad, byte) = (channel / 4, 8 * (channel % 4));
        let page = (4 * (spot.physical * spot.slab_heads + spot.slab_head) * c.page_vecs) as usize;
        let word = |w: u32| self.pages[page + (128 * w + t % 128) as usize];
        let bits = |word: u32, at: u32, bits: u32| ((word >> at) & ((1 << bits) - 1)) as f32;
        match c.key_bits {
            // Signed bytes, as their zeros are stored.
            8 => f32::from((word(quad) >> byte) as u8 as i8),
            4 => bits(word(quad / 2), quad % 2 * 4 + byte, 4),
            3 => bits(word(quad / 4), quad % 4 * 2 + byte, 2) + 4.0 * bits(word(c.head_dim / 16 + quad / 8), quad % 8 + byte, 1),
            _ => bits(word(quad / 4), quad % 4 * 2 + byte, 2),
        }
    }

    /// Returns channel `channel` of one head, in the rotated basis.
    fn channel(&self, spot: &Spot, t: u32, channel: u32) -> f32 {
        let c = self.constants;
        let g = group_of(self.marks, spot.head * c.head_dim + channel);
        let plane = (spot.physical * c.row_groups + g) * scales::vecs(c.scales);
        let [scale, zero] = scales::take(c, self.key_scales, plane, t);
        scale * (self.code(spot, t, channel) - zero)
    }

    /// Returns the same with the factor over the heads undone.
    pub fn mixed(&self, spot: &Spot, t: u32, channel: u32) -> f32 {
        let c = self.constants;
        let place = spot.head % c.group_heads;
        let mask = mask(16, place);
        let mut sum = 0.0;
        for j in 0..c.group_heads {
            let other = Spot { slab_head: spot.slab_head - place + j, head: spot.head - place + j, ..*spot };
            sum += sign(mask, j) * self.channel(&other, t, channel);
        }
        sum * c.group_scale
    }

    /// Returns all channels of one head with the inner factor undone as well, in the order of the
    /// loops of `restore/rolled` and `tile/restored`. What remains is `hadamard::outer`.
    pub fn spread(&self, spot: &Spot, t: u32) -> Vec<f32> {
        let c = self.constants;
        let x: Vec<f32> = (0..c.head_dim).map(|channel| self.mixed(spot, t, channel)).collect();
        let block = |row: &[f32]| -> Vec<f32> {
            (0..c.hadamard_inner)
                .map(|i| {
                    let mask = mask(16, i);
                    let mut sum = 0.0;
                    for (j, x) in row.iter().enumerate() {
                        sum += sign(mask, j as u32) * x;
                    }
                    sum * c.hadamard_scale
                })
                .collect()
        };
        x.chunks_exact(c.hadamard_inner as usize).flat_map(block).collect()
    }
}
