// reduce/subgroup: sums over the lanes of a unit, each a subgroup of exactly LANES lanes.

const REDUCE_BARRIER = false;

fn reduce_put(slot: u32, i: u32, x: vec4<f32>) {}

fn reduce_add(slot: u32, i: u32, x: vec4<f32>) -> vec4<f32> {
    return subgroupAdd(x);
}
