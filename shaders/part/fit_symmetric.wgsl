// fit, symmetric: x is stored as the code c + 2^(bits - 1) with c = floor(x * inverse), and read back as scale * (c + 1/2): no zero. The step
// begins at Max's for a normal distribution (1960) and is refined twice to the least squares of the codes it makes. The scale that is
// stored keeps inner products their size: sum x^2 / sum x (c + 1/2). The least squares' own would shrink what is read back by the share
// of the error. Needs half. fit_extent.wgsl is the other way, and says what a kernel does. Twin: src/reference/fit.rs.
const FIT_ROUNDS = 4u;

const GROUP_WORDS = 64u;     // words of a group's plane in a page: two tokens a word
const GROUP_MASK = 0xffffu;

// The step of the codes and its inverse; and, after the last round, the scale.
struct Fit { step: f32, inverse: f32, scale: f32 }

fn group_word(t: u32) -> u32 {
    return t % 128u / 2u;
}

fn group_shift(t: u32) -> u32 {
    return 16u * (t % 2u);
}

fn fit_open() -> Fit {
    return Fit(1.0, 1.0, 0.0);
}

// The step that suits a normal distribution of deviation 1.
fn fit_start(bits: u32) -> f32 {
    return select(select(select(0.0308, 0.3352, bits == 4u), 0.5860, bits == 3u), 0.9957, bits == 2u);
}

// The number's level in steps.
fn fit_level(x: f32, inverse: f32, bits: u32) -> f32 {
    let half = f32(1u << (bits - 1u));
    return clamp(floor(x * inverse), -half, half - 1.0) + 0.5;
}

fn fit_terms(x: f32, fit: Fit, n: u32, bits: u32) -> vec2<f32> {
    if (n == 0u) {
        return vec2<f32>(x * x, 0.0);
    }
    let level = fit_level(x, fit.inverse, bits);
    return select(vec2<f32>(x * level, level * level), vec2<f32>(x * x, x * level), n == 3u);
}

fn fit_gather(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return a + b;
}

fn fit_close(terms: vec2<f32>, fit: Fit, n: u32, channels: u32, bits: u32, clip: f32) -> Fit {
    if (n == 3u) {
        return Fit(fit.step, fit.inverse, terms.x / max(terms.y, 1e-30));
    }
    // A group of zeros has the smallest step, and the scale 0.
    let smallest = 0.00000011920929; // 2^-23
    var step = terms.x / terms.y;
    if (n == 0u) {
        step = fit_start(bits) * sqrt(terms.x / f32(channels));
    }
    step = max(step, smallest);
    return Fit(step, 1.0 / step, 0.0);
}

fn fit_code(x: f32, fit: Fit, bits: u32) -> u32 {
    return u32(fit_level(x, fit.inverse, bits) + f32(1u << (bits - 1u)));
}

// A half, but none of the subnormal ones, which drivers may take for 0: from 2^-15 on the smallest normal one.
fn fit_pack(fit: Fit, less: f32) -> u32 {
    return half_bits(select(max(fit.scale, 0.00006103515625), 0.0, fit.scale < 0.000030517578125));
}
