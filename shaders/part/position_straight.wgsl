// position, the walk over the pairs as straight-line code, for GPUs (see keys_straight.wgsl).
fn position_waves_eight(w: u32, lane: u32, half: Scores) -> Scores {
    var next = half;
    if (w + 0u < POSITION_WAVES) {
        next = position_wave(w + 0u, lane, next);
    }
    if (w + 1u < POSITION_WAVES) {
        next = position_wave(w + 1u, lane, next);
    }
    if (w + 2u < POSITION_WAVES) {
        next = position_wave(w + 2u, lane, next);
    }
    if (w + 3u < POSITION_WAVES) {
        next = position_wave(w + 3u, lane, next);
    }
    if (w + 4u < POSITION_WAVES) {
        next = position_wave(w + 4u, lane, next);
    }
    if (w + 5u < POSITION_WAVES) {
        next = position_wave(w + 5u, lane, next);
    }
    if (w + 6u < POSITION_WAVES) {
        next = position_wave(w + 6u, lane, next);
    }
    if (w + 7u < POSITION_WAVES) {
        next = position_wave(w + 7u, lane, next);
    }
    return next;
}

fn position_waves(lane: u32) -> Scores {
    var half = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    half = position_waves_eight(0u, lane, half);
    if (POSITION_WAVES > 8u) {
        half = position_waves_eight(8u, lane, half);
    }
    if (POSITION_WAVES > 16u) {
        half = position_waves_eight(16u, lane, half);
    }
    if (POSITION_WAVES > 24u) {
        half = position_waves_eight(24u, lane, half);
    }
    if (POSITION_WAVES > 32u) {
        half = position_waves_eight(32u, lane, half);
    }
    if (POSITION_WAVES > 40u) {
        half = position_waves_eight(40u, lane, half);
    }
    if (POSITION_WAVES > 48u) {
        half = position_waves_eight(48u, lane, half);
    }
    if (POSITION_WAVES > 56u) {
        half = position_waves_eight(56u, lane, half);
    }
    if (POSITION_WAVES > 64u) {
        half = position_waves_eight(64u, lane, half);
    }
    if (POSITION_WAVES > 72u) {
        half = position_waves_eight(72u, lane, half);
    }
    if (POSITION_WAVES > 80u) {
        half = position_waves_eight(80u, lane, half);
    }
    if (POSITION_WAVES > 88u) {
        half = position_waves_eight(88u, lane, half);
    }
    if (POSITION_WAVES > 96u) {
        half = position_waves_eight(96u, lane, half);
    }
    if (POSITION_WAVES > 104u) {
        half = position_waves_eight(104u, lane, half);
    }
    if (POSITION_WAVES > 112u) {
        half = position_waves_eight(112u, lane, half);
    }
    if (POSITION_WAVES > 120u) {
        half = position_waves_eight(120u, lane, half);
    }
    return half;
}

fn position_fits_four(w: u32, lane: u32, sum: HeadsF) -> HeadsF {
    var next = sum;
    if (w + 0u < POSITION_FITS) {
        next = position_fit_four(w + 0u, lane, next);
    }
    if (w + 1u < POSITION_FITS) {
        next = position_fit_four(w + 1u, lane, next);
    }
    if (w + 2u < POSITION_FITS) {
        next = position_fit_four(w + 2u, lane, next);
    }
    if (w + 3u < POSITION_FITS) {
        next = position_fit_four(w + 3u, lane, next);
    }
    return next;
}

fn position_fit_walk(lane: u32) -> HeadsF {
    var sum = position_fits_four(0u, lane, HeadsF(0.0));
    if (POSITION_FITS > 4u) {
        sum = position_fits_four(4u, lane, sum);
    }
    if (POSITION_FITS > 8u) {
        sum = position_fits_four(8u, lane, sum);
    }
    if (POSITION_FITS > 12u) {
        sum = position_fits_four(12u, lane, sum);
    }
    return sum;
}
