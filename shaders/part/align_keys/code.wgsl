// align_keys, integer codes in planes: the scores of a page's 128 keys, four tokens a lane, by
// integer dot products over four channels at a time: a quad, whose planes are read or left unread
// together. Reads the kernel's bindings `plans` and `pages`. Needs planes/<bits>, levels/<bits>,
// scales/<form>, page_scales.

override HEAD_DIM: u32;        // channels of a head
override KEY_GROUPS: u32;      // groups of keys that have their scales in the page
override KEY_GROUP_QUADS: u32; // quads of channels that share a key scale
override KEY_SCALES: u32;      // vec4s from a page's start to its key scales

var<workgroup> key_levels: array<u32, 4>;
// By group: what the middles of unread bits add to the dot products; and what a token's scale times
// it bounds the error of its score by.
var<workgroup> key_fills: array<HeadsF, 8>;
var<workgroup> key_errors: array<HeadsF, 8>;

const PLAN_FILLS = 48u;
const PLAN_ERRORS = 80u;

struct Dots { a: HeadsI, b: HeadsI, c: HeadsI, d: HeadsI }

fn keys_heads(at: u32) -> HeadsF {
    return heads_of(bitcast<f32>(plans[at]), bitcast<f32>(plans[at + 1u]), bitcast<f32>(plans[at + 2u]), bitcast<f32>(plans[at + 3u]));
}

fn keys_open(plan: u32, lane: u32) {
    if (lane < 4u) {
        key_levels[lane] = plans[plan + lane];
    }
    if (lane < 8u) {
        key_fills[lane] = keys_heads(plan + PLAN_FILLS + 4u * lane);
        key_errors[lane] = keys_heads(plan + PLAN_ERRORS + 4u * lane);
    }
}

fn key_add(words: vec4<u32>, quad: u32, dots: Dots) -> Dots {
    let q = queries[quad];
    let codes = planes_codes(words);
    return Dots(dots.a + heads_dot_i8(codes.x, q), dots.b + heads_dot_i8(codes.y, q), dots.c + heads_dot_i8(codes.z, q), dots.d + heads_dot_i8(codes.w, q));
}

// The lane's words of one quad; nothing of those from `end` on.
fn key_planes(page: u32, quad: u32, end: u32, lane: u32, levels: u32) -> vec4<u32> {
    return planes_take(page, quad, lane, 32u, select(LEVEL_NOTHING, levels & 3u, quad < end));
}

// Adds eight quads of those before `end`, all loads first.
fn key_eight(page: u32, quad: u32, end: u32, lane: u32, dots: Dots) -> Dots {
    let levels = key_levels[quad / 16u] >> (2u * (quad % 16u));
    let a = key_planes(page, quad, end, lane, levels);
    let b = key_planes(page, quad + 1u, end, lane, levels >> 2u);
    let c = key_planes(page, quad + 2u, end, lane, levels >> 4u);
    let d = key_planes(page, quad + 3u, end, lane, levels >> 6u);
    let e = key_planes(page, quad + 4u, end, lane, levels >> 8u);
    let f = key_planes(page, quad + 5u, end, lane, levels >> 10u);
    let g = key_planes(page, quad + 6u, end, lane, levels >> 12u);
    let h = key_planes(page, quad + 7u, end, lane, levels >> 14u);
    let low = key_add(d, quad + 3u, key_add(c, quad + 2u, key_add(b, quad + 1u, key_add(a, quad, dots))));
    return key_add(h, quad + 7u, key_add(g, quad + 6u, key_add(f, quad + 5u, key_add(e, quad + 4u, low))));
}

// Scores in log2 units, and in nats what each may be off by.
fn keys_scores(page: u32, lane: u32) -> Keyed {
    let none = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var s = none;
    var error = none;
    for (var g = 0u; g < KEY_GROUPS; g++) {
        let end = (g + 1u) * KEY_GROUP_QUADS;
        var dots = Dots(HeadsI(0), HeadsI(0), HeadsI(0), HeadsI(0));
        for (var quad = g * KEY_GROUP_QUADS; quad < end; quad += 8u) {
            dots = key_eight(page, quad, end, lane, dots);
        }
        let raw = page_scales(page + 4u * KEY_SCALES, g, lane);
        let a = scales_key(raw.x);
        let b = scales_key(raw.y);
        let c = scales_key(raw.z);
        let d = scales_key(raw.w);
        let sum = bitcast<HeadsF>(queries[HEAD_DIM / 4u + 1u + g]);
        let fill = key_fills[g];
        s.a += a.x * ((HeadsF(dots.a) + fill) - a.y * sum);
        s.b += b.x * ((HeadsF(dots.b) + fill) - b.y * sum);
        s.c += c.x * ((HeadsF(dots.c) + fill) - c.y * sum);
        s.d += d.x * ((HeadsF(dots.d) + fill) - d.y * sum);
        error.a += a.x * key_errors[g];
        error.b += b.x * key_errors[g];
        error.c += c.x * key_errors[g];
        error.d += d.x * key_errors[g];
    }
    let scale = bitcast<HeadsF>(queries[HEAD_DIM / 4u]);
    return Keyed(Scores(s.a * scale, s.b * scale, s.c * scale, s.d * scale), error);
}

// What a token's value weighs beside its softmax weight: the largest scale of its groups.
fn keys_steps(page: u32, lane: u32) -> vec4<f32> {
    return page_scales_largest(page, lane);
}
