// turn: cosine and sine of one RoPE pair at a position, composed from the table's two rows
// (position = 128 * high + low), so that no shader evaluates a sine of a large angle.

override ROPE_PAIRS: u32; // pairs of channels that turn
override ROPE: u32;       // 0 none, 1 split halves, 2 interleaved pairs

fn turn_compose(high: vec2<f32>, low: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(high.x * low.x - high.y * low.y, high.y * low.x + high.x * low.y);
}

// Which pair turns channel i, by ROPE (0 none, 1 split halves, 2 interleaved pairs). Channels
// beyond the rotary width answer ROPE_PAIRS: they stay as they are.
fn turn_pair(i: u32) -> u32 {
    if (ROPE == 0u || i >= 2u * ROPE_PAIRS) {
        return ROPE_PAIRS;
    }
    return select(i / 2u, i % max(ROPE_PAIRS, 1u), ROPE == 1u);
}

// The channel that shares channel i's pair.
fn turn_partner(i: u32) -> u32 {
    if (ROPE == 1u) {
        return select(i - ROPE_PAIRS, i + ROPE_PAIRS, i < ROPE_PAIRS);
    }
    return i ^ 1u;
}

// The sign of the partner's share: the first channel of a pair loses it, the second gains it.
fn turn_sign(i: u32) -> f32 {
    if (ROPE == 1u) {
        return select(1.0, -1.0, i < ROPE_PAIRS);
    }
    return select(1.0, -1.0, (i & 1u) == 0u);
}
