// lanes: RotateKV's keys in packed halves, two tokens a Lane: unpacking of codes and the
// butterflies on 4 and 16 channels.

override HEADS: u32; // query heads that share one reading

alias Lane = vec2<f16>;

struct Quad { a: Lane, b: Lane, c: Lane, d: Lane }
// Sixteen consecutive channels.
struct Sixteen { a: Quad, b: Quad, c: Quad, d: Quad }

// The low halves of two tokens' words in one, the second token's above; and the high halves.
fn lane_low(two: vec2<u32>) -> u32 {
    return (two.x & 0xffffu) | (two.y << 16u);
}

fn lane_high(two: vec2<u32>) -> u32 {
    return (two.x >> 16u) | (two.y & 0xffff0000u);
}

// The codes under a mask as numbers. In the fraction of 1024 a code counts from its own place, so 1
// / unit times too much. (Unpacking to f32 and back is a bitcast to a compiler; naga has none from
// one word to two halves.)
fn lane_codes(word: u32, mask: u32, unit: f16) -> Lane {
    return fma(Lane(unpack2x16float((word & mask) | 0x64006400u)), Lane(unit), Lane(-1024.0h * unit));
}

fn quad_codes(a: u32, b: u32, c: u32, d: u32, mask: u32, unit: f16) -> Quad {
    return Quad(lane_codes(a, mask, unit), lane_codes(b, mask, unit), lane_codes(c, mask, unit), lane_codes(d, mask, unit));
}

fn quad_sum(x: Quad, y: Quad) -> Quad {
    return Quad(x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d);
}

fn quad_difference(x: Quad, y: Quad) -> Quad {
    return Quad(x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d);
}

// H_4, without its factor 1/2.
fn quad_mixed(x: Quad) -> Quad {
    let p = x.a + x.b;
    let q = x.a - x.b;
    let r = x.c + x.d;
    let s = x.c - x.d;
    return Quad(p + r, q + s, p - r, q - s);
}

fn sixteen_mixed(x: Sixteen) -> Sixteen {
    let a = quad_mixed(x.a);
    let b = quad_mixed(x.b);
    let c = quad_mixed(x.c);
    let d = quad_mixed(x.d);
    let p = quad_sum(a, b);
    let q = quad_difference(a, b);
    let r = quad_sum(c, d);
    let s = quad_difference(c, d);
    return Sixteen(quad_sum(p, r), quad_sum(q, s), quad_difference(p, r), quad_difference(q, s));
}

// Four codes of each of two tokens, one a byte, from a lane's word of each: the first pair of a
// vector of four tokens or the second.
fn lane_quad(v: vec4<u32>, second: bool, shift: u32, mask: u32, unit: f16) -> Quad {
    let two = select(v.xy, v.zw, second) >> vec2<u32>(shift);
    let low = lane_low(two);
    let high = lane_high(two);
    return quad_codes(low, low >> 8u, high, high >> 8u, mask, unit);
}

// The same for whole bytes, which lie in memory as signed ones: 128 higher.
fn lane_bytes(v: vec4<u32>, second: bool) -> Quad {
    return lane_quad(v ^ vec4<u32>(0x80808080u), second, 0u, 0x00ff00ffu, 1.0h);
}

// Adds one channel's products with four query heads.
fn lane_dots(dots: Quad, x: Lane, q: vec4<f16>) -> Quad {
    var sum = dots;
    sum.a = fma(x, Lane(q.x), dots.a);
    if (HEADS > 1u) {
        sum.b = fma(x, Lane(q.y), dots.b);
    }
    if (HEADS > 2u) {
        sum.c = fma(x, Lane(q.z), dots.c);
        sum.d = fma(x, Lane(q.w), dots.d);
    }
    return sum;
}

// The heads that there are of four; zeros for the others.
fn lane_heads(q: HeadsF) -> vec4<f32> {
    var x = vec4<f32>(heads_at(q, 0u), 0.0, 0.0, 0.0);
    if (HEADS > 1u) {
        x.y = heads_at(q, 1u);
    }
    if (HEADS > 2u) {
        x.z = heads_at(q, 2u);
        x.w = heads_at(q, 3u);
    }
    return x;
}
