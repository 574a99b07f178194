// tile: RotateKV's keys, restored four tokens a cell: the rotation over the head group undone, then
// RoPE at each key's own position. Works on `row`, by `token_rows` and `token_positions`; reads the
// kernel's bindings `tables`, `turns` and `protected_rows`; needs cached, hadamard, turn, grouped and
// grouped_block.

override HEAD_DIM: u32;       // channels of a head
override ROPE_PAIRS: u32;     // pairs of channels that turn
override HADAMARD_INNER: u32;
override CELLS: u32;          // of `row`

const TILE_MIXES = true;
const TILE_STEPS = 1u;

// Four tokens (of one lane of their page) a cell without the inner factor of the rotation, in blocks
// of HADAMARD_INNER channels each.
fn tile_spread(place: Place, first: u32, i: u32) {
    for (var at = i * HADAMARD_INNER; at < CELLS; at += 128u * HADAMARD_INNER) {
        let n = first + at / HEAD_DIM * 4u;
        let t = token_positions[n];
        if (t < place.packed && t % 4u == 0u) {
            grouped_block(tables[place.list + t / 128u], place.slab_heads, place.slab_head, place.head, t % 128u / 4u, at % HEAD_DIM, at);
        }
    }
}

// A channel of four tokens restored, turned to their positions, which follow each other.
fn tile_step(step: u32, first: u32, e: u32) -> vec4<f32> {
    let c = e % HEAD_DIM;
    let t = token_positions[first + e / HEAD_DIM * 4u];
    if (e >= CELLS || t == 0xffffffffu) {
        return vec4<f32>(0.0);
    }
    let x = hadamard_outer(e);
    let pair = turn_pair(c);
    if (pair >= ROPE_PAIRS) {
        return x;
    }
    let y = turn_sign(c) * hadamard_outer(e - c + turn_partner(c));
    let high = turns[(128u + t / 128u) * ROPE_PAIRS + pair];
    let low = t % 128u;
    let p = turn_compose(high, turns[low * ROPE_PAIRS + pair]);
    let q = turn_compose(high, turns[(low + 1u) * ROPE_PAIRS + pair]);
    let r = turn_compose(high, turns[(low + 2u) * ROPE_PAIRS + pair]);
    let s = turn_compose(high, turns[(low + 3u) * ROPE_PAIRS + pair]);
    return x * vec4<f32>(p.x, q.x, r.x, s.x) + y * vec4<f32>(p.y, q.y, r.y, s.y);
}

fn tile_put(e: u32, x: vec4<f32>) {
    if (e < CELLS) {
        row[e] = x;
    }
}

// Quad q of the tile's token n, whose four begin at `cells`: restored, or from its f16 row.
fn tile_key(place: Place, n: u32, cells: u32, q: u32) -> vec4<f32> {
    if (token_rows[n] != CACHED_PACKED) {
        return cached_key(place, token_positions[n], token_rows[n], q);
    }
    let at = cells + 4u * q;
    let k = n % 4u;
    return vec4<f32>(row[at][k], row[at + 1u][k], row[at + 2u][k], row[at + 3u][k]);
}
