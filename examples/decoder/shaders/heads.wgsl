// heads: what some models do to queries and keys head by head before the cache has them, in place:
// an RMSNorm of its own (Qwen3, Gemma 3), or RoPE where layers differ in it (SmolLM3, Gemma 3) and the
// cache does not turn them.
//
//   h = h / sqrt(mean(h^2) + epsilon) * norm          with NORM
//   (a, b) = (a cos - b sin, b cos + a sin)           with TURN, over the halves of the channels that turn
//
// One workgroup makes one head of one row: queries first, then keys.
//
// Wrapper: src/kernel/heads.rs. Twin: src/reference/heads.rs.

override NORM: bool;
override TURN: bool;

struct HeadsParams { // src/kernel/heads.rs
    head_dim: u32,    // at most 512
    query_heads: u32,
    kv_heads: u32,
    keys_at: u32,     // where the rows of keys lie, in numbers
    pairs: u32,       // pairs of channels that turn
    epsilon: f32,
    waves_at: u32,    // where the layer's waves lie
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: HeadsParams;
@group(0) @binding(1) var<storage, read_write> heads_rows: array<f32>; // [rows, query_heads, head_dim], then keys
@group(0) @binding(2) var<storage, read> norm: array<f32>;             // [2, head_dim], of queries and of keys
@group(0) @binding(3) var<storage, read> waves: array<vec2<f32>>;      // [rows, pairs] of cosine and sine, from waves_at on

var<workgroup> numbers: array<f32, 512>;
var<workgroup> places: array<f32, 64>;

@compute @workgroup_size(64)
fn heads(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let row = workgroup.y;
    let is_key = workgroup.x >= params.query_heads;
    let query_at = (row * params.query_heads + workgroup.x) * params.head_dim;
    let key_at = params.keys_at + (row * params.kv_heads + workgroup.x - params.query_heads) * params.head_dim;
    let at = select(query_at, key_at, is_key);
    let norm_at = select(0u, params.head_dim, is_key);

    var squares = 0.0;
    for (var channel = i; channel < params.head_dim; channel += 64u) {
        let x = heads_rows[at + channel];
        numbers[channel] = x;
        squares += x * x;
    }
    places[i] = squares;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if (i < half) {
            places[i] += places[i + half];
        }
        workgroupBarrier();
    }
    if (NORM) {
        let root = inverseSqrt(places[0] / f32(params.head_dim) + params.epsilon);
        for (var channel = i; channel < params.head_dim; channel += 64u) {
            numbers[channel] = numbers[channel] * root * norm[norm_at + channel];
        }
    }
    workgroupBarrier();
    for (var channel = i; channel < params.head_dim; channel += 64u) {
        var x = numbers[channel];
        if (TURN && channel < 2u * params.pairs) {
            let pair = channel % params.pairs;
            let wave = waves[params.waves_at + row * params.pairs + pair];
            let other = numbers[select(channel - params.pairs, channel + params.pairs, channel < params.pairs)];
            x = x * wave.x + select(other, -other, channel < params.pairs) * wave.y;
        }
        heads_rows[at + channel] = x;
    }
}
