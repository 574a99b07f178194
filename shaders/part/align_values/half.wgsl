// align_values, halves in planes of 8, 4 and 4 bits: each token has a level of its own. Reads the
// kernel's binding `pages`. Needs planes, levels, levels/half.

override HEAD_DIM: u32; // channels of a head
override SHARE: u32;    // query heads per KV head
override HEADS: u32;    // query heads that share one reading
override VALUES: u32;   // vec4s from a page's start to its values
override COUNT: bool;   // whether loads of planes are counted

// weights[t]: the weight of token t of the page; levels[t / 4]: the levels of four tokens, two bits
// each.
var<workgroup> weights: array<HeadsF, 128>;
var<workgroup> levels: array<u32, 32>;

// The level of a token of these weights: a level fewer for the strictest of the heads that there
// are.
fn value_level(p: HeadsF, rule: Rule, block: u32) -> u32 {
    let w = p * rule.factor;
    if (params.criterion == 1u) {
        var spare = rule.bases.x - exponent(heads_at(w, 0u));
        if (HEADS > 1u && block * HEADS + 1u < SHARE) {
            spare = min(spare, rule.bases.y - exponent(heads_at(w, 1u)));
        }
        if (HEADS > 2u && block * HEADS + 2u < SHARE) {
            spare = min(spare, rule.bases.z - exponent(heads_at(w, 2u)));
        }
        if (HEADS > 2u && block * HEADS + 3u < SHARE) {
            spare = min(spare, rule.bases.w - exponent(heads_at(w, 3u)));
        }
        return select(0u, 1u, spare >= 4) + select(0u, 1u, spare >= 8);
    }
    return select(0u, level_of(level_largest(w, block), rule.threshold), params.criterion == 2u);
}

// Writes what the page's tokens weigh and their levels, four tokens a lane.
fn values_weigh(page: u32, lane: u32, p: Scores, rule: Rule, block: u32) -> Weighed {
    let chosen = vec4<u32>(value_level(p.a, rule, block), value_level(p.b, rule, block), value_level(p.c, rule, block), value_level(p.d, rule, block));
    weights[4u * lane] = p.a;
    weights[4u * lane + 1u] = p.b;
    weights[4u * lane + 2u] = p.c;
    weights[4u * lane + 3u] = p.d;
    levels[lane] = chosen.x | (chosen.y << 2u) | (chosen.z << 4u) | (chosen.w << 6u);
    let ones = min(chosen, vec4<u32>(1u));
    let all = (ones.x + ones.y) + (ones.z + ones.w);
    let twos = (chosen.x + chosen.y) + (chosen.z + chosen.w) - all;
    let cost = (p.a * level_error(chosen.x) + p.b * level_error(chosen.y)) + (p.c * level_error(chosen.z) + p.d * level_error(chosen.w));
    return Weighed(cost, vec3<u32>(all - twos, twos, 0u));
}

// The lane's words of one token.
fn value_planes(first: u32, middle: u32, shift: u32, level: u32) -> vec3<u32> {
    var words = vec3<u32>(pages[first], 0x00880088u, select(0u, 0x00880088u, level == 1u));
    if (level < 2u) {
        words.y = pages[middle] >> shift;
        if (COUNT) { loads.y += 1u; }
    }
    if (level < 1u) {
        words.z = pages[middle + 16u * HEAD_DIM] >> shift;
        if (COUNT) { loads.z += 1u; }
    }
    return words;
}

fn value_add(words: vec3<u32>, t: u32, row: Scores) -> Scores {
    let p = weights[t];
    let halves = planes_halves(words.x, words.y, words.z);
    let v = unpack2x16float(halves.x);
    let w = unpack2x16float(halves.y);
    return Scores(row.a + v.x * p, row.b + v.y * p, row.c + w.x * p, row.d + w.y * p);
}

// Adds eight tokens, all loads first.
fn value_eight(page: u32, t: u32, quad: u32, row: Scores) -> Scores {
    let low = levels[t / 4u];
    let high = levels[t / 4u + 1u];
    let first = page + 4u * VALUES + t * (HEAD_DIM / 4u) + quad;
    let middle = page + 4u * VALUES + 32u * HEAD_DIM + t * (HEAD_DIM / 8u) + quad / 2u;
    let shift = 8u * (quad % 2u);
    let a = value_planes(first, middle, shift, low & 3u);
    let b = value_planes(first + HEAD_DIM / 4u, middle + HEAD_DIM / 8u, shift, (low >> 2u) & 3u);
    let c = value_planes(first + 2u * (HEAD_DIM / 4u), middle + 2u * (HEAD_DIM / 8u), shift, (low >> 4u) & 3u);
    let d = value_planes(first + 3u * (HEAD_DIM / 4u), middle + 3u * (HEAD_DIM / 8u), shift, (low >> 6u) & 3u);
    let e = value_planes(first + 4u * (HEAD_DIM / 4u), middle + 4u * (HEAD_DIM / 8u), shift, high & 3u);
    let f = value_planes(first + 5u * (HEAD_DIM / 4u), middle + 5u * (HEAD_DIM / 8u), shift, (high >> 2u) & 3u);
    let g = value_planes(first + 6u * (HEAD_DIM / 4u), middle + 6u * (HEAD_DIM / 8u), shift, (high >> 4u) & 3u);
    let h = value_planes(first + 7u * (HEAD_DIM / 4u), middle + 7u * (HEAD_DIM / 8u), shift, (high >> 6u) & 3u);
    let half = value_add(d, t + 3u, value_add(c, t + 2u, value_add(b, t + 1u, value_add(a, t, row))));
    return value_add(h, t + 7u, value_add(g, t + 6u, value_add(f, t + 5u, value_add(e, t + 4u, half))));
}

// Adds the page's values of channels 4 * quad to 4 * quad + 3.
fn values_add(page: u32, quad: u32, row: Scores) -> Scores {
    var sum = row;
    for (var t = 0u; t < 128u; t += 8u) {
        sum = value_eight(page, t, quad, sum);
    }
    return sum;
}
