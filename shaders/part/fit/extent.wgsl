// fit, asymmetric: scale and zero of a group from its largest and smallest number, in one round.
// Needs group and group/half or group/byte. fit/symmetric is the other way. Twin:
// src/kernel/reference/fit.rs.
//
// A kernel begins with fit_open, and for each of fit_rounds rounds gathers the fit_terms of the
// group's numbers by fit_gather and hands them to fit_close; then fit_code makes the codes, fit_pack
// what is stored beside them, and fit_beyond says whether that cannot hold the group.
const FIT_EXTENT = 1e9;

struct Fit { scale: f32, inverse: f32, zero: f32, beyond: bool }

fn fit_rounds(bits: u32) -> u32 {
    return 1u;
}

fn fit_open() -> Fit {
    return Fit(0.0, 0.0, 0.0, false);
}

fn fit_terms(x: f32, fit: Fit, n: u32, bits: u32) -> vec2<f32> {
    return vec2<f32>(x, -x);
}

// The same of sixteen numbers, gathered.
fn fit_sixteen(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, fit: Fit, n: u32, bits: u32) -> vec2<f32> {
    let high = max(max(a, b), max(c, d));
    let low = max(max(-a, -b), max(-c, -d));
    return vec2<f32>(max(max(high.x, high.y), max(high.z, high.w)), max(max(low.x, low.y), max(low.z, low.w)));
}

fn fit_gather(a: vec2<f32>, b: vec2<f32>, n: u32, bits: u32) -> vec2<f32> {
    return max(a, b);
}

fn fit_close(terms: vec2<f32>, fit: Fit, n: u32, channels: u32, bits: u32, clip: f32) -> Fit {
    let levels = f32((1u << bits) - 1u);
    // Beyond, no scale holds the group, and the zero would be no integer of f32.
    let high = clamp(terms.x, -FIT_EXTENT, FIT_EXTENT);
    let low = clamp(-terms.y, -FIT_EXTENT, FIT_EXTENT);
    let scale = group_scale(low, high, clip, levels);
    return Fit(scale, 1.0 / scale, group_zero(low, clip, scale), group_beyond(low, high, clip, levels));
}

fn fit_code(x: f32, fit: Fit, bits: u32) -> u32 {
    return group_code(x, fit.scale, fit.inverse, fit.zero, f32((1u << bits) - 1u));
}

// No trellis is fitted to an extent.
fn fit_squares(fit: Fit) -> f32 {
    return 0.0;
}

fn fit_rescaled(fit: Fit, scale: f32) -> Fit {
    return fit;
}

fn fit_beyond(fit: Fit) -> bool {
    return fit.beyond;
}

// `less` is taken from the zero: 128 where codes are stored as signed bytes.
fn fit_pack(fit: Fit, less: f32) -> u32 {
    return group_pack(fit.scale, fit.zero - less);
}
