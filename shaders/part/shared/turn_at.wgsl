// turn_at: cosine and sine of one position and pair, which lie two a vector in the kernel's binding
// `turns`.
fn turn_at(i: u32) -> vec2<f32> {
    let two = turns[i / 2u];
    return select(two.xy, two.zw, (i & 1u) == 1u);
}
