// butterfly: factors of order 2 of Sylvester's Hadamard matrix, on 32 numbers of one invocation.
// Each factor belongs to a bit of the number's index; the factors commute, so any order of the bits
// gives the same matrix, and only the rounding differs. Twin: src/kernel/reference/rotate.rs.

// Eight named vectors, since an indexed array would go to memory.
struct ButterflyEight {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
    e: vec4<f32>,
    f: vec4<f32>,
    g: vec4<f32>,
    h: vec4<f32>,
}

// Both bits of the place within a vector, the lower first.
fn butterfly_vector(x: vec4<f32>) -> vec4<f32> {
    let y = vec4<f32>(x.x + x.y, x.x - x.y, x.z + x.w, x.z - x.w);
    return vec4<f32>(y.xy + y.zw, y.xy - y.zw);
}

fn butterfly_vectors(x: ButterflyEight) -> ButterflyEight {
    return ButterflyEight(butterfly_vector(x.a), butterfly_vector(x.b), butterfly_vector(x.c), butterfly_vector(x.d),
        butterfly_vector(x.e), butterfly_vector(x.f), butterfly_vector(x.g), butterfly_vector(x.h));
}

// Bit 0 of the vector's number: neighbours.
fn butterfly_1(x: ButterflyEight) -> ButterflyEight {
    return ButterflyEight(x.a + x.b, x.a - x.b, x.c + x.d, x.c - x.d, x.e + x.f, x.e - x.f, x.g + x.h, x.g - x.h);
}

// Bit 1: vectors two apart.
fn butterfly_2(x: ButterflyEight) -> ButterflyEight {
    return ButterflyEight(x.a + x.c, x.b + x.d, x.a - x.c, x.b - x.d, x.e + x.g, x.f + x.h, x.e - x.g, x.f - x.h);
}

// Bit 2: vectors four apart.
fn butterfly_4(x: ButterflyEight) -> ButterflyEight {
    return ButterflyEight(x.a + x.e, x.b + x.f, x.c + x.g, x.d + x.h, x.a - x.e, x.b - x.f, x.c - x.g, x.d - x.h);
}
