// cached: four consecutive channels of one cached token as f32, wherever the token lies: in the f16
// rows (sinks, window) or in a packed page. Reads the kernel's bindings `tables`, `marks`, `pages`
// and `protected_rows`; needs scales/<form>, planes, code_planes and trellis_words. Twin:
// src/kernel/reference/cached.rs.

override HEAD_DIM: u32;     // channels of a head
override PAGE_VECS: u32;    // vec4s of one head's page
override VALUES: u32;       // vec4s from a page's start to its values
override KEY_BITS: u32;     // 2, 3, 4, 8, or 16 for f16
override VALUE_BITS: u32;
override KEY_SCALES: u32;   // vec4s from a page's start to its key scales
override VALUE_SCALES: u32; // vec4s from a page's start to its value scales
override VALUE_GROUP: u32;  // channels that share a value scale; divides HEAD_DIM
override KEY_GROUP: u32;    // channels that share a key scale; divides HEAD_DIM
override PLANES: bool;      // whether a half is stored in planes
override CODE_PLANES: bool; // whether an integer code is
override KEY_TRELLIS: bool; // whether key codes are those of a trellis
override VALUE_TRELLIS: bool;
override SINKS: u32;        // f16 rows of sinks
override RING: u32;         // f16 rows of the window, used in turn
override MASSIVE: bool;     // whether the sinks are elected
override ELECTED_AT: u32;   // first elected sink in marks

// Where one sequence's tokens of one KV head lie.
struct Place {
    slot: u32,       // the sequence's place in protected_rows
    packed: u32,     // tokens before this one lie in pages (but for the sinks)
    list: u32,       // the sequence's list of physical pages, in tables
    head: u32,       // KV head
    kv_heads: u32,
    slab_head: u32,  // the head's place in the slab
    slab_heads: u32,
    limit: u32,      // elected sinks from this token on are of a past that was cut off
}

// Of a token that lies in a page.
const CACHED_PACKED = 0xffffffffu;

// The token that f16 row s of the sinks keeps, or one beyond all.
fn cached_sink(place: Place, s: u32) -> u32 {
    if (MASSIVE) {
        let t = marks[ELECTED_AT + place.slot * 3u * SINKS + s];
        return select(0xffffffffu, t, t < place.limit);
    }
    return s;
}

// Word offset of an f16 row: HEAD_DIM / 2 words of key, then as many of value.
fn cached_offset(place: Place, s: u32) -> u32 {
    return ((place.slot * place.kv_heads + place.head) * (SINKS + RING) + s) * HEAD_DIM;
}

// Where the token's f16 row begins, or CACHED_PACKED.
fn cached_row(place: Place, t: u32) -> u32 {
    var row = CACHED_PACKED;
    if (t >= place.packed) {
        row = cached_offset(place, SINKS + t % max(RING, 1u));
    }
    if (MASSIVE) {
        for (var s = 0u; s < SINKS; s++) {
            if (cached_sink(place, s) == t) {
                row = cached_offset(place, s);
            }
        }
    } else if (t < SINKS) {
        row = cached_offset(place, t);
    }
    return row;
}

// Whether that row is one of the elected sinks, whose keys keep their mean (Centred).
fn cached_elected(place: Place, row: u32) -> bool {
    return MASSIVE && row < cached_offset(place, SINKS);
}

// Numbers 4 * quad to 4 * quad + 3 of a row of planes: a channel's tokens, or a token's channels.
// `at` is in words.
fn cached_planes(at: u32, quads: u32, row: u32, quad: u32) -> vec2<u32> {
    let first = at + row * quads + quad;
    let middle = at + 32u * HEAD_DIM + row * (quads / 2u) + quad / 2u;
    let last = middle + 16u * HEAD_DIM;
    let shift = 8u * (quad % 2u);
    return planes_halves(pages[first / 4u][first % 4u], pages[middle / 4u][middle % 4u] >> shift, pages[last / 4u][last % 4u] >> shift);
}

// Number `corner` of four halves.
fn cached_half(halves: vec2<u32>, corner: u32) -> f32 {
    return unpack2x16float(halves[corner / 2u])[corner % 2u];
}

// A word of the pages.
fn cached_word(at: u32) -> u32 {
    return pages[at / 4u][at % 4u];
}

// Four channels' key codes of one token, a byte each, from the planes of a page. `at` is in words.
fn cached_key_planes(at: u32, quad: u32, lane: u32, corner: u32) -> u32 {
    let row = 32u * quad + lane;
    if (KEY_BITS == 4u) {
        let first = (cached_word(at + row) >> (2u * corner)) & 0x03030303u;
        return (first << 2u) | ((cached_word(at + 8u * HEAD_DIM + row) >> (2u * corner)) & 0x03030303u);
    }
    let first = (cached_word(at + row + 32u * (quad + corner % 2u)) >> (4u * (corner / 2u))) & 0x0f0f0f0fu;
    let middle = (cached_word(at + 16u * HEAD_DIM + row) >> (2u * corner)) & 0x03030303u;
    return (first << 4u) | (middle << 2u) | ((cached_word(at + 24u * HEAD_DIM + row) >> (2u * corner)) & 0x03030303u);
}

// The same of value codes.
fn cached_value_planes(at: u32, quad: u32, lane: u32, corner: u32) -> u32 {
    let quads = HEAD_DIM / 4u;
    let row = lane * quads + quad;
    let byte = 8u * corner;
    if (VALUE_BITS == 4u) {
        let first = code_planes_unfold((cached_word(at + row) >> byte) & 255u);
        return (first << 2u) | code_planes_unfold((cached_word(at + 8u * HEAD_DIM + row) >> byte) & 255u);
    }
    let even = at + row + lane * quads;
    let first = code_planes_unpair((vec2<u32>(cached_word(even), cached_word(even + quads)) >> vec2<u32>(byte)) & vec2<u32>(255u));
    let middle = code_planes_unfold((cached_word(at + 16u * HEAD_DIM + row) >> byte) & 255u);
    return (first << 4u) | (middle << 2u) | code_planes_unfold((cached_word(at + 24u * HEAD_DIM + row) >> byte) & 255u);
}

fn cached_page(place: Place, t: u32) -> u32 {
    return (tables[place.list + t / 128u] * place.slab_heads + place.slab_head) * PAGE_VECS;
}

// Channels 4 * quad to 4 * quad + 3 of the key; `row` is the token's cached_row.
fn cached_key(place: Place, t: u32, row: u32, quad: u32) -> vec4<f32> {
    if (row != CACHED_PACKED) {
        let at = row + 2u * quad;
        return vec4<f32>(unpack2x16float(protected_rows[at]), unpack2x16float(protected_rows[at + 1u]));
    }
    let page = cached_page(place, t);
    let lane = t % 128u / 4u;
    let corner = t % 4u;
    if (PLANES) {
        let at = 4u * page;
        return vec4<f32>(cached_half(cached_planes(at, 32u, 4u * quad, lane), corner), cached_half(cached_planes(at, 32u, 4u * quad + 1u, lane), corner),
            cached_half(cached_planes(at, 32u, 4u * quad + 2u, lane), corner), cached_half(cached_planes(at, 32u, 4u * quad + 3u, lane), corner));
    }
    if (KEY_BITS == 16u) {
        let at = page + 2u * quad * 32u + lane;
        return vec4<f32>(unpack2x16float(pages[at][corner]), unpack2x16float(pages[at + 32u][corner]));
    }
    var word = 0u;
    if (CODE_PLANES) {
        word = cached_key_planes(4u * page, quad, lane, corner);
    } else {
        let bits = select(KEY_BITS, 2u, KEY_BITS == 3u);
        let shifts = 8u / bits;
        word = (pages[page + quad / shifts * 32u + lane][corner] >> (quad % shifts * bits)) & (((1u << bits) - 1u) * 0x01010101u);
        if (KEY_BITS == 3u) {
            let high = pages[page + (HEAD_DIM / 16u + quad / 8u) * 32u + lane][corner] >> (quad % 8u);
            word |= (high & 0x01010101u) << 2u;
        }
        if (KEY_TRELLIS) {
            // The word before is, of a group's first, the group's last.
            let w = quad / 4u;
            let before = select(w - 1u, w + KEY_GROUP / 16u - 1u, w % (KEY_GROUP / 16u) == 0u);
            let levels = trellis_words_keys(vec4<u32>(pages[page + w * 32u + lane][corner]), vec4<u32>(pages[page + before * 32u + lane][corner]));
            word = (select(levels.even.x, levels.odd.x, (quad & 1u) == 1u) >> (quad % 4u / 2u * 4u)) & 0x0f0f0f0fu;
        }
    }
    let scale = scales_key(scales_of(pages[page + KEY_SCALES + 4u * quad / KEY_GROUP * SCALE_VECS + scales_vec(lane)], lane)[corner]);
    return scale.x * (vec4<f32>(unpack4xI8(word)) - scale.y);
}

fn cached_value(place: Place, t: u32, row: u32, quad: u32) -> vec4<f32> {
    if (row != CACHED_PACKED) {
        let at = row + HEAD_DIM / 2u + 2u * quad;
        return vec4<f32>(unpack2x16float(protected_rows[at]), unpack2x16float(protected_rows[at + 1u]));
    }
    let page = cached_page(place, t);
    let lane = t % 128u / 4u;
    let corner = t % 4u;
    if (PLANES) {
        let halves = cached_planes(4u * (page + VALUES), HEAD_DIM / 4u, t % 128u, quad);
        return vec4<f32>(unpack2x16float(halves.x), unpack2x16float(halves.y));
    }
    if (VALUE_BITS == 16u) {
        let words = pages[page + VALUES + t % 128u / 2u * (HEAD_DIM / 4u) + quad] >> vec4<u32>(16u * (t % 2u));
        return vec4<f32>(unpack2x16float(words.x).x, unpack2x16float(words.y).x, unpack2x16float(words.z).x, unpack2x16float(words.w).x);
    }
    var codes = vec4<u32>(0u);
    if (CODE_PLANES) {
        codes = unpack4xU8(cached_value_planes(4u * (page + VALUES), quad, lane, corner));
    } else {
        let bits = select(VALUE_BITS, 2u, VALUE_BITS == 3u);
        let shifts = 8u / bits;
        let word = pages[page + VALUES + lane / shifts * (HEAD_DIM / 4u) + quad];
        codes = (word >> vec4<u32>(lane % shifts * bits + 8u * corner)) & vec4<u32>((1u << bits) - 1u);
        if (VALUE_BITS == 3u) {
            let high = pages[page + VALUES + (8u + lane / 8u) * (HEAD_DIM / 4u) + quad] >> vec4<u32>(lane % 8u + 8u * corner);
            codes |= (high & vec4<u32>(1u)) << vec4<u32>(2u);
        }
        if (VALUE_TRELLIS) {
            let before = select(quad - 1u, quad + VALUE_GROUP / 4u - 1u, quad % (VALUE_GROUP / 4u) == 0u);
            let levels = trellis_words_values(word, pages[page + VALUES + lane / shifts * (HEAD_DIM / 4u) + before].zw);
            let four = select(levels.even, levels.odd, (lane & 1u) == 1u);
            codes = (four >> vec4<u32>(lane % 4u / 2u * 4u + 8u * corner)) & vec4<u32>(15u);
        }
    }
    let scale = scales_value(scales_of(pages[page + VALUE_SCALES + 4u * quad / VALUE_GROUP * SCALE_VECS + scales_vec(lane)], lane)[corner]);
    return scale.x * (vec4<f32>(codes) - scale.y);
}
