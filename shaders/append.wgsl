// append: new keys and values into the packed pages: RoPE, rotation, scale, codes, in one pass over
// both.
//
//   key   = scale * (code - zero)  of  H (weight * RoPE_t(k - mean))
//   value = scale * (code - zero)  of  H (v - mean)       (H only where the codec rotates; means and weights for Centred)
//
// One workgroup packs the new tokens of one block for one KV head, token by token; invocation i
// holds channel i of the key and of the value. A token's row comes from the caller (new in this
// step) or from the f16 rows that `protect` kept (it leaves the window now, and is already
// rotated). Tokens of the block packed earlier keep their codes.
//
// A key or value with a number that is not finite is stored as zeros; one beyond what a scale (or a
// half) can hold saturates. Both are listed in `status`.
//
// For AlignedKV (2409.16546) a half is stored in planes, and each channel's largest exponent in the
// page; or an integer code in planes.
//
// Numbers whose codes are those of a trellis (part trellis) lie in words of four meanwhile, and two
// invocations work on each group of them.
//
// For RotateKV, whose keys append_reordered packs, it packs the values only.
//
// Wrapper: src/kernel/append.rs. Twin: src/kernel/reference/append.rs.

override HEAD_DIM: u32;
override KEYS: bool;        // whether keys are packed here
override ROTATE_KEYS: bool;
override ROTATE_VALUES: bool;
override ROPE_PAIRS: u32;
override KEY_BITS: u32;     // 2, 3, 4, 8, or 16 for f16
override VALUE_BITS: u32;
override KEY_CLIP: f32;     // share of a group's range that the codes span
override VALUE_CLIP: f32;
override KEY_GROUP: u32;    // channels that share a key scale; divides HEAD_DIM
override VALUE_GROUP: u32;  // channels that share a value scale; divides HEAD_DIM
override KEY_SCALES: u32;   // vec4s from a page's start
override VALUES: u32;
override VALUE_SCALES: u32;
override PAGE_VECS: u32;
override PLANES: bool;         // whether a half is stored in planes
override CODE_PLANES: bool;    // whether an integer code is
override SINKS: u32;        // f16 rows of sinks
override UNPACKED: u32;     // first tokens that are not packed
override RING: u32;         // f16 rows of the window, used in turn
override BLOCK: u32;        // tokens of a block: 32, or 128 where PLANES
override MAXIMA: u32;       // vec4s from a page's start to its largest exponents
override EIGHTHS: u32;      // HEAD_DIM / 8
override KEY_TRELLIS: bool;   // whether key codes are those of a trellis
override VALUE_TRELLIS: bool;
override TRELLIS_LANES: u32; // invocations that find its symbols, two for each group of a token; 1 for none
override CODE_ROWS: u32;     // HEAD_DIM / 4 words of a key, then as many of a value; 1 for none
override TURNED: bool; // whether the caller's rows come turned

struct AppendParams { // src/kernel/append.rs
    items_at: u32,   // first item in tables
    items: u32,
    layer: u32,      // for the status list
    slab_heads: u32, // KV heads whose pages lie in this slab
    heads_at: u32,   // which they are, in tables
    kv_heads: u32,
    pad_a: u32,
    pad_b: u32,
}

alias Cell = vec2<f32>;

@group(1) @binding(0) var<uniform> params: AppendParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;                    // items of 2 words; chunks of 8; pages
@group(0) @binding(0) var<storage, read> turns: array<vec2<f32>>;               // [128 low + high positions, ROPE_PAIRS]
@group(2) @binding(0) var<storage, read> keys: array<u32>;                      // [rows, kv_heads, HEAD_DIM] f32, f16 or bf16
@group(2) @binding(1) var<storage, read> values: array<u32>;                    // the same
@group(0) @binding(1) var<storage, read> protected_rows: array<u32>;            // [slot, kv_heads, SINKS + RING, HEAD_DIM]
@group(0) @binding(2) var<storage, read> marks: array<u32>;                     // [kv_heads, 3, HEAD_DIM] f32, for Centred
@group(0) @binding(3) var<storage, read_write> pages: array<u32>;               // [physical page, slab head, 4 * PAGE_VECS]
@group(0) @binding(4) var<storage, read_write> status: array<atomic<u32>>;      // count, then entries of 4 words

var<workgroup> row: array<vec2<f32>, HEAD_DIM>;
var<workgroup> terms: array<vec4<f32>, HEAD_DIM>;     // of a channel's key and of its value
var<workgroup> gathered: array<vec4<f32>, EIGHTHS>;   // the same of 8 channels
var<workgroup> codes: array<u32, HEAD_DIM>;
var<workgroup> row_codes: array<u32, CODE_ROWS>;      // of a trellis: numbers, then symbols, in its order
var<workgroup> met: array<vec4<f32>, 4u * TRELLIS_LANES>;
var<workgroup> broken: atomic<u32>;

fn protected_at(at: u32, i: u32) -> vec2<f32> {
    let k = unpack2x16float(protected_rows[at + i / 2u]);
    let v = unpack2x16float(protected_rows[at + (HEAD_DIM + i) / 2u]);
    return select(vec2<f32>(k.x, v.x), vec2<f32>(k.y, v.y), (i & 1u) == 1u);
}

fn gather(a: vec4<f32>, b: vec4<f32>, n: u32) -> vec4<f32> {
    return vec4<f32>(fit_gather(a.xy, b.xy, n, KEY_BITS), fit_gather(a.zw, b.zw, n, VALUE_BITS));
}

// What `gathered` holds over the channels of channel i's group of so many.
fn gather_group(i: u32, channels: u32, n: u32) -> vec4<f32> {
    let first = i / channels * (channels / 8u);
    var sum = gathered[first];
    for (var e = first + 1u; e < first + channels / 8u; e++) {
        sum = gather(sum, gathered[e], n);
    }
    return sum;
}

// The largest exponents of channel i's keys and values among the page's tokens before.
fn maxima_at(at: u32, i: u32) -> vec2<u32> {
    let word = at + 4u * MAXIMA + i / 4u;
    return (vec2<u32>(pages[word], pages[word + HEAD_DIM / 4u]) >> vec2<u32>(8u * (i % 4u))) & vec2<u32>(255u);
}

// Four channels' codes of token t, a byte each, into the planes of keys: of slot t % 4. `at` is in
// words.
fn key_planes_put(at: u32, quad: u32, t: u32, four: u32) {
    let row = at + 32u * quad + t % 128u / 4u;
    let slot = t % 4u;
    if (KEY_BITS == 8u) {
        value_put(row + 32u * (quad + slot % 2u), 0x0f0f0f0fu, 4u * (slot / 2u), code_planes_cut(four, 4u, 4u));
        value_put(row + 16u * HEAD_DIM, 0x03030303u, 2u * slot, code_planes_cut(four, 2u, 2u));
        value_put(row + 24u * HEAD_DIM, 0x03030303u, 2u * slot, code_planes_cut(four, 0u, 2u));
    } else {
        value_put(row, 0x03030303u, 2u * slot, code_planes_cut(four, 2u, 2u));
        value_put(row + 8u * HEAD_DIM, 0x03030303u, 2u * slot, code_planes_cut(four, 0u, 2u));
    }
}

// The same into the planes of values: of byte t % 4.
fn value_planes_put(at: u32, quad: u32, t: u32, four: u32) {
    let quads = HEAD_DIM / 4u;
    let first = at + t % 128u / 4u * quads + quad;
    let byte = 8u * (t % 4u);
    if (VALUE_BITS == 8u) {
        let even = first + t % 128u / 4u * quads;
        let pair = code_planes_pair(code_planes_cut(four, 4u, 4u));
        value_put(even, 255u, byte, pair.x);
        value_put(even + quads, 255u, byte, pair.y);
        value_put(first + 16u * HEAD_DIM, 255u, byte, code_planes_fold(code_planes_cut(four, 2u, 2u)));
        value_put(first + 24u * HEAD_DIM, 255u, byte, code_planes_fold(code_planes_cut(four, 0u, 2u)));
    } else {
        value_put(first, 255u, byte, code_planes_fold(code_planes_cut(four, 2u, 2u)));
        value_put(first + 8u * HEAD_DIM, 255u, byte, code_planes_fold(code_planes_cut(four, 0u, 2u)));
    }
}

// Replaces the bits under a mask in a word of the planes.
fn value_put(at: u32, mask: u32, shift: u32, code: u32) {
    pages[at] = (pages[at] & ~(mask << shift)) | (code << shift);
}

// Channel i's byte of word w of a trellis in `row_codes`, and the level that comes of it: the words
// are of groups of `channels` channels.
fn trellis_byte(w: u32, byte: u32, channels: u32) -> vec2<u32> {
    let words = channels / 4u;
    let before = select(w - 1u, w + words - 1u, w % words == 0u);
    let levels = trellis_levels(row_codes[w], row_codes[before]);
    return (vec2<u32>(row_codes[w], levels) >> vec2<u32>(8u * byte)) & vec2<u32>(255u);
}

fn met_put(i: u32, paths: TrellisPaths) {
    met[4u * i] = paths.a;
    met[4u * i + 1u] = paths.b;
    met[4u * i + 2u] = paths.c;
    met[4u * i + 3u] = paths.d;
}

fn met_at(i: u32) -> TrellisPaths {
    return TrellisPaths(met[4u * i], met[4u * i + 1u], met[4u * i + 2u], met[4u * i + 3u]);
}

// Where the group lies in `row_codes` that invocation i works on: those of the key come first.
fn trellis_group_at(i: u32) -> u32 {
    let keys = select(0u, HEAD_DIM / KEY_GROUP, KEY_TRELLIS);
    return select(HEAD_DIM / 4u + (i / 2u - keys) * (VALUE_GROUP / 4u), i / 2u * (KEY_GROUP / 4u), i / 2u < keys);
}

// Writes a group's scale and zero of token t.
fn scale_put(at: u32, t: u32, pair: u32) {
    let word = at + group_word(t);
    pages[word] = (pages[word] & ~(GROUP_MASK << group_shift(t))) | (pair << group_shift(t));
}

@compute @workgroup_size(HEAD_DIM)
fn append(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let n = place_workgroup(workgroup, workgroups);
    if (n >= params.items) {
        return;
    }
    let chunk = tables[params.items_at + 2u * n];
    let block = tables[params.items_at + 2u * n + 1u];
    let slot = chunk_slot(chunk);
    let old_tokens = chunk_old_tokens(chunk);
    let old_packed = chunk_old_packed(chunk);
    let new_packed = chunk_new_packed(chunk);
    let page = chunk_page(chunk, block * BLOCK / 128u);
    let row_first = chunk_row_first(chunk);
    let head = tables[params.heads_at + workgroup.z];
    let at = (page * params.slab_heads + workgroup.z) * (4u * PAGE_VECS);
    let protected_first = (slot * params.kv_heads + head) * (SINKS + RING) * HEAD_DIM;

    let first = max(BLOCK * block, max(old_packed, UNPACKED));
    var largest = vec2<u32>(0u);
    if (PLANES && first != max(BLOCK * block, UNPACKED)) {
        largest = maxima_at(at, i);
    }
    for (var t = first; t < min(BLOCK * block + BLOCK, new_packed); t++) {
        let fresh = t >= old_tokens;
        var x: vec2<f32>;
        if (fresh) {
            x = input_at(row_first + t - old_tokens, params.kv_heads, head, i);
        } else {
            x = protected_at(protected_first + (SINKS + t % max(RING, 1u)) * HEAD_DIM, i);
        }
        if (!KEYS) {
            x.x = 0.0;
        }
        if (i == 0u) {
            atomicStore(&broken, 0u);
        }
        workgroupBarrier();
        if (fresh) {
            x -= mean_of(head, i, t);
        }
        row[i] = x;
        let bad = select(1u, 0u, finite_storable(x.x)) | select(2u, 0u, finite_storable(x.y));
        if (bad != 0u) {
            atomicOr(&broken, bad);
        }
        workgroupBarrier();
        let what = atomicLoad(&broken);
        let pair = turn_pair(i);
        if (KEYS && fresh && pair < ROPE_PAIRS && !TURNED) {
            let turn = mean_turn(t, pair);
            x.x = x.x * turn.x + turn_sign(i) * row[turn_partner(i)].x * turn.y;
        }
        if (fresh) {
            x *= centre_weights(head, i);
        }
        x = select(x, vec2<f32>(0.0), vec2<bool>((what & 1u) != 0u, (what & 2u) != 0u));
        if (ROTATE_KEYS || ROTATE_VALUES) {
            let kept = x;
            workgroupBarrier();
            row[i] = x;
            workgroupBarrier();
            x = hadamard_outer(i);
            workgroupBarrier();
            row[i] = x;
            workgroupBarrier();
            x = select(kept, hadamard_inner(i), vec2<bool>(fresh && ROTATE_KEYS, fresh && ROTATE_VALUES));
        }
        var key_fit = fit_open();
        var value_fit = fit_open();
        for (var n = 0u; n < max(fit_rounds(KEY_BITS), fit_rounds(VALUE_BITS)); n++) {
            terms[i] = vec4<f32>(fit_terms(x.x, key_fit, n, KEY_BITS), fit_terms(x.y, value_fit, n, VALUE_BITS));
            workgroupBarrier();
            if (i < EIGHTHS) {
                var sum = terms[8u * i];
                for (var e = 8u * i + 1u; e < 8u * i + 8u; e++) {
                    sum = gather(sum, terms[e], n);
                }
                gathered[i] = sum;
            }
            workgroupBarrier();
            key_fit = fit_close(gather_group(i, KEY_GROUP, n).xy, key_fit, n, KEY_GROUP, KEY_BITS, KEY_CLIP);
            value_fit = fit_close(gather_group(i, VALUE_GROUP, n).zw, value_fit, n, VALUE_GROUP, VALUE_BITS, VALUE_CLIP);
        }

        var symbols = vec2<u32>(0u);
        if (KEY_TRELLIS || VALUE_TRELLIS) {
            let inverse = vec2<f32>(trellis_inverse(fit_squares(key_fit), KEY_GROUP), trellis_inverse(fit_squares(value_fit), VALUE_GROUP));
            codes[i] = trellis_shares(vec4<f32>(x * inverse, 0.0, 0.0), 1.0);
            workgroupBarrier();
            if (i < HEAD_DIM / 4u) {
                // The trellis of keys goes by the bits of their words.
                let c = 16u * (i / 4u) + i % 4u;
                let v = 4u * i;
                row_codes[i] = pack4xU8(vec4<u32>(codes[c], codes[c + 4u], codes[c + 8u], codes[c + 12u]));
                row_codes[HEAD_DIM / 4u + i] = pack4xU8(vec4<u32>(codes[v], codes[v + 1u], codes[v + 2u], codes[v + 3u]) >> vec4<u32>(8u));
            }
            workgroupBarrier();
            let group_at = trellis_group_at(i);
            let down = (i & 1u) == 1u;
            var links: TrellisLinks;
            if (i < TRELLIS_LANES) {
                met_put(i, trellis_open(group_at, down));
            }
            workgroupBarrier();
            var state = 0u;
            if (i < TRELLIS_LANES) {
                state = trellis_meet(met_at(i), met_at(i ^ 1u), down);
            }
            workgroupBarrier();
            if (i < TRELLIS_LANES) {
                met_put(i, trellis_walk(group_at, down, state, &links));
            }
            workgroupBarrier();
            if (i < TRELLIS_LANES) {
                trellis_trace(group_at, down, trellis_meet(met_at(i), met_at(i ^ 1u), down), &links);
            }
            workgroupBarrier();
            let key_byte = trellis_byte(i / 16u * 4u + i % 4u, i % 16u / 4u, KEY_GROUP);
            let value_byte = trellis_byte(HEAD_DIM / 4u + i / 4u, i % 4u, VALUE_GROUP);
            symbols = vec2<u32>(key_byte.x, value_byte.x);
            terms[i] = vec4<f32>(x.x * (f32(key_byte.y) - 4.5), 0.0, x.y * (f32(value_byte.y) - 4.5), 0.0);
            workgroupBarrier();
            if (i < EIGHTHS) {
                var sum = terms[8u * i];
                for (var e = 8u * i + 1u; e < 8u * i + 8u; e++) {
                    sum += terms[e];
                }
                gathered[i] = sum;
            }
            workgroupBarrier();
            if (KEY_TRELLIS) {
                key_fit = fit_rescaled(key_fit, trellis_scale(fit_squares(key_fit), gather_group(i, KEY_GROUP, 1u).x, inverse.x));
            }
            if (VALUE_TRELLIS) {
                value_fit = fit_rescaled(value_fit, trellis_scale(fit_squares(value_fit), gather_group(i, VALUE_GROUP, 1u).z, inverse.y));
            }
        }

        let beyond = select(0u, 4u, select(fit_beyond(key_fit), half_saturates(x.x), PLANES || KEY_BITS == 16u))
            | select(0u, 8u, select(fit_beyond(value_fit), half_saturates(x.y), PLANES || VALUE_BITS == 16u));
        if (beyond != 0u) {
            atomicOr(&broken, beyond);
        }

        let lane = t % 128u / 4u;
        let corner = t % 4u;
        if (PLANES) {
            let halves = vec2<u32>(half_bits(x.x), half_bits(x.y));
            largest = max(largest, (halves >> vec2<u32>(10u)) & vec2<u32>(31u));
            codes[i] = halves.y;
            // The channel's words of the keys are this invocation's own.
            let n = t % 128u;
            value_put(at + 32u * i + n / 4u, 255u, planes_byte(n), halves.x >> 8u);
            value_put(at + 32u * HEAD_DIM + 16u * i + n / 8u, 15u, planes_nibble(n), (halves.x >> 4u) & 15u);
            value_put(at + 48u * HEAD_DIM + 16u * i + n / 8u, 15u, planes_nibble(n), halves.x & 15u);
        } else if (KEY_BITS == 16u) {
            codes[i] = half_bits(x.x);
        } else if (KEYS) {
            let code = select(fit_code(x.x, key_fit, KEY_BITS), symbols.x, KEY_TRELLIS);
            // Eight bits lie in memory as signed bytes, so that one signed dot product serves every
            // width.
            codes[i] = select(code, code ^ 128u, KEY_BITS == 8u);
            if (i % KEY_GROUP == 0u) {
                scale_put(at + 4u * KEY_SCALES + i / KEY_GROUP * GROUP_WORDS, t, fit_pack(key_fit, select(0.0, 128.0, KEY_BITS == 8u)));
            }
        }
        if (PLANES) {
            // Written below, by word.
        } else if (VALUE_BITS == 16u) {
            value_put(at + 4u * VALUES + t % 128u / 2u * HEAD_DIM + i, 0xffffu, 16u * (t % 2u), half_bits(x.y));
        } else {
            let code = select(fit_code(x.y, value_fit, VALUE_BITS), symbols.y, VALUE_TRELLIS);
            if (CODE_PLANES) {
                codes[i] |= code << 8u;
            } else {
                let low_bits = select(VALUE_BITS, 2u, VALUE_BITS == 3u);
                let shifts = 8u / low_bits;
                let mask = (1u << low_bits) - 1u;
                value_put(at + 4u * VALUES + lane / shifts * HEAD_DIM + i, mask, lane % shifts * low_bits + 8u * corner, code & mask);
                if (VALUE_BITS == 3u) {
                    value_put(at + 4u * VALUES + (8u + lane / 8u) * HEAD_DIM + i, 1u, lane % 8u + 8u * corner, code >> 2u);
                }
            }
            if (i % VALUE_GROUP == 0u) {
                scale_put(at + 4u * VALUE_SCALES + i / VALUE_GROUP * GROUP_WORDS, t, fit_pack(value_fit, 0.0));
            }
        }
        workgroupBarrier();
        let wrong = atomicLoad(&broken);
        if (wrong != 0u && i == 0u) {
            report(slot, t, head, wrong);
        }
        let key_at = at + lane * 4u + corner;
        if (!KEYS) {
            continue;
        }
        if (PLANES) {
            let row_at = at + 4u * VALUES;
            let n = t % 128u;
            if (i < HEAD_DIM / 4u) {
                pages[row_at + n * (HEAD_DIM / 4u) + i] = planes_bytes(codes[4u * i], codes[4u * i + 1u], codes[4u * i + 2u], codes[4u * i + 3u]);
            }
            if (i < HEAD_DIM / 8u) {
                let e = 8u * i;
                let a = planes_nibbles(codes[e], codes[e + 1u], codes[e + 2u], codes[e + 3u]);
                let b = planes_nibbles(codes[e + 4u], codes[e + 5u], codes[e + 6u], codes[e + 7u]);
                pages[row_at + 32u * HEAD_DIM + n * (HEAD_DIM / 8u) + i] = a.x | (b.x << 8u);
                pages[row_at + 48u * HEAD_DIM + n * (HEAD_DIM / 8u) + i] = a.y | (b.y << 8u);
            }
        } else if (CODE_PLANES) {
            if (i < HEAD_DIM / 4u) {
                let four = vec4<u32>(codes[4u * i], codes[4u * i + 1u], codes[4u * i + 2u], codes[4u * i + 3u]);
                key_planes_put(at, i, t, pack4xU8(four));
                value_planes_put(at + 4u * VALUES, i, t, pack4xU8(four >> vec4<u32>(8u)));
            }
        } else if (KEY_BITS == 16u) {
            if (i < HEAD_DIM / 2u) {
                pages[key_at + 128u * i] = codes[2u * i] | (codes[2u * i + 1u] << 16u);
            }
        } else {
            let low_bits = select(KEY_BITS, 2u, KEY_BITS == 3u);
            let low_words = HEAD_DIM * low_bits / 32u;
            if (i < low_words) {
                pages[key_at + 128u * i] = key_word(0u, i, low_bits);
            }
            if (KEY_BITS == 3u && i < (HEAD_DIM + 31u) / 32u) {
                pages[key_at + 128u * (low_words + i)] = key_word_high(0u, i);
            }
        }
    }
    if (PLANES) {
        workgroupBarrier();
        codes[i] = largest.x | (largest.y << 8u);
        workgroupBarrier();
        if (i < HEAD_DIM / 4u) {
            let e = 4u * i;
            let word = at + 4u * MAXIMA + i;
            pages[word] = (codes[e] & 255u) | ((codes[e + 1u] & 255u) << 8u) | ((codes[e + 2u] & 255u) << 16u) | ((codes[e + 3u] & 255u) << 24u);
            pages[word + HEAD_DIM / 4u] = (codes[e] >> 8u) | ((codes[e + 1u] >> 8u) << 8u) | ((codes[e + 2u] >> 8u) << 16u) | ((codes[e + 3u] >> 8u) << 24u);
        }
    }
}
