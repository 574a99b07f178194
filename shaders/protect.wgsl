// protect: new keys and values that stay f16: the first tokens of a sequence (sinks) and the recent
// ones (window).
//
//   row = (H RoPE_t(k), H v) in f16    (H only where the codec rotates; RotateKV's keys need none here)
//   row = (H (weight * RoPE_t(k - mean)), H (v - mean)) in f16 for Centred
//
// One workgroup keeps one token of one KV head; invocation i holds channel i of the key and of the
// value. The rows are stored as attention reads them: turned and rotated. Which tokens are sinks
// the host knows, or an item names a row of the elected ones (`elect`). A key or value with a
// number that is not finite is stored as zeros, which Centred reads back as the mean; one that f16
// cannot hold (rotation multiplies a row of equal numbers by sqrt(HEAD_DIM)) is clamped. Both are
// listed in `status`.
//
// Wrapper: src/kernel/protect.rs. Twin: src/kernel/reference/protect.rs.

override HEAD_DIM: u32;
override ROTATE_KEYS: bool;
override ROTATE_VALUES: bool;
override ROPE_PAIRS: u32;
override SINKS: u32;
override RING: u32;
override MASSIVE: bool;    // whether the sinks are elected
override ELECTED_AT: u32;  // first elected sink in marks
override TURNED: bool; // whether the caller's rows come turned

struct ProtectParams { // src/kernel/protect.rs
    items_at: u32,
    items: u32,
    layer: u32,
    kv_heads: u32,
}

alias Cell = vec2<f32>;

@group(1) @binding(0) var<uniform> params: ProtectParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;                   // items of 2 words; chunks of 8
@group(0) @binding(0) var<storage, read> turns: array<vec2<f32>>;              // [128 low + high positions, ROPE_PAIRS]
@group(2) @binding(0) var<storage, read> keys: array<u32>;                     // [rows, kv_heads, HEAD_DIM] f32, f16 or bf16
@group(2) @binding(1) var<storage, read> values: array<u32>;                   // the same
@group(0) @binding(1) var<storage, read> marks: array<u32>;                    // for Centred [kv_heads, 3, HEAD_DIM] f32; sinks
@group(0) @binding(2) var<storage, read_write> protected_rows: array<u32>;     // [slot, kv_heads, SINKS + RING, HEAD_DIM]
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>>;     // count, then entries of 4 words

// Items from here on name a row of the elected sinks.
const SINK_ROW = 0x80000000u;

var<workgroup> row: array<vec2<f32>, HEAD_DIM>;
var<workgroup> broken: atomic<u32>;

@compute @workgroup_size(HEAD_DIM)
fn protect(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let n = place_workgroup(workgroup, workgroups);
    if (n >= params.items) {
        return;
    }
    let chunk = tables[params.items_at + 2u * n];
    var t = tables[params.items_at + 2u * n + 1u];
    let slot = chunk_slot(chunk);
    let old_tokens = chunk_old_tokens(chunk);
    var s = select(SINKS + t % max(RING, 1u), t, t < SINKS);
    var elected = false;
    if (MASSIVE) {
        s = SINKS + t % max(RING, 1u);
        if (t >= SINK_ROW) {
            elected = true;
            s = t - SINK_ROW;
            t = marks[ELECTED_AT + slot * 3u * SINKS + s];
            // An empty row, or one that was filled by an earlier step.
            if (t < old_tokens || t >= chunk_new_tokens(chunk)) {
                return;
            }
        }
    }
    let row_first = chunk_row_first(chunk);
    let head = workgroup.z;
    let pair = turn_pair(i);
    var means = mean_of(head, i, t);
    // Elected sinks keep the mean of the channels that turn: no two of their positions need be near
    // each other, and attention adds what the mean adds by runs of positions.
    if (elected && pair < ROPE_PAIRS) {
        means.x = 0.0;
    }
    var x = input_at(row_first + t - old_tokens, params.kv_heads, head, i) - means;
    row[i] = x;
    let bad = select(1u, 0u, finite_storable(x.x)) | select(2u, 0u, finite_storable(x.y));
    if (bad != 0u) {
        atomicOr(&broken, bad);
    }
    workgroupBarrier();
    let what = atomicLoad(&broken);
    if (pair < ROPE_PAIRS && !TURNED) {
        let turn = mean_turn(t, pair);
        x.x = x.x * turn.x + turn_sign(i) * row[turn_partner(i)].x * turn.y;
    }
    x *= centre_weights(head, i);
    x = select(x, vec2<f32>(0.0), vec2<bool>((what & 1u) != 0u, (what & 2u) != 0u));
    if (ROTATE_KEYS || ROTATE_VALUES) {
        let kept = x;
        workgroupBarrier();
        row[i] = x;
        workgroupBarrier();
        x = hadamard_outer(i);
        workgroupBarrier();
        row[i] = x;
        workgroupBarrier();
        x = select(kept, hadamard_inner(i), vec2<bool>(ROTATE_KEYS, ROTATE_VALUES));
    }
    workgroupBarrier();
    row[i] = x;
    let beyond = select(0u, 4u, half_saturates(x.x)) | select(0u, 8u, half_saturates(x.y));
    if (beyond != 0u) {
        atomicOr(&broken, beyond);
    }
    workgroupBarrier();
    let wrong = atomicLoad(&broken);
    if (wrong != 0u && i == 0u) {
        report(slot, t, head, wrong);
    }
    let at = ((slot * params.kv_heads + head) * (SINKS + RING) + s) * HEAD_DIM;
    if (i < HEAD_DIM / 2u) {
        protected_rows[at + i] = half_pair(row[2u * i].x, row[2u * i + 1u].x);
        protected_rows[at + HEAD_DIM / 2u + i] = half_pair(row[2u * i].y, row[2u * i + 1u].y);
    }
}
