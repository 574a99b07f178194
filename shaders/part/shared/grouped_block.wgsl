// grouped_block: a block of HADAMARD_INNER channels of four tokens' keys with the rotation's inner
// factor undone, by one invocation alone, so that it needs no barrier. Writes the workgroup array
// `row` of vec4s; needs grouped and hadamard.

override HADAMARD_INNER: u32;
override HADAMARD_SCALE: f32; // 1 / sqrt(HEAD_DIM)

fn grouped_block(physical: u32, slab_heads: u32, slab_head: u32, head: u32, lane: u32, first: u32, at: u32) {
    var x: array<vec4<f32>, HADAMARD_INNER>;
    for (var c = 0u; c < HADAMARD_INNER; c++) {
        x[c] = grouped_four(physical, slab_heads, slab_head, head, lane, first + c);
    }
    for (var c = 0u; c < HADAMARD_INNER; c++) {
        let mask = hadamard_sylvester(c);
        var sum = vec4<f32>(0.0);
        for (var j = 0u; j < HADAMARD_INNER; j++) {
            sum += hadamard_sign(mask, j) * x[j];
        }
        row[at + c] = sum * HADAMARD_SCALE;
    }
}
