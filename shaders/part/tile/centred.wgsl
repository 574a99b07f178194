// tile: keys of Centred with what the mean adds to them, H (weight * RoPE_t(mean)), of the channels
// that turn: what the others add is the same for all tokens, and only log-sums need it (attend_merge).
// Elected sinks keep their mean. Works on `row` by `token_positions`; reads the kernel's bindings `turns` and `marks`; needs cached,
// centre, hadamard and turn.

override HEAD_DIM: u32;   // channels of a head
override ROPE_PAIRS: u32; // pairs of channels that turn
override CELLS: u32;      // of `row`

const TILE_MIXES = true;
const TILE_STEPS = 2u;

// Cosine and sine of a pair for the tile's token n; of some position where there is none.
fn tile_turn(n: u32, pair: u32) -> vec2<f32> {
    let t = min(token_positions[n], 0x3fffffffu);
    return turn_compose(turns[(128u + t / 128u) * ROPE_PAIRS + pair], turns[(t % 128u) * ROPE_PAIRS + pair]);
}

// The weighted means, turned to the positions of four tokens a cell.
fn tile_spread(place: Place, first: u32, i: u32) {
    for (var e = i; e < CELLS; e += 128u) {
        let c = e % HEAD_DIM;
        let n = first + e / HEAD_DIM * 4u;
        let pair = turn_pair(c);
        var x = vec4<f32>(0.0);
        if (pair < ROPE_PAIRS) {
            let weight = centre_weights(place.head, c).x;
            let own = weight * centre_means(place.head, c).x;
            let other = weight * turn_sign(c) * centre_means(place.head, turn_partner(c)).x;
            let p = tile_turn(n, pair);
            let q = tile_turn(n + 1u, pair);
            let r = tile_turn(n + 2u, pair);
            let s = tile_turn(n + 3u, pair);
            x = own * vec4<f32>(p.x, q.x, r.x, s.x) + other * vec4<f32>(p.y, q.y, r.y, s.y);
        }
        row[e] = x;
    }
}

fn tile_step(step: u32, first: u32, e: u32) -> vec4<f32> {
    if (e >= CELLS) {
        return vec4<f32>(0.0);
    }
    if (step == 0u) {
        return hadamard_outer(e);
    }
    return hadamard_inner(e);
}

fn tile_put(e: u32, x: vec4<f32>) {
    if (e < CELLS) {
        row[e] = x;
    }
}

// Quad q of the tile's token n, whose four begin at `cells`.
fn tile_key(place: Place, n: u32, cells: u32, q: u32) -> vec4<f32> {
    let at = cells + 4u * q;
    let k = n % 4u;
    let key = cached_key(place, token_positions[n], token_rows[n], q);
    if (cached_elected(place, token_rows[n])) {
        return key;
    }
    return key + vec4<f32>(row[at][k], row[at + 1u][k], row[at + 2u][k], row[at + 3u][k]);
}
