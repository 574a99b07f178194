// align_keys, halves in planes of 8, 4 and 4 bits: the scores of a page's 128 keys, four tokens a
// lane, a channel after the other. Reads the kernel's bindings `plans` and `pages`. Needs planes.

override HEAD_DIM: u32; // channels of a head
override COUNT: bool;   // whether loads of planes are counted

var<workgroup> key_levels: array<u32, 16>;

fn keys_open(plan: u32, lane: u32) {
    if (lane < 16u) {
        key_levels[lane] = plans[plan + lane];
    }
}

// The lane's words of one channel.
fn key_planes(first: u32, middle: u32, shift: u32, level: u32) -> vec3<u32> {
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

fn key_add(words: vec3<u32>, channel: u32, s: Scores) -> Scores {
    let q = bitcast<HeadsF>(queries[channel]);
    let halves = planes_halves(words.x, words.y, words.z);
    let k = unpack2x16float(halves.x);
    let l = unpack2x16float(halves.y);
    return Scores(s.a + k.x * q, s.b + k.y * q, s.c + l.x * q, s.d + l.y * q);
}

// Adds eight channels, all loads first.
fn key_eight(page: u32, channel: u32, lane: u32, s: Scores) -> Scores {
    let levels = key_levels[channel / 16u] >> (2u * (channel % 16u));
    let first = page + 32u * channel + lane;
    let middle = page + 32u * HEAD_DIM + 16u * channel + lane / 2u;
    let shift = 8u * (lane % 2u);
    let a = key_planes(first, middle, shift, levels & 3u);
    let b = key_planes(first + 32u, middle + 16u, shift, (levels >> 2u) & 3u);
    let c = key_planes(first + 64u, middle + 32u, shift, (levels >> 4u) & 3u);
    let d = key_planes(first + 96u, middle + 48u, shift, (levels >> 6u) & 3u);
    let e = key_planes(first + 128u, middle + 64u, shift, (levels >> 8u) & 3u);
    let f = key_planes(first + 160u, middle + 80u, shift, (levels >> 10u) & 3u);
    let g = key_planes(first + 192u, middle + 96u, shift, (levels >> 12u) & 3u);
    let h = key_planes(first + 224u, middle + 112u, shift, (levels >> 14u) & 3u);
    let low = key_add(d, channel + 3u, key_add(c, channel + 2u, key_add(b, channel + 1u, key_add(a, channel, s))));
    return key_add(h, channel + 7u, key_add(g, channel + 6u, key_add(f, channel + 5u, key_add(e, channel + 4u, low))));
}

fn keys_scores(page: u32, lane: u32) -> Keyed {
    let none = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    var s = none;
    for (var c = 0u; c < HEAD_DIM; c += 8u) {
        s = key_eight(page, c, lane, s);
    }
    // align_plan bounds what the planes that stay unread do: it knows the channels' largest
    // exponents.
    return Keyed(s, none);
}

// What a token's value weighs beside its softmax weight.
fn keys_steps(page: u32, lane: u32) -> vec4<f32> {
    return vec4<f32>(1.0);
}
