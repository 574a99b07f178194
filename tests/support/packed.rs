//! What lies in a page, read from the description of [`PageLayout`](wgkv::PageLayout), not from the kernels.

use wgkv::Plan;
use wgkv::reference::half::unpack;

/// One token's key or value of one head as it lies in a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// One a channel; for f16 the bits of the half.
    pub codes: Vec<u32>,
    /// Stored scale of each group.
    pub scales: Vec<f32>,
    /// Zero of each group, as codes count: the 128 that signed key bytes lack is added again.
    pub zeros: Vec<f32>,
}

/// The words of one head's page.
pub fn page<'a>(plan: &Plan, slabs: &'a [Vec<u32>], physical: u32, head: u32) -> &'a [u32] {
    let (slab, words) = plan.slabs().iter().zip(slabs).find(|(s, _)| (s.head_first..s.head_first + s.heads).contains(&head)).expect("a slab has every head");
    let vecs = plan.layout().vecs as usize;
    let at = (physical * slab.heads + head - slab.head_first) as usize * 4 * vecs;
    &words[at..at + 4 * vecs]
}

fn scales(plan: &Plan, page: &[u32], plane: u32, token: u32, offset: f32) -> (Vec<f32>, Vec<f32>) {
    (0..plan.layout().groups)
        .map(|g| {
            let [scale, zero] = unpack(page[(4 * (plane + g * 32 + token / 4) + token % 4) as usize]);
            (scale, zero + offset)
        })
        .unzip()
}

/// The key of a token (0 to 127 in its page).
pub fn key(plan: &Plan, page: &[u32], token: u32) -> Packed {
    let (layout, bits) = (plan.layout(), plan.format().key_bits());
    let word = |w: u32| page[(4 * (w * 32 + token / 4) + token % 4) as usize];
    let code = |channel: u32| {
        let (quad, byte) = (channel / 4, channel % 4);
        match bits {
            16 => word(channel / 2) >> (16 * (channel % 2)) & 0xffff,
            3 => (word(quad / 4) >> (2 * (quad % 4) + 8 * byte) & 3) | (word(layout.key_steps + quad / 8) >> (quad % 8 + 8 * byte) & 1) << 2,
            _ => {
                let shifts = 8 / bits;
                let code = word(quad / shifts) >> (bits * (quad % shifts) + 8 * byte) & ((1 << bits) - 1);
                if bits == 8 { code ^ 128 } else { code }
            }
        }
    };
    let (scales, zeros) = scales(plan, page, layout.key_scales, token, if bits == 8 { 128.0 } else { 0.0 });
    Packed { codes: (0..plan.shape().head_dim).map(code).collect(), scales, zeros }
}

/// The value of a token (0 to 127 in its page).
pub fn value(plan: &Plan, page: &[u32], token: u32) -> Packed {
    let (layout, bits, head_dim) = (plan.layout(), plan.format().value_bits(), plan.shape().head_dim);
    let (quad, byte) = (token / 4, token % 4);
    let code = |channel: u32| {
        let word = |w: u32| page[(4 * (layout.values + w * head_dim / 4 + channel / 4) + channel % 4) as usize];
        match bits {
            16 => word(token / 2) >> (16 * (token % 2)) & 0xffff,
            3 => (word(quad / 4) >> (2 * (quad % 4) + 8 * byte) & 3) | (word(layout.value_steps + quad / 8) >> (quad % 8 + 8 * byte) & 1) << 2,
            _ => {
                let shifts = 8 / bits;
                word(quad / shifts) >> (bits * (quad % shifts) + 8 * byte) & ((1 << bits) - 1)
            }
        }
    };
    let (scales, zeros) = scales(plan, page, layout.value_scales, token, 0.0);
    Packed { codes: (0..head_dim).map(code).collect(), scales, zeros }
}
