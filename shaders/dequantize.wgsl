// dequantize: cached tokens back to rows in f32: keys as they were after RoPE, values as they came.
//
//   key = H (scale * (code - zero)),  value likewise   (H only where the codec rotates; it is its own inverse)
//
// for RotateKV key = RoPE_t(B (scale * (code - zero))), B the rotation over a group of KV heads;
// for Centred the key is divided by its weights, and both get their means back, the key's turned:
// RoPE_t(mean). One workgroup restores one token of one KV head; invocation i holds channel i of
// the key and of the value.
//
// Wrapper: src/kernel/dequantize.rs.
// Twin: src/kernel/reference/dequantize.rs.

override HEAD_DIM: u32;
override ROTATE_KEYS: bool;    // after RoPE, by head
override ROTATE_VALUES: bool;
override RESTORE: bool;        // RotateKV: keys are stored before RoPE, rotated over a group of heads
override ROPE_PAIRS: u32;
override CENTRED: bool;

struct DequantizeParams { // src/kernel/dequantize.rs
    chunk: u32,      // the sequence's record in tables
    first: u32,      // first token to restore
    tokens: u32,
    slab_heads: u32,
    heads_at: u32,   // which heads they are, in tables
    kv_heads: u32,
    limit: u32,      // elected sinks from this token on are void
    pad: u32,
}

alias Cell = vec2<f32>;

@group(1) @binding(0) var<uniform> params: DequantizeParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;
@group(0) @binding(0) var<storage, read> turns: array<vec2<f32>>;       // [128 low + high positions, ROPE_PAIRS]
@group(0) @binding(1) var<storage, read> marks: array<u32>;             // [kv_heads, HEAD_DIM] groups a byte, or [kv_heads, 3, HEAD_DIM] f32; sinks
@group(0) @binding(2) var<storage, read> key_scales: array<vec4<u32>>;  // [physical page, group of the row, SCALE_VECS]
@group(0) @binding(3) var<storage, read> pages: array<vec4<u32>>;       // [physical page, slab head, PAGE_VECS]
@group(0) @binding(4) var<storage, read> protected_rows: array<u32>;    // [slot, kv_heads, SINKS + RING, HEAD_DIM]
@group(2) @binding(0) var<storage, read_write> keys: array<f32>;        // [tokens, kv_heads, HEAD_DIM]
@group(2) @binding(1) var<storage, read_write> values: array<f32>;      // the same

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
    let head = tables[params.heads_at + workgroup.z];
    let place = Place(chunk_slot(params.chunk), chunk_new_packed(params.chunk), chunk_list(params.chunk), head, params.kv_heads, workgroup.z, params.slab_heads,
        params.limit);
    let t = params.first + n;
    let protected_row = cached_row(place, t);
    let restore = RESTORE && protected_row == CACHED_PACKED;
    var x = vec2<f32>(0.0, cached_value(place, t, protected_row, i / 4u)[i % 4u]);
    if (restore) {
        let physical = tables[place.list + t / 128u];
        x.x = grouped_four(physical, place.slab_heads, place.slab_head, head, t % 128u / 4u, i)[t % 4u];
    } else {
        x.x = cached_key(place, t, protected_row, i / 4u)[i % 4u];
    }
    if (ROTATE_KEYS || ROTATE_VALUES) {
        let kept = x;
        row[i] = x;
        workgroupBarrier();
        x = hadamard_outer(i);
        workgroupBarrier();
        row[i] = x;
        workgroupBarrier();
        x = select(kept, hadamard_inner(i), vec2<bool>(ROTATE_KEYS || restore, ROTATE_VALUES));
    }
    if (RESTORE) {
        workgroupBarrier();
        row[i] = x;
        workgroupBarrier();
        let pair = turn_pair(i);
        if (restore && pair < ROPE_PAIRS) {
            let turn = mean_turn(t, pair);
            x.x = x.x * turn.x + turn_sign(i) * row[turn_partner(i)].x * turn.y;
        }
    }
    if (CENTRED) {
        var means = mean_turned(head, i, t);
        if (cached_elected(place, protected_row) && turn_pair(i) < ROPE_PAIRS) {
            means.x = 0.0;
        }
        x = x / centre_weights(head, i) + means;
    }
    let at = (n * params.kv_heads + head) * HEAD_DIM + i;
    keys[at] = x.x;
    values[at] = x.y;
}
