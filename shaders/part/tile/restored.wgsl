// tile: RotateKV's keys, restored four tokens at a time: the rotation over the head group undone,
// RoPE at each key's own position, then halves in the tile. Works on `row` and `token_tile`, by
// `token_rows` and `token_positions`; reads the kernel's bindings `tables`, `turns` and
// `protected_rows`; needs half, hadamard, turn, grouped and grouped_block.

override HEAD_DIM: u32;       // channels of a head
override ROPE_PAIRS: u32;     // pairs of channels that turn
override HADAMARD_INNER: u32;
override TILE_VECS: u32;      // of a tile of keys or values

const TILE_RESTORES = true;

// Four tokens (of one lane of their page) without the inner factor of the rotation: blocks of
// HADAMARD_INNER channels each.
fn tile_spread(place: Place, t: u32, i: u32) {
    let physical = tables[place.list + t / 128u];
    for (var first = i * HADAMARD_INNER; first < HEAD_DIM; first += 64u * HADAMARD_INNER) {
        grouped_block(physical, place.slab_heads, place.slab_head, place.head, t % 128u / 4u, first, first);
    }
}

// Channel c of the four tokens restored, turned to their positions t to t + 3.
fn tile_channel(c: u32, t: u32) -> vec4<f32> {
    let x = hadamard_outer(c);
    let pair = turn_pair(c);
    if (pair >= ROPE_PAIRS) {
        return x;
    }
    let y = turn_sign(c) * hadamard_outer(turn_partner(c));
    let high = turns[(128u + t / 128u) * ROPE_PAIRS + pair];
    let low = t % 128u;
    let p = turn_compose(high, turns[low * ROPE_PAIRS + pair]);
    let q = turn_compose(high, turns[(low + 1u) * ROPE_PAIRS + pair]);
    let r = turn_compose(high, turns[(low + 2u) * ROPE_PAIRS + pair]);
    let s = turn_compose(high, turns[(low + 3u) * ROPE_PAIRS + pair]);
    return x * vec4<f32>(p.x, q.x, r.x, s.x) + y * vec4<f32>(p.y, q.y, r.y, s.y);
}

// Eight channels of one token of the tile as halves: restored, or from its f16 row.
fn tile_pack(n: u32, eighth: u32) {
    let at = token_rows[n];
    var words = vec4<u32>(0u);
    if (token_positions[n] == NOWHERE) {
    } else if (at != CACHED_PACKED) {
        let w = at + 4u * eighth;
        words = vec4<u32>(protected_rows[w], protected_rows[w + 1u], protected_rows[w + 2u], protected_rows[w + 3u]);
    } else {
        let c = 8u * eighth;
        let k = n % 4u;
        words = vec4<u32>(half_pair(row[c][k], row[c + 1u][k]), half_pair(row[c + 2u][k], row[c + 3u][k]),
            half_pair(row[c + 4u][k], row[c + 5u][k]), half_pair(row[c + 6u][k], row[c + 7u][k]));
    }
    token_tile[n * (HEAD_DIM / 8u) + eighth] = words;
}

// Quad q of the slice of the tile's token n.
fn tile_key(n: u32, slice: u32, q: u32) -> vec4<f32> {
    let words = token_tile[min(n * (HEAD_DIM / 8u) + 4u * slice + q / 2u, TILE_VECS - 1u)];
    let two = select(words.xy, words.zw, (q & 1u) == 1u);
    return vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y));
}
