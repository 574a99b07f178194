// weights: eight neighbouring weights of a matrix, as numbers.

fn weights_at(eight: u32) -> Eight {
    let codes = codes_at(eight);
    let scale = scale_at(eight);
    return Eight(scale.x * codes.low + scale.y, scale.x * codes.high + scale.y);
}
