// heads, two at once: the query heads that share one reading of the cache.
alias HeadsF = vec2<f32>;
alias HeadsI = vec2<i32>;
alias HeadsU = vec2<u32>;

fn heads_dot_i8(codes: u32, q: HeadsU) -> HeadsI {
    return vec2<i32>(dot4I8Packed(codes, q.x), dot4I8Packed(codes, q.y));
}

fn heads_dot_u8(codes: u32, p: HeadsU) -> HeadsU {
    return vec2<u32>(dot4U8Packed(codes, p.x), dot4U8Packed(codes, p.y));
}

fn heads_at(x: HeadsF, h: u32) -> f32 {
    return x[h];
}

// As many of four numbers as there are heads.
fn heads_of(a: f32, b: f32, c: f32, d: f32) -> HeadsF {
    return vec2<f32>(a, b);
}
