// rows, the walks over a tile as loops, for software adapters (see keys/walk/rolled).

override HEAD_DIM: u32;       // channels of a head
override POSITION_QUADS: u32; // pairs of RoPE's pairs that the mean of the keys adds by

fn rows_walk_keys(at: u32) -> HeadsF {
    var s = HeadsF(0.0);
    for (var w = 0u; w < HEAD_DIM / 8u; w++) {
        s = half_rows_key(at, w, s);
    }
    return s;
}

fn rows_walk_means(lane: u32, sink: bool, s: HeadsF) -> HeadsF {
    var sum = s;
    for (var q = 0u; q < POSITION_QUADS; q++) {
        sum = rows_mean(q, lane, sink, sum);
    }
    return sum;
}

fn rows_walk_values(quad: u32, row: Channels) -> Channels {
    var sum = row;
    for (var t = 0u; t < 32u; t++) {
        sum = half_rows_value(t, quad, sum);
    }
    return sum;
}
