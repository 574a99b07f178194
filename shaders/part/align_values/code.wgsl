// align_values, integer codes in planes: the levels are of four tokens at a time, whose codes of a
// channel lie in one word. Reads the kernel's binding `pages`. Needs planes/<bits>, levels,
// levels/<bits>, scales/<form>, page_scales.

override HEAD_DIM: u32;     // channels of a head
override VALUES: u32;       // vec4s from a page's start to its values
override VALUE_GROUPS: u32; // value groups a head (1 for f16)
override VALUE_SCALES: u32; // vec4s from a page's start to its value scales
override VALUE_GROUP: u32;  // channels that share a value scale; divides HEAD_DIM
override STEPS: u32;        // scales of a page's tokens that workgroup memory holds

// weights[t]: the weight of token t of the page, times its scale where there is one group;
// steps[128 g + t]: its scale, where there are several; levels[n]: the level of tokens 4n to 4n +
// 3; offsets[32 g + n]: what the middles of their unread bits and their zeros add.
var<workgroup> weights: array<HeadsF, 128>;
var<workgroup> steps: array<f32, STEPS>;
var<workgroup> levels: array<u32, 32>;
var<workgroup> offsets: array<HeadsF, 32u * VALUE_GROUPS>;

// Writes what the page's tokens weigh and their level, four tokens a lane.
fn values_weigh(page: u32, lane: u32, p: Scores, rule: Rule, block: u32) -> Weighed {
    let most = page_scales_largest(page, lane);
    let weight = (p.a * most.x + p.b * most.y) + (p.c * most.z + p.d * most.w);
    let level = select(0u, level_of(level_largest(weight * rule.factor, block), rule.threshold), params.criterion == 2u);
    let middle = level_error(level);
    for (var g = 0u; g < VALUE_GROUPS; g++) {
        let raw = page_scales(page + 4u * VALUE_SCALES, g, lane);
        let a = scales_value(raw.x);
        let b = scales_value(raw.y);
        let c = scales_value(raw.z);
        let d = scales_value(raw.w);
        offsets[32u * g + lane] = (p.a * (a.x * (middle - a.y)) + p.b * (b.x * (middle - b.y)))
            + (p.c * (c.x * (middle - c.y)) + p.d * (d.x * (middle - d.y)));
        if (VALUE_GROUPS > 1u) {
            steps[128u * g + 4u * lane] = a.x;
            steps[128u * g + 4u * lane + 1u] = b.x;
            steps[128u * g + 4u * lane + 2u] = c.x;
            steps[128u * g + 4u * lane + 3u] = d.x;
        }
    }
    let alone = select(vec4<f32>(1.0), most, VALUE_GROUPS == 1u);
    weights[4u * lane] = p.a * alone.x;
    weights[4u * lane + 1u] = p.b * alone.y;
    weights[4u * lane + 2u] = p.c * alone.z;
    weights[4u * lane + 3u] = p.d * alone.w;
    levels[lane] = level;
    return Weighed(weight * middle, select(vec3<u32>(0u), vec3<u32>(1u), vec3<u32>(level) == vec3<u32>(1u, 2u, 3u)));
}

fn value_weight(t: u32, g: u32) -> HeadsF {
    if (VALUE_GROUPS > 1u) {
        return weights[t] * steps[128u * g + t];
    }
    return weights[t];
}

fn value_add(words: vec4<u32>, n: u32, g: u32, row: Scores) -> Scores {
    let codes = planes_codes(words);
    let p = value_weight(4u * n, g);
    let q = value_weight(4u * n + 1u, g);
    let r = value_weight(4u * n + 2u, g);
    let s = value_weight(4u * n + 3u, g);
    let a = vec4<f32>(unpack4xU8(codes.x));
    let b = vec4<f32>(unpack4xU8(codes.y));
    let c = vec4<f32>(unpack4xU8(codes.z));
    let d = vec4<f32>(unpack4xU8(codes.w));
    return Scores(
        row.a + ((a.x * p + a.y * q) + (a.z * r + a.w * s)),
        row.b + ((b.x * p + b.y * q) + (b.z * r + b.w * s)),
        row.c + ((c.x * p + c.y * q) + (c.z * r + c.w * s)),
        row.d + ((d.x * p + d.y * q) + (d.z * r + d.w * s)));
}

// Adds tokens 4n to 4n + 31, all loads first; tokens of which nothing is read take no time either.
fn value_eight(page: u32, n: u32, quad: u32, g: u32, row: Scores) -> Scores {
    let at = page + 4u * VALUES;
    let length = HEAD_DIM / 4u;
    let low = vec4<u32>(levels[n], levels[n + 1u], levels[n + 2u], levels[n + 3u]);
    let high = vec4<u32>(levels[n + 4u], levels[n + 5u], levels[n + 6u], levels[n + 7u]);
    let a = planes_take(at, n, quad, length, low.x);
    let b = planes_take(at, n + 1u, quad, length, low.y);
    let c = planes_take(at, n + 2u, quad, length, low.z);
    let d = planes_take(at, n + 3u, quad, length, low.w);
    let e = planes_take(at, n + 4u, quad, length, high.x);
    let f = planes_take(at, n + 5u, quad, length, high.y);
    let h = planes_take(at, n + 6u, quad, length, high.z);
    let i = planes_take(at, n + 7u, quad, length, high.w);
    var sum = row;
    if (low.x < LEVEL_NOTHING) { sum = value_add(a, n, g, sum); }
    if (low.y < LEVEL_NOTHING) { sum = value_add(b, n + 1u, g, sum); }
    if (low.z < LEVEL_NOTHING) { sum = value_add(c, n + 2u, g, sum); }
    if (low.w < LEVEL_NOTHING) { sum = value_add(d, n + 3u, g, sum); }
    if (high.x < LEVEL_NOTHING) { sum = value_add(e, n + 4u, g, sum); }
    if (high.y < LEVEL_NOTHING) { sum = value_add(f, n + 5u, g, sum); }
    if (high.z < LEVEL_NOTHING) { sum = value_add(h, n + 6u, g, sum); }
    if (high.w < LEVEL_NOTHING) { sum = value_add(i, n + 7u, g, sum); }
    return sum;
}

fn value_offset(at: u32) -> HeadsF {
    return (offsets[at] + offsets[at + 1u]) + (offsets[at + 2u] + offsets[at + 3u]);
}

// Adds the page's values of channels 4 * quad to 4 * quad + 3.
fn values_add(page: u32, quad: u32, row: Scores) -> Scores {
    let g = 4u * quad / VALUE_GROUP;
    var sum = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var offset = HeadsF(0.0);
    for (var n = 0u; n < 32u; n += 8u) {
        sum = value_eight(page, n, quad, g, sum);
        offset += value_offset(32u * g + n) + value_offset(32u * g + n + 4u);
    }
    return Scores(row.a + (sum.a + offset), row.b + (sum.b + offset), row.c + (sum.c + offset), row.d + (sum.d + offset));
}
