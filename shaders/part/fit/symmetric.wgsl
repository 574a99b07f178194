// fit, symmetric: x is stored as the code c + 2^(bits - 1) with c = floor(x / step), and read back
// as scale * (c + 1/2): no zero. The step begins at Max's for a normal distribution (1960) and is
// refined twice to the least squares of the codes it makes. The scale that is stored keeps inner
// products their size: sum x^2 / sum x (c + 1/2). The least squares' own would shrink what is read
// back by the share of the error. Needs half. fit/extent is the other way, and says what a kernel
// does. Twin: src/kernel/reference/fit.rs.
const FIT_ROUNDS = 4u;

// The codes of one step: `inverse` brings the whole range of their levels to -1/2..1/2. After the
// last round, the scale. Beside them, of the group's numbers, the sums of squares and of
// magnitudes.
struct Fit { inverse: f32, scale: f32, squares: f32, sizes: f32 }

fn fit_open() -> Fit {
    return Fit(1.0, 0.0, 0.0, 0.0);
}

// The step that suits a normal distribution of deviation 1.
fn fit_start(bits: u32) -> f32 {
    return select(select(select(0.0308, 0.3352, bits == 4u), 0.5860, bits == 3u), 0.9957, bits == 2u);
}

fn fit_largest(bits: u32) -> f32 {
    return f32((1u << bits) - 1u);
}

// The number's code, in the low bits of a sum with 2^23, which rounds it: clamping to 0..1 and this
// sum are cheaper than conversions.
fn fit_code(x: f32, fit: Fit, bits: u32) -> u32 {
    return bitcast<u32>(saturate(x * fit.inverse + 0.5) * fit_largest(bits) + 8388608.0) & ((1u << bits) - 1u);
}

// The number's level in steps: its code as the low bits of 2^22 and some halves, less 2^22 and half
// of the levels.
fn fit_level(x: f32, fit: Fit, bits: u32) -> f32 {
    return bitcast<f32>(2u * fit_code(x, fit, bits) + 0x4a800000u) - (4194304.0 + 0.5 * fit_largest(bits));
}

fn fit_levels(x: vec4<f32>, fit: Fit, bits: u32) -> vec4<f32> {
    return vec4<f32>(fit_level(x.x, fit, bits), fit_level(x.y, fit, bits), fit_level(x.z, fit, bits), fit_level(x.w, fit, bits));
}

// 1 where a code of two bits lies outside the middle ones, at one and a half steps instead of a
// half. The edge is a ramp of 2^-24 of it.
fn fit_outer(x: vec4<f32>, fit: Fit) -> vec4<f32> {
    return saturate(abs(x) * (fit.inverse * 16777216.0) - 5592405.5);
}

// The terms of a round: first squares and magnitudes; then of a level times its number, and of its
// square. Of two bits, only what outer codes have more than middle ones; but in the last round,
// whose scale must be that of the codes as they are stored, of all.
fn fit_terms(x: f32, fit: Fit, n: u32, bits: u32) -> vec2<f32> {
    if (n == 0u) {
        return vec2<f32>(x * x, abs(x));
    }
    if (bits == 2u && n < 3u) {
        let outer = fit_outer(vec4<f32>(x), fit).x;
        return vec2<f32>(outer * abs(x), outer);
    }
    let level = fit_level(x, fit, bits);
    return vec2<f32>(x * level, level * level);
}

// The same of sixteen numbers, gathered: by components, then over those.
fn fit_sixteen(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, fit: Fit, n: u32, bits: u32) -> vec2<f32> {
    var first: vec4<f32>;
    var second: vec4<f32>;
    if (n == 0u) {
        first = a * a + b * b + c * c + d * d;
        second = abs(a) + abs(b) + abs(c) + abs(d);
    } else if (bits == 2u && n < 3u) {
        let p = fit_outer(a, fit);
        let q = fit_outer(b, fit);
        let r = fit_outer(c, fit);
        let s = fit_outer(d, fit);
        first = p * abs(a) + q * abs(b) + r * abs(c) + s * abs(d);
        second = p + q + r + s;
    } else {
        let p = fit_levels(a, fit, bits);
        let q = fit_levels(b, fit, bits);
        let r = fit_levels(c, fit, bits);
        let s = fit_levels(d, fit, bits);
        first = a * p + b * q + c * r + d * s;
        second = p * p + q * q + r * r + s * s;
    }
    return vec2<f32>((first.x + first.y) + (first.z + first.w), (second.x + second.y) + (second.z + second.w));
}

fn fit_gather(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return a + b;
}

fn fit_close(terms: vec2<f32>, fit: Fit, n: u32, channels: u32, bits: u32, clip: f32) -> Fit {
    var sums = vec2<f32>(fit.squares, fit.sizes);
    if (n == 0u) {
        sums = terms;
    }
    if (n == 3u) {
        return Fit(fit.inverse, fit.squares / max(terms.x, 1e-30), fit.squares, fit.sizes);
    }
    var step = fit_start(bits) * sqrt(terms.x / f32(channels));
    if (n > 0u) {
        let products = select(terms.x, 0.5 * fit.sizes + terms.x, bits == 2u);
        step = products / select(terms.y, 0.25 * f32(channels) + 2.0 * terms.y, bits == 2u);
    }
    // A group of zeros has the smallest step, 2^-23, and the scale 0.
    return Fit(1.0 / (max(step, 0.00000011920929) * fit_largest(bits)), 0.0, sums.x, sums.y);
}

// A half, but none of the subnormal ones, which drivers may take for 0: from 2^-15 on the smallest
// normal one.
fn fit_pack(fit: Fit, less: f32) -> u32 {
    return half_bits(select(max(fit.scale, 0.00006103515625), 0.0, fit.scale < 0.000030517578125));
}
