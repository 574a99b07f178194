// input: a key and a value of the caller's. Reads the kernel's bindings `keys` and `values`.

override HALF_ROWS: bool; // whether the caller's rows are f16

// Number i of both, f32 or f16 as HALF_ROWS says.
fn input_at(i: u32) -> vec2<f32> {
    if (HALF_ROWS) {
        let k = unpack2x16float(keys[i / 2u]);
        let v = unpack2x16float(values[i / 2u]);
        return select(vec2<f32>(k.x, v.x), vec2<f32>(k.y, v.y), (i & 1u) == 1u);
    }
    return vec2<f32>(bitcast<f32>(keys[i]), bitcast<f32>(values[i]));
}
