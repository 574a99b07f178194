// eights/strided: eight numbers of the caller's keys or values, which lie anywhere. Declares the
// kernel's bindings `keys` and `values`, and needs its type Eight.

@group(2) @binding(0) var<storage, read> keys: array<u32>;   // rows of HEAD_DIM f32, f16 or bf16, as `layouts` says
@group(2) @binding(1) var<storage, read> values: array<u32>; // the same

fn eights_key(i: u32) -> f32 {
    return element_of(keys[element_word(i)], i);
}

fn eights_value(i: u32) -> f32 {
    return element_of(values[element_word(i)], i);
}

// Keys from number i on.
fn eight_key(i: u32) -> Eight {
    return Eight(
        vec4<f32>(eights_key(i), eights_key(i + 1u), eights_key(i + 2u), eights_key(i + 3u)),
        vec4<f32>(eights_key(i + 4u), eights_key(i + 5u), eights_key(i + 6u), eights_key(i + 7u)));
}

fn eight_value(i: u32) -> Eight {
    return Eight(
        vec4<f32>(eights_value(i), eights_value(i + 1u), eights_value(i + 2u), eights_value(i + 3u)),
        vec4<f32>(eights_value(i + 4u), eights_value(i + 5u), eights_value(i + 6u), eights_value(i + 7u)));
}
