// positions, the walk over the waves as straight-line code, for GPUs (see keys/walk/straight).

override POSITION_WAVES: u32; // first pairs of RoPE, which turn too fast for a short polynomial

fn positions_eight(w: u32, lane: u32, half: Scores) -> Scores {
    var next = half;
    if (w + 0u < POSITION_WAVES) {
        next = waves_add(w + 0u, lane, next);
    }
    if (w + 1u < POSITION_WAVES) {
        next = waves_add(w + 1u, lane, next);
    }
    if (w + 2u < POSITION_WAVES) {
        next = waves_add(w + 2u, lane, next);
    }
    if (w + 3u < POSITION_WAVES) {
        next = waves_add(w + 3u, lane, next);
    }
    if (w + 4u < POSITION_WAVES) {
        next = waves_add(w + 4u, lane, next);
    }
    if (w + 5u < POSITION_WAVES) {
        next = waves_add(w + 5u, lane, next);
    }
    if (w + 6u < POSITION_WAVES) {
        next = waves_add(w + 6u, lane, next);
    }
    if (w + 7u < POSITION_WAVES) {
        next = waves_add(w + 7u, lane, next);
    }
    return next;
}

fn positions_waves(lane: u32) -> Scores {
    var half = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    half = positions_eight(0u, lane, half);
    if (POSITION_WAVES > 8u) {
        half = positions_eight(8u, lane, half);
    }
    if (POSITION_WAVES > 16u) {
        half = positions_eight(16u, lane, half);
    }
    if (POSITION_WAVES > 24u) {
        half = positions_eight(24u, lane, half);
    }
    if (POSITION_WAVES > 32u) {
        half = positions_eight(32u, lane, half);
    }
    if (POSITION_WAVES > 40u) {
        half = positions_eight(40u, lane, half);
    }
    if (POSITION_WAVES > 48u) {
        half = positions_eight(48u, lane, half);
    }
    if (POSITION_WAVES > 56u) {
        half = positions_eight(56u, lane, half);
    }
    if (POSITION_WAVES > 64u) {
        half = positions_eight(64u, lane, half);
    }
    if (POSITION_WAVES > 72u) {
        half = positions_eight(72u, lane, half);
    }
    if (POSITION_WAVES > 80u) {
        half = positions_eight(80u, lane, half);
    }
    if (POSITION_WAVES > 88u) {
        half = positions_eight(88u, lane, half);
    }
    if (POSITION_WAVES > 96u) {
        half = positions_eight(96u, lane, half);
    }
    if (POSITION_WAVES > 104u) {
        half = positions_eight(104u, lane, half);
    }
    if (POSITION_WAVES > 112u) {
        half = positions_eight(112u, lane, half);
    }
    if (POSITION_WAVES > 120u) {
        half = positions_eight(120u, lane, half);
    }
    return half;
}
