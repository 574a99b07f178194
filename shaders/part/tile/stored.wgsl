// tile: keys as they are stored. Reads `token_rows` and `token_positions`; needs cached.
const TILE_MIXES = false;
const TILE_STEPS = 0u;

fn tile_spread(place: Place, first: u32, i: u32) {}

fn tile_step(step: u32, first: u32, e: u32) -> vec4<f32> {
    return vec4<f32>(0.0);
}

fn tile_put(e: u32, x: vec4<f32>) {}

// Quad q of the tile's token n.
fn tile_key(place: Place, n: u32, cells: u32, q: u32) -> vec4<f32> {
    return cached_key(place, token_positions[n], token_rows[n], q);
}
