// input: a key and a value of the caller's. Reads the kernel's bindings `keys` and `values`. Needs
// element and layout.

// Channel i of both, of a row and a head.
fn input_at(row: u32, heads: u32, head: u32, i: u32) -> vec2<f32> {
    let k = layout_row(0u, row, heads, head) + i;
    let v = layout_row(1u, row, heads, head) + i;
    return vec2<f32>(element_of(keys[element_word(k)], k), element_of(values[element_word(v)], v));
}
