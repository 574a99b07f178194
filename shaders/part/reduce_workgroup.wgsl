// reduce over the 32 lanes of the workgroup through workgroup memory: for devices without subgroups, or with subgroups
// of fewer than 32 lanes. The kernel calls reduce_put, then a barrier, then reduce_max or reduce_add.
const REDUCE_BARRIER = true;

var<workgroup> reduce_lanes: array<HeadsF, 32>;

fn reduce_put(lane: u32, x: HeadsF) {
    reduce_lanes[lane] = x;
}

fn reduce_max8(n: u32) -> HeadsF {
    return max(max(max(reduce_lanes[n], reduce_lanes[n + 1u]), max(reduce_lanes[n + 2u], reduce_lanes[n + 3u])),
        max(max(reduce_lanes[n + 4u], reduce_lanes[n + 5u]), max(reduce_lanes[n + 6u], reduce_lanes[n + 7u])));
}

fn reduce_max(x: HeadsF) -> HeadsF {
    return max(max(reduce_max8(0u), reduce_max8(8u)), max(reduce_max8(16u), reduce_max8(24u)));
}

fn reduce_add8(n: u32) -> HeadsF {
    return (((reduce_lanes[n] + reduce_lanes[n + 1u]) + (reduce_lanes[n + 2u] + reduce_lanes[n + 3u]))
        + ((reduce_lanes[n + 4u] + reduce_lanes[n + 5u]) + (reduce_lanes[n + 6u] + reduce_lanes[n + 7u])));
}

fn reduce_add(x: HeadsF) -> HeadsF {
    return ((reduce_add8(0u) + reduce_add8(8u)) + (reduce_add8(16u) + reduce_add8(24u)));
}
