// unpack: keys and values that the prefilling rows of a pass see, as halves, once for all of these
// rows: attend_prefill and attend_matrices then read numbers, whatever the codec.
//
//   key = scale * (code - zero) + H (weight * RoPE_t(mean))    (the mean only for Centred, of the channels that turn)
//   value = scale * (code - zero)
//
// for RotateKV key = RoPE_t(B (scale * (code - zero))), B the rotation over a group of KV heads. All
// else stays in the basis of the codec, as the queries are. What is f16 already (sinks, window) is
// taken as it is, but for the mean.
//
// One workgroup unpacks a tile of 32 tokens of one KV head. Keys that are more than their codes pass
// through `row`, four tokens a cell and QUARTETS cells a channel at a time (part tile).
//
// Wrapper: src/kernel/unpack.rs. Twin: src/kernel/reference/unpack.rs.

override HEAD_DIM: u32;
override SINKS: u32;
override MASSIVE: bool;   // whether the sinks are elected
override QUARTETS: u32;   // four tokens each, that pass through `row` together
override CELLS: u32;      // QUARTETS * HEAD_DIM, 512 at most

struct UnpackParams { // src/kernel/unpack.rs
    items_at: u32,    // first item in tables
    slab_heads: u32,
    heads_at: u32,    // which they are, in tables
    kv_heads: u32,
}

alias Cell = vec4<f32>;

@group(1) @binding(0) var<uniform> params: UnpackParams;
@group(1) @binding(1) var<storage, read> tables: array<u32>;                    // items of 4 words; chunks of 8; pages
@group(0) @binding(0) var<storage, read> turns: array<vec2<f32>>;               // [128 low + high positions, ROPE_PAIRS]
@group(0) @binding(1) var<storage, read> marks: array<u32>;                     // what the codec learned; sinks
@group(0) @binding(2) var<storage, read> key_scales: array<vec4<u32>>;          // [physical page, group of the row, SCALE_VECS]
@group(0) @binding(3) var<storage, read> pages: array<vec4<u32>>;               // [physical page, slab head, PAGE_VECS]
@group(0) @binding(4) var<storage, read> protected_rows: array<u32>;            // [slot, kv_heads, SINKS + RING, HEAD_DIM]
// [tile, kv_heads], each [HEAD_DIM / 8, 32 tokens] of eight channels, then [4, HEAD_DIM] of eight tokens.
@group(0) @binding(5) var<storage, read_write> unpacked_rows: array<vec4<u32>>;

var<workgroup> row: array<vec4<f32>, CELLS>;
// Where each token's f16 row begins, or CACHED_PACKED; and its position, or NOWHERE for a place
// without a token.
var<workgroup> token_rows: array<u32, 32>;
var<workgroup> token_positions: array<u32, 32>;

const NOWHERE = 0xffffffffu;

// The tile's token n (0 to 31). Tiles are those of the sinks before token `after`, then those of all
// tokens from there on; of the latter where `after` is 0.
fn stage_token(place: Place, tokens: u32, after: u32, tile: u32, n: u32) {
    let before_end = select(min(SINKS, after), select(0u, SINKS, after > 0u), MASSIVE);
    let before_tiles = (before_end + 31u) / 32u;
    var t = after + 32u * (tile - before_tiles) + n;
    var at = CACHED_PACKED;
    if (tile < before_tiles) {
        let s = 32u * tile + n;
        if (s >= before_end) {
            t = NOWHERE;
        } else if (MASSIVE) {
            // The places are those of the sinks' rows. A later sink is met among the other tokens.
            at = cached_offset(place, s);
            t = cached_sink(place, s);
            t = select(NOWHERE, t, t < after);
        } else {
            t = s;
            at = cached_row(place, t);
        }
    } else if (t >= tokens) {
        t = NOWHERE;
    } else {
        at = cached_row(place, t);
    }
    token_positions[n] = t;
    token_rows[n] = at;
}

// Four channels of the tile's token n; zeros without a token.
fn stored_value(place: Place, n: u32, quad: u32) -> vec4<f32> {
    if (token_positions[n] == NOWHERE) {
        return vec4<f32>(0.0);
    }
    return cached_value(place, token_positions[n], token_rows[n], quad);
}

// The same of two tokens, as halves: a word for each channel.
fn two_values(place: Place, n: u32, quad: u32) -> vec4<u32> {
    let x = stored_value(place, n, quad);
    let y = stored_value(place, n + 1u, quad);
    return vec4<u32>(half_pair(x.x, y.x), half_pair(x.y, y.y), half_pair(x.z, y.z), half_pair(x.w, y.w));
}

// Eight tokens of four channels.
fn unpack_values(place: Place, at: u32, e: u32) {
    let quad = e % (HEAD_DIM / 4u);
    let octet = e / (HEAD_DIM / 4u);
    let a = two_values(place, 8u * octet, quad);
    let b = two_values(place, 8u * octet + 2u, quad);
    let c = two_values(place, 8u * octet + 4u, quad);
    let d = two_values(place, 8u * octet + 6u, quad);
    let to = at + octet * HEAD_DIM + 4u * quad;
    unpacked_rows[to] = vec4<u32>(a.x, b.x, c.x, d.x);
    unpacked_rows[to + 1u] = vec4<u32>(a.y, b.y, c.y, d.y);
    unpacked_rows[to + 2u] = vec4<u32>(a.z, b.z, c.z, d.z);
    unpacked_rows[to + 3u] = vec4<u32>(a.w, b.w, c.w, d.w);
}

// Eight channels of the tile's token n; `cells` is where the tokens in `row` begin.
fn unpack_keys(place: Place, at: u32, cells: u32, n: u32, octet: u32) {
    var low = vec4<f32>(0.0);
    var high = vec4<f32>(0.0);
    if (token_positions[n] != NOWHERE) {
        low = tile_key(place, n, (n - cells) / 4u * HEAD_DIM, 2u * octet);
        high = tile_key(place, n, (n - cells) / 4u * HEAD_DIM, 2u * octet + 1u);
    }
    unpacked_rows[at + octet * 32u + n] =
        vec4<u32>(half_pair(low.x, low.y), half_pair(low.z, low.w), half_pair(high.x, high.y), half_pair(high.z, high.w));
}

@compute @workgroup_size(128)
fn unpack(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let record = params.items_at + 4u * workgroup.x;
    let chunk = tables[record];
    let tile = tables[record + 1u];
    let after = tables[record + 2u];
    let head = tables[params.heads_at + workgroup.y];
    let place = Place(chunk_slot(chunk), chunk_new_packed(chunk), chunk_list(chunk), head, params.kv_heads, workgroup.y, params.slab_heads, chunk_limit(chunk));
    let keys_at = (tables[record + 3u] * params.kv_heads + head) * (8u * HEAD_DIM);
    if (i < 32u) {
        stage_token(place, chunk_new_tokens(chunk), after, tile, i);
    }
    workgroupBarrier();
    for (var e = i; e < HEAD_DIM; e += 128u) {
        unpack_values(place, keys_at + 4u * HEAD_DIM, e);
    }
    if (TILE_MIXES) {
        for (var first = 0u; first < 32u; first += 4u * QUARTETS) {
            tile_spread(place, first, i);
            workgroupBarrier();
            for (var step = 0u; step < TILE_STEPS; step++) {
                let a = tile_step(step, first, i);
                let b = tile_step(step, first, i + 128u);
                let c = tile_step(step, first, i + 256u);
                let d = tile_step(step, first, i + 384u);
                workgroupBarrier();
                tile_put(i, a);
                tile_put(i + 128u, b);
                tile_put(i + 256u, c);
                tile_put(i + 384u, d);
                workgroupBarrier();
            }
            for (var e = i; e < QUARTETS * HEAD_DIM / 2u; e += 128u) {
                unpack_keys(place, keys_at, first, first + e % (4u * QUARTETS), e / (4u * QUARTETS));
            }
            workgroupBarrier();
        }
    } else {
        for (var e = i; e < 4u * HEAD_DIM; e += 128u) {
            unpack_keys(place, keys_at, 0u, e % 32u, e / 32u);
        }
    }
}
