// eights/dense: eight numbers of the caller's keys or values at once, which lie at multiples of 16
// bytes. Declares the kernel's bindings `keys` and `values`, and needs its type Eight.

override ELEMENT: u32;

@group(2) @binding(0) var<storage, read> keys: array<vec4<u32>>;   // [rows, kv_heads, HEAD_DIM] f32, f16 or bf16
@group(2) @binding(1) var<storage, read> values: array<vec4<u32>>; // the same

// Keys from number i on, a multiple of 8.
fn eight_key(i: u32) -> Eight {
    if (ELEMENT == 0u) {
        return Eight(bitcast<vec4<f32>>(keys[i / 4u]), bitcast<vec4<f32>>(keys[i / 4u + 1u]));
    }
    let words = keys[i / 8u];
    return Eight(element_four(words.xy), element_four(words.zw));
}

fn eight_value(i: u32) -> Eight {
    if (ELEMENT == 0u) {
        return Eight(bitcast<vec4<f32>>(values[i / 4u]), bitcast<vec4<f32>>(values[i / 4u + 1u]));
    }
    let words = values[i / 8u];
    return Eight(element_four(words.xy), element_four(words.zw));
}
