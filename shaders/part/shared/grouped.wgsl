// grouped: RotateKV's keys as their codes say, and the factor of the rotation over the KV heads of
// a group undone: four tokens (those of one lane) of one channel. Codes lie at their channel's own
// place; the calibrated order decides only which channels share a scale (`marks`), so that no
// channel need be moved back. Reads the kernel's bindings `pages`, `key_scales` and `marks`; needs
// scales/<form> and hadamard. Twin: src/kernel/reference/grouped.rs.

override HEAD_DIM: u32;    // channels of a head
override PAGE_VECS: u32;   // vec4s of one head's page
override KEY_BITS: u32;    // 2, 3, 4, 8, or 16 for f16
override GROUP_HEADS: u32; // KV heads that are rotated together
override GROUP_SCALE: f32; // 1 / sqrt(GROUP_HEADS)
override ROW_GROUPS: u32;  // groups of a token's whole key row that share a scale

fn grouped_bits(v: vec4<u32>, at: u32, bits: u32) -> vec4<f32> {
    return vec4<f32>((v >> vec4<u32>(at)) & vec4<u32>((1u << bits) - 1u));
}

fn grouped_codes(page: u32, lane: u32, c: u32) -> vec4<f32> {
    let quad = c / 4u;
    let byte = 8u * (c % 4u);
    if (KEY_BITS == 8u) {
        // Signed bytes, as their zeros are stored.
        return vec4<f32>(extractBits(bitcast<vec4<i32>>(pages[page + quad * 32u + lane]), byte, 8u));
    }
    if (KEY_BITS == 4u) {
        return grouped_bits(pages[page + quad / 2u * 32u + lane], quad % 2u * 4u + byte, 4u);
    }
    var codes = grouped_bits(pages[page + quad / 4u * 32u + lane], quad % 4u * 2u + byte, 2u);
    if (KEY_BITS == 3u) {
        codes += 4.0 * grouped_bits(pages[page + (HEAD_DIM / 16u + quad / 8u) * 32u + lane], quad % 8u + byte, 1u);
    }
    return codes;
}

// Channel c of one head: slab_head counts in the slab, head in the layer.
fn grouped_channel(physical: u32, slab_heads: u32, slab_head: u32, head: u32, lane: u32, c: u32) -> vec4<f32> {
    let channel = head * HEAD_DIM + c;
    let g = (marks[channel / 4u] >> (8u * (channel % 4u))) & 0xffu;
    let raw = scales_of(key_scales[(physical * ROW_GROUPS + g) * SCALE_VECS + scales_vec(lane)], lane);
    let p = scales_pair(raw.x);
    let q = scales_pair(raw.y);
    let r = scales_pair(raw.z);
    let s = scales_pair(raw.w);
    let codes = grouped_codes((physical * slab_heads + slab_head) * PAGE_VECS, lane, c);
    return vec4<f32>(p.x, q.x, r.x, s.x) * (codes - vec4<f32>(p.y, q.y, r.y, s.y));
}

fn grouped_four(physical: u32, slab_heads: u32, slab_head: u32, head: u32, lane: u32, c: u32) -> vec4<f32> {
    let place = head % GROUP_HEADS;
    let mask = hadamard_sylvester(place);
    var sum = vec4<f32>(0.0);
    for (var j = 0u; j < GROUP_HEADS; j++) {
        sum += hadamard_sign(mask, j) * grouped_channel(physical, slab_heads, slab_head - place + j, head - place + j, lane, c);
    }
    return sum * GROUP_SCALE;
}
