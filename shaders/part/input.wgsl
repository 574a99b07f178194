// input: a key and a value of the caller's, and the list of those that are not finite. Reads the kernel's bindings `keys`
// and `values`, writes `status`.

// Number i of both, f32 or f16 as HALF_ROWS says.
fn input_at(i: u32) -> vec2<f32> {
    if (HALF_ROWS) {
        let k = unpack2x16float(keys[i / 2u]);
        let v = unpack2x16float(values[i / 2u]);
        return select(vec2<f32>(k.x, v.x), vec2<f32>(k.y, v.y), (i & 1u) == 1u);
    }
    return vec2<f32>(bitcast<f32>(keys[i]), bitcast<f32>(values[i]));
}

// Adds a row to the list: what is 1 for the key, 2 for the value, 3 for both. Beyond the list's end it is only counted.
fn report(slot: u32, token: u32, head: u32, what: u32) {
    let n = atomicAdd(&status[0], 1u);
    let at = 4u + 4u * n;
    if (at + 3u < arrayLength(&status)) {
        atomicStore(&status[at], params.layer);
        atomicStore(&status[at + 1u], slot);
        atomicStore(&status[at + 2u], token);
        atomicStore(&status[at + 3u], head * 4u + what);
    }
}
