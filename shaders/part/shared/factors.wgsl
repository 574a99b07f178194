// factors: what a query makes of the mean of the keys. For pair p of RoPE, the mean key turned to
// position t adds to the score
//
//   a cos(t angle_p) + b sin(t angle_p)
//
// with two factors a and b, which are the query's pair of channels, turned to its own position,
// times the mean's as if both were complex numbers. Of all query heads that share a reading at once
// (part heads/<n>). Needs parts turn and centre. Twin: src/kernel/reference/factors.rs.

override ROPE: u32;  // 0 none, 1 split halves, 2 interleaved pairs
override SCALE: f32; // log2(e) times the plan's scale of scores

struct Factors { a: HeadsF, b: HeadsF }

// Factors of the cosine and the sine of an angle, as those of the cosine and sine of the angle
// beyond a turn.
fn factors_turn(factors: Factors, turn: vec2<f32>) -> Factors {
    return Factors(factors.a * turn.x + factors.b * turn.y, factors.b * turn.x - factors.a * turn.y);
}

// The two channels of pair p.
fn factors_channels(p: u32) -> vec2<u32> {
    let a = select(2u * p, p, ROPE == 1u);
    return vec2<u32>(a, turn_partner(a));
}

// The factors of the pair of these channels of a KV head, from the caller's queries there and the
// turn of their position.
fn factors_of(head: u32, channels: vec2<u32>, query: Factors, turn: vec2<f32>) -> Factors {
    let mean = vec2<f32>(centre_means(head, channels.x).x, centre_means(head, channels.y).x);
    return factors_turn(factors_turn(query, vec2<f32>(turn.x, -turn.y)), SCALE * mean);
}
