// page_scales: the scales and zeros of a lane's four tokens, where a kernel reads pages word by
// word. Needs scales/<form>.

override VALUE_GROUPS: u32; // value groups a head (1 for f16)
override VALUE_SCALES: u32; // vec4s from a page's start to its value scales

// The pairs of one group, of planes of scales from word `at` on.
fn page_scales(at: u32, g: u32, lane: u32) -> vec4<u32> {
    let word = at + 4u * (g * SCALE_VECS + scales_vec(lane));
    return scales_of(vec4<u32>(pages[word], pages[word + 1u], pages[word + 2u], pages[word + 3u]), lane);
}

// The tokens' values' largest scales.
fn page_scales_largest(page: u32, lane: u32) -> vec4<f32> {
    var steps = vec4<f32>(0.0);
    for (var g = 0u; g < VALUE_GROUPS; g++) {
        let raw = page_scales(page + 4u * VALUE_SCALES, g, lane);
        steps = max(steps, vec4<f32>(scales_pair(raw.x).x, scales_pair(raw.y).x, scales_pair(raw.z).x, scales_pair(raw.w).x));
    }
    return steps;
}
