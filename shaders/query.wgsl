// query: query rows into the basis of the codec, for the two ways of attending.
//
//   y = log2(e) * scale * H * RoPE_position(x)    (H only where the codec rotates keys after RoPE; scale is
//                                                  1 / sqrt(head_dim) unless the plan has its own)
// Queries that come turned are not turned again.
//
// One workgroup turns one row of one query head; invocation i holds channel i. It writes y in f32
// (`query_rows`, for attend_rows, attend_prefill and attend_matrices) and the form attend_split reads
// (`query_codes`): per block of HEADS query heads of one KV head, either HEAD_DIM numbers in f32, or
// HEAD_DIM / 4 words of four int8 codes, the scale, and each key group's sum of codes.
//
// A row with a number that is not finite gets a scale that is NaN: its own output is NaN, and no
// other row changes.
//
// What the mean of the keys adds to a score by position (Centred) goes to both as factors (part
// factors): of all pairs of RoPE to `query_rows`, and to `query_codes` those of the first, which
// attend_split takes one by one. Kernel `position` makes its own of the others.
//
// Wrapper: src/kernel/query.rs. Twin: src/kernel/reference/query.rs.

override HEAD_DIM: u32;
override ROTATE_KEYS: bool;    // whether the codec rotates keys after RoPE
override ROPE_PAIRS: u32;      // pairs of channels that turn
override POSITION_QUADS: u32;  // quads of channels that carry what the mean of the keys adds to a score: 0 where nothing
override POSITIONS_AT: u32;    // entries of a block of heads before those that positions are known by
override POSITION_WAVES: u32;  // first pairs, whose factors attend_split takes
override POSITION_CENTRE: u32; // in turns: the turn by 63.5 positions
override SCALE: f32;           // log2(e) times the scale
override HEADS: u32;
override BLOCKS: u32;
override QUERY_STRIDE: u32;
override EIGHTHS: u32;         // HEAD_DIM / 8
override QUADS: u32;           // HEAD_DIM / 4
override TURNED: bool; // whether the caller's rows come turned

struct QueryParams { // src/kernel/query.rs
    positions_at: u32, // first row's position in tables
    row_first: u32,    // first row in queries
    query_heads: u32,
    kv_heads: u32,
    groups_at: u32,    // by KV head, in tables: channels that share a key scale, or 0 where attend_split takes f32
    pad_a: u32,
    pad_b: u32,
    pad_c: u32,
}

alias Cell = f32;

@group(1) @binding(0) var<uniform> params: QueryParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;
@group(0) @binding(0) var<storage, read> turns: array<vec2<f32>>;             // [128 low + high positions, ROPE_PAIRS]
@group(2) @binding(0) var<storage, read> queries: array<u32>;                 // [rows, query_heads, HEAD_DIM] f32, f16 or bf16
@group(0) @binding(1) var<storage, read> marks: array<u32>;                   // [kv_heads, 3, HEAD_DIM] f32, for Centred
@group(0) @binding(2) var<storage, read_write> query_rows: array<f32>;        // [row, query_heads, HEAD_DIM + 4 * POSITION_QUADS]
@group(0) @binding(3) var<storage, read_write> query_codes: array<u32>;       // [row, kv_heads, BLOCKS, QUERY_STRIDE, HEADS]

var<workgroup> row: array<f32, HEAD_DIM>;
var<workgroup> extents: array<f32, EIGHTHS>;
var<workgroup> codes: array<i32, HEAD_DIM>;
var<workgroup> quad_sums: array<i32, QUADS>;

// Cosine and sine of one pair at a position.
fn query_turn(position: u32, pair: u32) -> vec2<f32> {
    return turn_compose(turns[(128u + position / 128u) * ROPE_PAIRS + pair], turns[(position % 128u) * ROPE_PAIRS + pair]);
}

@compute @workgroup_size(HEAD_DIM)
fn query(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let r = workgroup.x;
    let query_head = workgroup.y;
    let position = tables[params.positions_at + r];
    var x = query_at(layout_row(0u, params.row_first + r, params.query_heads, query_head) + i);
    row[i] = x;
    workgroupBarrier();
    let pair = turn_pair(i);
    if (pair < ROPE_PAIRS && !TURNED) {
        let turn = query_turn(position, pair);
        x = x * turn.x + turn_sign(i) * row[turn_partner(i)] * turn.y;
    }
    let share = params.query_heads / params.kv_heads;
    let head = query_head / share;
    let key_group = tables[params.groups_at + head];
    let row_at = (r * params.query_heads + query_head) * (HEAD_DIM + 4u * POSITION_QUADS);
    let block = query_head % share / HEADS;
    let at = (((r * params.kv_heads + head) * BLOCKS + block) * QUERY_STRIDE) * HEADS + query_head % share % HEADS;
    // Whole quads: beyond the last pair stand zeros.
    if (i < 2u * POSITION_QUADS) {
        var here = Factors(0.0, 0.0);
        if (i < ROPE_PAIRS) {
            let channels = factors_channels(i);
            here = factors_of(head, channels, Factors(row[channels.x], row[channels.y]), select(query_turn(position, i), vec2<f32>(1.0, 0.0), TURNED));
        }
        query_rows[row_at + HEAD_DIM + 2u * i] = here.a;
        query_rows[row_at + HEAD_DIM + 2u * i + 1u] = here.b;
        if (i < POSITION_WAVES) {
            let middle = factors_turn(here, turns[POSITION_CENTRE + i]);
            let entry = at + (POSITIONS_AT + 2u * i) * HEADS;
            query_codes[entry] = bitcast<u32>(middle.a);
            query_codes[entry + HEADS] = bitcast<u32>(middle.b);
        }
    }
    x /= centre_weights(head, i).x;
    if (ROTATE_KEYS) {
        workgroupBarrier();
        row[i] = x;
        workgroupBarrier();
        x = hadamard_outer(i);
        workgroupBarrier();
        row[i] = x;
        workgroupBarrier();
        x = hadamard_inner(i);
    }
    x *= SCALE;
    query_rows[row_at + i] = x;

    if (key_group == 0u) {
        query_codes[at + i * HEADS] = bitcast<u32>(x);
    } else {
        workgroupBarrier();
        row[i] = select(3e38, abs(x), finite(x));
        workgroupBarrier();
        if (i < EIGHTHS) {
            let e = 8u * i;
            extents[i] = max(max(max(row[e], row[e + 1u]), max(row[e + 2u], row[e + 3u])), max(max(row[e + 4u], row[e + 5u]), max(row[e + 6u], row[e + 7u])));
        }
        workgroupBarrier();
        var largest = 0.0;
        for (var e = 0u; e < EIGHTHS; e++) {
            largest = max(largest, extents[e]);
        }
        let scale = largest / 127.0;
        codes[i] = i32(clamp(round(x / max(scale, 1e-30)), -127.0, 127.0));
        workgroupBarrier();
        if (i < QUADS) {
            let q = 4u * i;
            query_codes[at + i * HEADS] = (u32(codes[q]) & 255u) | ((u32(codes[q + 1u]) & 255u) << 8u)
                | ((u32(codes[q + 2u]) & 255u) << 16u) | ((u32(codes[q + 3u]) & 255u) << 24u);
            quad_sums[i] = codes[q] + codes[q + 1u] + codes[q + 2u] + codes[q + 3u];
        }
        workgroupBarrier();
        if (i < HEAD_DIM / key_group) {
            var sum = 0;
            for (var q = i * key_group / 4u; q < (i + 1u) * key_group / 4u; q++) {
                sum += quad_sums[q];
            }
            query_codes[at + (QUADS + 1u + i) * HEADS] = bitcast<u32>(f32(sum));
        }
        if (i == 0u) {
            query_codes[at + QUADS * HEADS] = select(bitcast<u32>(scale), 0x7fc00000u, largest > 1e38);
        }
    }
}
