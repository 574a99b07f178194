// measure: column sums over tokens of the caller's keys before RoPE (or of other rows), added to
// sums of earlier calls.
//
//   sums[workgroup, c] += sum over the workgroup's rows r of keys[r, c], or of its square
//
// Keys that come turned by RoPE are turned back, each from its own position.
//
// Workgroup n takes blocks of 32 rows, every workgroups-th one, and owns line n of `sums` and
// `counts`: every word has one writer, and the host adds up the lines. A sum is two floats, the
// number and what its roundings lost, so that millions of tokens add up as if in twice the
// precision.
//
// A row with a number that is not finite is left out whole and counted. Leaving out that number
// alone would give the columns of one row sums over different tokens, and the rotation that follows
// mixes the columns.
//
// Wrapper: src/kernel/measure.rs. Twin: src/kernel/reference/measure.rs.

override STRIDED: bool; // whether heads and tokens lie at strides
override SQUARES: bool;
override TURNED: bool;  // whether rows come turned
override ROPE_PAIRS: u32;

struct MeasureParams { // src/kernel/measure.rs
    rows: u32,
    width: u32,
    zero: u32, // 0, which no compiler knows
    head_dim: u32, // columns of a head
    base: u32,     // where STRIDED: the first row, in numbers from the binding's start
    tokens: u32,   // rows of a sequence; beyond all rows where there is one
    sequence_stride: u32, // in numbers, like the others
    token_stride: u32,
    head_stride: u32,
    position: u32, // where TURNED: of a sequence's first row
    sequence: u32, // rows of a sequence
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: MeasureParams;
@group(0) @binding(1) var<storage, read> keys: array<u32>;               // [rows, width] f32, f16 or bf16
@group(0) @binding(2) var<storage, read> turns: array<vec2<f32>>;        // [128 low + high positions, ROPE_PAIRS]; not read unless TURNED
@group(0) @binding(3) var<storage, read_write> sums: array<vec2<f32>>;   // [workgroup, width]
@group(0) @binding(4) var<storage, read_write> counts: array<vec2<u32>>; // [workgroup]: rows added, rows left out

const LANES = 256u;
const BLOCK = 32u; // rows, as bits of a word

var<workgroup> broken: array<u32, LANES>;

// Column c of row r, as it came.
fn given_at(r: u32, c: u32) -> f32 {
    var i = r * params.width + c;
    if (STRIDED) {
        i = params.base + r / params.tokens * params.sequence_stride + r % params.tokens * params.token_stride
            + c / params.head_dim * params.head_stride + c % params.head_dim;
    }
    return element_of(keys[element_word(i)], i);
}

// Column c of row r, before RoPE.
fn key_at(r: u32, c: u32) -> f32 {
    let x = given_at(r, c);
    let i = c % params.head_dim;
    let pair = turn_pair(i);
    if (!TURNED || pair >= ROPE_PAIRS) {
        return x;
    }
    let t = params.position + r % max(params.sequence, 1u);
    let turn = turn_compose(turns[(128u + t / 128u) * ROPE_PAIRS + pair], turns[(t % 128u) * ROPE_PAIRS + pair]);
    return x * turn.x - turn_sign(i) * given_at(r, c - i + turn_partner(i)) * turn.y;
}

// The number itself. A compiler that holds sums of floats for associative would find that the
// roundings below are all zero; it cannot see through this.
fn kept(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ params.zero);
}

// A number added to a sum (Knuth's two-sum, then the smaller part gathered and the two made to not
// overlap again).
fn added(sum: vec2<f32>, x: f32) -> vec2<f32> {
    let total = kept(sum.x + x);
    let share = kept(total - sum.x);
    let lost = kept(sum.x - kept(total - share)) + kept(x - share);
    let rest = kept(sum.y + kept(lost));
    let high = kept(total + rest);
    return vec2<f32>(high, rest - kept(high - total));
}

@compute @workgroup_size(LANES)
fn measure(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let n = workgroup.x;
    for (var first = n * BLOCK; first < params.rows; first += workgroups.x * BLOCK) {
        let count = min(BLOCK, params.rows - first);
        // Bit r: row first + r has a number that is not finite.
        var rows = 0u;
        for (var r = 0u; r < count; r++) {
            for (var c = i; c < params.width; c += LANES) {
                rows |= select(1u << r, 0u, finite(given_at(first + r, c)));
            }
        }
        broken[i] = rows;
        workgroupBarrier();
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            if (i < half) {
                broken[i] |= broken[i + half];
            }
            workgroupBarrier();
        }
        rows = broken[0];
        for (var c = i; c < params.width; c += LANES) {
            var sum = sums[n * params.width + c];
            for (var r = 0u; r < count; r++) {
                if (((rows >> r) & 1u) == 0u) {
                    let x = key_at(first + r, c);
                    sum = added(sum, select(x, x * x, SQUARES));
                }
            }
            sums[n * params.width + c] = sum;
        }
        if (i == 0u) {
            let out = countOneBits(rows);
            counts[n] += vec2<u32>(count - out, out);
        }
        // Before the next block's rows take the place of these.
        workgroupBarrier();
    }
}
