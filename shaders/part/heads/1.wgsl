// heads, one at a time: every query head has a KV head of its own.
alias HeadsF = f32;
alias HeadsI = i32;
alias HeadsU = u32;

fn heads_dot_i8(codes: u32, q: HeadsU) -> HeadsI {
    return dot4I8Packed(codes, q);
}

fn heads_dot_u8(codes: u32, p: HeadsU) -> HeadsU {
    return dot4U8Packed(codes, p);
}

fn heads_at(x: HeadsF, h: u32) -> f32 {
    return x;
}

// As many of four numbers as there are heads.
fn heads_of(a: f32, b: f32, c: f32, d: f32) -> HeadsF {
    return a;
}
