// position, the walk over the pairs as loops, for software adapters (see keys_rolled.wgsl).
fn position_waves(lane: u32) -> Scores {
    var half = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    for (var p = 0u; p < POSITION_WAVES; p++) {
        half = position_wave(p, lane, half);
    }
    return half;
}

fn position_fit_walk(lane: u32) -> HeadsF {
    var sum = HeadsF(0.0);
    for (var w = 0u; w < POSITION_FITS; w++) {
        sum = position_fit_four(w, lane, sum);
    }
    return sum;
}
