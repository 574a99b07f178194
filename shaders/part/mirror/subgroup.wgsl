// mirror: what the lane mirrored about the middle of the unit has of its token mirrored about the
// middle of its four, by shuffles. For units that lie in one subgroup, as for reduce/subgroup. The
// kernel calls mirror_put, then (only where REDUCE_BARRIER says so) a barrier, then mirror_take.
fn mirror_put(lane: u32, mine: Scores) {}

fn mirror_take(lane: u32, mine: Scores) -> Scores {
    return Scores(subgroupShuffleXor(mine.d, 31u), subgroupShuffleXor(mine.c, 31u), subgroupShuffleXor(mine.b, 31u), subgroupShuffleXor(mine.a, 31u));
}
