// place: where the outputs of a product go, and what is done to them on the way. For the kernels
// called project.

override EPILOGUE: u32; // one of those below
override BIAS: bool;    // whether every output has a bias
override GELU: bool;    // of GATED, whether the activation is GELU by its tanh, not SiLU

const STORE = 0u;  // into up to three ranges of rows, one for each matrix of those stacked
const ADD = 1u;    // onto what is there
const GATED = 2u;  // activation(even output) * odd output, half as many
const CAPPED = 3u; // factor * tanh(output / factor)

const TANH_LIMIT = 16.0;        // beyond it tanh is 1 in f32, and may overflow on the way
const GELU_SLOPE = 1.5957691;   // 2 sqrt(2 / pi)
const GELU_CUBE = 0.044715;

struct ProjectParams { // src/kernel/project.rs
    columns: u32,   // numbers of a row of x, a multiple of 32
    outputs: u32,   // rows of the matrix that the buffer of weights has, even
    first: u32,     // output that its first row makes, even
    total: u32,     // outputs of the whole matrix
    high_at: u32,   // where the second plane of codes lies in weights, in words
    scales_at: u32, // where the scales lie
    split_b: u32,   // first output of the second matrix of those stacked; `total` if there is none
    split_c: u32,   // first of the third
    at_a: u32,      // where the rows of the first lie in `out`, in numbers
    at_b: u32,      // of the second
    at_c: u32,      // of the third
    epsilon: f32,   // added to the mean square of a row before the root
    factor: f32,    // of the outputs of the first matrix; with CAPPED, what they stay below
    pad_a: u32,
    pad_b: u32,
    pad_c: u32,
}

@group(0) @binding(0) var<uniform> params: ProjectParams;
@group(0) @binding(4) var<storage, read> bias: array<f32>;      // [total], or anything without BIAS
@group(0) @binding(5) var<storage, read_write> out: array<f32>; // by EPILOGUE

// Where an output of a row lies.
fn place_of(row: u32, output: u32) -> u32 {
    if (output < params.split_b) {
        return params.at_a + row * params.split_b + output;
    }
    if (output < params.split_c) {
        return params.at_b + row * (params.split_c - params.split_b) + output - params.split_b;
    }
    return params.at_c + row * (params.total - params.split_c) + output - params.split_c;
}

// What is added to an output.
fn place_bias(output: u32) -> f32 {
    if (BIAS) {
        return bias[output];
    }
    return 0.0;
}

// activation(gate) * up. Both activations are the gate times a sigmoid, since
// (1 + tanh(z)) / 2 = sigmoid(2 z).
fn place_gated(gate: f32, up: f32) -> f32 {
    var z = gate;
    if (GELU) {
        z = GELU_SLOPE * (gate + GELU_CUBE * gate * gate * gate);
    }
    return gate / (1.0 + exp(-z)) * up;
}

// A score that stays below the cap.
fn place_capped(score: f32) -> f32 {
    return params.factor * tanh(clamp(score / params.factor, -TANH_LIMIT, TANH_LIMIT));
}

// Writes two neighbouring outputs of a row, the first of which is even: those of the buffer's rows.
fn place_pair(row: u32, local: u32, a: f32, b: f32) {
    let output = params.first + local;
    let x = a + place_bias(output);
    let y = b + place_bias(output + 1u);
    if (EPILOGUE == GATED) {
        out[(row * params.total + output) / 2u] = place_gated(x, y);
    } else if (EPILOGUE == ADD) {
        let at = row * params.total + output;
        out[at] += x;
        out[at + 1u] += y;
    } else if (EPILOGUE == CAPPED) {
        let at = row * params.total + output;
        out[at] = place_capped(x);
        out[at + 1u] = place_capped(y);
    } else {
        // Every matrix of those stacked has an even number of outputs.
        let at = place_of(row, output);
        let factor = select(1.0, params.factor, output < params.split_b);
        out[at] = factor * x;
        out[at + 1u] = factor * y;
    }
}
