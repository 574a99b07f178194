// dequantize: cached tokens back to rows in f32: keys as they were after RoPE, values as they came.
//
//   key = H (scale * (code - zero)),  value likewise   (H only where the codec rotates; it is its own inverse)
//
// One workgroup restores one token of one KV head; invocation i holds channel i of the key and of the value.
//
// Parts: place, hadamard, cached. Wrapper: src/kernel/dequantize.rs. Twin: src/reference/dequantize.rs.

override HEAD_DIM: u32;
override HADAMARD_OUTER: u32;
override HADAMARD_INNER: u32;
override HADAMARD_SCALE: f32;
override ROTATE: bool;
override KEY_BITS: u32;
override VALUE_BITS: u32;
override GROUP: u32;
override KEY_SCALES: u32;
override VALUES: u32;
override VALUE_SCALES: u32;
override PAGE_VECS: u32;
override SINKS: u32;
override RING: u32;

struct DequantizeParams { // src/kernel/dequantize.rs
    chunk: u32,      // the sequence's record in tables
    first: u32,      // first token to restore
    tokens: u32,
    slab_heads: u32,
    head_first: u32,
    kv_heads: u32,
    pad_a: u32,
    pad_b: u32,
}

alias Cell = vec2<f32>;

@group(0) @binding(0) var<uniform> params: DequantizeParams;
@group(0) @binding(1) var<storage, read> tables: array<u32>;
@group(0) @binding(2) var<storage, read> pages: array<vec4<u32>>;       // [physical page, slab head, PAGE_VECS]
@group(0) @binding(3) var<storage, read> protected_rows: array<u32>;    // [slot, kv_heads, SINKS + RING, HEAD_DIM]
@group(0) @binding(4) var<storage, read_write> keys: array<f32>;        // [tokens, kv_heads, HEAD_DIM]
@group(0) @binding(5) var<storage, read_write> values: array<f32>;      // the same

var<workgroup> row: array<vec2<f32>, HEAD_DIM>;

@compute @workgroup_size(HEAD_DIM)
fn dequantize(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let n = place_workgroup(workgroup, workgroups);
    if (n >= params.tokens) {
        return;
    }
    let head = params.head_first + workgroup.z;
    let place = Place(tables[params.chunk], tables[params.chunk + 4u], tables[params.chunk + 5u], head, params.kv_heads, workgroup.z, params.slab_heads);
    var x = vec2<f32>(cached_key(place, params.first + n, i / 4u)[i % 4u], cached_value(place, params.first + n, i / 4u)[i % 4u]);
    if (ROTATE) {
        row[i] = x;
        workgroupBarrier();
        x = hadamard_outer(i);
        workgroupBarrier();
        row[i] = x;
        workgroupBarrier();
        x = hadamard_inner(i);
    }
    let at = (n * params.kv_heads + head) * HEAD_DIM + i;
    keys[at] = x.x;
    values[at] = x.y;
}
