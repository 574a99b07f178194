// reduce over the 32 lanes of a unit, which are one subgroup: where a workgroup is one unit, the
// device's subgroups hold 32 lanes or more; where it is several, exactly 32. The kernel calls
// reduce_put, then (only where REDUCE_BARRIER says so) a barrier, then reduce_max or reduce_add.
const REDUCE_BARRIER = false;

fn reduce_put(unit: u32, lane: u32, x: HeadsF) {}

fn reduce_max(unit: u32, x: HeadsF) -> HeadsF {
    return subgroupMax(x);
}

fn reduce_add(unit: u32, x: HeadsF) -> HeadsF {
    return subgroupAdd(x);
}
