// reduce/workgroup: sums over the lanes of a unit, through workgroup memory, in the order of lanes.

override LANES: u32;

const REDUCE_BARRIER = true;

var<workgroup> reduce_places: array<array<vec4<f32>, 256>, REDUCE_SLOTS>;

fn reduce_put(slot: u32, i: u32, x: vec4<f32>) {
    reduce_places[slot][i] = x;
}

// Only the first lane's sum is made.
fn reduce_add(slot: u32, i: u32, x: vec4<f32>) -> vec4<f32> {
    var sum = x;
    if (i % LANES == 0u) {
        for (var lane = 1u; lane < LANES; lane++) {
            sum += reduce_places[slot][i + lane];
        }
    }
    return sum;
}
