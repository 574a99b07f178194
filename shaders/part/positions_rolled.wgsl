// positions, the walk over the waves as a loop, for software adapters (see keys_rolled.wgsl).
fn positions_waves(lane: u32) -> Scores {
    var half = Scores(HeadsF(0.0), HeadsF(0.0), HeadsF(0.0), HeadsF(0.0));
    for (var p = 0u; p < POSITION_WAVES; p++) {
        half = positions_wave(p, lane, half);
    }
    return half;
}
