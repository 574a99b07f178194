// reduce over the 32 lanes of the workgroup, which are one subgroup (the device's subgroups hold 32 lanes or more).
// The kernel calls reduce_put, then (only where REDUCE_BARRIER says so) a barrier, then reduce_max or reduce_add.
const REDUCE_BARRIER = false;

fn reduce_put(lane: u32, x: HeadsF) {}

fn reduce_max(x: HeadsF) -> HeadsF {
    return subgroupMax(x);
}

fn reduce_add(x: HeadsF) -> HeadsF {
    return subgroupAdd(x);
}
