// rows, the walks over a tile as straight-line code, for GPUs (see keys/walk/straight): all that a
// lane loads of its row is in flight together.

override HEAD_DIM: u32;       // channels of a head
override POSITION_QUADS: u32; // pairs of RoPE's pairs that the mean of the keys adds by

fn rows_eight_keys(at: u32, w: u32, s: HeadsF) -> HeadsF {
    let a = half_rows_key(at, w + 1u, half_rows_key(at, w, s));
    let b = half_rows_key(at, w + 3u, half_rows_key(at, w + 2u, a));
    let c = half_rows_key(at, w + 5u, half_rows_key(at, w + 4u, b));
    return half_rows_key(at, w + 7u, half_rows_key(at, w + 6u, c));
}

fn rows_walk_keys(at: u32) -> HeadsF {
    var s = rows_eight_keys(at, 0u, HeadsF(0.0));
    if (HEAD_DIM > 64u) {
        s = rows_eight_keys(at, 8u, s);
    }
    if (HEAD_DIM > 128u) {
        s = rows_eight_keys(at, 16u, s);
        s = rows_eight_keys(at, 24u, s);
    }
    if (HEAD_DIM > 256u) {
        s = rows_eight_keys(at, 32u, s);
        s = rows_eight_keys(at, 40u, s);
        s = rows_eight_keys(at, 48u, s);
        s = rows_eight_keys(at, 56u, s);
    }
    return s;
}

fn rows_eight_means(q: u32, lane: u32, sink: bool, s: HeadsF) -> HeadsF {
    let a = rows_mean(q + 1u, lane, sink, rows_mean(q, lane, sink, s));
    let b = rows_mean(q + 3u, lane, sink, rows_mean(q + 2u, lane, sink, a));
    let c = rows_mean(q + 5u, lane, sink, rows_mean(q + 4u, lane, sink, b));
    return rows_mean(q + 7u, lane, sink, rows_mean(q + 6u, lane, sink, c));
}

fn rows_walk_means(lane: u32, sink: bool, s: HeadsF) -> HeadsF {
    var sum = s;
    if (POSITION_QUADS > 0u) {
        sum = rows_eight_means(0u, lane, sink, sum);
    }
    if (POSITION_QUADS > 8u) {
        sum = rows_eight_means(8u, lane, sink, sum);
    }
    if (POSITION_QUADS > 16u) {
        sum = rows_eight_means(16u, lane, sink, sum);
    }
    if (POSITION_QUADS > 24u) {
        sum = rows_eight_means(24u, lane, sink, sum);
    }
    if (POSITION_QUADS > 32u) {
        sum = rows_eight_means(32u, lane, sink, sum);
    }
    if (POSITION_QUADS > 40u) {
        sum = rows_eight_means(40u, lane, sink, sum);
    }
    if (POSITION_QUADS > 48u) {
        sum = rows_eight_means(48u, lane, sink, sum);
    }
    if (POSITION_QUADS > 56u) {
        sum = rows_eight_means(56u, lane, sink, sum);
    }
    if (POSITION_QUADS > 64u) {
        // Heads of 512.
        for (var q = 64u; q < POSITION_QUADS; q += 8u) {
            sum = rows_eight_means(q, lane, sink, sum);
        }
    }
    return sum;
}

fn rows_eight_values(t: u32, quad: u32, row: Channels) -> Channels {
    let a = half_rows_value(t + 1u, quad, half_rows_value(t, quad, row));
    let b = half_rows_value(t + 3u, quad, half_rows_value(t + 2u, quad, a));
    let c = half_rows_value(t + 5u, quad, half_rows_value(t + 4u, quad, b));
    return half_rows_value(t + 7u, quad, half_rows_value(t + 6u, quad, c));
}

fn rows_walk_values(quad: u32, row: Channels) -> Channels {
    let a = rows_eight_values(0u, quad, row);
    let b = rows_eight_values(8u, quad, a);
    let c = rows_eight_values(16u, quad, b);
    return rows_eight_values(24u, quad, c);
}
