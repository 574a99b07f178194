// mirror: as mirror/subgroup says, through workgroup memory; with reduce/workgroup.
var<workgroup> mirror_lanes: array<HeadsF, 128>;

fn mirror_put(lane: u32, mine: Scores) {
    mirror_lanes[4u * lane] = mine.a;
    mirror_lanes[4u * lane + 1u] = mine.b;
    mirror_lanes[4u * lane + 2u] = mine.c;
    mirror_lanes[4u * lane + 3u] = mine.d;
}

fn mirror_take(lane: u32, mine: Scores) -> Scores {
    let at = 4u * (31u - lane);
    return Scores(mirror_lanes[at + 3u], mirror_lanes[at + 2u], mirror_lanes[at + 1u], mirror_lanes[at]);
}
