// tile: keys as they are stored, a slice of 32 channels at a time. Works on `token_tile`.
const TILE_RESTORES = false;

fn tile_spread(place: Place, t: u32, i: u32) {}

fn tile_channel(c: u32, t: u32) -> vec4<f32> {
    return vec4<f32>(0.0);
}

fn tile_pack(n: u32, eighth: u32) {}

// Quad q of the slice of the tile's token n.
fn tile_key(n: u32, slice: u32, q: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(token_tile[8u * n + q]);
}
