// fit, symmetric: x is stored as the code c + 2^(bits - 1) with c = floor(x / step), and read back
// as scale * (c + 1/2): no zero. The scale that is stored keeps inner products their size, sum x^2
// / sum x (c + 1/2), where least squares would shrink what is read back by the share of the error;
// but it leaves the step by a quarter at most, so that a number that the codes do not reach hands
// nothing to the others.
//
// Two bits: the step begins at Max's for a normal distribution (1960) and is refined twice to the
// least squares of the codes it makes. Three and four: three steps, shares of the one that just
// reaches the largest number, are tried, and the group takes the one of least error. Eight: the
// step that just reaches. Needs scales/symmetric, which says how a scale is stored. fit/extent is
// the other way, and says what a kernel does. Twin: src/kernel/reference/fit.rs.

// inverse: brings the whole range of the levels to -1/2..1/2, of the codes that are made. scale:
// the one for them. trial: the inverse of the step being tried. squares: the sum of the group's
// squares. other: of two bits the sum of magnitudes, else the largest magnitude. error: the sum of
// squared errors of those codes, less the squares.
struct Fit { inverse: f32, scale: f32, trial: f32, squares: f32, other: f32, error: f32 }

// Steps below have scales that are stored as 0.
const FIT_SMALLEST = 9.094947e-13; // 2^-40

// Sums of squares beyond would make steps that are no numbers.
const FIT_LARGEST = 1e38;

fn fit_rounds(bits: u32) -> u32 {
    return select(4u, 1u, bits == 8u);
}

fn fit_open() -> Fit {
    return Fit(1.0, 0.0, 1.0, 0.0, 0.0, 0.0);
}

fn fit_largest(bits: u32) -> f32 {
    return f32((1u << bits) - 1u);
}

// The share of a group's extent that the codes of a trial span: about those of least error for
// normal numbers, of which 32 to 256 share a scale.
fn fit_share(n: u32, bits: u32) -> f32 {
    let three = select(select(0.67, 0.8, n == 1u), 0.95, n == 0u);
    let four = select(select(0.77, 0.87, n == 1u), 0.97, n == 0u);
    return select(select(1.0, four, bits == 4u), three, bits == 3u);
}

// The low bits of a sum with 2^23, which rounds: clamping to 0..1 and this sum are cheaper than
// conversions.
fn fit_code_at(x: f32, inverse: f32, bits: u32) -> u32 {
    return bitcast<u32>(saturate(x * inverse + 0.5) * fit_largest(bits) + 8388608.0) & ((1u << bits) - 1u);
}

fn fit_code(x: f32, fit: Fit, bits: u32) -> u32 {
    return fit_code_at(x, fit.inverse, bits);
}

// The number's level in steps of the trial: its code as the low bits of 2^22 and some halves, less
// 2^22 and half of the levels.
fn fit_level(x: f32, fit: Fit, bits: u32) -> f32 {
    return bitcast<f32>(2u * fit_code_at(x, fit.trial, bits) + 0x4a800000u) - (4194304.0 + 0.5 * fit_largest(bits));
}

fn fit_levels(x: vec4<f32>, fit: Fit, bits: u32) -> vec4<f32> {
    return vec4<f32>(fit_level(x.x, fit, bits), fit_level(x.y, fit, bits), fit_level(x.z, fit, bits), fit_level(x.w, fit, bits));
}

// 1 where a code of two bits lies outside the middle ones, at one and a half steps instead of a
// half. The edge is a ramp of 2^-24 of it.
fn fit_outer(x: vec4<f32>, fit: Fit) -> vec4<f32> {
    return saturate(abs(x) * (fit.trial * 16777216.0) - 5592405.5);
}

// The terms of a round: first squares, and magnitudes; then of a level times its number, and of its
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
        if (bits != 2u) {
            second = max(max(abs(a), abs(b)), max(abs(c), abs(d)));
            return vec2<f32>((first.x + first.y) + (first.z + first.w), max(max(second.x, second.y), max(second.z, second.w)));
        }
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

fn fit_gather(a: vec2<f32>, b: vec2<f32>, n: u32, bits: u32) -> vec2<f32> {
    return vec2<f32>(a.x + b.x, select(a.y + b.y, max(a.y, b.y), n == 0u && bits != 2u));
}

// The inverse of a step.
fn fit_inverse(step: f32, bits: u32) -> f32 {
    return 1.0 / (clamp(step, FIT_SMALLEST, FIT_LARGEST) * fit_largest(bits));
}

// The scale for the codes of a trial, given the sum of numbers times their levels.
fn fit_scale(squares: f32, products: f32, trial: f32, bits: u32) -> f32 {
    let step = 1.0 / (trial * fit_largest(bits));
    return clamp(squares / max(products, 1e-30), 0.9 * step, 1.25 * step);
}

fn fit_close(terms: vec2<f32>, fit: Fit, n: u32, channels: u32, bits: u32, clip: f32) -> Fit {
    var next = fit;
    if (n == 0u) {
        next.squares = min(terms.x, FIT_LARGEST);
        next.other = terms.y;
        if (bits == 2u) {
            next.trial = fit_inverse(0.9957 * sqrt(next.squares / f32(channels)), bits);
            return next;
        }
        let step = terms.y * (2.0 * fit_share(0u, bits) / fit_largest(bits));
        next.trial = fit_inverse(step, bits);
        next.inverse = next.trial;
        next.scale = step;
        return next;
    }
    // A key's rounds may be more than its value's.
    if (n >= fit_rounds(bits)) {
        return fit;
    }
    if (bits == 2u) {
        if (n < 3u) {
            next.trial = fit_inverse((0.5 * fit.other + terms.x) / (0.25 * f32(channels) + 2.0 * terms.y), bits);
            return next;
        }
        next.inverse = fit.trial;
        next.scale = fit_scale(fit.squares, terms.x, fit.trial, bits);
        return next;
    }
    let scale = fit_scale(fit.squares, terms.x, fit.trial, bits);
    let error = scale * (scale * terms.y - 2.0 * terms.x);
    if (n == 1u || error < fit.error) {
        next.inverse = fit.trial;
        next.scale = scale;
        next.error = error;
    }
    next.trial = fit_inverse(fit.other * (2.0 * fit_share(n, bits) / fit_largest(bits)), bits);
    return next;
}

// What a trellis is fitted by, and its scale.
fn fit_squares(fit: Fit) -> f32 {
    return fit.squares;
}

fn fit_rescaled(fit: Fit, scale: f32) -> Fit {
    var next = fit;
    next.scale = scale;
    return next;
}

// Whether the group is beyond what a scale can hold.
fn fit_beyond(fit: Fit) -> bool {
    return fit.scale > 8585740288.0;
}

// A scale as it is stored: a float without a sign, six bits of exponent and ten of fraction, from
// 2^-30 to below 2^33; smaller ones are 0.
fn fit_pack(fit: Fit, less: f32) -> u32 {
    let bits = bitcast<u32>(fit.scale);
    let rounded = (bits + 0xfffu + ((bits >> 13u) & 1u)) >> 13u;
    return select(min(rounded - 0x18000u, 0xffffu), 0u, rounded < 0x18400u);
}
