// heads, four at once: the query heads that share one reading of the cache.
alias HeadsF = vec4<f32>;
alias HeadsI = vec4<i32>;
alias HeadsU = vec4<u32>;

fn heads_dot_i8(codes: u32, q: HeadsU) -> HeadsI {
    return vec4<i32>(dot4I8Packed(codes, q.x), dot4I8Packed(codes, q.y), dot4I8Packed(codes, q.z), dot4I8Packed(codes, q.w));
}

fn heads_dot_u8(codes: u32, p: HeadsU) -> HeadsU {
    return vec4<u32>(dot4U8Packed(codes, p.x), dot4U8Packed(codes, p.y), dot4U8Packed(codes, p.z), dot4U8Packed(codes, p.w));
}

fn heads_at(x: HeadsF, h: u32) -> f32 {
    return x[h];
}

// As many of four numbers as there are heads.
fn heads_of(a: f32, b: f32, c: f32, d: f32) -> HeadsF {
    return vec4<f32>(a, b, c, d);
}
