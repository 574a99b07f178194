// reduce over the 32 lanes of a unit through workgroup memory: for devices without subgroups, or
// with subgroups of fewer than 32 lanes. The kernel calls reduce_put, then a barrier, then
// reduce_max or reduce_add.

override UNITS: u32; // 1

const REDUCE_BARRIER = true;

var<workgroup> reduce_lanes: array<HeadsF, UNITS * 32u>;

fn reduce_put(unit: u32, lane: u32, x: HeadsF) {
    reduce_lanes[32u * unit + lane] = x;
}

fn reduce_max8(n: u32) -> HeadsF {
    return max(max(max(reduce_lanes[n], reduce_lanes[n + 1u]), max(reduce_lanes[n + 2u], reduce_lanes[n + 3u])),
        max(max(reduce_lanes[n + 4u], reduce_lanes[n + 5u]), max(reduce_lanes[n + 6u], reduce_lanes[n + 7u])));
}

fn reduce_max(unit: u32, x: HeadsF) -> HeadsF {
    let n = 32u * unit;
    return max(max(reduce_max8(n), reduce_max8(n + 8u)), max(reduce_max8(n + 16u), reduce_max8(n + 24u)));
}

fn reduce_add8(n: u32) -> HeadsF {
    return (((reduce_lanes[n] + reduce_lanes[n + 1u]) + (reduce_lanes[n + 2u] + reduce_lanes[n + 3u]))
        + ((reduce_lanes[n + 4u] + reduce_lanes[n + 5u]) + (reduce_lanes[n + 6u] + reduce_lanes[n + 7u])));
}

fn reduce_add(unit: u32, x: HeadsF) -> HeadsF {
    let n = 32u * unit;
    return ((reduce_add8(n) + reduce_add8(n + 8u)) + (reduce_add8(n + 16u) + reduce_add8(n + 24u)));
}
