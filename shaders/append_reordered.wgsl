// append_reordered: RotateKV's keys into the packed pages. Rotate, then reorder, then quantize
// (2501.16383, section 4):
//
//   y = P B k,   B the rotation over each group of GROUP_HEADS KV heads, P the calibrated order of a token's whole key row
//
// before RoPE; consecutive channels of y share a scale. A code stays at its channel's place in B k:
// the order only says which scale it has (`marks`), so that no reader need move it back.
//
// One workgroup packs up to four tokens of one lane, token by token, each over all the KV heads of
// its layer: first every group's extent, then (rotating once more, since a row may be larger than
// workgroup memory) scales and codes. A key comes from the caller (new in this step) or from the
// f16 rows (it leaves the window now), where it was turned: it is turned back. The rotation spreads
// a number that is not finite over its group of heads: their codes are those of zeros, and they are
// listed in `status`.
//
// Wrapper: src/kernel/append_reordered.rs. Twin: src/kernel/reference/append_reordered.rs.

override HEAD_DIM: u32;
override ROPE_PAIRS: u32;
override KEY_BITS: u32;
override KEY_CLIP: f32;
override PAGE_VECS: u32;
override SINKS: u32;        // f16 rows of sinks
override RING: u32;         // f16 rows of the window, used in turn
override UNPACKED: u32;     // first tokens that are not packed
override GROUP_HEADS: u32;  // KV heads that are rotated together
override GROUP_SCALE: f32;  // 1 / sqrt(GROUP_HEADS)
override GROUP_CELLS: u32;  // GROUP_HEADS * HEAD_DIM
override ROW_GROUPS: u32;   // groups of a token's whole key row that share a scale
override TURNED: bool; // whether the caller's rows come turned

struct AppendReorderedParams { // src/kernel/append_reordered.rs
    items_at: u32,   // first item in tables
    items: u32,
    layer: u32,      // for the status list
    slab_heads: u32, // KV heads whose pages lie in this slab
    heads_at: u32,   // which they are, in tables
    kv_heads: u32,
    places_at: u32,  // by KV head: its place in the slab, or one beyond all, in tables
    scales: u32,     // 1 if the scales, which are of all heads, are written along with this slab
}

alias Cell = f32;

@group(1) @binding(0) var<uniform> params: AppendReorderedParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;               // items of 2 words; chunks of 8; pages
@group(0) @binding(0) var<storage, read> turns: array<vec2<f32>>;          // [128 low + high positions, ROPE_PAIRS]
@group(2) @binding(0) var<storage, read> keys: array<u32>;                 // [rows, kv_heads, HEAD_DIM] f32, f16 or bf16
@group(0) @binding(1) var<storage, read> protected_rows: array<u32>;       // [slot, kv_heads, SINKS + RING, HEAD_DIM]
@group(0) @binding(2) var<storage, read> marks: array<u32>;                // [kv_heads, HEAD_DIM] groups a byte; sinks
@group(0) @binding(3) var<storage, read_write> pages: array<u32>;          // [physical page, slab head, 4 * PAGE_VECS]
@group(0) @binding(4) var<storage, read_write> key_scales: array<u32>;     // [physical page, ROW_GROUPS, GROUP_WORDS]
@group(0) @binding(5) var<storage, read_write> status: array<atomic<u32>>; // count, then entries of 4 words

var<workgroup> row: array<f32, GROUP_CELLS>;
var<workgroup> half_way: array<f32, GROUP_CELLS>;
var<workgroup> codes: array<u32, GROUP_CELLS>;
// Largest number and largest negated number of each group, in the order of the unsigned integers.
var<workgroup> highs: array<atomic<u32>, ROW_GROUPS>;
var<workgroup> lows: array<atomic<u32>, ROW_GROUPS>;
var<workgroup> steps: array<vec2<f32>, ROW_GROUPS>; // scale and zero
var<workgroup> broken: atomic<u32>;
var<workgroup> beyond: atomic<u32>;

// Floats as unsigned integers in the same order, and back.
fn ordered(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn unordered(bits: u32) -> f32 {
    return bitcast<f32>(select(~bits, bits & 0x7fffffffu, (bits & 0x80000000u) != 0u));
}

fn key_at(i: u32) -> f32 {
    return element_of(keys[element_word(i)], i);
}

fn protected_at(at: u32, c: u32) -> f32 {
    let pair = unpack2x16float(protected_rows[at + c / 2u]);
    return select(pair.x, pair.y, (c & 1u) == 1u);
}

fn stored_at(fresh: bool, at: u32, c: u32) -> f32 {
    if (fresh) {
        return key_at(at + c);
    }
    return protected_at(at, c);
}

// Channel c of a head's key before RoPE: of one that is turned, turned back.
fn plain_at(fresh: bool, at: u32, c: u32, t: u32) -> f32 {
    let x = stored_at(fresh, at, c);
    if (fresh && !TURNED) {
        return x;
    }
    let pair = turn_pair(c);
    if (pair >= ROPE_PAIRS) {
        return x;
    }
    let turn = turn_compose(turns[(128u + t / 128u) * ROPE_PAIRS + pair], turns[(t % 128u) * ROPE_PAIRS + pair]);
    return x * turn.x - turn_sign(c) * stored_at(fresh, at, turn_partner(c)) * turn.y;
}

// The factor over the heads of the group, from `half_way`.
fn mixed_heads(i: u32) -> f32 {
    let mask = hadamard_sylvester(i / HEAD_DIM);
    var sum = 0.0;
    for (var j = 0u; j < GROUP_HEADS; j++) {
        sum += hadamard_sign(mask, j) * half_way[j * HEAD_DIM + i % HEAD_DIM];
    }
    return sum * GROUP_SCALE;
}

fn group_of(channel: u32) -> u32 {
    return (marks[channel / 4u] >> (8u * (channel % 4u))) & 0xffu;
}

fn place_of(head: u32) -> u32 {
    return tables[params.places_at + head];
}

@compute @workgroup_size(256)
fn append_reordered(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let n = place_workgroup(workgroup, workgroups);
    if (n >= params.items) {
        return;
    }
    let chunk = tables[params.items_at + 2u * n];
    let four = tables[params.items_at + 2u * n + 1u];
    let slot = chunk_slot(chunk);
    let old_tokens = chunk_old_tokens(chunk);
    let old_packed = chunk_old_packed(chunk);
    let new_packed = chunk_new_packed(chunk);
    let page = chunk_page(chunk, four / 32u);
    let row_first = chunk_row_first(chunk);
    let blocks = params.kv_heads / GROUP_HEADS;
    let levels = f32((1u << KEY_BITS) - 1u);

    for (var t = max(4u * four, max(old_packed, UNPACKED)); t < min(4u * four + 4u, new_packed); t++) {
        let fresh = t >= old_tokens;
        for (var g = i; g < ROW_GROUPS; g += 256u) {
            atomicStore(&highs[g], 0u);
            atomicStore(&lows[g], 0u);
        }
        if (i == 0u) {
            atomicStore(&beyond, 0u);
        }
        // Twice over the row: the extents, then the codes.
        for (var turn = 0u; turn < 2u * blocks; turn++) {
            let head_first = turn % blocks * GROUP_HEADS;
            workgroupBarrier();
            if (i == 0u) {
                atomicStore(&broken, 0u);
            }
            for (var c = i; c < GROUP_CELLS; c += 256u) {
                let head = head_first + c / HEAD_DIM;
                let fresh_at = layout_row(0u, row_first + t - old_tokens, params.kv_heads, head);
                let kept_at = ((slot * params.kv_heads + head) * (SINKS + RING) + SINKS + t % max(RING, 1u)) * HEAD_DIM;
                row[c] = plain_at(fresh, select(kept_at, fresh_at, fresh), c % HEAD_DIM, t);
            }
            workgroupBarrier();
            for (var c = i; c < GROUP_CELLS; c += 256u) {
                half_way[c] = hadamard_outer(c);
            }
            workgroupBarrier();
            for (var c = i; c < GROUP_CELLS; c += 256u) {
                row[c] = half_way[c];
            }
            workgroupBarrier();
            for (var c = i; c < GROUP_CELLS; c += 256u) {
                half_way[c] = hadamard_inner(c);
            }
            workgroupBarrier();
            for (var c = i; c < GROUP_CELLS; c += 256u) {
                let x = mixed_heads(c);
                if (!finite(x)) {
                    atomicOr(&broken, 1u);
                }
                row[c] = x;
            }
            workgroupBarrier();
            let zeros = atomicLoad(&broken) != 0u;
            if (turn < blocks) {
                if (zeros && i < GROUP_HEADS && place_of(head_first + i) < params.slab_heads) {
                    report(slot, t, head_first + i, 1u);
                }
                for (var c = i; c < GROUP_CELLS; c += 256u) {
                    let g = group_of(head_first * HEAD_DIM + c);
                    let x = select(row[c], 0.0, zeros);
                    atomicMax(&highs[g], ordered(x));
                    atomicMax(&lows[g], ordered(-x));
                }
                workgroupBarrier();
                for (var g = i; turn + 1u == blocks && g < ROW_GROUPS; g += 256u) {
                    let low = -unordered(atomicLoad(&lows[g]));
                    let high = unordered(atomicLoad(&highs[g]));
                    let scale = group_scale(low, high, KEY_CLIP, levels);
                    if (group_beyond(low, high, KEY_CLIP, levels)) {
                        atomicOr(&beyond, 4u);
                    }
                    let zero = group_zero(low, KEY_CLIP, scale);
                    steps[g] = vec2<f32>(scale, zero);
                    if (params.scales != 0u) {
                        let word = (page * ROW_GROUPS + g) * GROUP_WORDS + group_word(t);
                        let pair = group_pack(scale, select(zero, zero - 128.0, KEY_BITS == 8u));
                        key_scales[word] = (key_scales[word] & ~(GROUP_MASK << group_shift(t))) | (pair << group_shift(t));
                    }
                }
            } else {
                // A group's channels may be of any head.
                let what = atomicLoad(&beyond);
                if (what != 0u && turn == blocks && i < params.slab_heads) {
                    report(slot, t, tables[params.heads_at + i], what);
                }
                for (var c = i; c < GROUP_CELLS; c += 256u) {
                    let step = steps[group_of(head_first * HEAD_DIM + c)];
                    let code = group_code(select(row[c], 0.0, zeros), step.x, 1.0 / step.x, step.y, levels);
                    codes[c] = select(code, code ^ 128u, KEY_BITS == 8u);
                }
                workgroupBarrier();
                let low_bits = select(KEY_BITS, 2u, KEY_BITS == 3u);
                let low_words = HEAD_DIM * low_bits / 32u;
                let words = low_words + select(0u, (HEAD_DIM + 31u) / 32u, KEY_BITS == 3u);
                for (var e = i; e < GROUP_HEADS * words; e += 256u) {
                    let head = head_first + e / words;
                    if (place_of(head) < params.slab_heads) {
                        let at = (page * params.slab_heads + place_of(head)) * (4u * PAGE_VECS) + t % 128u;
                        let w = e % words;
                        let first = e / words * HEAD_DIM;
                        if (w < low_words) {
                            pages[at + 128u * w] = key_word(first, w, low_bits);
                        } else {
                            pages[at + 128u * w] = key_word_high(first, w - low_words);
                        }
                    }
                }
            }
        }
        workgroupBarrier();
    }
}
