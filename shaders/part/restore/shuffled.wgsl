// restore: RotateKV's keys in registers, for GPUs whose subgroups have 32 lanes: heads of 128
// channels, four rotated together.
//
// The lanes of a unit hold two tokens' keys of all four heads: lane 8 h + e has the 16 channels b +
// 4 j + 8 e + 64 l of head h (b below 4, j and l below 2). H_512 is four stages among those and
// five between lanes. RoPE's pairs (l = 0 and 1) stay in a lane; keys are turned by their place in
// the page, and the queries are turned back by the page's. Each unit takes a quarter of the page's
// tokens, and meets the others only to hand over scores: no workgroup memory holds keys, which is
// what limits restore/straight. Halves keep 11 bits, of numbers that were stored with 2 to 4;
// products of 128 channels are summed in halves. Reads the kernel's bindings `turns`,
// `query_codes`, `marks`, `key_scales`; needs lanes, restore/words/<bits>, scales/<form>. Twin:
// src/kernel/reference/attend_split.rs computes the same in f32, in the shape of restore/rolled.

override HEADS: u32;         // query heads that share one reading
override BLOCKS: u32;        // blocks of HEADS query heads per KV head
override QUERY_STRIDE: u32;  // entries of query_codes per block of heads
override PAGE_VECS: u32;     // vec4s of one head's page
override KEY_BITS: u32;      // 2, 3, 4, 8, or 16 for f16
override ROPE: u32;          // 0 none, 1 split halves, 2 interleaved pairs
override ROW_GROUPS: u32;    // groups of a token's whole key row that share a scale
override RESTORE_SCALE: f32; // 1 / sqrt(GROUP_HEADS * HEAD_DIM)

const RESTORE_TILES = 1u;

// Step (xy) and base (zw) of every group's two tokens: x = step * code + base. By pair of tokens of
// the page.
var<workgroup> restore_steps: array<array<vec4<f16>, ROW_GROUPS>, 64>;

struct Four { a: vec4<f16>, b: vec4<f16>, c: vec4<f16>, d: vec4<f16> }
// The queries of the lane's channels, turned back by the page's position; four query heads each.
struct Asked { a: Four, b: Four, c: Four, d: Four }
// Which groups the lane's channels are of, a byte each.
struct RestoreIds { groups: vec4<u32> }
struct RestoreDots { nothing: u32 }
struct Turns { cosine: Quad, sine: Quad }

fn restore_ids(stand: Stand, i: u32) -> RestoreIds {
    let at = (stand.head_first + i % 32u / 8u) * 32u + 2u * (i % 8u);
    return RestoreIds(vec4<u32>(marks[at], marks[at + 1u], marks[at + 16u], marks[at + 17u]));
}

// Steps and bases of the page: the scale, with the rotation's factor, and less the zero times it.
fn restore_open(physical: u32, i: u32) {
    for (var e = i; e < 32u * ROW_GROUPS; e += 128u) {
        let lane = e % 32u;
        let g = e / 32u;
        let raw = scales_of(key_scales[(physical * ROW_GROUPS + g) * SCALE_VECS + scales_vec(lane)], lane);
        let a = scales_pair(raw.x);
        let b = scales_pair(raw.y);
        let c = scales_pair(raw.z);
        let d = scales_pair(raw.w);
        let step = vec4<f32>(a.x, b.x, c.x, d.x) * RESTORE_SCALE;
        let base = -step * (vec4<f32>(a.y, b.y, c.y, d.y) + vec4<f32>(select(0.0, 128.0, KEY_BITS == 8u)));
        restore_steps[2u * lane][g] = vec4<f16>(vec4<f32>(step.xy, base.xy));
        restore_steps[2u * lane + 1u][g] = vec4<f16>(vec4<f32>(step.zw, base.zw));
    }
}

fn asked_at(stand: Stand, h: u32, c: u32) -> vec4<f32> {
    return lane_heads(bitcast<HeadsF>(query_codes[stand.queries_at + h * BLOCKS * QUERY_STRIDE + c]));
}

// Channel c, of the first half of a head, turned back by page n.
fn asked_low(stand: Stand, h: u32, n: u32, c: u32) -> vec4<f16> {
    let x = asked_at(stand, h, c);
    if (ROPE == 0u) {
        return vec4<f16>(x);
    }
    let turn = turn_at((128u + n) * 64u + c);
    return vec4<f16>(x * turn.x + asked_at(stand, h, c + 64u) * turn.y);
}

// And its partner.
fn asked_high(stand: Stand, h: u32, n: u32, c: u32) -> vec4<f16> {
    let y = asked_at(stand, h, c + 64u);
    if (ROPE == 0u) {
        return vec4<f16>(y);
    }
    let turn = turn_at((128u + n) * 64u + c);
    return vec4<f16>(y * turn.x - asked_at(stand, h, c) * turn.y);
}

fn asked_take(stand: Stand, h: u32, n: u32, c: u32) -> Asked {
    return Asked(
        Four(asked_low(stand, h, n, c), asked_low(stand, h, n, c + 1u), asked_low(stand, h, n, c + 2u), asked_low(stand, h, n, c + 3u)),
        Four(asked_low(stand, h, n, c + 4u), asked_low(stand, h, n, c + 5u), asked_low(stand, h, n, c + 6u), asked_low(stand, h, n, c + 7u)),
        Four(asked_high(stand, h, n, c), asked_high(stand, h, n, c + 1u), asked_high(stand, h, n, c + 2u), asked_high(stand, h, n, c + 3u)),
        Four(asked_high(stand, h, n, c + 4u), asked_high(stand, h, n, c + 5u), asked_high(stand, h, n, c + 6u), asked_high(stand, h, n, c + 7u)));
}

fn lane_restored(code: Lane, ids: u32, shift: u32, pair: u32) -> Lane {
    let step = restore_steps[pair][(ids >> shift) & 0xffu];
    return fma(code, step.xy, step.zw);
}

fn quad_restored(codes: Quad, ids: u32, pair: u32) -> Quad {
    return Quad(lane_restored(codes.a, ids, 0u, pair), lane_restored(codes.b, ids, 8u, pair), lane_restored(codes.c, ids, 16u, pair),
        lane_restored(codes.d, ids, 24u, pair));
}

// Another lane's number. (Packing is a bitcast to a compiler, as unpacking is.)
fn lane_of(x: Lane, mask: u32) -> Lane {
    return Lane(unpack2x16float(subgroupShuffleXor(pack2x16float(vec2<f32>(x)), mask)));
}

fn quad_crossed(x: Quad, mask: u32, sign: Lane) -> Quad {
    return Quad(fma(x.a, sign, lane_of(x.a, mask)), fma(x.b, sign, lane_of(x.b, mask)), fma(x.c, sign, lane_of(x.c, mask)),
        fma(x.d, sign, lane_of(x.d, mask)));
}

// A stage between lanes that differ in one bit: sum, or difference where the bit is set.
fn sixteen_crossed(x: Sixteen, mask: u32, lane: u32) -> Sixteen {
    let sign = Lane(select(1.0h, -1.0h, (lane & mask) != 0u));
    return Sixteen(quad_crossed(x.a, mask, sign), quad_crossed(x.b, mask, sign), quad_crossed(x.c, mask, sign), quad_crossed(x.d, mask, sign));
}

// The table's end keeps cosines and sines of the low positions as halves of two tokens: [pair of
// tokens, channel / 2, lane, channel % 2]. Four of the lane's channels are two vectors.
fn lane_turn(bits: f32) -> Lane {
    return Lane(unpack2x16float(bitcast<u32>(bits)));
}

fn turns_take(at: u32) -> Turns {
    let p = turns[at];
    let q = turns[at + 8u];
    return Turns(Quad(lane_turn(p.x), lane_turn(p.z), lane_turn(q.x), lane_turn(q.z)), Quad(lane_turn(p.y), lane_turn(p.w), lane_turn(q.y), lane_turn(q.w)));
}

fn quad_product(x: Quad, y: Quad) -> Quad {
    return Quad(x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d);
}

fn dot_quad(dots: Quad, x: Quad, q: Four) -> Quad {
    return lane_dots(lane_dots(lane_dots(lane_dots(dots, x.a, q.a), x.b, q.b), x.c, q.c), x.d, q.d);
}

// Two tokens of the page: their scores against the queries.
fn restore_pair(codes: Sixteen, ids: RestoreIds, asked: Asked, pair: u32, lane: u32) {
    var x = sixteen_mixed(Sixteen(quad_restored(codes.a, ids.groups.x, pair), quad_restored(codes.b, ids.groups.y, pair),
        quad_restored(codes.c, ids.groups.z, pair), quad_restored(codes.d, ids.groups.w, pair)));
    x = sixteen_crossed(x, 1u, lane);
    x = sixteen_crossed(x, 2u, lane);
    x = sixteen_crossed(x, 4u, lane);
    x = sixteen_crossed(x, 8u, lane);
    x = sixteen_crossed(x, 16u, lane);
    if (ROPE > 0u) {
        let at = arrayLength(&turns) - 2048u + 32u * pair + lane % 8u;
        let p = turns_take(at);
        let q = turns_take(at + 16u);
        x = Sixteen(quad_difference(quad_product(x.a, p.cosine), quad_product(x.c, p.sine)),
            quad_difference(quad_product(x.b, q.cosine), quad_product(x.d, q.sine)),
            quad_sum(quad_product(x.c, p.cosine), quad_product(x.a, p.sine)),
            quad_sum(quad_product(x.d, q.cosine), quad_product(x.b, q.sine)));
    }
    var dots = Quad(Lane(0.0h), Lane(0.0h), Lane(0.0h), Lane(0.0h));
    dots = dot_quad(dot_quad(dot_quad(dot_quad(dots, x.a, asked.a), x.b, asked.b), x.c, asked.c), x.d, asked.d);
    // The sums over the eight lanes of a head: each exchange halves what a lane goes on with, until
    // it has one query head.
    let odd = (lane & 1u) == 1u;
    let upper = (lane & 2u) == 2u;
    let first = select(dots.a, dots.c, odd) + lane_of(select(dots.c, dots.a, odd), 1u);
    let second = select(dots.b, dots.d, odd) + lane_of(select(dots.d, dots.b, odd), 1u);
    let mine = select(first, second, upper) + lane_of(select(second, first, upper), 2u);
    let score = mine + lane_of(mine, 4u);
    let q = 2u * (lane & 1u) + ((lane >> 1u) & 1u);
    if ((lane & 4u) == 0u && q < HEADS) {
        page_scores[(lane / 8u * HEADS + q) * 64u + pair] = vec2<f32>(score);
    }
}

fn restore_spread(stand: Stand, physical: u32, tile: u32, ids: RestoreIds, i: u32) {}

fn restore_dots(stand: Stand, physical: u32, n: u32, tile: u32, ids: RestoreIds, i: u32) -> RestoreDots {
    let lane = i % 32u;
    let unit = i / 32u;
    let h = lane / 8u;
    let asked = asked_take(stand, h, n, 8u * (lane % 8u));
    let page = (physical * params.slab_heads + stand.slab_first + h) * PAGE_VECS;
    var words = words_take(page, 8u * unit, lane % 8u);
    // Counted from zero, so that the loop is the same for all lanes: browsers allow shuffles in no
    // other.
    for (var k = 0u; k < 8u; k++) {
        let four = 8u * unit + k;
        // The next words are on their way while these are worked on.
        let next = words_take(page, min(four + 1u, 31u), lane % 8u);
        restore_pair(words_codes(words, false, lane % 8u), ids, asked, 2u * four, lane);
        restore_pair(words_codes(words, true, lane % 8u), ids, asked, 2u * four + 1u, lane);
        words = next;
    }
    return RestoreDots(0u);
}

fn restore_put(dots: RestoreDots, i: u32) {}

fn restore_sum(physical: u32, tile: u32, i: u32) {}
