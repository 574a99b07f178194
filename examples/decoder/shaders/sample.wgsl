// sample: the next token of each row of scores.
//
// Without a temperature it is the one with the largest score, the first of equal ones. With one, it
// is drawn: of the candidates, the largest of score / temperature + noise, where the noise is drawn
// anew for every token of the vocabulary from Gumbel's distribution: that picks each with its
// probability by softmax. Candidates are the TOP_K largest scores, and of them those that make up a
// share TOP_P of the probability; both are found by halving the range of scores, seen as integers
// in the same order.
//
// One workgroup makes one row.
//
// Wrapper: src/kernel/sample.rs. Twin: src/reference/sample.rs.

struct SampleParams { // src/kernel/sample.rs
    vocabulary: u32,
    first: u32, // row of `sampling` and `tokens` that row 0 has
    pad_a: u32,
    pad_b: u32,
}

struct Sampling { // src/kernel/sample.rs
    inverse_temperature: f32, // 0 takes the largest score
    top_p: f32,               // 1 or more for all
    top_k: u32,               // 0 for all
    seed: u32,
    draw: u32, // differs from token to token of a text
    pad_a: u32,
    pad_b: u32,
    pad_c: u32,
}

@group(0) @binding(0) var<uniform> params: SampleParams;
@group(0) @binding(1) var<storage, read> scores: array<f32>;           // [rows, vocabulary]
@group(0) @binding(2) var<storage, read> sampling: array<Sampling>;    // [rows]
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;     // [rows]

const SIZE = 256u;
const LEAST = -3.0e38;

var<workgroup> values: array<f32, SIZE>;
var<workgroup> indices: array<u32, SIZE>;

// A hash of three numbers: rounds of multiplication and shifts, as PCG's output function has them.
fn hash(a: u32, b: u32, c: u32) -> u32 {
    var state = a * 747796405u + 2891336453u;
    state = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    state = ((state >> 22u) ^ state) + b;
    state = state * 747796405u + 2891336453u;
    state = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    state = ((state >> 22u) ^ state) + c;
    state = state * 747796405u + 2891336453u;
    state = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (state >> 22u) ^ state;
}

// A number of Gumbel's distribution.
fn noise(row: Sampling, token: u32) -> f32 {
    // Between 0 and 1, and neither.
    let uniform_number = (f32(hash(row.seed, row.draw, token) >> 8u) + 0.5) / 16777216.0;
    return -log(-log(uniform_number));
}

// An integer that grows with the number.
fn order(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn number(order: u32) -> f32 {
    return bitcast<f32>(select(order & 0x7fffffffu, ~order, (order & 0x80000000u) == 0u));
}

// A score, and the token that has it.
struct Best {
    score: f32,
    token: u32,
}

// The score of a token, or the least where there is no such token.
fn score_at(at: u32, token: u32) -> f32 {
    return select(LEAST, scores[at + min(token, params.vocabulary - 1u)], token < params.vocabulary);
}

// The better of what was found and a token after it.
fn better(found: Best, score: f32, token: u32) -> Best {
    if (score > found.score) {
        return Best(score, token);
    }
    return found;
}

@compute @workgroup_size(256)
fn sample(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let at = workgroup.x * params.vocabulary;
    let row = sampling[params.first + workgroup.x];

    // The largest score. Eight are read at a time, so that they are on their way together.
    var best = LEAST;
    var best_token = 0u;
    for (var token = i; token < params.vocabulary; token += 8u * SIZE) {
        let a = score_at(at, token);
        let b = score_at(at, token + SIZE);
        let c = score_at(at, token + 2u * SIZE);
        let d = score_at(at, token + 3u * SIZE);
        let e = score_at(at, token + 4u * SIZE);
        let f = score_at(at, token + 5u * SIZE);
        let g = score_at(at, token + 6u * SIZE);
        let h = score_at(at, token + 7u * SIZE);
        var found = better(Best(best, best_token), a, token);
        found = better(found, b, token + SIZE);
        found = better(found, c, token + 2u * SIZE);
        found = better(found, d, token + 3u * SIZE);
        found = better(found, e, token + 4u * SIZE);
        found = better(found, f, token + 5u * SIZE);
        found = better(found, g, token + 6u * SIZE);
        found = better(found, h, token + 7u * SIZE);
        best = found.score;
        best_token = found.token;
    }
    values[i] = best;
    indices[i] = best_token;
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        if (i < half) {
            let other = values[i + half];
            if (other > values[i] || (other == values[i] && indices[i + half] < indices[i])) {
                values[i] = other;
                indices[i] = indices[i + half];
            }
        }
        workgroupBarrier();
    }
    let top = values[0];
    let top_token = indices[0];
    workgroupBarrier();

    var least = order(LEAST);
    let rate = row.inverse_temperature;
    for (var rule = 0u; rule < 2u; rule++) {
        // First by count, then by share of what the count left.
        let wanted = select(select(row.top_p, 0.0, row.top_p >= 1.0), f32(row.top_k), rule == 0u);
        if (rate > 0.0 && wanted > 0.0) {
            // The total that the share is of.
            var total = 0.0;
            var low = least;
            var high = order(top);
            // One pass more than bits: the first finds the total.
            for (var round = 0u; round < 33u; round++) {
                let middle = select(low + (high - low + 1u) / 2u, least, round == 0u);
                var sum = 0.0;
                for (var token = i; token < params.vocabulary; token += SIZE) {
                    let score = scores[at + token];
                    if (order(score) >= middle) {
                        sum += select(exp((score - top) * rate), 1.0, rule == 0u);
                    }
                }
                values[i] = sum;
                workgroupBarrier();
                for (var half = SIZE / 2u; half > 0u; half /= 2u) {
                    if (i < half) {
                        values[i] += values[i + half];
                    }
                    workgroupBarrier();
                }
                let mass = values[0];
                workgroupBarrier();
                if (round == 0u) {
                    total = mass;
                } else if (mass >= select(wanted * total, wanted, rule == 0u)) {
                    low = middle;
                } else {
                    high = middle - 1u;
                }
            }
            least = max(least, min(low, order(top)));
        }
    }

    if (rate <= 0.0) {
        if (i == 0u) {
            tokens[params.first + workgroup.x] = top_token;
        }
        return;
    }
    best = LEAST;
    best_token = top_token;
    for (var token = i; token < params.vocabulary; token += SIZE) {
        let score = scores[at + token];
        if (order(score) >= least) {
            let drawn = (score - top) * rate + noise(row, token);
            if (drawn > best) {
                best = drawn;
                best_token = token;
            }
        }
    }
    values[i] = best;
    indices[i] = best_token;
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        if (i < half) {
            let other = values[i + half];
            if (other > values[i] || (other == values[i] && indices[i + half] < indices[i])) {
                values[i] = other;
                indices[i] = indices[i + half];
            }
        }
        workgroupBarrier();
    }
    if (i == 0u) {
        tokens[params.first + workgroup.x] = indices[0];
    }
}
