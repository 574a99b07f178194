// values, integer codes: the weighted sum of a page's 128 values, four channels a lane, by integer
// dot products over tokens. The weights p * scale are quantized to u8 per page and group. A "step"
// is one vec4 of low words: the same word of the lane's four channels. values/bits/<bits> says how
// a step unpacks. Reads the kernel's binding `pages`. values/walk/straight or values/walk/rolled
// walks the steps. A unit is the 32 lanes that serve one KV head.

override VALUES: u32;        // vec4s from a page's start to its values
override VALUE_SCALES: u32;  // vec4s from a page's start to its value scales
override UNITS: u32;         // 1
override VALUE_GROUP: u32;   // channels that share a value scale; divides HEAD_DIM
override VALUE_WEIGHTS: u32; // entries of the weights in workgroup memory

// quad: the channels that are summed.
struct Sums { a: HeadsU, b: HeadsU, c: HeadsU, d: HeadsU, quad: u32 }
// The weights of a lane's four tokens for one group, and the tokens' zeros.
struct Weighed { a: HeadsF, b: HeadsF, c: HeadsF, d: HeadsF, zero: vec4<f32> }

// weights[VALUE_WEIGHTS * unit + 32 * g + n]: for group g, the u8 weights of tokens 4n to 4n + 3
// packed in a word, one word a head.
var<workgroup> weights: array<HeadsU, UNITS * VALUE_WEIGHTS>;
// The weight that the code 255 stands for, times 255, by unit and group.
var<workgroup> weight_peaks: array<HeadsF, UNITS * 8u>;

fn values_weigh(g: u32, page: u32, lane: u32, p: Scores) -> Weighed {
    let scales = scales_of(pages[page + VALUE_SCALES + g * SCALE_VECS + scales_vec(lane)], lane);
    let a = scales_value(scales.x);
    let b = scales_value(scales.y);
    let c = scales_value(scales.z);
    let d = scales_value(scales.w);
    return Weighed(p.a * a.x, p.b * b.x, p.c * c.x, p.d * d.x, vec4<f32>(a.y, b.y, c.y, d.y));
}

fn values_largest(w: Weighed) -> HeadsF {
    return max(max(w.a, w.b), max(w.c, w.d));
}

// Writes the lane's weights as u8 and returns the lane's share of the sum of weight times zero,
// from the same u8 weights.
fn values_pack(unit: u32, g: u32, lane: u32, w: Weighed, largest: HeadsF) -> HeadsF {
    let peak = max(largest, HeadsF(1e-30));
    let inverse = HeadsF(255.0) / peak;
    let a = HeadsU(w.a * inverse + HeadsF(0.5));
    let b = HeadsU(w.b * inverse + HeadsF(0.5));
    let c = HeadsU(w.c * inverse + HeadsF(0.5));
    let d = HeadsU(w.d * inverse + HeadsF(0.5));
    weights[VALUE_WEIGHTS * unit + 32u * g + lane] = a | (b << HeadsU(8u)) | (c << HeadsU(16u)) | (d << HeadsU(24u));
    if (lane == 0u) {
        weight_peaks[8u * unit + g] = peak;
    }
    return peak * (1.0 / 255.0) * ((HeadsF(a) * w.zero.x + HeadsF(b) * w.zero.y) + (HeadsF(c) * w.zero.z + HeadsF(d) * w.zero.w));
}

fn values_quad(codes: vec4<u32>, n: u32, sums: ptr<function, Sums>) {
    let p = weights[n];
    (*sums).a += heads_dot_u8(codes.x, p);
    (*sums).b += heads_dot_u8(codes.y, p);
    (*sums).c += heads_dot_u8(codes.z, p);
    (*sums).d += heads_dot_u8(codes.w, p);
}

// Adds the page's share to the four channels of quad `quad`.
fn values_add(unit: u32, page: u32, quad: u32, fetched: Fetched, row: ptr<function, Scores>) {
    let g = quad * 4u / VALUE_GROUP;
    let at = page + VALUES + quad;
    let n = VALUE_WEIGHTS * unit + 32u * g;
    var sums = Sums(HeadsU(0u), HeadsU(0u), HeadsU(0u), HeadsU(0u), quad);
    values_walk(at, n, fetched, &sums);
    let scale = weight_peaks[8u * unit + g] * (1.0 / 255.0);
    (*row).a += HeadsF(sums.a) * scale;
    (*row).b += HeadsF(sums.b) * scale;
    (*row).c += HeadsF(sums.c) * scale;
    (*row).d += HeadsF(sums.d) * scale;
}
